//! Workers of which one leads: only the leader writes, and what it writes is fenced by its leadership.
//!
//! Run it with `cargo run --example leader_worker`. It keeps its data in a fresh folder under the system's temporary directory
//! and removes it at the end.

#![expect(clippy::print_stdout, reason = "it shows what it does")]

use bytes::Bytes;
use quorate::{
    Config, Node,
    ext::{
        Compare, LeaseId, Operand, Put, Relation, Requests, Txn, TxnOp,
        election::{self, Leadership},
    },
};
use std::{error::Error, time::Duration};
use tokio::time::sleep;

const ELECTION: Bytes = Bytes::from_static(b"jobs/leader");

/// Writes the job's state, if this leadership still lasts: the compare is the fence.
async fn work(
    node: &Requests,
    leadership: &Leadership,
    who: &str,
) -> Result<bool, Box<dyn Error + Send + Sync>> {
    let put = Put {
        key: "jobs/done-by".into(),
        value: who.to_owned().into(),
        ..Put::default()
    };
    let txn = Txn {
        compares: vec![Compare {
            key: leadership.key.clone().into(),
            range_end: "".into(),
            relation: Relation::Equal,
            operand: Operand::Create(leadership.created.0),
        }],
        success: vec![TxnOp::Put(put)],
        failure: Vec::new(),
    };
    Ok(node.txn(txn).await?.succeeded)
}

/// Campaigns, and then works until its lease is gone.
async fn worker(
    node: Requests,
    who: &'static str,
    lease: LeaseId,
    renewals: u32,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (leadership, _) = election::campaign(&node, ELECTION, lease, who.into()).await?;
    println!("{who} leads; its fencing number is {}", leadership.created);
    for turn in 1..=renewals {
        if node.keep_alive(lease).await?.is_none() || !work(&node, &leadership, who).await? {
            println!("{who} leads no more");
            return Ok(());
        }
        println!("{who} does turn {turn}");
        sleep(Duration::from_millis(300)).await;
    }
    if who == "bob" {
        election::resign(&node, &leadership).await?;
        println!("{who} is done and resigns");
        return Ok(());
    }
    println!("{who} is paused for longer than its lease lives");
    sleep(Duration::from_secs(10)).await;
    let written = work(&node, &leadership, who).await?;
    println!("{who} wakes up and still believes it leads; its write goes through: {written}");
    Ok(())
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let node = Node::start(&Config {
        data_dir: folder.path().join("data"),
        ..Config::default()
    })?;
    let requests = node.requests();

    let mut workers = Vec::new();
    for who in ["alice", "bob"] {
        let lease = requests.grant_lease(None, 6).await?.id;
        let renewals = if who == "alice" { 3 } else { 5 };
        let keeping = requests.clone();
        // While it waits for its turn a candidate keeps its lease alive, too.
        let renewing = tokio::spawn(async move {
            while who == "bob" && matches!(keeping.keep_alive(lease).await, Ok(Some(_))) {
                sleep(Duration::from_millis(600)).await;
            }
        });
        let working = tokio::spawn(worker(requests.clone(), who, lease, renewals));
        workers.push((who, working, renewing));
    }
    let mut observer = election::observe(requests, ELECTION).await?;
    let observing = tokio::spawn(async move {
        while let Ok(seen) = observer.next().await {
            let who = String::from_utf8_lossy(&seen.kv.value).into_owned();
            println!(
                "observer: {who} leads since revision {}",
                seen.kv.create_revision
            );
        }
    });
    for (who, working, renewing) in workers {
        if let Err(error) = working.await? {
            println!("{who} gives up: {error}");
        }
        renewing.abort();
    }
    observing.abort();

    node.stop().await;
    Ok(())
}
