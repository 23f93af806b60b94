//! The simulated peer hub: an actor that gives to the simulated network what the real one would send.

use crate::{
    machine::Life,
    network::{self, Announced, Endpoint, Event, InFlight, SharedNetwork, Slot},
};
use actix::{Actor, Context, Handler};
use bytes::Bytes;
use quorate::internals::{
    actors::peer_hub::{
        ClosePeers, ForwardRequests, HubPeers, OpenSnapshot, PeerPorts, SendMessages, UpdatePeers,
    },
    net::{
        CHUNK_BYTES_MAX, GuestAnswer, GuestQuestion, IncomingSnapshot, NetError, Responder,
        SnapshotError, SnapshotSender,
    },
    node::{Asked, PeerNetwork},
    types::Identity,
};
use std::{fmt, sync::Arc, time::Duration};

/// The size of its mailbox, as the real hub's.
const MAILBOX_MAX: usize = 4_096;

/// How long a joining process waits for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Throughput of a snapshot's stream, in bytes a millisecond.
const SNAPSHOT_BYTES_PER_MILLI: usize = 20_000;

/// How long a snapshot's stream may stall before it is given up.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);

/// One process's access to the network.
#[derive(Clone)]
pub(crate) struct Uplink {
    pub(crate) network: SharedNetwork,
    pub(crate) slot: Slot,
    pub(crate) life: Arc<Life>,
}

impl fmt::Debug for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uplink of machine {}", self.slot)
    }
}

impl PeerNetwork for Uplink {
    fn attach(&self, identity: Identity, peers: HubPeers) -> PeerPorts {
        let endpoint = Endpoint {
            name: format!("n{}", self.slot + 1),
            cluster: identity.cluster,
            member: identity.member,
            peers,
            life: self.life.clone(),
            book: std::collections::BTreeMap::new(),
        };
        self.network.borrow_mut().attach(self.slot, endpoint);
        let hub = SimHub {
            uplink: self.clone(),
        };
        PeerPorts::of(&hub.start())
    }

    fn announce(&self, identity: Identity, answer: Bytes) {
        let announced = Announced {
            cluster: identity.cluster,
            member: identity.member,
            answer,
            life: self.life.clone(),
        };
        self.network.borrow_mut().announce(self.slot, announced);
    }

    fn ask(&self, name: &str, address: &str, question: Bytes) -> Asked {
        let asked = self
            .clone()
            .ask_guest(name.to_owned(), address.to_owned(), question);
        Box::pin(async move {
            let asked = tokio::time::timeout(ANSWER_WITHIN, asked).await;
            asked.unwrap_or(Err(NetError::HandshakeTimeout))
        })
    }
}

impl Uplink {
    async fn ask_guest(
        self,
        name: String,
        address: String,
        question: Bytes,
    ) -> Result<GuestAnswer, NetError> {
        if let Some(announced) = self.announced_at(&address) {
            tokio::time::sleep(Duration::from_millis(network::STEP_MILLIS)).await;
            return Ok(announced);
        }
        let (responder, mut taken) = Responder::detached();
        let asked = {
            let mut net = self.network.borrow_mut();
            let slot = net.addresses.get(&address).copied();
            let usable =
                slot.filter(|slot| !net.is_cut(self.slot, *slot) && !net.is_cut(*slot, self.slot));
            let found = usable.and_then(|slot| {
                let endpoint = net.endpoint(slot)?;
                Some((
                    slot,
                    endpoint.cluster,
                    endpoint.member,
                    endpoint.life.clone(),
                ))
            });
            found.map(|(to, cluster, member, life)| {
                let question = GuestQuestion {
                    name,
                    question,
                    responder,
                };
                let in_flight = InFlight {
                    to,
                    life: Some(life),
                    event: Event::Guest { question },
                };
                net.schedule(network::STEP_MILLIS, in_flight);
                (cluster, member)
            })
        };
        let Some((cluster, member)) = asked else {
            return Err(NetError::NoAddress { address });
        };
        match taken.recv().await {
            Some((_, Some(answer))) => Ok(GuestAnswer {
                cluster,
                member,
                answer,
            }),
            _ => Err(NetError::StreamEnded("without an answer")),
        }
    }
}

impl Uplink {
    /// What the process at `address` answers every guest, if it has not started its member yet.
    fn announced_at(&self, address: &str) -> Option<GuestAnswer> {
        let net = self.network.borrow();
        let slot = net.addresses.get(address).copied()?;
        if net.is_cut(self.slot, slot) || net.is_cut(slot, self.slot) {
            return None;
        }
        let announced = net.announced(slot)?;
        Some(GuestAnswer {
            cluster: announced.cluster,
            member: announced.member,
            answer: announced.answer.clone(),
        })
    }
}

/// The simulated peer hub.
struct SimHub {
    uplink: Uplink,
}

impl SimHub {
    /// What a dead process sends is discarded.
    fn is_dead(&self) -> bool {
        self.uplink.life.is_dead()
    }
}

impl Actor for SimHub {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
    }
}

impl Handler<SendMessages> for SimHub {
    type Result = ();

    fn handle(&mut self, send: SendMessages, _: &mut Self::Context) {
        if self.is_dead() {
            return;
        }
        let mut net = self.uplink.network.borrow_mut();
        for envelope in send.messages {
            net.send(self.uplink.slot, envelope.to, envelope.message);
        }
    }
}

impl Handler<UpdatePeers> for SimHub {
    type Result = ();

    fn handle(&mut self, update: UpdatePeers, _: &mut Self::Context) {
        let mut net = self.uplink.network.borrow_mut();
        net.set_address_book(self.uplink.slot, update.peers);
    }
}

impl Handler<ForwardRequests> for SimHub {
    type Result = ();

    fn handle(&mut self, forward: ForwardRequests, _: &mut Self::Context) {
        if self.is_dead() {
            return;
        }
        for (request, reply) in forward.requests {
            let Uplink { network, slot, .. } = &self.uplink;
            network::forward(network, *slot, forward.to, request, reply);
        }
    }
}

impl Handler<OpenSnapshot> for SimHub {
    type Result = Result<SnapshotSender, SnapshotError>;

    fn handle(&mut self, open: OpenSnapshot, _: &mut Self::Context) -> Self::Result {
        let mut net = self.uplink.network.borrow_mut();
        let slot = self.uplink.slot;
        let unreachable = || SnapshotError::Unreachable(open.to);
        let from = net.endpoint(slot).ok_or_else(unreachable)?.member;
        let to = net.slot_of(open.to).ok_or_else(unreachable)?;
        if self.is_dead() || !net.connected(slot, to) {
            return Err(unreachable());
        }
        let (near, outgoing) = SnapshotSender::pair(from, open.header.clone());
        let (far, incoming) = SnapshotSender::pair(from, open.header);
        let life = net.endpoint(to).map(|endpoint| endpoint.life.clone());
        let event = Event::Snapshot(incoming);
        net.schedule(network::STEP_MILLIS, InFlight { to, life, event });
        tokio::task::spawn_local(carry(self.uplink.clone(), to, outgoing, far));
        Ok(near)
    }
}

impl Handler<ClosePeers> for SimHub {
    type Result = ();

    fn handle(&mut self, _: ClosePeers, _: &mut Self::Context) {}
}

/// Transfers a snapshot chunk by chunk, at the link's throughput.
async fn carry(uplink: Uplink, to: Slot, mut from: IncomingSnapshot, mut into: SnapshotSender) {
    let ended = loop {
        let chunk = match from.next().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break into.finish().await,
            Err(error) => break Err(error),
        };
        assert!(
            chunk.len() <= CHUNK_BYTES_MAX,
            "the sender checked the size of its chunk"
        );
        let millis = chunk.len() / SNAPSHOT_BYTES_PER_MILLI + 1;
        tokio::time::sleep(Duration::from_millis(millis as u64)).await;
        let passed = tokio::time::timeout(STREAM_PATIENCE, passable(&uplink, to)).await;
        if passed.is_err() || uplink.life.is_dead() {
            break Err(SnapshotError::Interrupted("the link is cut".to_owned()));
        }
        if let Err(error) = into.send(chunk).await {
            break Err(error);
        }
    };
    if ended.is_ok() {
        uplink.network.borrow_mut().snapshots += 1;
    }
    let answer = ended.map_err(|error| match error {
        SnapshotError::Refused(reason) => reason,
        other => other.to_string(),
    });
    from.answer(answer);
}

/// Waits until the link is not cut.
async fn passable(uplink: &Uplink, to: Slot) {
    while uplink.network.borrow().is_cut(uplink.slot, to) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
