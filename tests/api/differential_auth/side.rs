//! One server of the differential test of users: it makes a step's call, and gives the answer as a text that can be compared.

use super::steps::{Step, Who};
use crate::support::{Kind, Server, Setup};
use bytes::Bytes;
use quorate::internals::api::proto::{
    authpb, etcdserverpb as pb, v3electionpb as ep, v3lockpb as lp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::timeout;
use tokio_stream::{iter, once};
use tonic::{Request, Streaming, transport::Channel};

/// How long an event may take: generous, for a loaded machine.
const LONG: Duration = Duration::from_secs(30);

/// A watch that stays open while users and roles change.
pub(super) struct OpenWatch {
    answers: Streaming<pb::WatchResponse>,
    /// The revision and the key of each event.
    pub(super) seen: Vec<(i64, Bytes)>,
    /// The reason, if the server has ended it.
    pub(super) over: Option<String>,
}

impl OpenWatch {
    /// Takes events up to that of a revision, or until the server ends the watch.
    pub(super) async fn follow(&mut self, through: i64) {
        let reached = |seen: &[(i64, Bytes)]| seen.last().is_some_and(|last| last.0 >= through);
        while self.over.is_none() && !reached(&self.seen) {
            let answer = timeout(LONG, self.answers.message()).await;
            let answer = answer.expect("an event comes").unwrap();
            let answer = answer.expect("the stream stays open");
            for event in answer.events {
                let kv = event.kv.unwrap();
                self.seen.push((kv.mod_revision, kv.key));
            }
            self.over = answer.canceled.then_some(answer.cancel_reason);
        }
    }
}

/// One server, with the newest token of each user.
pub(super) struct Side {
    _server: Option<Server>,
    pub(super) channel: Channel,
    tokens: BTreeMap<&'static str, String>,
    pub(super) watches: Vec<OpenWatch>,
    /// What the newest campaign won.
    leader: Option<ep::LeaderKey>,
}

/// The answer without what differs between servers.
macro_rules! outcome_of {
    ($call:expr) => {
        match $call.await {
            Ok(response) => {
                let mut response = response.into_inner();
                response.header = response.header.map(|header| pb::ResponseHeader {
                    revision: header.revision,
                    ..Default::default()
                });
                format!("{response:?}")
            }
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        }
    };
    ($call:expr, $clean:expr) => {
        match $call.await {
            Ok(response) => $clean(response.into_inner()),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        }
    };
}

impl Side {
    pub(super) async fn start(kind: Kind) -> Self {
        let mut setup = Setup::default();
        match kind {
            Kind::Quorate => setup.env.extend([
                ("QUORATE_AUTH_BCRYPT_COST".into(), "4".into()),
                ("QUORATE_AUTH_FAILED_LOGINS_MAX".into(), "0".into()),
            ]),
            Kind::Etcd => setup.args.push("--bcrypt-cost=4".into()),
        }
        let mut server = Server::new(kind, setup);
        server.restart().await;
        let address = format!("http://127.0.0.1:{}", server.client_port());
        let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
        Self {
            channel: endpoint.connect().await.unwrap(),
            _server: Some(server),
            tokens: BTreeMap::new(),
            watches: Vec::new(),
            leader: None,
        }
    }

    /// Another client of the same server, with the same tokens. The server ends with the first.
    pub(super) fn another(&self) -> Self {
        Self {
            _server: None,
            channel: self.channel.clone(),
            tokens: self.tokens.clone(),
            watches: Vec::new(),
            leader: None,
        }
    }

    pub(super) fn by<T>(&self, who: Who, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let token = match who {
            Who::Nobody => return request,
            Who::BadToken => "AAAAAAAAAAAAAAAA.5",
            Who::User(name) => match self.tokens.get(name) {
                Some(token) => token,
                None => return request,
            },
        };
        let value = token.parse().expect("a token is ASCII");
        request.metadata_mut().insert("token", value);
        request
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each call")]
    pub(super) async fn run(&mut self, who: Who, step: &Step) -> String {
        let channel = self.channel.clone();
        let mut auth = pb::auth_client::AuthClient::new(channel.clone());
        let mut kv = pb::kv_client::KvClient::new(channel.clone());
        let mut lease = pb::lease_client::LeaseClient::new(channel.clone());
        let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel.clone());
        let (own, text) = (|text: &str| text.to_owned(), str::as_bytes);
        let bytes = |key: &'static str| Bytes::from_static(text(key));
        match step.clone() {
            Step::Enable => outcome_of!(auth.auth_enable(self.by(who, pb::AuthEnableRequest {}))),
            Step::Disable => {
                outcome_of!(auth.auth_disable(self.by(who, pb::AuthDisableRequest {})))
            }
            Step::AuthStatus => {
                outcome_of!(auth.auth_status(self.by(who, pb::AuthStatusRequest {})))
            }
            Step::LogIn(name, password) => {
                let request = pb::AuthenticateRequest {
                    name: own(name),
                    password: own(password),
                };
                match auth.authenticate(self.by(who, request)).await {
                    Ok(response) => {
                        let response = response.into_inner();
                        self.tokens.insert(name, response.token);
                        format!("logged in at {}", response.header.unwrap().revision)
                    }
                    Err(status) => format!("{:?}: {}", status.code(), status.message()),
                }
            }
            Step::AddUser(name, password, no_password) => {
                let request = pb::AuthUserAddRequest {
                    name: own(name),
                    password: own(password),
                    options: no_password.then_some(authpb::UserAddOptions { no_password }),
                    ..Default::default()
                };
                outcome_of!(auth.user_add(self.by(who, request)))
            }
            Step::GetUser(name) => {
                let request = pb::AuthUserGetRequest { name: own(name) };
                outcome_of!(auth.user_get(self.by(who, request)))
            }
            Step::ListUsers => {
                outcome_of!(auth.user_list(self.by(who, pb::AuthUserListRequest {})))
            }
            Step::DeleteUser(name) => {
                let request = pb::AuthUserDeleteRequest { name: own(name) };
                outcome_of!(auth.user_delete(self.by(who, request)))
            }
            Step::ChangePassword(name, password) => {
                let request = pb::AuthUserChangePasswordRequest {
                    name: own(name),
                    password: own(password),
                    ..Default::default()
                };
                outcome_of!(auth.user_change_password(self.by(who, request)))
            }
            Step::GrantRole(user, role) => {
                let request = pb::AuthUserGrantRoleRequest {
                    user: own(user),
                    role: own(role),
                };
                outcome_of!(auth.user_grant_role(self.by(who, request)))
            }
            Step::RevokeRole(name, role) => {
                let request = pb::AuthUserRevokeRoleRequest {
                    name: own(name),
                    role: own(role),
                };
                outcome_of!(auth.user_revoke_role(self.by(who, request)))
            }
            Step::AddRole(name) => {
                let request = pb::AuthRoleAddRequest { name: own(name) };
                outcome_of!(auth.role_add(self.by(who, request)))
            }
            Step::GetRole(role) => {
                let request = pb::AuthRoleGetRequest { role: own(role) };
                outcome_of!(auth.role_get(self.by(who, request)))
            }
            Step::ListRoles => {
                outcome_of!(auth.role_list(self.by(who, pb::AuthRoleListRequest {})))
            }
            Step::DeleteRole(role) => {
                let request = pb::AuthRoleDeleteRequest { role: own(role) };
                outcome_of!(auth.role_delete(self.by(who, request)))
            }
            Step::Grant(name, perm_type, range) => {
                let perm = range.map(|(key, end)| authpb::Permission {
                    perm_type,
                    key: bytes(key),
                    range_end: bytes(end),
                });
                let request = pb::AuthRoleGrantPermissionRequest {
                    name: own(name),
                    perm,
                };
                outcome_of!(auth.role_grant_permission(self.by(who, request)))
            }
            Step::Revoke(role, (key, end)) => {
                let request = pb::AuthRoleRevokePermissionRequest {
                    role: own(role),
                    key: bytes(key),
                    range_end: bytes(end),
                };
                outcome_of!(auth.role_revoke_permission(self.by(who, request)))
            }
            Step::Put(request) => outcome_of!(kv.put(self.by(who, request))),
            Step::Range(request) => outcome_of!(kv.range(self.by(who, request))),
            Step::RangeStream(request) => {
                let stream = match kv.range_stream(self.by(who, request)).await {
                    Ok(stream) => stream,
                    Err(status) => return format!("{:?}: {}", status.code(), status.message()),
                };
                match stream.into_inner().message().await {
                    Ok(first) => {
                        let first = first.unwrap().range_response.unwrap();
                        format!("{} keys, {:?}", first.kvs.len(), first.kvs.first())
                    }
                    Err(status) => format!("{:?}: {}", status.code(), status.message()),
                }
            }
            Step::Delete(request) => outcome_of!(kv.delete_range(self.by(who, request))),
            Step::Txn(request) => {
                outcome_of!(
                    kv.txn(self.by(who, request)),
                    |response: pb::TxnResponse| {
                        let revision = response.header.unwrap().revision;
                        let (succeeded, responses) = (response.succeeded, response.responses);
                        format!("{revision} {succeeded} {responses:?}")
                    }
                )
            }
            Step::Compact(revision) => {
                let request = pb::CompactionRequest {
                    revision,
                    physical: false,
                };
                outcome_of!(kv.compact(self.by(who, request)))
            }
            Step::GrantLease(id) => {
                let request = pb::LeaseGrantRequest { ttl: 3_000, id };
                outcome_of!(lease.lease_grant(self.by(who, request)))
            }
            Step::RevokeLease(id) => {
                let request = pb::LeaseRevokeRequest { id };
                outcome_of!(lease.lease_revoke(self.by(who, request)))
            }
            Step::KeepAlive(id) => {
                let request = once(pb::LeaseKeepAliveRequest { id });
                let answers = lease.lease_keep_alive(self.by(who, request)).await;
                match answers {
                    Ok(answers) => match answers.into_inner().message().await {
                        Ok(answer) => format!("{:?}", answer.map(|answer| answer.ttl)),
                        Err(status) => format!("{:?}: {}", status.code(), status.message()),
                    },
                    Err(status) => format!("{:?}: {}", status.code(), status.message()),
                }
            }
            Step::TimeToLive(id, keys) => {
                let request = pb::LeaseTimeToLiveRequest { id, keys };
                outcome_of!(
                    lease.lease_time_to_live(self.by(who, request)),
                    |answer: pb::LeaseTimeToLiveResponse| {
                        let keys: BTreeSet<_> = answer.keys.into_iter().collect();
                        format!("{} {} {keys:?}", answer.ttl.signum(), answer.granted_ttl)
                    }
                )
            }
            Step::Leases => {
                let request = self.by(who, pb::LeaseLeasesRequest {});
                outcome_of!(
                    lease.lease_leases(request),
                    |answer: pb::LeaseLeasesResponse| {
                        let ids: BTreeSet<i64> = answer.leases.iter().map(|one| one.id).collect();
                        format!("{ids:?}")
                    }
                )
            }
            Step::Watch(range, start_revision) => {
                let (shown, _) = self.watch(who, range, start_revision).await;
                shown
            }
            Step::OpenWatch(range) => {
                let (shown, open) = self.watch(who, range, 0).await;
                self.watches.extend(open);
                shown
            }
            Step::Lock(..)
            | Step::Unlock(_)
            | Step::Campaign(..)
            | Step::Leader(_)
            | Step::Proclaim(_)
            | Step::Resign => self.run_queued(who, step).await,
            Step::Members => {
                let mut cluster = pb::cluster_client::ClusterClient::new(channel);
                let request = self.by(who, pb::MemberListRequest { linearizable: true });
                outcome_of!(
                    cluster.member_list(request),
                    |answer: pb::MemberListResponse| format!("{} members", answer.members.len())
                )
            }
            Step::Alarms(action) => {
                let request = pb::AlarmRequest {
                    action,
                    ..Default::default()
                };
                outcome_of!(maintenance.alarm(self.by(who, request)))
            }
            Step::MemberStatus => {
                let request = self.by(who, pb::StatusRequest {});
                outcome_of!(maintenance.status(request), |answer: pb::StatusResponse| {
                    answer.version
                })
            }
            Step::HashKv => {
                let request = self.by(who, pb::HashKvRequest { revision: 0 });
                outcome_of!(
                    maintenance.hash_kv(request),
                    |answer: pb::HashKvResponse| format!("{}", answer.hash)
                )
            }
        }
    }

    /// The answer to a watch, and the watch if it was created.
    async fn watch(
        &self,
        who: Who,
        (key, range_end): (&'static str, &'static str),
        start_revision: i64,
    ) -> (String, Option<OpenWatch>) {
        let create = pb::WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            start_revision,
            ..Default::default()
        };
        let request = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
        };
        let mut watch = pb::watch_client::WatchClient::new(self.channel.clone());
        // The client's side stays open as long as the answers are read.
        let requests = tokio_stream::StreamExt::chain(iter([request]), tokio_stream::pending());
        let refused = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
        let mut answers = match watch.watch(self.by(who, requests)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return (refused(status), None),
        };
        match answers.message().await {
            Ok(answer) => {
                let answer = answer.unwrap();
                let (created, canceled) = (answer.created, answer.canceled);
                let shown = format!("{created} {canceled} {}", answer.cancel_reason);
                let open = OpenWatch {
                    answers,
                    seen: Vec::new(),
                    over: None,
                };
                (shown, (created && !canceled).then_some(open))
            }
            Err(status) => (refused(status), None),
        }
    }

    /// Calls about locks and elections.
    async fn run_queued(&mut self, who: Who, step: &Step) -> String {
        let mut locks = lp::lock_client::LockClient::new(self.channel.clone());
        let mut elections = ep::election_client::ElectionClient::new(self.channel.clone());
        match *step {
            Step::Lock(name, lease) => {
                let name = name.into();
                let request = lp::LockRequest { name, lease };
                outcome_of!(locks.lock(self.by(who, request)))
            }
            Step::Unlock(key) => {
                let request = lp::UnlockRequest { key: key.into() };
                outcome_of!(locks.unlock(self.by(who, request)))
            }
            Step::Campaign(name, lease) => {
                let request = ep::CampaignRequest {
                    name: name.into(),
                    lease,
                    value: "v".into(),
                };
                match elections.campaign(self.by(who, request)).await {
                    Ok(response) => {
                        let response = response.into_inner();
                        let revision = response.header.unwrap().revision;
                        self.leader = response.leader;
                        format!("{revision} {:?}", self.leader)
                    }
                    Err(status) => format!("{:?}: {}", status.code(), status.message()),
                }
            }
            Step::Leader(name) => {
                let request = ep::LeaderRequest { name: name.into() };
                outcome_of!(elections.leader(self.by(who, request)))
            }
            Step::Proclaim(value) => {
                let request = ep::ProclaimRequest {
                    leader: self.leader.clone(),
                    value: value.into(),
                };
                outcome_of!(elections.proclaim(self.by(who, request)))
            }
            Step::Resign => {
                let leader = self.leader.clone();
                let request = ep::ResignRequest { leader };
                outcome_of!(elections.resign(self.by(who, request)))
            }
            _ => unreachable!("{step:?} is about no lock and no election"),
        }
    }
}
