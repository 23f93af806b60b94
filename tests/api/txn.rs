//! Txn: branches, the order of effects, headers, nesting, and which transactions enter the log.

use crate::support::{
    Client, Server, compare, del, del_range, get, get_range, op_del, op_get, op_put, op_txn, put,
    refused, txn,
};
use quorate::internals::api::proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, ResponseHeader, TxnRequest, TxnResponse,
    compare::{CompareResult::Equal, TargetUnion::Version},
    response_op::Response,
};
use tonic::Code;

fn absent(key: &'static str) -> Compare {
    compare(key, Equal, Version(0))
}

/// The header of each operation's response; inside a transaction it has only a revision.
fn revisions(answer: &TxnResponse) -> Vec<i64> {
    let headers = answer
        .responses
        .iter()
        .map(|op| match op.response.as_ref().unwrap() {
            Response::ResponseRange(answer) => answer.header.unwrap(),
            Response::ResponsePut(answer) => answer.header.unwrap(),
            Response::ResponseDeleteRange(answer) => answer.header.unwrap(),
            Response::ResponseTxn(answer) => answer.header.unwrap(),
        });
    headers
        .map(|header| {
            let revision = header.revision;
            assert_eq!(
                header,
                ResponseHeader {
                    revision,
                    ..Default::default()
                },
                "revision alone"
            );
            revision
        })
        .collect()
}

fn values(answer: &TxnResponse, op: usize) -> Vec<String> {
    let Some(Response::ResponseRange(range)) = &answer.responses[op].response else {
        panic!("op {op} is a range: {answer:?}")
    };
    range
        .kvs
        .iter()
        .map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
        .collect()
}

async fn start() -> (Server, Client) {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("a", "old").await;
    (server, client)
}

#[tokio::test]
async fn the_branch_taken_answers_in_order() {
    let (_server, client) = start().await;
    let request = txn(
        vec![absent("a")],
        vec![op_put(put("x", "wrong"))],
        vec![
            op_put(put("x", "right")),
            op_get(get("x")),
            op_del(del("a")),
            op_get(get("a")),
        ],
    );
    let answer = client.txn(request).await.unwrap();
    assert!(!answer.succeeded);
    assert_eq!(answer.responses.len(), 4);
    assert_eq!(
        values(&answer, 1),
        ["right"],
        "an op sees the ones before it"
    );
    assert!(values(&answer, 3).is_empty());
    let Some(Response::ResponseDeleteRange(deleted)) = &answer.responses[2].response else {
        panic!("{answer:?}")
    };
    assert_eq!(deleted.deleted, 1);
    let header = answer.header.unwrap();
    assert!(
        header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0,
        "{header:?}"
    );
    assert_eq!(header.revision, 3, "all writes share one revision");
}

#[tokio::test]
async fn inner_headers_tell_the_revision_of_that_moment() {
    let (_server, client) = start().await;
    let answer = client
        .txn(txn(
            vec![],
            vec![
                op_get(get("a")),
                op_del(del("absent")),
                op_put(put("b", "1")),
                op_get(get("b")),
                op_del(del("absent")),
                op_txn(txn(vec![], vec![op_get(get("b"))], vec![])),
            ],
            vec![],
        ))
        .await
        .unwrap();
    assert_eq!(
        revisions(&answer),
        [2, 2, 3, 3, 3, 0],
        "a nested txn's header is there, and empty"
    );
    let Some(Response::ResponseTxn(nested)) = &answer.responses[5].response else {
        panic!("{answer:?}")
    };
    assert_eq!(revisions(nested), [3]);
    assert!(nested.succeeded);
}

#[tokio::test]
async fn all_writes_of_a_txn_share_a_revision_and_failing_compares_make_none() {
    let (_server, client) = start().await;
    let writes = vec![
        op_put(put("p", "1")),
        op_put(put("q", "2")),
        op_del(del("a")),
    ];
    let answer = client
        .txn(txn(vec![], writes.clone(), vec![]))
        .await
        .unwrap();
    assert_eq!(answer.header.unwrap().revision, 3);
    for kv in client.range(get_range("p", "r")).await.unwrap().kvs {
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (3, 3, 1));
    }
    let answer = client
        .txn(txn(vec![absent("p")], writes, vec![]))
        .await
        .unwrap();
    assert_eq!(
        (answer.succeeded, answer.header.unwrap().revision),
        (false, 3)
    );
    let nothing = txn(
        vec![],
        vec![op_del(del_range("x", "z")), op_get(get("p"))],
        vec![],
    );
    assert_eq!(
        client.txn(nothing).await.unwrap().header.unwrap().revision,
        3
    );
}

#[tokio::test]
async fn a_read_at_the_old_revision_sees_the_past_and_the_new_one_is_the_future() {
    let (_server, client) = start().await;
    let with_read_at = |revision| {
        let read = RangeRequest {
            revision,
            ..get("a")
        };
        txn(vec![], vec![op_put(put("a", "new")), op_get(read)], vec![])
    };
    assert_eq!(
        values(&client.txn(with_read_at(2)).await.unwrap(), 1),
        ["old"]
    );
    refused(
        client.txn(with_read_at(4)).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    assert_eq!(client.revision().await, 3, "a refused txn writes nothing");
}

#[tokio::test]
async fn prechecks_see_the_state_before_the_txn_and_only_the_branch_taken() {
    let (_server, client) = start().await;
    let keep_value = |key: &'static str| PutRequest {
        ignore_value: true,
        ..put(key, "")
    };
    let created_inside = txn(
        vec![],
        vec![
            op_put(put("n", "1")),
            op_txn(txn(vec![], vec![op_get(get("n"))], vec![])),
        ],
        vec![],
    );
    client.txn(created_inside).await.unwrap();
    let on_absent = txn(
        vec![],
        vec![op_put(put("b", "1")), op_put(keep_value("c"))],
        vec![],
    );
    refused(
        client.txn(on_absent).await,
        Code::InvalidArgument,
        "etcdserver: key not found",
    );
    let leased = || {
        op_put(PutRequest {
            lease: 99,
            ..put("c", "1")
        })
    };
    refused(
        client
            .txn(txn(vec![], vec![op_put(put("b", "1")), leased()], vec![]))
            .await,
        Code::NotFound,
        "etcdserver: requested lease not found",
    );
    assert_eq!(client.revision().await, 3);
    let not_taken = vec![
        leased(),
        op_put(keep_value("d")),
        op_get(RangeRequest {
            revision: 1_000,
            ..get("a")
        }),
        op_txn(txn(
            vec![],
            vec![op_get(RangeRequest {
                revision: 99,
                ..get("a")
            })],
            vec![],
        )),
    ];
    let request = txn(vec![], vec![op_put(put("ok", "1"))], not_taken.clone());
    assert!(client.txn(request).await.unwrap().succeeded);
    let nested = txn(vec![], vec![], not_taken);
    client
        .txn(txn(vec![], vec![op_txn(nested)], vec![]))
        .await
        .unwrap();
}

#[tokio::test]
async fn nested_compares_do_not_see_the_outer_writes() {
    let (_server, client) = start().await;
    let nested = txn(
        vec![absent("n")],
        vec![op_put(put("seen", "absent"))],
        vec![op_put(put("seen", "present"))],
    );
    let request = txn(
        vec![],
        vec![op_put(put("n", "1")), op_txn(nested.clone())],
        vec![],
    );
    client.txn(request).await.unwrap();
    assert_eq!(client.pairs(get("seen")).await[0].1, "absent");
    let deep = txn(
        vec![],
        vec![op_txn(txn(vec![absent("a")], vec![], vec![op_txn(nested)]))],
        vec![],
    );
    client.txn(deep).await.unwrap();
    assert_eq!(client.pairs(get("seen")).await[0].1, "present");
}

#[tokio::test]
async fn a_put_and_a_delete_of_one_key_can_share_a_revision_through_nesting() {
    let (_server, client) = start().await;
    let one = |op| op_txn(txn(vec![], vec![op], vec![]));
    let request = txn(
        vec![],
        vec![one(op_put(put("k", "1"))), one(op_del(del("k")))],
        vec![],
    );
    let revision = client.txn(request).await.unwrap().header.unwrap().revision;
    assert!(
        client.keys(get("k")).await.is_empty(),
        "the later change wins"
    );
    assert!(
        client
            .keys(RangeRequest {
                revision,
                ..get("k")
            })
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn read_only_txns_stay_out_of_the_log() {
    let (_server, client) = start().await;
    let logged = async |request: TxnRequest| {
        let before = client.status().await.raft_index;
        client.txn(request).await.unwrap();
        client.status().await.raft_index - before
    };
    let read = || op_get(get("a"));
    assert_eq!(
        logged(txn(vec![absent("a")], vec![read(), read()], vec![read()])).await,
        0
    );
    assert_eq!(
        logged(txn(vec![], vec![], vec![])).await,
        0,
        "no operations at all"
    );
    assert_eq!(
        logged(txn(vec![absent("a")], vec![], vec![])).await,
        0,
        "compares alone"
    );
    let nested = op_txn(txn(vec![], vec![read()], vec![]));
    assert!(
        logged(txn(vec![], vec![nested], vec![])).await > 0,
        "a nested one goes through the log"
    );
    let untaken = vec![op_put(put("never", "1"))];
    assert!(
        logged(txn(vec![], vec![read()], untaken)).await > 0,
        "so does an untaken put"
    );
    assert_eq!(client.revision().await, 2, "none of them makes a revision");
}
