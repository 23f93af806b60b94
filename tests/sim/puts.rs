//! The plainest workload: clients that put, and the check that no acknowledged put is lost or shares its revision.

use crate::{cluster::Cluster, run::Workload};
use quorate::{
    kv::{
        command::{Put, RangeQuery},
        record::KeyValue,
    },
    types::Revision,
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

/// Clients.
const CLIENTS: usize = 6;
/// Keys they share.
const KEYS: u64 = 40;
/// The longest pause between two puts of a client, in milliseconds.
const PAUSE_MILLIS_MAX: u64 = 60;
/// How long a client waits for an answer, in milliseconds.
const PATIENCE_MILLIS: u64 = 3_000;

/// Key, value and revision of acknowledged puts.
type Acknowledged = Rc<RefCell<BTreeMap<Revision, (String, String)>>>;

/// Clients that put.
#[derive(Default)]
pub(crate) struct Puts {
    acknowledged: Acknowledged,
    ended: Rc<Cell<bool>>,
}

impl Workload for Puts {
    fn begin(&mut self, cluster: &mut Cluster) {
        for number in 0..CLIENTS {
            let (acknowledged, ended) = (self.acknowledged.clone(), self.ended.clone());
            let size = cluster.nodes.len() as u64;
            cluster.client(move |client| async move {
                for n in 0.. {
                    client.pause(client.below(PAUSE_MILLIS_MAX)).await;
                    if ended.get() {
                        return;
                    }
                    let key = format!("k{}", client.below(KEYS));
                    let value = format!("{number}.{n}");
                    let put = Put {
                        key: key.clone().into(),
                        value: value.clone().into(),
                        ..Put::default()
                    };
                    let slot = usize::try_from(client.below(size)).unwrap();
                    let done = client.call(slot, PATIENCE_MILLIS, move |requests| async move {
                        requests.put(put).await.map(|done| done.revision)
                    });
                    client.note(done.await, |done| {
                        let mut all = acknowledged.borrow_mut();
                        let twice = all.insert(done, (key, value));
                        assert!(twice.is_none(), "revision {done} was given twice");
                    });
                }
            });
        }
    }

    fn watch(&mut self, _: &Cluster) {}

    fn end(&mut self, cluster: &mut Cluster) {
        self.ended.set(true);
        cluster.run(PATIENCE_MILLIS + PAUSE_MILLIS_MAX);
    }

    fn judge(&mut self, cluster: &mut Cluster) {
        let found: Rc<RefCell<BTreeMap<String, KeyValue>>> = Rc::default();
        let into = found.clone();
        cluster.client(move |client| async move {
            let all = RangeQuery {
                key: "k".into(),
                range_end: "l".into(),
                ..RangeQuery::default()
            };
            let read = client.call(0, 5_000, move |requests| async move {
                requests.range(all).await.map(|read| read.kvs)
            });
            for kv in read.await.unwrap().unwrap() {
                let kv = KeyValue::decode(&kv).unwrap();
                let key = String::from_utf8(kv.key.to_vec()).unwrap();
                into.borrow_mut().insert(key, kv);
            }
        });
        cluster.run(6_000);
        let found = found.borrow();
        for (revision, (key, value)) in &*self.acknowledged.borrow() {
            let Some(kv) = found.get(key) else {
                panic!("{key}={value} was acknowledged at {revision} and is gone");
            };
            let same = kv.mod_revision == *revision && kv.value.as_ref() == value.as_bytes();
            assert!(
                same || kv.mod_revision > *revision,
                "{key}={value} was acknowledged at {revision}, found {kv:?}"
            );
        }
    }
}
