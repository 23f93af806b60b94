//! A candidate, or pre-candidate: the votes it has received, and how long it waits for more.

use super::{
    quorum::{VoteOutcome, tally},
    state::CoreState,
};
use crate::types::MemberId;
use std::collections::BTreeMap;

/// What only a candidate has.
#[derive(Debug)]
pub(super) struct Candidate {
    /// It asks for pre-votes: it has entered no new term and given no vote.
    asks_for_pre_votes: bool,
    votes: BTreeMap<MemberId, bool>,
    elapsed_ticks: u32,
    timeout_ticks: u32,
}

impl Candidate {
    pub(super) fn new(state: &mut CoreState, asks_for_pre_votes: bool) -> Self {
        Self {
            asks_for_pre_votes,
            votes: BTreeMap::new(),
            elapsed_ticks: 0,
            timeout_ticks: state.draw_timeout(),
        }
    }

    pub(super) fn is_pre_candidate(&self) -> bool {
        self.asks_for_pre_votes
    }

    /// One tick passed. True if it is time to campaign again.
    pub(super) fn tick(&mut self) -> bool {
        self.elapsed_ticks += 1;
        self.elapsed_ticks >= self.timeout_ticks
    }

    /// Records an answer. True if `from` had not answered before.
    pub(super) fn record(&mut self, from: MemberId, granted: bool) -> bool {
        self.votes.insert(from, granted).is_none()
    }

    pub(super) fn outcome(&self, state: &CoreState) -> VoteOutcome {
        let voters = state.membership().voters();
        tally(voters.map(|(id, _)| self.votes.get(&id).copied()))
    }
}
