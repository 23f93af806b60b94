//! The `etcd-client` crate, used as its documentation shows.

use crate::support::{Server, note};
use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, Error, GetOptions, PutOptions,
    SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
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
