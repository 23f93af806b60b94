//! The tables that a connection needs while calls wait.
//!
//! A server with many connections has mostly idle ones. So the tables of waiting calls belong to the arbiter: a connection
//! borrows a set with its first call and returns it, with its allocations, when no call waits. That is cheaper than allocating a
//! new set each time, and an idle connection has none.

use super::{deadlines::Deadlines, exchange::Call};
use crate::{
    actors::{
        replies::{Answer, Inbox},
        requests::Published,
    },
    api::{kv::Read, status::Status},
};
use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hasher},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// The capacity, in calls, outcomes or reads, up to which an empty table keeps its allocation.
const ROOM_KEPT: usize = 64;

/// Sets of tables that an arbiter keeps for other connections.
const SPARE_MAX: usize = 64;

/// The waiting calls of one connection.
#[derive(Default)]
pub(super) struct Waiting {
    calls: HashMap<u64, Call, BuildHasherDefault<NumberHasher>>,
    /// Never reused, so that a late result cannot be taken for the result of another call.
    next_number: u64,
    inbox: Arc<Inbox>,
    /// Empty between turns; kept for its allocation.
    outcomes: Vec<(u64, Answer)>,
    /// Reads received since the last request for a view.
    pub(super) new_reads: Vec<(u64, Read)>,
    pub(super) views: Vec<ViewRequest>,
    deadlines: Deadlines,
}

/// Reads that wait for the same view.
pub(super) struct ViewRequest {
    pub(super) view: Pin<Box<dyn Future<Output = Result<Arc<Published>, Status>>>>,
    pub(super) reads: Vec<(u64, Read)>,
}

impl Waiting {
    /// The number of the call that begins next.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Receives the outcomes of its calls.
    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Adds a call, which gets the next number.
    pub(super) fn add(&mut self, call: Call) {
        let number = self.next_number;
        self.next_number += 1;
        if let Some(deadline) = call.deadline {
            self.deadlines.add(deadline, number);
        }
        self.calls.insert(number, call);
    }

    /// Removes a call that gets its answer now; `None` if its deadline has passed.
    pub(super) fn end(&mut self, number: u64) -> Option<Call> {
        let call = self.calls.remove(&number)?;
        if let Some(deadline) = call.deadline {
            self.deadlines.remove(deadline, number);
        }
        Some(call)
    }

    /// Removes a call whose deadline has passed.
    pub(super) fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<Option<Call>> {
        self.deadlines
            .poll(context)
            .map(|number| self.calls.remove(&number))
    }

    /// The outcomes that have arrived; the caller returns the vector to [`Waiting::keep_outcomes`]. The task is woken when more
    /// arrive.
    pub(super) fn take_outcomes(&mut self, context: &Context<'_>) -> Vec<(u64, Answer)> {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        self.inbox.take(context, &mut outcomes);
        outcomes
    }

    pub(super) fn keep_outcomes(&mut self, mut outcomes: Vec<(u64, Answer)>) {
        outcomes.clear();
        if outcomes.capacity() <= ROOM_KEPT {
            self.outcomes = outcomes;
        }
    }

    /// Keeps the allocation of reads that were answered.
    pub(super) fn keep_reads(&mut self, mut reads: Vec<(u64, Read)>) {
        reads.clear();
        if self.new_reads.capacity() == 0 && reads.capacity() <= ROOM_KEPT {
            self.new_reads = reads;
        }
    }

    /// Whether no call waits and no outcome is in flight.
    pub(super) fn is_over(&mut self) -> bool {
        self.calls.is_empty()
            && self.new_reads.is_empty()
            && self.views.is_empty()
            && Arc::get_mut(&mut self.inbox).is_some()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

/// Sets of tables that no connection of the arbiter uses at the moment.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "they are lent and returned as pointers")]
pub(super) struct Spare(RefCell<Vec<Box<Waiting>>>);

impl Spare {
    /// Lends empty tables. The task of `context` is woken when an outcome arrives.
    pub(super) fn lend(&self, context: &Context<'_>) -> Box<Waiting> {
        let mut waiting = self.0.borrow_mut().pop().unwrap_or_default();
        // Discards outcomes of the last borrower's expired calls, and replaces its waker.
        let late = waiting.take_outcomes(context);
        waiting.keep_outcomes(late);
        waiting
    }

    /// Takes back empty tables.
    pub(super) fn give_back(&self, waiting: Box<Waiting>) {
        let mut spare = self.0.borrow_mut();
        if spare.len() < SPARE_MAX && waiting.calls.capacity() <= ROOM_KEPT {
            spare.push(waiting);
        }
    }
}

impl fmt::Debug for Spare {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spare = self.0.borrow().len();
        formatter.debug_tuple("Spare").field(&spare).finish()
    }
}

/// Call numbers are consecutive; the multiplication spreads them over the bits that the hash table uses.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actors::replies::Reply, kv::command::Outcome, types::Revision};
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::{Wake, Waker},
    };

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn proposed(waiting: &Waiting) -> Reply {
        Reply::Shared(waiting.inbox().ticket(waiting.next_number()))
    }

    fn done() -> Outcome {
        let revision = Revision(1);
        Outcome::Compact { revision }
    }

    #[test]
    fn tables_are_kept_until_the_last_outcome_arrives() {
        let spare = Spare::default();
        let mut waiting = spare.lend(&Context::from_waker(Waker::noop()));
        assert!(waiting.is_over(), "no call was made");
        let reply = proposed(&waiting);
        assert!(!waiting.is_over(), "an outcome is in flight");
        reply.send(Ok(done()));
        assert!(waiting.is_over());
    }

    #[test]
    fn a_borrower_is_woken_by_its_own_outcomes_alone() {
        let spare = Spare::default();
        let (first, second) = (Arc::<Wakes>::default(), Arc::<Wakes>::default());
        let waker = Waker::from(first.clone());
        let waiting = spare.lend(&Context::from_waker(&waker));
        // Its call's deadline passes before this outcome arrives.
        proposed(&waiting).send(Ok(done()));
        spare.give_back(waiting);
        let waker = Waker::from(second.clone());
        let context = Context::from_waker(&waker);
        let mut waiting = spare.lend(&context);
        assert!(spare.0.borrow().is_empty(), "the same tables");
        assert!(
            waiting.take_outcomes(&context).is_empty(),
            "the late outcome does not belong to the second connection"
        );
        proposed(&waiting).send(Ok(done()));
        assert_eq!(waiting.take_outcomes(&context).len(), 1);
        let counts = [&first, &second].map(|count| count.0.load(Ordering::Relaxed));
        assert_eq!(counts, [1, 1]);
    }

    #[test]
    fn only_a_few_small_tables_are_kept() {
        let spare = Spare::default();
        let context = Context::from_waker(Waker::noop());
        let mut large = spare.lend(&context);
        large.calls.reserve(ROOM_KEPT * 2);
        spare.give_back(large);
        assert!(spare.0.borrow().is_empty(), "large ones are dropped");
        let many: Vec<_> = (0..2 * SPARE_MAX).map(|_| spare.lend(&context)).collect();
        for waiting in many {
            spare.give_back(waiting);
        }
        assert_eq!(spare.0.borrow().len(), SPARE_MAX);
    }
}
