//! Txn: what is refused before anything runs. Operation budget, duplicate keys, empty operations.

use crate::support::{
    Client, Difference, Server, Wire, compare, del, del_range, frame, get, only_quorate_has,
    op_del, op_get, op_put, op_txn, put, refused, txn,
};
use prost::Message as _;
use quorate::internals::api::proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult::Equal, TargetUnion::Version},
};
use tonic::Code;

const TOO_MANY: &str = "etcdserver: too many operations in txn request";
const DUPLICATE: &str = "etcdserver: duplicate key given in txn request";

async fn start() -> (Server, Client) {
    let server = Server::start().await;
    let client = server.client().await;
    (server, client)
}

fn gets(count: usize) -> Vec<RequestOp> {
    vec![op_get(get("k")); count]
}

fn compares(count: usize) -> Vec<Compare> {
    vec![compare("k", Equal, Version(0)); count]
}

#[tokio::test]
async fn each_list_may_have_128_entries() {
    let (_server, client) = start().await;
    client
        .txn(txn(compares(128), gets(128), gets(128)))
        .await
        .unwrap();
    for request in [
        txn(compares(129), vec![], vec![]),
        txn(vec![], gets(129), vec![]),
        txn(vec![], vec![], gets(129)),
    ] {
        refused(client.txn(request).await, Code::InvalidArgument, TOO_MANY);
    }
}

#[tokio::test]
async fn sixty_levels_are_carried_out_and_five_hundred_refused() {
    let (server, client) = start().await;
    let wire = Wire::connect(server.client_port()).await;
    let chain = |levels: usize| {
        let innermost = txn(vec![], vec![op_put(put("deep", "value"))], vec![]);
        (1..levels).fold(innermost, |inner, _| {
            txn(vec![], vec![op_txn(inner)], vec![])
        })
    };
    let call = async |levels: usize| {
        let message = frame(&chain(levels).encode_to_vec());
        let answer = wire.call("/etcdserverpb.KV/Txn", message).await;
        (answer.grpc_status, answer.message)
    };
    assert_eq!(call(60).await, (0, String::new()));
    let kv = client.range(get("deep")).await.unwrap().kvs.remove(0);
    assert_eq!(kv.value, "value");
    for levels in [129, 500] {
        let refused = (Code::InvalidArgument as i32, TOO_MANY.to_owned());
        assert_eq!(call(levels).await, refused, "{levels} levels");
    }
}

#[tokio::test]
async fn a_nested_txn_has_what_the_level_above_left() {
    let (_server, client) = start().await;
    let nest = |outer: usize, inner: usize| {
        let mut ops = gets(outer - 1);
        ops.push(op_txn(txn(vec![], gets(inner), vec![])));
        txn(vec![], ops, vec![])
    };
    client.txn(nest(2, 126)).await.unwrap();
    refused(
        client.txn(nest(2, 127)).await,
        Code::InvalidArgument,
        TOO_MANY,
    );
    let two = vec![
        op_txn(txn(vec![], gets(126), vec![])),
        op_txn(txn(compares(126), vec![], vec![])),
    ];
    client.txn(txn(vec![], two, vec![])).await.unwrap();
    let untaken = op_txn(txn(vec![], vec![], gets(128)));
    refused(
        client.txn(txn(vec![], vec![], vec![untaken])).await,
        Code::InvalidArgument,
        TOO_MANY,
    );
    let compares_count_too = txn(
        compares(3),
        vec![op_txn(txn(vec![], gets(126), vec![]))],
        vec![],
    );
    refused(
        client.txn(compares_count_too).await,
        Code::InvalidArgument,
        TOO_MANY,
    );
}

fn p(key: &'static str) -> RequestOp {
    op_put(put(key, "v"))
}

fn d(key: &'static str) -> RequestOp {
    op_del(del(key))
}

fn then(ops: Vec<RequestOp>) -> TxnRequest {
    txn(vec![], ops, vec![])
}

fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
    op_txn(txn(vec![], success, failure))
}

#[tokio::test]
async fn a_key_is_put_once_per_branch() {
    let (_server, client) = start().await;
    for ops in [
        vec![p("k"), p("k")],
        vec![p("k"), d("k")],
        vec![d("k"), p("k")],
        vec![op_del(del_range("a", "z")), p("k")],
        vec![p("k"), op_del(del_range("k", "k\0"))],
    ] {
        for request in [then(ops.clone()), txn(vec![], vec![], ops.clone())] {
            refused(client.txn(request).await, Code::InvalidArgument, DUPLICATE);
        }
    }
    assert_eq!(client.revision().await, 1, "nothing was written");
}

#[tokio::test]
async fn what_does_not_conflict() {
    let (_server, client) = start().await;
    for request in [
        then(vec![d("k"), d("k"), op_del(del_range("a", "z"))]),
        then(vec![p("k"), op_get(get("k")), op_get(get("k"))]),
        txn(vec![], vec![p("k")], vec![p("k"), p("l")]),
        then(vec![p("k"), op_del(del_range("a", "k"))]),
        then(vec![p("k"), op_del(del_range("l", "a"))]),
        // etcd: this rule ignores a delete without an upper end, so it conflicts with no put.
        then(vec![p("k"), op_del(del_range("k", "\0"))]),
        then(vec![op_del(del_range("\0", "\0")), p("k")]),
        then(vec![nested(vec![p("k")], vec![p("k")])]),
        then(vec![nested(vec![p("k")], vec![d("k")])]),
    ] {
        client
            .txn(request.clone())
            .await
            .unwrap_or_else(|error| panic!("{request:?}: {error:?}"));
    }
}

#[tokio::test]
async fn a_nested_txn_counts_with_both_branches_for_the_list_around_it() {
    let (_server, client) = start().await;
    for ops in [
        vec![p("k"), nested(vec![p("k")], vec![])],
        vec![p("k"), nested(vec![], vec![p("k")])],
        vec![nested(vec![p("k")], vec![]), p("k")],
        vec![nested(vec![], vec![d("k")]), p("k")],
        vec![d("k"), nested(vec![p("k")], vec![])],
        vec![nested(vec![p("k")], vec![]), nested(vec![p("k")], vec![])],
        vec![p("k"), nested(vec![nested(vec![p("k")], vec![])], vec![])],
    ] {
        refused(
            client.txn(then(ops)).await,
            Code::InvalidArgument,
            DUPLICATE,
        );
    }
}

#[tokio::test]
async fn siblings_are_checked_against_deletes_of_earlier_ones_only() {
    let (_server, client) = start().await;
    // etcd: the asymmetry is accidental, but clients may depend on it.
    let put_first = then(vec![
        nested(vec![p("k")], vec![]),
        nested(vec![d("k")], vec![]),
    ]);
    client.txn(put_first).await.unwrap();
    let delete_first = then(vec![
        nested(vec![d("k")], vec![]),
        nested(vec![p("k")], vec![]),
    ]);
    refused(
        client.txn(delete_first).await,
        Code::InvalidArgument,
        DUPLICATE,
    );
}

#[tokio::test]
async fn static_checks_cover_both_branches_and_nested_txns() {
    let (_server, client) = start().await;
    let bad_puts = [
        (put("", "v"), "etcdserver: key is not provided"),
        (
            PutRequest {
                ignore_value: true,
                ..put("k", "v")
            },
            "etcdserver: value is provided",
        ),
        (
            PutRequest {
                ignore_lease: true,
                lease: 5,
                ..put("k", "v")
            },
            "etcdserver: lease is provided",
        ),
    ];
    let mut bad: Vec<_> = bad_puts
        .into_iter()
        .map(|(put, text)| (op_put(put), text))
        .collect();
    bad.push((op_get(get("")), "etcdserver: key is not provided"));
    bad.push((op_del(del("")), "etcdserver: key is not provided"));
    bad.push((RequestOp { request: None }, "etcdserver: key not found"));
    let empty_compare = txn(vec![compare("", Equal, Version(0))], vec![], vec![]);
    bad.push((
        op_txn(empty_compare.clone()),
        "etcdserver: key is not provided",
    ));
    for (op, text) in bad {
        for request in [
            then(vec![op.clone()]),
            txn(vec![], vec![], vec![op.clone()]),
            then(vec![nested(vec![], vec![op.clone()])]),
        ] {
            refused(client.txn(request).await, Code::InvalidArgument, text);
        }
    }
    refused(
        client.txn(empty_compare).await,
        Code::InvalidArgument,
        "etcdserver: key is not provided",
    );
}

#[tokio::test]
async fn a_put_that_keeps_what_the_txn_deleted_harms_nobody() {
    if only_quorate_has("surviving this") {
        return; // etcd: "unexpected error during txn", and the process is gone
    }
    let (_server, client) = start().await;
    client.must_put("k", "v").await;
    let kept = op_put(PutRequest {
        ignore_value: true,
        ..put("k", "")
    });
    let request = then(vec![op_del(del_range("k", "\0")), kept]);
    // Either answer is correct, an error or an empty value; but the next call must be answered.
    drop(client.txn(request).await);
    client.must_put("k", "again").await;
    assert_eq!(
        client.pairs(get("k")).await,
        [("k".to_owned(), "again".to_owned())]
    );
}

#[tokio::test]
async fn the_first_operation_with_a_fault_decides_the_error() {
    let (server, client) = start().await;
    if server.has(Difference::TxnChecks) {
        return;
    }
    let range = || {
        op_get(RangeRequest {
            revision: 1_000,
            ..get("k")
        })
    };
    let leased = || {
        op_put(PutRequest {
            lease: 9,
            ..put("l", "v")
        })
    };
    let absent = || {
        op_put(PutRequest {
            ignore_value: true,
            ..put("m", "")
        })
    };
    let both = || {
        op_put(PutRequest {
            ignore_value: true,
            lease: 9,
            ..put("m", "")
        })
    };
    let future = (
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    let lease = (Code::NotFound, "etcdserver: requested lease not found");
    let key = (Code::InvalidArgument, "etcdserver: key not found");
    for (ops, (code, text)) in [
        (vec![range(), leased()], future),
        (vec![leased(), range()], lease),
        (vec![range(), nested(vec![leased()], vec![])], future),
        (vec![nested(vec![range()], vec![]), leased()], future),
        (vec![nested(vec![leased()], vec![]), range()], lease),
        (vec![nested(vec![], vec![range()]), absent()], key),
        (vec![leased(), absent()], lease),
        (vec![absent(), leased()], key),
        (vec![range(), absent()], future),
        (vec![both(), range()], lease),
    ] {
        let shown = format!("{ops:?}");
        let outcome = client.txn(then(ops)).await;
        let status = outcome.expect_err(&shown);
        assert_eq!((status.code(), status.message()), (code, text), "{shown}");
    }
    client.must_put("k", "v").await;
    client.compact(2).await.unwrap();
    let compacted = op_get(RangeRequest {
        revision: 1,
        ..get("k")
    });
    let text = "etcdserver: mvcc: required revision has been compacted";
    let outcome = client.txn(then(vec![compacted, absent()])).await;
    refused(outcome, Code::OutOfRange, text);
}

#[tokio::test]
async fn unknown_sort_options_inside_a_txn() {
    let (server, client) = start().await;
    if server.has(Difference::SortOptions) {
        return;
    }
    for (sort_order, sort_target) in [(3, 0), (0, 5)] {
        let mut range = get("k");
        (range.sort_order, range.sort_target) = (sort_order, sort_target);
        let op = op_get(range);
        for request in [
            txn(vec![], vec![], vec![op.clone()]),
            then(vec![nested(vec![op.clone()], vec![])]),
        ] {
            refused(
                client.txn(request).await,
                Code::InvalidArgument,
                "etcdserver: invalid sort option",
            );
        }
    }
}
