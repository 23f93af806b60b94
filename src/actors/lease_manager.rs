//! Lease manager: knows which leases exist, and for how long each was granted.
//!
//! What exists is replicated state: it learns of it from the applier, after the fact. It never deletes a key.

use super::fail_stop::Lifeline;
use crate::{kv::lease::LeaseChange, types::LeaseId};
use actix::prelude::*;
use std::collections::BTreeMap;

/// Messages that may wait: at most one a batch of the applier.
const MAILBOX_MAX: usize = 1_024;

/// Owns the members' view of leases.
#[derive(Debug)]
pub struct LeaseManager {
    /// Time to live of each lease, in seconds.
    leases: BTreeMap<LeaseId, i64>,
    _life: Lifeline,
}

impl LeaseManager {
    /// A manager of the leases that exist at start.
    pub fn new(leases: BTreeMap<LeaseId, i64>, life: Lifeline) -> Self {
        Self {
            leases,
            _life: life,
        }
    }
}

/// What a batch did to leases, in order.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct LeasesChanged {
    /// The changes.
    pub changes: Vec<LeaseChange>,
}

/// Asks which leases exist. The answer may be a batch behind the log.
#[derive(Debug, Message)]
#[rtype(result = "Vec<LeaseId>")]
pub struct ListLeases;

impl Actor for LeaseManager {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
    }
}

impl Handler<LeasesChanged> for LeaseManager {
    type Result = ();

    fn handle(&mut self, changed: LeasesChanged, _: &mut Self::Context) {
        for change in changed.changes {
            match change {
                LeaseChange::Granted { id, ttl_secs } => {
                    self.leases.insert(id, ttl_secs);
                }
                LeaseChange::Revoked { id } => {
                    self.leases.remove(&id);
                }
            }
        }
    }
}

impl Handler<ListLeases> for LeaseManager {
    type Result = Vec<LeaseId>;

    fn handle(&mut self, _: ListLeases, _: &mut Self::Context) -> Self::Result {
        self.leases.keys().copied().collect()
    }
}
