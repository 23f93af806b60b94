//! Txn: the result of each comparison, for keys that exist, that do not exist, and for ranges.

use crate::support::{Client, Server, compare, op_put, put, txn};
use bytes::Bytes;
use quorate::internals::api::proto::etcdserverpb::{
    Compare,
    compare::{
        CompareResult,
        CompareResult::{Equal, Greater, Less, NotEqual},
        TargetUnion,
        TargetUnion::{CreateRevision, Lease, ModRevision, Value, Version},
    },
};

/// `a` at version 2 (created at 2, changed at 3, value `m`) and `b` (created at 4, value `n`).
async fn two_keys() -> (Server, Client) {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("a", "first").await;
    client.must_put("a", "m").await;
    client.must_put("b", "n").await;
    (server, client)
}

async fn holds(client: &Client, compares: Vec<Compare>) -> bool {
    client
        .txn(txn(compares, vec![], vec![]))
        .await
        .unwrap()
        .succeeded
}

fn value(text: &'static str) -> TargetUnion {
    Value(Bytes::from(text))
}

const RESULTS: [CompareResult; 4] = [Equal, Greater, Less, NotEqual];

/// Asserts of each compare whether it holds.
async fn assert_each(client: &Client, cases: impl IntoIterator<Item = (Compare, bool)>) {
    for (compare, expected) in cases {
        let holds = holds(client, vec![compare.clone()]).await;
        assert_eq!(holds, expected, "{compare:?}");
    }
}

#[tokio::test]
async fn every_target_and_result() {
    let (_server, client) = two_keys().await;
    // For each operand, the results of = > < != for key a.
    let (below, same, above) = (
        [false, true, false, true],
        [true, false, false, false],
        [false, false, true, true],
    );
    let cases = [
        (Version(1), below),
        (Version(2), same),
        (Version(3), above),
        (CreateRevision(1), below),
        (CreateRevision(2), same),
        (CreateRevision(9), above),
        (ModRevision(2), below),
        (ModRevision(3), same),
        (ModRevision(4), above),
        (Lease(-1), below),
        (Lease(0), same),
        (Lease(1), above),
        (value("l"), below),
        (value("m"), same),
        (value("mm"), above),
        (value(""), below),
    ];
    for (operand, expected) in cases {
        for (result, expected) in RESULTS.into_iter().zip(expected) {
            let compare = compare("a", result, operand.clone());
            assert_eq!(
                holds(&client, vec![compare.clone()]).await,
                expected,
                "{compare:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_absent_key_counts_as_0_but_its_value_matches_nothing() {
    let (_server, client) = two_keys().await;
    for operand in [Version(0), CreateRevision(0), ModRevision(0), Lease(0)] {
        assert!(
            holds(&client, vec![compare("absent", Equal, operand.clone())]).await,
            "{operand:?}"
        );
    }
    assert!(holds(&client, vec![compare("absent", Less, ModRevision(1))]).await);
    assert!(!holds(&client, vec![compare("absent", Greater, Version(0))]).await);
    for result in RESULTS {
        for operand in [value(""), value("x")] {
            let compare = compare("absent", result, operand);
            assert!(!holds(&client, vec![compare.clone()]).await, "{compare:?}");
        }
    }
}

#[tokio::test]
async fn a_range_must_hold_for_each_key_and_an_empty_one_is_an_absent_key() {
    let (_server, client) = two_keys().await;
    let over = |key: &'static str, end: &'static str, result, operand| Compare {
        range_end: end.into(),
        ..compare(key, result, operand)
    };
    let cases = [
        (over("a", "c", Greater, Version(0)), true),
        (over("a", "c", Equal, Version(2)), false),
        (over("a", "b", Equal, Version(2)), true),
        (over("a", "\0", NotEqual, value("x")), true),
        (over("a", "\0", NotEqual, value("n")), false),
        (over("\0", "\0", Less, ModRevision(5)), true),
        (over("x", "z", Equal, Version(0)), true),
        (over("x", "z", Equal, Version(1)), false),
        (over("x", "z", NotEqual, value("x")), false),
        (over("b", "a", Equal, CreateRevision(0)), true),
    ];
    assert_each(&client, cases).await;
}

#[tokio::test]
async fn all_compares_must_hold_and_none_holds() {
    let (_server, client) = two_keys().await;
    let yes = || compare("a", Equal, Version(2));
    let no = || compare("b", Equal, Version(7));
    assert!(holds(&client, vec![]).await);
    assert!(holds(&client, vec![yes(), yes()]).await);
    assert!(!holds(&client, vec![yes(), no()]).await);
    assert!(!holds(&client, vec![no(), yes()]).await);
}

#[tokio::test]
async fn compares_see_the_state_before_the_txn() {
    let (_server, client) = two_keys().await;
    let request = txn(
        vec![compare("new", Equal, CreateRevision(0))],
        vec![op_put(put("new", "1"))],
        vec![op_put(put("new", "2"))],
    );
    assert!(client.txn(request.clone()).await.unwrap().succeeded);
    assert!(
        !client.txn(request).await.unwrap().succeeded,
        "now the key is there"
    );
}

#[tokio::test]
async fn an_operand_of_another_target_or_none_is_0_or_empty() {
    let (_server, client) = two_keys().await;
    let mismatched = |key: &'static str, result: CompareResult, target, operand| Compare {
        result: result.into(),
        target,
        key: key.into(),
        range_end: Bytes::new(),
        target_union: operand,
    };
    let cases = [
        (mismatched("a", Greater, 0, Some(ModRevision(9))), true),
        (mismatched("a", Equal, 0, Some(ModRevision(2))), false),
        (mismatched("a", Greater, 1, None), true),
        (mismatched("absent", Equal, 2, None), true),
        (mismatched("a", Greater, 3, Some(Version(1))), true),
        (mismatched("a", Equal, 3, None), false),
        (mismatched("a", Equal, 4, Some(value("x"))), true),
    ];
    assert_each(&client, cases).await;
}

#[tokio::test]
async fn an_unknown_result_holds_and_an_unknown_target_is_equal() {
    let (_server, client) = two_keys().await;
    let strange = |result, target| Compare {
        result,
        target,
        ..compare("a", Equal, Version(77))
    };
    assert!(holds(&client, vec![strange(9, 0)]).await);
    assert!(holds(&client, vec![strange(Equal.into(), 9)]).await);
    assert!(!holds(&client, vec![strange(Greater.into(), 9)]).await);
    assert!(!holds(&client, vec![strange(NotEqual.into(), 9)]).await);
}
