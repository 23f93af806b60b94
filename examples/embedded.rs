//! A node inside this program: no sockets, no configuration file, the same guarantees as over the network.
//!
//! Run it with `cargo run --example embedded`. It keeps its data in a fresh folder under the system's temporary directory
//! and removes it at the end.

#![expect(clippy::print_stdout, reason = "it shows what it does")]

use quorate::{
    Config, Node,
    ext::{
        CompactHistory, Compare, KeyValue, Operand, Put, PutKey, RangeQuery, ReadRange, Relation,
        RunTxn, Txn, TxnOp,
    },
};
use std::error::Error;

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let node = Node::start(&Config {
        data_dir: folder.path().join("data"),
        ..Config::default()
    })?;
    let store = node.store();

    let put = Put {
        key: "colour".into(),
        value: "blue".into(),
        ..Put::default()
    };
    let put = store.send(PutKey(put)).await??;
    println!("put colour=blue at revision {}", put.revision);

    // Change the colour only if no other write came since.
    let txn = Txn {
        compares: vec![Compare {
            key: "colour".into(),
            range_end: "".into(),
            relation: Relation::Equal,
            operand: Operand::Mod(put.revision.0),
        }],
        success: vec![TxnOp::Put(Put {
            key: "colour".into(),
            value: "green".into(),
            ..Put::default()
        })],
        failure: Vec::new(),
    };
    let txn = store.send(RunTxn(txn)).await??;
    println!(
        "txn succeeded: {}, revision {}",
        txn.succeeded, txn.revision
    );

    for revision in [0, put.revision.0] {
        let query = RangeQuery {
            key: "colour".into(),
            revision,
            ..RangeQuery::default()
        };
        for kv in store.send(ReadRange(query)).await??.kvs {
            let kv = KeyValue::decode(&kv)?;
            let value = String::from_utf8_lossy(&kv.value);
            println!(
                "read colour={value} (version {}, asked revision {revision})",
                kv.version
            );
        }
    }

    let compact = CompactHistory {
        revision: txn.revision,
        physical: true,
    };
    store.send(compact).await??;
    let query = RangeQuery {
        key: "colour".into(),
        revision: put.revision.0,
        ..RangeQuery::default()
    };
    if let Err(refusal) = store.send(ReadRange(query)).await? {
        println!("after the compaction: {refusal}");
    }

    node.stop().await;
    Ok(())
}
