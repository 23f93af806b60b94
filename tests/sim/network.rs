//! The simulated network: what is under way between machines, and how badly.
//!
//! Everything that leaves a machine becomes an [`Event`] for another one at a later instant of the cluster's clock, at least
//! [`STEP_MILLIS`] later: so machines may run one after the other for one step each and never miss anything. Between two members
//! each direction is a link of its own, so one may be cut, or its stream stall, while the other works. Messages of consensus may
//! be lost, delayed, repeated and reordered, more than QUIC's streams would allow: `raft` promises to live with it. Requests are
//! carried out at most once, as by the real hub.

use crate::{
    machine::Life,
    spoken::Spoken,
    trace::{Trace, digest},
};
use bytes::Bytes;
use quorate::{
    actors::{
        peer_hub::{
            HubPeers, MessagesDropped, PeerConnected, PeerDisconnected, PeerMessages,
            ReceiveSnapshot, RefusedByPeer, ServeGuest, ServeRequests,
        },
        requests::Requests,
    },
    net::{
        ForwardError, ForwardReply, GuestQuestion, IncomingSnapshot, PeerAddress, PeerRequest,
        Refusal, Responder,
    },
    raft::{Body, Message},
    types::{ClusterId, MemberId},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    rc::Rc,
    sync::Arc,
};

/// How far machines run ahead of each other, and the least delay between them.
pub(crate) const STEP_MILLIS: u64 = 2;

/// A connection without a sign of life for so long is given up, as by the real hub.
const IDLE_MILLIS: u64 = 3_000;
/// The longest pause between dials, as by the real hub.
const REDIAL_MILLIS_MAX: u64 = 1_000;
/// Messages that wait for a stream that stalls; more are dropped, and the sender is told.
const STALLED_MAX: usize = 200;

/// A machine's number: that of its node, or [`CLIENTS`].
pub(crate) type Slot = usize;

/// The machine of all clients.
pub(crate) const CLIENTS: Slot = usize::MAX;

/// What clients ask of a node: run there, on its own event loop.
pub(crate) type Job = Box<dyn FnOnce(Requests) -> Pin<Box<dyn Future<Output = ()>>>>;

/// How the links between members behave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// The least delay of a message.
    pub(crate) delay_least: u64,
    /// The usual spread of delays, in milliseconds.
    pub(crate) delay_spread: u64,
    /// In a thousand messages, so many are very late: up to this many milliseconds.
    pub(crate) late_permille: u32,
    pub(crate) late_most: u64,
    /// In a thousand messages, so many are lost, and so many come twice.
    pub(crate) lost_permille: u32,
    pub(crate) twice_permille: u32,
    /// Whether messages of one kind of stream arrive in their order.
    pub(crate) ordered: bool,
}

impl Weather {
    /// A local network on a good day.
    pub(crate) fn fair() -> Self {
        Self {
            delay_least: STEP_MILLIS,
            delay_spread: 2,
            late_permille: 0,
            late_most: 0,
            lost_permille: 0,
            twice_permille: 0,
            ordered: true,
        }
    }

    /// A network of any quality.
    pub(crate) fn drawn(rng: &mut fastrand::Rng) -> Self {
        if rng.u8(0..4) == 0 {
            return Self::fair();
        }
        Self {
            delay_least: STEP_MILLIS,
            delay_spread: rng.u64(2..30),
            late_permille: rng.u32(0..20),
            late_most: rng.u64(50..1500),
            lost_permille: rng.u32(0..60),
            twice_permille: rng.u32(0..40),
            ordered: rng.bool(),
        }
    }
}

/// What arrives at a machine.
pub(crate) enum Event {
    /// Consensus.
    Messages {
        from: MemberId,
        messages: Vec<Message>,
    },
    /// A request that another member forwards. `back` takes its answer.
    Request {
        from: MemberId,
        body: Bytes,
        back: AnswerTo,
    },
    /// The answer to a forwarded request, for who asked.
    Answer {
        reply: ForwardReply,
        outcome: Result<Bytes, ForwardError>,
    },
    /// A question of a process that is no member. `back` takes the answer, and who gave it.
    Guest { question: GuestQuestion },
    /// A snapshot begins.
    Snapshot(IncomingSnapshot),
    /// A fact about connections.
    Fact(Fact),
    /// A request of the client with this number.
    Job(u64, Job),
}

impl Event {
    /// What kind it is, and a number that tells it from others.
    fn told(&self) -> (&'static str, u64) {
        match self {
            Self::Messages { messages, .. } => ("messages", messages.iter().map(said).sum()),
            Self::Request { body, .. } => ("a forwarded request", digest(body)),
            Self::Answer { outcome, .. } => {
                ("an answer", outcome.as_ref().map_or(1, |body| digest(body)))
            }
            Self::Guest { question } => ("a guest", digest(&question.question)),
            Self::Snapshot(incoming) => ("a snapshot", digest(&incoming.header)),
            Self::Fact(fact) => ("a fact", digest(format!("{fact:?}").as_bytes())),
            Self::Job(client, _) => ("a client", *client),
        }
    }
}

/// A number that tells a message from others.
fn said(message: &Message) -> u64 {
    let body = &message.body;
    let Body::Append { entries, .. } = body else {
        return digest(format!("{message:?}").as_bytes());
    };
    let ends = [entries.first(), entries.last()];
    let mut sum = message.term.0 ^ entries.len() as u64;
    for entry in ends.into_iter().flatten() {
        sum = sum.wrapping_mul(31) ^ entry.index.0 ^ digest(&entry.data);
    }
    sum
}

/// How a message reads in a trace.
fn shown(message: &Message) -> String {
    let Body::Append {
        prev,
        commit,
        entries,
    } = &message.body
    else {
        return format!("t{} {:?}", message.term, message.body);
    };
    let count = entries.len();
    format!(
        "t{} Append {count} after {prev}, commit {commit}",
        message.term
    )
}

/// A fact about a member's connections.
#[derive(Clone, Debug)]
pub(crate) enum Fact {
    Connected(MemberId),
    Disconnected(MemberId),
    Dropped(MemberId),
    Refused(RefusedByPeer),
}

/// An event on its way.
pub(crate) struct Parcel {
    pub(crate) to: Slot,
    /// The life that it is meant for; nothing if any will do.
    pub(crate) life: Option<Arc<Life>>,
    pub(crate) event: Event,
}

/// A node's place in the network while it lives.
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) cluster: ClusterId,
    pub(crate) member: MemberId,
    pub(crate) peers: HubPeers,
    pub(crate) life: Arc<Life>,
    /// The members that this one knows.
    pub(crate) book: BTreeMap<MemberId, PeerAddress>,
}

/// What a process that has not started its member yet answers every guest.
pub(crate) struct Announced {
    pub(crate) cluster: ClusterId,
    pub(crate) member: MemberId,
    pub(crate) answer: Bytes,
    pub(crate) life: Arc<Life>,
}

/// Two members' connection.
#[derive(Clone, Debug, Default)]
struct Connection {
    /// Whether both know it as up: their lives then.
    up: Option<[Arc<Life>; 2]>,
    /// Since when it could not work, while up; or when the next dial is, while down.
    at: Option<u64>,
}

/// Shared by all machines.
pub(crate) type SharedNetwork = Rc<RefCell<Network>>;

/// The network.
pub(crate) struct Network {
    pub(crate) now: u64,
    pub(crate) rng: fastrand::Rng,
    pub(crate) weather: Weather,
    pub(crate) trace: Trace,
    /// What members may say is held against what they said.
    pub(crate) spoken: Spoken,
    /// Snapshots that took the place of a member's state.
    pub(crate) snapshots: u64,
    /// Addresses, `HOST:PORT`, of all machines.
    pub(crate) addresses: BTreeMap<String, Slot>,
    endpoints: BTreeMap<Slot, Endpoint>,
    announced: BTreeMap<Slot, Announced>,
    under_way: BTreeMap<(u64, u64), Parcel>,
    sent: u64,
    /// Directions that carry nothing.
    cut: BTreeSet<(Slot, Slot)>,
    /// Directions whose stream of consensus stalls, and what waits there.
    stalled: BTreeMap<(Slot, Slot), Vec<Event>>,
    /// When the newest message of a direction arrives, if order is kept.
    newest: BTreeMap<(Slot, Slot), u64>,
    connections: BTreeMap<(Slot, Slot), Connection>,
    /// Machines that stand still.
    paused: BTreeSet<Slot>,
}

impl Network {
    pub(crate) fn new(rng: fastrand::Rng, weather: Weather, trace: Trace) -> Self {
        Self {
            now: 0,
            rng,
            weather,
            trace,
            spoken: Spoken::default(),
            snapshots: 0,
            addresses: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            announced: BTreeMap::new(),
            under_way: BTreeMap::new(),
            sent: 0,
            cut: BTreeSet::new(),
            stalled: BTreeMap::new(),
            newest: BTreeMap::new(),
            connections: BTreeMap::new(),
            paused: BTreeSet::new(),
        }
    }

    /// A node is there.
    pub(crate) fn attach(&mut self, slot: Slot, endpoint: Endpoint) {
        self.announced.remove(&slot);
        self.endpoints.insert(slot, endpoint);
    }

    /// A process is there that answers guests, and nothing else.
    pub(crate) fn announce(&mut self, slot: Slot, announced: Announced) {
        self.announced.insert(slot, announced);
    }

    /// What the process on a machine answers guests before its member starts.
    pub(crate) fn announced(&self, slot: Slot) -> Option<&Announced> {
        let announced = self.announced.get(&slot)?;
        (!announced.life.is_dead() && !self.paused.contains(&slot)).then_some(announced)
    }

    /// A node is gone. What was under way to this life of it is lost.
    pub(crate) fn detach(&mut self, slot: Slot) {
        self.endpoints.remove(&slot);
        self.announced.remove(&slot);
        self.paused.remove(&slot);
    }

    pub(crate) fn endpoint(&self, slot: Slot) -> Option<&Endpoint> {
        self.endpoints.get(&slot)
    }

    pub(crate) fn learn(&mut self, slot: Slot, book: Vec<PeerAddress>) {
        if let Some(endpoint) = self.endpoints.get_mut(&slot) {
            endpoint.book = book.into_iter().map(|peer| (peer.id, peer)).collect();
        }
    }

    /// Sends something after a delay of at least a step.
    pub(crate) fn schedule(&mut self, delay: u64, parcel: Parcel) {
        self.sent += 1;
        let at = self.now + delay.max(STEP_MILLIS);
        self.under_way.insert((at, self.sent), parcel);
    }

    /// Puts what arrives into the trace.
    pub(crate) fn note(&mut self, at: u64, slot: Slot, event: &Event) {
        let (kind, digest) = event.told();
        let numbers = [slot as u64, digest];
        self.trace.event(at, &numbers, || {
            let to = slot + 1;
            match event {
                Event::Messages { from, messages } => {
                    let from = self.endpoints.values().find(|end| end.member == *from);
                    let from = from.map_or("?", |end| end.name.as_str());
                    format!("{from} → n{to}: {}", shown(&messages[0]))
                }
                Event::Fact(fact) => format!("n{to} learns: {fact:?}"),
                Event::Request { body, .. } => format!("n{to} gets: {body:?}"),
                Event::Answer { .. }
                | Event::Guest { .. }
                | Event::Snapshot(_)
                | Event::Job(..) => {
                    format!("n{to} gets: {kind} ({digest:x})")
                }
            }
        });
    }

    /// Takes what arrives before `until`, in order.
    pub(crate) fn arriving(&mut self, until: u64) -> Vec<(u64, Parcel)> {
        let later = self.under_way.split_off(&(until, 0));
        let arrived = std::mem::replace(&mut self.under_way, later);
        arrived
            .into_iter()
            .map(|((at, _), parcel)| (at, parcel))
            .collect()
    }

    pub(crate) fn slot_of(&self, member: MemberId) -> Option<Slot> {
        let mut all = self.endpoints.iter();
        all.find(|(_, endpoint)| endpoint.member == member)
            .map(|(slot, _)| *slot)
    }

    /// Whether two members know each other: otherwise there is no connection.
    fn acquainted(&self, a: Slot, b: Slot) -> bool {
        let knows = |this: Slot, other: Slot| match (self.endpoint(this), self.endpoint(other)) {
            (Some(this), Some(other)) => this.book.contains_key(&other.member),
            _ => false,
        };
        knows(a, b) && knows(b, a)
    }

    fn draw(&mut self, permille: u32) -> bool {
        permille > 0 && self.rng.u32(0..1000) < permille
    }

    fn delay(&mut self) -> u64 {
        let weather = self.weather;
        if self.draw(weather.late_permille) {
            return weather.delay_least + self.rng.u64(0..weather.late_most.max(1));
        }
        weather.delay_least + self.rng.u64(0..weather.delay_spread.max(1))
    }

    /// When something that leaves now arrives.
    fn delay_on(&mut self, link: (Slot, Slot)) -> u64 {
        let delay = self.delay();
        if !self.weather.ordered {
            return delay;
        }
        let newest = self.newest.entry(link).or_default();
        let at = (self.now + delay.max(STEP_MILLIS)).max(*newest);
        *newest = at;
        at - self.now
    }

    /// A member says something to another.
    pub(crate) fn say(&mut self, slot: Slot, to: MemberId, message: Message) {
        let Some(from) = self.endpoint(slot).map(|endpoint| endpoint.member) else {
            return;
        };
        self.spoken.hear(from, to, &message);
        let Some(target) = self.slot_of(to) else {
            return;
        };
        let link = (slot, target);
        if self.cut.contains(&link) || !self.acquainted(slot, target) {
            return;
        }
        if let Some(waiting) = self.stalled.get_mut(&link) {
            if waiting.len() < STALLED_MAX {
                let messages = vec![message];
                waiting.push(Event::Messages { from, messages });
            } else {
                self.tell(slot, Fact::Dropped(to));
            }
            return;
        }
        let (lost, twice) = (self.weather.lost_permille, self.weather.twice_permille);
        if self.draw(lost) {
            return;
        }
        let copies = if self.draw(twice) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = self.delay_on(link);
            let messages = vec![message.clone()];
            let event = Event::Messages { from, messages };
            let parcel = Parcel {
                to: target,
                life: None,
                event,
            };
            self.schedule(delay, parcel);
        }
    }

    /// Tells a node a fact, after a moment.
    fn tell(&mut self, to: Slot, fact: Fact) {
        let life = self.endpoint(to).map(|endpoint| endpoint.life.clone());
        let event = Event::Fact(fact);
        self.schedule(STEP_MILLIS, Parcel { to, life, event });
    }

    /// Whether two members' connection is up.
    pub(crate) fn connected(&self, a: Slot, b: Slot) -> bool {
        let pair = (a.min(b), a.max(b));
        self.connections
            .get(&pair)
            .is_some_and(|connection| connection.up.is_some())
    }

    /// Once a while: connections end and begin.
    pub(crate) fn tend(&mut self) {
        let slots: Vec<Slot> = self.endpoints.keys().copied().collect();
        let known: BTreeSet<(Slot, Slot)> = self.connections.keys().copied().collect();
        let pairs = slots.iter().flat_map(|a| slots.iter().map(|b| (*a, *b)));
        let pairs: BTreeSet<(Slot, Slot)> = pairs.filter(|(a, b)| a < b).chain(known).collect();
        for pair in pairs {
            self.tend_pair(pair);
        }
    }

    fn tend_pair(&mut self, pair: (Slot, Slot)) {
        let (a, b) = pair;
        let lives = match (self.endpoint(a), self.endpoint(b)) {
            (Some(first), Some(second)) => Some([first.life.clone(), second.life.clone()]),
            _ => None,
        };
        let mut connection = self.connections.remove(&pair).unwrap_or_default();
        let open = !self.cut.contains(&(a, b))
            && !self.cut.contains(&(b, a))
            && !self.paused.contains(&a)
            && !self.paused.contains(&b);
        let acquainted = self.acquainted(a, b);
        let same = |up: &[Arc<Life>; 2]| {
            lives.as_ref().is_some_and(|lives| {
                Arc::ptr_eq(&lives[0], &up[0]) && Arc::ptr_eq(&lives[1], &up[1])
            })
        };
        if let Some(up) = &connection.up {
            if open && acquainted && same(up) {
                connection.at = None;
            } else {
                let since = *connection.at.get_or_insert(self.now);
                // A new life of the other says hello, which ends the connection of the old one; so does a removal.
                let replaced = (lives.is_some() && !same(up)) || !acquainted;
                if replaced || self.now >= since + IDLE_MILLIS {
                    self.disconnect(pair);
                    connection = Connection::default();
                }
            }
        } else if lives.is_some() && open {
            let dial = self.now + self.rng.u64(0..REDIAL_MILLIS_MAX);
            if self.now >= *connection.at.get_or_insert(dial) {
                connection.at = None;
                if acquainted {
                    connection.up = lives;
                    self.tell_both(pair, Fact::Connected);
                } else {
                    self.refuse(a, b);
                    self.refuse(b, a);
                }
            }
        }
        self.connections.insert(pair, connection);
    }

    fn disconnect(&mut self, pair: (Slot, Slot)) {
        self.tell_both(pair, Fact::Disconnected);
    }

    fn tell_both(&mut self, (a, b): (Slot, Slot), fact: impl Fn(MemberId) -> Fact) {
        let member = |slot: Slot| self.endpoint(slot).map(|endpoint| endpoint.member);
        let (first, second) = (member(a), member(b));
        if let Some(second) = second {
            self.tell(a, fact(second));
        }
        if let Some(first) = first {
            self.tell(b, fact(first));
        }
    }

    /// `a` dials `b`, which does not know it.
    fn refuse(&mut self, a: Slot, b: Slot) {
        let (Some(dialler), Some(answerer)) = (self.endpoint(a), self.endpoint(b)) else {
            return;
        };
        let known = answerer.book.contains_key(&dialler.member);
        if known || !dialler.book.contains_key(&answerer.member) {
            return;
        }
        let refusal = Refusal::UnknownMember {
            id: dialler.member,
            name: String::new(),
        };
        let refused = RefusedByPeer {
            by: answerer.member,
            code: refusal.code().into(),
            text: refusal.to_string(),
        };
        self.tell(a, Fact::Refused(refused));
    }

    /// Cuts a direction, or mends it.
    pub(crate) fn cut(&mut self, from: Slot, to: Slot, cut: bool) {
        if cut {
            self.cut.insert((from, to));
        } else {
            self.cut.remove(&(from, to));
        }
    }

    pub(crate) fn is_cut(&self, from: Slot, to: Slot) -> bool {
        self.cut.contains(&(from, to))
    }

    /// The stream of consensus from one member to another stalls, or goes on with all that waited.
    pub(crate) fn stall(&mut self, from: Slot, to: Slot, stalls: bool) {
        if stalls {
            self.stalled.entry((from, to)).or_default();
            return;
        }
        let waited = self.stalled.remove(&(from, to)).unwrap_or_default();
        for event in waited {
            let life = None;
            self.schedule(STEP_MILLIS, Parcel { to, life, event });
        }
    }

    /// Mends everything.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        let stalled: Vec<(Slot, Slot)> = self.stalled.keys().copied().collect();
        for (from, to) in stalled {
            self.stall(from, to, false);
        }
    }

    pub(crate) fn pause(&mut self, slot: Slot, paused: bool) {
        if paused {
            self.paused.insert(slot);
        } else {
            self.paused.remove(&slot);
        }
    }
}

/// Where the answer to a forwarded request goes. Dropped without one, the asker learns that the connection was lost, once it
/// would notice.
pub(crate) struct AnswerTo {
    network: SharedNetwork,
    asker: Slot,
    life: Arc<Life>,
    reply: Option<ForwardReply>,
}

impl AnswerTo {
    /// Takes the answer by the link from `server`.
    pub(crate) fn answer(mut self, server: Slot, outcome: Result<Bytes, ForwardError>) {
        let cut = self.network.borrow().is_cut(server, self.asker);
        if !cut {
            let delay = self.network.borrow_mut().delay();
            self.settle(delay, outcome);
        }
    }

    fn settle(&mut self, delay: u64, outcome: Result<Bytes, ForwardError>) {
        if let Some(reply) = self.reply.take() {
            let parcel = Parcel {
                to: self.asker,
                life: Some(self.life.clone()),
                event: Event::Answer { reply, outcome },
            };
            self.network.borrow_mut().schedule(delay, parcel);
        }
    }
}

impl Drop for AnswerTo {
    fn drop(&mut self) {
        // The network may be what drops it, when all ends.
        if self.network.try_borrow_mut().is_ok() {
            self.settle(IDLE_MILLIS, Err(ForwardError::Lost));
        }
    }
}

/// A member forwards a request to another.
pub(crate) fn forward(
    network: &SharedNetwork,
    asker: Slot,
    to: MemberId,
    body: Bytes,
    reply: ForwardReply,
) {
    let mut net = network.borrow_mut();
    let found = (net.endpoint(asker), net.slot_of(to));
    let (Some(endpoint), Some(target)) = found else {
        drop(reply.send(Err(ForwardError::Unreachable(to))));
        return;
    };
    let (from, life) = (endpoint.member, endpoint.life.clone());
    if !net.connected(asker, target) {
        drop(reply.send(Err(ForwardError::Unreachable(to))));
        return;
    }
    let back = AnswerTo {
        network: network.clone(),
        asker,
        life,
        reply: Some(reply),
    };
    if net.is_cut(asker, target) {
        drop(net);
        drop(back);
        return;
    }
    let delay = net.delay();
    let life = net.endpoint(target).map(|endpoint| endpoint.life.clone());
    let event = Event::Request { from, body, back };
    let to = target;
    net.schedule(delay, Parcel { to, life, event });
}

/// Hands what arrived to a node, on its own machine.
pub(crate) fn deliver(slot: Slot, event: Event, requests: Option<&Requests>, peers: &HubPeers) {
    // A full mailbox loses messages and facts, which repeat; whoever waits for an answer learns that there is none.
    match event {
        Event::Messages { from, messages } => {
            drop(peers.messages.try_send(PeerMessages { from, messages }));
        }
        Event::Request { from, body, back } => {
            let (responder, mut taken) = Responder::detached();
            let requests = vec![PeerRequest {
                from,
                body,
                responder,
            }];
            drop(peers.requests.try_send(ServeRequests { requests }));
            tokio::task::spawn_local(async move {
                let answer = taken.recv().await.and_then(|(_, answer)| answer);
                back.answer(slot, answer.ok_or(ForwardError::Abandoned));
            });
        }
        Event::Answer { reply, outcome } => drop(reply.send(outcome)),
        Event::Guest { question } => drop(peers.guests.try_send(ServeGuest { question })),
        Event::Snapshot(incoming) => {
            drop(peers.snapshots.try_send(ReceiveSnapshot { incoming }));
        }
        Event::Fact(Fact::Connected(id)) => drop(peers.connected.try_send(PeerConnected { id })),
        Event::Fact(Fact::Disconnected(id)) => {
            drop(peers.disconnected.try_send(PeerDisconnected { id }));
        }
        Event::Fact(Fact::Dropped(id)) => drop(peers.dropped.try_send(MessagesDropped { id })),
        Event::Fact(Fact::Refused(refused)) => drop(peers.refused.try_send(refused)),
        Event::Job(_, job) => {
            if let Some(requests) = requests {
                tokio::task::spawn_local(job(requests.clone()));
            }
        }
    }
}
