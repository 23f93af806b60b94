//! Views: immutable states of the whole store, each at one revision.
//!
//! A view is the index's snapshot, the tail of records that are not yet in the database, and a read transaction of the database
//! that holds all others. It never changes, so readers neither wait for the applier nor delay it, and a compaction that
//! runs meanwhile removes nothing from it.

use super::{
    KeyRange, KvError,
    answer_reads::{ANSWER_BYTES_MAX, AnswerError, AnswerLimits, take},
    command::{EncodedKv, RangeDone, RangeQuery, Txn, TxnDone},
    index::{Meta, Snapshot},
    keys::{Keys, Steps},
    pick::PickRoom,
    range::{self, Picked, Results, RevisionWindow},
    records::{ReadError, Records},
    tail::Tail,
    txn,
    watch::{History, Memory, Visit},
};
use crate::types::{Rev, Revision};
use std::{ops::ControlFlow, sync::Arc};

/// Bytes of records in the answer to a range. etcd: gRPC's limit on a message.
const RANGE_BYTES_MAX: usize = 0x7fff_ffff;

/// Records that a database holds, readable from any thread.
pub type Stored = Arc<dyn StoredRecords + Send + Sync>;

/// Records that can also be read in the order of their revisions.
pub trait StoredRecords: Records {
    /// The `KeyValue` that the put at `rev` stored, if it is in memory. Never waits for a disk.
    fn cached(&self, rev: Rev) -> Option<EncodedKv>;
    /// Visits the records from `from` up to, not including, `to`, in order, until `visit` breaks.
    fn scan(&self, from: Rev, to: Rev, visit: &mut Visit<'_>) -> Result<(), ReadError>;
}

/// The store at one revision.
#[derive(Clone)]
pub struct View {
    /// The revisions that can be read.
    pub window: RevisionWindow,
    pub keys: Snapshot,
    /// Records not yet in the database, or not yet in `stored`.
    pub tail: Tail,
    /// All other records.
    pub stored: Stored,
}

impl View {
    /// Runs a read. The inner result is the answer; the outer error says that this member cannot read its own records.
    pub fn range(&self, query: &RangeQuery) -> Result<Result<RangeDone, KvError>, ReadError> {
        let picked = match self.pick(query, &PickRoom::unlimited()) {
            Ok(picked) => picked,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let (mut left, bytes_max) = (RANGE_BYTES_MAX, RANGE_BYTES_MAX);
        AnswerError::split(picked.read(self, &mut |bytes: usize| {
            left = left
                .checked_sub(bytes)
                .ok_or(AnswerError::TooLarge { bytes_max })?;
            Ok(())
        }))
    }

    /// The view's records that are in memory. Reading any other is an error: [`ReadError::is_not_in_memory`].
    pub fn in_memory(&self) -> impl Records + use<'_> {
        InMemory(self)
    }

    /// All records of the view, for short reads on a thread that may block: what they read is in memory afterwards.
    pub fn keeping(&self) -> impl Records + use<'_> {
        Keeping(self)
    }

    /// As [`View::range`] with the records that `records` has, unless the results take more than `bytes_max` bytes: then `None`,
    /// after reading about so many.
    pub fn range_within(
        &self,
        records: &dyn Records,
        query: &RangeQuery,
        bytes_max: usize,
    ) -> Result<Result<Option<RangeDone>, KvError>, ReadError> {
        let room = PickRoom::new(u64::MAX, bytes_max);
        match self.pick(query, &room) {
            Ok(_) if room.is_used_up() => Ok(Ok(None)),
            Ok(picked) => picked.read_within(records, &mut { bytes_max }).map(Ok),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// The results of a read in order, whose records are then read piece by piece. Another order than that of the keys needs in
    /// memory what the index has for all results, or for as many as the limit allows; a sort by values, and some others at an
    /// older revision, need that for all keys, and the values. It takes at most `bytes_max` bytes.
    pub fn results(
        &self,
        query: &RangeQuery,
        bytes_max: usize,
    ) -> Result<Result<Results, KvError>, AnswerError> {
        if range::is_in_pages(query) {
            let at = match self.window.resolve(query.revision) {
                Ok(at) => at,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let (keys, now) = (&self.keys, self.window.newest);
            return Ok(Ok(Results::in_pages(keys, query.clone(), at, now)));
        }
        let room = PickRoom::new(u64::MAX, bytes_max);
        match self.pick(query, &room) {
            Ok(_) if room.is_used_up() => Err(AnswerError::TooLarge { bytes_max }),
            Ok(picked) => {
                let mut left = room.bytes_left();
                let mut admit = |bytes| take(&mut left, bytes, bytes_max);
                let results = picked.in_order(self, &mut admit)?;
                Ok(Ok(results.holding(bytes_max - left)))
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// What the index has for a read, whose records are not read yet, as far as there is room.
    fn pick(&self, query: &RangeQuery, room: &PickRoom) -> Result<Picked, KvError> {
        let at = self.window.resolve(query.revision)?;
        let (keys, now) = (&self.keys, self.window.newest);
        Ok(Picked::new(keys, query.clone(), at, now, room))
    }

    /// Keys of a range at a revision; `None` is the newest.
    pub fn count(&self, range: &KeyRange, at: Option<Revision>) -> i64 {
        range::count(&self.keys, range, at, &Steps::unlimited())
    }

    /// The first `limit` results of a range at a revision inside the window, without counting the rest.
    pub fn page(
        &self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
        keys_only: bool,
    ) -> Result<Page, ReadError> {
        let mut revs = Vec::new();
        let mut take = |rev: Rev| {
            revs.push(rev);
            if revs.len() > limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        if at == self.window.newest {
            let mut take = |_: &[u8], meta: Meta| take(meta.modified);
            self.keys.visit(range, &Steps::unlimited(), &mut take);
        } else {
            let mut take = |_: &[u8], rev: Rev| take(rev);
            self.keys
                .visit_at(range, at, &Steps::unlimited(), &mut take);
        }
        let more = revs.len() > limit;
        revs.truncate(limit);
        let read = |rev: Rev| {
            let kv = self.get(rev)?;
            if keys_only {
                range::without_value(rev, &kv)
            } else {
                Ok(kv)
            }
        };
        let kvs = revs.into_iter().map(read).collect::<Result<_, _>>()?;
        Ok(Page { kvs, more })
    }

    /// Runs a transaction that only reads.
    pub fn read_txn(&self, txn: &Txn) -> Result<Result<TxnDone, KvError>, ReadError> {
        let done = self.read_txn_within(self, txn, ANSWER_BYTES_MAX)?;
        Ok(done.and_then(|done| {
            let bytes_max = ANSWER_BYTES_MAX;
            done.ok_or(KvError::AnswerTooLarge { bytes_max })
        }))
    }

    /// As [`View::read_txn`] with the records that `records` has, unless the results take more than `bytes_max` bytes: then
    /// `None`, after reading about so many.
    pub fn read_txn_within(
        &self,
        records: &dyn Records,
        txn: &Txn,
        bytes_max: usize,
    ) -> Result<Result<Option<TxnDone>, KvError>, ReadError> {
        let limits = AnswerLimits {
            bytes: bytes_max,
            ..AnswerLimits::READ
        };
        txn::read(txn, &self.keys, records, self.window, limits)
    }
}

/// A part of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub kvs: Vec<EncodedKv>,
    pub more: bool,
}

impl Records for View {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        match self.tail.get(rev) {
            Some(record) => Ok(record.kv.clone()),
            None => self.stored.get(rev),
        }
    }

    fn get_within(&self, rev: Rev, bytes_max: usize) -> Result<Option<EncodedKv>, ReadError> {
        match self.tail.get(rev) {
            Some(record) if record.kv.len() <= bytes_max => Ok(Some(record.kv.clone())),
            Some(_) => Ok(None),
            None => self.stored.get_within(rev, bytes_max),
        }
    }

    fn visit(&self, rev: Rev, seen: &mut dyn FnMut(&[u8])) -> Result<(), ReadError> {
        match self.tail.get(rev) {
            Some(record) => {
                seen(&record.kv);
                Ok(())
            }
            None => self.stored.visit(rev, seen),
        }
    }
}

/// See [`View::in_memory`].
struct InMemory<'a>(&'a View);

impl Records for InMemory<'_> {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        if let Some(record) = self.0.tail.get(rev) {
            return Ok(record.kv.clone());
        }
        let cached = self.0.stored.cached(rev);
        cached.ok_or_else(|| ReadError::not_in_memory(rev))
    }
}

/// See [`View::keeping`]: unlike [`View`], it reads every record whole, so that the record cache stores it.
struct Keeping<'a>(&'a View);

impl Records for Keeping<'_> {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        self.0.get(rev)
    }
}

impl Memory for View {
    fn compacted(&self) -> Revision {
        self.window.compacted
    }

    fn change_before(&self, key: &[u8], revision: Revision) -> Option<Rev> {
        self.keys.rev_at(key, Revision(revision.0 - 1))
    }

    fn held(&self, rev: Rev) -> Option<EncodedKv> {
        self.tail.get(rev).map(|record| record.kv.clone())
    }
}

impl History for View {
    fn before(&self, key: &[u8], revision: Revision) -> Result<Option<EncodedKv>, ReadError> {
        if revision <= self.window.compacted {
            return Ok(None);
        }
        let change = self.change_before(key, revision);
        change.map(|rev| self.get(rev)).transpose()
    }

    fn scan(
        &self,
        from: Revision,
        through: Revision,
        visit: &mut Visit<'_>,
    ) -> Result<(), ReadError> {
        let (from, to) = (Rev::new(from, 0), Rev::new(through.next(), 0));
        // What is in the tail may be in the database as well by now.
        let tail_from = self.tail.first().map_or(to, |record| record.rev.min(to));
        let mut stopped = false;
        self.stored.scan(from, tail_from, &mut |rev, kind, kv| {
            let flow = visit(rev, kind, kv);
            stopped = flow.is_break();
            flow
        })?;
        for record in self
            .tail
            .iter_from(from)
            .take_while(|record| record.rev < to)
        {
            if stopped || visit(record.rev, record.kind, &record.kv).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kv::{
            command::{RevisionFilter, SortOrder, SortTarget},
            index::Index,
            record::{self, Fields},
        },
        types::LeaseId,
    };
    use std::collections::BTreeMap;

    const KEYS: i64 = 300;

    struct Disk(BTreeMap<Rev, EncodedKv>);

    impl Records for Disk {
        fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
            Ok(self.0[&rev].clone())
        }
    }

    impl StoredRecords for Disk {
        fn cached(&self, _: Rev) -> Option<EncodedKv> {
            None
        }

        fn scan(&self, _: Rev, _: Rev, _: &mut Visit<'_>) -> Result<(), ReadError> {
            unreachable!("no range scans")
        }
    }

    /// Keys that were put once or twice, or deleted.
    fn view() -> View {
        let (mut index, mut disk) = (Index::new(), BTreeMap::new());
        let mut revision = Revision(1);
        for round in 0..2 {
            for n in (0..KEYS).filter(|n| round == 0 || n % 3 == 0) {
                revision = revision.next();
                let (key, rev) = (format!("k{n:03}"), Rev::new(revision, 0));
                if round == 1 && n % 2 == 0 {
                    index.delete(key.as_bytes(), rev);
                    continue;
                }
                index.put(key.as_bytes(), rev, LeaseId(0));
                let kv = record::encode(&Fields {
                    key: key.as_bytes(),
                    create_revision: revision,
                    mod_revision: revision,
                    version: 1,
                    value: &vec![b'v'; usize::try_from(n).unwrap()],
                    lease: LeaseId(0),
                });
                disk.insert(rev, kv);
            }
        }
        View {
            window: RevisionWindow {
                newest: revision,
                compacted: Revision::NEVER_COMPACTED,
            },
            keys: index.snapshot(),
            tail: Tail::default(),
            stored: Arc::new(Disk(disk)),
        }
    }

    fn all() -> RangeQuery {
        RangeQuery {
            key: "k".into(),
            range_end: "l".into(),
            ..RangeQuery::default()
        }
    }

    /// The results in parts of about `bytes` bytes.
    fn in_parts(view: &View, query: &RangeQuery, bytes: usize) -> RangeDone {
        let mut results = view.results(query, 1 << 20).unwrap().unwrap();
        let mut measured = Vec::new();
        results
            .measure(view, &mut |len| measured.push(len))
            .unwrap();
        let mut kvs = Vec::new();
        while !results.is_over() {
            let some = results.read_some(view, bytes).unwrap();
            assert!(!some.is_empty(), "a page has results");
            kvs.extend(some);
        }
        let lens: Vec<usize> = kvs.iter().map(EncodedKv::len).collect();
        assert_eq!(measured, lens, "the lengths are known before");
        RangeDone {
            revision: results.revision(),
            more: results.more(),
            count: results.count(),
            kvs,
        }
    }

    #[test]
    fn results_are_the_same_page_by_page() {
        let view = view();
        for revision in [0, 150, 302, 350] {
            for limit in [0, 1, 16, 70, 299, 1_000] {
                for keys_only in [false, true] {
                    for key in ["k", "k123", "k299", "kx"] {
                        let query = RangeQuery {
                            key: key.into(),
                            revision,
                            limit,
                            keys_only,
                            ..all()
                        };
                        let whole = view.range(&query).unwrap().unwrap();
                        for bytes in [1, 500, 1 << 20] {
                            assert_eq!(in_parts(&view, &query, bytes), whole, "{query:?}");
                        }
                    }
                }
            }
        }
    }

    /// All orders and filters of a range over all keys.
    fn sorted_or_filtered() -> Vec<RangeQuery> {
        let filters = [
            (0, 0, 0, 0),
            (40, 0, 0, 0),
            (0, 330, 0, 0),
            (0, 0, 30, 0),
            (2, 340, 2, 200),
        ];
        let mut all_of = Vec::new();
        let targets = [
            SortTarget::Key,
            SortTarget::Version,
            SortTarget::Create,
            SortTarget::Mod,
            SortTarget::Value,
        ];
        for sort_order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
            for sort_target in targets {
                for (min_mod, max_mod, min_create, max_create) in filters {
                    for keys_only in [false, true] {
                        all_of.push(RangeQuery {
                            sort_order,
                            sort_target,
                            filter: RevisionFilter {
                                min_mod,
                                max_mod,
                                min_create,
                                max_create,
                            },
                            keys_only,
                            ..all()
                        });
                    }
                }
            }
        }
        all_of
    }

    #[test]
    fn a_limit_cuts_the_results_of_every_order_and_filter() {
        let view = view();
        for query in sorted_or_filtered() {
            // etcd: such a sort comes after the cut.
            let cut_first = query.sort_order == SortOrder::None && query.filter.is_off();
            if cut_first && query.sort_target != SortTarget::Key {
                continue;
            }
            for revision in [0, 320] {
                let of = |limit| RangeQuery {
                    limit,
                    revision,
                    ..query.clone()
                };
                let all = view.range(&of(0)).unwrap().unwrap();
                for limit in [1, 3, 199, 200, 201, 1_000] {
                    let cut = view.range(&of(limit)).unwrap().unwrap();
                    let limit = usize::try_from(limit).unwrap().min(all.kvs.len());
                    assert_eq!(cut.kvs, all.kvs[..limit], "{query:?}");
                    assert_eq!(cut.more, limit < all.kvs.len(), "{query:?}");
                    assert_eq!(cut.count, all.count, "{query:?}");
                }
            }
        }
    }

    #[test]
    fn a_limit_bounds_what_is_held_of_the_keys_to_sort() {
        let view = view();
        for query in sorted_or_filtered() {
            if query.sort_target == SortTarget::Value {
                continue;
            }
            let few = RangeQuery { limit: 2, ..query };
            let results = view.results(&few, 1_000);
            assert!(matches!(results, Ok(Ok(_))), "{few:?}: {results:?}");
        }
        let one_of_all = RangeQuery {
            filter: RevisionFilter {
                min_mod: 302,
                max_mod: 303,
                ..RevisionFilter::default()
            },
            ..all()
        };
        for revision in [0, 320] {
            let one = RangeQuery {
                revision,
                ..one_of_all.clone()
            };
            let results = view.results(&one, 1_000).unwrap().unwrap();
            assert!(results.held_bytes() <= 1_000);
        }
    }

    #[test]
    fn picked_keys_count_before_they_are_read() {
        let view = view();
        let descending = RangeQuery {
            sort_order: SortOrder::Descend,
            sort_target: SortTarget::Key,
            ..all()
        };
        let held = |query: &RangeQuery, bytes_max| {
            let results = view.results(query, bytes_max);
            results.map(|results| results.unwrap().held_bytes())
        };
        let needed = held(&descending, 1 << 20).unwrap();
        assert!(needed >= 200 * size_of::<Rev>(), "{needed} bytes");
        assert_eq!(held(&descending, needed).unwrap(), needed);
        let refused = held(&descending, needed - 1);
        assert!(matches!(refused, Err(AnswerError::TooLarge { .. })));
        let by_page = held(&all(), 0).unwrap();
        assert!(
            by_page < needed,
            "in key order only a page: {by_page} bytes"
        );
        let within = view.range_within(&view, &descending, needed / 2);
        assert_eq!(within.unwrap().unwrap(), None);
    }
}
