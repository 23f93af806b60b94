//! What an applied change does: each synced watcher that wants it is sent its event, or falls behind.

use super::{
    super::{
        catch_up::Memory,
        event::{Change, Cold},
        spec::Outlet,
    },
    Phase, WatcherKey, Watches, watcher_mut,
};
use crate::types::{Record, Revision};

impl Watches {
    /// Takes the changes of an applied batch, whole revisions in order, after which `newest` is the newest revision. `memory`
    /// is of the store after the batch. If revisions are missing before the batch, all watchers read history.
    pub fn publish(
        &mut self,
        records: &[Record],
        newest: Revision,
        memory: &dyn Memory,
        outlet: &mut dyn Outlet,
    ) {
        let first = records.first().map(|record| record.rev.major);
        if newest <= self.newest() {
            return;
        }
        // While nobody watches nothing is kept: whoever comes later reads what it wants from history.
        if self.is_empty() {
            self.recent.restart(newest);
            return;
        }
        if first != Some(self.newest().next()) {
            self.skip_to(newest);
            return;
        }
        let mut changes: Vec<Change> = Vec::new();
        for record in records {
            let last = changes.last().map(|change| change.rev().major);
            if let Some(revision) = last.filter(|&last| last != record.rev.major) {
                let whole = std::mem::take(&mut changes);
                self.publish_revision(revision, whole, memory, outlet);
            }
            changes.push(Change::new(record.clone()));
        }
        if let Some(revision) = changes.last().map(|change| change.rev().major) {
            self.publish_revision(revision, changes, memory, outlet);
        }
        assert_eq!(
            self.newest(),
            newest,
            "a batch ends at the revision it says it ends at"
        );
    }

    fn publish_revision(
        &mut self,
        revision: Revision,
        mut changes: Vec<Change>,
        memory: &dyn Memory,
        outlet: &mut dyn Outlet,
    ) {
        let mut hits = Vec::new();
        for (at, change) in changes.iter().enumerate() {
            self.synced
                .find(change.key(), &mut |key: WatcherKey| hits.push((key, at)));
        }
        hits.retain(|&(key, at)| {
            self.watcher(key).is_some_and(|watcher| {
                revision >= watcher.next && watcher.spec.filters.admit(changes[at].kind())
            })
        });
        if changes.len() > 1 {
            hits.sort_unstable();
        }
        for of_watcher in hits.chunk_by(|a, b| a.0 == b.0) {
            let key = of_watcher[0].0;
            let Some(watcher) = watcher_mut(&mut self.slots, key) else {
                continue;
            };
            if !outlet.has_room(watcher.stream) {
                self.unsync(key, revision);
                self.starve(key);
                continue;
            }
            let prev_kv = watcher.spec.prev_kv;
            let before = |key: &[u8], at| self.recent.before(key, at, memory);
            let events = of_watcher
                .iter()
                .map(|&(_, at)| changes[at].event(prev_kv, before));
            if let Ok(events) = events.collect::<Result<Vec<_>, Cold>>() {
                watcher.send(events, revision, outlet);
            } else {
                watcher.cold = true;
                self.unsync(key, revision);
                self.enqueue(key);
            }
        }
        self.recent.push(revision, changes);
    }

    /// Revisions up to `newest` were missed.
    fn skip_to(&mut self, newest: Revision) {
        let missed = self.newest().next();
        self.recent.restart(newest);
        let slots = (0..).zip(&self.slots);
        let keys: Vec<WatcherKey> = slots
            .filter(|(_, slot)| {
                slot.watcher
                    .as_ref()
                    .is_some_and(|w| w.phase == Phase::Synced)
            })
            .map(|(at, slot)| WatcherKey {
                slot: at,
                life: slot.life,
            })
            .collect();
        for key in keys {
            if self
                .watcher(key)
                .is_some_and(|watcher| watcher.next <= newest)
            {
                self.unsync(key, missed);
                self.enqueue(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            super::{
                super::{KeyRange, command::EncodedKv, record},
                Response, StreamId, WatchSpec,
            },
            Bounds,
        },
        *,
    };
    use crate::{
        clock,
        types::{LeaseId, RecordKind, Rev},
    };

    /// Counts what is asked of it.
    #[derive(Default)]
    struct Counting {
        asked: usize,
        sent: usize,
    }

    impl Outlet for Counting {
        fn has_room(&mut self, _: StreamId) -> bool {
            self.asked += 1;
            true
        }

        fn send(&mut self, _: StreamId, _: Response) {
            self.sent += 1;
        }
    }

    /// Every key was just created.
    struct Young;

    impl Memory for Young {
        fn compacted(&self) -> Revision {
            Revision::NEVER_COMPACTED
        }

        fn change_before(&self, _: &[u8], _: Revision) -> Option<Rev> {
            None
        }

        fn held(&self, _: Rev) -> Option<EncodedKv> {
            None
        }
    }

    fn put(key: &str, revision: Revision) -> Record {
        let fields = record::Fields {
            key: key.as_bytes(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            value: b"value",
            lease: LeaseId(0),
        };
        Record {
            rev: Rev::new(revision, 0),
            kind: RecordKind::Put,
            kv: record::encode(&fields),
        }
    }

    #[test]
    fn a_put_among_100_000_prefixes_looks_at_one_watcher() {
        const PUTS: u32 = 1_000;
        for watchers in [10, 100_000] {
            let bounds = Bounds {
                recent_bytes_max: 1 << 20,
                watchers_max: 1 << 20,
            };
            let mut watches = Watches::new(Revision(1), bounds, 7);
            let mut outlet = Counting::default();
            watches.open(StreamId(0));
            for n in 0..watchers {
                let (start, end) = (format!("/{n:08}/"), format!("/{n:08}0"));
                let spec = WatchSpec::of(KeyRange::from_wire(&start.into(), &end.into()));
                watches.create(StreamId(0), spec, Revision(0), &mut outlet);
            }
            outlet = Counting::default();
            let begun = clock::now();
            for n in 0..PUTS {
                let revision = watches.newest().next();
                let key = format!("/{:08}/pod", n * 97 % watchers);
                watches.publish(&[put(&key, revision)], revision, &Young, &mut outlet);
            }
            let each = begun.elapsed() / PUTS;
            eprintln!("a put among {watchers} watchers: {each:?}, in a build for tests");
            let expected = usize::try_from(PUTS).expect("a small number");
            assert_eq!(
                (outlet.asked, outlet.sent),
                (expected, expected),
                "one for each put"
            );
        }
    }
}
