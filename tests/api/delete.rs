//! Deleting keys: what it removes, counts and returns.

use crate::support::{Server, del, del_range, get, get_range};
use quorate::internals::api::proto::etcdserverpb::DeleteRangeRequest;

#[tokio::test]
async fn a_range_delete_is_one_revision_and_counts_its_keys() {
    let server = Server::start().await;
    let client = server.client().await;
    for key in ["c", "a", "b", "d"] {
        client.must_put(key, key).await;
    }
    let before = client.revision().await;
    let answer = client
        .delete(DeleteRangeRequest {
            prev_kv: true,
            ..del_range("a", "d")
        })
        .await
        .unwrap();
    assert_eq!(
        (answer.deleted, answer.header.unwrap().revision),
        (3, before + 1)
    );
    let previous: Vec<_> = answer.prev_kvs.iter().map(|kv| kv.key.as_ref()).collect();
    assert_eq!(previous, [b"a", b"b", b"c"], "in ascending order of keys");
    assert_eq!(client.keys(get_range("\0", "\0")).await, ["d"]);
}

#[tokio::test]
async fn deleting_nothing_makes_no_revision() {
    let server = Server::start().await;
    let client = server.client().await;
    let before = client.must_put("k", "v").await;
    for request in [
        del("absent"),
        del_range("l", "z"),
        del_range("z", "a"),
        del_range("k", "k"),
    ] {
        let answer = client.delete(request).await.unwrap();
        assert_eq!(
            (answer.deleted, answer.header.unwrap().revision),
            (0, before)
        );
    }
    assert_eq!(client.revision().await, before);
}

#[tokio::test]
async fn from_key_and_all_keys() {
    let server = Server::start().await;
    let client = server.client().await;
    for key in ["a", "b", "c"] {
        client.must_put(key, key).await;
    }
    assert_eq!(
        client.delete(del_range("b", "\0")).await.unwrap().deleted,
        2
    );
    assert!(
        client
            .delete(del_range("a", "\0"))
            .await
            .unwrap()
            .prev_kvs
            .is_empty(),
        "not asked"
    );
    assert_eq!(
        client.delete(del_range("\0", "\0")).await.unwrap().deleted,
        0
    );
}

#[tokio::test]
async fn history_keeps_what_was_deleted() {
    let server = Server::start().await;
    let client = server.client().await;
    let written = client.must_put("k", "v").await;
    client.delete(del("k")).await.unwrap();
    let mut request = get("k");
    assert!(client.keys(request.clone()).await.is_empty());
    request.revision = written;
    assert_eq!(client.keys(request).await, ["k"]);
}
