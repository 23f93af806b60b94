//! RangeStream: the same answer as Range, in chunks.

use crate::support::{Client, Difference, Server, get, get_range, refused};
use quorate::internals::api::proto::etcdserverpb::{RangeRequest, RangeResponse};
use tonic::Code;

/// 200 keys, enough for chunks of 10, 20, 40, 80 and the rest.
async fn many() -> Option<(Server, Client)> {
    let server = Server::start().await;
    if server.has(Difference::RangeStream) {
        return None;
    }
    let client = server.client().await;
    for number in 0..200 {
        client
            .must_put(format!("k{number:03}"), format!("v{number}"))
            .await;
    }
    Some((server, client))
}

/// The chunks joined into one response, after a check that only the last one has more than keys.
fn joined(chunks: Vec<RangeResponse>) -> RangeResponse {
    let last = chunks.len() - 1;
    let mut whole = RangeResponse::default();
    for (number, mut chunk) in chunks.into_iter().enumerate() {
        whole.kvs.append(&mut chunk.kvs);
        if number < last {
            assert_eq!(
                chunk,
                RangeResponse::default(),
                "only the last chunk has more than keys"
            );
        } else {
            (whole.header, whole.count, whole.more) = (chunk.header, chunk.count, chunk.more);
        }
    }
    whole
}

#[tokio::test]
async fn chunks_add_up_to_the_range() {
    let Some((_server, client)) = many().await else {
        return;
    };
    let all = get_range("k", "l");
    let requests = [
        all.clone(),
        RangeRequest {
            limit: 25,
            ..all.clone()
        },
        RangeRequest {
            limit: 200,
            ..all.clone()
        },
        RangeRequest {
            keys_only: true,
            ..all.clone()
        },
        RangeRequest {
            revision: 100,
            ..all.clone()
        },
        RangeRequest {
            serializable: true,
            ..all.clone()
        },
        RangeRequest {
            count_only: true,
            ..all.clone()
        },
        RangeRequest {
            limit: -5,
            ..all.clone()
        },
        RangeRequest {
            sort_order: 1,
            ..all.clone()
        },
        get("k007"),
        get("absent"),
        get_range("z", "a"),
    ];
    for request in requests {
        let chunks = client.range_stream(request.clone()).await.unwrap();
        assert_eq!(
            joined(chunks),
            client.range(request.clone()).await.unwrap(),
            "{request:?}"
        );
    }
}

#[tokio::test]
async fn the_first_chunk_has_at_most_10_keys() {
    let Some((_server, client)) = many().await else {
        return;
    };
    let chunks = client.range_stream(get_range("k", "l")).await.unwrap();
    assert!(chunks.len() > 1, "200 keys are more than one chunk");
    assert!(chunks[0].kvs.len() <= 10, "{} keys", chunks[0].kvs.len());
    let empty = client.range_stream(get("absent")).await.unwrap();
    assert_eq!(empty.len(), 1, "an empty result is one message");
    assert!(empty[0].header.is_some(), "{empty:?}");
    let request = RangeRequest {
        count_only: true,
        ..get_range("k", "l")
    };
    assert_eq!(
        client.range_stream(request).await.unwrap().len(),
        1,
        "a count is one message"
    );
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one refusal after the other")]
async fn refusals() {
    let Some((_server, client)) = many().await else {
        return;
    };
    let all = get_range("k", "l");
    let sorts = [
        RangeRequest {
            sort_order: 2,
            ..all.clone()
        },
        RangeRequest {
            sort_order: 1,
            sort_target: 4,
            ..all.clone()
        },
        // The order is named first.
        RangeRequest {
            sort_order: 2,
            min_mod_revision: 2,
            ..all.clone()
        },
    ];
    for request in sorts {
        let text = "RangeStream does not support custom sort orders";
        refused(
            client.range_stream(request).await,
            Code::Unimplemented,
            text,
        );
    }
    let filters = [
        RangeRequest {
            min_mod_revision: 2,
            ..all.clone()
        },
        RangeRequest {
            max_mod_revision: 2,
            ..all.clone()
        },
        RangeRequest {
            min_create_revision: 2,
            ..all.clone()
        },
        RangeRequest {
            max_create_revision: 2,
            ..all.clone()
        },
        RangeRequest {
            sort_target: 4,
            max_create_revision: 2,
            ..all.clone()
        },
    ];
    for request in filters {
        let text = "RangeStream does not support revision filters";
        refused(
            client.range_stream(request).await,
            Code::Unimplemented,
            text,
        );
    }
    let text = "etcdserver: key is not provided";
    refused(
        client.range_stream(get("")).await,
        Code::InvalidArgument,
        text,
    );
    let text = "etcdserver: mvcc: required revision is a future revision";
    let request = RangeRequest {
        revision: 900,
        ..all.clone()
    };
    refused(client.range_stream(request).await, Code::OutOfRange, text);
    client.compact(50).await.unwrap();
    let text = "etcdserver: mvcc: required revision has been compacted";
    let request = RangeRequest {
        revision: 49,
        ..all
    };
    refused(client.range_stream(request).await, Code::OutOfRange, text);
}

#[tokio::test]
async fn without_an_order_any_target_is_streamed() {
    let server = Server::start().await;
    if server.has(Difference::RangeStream) {
        return;
    }
    let client = server.client().await;
    // The values descend while the keys ascend.
    for number in 0..30 {
        let value = format!("v{:02}", 99 - number);
        client.must_put(format!("k{number:02}"), value).await;
    }
    for sort_target in 0..5 {
        let by_value = sort_target == 4 && server.has(Difference::StreamByValue);
        for limit in [5, 10] {
            let few = RangeRequest {
                sort_target,
                limit,
                ..get_range("k", "l")
            };
            let chunks = client.range_stream(few.clone()).await.unwrap();
            let expected = client.range(few).await.unwrap();
            let mut streamed = joined(chunks);
            if by_value {
                streamed.count = expected.count;
            }
            assert_eq!(streamed, expected, "one chunk: as Range, {sort_target}");
        }
        let all = RangeRequest {
            sort_target,
            ..get_range("k", "l")
        };
        if by_value {
            continue;
        }
        let chunks = client.range_stream(all).await.unwrap();
        assert!(chunks.len() > 1, "several chunks");
        let mut keys: Vec<_> = joined(chunks).kvs.into_iter().map(|kv| kv.key).collect();
        keys.sort_unstable();
        let expected: Vec<_> = (0..30).map(|number| format!("k{number:02}")).collect();
        assert_eq!(keys, expected, "each key once, {sort_target}");
    }
}
