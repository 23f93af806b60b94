//! Where the outcome of a proposal goes: to one waiting caller, or to an inbox that many calls share.
//!
//! A front end with many calls in flight gives each a number. Their outcomes go to its [`Inbox`], which wakes the front end once
//! for all that arrive together: no channel, no task and no allocation for a call. An inbox holds at most one outcome for each
//! [`Ticket`], so a front end that bounds its calls bounds its inbox.

use super::{answered::Answered, request_error::RequestError};
use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Waker},
};
use tokio::{sync::oneshot, time::Instant};

/// The outcome of a proposal.
pub type Answer = Result<Answered, RequestError>;

/// Takes the outcome of one proposal. If it is dropped, the caller gets `Stopped`.
#[derive(Debug)]
pub enum Reply {
    /// One caller waits for it.
    Alone(oneshot::Sender<Answer>),
    /// It goes to the inbox of a front end.
    Shared(Ticket),
    /// It goes on to a caller that gets an error at its deadline.
    Timed(TimedReply),
}

impl Reply {
    /// Whether the caller is gone for certain, or its time is up: nothing need be done for it any more.
    pub fn is_unwanted(&self) -> bool {
        match self {
            Self::Alone(sender) => sender.is_closed(),
            Self::Shared(ticket) => ticket.is_unwanted(),
            Self::Timed(timed) => timed.lock().as_ref().is_none_or(Self::is_unwanted),
        }
    }

    /// Gives the answer. A caller that has gone away in the meantime does not matter.
    pub fn send(self, answer: Answer) {
        match self {
            Self::Alone(sender) => drop(sender.send(answer)),
            Self::Shared(ticket) => ticket.answer(answer),
            Self::Timed(timed) => timed.send(answer),
        }
    }

    /// Whether the caller has got the error for its deadline.
    pub fn is_expired(&self) -> bool {
        match self {
            Self::Alone(_) | Self::Shared(_) => false,
            Self::Timed(timed) => timed.lock().is_none(),
        }
    }
}

/// A reply that [`Deadlines`] gives at the deadline, unless the answer came before.
#[derive(Debug)]
pub struct TimedReply(Arc<Mutex<Option<Reply>>>);

impl TimedReply {
    fn lock(&self) -> MutexGuard<'_, Option<Reply>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, answer: Answer) {
        let reply = self.lock().take();
        if let Some(reply) = reply {
            reply.send(answer);
        }
    }
}

/// Callers whose answers are made elsewhere, for as long as that takes: on a thread that may block. There is one for each request
/// under way at most, and for each that was answered since the last look.
#[derive(Debug, Default)]
pub struct Deadlines {
    waiting: Vec<(Instant, TimedReply)>,
}

impl Deadlines {
    /// The reply for the answer's source. At `deadline` the caller gets an error instead.
    pub fn add(&mut self, deadline: Instant, reply: Reply) -> Reply {
        let shared = Arc::new(Mutex::new(Some(reply)));
        self.waiting.push((deadline, TimedReply(shared.clone())));
        Reply::Timed(TimedReply(shared))
    }

    /// Answers the callers whose deadline is not after `now`, and drops the replies whose source is gone.
    pub fn expire(&mut self, now: Instant) {
        self.waiting.retain(|(deadline, timed)| {
            let waits = Arc::strong_count(&timed.0) > 1;
            if waits && *deadline <= now {
                timed.send(Err(RequestError::TimedOut));
            }
            waits && *deadline > now
        });
    }
}

impl From<oneshot::Sender<Answer>> for Reply {
    fn from(sender: oneshot::Sender<Answer>) -> Self {
        Self::Alone(sender)
    }
}

/// The right to one answer in an inbox.
#[derive(Debug)]
pub struct Ticket {
    number: u64,
    /// `None` once answered.
    inbox: Option<Arc<Inbox>>,
}

impl Ticket {
    fn is_unwanted(&self) -> bool {
        let inbox = self.inbox.as_ref();
        inbox.is_none_or(|inbox| inbox.is_unwanted(self.number))
    }

    fn answer(mut self, answer: Answer) {
        if let Some(inbox) = self.inbox.take() {
            inbox.put(self.number, answer);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(inbox) = self.inbox.take() {
            inbox.put(self.number, Err(RequestError::Stopped));
        }
    }
}

/// The answers for one front end that it has not taken yet.
#[derive(Debug, Default)]
pub struct Inbox {
    state: Mutex<InboxState>,
    /// Whether `unwanted` may have entries, or the inbox is closed; while false, the lock is not taken to find out.
    has_unwanted: AtomicBool,
}

#[derive(Debug, Default)]
struct InboxState {
    answers: Vec<(u64, Answer)>,
    /// Wakes the task that takes them.
    waker: Option<Waker>,
    closed: bool,
    /// The numbers of outstanding answers that nobody waits for any more.
    unwanted: Vec<u64>,
}

impl Inbox {
    /// The right to one answer, under a number of the caller's choice.
    pub fn ticket(self: &Arc<Self>, number: u64) -> Ticket {
        Ticket {
            number,
            inbox: Some(self.clone()),
        }
    }

    /// Moves the answers to `taken`, which must be empty; the task of `context` is woken when the next one comes.
    pub fn take(&self, context: &Context<'_>, taken: &mut Vec<(u64, Answer)>) {
        assert!(taken.is_empty(), "answers taken before were not handled");
        let mut state = self.lock();
        mem::swap(&mut state.answers, taken);
        let known = state.waker.as_ref();
        if !known.is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
    }

    /// From now on answers are dropped, because no connection takes them.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.answers = Vec::new();
        state.unwanted = Vec::new();
        state.waker = None;
        self.has_unwanted.store(true, Ordering::Relaxed);
    }

    /// The caller that waits for the answer with this number, which has not come, is gone.
    pub fn give_up(&self, number: u64) {
        let mut state = self.lock();
        if !state.closed && state.answers.iter().all(|(other, _)| *other != number) {
            state.unwanted.push(number);
            self.has_unwanted.store(true, Ordering::Relaxed);
        }
    }

    fn is_unwanted(&self, number: u64) -> bool {
        if !self.has_unwanted.load(Ordering::Relaxed) {
            return false;
        }
        let state = self.lock();
        state.closed || state.unwanted.contains(&number)
    }

    fn put(&self, number: u64, answer: Answer) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        if !state.unwanted.is_empty()
            && let Some(at) = state.unwanted.iter().position(|other| *other == number)
        {
            state.unwanted.swap_remove(at);
            let some_left = !state.unwanted.is_empty();
            self.has_unwanted.store(some_left, Ordering::Relaxed);
            return;
        }
        state.answers.push((number, answer));
        if state.answers.len() == 1
            && let Some(waker) = &state.waker
        {
            waker.wake_by_ref();
        }
    }

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, kv::command::Outcome, types::Revision};
    use std::{sync::atomic::AtomicUsize, task::Wake, time::Duration};

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn done(revision: i64) -> Answered {
        let revision = Revision(revision);
        Answered::Complete(Outcome::Compact { revision })
    }

    fn numbers(taken: &mut Vec<(u64, Answer)>) -> Vec<u64> {
        taken.drain(..).map(|(number, _)| number).collect()
    }

    #[test]
    fn answers_that_come_together_wake_once() {
        let (inbox, count) = (Arc::<Inbox>::default(), Arc::<Wakes>::default());
        let waker = Waker::from(count.clone());
        let context = Context::from_waker(&waker);
        let mut taken = Vec::new();
        inbox.take(&context, &mut taken);
        let tickets: Vec<_> = (0..3).map(|number| inbox.ticket(number)).collect();
        for ticket in tickets {
            Reply::Shared(ticket).send(Ok(done(1)));
        }
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        inbox.take(&context, &mut taken);
        assert_eq!(numbers(&mut taken), [0, 1, 2]);
        Reply::Shared(inbox.ticket(3)).send(Ok(done(2)));
        assert_eq!(count.0.load(Ordering::Relaxed), 2, "and again for the next");
        inbox.take(&context, &mut taken);
        assert_eq!(numbers(&mut taken), [3]);
    }

    #[test]
    fn a_dropped_ticket_says_that_the_node_stopped() {
        let inbox = Arc::<Inbox>::default();
        drop(Reply::Shared(inbox.ticket(7)));
        let mut taken = Vec::new();
        inbox.take(&Context::from_waker(Waker::noop()), &mut taken);
        let Some((7, Err(RequestError::Stopped))) = taken.pop() else {
            panic!("the caller must get one answer: {taken:?}");
        };
        assert!(taken.is_empty(), "once");
    }

    #[test]
    fn an_answer_whose_caller_gave_up_is_unwanted_and_dropped() {
        let inbox = Arc::<Inbox>::default();
        let [gone, waits] = [1, 2].map(|number| Reply::Shared(inbox.ticket(number)));
        inbox.give_up(1);
        assert!(gone.is_unwanted() && !waits.is_unwanted());
        gone.send(Ok(done(1)));
        waits.send(Ok(done(2)));
        let mut taken = Vec::new();
        inbox.take(&Context::from_waker(Waker::noop()), &mut taken);
        assert_eq!(numbers(&mut taken), [2]);
        let late = Reply::Shared(inbox.ticket(3));
        assert!(!late.is_unwanted(), "only the first caller gave up");
        inbox.close();
        assert!(late.is_unwanted());
        let (sender, receiver) = oneshot::channel();
        let alone = Reply::from(sender);
        assert!(!alone.is_unwanted());
        drop(receiver);
        assert!(alone.is_unwanted());
    }

    #[test]
    fn a_closed_inbox_keeps_nothing() {
        let inbox = Arc::<Inbox>::default();
        let late = inbox.ticket(1);
        Reply::Shared(inbox.ticket(0)).send(Ok(done(1)));
        inbox.close();
        Reply::Shared(late).send(Ok(done(2)));
        let mut taken = Vec::new();
        inbox.take(&Context::from_waker(Waker::noop()), &mut taken);
        assert!(taken.is_empty(), "nobody waits for these");
    }

    #[test]
    fn a_caller_whose_time_is_up_is_told_once() {
        let (now, second) = (clock::now(), Duration::from_secs(1));
        let mut deadlines = Deadlines::default();
        let mut add = |secs: u32| {
            let (reply, outcome) = oneshot::channel();
            let timed = deadlines.add(now + secs * second, reply.into());
            (timed, outcome)
        };
        let (late, mut late_outcome) = add(1);
        let (early, mut early_outcome) = add(1);
        let (dropped, mut dropped_outcome) = add(9);
        let (patient, mut patient_outcome) = add(9);
        early.send(Ok(done(1)));
        assert!(matches!(early_outcome.try_recv(), Ok(Ok(_))));
        drop(dropped);
        assert!(!late.is_expired());
        deadlines.expire(now + second);
        let Ok(Err(RequestError::TimedOut)) = late_outcome.try_recv() else {
            panic!("its time is up");
        };
        assert!(late.is_expired(), "its answer need not be made any more");
        late.send(Ok(done(2)));
        let gone = dropped_outcome.try_recv();
        assert_eq!(gone.err(), Some(oneshot::error::TryRecvError::Closed));
        patient.send(Ok(done(3)));
        assert!(matches!(patient_outcome.try_recv(), Ok(Ok(_))));
        deadlines.expire(now + second);
        assert!(deadlines.waiting.is_empty(), "nothing is left of them");
    }
}
