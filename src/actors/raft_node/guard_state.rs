//! The comparisons of the members' states: those under way, their results, and whether this member's own state is that of the
//! others.

use crate::{
    kv::state_hash::{Judgement, StateHash, judge},
    types::{LogIndex, MemberId},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Ticks between two comparisons.
const COMPARE_TICKS: u32 = 10;

/// How long members may differ without a majority before the alarm is raised for all of them.
const UNDECIDED_MAX: Duration = Duration::from_secs(10);

/// Questions to the applier in flight. Beyond that a question gets no answer, and is asked again.
const QUESTIONS_MAX: usize = 4;

/// The hashes of the members' states, and what follows from them.
#[derive(Debug)]
pub(super) struct Guard {
    ticks: u32,
    questions: Arc<Semaphore>,
    /// The comparison under way, while this member leads.
    round: Option<Comparison>,
    /// The entry and hash that, says the leader, a majority has; this member's own hash has been requested.
    accusation: Option<(LogIndex, StateHash)>,
    standing: Standing,
    /// Members that were found to differ; each is logged once.
    found: BTreeSet<MemberId>,
    undecided_since: Option<Instant>,
    undecided_logged: bool,
}

/// Whether this member's state equals the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// No comparison has found a difference.
    In,
    /// It differs; its alarm is not in the log yet.
    Found,
    /// It differs, and its alarm is raised.
    Out,
}

/// The answers to one comparison.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) index: LogIndex,
    hashes: BTreeMap<MemberId, StateHash>,
}

/// A member whose state was found to differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Differing {
    pub(super) id: MemberId,
    pub(super) hash: StateHash,
    pub(super) right: StateHash,
    /// Whether this is the first comparison that shows it.
    pub(super) new: bool,
}

/// What follows from a comparison.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All that answered agree.
    Same,
    /// These differ from a majority.
    Differ(Vec<Differing>),
    /// No state has a majority.
    Undecided {
        /// The members with each state.
        members_by_hash: BTreeMap<StateHash, Vec<MemberId>>,
        /// It was not so at the last comparison.
        new: bool,
        /// It has been so for too long: the alarm is due for all of them.
        too_long: bool,
    },
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            ticks: 0,
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            round: None,
            accusation: None,
            standing: Standing::In,
            found: BTreeSet::new(),
            undecided_since: None,
            undecided_logged: false,
        }
    }
}

impl Guard {
    /// Whether this member serves nothing.
    pub(super) fn is_out(&self) -> bool {
        self.standing != Standing::In
    }

    /// Whether this member differs and its alarm is not in the log yet.
    pub(super) fn awaits_alarm(&self) -> bool {
        self.standing == Standing::Found
    }

    /// Once a tick: whether it is time for the next comparison.
    pub(super) fn is_due(&mut self) -> bool {
        self.ticks = self.ticks.wrapping_add(1);
        self.ticks.is_multiple_of(COMPARE_TICKS)
    }

    /// The right to ask the applier a question, unless too many are in flight.
    pub(super) fn question(&self) -> Option<OwnedSemaphorePermit> {
        self.questions.clone().try_acquire_owned().ok()
    }

    /// The replicated state has an alarm for this member, or has none. It lasts over restarts, so it decides; but the alarm of a
    /// member that was just found to differ is still on its way. Returns the standing before and after.
    pub(super) fn alarm(&mut self, raised: bool) -> (Standing, Standing) {
        let before = self.standing;
        self.standing = match (before, raised) {
            (Standing::In | Standing::Found | Standing::Out, true) => Standing::Out,
            (Standing::In | Standing::Out, false) => Standing::In,
            (Standing::Found, false) => Standing::Found,
        };
        (before, self.standing)
    }

    /// This member's state differs. True if that is new.
    pub(super) fn found_to_differ(&mut self) -> bool {
        let new = !self.is_out();
        if new {
            self.standing = Standing::Found;
        }
        new
    }

    pub(super) fn begin_comparison(&mut self, index: LogIndex) {
        let hashes = BTreeMap::new();
        self.round = Some(Comparison { index, hashes });
    }

    pub(super) fn end_comparison(&mut self) -> Option<Comparison> {
        self.round.take()
    }

    /// A member has sent its hash after entry `index`.
    pub(super) fn answered(&mut self, by: MemberId, index: LogIndex, hash: StateHash) {
        if let Some(round) = &mut self.round
            && round.index == index
        {
            round.hashes.insert(by, hash);
        }
    }

    /// The leader says that a majority has the hash `right` after entry `index`, and this member another one.
    pub(super) fn accuse(&mut self, index: LogIndex, right: StateHash) {
        self.accusation = Some((index, right));
    }

    /// This member's own hash after entry `index` is known: the hash of the accusation that it answers, if there is one.
    pub(super) fn take_accusation(&mut self, index: LogIndex) -> Option<StateHash> {
        let accusation = self.accusation.take_if(|(at, _)| *at == index);
        accusation.map(|(_, right)| right)
    }

    /// Judges a comparison among `voters`.
    pub(super) fn judge(
        &mut self,
        comparison: &Comparison,
        voters: &[MemberId],
        now: Instant,
    ) -> Verdict {
        match judge(voters, &comparison.hashes) {
            Judgement::Same => {
                self.found.clear();
                self.undecided_since = None;
                self.undecided_logged = false;
                Verdict::Same
            }
            Judgement::Differ { right, wrong } => {
                self.undecided_since = None;
                let differing = |id| Differing {
                    id,
                    hash: comparison.hashes.get(&id).copied().unwrap_or_default(),
                    right,
                    new: self.found.insert(id),
                };
                Verdict::Differ(wrong.into_iter().map(differing).collect())
            }
            Judgement::Undecided(members_by_hash) => {
                let since = *self.undecided_since.get_or_insert(now);
                Verdict::Undecided {
                    members_by_hash,
                    new: !std::mem::replace(&mut self.undecided_logged, true),
                    too_long: now.duration_since(since) >= UNDECIDED_MAX,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, codec};

    fn hash(value: u64) -> StateHash {
        codec::decode("hash", &codec::encode(&value)).unwrap()
    }

    fn compare(guard: &mut Guard, hashes: &[(u64, u64)], now: Instant) -> Verdict {
        let index = LogIndex(9);
        guard.begin_comparison(index);
        for (id, value) in hashes {
            guard.answered(MemberId(*id), index, hash(*value));
            guard.answered(MemberId(*id), LogIndex(8), hash(0));
        }
        let comparison = guard.end_comparison().unwrap();
        let voters: Vec<MemberId> = hashes.iter().map(|(id, _)| MemberId(*id)).collect();
        guard.judge(&comparison, &voters, now)
    }

    #[test]
    fn a_member_that_differs_is_new_once() {
        let (mut guard, now) = (Guard::default(), clock::now());
        let hashes = [(1, 7), (2, 7), (3, 5)];
        for new in [true, false] {
            let differing = Differing {
                id: MemberId(3),
                hash: hash(5),
                right: hash(7),
                new,
            };
            let verdict = compare(&mut guard, &hashes, now);
            assert_eq!(verdict, Verdict::Differ(vec![differing]));
        }
        let same = compare(&mut guard, &[(1, 7), (2, 7), (3, 7)], now);
        assert_eq!(same, Verdict::Same);
        let again = compare(&mut guard, &hashes, now);
        assert!(matches!(again, Verdict::Differ(found) if found[0].new));
    }

    #[test]
    fn without_a_majority_the_alarm_is_due_only_after_a_while() {
        let (mut guard, start) = (Guard::default(), clock::now());
        let mut undecided = |now| match compare(&mut guard, &[(1, 7), (2, 5)], now) {
            Verdict::Undecided { new, too_long, .. } => (new, too_long),
            verdict @ (Verdict::Same | Verdict::Differ(_)) => panic!("{verdict:?}"),
        };
        assert_eq!(undecided(start), (true, false));
        assert_eq!(undecided(start + UNDECIDED_MAX / 2), (false, false));
        assert_eq!(undecided(start + UNDECIDED_MAX), (false, true));
    }

    #[test]
    fn the_alarm_decides_but_for_one_that_is_still_on_its_way() {
        let mut guard = Guard::default();
        assert_eq!(guard.alarm(true), (Standing::In, Standing::Out));
        assert_eq!(guard.alarm(false), (Standing::Out, Standing::In));
        assert!(guard.found_to_differ());
        assert!(!guard.found_to_differ());
        assert_eq!(guard.alarm(false), (Standing::Found, Standing::Found));
        assert!(guard.is_out() && guard.awaits_alarm());
        assert_eq!(guard.alarm(true), (Standing::Found, Standing::Out));
    }

    #[test]
    fn an_accusation_is_answered_once_and_by_its_own_entry() {
        let mut guard = Guard::default();
        guard.accuse(LogIndex(9), hash(7));
        assert_eq!(guard.take_accusation(LogIndex(8)), None);
        assert_eq!(guard.take_accusation(LogIndex(9)), Some(hash(7)));
        assert_eq!(guard.take_accusation(LogIndex(9)), None);
    }

    #[test]
    fn questions_to_the_applier_are_bounded() {
        let guard = Guard::default();
        let asked: Vec<_> = std::iter::from_fn(|| guard.question()).collect();
        assert_eq!(asked.len(), QUESTIONS_MAX);
        drop(asked);
        assert!(guard.question().is_some());
    }
}
