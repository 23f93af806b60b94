//! A channel that holds the latest value of something, for many readers.
//!
//! It is tokio's watch channel with one difference: waiting readers are woken in the order in which they began to wait. tokio
//! spreads them over queues by a random number that no seed controls, so two runs of a simulation would wake them differently.

use std::{pin::pin, sync::Arc};
use tokio::sync::{
    Notify,
    watch::{self, Ref},
};

/// The sender is gone: no value follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sender is gone")]
pub struct Closed;

#[derive(Debug)]
pub struct Sender<T> {
    // Dropped in this order, so that the readers woken by the drop find the channel closed.
    value: watch::Sender<T>,
    waiting: Waiting,
}

/// Reads the latest value, and can wait for a later one.
#[derive(Debug)]
pub struct Receiver<T> {
    value: watch::Receiver<T>,
    waiting: Arc<Notify>,
}

/// The waiting readers. Dropping it wakes them a last time.
#[derive(Debug)]
struct Waiting(Arc<Notify>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

/// A channel whose first value is `first`.
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
    /// The latest value. The guard blocks senders, so it must not be held for long.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.value.borrow()
    }

    /// Replaces the value; returns the previous one.
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
    /// The latest value. The guard blocks the sender, so it must not be held for long.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.value.borrow()
    }

    /// The latest value, marked as seen: [`Receiver::changed`] then waits for a later one.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.value.borrow_and_update()
    }

    /// Waits for a value that this receiver has not seen, and marks it as seen.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let mut woken = pin!(self.waiting.notified());
            // From here on no wake-up is missed.
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
    /// Waits until the latest value satisfies `wanted`, and returns it. A value that does so is returned even after the sender
    /// is gone.
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
