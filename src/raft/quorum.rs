//! Majorities: what a quorum has reached, and who won a vote. Knows nothing of logs or terms.

use super::membership::VOTERS_MAX;

/// How many of `voters` make a quorum; any two quorums share a member.
pub(super) fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// The largest value that a majority has reached, given what each voter has reached.
/// None without voters. Sorts on the stack: it runs for every acknowledgement.
pub(super) fn agreed<T: Ord + Copy + Default>(reached: impl Iterator<Item = T>) -> Option<T> {
    let mut values = [T::default(); VOTERS_MAX];
    let mut count = 0;
    for value in reached {
        assert!(
            count < VOTERS_MAX,
            "membership admits {VOTERS_MAX} voters at most"
        );
        values[count] = value;
        count += 1;
    }
    let values = &mut values[..count];
    values.sort_unstable();
    count.checked_sub(majority(count)).map(|at| values[at])
}

/// How an election stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A quorum voted for the candidate.
    Won,
    /// A quorum can no longer be had.
    Lost,
    /// Votes are missing.
    Open,
}

/// Counts the voters' answers: `Some(true)` for, `Some(false)` against, `None` not heard yet.
pub(super) fn tally(votes: impl Iterator<Item = Option<bool>>) -> Outcome {
    let (mut count, mut granted, mut refused) = (0, 0, 0);
    for answer in votes {
        count += 1;
        granted += usize::from(answer == Some(true));
        refused += usize::from(answer == Some(false));
    }
    if count > 0 && granted >= majority(count) {
        Outcome::Won
    } else if refused > count.saturating_sub(majority(count)) {
        Outcome::Lost
    } else {
        Outcome::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreed_is_what_a_majority_has() {
        assert_eq!(agreed([0u64; 0].into_iter()), None);
        assert_eq!(agreed([7u64].into_iter()), Some(7));
        assert_eq!(agreed([7u64, 3].into_iter()), Some(3));
        assert_eq!(agreed([9u64, 1, 5].into_iter()), Some(5));
        assert_eq!(agreed([9u64, 1, 5, 6].into_iter()), Some(5));
        assert_eq!(agreed([9u64, 9, 1, 1, 4].into_iter()), Some(4));
    }

    #[test]
    fn tally_counts_quorums_both_ways() {
        assert_eq!(tally([Some(true), None, None].into_iter()), Outcome::Open);
        assert_eq!(
            tally([Some(true), Some(true), None].into_iter()),
            Outcome::Won
        );
        assert_eq!(
            tally([Some(true), Some(false), Some(false)].into_iter()),
            Outcome::Lost
        );
        assert_eq!(tally([Some(true), Some(false)].into_iter()), Outcome::Lost);
        assert_eq!(tally(std::iter::empty()), Outcome::Open);
    }
}
