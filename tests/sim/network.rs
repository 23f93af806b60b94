//! The simulated network: everything in flight between machines, and how badly the links behave.
//!
//! Everything that leaves a machine becomes an [`Event`] for another one at a later instant of the cluster's clock, at least
//! [`STEP_MILLIS`] later, so machines can run one after the other for one step each without missing anything. Between two members
//! each direction is a link of its own: one can be cut, or its stream stall, while the other works. Raft messages may be lost,
//! delayed, duplicated and reordered, more than QUIC's streams would allow, since `raft` promises to tolerate it. But as on a
//! QUIC connection, no message reaches another member than the one it was sent to. Forwarded requests run at most once, as with
//! the real hub.

use crate::{
    machine::Life,
    message_rules::MessageRules,
    sent_log::SentLog,
    trace::{Trace, digest},
};
use bytes::Bytes;
use quorate::internals::{
    actors::{
        peer_ask::PeerAsk,
        peer_hub::{
            HubPeers, MessagesDropped, PeerConnected, PeerDisconnected, PeerMessages,
            ReceiveSnapshot, RefusedByPeer, ServeGuest, ServeRequests,
        },
        requests::Requests,
    },
    mutation::{Mutation, mutated},
    net::{
        ForwardError, ForwardReply, GuestQuestion, IncomingSnapshot, PeerAddress, PeerRequest,
        Refusal, Responder, VERSION_HIGH,
    },
    raft::{Message, MessageBody},
    types::{ClusterId, LogIndex, MemberId},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    rc::Rc,
    sync::Arc,
};

/// How far machines run ahead of each other, and the least latency between them.
pub(crate) const STEP_MILLIS: u64 = 2;

/// The idle timeout of a connection, as the real hub has it.
const IDLE_MILLIS: u64 = 3_000;
/// The longest pause between dials, as the real hub makes it.
const REDIAL_MILLIS_MAX: u64 = 1_000;
/// Messages that may wait for a stalled stream; further ones are dropped, and the sender is notified.
const STALLED_MAX: usize = 200;

/// A machine's number: that of its node, or [`CLIENTS`].
pub(crate) type Slot = usize;

/// The machine of all clients.
pub(crate) const CLIENTS: Slot = usize::MAX;

/// A client's request: it runs on the node's own event loop.
pub(crate) type Job = Box<dyn FnOnce(Requests) -> Pin<Box<dyn Future<Output = ()>>>>;

/// How the links between members behave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkQuality {
    /// The least latency of a message, in milliseconds.
    pub(crate) delay_least: u64,
    /// By how much latencies usually differ, in milliseconds.
    pub(crate) delay_spread: u64,
    /// So many messages in a thousand are late by up to `late_most` milliseconds.
    pub(crate) late_permille: u32,
    pub(crate) late_most: u64,
    /// So many messages in a thousand are lost, and so many are duplicated.
    pub(crate) lost_permille: u32,
    pub(crate) duplicated_permille: u32,
    /// Whether the messages of a link arrive in the order in which they were sent.
    pub(crate) ordered: bool,
}

impl LinkQuality {
    /// A local network on a good day.
    pub(crate) fn fair() -> Self {
        Self {
            delay_least: STEP_MILLIS,
            delay_spread: 2,
            late_permille: 0,
            late_most: 0,
            lost_permille: 0,
            duplicated_permille: 0,
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
            duplicated_permille: rng.u32(0..40),
            ordered: rng.bool(),
        }
    }
}

/// What arrives at a machine.
pub(crate) enum Event {
    /// Raft messages. They are dropped if the machine has another member by then than the one they were sent to.
    Messages {
        from: MemberId,
        to: MemberId,
        messages: Vec<Message>,
    },
    /// A request that another member forwards. `back` receives the answer.
    Request {
        from: MemberId,
        body: Bytes,
        back: AnswerTo,
    },
    /// The answer to a forwarded request.
    Answer {
        reply: ForwardReply,
        outcome: Result<Bytes, ForwardError>,
    },
    /// A question of a process that is not a member yet.
    Guest { question: GuestQuestion },
    /// The beginning of a snapshot.
    Snapshot(IncomingSnapshot),
    /// A change of a connection.
    Fact(Fact),
    /// A request of the client with this number.
    Job(u64, Job),
}

impl Event {
    /// Its kind, and a digest that differs between different events.
    fn label(&self) -> (&'static str, u64) {
        match self {
            Self::Messages { messages, .. } => ("messages", messages.iter().map(fingerprint).sum()),
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

/// A digest that differs between different messages.
fn fingerprint(message: &Message) -> u64 {
    let body = &message.body;
    let MessageBody::Append { entries, .. } = body else {
        return digest(format!("{message:?}").as_bytes());
    };
    let ends = [entries.first(), entries.last()];
    let mut sum = message.term.0 ^ entries.len() as u64;
    for entry in ends.into_iter().flatten() {
        sum = sum.wrapping_mul(31) ^ entry.index.0 ^ digest(&entry.data);
    }
    sum
}

/// A message in one line of the trace.
fn summary(message: &Message) -> String {
    let MessageBody::Append {
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

/// A change of one of a member's connections.
#[derive(Clone, Debug)]
pub(crate) enum Fact {
    Connected(MemberId),
    Disconnected(MemberId),
    Dropped(MemberId),
    Refused(RefusedByPeer),
}

/// An event in flight.
pub(crate) struct InFlight {
    pub(crate) to: Slot,
    /// The process that it is for; `None` for any process on the machine.
    pub(crate) life: Option<Arc<Life>>,
    pub(crate) event: Event,
}

/// A running node's place in the network.
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) cluster: ClusterId,
    pub(crate) member: MemberId,
    pub(crate) peers: HubPeers,
    pub(crate) life: Arc<Life>,
    /// The address book: the members that this one knows.
    pub(crate) book: BTreeMap<MemberId, PeerAddress>,
}

/// One end of a connection: a process, and which member it is. A later process on the same machine is another end.
#[derive(Clone, Debug)]
struct End {
    member: MemberId,
    life: Arc<Life>,
}

impl End {
    fn is_at(&self, endpoint: &Endpoint) -> bool {
        Arc::ptr_eq(&self.life, &endpoint.life)
    }
}

/// What a process that has not started its member yet answers every guest.
pub(crate) struct Announced {
    pub(crate) cluster: ClusterId,
    pub(crate) member: MemberId,
    pub(crate) answer: Bytes,
    pub(crate) life: Arc<Life>,
}

/// The connection between the members on two machines.
#[derive(Clone, Debug, Default)]
struct Connection {
    /// Both ends, while it is up.
    up: Option<[End; 2]>,
    /// While up: since when it carries nothing. While down: when the next dial is due.
    at: Option<u64>,
}

/// Shared by all machines.
pub(crate) type SharedNetwork = Rc<RefCell<Network>>;

/// The network.
pub(crate) struct Network {
    pub(crate) now: u64,
    pub(crate) rng: fastrand::Rng,
    pub(crate) quality: LinkQuality,
    pub(crate) trace: Trace,
    /// Checks every message that is sent against Raft's rules.
    pub(crate) rules: MessageRules,
    /// Every entry that was sent.
    pub(crate) sent_log: SentLog,
    /// How many snapshots were installed.
    pub(crate) snapshots: u64,
    /// Each machine's address, `HOST:PORT`.
    pub(crate) addresses: BTreeMap<String, Slot>,
    endpoints: BTreeMap<Slot, Endpoint>,
    announced: BTreeMap<Slot, Announced>,
    under_way: BTreeMap<(u64, u64), InFlight>,
    sent: u64,
    /// Directions that are cut.
    cut: BTreeSet<(Slot, Slot)>,
    /// Directions whose stream of Raft messages stalls, and the messages that wait there.
    stalled: BTreeMap<(Slot, Slot), Vec<Event>>,
    /// When the latest message of a direction arrives; order is kept by it.
    newest: BTreeMap<(Slot, Slot), u64>,
    connections: BTreeMap<(Slot, Slot), Connection>,
    /// Machines whose process is paused.
    paused: BTreeSet<Slot>,
}

impl Network {
    pub(crate) fn new(rng: fastrand::Rng, quality: LinkQuality, trace: Trace) -> Self {
        Self {
            now: 0,
            rng,
            quality,
            trace,
            rules: MessageRules::default(),
            sent_log: SentLog::default(),
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

    /// Registers a node that has started.
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

    /// Removes a node whose process has ended. What was in flight to this process is lost.
    pub(crate) fn detach(&mut self, slot: Slot) {
        self.endpoints.remove(&slot);
        self.announced.remove(&slot);
        self.paused.remove(&slot);
    }

    pub(crate) fn endpoint(&self, slot: Slot) -> Option<&Endpoint> {
        self.endpoints.get(&slot)
    }

    pub(crate) fn set_address_book(&mut self, slot: Slot, book: Vec<PeerAddress>) {
        if let Some(endpoint) = self.endpoints.get_mut(&slot) {
            endpoint.book = book.into_iter().map(|peer| (peer.id, peer)).collect();
        }
    }

    /// Puts an event in flight. It arrives after `delay`, at least one step.
    pub(crate) fn schedule(&mut self, delay: u64, in_flight: InFlight) {
        self.sent += 1;
        let at = self.now + delay.max(STEP_MILLIS);
        self.under_way.insert((at, self.sent), in_flight);
    }

    /// Adds an arriving event to the trace.
    pub(crate) fn note(&mut self, at: u64, slot: Slot, event: &Event) {
        let (kind, digest) = event.label();
        let numbers = [slot as u64, digest];
        self.trace.event(at, &numbers, || {
            let to = slot + 1;
            match event {
                Event::Messages { from, messages, .. } => {
                    let from = self.endpoints.values().find(|end| end.member == *from);
                    let from = from.map_or("?", |end| end.name.as_str());
                    format!("{from} → n{to}: {}", summary(&messages[0]))
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
    pub(crate) fn arriving(&mut self, until: u64) -> Vec<(u64, InFlight)> {
        let later = self.under_way.split_off(&(until, 0));
        let arrived = std::mem::replace(&mut self.under_way, later);
        arrived
            .into_iter()
            .map(|((at, _), in_flight)| (at, in_flight))
            .collect()
    }

    pub(crate) fn slot_of(&self, member: MemberId) -> Option<Slot> {
        let mut all = self.endpoints.iter();
        all.find(|(_, endpoint)| endpoint.member == member)
            .map(|(slot, _)| *slot)
    }

    /// Whether two members have each other in their address books: otherwise they do not connect.
    fn know_each_other(&self, a: Slot, b: Slot) -> bool {
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
        let quality = self.quality;
        if self.draw(quality.late_permille) {
            return quality.delay_least + self.rng.u64(0..quality.late_most.max(1));
        }
        quality.delay_least + self.rng.u64(0..quality.delay_spread.max(1))
    }

    /// The delay of a message that leaves now, so that order is kept if it is to be kept.
    fn delay_on(&mut self, link: (Slot, Slot)) -> u64 {
        let delay = self.delay();
        if !self.quality.ordered {
            return delay;
        }
        let newest = self.newest.entry(link).or_default();
        let at = (self.now + delay.max(STEP_MILLIS)).max(*newest);
        *newest = at;
        at - self.now
    }

    /// Sends a Raft message from the node on `slot`.
    pub(crate) fn send(&mut self, slot: Slot, to: MemberId, message: Message) {
        let Some(from) = self.endpoint(slot).map(|endpoint| endpoint.member) else {
            return;
        };
        self.rules.check(from, to, &message);
        if let MessageBody::Append { prev, entries, .. } = &message.body {
            self.sent_log.note(*prev, entries);
        }
        let Some(target) = self.slot_of(to) else {
            return;
        };
        if self.answers_itself(slot, (from, to), &message) {
            return;
        }
        let link = (slot, target);
        if self.cut.contains(&link) || !self.know_each_other(slot, target) {
            return;
        }
        if let Some(waiting) = self.stalled.get_mut(&link) {
            if waiting.len() < STALLED_MAX {
                let messages = vec![message];
                waiting.push(Event::Messages { from, to, messages });
            } else {
                self.notify(slot, Fact::Dropped(to));
            }
            return;
        }
        let (lost, twice) = (self.quality.lost_permille, self.quality.duplicated_permille);
        if self.draw(lost) {
            return;
        }
        let copies = if self.draw(twice) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = self.delay_on(link);
            let messages = vec![message.clone()];
            let event = Event::Messages { from, to, messages };
            let in_flight = InFlight {
                to: target,
                life: None,
                event,
            };
            self.schedule(delay, in_flight);
        }
    }

    /// Deliberate bugs: answers a message in the name of its receiver. Returns whether the receiver does not get it.
    fn answers_itself(
        &mut self,
        slot: Slot,
        (from, to): (MemberId, MemberId),
        message: &Message,
    ) -> bool {
        let (body, kept) = match &message.body {
            MessageBody::ReadIndex { round } if mutated(Mutation::ReadWithoutIndex) => {
                let (round, index) = (*round, LogIndex(0));
                (MessageBody::ReadIndexReply { round, index }, true)
            }
            MessageBody::Append { entries, .. } if mutated(Mutation::AcknowledgeBeforeCommit) => {
                let Some(last) = entries.last() else {
                    return false;
                };
                let matched = last.index;
                (MessageBody::AppendReply { matched }, false)
            }
            _ => return false,
        };
        let term = message.term;
        let event = Event::Messages {
            from: to,
            to: from,
            messages: vec![Message { term, body }],
        };
        let in_flight = InFlight {
            to: slot,
            life: None,
            event,
        };
        self.schedule(STEP_MILLIS, in_flight);
        kept
    }

    /// Notifies a node of a change of its connections.
    fn notify(&mut self, to: Slot, fact: Fact) {
        let life = self.endpoint(to).map(|endpoint| endpoint.life.clone());
        let event = Event::Fact(fact);
        self.schedule(STEP_MILLIS, InFlight { to, life, event });
    }

    /// Whether the connection of two members is up.
    pub(crate) fn connected(&self, a: Slot, b: Slot) -> bool {
        let pair = (a.min(b), a.max(b));
        self.connections
            .get(&pair)
            .is_some_and(|connection| connection.up.is_some())
    }

    /// Opens and closes connections as the state of links and processes demands.
    pub(crate) fn update_connections(&mut self) {
        let slots: Vec<Slot> = self.endpoints.keys().copied().collect();
        let known: BTreeSet<(Slot, Slot)> = self.connections.keys().copied().collect();
        let pairs = slots.iter().flat_map(|a| slots.iter().map(|b| (*a, *b)));
        let pairs: BTreeSet<(Slot, Slot)> = pairs.filter(|(a, b)| a < b).chain(known).collect();
        for pair in pairs {
            self.update_connection(pair);
        }
    }

    fn update_connection(&mut self, pair: (Slot, Slot)) {
        let (a, b) = pair;
        let mut connection = self.connections.remove(&pair).unwrap_or_default();
        let open = !self.cut.contains(&(a, b))
            && !self.cut.contains(&(b, a))
            && !self.paused.contains(&a)
            && !self.paused.contains(&b);
        let ends = self.ends(pair);
        if let Some(up) = &connection.up {
            let (here, there) = (self.endpoint(a), self.endpoint(b));
            let same = |end: &End, now: Option<&Endpoint>| now.is_some_and(|now| end.is_at(now));
            let same = same(&up[0], here) && same(&up[1], there);
            if open && same && self.know_each_other(a, b) {
                connection.at = None;
            } else {
                let since = *connection.at.get_or_insert(self.now);
                // A restarted process connects anew, which replaces the old connection, and a removal closes it. If an end is
                // just gone, the other finds out by the idle timeout.
                let replaced = ends.is_some() && !(same && self.know_each_other(a, b));
                if replaced || self.now >= since + IDLE_MILLIS {
                    self.disconnect(pair, up);
                    connection = Connection::default();
                }
            }
        } else if let Some(ends) = ends
            && open
        {
            let dial = self.now + self.rng.u64(0..REDIAL_MILLIS_MAX);
            if self.now >= *connection.at.get_or_insert(dial) {
                connection.at = None;
                if self.know_each_other(a, b) {
                    self.notify(a, Fact::Connected(ends[1].member));
                    self.notify(b, Fact::Connected(ends[0].member));
                    connection.up = Some(ends);
                } else {
                    self.refuse(a, b);
                    self.refuse(b, a);
                }
            }
        }
        self.connections.insert(pair, connection);
    }

    /// Both ends of a pair, if both processes run.
    fn ends(&self, (a, b): (Slot, Slot)) -> Option<[End; 2]> {
        let end = |slot: Slot| {
            self.endpoint(slot).map(|endpoint| End {
                member: endpoint.member,
                life: endpoint.life.clone(),
            })
        };
        Some([end(a)?, end(b)?])
    }

    /// Notifies both ends of a lost connection, if their processes still run.
    fn disconnect(&mut self, (a, b): (Slot, Slot), up: &[End; 2]) {
        let lost = [(a, &up[0], up[1].member), (b, &up[1], up[0].member)];
        for (slot, end, other) in lost {
            if self.endpoint(slot).is_some_and(|now| end.is_at(now)) {
                self.notify(slot, Fact::Disconnected(other));
            }
        }
    }

    /// Notifies `a` that `b` refused it as unknown.
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
        self.notify(a, Fact::Refused(refused));
    }

    /// Cuts a direction, or restores it.
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

    /// Stalls the stream of Raft messages in one direction, or resumes it with everything that waited.
    pub(crate) fn stall(&mut self, from: Slot, to: Slot, stalls: bool) {
        if stalls {
            self.stalled.entry((from, to)).or_default();
            return;
        }
        let waited = self.stalled.remove(&(from, to)).unwrap_or_default();
        for event in waited {
            let life = None;
            self.schedule(STEP_MILLIS, InFlight { to, life, event });
        }
    }

    /// Restores all links and streams.
    pub(crate) fn restore_all(&mut self) {
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

/// Takes the answer to a forwarded request. If it is dropped without one, the asker learns that the connection was lost, after
/// the idle timeout.
pub(crate) struct AnswerTo {
    network: SharedNetwork,
    asker: Slot,
    life: Arc<Life>,
    reply: Option<ForwardReply>,
}

impl AnswerTo {
    /// Sends the answer over the link from `server`.
    pub(crate) fn answer(mut self, server: Slot, outcome: Result<Bytes, ForwardError>) {
        let cut = self.network.borrow().is_cut(server, self.asker);
        if !cut {
            let delay = self.network.borrow_mut().delay();
            self.settle(delay, outcome);
        }
    }

    fn settle(&mut self, delay: u64, outcome: Result<Bytes, ForwardError>) {
        if let Some(reply) = self.reply.take() {
            let in_flight = InFlight {
                to: self.asker,
                life: Some(self.life.clone()),
                event: Event::Answer { reply, outcome },
            };
            self.network.borrow_mut().schedule(delay, in_flight);
        }
    }
}

impl Drop for AnswerTo {
    fn drop(&mut self) {
        // At the end of the run, the network itself drops it.
        if self.network.try_borrow_mut().is_ok() {
            self.settle(IDLE_MILLIS, Err(ForwardError::Lost));
        }
    }
}

/// Forwards a request from one member to another.
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
    let to = target;
    if mutated(Mutation::ApplyTwice) && digest(&body).is_multiple_of(8) && proposes(&body) {
        let event = Event::Request {
            from,
            body: body.clone(),
            back: AnswerTo {
                network: network.clone(),
                asker,
                life: back.life.clone(),
                reply: None,
            },
        };
        let life = life.clone();
        net.schedule(delay, InFlight { to, life, event });
    }
    let event = Event::Request { from, body, back };
    net.schedule(delay, InFlight { to, life, event });
}

/// Whether a forwarded request hands proposals over.
fn proposes(body: &Bytes) -> bool {
    matches!(PeerAsk::decode(body), Ok(PeerAsk::ProposeIn(..)))
}

/// Passes an event that arrived to the node's actors, on its own machine.
pub(crate) fn deliver(slot: Slot, event: Event, requests: Option<&Requests>, peers: &HubPeers) {
    // Messages and facts are lost if a mailbox is full: they are repeated. A dropped request is answered as abandoned.
    match event {
        Event::Messages { from, messages, .. } => {
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
        Event::Fact(Fact::Connected(id)) => {
            let version = VERSION_HIGH;
            drop(peers.connected.try_send(PeerConnected { id, version }));
        }
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
