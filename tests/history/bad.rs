//! A history for each kind of violation. Each differs little from one in `good`.

use crate::{
    history::{Answer, Event, KeyValue, Refusal, Replay, Request, TxnOp, Violation, check_state},
    script::{
        Script, all_of, bytes, created, delete, found, get, get_at, get_op, got, leased, put,
        put_op, serializable,
    },
};

fn two_puts() -> Script {
    Script::default()
        .truth(&put("a", "1"))
        .truth(&put("a", "2"))
        .done((1, 2), 2, put("a", "1"))
        .done((3, 4), 3, put("a", "2"))
}

#[test]
fn a_stale_linearizable_read() {
    let script = two_puts().done_by(2, (5, 6), 2, get("a"));
    let violation = found(script.judge(), "Stale");
    assert!(violation.to_string().contains("5..6"), "{violation}");
}

#[test]
fn a_stale_read_after_another_clients_serializable_one() {
    let script = Script::default()
        .truth(&put("a", "1"))
        .unknown((1, 2), put("a", "1"))
        .done_by(1, (3, 4), 2, serializable("a"))
        .done_by(2, (5, 6), 1, get("a"));
    found(script.judge(), "Stale");
}

#[test]
fn a_read_of_a_value_that_was_not_there() {
    let kv = KeyValue {
        key: "a".into(),
        create_revision: 2,
        mod_revision: 3,
        version: 2,
        value: "1".into(),
        lease: 0,
    };
    let script = two_puts().said(1, (5, 6), 3, get("a"), got(Some(kv)));
    found(script.judge(), "WrongAnswer");
}

#[test]
fn a_read_at_an_old_revision_that_shows_the_new_state() {
    let newest = two_puts().replay.get(b"a", 3).cloned();
    let script = two_puts().said(1, (5, 6), 3, get_at("a", 2), got(newest));
    found(script.judge(), "WrongAnswer");
}

#[test]
fn a_read_before_its_write_was_called() {
    // The value was read before it was written: the write's place is in the past.
    let script = Script::default()
        .truth(&put("a", "1"))
        .done((1, 2), 2, get("a"))
        .done((3, 4), 2, put("a", "1"));
    found(script.judge(), "Stale");
}

#[test]
fn a_lost_write_at_the_end() {
    let script = two_puts().said(1, (5, 6), 4, put("a", "3"), Answer::Put { prev: None });
    found(script.judge(), "Lost");
}

#[test]
fn a_lost_write_whose_revision_went_to_another() {
    let script = Script::default()
        .truth(&put("b", "other"))
        .done((1, 2), 2, put("b", "other"))
        .said(1, (1, 2), 2, put("a", "1"), Answer::Put { prev: None });
    found(script.judge(), "WrongEffect");
}

#[test]
fn a_write_applied_twice() {
    let script = Script::default()
        .truth(&put("a", "1"))
        .truth(&put("a", "1"))
        .done((1, 2), 2, put("a", "1"));
    found(script.judge(), "Unexplained");
}

#[test]
fn an_unknown_write_applied_twice() {
    let script = Script::default()
        .truth(&put("a", "1"))
        .truth(&put("a", "1"))
        .unknown((1, 2), put("a", "1"));
    found(script.judge(), "Unexplained");
}

#[test]
fn one_revision_for_two_writes() {
    let script = Script::default()
        .truth(&put("a", "1"))
        .done((1, 2), 2, put("a", "1"))
        .done((1, 2), 2, put("a", "1"));
    found(script.judge(), "Reused");
}

#[test]
fn a_write_in_the_past() {
    let script = Script::default()
        .truth(&put("a", "1"))
        .truth(&put("b", "1"))
        .done((5, 6), 2, put("a", "1"))
        .done((1, 2), 3, put("b", "1"));
    found(script.judge(), "Stale");
}

#[test]
fn half_a_transaction() {
    let txn = all_of(vec![
        TxnOp::Put(put_op("a", "1")),
        TxnOp::Put(put_op("b", "1")),
    ]);
    let answers = vec![Answer::Put { prev: None }, Answer::Put { prev: None }];
    let answer = Answer::Txn {
        succeeded: true,
        answers,
    };
    let half = Script::default().events(vec![created("a", "1", 2)]);
    let script = half.said(1, (1, 2), 2, txn.clone(), answer.clone());
    found(script.judge(), "WrongEffect");
    let halves = Script::default()
        .events(vec![created("a", "1", 2)])
        .events(vec![created("b", "1", 3)]);
    let violations = halves.said(1, (1, 2), 3, txn.clone(), answer).judge();
    let violations = violations.unwrap_err();
    assert!(matches!(violations[0], Violation::WrongEffect { .. }));
    assert!(matches!(violations[1], Violation::Unexplained { .. }));
    // Nor may half of it happen if its outcome is unknown.
    let halves = Script::default()
        .events(vec![created("a", "1", 2)])
        .unknown((1, 2), txn);
    found(halves.judge(), "Unexplained");
}

#[test]
fn a_transaction_that_took_the_wrong_branch() {
    let script = two_puts();
    let guarded = Request::Txn(crate::history::Txn {
        compares: vec![crate::history::Compare {
            key: "a".into(),
            relation: crate::history::Relation::Equal,
            operand: crate::history::Operand::Mod(2),
        }],
        success: vec![TxnOp::Put(put_op("a", "3"))],
        failure: vec![],
    });
    let next = KeyValue {
        key: "a".into(),
        create_revision: 2,
        mod_revision: 4,
        version: 3,
        value: "3".into(),
        lease: 0,
    };
    let answer = Answer::Txn {
        succeeded: true,
        answers: vec![Answer::Put { prev: None }],
    };
    let script = script
        .events(vec![Event::Put(next)])
        .said(1, (5, 6), 4, guarded, answer);
    let violations = script.judge().unwrap_err();
    assert!(matches!(violations[0], Violation::WrongAnswer { .. }));
}

#[test]
fn a_failed_write_that_happened() {
    let script =
        Script::default()
            .truth(&put("a", "1"))
            .failed((1, 2), put("a", "1"), Refusal::NotDone);
    found(script.judge(), "Unexplained");
}

#[test]
fn an_unknown_write_that_somebody_saw_before_it_was_called() {
    let script = Script::default()
        .truth(&put("a", "1"))
        .done((1, 2), 2, get("a"))
        .unknown((3, 4), put("a", "1"));
    found(script.judge(), "Unexplained");
}

#[test]
fn a_revision_that_nobody_asked_for() {
    let script = Script::default().truth(&put("a", "1"));
    found(script.judge(), "Unexplained");
}

#[test]
fn a_lease_that_took_only_some_of_its_keys() {
    let script = Script::default()
        .truth(&leased("a", 7))
        .truth(&leased("b", 7))
        .events(vec![Event::Delete("a".into())])
        .done((1, 2), 2, leased("a", 7))
        .done((3, 4), 3, leased("b", 7));
    found(script.judge(), "Unexplained");
}

#[test]
fn a_revoked_lease_whose_keys_stayed() {
    let script = Script::default()
        .truth(&leased("a", 7))
        .done((1, 2), 2, leased("a", 7))
        .said(1, (3, 4), 2, Request::RevokeLease(7), Answer::Done);
    assert!(script.judge().is_err());
}

#[test]
fn a_member_that_went_back() {
    let script = two_puts().done_by(2, (5, 6), 3, serializable("a")).done_by(
        2,
        (7, 8),
        2,
        serializable("a"),
    );
    found(script.judge(), "WentBack");
}

#[test]
fn a_deletion_that_says_the_wrong_number() {
    let answer = Answer::DeleteRange {
        deleted: 0,
        prevs: vec![],
    };
    let script = two_puts()
        .truth(&delete("a"))
        .said(1, (5, 6), 4, delete("a"), answer);
    let violations = script.judge().unwrap_err();
    assert!(matches!(violations[0], Violation::Unexplained { .. }));
}

#[test]
fn a_read_of_what_was_compacted() {
    let script =
        two_puts()
            .done((5, 6), 3, Request::Compact(3))
            .done_by(2, (7, 8), 3, get_at("a", 2));
    found(script.judge(), "ReadCompacted");
    let txn = all_of(vec![TxnOp::Range(crate::history::Range {
        revision: 2,
        ..get_op("a")
    })]);
    let script = two_puts()
        .done((5, 6), 3, Request::Compact(3))
        .done_by(2, (7, 8), 3, txn);
    found(script.judge(), "ReadCompacted");
}

#[test]
fn a_second_compaction_at_the_same_revision() {
    let script =
        two_puts()
            .done((5, 6), 3, Request::Compact(3))
            .done((7, 8), 3, Request::Compact(3));
    found(script.judge(), "ReadCompacted");
}

#[test]
fn a_refusal_of_what_was_not_compacted() {
    let script = two_puts().done((5, 6), 3, Request::Compact(2)).failed(
        (7, 8),
        get_at("a", 2),
        Refusal::Compacted,
    );
    found(script.judge(), "WronglyRefused");
}

#[test]
fn a_refusal_as_future_of_what_was_acknowledged() {
    let script = two_puts().failed((5, 6), get_at("a", 3), Refusal::Future);
    found(script.judge(), "WronglyRefused");
}

#[test]
fn a_history_with_a_gap_or_a_repetition() {
    let events = |revision| (revision, vec![created("a", "1", revision)]);
    let gap = Replay::new([events(3)]).unwrap_err();
    assert!(matches!(gap, Violation::Gap { .. }), "{gap}");
    let twice = Replay::new([events(2), events(2)]).unwrap_err();
    assert!(matches!(twice, Violation::Gap { .. }), "{twice}");
    let nothing = Replay::new([(2, vec![])]).unwrap_err();
    assert!(matches!(nothing, Violation::Gap { .. }), "{nothing}");
}

#[test]
fn events_that_do_not_follow() {
    let twice = Replay::new([
        (2, vec![created("a", "1", 2)]),
        (3, vec![created("a", "1", 3)]),
    ]);
    let twice = twice.unwrap_err();
    assert!(
        matches!(twice, Violation::ImpossibleEvent { .. }),
        "{twice}"
    );
    let absent = Replay::new([(2, vec![Event::Delete("a".into())])]).unwrap_err();
    assert!(
        matches!(absent, Violation::ImpossibleEvent { .. }),
        "{absent}"
    );
}

#[test]
fn a_member_that_ends_with_something_else() {
    let replay = two_puts().replay;
    let behind = check_state(&replay, 3, 2, &replay.state(2)).unwrap_err();
    assert!(
        matches!(behind, Violation::WrongRevision { .. }),
        "{behind}"
    );
    let old = check_state(&replay, 3, 3, &replay.state(2)).unwrap_err();
    assert!(matches!(old, Violation::WrongState { .. }), "{old}");
    let mut more = replay.state(3);
    more.push(KeyValue {
        key: bytes("z"),
        ..KeyValue::default()
    });
    let more = check_state(&replay, 3, 3, &more).unwrap_err();
    assert!(matches!(more, Violation::WrongState { .. }), "{more}");
    assert!(check_state(&replay, 3, 3, &[]).is_err());
}
