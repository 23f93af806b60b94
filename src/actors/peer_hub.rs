//! Peer hub: owns the connections to the other members.
//!
//! It sends the messages of the Raft node, delivers the messages of peers, and tracks which peers are connected. It reads no
//! message, makes no decision and stores nothing. All messages to and from it are in this file: another actor that takes the same
//! messages, such as a simulated network, can replace it.
//!
//! A peer's request or snapshot comes with a value through which any thread can answer it.

use super::fail_stop::Lifeline;
use crate::{
    log_gate::{self, LogGate},
    net::{
        Delivery, ForwardReply, GuestQuestion, Hub, Inbox, IncomingSnapshot, Listener, NetError,
        PeerAddress, PeerRequest, PeerStats, SnapshotError, SnapshotSender,
    },
    raft::{self, Envelope},
    types::MemberId,
};
use actix::prelude::*;
use bytes::Bytes;
use std::rc::Rc;

/// Messages that may wait: each is one turn of the Raft node or of a front end, which bound its size.
const MAILBOX_MAX: usize = 4_096;

/// Facts that a full mailbox did not take.
static DROPPED: LogGate = LogGate::new();

/// Owns the connections to peers.
#[derive(Debug)]
pub struct PeerHub {
    hub: Hub,
    /// Dropped with the actor.
    _life: Lifeline,
}

/// The actors that the peer hub sends to.
#[derive(Clone, Debug)]
pub struct HubPeers {
    /// Takes consensus messages from members.
    pub messages: Recipient<PeerMessages>,
    /// Receives each member to which a connection is up.
    pub connected: Recipient<PeerConnected>,
    /// Receives each member whose last connection ended.
    pub disconnected: Recipient<PeerDisconnected>,
    /// Receives each member to which messages were dropped.
    pub dropped: Recipient<MessagesDropped>,
    /// Receives the refusals of other members.
    pub refused: Recipient<RefusedByPeer>,
    pub requests: Recipient<ServeRequests>,
    /// Answers processes that are not members yet.
    pub guests: Recipient<ServeGuest>,
    pub snapshots: Recipient<ReceiveSnapshot>,
}

/// The recipients of the actor that sends a member's messages: the peer hub, or one that replaces it.
#[derive(Clone, Debug)]
pub struct PeerPorts {
    pub send: Recipient<SendMessages>,
    pub forward: Recipient<ForwardRequests>,
    pub book: Recipient<UpdatePeers>,
    pub snapshots: Recipient<OpenSnapshot>,
    pub close: Recipient<ClosePeers>,
}

impl PeerPorts {
    /// The recipients of `actor`.
    pub fn of<A>(actor: &Addr<A>) -> Self
    where
        A: Actor<Context = Context<A>>
            + Handler<SendMessages>
            + Handler<ForwardRequests>
            + Handler<UpdatePeers>
            + Handler<OpenSnapshot>
            + Handler<ClosePeers>,
    {
        Self {
            send: actor.clone().recipient(),
            forward: actor.clone().recipient(),
            book: actor.clone().recipient(),
            snapshots: actor.clone().recipient(),
            close: actor.clone().recipient(),
        }
    }
}

impl PeerHub {
    /// Begins to accept connections, on the arbiter of the caller. No member is known before the first [`UpdatePeers`].
    pub fn new(listener: Listener, peers: HubPeers, life: Lifeline) -> Result<Self, NetError> {
        let inbox = Rc::new(ActorInbox { peers });
        Ok(Self {
            hub: Hub::start(listener, inbox)?,
            _life: life,
        })
    }
}

/// Sends consensus messages to their receivers. Messages that cannot be sent are dropped: consensus repeats them.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct SendMessages {
    pub messages: Vec<Envelope>,
}

/// Replaces the address book by the members of the newest membership. Comes at the start and after each change.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct UpdatePeers {
    /// All members; this one may be among them.
    pub peers: Vec<PeerAddress>,
}

/// Forwards requests to a member, usually the leader. Each reply gets its answer or why there is none; a reply whose other end
/// is dropped cancels its request.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ForwardRequests {
    pub to: MemberId,
    /// The version of the peer protocol that has these requests.
    pub version: u16,
    /// The requests, and who waits for their answers.
    pub requests: Vec<(Bytes, ForwardReply)>,
}

/// Begins to send a snapshot. The reply takes its chunks.
#[derive(Debug, Message)]
#[rtype(result = "Result<SnapshotSender, SnapshotError>")]
pub struct OpenSnapshot {
    pub to: MemberId,
    /// What the receiver needs before the first chunk.
    pub header: Bytes,
}

/// Asks for the metrics of each peer.
#[derive(Debug, Message)]
#[rtype(result = "Vec<PeerStats>")]
pub struct ReadPeerStats;

/// Closes all connections. The reply comes when the peers have confirmed that, or after a few seconds.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ClosePeers;

/// Consensus messages of a member, in the order of one stream. The stream pauses until they are handled (backpressure).
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PeerMessages {
    /// The sender; authenticated.
    pub from: MemberId,
    pub messages: Vec<raft::Message>,
}

/// There is a connection to a member, of proven identity; before, there was none, or one with another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PeerConnected {
    pub id: MemberId,
    /// The version of the peer protocol that both members speak.
    pub version: u16,
}

/// There is no connection to a member any more; it is being dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PeerDisconnected {
    pub id: MemberId,
}

/// Messages to a connected member were dropped, since its write queue is full. Consensus treats the member as unreachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct MessagesDropped {
    pub id: MemberId,
}

/// A member refuses connections of this one. Comes with every attempt. A member that the others do not know was removed.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct RefusedByPeer {
    pub by: MemberId,
    /// The code of the [`Refusal`](crate::net::Refusal).
    pub code: u64,
    pub text: String,
}

/// Requests that a member forwarded. Handling the message queues them; each is answered through its responder.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ServeRequests {
    pub requests: Vec<PeerRequest>,
}

/// A question of a process that is not a member yet, such as one that joins. It may learn the membership; it must not be able
/// to change anything.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ServeGuest {
    /// The question, and where its answer goes.
    pub question: GuestQuestion,
}

/// A snapshot that a member sends. Handling the message only begins to receive it; the receiver reads it on any thread.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReceiveSnapshot {
    /// Its chunks, and its answer.
    pub incoming: IncomingSnapshot,
}

impl Actor for PeerHub {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.hub.shut();
    }
}

impl Handler<SendMessages> for PeerHub {
    type Result = ();

    fn handle(&mut self, send: SendMessages, _: &mut Self::Context) {
        self.hub.send(send.messages);
    }
}

impl Handler<UpdatePeers> for PeerHub {
    type Result = ();

    fn handle(&mut self, update: UpdatePeers, _: &mut Self::Context) {
        self.hub.update(update.peers);
    }
}

impl Handler<ForwardRequests> for PeerHub {
    type Result = ();

    fn handle(&mut self, forward: ForwardRequests, _: &mut Self::Context) {
        for (request, reply) in forward.requests {
            self.hub
                .forward(forward.to, forward.version, request, reply);
        }
    }
}

impl Handler<OpenSnapshot> for PeerHub {
    type Result = Result<SnapshotSender, SnapshotError>;

    fn handle(&mut self, open: OpenSnapshot, _: &mut Self::Context) -> Self::Result {
        self.hub.open_snapshot(open.to, open.header)
    }
}

impl Handler<ReadPeerStats> for PeerHub {
    type Result = MessageResult<ReadPeerStats>;

    fn handle(&mut self, _: ReadPeerStats, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.hub.stats())
    }
}

impl Handler<ClosePeers> for PeerHub {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: ClosePeers, _: &mut Self::Context) -> Self::Result {
        let hub = self.hub.clone();
        Box::pin(async move { hub.close().await })
    }
}

/// Delivers what arrives as messages.
#[derive(Debug)]
struct ActorInbox {
    peers: HubPeers,
}

/// Waits until a delivery is handled. If the actor is gone, the member is stopping.
fn delivered<M>(to: &Recipient<M>, message: M) -> Delivery
where
    M: Message<Result = ()> + Send + 'static,
{
    let sent = to.send(message);
    Box::pin(async move { sent.await.unwrap_or_default() })
}

/// Sends a fact without waiting. If the receiver's mailbox is full the fact is lost, which does no harm: consensus finds out
/// which members do not answer, and refusals repeat.
fn notify<M>(to: &Recipient<M>, fact: M)
where
    M: Message<Result = ()> + Send + 'static,
{
    if let Err(SendError::Full(_)) = to.try_send(fact) {
        log_gate::warn!(
            DROPPED,
            "a fact about a peer was dropped: the mailbox is full"
        );
    }
}

impl Inbox for ActorInbox {
    fn messages(&self, from: MemberId, messages: Vec<raft::Message>) -> Delivery {
        delivered(&self.peers.messages, PeerMessages { from, messages })
    }

    fn requests(&self, requests: Vec<PeerRequest>) -> Delivery {
        delivered(&self.peers.requests, ServeRequests { requests })
    }

    fn guest(&self, question: GuestQuestion) -> Delivery {
        delivered(&self.peers.guests, ServeGuest { question })
    }

    fn snapshot(&self, incoming: IncomingSnapshot) -> Delivery {
        delivered(&self.peers.snapshots, ReceiveSnapshot { incoming })
    }

    fn connected(&self, id: MemberId, version: u16) {
        notify(&self.peers.connected, PeerConnected { id, version });
    }

    fn disconnected(&self, id: MemberId) {
        notify(&self.peers.disconnected, PeerDisconnected { id });
    }

    fn dropped(&self, id: MemberId) {
        notify(&self.peers.dropped, MessagesDropped { id });
    }

    fn refused(&self, by: MemberId, code: u64, text: &str) {
        notify(
            &self.peers.refused,
            RefusedByPeer {
                by,
                code,
                text: text.to_owned(),
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        actors::fail_stop::FailStop,
        net::{HubSettings, Pacing, PeerSecurity, VERSION_HIGH},
        raft::{Message as Said, MessageBody},
        types::{ClusterId, Identity, LogIndex, Term},
    };
    use tokio::sync::{mpsc, oneshot};

    /// What arrived, in one line each; requests and snapshots are answered.
    struct Node {
        received: mpsc::UnboundedSender<String>,
    }

    impl Actor for Node {
        type Context = Context<Self>;
    }

    macro_rules! records {
        ($($message:ident($value:ident) => $line:expr;)*) => {
            $(impl Handler<$message> for Node {
                type Result = ();

                fn handle(&mut self, $value: $message, _: &mut Self::Context) {
                    self.received.send($line).unwrap();
                }
            })*
        };
    }

    records! {
        PeerMessages(said) => format!("{} says {:?}", said.from, said.messages[0].body);
        PeerConnected(up) => format!("{} up", up.id);
        PeerDisconnected(down) => format!("{} down", down.id);
        MessagesDropped(full) => format!("{} full", full.id);
        RefusedByPeer(refused) => format!("{} refuses", refused.by);
    }

    impl Handler<ServeRequests> for Node {
        type Result = ();

        fn handle(&mut self, serve: ServeRequests, _: &mut Self::Context) {
            for request in serve.requests {
                request
                    .responder
                    .answer([&b"re: "[..], &request.body].concat().into());
            }
        }
    }

    impl Handler<ServeGuest> for Node {
        type Result = ();

        fn handle(&mut self, serve: ServeGuest, _: &mut Self::Context) {
            let asked = serve.question;
            asked
                .responder
                .answer([&asked.question, asked.name.as_bytes()].concat().into());
        }
    }

    impl Handler<ReceiveSnapshot> for Node {
        type Result = ();

        fn handle(&mut self, receive: ReceiveSnapshot, ctx: &mut Self::Context) {
            let (mut incoming, received) = (receive.incoming, self.received.clone());
            let reading = async move {
                let mut bytes = 0;
                while let Ok(Some(chunk)) = incoming.next().await {
                    bytes += chunk.len();
                }
                received.send(format!("snapshot of {bytes} bytes")).unwrap();
                incoming.answer(Ok(()));
            };
            ctx.spawn(reading.into_actor(self));
        }
    }

    /// A hub on an arbiter of its own, what its node receives, and its entry in the address book.
    fn start(id: u64) -> (Addr<PeerHub>, mpsc::UnboundedReceiver<String>, PeerAddress) {
        let (received, news) = mpsc::unbounded_channel();
        let node = Node { received }.start();
        let peers = HubPeers {
            messages: node.clone().recipient(),
            connected: node.clone().recipient(),
            disconnected: node.clone().recipient(),
            dropped: node.clone().recipient(),
            refused: node.clone().recipient(),
            requests: node.clone().recipient(),
            guests: node.clone().recipient(),
            snapshots: node.recipient(),
        };
        let name = format!("n{id}");
        let settings = HubSettings {
            identity: Identity {
                cluster: ClusterId(1),
                member: MemberId(id),
            },
            name: name.clone(),
            host: "127.0.0.1".to_owned(),
            security: PeerSecurity::Insecure,
            pacing: Pacing::default(),
            queue_bytes_max: 1_000_000,
            seed: id,
            boot: id,
            version_high: VERSION_HIGH,
        };
        let listener = Listener::open("127.0.0.1:0", settings).unwrap();
        let addresses = vec![listener.local_address().to_string()];
        let life = Lifeline::new("the peer hub", FailStop::new(|reason| panic!("{reason}")));
        let hub = PeerHub::start_in_arbiter(&Arbiter::new().handle(), move |_| {
            PeerHub::new(listener, peers, life).unwrap()
        });
        (
            hub,
            news,
            PeerAddress {
                id: MemberId(id),
                name,
                addresses,
            },
        )
    }

    #[actix::test]
    async fn hubs_on_threads_of_their_own_carry_everything() {
        let (one, mut news_one, first) = start(1);
        let (two, mut news_two, second) = start(2);
        // One side dials, so that no connection replaces another while messages are on their way.
        let deaf = PeerAddress {
            addresses: Vec::new(),
            ..first
        };
        // The side that is dialled knows the other first: it would refuse it.
        two.send(UpdatePeers { peers: vec![deaf] }).await.unwrap();
        one.send(UpdatePeers {
            peers: vec![second],
        })
        .await
        .unwrap();
        assert_eq!(news_one.recv().await.unwrap(), "2 up");
        assert_eq!(news_two.recv().await.unwrap(), "1 up");

        let body = MessageBody::Heartbeat {
            commit: LogIndex(5),
            round: 6,
        };
        let message = Said {
            term: Term(3),
            body: body.clone(),
        };
        let messages = vec![Envelope {
            to: MemberId(2),
            message,
        }];
        one.send(SendMessages { messages }).await.unwrap();
        assert_eq!(news_two.recv().await.unwrap(), format!("1 says {body:?}"));

        let (reply, answer) = oneshot::channel();
        let requests = vec![(Bytes::from_static(b"put"), reply)];
        one.send(ForwardRequests {
            to: MemberId(2),
            version: VERSION_HIGH,
            requests,
        })
        .await
        .unwrap();
        assert_eq!(answer.await.unwrap(), Ok(Bytes::from_static(b"re: put")));

        let open = OpenSnapshot {
            to: MemberId(2),
            header: Bytes::new(),
        };
        let mut snapshot = one.send(open).await.unwrap().unwrap();
        snapshot.send(Bytes::from(vec![1; 70_000])).await.unwrap();
        assert_eq!(snapshot.finish().await, Ok(()));
        assert_eq!(news_two.recv().await.unwrap(), "snapshot of 70000 bytes");

        let stats = one.send(ReadPeerStats).await.unwrap();
        assert!(
            stats[0].bytes_out > 70_000 && stats[0].round_trip.is_some(),
            "{stats:?}"
        );
        two.send(ClosePeers).await.unwrap();
        assert_eq!(news_one.recv().await.unwrap(), "2 down");
    }
}
