//! Range: which keys, at which revision, how many, and which fields.

use crate::support::{Server, del, get, get_range, refused};
use quorate::internals::api::proto::etcdserverpb::RangeRequest;
use tonic::Code;

/// Keys `a` to `e`, written at revisions 2 to 6.
async fn keys_a_to_e() -> (Server, crate::support::Client) {
    let server = Server::start().await;
    let client = server.client().await;
    for key in ["a", "b", "c", "d", "e"] {
        client.must_put(key, format!("value of {key}")).await;
    }
    (server, client)
}

#[tokio::test]
async fn range_ends() {
    let (_server, client) = keys_a_to_e().await;
    client.must_put("\0", "zero").await;
    client.must_put("\0x", "above").await;
    let cases: [(&str, &str, &[&str]); 8] = [
        ("b", "", &["b"]),
        ("b", "d", &["b", "c"]),
        ("d", "\0", &["d", "e"]),
        ("\0", "\0", &["\0", "\0x", "a", "b", "c", "d", "e"]),
        ("\0", "\0\0", &["\0"]),
        ("d", "b", &[]),
        ("b", "b", &[]),
        ("bb", "cc", &["c"]),
    ];
    for (key, end, expected) in cases {
        let answer = client.range(get_range(key, end)).await.unwrap();
        let keys: Vec<_> = answer.kvs.iter().map(|kv| kv.key.clone()).collect();
        assert_eq!(keys, expected, "[{key:?}, {end:?})");
        assert_eq!(
            answer.count,
            i64::try_from(expected.len()).unwrap(),
            "[{key:?}, {end:?})"
        );
    }
}

#[tokio::test]
async fn limit_cuts_and_count_does_not() {
    let (_server, client) = keys_a_to_e().await;
    for (limit, kvs, more) in [
        (0, 5, false),
        (-1, 5, false),
        (2, 2, true),
        (5, 5, false),
        (6, 5, false),
    ] {
        let answer = client
            .range(RangeRequest {
                limit,
                ..get_range("a", "z")
            })
            .await
            .unwrap();
        assert_eq!(
            (answer.kvs.len(), answer.more, answer.count),
            (kvs, more, 5),
            "limit {limit}"
        );
    }
}

#[tokio::test]
async fn count_only_answers_the_count_alone() {
    let (_server, client) = keys_a_to_e().await;
    let request = RangeRequest {
        count_only: true,
        limit: 2,
        ..get_range("b", "\0")
    };
    let answer = client.range(request).await.unwrap();
    assert_eq!((answer.kvs.len(), answer.more, answer.count), (0, false, 4));
}

#[tokio::test]
async fn keys_only_keeps_all_but_the_value() {
    let (_server, client) = keys_a_to_e().await;
    client.must_put("b", "again").await;
    let answer = client
        .range(RangeRequest {
            keys_only: true,
            ..get("b")
        })
        .await
        .unwrap();
    let kv = &answer.kvs[0];
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (3, 7, 2));
    assert!(kv.value.is_empty(), "{kv:?}");
}

#[tokio::test]
async fn a_range_at_a_revision_sees_that_moment() {
    let (_server, client) = keys_a_to_e().await;
    client.delete(del("a")).await.unwrap();
    client.must_put("b", "later").await;
    let at = |revision| RangeRequest {
        revision,
        ..get_range("a", "c")
    };
    assert!(
        client.pairs(at(1)).await.is_empty(),
        "revision 1 is readable and empty"
    );
    assert_eq!(client.keys(at(2)).await, ["a"]);
    assert_eq!(client.keys(at(6)).await, ["a", "b"]);
    assert_eq!(client.keys(at(7)).await, ["b"]);
    let answer = client.range(at(3)).await.unwrap();
    assert_eq!(answer.count, 2, "the count is that revision's");
    assert_eq!(
        answer.header.unwrap().revision,
        8,
        "the header has the current revision"
    );
    assert_eq!(
        client.pairs(at(-5)).await,
        [("b".into(), "later".into())],
        "negative means latest"
    );
    refused(
        client.range(at(9)).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
}

#[tokio::test]
async fn revision_filters_are_inclusive_and_leave_the_count_alone() {
    let (_server, client) = keys_a_to_e().await;
    client.must_put("a", "7").await;
    let all = get_range("a", "z");
    let cases = [
        (
            RangeRequest {
                min_mod_revision: 6,
                ..all.clone()
            },
            vec!["a", "e"],
        ),
        (
            RangeRequest {
                max_mod_revision: 4,
                ..all.clone()
            },
            vec!["b", "c"],
        ),
        (
            RangeRequest {
                min_create_revision: 5,
                ..all.clone()
            },
            vec!["d", "e"],
        ),
        (
            RangeRequest {
                max_create_revision: 3,
                ..all.clone()
            },
            vec!["a", "b"],
        ),
        (
            RangeRequest {
                min_mod_revision: 4,
                max_create_revision: 4,
                ..all.clone()
            },
            vec!["a", "c"],
        ),
    ];
    for (request, expected) in cases {
        let answer = client.range(request.clone()).await.unwrap();
        let keys: Vec<_> = answer.kvs.iter().map(|kv| kv.key.clone()).collect();
        assert_eq!(
            (keys, answer.count),
            (expected.iter().map(|&key| key.into()).collect(), 5),
            "{request:?}"
        );
    }
    let two_of_three = RangeRequest {
        min_mod_revision: 5,
        limit: 2,
        ..all.clone()
    };
    let answer = client.range(two_of_three).await.unwrap();
    assert_eq!((answer.kvs.len(), answer.more, answer.count), (2, true, 5));
    let exact = RangeRequest {
        min_mod_revision: 5,
        limit: 3,
        ..all
    };
    assert!(
        !client.range(exact).await.unwrap().more,
        "what the filter dropped was not cut by the limit"
    );
}

#[tokio::test]
async fn an_absent_key_is_no_error_and_serializable_reads_too() {
    let (_server, client) = keys_a_to_e().await;
    for serializable in [false, true] {
        let answer = client
            .range(RangeRequest {
                serializable,
                ..get("nowhere")
            })
            .await
            .unwrap();
        assert_eq!((answer.kvs.len(), answer.count, answer.more), (0, 0, false));
        let answer = client
            .range(RangeRequest {
                serializable,
                ..get("a")
            })
            .await
            .unwrap();
        assert_eq!(answer.count, 1);
    }
}
