//! A config subscriber: an actor that keeps its own copy of a configuration, and receives every change of it once.
//!
//! Run it with `cargo run --example config_subscriber`. It keeps its data in a fresh folder under the system's temporary
//! directory and removes it at the end.

#![expect(clippy::print_stdout, reason = "it shows what it does")]

use actix::prelude::*;
use quorate::{
    Config, Node,
    ext::{
        CompactHistory, DeleteRange, KeyEvent, KeyRange, KeyValue, Put, PutKey, RangeQuery,
        ReadRange, RecordKind, Revision, RunTxn, Store, Subscribe, Subscription, Txn, TxnOp,
        WatchError, WatchNews, WatchSpec,
    },
};
use std::{collections::BTreeMap, error::Error, path::Path};
use tokio::sync::watch;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The lines that report what happens.
type Say = fn(&str);

/// A service with a configuration: the keys under `config/`.
struct Service {
    config: BTreeMap<String, String>,
    /// The revision up to which it has seen every change, or why its watch ended.
    seen: watch::Sender<Result<Revision, Revision>>,
    say: Say,
}

impl Actor for Service {
    type Context = Context<Self>;
}

impl Handler<WatchNews> for Service {
    type Result = ();

    fn handle(&mut self, news: WatchNews, _: &mut Self::Context) {
        match news {
            // A batch is one revision or several, each of them whole: the copy is never half a change.
            WatchNews::Batch(batch) => {
                for event in &batch.events {
                    self.take(event);
                }
                if let Some(last) = batch.events.last() {
                    self.seen_to(Ok(last.rev.major));
                }
            }
            WatchNews::Ended(WatchError::Compacted { oldest }) => {
                (self.say)("the service was away for too long: what it missed is compacted");
                self.seen_to(Err(oldest));
            }
            WatchNews::Ended(error) => (self.say)(&format!("the watch ended: {error}")),
        }
    }
}

impl Service {
    fn seen_to(&self, seen: Result<Revision, Revision>) {
        self.seen.send_modify(|now| *now = seen);
    }

    fn take(&mut self, event: &KeyEvent) {
        let name = text(&event.kv.key).replace("config/", "");
        let at = event.rev.major;
        let was = self.config.remove(&name);
        let was = was.map_or_else(|| "was not set".to_owned(), |was| format!("was {was}"));
        match event.kind {
            RecordKind::Put => {
                let value = text(&event.kv.value);
                (self.say)(&format!("revision {at}: {name} is {value} now, {was}"));
                self.config.insert(name, value);
            }
            RecordKind::Tombstone => {
                (self.say)(&format!("revision {at}: {name} is gone, {was}"));
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running service, and what it holds of its watch.
struct Running {
    seen: watch::Receiver<Result<Revision, Revision>>,
    _watch: Subscription,
}

/// Reads the whole configuration, and watches it from the very next revision: no change is missed.
async fn begin(store: &Addr<Store>, say: Say) -> Outcome<Running> {
    let query = RangeQuery {
        key: "config/".into(),
        range_end: "config0".into(),
        ..RangeQuery::default()
    };
    let read = store.send(ReadRange(query)).await??;
    let mut config = BTreeMap::new();
    for kv in &read.kvs {
        let kv = KeyValue::decode(kv)?;
        config.insert(text(&kv.key).replace("config/", ""), text(&kv.value));
    }
    say(&format!(
        "the service begins at revision {} with {config:?}",
        read.revision
    ));
    watch_from(store, config, read.revision, say).await
}

/// Watches the configuration after a revision at which it was `config`.
async fn watch_from(
    store: &Addr<Store>,
    config: BTreeMap<String, String>,
    seen: Revision,
    say: Say,
) -> Outcome<Running> {
    let (sender, receiver) = watch::channel(Ok(seen));
    let service = Service {
        config,
        seen: sender,
        say,
    };
    let range = KeyRange::from_wire(&"config/".into(), &"config0".into());
    let subscribe = Subscribe {
        spec: WatchSpec {
            start: seen.next(),
            ..WatchSpec::of(range)
        },
        to: service.start().recipient(),
    };
    Ok(Running {
        seen: receiver,
        _watch: store.send(subscribe).await??,
    })
}

/// Sets a value; returns the revision.
async fn set(store: &Addr<Store>, name: &str, value: &str) -> Outcome<Revision> {
    let put = Put {
        key: format!("config/{name}").into(),
        value: value.to_owned().into(),
        ..Put::default()
    };
    Ok(store.send(PutKey(put)).await??.revision)
}

/// Waits until the service has seen a revision.
async fn until(running: &mut Running, revision: Revision) -> Outcome<()> {
    let there = |seen: &Result<Revision, Revision>| seen.is_err() || *seen >= Ok(revision);
    running.seen.wait_for(there).await?;
    Ok(())
}

/// Runs the example with a node on `data_dir`.
async fn story(data_dir: &Path, say: Say) -> Outcome<()> {
    let node = Node::start(&Config {
        data_dir: data_dir.to_owned(),
        ..Config::default()
    })?;
    let store = node.store();
    set(&store, "log-level", "info").await?;
    set(&store, "workers", "4").await?;
    let mut running = begin(&store, say).await?;

    let changed = set(&store, "log-level", "debug").await?;
    until(&mut running, changed).await?;

    say("two changes in one transaction are one batch:");
    let put = Put {
        key: "config/workers".into(),
        value: "8".into(),
        ..Put::default()
    };
    let delete = DeleteRange {
        key: "config/log-level".into(),
        ..DeleteRange::default()
    };
    let both = Txn {
        success: vec![TxnOp::Put(put), TxnOp::DeleteRange(delete)],
        ..Txn::default()
    };
    let changed = store.send(RunTxn(both)).await??.revision;
    until(&mut running, changed).await?;

    say("the service goes away, with its copy at hand; two changes are made; it comes back:");
    drop(running);
    let copy = BTreeMap::from([("workers".to_owned(), "8".to_owned())]);
    set(&store, "workers", "16").await?;
    let missed = set(&store, "workers", "32").await?;
    let mut running = watch_from(&store, copy, changed, say).await?;
    until(&mut running, missed).await?;

    say("it goes away once more, and history is compacted meanwhile:");
    drop(running);
    set(&store, "workers", "48").await?;
    let revision = set(&store, "workers", "64").await?;
    let compact = CompactHistory {
        revision,
        physical: true,
    };
    store.send(compact).await??;
    let copy = BTreeMap::from([("workers".to_owned(), "32".to_owned())]);
    let mut running = watch_from(&store, copy, missed, say).await?;
    until(&mut running, revision).await?;
    if running.seen.borrow().is_err() {
        let _running = begin(&store, say).await?;
    }
    node.stop().await;
    Ok(())
}

#[actix::main]
async fn main() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    story(&folder.path().join("data"), |line| println!("{line}")).await
}
