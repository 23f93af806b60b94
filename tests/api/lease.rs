//! Leases over the wire: etcdctl, and the keep-alive stream.

use crate::support::{Server, etcdctl};
use quorate::internals::api::proto::etcdserverpb as pb;
use serde_json::json;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{
    Code,
    codegen::tokio_stream::{Stream, StreamExt as _},
    transport::{Channel, Endpoint},
};

type LeaseClient = pb::lease_client::LeaseClient<Channel>;

async fn leases(server: &Server) -> LeaseClient {
    let uri = format!("http://127.0.0.1:{}", server.client_port());
    let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    LeaseClient::new(channel)
}

/// The requests that a test sends one by one.
fn requests() -> (
    mpsc::Sender<pb::LeaseKeepAliveRequest>,
    impl Stream<Item = pb::LeaseKeepAliveRequest> + Send + 'static,
) {
    let (send, mut receive) = mpsc::channel(1_024);
    let stream = Box::pin(Sent(std::future::poll_fn(move |context| {
        receive.poll_recv(context)
    })));
    (send, stream)
}

/// A future that gives an item each time it is ready, as a stream.
struct Sent<F>(F);

impl<T, F: Future<Output = Option<T>> + Unpin> Stream for Sent<F> {
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        std::pin::Pin::new(&mut self.0).poll(context)
    }
}

fn grant(id: i64, ttl: i64) -> pb::LeaseGrantRequest {
    pb::LeaseGrantRequest { ttl, id }
}

#[tokio::test]
async fn leases_are_listed_by_their_remaining_time() {
    let server = Server::start().await;
    let mut client = leases(&server).await;
    for (id, ttl) in [(1, 300), (2, 100), (3, 200)] {
        client.lease_grant(grant(id, ttl)).await.unwrap();
    }
    let list = client.lease_leases(pb::LeaseLeasesRequest {}).await;
    let listed = list.unwrap().into_inner().leases;
    let ids: Vec<i64> = listed.iter().map(|lease| lease.id).collect();
    assert_eq!(ids, [2, 3, 1]);
}

#[tokio::test]
async fn etcdctl_grants_reads_renews_lists_and_revokes() {
    let server = Server::start().await;
    let granted = etcdctl(&server, &["lease", "grant", "100"], "").await.ok();
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(granted, format!("lease {id} granted with TTL(100s)\n"));
    let put = etcdctl(&server, &["put", "--lease", &id, "a", "1"], "").await;
    assert_eq!(put.ok(), "OK\n");
    let ttl = etcdctl(&server, &["lease", "timetolive", &id, "--keys"], "").await;
    let text = ttl.ok();
    let start = format!("lease {id} granted with TTL(100s), remaining(");
    assert!(text.starts_with(&start), "{text}");
    assert!(text.ends_with("attached keys([a])\n"), "{text}");
    let renewed = etcdctl(&server, &["lease", "keep-alive", "--once", &id], "").await;
    assert_eq!(
        renewed.ok(),
        format!("lease {id} keepalived with TTL(100)\n")
    );
    let list = etcdctl(&server, &["lease", "list"], "").await.ok();
    assert_eq!(list, format!("found 1 leases\n{id}\n"));
    let revoked = etcdctl(&server, &["lease", "revoke", &id], "").await.ok();
    assert_eq!(revoked, format!("lease {id} revoked\n"));
    assert_eq!(etcdctl(&server, &["get", "a"], "").await.ok(), "");
    let gone = etcdctl(&server, &["lease", "timetolive", &id], "")
        .await
        .ok();
    assert_eq!(gone, format!("lease {id} already expired\n"));
    let again = etcdctl(&server, &["lease", "revoke", &id], "").await;
    assert_ne!(again.code, 0, "{again:?}");
    assert!(
        again
            .stderr
            .contains("etcdserver: requested lease not found"),
        "{again:?}"
    );
}

#[tokio::test]
async fn refusals_have_etcds_code_and_text() {
    let server = Server::start().await;
    let mut client = leases(&server).await;
    client.lease_grant(grant(5, 10)).await.unwrap();
    let taken = client.lease_grant(grant(5, 10)).await.unwrap_err();
    let expected = (Code::FailedPrecondition, "etcdserver: lease already exists");
    assert_eq!((taken.code(), taken.message()), expected);
    let large = client.lease_grant(grant(0, 9_000_000_001)).await;
    let large = large.unwrap_err();
    let expected = (Code::OutOfRange, "etcdserver: too large lease TTL");
    assert_eq!((large.code(), large.message()), expected);
    let unknown = pb::LeaseRevokeRequest { id: 6 };
    let unknown = client.lease_revoke(unknown).await.unwrap_err();
    let expected = (Code::NotFound, "etcdserver: requested lease not found");
    assert_eq!((unknown.code(), unknown.message()), expected);
    let raised = client
        .lease_grant(grant(-7, -3))
        .await
        .unwrap()
        .into_inner();
    // One and a half election timeouts, which differ by server.
    assert_eq!(raised.id, -7);
    assert!(
        (1..=2).contains(&raised.ttl),
        "raised to the minimum: {raised:?}"
    );
    let unknown = pb::LeaseTimeToLiveRequest { id: 8, keys: true };
    let unknown = client
        .lease_time_to_live(unknown)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (unknown.ttl, unknown.granted_ttl, unknown.keys.len()),
        (-1, 0, 0)
    );
    assert!(unknown.header.is_some());
}

#[tokio::test]
async fn a_stream_answers_every_renewal_in_order_and_survives_unknown_ids() {
    let server = Server::start().await;
    let mut client = leases(&server).await;
    for id in 1..=9 {
        client.lease_grant(grant(id, 60 + id)).await.unwrap();
    }
    let (send, stream) = requests();
    let ids: Vec<i64> = (0..1_000).map(|at| at % 11).collect();
    let sending = {
        let ids = ids.clone();
        tokio::spawn(async move {
            for id in ids {
                send.send(pb::LeaseKeepAliveRequest { id }).await.unwrap();
            }
        })
    };
    let mut answers = client.lease_keep_alive(stream).await.unwrap().into_inner();
    for id in ids {
        let answer = answers.next().await.unwrap().unwrap();
        let ttl = if (1..=9).contains(&id) { 60 + id } else { 0 };
        assert_eq!((answer.id, answer.ttl), (id, ttl));
        assert!(answer.header.is_some());
    }
    sending.await.unwrap();
    assert!(answers.next().await.is_none(), "half-closed and done");
}

#[tokio::test]
async fn a_client_that_floods_and_never_reads_harms_nobody() {
    let server = Server::start().await;
    let mut client = leases(&server).await;
    client.lease_grant(grant(1, 60)).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..20 {
        let (send, stream) = requests();
        let mut flooding = leases(&server).await;
        let flood = tokio::spawn(async move {
            for _ in 0..100_000 {
                if send
                    .send(pb::LeaseKeepAliveRequest { id: 1 })
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        let answers = flooding.lease_keep_alive(stream).await.unwrap();
        silent.push((answers, flood));
    }
    for _ in 0..50 {
        let (send, stream) = requests();
        send.send(pb::LeaseKeepAliveRequest { id: 1 })
            .await
            .unwrap();
        let mut answers = client.lease_keep_alive(stream).await.unwrap().into_inner();
        let answer = tokio::time::timeout(Duration::from_secs(10), answers.next()).await;
        assert_eq!(answer.unwrap().unwrap().unwrap().ttl, 60);
    }
    for (_, flood) in silent {
        flood.abort();
    }
}

#[tokio::test]
async fn leases_survive_a_kill_with_their_keys() {
    let mut server = Server::start().await;
    let granted = etcdctl(&server, &["lease", "grant", "500", "-w", "json"], "").await;
    let id = granted.json()["ID"].as_i64().unwrap();
    let hex = format!("{id:x}");
    etcdctl(&server, &["put", "--lease", &hex, "a", "1"], "")
        .await
        .ok();
    server.kill().await;
    server.restart().await;
    let time = etcdctl(
        &server,
        &["lease", "timetolive", &hex, "--keys", "-w", "json"],
        "",
    )
    .await;
    let time = time.json();
    assert_eq!(time["granted-ttl"], json!(500), "{time}");
    assert_eq!(time["keys"], json!(["YQ=="]), "{time}");
    etcdctl(&server, &["lease", "revoke", &hex], "").await.ok();
    assert_eq!(etcdctl(&server, &["get", "a"], "").await.ok(), "");
}
