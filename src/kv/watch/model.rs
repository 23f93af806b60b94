//! Watches against a naive model: whatever happens in whatever order, every watcher sees the true history of its range.

use super::{
    super::{KeyRange, command::EncodedKv, record, records::ReadError},
    Body, Bounds, CatchUp, Event, Events, Filters, History, Outlet, ReadTask, Response, StreamId,
    Visit, WatchId, WatchSpec, Watches,
    catch_up::Memory,
};
use crate::types::{LeaseId, Record, RecordKind, Rev, Revision};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// The whole history, kept naively.
#[derive(Clone, Default)]
struct Log {
    records: Vec<Record>,
    compacted: Revision,
    /// Records up to here are on disk alone.
    stored: Revision,
}

impl Log {
    fn newest(&self) -> Revision {
        self.records
            .last()
            .map_or(Revision(1), |record| record.rev.major)
    }

    fn live(&self, key: &[u8], at: Revision) -> Option<&Record> {
        let mut of_key = self
            .records
            .iter()
            .filter(|record| record.rev.major <= at && record::key_slice(&record.kv) == key);
        of_key
            .next_back()
            .filter(|record| record.kind == RecordKind::Put)
    }

    /// Adds a revision of these changes; deletions of keys that are not there are left out.
    fn write(&mut self, changes: &[(u8, bool)]) {
        let major = self.newest().next();
        let mut sub = 0;
        for &(key, put) in changes {
            let key = [key];
            let live = self.live(&key, major);
            let created = live.map(|record| record::create_revision_of(&record.kv));
            let (kind, kv) = if put {
                let value = format!("{major}.{sub}");
                let fields = record::Fields {
                    key: &key,
                    create_revision: created.unwrap_or(major),
                    mod_revision: major,
                    version: 1,
                    value: value.as_bytes(),
                    lease: LeaseId(0),
                };
                (RecordKind::Put, record::encode(&fields))
            } else if created.is_some() {
                (RecordKind::Tombstone, record::encode_tombstone(&key))
            } else {
                continue;
            };
            self.records.push(Record {
                rev: Rev::new(major, sub),
                kind,
                kv,
            });
            sub += 1;
        }
    }

    fn since(&self, after: Revision) -> Vec<Record> {
        self.records
            .iter()
            .filter(|record| record.rev.major > after)
            .cloned()
            .collect()
    }
}

impl Memory for Log {
    fn compacted(&self) -> Revision {
        self.compacted
    }

    fn change_before(&self, key: &[u8], revision: Revision) -> Option<Rev> {
        let before = self.live(key, Revision(revision.0 - 1));
        before.map(|record| record.rev)
    }

    fn held(&self, rev: Rev) -> Option<EncodedKv> {
        let held = self.records.iter().find(|record| record.rev == rev);
        held.filter(|_| rev.major > self.stored)
            .map(|record| record.kv.clone())
    }
}

impl History for Log {
    fn before(&self, key: &[u8], revision: Revision) -> Result<Option<EncodedKv>, ReadError> {
        let at = Revision(revision.0 - 1);
        let kept = at >= self.compacted;
        Ok(self
            .live(key, at)
            .filter(|_| kept)
            .map(|record| record.kv.clone()))
    }

    fn scan(
        &self,
        from: Revision,
        through: Revision,
        visit: &mut Visit<'_>,
    ) -> Result<(), ReadError> {
        assert!(from >= self.compacted, "a scan of what is compacted");
        for record in &self.records {
            let inside = (from..=through).contains(&record.rev.major);
            if inside && visit(record.rev, record.kind, &record.kv).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Queues with room for a few responses.
#[derive(Default)]
struct Queues {
    streams: BTreeMap<StreamId, Vec<Response>>,
    hungry: Vec<StreamId>,
    max: usize,
}

impl Outlet for Queues {
    fn has_room(&mut self, stream: StreamId) -> bool {
        let room = self
            .streams
            .get(&stream)
            .is_none_or(|queue| queue.len() < self.max);
        if !room && !self.hungry.contains(&stream) {
            self.hungry.push(stream);
        }
        room
    }

    fn send(&mut self, stream: StreamId, response: Response) {
        self.streams.entry(stream).or_default().push(response);
    }
}

/// What a client has received of one watch.
struct Seen {
    spec: WatchSpec,
    /// The first revision it is to see.
    from: Revision,
    events: Vec<Event>,
    /// The watch has ended: it must receive nothing more.
    ended: bool,
}

struct World {
    log: Log,
    /// What was published to the hub.
    published: Revision,
    watches: Watches,
    queues: Queues,
    reads: Vec<(ReadTask, CatchUp)>,
    specs: BTreeMap<StreamId, Vec<WatchSpec>>,
    clients: BTreeMap<(StreamId, WatchId), Seen>,
    next_stream: u64,
}

#[derive(Clone, Debug)]
enum Op {
    Write(Vec<Vec<(u8, bool)>>),
    /// The batch for the hub is lost.
    LoseBatch(Vec<(u8, bool)>),
    Create {
        stream: usize,
        spec: WatchSpec,
        ago: i64,
    },
    Cancel {
        stream: usize,
        id: i64,
    },
    Close {
        stream: usize,
    },
    Take {
        stream: usize,
        responses: usize,
    },
    StartRead,
    FinishRead(usize),
    ReadRecent,
    Compact {
        ago: i64,
    },
    /// Records leave memory.
    Store {
        ago: i64,
    },
    Progress {
        stream: usize,
    },
    ProgressDue {
        stream: usize,
    },
}

const STREAMS: usize = 3;

impl World {
    fn new(recent_bytes_max: usize, queue_max: usize) -> Self {
        let bounds = Bounds {
            recent_bytes_max,
            watchers_max: 12,
        };
        let mut world = Self {
            log: Log {
                compacted: Revision::NEVER_COMPACTED,
                ..Log::default()
            },
            published: Revision(1),
            watches: Watches::new(Revision(1), bounds, 99),
            queues: Queues {
                max: queue_max,
                ..Queues::default()
            },
            reads: Vec::new(),
            specs: BTreeMap::new(),
            clients: BTreeMap::new(),
            next_stream: 0,
        };
        for _ in 0..STREAMS {
            world.open();
        }
        world
    }

    fn open(&mut self) {
        let stream = StreamId(self.next_stream);
        self.next_stream += 1;
        self.watches.open(stream);
        self.queues.streams.insert(stream, Vec::new());
        self.specs.insert(stream, Vec::new());
    }

    fn stream(&self, nth: usize) -> StreamId {
        let nth = self.queues.streams.keys().nth(nth % STREAMS);
        *nth.expect("as many streams are open at all times")
    }

    fn publish(&mut self) {
        let records = self.log.since(self.published);
        self.published = self.log.newest();
        self.watches
            .publish(&records, self.published, &self.log, &mut self.queues);
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Write(revisions) => {
                for changes in revisions {
                    self.log.write(&changes);
                }
                self.publish();
            }
            Op::LoseBatch(changes) => {
                self.log.write(&changes);
                self.published = self.log.newest();
            }
            Op::Create { stream, spec, ago } => self.create(self.stream(stream), spec, ago),
            Op::Cancel { stream, id } => {
                let stream = self.stream(stream);
                self.watches.cancel(stream, WatchId(id), &mut self.queues);
            }
            Op::Close { stream } => {
                let stream = self.stream(stream);
                self.watches.close(stream);
                self.queues.streams.remove(&stream);
                self.queues.hungry.retain(|hungry| *hungry != stream);
                self.clients.retain(|(of, _), _| *of != stream);
                self.open();
            }
            Op::Take { stream, responses } => self.take(self.stream(stream), responses),
            Op::StartRead => {
                if let Some(task) = self.watches.next_read(&mut self.queues) {
                    let found = task.run(&self.log).unwrap();
                    self.reads.push((task, found));
                }
            }
            Op::FinishRead(nth) => {
                if !self.reads.is_empty() {
                    let (task, found) = self.reads.remove(nth % self.reads.len());
                    self.watches.complete(&task, found, &mut self.queues);
                }
            }
            Op::ReadRecent => {
                self.watches.read_recent(&self.log, &mut self.queues);
            }
            Op::Compact { ago } => {
                let at = Revision(self.published.0 - ago);
                if at > self.log.compacted && at <= self.watches.newest() && at.0 > 0 {
                    self.log.compacted = at;
                }
            }
            Op::Store { ago } => self.log.stored = Revision(self.published.0 - ago),
            Op::Progress { stream } => {
                let stream = self.stream(stream);
                self.watches.request_progress(stream, &mut self.queues);
            }
            Op::ProgressDue { stream } => {
                let stream = self.stream(stream);
                self.watches.progress_due(stream, &mut self.queues);
            }
        }
        self.watches.check();
    }

    /// Asks for a watch from now on, or from a revision counted back from four after the newest.
    fn create(&mut self, stream: StreamId, spec: WatchSpec, ago: i64) {
        let back = Revision((self.watches.newest().0 - ago + 4).max(1));
        let start = if ago == 0 { Revision(0) } else { back };
        let spec = WatchSpec { start, ..spec };
        let asked = self.specs.get_mut(&stream).unwrap();
        asked.push(spec.clone());
        self.watches
            .create(stream, spec, self.log.compacted, &mut self.queues);
    }

    /// The client of a stream takes responses.
    fn take(&mut self, stream: StreamId, count: usize) {
        let queue = self.queues.streams.get_mut(&stream).unwrap();
        let count = count.min(queue.len());
        let taken: Vec<Response> = queue.drain(..count).collect();
        let room = queue.len() <= self.queues.max / 2;
        for response in taken {
            self.receive(stream, response);
        }
        if room && self.queues.hungry.contains(&stream) {
            self.queues.hungry.retain(|hungry| *hungry != stream);
            self.watches.drained(stream, &mut self.queues);
        }
    }

    fn receive(&mut self, stream: StreamId, response: Response) {
        let place = (stream, response.watch);
        match response.body {
            Body::Refused(_) => {
                assert_eq!(response.watch, WatchId::NONE);
                self.specs.get_mut(&stream).unwrap().remove(0);
            }
            Body::Created => {
                let spec = self.specs.get_mut(&stream).unwrap().remove(0);
                let from = match spec.start {
                    Revision(0) => response.revision.next(),
                    start => start,
                };
                let seen = Seen {
                    spec,
                    from,
                    events: Vec::new(),
                    ended: false,
                };
                let before = self.clients.insert(place, seen);
                assert!(
                    before.is_none_or(|seen| seen.ended),
                    "an id is used once at a time"
                );
            }
            Body::Events { events, .. } => self.receive_events(place, response.revision, &events),
            Body::Cancelled | Body::Denied => self.clients.get_mut(&place).unwrap().ended = true,
            Body::Compacted { oldest } => {
                let seen = self.clients.get_mut(&place).unwrap();
                seen.ended = true;
                assert!(
                    seen.from < oldest,
                    "what a watch waits for is not compacted"
                );
                assert_eq!(response.revision, Revision(0));
                let last = seen.events.last().map(|event| event.rev.major);
                assert!(
                    last.is_none_or(|last| last < oldest),
                    "it has seen later events"
                );
            }
            Body::Progress => {
                let of_stream = self.clients.iter().filter(|((of, id), seen)| {
                    *of == stream
                        && !seen.ended
                        && (response.watch == WatchId::NONE || response.watch == *id)
                });
                for (_, seen) in of_stream {
                    assert!(
                        seen.spec.start <= response.revision,
                        "a watch from the future gets no notification"
                    );
                    self.compare(seen, response.revision);
                }
            }
        }
    }

    fn receive_events(&mut self, place: (StreamId, WatchId), revision: Revision, events: &Events) {
        let seen = self
            .clients
            .get_mut(&place)
            .expect("events come after created");
        assert!(!seen.ended, "no event follows the end of a watch");
        let first = events.first().expect("no response of events is empty");
        let last_seen = seen.events.last().map(|event| event.rev.major);
        assert!(
            last_seen < Some(first.rev.major),
            "a revision is in one response only"
        );
        assert!(
            revision >= events.last().unwrap().rev.major,
            "the header is not behind"
        );
        seen.events.extend_from_slice(events);
        let seen = &self.clients[&place];
        self.compare(seen, seen.events.last().unwrap().rev.major);
    }

    /// A watch has seen the true history up to `through`.
    fn compare(&self, seen: &Seen, through: Revision) {
        let spec = &seen.spec;
        let wanted: Vec<&Record> = self
            .log
            .records
            .iter()
            .filter(|record| {
                (seen.from..=through).contains(&record.rev.major)
                    && spec.range.contains(record::key_slice(&record.kv))
                    && spec.filters.admit(record.kind)
            })
            .collect();
        let revs: Vec<Rev> = wanted.iter().map(|record| record.rev).collect();
        let got: Vec<Rev> = seen.events.iter().map(|event| event.rev).collect();
        assert_eq!(got, revs, "a watch of {spec:?} through {through}");
        for (event, record) in seen.events.iter().zip(wanted) {
            let key = record::key_slice(&record.kv);
            assert_eq!((event.kind, event.key()), (record.kind, key));
            let before = self.log.live(key, Revision(record.rev.major.0 - 1));
            let creation = record::create_revision_of(&record.kv) == record.rev.major;
            let before = before.map(|record| &record.kv);
            let before = before.filter(|_| spec.prev_kv && !creation);
            let compacted = record.rev.major.0 - 1 < self.log.compacted.0;
            if event.prev_kv().is_some() || !compacted {
                assert_eq!(
                    event.prev_kv().as_ref(),
                    before,
                    "the state before {:?}",
                    event.rev
                );
            }
        }
    }

    /// Clients take everything until nothing more comes; then every watch has seen everything.
    fn settle(&mut self) {
        self.log.write(&[(b'a', true)]);
        self.publish();
        for turn in 0.. {
            assert!(turn < 10_000, "catching up comes to an end");
            let streams: Vec<StreamId> = self.queues.streams.keys().copied().collect();
            for stream in streams {
                self.take(stream, usize::MAX);
            }
            let mut busy = self.watches.read_recent(&self.log, &mut self.queues);
            if let Some(task) = self.watches.next_read(&mut self.queues) {
                let found = task.run(&self.log).unwrap();
                self.reads.push((task, found));
            }
            if let Some((task, found)) = self.reads.pop() {
                self.watches.complete(&task, found, &mut self.queues);
                busy = true;
            }
            self.watches.check();
            let queued = self.queues.streams.values().any(|queue| !queue.is_empty());
            if !busy && !queued {
                break;
            }
        }
        assert_eq!(
            self.watches.synced(),
            self.watches.len(),
            "everybody catches up"
        );
        for seen in self.clients.values().filter(|seen| !seen.ended) {
            self.compare(seen, self.log.newest());
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<(u8, bool)>> {
    prop::collection::vec((b'a'..b'f', prop::bool::weighted(0.7)), 1..4)
}

fn spec() -> impl Strategy<Value = WatchSpec> {
    let key = || (b'a'..b'g').prop_map(|key| Bytes::from(vec![key]));
    let end = prop_oneof![
        2 => Just(Bytes::new()),
        1 => Just(Bytes::from_static(b"\0")),
        3 => key(),
    ];
    let filters = (prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let id = prop_oneof![5 => Just(0_i64), 1 => -1..4_i64];
    (key(), end, filters, any::<(bool, bool)>(), id).prop_map(|(key, end, filters, flags, id)| {
        WatchSpec {
            id: WatchId(id),
            filters: Filters {
                no_put: filters.0,
                no_delete: filters.1,
            },
            prev_kv: flags.0,
            progress_notify: flags.1,
            ..WatchSpec::of(KeyRange::from_wire(&key, &end))
        }
    })
}

fn op() -> impl Strategy<Value = Op> {
    let stream = 0..STREAMS;
    prop_oneof![
        8 => prop::collection::vec(changes(), 1..5).prop_map(Op::Write),
        1 => changes().prop_map(Op::LoseBatch),
        6 => (stream.clone(), spec(), 0..30_i64)
            .prop_map(|(stream, spec, ago)| Op::Create { stream, spec, ago }),
        1 => (stream.clone(), 0..4_i64).prop_map(|(stream, id)| Op::Cancel { stream, id }),
        1 => stream.clone().prop_map(|stream| Op::Close { stream }),
        6 => (stream.clone(), 1..6_usize)
            .prop_map(|(stream, responses)| Op::Take { stream, responses }),
        3 => Just(Op::StartRead),
        3 => (0..4_usize).prop_map(Op::FinishRead),
        3 => Just(Op::ReadRecent),
        1 => (0..12_i64).prop_map(|ago| Op::Compact { ago }),
        1 => (0..12_i64).prop_map(|ago| Op::Store { ago }),
        2 => stream.clone().prop_map(|stream| Op::Progress { stream }),
        2 => stream.prop_map(|stream| Op::ProgressDue { stream }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn every_watcher_sees_the_true_history(
        recent_bytes_max in prop_oneof![Just(0_usize), Just(2_000), Just(1_000_000)],
        queue_max in 1..6_usize,
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut world = World::new(recent_bytes_max, queue_max);
        for op in ops {
            world.step(op);
        }
        world.settle();
    }
}
