//! Histories that are in order, at the edges of the rules.

use crate::{
    history::{
        Compare, LeaseEnd, Operand, Range, Refusal, Relation, Replay, Request, Txn, TxnOp,
        check_state,
    },
    script::{Script, all_of, delete, get, get_at, get_op, leased, put, put_op, serializable},
};

#[test]
fn nothing_happened() {
    let checked = Script::default().judge().unwrap();
    assert_eq!(checked.newest, 1);
}

#[test]
fn requests_one_after_the_other() {
    let checked = Script::default()
        .truth(&put("a", "1"))
        .truth(&put("a", "2"))
        .truth(&delete("a"))
        .done((1, 2), 2, put("a", "1"))
        .done((3, 4), 2, get("a"))
        .done((5, 6), 3, put("a", "2"))
        .done((7, 8), 4, delete("a"))
        .idle((9, 10), 4, delete("a"))
        .done((11, 12), 4, get("a"))
        .done((13, 14), 4, get_at("a", 2))
        .judge()
        .unwrap();
    assert_eq!((checked.acknowledged, checked.newest), (7, 4));
}

#[test]
fn concurrent_requests_have_any_order() {
    let script = Script::default()
        .truth(&put("a", "1"))
        .truth(&put("a", "2"));
    // The second one was called first, and a read during both saw neither.
    let script = script
        .done((1, 10), 3, put("a", "2"))
        .done((2, 9), 2, put("a", "1"))
        .done((3, 8), 1, get("a"))
        .done((8, 9), 3, get("a"));
    assert!(script.judge().is_ok());
}

#[test]
fn equal_times_are_no_order() {
    let script = Script::default().truth(&put("a", "1"));
    let script = script
        .done((1, 5), 2, put("a", "1"))
        .done((5, 6), 1, get("a"));
    assert!(script.judge().is_ok());
}

#[test]
fn an_unknown_request_happens_once_or_never_at_any_later_time() {
    let script = Script::default()
        .truth(&put("a", "1"))
        .truth(&put("b", "1"));
    let checked = script
        .unknown((1, 2), put("b", "1"))
        .unknown((1, 2), put("never", "1"))
        .done((10, 20), 2, put("a", "1"))
        .judge()
        .unwrap();
    assert_eq!((checked.unknown, checked.happened), (2, 1));
}

#[test]
fn equal_unknown_requests_are_told_apart_by_what_they_can_explain() {
    // Three deletions of the same key; the first revision can only be the first request's, whichever is tried first.
    let script = Script::default()
        .truth(&put("a", "1"))
        .truth(&delete("a"))
        .truth(&put("a", "2"))
        .truth(&delete("a"));
    let checked = script
        .done((1, 2), 2, put("a", "1"))
        .unknown((3, 4), delete("a"))
        .done((5, 6), 4, put("a", "2"))
        .unknown((7, 8), delete("a"))
        .judge()
        .unwrap();
    assert_eq!(checked.happened, 2);
}

#[test]
fn a_member_may_be_behind_for_serializable_reads() {
    let script = Script::default()
        .truth(&put("a", "1"))
        .truth(&put("a", "2"));
    let script = script
        .done_by(1, (1, 2), 2, put("a", "1"))
        .done_by(1, (3, 4), 3, put("a", "2"))
        .done_by(2, (5, 6), 1, serializable("a"))
        .done_by(2, (7, 8), 2, serializable("a"));
    assert!(script.judge().is_ok());
}

#[test]
fn the_end_of_a_lease_needs_no_request() {
    let script = Script::default()
        .truth(&leased("a", 7))
        .truth(&leased("b", 7))
        .truth(&put("c", "1"))
        .truth(&Request::RevokeLease(7))
        .done((1, 2), 2, leased("a", 7))
        .done((3, 4), 3, leased("b", 7))
        .done((5, 6), 4, put("c", "1"));
    let end = |certain| LeaseEnd {
        lease: 7,
        revision: 5,
        certain,
    };
    assert_eq!(script.judge().unwrap().lease_ends, [end(true)]);
    let script = script.unknown((7, 8), Request::RevokeLease(7));
    assert_eq!(script.judge().unwrap().lease_ends, [end(false)]);
}

#[test]
fn revoking_a_lease_with_keys_has_a_revision_and_without_has_none() {
    let script = Script::default()
        .truth(&leased("a", 7))
        .truth(&Request::RevokeLease(7))
        .done((1, 2), 2, leased("a", 7))
        .done((3, 4), 3, Request::RevokeLease(7))
        .done((5, 6), 3, Request::RevokeLease(8));
    assert!(script.judge().unwrap().lease_ends.is_empty());
}

#[test]
fn transactions_see_what_they_wrote() {
    let compare = Compare {
        key: "a".into(),
        relation: Relation::Less,
        operand: Operand::Version(1),
    };
    let txn = Request::Txn(Txn {
        compares: vec![compare],
        success: vec![
            TxnOp::Range(get_op("a")),
            TxnOp::Put(put_op("a", "1")),
            TxnOp::Range(get_op("a")),
            TxnOp::Txn(Txn {
                success: vec![TxnOp::Put(put_op("b", "1"))],
                ..Txn::default()
            }),
        ],
        failure: vec![TxnOp::Range(get_op("a"))],
    });
    let script = Script::default()
        .truth(&txn)
        .done((1, 2), 2, txn.clone())
        .idle((3, 4), 2, txn)
        .done((5, 6), 2, all_of(vec![TxnOp::Range(get_op("b"))]));
    assert_eq!(script.replay.events(2).len(), 2);
    assert!(script.judge().is_ok());
}

#[test]
fn ranges_have_counts_and_limits() {
    let all = Range {
        key: "a".into(),
        range_end: b"\0".as_slice().into(),
        limit: 1,
        ..Range::default()
    };
    let script = Script::default()
        .truth(&put("a", "1"))
        .truth(&put("b", "1"))
        .done((1, 2), 2, put("a", "1"))
        .done((3, 4), 3, put("b", "1"))
        .done((5, 6), 3, Request::Range(all));
    assert!(script.judge().is_ok());
}

#[test]
fn compacted_revisions_are_refused_and_later_ones_are_not() {
    let script = Script::default()
        .truth(&put("a", "1"))
        .truth(&put("a", "2"))
        .done((1, 2), 2, put("a", "1"))
        .done((3, 4), 3, put("a", "2"))
        .done((5, 6), 3, Request::Compact(3))
        .done((7, 8), 3, get_at("a", 3))
        .failed((7, 8), get_at("a", 2), Refusal::Compacted)
        .failed((7, 8), Request::Compact(3), Refusal::Compacted)
        .failed((7, 8), get_at("a", 9), Refusal::Future)
        .failed((7, 8), put("a", "3"), Refusal::NotDone);
    assert_eq!(script.judge().unwrap().failed, 4);
}

#[test]
fn the_end_state_is_what_the_history_leaves() {
    let script = Script::default()
        .truth(&put("a", "1"))
        .truth(&put("b", "1"))
        .truth(&delete("a"));
    let state = script.replay.state(4);
    assert_eq!(state.len(), 1);
    assert!(check_state(&script.replay, 1, 4, &state).is_ok());
    assert!(check_state(&Replay::default(), 1, 1, &[]).is_ok());
}
