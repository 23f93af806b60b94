//! The `etcd-client` crate, used as its documentation shows.

use crate::support::{Server, note};
use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, Error, GetOptions,
    LeaseTimeToLiveOptions, LockOptions, ProclaimOptions, PutOptions, ResignOptions, SortOrder,
    SortTarget, Txn, TxnOp, TxnOpResponse,
};
use tonic::Code;

async fn start() -> (Server, Client) {
    let server = Server::start().await;
    let endpoint = format!("127.0.0.1:{}", server.client_port());
    let client = Client::connect([endpoint], None)
        .await
        .expect("the crate connects");
    (server, client)
}

#[tokio::test]
async fn put_get_delete() {
    let (_server, mut client) = start().await;
    client.put("key", "1", None).await.unwrap();
    let put = client
        .put("key", "2", Some(PutOptions::new().with_prev_key()))
        .await
        .unwrap();
    assert_eq!(put.prev_key().unwrap().value_str().unwrap(), "1");
    assert_eq!(put.header().unwrap().revision(), 3);
    client.put("key2", "3", None).await.unwrap();
    let options = GetOptions::new()
        .with_prefix()
        .with_limit(1)
        .with_sort(SortTarget::Mod, SortOrder::Descend);
    let got = client.get("key", Some(options)).await.unwrap();
    assert_eq!(
        (got.kvs()[0].key_str().unwrap(), got.count(), got.more()),
        ("key2", 2, true)
    );
    let old = client
        .get("key", Some(GetOptions::new().with_revision(2)))
        .await
        .unwrap();
    assert_eq!(old.kvs()[0].value_str().unwrap(), "1");
    let options = DeleteOptions::new().with_prefix().with_prev_key();
    let deleted = client.delete("key", Some(options)).await.unwrap();
    assert_eq!((deleted.deleted(), deleted.prev_kvs().len()), (2, 2));
    assert_eq!(
        client
            .get("", Some(GetOptions::new().with_all_keys()))
            .await
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn a_transaction_and_its_answers() {
    let (_server, mut client) = start().await;
    let txn = || {
        Txn::new()
            .when(vec![Compare::create_revision("lock", CompareOp::Equal, 0)])
            .and_then(vec![
                TxnOp::put("lock", "mine", None),
                TxnOp::get("lock", None),
            ])
            .or_else(vec![TxnOp::get("lock", None)])
    };
    let won = client.txn(txn()).await.unwrap();
    assert!(won.succeeded() && won.op_responses().len() == 2, "{won:?}");
    let lost = client.txn(txn()).await.unwrap();
    assert!(!lost.succeeded(), "{lost:?}");
    match lost.op_responses().remove(0) {
        TxnOpResponse::Get(got) => assert_eq!(got.kvs()[0].value_str().unwrap(), "mine"),
        other => panic!("a get was asked: {other:?}"),
    }
}

#[tokio::test]
async fn compaction_status_and_alarms() {
    let (_server, mut client) = start().await;
    for _ in 0..3 {
        client.put("key", "v", None).await.unwrap();
    }
    let options = CompactionOptions::new().with_physical();
    client.compact(3, Some(options)).await.unwrap();
    let Err(Error::GRpcStatus(status)) = client.compact(3, None).await else {
        panic!("compacting twice fails")
    };
    assert_eq!(status.code(), Code::OutOfRange);
    let status = client.status().await.unwrap();
    assert!(status.leader() != 0 && status.db_size() > 0, "{status:?}");
    note(&format!("the server calls itself {}", status.version()));
}

#[tokio::test]
async fn a_lease_from_grant_to_revoke() {
    let (_server, mut client) = start().await;
    let granted = client.lease_grant(60, None).await.unwrap();
    let (id, ttl) = (granted.id(), granted.ttl());
    assert_eq!(ttl, 60);
    let options = PutOptions::new().with_lease(id);
    client.put("leased", "v", Some(options)).await.unwrap();
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let time = client.lease_time_to_live(id, Some(options)).await.unwrap();
    assert_eq!(
        (time.granted_ttl(), time.keys()),
        (60, &[b"leased".to_vec()][..])
    );
    let (mut keeper, mut renewed) = client.lease_keep_alive(id).await.unwrap();
    for _ in 0..3 {
        keeper.keep_alive().await.unwrap();
        let answer = renewed.message().await.unwrap().unwrap();
        assert_eq!((answer.id(), answer.ttl()), (id, 60));
    }
    let list = client.leases().await.unwrap();
    assert_eq!(
        list.leases()
            .iter()
            .map(etcd_client::LeaseStatus::id)
            .collect::<Vec<_>>(),
        [id]
    );
    client.lease_revoke(id).await.unwrap();
    assert_eq!(client.get("leased", None).await.unwrap().count(), 0);
    assert!(
        client.lease_keep_alive(id).await.is_err(),
        "the crate's first renewal finds nothing"
    );
}

#[tokio::test]
async fn a_lock_is_handed_over() {
    let (_server, mut client) = start().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(client.lease_grant(60, None).await.unwrap().id());
    }
    let lock = |id| Some(LockOptions::new().with_lease(id));
    let held = client.lock("L", lock(ids[0])).await.unwrap();
    assert_eq!(held.key(), format!("L/{:x}", ids[0]).as_bytes());
    let mut other = client.clone();
    let options = lock(ids[1]);
    let next = tokio::spawn(async move { other.lock("L", options).await });
    while client
        .get("L/", Some(GetOptions::new().with_prefix()))
        .await
        .unwrap()
        .count()
        < 2
    {}
    assert!(!next.is_finished());
    client.unlock(held.key()).await.unwrap();
    let next = next.await.unwrap().unwrap();
    assert_eq!(next.key(), format!("L/{:x}", ids[1]).as_bytes());
}

#[tokio::test]
async fn an_election_as_its_documentation_shows() {
    let (_server, mut client) = start().await;
    let id = client.lease_grant(60, None).await.unwrap().id();
    let won = client.campaign("E", "1", id).await.unwrap();
    let leader = won.leader().unwrap().clone();
    assert_eq!((leader.name(), leader.lease()), (&b"E"[..], id));
    let mut observed = client.observe("E").await.unwrap();
    let first = observed.message().await.unwrap().unwrap();
    assert_eq!(first.kv().unwrap().value_str().unwrap(), "1");
    let options = ProclaimOptions::new().with_leader(leader.clone());
    client.proclaim("2", Some(options)).await.unwrap();
    let second = observed.message().await.unwrap().unwrap();
    assert_eq!(second.kv().unwrap().value_str().unwrap(), "2");
    let now = client.leader("E").await.unwrap();
    assert_eq!(now.kv().unwrap().key(), leader.key());
    let options = ResignOptions::new().with_leader(leader);
    client.resign(Some(options)).await.unwrap();
    let Err(Error::GRpcStatus(nobody)) = client.leader("E").await else {
        panic!("nobody leads")
    };
    assert_eq!(
        (nobody.code(), nobody.message()),
        (Code::Unknown, "election: no leader")
    );
}
