//! Locks and elections as messages to a [`Store`], for programs that embed a node.
//!
//! A message that waits is answered when its wait is over. Dropping the answer does not give up the place in the queue: the actor
//! goes on waiting. To give it up, call [`lock`](super::lock::lock()) or [`campaign`](super::election::campaign()) and drop that.

use super::{
    election::{self, ElectionError, LeaderSeen, Leadership, Observer},
    lock::{self, LockError, Locked},
};
use crate::{
    actors::store::Store,
    types::{LeaseId, Revision},
};
use actix::prelude::*;
use bytes::Bytes;

/// Waits for a lock; see [`lock::lock()`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Locked, LockError>")]
pub struct TakeLock {
    pub name: Bytes,
    /// The candidate's lease; for zero one is granted.
    pub lease: LeaseId,
}

/// Releases a lock; see [`lock::unlock`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Revision, LockError>")]
pub struct ReleaseLock {
    pub key: Bytes,
}

/// Waits to lead; see [`election::campaign`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Leadership, ElectionError>")]
pub struct Campaign {
    /// The name of the election.
    pub name: Bytes,
    /// The candidate's lease; for zero one is granted.
    pub lease: LeaseId,
    pub value: Bytes,
}

/// Changes the leader's value; see [`election::proclaim`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Revision, ElectionError>")]
pub struct Proclaim {
    /// The leadership of the caller.
    pub leadership: Leadership,
    pub value: Bytes,
}

/// Gives a leadership up; see [`election::resign`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Revision, ElectionError>")]
pub struct Resign {
    /// The leadership to end.
    pub leadership: Leadership,
}

/// Asks who leads; see [`election::leader`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<LeaderSeen, ElectionError>")]
pub struct ReadLeader {
    /// The name of the election.
    pub name: Bytes,
}

/// Asks for all leaders from now on; see [`election::observe`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Observer, ElectionError>")]
pub struct ObserveLeaders {
    /// The name of the election.
    pub name: Bytes,
}

impl Handler<TakeLock> for Store {
    type Result = ResponseFuture<Result<Locked, LockError>>;

    fn handle(&mut self, take: TakeLock, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move { lock::lock(&requests, take.name, take.lease).await })
    }
}

impl Handler<ReleaseLock> for Store {
    type Result = ResponseFuture<Result<Revision, LockError>>;

    fn handle(&mut self, release: ReleaseLock, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move { lock::unlock(&requests, release.key).await })
    }
}

impl Handler<Campaign> for Store {
    type Result = ResponseFuture<Result<Leadership, ElectionError>>;

    fn handle(&mut self, campaign: Campaign, _: &mut Self::Context) -> Self::Result {
        let (requests, Campaign { name, lease, value }) = (self.requests(), campaign);
        Box::pin(async move {
            let won = election::campaign(&requests, name, lease, value).await;
            won.map(|(leadership, _)| leadership)
        })
    }
}

impl Handler<Proclaim> for Store {
    type Result = ResponseFuture<Result<Revision, ElectionError>>;

    fn handle(&mut self, asked: Proclaim, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move { election::proclaim(&requests, &asked.leadership, asked.value).await })
    }
}

impl Handler<Resign> for Store {
    type Result = ResponseFuture<Result<Revision, ElectionError>>;

    fn handle(&mut self, asked: Resign, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move { election::resign(&requests, &asked.leadership).await })
    }
}

impl Handler<ReadLeader> for Store {
    type Result = ResponseFuture<Result<LeaderSeen, ElectionError>>;

    fn handle(&mut self, read: ReadLeader, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move { election::leader(&requests, &read.name).await })
    }
}

impl Handler<ObserveLeaders> for Store {
    type Result = ResponseFuture<Result<Observer, ElectionError>>;

    fn handle(&mut self, observe: ObserveLeaders, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move { election::observe(&requests, observe.name).await })
    }
}
