//! The calls of operators and load balancers: Maintenance.Status and Alarm, and the gRPC health check.

use super::{
    Api, ETCD_CLUSTER_VERSION, ETCD_VERSION,
    proto::{
        etcdserverpb as pb,
        healthpb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus},
    },
    reply::Header,
    status::Status,
};
use crate::{
    actors::requests::{NodeStatus, RequestError},
    kv::command::{AlarmKind, SetAlarm},
    types::MemberId,
};
use pb::{AlarmType, alarm_request::AlarmAction};
use std::collections::BTreeSet;
use tokio::sync::mpsc;

impl Api {
    /// Fails while no leader is known.
    pub fn require_leader(&self) -> Result<(), Status> {
        if self.requests.has_leader() {
            Ok(())
        } else {
            Err(RequestError::NoLeader.into())
        }
    }

    /// `Maintenance.Status`: this member's own state, without a request to other members.
    pub fn status(&self, _: pb::StatusRequest) -> Result<pb::StatusResponse, Status> {
        let status = self.requests.status()?;
        let header = Header {
            term: status.term,
            ..self.header(status.revision)
        };
        Ok(status_response(&status, header))
    }

    pub async fn alarm(&self, request: pb::AlarmRequest) -> Result<pb::AlarmResponse, Status> {
        let asked = AlarmType::try_from(request.alarm);
        if request.action == i32::from(AlarmAction::Get) {
            self.only_reads();
        } else {
            self.require_root()?;
        }
        let alarms = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self.raised(request.alarm)?,
            Ok(AlarmAction::Activate) => self.set(request.member_id, asked.ok(), true).await?,
            Ok(AlarmAction::Deactivate) => self.set(request.member_id, asked.ok(), false).await?,
            Err(_) => Vec::new(),
        };
        Ok(pb::AlarmResponse {
            header: Some(self.header_now()),
            alarms,
        })
    }

    /// `Health.Check`. Only the empty name, which means the whole server, has a health status.
    pub fn health_check(
        &self,
        request: &HealthCheckRequest,
    ) -> Result<HealthCheckResponse, Status> {
        self.require_vote()?;
        if request.service.is_empty() {
            Ok(health(ServingStatus::Serving))
        } else {
            Err(Status::unknown_health_service())
        }
    }

    /// `Health.Watch`: sends the health once, then keeps the stream open, because the health does not change.
    pub async fn health_watch(
        &self,
        request: &HealthCheckRequest,
        out: &mpsc::Sender<Result<HealthCheckResponse, Status>>,
    ) -> Result<(), Status> {
        let now = if request.service.is_empty() {
            ServingStatus::Serving
        } else {
            ServingStatus::ServiceUnknown
        };
        if out.send(Ok(health(now))).await.is_ok() {
            self.stopping().await;
        }
        Err(RequestError::Stopped.into())
    }

    /// Ends a call that may wait without limit when the server stops.
    pub(super) async fn unless_stopping<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        tokio::select! {
            biased;
            done = call => done,
            () = self.stopping() => Err(RequestError::Stopped.into()),
        }
    }

    /// Returns once the server stops.
    pub(super) async fn stopping(&self) {
        let mut phase = self.phase.clone();
        // An error means that the sender was dropped: the server is gone.
        drop(phase.wait_for(|phase| phase.is_stopping()).await);
    }

    fn raised(&self, asked: i32) -> Result<Vec<pb::AlarmMember>, Status> {
        let alarms = shown(self.requests.alarms()?);
        let entries = alarms
            .into_iter()
            .map(|(member, alarm)| entry(member, alarm));
        let all = asked == i32::from(AlarmType::None);
        let entries = entries.filter(|entry| all || entry.alarm == asked);
        Ok(entries.collect())
    }

    /// etcd: the type NONE and unknown types raise no alarm and clear none.
    async fn set(
        &self,
        member: u64,
        asked: Option<AlarmType>,
        raised: bool,
    ) -> Result<Vec<pb::AlarmMember>, Status> {
        let kind = match asked {
            Some(AlarmType::Nospace) => AlarmKind::NoSpace,
            Some(AlarmType::Corrupt) => AlarmKind::Corrupt,
            Some(AlarmType::None) | None => return Ok(Vec::new()),
        };
        let member = MemberId(member);
        let found = self
            .requests
            .set_alarm(SetAlarm {
                member,
                kind,
                raised,
            })
            .await?;
        Ok(if found {
            vec![entry(member, shown_as(kind))]
        } else {
            Vec::new()
        })
    }
}

impl From<Header> for pb::ResponseHeader {
    fn from(header: Header) -> Self {
        Self {
            cluster_id: header.cluster.0,
            member_id: header.member.0,
            revision: header.revision.0,
            raft_term: header.term.0,
        }
    }
}

fn health(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

/// An alarm as clients see it.
fn shown_as(kind: AlarmKind) -> AlarmType {
    match kind {
        AlarmKind::NoSpace | AlarmKind::QuotaReached => AlarmType::Nospace,
        AlarmKind::Corrupt | AlarmKind::StateDiffers => AlarmType::Corrupt,
    }
}

/// The alarms as clients see them: two kinds that they cannot tell apart are one.
fn shown(alarms: Vec<(MemberId, AlarmKind)>) -> BTreeSet<(MemberId, AlarmType)> {
    let alarms = alarms.into_iter();
    alarms
        .map(|(member, kind)| (member, shown_as(kind)))
        .collect()
}

fn entry(member: MemberId, alarm: AlarmType) -> pb::AlarmMember {
    pb::AlarmMember {
        member_id: member.0,
        alarm: alarm.into(),
    }
}

fn status_response(status: &NodeStatus, header: Header) -> pb::StatusResponse {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    pb::StatusResponse {
        header: Some(header.into()),
        version: ETCD_VERSION.into(),
        // etcdctl divides by it.
        db_size: signed(status.db_bytes.max(1)),
        leader: status.leader.map_or(0, |leader| leader.0),
        raft_index: status.commit.0,
        raft_term: status.term.0,
        raft_applied_index: status.applied.0,
        errors: status_errors(status),
        db_size_in_use: signed(status.db_bytes_in_use),
        is_learner: status.learner,
        storage_version: ETCD_CLUSTER_VERSION.into(),
        db_size_quota: signed(status.quota_bytes),
        downgrade_info: Some(pb::DowngradeInfo::default()),
    }
}

/// etcd: alarms are printed in protobuf's text format, including the space at its end.
fn status_errors(status: &NodeStatus) -> Vec<String> {
    let mut errors = Vec::new();
    if status.leader.is_none() {
        errors.push(Status::from(RequestError::NoLeader).message.into_owned());
    }
    if let Some(waited) = status.disk.stalled_ms {
        errors.push(format!(
            "quorate: the disk stalls: a write is under way for {waited} ms"
        ));
    }
    for (member, alarm) in shown(status.alarms.clone()) {
        errors.push(format!("memberID:{member} alarm:{} ", alarm.as_str_name()));
    }
    errors
}

/// An alarm's name in the API.
pub fn alarm_name(kind: AlarmKind) -> &'static str {
    shown_as(kind).as_str_name()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        actors::raft_status::DiskHealth,
        types::{ClusterId, LogIndex, Revision, Term},
    };

    fn node() -> NodeStatus {
        NodeStatus {
            cluster: ClusterId(1),
            member: MemberId(2),
            leader: Some(MemberId(2)),
            term: Term(3),
            commit: LogIndex(5),
            applied: LogIndex(4),
            revision: Revision(6),
            compacted: Revision(-1),
            db_bytes: 0,
            db_bytes_in_use: 7,
            quota_bytes: u64::MAX,
            learner: false,
            alarms: Vec::new(),
            disk: DiskHealth::default(),
        }
    }

    #[test]
    fn status_is_what_clients_can_work_with() {
        let answer = status_response(&node(), Header::default());
        assert!(answer.db_size > 0, "etcdctl divides by it");
        assert_eq!(answer.db_size_quota, i64::MAX, "no wrap into negative");
        assert_eq!(
            (
                answer.raft_index,
                answer.raft_applied_index,
                answer.raft_term
            ),
            (5, 4, 3)
        );
        assert_eq!(
            (answer.version.as_str(), answer.storage_version.as_str()),
            ("3.7.3", "3.7.0")
        );
        assert!(answer.downgrade_info.is_some(), "always present");
        assert!(answer.errors.is_empty(), "healthy");
    }

    #[test]
    fn status_lists_what_is_wrong_as_etcd_does() {
        let member = MemberId(12_087_160_956_821_666_428);
        let both = [AlarmKind::NoSpace, AlarmKind::QuotaReached];
        let alarms = both.map(|kind| (member, kind)).to_vec();
        let disk = DiskHealth {
            stalled_ms: Some(1_200),
            ..DiskHealth::default()
        };
        let status = NodeStatus {
            leader: None,
            disk,
            alarms,
            ..node()
        };
        let answer = status_response(&status, Header::default());
        assert_eq!(answer.leader, 0);
        let expected = [
            "etcdserver: no leader",
            "quorate: the disk stalls: a write is under way for 1200 ms",
            "memberID:12087160956821666428 alarm:NOSPACE ",
        ];
        assert_eq!(answer.errors, expected);
    }
}
