//! Range: sorting, including etcd's quirks.

use crate::support::{Client, Difference, Server, get_range, op_put, put, refused, txn};
use quorate::internals::api::proto::etcdserverpb::{
    RangeRequest,
    range_request::{SortOrder, SortTarget},
};
use tonic::Code;

/// Four keys with different orders by key, version, create revision, mod revision and value.
async fn shuffled() -> (Server, Client) {
    let server = Server::start().await;
    let client = server.client().await;
    // Creation order c d a b; versions a4 b1 c3 d2; the last put of each in the order b d c a.
    for key in ["c", "d", "a", "c", "a", "a"] {
        client.must_put(key, "x").await;
    }
    for (key, value) in [("b", "3"), ("d", "1"), ("c", "4"), ("a", "2")] {
        client.must_put(key, value).await;
    }
    (server, client)
}

fn sorted(order: SortOrder, target: SortTarget) -> RangeRequest {
    RangeRequest {
        sort_order: order.into(),
        sort_target: target.into(),
        ..get_range("a", "z")
    }
}

const ORDERS: [(SortTarget, &str); 5] = [
    (SortTarget::Key, "abcd"),
    (SortTarget::Version, "bdca"),
    (SortTarget::Create, "cdab"),
    (SortTarget::Mod, "bdca"),
    (SortTarget::Value, "dabc"),
];

#[tokio::test]
async fn every_target_in_both_orders() {
    let (_server, client) = shuffled().await;
    for (target, ascending) in ORDERS {
        let keys = client
            .keys(sorted(SortOrder::Ascend, target))
            .await
            .concat();
        assert_eq!(keys, ascending, "{target:?} ascending");
        let keys = client
            .keys(sorted(SortOrder::Descend, target))
            .await
            .concat();
        assert_eq!(
            keys,
            ascending.chars().rev().collect::<String>(),
            "{target:?} descending"
        );
    }
}

#[tokio::test]
async fn what_a_target_does_not_tell_apart_stays_in_key_order() {
    let server = Server::start().await;
    let client = server.client().await;
    let puts = ["b", "c", "a"].map(|key| op_put(put(key, "same")));
    client
        .txn(txn(vec![], puts.to_vec(), vec![]))
        .await
        .unwrap();
    for (target, _) in &ORDERS[1..] {
        for order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
            let keys = client.keys(sorted(order, *target)).await.concat();
            assert_eq!(keys, "abc", "{target:?} {order:?}");
        }
    }
}

#[tokio::test]
async fn without_an_order_a_target_still_sorts_ascending() {
    let (_server, client) = shuffled().await;
    for (target, ascending) in ORDERS {
        assert_eq!(
            client.keys(sorted(SortOrder::None, target)).await.concat(),
            ascending,
            "{target:?}"
        );
    }
}

#[tokio::test]
async fn a_limit_comes_after_sorting_but_without_an_order_before() {
    let (_server, client) = shuffled().await;
    let limited = |order, target, limit| RangeRequest {
        limit,
        ..sorted(order, target)
    };
    let keys = client
        .keys(limited(SortOrder::Ascend, SortTarget::Value, 2))
        .await
        .concat();
    assert_eq!(keys, "da", "the two lowest values of all");
    // etcd: NONE with a limit takes the first limit + 1 keys, here a b c, and sorts those.
    let answer = client
        .range(limited(SortOrder::None, SortTarget::Value, 2))
        .await
        .unwrap();
    let keys: Vec<_> = answer.kvs.iter().map(|kv| kv.key.clone()).collect();
    assert_eq!(
        (keys, answer.more, answer.count),
        (vec!["a".into(), "b".into()], true, 4)
    );
    let keys = client
        .keys(limited(SortOrder::Descend, SortTarget::Key, 3))
        .await
        .concat();
    assert_eq!(keys, "dcb");
}

#[tokio::test]
async fn sorting_by_value_works_with_keys_only() {
    let (_server, client) = shuffled().await;
    let request = RangeRequest {
        keys_only: true,
        ..sorted(SortOrder::Descend, SortTarget::Value)
    };
    let pairs = client.pairs(request).await;
    let keys: String = pairs.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, "cbad");
    assert!(pairs.iter().all(|(_, value)| value.is_empty()), "{pairs:?}");
}

#[tokio::test]
async fn unknown_sort_options_are_refused() {
    let (server, client) = shuffled().await;
    if server.has(Difference::SortOptions) {
        return;
    }
    for (sort_order, sort_target) in [(3, 0), (-1, 0), (0, 5), (1, 99), (0, -1)] {
        let request = RangeRequest {
            sort_order,
            sort_target,
            ..get_range("a", "z")
        };
        refused(
            client.range(request).await,
            Code::InvalidArgument,
            "etcdserver: invalid sort option",
        );
    }
    assert_eq!(
        client.keys(get_range("a", "z")).await.len(),
        4,
        "the server still answers"
    );
}
