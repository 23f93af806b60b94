//! Where the outcome of a proposal goes: to one waiting caller, or to an inbox that many calls share.
//!
//! A front end with many calls in flight gives each a number. Their outcomes go to its [`Inbox`], which wakes the front end once
//! for all that arrive together: no channel, no task and no allocation for a call. An inbox holds at most one outcome for each
//! [`Ticket`], so a front end that bounds its calls bounds its inbox.

use super::request_error::RequestError;
use crate::kv::command::Outcome;
use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
};
use tokio::sync::oneshot;

/// The outcome of a proposal.
pub type Answer = Result<Outcome, RequestError>;

/// Takes the outcome of one proposal. Dropping it tells the caller that the node has stopped.
#[derive(Debug)]
pub enum Reply {
    /// One caller waits for it.
    Alone(oneshot::Sender<Answer>),
    /// It goes to the inbox of a front end.
    Shared(Ticket),
}

impl Reply {
    /// Gives the answer. A caller that has gone away in the meantime does not matter.
    pub fn send(self, answer: Answer) {
        match self {
            Self::Alone(sender) => drop(sender.send(answer)),
            Self::Shared(ticket) => ticket.answer(answer),
        }
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
}

#[derive(Debug, Default)]
struct InboxState {
    answers: Vec<(u64, Answer)>,
    /// Wakes the task that takes them.
    waker: Option<Waker>,
    closed: bool,
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

    /// From now on answers are dropped: nobody takes them.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.answers = Vec::new();
        state.waker = None;
    }

    fn put(&self, number: u64, answer: Answer) {
        let mut state = self.lock();
        if state.closed {
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
    use crate::types::Revision;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn done(revision: i64) -> Outcome {
        let revision = Revision(revision);
        Outcome::Compact { revision }
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
            panic!("the caller must be told, once: {taken:?}");
        };
        assert!(taken.is_empty(), "once");
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
}
