//! Leases, as front ends and embedding programs ask for them.
//!
//! Grants and revocations go through the log. So do renewals, but many in an entry, which the leader makes; and the leader alone
//! knows how much time a lease has left. [`LeaseDesk`](super::lease_desk::LeaseDesk) takes renewals and questions for the time
//! left to the leader.

use super::{
    lease_desk::WhenFull,
    lease_messages::{AskLeaseKeys, LeaseAnswer, LeaseCall},
    request_error::RequestError,
    requests::Requests,
};
use crate::{
    auth::{Caller, grants::Right},
    clock,
    kv::{
        KvError,
        command::{Command, GrantLease, Outcome, RevokeLease},
    },
    types::{LeaseId, Revision},
};
use bytes::Bytes;
use std::sync::Arc;

/// The longest time to live that can be asked for, in seconds. etcd: the same.
pub const TTL_SECS_MAX: i64 = 9_000_000_000;

/// A lease's time, and its keys if they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseTime {
    /// What is left, in whole seconds.
    pub left_secs: i64,
    /// What was granted, in seconds.
    pub ttl_secs: i64,
    /// The attached keys, ascending.
    pub keys: Vec<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGranted {
    pub id: LeaseId,
    /// Its time to live, in seconds: what was asked for, or the least that is granted.
    pub ttl_secs: i64,
    pub revision: Revision,
}

impl Requests {
    /// Creates a lease. Without an id the store chooses one; a time to live below the minimum is raised to it. Leases that are
    /// granted at the same moment may exceed the limit on their number by a few.
    pub async fn grant_lease(
        &self,
        id: Option<LeaseId>,
        ttl_secs: i64,
    ) -> Result<LeaseGranted, RequestError> {
        if ttl_secs > TTL_SECS_MAX {
            let max_secs = TTL_SECS_MAX;
            let asked_secs = ttl_secs;
            return Err(KvError::LeaseTtlTooLarge {
                asked_secs,
                max_secs,
            }
            .into());
        }
        let peers = self.lease_desk().peers();
        let (leases, max) = (*peers.leases.borrow(), peers.leases_max);
        if leases >= max {
            return Err(KvError::TooManyLeases { max }.into());
        }
        let ttl_secs = ttl_secs.max(peers.ttl_secs_min);
        loop {
            let grant = GrantLease {
                id: id.unwrap_or_else(random_id),
                ttl_secs,
            };
            match self.propose(&Command::GrantLease(grant)).await {
                // A lease with the random id exists: try another id.
                Err(RequestError::Kv(KvError::LeaseExists(_))) if id.is_none() => {}
                Ok(Outcome::Lease { revision, .. }) => {
                    return Ok(LeaseGranted {
                        id: grant.id,
                        ttl_secs,
                        revision,
                    });
                }
                Ok(other) => unreachable!("the machine answers a grant in kind, not {other:?}"),
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends a lease and deletes its keys in one revision. Returns the store's revision.
    pub async fn revoke_lease(&self, id: LeaseId) -> Result<Revision, RequestError> {
        let revoke = Command::RevokeLease(RevokeLease { id });
        match self.propose(&revoke).await? {
            Outcome::Lease { revision, .. } => Ok(revision),
            other => unreachable!("the machine answers a revoke in kind, not {other:?}"),
        }
    }

    /// Renews a lease. Returns its time to live in seconds, or `None` if the lease is gone. If its time is up, the answer comes
    /// once its keys are deleted.
    pub async fn keep_alive(&self, id: LeaseId) -> Result<Option<i64>, RequestError> {
        self.renew(id, WhenFull::Refuse).await
    }

    /// As [`Requests::keep_alive`], but if too many calls wait, this one waits too instead of failing. Callers bound how many do.
    pub(crate) async fn keep_alive_in_turn(
        &self,
        id: LeaseId,
    ) -> Result<Option<i64>, RequestError> {
        self.renew(id, WhenFull::Wait).await
    }

    async fn renew(&self, id: LeaseId, when_full: WhenFull) -> Result<Option<i64>, RequestError> {
        if self.is_auth_on() || *self.caller() == Caller::BadToken {
            self.allow_lease(id, Right::Write).await?;
        }
        match self
            .lease_desk()
            .call(LeaseCall::Renew(id), when_full)
            .await?
        {
            LeaseAnswer::Renewed { ttl_secs } => Ok(Some(ttl_secs)),
            LeaseAnswer::NoLease => Ok(None),
            other @ (LeaseAnswer::Time { .. } | LeaseAnswer::TryAgain) => {
                unreachable!("a renewal is answered in kind, not with {other:?}")
            }
        }
    }

    /// A lease's time, and its keys if asked for; `None` if there is no such lease. The leader knows the time, every member the
    /// keys, which include those of every write acknowledged before this call.
    pub async fn time_to_live(
        &self,
        id: LeaseId,
        keys: bool,
    ) -> Result<Option<LeaseTime>, RequestError> {
        if self.is_auth_on() || *self.caller() == Caller::BadToken {
            self.newest_view()?.auth.require_identity(self.caller())?;
            if keys {
                self.allow_lease(id, Right::Read).await?;
            }
        }
        let deadline = clock::now() + self.limits().timeout;
        let call = LeaseCall::TimeLeft(id);
        let (left_secs, ttl_secs) = match self.lease_desk().call(call, WhenFull::Refuse).await? {
            LeaseAnswer::Time {
                left_secs,
                ttl_secs,
            } => (left_secs, ttl_secs),
            LeaseAnswer::NoLease => return Ok(None),
            other @ (LeaseAnswer::Renewed { .. } | LeaseAnswer::TryAgain) => {
                unreachable!("a question is answered in kind, not with {other:?}")
            }
        };
        let mut time = LeaseTime {
            left_secs,
            ttl_secs,
            keys: Vec::new(),
        };
        if keys {
            let viewed = tokio::time::timeout_at(deadline, self.view_for(false)).await;
            viewed.map_err(|_| RequestError::TimedOut)??;
            // As of now: keys may have been attached, and rights taken, while the call was under way.
            let Some(attached) = self.ask_keys(id, Right::Read, true).await? else {
                return Ok(None);
            };
            time.keys = attached;
        }
        Ok(Some(time))
    }

    /// All leases that this member has applied, by their remaining time as it counts. All who ask in one turn share the list.
    pub async fn leases(&self) -> Result<Arc<[LeaseId]>, RequestError> {
        let leases = self.lease_desk().list().await?;
        if self.is_auth_on() || *self.caller() == Caller::BadToken {
            for id in leases.iter() {
                self.allow_lease(*id, Right::Read).await?;
            }
            self.newest_view()?.auth.require_identity(self.caller())?;
        }
        Ok(leases)
    }

    /// Refuses a caller who may not do this to every key that is attached to a lease, or whose token has ended since the stream
    /// of renewals was opened. etcd: as of this member's own state, and a lease that does not exist needs no right.
    async fn allow_lease(&self, id: LeaseId, right: Right) -> Result<(), RequestError> {
        let published = self.newest_view()?;
        let caller = self.caller_now();
        published.auth.note_use(&caller);
        if published.auth.rights(&caller)?.is_all() {
            return Ok(());
        }
        self.ask_keys(id, right, false).await.map(drop)
    }

    /// The keys of a lease, or, without `list`, none of them; `None` if there is no such lease.
    async fn ask_keys(
        &self,
        id: LeaseId,
        right: Right,
        list: bool,
    ) -> Result<Option<Vec<Bytes>>, RequestError> {
        let caller = self.caller().clone();
        let ask = AskLeaseKeys {
            id,
            caller,
            right,
            list,
        };
        let keys = &self.lease_desk().peers().keys;
        keys.ask(ask).await
    }
}

/// A positive id.
fn random_id() -> LeaseId {
    LeaseId((clock::entropy() >> 1).max(1).cast_signed())
}
