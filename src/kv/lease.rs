//! Leases as the log knows them: which exist, and which keys each holds. Their countdown is the leader's business
//! (`actors::lease_manager`); nothing here reads a clock.

use super::KvError;
use crate::types::LeaseId;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// What a command did to the lease table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// The lease exists from now on.
    Granted {
        /// Which.
        id: LeaseId,
        /// Its time to live, in seconds.
        ttl_secs: i64,
    },
    /// The lease is gone, and its keys with it.
    Revoked {
        /// Which.
        id: LeaseId,
    },
}

/// One lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Its time to live, in seconds.
    pub ttl_secs: i64,
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
    pub fn grant(&mut self, id: LeaseId, ttl_secs: i64) -> Result<(), KvError> {
        if self.leases.contains_key(&id) {
            return Err(KvError::LeaseExists(id));
        }
        self.leases.insert(
            id,
            Lease {
                ttl_secs,
                keys: BTreeSet::new(),
            },
        );
        Ok(())
    }

    /// Ends a lease and gives back its keys, ascending.
    pub fn revoke(&mut self, id: LeaseId) -> Result<BTreeSet<Bytes>, KvError> {
        let lease = self.leases.remove(&id).ok_or(KvError::LeaseNotFound(id))?;
        Ok(lease.keys)
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
