//! Shares of the resources that all clients have in common, so that no client can use up all of them.
//!
//! The rule: a holder takes more only while it holds at most `factor` times what is free. So one holder alone gets most of a pool
//! (half of it with a factor of one, three quarters with three). It needs no list of holders and no mode for scarcity: while
//! much is free, no holder reaches the limit.
//!
//! The rule alone holds off a few greedy holders, not many. Of a pool that `n` of them fill, one part in `factor * n + 1` stays
//! free if they take in turns, but only one in `(factor + 1)^n` if each takes all it can before the next one comes. Where one
//! client can be many holders, a second rule must end those that keep what they do not use: see `message_room`.
//!
//! Whoever is refused because of what others hold can wait in line ([`Held::wait_for`]). What is given back goes to the first in
//! line: others take only what leaves enough for it, unless they hold less than it does. So nobody overtakes one that holds less
//! or came first, and one that holds much, for whom the rule may leave nothing, keeps nobody else from theirs.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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
    line: Mutex<Line>,
    /// How many are in line.
    in_line: AtomicUsize,
    freed: Arc<Notify>,
}

/// Those that wait for what others hold, by when they came.
#[derive(Debug, Default)]
struct Line {
    wants: BTreeMap<u64, Want>,
    next: u64,
}

#[derive(Debug)]
struct Want {
    share: Arc<Share>,
    amount: usize,
}

impl Pool {
    pub(super) fn new(size: Size) -> Arc<Self> {
        Arc::new(Self {
            size,
            used: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            line: Mutex::default(),
            in_line: AtomicUsize::new(0),
            freed: Arc::default(),
        })
    }

    /// What must stay free for the first in line before `place` that holds no more than the taker: the holder of `share`, who
    /// holds `held`.
    fn reserved(&self, share: &Share, held: usize, place: Option<u64>) -> usize {
        if self.in_line.load(Ordering::SeqCst) == 0 {
            return 0;
        }
        let line = self.lock_line();
        let before = line.wants.range(..place.unwrap_or(u64::MAX));
        let mut needs = before.filter_map(|(_, want)| {
            let holds = want.share.held();
            let first = holds <= held || std::ptr::eq(Arc::as_ptr(&want.share), share);
            first.then(|| {
                let share_of_free = (holds + want.amount).div_ceil(self.size.factor);
                want.amount.max(share_of_free)
            })
        });
        needs.next().unwrap_or(0)
    }

    fn lock_line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After something was given back, or somebody has left the line.
    fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.freed.notify_waiters();
        }
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
}

impl Share {
    /// A share of a new holder.
    pub(super) fn new(pool: &Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            pool: pool.clone(),
            held: AtomicUsize::new(0),
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

    /// Whether other holders are in line.
    pub(super) fn others_wait(&self) -> bool {
        let line = self.pool.lock_line();
        let mut shares = line.wants.values().map(|want| Arc::as_ptr(&want.share));
        shares.any(|share| !std::ptr::eq(share, self))
    }

    /// Ready once there may be more for this holder than at this call: something was given back to the pool, or somebody has
    /// left the line.
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

/// A part of a share. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Held {
    share: Arc<Share>,
    amount: usize,
    /// Its place in line.
    place: Option<u64>,
}

impl Held {
    pub(super) fn none_of(share: &Arc<Share>) -> Self {
        Self {
            share: share.clone(),
            amount: 0,
            place: None,
        }
    }

    pub(super) fn amount(&self) -> usize {
        self.amount
    }

    /// Takes more, and leaves the line; false if that is more than the share, or than those before it in line leave, and then
    /// nothing is taken.
    pub(super) fn grow(&mut self, amount: usize) -> bool {
        let Share { pool, held, .. } = &*self.share;
        let mine = held.load(Ordering::Relaxed);
        let reserved = pool.reserved(&self.share, mine, self.place);
        let taken = pool
            .used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                let leaves = pool.size.total.saturating_sub(used + amount);
                let may = may_take(amount, mine, used, pool.size) && leaves >= reserved;
                may.then_some(used + amount)
            });
        if taken.is_err() {
            return false;
        }
        held.fetch_add(amount, Ordering::Relaxed);
        self.amount += amount;
        self.leave_line();
        true
    }

    /// After [`Held::grow`] has refused this amount: joins the line until it grows or is cleared, but not if the holder's own
    /// limit is what refuses it: then it would block others.
    pub(super) fn wait_for(&mut self, amount: usize) {
        let pool = &self.share.pool;
        let mine = self.share.held();
        if !may_take(amount, mine, mine, pool.size) {
            return self.leave_line();
        }
        let mut line = pool.lock_line();
        let place = *self.place.get_or_insert_with(|| {
            line.next += 1;
            pool.in_line.fetch_add(1, Ordering::SeqCst);
            line.next
        });
        let share = self.share.clone();
        line.wants.insert(place, Want { share, amount });
    }

    fn leave_line(&mut self) {
        if let Some(place) = self.place.take() {
            let pool = &self.share.pool;
            pool.lock_line().wants.remove(&place);
            pool.in_line.fetch_sub(1, Ordering::SeqCst);
            pool.wake();
        }
    }

    /// Gives everything back, and leaves the line.
    pub(super) fn clear(&mut self) {
        self.leave_line();
        self.give_back(self.amount);
    }

    /// Gives a part back: all of it if it is not more than that.
    pub(super) fn give_back(&mut self, amount: usize) {
        let amount = amount.min(self.amount);
        if amount == 0 {
            return;
        }
        self.amount -= amount;
        let Share { pool, held, .. } = &*self.share;
        held.fetch_sub(amount, Ordering::Relaxed);
        pool.used.fetch_sub(amount, Ordering::SeqCst);
        pool.wake();
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
    fn whoever_is_at_its_own_limit_is_not_in_line() {
        let pool = pool(100, 1);
        let [greedy, other] = [(); 2].map(|()| Share::new(&pool));
        let _first = greedy.take(40).unwrap();
        let mut second = greedy.take(0).unwrap();
        assert!(!second.grow(30));
        second.wait_for(30);
        assert!(!other.others_wait(), "it may not have 70 of 100");
        let third = other.take(50).unwrap();
        assert!(!second.grow(5), "45 of which 10 are free");
        second.wait_for(5);
        assert_eq!((other.others_wait(), greedy.others_wait()), (true, false));
        drop(third);
        assert!(second.grow(5));
        assert!(!other.others_wait(), "it has what it wanted");
        assert_eq!(pool.in_line.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn what_a_holder_lacks_because_of_others_is_wanted_even_if_its_amount_is_free() {
        let pool = pool(256, 1);
        let [stalled, honest] = [(); 2].map(|()| Share::new(&pool));
        let _all = greedy_but(&pool, &stalled, 5);
        let _begun = honest.take(2).unwrap();
        let mut more = Held::none_of(&honest);
        assert!(!more.grow(1 + 1), "four, of which three are free");
        more.wait_for(2);
        assert!(
            stalled.others_wait(),
            "without the other it would have them"
        );
    }

    /// Takes all but `left`, as if many holders had.
    fn greedy_but(pool: &Arc<Pool>, share: &Arc<Share>, left: usize) -> Held {
        let amount = pool.total() - left - pool.used();
        pool.used.fetch_add(amount, Ordering::SeqCst);
        share.held.fetch_add(amount, Ordering::SeqCst);
        let mut held = Held::none_of(share);
        held.amount = amount;
        held
    }

    #[test]
    fn what_is_given_back_goes_to_the_first_in_line() {
        let pool = pool(100, 1);
        let shares = [(); 5].map(|()| Share::new(&pool));
        let [greedy, first, second, small, none] = &shares;
        let mut all = greedy_but(&pool, greedy, 18);
        let mut little = small.take(4).unwrap();
        let _begun = [first, second].map(|share| share.take(2).unwrap());
        let mut parts = [first, second].map(Held::none_of);
        for part in &mut parts {
            assert!(!part.grow(20), "ten are free");
            part.wait_for(20);
        }
        assert!(!little.grow(1), "it has more than the first in line");
        let _one = none.take(1).expect("it has less");
        all.give_back(20);
        assert!(!little.grow(8), "22 of the 29 are for the first in line");
        let mut next = Held::none_of(first);
        assert!(!next.grow(8), "nor does its own holder overtake it");
        assert!(!parts[1].grow(20), "in the order in which they came");
        assert!(parts[0].grow(20));
        all.give_back(20);
        assert!(!little.grow(8), "now the second is the first");
        assert!(parts[1].grow(20));
        assert!(little.grow(1), "nobody is in line");
    }

    #[tokio::test]
    async fn whoever_leaves_the_line_wakes_those_behind_it() {
        let pool = pool(100, 1);
        let [greedy, first, second] = [(); 3].map(|()| Share::new(&pool));
        let _all = greedy_but(&pool, &greedy, 10);
        let mut large = Held::none_of(&first);
        assert!(!large.grow(20));
        large.wait_for(20);
        let freed = second.freed();
        let mut behind = Held::none_of(&second);
        assert!(
            !behind.grow(5),
            "others wait for more than the ten that are free"
        );
        drop(large);
        freed.await;
        assert!(behind.grow(5));
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
        held.give_back(50);
        assert_eq!((pool.used(), share.held(), held.amount()), (10, 10, 10));
        held.give_back(11);
        assert_eq!((pool.used(), share.held()), (0, 0), "not more than it has");
        assert!(held.grow(20));
        held.clear();
        assert_eq!((pool.used(), share.held()), (0, 0));
        assert!(share.take(101).is_none());
    }
}
