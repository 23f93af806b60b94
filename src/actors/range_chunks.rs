//! Streamed ranges: one answer in parts of a bounded size, all read at one revision.
//!
//! No view is held between two parts, so a slow reader does not keep pages of the database from being reused. If a compaction
//! passes its revision meanwhile, the stream ends with that error. etcd: the sizes follow `RangeStream` of 3.7.

use super::{request_error::RequestError, requests::Requests};
use crate::{
    kv::{
        KeyRange, check,
        command::{EncodedKv, RangeQuery, SortOrder, SortTarget},
        record::{self, KeyValue},
        view::Page,
    },
    types::Revision,
};
use bytes::Bytes;

/// Keys in the first part.
const FIRST_KEYS: usize = 10;

/// A part of a streamed range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeChunk {
    pub kvs: Vec<EncodedKv>,
    /// With the last part: what a whole answer would say.
    pub end: Option<RangeStreamEnd>,
}

/// What only the last part of a streamed range carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeStreamEnd {
    /// The store's revision when the stream began.
    pub revision: Revision,
    /// Whether the limit cut results off.
    pub more: bool,
    /// Keys in the range.
    pub count: i64,
}

/// A streamed range under way.
#[derive(Debug)]
pub struct RangeChunks {
    requests: Requests,
    query: RangeQuery,
    range: KeyRange,
    keys_max: usize,
    /// Results the limit still allows.
    left: usize,
    pinned: Option<Pinned>,
    done: bool,
}

/// What the first part fixes for all others.
#[derive(Clone, Copy, Debug)]
struct Pinned {
    read_at: Revision,
    reported: Revision,
    count: i64,
}

/// Why a range cannot be streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStreamable {
    /// The results would have to be sorted first.
    #[error("a streamed range is in key order only")]
    SortOrder,
    /// The revisions of the results are filtered.
    #[error("a streamed range has no revision filters")]
    RevisionFilter,
}

impl Requests {
    /// Reads keys in parts, so that neither side holds the whole answer.
    pub fn range_stream(&self, query: RangeQuery) -> Result<RangeChunks, NotStreamable> {
        RangeChunks::new(self.clone(), query)
    }
}

impl RangeChunks {
    /// A stream of what `query` asks for.
    pub fn new(requests: Requests, query: RangeQuery) -> Result<Self, NotStreamable> {
        // etcd: without an order the target does not matter, and ascending keys are the order of the index.
        let by_key = query.sort_order == SortOrder::Ascend && query.sort_target == SortTarget::Key;
        if query.sort_order != SortOrder::None && !by_key {
            return Err(NotStreamable::SortOrder);
        }
        if !query.filter.is_off() {
            return Err(NotStreamable::RevisionFilter);
        }
        let range = KeyRange::from_wire(&query.key, &query.range_end);
        let left = usize::try_from(query.limit).ok().filter(|&limit| limit > 0);
        Ok(Self {
            requests,
            query,
            range,
            keys_max: FIRST_KEYS,
            left: left.unwrap_or(usize::MAX),
            pinned: None,
            done: false,
        })
    }

    /// The next part; `None` after the last one or after an error.
    pub async fn next(&mut self) -> Option<Result<RangeChunk, RequestError>> {
        if self.done {
            return None;
        }
        let chunk = self.read().await;
        self.done = chunk.as_ref().map_or(true, |chunk| chunk.end.is_some());
        Some(chunk)
    }

    async fn read(&mut self) -> Result<RangeChunk, RequestError> {
        if self.query.count_only {
            let whole = self.requests.range(self.query.clone()).await?;
            let end = RangeStreamEnd {
                revision: whole.revision,
                more: false,
                count: whole.count,
            };
            return Ok(RangeChunk {
                kvs: Vec::new(),
                end: Some(end),
            });
        }
        let pinned = match self.pinned {
            Some(pinned) => pinned,
            None => self.pin().await?,
        };
        let mut page = self.page(pinned).await?;
        let greatest = page.kvs.last().map(record::key_of);
        // Only now: the next part begins after the greatest key.
        sort(&mut page.kvs, self.query.sort_target);
        if page.kvs.len() > self.left {
            page.kvs.truncate(self.left);
            page.more = true;
        }
        self.left = self.left.saturating_sub(page.kvs.len());
        self.pace(&page.kvs);
        let last = !page.more || self.left == 0;
        let end = RangeStreamEnd {
            revision: pinned.reported,
            more: page.more,
            count: pinned.count,
        };
        if let Some(greatest) = greatest {
            self.range = self.range.after(&greatest);
        }
        Ok(RangeChunk {
            kvs: page.kvs,
            end: last.then_some(end),
        })
    }

    async fn pin(&mut self) -> Result<Pinned, RequestError> {
        check::range(&self.query)?;
        let published = self.requests.view_for(self.query.serializable).await?;
        self.requests
            .allow_read(&published, &self.query.key, &self.query.range_end)?;
        let window = published.view.window;
        let at = window.resolve(self.query.revision)?;
        let range = self.range.clone();
        let count = self
            .requests
            .read_in_background(move || Ok(Ok(published.view.count(&range, at))))
            .await?;
        let pinned = Pinned {
            read_at: at.unwrap_or(window.newest),
            reported: window.newest,
            count,
        };
        self.pinned = Some(pinned);
        Ok(pinned)
    }

    async fn page(&self, pinned: Pinned) -> Result<Page, RequestError> {
        let published = self.requests.published();
        self.requests
            .allow_read(&published, &self.query.key, &self.query.range_end)?;
        published.view.window.check(pinned.read_at)?;
        let (range, keys_only) = (self.range.clone(), self.query.keys_only);
        let mut limit = self.keys_max.min(self.left);
        if self.query.sort_target != SortTarget::Key && self.left <= self.keys_max {
            // etcd: it sorts one result more than the limit allows, and then cuts the last one off.
            limit += 1;
        }
        self.requests
            .read_in_background(move || {
                published
                    .view
                    .page(&range, pinned.read_at, limit, keys_only)
                    .map(Ok)
            })
            .await
    }

    /// Parts grow while they are small against the size of a request, and shrink when they are large.
    fn pace(&mut self, kvs: &[EncodedKv]) {
        let bytes: usize = kvs.iter().map(Bytes::len).sum();
        let aim = self.requests.limits().request_bytes_max;
        if bytes < aim / 2 {
            self.keys_max = self.keys_max.saturating_mul(2);
        } else if bytes > aim.saturating_mul(2) {
            self.keys_max = (self.keys_max / 2).max(1);
        }
    }
}

/// Sorts the results of one part. etcd: without an order, each part is sorted by the target. (etcd also continues after the
/// last result, so that it repeats and omits keys; Quorate continues after the greatest key.)
fn sort(kvs: &mut [EncodedKv], target: SortTarget) {
    // A record that was read can be decoded; and a wrong order would break no promise.
    let decode = |kv: &EncodedKv| KeyValue::decode(kv).unwrap_or_default();
    match target {
        SortTarget::Key | SortTarget::Unknown => {}
        SortTarget::Version => kvs.sort_by_cached_key(|kv| decode(kv).version),
        SortTarget::Create => kvs.sort_by_cached_key(|kv| decode(kv).create_revision),
        SortTarget::Mod => kvs.sort_by_cached_key(|kv| decode(kv).mod_revision),
        SortTarget::Value => kvs.sort_by_cached_key(|kv| decode(kv).value),
    }
}
