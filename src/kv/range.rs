//! Reading a range: which keys, in which order, cut where.
//!
//! Etcd's order of evaluation: pick the keys at the revision, filter by revisions, sort, cut to the limit, strip the values.
//! At the head the index alone is enough for everything but values (counts, filters, sorts by revision or version, keys-only
//! results); records are read only for the results that are left after the cut.

use super::{
    KeyRange, KvError,
    command::{EncodedKv, RangeDone, RangeQuery, SortOrder, SortTarget},
    copied::CopyBuffer,
    index::Meta,
    keys::Keys,
    record::{self, KeyValue},
    records::{ReadError, Records},
};
use crate::types::{LeaseId, Rev, Revision};
use bytes::Bytes;
use std::{cmp::Ordering, ops::ControlFlow};

/// An answer of so many results or more holds copies of the records; see [`RangeDone::kvs`].
pub const COPIED_MIN: usize = 16;

/// What a reader may ask for: from the compacted revision to the newest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevisionWindow {
    /// The newest revision.
    pub newest: Revision,
    /// The oldest readable one.
    pub compacted: Revision,
}

impl RevisionWindow {
    /// Checks an explicit revision.
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

/// One result on its way: a key with what is known of it before its record is read.
#[derive(Debug)]
struct Found {
    /// Kept for results that are made without their record.
    key: Vec<u8>,
    rev: Rev,
    /// At the head, from the index; at an older revision, from the record if something asked for it.
    meta: Option<Meta>,
    /// The record, where it had to be read early.
    kv: Option<KeyValue>,
}

/// Runs a query. `at` is the revision to read at (`None`: the head); `now` is the revision to report.
pub fn range(
    keys: &impl Keys,
    records: &dyn Records,
    query: &RangeQuery,
    at: Option<Revision>,
    now: Revision,
) -> Result<RangeDone, ReadError> {
    Picked::new(keys, query.clone(), at, now).read(records, &mut |_| Ok(()))
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
    /// Picks the keys of a query, as [`range`] does.
    pub fn new(keys: &impl Keys, query: RangeQuery, at: Option<Revision>, now: Revision) -> Self {
        let range = KeyRange::from_wire(&query.key, &query.range_end);
        let limit = usize::try_from(query.limit).ok().filter(|&limit| limit > 0);
        let (found, count) = if query.count_only {
            (Vec::new(), count(keys, &range, at))
        } else {
            pick(
                keys,
                &range,
                at,
                fetch_limit(&query, limit),
                query.keys_only,
            )
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

    /// Whether records are read that the answer may not hold, to sort or filter by them.
    fn must_load(&self) -> bool {
        needs_metadata(&self.query) && !self.at_head
            || sort_of(&self.query) == Some(SortTarget::Value)
    }

    /// The records that [`Picked::read`] will read, and a few more at most.
    pub fn revs(&self) -> impl Iterator<Item = Rev> {
        let from_index = self.query.keys_only && !self.must_load();
        let found = self.found.iter().filter(move |_| !from_index);
        found.map(|item| item.rev)
    }

    /// Reads the records. `admit` is asked before the answer grows by so many bytes of records.
    pub fn read<E: From<ReadError>>(
        mut self,
        records: &dyn Records,
        admit: &mut dyn FnMut(usize) -> Result<(), E>,
    ) -> Result<RangeDone, E> {
        if self.must_load() {
            for item in &mut self.found {
                admit(item.load(records)?)?;
            }
        }
        let (mut found, query) = (self.found, &self.query);
        if !query.filter.is_off() {
            found.retain(|item| query.filter.admits(item.create(), item.rev.major));
        }
        sort(&mut found, query);
        let mut more = false;
        if let Some(limit) = self.limit {
            more = found.len() > limit;
            found.truncate(limit);
        }
        let mut copies = (found.len() >= COPIED_MIN).then(CopyBuffer::default);
        let mut kvs = Vec::with_capacity(found.len());
        for item in &found {
            let kv = item.result(records, query, copies.as_mut())?;
            admit(kv.len())?;
            kvs.push(kv);
        }
        Ok(RangeDone {
            revision: self.now,
            kvs,
            more,
            count: self.count,
        })
    }
}

/// How many keys to pick by key order. etcd: a sort by anything but the key with order NONE happens after this cut.
fn fetch_limit(query: &RangeQuery, limit: Option<usize>) -> Option<usize> {
    let key_order = query.sort_order == SortOrder::None
        || query.sort_order == SortOrder::Ascend && query.sort_target == SortTarget::Key;
    limit
        .filter(|_| key_order && query.filter.is_off())
        .map(|limit| limit.saturating_add(1))
}

/// The target of the sort, if one must be made.
fn sort_of(query: &RangeQuery) -> Option<SortTarget> {
    match (query.sort_order, query.sort_target) {
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => None,
        (_, target) => Some(target),
    }
}

fn needs_metadata(query: &RangeQuery) -> bool {
    let sorted = matches!(
        sort_of(query),
        Some(SortTarget::Version | SortTarget::Create)
    );
    sorted || !query.filter.is_off() || query.keys_only
}

/// Live keys in a range at a revision.
pub fn count(keys: &impl Keys, range: &KeyRange, at: Option<Revision>) -> i64 {
    let Some(at) = at else {
        return keys.count(range).cast_signed();
    };
    let mut count = 0;
    keys.visit_at(range, at, &mut |_, _| {
        count += 1;
        ControlFlow::Continue(())
    });
    count
}

/// The first `fetch` keys of a range (`None`: all), and how many there are in all.
fn pick(
    keys: &impl Keys,
    range: &KeyRange,
    at: Option<Revision>,
    fetch: Option<usize>,
    keep_keys: bool,
) -> (Vec<Found>, i64) {
    let room = fetch.unwrap_or(usize::MAX);
    let kept = |key: &[u8]| if keep_keys { key.to_vec() } else { Vec::new() };
    let mut found = Vec::new();
    if let Some(at) = at {
        let mut count = 0;
        keys.visit_at(range, at, &mut |key, rev| {
            count += 1;
            if found.len() < room {
                found.push(Found {
                    key: kept(key),
                    rev,
                    meta: None,
                    kv: None,
                });
            }
            ControlFlow::Continue(())
        });
        return (found, count);
    }
    let item = |key: &[u8], meta: Meta| Found {
        key: kept(key),
        rev: meta.modified,
        meta: Some(meta),
        kv: None,
    };
    if range.is_single() {
        found.extend(keys.get(&range.start).map(|meta| item(&range.start, meta)));
        let count = found.len() as u64;
        return (found, count.cast_signed());
    }
    keys.visit(range, &mut |key, meta| {
        found.push(item(key, meta));
        if found.len() < room {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    let count = if found.len() < room {
        found.len() as u64
    } else {
        keys.count(range)
    };
    (found, count.cast_signed())
}

/// etcd: results that the target does not tell apart stay in key order, in a descending sort as well.
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
    /// Reads the record and gives its size in bytes.
    fn load(&mut self, records: &dyn Records) -> Result<usize, ReadError> {
        let encoded = records.get(self.rev)?;
        self.kv = Some(decode(self.rev, &encoded)?);
        Ok(encoded.len())
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

    /// etcd 3.7: results without values come from the index and carry no lease, unless the values were read to sort.
    fn result(
        &self,
        records: &dyn Records,
        query: &RangeQuery,
        copies: Option<&mut CopyBuffer>,
    ) -> Result<EncodedKv, ReadError> {
        if query.keys_only {
            let sorted_by_value = query.sort_target == SortTarget::Value;
            let lease = self
                .kv
                .as_ref()
                .filter(|_| sorted_by_value)
                .map(|kv| kv.lease);
            return Ok(record::encode(&record::Fields {
                key: &self.key,
                create_revision: self.create(),
                mod_revision: self.rev.major,
                version: self.version(),
                value: &[],
                lease: lease.unwrap_or_default(),
            }));
        }
        match (&self.kv, copies) {
            (Some(kv), _) => Ok(kv.encode()),
            (None, Some(copies)) => copies.read(records, self.rev),
            (None, None) => records.get(self.rev),
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
