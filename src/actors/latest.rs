//! The latest value of something, for many readers, and those who wait for one in the order in which they began to.
//!
//! It is tokio's watch channel but for that order: tokio spreads waiters over queues by a random number that no seed reaches,
//! so two runs of a simulation would wake them differently. Values between two looks are not seen, as there.

use std::{pin::pin, sync::Arc};
use tokio::sync::{
    Notify,
    watch::{self, Ref},
};

/// Nothing follows: whoever sent is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sender is gone")]
pub struct Closed;

/// Says what is the latest.
#[derive(Debug)]
pub struct Sender<T> {
    // Dropped in this order: whoever is woken last finds the channel closed.
    value: watch::Sender<T>,
    waiting: Waiting,
}

/// Sees the latest value, and can wait for a later one.
#[derive(Debug)]
pub struct Receiver<T> {
    value: watch::Receiver<T>,
    waiting: Arc<Notify>,
}

/// Those who wait; they are woken in their order, a last time when the sender goes.
#[derive(Debug)]
struct Waiting(Arc<Notify>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

/// A channel that shows `first` until something else is sent.
pub fn channel<T>(first: T) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = watch::channel(first);
    let waiting = Arc::new(Notify::new());
    let sender = Sender {
        value: sender,
        waiting: Waiting(waiting.clone()),
    };
    let receiver = Receiver {
        value: receiver,
        waiting,
    };
    (sender, receiver)
}

impl<T> Sender<T> {
    /// The latest value. Held only for a moment: it keeps others from sending.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.value.borrow()
    }

    /// Replaces the value, and gives the one before.
    pub fn send_replace(&self, value: T) -> T {
        let before = self.value.send_replace(value);
        self.waiting.0.notify_waiters();
        before
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            waiting: self.waiting.clone(),
        }
    }
}

impl<T> Receiver<T> {
    /// The latest value. Held only for a moment: it keeps the sender from sending.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.value.borrow()
    }

    /// The latest value, which is seen by that: [`Receiver::changed`] waits for a later one.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.value.borrow_and_update()
    }

    /// Waits for a value that this receiver has not seen, and counts it as seen.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let mut woken = pin!(self.waiting.notified());
            // From here on nothing is missed.
            woken.as_mut().enable();
            if self.value.has_changed().map_err(|_| Closed)? {
                self.value.mark_unchanged();
                return Ok(());
            }
            woken.await;
        }
    }
}

impl<T: Clone> Receiver<T> {
    /// Waits until the latest value is as `wanted`, and gives it. One that is, is given also once the sender is gone.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<T, Closed> {
        loop {
            let mut woken = pin!(self.waiting.notified());
            woken.as_mut().enable();
            {
                let latest = self.value.borrow_and_update();
                if wanted(&latest) {
                    return Ok(latest.clone());
                }
            }
            if self.value.has_changed().is_err() {
                return Err(Closed);
            }
            woken.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn those_who_wait_are_woken_in_their_order() {
        let (sender, receiver) = channel(0);
        let woken = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = tokio::task::JoinSet::new();
        for number in 0..50 {
            let (mut receiver, woken) = (receiver.clone(), woken.clone());
            waiters.spawn(async move {
                let found = receiver.wait_for(|value| *value > 1).await;
                woken.lock().unwrap().push((number, found));
            });
        }
        tokio::task::yield_now().await;
        sender.send_replace(1);
        tokio::task::yield_now().await;
        assert!(woken.lock().unwrap().is_empty(), "nobody waits for a one");
        sender.send_replace(2);
        waiters.join_all().await;
        let expected: Vec<_> = (0..50).map(|number| (number, Ok(2))).collect();
        assert_eq!(*woken.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn a_change_is_seen_once() {
        let (sender, mut receiver) = channel(0);
        sender.send_replace(1);
        assert_eq!(receiver.changed().await, Ok(()));
        assert_eq!(*receiver.borrow_and_update(), 1);
        let waiting = tokio::spawn(async move { receiver.changed().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "nothing has changed");
        sender.send_replace(1);
        assert_eq!(waiting.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn whoever_waits_learns_that_the_sender_is_gone() {
        let (sender, receiver) = channel(0);
        let (mut first, mut second) = (receiver.clone(), receiver.clone());
        let waits = tokio::spawn(async move { first.wait_for(|value| *value == 7).await });
        let follows = tokio::spawn(async move { second.changed().await });
        tokio::task::yield_now().await;
        drop(sender);
        assert_eq!(waits.await.unwrap(), Err(Closed));
        assert_eq!(follows.await.unwrap(), Err(Closed));
        assert_eq!(receiver.clone().wait_for(|value| *value == 0).await, Ok(0));
    }
}
