//! Between members: encoding and decoding of messages, and their throughput on a connection over the loopback.

use crate::VALUE_BYTES;
use divan::{Bencher, counter::ItemsCount};
use quorate::internals::{
    net::{
        Delivery, GuestQuestion, Hub, HubSettings, Inbox, IncomingSnapshot, Lane, Listener, Pacing,
        PeerAddress, PeerRequest, PeerSecurity, VERSION_HIGH, decode_messages, encode_messages,
    },
    raft::{Envelope, Message, MessageBody},
    types::{ClusterId, Entry, EntryKind, Identity, LogIndex, LogPosition, MemberId, Term},
};
use std::{cell::Cell, rc::Rc};
use tokio::{
    runtime::{Builder, Runtime},
    sync::Notify,
    task::LocalSet,
};

fn append(entries: u64) -> Message {
    let entry = |index| Entry {
        term: Term(1),
        index: LogIndex(index),
        kind: EntryKind::Command,
        data: vec![7; VALUE_BYTES + 64].into(),
    };
    Message {
        term: Term(1),
        body: MessageBody::Append {
            prev: LogPosition::default(),
            commit: LogIndex(0),
            entries: (1..=entries).map(entry).collect(),
        },
    }
}

#[divan::bench(args = [1, 64])]
fn peer_frame_encode(bencher: Bencher<'_, '_>, entries: u64) {
    let message = append(entries);
    bencher
        .counter(ItemsCount::new(entries))
        .bench_local(|| encode_messages(std::slice::from_ref(&message)));
}

#[divan::bench(args = [1, 64])]
fn peer_frame_decode(bencher: Bencher<'_, '_>, entries: u64) {
    let bytes = encode_messages(&[append(entries)]).concat();
    bencher
        .counter(ItemsCount::new(entries))
        .with_inputs(|| bytes.as_slice().into())
        .bench_local_values(|bytes| decode_messages(Lane::Log, bytes).unwrap());
}

/// Sends this many appends and waits until the other member has received all of them.
#[divan::bench(args = [1, 10, 100])]
fn messages_over_quic(bencher: Bencher<'_, '_>, burst: u64) {
    let bed = Bed::new();
    let (one, two) = bed.pair();
    bencher
        .counter(ItemsCount::new(burst))
        .with_inputs(|| (0..burst).map(|_| append(1)).collect())
        .bench_local_values(|messages| bed.run(one.send(&two, messages)));
    bed.run(async { one.hub.shut() });
}

/// A round trip: one message in each direction.
#[divan::bench]
fn round_trip_over_quic(bencher: Bencher<'_, '_>) {
    let bed = Bed::new();
    let (one, two) = bed.pair();
    bencher.bench_local(|| {
        bed.run(async {
            one.send(&two, vec![heartbeat()]).await;
            two.send(&one, vec![heartbeat()]).await;
        });
    });
    bed.run(async { one.hub.shut() });
}

fn heartbeat() -> Message {
    Message {
        term: Term(1),
        body: MessageBody::Heartbeat {
            commit: LogIndex(0),
            round: 1,
        },
    }
}

/// One thread for both members.
struct Bed {
    runtime: Runtime,
    local: LocalSet,
}

impl Bed {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let local = LocalSet::new();
        Self { runtime, local }
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.local.block_on(&self.runtime, work)
    }

    /// Two members that are connected.
    fn pair(&self) -> (Member, Member) {
        self.run(async {
            let (one, two) = (Member::start(1), Member::start(2));
            one.hub.update(vec![two.address.clone()]);
            two.hub.update(vec![one.address.clone()]);
            for (from, to) in [(&one, &two), (&two, &one)] {
                from.post.until(|post| post.connected.get()).await;
                from.send(to, vec![heartbeat()]).await;
            }
            (one, two)
        })
    }
}

struct Member {
    hub: Hub,
    post: Rc<Post>,
    address: PeerAddress,
}

impl Member {
    fn start(id: u64) -> Self {
        let identity = Identity {
            cluster: ClusterId(1),
            member: MemberId(id),
        };
        let settings = HubSettings {
            identity,
            name: format!("n{id}"),
            host: "127.0.0.1".to_owned(),
            security: PeerSecurity::Insecure,
            pacing: Pacing::default(),
            queue_bytes_max: 64 * 1024 * 1024,
            seed: id,
            boot: id,
            version_high: VERSION_HIGH,
        };
        let listener = Listener::open("127.0.0.1:0", settings).unwrap();
        let address = PeerAddress {
            id: identity.member,
            name: format!("n{id}"),
            addresses: vec![listener.local_address().to_string()],
        };
        let post = Rc::new(Post::default());
        let hub = Hub::start(listener, Rc::new(SharedPost(post.clone()))).unwrap();
        Self { hub, post, address }
    }

    /// Sends messages and waits until they have arrived.
    async fn send(&self, other: &Self, messages: Vec<Message>) {
        let expected = other.post.messages.get() + messages.len();
        let envelope = |message| Envelope {
            to: other.address.id,
            message,
        };
        self.hub.send(messages.into_iter().map(envelope).collect());
        other
            .post
            .until(|post| post.messages.get() >= expected)
            .await;
    }
}

/// Counts the messages that have arrived.
#[derive(Default)]
struct Post {
    messages: Cell<usize>,
    connected: Cell<bool>,
    changed: Notify,
}

impl Post {
    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            self.changed.notified().await;
        }
    }
}

struct SharedPost(Rc<Post>);

impl Inbox for SharedPost {
    fn messages(&self, _: MemberId, messages: Vec<Message>) -> Delivery {
        self.0.messages.set(self.0.messages.get() + messages.len());
        self.0.changed.notify_one();
        Box::pin(async {})
    }

    fn requests(&self, _: Vec<PeerRequest>) -> Delivery {
        unreachable!("nobody asks")
    }

    fn guest(&self, _: GuestQuestion) -> Delivery {
        unreachable!("nobody joins")
    }

    fn snapshot(&self, _: IncomingSnapshot) -> Delivery {
        unreachable!("nobody lags")
    }

    fn connected(&self, _: MemberId, _: u16) {
        self.0.connected.set(true);
        self.0.changed.notify_one();
    }

    fn disconnected(&self, _: MemberId) {}

    fn dropped(&self, _: MemberId) {}

    fn refused(&self, by: MemberId, _: u64, text: &str) {
        unreachable!("{by:?} refuses this member: {text}")
    }
}
