//! What members exchange.

use super::members::{Authority, Member, Post, append, heartbeat, pacing, pair, run, settings};
use crate::{
    net::{
        CHUNK_BYTES_MAX, ForwardError, Hub, Lane, Listener, PeerSecurity, SnapshotError,
        VERSION_HIGH, VERSION_LOW, codec::tests::message,
    },
    raft::{Envelope, MessageBody},
    types::MemberId,
};
use bytes::Bytes;
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use std::{rc::Rc, time::Duration};
use tokio::sync::oneshot;

#[test]
fn three_members_exchange_every_kind_of_message() {
    run(async {
        let authority = Authority::new();
        let members: Vec<Member> = (1..=3)
            .map(|id| Member::start(id, authority.member(&format!("n{id}"))))
            .collect();
        let all: Vec<&Member> = members.iter().collect();
        for member in &members {
            member.knows(&all);
        }
        for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
            let (from, to) = (&members[from], &members[to]);
            from.reaches(to).await;
            let mut runner = TestRunner::deterministic();
            let sent: Vec<_> = (0..200)
                .map(|_| message().new_tree(&mut runner).unwrap().current())
                .collect();
            let before = to.post.bodies_from(from.id).len();
            let envelopes = sent.iter().map(|said| Envelope {
                to: to.id,
                message: said.clone(),
            });
            from.hub.send(envelopes.collect());
            to.post
                .until(|post| post.bodies_from(from.id).len() >= before + sent.len())
                .await;
            let got = to.post.bodies_from(from.id).split_off(before);
            // Order holds within a stream.
            for lane in Lane::ALL {
                let of = |bodies: Vec<MessageBody>| -> Vec<MessageBody> {
                    bodies
                        .into_iter()
                        .filter(|body| Lane::of(body) == lane)
                        .collect()
                };
                let sent = sent.iter().map(|said| said.body.clone()).collect();
                // What `reaches` sent on the way comes along.
                let got: Vec<MessageBody> = of(got.clone());
                let sent = of(sent);
                assert!(got.ends_with(&sent), "{lane:?} arrives whole and in order");
            }
        }
    });
}

#[test]
fn members_that_dial_each_other_at_once_keep_one_connection() {
    run(async {
        let authority = Authority::new();
        for _ in 0..10 {
            let one = Member::start(1, authority.member("n1"));
            let two = Member::start(2, authority.member("n2"));
            one.knows(&[&two]);
            two.knows(&[&one]);
            // Both ends agree on who dialled, once all is settled.
            loop {
                one.reaches(&two).await;
                two.reaches(&one).await;
                let (ours, theirs) = (one.hub.dialled_by(two.id), two.hub.dialled_by(one.id));
                if ours.is_some() && ours == theirs {
                    break;
                }
            }
            assert!(
                one.hub.reported().is_empty(),
                "no failure: {:?}",
                one.hub.reported()
            );
            let refused = [&one, &two].map(|member| member.post.refused.borrow().len());
            assert_eq!(
                refused,
                [0, 0],
                "that a pair is connected already is no refusal"
            );
            assert!(
                two.hub.reported().is_empty(),
                "no failure: {:?}",
                two.hub.reported()
            );
        }
    });
}

#[test]
fn a_forwarded_request_is_answered_abandoned_or_cancelled() {
    run(async {
        let (one, two) = pair().await;
        let ask = |body: &'static [u8]| {
            let (reply, answer) = oneshot::channel();
            one.hub
                .forward(two.id, VERSION_LOW, Bytes::from_static(body), reply);
            answer
        };
        let (first, second, third) = (ask(b"a"), ask(b"b"), ask(b"c"));
        two.post
            .until(|post| post.requests.borrow().len() == 3)
            .await;
        let mut asked = two.post.requests.take();
        let (c, b, a) = (
            asked.pop().unwrap(),
            asked.pop().unwrap(),
            asked.pop().unwrap(),
        );
        assert_eq!(
            (a.from, &a.body[..], &b.body[..]),
            (one.id, &b"a"[..], &b"b"[..])
        );
        a.responder.answer(Bytes::from(vec![5; 1_000_000]));
        assert_eq!(first.await.unwrap(), Ok(Bytes::from(vec![5; 1_000_000])));
        drop(b);
        assert_eq!(second.await.unwrap(), Err(ForwardError::Abandoned));
        assert!(!c.responder.is_cancelled(), "somebody waits");
        drop(third);
        while !c.responder.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (reply, answer) = oneshot::channel();
        one.hub
            .forward(MemberId(9), VERSION_LOW, Bytes::new(), reply);
        assert_eq!(
            answer.await.unwrap(),
            Err(ForwardError::Unreachable(MemberId(9)))
        );
        let last = ask(b"d");
        two.hub.close().await;
        assert_eq!(last.await.unwrap(), Err(ForwardError::Lost));
    });
}

#[test]
fn a_member_of_the_first_version_is_connected_and_not_sent_what_it_does_not_know() {
    run(async {
        let authority = Authority::new();
        let one = Member::start(1, authority.member("n1"));
        let mut older = settings(2, authority.member("n2"));
        older.version_high = VERSION_LOW;
        let two = Member::start_as(older);
        one.knows(&[&two]);
        two.knows(&[&one]);
        one.reaches(&two).await;
        two.reaches(&one).await;
        for (from, to) in [(&one, &two), (&two, &one)] {
            from.post
                .until(|post| post.version.get() == VERSION_LOW)
                .await;
            let (reply, answer) = oneshot::channel();
            from.hub
                .forward(to.id, VERSION_HIGH, Bytes::from_static(b"new"), reply);
            assert_eq!(answer.await.unwrap(), Err(ForwardError::NotSpoken(to.id)));
            let (reply, answer) = oneshot::channel();
            from.hub
                .forward(to.id, VERSION_LOW, Bytes::from_static(b"old"), reply);
            to.post
                .until(|post| !post.requests.borrow().is_empty())
                .await;
            let asked = to.post.requests.take().remove(0);
            assert_eq!(asked.body, &b"old"[..], "the other one was never sent");
            asked.responder.answer(Bytes::from_static(b"done"));
            assert_eq!(answer.await.unwrap(), Ok(Bytes::from_static(b"done")));
        }
    });
}

#[test]
fn a_snapshot_arrives_with_its_header_and_is_answered() {
    run(async {
        let (one, two) = pair().await;
        for outcome in [Ok(()), Err("no space left".to_owned())] {
            let mut sender = one
                .hub
                .open_snapshot(two.id, Bytes::from_static(b"head"))
                .unwrap();
            let receiving = async {
                two.post
                    .until(|post| !post.snapshots.borrow().is_empty())
                    .await;
                let mut incoming = two.post.snapshots.borrow_mut().pop().unwrap();
                assert_eq!(
                    (incoming.from, &incoming.header[..]),
                    (one.id, &b"head"[..])
                );
                let mut bytes = 0;
                while let Some(chunk) = incoming.next().await.unwrap() {
                    assert!(
                        chunk.iter().all(|byte| *byte == 3),
                        "the bytes that were sent"
                    );
                    bytes += chunk.len();
                }
                incoming.answer(outcome.clone());
                bytes
            };
            let sending = async {
                for _ in 0..40 {
                    sender.send(vec![3; CHUNK_BYTES_MAX].into()).await.unwrap();
                }
                sender.send(Bytes::from_static(&[3])).await.unwrap();
                sender.finish().await
            };
            let (bytes, sent) = tokio::join!(receiving, sending);
            assert_eq!(bytes, 40 * CHUNK_BYTES_MAX + 1);
            assert_eq!(sent, outcome.map_err(SnapshotError::Refused));
        }
    });
}

#[test]
fn an_interrupted_snapshot_fails_on_the_other_side_and_can_start_again() {
    run(async {
        let (one, two) = pair().await;
        let taken = async || {
            two.post
                .until(|post| !post.snapshots.borrow().is_empty())
                .await;
            two.post.snapshots.borrow_mut().pop().unwrap()
        };
        // The sender gives up.
        let mut sender = one.hub.open_snapshot(two.id, Bytes::new()).unwrap();
        sender.send(Bytes::from_static(b"x")).await.unwrap();
        let mut incoming = taken().await;
        assert_eq!(incoming.next().await, Ok(Some(Bytes::from_static(b"x"))));
        drop(sender);
        assert!(matches!(
            incoming.next().await,
            Err(SnapshotError::Interrupted(_))
        ));
        // The receiver gives up: the sender gets the error, at the latest when no further chunk fits.
        let mut sender = one.hub.open_snapshot(two.id, Bytes::new()).unwrap();
        drop(taken().await);
        let error = loop {
            if let Err(error) = sender.send(vec![0; CHUNK_BYTES_MAX].into()).await {
                break error;
            }
        };
        assert!(matches!(error, SnapshotError::Refused(_)), "{error}");
        // The connection ends.
        let mut sender = one.hub.open_snapshot(two.id, Bytes::new()).unwrap();
        let mut incoming = taken().await;
        one.hub.close().await;
        assert!(incoming.next().await.is_err(), "the receiver sees the end");
        assert!(
            sender.send(Bytes::from_static(b"x")).await.is_err() || sender.finish().await.is_err()
        );
    });
}

#[test]
fn a_stalled_snapshot_stops_neither_heartbeats_nor_the_log() {
    run(async {
        let (one, two) = pair().await;
        let mut sender = one.hub.open_snapshot(two.id, Bytes::new()).unwrap();
        let chunk = Bytes::from(vec![1; CHUNK_BYTES_MAX]);
        let stalled = Rc::new(std::cell::Cell::new(0));
        let counted = Rc::clone(&stalled);
        let sending = tokio::task::spawn_local(async move {
            while sender.send(chunk.clone()).await.is_ok() {
                counted.set(counted.get() + 1);
            }
        });
        // The receiver does not read it: it stalls long before all memory is full.
        let mut rounds = 0;
        let mut seen = 0;
        while seen == 0 || seen != stalled.get() || rounds < 300 {
            seen = stalled.get();
            rounds += 1;
            let before = two.post.bodies_from(one.id).len();
            one.say(two.id, heartbeat(rounds));
            one.say(two.id, append(10_000));
            two.post
                .until(|post| post.bodies_from(one.id).len() >= before + 2)
                .await;
            assert!(rounds < 10_000, "the snapshot never stalled");
        }
        assert!(stalled.get() < 16, "{} MiB are under way", stalled.get());
        sending.abort();
    });
}

#[test]
fn a_full_queue_drops_appends_and_nothing_else() {
    run(async {
        let (one, two) = pair().await;
        two.post.stalled.set(true);
        while one.post.dropped.get() == 0 {
            one.say(two.id, append(100_000));
            tokio::task::yield_now().await;
        }
        let waiting = one.hub.stats()[0].waiting_bytes;
        assert!(
            waiting <= 2 * 1024 * 1024,
            "{waiting} bytes wait, 1 MiB may in each queue"
        );
        let heartbeats = |post: &Post| {
            let bodies = post.bodies_from(one.id);
            bodies
                .iter()
                .filter(|body| matches!(body, MessageBody::Heartbeat { .. }))
                .count()
        };
        one.say(two.id, heartbeat(1));
        two.post.until(|post| heartbeats(post) == 1).await;
        let (reply, answer) = oneshot::channel();
        one.hub
            .forward(two.id, VERSION_LOW, Bytes::from_static(b"r"), reply);
        two.post
            .until(|post| post.requests.borrow().len() == 1)
            .await;
        two.post
            .requests
            .borrow_mut()
            .pop()
            .unwrap()
            .responder
            .answer(Bytes::new());
        assert_eq!(answer.await.unwrap(), Ok(Bytes::new()));
        two.post.stalled.set(false);
        one.say(two.id, heartbeat(2));
        let appends = |post: &Post| post.bodies_from(one.id).len() > 10;
        two.post.until(appends).await;
        let stats = &one.hub.stats()[0];
        assert!(
            stats.dropped >= 1 && stats.round_trip.is_some() && stats.connections >= 1,
            "{stats:?}"
        );
        assert!(
            stats.bytes_out > 1_000_000 && stats.bytes_in > 1_000,
            "{stats:?}"
        );
    });
}

#[test]
fn a_member_that_moved_is_found_again() {
    run(async {
        let authority = Authority::new();
        let one = Member::start(1, authority.member("n1"));
        let old = Member::start(2, authority.member("n2"));
        one.knows(&[&old]);
        old.knows(&[&one]);
        one.reaches(&old).await;
        old.hub.close().await;
        one.post.until(|post| post.disconnected.get() == 1).await;
        one.reports("stops").await;
        let new = Member::start(2, authority.member("n2"));
        assert_ne!(new.address, old.address);
        one.knows(&[&new]);
        // It has no address to dial, so the other member dials it.
        new.hub.update(vec![crate::net::PeerAddress {
            addresses: Vec::new(),
            ..one.entry()
        }]);
        one.reaches(&new).await;
        assert_eq!(one.hub.dialled_by(new.id), Some(one.id));
        // And a member whose new address no other member has dials the others itself.
        new.hub.close().await;
        let newest = Member::start(2, authority.member("n2"));
        newest.knows(&[&one]);
        newest.reaches(&one).await;
    });
}

#[test]
fn a_killed_member_comes_back_before_its_silence_is_noticed() {
    let authority = Authority::new();
    run(async {
        // A killed process closes nothing, so here the runtime of its connections is dropped.
        let mut patient = settings(1, authority.member("n1"));
        patient.pacing.idle_timeout = Duration::from_hours(1);
        let one = Member::start_as(patient);
        let entry = one.entry();
        let mut security = settings(2, authority.member("n2"));
        security.pacing.idle_timeout = Duration::from_hours(1);
        let (started, address) = oneshot::channel();
        let (kill, killed) = oneshot::channel::<()>();
        let process = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let local = tokio::task::LocalSet::new();
            let hub: Hub = local.block_on(&runtime, async {
                let listener = Listener::open("127.0.0.1:0", security).unwrap();
                let _sent = started.send(listener.local_address());
                let hub = Hub::start(listener, Rc::new(Silent)).unwrap();
                hub.update(vec![entry]);
                let _gone = killed.await;
                hub
            });
            runtime.shutdown_background();
            std::mem::forget((local, hub));
        });
        let address = address.await.unwrap().to_string();
        let two = crate::net::PeerAddress {
            id: MemberId(2),
            name: "n2".to_owned(),
            addresses: vec![address],
        };
        one.hub.update(vec![two]);
        one.post.until(Post::is_up).await;
        kill.send(()).unwrap();
        process.join().unwrap();
        let again = Member::start(2, authority.member("n2"));
        again.knows(&[&one]);
        again.reaches(&one).await;
        assert_eq!(
            one.post.disconnected.get(),
            0,
            "the new connection replaced the dead one"
        );
    });
}

struct Silent;

impl crate::net::Inbox for Silent {
    fn messages(&self, _: MemberId, _: Vec<crate::raft::Message>) -> crate::net::Delivery {
        Box::pin(async {})
    }
    fn requests(&self, _: Vec<crate::net::PeerRequest>) -> crate::net::Delivery {
        Box::pin(async {})
    }
    fn guest(&self, _: crate::net::GuestQuestion) -> crate::net::Delivery {
        Box::pin(async {})
    }
    fn snapshot(&self, _: crate::net::IncomingSnapshot) -> crate::net::Delivery {
        Box::pin(async {})
    }
    fn connected(&self, _: MemberId, _: u16) {}
    fn disconnected(&self, _: MemberId) {}
    fn dropped(&self, _: MemberId) {}
    fn refused(&self, _: MemberId, _: u64, _: &str) {}
}

#[test]
fn without_certificates_it_is_encrypted_and_identities_still_must_fit() {
    run(async {
        let one = Member::start(1, PeerSecurity::Insecure);
        let two = Member::start(2, PeerSecurity::Insecure);
        one.knows(&[&two]);
        two.knows(&[&one]);
        one.reaches(&two).await;
        let authority = Authority::new();
        let three = Member::start(3, authority.member("n3"));
        one.knows(&[&two, &three]);
        three.knows(&[&one]);
        // Either side says what is missing.
        one.reports("certificate").await;
        three.reports("certificate").await;
        one.reaches(&two).await;
        assert!(pacing().keep_alive < pacing().idle_timeout);
    });
}
