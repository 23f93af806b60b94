//! Answers to callers whose entries are visible.
//!
//! Most answers are complete when their entry is applied. One that also has previous values or ranges needs records, which may
//! be on disk. A short one is completed here, on a thread that may block unless all is in memory, from the view that was
//! published with its entry. A longer one goes to its caller as it is, with that view: the caller reads the records when it has
//! room for them. So what this sends is short, whatever a command asks for.

use super::{
    super::{
        answered::{Answered, Unread},
        background::in_background,
        published::Published,
        replies::{Deadlines, Reply},
        request_error::RequestError,
    },
    noted::NotedBytes,
};
use crate::kv::{
    answer_reads::AnswerReads,
    command::Verdict,
    records::{ReadError, Records},
};
use std::sync::Arc;
use tokio::time::Instant;

/// An answer with more records than this is long.
const SHORT_READS_MAX: usize = 64;

/// An answer with longer records, in bytes together, is long.
const SHORT_BYTES_MAX: usize = 8 * 1024;

/// A short answer that reads no more records than this, all of them in memory, is completed at once.
const INLINE_READS_MAX: usize = 4;

/// The outcome of an entry, for the caller that waits for it here.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    /// When the caller gets an error instead of the answer.
    pub(super) deadline: Instant,
    pub(super) verdict: Verdict,
    /// What the outcome lacks.
    pub(super) reads: AnswerReads,
    /// Counts what `reads` holds.
    pub(super) noted: Option<NotedBytes>,
}

#[derive(Debug, Default)]
pub(super) struct Answers {
    /// The callers of those that wait for records.
    deadlines: Deadlines,
}

impl Answers {
    /// Sends the answers of the batch that was published as `published`. Inside an arbiter.
    pub(super) fn send(&mut self, answers: Vec<Answer>, published: &Arc<Published>) {
        let mut short = Vec::new();
        for answer in answers {
            match Effort::of(&answer.reads, published) {
                Effort::None => answer.complete(published),
                Effort::Short => short.push(self.with_deadline(answer)),
                Effort::Long => answer.leave_unread(published),
            }
        }
        if !short.is_empty() {
            let published = published.clone();
            // The answers go to their callers from there.
            drop(in_background(move || {
                for answer in short {
                    match is_short(&answer.reads, &published) {
                        Ok(true) => answer.complete(&published),
                        Ok(false) => answer.leave_unread(&published),
                        Err(error) => answer.reply.send(Err(error.into())),
                    }
                }
            }));
        }
    }

    /// Tells the callers whose deadline is not after `now`, and whose answers still wait for records, that their time is up.
    pub(super) fn expire(&mut self, now: Instant) {
        self.deadlines.expire(now);
    }

    fn with_deadline(&mut self, answer: Answer) -> Answer {
        let reply = self.deadlines.add(answer.deadline, answer.reply);
        Answer { reply, ..answer }
    }
}

/// How much work is left for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    /// None, or a few records that are in memory.
    None,
    /// A few records that may be on disk.
    Short,
    /// Many records, or long ones.
    Long,
}

impl Effort {
    fn of(reads: &AnswerReads, published: &Published) -> Self {
        let count = reads.count_up_to(SHORT_READS_MAX + 1);
        if count == 0 {
            return Self::None;
        }
        if count > SHORT_READS_MAX {
            return Self::Long;
        }
        let (tail, mut bytes) = (&published.view.tail, 0);
        for rev in reads.revs() {
            match tail.get(rev) {
                Some(record) => bytes += record.kv.len(),
                None => return Self::Short,
            }
        }
        match bytes {
            0..=SHORT_BYTES_MAX if count <= INLINE_READS_MAX => Self::None,
            0..=SHORT_BYTES_MAX => Self::Short,
            _ => Self::Long,
        }
    }
}

/// Whether the records of an answer with few of them are short. May wait for the disk.
fn is_short(reads: &AnswerReads, published: &Published) -> Result<bool, ReadError> {
    let mut bytes = 0;
    for rev in reads.revs() {
        published.view.visit(rev, &mut |kv| bytes += kv.len())?;
    }
    Ok(bytes <= SHORT_BYTES_MAX)
}

impl Answer {
    fn complete(self, published: &Arc<Published>) {
        if self.reply.is_expired() {
            return;
        }
        let (reads, noted, published) = (self.reads, self.noted, published.clone());
        let complete = |outcome| {
            let outcome = Unread::new(outcome, reads, published, noted).read()?;
            Ok(Answered::Complete(outcome))
        };
        let answer = self.verdict.map_err(RequestError::Kv).and_then(complete);
        self.reply.send(answer);
    }

    fn leave_unread(self, published: &Arc<Published>) {
        let (reads, noted, published) = (self.reads, self.noted, published.clone());
        let unread = |outcome| {
            let unread = Unread::new(outcome, reads, published, noted);
            Answered::Unread(Box::new(unread))
        };
        self.reply
            .send(self.verdict.map(unread).map_err(RequestError::Kv));
    }
}
