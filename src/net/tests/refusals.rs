//! Which connections members refuse, and that both sides log the reason.

use super::members::{Authority, Member, Post, append, pacing, run, settings};
use crate::{
    net::{NetError, PeerAddress, ask},
    raft::MessageBody,
    types::{ClusterId, MemberId},
};
use bytes::Bytes;

/// A healthy pair of one authority, beside which things go wrong.
async fn healthy(authority: &Authority) -> (Member, Member) {
    let one = Member::start(1, authority.member("n1"));
    let two = Member::start(2, authority.member("n2"));
    one.knows(&[&two]);
    two.knows(&[&one]);
    one.reaches(&two).await;
    (one, two)
}

/// `bad` dials `one`: each reports its part, no connection comes of it, and the healthy pair goes on.
async fn both_refuse(one: &Member, two: &Member, bad: &Member, parts: [&str; 2]) {
    bad.hub.update(vec![PeerAddress {
        name: String::new(),
        ..one.entry()
    }]);
    one.reports(parts[0]).await;
    bad.reports(parts[1]).await;
    assert!(!bad.post.is_up(), "no connection came of it");
    one.reaches(two).await;
    two.reaches(one).await;
}

#[test]
fn another_authority() {
    run(async {
        let authority = Authority::new();
        let (one, two) = healthy(&authority).await;
        let bad = Member::start(3, Authority::new().member("n3"));
        one.knows(&[&two, &bad]);
        let texts = [
            "its certificate is refused: no authority in peer.ca signed it",
            "UnknownIssuer",
        ];
        both_refuse(&one, &two, &bad, texts).await;
    });
}

#[test]
fn an_expired_certificate() {
    run(async {
        let authority = Authority::new();
        let (one, two) = healthy(&authority).await;
        let bad = Member::start(3, authority.member_valid("n3", 0));
        let texts = [
            "its certificate is refused: it has expired",
            "it has expired",
        ];
        both_refuse(&one, &two, &bad, texts).await;
    });
}

#[test]
fn a_member_of_another_cluster() {
    run(async {
        let authority = Authority::new();
        let (one, two) = healthy(&authority).await;
        let mut settings = settings(3, authority.member("n3"));
        settings.identity.cluster = ClusterId(2);
        let bad = Member::start_as(settings);
        one.knows(&[&two, &bad]);
        let text = "belongs to cluster";
        both_refuse(&one, &two, &bad, [text, text]).await;
    });
}

#[test]
fn an_unknown_member() {
    run(async {
        let authority = Authority::new();
        let (one, two) = healthy(&authority).await;
        let bad = Member::start(3, authority.member("n3"));
        let text = "member 3 (\"n3\") is not known in this cluster";
        both_refuse(&one, &two, &bad, [text, text]).await;
        bad.post
            .until(|post| !post.refused.borrow().is_empty())
            .await;
        let (by, code, reason) = bad.post.refused.borrow()[0].clone();
        assert_eq!((by, code, reason.as_str()), (one.id, 4, text));
    });
}

#[test]
fn an_id_that_the_certificate_does_not_bear_out() {
    run(async {
        let authority = Authority::new();
        let (one, two) = healthy(&authority).await;
        // It says it is n3 with the certificate of n4.
        let bad = Member::start(3, authority.member("n4"));
        one.knows(&[&two, &bad]);
        let text = "the certificate of member 3 names [\"quorate://member/n4\"], not \"n3\"";
        both_refuse(&one, &two, &bad, [text, text]).await;
    });
}

#[test]
fn a_name_that_is_not_the_ids() {
    run(async {
        let authority = Authority::new();
        let (one, two) = healthy(&authority).await;
        let mut settings = settings(3, authority.member("n4"));
        settings.name = "n4".to_owned();
        let bad = Member::start_as(settings);
        one.hub.update(vec![
            two.entry(),
            PeerAddress {
                name: "n3".to_owned(),
                ..bad.entry()
            },
        ]);
        let text = "member 3 is called \"n3\" in the membership, not \"n4\"";
        both_refuse(&one, &two, &bad, [text, text]).await;
    });
}

#[test]
fn another_member_at_the_address() {
    run(async {
        let authority = Authority::new();
        let (one, two) = healthy(&authority).await;
        one.hub.update(vec![
            two.entry(),
            PeerAddress {
                id: MemberId(5),
                ..two.entry()
            },
        ]);
        let text = "member 5 was dialled, and member 2 answers at its address";
        one.reports(text).await;
        two.reports(text).await;
        one.reaches(&two).await;
    });
}

/// A member is removed, and its machine becomes another member with the same name and address. Messages in flight to the first
/// must not reach the second, which does not have the log that they are about.
#[test]
fn nothing_on_its_way_to_a_member_reaches_its_successor() {
    run(async {
        let authority = Authority::new();
        let (one, two) = healthy(&authority).await;
        two.post.stalled.set(true);
        for _ in 0..8 {
            one.say(two.id, append(100_000));
        }
        let Member { hub, address, .. } = two;
        hub.close().await;
        drop(hub);
        let mut successor = settings(5, authority.member("n2"));
        successor.name = "n2".to_owned();
        let successor = Member::start_at(&address, successor).await;
        successor.knows(&[&one]);
        one.reports("member 2 was dialled, and member 5 answers at its address")
            .await;
        one.say(MemberId(2), append(1));
        one.knows(&[&successor]);
        one.reaches(&successor).await;
        let said = successor.post.bodies_from(one.id);
        assert!(
            said.iter()
                .all(|body| matches!(body, MessageBody::StaleTerm)),
            "only what was sent to it: {said:?}"
        );
    });
}

#[test]
fn a_second_process_with_the_id_of_a_living_member() {
    run(async {
        let authority = Authority::new();
        let (one, two) = healthy(&authority).await;
        let copy = Member::start(2, authority.member("n2"));
        let text = "two processes bear member id 2";
        both_refuse(&one, &two, &copy, [text, text]).await;
        assert_eq!(
            one.post.disconnected.get(),
            0,
            "the living one stays connected"
        );
        // Its own id at its own address is no better.
        copy.hub.update(vec![PeerAddress {
            id: MemberId(6),
            name: String::new(),
            ..two.entry()
        }]);
        copy.reports("two processes bear member id 2").await;
    });
}

#[test]
fn a_removed_member_is_cut_off_and_told() {
    run(async {
        let authority = Authority::new();
        let (one, two) = healthy(&authority).await;
        one.hub.update(Vec::new());
        two.reports("member 2 is no longer in this cluster").await;
        two.post
            .until(|post| !post.refused.borrow().is_empty())
            .await;
        two.post.until(|post| !post.is_up()).await;
        one.post.until(|post: &Post| !post.is_up()).await;
        assert!(one.hub.stats().is_empty(), "it is forgotten");
    });
}

#[test]
fn a_guest_gets_an_answer_and_nothing_else() {
    run(async {
        let authority = Authority::new();
        let (one, two) = healthy(&authority).await;
        let (security, question) = (authority.member("n3"), Bytes::from_static(b"who?"));
        let pacing = pacing();
        let asking = ask(&security, "n3", &one.address, question, &pacing);
        let answering = async {
            one.post
                .until(|post| !post.guests.borrow().is_empty())
                .await;
            let asked = one.post.guests.borrow_mut().pop().unwrap();
            assert_eq!(
                (asked.name.as_str(), &asked.question[..]),
                ("n3", &b"who?"[..])
            );
            asked.responder.answer(Bytes::from_static(b"you are 3"));
        };
        let (answer, ()) = tokio::join!(asking, answering);
        let answer = answer.unwrap();
        assert_eq!((answer.cluster, answer.member), (ClusterId(1), MemberId(1)));
        assert_eq!(&answer.answer[..], b"you are 3");
        assert_eq!(one.post.connected.get(), 1, "a guest is not connected");

        // Its name must be its certificate's, and its certificate the authority's.
        let error = ask(&security, "n2", &one.address, Bytes::new(), &pacing)
            .await
            .unwrap_err();
        assert!(
            matches!(error, NetError::RefusedByPeer { code: 8, .. }),
            "{error}"
        );
        let other = Authority::new();
        let stranger = other.member("n3");
        let error = ask(&stranger, "n3", &one.address, Bytes::new(), &pacing)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
        one.reaches(&two).await;
    });
}
