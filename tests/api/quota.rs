//! The quota: what counts against it, and how NOSPACE ends.

use crate::support::{
    Client, Kind, Server, Setup, del, get_range, only_quorate_has, op_del, op_put, put, refused,
    txn,
};
use quorate::internals::api::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, HashRequest, LeaseGrantRequest,
    LeaseRevokeRequest, PutRequest, StatusRequest, alarm_request::AlarmAction,
    lease_client::LeaseClient,
};
use std::time::Duration;
use tokio::time::sleep;
use tonic::{Code, transport::Endpoint};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const QUOTA_BYTES: usize = 16 * 1024 * 1024;

/// etcd knows its size as of its last commit: on a loaded machine this much may be taken meanwhile.
const ETCD_LAGS_BYTES: usize = 64 * 1024 * 1024;

/// A server with the quota; of Quorate, with these failpoints.
fn server(kind: Kind, failpoints: &str) -> Server {
    let mut setup = with_quota(kind, QUOTA_BYTES);
    match kind {
        Kind::Quorate => {
            let failpoints = ("FAILPOINTS".to_owned(), failpoints.to_owned());
            setup.env.push(failpoints);
        }
        // etcd knows the size as of its last commit: with a commit for each write it takes no value after the quota is reached.
        Kind::Etcd => setup.args.push("--backend-batch-limit=1".to_owned()),
    }
    Server::new(kind, setup)
}

/// A quota, and the defaults besides.
fn with_quota(kind: Kind, bytes: usize) -> Setup {
    let bytes = bytes.to_string();
    match kind {
        Kind::Quorate => Setup {
            env: vec![("QUORATE_LIMITS_QUOTA_BYTES".to_owned(), bytes)],
            ..Setup::default()
        },
        Kind::Etcd => Setup {
            args: vec!["--quota-backend-bytes".to_owned(), bytes],
            ..Setup::default()
        },
    }
}

/// Overwrites one key until the quota is reached; returns the number of values that were written.
async fn fill(client: &Client, kind: Kind, value_bytes: usize) -> usize {
    let most = match kind {
        // What is applied counts at once, so one value at most goes beyond the quota.
        Kind::Quorate => QUOTA_BYTES / value_bytes + 1,
        Kind::Etcd => (QUOTA_BYTES + ETCD_LAGS_BYTES) / value_bytes,
    };
    for taken in 0..=most {
        let outcome = client.put(put("k", vec![b'v'; value_bytes])).await;
        if outcome.is_err() {
            refused(outcome, Code::ResourceExhausted, NO_SPACE);
            return taken;
        }
    }
    panic!("there is no quota");
}

/// Compacts all history, and waits until its records are removed and their pages can be used again.
async fn compact(client: &Client) {
    let request = CompactionRequest {
        revision: client.revision().await,
        physical: true,
    };
    client.compact_with(request).await.unwrap();
    let mut maintenance = client.maintenance.clone();
    loop {
        let status = maintenance.status(StatusRequest {}).await.unwrap();
        if status.into_inner().db_size_in_use < i64::try_from(QUOTA_BYTES / 20).unwrap() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Sends a request about NOSPACE; returns the alarms in the answer.
async fn alarm(client: &Client, action: AlarmAction, member_id: u64) -> Vec<AlarmMember> {
    let request = AlarmRequest {
        action: action.into(),
        member_id,
        alarm: AlarmType::Nospace.into(),
    };
    let mut maintenance = client.maintenance.clone();
    let answer = maintenance.alarm(request).await;
    answer.expect("an answer").into_inner().alarms
}

async fn raised(client: &Client) -> Vec<AlarmMember> {
    alarm(client, AlarmAction::Get, 0).await
}

/// Waits until no alarm is raised.
async fn no_alarm(client: &Client) {
    while !raised(client).await.is_empty() {
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn after_a_compaction_puts_are_taken_again() {
    if only_quorate_has("room without a defragmentation and an operator") {
        return;
    }
    let mut server = server(Kind::Quorate, "");
    server.restart().await;
    let client = server.client().await;
    fill(&client, Kind::Quorate, 64 * 1024).await;
    assert_eq!(raised(&client).await.len(), 1, "the alarm was raised");
    let refusal = client.put(put("k", "small")).await;
    refused(refusal, Code::ResourceExhausted, NO_SPACE);

    compact(&client).await;
    no_alarm(&client).await;
    let taken = fill(&client, Kind::Quorate, 64 * 1024).await;
    assert!(taken * 64 * 1024 * 10 > QUOTA_BYTES * 8, "{taken} values");

    compact(&client).await;
    no_alarm(&client).await;
    server.kill().await;
    server.restart().await;
    let client = server.client().await;
    client.must_put("k", vec![b'v'; 64 * 1024]).await;
}

/// An alarm that an earlier life raised ends, too: the operator has given more room.
#[tokio::test]
async fn a_larger_quota_ends_the_alarm() {
    if only_quorate_has("an alarm that ends by itself") {
        return;
    }
    let mut server = server(Kind::Quorate, "");
    server.restart().await;
    let client = server.client().await;
    fill(&client, Kind::Quorate, 64 * 1024).await;
    server.kill().await;
    let larger = (2 * QUOTA_BYTES).to_string();
    let mut server = server.with_env(&[("QUORATE_LIMITS_QUOTA_BYTES", &larger)]);
    server.restart().await;
    let client = server.client().await;
    no_alarm(&client).await;
    client.must_put("k", "more").await;
}

/// What makes room finds room, and the member does not end the alarm of a client.
#[tokio::test]
async fn deletes_compactions_and_revokes_pass_while_the_alarm_is_raised() {
    if only_quorate_has("an alarm that ends by itself") {
        return;
    }
    let mut server = server(Kind::Quorate, "");
    server.restart().await;
    let client = server.client().await;
    let uri = format!("http://127.0.0.1:{}", server.client_port());
    let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    let mut leases = LeaseClient::new(channel);
    let grant = |id| LeaseGrantRequest { ttl: 3_600, id };
    leases.lease_grant(grant(7)).await.unwrap();
    let of_lease = PutRequest {
        lease: 7,
        ..put("leased", "v")
    };
    client.put(of_lease).await.unwrap();
    client.must_put("other", "v").await;
    client.must_put("another", "v").await;
    fill(&client, Kind::Quorate, 64 * 1024).await;
    let own = raised(&client).await[0].member_id;
    assert_eq!(alarm(&client, AlarmAction::Activate, own).await.len(), 1);
    assert_eq!(raised(&client).await.len(), 1, "clients see one");

    let small = client.put(put("k", "small")).await;
    refused(small, Code::ResourceExhausted, NO_SPACE);
    let granted = leases.lease_grant(grant(8)).await;
    refused(granted, Code::ResourceExhausted, NO_SPACE);
    let with_put = txn(vec![], vec![op_del(del("k"))], vec![op_put(put("k", ""))]);
    let with_put = client.txn(with_put).await;
    refused(with_put, Code::ResourceExhausted, NO_SPACE);
    assert_eq!(client.delete(del("other")).await.unwrap().deleted, 1);
    let delete = txn(vec![], vec![op_del(del("another"))], vec![]);
    assert!(client.txn(delete).await.unwrap().succeeded);
    let revoke = LeaseRevokeRequest { id: 7 };
    leases.lease_revoke(revoke).await.unwrap();
    assert_eq!(client.keys(get_range("a", "z")).await, ["k"]);
    compact(&client).await;

    while !server.log().contains("there is room again") {
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(raised(&client).await.len(), 1, "that of the client");
    let small = client.put(put("k", "small")).await;
    refused(small, Code::ResourceExhausted, NO_SPACE);
    let ended = alarm(&client, AlarmAction::Deactivate, own).await;
    assert_eq!(ended.len(), 1);
    client.must_put("k", "small").await;
}

#[tokio::test]
async fn no_fewer_values_are_taken_than_by_etcd() {
    for value_bytes in [1_024, 64 * 1024] {
        let mut taken = Vec::new();
        for kind in [Kind::Quorate, Kind::Etcd] {
            let mut server = server(kind, "");
            server.restart().await;
            let client = server.client().await;
            taken.push(fill(&client, kind, value_bytes).await);
        }
        assert!(taken[0] >= taken[1], "{value_bytes} bytes: {taken:?}");
    }
}

/// Writes distinct keys until the quota is reached; returns the number of keys.
async fn fill_keys(client: &Client, kind: Kind, quota: usize, value_bytes: usize) -> usize {
    /// As etcd comes near the quota, it is made to commit after so many values: what it takes beyond it does not depend on how
    /// many it takes in the tenth of a second between two commits.
    const COMMIT_EACH: usize = 8;
    let all = quota / value_bytes;
    let mut maintenance = client.maintenance.clone();
    for taken in 0..=2 * all {
        if kind == Kind::Etcd && taken > all / 2 && taken.is_multiple_of(COMMIT_EACH) {
            maintenance.hash(HashRequest {}).await.unwrap();
        }
        let key = format!("key/{taken:06}");
        let outcome = client.put(put(key, vec![b'v'; value_bytes])).await;
        if outcome.is_err() {
            refused(outcome, Code::ResourceExhausted, NO_SPACE);
            return taken;
        }
    }
    panic!("there is no quota");
}

/// Distinct keys, and no setting but the quota.
#[tokio::test]
async fn no_fewer_keys_are_taken_than_by_an_etcd_with_its_defaults() {
    const QUOTA_BYTES: usize = 64 * 1024 * 1024;
    const VALUE_BYTES: usize = 64 * 1024;
    let mut taken = Vec::new();
    for kind in [Kind::Quorate, Kind::Etcd] {
        let mut server = Server::new(kind, with_quota(kind, QUOTA_BYTES));
        server.restart().await;
        let client = server.client().await;
        taken.push(fill_keys(&client, kind, QUOTA_BYTES, VALUE_BYTES).await);
    }
    assert!(taken[0] >= taken[1], "{taken:?}");
    let values = QUOTA_BYTES / VALUE_BYTES;
    assert!(taken[0] <= values + 1, "beyond the quota: {taken:?}");
}

/// What is applied counts before the database has it. Otherwise a member whose commits are slow takes several times its quota.
#[cfg(feature = "failpoints")]
#[tokio::test]
async fn values_count_before_they_are_stored() {
    if only_quorate_has("a commit that never ends") {
        return;
    }
    let mut server = server(Kind::Quorate, "before-db-commit=sleep(3600000)");
    server.restart().await;
    let client = server.client().await;
    let taken = fill(&client, Kind::Quorate, 64 * 1024).await;
    assert!(taken * 64 * 1024 > QUOTA_BYTES / 10 * 9, "{taken} values");
    let mut maintenance = client.maintenance.clone();
    let status = maintenance.status(StatusRequest {}).await.unwrap();
    let stored = status.into_inner().db_size_in_use;
    assert_eq!(stored, 0, "no commit has ended");
}
