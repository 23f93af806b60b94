//! Reads of entries that consensus no longer has in memory: they go to threads that may block, a few at a time.
//!
//! Consensus requests a read and goes on; the answer reaches it later, or never, if the disk does not answer. Each reader (the
//! state machine, or one follower) has at most one read running and one waiting, so a disk that stalls holds a bounded
//! number of threads and bytes, and a follower whose read stalls does not hold up the others.

use crate::raft::{ReadLog, Reader};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// Reads for followers that may run at the same time. The state machine's read does not count.
const FOLLOWER_READS_MAX: usize = 4;

/// Bytes of one read; a single larger entry is read all the same.
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The reads that run, and those that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct LogReads {
    /// Who has a read running.
    running: BTreeMap<Reader, RunningRead>,
    /// In the order of the requests; one for a reader at most.
    waiting: VecDeque<ReadLog>,
}

#[derive(Debug)]
struct RunningRead {
    since: Instant,
    /// It takes so long that this was reported.
    stalled: bool,
}

impl LogReads {
    /// Consensus requests `read`. It replaces an older request of the same reader that has not begun: consensus requests
    /// again only when it no longer needs the older one.
    pub(super) fn request(&mut self, read: ReadLog) {
        self.waiting.retain(|older| older.reader != read.reader);
        self.waiting.push_back(read);
    }

    /// The next read that may run now; its reader counts as busy until [`end`](Self::end). Waiting reads that are not
    /// `needed` any more are dropped.
    pub(super) fn next(
        &mut self,
        needed: impl Fn(&ReadLog) -> bool,
        now: Instant,
    ) -> Option<ReadLog> {
        self.waiting.retain(needed);
        let followers = self.running.keys();
        let followers = followers.filter(|reader| !is_state_machine(**reader));
        let full = followers.count() >= FOLLOWER_READS_MAX;
        let may_run = |read: &ReadLog| {
            !self.running.contains_key(&read.reader) && (is_state_machine(read.reader) || !full)
        };
        let at = self.waiting.iter().position(may_run)?;
        let mut read = self.waiting.remove(at)?;
        let running = RunningRead {
            since: now,
            stalled: false,
        };
        self.running.insert(read.reader, running);
        read.bytes_max = read.bytes_max.min(READ_BYTES_MAX);
        Some(read)
    }

    /// The read that ran for `reader` has ended.
    pub(super) fn end(&mut self, reader: Reader) {
        assert!(
            self.running.remove(&reader).is_some(),
            "a read ends once, after it began: {reader:?}"
        );
    }

    /// Whether a read has been running for `stall_after`, and was not reported by this function before.
    pub(super) fn has_new_stall(&mut self, now: Instant, stall_after: Duration) -> bool {
        let mut found = false;
        for read in self.running.values_mut() {
            if !read.stalled && now.duration_since(read.since) >= stall_after {
                read.stalled = true;
                found = true;
            }
        }
        found
    }
}

fn is_state_machine(reader: Reader) -> bool {
    matches!(reader, Reader::Apply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock,
        types::{LogIndex, MemberId},
    };

    fn read(reader: Reader, from: u64) -> ReadLog {
        let (from, to) = (LogIndex(from), LogIndex(from + 9));
        ReadLog {
            reader,
            from,
            to,
            bytes_max: usize::MAX,
        }
    }

    fn peer(id: u64) -> Reader {
        Reader::Peer(MemberId(id))
    }

    fn next(reads: &mut LogReads) -> Option<(Reader, u64)> {
        let next = reads.next(|_| true, clock::now())?;
        assert!(next.bytes_max <= READ_BYTES_MAX, "bounded in bytes");
        Some((next.reader, next.from.0))
    }

    #[test]
    fn a_stalled_read_holds_up_only_its_own_reader() {
        let mut reads = LogReads::default();
        reads.request(read(peer(2), 5));
        assert_eq!(next(&mut reads), Some((peer(2), 5)));
        reads.request(read(peer(2), 8));
        reads.request(read(peer(3), 6));
        reads.request(read(Reader::Apply, 1));
        assert_eq!(next(&mut reads), Some((peer(3), 6)));
        assert_eq!(next(&mut reads), Some((Reader::Apply, 1)));
        assert_eq!(next(&mut reads), None, "member 2 has one running");
        reads.end(peer(2));
        assert_eq!(next(&mut reads), Some((peer(2), 8)));
    }

    #[test]
    fn running_reads_are_bounded_but_for_the_state_machines() {
        let mut reads = LogReads::default();
        for id in 1..=9 {
            reads.request(read(peer(id), id));
        }
        reads.request(read(Reader::Apply, 1));
        let running = std::iter::from_fn(|| next(&mut reads)).count();
        assert_eq!(running, FOLLOWER_READS_MAX + 1);
        reads.end(Reader::Apply);
        assert_eq!(next(&mut reads), None, "followers do not take its place");
        reads.end(peer(3));
        assert_eq!(next(&mut reads), Some((peer(5), 5)), "the oldest");
    }

    #[test]
    fn requests_that_wait_are_bounded_and_dropped_when_no_longer_needed() {
        let mut reads = LogReads::default();
        for from in 1..=1_000 {
            reads.request(read(peer(2), from));
        }
        assert_eq!(reads.waiting.len(), 1, "the newest");
        assert_eq!(next(&mut reads), Some((peer(2), 1_000)));
        reads.end(peer(2));
        reads.request(read(peer(2), 7));
        assert!(
            reads.next(|_| false, clock::now()).is_none(),
            "the term changed"
        );
        assert_eq!(next(&mut reads), None);
    }

    #[test]
    fn a_stall_is_reported_once() {
        let (stall, now) = (Duration::from_secs(1), clock::now());
        let mut reads = LogReads::default();
        reads.request(read(peer(2), 5));
        reads.next(|_| true, now).unwrap();
        assert!(!reads.has_new_stall(now + stall / 2, stall));
        assert!(reads.has_new_stall(now + stall, stall));
        assert!(!reads.has_new_stall(now + stall * 2, stall));
        reads.end(peer(2));
        assert!(!reads.has_new_stall(now + stall * 3, stall));
    }
}
