//! Reads a range: picks its keys, filters and sorts them, and cuts to the limit.
//!
//! Etcd's order of evaluation: pick the keys at the revision, filter by revisions, sort, cut to the limit, strip the values. What
//! the index alone can decide of this is decided while the keys are picked, so a limit bounds what is held (`pick`).
//! At the head the index alone is enough for everything but values (counts, filters, sorts by revision or version, keys-only
//! results); records are read only for the results that are left after the cut.

use super::{
    KeyRange, KvError,
    command::{EncodedKv, RangeDone, RangeQuery, SortOrder, SortTarget},
    copied::CopyBuffer,
    index::{Meta, Snapshot},
    keys::{Keys, Steps},
    pick::{Found, PickRoom, pick, sort_of},
    record::{self, KeyValue},
    records::{RESULT_BYTES, ReadError, Records},
};
use crate::types::{LeaseId, Rev, Revision};
use bytes::Bytes;
use std::{cmp::Ordering, ops::ControlFlow};

/// An answer of so many results or more holds copies of the records; see [`RangeDone::kvs`].
pub const COPIED_MIN: usize = 16;

/// Bytes of keys that a long read in key order picks at once. Tests need several pages of few keys.
const PAGE_BYTES: usize = if cfg!(test) { 4 * 1024 } else { 1024 * 1024 };

/// What a reader may ask for: from the compacted revision to the newest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevisionWindow {
    pub newest: Revision,
    /// The oldest readable one.
    pub compacted: Revision,
}

impl RevisionWindow {
    pub fn check(&self, asked: Revision) -> Result<(), KvError> {
        if asked > self.newest {
            return Err(KvError::FutureRevision {
                asked,
                newest: self.newest,
            });
        }
        if asked < self.compacted {
            return Err(KvError::Compacted {
                asked,
                oldest: self.compacted,
            });
        }
        Ok(())
    }

    /// The revision that a range outside a transaction reads at; `None` is the head. Zero and less mean the newest.
    pub fn resolve(&self, asked: i64) -> Result<Option<Revision>, KvError> {
        if asked <= 0 {
            return Ok(None);
        }
        self.check(Revision(asked))?;
        Ok((asked != self.newest.0).then_some(Revision(asked)))
    }
}

/// A query for which the index has been asked, and the records have not been read yet.
#[derive(Debug)]
pub struct Picked {
    query: RangeQuery,
    /// Whether metadata came from the index.
    at_head: bool,
    limit: Option<usize>,
    found: Vec<Found>,
    count: i64,
    now: Revision,
}

impl Picked {
    /// Picks the keys of a query as far as there is room: see [`PickRoom::is_used_up`]. `at` is the revision to read at (`None`:
    /// the head); `now` is the revision to report.
    pub fn new(
        keys: &impl Keys,
        query: RangeQuery,
        at: Option<Revision>,
        now: Revision,
        room: &PickRoom,
    ) -> Self {
        let range = KeyRange::from_wire(&query.key, &query.range_end);
        let limit = usize::try_from(query.limit).ok().filter(|&limit| limit > 0);
        let (found, count) = if query.count_only {
            (Vec::new(), count(keys, &range, at, &room.steps))
        } else {
            pick(keys, &query, &range, at, limit, room)
        };
        Self {
            query,
            at_head: at.is_none(),
            limit,
            found,
            count,
            now,
        }
    }

    fn must_load(&self) -> bool {
        must_load(&self.query, self.at_head)
    }

    /// The records that [`Picked::read`] will read, and a few more at most.
    pub fn revs(&self) -> impl Iterator<Item = Rev> {
        let from_index = self.query.keys_only && !self.must_load();
        let found = self.found.iter().filter(move |_| !from_index);
        found.map(|item| item.rev)
    }

    pub fn len(&self) -> usize {
        self.found.len()
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Reads the records. `admit` gets the size of each before it is added to the answer; its error ends the read.
    pub fn read<E: From<ReadError>>(
        self,
        records: &dyn Records,
        admit: &mut dyn FnMut(usize) -> Result<(), E>,
    ) -> Result<RangeDone, E> {
        let mut results = self.in_order(records, admit)?;
        let mut kvs = Vec::with_capacity(results.left());
        while let Some(kv) = results.next(records, usize::MAX)? {
            admit(kv.len())?;
            kvs.push(kv);
        }
        Ok(results.done(kvs))
    }

    /// Reads the records if they take no more than `left`, which is reduced by as much; otherwise `None`.
    pub fn read_within(
        self,
        records: &dyn Records,
        left: &mut usize,
    ) -> Result<Option<RangeDone>, ReadError> {
        let mut admit = |bytes| match left.checked_sub(bytes + RESULT_BYTES) {
            Some(rest) => {
                *left = rest;
                Ok(())
            }
            None => Err(Limited::Bytes),
        };
        let mut results = match self.in_order(records, &mut admit) {
            Ok(results) => results,
            Err(Limited::Bytes) => return Ok(None),
            Err(Limited::Read(error)) => return Err(error),
        };
        let mut kvs = Vec::with_capacity(results.left());
        while !results.is_over() {
            let bytes_max = left.saturating_sub(RESULT_BYTES);
            let Some(kv) = results.next(records, bytes_max)? else {
                return Ok(None);
            };
            *left = bytes_max - kv.len();
            kvs.push(kv);
        }
        Ok(Some(results.done(kvs)))
    }

    /// Filters, sorts and cuts, and reads the records that this needs. `admit` gets the size of each before it is kept; its error
    /// ends the read.
    pub fn in_order<E: From<ReadError>>(
        mut self,
        records: &dyn Records,
        admit: &mut dyn FnMut(usize) -> Result<(), E>,
    ) -> Result<Results, E> {
        if self.must_load() {
            let keep_values = sort_of(&self.query) == Some(SortTarget::Value);
            for item in &mut self.found {
                admit(item.load(records, keep_values)?)?;
            }
        }
        let (mut found, query) = (self.found, self.query);
        if !query.filter.is_off() {
            found.retain(|item| query.filter.admits(item.create(), item.rev.major));
        }
        sort(&mut found, &query);
        let mut more = false;
        if let Some(limit) = self.limit {
            more = found.len() > limit;
            found.truncate(limit);
        }
        Ok(Results {
            copies: (found.len() >= COPIED_MIN).then(CopyBuffer::default),
            query,
            found,
            next: 0,
            rest: None,
            held_bytes: 0,
            more,
            count: self.count,
            now: self.now,
        })
    }
}

/// Whether records are read that the answer may not hold, to sort or filter by them.
fn must_load(query: &RangeQuery, at_head: bool) -> bool {
    needs_metadata(query) && !at_head || sort_of(query) == Some(SortTarget::Value)
}

/// Why a bounded read stops.
enum Limited {
    Bytes,
    Read(ReadError),
}

impl From<ReadError> for Limited {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// The results of a query in their order. Their records are read one after another, and those in key order are picked page by
/// page, so an answer of any length takes little memory.
#[derive(Debug)]
pub struct Results {
    query: RangeQuery,
    found: Vec<Found>,
    /// The result that is read next.
    next: usize,
    /// What follows `found`; `None` if nothing does.
    rest: Option<Box<Rest>>,
    /// See [`Results::held_bytes`].
    held_bytes: usize,
    copies: Option<CopyBuffer>,
    more: bool,
    count: i64,
    now: Revision,
}

/// The keys of a read in key order that are not picked yet.
#[derive(Clone, Debug)]
struct Rest {
    keys: Snapshot,
    range: KeyRange,
    at: Option<Revision>,
    /// How many results may follow.
    left: usize,
}

impl Rest {
    /// Picks the next keys; there are some unless the range is empty.
    fn page(mut self: Box<Self>, keep_keys: bool) -> (Vec<Found>, Option<Box<Self>>) {
        let (mut found, mut bytes, mut next) = (Vec::new(), 0, None);
        let left = self.left;
        let mut take = |key: &[u8], rev: Rev, meta: Option<Meta>| {
            let kept = if keep_keys { key } else { &[] };
            bytes += size_of::<Found>() + kept.len();
            if found.len() == left || bytes > PAGE_BYTES && !found.is_empty() {
                next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            found.push(Found {
                key: kept.to_vec(),
                rev,
                meta,
                kv: None,
            });
            ControlFlow::Continue(())
        };
        let (keys, range, steps) = (&self.keys, &self.range, Steps::unlimited());
        match self.at {
            Some(at) => Keys::visit_at(keys, range, at, &steps, &mut |key, rev| {
                take(key, rev, None)
            }),
            None => Keys::visit(keys, range, &steps, &mut |key, meta| {
                take(key, meta.modified, Some(meta))
            }),
        }
        self.left -= found.len();
        let rest = next.filter(|_| self.left > 0).map(|start| {
            self.range.start = start;
            self
        });
        (found, rest)
    }
}

/// Whether a query's results can be picked page by page: they need no order but that of the keys.
pub fn is_in_pages(query: &RangeQuery) -> bool {
    let one = KeyRange::from_wire(&query.key, &query.range_end).is_single();
    !one && !query.count_only && query.filter.is_off() && sort_of(query).is_none()
}

impl Results {
    /// The results of a query that [`is_in_pages`]; none is picked yet. `at` and `now` as for [`Picked::new`].
    pub fn in_pages(
        keys: &Snapshot,
        query: RangeQuery,
        at: Option<Revision>,
        now: Revision,
    ) -> Self {
        let range = KeyRange::from_wire(&query.key, &query.range_end);
        let limit = usize::try_from(query.limit).ok().filter(|&limit| limit > 0);
        let count = count(keys, &range, at, &Steps::unlimited());
        let all = usize::try_from(count).unwrap_or(usize::MAX);
        let left = limit.map_or(all, |limit| limit.min(all));
        let keys = keys.clone();
        let rest = Rest {
            keys,
            range,
            at,
            left,
        };
        Self {
            query,
            found: Vec::new(),
            next: 0,
            rest: (left > 0).then(|| Box::new(rest)),
            held_bytes: PAGE_BYTES,
            copies: (left >= COPIED_MIN).then(CopyBuffer::default),
            more: left < all,
            count,
            now,
        }
    }

    /// The most bytes that it holds at a time of what was picked, or read to sort.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The same, which `bytes` were held of.
    #[must_use]
    pub fn holding(self, held_bytes: usize) -> Self {
        Self { held_bytes, ..self }
    }

    /// The revision to report.
    pub fn revision(&self) -> Revision {
        self.now
    }

    /// Whether the limit cut results off.
    pub fn more(&self) -> bool {
        self.more
    }

    /// Keys in the range, as [`RangeDone::count`].
    pub fn count(&self) -> i64 {
        self.count
    }

    /// Picked results that are not read yet.
    fn left(&self) -> usize {
        self.found.len() - self.next
    }

    /// Whether every result was read.
    pub fn is_over(&self) -> bool {
        self.left() == 0 && self.rest.is_none()
    }

    /// Picks the next page once all results of this one were read.
    fn turn_page(&mut self, records: &dyn Records) -> Result<(), ReadError> {
        if self.left() == 0
            && let Some(rest) = self.rest.take()
        {
            (self.found, self.rest) = self.page(rest, records)?;
            self.next = 0;
        }
        Ok(())
    }

    fn page(
        &self,
        rest: Box<Rest>,
        records: &dyn Records,
    ) -> Result<(Vec<Found>, Option<Box<Rest>>), ReadError> {
        let at_head = rest.at.is_none();
        let (mut found, rest) = rest.page(self.query.keys_only);
        if must_load(&self.query, at_head) {
            for item in &mut found {
                item.load(records, false)?;
            }
        }
        Ok((found, rest))
    }

    /// Reads the next results until they take `bytes` bytes of memory or more.
    pub fn read_some(
        &mut self,
        records: &dyn Records,
        bytes: usize,
    ) -> Result<Vec<EncodedKv>, ReadError> {
        let (mut kvs, mut sum) = (Vec::new(), 0);
        while sum < bytes {
            let Some(kv) = self.next(records, usize::MAX)? else {
                break;
            };
            sum += kv.len() + RESULT_BYTES;
            kvs.push(kv);
        }
        Ok(kvs)
    }

    /// Calls `seen` with the length of each result that is not read yet.
    pub fn measure(
        &self,
        records: &dyn Records,
        seen: &mut dyn FnMut(usize),
    ) -> Result<(), ReadError> {
        self.measure_picked(&self.found[self.next..], records, seen)?;
        let mut rest = self.rest.clone();
        while let Some(more) = rest {
            let (found, after) = self.page(more, records)?;
            self.measure_picked(&found, records, seen)?;
            rest = after;
        }
        Ok(())
    }

    fn measure_picked(
        &self,
        found: &[Found],
        records: &dyn Records,
        seen: &mut dyn FnMut(usize),
    ) -> Result<(), ReadError> {
        for item in found {
            if self.query.keys_only || item.kv.is_some() {
                let kv = item.result(records, &self.query, None, usize::MAX)?;
                seen(kv.map_or(0, |kv| kv.len()));
            } else {
                records.visit(item.rev, &mut |kv| seen(kv.len()))?;
            }
        }
        Ok(())
    }

    /// The next result; `None` at the end, or if it is longer than `bytes_max`: then it stays the next one.
    fn next(
        &mut self,
        records: &dyn Records,
        bytes_max: usize,
    ) -> Result<Option<EncodedKv>, ReadError> {
        self.turn_page(records)?;
        let Some(item) = self.found.get(self.next) else {
            return Ok(None);
        };
        let kv = item.result(records, &self.query, self.copies.as_mut(), bytes_max)?;
        self.next += usize::from(kv.is_some());
        Ok(kv)
    }

    fn done(self, kvs: Vec<EncodedKv>) -> RangeDone {
        RangeDone {
            revision: self.now,
            kvs,
            more: self.more,
            count: self.count,
        }
    }
}

fn needs_metadata(query: &RangeQuery) -> bool {
    let sorted = matches!(
        sort_of(query),
        Some(SortTarget::Version | SortTarget::Create)
    );
    sorted || query.filter.needs_create() || query.keys_only
}

/// Live keys in a range at a revision.
pub fn count(keys: &impl Keys, range: &KeyRange, at: Option<Revision>, steps: &Steps) -> i64 {
    let Some(at) = at else {
        return keys.count(range, steps).cast_signed();
    };
    let mut count = 0;
    keys.visit_at(range, at, steps, &mut |_, _| {
        count += 1;
        ControlFlow::Continue(())
    });
    count
}

/// etcd: results with an equal target stay in key order, in a descending sort as well.
fn sort(found: &mut [Found], query: &RangeQuery) {
    let Some(target) = sort_of(query) else { return };
    let descends = query.sort_order == SortOrder::Descend;
    let directed = |order: Ordering| if descends { order.reverse() } else { order };
    match target {
        SortTarget::Version => found.sort_by(|a, b| directed(a.version().cmp(&b.version()))),
        SortTarget::Create => found.sort_by(|a, b| directed(a.create().cmp(&b.create()))),
        SortTarget::Mod => found.sort_by(|a, b| directed(a.rev.major.cmp(&b.rev.major))),
        SortTarget::Value => found.sort_by(|a, b| directed(a.value().cmp(b.value()))),
        // They were picked in key order, each once.
        SortTarget::Key if descends => found.reverse(),
        // An unknown target is refused before.
        SortTarget::Key | SortTarget::Unknown => {}
    }
}

impl Found {
    /// Reads what a filter or a sort needs of the record: all of it with `keep_value`, and then gives its size in bytes;
    /// otherwise its metadata.
    fn load(&mut self, records: &dyn Records, keep_value: bool) -> Result<usize, ReadError> {
        let encoded = records.get(self.rev)?;
        let kv = decode(self.rev, &encoded)?;
        if keep_value {
            self.kv = Some(Box::new(kv));
            return Ok(encoded.len());
        }
        self.meta = Some(Meta {
            create: kv.create_revision,
            modified: self.rev,
            version: kv.version,
            lease: kv.lease,
        });
        Ok(0)
    }

    fn version(&self) -> i64 {
        let from_record = || self.kv.as_ref().map(|kv| kv.version);
        self.meta
            .map(|meta| meta.version)
            .or_else(from_record)
            .unwrap_or_default()
    }

    fn create(&self) -> Revision {
        let from_record = || self.kv.as_ref().map(|kv| kv.create_revision);
        self.meta
            .map(|meta| meta.create)
            .or_else(from_record)
            .unwrap_or_default()
    }

    fn value(&self) -> &[u8] {
        self.kv.as_ref().map_or(&[], |kv| &kv.value)
    }

    /// The result, unless it is longer than `bytes_max`. etcd 3.7: results without values come from the index and carry no lease,
    /// unless the values were read to sort.
    fn result(
        &self,
        records: &dyn Records,
        query: &RangeQuery,
        copies: Option<&mut CopyBuffer>,
        bytes_max: usize,
    ) -> Result<Option<EncodedKv>, ReadError> {
        let within = |kv: EncodedKv| (kv.len() <= bytes_max).then_some(kv);
        if query.keys_only {
            let sorted_by_value = query.sort_target == SortTarget::Value;
            let lease = self
                .kv
                .as_ref()
                .filter(|_| sorted_by_value)
                .map(|kv| kv.lease);
            return Ok(within(record::encode(&record::Fields {
                key: &self.key,
                create_revision: self.create(),
                mod_revision: self.rev.major,
                version: self.version(),
                value: &[],
                lease: lease.unwrap_or_default(),
            })));
        }
        match (&self.kv, copies) {
            (Some(kv), _) => Ok(within(kv.encode())),
            (None, Some(copies)) => copies.read(records, self.rev, bytes_max),
            (None, None) => records.get_within(self.rev, bytes_max),
        }
    }
}

/// Decodes a stored `KeyValue`, naming its revision if it is damaged.
pub(crate) fn decode(rev: Rev, encoded: &EncodedKv) -> Result<KeyValue, ReadError> {
    KeyValue::decode(encoded).map_err(|error| ReadError {
        rev,
        source: Box::new(error),
    })
}

/// A result as `keys_only` wants it. etcd 3.7: without the lease as well.
pub(crate) fn without_value(rev: Rev, encoded: &EncodedKv) -> Result<EncodedKv, ReadError> {
    let kv = decode(rev, encoded)?;
    Ok(KeyValue {
        value: Bytes::new(),
        lease: LeaseId(0),
        ..kv
    }
    .encode())
}
