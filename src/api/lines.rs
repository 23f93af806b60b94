//! Who makes a call, and its line in the audit log.
//!
//! A transport makes an [`Asker`] from a call's headers and its connection. The call adds its subject to the line
//! ([`Api::about`]), and the code that sends the answer closes the line. If the audit log is off, there is no line, and all of
//! this costs one branch.

use super::{Api, access::CertificateName, method, sockets::ClientPeer, status::Status};
use crate::{
    actors::jwt_desk::{Identified, JwtProof},
    audit::{Call, Ended, Kind, Line, Shown, Subject, Target, TxnSubject},
    auth::{Caller, change::Permission},
    kv::{
        RangeEnd,
        command::{Outcome, Txn, TxnOp},
        watch::{HolderId, WatchSpec},
    },
    types::Revision,
};
use std::sync::Arc;

/// Who makes a call.
#[derive(Clone, Debug)]
pub struct Asker {
    /// On whose behalf it is.
    pub caller: Caller,
    /// What makes the caller's token good, if it is a JWT.
    pub(super) proof: Option<Arc<JwtProof>>,
    pub(super) peer: ClientPeer,
    /// Its line, if the audit log is on.
    pub(super) line: Option<Arc<Line>>,
    /// Whose watchers it creates; `None` for a transport without shares.
    pub(super) holder: Option<HolderId>,
}

impl Asker {
    /// Whether the call has neither an authenticated caller nor a line.
    pub fn is_plain(&self) -> bool {
        self.caller == Caller::Nobody && self.line.is_none()
    }

    /// Nobody, without a line.
    #[cfg(test)]
    pub(super) fn nobody() -> Self {
        Self {
            caller: Caller::Nobody,
            proof: None,
            peer: ClientPeer::Unix,
            line: None,
            holder: None,
        }
    }
}

/// The calls that the audit log counts as reads. A call that is in no table counts as a change.
const READS: [&str; 22] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Hash",
    "/etcdserverpb.Maintenance/HashKV",
    "/etcdserverpb.Maintenance/Snapshot",
    "/etcdserverpb.Maintenance/Defragment",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Auth/UserGet",
    "/etcdserverpb.Auth/UserList",
    "/etcdserverpb.Auth/RoleGet",
    "/etcdserverpb.Auth/RoleList",
    "/v3electionpb.Election/Leader",
    "/v3electionpb.Election/Observe",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.health.v1.Health/List",
];

fn kind(path: &str) -> Kind {
    if READS.contains(&path) {
        Kind::Read
    } else if path.starts_with("/etcdserverpb.Auth/") {
        Kind::Auth
    } else {
        Kind::Change
    }
}

impl Api {
    /// The maker of a call, with a new line if the audit log is on.
    pub(super) fn asker(
        &self,
        path: &str,
        found: Identified,
        certificate: Option<&CertificateName>,
        peer: ClientPeer,
    ) -> Asker {
        let Identified { caller, proof } = found;
        let line = self.audit.as_ref().map(|audit| {
            let known = method::known(path);
            let call = Call::new(
                known.unwrap_or_default(),
                kind(path),
                caller.user(),
                peer.address(),
            )
            .certified(certificate.map(|shown| &shown.name));
            let call = match known {
                Some(_) => call,
                None => call.of_unknown(path),
            };
            Arc::new(audit.line(call))
        });
        Asker {
            caller,
            proof,
            peer,
            line,
            holder: None,
        }
    }

    /// The same API for a call of `asker`.
    pub(super) fn asked_by(&self, asker: Asker) -> Self {
        let requests = self.requests.on_behalf(asker.caller);
        Self {
            requests: requests.proven_by(asker.proof).held_by(asker.holder),
            peer: asker.peer,
            line: asker.line,
            ..self.clone()
        }
    }

    /// Adds the subject to the call's line.
    pub(super) fn about(&self, subject: impl FnOnce() -> Subject) {
        if let Some(line) = &self.line {
            line.about(subject);
        }
    }

    /// Marks the call's line as a read, for a transaction that changes nothing.
    pub(super) fn only_reads(&self) {
        if let Some(line) = &self.line {
            line.reads();
        }
    }

    /// Carries out a call that answers with a stream, and closes its line when the stream ends.
    pub(super) async fn streamed<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let done = call.await;
        if let Some(line) = &self.line {
            close(line, done.as_ref().err());
        }
        done
    }
}

/// Closes the line of a call that ended with `error`, or without one.
pub(super) fn close(line: &Line, error: Option<&Status>) {
    line.close(&error.map_or(Ended::OK, ended));
}

/// Closes the line, if there is one, of a call that got an error.
pub(super) fn close_if(line: Option<&Arc<Line>>, error: &Status) {
    if let Some(line) = line {
        close(line, Some(error));
    }
}

/// Adds the revision of a call's outcome to its line.
pub(super) fn note_outcome(line: Option<&Arc<Line>>, outcome: &Outcome) {
    if let (Some(line), Some(revision)) = (line, revision_of(outcome)) {
        line.at(revision.0);
    }
}

fn revision_of(outcome: &Outcome) -> Option<Revision> {
    match outcome {
        Outcome::Put(done) => Some(done.revision),
        Outcome::DeleteRange(done) => Some(done.revision),
        Outcome::Txn(done) => Some(done.revision),
        // Hot calls have no other outcomes.
        Outcome::Compact { .. }
        | Outcome::Lease { .. }
        | Outcome::Countdown { .. }
        | Outcome::Renewals { .. }
        | Outcome::Alarm { .. }
        | Outcome::Auth { .. } => None,
    }
}

/// How a call ended that got an error.
pub(super) fn ended(status: &Status) -> Ended {
    Ended {
        code: status.code.name(),
        refused: status.refusal(),
    }
}

/// The operations of a transaction, of both branches and at every depth.
pub(super) fn of_txn(txn: &Txn) -> Subject {
    let mut shown = TxnSubject::default();
    add_txn(txn, &mut shown);
    Subject {
        txn: Some(shown),
        ..Subject::default()
    }
}

fn add_txn(txn: &Txn, shown: &mut TxnSubject) {
    shown.compares += txn.compares.len();
    for op in txn.branches() {
        match op {
            TxnOp::Range(query) => shown.add("range", &query.key, &query.range_end),
            TxnOp::Put(put) => shown.add("put", &put.key, &[]),
            TxnOp::DeleteRange(delete) => {
                shown.add("delete_range", &delete.key, &delete.range_end);
            }
            TxnOp::Txn(inner) => add_txn(inner, shown),
            TxnOp::Empty => {}
        }
    }
}

/// A user, and maybe a role.
pub(super) fn of_user(user: &str, role: Option<&str>) -> Subject {
    Subject {
        target_user: Some(user.into()),
        role: role.map(Shown::from),
        ..Subject::default()
    }
}

/// A role, and maybe a permission.
pub(super) fn of_role(role: &str, range: Option<(&[u8], &[u8])>, kind: Option<i32>) -> Subject {
    let permission = kind.map(|kind| match kind {
        Permission::READ => "read",
        Permission::WRITE => "write",
        Permission::READ_WRITE => "readwrite",
        _ => "unknown",
    });
    Subject {
        role: Some(role.into()),
        range: range.map(|(key, range_end)| Target::new(key, range_end)),
        permission,
        ..Subject::default()
    }
}

pub(super) fn of_watch(spec: &WatchSpec) -> Subject {
    let range_end: &[u8] = match &spec.range.end {
        RangeEnd::Single => &[],
        RangeEnd::Unbounded => &[0],
        RangeEnd::Before(end) => end,
    };
    Subject::of_range(&spec.range.start, range_end)
}

pub(super) fn of_lease(lease: i64, ttl: i64) -> Subject {
    Subject {
        lease,
        ttl,
        ..Subject::default()
    }
}

/// A key behind a lease.
pub(super) fn of_leased_key(key: &[u8], lease: i64) -> Subject {
    Subject {
        lease,
        ..Subject::of_range(key, &[])
    }
}

/// A named subject, which must not contain a secret.
pub(super) fn of_other(name: &'static str, text: &str) -> Subject {
    Subject {
        other: Some((name, text.into())),
        ..Subject::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_reads_logins_or_changes() {
        for path in READS {
            assert_eq!(kind(path), Kind::Read, "{path}");
            assert_eq!(method::known(path), Some(path), "its method is known");
        }
        for path in ["Authenticate", "AuthEnable", "UserAdd", "RoleDelete"] {
            assert_eq!(kind(&format!("/etcdserverpb.Auth/{path}")), Kind::Auth);
        }
        for path in [
            "/etcdserverpb.KV/Put",
            "/etcdserverpb.Cluster/MemberAdd",
            "/x.Y/Z",
        ] {
            assert_eq!(kind(path), Kind::Change, "{path}");
        }
    }
}
