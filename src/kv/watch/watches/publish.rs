//! Publishing a batch: each synced watcher gets its events, or falls behind.

use super::{
    super::{
        catch_up::Memory,
        event::{Event, WatchedChange},
        events::Events,
        recent::Recent,
        spec::{Outlet, WatcherKey},
    },
    table::{Watcher, WatcherPhase, Watches, watcher, watcher_mut},
};
use crate::types::{Record, Revision};
use std::sync::Arc;

/// Bytes of events in one response to a synced watcher, after which the next revision begins another. Small clients take no
/// more than a few megabytes at once.
const RESPONSE_BYTES: usize = 64 * 1024;

/// The responses to a group of watchers for one batch, with or without previous values.
#[derive(Debug)]
struct GroupResponses {
    responses: Vec<BatchResponse>,
    /// From this revision on a previous value is not in memory: the watchers have to read it.
    cold: Option<Revision>,
}

#[derive(Debug)]
struct BatchResponse {
    first: Revision,
    last: Revision,
    events: Arc<Events>,
}

/// A synced watcher did not get all of a batch.
struct Behind {
    /// From this revision on it has to read.
    from: Revision,
    /// Whether a previous value is not in memory; if false, its stream has no room.
    cold: bool,
}

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
        // Without watchers no recent events are kept: a later watcher reads what it needs from history.
        if self.is_empty() {
            self.recent.restart(newest);
            return;
        }
        if first != Some(self.newest().next()) {
            self.skip_to(newest);
            return;
        }
        let mut changes: Vec<WatchedChange> =
            records.iter().cloned().map(WatchedChange::new).collect();
        self.send_to_synced(&mut changes, memory, outlet);
        self.remember(changes);
        assert_eq!(
            self.newest(),
            newest,
            "a batch ends at the revision it says it ends at"
        );
    }

    /// Sends each synced watcher its events of a batch, many in one response.
    fn send_to_synced(
        &mut self,
        changes: &mut [WatchedChange],
        memory: &dyn Memory,
        outlet: &mut dyn Outlet,
    ) {
        let (slots, groups) = (&self.slots, &mut self.groups);
        groups.begin(slots.len());
        for (at, change) in changes.iter().enumerate() {
            let (revision, kind) = (change.rev().major, change.kind());
            self.synced.find(change.key(), &mut |key: WatcherKey| {
                let wants = |watcher: &Watcher| {
                    revision >= watcher.next && watcher.spec.filters.admit(kind)
                };
                if watcher(slots, key).is_some_and(wants) {
                    groups.add(key, at);
                }
            });
        }
        let dealt = groups.deal();
        let mut plain: Vec<Option<GroupResponses>> = Vec::new();
        let mut with_prev = Vec::new();
        for (key, group) in dealt {
            let Some(watcher) = watcher_mut(&mut self.slots, key) else {
                continue;
            };
            let prev_kv = watcher.spec.prev_kv;
            let of_form = if prev_kv { &mut with_prev } else { &mut plain };
            if of_form.is_empty() {
                of_form.resize_with(self.groups.bound(), || None);
            }
            let responses = of_form[group].get_or_insert_with(|| {
                let hits = self.groups.changes(group);
                make_responses(&self.recent, &hits, changes, prev_kv, memory)
            });
            if let Err(behind) = watcher.send_batch(responses, outlet) {
                self.unsync(key, behind.from);
                if behind.cold {
                    self.enqueue(key);
                } else {
                    self.starve(key);
                }
            }
        }
    }

    /// Keeps the changes of a batch for watchers that are behind.
    fn remember(&mut self, changes: Vec<WatchedChange>) {
        let mut whole: Vec<WatchedChange> = Vec::new();
        for change in changes {
            let revision = whole.last().map(|last| last.rev().major);
            if let Some(revision) = revision.filter(|revision| *revision != change.rev().major) {
                self.recent.push(revision, std::mem::take(&mut whole));
            }
            whole.push(change);
        }
        if let Some(revision) = whole.last().map(|last| last.rev().major) {
            self.recent.push(revision, whole);
        }
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
                    .is_some_and(|w| w.phase == WatcherPhase::Synced)
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

impl Watcher {
    /// Sends the responses for a batch, while there is room.
    fn send_batch(
        &mut self,
        responses: &GroupResponses,
        outlet: &mut dyn Outlet,
    ) -> Result<(), Behind> {
        for response in &responses.responses {
            if !outlet.has_room(self.stream) {
                let (from, cold) = (response.first, false);
                return Err(Behind { from, cold });
            }
            self.send(response.events.clone(), response.last, outlet);
        }
        let Some(from) = responses.cold else {
            return Ok(());
        };
        self.cold = true;
        Err(Behind { from, cold: true })
    }
}

/// Makes responses of whole revisions of the changes at `hits`.
fn make_responses(
    recent: &Recent,
    hits: &[usize],
    changes: &mut [WatchedChange],
    prev_kv: bool,
    memory: &dyn Memory,
) -> GroupResponses {
    let (mut responses, mut cold) = (Vec::new(), None);
    let (mut events, mut bytes) = (Vec::with_capacity(hits.len()), 0);
    let mut close = |events: &mut Vec<Arc<Event>>| {
        if let [first, .., last] | [first @ last] = &events[..] {
            responses.push(BatchResponse {
                first: first.rev.major,
                last: last.rev.major,
                events: Events::new(events),
            });
            events.clear();
        }
    };
    let of_revision = |a: &usize, b: &usize| changes[*a].rev().major == changes[*b].rev().major;
    let revisions: Vec<&[usize]> = hits.chunk_by(of_revision).collect();
    for revision in revisions {
        let before = events.len();
        for &at in revision {
            let found = |key: &[u8], at| recent.before(key, at, memory);
            let Ok(event) = changes[at].event(prev_kv, found) else {
                cold = Some(changes[at].rev().major);
                break;
            };
            bytes += event.wire.len();
            events.push(event);
        }
        if cold.is_some() {
            events.truncate(before);
            break;
        }
        if bytes >= RESPONSE_BYTES {
            close(&mut events);
            bytes = 0;
        }
    }
    close(&mut events);
    GroupResponses { responses, cold }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            super::{
                super::{KeyRange, command::EncodedKv, record},
                Body, Response, StreamId, WatchSpec,
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

    /// A past in which no key had a state before.
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

    /// Keeps what it is sent.
    #[derive(Default)]
    struct Keeping(Vec<(Revision, Vec<Revision>)>);

    impl Outlet for Keeping {
        fn has_room(&mut self, _: StreamId) -> bool {
            true
        }

        fn send(&mut self, _: StreamId, response: Response) {
            if let Body::Events { events, .. } = response.body {
                let revisions = events.iter().map(|event| event.rev.major);
                self.0.push((response.revision, revisions.collect()));
            }
        }
    }

    #[test]
    fn a_batch_is_one_response_of_whole_revisions_up_to_a_size() {
        let bounds = Bounds {
            recent_bytes_max: 1 << 20,
            watchers_max: 1,
        };
        let mut watches = Watches::new(Revision(1), bounds, 7);
        let mut outlet = Keeping::default();
        watches.open(StreamId(0));
        let all = KeyRange::from_wire(&"a".into(), &"z".into());
        watches.create(StreamId(0), WatchSpec::of(all), Revision(0), &mut outlet);
        let batch: Vec<Record> = (2..=5).map(|at| put("k", Revision(at))).collect();
        watches.publish(&batch, Revision(5), &Young, &mut outlet);
        let revisions =
            |range: std::ops::RangeInclusive<i64>| range.map(Revision).collect::<Vec<_>>();
        assert_eq!(outlet.0, [(Revision(5), revisions(2..=5))]);
        // Revision 6 has three changes that fill a response together; 7 and 8 follow in the next one.
        outlet.0.clear();
        let large = "k".repeat(RESPONSE_BYTES / 3);
        let mut batch: Vec<Record> = (0..3)
            .map(|sub| Record {
                rev: Rev::new(Revision(6), sub),
                ..put(&large, Revision(6))
            })
            .collect();
        batch.extend([put("k", Revision(7)), put("other", Revision(8))]);
        watches.publish(&batch, Revision(8), &Young, &mut outlet);
        let expected = [
            (Revision(6), vec![Revision(6); 3]),
            (Revision(8), revisions(7..=8)),
        ];
        assert_eq!(outlet.0, expected);
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
