//! A service registry: each instance keeps one key alive by its lease, so one that dies is gone from the list by itself. A
//! client reads the list once and then watches it from the revision after that read: no change is missed.
//!
//! Run it with `cargo run --example service_registry`. It keeps its data in a fresh folder under the system's temporary directory
//! and removes it at the end.

#![expect(clippy::print_stdout, reason = "it shows what it does")]

use quorate::{
    Config, Node,
    ext::{
        KeyRange, KeyValue, LeaseId, Put, RangeQuery, RecordKind, RequestError, Requests, Revision,
        Watch, WatchSpec,
    },
};
use std::{error::Error, time::Duration};
use tokio::{task::JoinHandle, time::sleep};

const TTL_SECS: i64 = 2;

/// A running instance of a service. Aborting the task is what a crash would do.
struct Instance {
    lease: LeaseId,
    renewing: JoinHandle<Result<(), RequestError>>,
}

/// Registers an instance and keeps it registered.
async fn register(node: &Requests, name: &str, address: &str) -> Result<Instance, RequestError> {
    let lease = node.grant_lease(None, TTL_SECS).await?.id;
    let put = Put {
        key: format!("services/web/{name}").into(),
        value: address.to_owned().into(),
        lease,
        ..Put::default()
    };
    node.put(put).await?;
    println!("{name} registers at {address}");
    let node = node.clone();
    let renewing = tokio::spawn(async move {
        // A third of the time to live: the lease outlives two lost renewals.
        while node.keep_alive(lease).await?.is_some() {
            sleep(Duration::from_millis(TTL_SECS.unsigned_abs() * 1_000 / 3)).await;
        }
        Ok(())
    });
    Ok(Instance { lease, renewing })
}

/// The registered instances, and the revision of that list.
async fn discover(node: &Requests) -> Result<(Vec<String>, Revision), Box<dyn Error>> {
    let query = RangeQuery {
        key: "services/web/".into(),
        range_end: "services/web0".into(),
        ..RangeQuery::default()
    };
    let done = node.range(query).await?;
    let mut found = Vec::new();
    for kv in done.kvs {
        let kv = KeyValue::decode(&kv)?;
        found.push(String::from_utf8_lossy(&kv.value).into_owned());
    }
    println!("discovered: {found:?}");
    Ok((found, done.revision))
}

/// Prints the instances that come and go, until one has gone.
async fn follow_until_one_goes(watch: &mut Watch) -> Result<(), Box<dyn Error>> {
    loop {
        for event in watch.next().await?.events {
            let name = String::from_utf8_lossy(&event.kv.key).into_owned();
            match event.kind {
                RecordKind::Put => println!("watch: {name} is there"),
                RecordKind::Tombstone => {
                    println!("watch: {name} is gone");
                    return Ok(());
                }
            }
        }
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let node = Node::start(&Config {
        data_dir: folder.path().join("data"),
        ..Config::default()
    })?;
    let requests = node.requests();

    let one = register(requests, "web-1", "10.0.0.1:80").await?;
    let (_, revision) = discover(requests).await?;
    let range = KeyRange::from_wire(&"services/web/".into(), &"services/web0".into());
    let mut watch = requests
        .watch(WatchSpec {
            start: revision.next(),
            ..WatchSpec::of(range)
        })
        .await?;
    let two = register(requests, "web-2", "10.0.0.2:80").await?;

    println!("web-2 crashes: nobody renews its lease any more");
    two.renewing.abort();
    follow_until_one_goes(&mut watch).await?;
    discover(requests).await?;

    println!("web-1 stops in good order: it revokes its lease");
    one.renewing.abort();
    requests.revoke_lease(one.lease).await?;
    follow_until_one_goes(&mut watch).await?;
    discover(requests).await?;

    node.stop().await;
    Ok(())
}
