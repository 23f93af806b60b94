//! Bounds how many calls a client cancels before they begin.
//!
//! Honest clients do that in bursts: when a deadline passes for many calls at once, or when a paused process continues. A client
//! that only cancels calls costs the server time and never waits for an answer (the attack "rapid reset").

use crate::clock;
use std::time::Duration;
use tokio::time::Instant;

/// Cancelled calls of one burst.
const BURST_MAX: u32 = 10_000;

/// The time after which one more call may be cancelled.
const REFILL: Duration = Duration::from_millis(5);

/// A budget that refills over time. Created with the first cancelled call, since most connections have none.
#[derive(Debug, Default)]
pub(super) struct ResetBudget(Option<Box<Spent>>);

#[derive(Debug)]
struct Spent {
    resets: u32,
    /// The time up to which the budget was refilled.
    refilled: Instant,
}

/// The budget is exhausted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exhausted;

impl ResetBudget {
    /// Counts a cancelled call.
    pub(super) fn spend(&mut self) -> Result<(), Exhausted> {
        let now = clock::now();
        let spent = self.0.get_or_insert_with(|| {
            Box::new(Spent {
                resets: 0,
                refilled: now,
            })
        });
        let waited = now.saturating_duration_since(spent.refilled);
        let refills = waited.as_nanos() / REFILL.as_nanos();
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        spent.resets = spent.resets.saturating_sub(refills);
        spent.refilled = if spent.resets == 0 {
            now
        } else {
            spent.refilled + REFILL * refills
        };
        spent.resets += 1;
        if spent.resets > BURST_MAX {
            Err(Exhausted)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bursts_pass_and_floods_do_not() {
        let mut budget = ResetBudget::default();
        for _ in 0..BURST_MAX {
            assert_eq!(budget.spend(), Ok(()));
        }
        assert_eq!(budget.spend(), Err(Exhausted));
        tokio::time::advance(REFILL * 101).await;
        for _ in 0..100 {
            assert_eq!(budget.spend(), Ok(()), "it refills");
        }
        assert_eq!(budget.spend(), Err(Exhausted), "but not by more");
        tokio::time::advance(REFILL * BURST_MAX * 2).await;
        for _ in 0..BURST_MAX {
            assert_eq!(budget.spend(), Ok(()), "a quiet client has all of it");
        }
        assert_eq!(budget.spend(), Err(Exhausted));
    }
}
