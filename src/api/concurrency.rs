//! `v3lockpb.Lock` and `v3electionpb.Election`.

use super::{
    Api, lines,
    proto::{mvccpb, v3electionpb as ep, v3lockpb as lp},
    status::Status,
};
use crate::{
    audit::Subject,
    kv::record::KeyValue,
    services::{
        election::{self, LeaderSeen, Leadership},
        lock,
    },
    types::{LeaseId, Revision},
};
use bytes::Bytes;
use tokio::sync::mpsc;

impl Api {
    pub async fn lock(&self, request: lp::LockRequest) -> Result<lp::LockResponse, Status> {
        self.about(|| lines::of_leased_key(&request.name, request.lease));
        let lease = LeaseId(request.lease);
        let locking = lock::lock(&self.requests, owned(&request.name), lease);
        let locked = self.unless_stopping(async { Ok(locking.await?) }).await?;
        Ok(lp::LockResponse {
            header: Some(self.header(locked.revision).into()),
            key: locked.key,
        })
    }

    pub async fn unlock(&self, request: lp::UnlockRequest) -> Result<lp::UnlockResponse, Status> {
        self.about(|| Subject::of_range(&request.key, &[]));
        let revision = lock::unlock(&self.requests, request.key).await?;
        let header = Some(self.header(revision).into());
        Ok(lp::UnlockResponse { header })
    }

    pub async fn campaign(
        &self,
        request: ep::CampaignRequest,
    ) -> Result<ep::CampaignResponse, Status> {
        self.about(|| lines::of_leased_key(&request.name, request.lease));
        let (name, value) = (owned(&request.name), owned(&request.value));
        let lease = LeaseId(request.lease);
        let winning = election::campaign(&self.requests, name, lease, value);
        let won = self.unless_stopping(async { Ok(winning.await?) }).await;
        let (leadership, revision) = won?;
        Ok(ep::CampaignResponse {
            header: Some(self.header(revision).into()),
            leader: Some(ep::LeaderKey {
                name: leadership.name,
                key: leadership.key,
                rev: leadership.created.0,
                lease: leadership.lease.0,
            }),
        })
    }

    pub async fn proclaim(
        &self,
        request: ep::ProclaimRequest,
    ) -> Result<ep::ProclaimResponse, Status> {
        let leadership = leadership(request.leader)?;
        self.about(|| lines::of_leased_key(&leadership.key, leadership.lease.0));
        let proclaimed = election::proclaim(&self.requests, &leadership, request.value).await;
        let header = Some(self.header(proclaimed?).into());
        Ok(ep::ProclaimResponse { header })
    }

    pub async fn leader(&self, request: ep::LeaderRequest) -> Result<ep::LeaderResponse, Status> {
        self.about(|| Subject::of_range(&request.name, &[]));
        let seen = election::leader(&self.requests, &request.name).await?;
        Ok(self.leader_response(seen))
    }

    /// `Election.Observe`: sends every leader until the client or the node ends the call.
    pub async fn observe(
        &self,
        request: ep::LeaderRequest,
        out: mpsc::Sender<Result<ep::LeaderResponse, Status>>,
    ) -> Result<(), Status> {
        self.about(|| Subject::of_range(&request.name, &[]));
        let mut observer = election::observe(&self.requests, owned(&request.name)).await?;
        loop {
            let next = observer.next();
            let seen = self.unless_stopping(async { Ok(next.await?) }).await?;
            if out.send(Ok(self.leader_response(seen))).await.is_err() {
                return Ok(());
            }
        }
    }

    pub async fn resign(&self, request: ep::ResignRequest) -> Result<ep::ResignResponse, Status> {
        let leadership = leadership(request.leader)?;
        self.about(|| lines::of_leased_key(&leadership.key, leadership.lease.0));
        let revision = election::resign(&self.requests, &leadership).await?;
        let header = Some(self.header(revision).into());
        Ok(ep::ResignResponse { header })
    }

    fn leader_response(&self, seen: LeaderSeen) -> ep::LeaderResponse {
        ep::LeaderResponse {
            header: Some(self.header(seen.revision).into()),
            kv: Some(key_value(seen.kv)),
        }
    }
}

/// A copy, for calls that may wait without limit: a slice would keep the request's whole buffer in memory.
fn owned(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn leadership(key: Option<ep::LeaderKey>) -> Result<Leadership, Status> {
    let key = key.ok_or_else(Status::leader_key_missing)?;
    Ok(Leadership {
        name: key.name,
        key: key.key,
        created: Revision(key.rev),
        lease: LeaseId(key.lease),
    })
}

fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision.0,
        mod_revision: kv.mod_revision.0,
        version: kv.version,
        value: kv.value,
        lease: kv.lease.0,
    }
}
