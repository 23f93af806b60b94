//! Shares of the resources that all clients have in common, so that no client can use up all of them.
//!
//! The rule: a holder takes more only while it holds at most `factor` times what is free. So one holder alone gets most of a pool
//! (half of it with a factor of one, three quarters with three). It needs no list of holders and no mode for scarcity: while
//! much is free, no holder reaches the limit.
//!
//! The rule alone holds off a few greedy holders, not many. Of a pool that `n` of them fill, one part in `factor * n + 1` stays
//! free if they take in turns, but only one in `(factor + 1)^n` if each takes all it can before the next one comes. Where one
//! client can be many holders, a second rule must end those that keep what they do not use: see `message_room`.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::sync::{Notify, futures::OwnedNotified};

/// Whether a holder of `held` may take `amount` more of a pool of `total`, of which `used` are taken.
pub(super) fn may_take(amount: usize, held: usize, used: usize, pool: Size) -> bool {
    let free = pool.total.saturating_sub(used);
    amount <= free && held + amount <= pool.factor * free
}

/// The size of a pool, and how much of what is free one holder may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) total: usize,
    pub(super) factor: usize,
}

/// A resource that all clients share.
#[derive(Debug)]
pub(super) struct Pool {
    size: Size,
    used: AtomicUsize,
    /// How many wait for something to be given back.
    waiting: AtomicUsize,
    /// How many [`Wants`] there are.
    wanted: AtomicUsize,
    freed: Arc<Notify>,
}

impl Pool {
    pub(super) fn new(size: Size) -> Arc<Self> {
        Arc::new(Self {
            size,
            used: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
            freed: Arc::default(),
        })
    }

    /// Whether more than half of it is taken.
    pub(super) fn is_scarce(&self) -> bool {
        self.used() > self.size.total / 2
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn total(&self) -> usize {
        self.size.total
    }
}

/// What one holder has of a pool.
#[derive(Debug)]
pub(super) struct Share {
    pool: Arc<Pool>,
    held: AtomicUsize,
    /// How many [`Wants`] this holder has.
    wanted: AtomicUsize,
}

impl Share {
    /// A share of a new holder.
    pub(super) fn new(pool: &Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            pool: pool.clone(),
            held: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
        })
    }

    /// Takes an amount; `None` if that would exceed the share. The amount may be zero: [`Held::grow`] takes more later.
    pub(super) fn take(self: &Arc<Self>, amount: usize) -> Option<Held> {
        let mut held = Held::none_of(self);
        held.grow(amount).then_some(held)
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether other holders want more than the pool has; see [`Held::wants`].
    pub(super) fn others_want(&self) -> bool {
        self.pool.wanted.load(Ordering::Relaxed) > self.wanted.load(Ordering::Relaxed)
    }

    /// Ready once something was given back to the pool after this call.
    pub(super) fn freed(&self) -> Freed {
        let pool = self.pool.clone();
        // In one order with `used`: either the giver sees that somebody waits, or a try after this call sees what was given.
        pool.waiting.fetch_add(1, Ordering::SeqCst);
        let given = pool.freed.clone().notified_owned();
        Freed {
            given: Box::pin(given),
            pool,
        }
    }
}

/// See [`Share::freed`].
#[derive(Debug)]
pub(super) struct Freed {
    given: Pin<Box<OwnedNotified>>,
    pool: Arc<Pool>,
}

impl Future for Freed {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.given.as_mut().poll(context)
    }
}

impl Drop for Freed {
    fn drop(&mut self) {
        self.pool.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A holder waits for something that the pool does not have; see [`Held::wants`].
#[derive(Debug)]
pub(super) struct Wants {
    share: Arc<Share>,
}

impl Drop for Wants {
    fn drop(&mut self) {
        self.share.wanted.fetch_sub(1, Ordering::Relaxed);
        self.share.pool.wanted.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A part of a share. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Held {
    share: Arc<Share>,
    amount: usize,
}

impl Held {
    /// Nothing yet.
    pub(super) fn none_of(share: &Arc<Share>) -> Self {
        Self {
            share: share.clone(),
            amount: 0,
        }
    }

    pub(super) fn amount(&self) -> usize {
        self.amount
    }

    /// Takes more; false if that is more than the share, and then nothing is taken.
    pub(super) fn grow(&mut self, amount: usize) -> bool {
        let Share { pool, held, .. } = &*self.share;
        let mine = held.load(Ordering::Relaxed);
        let taken = pool
            .used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                may_take(amount, mine, used, pool.size).then_some(used + amount)
            });
        if taken.is_err() {
            return false;
        }
        held.fetch_add(amount, Ordering::Relaxed);
        self.amount += amount;
        true
    }

    /// Notes, until the result is dropped, that the pool has too little for this part and `amount` more of it. `None` if it has
    /// enough, so that only the holder's own share keeps it from taking more.
    pub(super) fn wants(&self, amount: usize) -> Option<Wants> {
        let Share { pool, wanted, .. } = &*self.share;
        let free = pool.size.total.saturating_sub(pool.used());
        (self.amount + amount > free).then(|| {
            pool.wanted.fetch_add(1, Ordering::Relaxed);
            wanted.fetch_add(1, Ordering::Relaxed);
            Wants {
                share: self.share.clone(),
            }
        })
    }

    /// Gives everything back.
    pub(super) fn clear(&mut self) {
        let amount = std::mem::take(&mut self.amount);
        if amount == 0 {
            return;
        }
        let Share { pool, held, .. } = &*self.share;
        held.fetch_sub(amount, Ordering::Relaxed);
        pool.used.fetch_sub(amount, Ordering::SeqCst);
        if pool.waiting.load(Ordering::SeqCst) > 0 {
            pool.freed.notify_waiters();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(total: usize, factor: usize) -> Arc<Pool> {
        Pool::new(Size { total, factor })
    }

    /// Takes one after the other until it is refused.
    fn greedy(pool: &Arc<Pool>) -> Vec<Held> {
        let share = Share::new(pool);
        std::iter::from_fn(|| share.take(1)).collect()
    }

    #[test]
    fn greedy_holders_leave_room_for_the_next() {
        for (factor, total) in [(1, 1_000), (3, 1_000), (1, 7), (3, 16)] {
            let pool = pool(total, factor);
            let mut all = Vec::new();
            for n in 0..8 {
                let free = total - pool.used();
                let held = greedy(&pool);
                assert!(held.len() <= free, "{n}");
                assert!(
                    free == 0 || !held.is_empty(),
                    "holder {n} of {total} with factor {factor} found {free} free and got nothing"
                );
                all.push(held);
            }
            assert!(pool.used() <= total, "never more than there is");
        }
    }

    #[test]
    fn one_holder_alone_gets_the_part_that_the_factor_gives() {
        let alone = |factor| greedy(&pool(1_200, factor)).len();
        assert_eq!((alone(1), alone(3)), (600, 900), "a half, three quarters");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let pool = pool(100, 1);
        let (first, second) = (greedy(&pool), greedy(&pool));
        assert_eq!((first.len(), second.len()), (50, 25));
        assert!(pool.is_scarce());
        drop(first);
        assert_eq!(pool.used(), 25);
        assert!(!pool.is_scarce());
        assert_eq!(greedy(&pool).len(), 38, "half of what was free");
        drop(second);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn only_what_the_pool_lacks_is_wanted() {
        let pool = pool(100, 1);
        let [greedy, other] = [(); 2].map(|()| Share::new(&pool));
        let first = greedy.take(40).unwrap();
        let mut second = greedy.take(0).unwrap();
        assert!(!second.grow(30));
        assert!(second.wants(30).is_none(), "60 are free");
        let _third = other.take(35).unwrap();
        let wants = second.wants(30);
        assert!(wants.is_some(), "25 are free");
        assert_eq!((other.others_want(), greedy.others_want()), (true, false));
        drop(wants);
        assert!(!other.others_want());
        drop(first);
        assert!(second.wants(30).is_none());
    }

    #[test]
    fn an_amount_is_taken_whole_or_not_at_all() {
        let pool = pool(100, 1);
        let share = Share::new(&pool);
        let mut held = share.take(0).unwrap();
        assert!(held.grow(40));
        assert!(!held.grow(30), "70 of which 60 are free");
        assert_eq!((pool.used(), share.held()), (40, 40));
        assert!(held.grow(20));
        held.clear();
        assert_eq!((pool.used(), share.held()), (0, 0));
        assert!(share.take(101).is_none());
    }
}
