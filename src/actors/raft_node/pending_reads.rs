//! Callers that wait for a read index. All that ask in one message share one read of consensus.

use crate::{
    actors::{consensus::ReadReply, request_error::RequestError},
    types::LogIndex,
};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// The reads under way, by the context that consensus gives back.
#[derive(Debug, Default)]
pub(super) struct PendingReads {
    /// Contexts rise, and so do deadlines with them.
    reads: BTreeMap<u64, PendingRead>,
    next_context: u64,
}

/// Callers that share a read.
#[derive(Debug)]
pub(super) struct PendingRead {
    pub(super) deadline: Instant,
    pub(super) waiting: Vec<ReadReply>,
}

impl PendingReads {
    /// A context that no other read has.
    pub(super) fn next_context(&mut self) -> u64 {
        self.next_context += 1;
        self.next_context
    }

    pub(super) fn insert(&mut self, context: u64, read: PendingRead) {
        self.reads.insert(context, read);
    }

    pub(super) fn take(&mut self, context: u64) -> Option<PendingRead> {
        self.reads.remove(&context)
    }

    /// Takes a read whose deadline is not after `now`.
    pub(super) fn take_expired(&mut self, now: Instant) -> Option<PendingRead> {
        let first = self.reads.first_entry()?;
        (first.get().deadline <= now).then(|| first.remove())
    }
}

/// The outcome for each caller.
pub(super) type ReadOutcome = Result<LogIndex, RequestError>;

impl PendingRead {
    pub(super) fn answer(self, outcome: impl Fn() -> ReadOutcome) {
        for reply in self.waiting {
            // A caller that has gone away in the meantime does not matter.
            drop(reply.send(outcome()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::time::Duration;
    use tokio::sync::oneshot;

    #[test]
    fn callers_share_the_outcome_and_expire_oldest_first() {
        let start = clock::now();
        let mut reads = PendingReads::default();
        let mut callers = Vec::new();
        for seconds in 0..3 {
            let (reply, outcome) = oneshot::channel();
            callers.push(outcome);
            let context = reads.next_context();
            let deadline = start + Duration::from_secs(seconds);
            let waiting = vec![reply];
            reads.insert(context, PendingRead { deadline, waiting });
        }
        let expired = reads.take_expired(start).unwrap();
        expired.answer(|| Err(RequestError::TimedOut));
        assert!(reads.take_expired(start).is_none(), "the others have time");
        reads.take(2).unwrap().answer(|| Ok(LogIndex(7)));
        assert!(reads.take(2).is_none(), "once");
        assert!(reads.take(3).is_some(), "it still waits");
        assert!(matches!(
            callers[0].try_recv(),
            Ok(Err(RequestError::TimedOut))
        ));
        assert!(matches!(callers[1].try_recv(), Ok(Ok(LogIndex(7)))));
        assert!(callers[2].try_recv().is_err(), "the node dropped it");
    }
}
