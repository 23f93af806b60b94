//! Answers to callers whose entries are visible.
//!
//! Most answers are complete when their entry is applied. One that also tells previous values or ranges needs records, which may
//! be on disk: it is completed on a thread that may block, from the view that was published with its entry. Long answers are
//! completed one at a time; short ones do not wait for them. What bounds the bytes of completed answers that wait for their
//! clients is the transport's business, which has no bound in bytes yet.

use super::super::{
    background::in_background, published::Published, replies::Reply, request_error::RequestError,
};
use crate::{
    failpoint::{FailPoint, hit},
    kv::{
        answer_reads::{AnswerError, AnswerReads},
        command::{Outcome, Verdict},
    },
};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Bytes of records in one answer to a write. etcd: its limit is gRPC's, 2 GiB.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// An answer that reads more records than this is long.
const SHORT_READS_MAX: usize = 64;

/// An answer that reads no more records than this, all of them in memory, is completed at once.
const INLINE_READS_MAX: usize = 4;

/// Long answers that are completed at once.
const LONG_ANSWERS_MAX: usize = 1;

/// The outcome of an entry, for the caller that waits for it here.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) verdict: Verdict,
    /// What the outcome lacks.
    pub(super) reads: AnswerReads,
}

/// Sends answers.
#[derive(Debug)]
pub(super) struct Answers {
    long: Arc<Semaphore>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            long: Arc::new(Semaphore::new(LONG_ANSWERS_MAX)),
        }
    }
}

impl Answers {
    /// Sends the answers of the batch that was published as `published`. Inside an arbiter.
    pub(super) fn send(&self, answers: Vec<Answer>, published: &Arc<Published>) {
        let mut short = Vec::new();
        for answer in answers {
            match Effort::of(&answer.reads, published) {
                Effort::None => answer.complete(published),
                Effort::Short => short.push(answer),
                Effort::Long => self.complete_long(answer, published.clone()),
            }
        }
        if !short.is_empty() {
            let published = published.clone();
            // The answers go to their callers from there.
            drop(in_background(move || {
                hit(FailPoint::BeforeStoredRead);
                for answer in short {
                    answer.complete(&published);
                }
            }));
        }
    }

    fn complete_long(&self, answer: Answer, published: Arc<Published>) {
        let long = self.long.clone();
        actix::spawn(async move {
            // It is never closed.
            let Ok(turn) = long.acquire_owned().await else {
                return;
            };
            let reading = in_background(move || {
                hit(FailPoint::BeforeStoredRead);
                answer.complete(&published);
                drop(turn);
            });
            // If the thread ended early, the dropped reply tells the caller.
            drop(reading.await);
        });
    }
}

/// How much work is left for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    /// None, or a few records that are in memory.
    None,
    /// A few records that may be on disk.
    Short,
    /// Many records.
    Long,
}

impl Effort {
    fn of(reads: &AnswerReads, published: &Published) -> Self {
        let tail = &published.view.tail;
        let first = || reads.revs().take(SHORT_READS_MAX + 1);
        let count = first().count();
        if count > SHORT_READS_MAX {
            return Self::Long;
        }
        let in_memory = || first().all(|rev| tail.get(rev).is_some());
        if count == 0 || count <= INLINE_READS_MAX && in_memory() {
            return Self::None;
        }
        Self::Short
    }
}

impl Answer {
    fn complete(self, published: &Published) {
        let reads = self.reads;
        let complete = |outcome: Outcome| {
            let read = reads.complete(outcome, &published.view, ANSWER_BYTES_MAX);
            read.map_err(|error| match error {
                AnswerError::Read(error) => error.into(),
                AnswerError::TooLarge { bytes_max } => RequestError::AnswerTooLarge { bytes_max },
            })
        };
        let answer = self.verdict.map_err(RequestError::Kv).and_then(complete);
        self.reply.send(answer);
    }
}
