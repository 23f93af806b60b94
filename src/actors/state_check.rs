//! The applier's part in comparing members' states: it remembers the hashes after the last entries, and answers questions for
//! them.

use crate::{
    kv::state_hash::{RecentHashes, StateHash},
    types::LogIndex,
};
use actix::prelude::*;
use std::collections::VecDeque;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Questions that may wait for an entry that is not applied yet. Past it the oldest gets no answer; its sender repeats it.
const WAITING_MAX: usize = 16;

/// Asks for the hash after an entry, which may not be applied yet. Without an answer the hash is not known here.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReportStateHash {
    pub index: LogIndex,
    pub reply: oneshot::Sender<StateHash>,
    /// Bounds the questions in the applier's mailbox.
    pub turn: OwnedSemaphorePermit,
}

/// The hashes after the last entries, and the questions that wait for an entry.
#[derive(Debug)]
pub(super) struct HashDesk {
    /// `None` if an older version wrote the store.
    recent: Option<RecentHashes>,
    waiting: VecDeque<(LogIndex, oneshot::Sender<StateHash>)>,
}

impl HashDesk {
    /// Begins with the state after entry `index`.
    pub(super) fn new(index: LogIndex, hash: Option<StateHash>) -> Self {
        if hash.is_none() {
            tracing::warn!(
                "an older version wrote this store: it cannot be compared with the other members', until this member is replaced"
            );
        }
        Self {
            recent: hash.map(|hash| RecentHashes::new(index, hash)),
            waiting: VecDeque::new(),
        }
    }

    /// An entry was applied. If it does not follow the last one, a snapshot took the place of those between.
    pub(super) fn applied(&mut self, index: LogIndex, hash: Option<StateHash>) {
        match (&mut self.recent, hash) {
            (Some(recent), Some(hash)) if recent.newest().next() == index => {
                recent.push(index, hash);
            }
            (_, hash) => self.recent = hash.map(|hash| RecentHashes::new(index, hash)),
        }
    }

    /// Answers the questions whose entry was applied.
    pub(super) fn settle(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        for (index, reply) in std::mem::take(&mut self.waiting) {
            self.answer(index, reply);
        }
    }

    pub(super) fn answer(&mut self, index: LogIndex, reply: oneshot::Sender<StateHash>) {
        let Some(recent) = &self.recent else { return };
        if recent.newest() < index {
            if self.waiting.len() == WAITING_MAX {
                self.waiting.pop_front();
            }
            self.waiting.push_back((index, reply));
        } else if let Some(hash) = recent.get(index) {
            // An asker that has gone away in the meantime does not matter.
            reply.send(hash).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(desk: &mut HashDesk, index: u64) -> oneshot::Receiver<StateHash> {
        let (reply, answer) = oneshot::channel();
        desk.answer(LogIndex(index), reply);
        answer
    }

    #[test]
    fn a_question_waits_for_its_entry_and_the_oldest_of_too_many_gets_no_answer() {
        let hash = StateHash::default();
        let mut desk = HashDesk::new(LogIndex(3), Some(hash));
        assert_eq!(ask(&mut desk, 3).try_recv(), Ok(hash));
        assert!(ask(&mut desk, 2).try_recv().is_err(), "not remembered");
        let mut asked: Vec<_> = (0..=WAITING_MAX).map(|_| ask(&mut desk, 5)).collect();
        desk.applied(LogIndex(4), Some(hash));
        desk.settle();
        assert_eq!(
            asked[1].try_recv(),
            Err(oneshot::error::TryRecvError::Empty)
        );
        desk.applied(LogIndex(5), Some(hash));
        desk.settle();
        let answers = asked.iter_mut().filter_map(|answer| answer.try_recv().ok());
        assert_eq!(answers.count(), WAITING_MAX);
        assert_eq!(
            asked[0].try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        );
    }

    #[test]
    fn after_a_snapshot_it_begins_anew() {
        let hash = Some(StateHash::default());
        let mut desk = HashDesk::new(LogIndex(3), hash);
        let mut waits = ask(&mut desk, 8);
        desk.applied(LogIndex(10), hash);
        desk.settle();
        assert!(waits.try_recv().is_err(), "no longer known");
        assert!(ask(&mut desk, 3).try_recv().is_err(), "of another history");
        assert!(ask(&mut desk, 10).try_recv().is_ok(), "the newest");
    }

    #[test]
    fn an_older_versions_store_is_not_compared() {
        let mut desk = HashDesk::new(LogIndex(3), None);
        desk.applied(LogIndex(4), None);
        assert!(ask(&mut desk, 4).try_recv().is_err(), "no hash to report");
        assert!(
            desk.waiting.is_empty(),
            "no question waits for a hash that never comes"
        );
    }
}
