//! What a connection needs while calls wait, and only then.
//!
//! Most connections of a server with many are idle. So the tables of waiting calls belong to the arbiter: a connection borrows
//! some with its first call, and gives them back, with their room, when nothing waits any more. That is cheaper than to make new
//! ones each time, and an idle connection has none.

use super::{Deadlines, exchange::Call};
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

/// Calls, outcomes or reads for which room is kept.
const ROOM_KEPT: usize = 64;

/// Tables that an arbiter keeps for the next connection.
const SPARE_MAX: usize = 64;

/// The calls of a connection that wait.
#[derive(Default)]
pub(super) struct Waiting {
    /// By number.
    calls: HashMap<u64, Call, BuildHasherDefault<NumberHasher>>,
    /// Never given twice, so that what comes late is told from what is waited for.
    next_number: u64,
    inbox: Arc<Inbox>,
    /// Empty between turns; kept for its room.
    outcomes: Vec<(u64, Answer)>,
    /// Reads that came since the last question for a view.
    pub(super) new_reads: Vec<(u64, Read)>,
    pub(super) views: Vec<ViewAsked>,
    deadlines: Deadlines,
}

/// Reads that wait for the same view.
pub(super) struct ViewAsked {
    pub(super) view: Pin<Box<dyn Future<Output = Result<Arc<Published>, Status>>>>,
    pub(super) reads: Vec<(u64, Read)>,
}

impl Waiting {
    /// The number of the call that begins next.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Where the outcomes of its calls come in.
    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// The call with the next number waits.
    pub(super) fn add(&mut self, call: Call) {
        let number = self.next_number;
        self.next_number += 1;
        if let Some(deadline) = call.deadline {
            self.deadlines.add(deadline, number);
        }
        self.calls.insert(number, call);
    }

    /// Takes a call that gets its answer now; nothing if its time was up.
    pub(super) fn end(&mut self, number: u64) -> Option<Call> {
        let call = self.calls.remove(&number)?;
        if let Some(deadline) = call.deadline {
            self.deadlines.remove(deadline, number);
        }
        Some(call)
    }

    /// Takes a call whose time is up.
    pub(super) fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<Option<Call>> {
        self.deadlines
            .poll(context)
            .map(|number| self.calls.remove(&number))
    }

    /// The outcomes that have come; [`Waiting::keep_outcomes`] wants their room back. The task is woken when more come.
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

    /// Reads that were answered leave their room to the next ones.
    pub(super) fn keep_reads(&mut self, mut reads: Vec<(u64, Read)>) {
        reads.clear();
        if self.new_reads.capacity() == 0 && reads.capacity() <= ROOM_KEPT {
            self.new_reads = reads;
        }
    }

    /// Whether nothing waits, and nothing can come any more.
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

/// Tables that no connection of the arbiter needs at the moment.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "they are lent and given back as pointers")]
pub(in crate::api) struct Spare(RefCell<Vec<Box<Waiting>>>);

impl Spare {
    /// Lends tables in which nothing waits. The task of `context` is woken when something comes.
    pub(super) fn lend(&self, context: &Context<'_>) -> Box<Waiting> {
        let mut waiting = self.0.borrow_mut().pop().unwrap_or_default();
        // Outcomes for which nobody waited may lie here, and the waker is the last borrower's.
        let late = waiting.take_outcomes(context);
        waiting.keep_outcomes(late);
        waiting
    }

    /// Takes tables back in which nothing waits.
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

/// Numbers are given in order; multiplied, they differ in the bits that a table looks at.
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
    fn tables_are_kept_until_the_last_outcome_is_in() {
        let spare = Spare::default();
        let mut waiting = spare.lend(&Context::from_waker(Waker::noop()));
        assert!(waiting.is_over(), "nothing was asked");
        let reply = proposed(&waiting);
        assert!(!waiting.is_over(), "an outcome is under way");
        reply.send(Ok(done()));
        assert!(waiting.is_over());
    }

    #[test]
    fn who_borrows_tables_is_woken_by_its_own_outcomes_alone() {
        let spare = Spare::default();
        let (first, second) = (Arc::<Wakes>::default(), Arc::<Wakes>::default());
        let waker = Waker::from(first.clone());
        let waiting = spare.lend(&Context::from_waker(&waker));
        // Its call's time is up before this comes.
        proposed(&waiting).send(Ok(done()));
        spare.give_back(waiting);
        let waker = Waker::from(second.clone());
        let context = Context::from_waker(&waker);
        let mut waiting = spare.lend(&context);
        assert!(spare.0.borrow().is_empty(), "the same tables");
        assert!(
            waiting.take_outcomes(&context).is_empty(),
            "the late outcome is none of the second's"
        );
        proposed(&waiting).send(Ok(done()));
        assert_eq!(waiting.take_outcomes(&context).len(), 1);
        let counts = [&first, &second].map(|count| count.0.load(Ordering::Relaxed));
        assert_eq!(counts, [1, 1]);
    }

    #[test]
    fn few_and_small_tables_are_kept() {
        let spare = Spare::default();
        let context = Context::from_waker(Waker::noop());
        let mut large = spare.lend(&context);
        large.calls.reserve(ROOM_KEPT * 2);
        spare.give_back(large);
        assert!(spare.0.borrow().is_empty(), "large ones are not");
        let many: Vec<_> = (0..2 * SPARE_MAX).map(|_| spare.lend(&context)).collect();
        for waiting in many {
            spare.give_back(waiting);
        }
        assert_eq!(spare.0.borrow().len(), SPARE_MAX);
    }
}
