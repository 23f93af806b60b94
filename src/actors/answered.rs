//! The outcome of a proposal on its way to its caller: complete, or with records that are still to be read.
//!
//! An outcome that also has previous values or ranges can be long, and it may have to wait for its caller. So a long one is not
//! read before its caller has room for it: the caller gets a list of what is to be read, with the view that has it.

use super::{
    applier::noted::NotedBytes, background::in_background, published::Published,
    request_error::RequestError,
};
use crate::kv::{
    answer_reads::{ANSWER_BYTES_MAX, AnswerError, AnswerReads},
    command::Outcome,
    records::Records,
};
use std::{sync::Arc, time::Duration};

/// The outcome of an entry.
#[derive(Debug)]
pub enum Answered {
    Complete(Outcome),
    Unread(Box<Unread>),
}

/// An outcome whose records are still to be read. It keeps the view that has them, and the pages of that view in the database.
#[derive(Debug)]
pub struct Unread {
    outcome: Outcome,
    reads: AnswerReads,
    published: Arc<Published>,
    /// Counts what `reads` holds.
    noted: Option<NotedBytes>,
}

impl Answered {
    /// The outcome. Reads missing records on another thread, for `time_max` at most. Must be called inside an arbiter.
    pub async fn complete(self, time_max: Duration) -> Result<Outcome, RequestError> {
        match self {
            Self::Complete(outcome) => Ok(outcome),
            Self::Unread(unread) => {
                let read = in_background(move || unread.read());
                let read = tokio::time::timeout(time_max, read).await;
                let read = read.map_err(|_| RequestError::TimedOut)?;
                read.map_err(|_| RequestError::Stopped)?
            }
        }
    }
}

impl Unread {
    pub(super) fn new(
        outcome: Outcome,
        reads: AnswerReads,
        published: Arc<Published>,
        noted: Option<NotedBytes>,
    ) -> Self {
        Self {
            outcome,
            reads,
            published,
            noted,
        }
    }

    /// Bytes of the records, and of what describes them. Blocks.
    pub fn measure(&self) -> Result<usize, RequestError> {
        let mut bytes = self.reads.count_up_to(usize::MAX) * DESCRIPTION_BYTES;
        for rev in self.reads.revs() {
            self.published
                .view
                .visit(rev, &mut |kv| bytes += kv.len())?;
            if bytes > ANSWER_BYTES_MAX {
                return Err(too_large(ANSWER_BYTES_MAX));
            }
        }
        Ok(bytes)
    }

    /// Reads the records. Blocks.
    pub fn read(self) -> Result<Outcome, RequestError> {
        let view = &self.published.view;
        let read = self.reads.complete(self.outcome, view, ANSWER_BYTES_MAX);
        drop(self.noted);
        read.map_err(|error| match error {
            AnswerError::Read(error) => error.into(),
            AnswerError::TooLarge { bytes_max } => too_large(bytes_max),
        })
    }
}

/// What a record takes in memory besides its bytes.
const DESCRIPTION_BYTES: usize = 64;

fn too_large(bytes_max: usize) -> RequestError {
    RequestError::AnswerTooLarge { bytes_max }
}
