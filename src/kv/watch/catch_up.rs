//! Catching up: one bounded pass over a stretch of history for a group of watchers.

use super::super::{KeyRange, command::EncodedKv, records::ReadError};
use super::{
    event::{Event, WatchedChange},
    events::{Events, HeldBytes},
    intervals::Intervals,
    spec::{Filters, WatcherKey},
};
use crate::types::{Record, RecordKind, Rev, Revision};
use bytes::Bytes;
use std::{convert::Infallible, ops::ControlFlow, sync::Arc};

/// Records that one pass looks at, before it stops at the next revision.
const RECORDS_MAX: usize = 10_000;
/// Revisions with events for one watcher, before it stops. etcd: as many go into one response.
const REVISIONS_MAX: usize = 1_000;

/// Called with a record: its revision, its kind, and its `KeyValue`.
pub type Visit<'a> = dyn FnMut(Rev, RecordKind, &[u8]) -> ControlFlow<()> + 'a;

/// The part of the past that is known without reading a disk. Publishing a change uses nothing else.
pub trait Memory {
    /// History is complete from this revision on.
    fn compacted(&self) -> Revision;

    /// The change that wrote a key's state before `revision`, which is not compacted; `None` if the key did not exist.
    fn change_before(&self, key: &[u8], revision: Revision) -> Option<Rev>;

    /// A record, if it is in memory.
    fn held(&self, rev: Rev) -> Option<EncodedKv>;
}

/// The past, as a catch-up pass reads it.
pub trait History: Memory {
    /// A key's state before `revision`; `None` if it did not exist, or if that state is compacted.
    fn before(&self, key: &[u8], revision: Revision) -> Result<Option<EncodedKv>, ReadError>;

    /// Visits the changes of the revisions from `from` to `through`, in order, until `visit` breaks.
    fn scan(
        &self,
        from: Revision,
        through: Revision,
        visit: &mut Visit<'_>,
    ) -> Result<(), ReadError>;
}

/// A watcher, as a pass over history needs it.
#[derive(Clone, Debug)]
pub(super) struct Seeker {
    pub(super) watcher: WatcherKey,
    pub(super) range: KeyRange,
    /// It gets events from this revision on.
    pub(super) next: Revision,
    pub(super) filters: Filters,
    pub(super) prev_kv: bool,
}

/// A pass over history that is to be made.
#[derive(Clone, Debug)]
pub struct ReadTask {
    pub(super) seekers: Vec<Seeker>,
    /// The newest revision to read.
    pub(super) through: Revision,
    /// Bytes of matching events, counted once for each watcher, before it stops at the next revision.
    pub(super) bytes_max: usize,
    /// Counts what it copies.
    pub(super) held: HeldBytes,
}

/// What a pass found.
#[derive(Clone, Debug)]
pub enum CatchUp {
    /// Everything up to a revision.
    Read {
        /// The last revision of which everything is here.
        through: Revision,
        /// For each of the task's watchers, in its order, what is for it, if there is something.
        events: Vec<Option<Arc<Events>>>,
    },
    /// History begins later than the task.
    Compacted { oldest: Revision },
}

impl ReadTask {
    pub(super) fn from(&self) -> Revision {
        self.seekers
            .iter()
            .map(|seeker| seeker.next)
            .min()
            .unwrap_or(self.through)
    }

    /// Makes the pass. It takes a bounded time, unless one revision has very many changes.
    pub fn run(&self, history: &dyn History) -> Result<CatchUp, ReadError> {
        let (from, oldest) = (self.from(), history.compacted());
        if from < oldest {
            return Ok(CatchUp::Compacted { oldest });
        }
        let mut collector = Collector::new(self);
        let mut failed = None;
        history.scan(from, self.through, &mut |rev, kind, kv| match collector
            .visit_stored(rev, kind, kv, history)
        {
            Ok(flow) => flow,
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        failed.map_or_else(|| Ok(collector.finish()), Err)
    }
}

/// Gathers what changes mean for a task's watchers, until it has enough.
pub(super) struct Collector<'a> {
    task: &'a ReadTask,
    intervals: Intervals<usize>,
    events: Vec<Vec<Arc<Event>>>,
    /// Revisions in `events`, of the watcher that has most.
    revisions: usize,
    counts: Vec<usize>,
    bytes: usize,
    records: usize,
    current: Revision,
    done: bool,
    hits: Vec<usize>,
}

impl<'a> Collector<'a> {
    pub(super) fn new(task: &'a ReadTask) -> Self {
        let mut intervals = Intervals::new(1);
        for (at, seeker) in task.seekers.iter().enumerate() {
            intervals.insert(&seeker.range, at);
        }
        Self {
            task,
            intervals,
            events: vec![Vec::new(); task.seekers.len()],
            revisions: 0,
            counts: vec![0; task.seekers.len()],
            bytes: 0,
            records: 0,
            current: Revision(0),
            done: false,
            hits: Vec::new(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether any watcher asked for earlier states (`prev_kv`).
    pub(super) fn any_wants_prev(&self) -> bool {
        self.task.seekers.iter().any(|seeker| seeker.prev_kv)
    }

    /// Whether some watcher needs a change with the state before it.
    pub(super) fn wants_prev(&mut self, change: &WatchedChange) -> bool {
        self.look_up(change.rev(), change.kind(), change.key());
        let seekers = &self.task.seekers;
        self.hits.iter().any(|&at| seekers[at].prev_kv)
    }

    /// Ends the pass before the revision of the change last passed to [`Collector::wants_prev`]; returns the watchers that need
    /// it.
    pub(super) fn stop(&mut self) -> Vec<usize> {
        self.done = true;
        let seekers = &self.task.seekers;
        let hits = self.hits.iter().copied();
        hits.filter(|&at| seekers[at].prev_kv).collect()
    }

    /// Takes the next change, with the state before it if a watcher needs it; breaks before a revision that it has no room for.
    pub(super) fn visit(
        &mut self,
        change: &mut WatchedChange,
        prev: Option<&EncodedKv>,
    ) -> ControlFlow<()> {
        self.begin(change.rev())?;
        self.look_up(change.rev(), change.kind(), change.key());
        let Ok(()) = self.deal(change, |_, _| Ok::<_, Infallible>(prev.cloned()));
        ControlFlow::Continue(())
    }

    /// As [`Collector::visit`], without copying changes that no watcher gets.
    fn visit_stored(
        &mut self,
        rev: Rev,
        kind: RecordKind,
        kv: &[u8],
        history: &dyn History,
    ) -> Result<ControlFlow<()>, ReadError> {
        if self.begin(rev).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.look_up(rev, kind, super::super::record::key_slice(kv));
        if !self.hits.is_empty() {
            let record = Record {
                rev,
                kind,
                kv: Bytes::copy_from_slice(kv),
            };
            let before = |key: &[u8], at| history.before(key, at);
            self.deal(&mut WatchedChange::new(record), before)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn begin(&mut self, rev: Rev) -> ControlFlow<()> {
        if rev.major > self.task.through {
            return ControlFlow::Break(());
        }
        if rev.major != self.current {
            let full = self.records >= RECORDS_MAX
                || self.bytes >= self.task.bytes_max
                || self.revisions >= REVISIONS_MAX;
            if full {
                self.done = true;
                return ControlFlow::Break(());
            }
            self.current = rev.major;
        }
        self.records += 1;
        ControlFlow::Continue(())
    }

    /// Finds the watchers that a change goes to.
    fn look_up(&mut self, rev: Rev, kind: RecordKind, key: &[u8]) {
        let (hits, seekers) = (&mut self.hits, &self.task.seekers);
        hits.clear();
        self.intervals.find(key, &mut |at: usize| {
            let seeker = &seekers[at];
            if rev.major >= seeker.next && seeker.filters.admit(kind) {
                hits.push(at);
            }
        });
    }

    fn deal<E>(
        &mut self,
        change: &mut WatchedChange,
        before: impl Fn(&[u8], Revision) -> Result<Option<EncodedKv>, E>,
    ) -> Result<(), E> {
        for &at in &self.hits {
            let event = change.event(self.task.seekers[at].prev_kv, &before)?;
            self.bytes += event.wire.len();
            let events = &mut self.events[at];
            if events
                .last()
                .is_none_or(|last| last.rev.major != event.rev.major)
            {
                self.counts[at] += 1;
                self.revisions = self.revisions.max(self.counts[at]);
            }
            events.push(event);
        }
        Ok(())
    }

    pub(super) fn finish(self) -> CatchUp {
        let through = if self.done {
            self.current
        } else {
            self.task.through
        };
        CatchUp::Read {
            through,
            events: shared(&self.events, &self.task.held),
        }
    }
}

/// Makes the responses. Neighbouring watchers with the same events, such as those of one range, share one.
fn shared(found: &[Vec<Arc<Event>>], held: &HeldBytes) -> Vec<Option<Arc<Events>>> {
    let mut last: Option<(&[Arc<Event>], Arc<Events>)> = None;
    let mut responses = Vec::with_capacity(found.len());
    for list in found {
        if list.is_empty() {
            responses.push(None);
            continue;
        }
        let shared = match last.take() {
            Some((known, events)) if is_same(known, list) => events,
            Some(_) | None => Events::counted(list, held),
        };
        responses.push(Some(shared.clone()));
        last = Some((list, shared));
    }
    responses
}

fn is_same(a: &[Arc<Event>], b: &[Arc<Event>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}
