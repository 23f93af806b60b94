//! The deadlines of a connection's calls, with one timer for all of them.

use std::{
    collections::BTreeSet,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// When calls under way end without an answer.
#[derive(Default)]
pub(super) struct Deadlines {
    by_time: BTreeSet<(Instant, u64)>,
    /// Rings at or before the first of them.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Deadlines {
    pub(super) fn add(&mut self, deadline: Instant, number: u64) {
        self.by_time.insert((deadline, number));
        match &mut self.alarm {
            Some(alarm) if alarm.deadline() <= deadline => {}
            Some(alarm) => alarm.as_mut().reset(deadline),
            None => self.alarm = Some(Box::pin(sleep_until(deadline))),
        }
    }

    pub(super) fn remove(&mut self, deadline: Instant, number: u64) {
        self.by_time.remove(&(deadline, number));
    }

    /// A call whose time is up.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<u64> {
        while let Some(alarm) = &mut self.alarm {
            if let Some(&(first, number)) = self.by_time.first()
                && first <= alarm.deadline()
                && alarm.as_mut().poll(context).is_ready()
            {
                self.by_time.pop_first();
                return Poll::Ready(number);
            }
            ready!(alarm.as_mut().poll(context));
            match self.by_time.first() {
                Some(&(first, _)) => alarm.as_mut().reset(first),
                None => self.alarm = None,
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
        assert!(idle.await, "nothing is left");
        assert!(deadlines.alarm.is_none(), "and no timer runs");
    }
}
