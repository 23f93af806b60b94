//! The steps of the differential test of users: those that every run begins with, and random ones.

use quorate::internals::api::proto::etcdserverpb as pb;

const USERS: [&str; 5] = ["root", "a", "b", "c", ""];
const ROLES: [&str; 4] = ["root", "r", "s", ""];
const PASSWORDS: [&str; 3] = ["one", "two", ""];
const KEYS: [&str; 6] = ["a", "b", "c", "ca", "d", "e"];
/// What is granted. Two of them have the same key.
const GRANTS: [(&str, &str); 9] = [
    ("a", ""),
    ("b", "d"),
    (TWIN, ""),
    ("d", "e"),
    ("e", "\0"),
    ("\0", "\0"),
    ("", "x"),
    ("f", "e"),
    ("g", "g"),
];
/// The key of two permissions. A role's permission for it is revoked before it is granted: see
/// [`Deliberate::TwinPermission`](super::Deliberate::TwinPermission).
const TWIN: &str = "b";
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

/// What watches that stay open watch: each has [`MARKED`] in it.
const WATCHED: [(&str, &str); 3] = [("b", ""), ("b", "d"), ("a", "e")];
/// The key that is put to learn what open watches have seen.
pub(super) const MARKED: &str = "b";
/// Locks: name, lease, and the key of the two. Each has one lease, so that none has to wait.
const LOCKS: [(&str, i64, &str); 4] = [
    ("b/1", 1, "b/1/1"),
    ("b/2", 2, "b/2/2"),
    ("e/1", 1, "e/1/1"),
    ("e/3", 3, "e/3/3"),
];
const ELECTIONS: [(&str, i64); 2] = [("c/1", 1), ("e/2", 2)];

#[derive(Clone, Copy, Debug)]
pub(super) enum Who {
    Nobody,
    BadToken,
    User(&'static str),
}

#[derive(Clone, Debug)]
pub(super) enum Step {
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
    /// A watch that stays open.
    OpenWatch((&'static str, &'static str)),
    Lock(&'static str, i64),
    Unlock(&'static str),
    Campaign(&'static str, i64),
    Leader(&'static str),
    /// By the leader of the newest campaign that was won.
    Proclaim(&'static str),
    Resign,
    Members,
    Alarms(i32),
    MemberStatus,
    HashKv,
}

impl Step {
    /// Whether it is a transaction without compares and operations.
    pub(super) fn is_empty_txn(&self) -> bool {
        matches!(self, Self::Txn(txn) if *txn == pb::TxnRequest::default())
    }

    /// The name of its call.
    pub(super) fn name(&self) -> String {
        let shown = format!("{self:?}");
        let end = shown.find('(').unwrap_or(shown.len());
        shown[..end].to_owned()
    }
}

/// The names of the steps that are the calls of the service `Auth`.
pub(super) const AUTH_CALLS: [&str; 17] = [
    "Enable",
    "Disable",
    "AuthStatus",
    "LogIn",
    "AddUser",
    "GetUser",
    "ListUsers",
    "DeleteUser",
    "ChangePassword",
    "GrantRole",
    "RevokeRole",
    "AddRole",
    "GetRole",
    "ListRoles",
    "DeleteRole",
    "Grant",
    "Revoke",
];

/// The refusals that occur in every run. `revision of auth store is old` does not: a simple token is refused so only in races.
pub(super) const REFUSALS: [&str; 20] = [
    "FailedPrecondition: etcdserver: root user does not exist",
    "FailedPrecondition: etcdserver: root user does not have root role",
    "FailedPrecondition: etcdserver: user name already exists",
    "FailedPrecondition: etcdserver: user name not found",
    "FailedPrecondition: etcdserver: role name already exists",
    "FailedPrecondition: etcdserver: role name not found",
    "FailedPrecondition: etcdserver: role is not granted to the user",
    "FailedPrecondition: etcdserver: permission is not granted to the role",
    "FailedPrecondition: etcdserver: authentication is not enabled",
    "InvalidArgument: etcdserver: user name is empty",
    "InvalidArgument: etcdserver: role name is empty",
    "InvalidArgument: etcdserver: authentication failed, invalid user ID or password",
    "InvalidArgument: etcdserver: permission not given",
    "InvalidArgument: etcdserver: invalid auth management",
    "PermissionDenied: etcdserver: permission denied",
    "Unauthenticated: etcdserver: invalid auth token",
    "Unknown: auth: authentication failed, password was given for no password user",
    "Unknown: etcdserver: permission denied",
    "Unknown: etcdserver: user name is empty",
    "true true rpc error: code = PermissionDenied desc = etcdserver: permission denied",
];

const ROOT: Who = Who::User("root");
const A: Who = Who::User("a");

fn put(key: &'static str) -> Step {
    Step::Put(pb::PutRequest {
        key: key.into(),
        value: "v".into(),
        ..Default::default()
    })
}

pub(super) fn range(key: &'static str, range_end: &'static str) -> Step {
    Step::Range(pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..Default::default()
    })
}

/// What every run begins with: nobody's steps while authentication is off, the last of which turns it on.
pub(super) fn while_off() -> Vec<(Who, Step)> {
    let steps = [
        Step::AuthStatus,
        Step::LogIn("root", "one"),
        Step::Enable,
        Step::AddUser("root", "one", false),
        Step::Enable,
        Step::AddUser("root", "one", false),
        Step::AddUser("", "one", false),
        Step::GetUser("c"),
        Step::AddRole("root"),
        Step::AddRole("r"),
        Step::AddRole("r"),
        Step::AddRole(""),
        Step::GetRole("s"),
        Step::GrantRole("root", "root"),
        Step::AddUser("a", "one", false),
        Step::AddUser("b", "", true),
        Step::RevokeRole("a", "r"),
        Step::Grant("r", 2, None),
        Step::Grant("r", 2, Some(("f", "e"))),
        Step::Revoke("r", ("a", "")),
        // Two permissions with one key.
        Step::Grant("r", 1, Some((TWIN, "d"))),
        Step::Grant("r", 0, Some((TWIN, ""))),
        Step::GetRole("r"),
        Step::Grant("r", 2, Some((TWIN, "d"))),
        Step::GetRole("r"),
        Step::Revoke("r", (TWIN, "")),
        Step::GetRole("r"),
        Step::GrantRole("a", "r"),
        Step::GrantLease(1),
        Step::GrantLease(2),
        Step::Txn(pb::TxnRequest::default()),
        put("b"),
        Step::Enable,
    ];
    steps.map(|step| (Who::Nobody, step)).into()
}

/// What follows: logins, and what `a` may do, who has all rights from `b` to `d`.
pub(super) fn while_on() -> Vec<(Who, Step)> {
    vec![
        (ROOT, Step::LogIn("root", "one")),
        (A, Step::LogIn("a", "one")),
        (A, Step::LogIn("a", "two")),
        (A, Step::LogIn("b", "one")),
        (Who::Nobody, Step::Txn(pb::TxnRequest::default())),
        (A, Step::Txn(pb::TxnRequest::default())),
        (Who::BadToken, Step::Txn(pb::TxnRequest::default())),
        (Who::Nobody, range("b", "c")),
        (Who::BadToken, range("b", "c")),
        (A, range("b", "c")),
        (A, range("a", "")),
        (A, put("b")),
        (A, put("a")),
        (A, Step::Watch(("b", "c"), 0)),
        (A, Step::Watch(("a", "e"), 0)),
        (A, Step::OpenWatch(("b", "d"))),
        (ROOT, Step::OpenWatch(("a", "e"))),
        (A, Step::Lock("b/1", 1)),
        (A, Step::Lock("e/1", 1)),
        (Who::Nobody, Step::Lock("b/1", 1)),
        (A, Step::Unlock("e/1/1")),
        (A, Step::Unlock("b/1/1")),
        (A, Step::Campaign("c/1", 1)),
        (A, Step::Leader("c/1")),
        (A, Step::Leader("e/2")),
        (A, Step::Proclaim("w")),
        (Who::Nobody, Step::Proclaim("x")),
        (A, Step::Resign),
        (A, Step::Resign),
        (A, Step::Proclaim("y")),
        (ROOT, Step::ListUsers),
        (ROOT, Step::ListRoles),
        (ROOT, Step::GetRole("r")),
        (A, Step::ListUsers),
        (A, Step::GetUser("a")),
        (A, Step::GetRole("r")),
        (ROOT, Step::DeleteUser("root")),
        // It concerns nobody's watch.
        (ROOT, Step::AddRole("s")),
        (ROOT, Step::Grant("s", 2, Some(("d", "e")))),
    ]
}

/// `a` loses the right that its open watch needs.
pub(super) fn taken_away() -> Vec<(Who, Step)> {
    vec![
        (ROOT, Step::Revoke("r", (TWIN, "d"))),
        (A, put("b")),
        (A, range("b", "c")),
    ]
}

/// What the beginning ends with.
pub(super) fn removals() -> Vec<(Who, Step)> {
    vec![
        (ROOT, Step::ChangePassword("a", "two")),
        (A, range("b", "c")),
        (A, Step::LogIn("a", "one")),
        (A, Step::LogIn("a", "two")),
        (ROOT, Step::RevokeRole("a", "r")),
        (ROOT, Step::DeleteRole("r")),
        (ROOT, Step::DeleteUser("b")),
        (ROOT, Step::DeleteUser("c")),
        (ROOT, Step::Disable),
        (Who::BadToken, range("b", "c")),
    ]
}

/// Brings authentication on again, if steps have made that impossible.
pub(super) fn revival() -> [Step; 5] {
    [
        Step::AddUser("root", "one", false),
        Step::AddRole("root"),
        Step::GrantRole("root", "root"),
        Step::Enable,
        Step::LogIn("root", "one"),
    ]
}

pub(super) struct Generator(pub(super) fastrand::Rng);

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

    /// The next steps, which belong together, and who makes them.
    pub(super) fn steps(&mut self, revision: i64) -> Vec<(Who, Step)> {
        let (who, step) = (self.who(), self.step(revision));
        match step {
            Step::Grant(role, _, Some(range @ (TWIN, _))) => {
                vec![(who, Step::Revoke(role, range)), (who, step)]
            }
            step => vec![(who, step)],
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
        match self.0.u8(..84) {
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
            71 => Step::MemberStatus,
            72 => Step::HashKv,
            73 | 74 => Step::OpenWatch(self.of(&WATCHED)),
            75 | 76 => {
                let (name, lease, _) = self.of(&LOCKS);
                Step::Lock(name, lease)
            }
            77 => Step::Unlock(self.of(&LOCKS).2),
            78 => {
                let (name, lease) = self.of(&ELECTIONS);
                Step::Campaign(name, lease)
            }
            79 => Step::Leader(self.of(&ELECTIONS).0),
            80 => Step::Proclaim(self.of(&KEYS)),
            81 => Step::Resign,
            _ => Step::Txn(pb::TxnRequest::default()),
        }
    }
}
