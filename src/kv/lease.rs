//! Leases, as the log decides them: which exist, and which keys each holds. Each member computes for itself when they are due
//! ([`super::lease_clock`]); nothing here reads a clock.
//!
//! Commands that come from a countdown are guarded, because a countdown can be wrong by the time its command is applied: the
//! leader that proposed it may have been deposed, or the lease may have been revoked and granted anew under the same id. Such a
//! command names the term of its proposer, and for each lease the log index of its grant; it has no effect on a lease
//! where either differs. `docs/leases.md` says why that is enough.

use super::KvError;
use crate::{
    mutation::{Mutation, mutated},
    types::{LeaseId, LogIndex, LogPosition, Term},
};
use bincode::{Decode, Encode};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A remaining time of zero seconds means that the lease has all of its time.
pub const ALL_TIME: i64 = 0;

/// What a command did to the lease table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// The lease exists from now on.
    Granted { id: LeaseId, row: LeaseRow },
    /// It has all of its time again.
    Renewed {
        id: LeaseId,
        /// What is known of it now.
        row: LeaseRow,
        /// Whether this cleared a checkpoint: only then has the stored row changed.
        cleared: bool,
    },
    /// Its stored remaining time has changed: a member that starts from the database counts it from there.
    Checkpointed {
        id: LeaseId,
        /// What is known of it now.
        row: LeaseRow,
    },
    /// The lease and its keys are deleted.
    Revoked { id: LeaseId },
}

/// Names one lease among all that ever had its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct LeaseMark {
    pub id: LeaseId,
    /// The log entry that granted it.
    pub granted: LogIndex,
}

/// What is known of a lease besides its keys; stored with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct LeaseRow {
    /// Its time to live, in seconds.
    pub ttl_secs: i64,
    /// The time, in seconds, from which a member that starts with this row counts it; [`ALL_TIME`] stands for all of it.
    pub remaining_secs: i64,
    /// The log entry that granted it: it distinguishes two leases that had the same id one after the other.
    pub granted: LogIndex,
}

impl LeaseRow {
    /// A lease that was just granted.
    pub fn new(ttl_secs: i64, granted: LogIndex) -> Self {
        Self {
            ttl_secs,
            remaining_secs: ALL_TIME,
            granted,
        }
    }

    /// The time, in seconds, from which a member that starts with this row counts it.
    pub fn start_secs(&self) -> i64 {
        if self.remaining_secs == ALL_TIME {
            self.ttl_secs
        } else {
            self.remaining_secs
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// What is known of it.
    pub row: LeaseRow,
    /// The keys attached to it. A key is attached to one lease at most.
    pub keys: LeaseKeys,
}

/// The keys of a lease. Most leases have one, and a set for it would take ten times the space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LeaseKeys {
    #[default]
    None,
    One(Bytes),
    Many(BTreeSet<Bytes>),
}

impl LeaseKeys {
    /// The keys, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(key) => (Some(key), None),
            Self::Many(keys) => (None, Some(keys)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(keys) => keys.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::None
    }

    fn insert(&mut self, key: Bytes) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(key),
            Self::One(only) if only == key => Self::One(only),
            Self::One(only) => Self::Many(BTreeSet::from([only, key])),
            Self::Many(mut keys) => {
                keys.insert(key);
                Self::Many(keys)
            }
        };
    }

    fn remove(&mut self, key: &[u8]) {
        *self = match std::mem::take(self) {
            Self::One(only) if only == key => Self::None,
            Self::Many(mut keys) => {
                keys.remove(key);
                match keys.len() {
                    1 => keys.pop_first().map_or(Self::None, Self::One),
                    _ => Self::Many(keys),
                }
            }
            none_of_it @ (Self::None | Self::One(_)) => none_of_it,
        };
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseTable {
    leases: BTreeMap<LeaseId, Lease>,
}

impl LeaseTable {
    pub fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    pub fn grant(&mut self, id: LeaseId, row: LeaseRow) -> Result<(), KvError> {
        if self.leases.contains_key(&id) {
            return Err(KvError::LeaseExists(id));
        }
        let keys = LeaseKeys::None;
        self.leases.insert(id, Lease { row, keys });
        Ok(())
    }

    /// Removes a lease and returns its keys, ascending.
    pub fn revoke(&mut self, id: LeaseId) -> Result<LeaseKeys, KvError> {
        let lease = self.leases.remove(&id).ok_or(KvError::LeaseNotFound(id))?;
        Ok(lease.keys)
    }

    /// The lease that a countdown's command names, if the command's guard holds: `term` is its proposer's term, `at` its log
    /// position.
    pub fn guarded(&mut self, mark: LeaseMark, term: Term, at: LogPosition) -> Option<&mut Lease> {
        let lease = self.leases.get_mut(&mark.id)?;
        let guarded = term == at.term && lease.row.granted == mark.granted;
        (guarded || mutated(Mutation::DeposedLeaseRevoke)).then_some(lease)
    }

    /// Gives a lease all of its time again, if the guard holds; see [`LeaseTable::guarded`].
    pub fn renew(&mut self, mark: LeaseMark, term: Term, at: LogPosition) -> Option<LeaseChange> {
        let lease = self.guarded(mark, term, at)?;
        let cleared = lease.row.remaining_secs != ALL_TIME;
        lease.row.remaining_secs = ALL_TIME;
        Some(LeaseChange::Renewed {
            id: mark.id,
            row: lease.row,
            cleared,
        })
    }

    /// A put may name no lease (zero) or one that exists.
    pub fn check(&self, id: LeaseId) -> Result<(), KvError> {
        if id.0 == 0 || self.leases.contains_key(&id) {
            Ok(())
        } else {
            Err(KvError::LeaseNotFound(id))
        }
    }

    /// Moves a key from one lease to another; zero stands for none.
    pub fn attach(&mut self, key: &[u8], from: LeaseId, to: LeaseId) {
        if from == to {
            return;
        }
        if let Some(lease) = self.leases.get_mut(&from) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&to) {
            lease.keys.insert(Bytes::copy_from_slice(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: LeaseId = LeaseId(7);

    fn at(index: u64, term: u64) -> LogPosition {
        LogPosition {
            index: LogIndex(index),
            term: Term(term),
        }
    }

    fn mark(granted: u64) -> LeaseMark {
        LeaseMark {
            id: ID,
            granted: LogIndex(granted),
        }
    }

    fn table() -> LeaseTable {
        let mut table = LeaseTable::default();
        let granted = table.grant(ID, LeaseRow::new(60, LogIndex(3)));
        assert_eq!(granted, Ok(()));
        table
    }

    #[test]
    fn a_guard_admits_its_own_term_and_grant_alone() {
        let mut table = table();
        assert!(table.guarded(mark(3), Term(2), at(9, 2)).is_some());
        assert!(table.guarded(mark(3), Term(1), at(9, 2)).is_none());
        assert!(table.guarded(mark(3), Term(3), at(9, 2)).is_none());
        assert!(table.guarded(mark(2), Term(2), at(9, 2)).is_none());
    }

    #[test]
    fn a_lease_granted_again_under_its_id_is_another_one() {
        let mut table = table();
        assert!(table.revoke(ID).is_ok());
        assert_eq!(table.grant(ID, LeaseRow::new(60, LogIndex(8))), Ok(()));
        assert!(table.guarded(mark(3), Term(2), at(9, 2)).is_none());
        assert!(table.guarded(mark(8), Term(2), at(9, 2)).is_some());
    }

    #[test]
    fn a_key_moves_between_leases() {
        let mut table = table();
        let other = LeaseId(-1);
        assert_eq!(table.grant(other, LeaseRow::new(5, LogIndex(4))), Ok(()));
        table.attach(b"a", LeaseId(0), ID);
        table.attach(b"a", ID, other);
        assert_eq!(table.revoke(ID), Ok(LeaseKeys::None));
        assert_eq!(table.revoke(other), Ok(LeaseKeys::One("a".into())));
    }

    #[test]
    fn keys_are_a_set_however_many_there_are() {
        let mut keys = LeaseKeys::None;
        let mut naive = BTreeSet::new();
        let steps = [
            "+b", "+b", "-a", "+a", "+c", "+a", "-b", "-b", "-c", "-a", "-a", "+d",
        ];
        for step in steps {
            let key = Bytes::from(&step[1..]);
            if step.starts_with('+') {
                naive.insert(key.clone());
                keys.insert(key);
            } else {
                naive.remove(&key);
                keys.remove(&key);
            }
            assert!(keys.iter().eq(&naive), "{step}: {keys:?}");
            assert_eq!(
                (keys.len(), keys.is_empty()),
                (naive.len(), naive.is_empty())
            );
            let many = matches!(keys, LeaseKeys::Many(_));
            assert_eq!(many, naive.len() > 1, "{step}: {keys:?}");
        }
    }

    #[test]
    fn a_member_that_starts_goes_on_from_the_checkpoint() {
        let mut row = LeaseRow::new(60, LogIndex(3));
        assert_eq!(row.start_secs(), 60);
        row.remaining_secs = 20;
        assert_eq!(row.start_secs(), 20);
    }

    #[test]
    fn a_renewal_takes_a_checkpoint_back() {
        let mut table = table();
        let renewed = |cleared| LeaseChange::Renewed {
            id: ID,
            row: LeaseRow::new(60, LogIndex(3)),
            cleared,
        };
        let change = table.renew(mark(3), Term(2), at(9, 2));
        assert_eq!(change, Some(renewed(false)));
        let lease = table.guarded(mark(3), Term(2), at(10, 2));
        lease.expect("it is there").row.remaining_secs = 20;
        let change = table.renew(mark(3), Term(2), at(11, 2));
        assert_eq!(change, Some(renewed(true)));
        assert_eq!(table.renew(mark(3), Term(2), at(12, 3)), None);
        assert_eq!(table.renew(mark(2), Term(2), at(13, 2)), None);
    }
}
