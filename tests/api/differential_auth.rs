//! The same random requests by several users, with users, roles and permissions changing under them, against Quorate and a real
//! etcd: every answer, each error's code and text, and every revision must agree.
//!
//! `QUORATE_DIFF_OPS` steps from `SEED`, which a failure prints. Left out on purpose, as `docs/compat.md` says:
//! - an empty transaction, which etcd lets everybody run;
//! - the bound on failed logins, which is switched off;
//! - two permissions of a role with one key and different ends, of which etcd replaces only the first and stores the other twice.

use crate::support::{Difference, Kind, Server, Setup, note};
use quorate::internals::api::proto::{authpb, etcdserverpb as pb};
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
};
use tokio_stream::{iter, once};
use tonic::{Request, transport::Channel};

const STEPS: usize = 2_500;
const USERS: [&str; 5] = ["root", "a", "b", "c", ""];
const ROLES: [&str; 4] = ["root", "r", "s", ""];
const PASSWORDS: [&str; 3] = ["one", "two", ""];
const KEYS: [&str; 6] = ["a", "b", "c", "ca", "d", "e"];
/// What is granted: one end for each key.
const GRANTS: [(&str, &str); 8] = [
    ("a", ""),
    ("b", "d"),
    ("d", "e"),
    ("e", "\0"),
    ("\0", "\0"),
    ("", "x"),
    ("f", "e"),
    ("g", "g"),
];
const RANGES: [(&str, &str); 10] = [
    ("a", ""),
    ("b", ""),
    ("b", "c"),
    ("b", "e"),
    ("a", "e"),
    ("c", "d"),
    ("d", "\0"),
    ("\0", "\0"),
    ("e", "f"),
    ("d", "b"),
];

#[derive(Clone, Copy, Debug)]
enum Who {
    Nobody,
    BadToken,
    User(&'static str),
}

#[derive(Clone, Debug)]
enum Step {
    Enable,
    Disable,
    AuthStatus,
    LogIn(&'static str, &'static str),
    AddUser(&'static str, &'static str, bool),
    GetUser(&'static str),
    ListUsers,
    DeleteUser(&'static str),
    ChangePassword(&'static str, &'static str),
    GrantRole(&'static str, &'static str),
    RevokeRole(&'static str, &'static str),
    AddRole(&'static str),
    GetRole(&'static str),
    ListRoles,
    DeleteRole(&'static str),
    Grant(&'static str, i32, Option<(&'static str, &'static str)>),
    Revoke(&'static str, (&'static str, &'static str)),
    Put(pb::PutRequest),
    Range(pb::RangeRequest),
    RangeStream(pb::RangeRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(i64),
    GrantLease(i64),
    RevokeLease(i64),
    KeepAlive(i64),
    TimeToLive(i64, bool),
    Leases,
    Watch((&'static str, &'static str), i64),
    Members,
    Alarms(i32),
    MemberStatus,
    HashKv,
}

/// One server, with the newest token of each user.
struct Side {
    _server: Server,
    channel: Channel,
    tokens: BTreeMap<&'static str, String>,
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
    async fn start(kind: Kind) -> Self {
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
            _server: server,
            tokens: BTreeMap::new(),
        }
    }

    fn by<T>(&self, who: Who, message: T) -> Request<T> {
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
    async fn run(&mut self, who: Who, step: &Step) -> String {
        let channel = self.channel.clone();
        let mut auth = pb::auth_client::AuthClient::new(channel.clone());
        let mut kv = pb::kv_client::KvClient::new(channel.clone());
        let mut lease = pb::lease_client::LeaseClient::new(channel.clone());
        let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel.clone());
        let (own, text) = (|text: &str| text.to_owned(), str::as_bytes);
        let bytes = |key: &'static str| bytes::Bytes::from_static(text(key));
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
            Step::Watch((key, end), start_revision) => {
                let create = pb::WatchCreateRequest {
                    key: bytes(key),
                    range_end: bytes(end),
                    start_revision,
                    ..Default::default()
                };
                let request = pb::WatchRequest {
                    request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
                };
                let mut watch = pb::watch_client::WatchClient::new(channel);
                // It stays open until the answer has come.
                let requests =
                    tokio_stream::StreamExt::chain(iter([request]), tokio_stream::pending());
                match watch.watch(self.by(who, requests)).await {
                    Ok(answers) => match answers.into_inner().message().await {
                        Ok(answer) => {
                            let answer = answer.unwrap();
                            let (created, canceled) = (answer.created, answer.canceled);
                            format!("{created} {canceled} {}", answer.cancel_reason)
                        }
                        Err(status) => format!("{:?}: {}", status.code(), status.message()),
                    },
                    Err(status) => format!("{:?}: {}", status.code(), status.message()),
                }
            }
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
}

struct Generator(fastrand::Rng);

impl Generator {
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.0.usize(..all.len())]
    }

    fn who(&mut self) -> Who {
        match self.0.u8(..12) {
            0 => Who::Nobody,
            1 => Who::BadToken,
            2..=5 => Who::User("root"),
            _ => Who::User(self.of(&["a", "b", "c"])),
        }
    }

    fn put(&mut self) -> pb::PutRequest {
        pb::PutRequest {
            key: self.of(&KEYS).into(),
            value: "v".into(),
            lease: self.of(&[0, 0, 0, 1, 2, 3]),
            prev_kv: self.0.u8(..4) == 0,
            ..Default::default()
        }
    }

    fn range(&mut self) -> pb::RangeRequest {
        let (key, end) = self.of(&RANGES);
        pb::RangeRequest {
            key: key.into(),
            range_end: end.into(),
            serializable: self.0.bool(),
            ..Default::default()
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let (key, end) = self.of(&RANGES);
        pb::DeleteRangeRequest {
            key: key.into(),
            range_end: end.into(),
            prev_kv: self.0.bool(),
        }
    }

    fn txn(&mut self, depth: usize) -> pb::TxnRequest {
        use pb::request_op::Request as Op;
        let ops = |generator: &mut Self, least: usize| {
            let count = least + generator.0.usize(..2);
            let op = |generator: &mut Self| {
                let request = match generator.0.u8(..7) {
                    0..=2 => Op::RequestRange(generator.range()),
                    3 | 4 => Op::RequestPut(generator.put()),
                    5 => Op::RequestDeleteRange(generator.delete()),
                    _ if depth > 0 => Op::RequestTxn(generator.txn(depth - 1)),
                    _ => Op::RequestRange(generator.range()),
                };
                pb::RequestOp {
                    request: Some(request),
                }
            };
            (0..count).map(|_| op(generator)).collect::<Vec<_>>()
        };
        let success = ops(self, 1);
        let failure = ops(self, 0);
        let compare = if self.0.bool() {
            let (key, end) = self.of(&RANGES);
            vec![pb::Compare {
                key: key.into(),
                range_end: end.into(),
                target: i32::from(pb::compare::CompareTarget::Version),
                result: i32::from(pb::compare::CompareResult::Greater),
                target_union: Some(pb::compare::TargetUnion::Version(0)),
            }]
        } else {
            Vec::new()
        };
        pb::TxnRequest {
            compare,
            success,
            failure,
        }
    }

    fn step(&mut self, revision: i64) -> Step {
        // root keeps a password that this test knows.
        let name = self.of(&USERS);
        let password = if name == "root" {
            "one"
        } else {
            self.of(&PASSWORDS)
        };
        match self.0.u8(..72) {
            0..=2 => Step::Enable,
            3 => Step::Disable,
            4 => Step::AuthStatus,
            5..=13 => Step::LogIn(name, password),
            14..=16 => Step::AddUser(name, password, name != "root" && self.0.u8(..6) == 0),
            17 | 18 => Step::GetUser(name),
            19 => Step::ListUsers,
            20 => Step::DeleteUser(name),
            21 => Step::ChangePassword(name, password),
            22..=25 => Step::GrantRole(name, self.of(&ROLES)),
            26 => Step::RevokeRole(name, self.of(&ROLES)),
            27 | 28 => Step::AddRole(self.of(&ROLES)),
            29 | 30 => Step::GetRole(self.of(&ROLES)),
            31 => Step::ListRoles,
            32 => Step::DeleteRole(self.of(&ROLES)),
            33..=37 => {
                let range = (self.0.u8(..12) > 0).then(|| self.of(&GRANTS));
                Step::Grant(self.of(&ROLES), self.0.i32(..4), range)
            }
            38 | 39 => Step::Revoke(self.of(&ROLES), self.of(&GRANTS)),
            40..=45 => Step::Put(self.put()),
            46..=49 => Step::Range(self.range()),
            50 => Step::RangeStream(self.range()),
            51 | 52 => Step::Delete(self.delete()),
            53..=57 => Step::Txn(self.txn(2)),
            58 => Step::Compact(revision.saturating_sub(20).max(1)),
            59 | 60 => Step::GrantLease(self.0.i64(1..4)),
            61 => Step::RevokeLease(self.0.i64(1..5)),
            62 | 63 => Step::KeepAlive(self.0.i64(1..5)),
            64 | 65 => Step::TimeToLive(self.0.i64(1..5), self.0.bool()),
            66 => Step::Leases,
            67 | 68 => Step::Watch(self.of(&RANGES[..9]), self.of(&[0, 0, 0, -1])),
            69 => Step::Members,
            70 => Step::Alarms(self.of(&[0, 0, 1, 2])),
            _ => {
                if self.0.bool() {
                    Step::MemberStatus
                } else {
                    Step::HashKv
                }
            }
        }
    }
}

/// Brings authentication on again, if steps have made that impossible.
fn prologue() -> [Step; 5] {
    [
        Step::AddUser("root", "one", false),
        Step::AddRole("root"),
        Step::GrantRole("root", "root"),
        Step::Enable,
        Step::LogIn("root", "one"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn users_get_what_etcd_gives_them() {
    if Difference::RangeStream.in_etcd() {
        note("the rules of users are those of 3.7");
        return;
    }
    let setting = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = setting("SEED").unwrap_or_else(|| fastrand::u64(..));
    let steps = setting("QUORATE_DIFF_OPS").map_or(STEPS, |ops| usize::try_from(ops).unwrap());
    note(&format!("SEED={seed}"));
    let mut generator = Generator(fastrand::Rng::with_seed(seed));
    let (mut ours, mut theirs) = tokio::join!(Side::start(Kind::Quorate), Side::start(Kind::Etcd));
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..steps {
        let mut drawn = vec![(
            generator.who(),
            generator.step(i64::try_from(number).unwrap()),
        )];
        if number % 100 == 0 {
            let root = if number == 0 {
                Who::Nobody
            } else {
                Who::User("root")
            };
            drawn = prologue().map(|step| (root, step)).into();
        }
        for (who, step) in drawn {
            let (our, their) = tokio::join!(ours.run(who, &step), theirs.run(who, &step));
            assert_eq!(our, their, "SEED={seed} step {number}: {step:?} by {who:?}");
            if let Some((_, text)) = our.split_once(": etcdserver: ") {
                *outcomes.entry(text.to_owned()).or_default() += 1;
            }
        }
    }
    note(&format!("{steps} steps, refusals: {outcomes:?}"));
    for text in [
        "permission denied",
        "user name is empty",
        "invalid auth token",
    ] {
        assert!(outcomes.contains_key(text), "SEED={seed}: never {text:?}");
    }
}
