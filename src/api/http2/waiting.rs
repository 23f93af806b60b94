//! The tables that a connection needs while calls wait.
//!
//! A server with many connections has mostly idle ones. So the tables of waiting calls belong to the arbiter: a connection
//! borrows a set with its first call and returns it, with its allocations, when no call waits. That is cheaper than allocating a
//! new set each time, and an idle connection has none.

use super::{
    deadlines::Deadlines,
    exchange::{Call, refuse},
    request_stream::StreamBody,
};
use crate::{
    actors::{
        replies::{Answer, Inbox},
        requests::Published,
    },
    api::{
        answer_budget::{ArbiterBudget, Budget},
        grpc::Admission,
        kv::{Hot, Read},
        lines,
        message_reader::MessageReader,
        payload::Payload,
        status::Status,
    },
};
use ::http::Uri;
use h2::server::SendResponse;
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt,
    hash::{BuildHasherDefault, Hasher},
    mem,
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
    /// Keyed by the numbers of their streams. A connection uses each number once, and it returns the tables only when no outcome
    /// is in flight, so a late outcome is never taken for that of another call.
    calls: HashMap<u64, Call, BuildHasherDefault<NumberHasher>>,
    inbox: Arc<Inbox>,
    /// Empty between turns; kept for its allocation.
    outcomes: Vec<(u64, Answer)>,
    /// Reads received since the last request for a view, and the bytes of their requests.
    new_reads: Vec<(u64, Read)>,
    new_bytes: usize,
    pub(super) views: Vec<ViewRequest>,
    /// Calls that begin when the client has taken enough answers, or enough others have ended; in the order of their streams,
    /// which is that in which they came. The HTTP/2 library bounds how many streams are open.
    deferred: BTreeMap<u64, Deferred>,
    deadlines: Deadlines,
}

/// A call that has not begun; only hot calls are queued. Its message stays in the HTTP/2 library, where flow control bounds its
/// bytes.
pub(super) struct Deferred {
    pub(super) method: Method,
    pub(super) admission: Admission,
    pub(super) messages: MessageReader<StreamBody>,
    pub(super) respond: SendResponse<Payload>,
}

/// What a call asks for. A hot call is known by its path, so the path is not kept.
pub(super) enum Method {
    Hot(Hot),
    Other(Uri),
}

impl Method {
    pub(super) fn uri(self) -> Uri {
        match self {
            Self::Hot(hot) => Uri::from_static(hot.path()),
            Self::Other(uri) => uri,
        }
    }
}

impl Deferred {
    /// Sends an error in place of an answer.
    pub(super) fn refuse(self, status: &Status) {
        lines::close_if(self.admission.asker.line.as_ref(), status);
        refuse(self.respond, status);
    }
}

/// Reads that wait for the same view.
pub(super) struct ViewRequest {
    bytes: usize,
    pub(super) view: View,
    pub(super) reads: Vec<(u64, Read)>,
}

/// A request for a view.
pub(super) type View = Pin<Box<dyn Future<Output = Result<Arc<Published>, Status>>>>;

impl Waiting {
    /// How many calls wait.
    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Receives the outcomes of its calls.
    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    pub(super) fn add(&mut self, call: Call) {
        let number = call.number();
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

    /// Adds a read that waits for a view.
    pub(super) fn add_read(&mut self, number: u64, read: Read) {
        self.new_bytes += read.bytes();
        self.new_reads.push((number, read));
    }

    /// Whether reads wait for which no view was requested.
    pub(super) fn has_new_reads(&self) -> bool {
        !self.new_reads.is_empty()
    }

    /// Lets all reads that were added since the last call wait for `view`.
    pub(super) fn await_view(&mut self, view: View) {
        self.views.push(ViewRequest {
            bytes: mem::take(&mut self.new_bytes),
            view,
            reads: mem::take(&mut self.new_reads),
        });
    }

    /// About how many bytes the requests of the reads have that wait for a view.
    pub(super) fn read_bytes(&self) -> usize {
        let requested = self.views.iter().map(|request| request.bytes);
        self.new_bytes + requested.sum::<usize>()
    }

    /// Keeps a call that begins later.
    pub(super) fn defer(&mut self, call: Deferred) {
        let number = call.respond.stream_id().as_u32().into();
        self.deferred.insert(number, call);
    }

    /// Whether calls wait for their beginning.
    pub(super) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Removes the deferred call that came first.
    pub(super) fn next_deferred(&mut self) -> Option<Deferred> {
        self.deferred.pop_first().map(|(_, call)| call)
    }

    /// Removes a call that the client has cancelled, and withdraws its command unless that was handed to consensus already.
    /// Returns whether the call had not begun.
    pub(super) fn cancel(&mut self, number: u64) -> bool {
        if self.end(number).is_some_and(|call| call.proposed) {
            self.inbox.give_up(number);
        }
        self.deferred.remove(&number).is_some()
    }

    /// Removes a call whose deadline has passed.
    pub(super) fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<Option<Call>> {
        self.deadlines.poll(context).map(|number| {
            let call = self.calls.remove(&number)?;
            if call.proposed {
                self.inbox.give_up(number);
            }
            Some(call)
        })
    }

    /// The outcomes that have arrived; the caller returns the vector to [`Waiting::keep_outcomes`]. The task is woken when more
    /// arrive.
    pub(super) fn take_outcomes(&mut self, context: &Context<'_>) -> Vec<(u64, Answer)> {
        let mut outcomes = mem::take(&mut self.outcomes);
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
            && self.deferred.is_empty()
            && Arc::get_mut(&mut self.inbox).is_some()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

/// Sets of tables, and budgets, that no connection of the arbiter uses at the moment.
#[derive(Default)]
pub(super) struct Spare {
    #[expect(clippy::vec_box, reason = "they are lent and returned as pointers")]
    tables: RefCell<Vec<Box<Waiting>>>,
    budgets: RefCell<Vec<Arc<Budget>>>,
    budget: Arc<ArbiterBudget>,
}

impl Spare {
    /// Lends empty tables. The task of `context` is woken when an outcome arrives.
    pub(super) fn lend(&self, context: &Context<'_>) -> Box<Waiting> {
        let mut waiting = self.tables.borrow_mut().pop().unwrap_or_default();
        // Discards outcomes of the last borrower's expired calls, and replaces its waker.
        let late = waiting.take_outcomes(context);
        waiting.keep_outcomes(late);
        waiting
    }

    /// Takes back empty tables.
    pub(super) fn give_back(&self, waiting: Box<Waiting>) {
        let mut spare = self.tables.borrow_mut();
        if spare.len() < SPARE_MAX && waiting.calls.capacity() <= ROOM_KEPT {
            spare.push(waiting);
        }
    }

    /// Lends a budget against which nothing counts.
    pub(super) fn lend_budget(&self) -> Arc<Budget> {
        let kept = self.budgets.borrow_mut().pop();
        kept.unwrap_or_else(|| Arc::new(Budget::new(self.budget.clone())))
    }

    /// Takes back a budget against which nothing counts.
    pub(super) fn give_back_budget(&self, budget: Arc<Budget>) {
        let mut spare = self.budgets.borrow_mut();
        if spare.len() < SPARE_MAX {
            spare.push(budget);
        }
    }
}

impl fmt::Debug for Spare {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spare = self.tables.borrow().len();
        formatter.debug_tuple("Spare").field(&spare).finish()
    }
}

/// The numbers of streams are odd, and nearly consecutive; the multiplication spreads them over the bits that the hash table
/// uses.
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
    use crate::{
        actors::{answered::Answered, replies::Reply},
        kv::command::Outcome,
        types::Revision,
    };
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
        Reply::Shared(waiting.inbox().ticket(1))
    }

    fn done() -> Answered {
        let revision = Revision(1);
        Answered::Complete(Outcome::Compact { revision })
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
        assert!(spare.tables.borrow().is_empty(), "the same tables");
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
        assert!(spare.tables.borrow().is_empty(), "large ones are dropped");
        let many: Vec<_> = (0..2 * SPARE_MAX).map(|_| spare.lend(&context)).collect();
        for waiting in many {
            spare.give_back(waiting);
        }
        assert_eq!(spare.tables.borrow().len(), SPARE_MAX);
    }
}
