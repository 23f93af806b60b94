//! The deadlines of a connection's calls, which share one timer.

use std::{
    collections::BTreeSet,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// When calls in flight end without an answer.
#[derive(Default)]
pub(super) struct Deadlines {
    by_time: BTreeSet<(Instant, u64)>,
    /// Fires at or before the earliest deadline.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadlines {
    pub(super) fn add(&mut self, deadline: Instant, number: u64) {
        self.by_time.insert((deadline, number));
        match &mut self.timer {
            Some(timer) if timer.deadline() <= deadline => {}
            Some(timer) => timer.as_mut().reset(deadline),
            None => self.timer = Some(Box::pin(sleep_until(deadline))),
        }
    }

    pub(super) fn remove(&mut self, deadline: Instant, number: u64) {
        self.by_time.remove(&(deadline, number));
    }

    /// The number of a call whose deadline has passed.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<u64> {
        while let Some(timer) = &mut self.timer {
            if let Some(&(first, number)) = self.by_time.first()
                && first <= timer.deadline()
                && timer.as_mut().poll(context).is_ready()
            {
                self.by_time.pop_first();
                return Poll::Ready(number);
            }
            ready!(timer.as_mut().poll(context));
            match self.by_time.first() {
                Some(&(first, _)) => timer.as_mut().reset(first),
                None => self.timer = None,
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::poll_fn, time::Duration};

    #[tokio::test(start_paused = true)]
    async fn calls_end_in_the_order_of_their_deadlines() {
        let began = Instant::now();
        let at = |secs| began + Duration::from_secs(secs);
        let mut deadlines = Deadlines::default();
        for (secs, number) in [(5, 0), (2, 1), (9, 2), (2, 3), (4, 4), (0, 5)] {
            deadlines.add(at(secs), number);
        }
        deadlines.remove(at(4), 4);
        let mut ended = Vec::new();
        while ended.len() < 5 {
            let number = poll_fn(|context| deadlines.poll(context)).await;
            ended.push((number, began.elapsed().as_secs()));
        }
        assert_eq!(ended, [(5, 0), (1, 2), (3, 2), (0, 5), (2, 9)]);
        let idle = poll_fn(|context| Poll::Ready(deadlines.poll(context).is_pending()));
        assert!(idle.await, "no deadline is left");
        assert!(deadlines.timer.is_none(), "and no timer runs");
    }
}
