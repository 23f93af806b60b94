//! The quota: what counts against it, and the way out of NOSPACE.

use crate::support::{Client, Kind, Server, Setup, only_quorate_has, put, refused};
use quorate::internals::api::proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, alarm_request,
};
use tonic::Code;

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const QUOTA_BYTES: usize = 16 * 1024 * 1024;

fn server(kind: Kind) -> Server {
    let quota = QUOTA_BYTES.to_string();
    let setup = match kind {
        Kind::Quorate => Setup {
            args: Vec::new(),
            env: vec![("QUORATE_LIMITS_QUOTA_BYTES".to_owned(), quota)],
        },
        Kind::Etcd => Setup {
            // It knows the size as of its last commit: with one for each write no value slips in after the quota is reached.
            args: vec![
                "--quota-backend-bytes".to_owned(),
                quota,
                "--backend-batch-limit=1".to_owned(),
            ],
            env: Vec::new(),
        },
    };
    Server::new(kind, setup)
}

/// Overwrites one key until the quota is reached; gives the number of values that were taken.
async fn fill(client: &Client, value_bytes: usize) -> usize {
    for taken in 0..4 * QUOTA_BYTES / value_bytes {
        let outcome = client.put(put("k", vec![b'v'; value_bytes])).await;
        if outcome.is_err() {
            refused(outcome, Code::ResourceExhausted, NO_SPACE);
            return taken;
        }
    }
    panic!("there is no quota");
}

/// Gives up all history, and waits until its records are removed.
async fn compact(client: &Client) {
    let request = CompactionRequest {
        revision: client.revision().await,
        physical: true,
    };
    client.compact_with(request).await.unwrap();
}

async fn disarm(client: &Client) {
    let mut maintenance = client.maintenance.clone();
    let request = |action: alarm_request::AlarmAction, member_id| AlarmRequest {
        action: action.into(),
        member_id,
        alarm: AlarmType::Nospace.into(),
    };
    let get = request(alarm_request::AlarmAction::Get, 0);
    let raised = maintenance.alarm(get).await.unwrap().into_inner().alarms;
    assert_eq!(raised.len(), 1, "the alarm was raised");
    let clear = request(alarm_request::AlarmAction::Deactivate, raised[0].member_id);
    let cleared = maintenance.alarm(clear).await.unwrap().into_inner().alarms;
    assert_eq!(cleared, raised);
}

#[tokio::test]
async fn after_a_compaction_puts_are_taken_again() {
    if only_quorate_has("room without a defragmentation") {
        return;
    }
    let mut server = server(Kind::Quorate);
    server.restart().await;
    let client = server.client().await;
    let first = fill(&client, 64 * 1024).await;
    let refusal = client.put(put("k", "small")).await;
    refused(refusal, Code::ResourceExhausted, NO_SPACE);

    compact(&client).await;
    disarm(&client).await;
    let second = fill(&client, 64 * 1024).await;
    assert!(second * 10 > first * 9, "{first} values, then {second}");

    compact(&client).await;
    disarm(&client).await;
    server.kill().await;
    server.restart().await;
    let client = server.client().await;
    client.must_put("k", vec![b'v'; 64 * 1024]).await;
}

#[tokio::test]
async fn no_fewer_values_are_taken_than_by_etcd() {
    for value_bytes in [1_024, 64 * 1024] {
        let mut taken = Vec::new();
        for kind in [Kind::Quorate, Kind::Etcd] {
            let mut server = server(kind);
            server.restart().await;
            let client = server.client().await;
            taken.push(fill(&client, value_bytes).await);
        }
        assert!(taken[0] >= taken[1], "{value_bytes} bytes: {taken:?}");
    }
}
