//! Leases as the log knows them: which exist, and which keys each holds. Their countdown is the leader's business
//! ([`super::lease_clock`]); nothing here reads a clock.
//!
//! Commands that come from a countdown are guarded, because a countdown can be wrong by the time its command is applied: the
//! leader that proposed it may have been deposed, or the lease may have been revoked and granted anew under the same id. Such a
//! command names the term of its proposer, and for each lease the log index of its grant; it has no effect on a lease
//! where either differs. `docs/leases.md` says why that is enough.

use super::{
    KvError,
    command::{LeaseMark, LogPosition},
};
use crate::mutation::{Mutation, mutated};
use crate::types::{LeaseId, LogIndex, Term};
use bincode::{Decode, Encode};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// The shortest remaining time that a checkpoint can mean, in seconds; zero means that the lease has all of its time.
pub const ALL_TIME: i64 = 0;

/// What a command did to the lease table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// The lease exists from now on.
    Granted {
        /// Which.
        id: LeaseId,
        /// What is known of it.
        row: LeaseRow,
    },
    /// The time that a new leader gives the lease is another from now on.
    Checkpointed {
        /// Which.
        id: LeaseId,
        /// What is known of it now.
        row: LeaseRow,
    },
    /// The lease is gone, and its keys with it.
    Revoked {
        /// Which.
        id: LeaseId,
    },
}

/// What is known of a lease besides its keys; stored with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct LeaseRow {
    /// Its time to live, in seconds.
    pub ttl_secs: i64,
    /// The time a new leader gives it, in seconds; [`ALL_TIME`] stands for all of it.
    pub remaining_secs: i64,
    /// The log entry that granted it: two leases that bore the same id one after the other differ in it.
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

    /// The time that a new leader gives it, in seconds.
    pub fn start_secs(&self) -> i64 {
        if self.remaining_secs == ALL_TIME {
            self.ttl_secs
        } else {
            self.remaining_secs
        }
    }
}

/// One lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// What is known of it.
    pub row: LeaseRow,
    /// The keys attached to it. A key is attached to one lease at most.
    pub keys: BTreeSet<Bytes>,
}

/// All leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseTable {
    leases: BTreeMap<LeaseId, Lease>,
}

impl LeaseTable {
    /// The lease, if it exists.
    pub fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    /// Creates a lease.
    pub fn grant(&mut self, id: LeaseId, row: LeaseRow) -> Result<(), KvError> {
        if self.leases.contains_key(&id) {
            return Err(KvError::LeaseExists(id));
        }
        let keys = BTreeSet::new();
        self.leases.insert(id, Lease { row, keys });
        Ok(())
    }

    /// Ends a lease and gives back its keys, ascending.
    pub fn revoke(&mut self, id: LeaseId) -> Result<BTreeSet<Bytes>, KvError> {
        let lease = self.leases.remove(&id).ok_or(KvError::LeaseNotFound(id))?;
        Ok(lease.keys)
    }

    /// The lease that a command from a countdown means, unless its guard says that it no longer speaks of it: `term` is its
    /// proposer's, `at` where it stands in the log.
    pub fn guarded(&mut self, mark: LeaseMark, term: Term, at: LogPosition) -> Option<&mut Lease> {
        let lease = self.leases.get_mut(&mark.id)?;
        let guarded = term == at.term && lease.row.granted == mark.granted;
        (guarded || mutated(Mutation::DeposedLeaseRevoke)).then_some(lease)
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
        assert_eq!(table.revoke(ID), Ok(BTreeSet::new()));
        assert_eq!(table.revoke(other), Ok([Bytes::from("a")].into()));
    }

    #[test]
    fn a_new_leader_goes_on_from_the_checkpoint() {
        let mut row = LeaseRow::new(60, LogIndex(3));
        assert_eq!(row.start_secs(), 60);
        row.remaining_secs = 20;
        assert_eq!(row.start_secs(), 20);
    }
}
