//! Put: revisions, versions, previous values, and what a key may be.

use crate::support::{Server, del, get, put};
use quorate::internals::api::proto::{etcdserverpb::PutRequest, mvccpb::KeyValue};
use tonic::Code;

#[tokio::test]
async fn a_fresh_store_is_at_revision_1_and_the_first_put_makes_2() {
    let server = Server::start().await;
    let client = server.client().await;
    assert_eq!(client.revision().await, 1, "nothing was written yet");
    assert_eq!(client.must_put("a", "1").await, 2);
    let answer = client.range(get("a")).await.unwrap();
    let header = answer.header.unwrap();
    assert_eq!(header.revision, 2);
    assert!(
        header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0,
        "{header:?}"
    );
    let expected = KeyValue {
        key: "a".into(),
        create_revision: 2,
        mod_revision: 2,
        version: 1,
        value: "1".into(),
        lease: 0,
    };
    assert_eq!(
        (answer.kvs, answer.count, answer.more),
        (vec![expected], 1, false)
    );
}

#[tokio::test]
async fn versions_count_the_puts_of_one_life_of_a_key() {
    let server = Server::start().await;
    let client = server.client().await;
    let created = client.must_put("k", "same").await;
    assert_eq!(
        client.must_put("k", "same").await,
        created + 1,
        "an identical value is a write"
    );
    let kv = client.range(get("k")).await.unwrap().kvs.remove(0);
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version),
        (created, created + 1, 2)
    );

    client.delete(del("k")).await.unwrap();
    let reborn = client.must_put("k", "").await;
    let kv = client.range(get("k")).await.unwrap().kvs.remove(0);
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version),
        (reborn, reborn, 1)
    );
    assert!(kv.value.is_empty(), "a value may be empty");
}

#[tokio::test]
async fn prev_kv_is_the_record_before_the_put() {
    let server = Server::start().await;
    let client = server.client().await;
    let with_prev = |value: &'static str| PutRequest {
        prev_kv: true,
        ..put("k", value)
    };
    assert_eq!(
        client.put(with_prev("1")).await.unwrap().prev_kv,
        None,
        "no error without one"
    );
    let previous = client.put(with_prev("2")).await.unwrap().prev_kv.unwrap();
    assert_eq!(
        (previous.value.as_ref(), previous.version),
        (b"1".as_slice(), 1)
    );
    assert_eq!(
        client.put(put("k", "3")).await.unwrap().prev_kv,
        None,
        "only when asked"
    );
    client.delete(del("k")).await.unwrap();
    assert_eq!(
        client.put(with_prev("4")).await.unwrap().prev_kv,
        None,
        "the key was deleted"
    );
}

#[tokio::test]
async fn any_bytes_are_a_key_and_sort_unsigned() {
    let server = Server::start().await;
    let client = server.client().await;
    let long = vec![b'x'; 100_000];
    let keys: [&[u8]; 6] = [b"\0", b"\0\0", b"a\0b", &long, b"\x80", b"\xff\xff"];
    for key in keys.iter().rev() {
        client.must_put(key.to_vec(), "v").await;
    }
    let all = client
        .range(crate::support::get_range("\0", "\0"))
        .await
        .unwrap();
    let found: Vec<_> = all.kvs.iter().map(|kv| kv.key.as_ref()).collect();
    assert_eq!(found, keys);
}

#[tokio::test]
async fn ignore_value_and_ignore_lease_keep_what_is_there() {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", "kept").await;
    for (ignore_value, ignore_lease) in [(true, false), (true, true)] {
        client
            .put(PutRequest {
                ignore_value,
                ignore_lease,
                ..put("k", "")
            })
            .await
            .unwrap();
    }
    client
        .put(PutRequest {
            ignore_lease: true,
            ..put("other", "")
        })
        .await
        .unwrap_err();
    let kv = client.range(get("k")).await.unwrap().kvs.remove(0);
    assert_eq!(
        (kv.value.as_ref(), kv.version, kv.lease),
        (b"kept".as_slice(), 3, 0)
    );
    client
        .put(PutRequest {
            ignore_lease: true,
            ..put("k", "new")
        })
        .await
        .unwrap();
    assert_eq!(
        client.pairs(get("k")).await,
        [("k".to_owned(), "new".to_owned())]
    );
}

#[tokio::test]
async fn a_refused_put_writes_nothing() {
    let server = Server::start().await;
    let client = server.client().await;
    let before = client.must_put("k", "1").await;
    let refused = client
        .put(PutRequest {
            lease: 77,
            ..put("k", "2")
        })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    assert_eq!(client.revision().await, before);
    assert_eq!(
        client.pairs(get("k")).await,
        [("k".to_owned(), "1".to_owned())]
    );
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let mut server = Server::start().await;
    let client = server.client().await;
    client.must_put("kept", "1").await;
    client.delete(del("kept")).await.unwrap();
    let last = client.must_put("kept", "2").await;
    let status = client.status().await;
    server.kill().await;
    server.restart().await;
    let client = server.client().await;
    let kv = client.range(get("kept")).await.unwrap().kvs.remove(0);
    assert_eq!(
        (kv.value.as_ref(), kv.mod_revision, kv.version),
        (b"2".as_slice(), last, 1)
    );
    assert_eq!(client.revision().await, last);
    let again = client.status().await;
    assert_eq!(
        status
            .header
            .map(|header| (header.cluster_id, header.member_id)),
        again
            .header
            .map(|header| (header.cluster_id, header.member_id)),
        "a member keeps its ids"
    );
}
