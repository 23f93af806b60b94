//! The answer to a long range: one message, sent in parts while its records are read.
//!
//! gRPC says the length of a message before its first byte. So the length of every result is looked up first, and then the
//! results are read again, part by part, as the client takes them. All are read from one view, which keeps its pages in the
//! database meanwhile; a client that takes too little for too long, or is too slow as a whole, loses its answer.

use super::{
    answer_budget::{Charge, Held},
    frames::Encoded,
    reply::{self, Header, RangeParts},
    status::Status,
    streaming,
};
use crate::{
    actors::{published::Published, requests::Requests},
    kv::{
        KvError,
        answer_reads::AnswerError,
        command::{RangeDone, RangeQuery},
        range::Results,
        records::ReadError,
    },
    types::Revision,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};

/// Bytes of results in one part, or one result.
const PART_BYTES: usize = 1024 * 1024;

/// Bytes of results that are read at first: a shorter answer is sent whole.
pub(super) const FIRST_BYTES: usize = 4 * 1024 * 1024;

/// How long a client may take for an answer of no length, and for each MiB of it. The view keeps the database from using pages
/// again, so its file grows by every write meanwhile.
const AGE_MAX: Duration = Duration::from_mins(5);
const AGE_MAX_OF_MIB: Duration = Duration::from_secs(1);

/// The result of a read with a bound on its bytes.
#[derive(Debug)]
pub(super) enum ReadUpTo {
    Whole(Result<Encoded, Status>),
    /// A longer answer, of which the first results were read.
    Long(Box<LongRange>),
    /// It cannot be read within the bound.
    TooLong,
}

/// A range of which the first results are read.
#[derive(Debug)]
pub(super) struct LongRange {
    published: Arc<Published>,
    results: Results,
    first: Encoded,
    beginning: Encoded,
    parts: RangeParts,
    /// The length of the answer.
    bytes: usize,
}

/// Reads a range up to `bytes_max` bytes. Blocks.
pub(super) fn read(
    published: Arc<Published>,
    query: &RangeQuery,
    header: impl Fn(Revision) -> Header,
    bytes_max: usize,
) -> Result<Result<ReadUpTo, KvError>, ReadError> {
    let view = &published.view;
    let mut results = match view.results(query, bytes_max) {
        Ok(Ok(results)) => results,
        Ok(Err(refusal)) => return Ok(Err(refusal)),
        Err(AnswerError::TooLarge { .. }) => return Ok(Ok(ReadUpTo::TooLong)),
        Err(AnswerError::Read(error)) => return Err(error),
    };
    let first_bytes = bytes_max
        .saturating_sub(results.held_bytes())
        .clamp(PART_BYTES, FIRST_BYTES);
    let kvs = results.read_some(view, first_bytes)?;
    let header = header(results.revision());
    let (more, count) = (results.more(), results.count());
    if results.is_over() {
        let done = RangeDone {
            revision: results.revision(),
            kvs,
            more,
            count,
        };
        return Ok(Ok(ReadUpTo::Whole(reply::range(&header, &done))));
    }
    let mut kvs_len: usize = kvs.iter().map(|kv| RangeParts::kv_len(kv.len())).sum();
    results.measure(view, &mut |len| kvs_len += RangeParts::kv_len(len))?;
    let parts = RangeParts { more, count };
    let beginning = match parts.beginning(&header, kvs_len) {
        Ok(beginning) => beginning,
        Err(status) => return Ok(Ok(ReadUpTo::Whole(Err(status)))),
    };
    Ok(Ok(ReadUpTo::Long(Box::new(LongRange {
        first: RangeParts::kvs(&kvs),
        published,
        results,
        beginning,
        parts,
        bytes: kvs_len,
    }))))
}

impl LongRange {
    /// The most bytes that it holds while it is sent.
    pub(super) fn held_bytes(&self) -> usize {
        self.results.held_bytes() + FIRST_BYTES - PART_BYTES
    }

    /// Sends the answer. Its parts, of which a few exist at a time, count as `held`.
    pub(super) fn send(
        self: Box<Self>,
        requests: Requests,
        held: Held,
    ) -> mpsc::Receiver<Result<Encoded, Status>> {
        let charge = Charge::of_parts(held, Instant::now() + age_max(self.bytes));
        streaming::run(None, |out| async move {
            let Self {
                mut published,
                mut results,
                first,
                beginning,
                parts,
                bytes: _,
            } = *self;
            // Sending fails only if the client has gone.
            let mut next = first;
            let mut gone = out
                .send(Ok(beginning.charged(charge.clone())))
                .await
                .is_err();
            while !gone {
                gone = out.send(Ok(next.charged(charge.clone()))).await.is_err();
                if gone || results.is_over() {
                    break;
                }
                let read = move || {
                    let kvs = results.read_some(&published.view, PART_BYTES)?;
                    Ok(Ok((results, published, RangeParts::kvs(&kvs))))
                };
                (results, published, next) = requests.read_in_background(read).await?;
            }
            drop(out.send(Ok(parts.end().charged(charge))).await);
            Ok(())
        })
    }
}

/// How old the view of an answer of `bytes` bytes may become.
fn age_max(bytes: usize) -> Duration {
    let mibs = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    AGE_MAX.saturating_add(AGE_MAX_OF_MIB.saturating_mul(mibs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_answer_keeps_its_view_for_less_than_an_hour() {
        let longest = usize::try_from(i32::MAX).unwrap();
        assert!(age_max(longest) < Duration::from_hours(1));
        assert!(age_max(0) >= AGE_MAX && age_max(usize::MAX) > age_max(longest));
    }
}
