//! Majorities: the value that a quorum has reached, and the outcome of a vote.

use super::membership::VOTERS_MAX;

/// How many of `voters` make a quorum; any two quorums share a member.
pub(super) fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// The largest value that a majority has reached, given the value of each voter. None without voters.
/// It runs for every acknowledgement, so it sorts on the stack.
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

/// The state of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VoteOutcome {
    /// A quorum voted for the candidate.
    Won,
    /// So many refused that a quorum is no longer possible.
    Lost,
    /// Too few have answered yet.
    Open,
}

/// Counts the voters' answers: `Some(true)` grants, `Some(false)` refuses, `None` has not arrived.
pub(super) fn tally(votes: impl Iterator<Item = Option<bool>>) -> VoteOutcome {
    let (mut count, mut granted, mut refused) = (0, 0, 0);
    for answer in votes {
        count += 1;
        granted += usize::from(answer == Some(true));
        refused += usize::from(answer == Some(false));
    }
    if count > 0 && granted >= majority(count) {
        VoteOutcome::Won
    } else if refused > count.saturating_sub(majority(count)) {
        VoteOutcome::Lost
    } else {
        VoteOutcome::Open
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
        assert_eq!(
            tally([Some(true), None, None].into_iter()),
            VoteOutcome::Open
        );
        assert_eq!(
            tally([Some(true), Some(true), None].into_iter()),
            VoteOutcome::Won
        );
        assert_eq!(
            tally([Some(true), Some(false), Some(false)].into_iter()),
            VoteOutcome::Lost
        );
        assert_eq!(
            tally([Some(true), Some(false)].into_iter()),
            VoteOutcome::Lost
        );
        assert_eq!(tally(std::iter::empty()), VoteOutcome::Open);
    }
}
