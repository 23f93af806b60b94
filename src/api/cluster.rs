//! The calls about the cluster as a whole: the list of members and its changes, the transfer of leadership, the hash of the
//! state.
//!
//! etcd: the headers of Cluster's responses have no revision, and a learner serves none of these calls.

use super::{Api, lines, proto::etcdserverpb as pb, status::Status};
use crate::{
    actors::{
        members::{ClusterMember, Members},
        membership_change::MemberChange,
        requests::RequestError,
    },
    types::{MemberId, Revision},
};

impl Api {
    pub async fn member_list(
        &self,
        request: pb::MemberListRequest,
    ) -> Result<pb::MemberListResponse, Status> {
        self.require_vote()?;
        let members = self.requests.members(request.linearizable).await?;
        Ok(pb::MemberListResponse {
            header: Some(self.cluster_header()),
            members: listed(&members),
        })
    }

    pub async fn member_add(
        &self,
        request: pb::MemberAddRequest,
    ) -> Result<pb::MemberAddResponse, Status> {
        self.about(|| lines::of_other("peer_urls", &request.peer_ur_ls.join(",")));
        self.require_vote()?;
        let urls = request.peer_ur_ls;
        let members = self
            .requests
            .change_membership(MemberChange::Add {
                peer_urls: urls.clone(),
                learner: request.is_learner,
            })
            .await?;
        let added = members.iter().find(|member| member.info.peer_urls == urls);
        Ok(pb::MemberAddResponse {
            header: Some(self.cluster_header()),
            member: added.map(wire),
            members: listed(&members),
        })
    }

    pub async fn member_remove(
        &self,
        request: pb::MemberRemoveRequest,
    ) -> Result<pb::MemberRemoveResponse, Status> {
        let id = MemberId(request.id);
        self.about(|| lines::of_other("target_member", &id.hex()));
        let members = self.changed(MemberChange::Remove { id }).await?;
        Ok(pb::MemberRemoveResponse {
            header: Some(self.cluster_header()),
            members,
        })
    }

    pub async fn member_update(
        &self,
        request: pb::MemberUpdateRequest,
    ) -> Result<pb::MemberUpdateResponse, Status> {
        self.about(|| lines::of_other("target_member", &MemberId(request.id).hex()));
        let (id, peer_urls) = (MemberId(request.id), request.peer_ur_ls);
        let members = self.changed(MemberChange::Move { id, peer_urls }).await?;
        Ok(pb::MemberUpdateResponse {
            header: Some(self.cluster_header()),
            members,
        })
    }

    pub async fn member_promote(
        &self,
        request: pb::MemberPromoteRequest,
    ) -> Result<pb::MemberPromoteResponse, Status> {
        let id = MemberId(request.id);
        self.about(|| lines::of_other("target_member", &id.hex()));
        let members = self.changed(MemberChange::Promote { id }).await?;
        Ok(pb::MemberPromoteResponse {
            header: Some(self.cluster_header()),
            members,
        })
    }

    /// `Maintenance.MoveLeader`. etcd: its response has no header.
    pub async fn move_leader(
        &self,
        request: pb::MoveLeaderRequest,
    ) -> Result<pb::MoveLeaderResponse, Status> {
        self.about(|| lines::of_other("target_member", &MemberId(request.target_id).hex()));
        self.require_vote()?;
        self.requests
            .move_leader(MemberId(request.target_id))
            .await?;
        Ok(pb::MoveLeaderResponse::default())
    }

    /// `Maintenance.Hash`: that of all history, so members that have the same give the same. etcd: that of its whole file, which
    /// compares with nothing.
    pub async fn hash(&self, _: pb::HashRequest) -> Result<pb::HashResponse, Status> {
        self.require_vote()?;
        let hashed = self.requests.hash_kv(Revision(0)).await?;
        Ok(pb::HashResponse {
            header: Some(self.header(hashed.newest).into()),
            hash: hashed.hash,
        })
    }

    pub async fn hash_kv(&self, request: pb::HashKvRequest) -> Result<pb::HashKvResponse, Status> {
        self.require_vote()?;
        let hashed = self.requests.hash_kv(Revision(request.revision)).await?;
        Ok(pb::HashKvResponse {
            header: Some(self.header(hashed.newest).into()),
            hash: hashed.hash,
            compact_revision: hashed.compacted.0,
            hash_revision: hashed.through.0,
        })
    }

    /// Fails on a learner.
    pub(super) fn require_vote(&self) -> Result<(), Status> {
        if self.requests.is_learner() {
            return Err(RequestError::Learner.into());
        }
        Ok(())
    }

    async fn changed(&self, change: MemberChange) -> Result<Vec<pb::Member>, Status> {
        self.require_vote()?;
        Ok(listed(&self.requests.change_membership(change).await?))
    }

    fn cluster_header(&self) -> pb::ResponseHeader {
        self.header(Revision(0)).into()
    }
}

fn listed(members: &Members) -> Vec<pb::Member> {
    members.iter().map(wire).collect()
}

fn wire(member: &ClusterMember) -> pb::Member {
    let info = member.info.clone();
    pb::Member {
        id: member.id.0,
        name: info.name,
        peer_ur_ls: info.peer_urls,
        client_ur_ls: info.client_urls,
        is_learner: !member.is_meant_to_vote(),
    }
}
