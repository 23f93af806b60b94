//! Who belongs to the cluster, and how that changes.
//!
//! A change adds or removes one voter, through the log. Joint consensus could replace several at once, but needs
//! two quorums, two entries and an intermediate state that all later code must consider;
//! a coordination cluster changes one machine at a time, so the simple rule is enough.
//!
//! A membership takes effect at a member **when the entry is appended** to its log (thesis, 4.1), not when
//! it is applied: so the membership in force is a function of the log alone, survives any crash, and does not depend on
//! who has applied what. Safety, in short: old and new membership differ in one voter, so every
//! majority of the one overlaps every majority of the other; a second change waits until the first is
//! committed *and* the leader has committed an entry of its own term (Ongaro's correction of 2015), so no two
//! leaders ever use memberships that are two changes apart. When a new leader overwrites an uncommitted
//! change, the membership before it is in force again.
//!
//! Each entry contains the whole membership after the change: a new member that receives only the newest entries
//! has all members, and nothing has to be computed from earlier changes.

use crate::types::{LogIndex, MemberId};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// The most voters a membership may have. Real clusters have 1, 3, 5 or 7.
pub const VOTERS_MAX: usize = 15;

/// The most learners a membership may have.
pub const LEARNERS_MAX: usize = 15;

/// The longest context of a member, in bytes.
pub const CONTEXT_BYTES_MAX: usize = 16 * 1024;

/// The voters and learners, each with a context (name, addresses) that consensus does not read.
/// No id is in both; at most [`VOTERS_MAX`] and [`LEARNERS_MAX`] of them. Empty in a member that joins a cluster and has not
/// received its log yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    voters: BTreeMap<MemberId, Bytes>,
    learners: BTreeMap<MemberId, Bytes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Adds a member that receives the log but does not vote and is not counted for a quorum.
    AddLearner {
        /// Not a member yet.
        id: MemberId,
        /// Stored beside the id.
        context: Bytes,
    },
    /// Adds a voter at once. It is safer to add a learner and promote it when it has caught up.
    AddVoter {
        /// Not a member yet.
        id: MemberId,
        /// Stored beside the id.
        context: Bytes,
    },
    /// Makes a learner a voter, if it has caught up.
    Promote { id: MemberId },
    /// Removes a voter or learner; the leader may remove itself.
    Remove { id: MemberId },
    /// Replaces a member's context.
    Update { id: MemberId, context: Bytes },
}

/// Why a change cannot be made to a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The member to add exists.
    #[error("member {} is in the cluster already", .0.hex())]
    Exists(MemberId),
    /// There is no such member.
    #[error("member {} is not in the cluster", .0.hex())]
    NotFound(MemberId),
    #[error("member {} is not a learner", .0.hex())]
    NotLearner(MemberId),
    /// The last voter cannot be removed.
    #[error("member {} is the last voter", .0.hex())]
    LastVoter(MemberId),
    /// Zero is not a valid id.
    #[error("0 is not a member id")]
    ZeroId,
    /// [`VOTERS_MAX`] or [`LEARNERS_MAX`] is reached.
    #[error("the cluster has as many voters or learners as it may have")]
    TooMany,
    /// The context exceeds [`CONTEXT_BYTES_MAX`].
    #[error("a member context of {0} bytes is longer than {CONTEXT_BYTES_MAX}")]
    ContextTooLong(usize),
    /// The encoded membership is damaged or of an unknown version.
    #[error("the bytes do not encode a membership")]
    Malformed,
}

/// First byte of an encoded membership.
const VERSION: u8 = 1;

impl Membership {
    /// The membership with which a cluster begins: these voters and no learners.
    pub fn of_voters(
        voters: impl IntoIterator<Item = (MemberId, Bytes)>,
    ) -> Result<Self, MembershipError> {
        let mut made = Self::default();
        for (id, context) in voters {
            made = made.with(&MembershipChange::AddVoter { id, context })?;
        }
        Ok(made)
    }

    /// The voters with their contexts, in order of their ids.
    pub fn voters(&self) -> impl Iterator<Item = (MemberId, &Bytes)> {
        self.voters.iter().map(|(&id, context)| (id, context))
    }

    /// The learners with their contexts, in order of their ids.
    pub fn learners(&self) -> impl Iterator<Item = (MemberId, &Bytes)> {
        self.learners.iter().map(|(&id, context)| (id, context))
    }

    /// Ids of all members, voters first.
    pub fn ids(&self) -> impl Iterator<Item = MemberId> {
        self.voters.keys().chain(self.learners.keys()).copied()
    }

    /// Whether `id` votes and is counted for a quorum.
    pub fn is_voter(&self, id: MemberId) -> bool {
        self.voters.contains_key(&id)
    }

    /// Whether `id` receives the log without a vote.
    pub fn is_learner(&self, id: MemberId) -> bool {
        self.learners.contains_key(&id)
    }

    /// Whether `id` belongs to the cluster.
    pub fn contains(&self, id: MemberId) -> bool {
        self.is_voter(id) || self.is_learner(id)
    }

    /// The context stored beside `id`.
    pub fn context(&self, id: MemberId) -> Option<&Bytes> {
        self.voters.get(&id).or_else(|| self.learners.get(&id))
    }

    /// Whether `id` is the only voter.
    pub fn is_sole_voter(&self, id: MemberId) -> bool {
        self.voters.len() == 1 && self.is_voter(id)
    }

    pub fn with(&self, change: &MembershipChange) -> Result<Self, MembershipError> {
        let mut after = self.clone();
        match change {
            MembershipChange::AddLearner { id, context } => {
                after.admit(*id, context)?;
                after.learners.insert(*id, context.clone());
            }
            MembershipChange::AddVoter { id, context } => {
                after.admit(*id, context)?;
                after.voters.insert(*id, context.clone());
            }
            MembershipChange::Promote { id } => {
                if !self.contains(*id) {
                    return Err(MembershipError::NotFound(*id));
                }
                let context = after
                    .learners
                    .remove(id)
                    .ok_or(MembershipError::NotLearner(*id))?;
                after.voters.insert(*id, context);
            }
            MembershipChange::Remove { id } => {
                if self.is_sole_voter(*id) {
                    return Err(MembershipError::LastVoter(*id));
                }
                if after
                    .voters
                    .remove(id)
                    .or_else(|| after.learners.remove(id))
                    .is_none()
                {
                    return Err(MembershipError::NotFound(*id));
                }
            }
            MembershipChange::Update { id, context } => {
                check_context(context)?;
                let slot = match after.voters.get_mut(id) {
                    Some(slot) => slot,
                    None => after
                        .learners
                        .get_mut(id)
                        .ok_or(MembershipError::NotFound(*id))?,
                };
                *slot = context.clone();
            }
        }
        after.check_sizes()?;
        Ok(after)
    }

    fn admit(&self, id: MemberId, context: &Bytes) -> Result<(), MembershipError> {
        check_context(context)?;
        if id == MemberId(0) {
            return Err(MembershipError::ZeroId);
        }
        if self.contains(id) {
            return Err(MembershipError::Exists(id));
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), MembershipError> {
        if self.voters.len() > VOTERS_MAX || self.learners.len() > LEARNERS_MAX {
            return Err(MembershipError::TooMany);
        }
        Ok(())
    }

    /// The bytes of a membership entry: version, then voters, then learners; each list as a count (u8) and
    /// per member its id (u64), context length (u32) and context. Integers are little-endian.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        for list in [&self.voters, &self.learners] {
            let count = u8::try_from(list.len());
            out.push(count.expect("check_sizes keeps both lists far below 256"));
            for (id, context) in list {
                out.extend_from_slice(&id.0.to_le_bytes());
                let len = u32::try_from(context.len());
                let len = len.expect("check_context keeps contexts short");
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(context);
            }
        }
        out.into()
    }

    /// Reads what [`Membership::encode`] wrote; the contexts share `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Self, MembershipError> {
        let mut rest = bytes.clone();
        if take(&mut rest, 1)?[0] != VERSION {
            return Err(MembershipError::Malformed);
        }
        let mut made = Self::default();
        for learners in [false, true] {
            for _ in 0..take(&mut rest, 1)?[0] {
                let id = MemberId(u64::from_le_bytes(take_array(&mut rest)?));
                let len = u32::from_le_bytes(take_array(&mut rest)?) as usize;
                let context = take(&mut rest, len)?;
                made.admit(id, &context)?;
                let list = if learners {
                    &mut made.learners
                } else {
                    &mut made.voters
                };
                list.insert(id, context);
            }
        }
        made.check_sizes()?;
        if rest.is_empty() {
            Ok(made)
        } else {
            Err(MembershipError::Malformed)
        }
    }
}

fn check_context(context: &Bytes) -> Result<(), MembershipError> {
    match context.len() {
        0..=CONTEXT_BYTES_MAX => Ok(()),
        len => Err(MembershipError::ContextTooLong(len)),
    }
}

fn take(rest: &mut Bytes, len: usize) -> Result<Bytes, MembershipError> {
    if rest.len() < len {
        return Err(MembershipError::Malformed);
    }
    Ok(rest.split_to(len))
}

fn take_array<const N: usize>(rest: &mut Bytes) -> Result<[u8; N], MembershipError> {
    <[u8; N]>::try_from(&take(rest, N)?[..]).map_err(|_| MembershipError::Malformed)
}

/// The memberships in a log: the committed one, and those appended after it, which a new leader may still
/// overwrite. The newest is in force.
#[derive(Debug)]
pub(super) struct History {
    committed: (LogIndex, Membership),
    /// Ascending indexes, all above `committed`.
    appended: VecDeque<(LogIndex, Membership)>,
}

impl History {
    /// A history whose first membership was committed at or before `index`.
    pub(super) fn new(index: LogIndex, membership: Membership) -> Self {
        Self {
            committed: (index, membership),
            appended: VecDeque::new(),
        }
    }

    /// The membership in force.
    pub(super) fn current(&self) -> &Membership {
        &self.appended.back().unwrap_or(&self.committed).1
    }

    /// Where the membership in force was appended.
    pub(super) fn current_index(&self) -> LogIndex {
        self.appended.back().unwrap_or(&self.committed).0
    }

    /// Whether there is a change that is not committed.
    pub(super) fn is_changing(&self) -> bool {
        !self.appended.is_empty()
    }

    /// Whether `id` may campaign: a voter, or one whose removal is not committed. The latter must,
    /// since it may be the only member whose log can win (thesis, 4.2.2).
    pub(super) fn may_campaign(&self, id: MemberId) -> bool {
        self.current().is_voter(id) || self.committed.1.is_voter(id)
    }

    /// An entry with `membership` was appended at `index`.
    pub(super) fn append(&mut self, index: LogIndex, membership: Membership) {
        assert!(
            index > self.current_index(),
            "entries append in order: {index} after {}",
            self.current_index()
        );
        self.appended.push_back((index, membership));
    }

    /// Entries from `from` on were overwritten.
    pub(super) fn truncate(&mut self, from: LogIndex) {
        assert!(
            from > self.committed.0,
            "a committed membership at {} stays",
            self.committed.0
        );
        while self
            .appended
            .back()
            .is_some_and(|(index, _)| *index >= from)
        {
            self.appended.pop_back();
        }
    }

    /// Replaces everything up to `index` by `membership`, which was in force and committed there.
    pub(super) fn rebase(&mut self, index: LogIndex, membership: Membership) {
        self.appended.retain(|(at, _)| *at > index);
        if self.committed.0 <= index {
            self.committed = (index, membership);
        }
    }

    /// Entries up to `commit` are committed.
    pub(super) fn commit(&mut self, commit: LogIndex) {
        while self
            .appended
            .front()
            .is_some_and(|(index, _)| *index <= commit)
        {
            self.committed = self.appended.pop_front().expect("front was there");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(voters: &[u64]) -> Membership {
        let with_context = |&id: &u64| (MemberId(id), Bytes::from(format!("n{id}")));
        Membership::of_voters(voters.iter().map(with_context)).unwrap()
    }

    #[test]
    fn a_learner_is_added_promoted_updated_and_removed() {
        let id = MemberId(4);
        let context = Bytes::from_static(b"four");
        let grown = of(&[1, 2, 3])
            .with(&MembershipChange::AddLearner { id, context })
            .unwrap();
        assert!(grown.is_learner(id));
        assert!(!grown.is_voter(id));
        let promoted = grown.with(&MembershipChange::Promote { id }).unwrap();
        assert!(promoted.is_voter(id));
        assert!(!promoted.is_learner(id));
        let context = Bytes::from_static(b"vier");
        let updated = promoted
            .with(&MembershipChange::Update {
                id,
                context: context.clone(),
            })
            .unwrap();
        assert_eq!(updated.context(id), Some(&context));
        assert_eq!(
            updated.with(&MembershipChange::Remove { id }).unwrap(),
            of(&[1, 2, 3])
        );
    }

    #[test]
    fn impossible_changes_are_refused() {
        let id = MemberId(1);
        let context = Bytes::new();
        let one = of(&[1]);
        let refused = |change| one.with(&change).unwrap_err();
        assert_eq!(
            refused(MembershipChange::Remove { id }),
            MembershipError::LastVoter(id)
        );
        assert_eq!(
            refused(MembershipChange::Promote { id }),
            MembershipError::NotLearner(id)
        );
        let again = MembershipChange::AddVoter {
            id,
            context: context.clone(),
        };
        assert_eq!(refused(again), MembershipError::Exists(id));
        let nobody = MemberId(9);
        assert_eq!(
            refused(MembershipChange::Remove { id: nobody }),
            MembershipError::NotFound(nobody)
        );
        assert_eq!(
            refused(MembershipChange::Promote { id: nobody }),
            MembershipError::NotFound(nobody)
        );
        let zero = MembershipChange::AddLearner {
            id: MemberId(0),
            context,
        };
        assert_eq!(refused(zero), MembershipError::ZeroId);
        let context = Bytes::from(vec![0; CONTEXT_BYTES_MAX + 1]);
        let long = MembershipChange::Update { id, context };
        assert_eq!(
            refused(long),
            MembershipError::ContextTooLong(CONTEXT_BYTES_MAX + 1)
        );
        let many =
            (1..=u64::try_from(VOTERS_MAX).unwrap() + 1).map(|id| (MemberId(id), Bytes::new()));
        assert_eq!(
            Membership::of_voters(many).unwrap_err(),
            MembershipError::TooMany
        );
    }

    #[test]
    fn encoding_round_trips_and_refuses_damage() {
        let context = Bytes::from_static(b"learner");
        let whole = of(&[1, 2, 3]).with(&MembershipChange::AddLearner {
            id: MemberId(u64::MAX),
            context,
        });
        let whole = whole.unwrap();
        let bytes = whole.encode();
        assert_eq!(Membership::decode(&bytes), Ok(whole));
        for cut in 0..bytes.len() {
            assert!(
                Membership::decode(&bytes.slice(..cut)).is_err(),
                "cut at {cut}"
            );
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Membership::decode(&longer.into()).is_err(), "trailing byte");
        assert!(
            Membership::decode(&Bytes::from_static(&[9, 0, 0])).is_err(),
            "version"
        );
    }

    #[test]
    fn history_rolls_back_what_was_not_committed() {
        let mut history = History::new(LogIndex(1), of(&[1, 2, 3]));
        history.append(LogIndex(5), of(&[1, 2]));
        assert!(history.is_changing());
        assert!(
            history.may_campaign(MemberId(3)),
            "its log may be the only one that can commit its removal"
        );
        history.truncate(LogIndex(4));
        assert_eq!(history.current(), &of(&[1, 2, 3]));
        history.append(LogIndex(4), of(&[1, 3]));
        history.commit(LogIndex(4));
        assert!(!history.is_changing());
        assert!(!history.may_campaign(MemberId(2)));
        assert_eq!(history.current_index(), LogIndex(4));
    }
}
