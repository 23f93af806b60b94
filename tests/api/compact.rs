//! Compact: which revisions it accepts, and what can still be read afterwards.

use crate::support::{
    Outcome, Server, Setup, del, get, get_range, only_quorate_has, op_get, refused, txn,
};
use quorate::internals::api::proto::etcdserverpb::{CompactionRequest, RangeRequest};
use std::fmt::Debug;
use tonic::Code;

#[track_caller]
fn compacted<T: Debug>(outcome: Outcome<T>) {
    refused(
        outcome,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision has been compacted",
    );
}

#[track_caller]
fn future<T: Debug>(outcome: Outcome<T>) {
    refused(
        outcome,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
}

#[tokio::test]
async fn a_fresh_store_can_be_compacted_at_0_then_1_and_not_at_minus_1() {
    let server = Server::start().await;
    let client = server.client().await;
    compacted(client.compact(-1).await);
    future(client.compact(2).await);
    client.compact(0).await.unwrap();
    compacted(client.compact(0).await);
    let answer = client.compact(1).await.unwrap();
    assert_eq!(
        answer.header.unwrap().revision,
        1,
        "compaction makes no revision"
    );
    compacted(client.compact(1).await);
}

#[tokio::test]
async fn reads_work_from_the_compacted_revision_on() {
    let mut server = Server::start().await;
    let client = server.client().await;
    client.must_put("a", "2").await;
    client.must_put("b", "3").await;
    client.must_put("a", "4").await;
    client.delete(del("b")).await.unwrap();
    client.must_put("a", "6").await;
    let answer = client.compact(4).await.unwrap();
    assert_eq!(answer.header.unwrap().revision, 6);

    for restarted in [false, true] {
        if restarted {
            server.kill().await;
            server.restart().await;
        }
        let client = server.client().await;
        let at = |revision| RangeRequest {
            revision,
            ..get_range("a", "z")
        };
        compacted(client.range(at(3)).await);
        compacted(client.range(at(1)).await);
        let expected = [
            ("a".to_owned(), "4".to_owned()),
            ("b".to_owned(), "3".to_owned()),
        ];
        assert_eq!(
            client.pairs(at(4)).await,
            expected,
            "restarted: {restarted}"
        );
        assert_eq!(client.keys(at(5)).await, ["a"]);
        compacted(client.compact(4).await);
        compacted(client.compact(3).await);
        future(client.compact(7).await);
        assert_eq!(client.revision().await, 6);
    }
}

#[tokio::test]
async fn compacting_all_of_a_deleted_key_leaves_the_revision_where_it_is() {
    let mut server = Server::start().await;
    let client = server.client().await;
    client.must_put("a", "2").await;
    client.delete(del("a")).await.unwrap();
    client
        .compact_with(CompactionRequest {
            revision: 3,
            physical: true,
        })
        .await
        .unwrap();
    server.kill().await;
    server.restart().await;
    let client = server.client().await;
    assert_eq!(
        client.revision().await,
        3,
        "also when the newest revision was a tombstone"
    );
    let kv_count = client
        .range(RangeRequest {
            revision: 3,
            ..get("a")
        })
        .await
        .unwrap()
        .count;
    assert_eq!(kv_count, 0);
    assert_eq!(client.must_put("a", "4").await, 4);
    let kv = client.range(get("a")).await.unwrap().kvs.remove(0);
    assert_eq!((kv.create_revision, kv.version), (4, 1), "a new life");
}

#[tokio::test]
async fn physical_compaction_answers_once_the_data_is_gone() {
    let server = Server::start().await;
    let client = server.client().await;
    for number in 0..300 {
        client.must_put("k", number.to_string()).await;
    }
    client
        .compact_with(CompactionRequest {
            revision: 300,
            physical: true,
        })
        .await
        .unwrap();
    assert_eq!(
        client
            .pairs(RangeRequest {
                revision: 300,
                ..get("k")
            })
            .await[0]
            .1,
        "298"
    );
    compacted(
        client
            .range(RangeRequest {
                revision: 299,
                ..get("k")
            })
            .await,
    );
}

#[tokio::test]
async fn a_txn_judges_negative_revisions_literally() {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("a", "2").await;
    let at = |revision| {
        txn(
            vec![],
            vec![op_get(RangeRequest {
                revision,
                ..get("a")
            })],
            vec![],
        )
    };
    // etcd: C is -1 before the first compaction, and a plain range takes any negative one as the latest.
    client.txn(at(-1)).await.unwrap();
    compacted(client.txn(at(-2)).await);
    client.compact(2).await.unwrap();
    compacted(client.txn(at(-1)).await);
    compacted(client.txn(at(1)).await);
    client.txn(at(0)).await.unwrap();
    client.txn(at(2)).await.unwrap();
    future(client.txn(at(3)).await);
}

/// Reads at `revision` until that is refused as compacted; a minute is far more than it takes.
async fn until_compacted(server: &Server, revision: i64) {
    let client = server.client().await;
    let read = RangeRequest {
        revision,
        ..get("a")
    };
    let refused = async {
        while client.range(read.clone()).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_mins(1), refused).await;
    assert!(waited.is_ok(), "revision {revision} is still readable");
    compacted(client.range(read).await);
}

#[tokio::test]
async fn auto_compaction_by_time_gives_up_what_is_older_and_no_more() {
    if only_quorate_has("these variables") {
        return;
    }
    let variable = |key: &str, value: &str| {
        let name = format!("QUORATE_AUTO_COMPACTION_{key}");
        (name, value.to_owned())
    };
    let server = Server::start_with(Setup {
        env: vec![variable("MODE", "periodic"), variable("RETENTION", "1s")],
        ..Setup::default()
    })
    .await;
    let client = server.client().await;
    for n in 0..10 {
        client.must_put("a", n.to_string()).await;
    }
    until_compacted(&server, 10).await;
    let newest = client.range(get("a")).await.unwrap();
    assert_eq!(newest.kvs[0].value.as_ref(), b"9");
    let at_newest = RangeRequest {
        revision: 11,
        ..get("a")
    };
    assert_eq!(client.range(at_newest).await.unwrap().kvs, newest.kvs);
}
