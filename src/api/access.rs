//! Identifies the caller of a call, and checks the rights that can be checked before the call's request is read.
//!
//! Calls on keys, leases and users are authorized when they are carried out: reads in the state that they read, writes when their
//! log entry is applied. All other calls have a row in `NEEDS`; a call without a row needs the role root.

use super::{Api, status::Status};
use crate::{actors::jwt_desk::Identified, auth::Caller};
use http::HeaderMap;
use std::sync::Arc;

/// etcd: the names under which clients send their tokens; the first one wins.
const TOKEN_NAMES: [&str; 2] = ["token", "authorization"];

/// etcd: the HTTP headers that its JSON gateway forwards under these names; the first one wins.
const GATEWAY_TOKEN_NAMES: [&str; 3] = [
    "grpc-metadata-token",
    "authorization",
    "grpc-metadata-authorization",
];
/// etcd: its gateway sets this header on each call that it forwards. The certificate is then the gateway's, not the caller's.
const GATEWAY: &str = "grpcgateway-accept";

/// etcd: the optional prefix of a token; upper and lower case matter.
const BEARER: &[u8] = b"Bearer ";

/// The common name in a client's certificate; empty if that has none.
#[derive(Debug)]
pub struct CertificateName {
    pub name: Arc<str>,
    /// Whether it is the user of calls without a token.
    pub is_user: bool,
}

/// What a call needs while authentication is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    /// The call is authorized when it is carried out.
    JudgedLater,
    Identity,
    /// A user with the role root.
    Root,
}

/// The calls that do not need the role root. A path that ends with `/` stands for all methods of its service.
const NEEDS: [(&str, Need); 17] = [
    ("/etcdserverpb.Auth/Authenticate", Need::Nothing),
    ("/etcdserverpb.Auth/AuthStatus", Need::Nothing),
    ("/grpc.health.v1.Health/Check", Need::Nothing),
    ("/grpc.health.v1.Health/Watch", Need::Nothing),
    // It is answered as unknown, to whoever calls it.
    ("/grpc.health.v1.Health/List", Need::Nothing),
    ("/etcdserverpb.Cluster/MemberList", Need::Identity),
    ("/etcdserverpb.Maintenance/Status", Need::Identity),
    // Reading alarms needs a user. Raising or clearing one needs root, and still needs it when the log entry is applied.
    ("/etcdserverpb.Maintenance/Alarm", Need::Identity),
    ("/etcdserverpb.KV/Range", Need::JudgedLater),
    ("/etcdserverpb.KV/RangeStream", Need::JudgedLater),
    ("/etcdserverpb.KV/Put", Need::JudgedLater),
    ("/etcdserverpb.KV/DeleteRange", Need::JudgedLater),
    ("/etcdserverpb.KV/Txn", Need::JudgedLater),
    ("/etcdserverpb.Watch/Watch", Need::JudgedLater),
    ("/etcdserverpb.Lease/", Need::JudgedLater),
    ("/v3lockpb.Lock/", Need::JudgedLater),
    ("/v3electionpb.Election/", Need::JudgedLater),
];

fn need(path: &str) -> Need {
    if path.starts_with("/etcdserverpb.Auth/") && !path.ends_with("/Authenticate") {
        // Changes are authorized when their log entry is applied, reads in a state that has all changes acknowledged before.
        return if path.ends_with("/AuthStatus") {
            Need::Nothing
        } else {
            Need::JudgedLater
        };
    }
    let known = NEEDS.iter().find(|(known, _)| {
        if known.ends_with('/') {
            path.starts_with(known)
        } else {
            path == *known
        }
    });
    known.map_or(Need::Root, |(_, need)| *need)
}

/// The token in the first of these headers that is there.
fn token<'a>(names: &[&str], headers: &'a HeaderMap) -> Option<&'a [u8]> {
    let sent = names.iter().find_map(|name| headers.get(*name))?;
    let token = sent.as_bytes();
    Some(token.strip_prefix(BEARER).unwrap_or(token))
}

/// What says who makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof<'a> {
    Token(&'a [u8]),
    /// The name in the certificate of the connection.
    Name(&'a Arc<str>),
    Nothing,
}

/// The token wins, good or not.
fn proof<'a>(headers: &'a HeaderMap, certificate: Option<&'a CertificateName>) -> Proof<'a> {
    if let Some(token) = token(&TOKEN_NAMES, headers) {
        return Proof::Token(token);
    }
    match certificate {
        Some(shown) if shown.is_user && !headers.contains_key(GATEWAY) => Proof::Name(&shown.name),
        Some(_) | None => Proof::Nothing,
    }
}

/// The same for a request of the JSON gateway. etcd: a name in the client's certificate proves nothing there.
fn gateway_proof<'a>(headers: &'a HeaderMap, _: Option<&CertificateName>) -> Proof<'a> {
    token(&GATEWAY_TOKEN_NAMES, headers).map_or(Proof::Nothing, Proof::Token)
}

impl Api {
    /// Identifies the caller by the token in the headers, or, without one, by the name in the connection's certificate, if that
    /// is a user's. An invalid token is refused even if there is a certificate. While authentication is off, neither is read.
    pub(super) fn caller(
        &self,
        headers: &HeaderMap,
        certificate: Option<&CertificateName>,
    ) -> Identified {
        self.proven_by(|| proof(headers, certificate))
    }

    /// The same for a request of the JSON gateway.
    #[expect(dead_code, reason = "the gateway will use it")]
    pub(super) fn gateway_caller(
        &self,
        headers: &HeaderMap,
        certificate: Option<&CertificateName>,
    ) -> Identified {
        self.proven_by(|| gateway_proof(headers, certificate))
    }

    /// While authentication is off, nothing is looked for.
    fn proven_by<'a>(&self, proof: impl FnOnce() -> Proof<'a>) -> Identified {
        if !self.requests.is_auth_on() {
            return Caller::Nobody.into();
        }
        match proof() {
            Proof::Token(token) => self.requests.identify(token),
            Proof::Name(name) => self.requests.published().auth.certified(name).into(),
            Proof::Nothing => Caller::Nobody.into(),
        }
    }

    /// Refuses a caller without the role root, by this member's newest state.
    pub(super) fn require_root(&self) -> Result<(), Status> {
        Ok(self.requests.require_root()?)
    }

    /// Refuses a call that its caller may not make, by this member's newest state.
    pub(super) fn allow(&self, path: &str, caller: &Caller) -> Result<(), Status> {
        if !self.requests.is_auth_on() {
            return Ok(());
        }
        let auth = self.requests.published().auth.clone();
        match need(path) {
            Need::Nothing | Need::JudgedLater => Ok(()),
            Need::Identity => Ok(auth.require_identity(caller)?),
            Need::Root => Ok(auth.require_root(caller)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::method::{self, METHODS},
        *,
    };

    /// No headers.
    const NOTHING: &[(&str, &str)] = &[];

    fn headers(sent: &[(&'static str, &'static str)]) -> HeaderMap {
        let sent = sent.iter().map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, http::HeaderValue::from_static(value))
        });
        sent.collect()
    }

    fn certificate(is_user: bool) -> CertificateName {
        CertificateName {
            name: "alice".into(),
            is_user,
        }
    }

    #[test]
    fn a_certificate_proves_who_calls_unless_there_is_a_token_or_a_gateway() {
        let (user, other) = (certificate(true), certificate(false));
        let name = Proof::Name(&user.name);
        let table = [
            (NOTHING, name),
            (&[("token", "t")], Proof::Token(b"t")),
            (&[("authorization", "Bearer t")], Proof::Token(b"t")),
            (&[("token", "")], Proof::Token(b"")),
            // The certificate is that of a gateway, whatever value the header has.
            (&[(GATEWAY, "application/json")], Proof::Nothing),
            (&[(GATEWAY, "")], Proof::Nothing),
            (&[(GATEWAY, ""), ("token", "t")], Proof::Token(b"t")),
            (&[("grpc-metadata-token", "t")], name),
        ];
        for (sent, expected) in table {
            let headers = headers(sent);
            assert_eq!(proof(&headers, Some(&user)), expected, "{sent:?}");
            let without = match expected {
                Proof::Token(token) => Proof::Token(token),
                Proof::Name(_) | Proof::Nothing => Proof::Nothing,
            };
            assert_eq!(proof(&headers, Some(&other)), without, "{sent:?}");
            assert_eq!(proof(&headers, None), without, "{sent:?}");
        }
    }

    #[test]
    fn a_certificate_proves_nothing_at_the_gateway() {
        let user = certificate(true);
        for (sent, expected) in [
            (NOTHING, Proof::Nothing),
            (&[("token", "t")], Proof::Nothing),
            (&[("grpc-metadata-token", "t")], Proof::Token(b"t")),
            (&[("authorization", "Bearer t")], Proof::Token(b"t")),
        ] {
            let headers = headers(sent);
            for shown in [Some(&user), None] {
                assert_eq!(gateway_proof(&headers, shown), expected, "{sent:?}");
            }
        }
    }

    #[test]
    fn tokens_are_found_where_etcd_looks() {
        let table = [
            (
                &[("token", "a"), ("authorization", "b")][..],
                Some("a"),
                Some("b"),
            ),
            (&[("authorization", "Bearer b")], Some("b"), Some("b")),
            (
                &[("authorization", "bearer b")],
                Some("bearer b"),
                Some("bearer b"),
            ),
            (
                &[("grpc-metadata-token", "Bearer c"), ("authorization", "b")],
                Some("b"),
                Some("c"),
            ),
            (&[("grpc-metadata-authorization", "d")], None, Some("d")),
            (&[("cookie", "token=e")], None, None),
        ];
        for (sent, grpc, gateway) in table {
            let headers = headers(sent);
            let found = |names: &[&str]| token(names, &headers).map(<[u8]>::to_vec);
            assert_eq!(found(&TOKEN_NAMES), grpc.map(Into::into), "{sent:?}");
            let by_gateway = found(&GATEWAY_TOKEN_NAMES);
            assert_eq!(by_gateway, gateway.map(Into::into), "{sent:?}");
        }
    }

    /// Every method of every service, with etcd's rule.
    const RULES: [(&str, Need); 52] = [
        ("etcdserverpb.KV/Range", Need::JudgedLater),
        ("etcdserverpb.KV/RangeStream", Need::JudgedLater),
        ("etcdserverpb.KV/Put", Need::JudgedLater),
        ("etcdserverpb.KV/DeleteRange", Need::JudgedLater),
        ("etcdserverpb.KV/Txn", Need::JudgedLater),
        ("etcdserverpb.KV/Compact", Need::Root),
        ("etcdserverpb.Watch/Watch", Need::JudgedLater),
        ("etcdserverpb.Lease/LeaseGrant", Need::JudgedLater),
        ("etcdserverpb.Lease/LeaseRevoke", Need::JudgedLater),
        ("etcdserverpb.Lease/LeaseKeepAlive", Need::JudgedLater),
        ("etcdserverpb.Lease/LeaseTimeToLive", Need::JudgedLater),
        ("etcdserverpb.Lease/LeaseLeases", Need::JudgedLater),
        ("etcdserverpb.Cluster/MemberAdd", Need::Root),
        ("etcdserverpb.Cluster/MemberRemove", Need::Root),
        ("etcdserverpb.Cluster/MemberUpdate", Need::Root),
        ("etcdserverpb.Cluster/MemberPromote", Need::Root),
        ("etcdserverpb.Cluster/MemberList", Need::Identity),
        ("etcdserverpb.Maintenance/Alarm", Need::Identity),
        ("etcdserverpb.Maintenance/Status", Need::Identity),
        ("etcdserverpb.Maintenance/Defragment", Need::Root),
        ("etcdserverpb.Maintenance/Hash", Need::Root),
        ("etcdserverpb.Maintenance/HashKV", Need::Root),
        ("etcdserverpb.Maintenance/Snapshot", Need::Root),
        ("etcdserverpb.Maintenance/MoveLeader", Need::Root),
        ("etcdserverpb.Maintenance/Downgrade", Need::Root),
        ("etcdserverpb.Auth/AuthEnable", Need::JudgedLater),
        ("etcdserverpb.Auth/AuthDisable", Need::JudgedLater),
        ("etcdserverpb.Auth/AuthStatus", Need::Nothing),
        ("etcdserverpb.Auth/Authenticate", Need::Nothing),
        ("etcdserverpb.Auth/UserAdd", Need::JudgedLater),
        ("etcdserverpb.Auth/UserGet", Need::JudgedLater),
        ("etcdserverpb.Auth/UserList", Need::JudgedLater),
        ("etcdserverpb.Auth/UserDelete", Need::JudgedLater),
        ("etcdserverpb.Auth/UserChangePassword", Need::JudgedLater),
        ("etcdserverpb.Auth/UserGrantRole", Need::JudgedLater),
        ("etcdserverpb.Auth/UserRevokeRole", Need::JudgedLater),
        ("etcdserverpb.Auth/RoleAdd", Need::JudgedLater),
        ("etcdserverpb.Auth/RoleGet", Need::JudgedLater),
        ("etcdserverpb.Auth/RoleList", Need::JudgedLater),
        ("etcdserverpb.Auth/RoleDelete", Need::JudgedLater),
        ("etcdserverpb.Auth/RoleGrantPermission", Need::JudgedLater),
        ("etcdserverpb.Auth/RoleRevokePermission", Need::JudgedLater),
        ("v3lockpb.Lock/Lock", Need::JudgedLater),
        ("v3lockpb.Lock/Unlock", Need::JudgedLater),
        ("v3electionpb.Election/Campaign", Need::JudgedLater),
        ("v3electionpb.Election/Proclaim", Need::JudgedLater),
        ("v3electionpb.Election/Leader", Need::JudgedLater),
        ("v3electionpb.Election/Observe", Need::JudgedLater),
        ("v3electionpb.Election/Resign", Need::JudgedLater),
        ("grpc.health.v1.Health/Check", Need::Nothing),
        ("grpc.health.v1.Health/Watch", Need::Nothing),
        ("grpc.health.v1.Health/List", Need::Nothing),
    ];

    #[test]
    fn every_call_has_the_need_that_etcd_gives_it() {
        for (path, expected) in RULES {
            assert_eq!(need(&format!("/{path}")), expected, "{path}");
        }
        for path in [
            "/etcdserverpb.Maintenance/NotMadeYet",
            "/another.Service/Method",
        ] {
            assert_eq!(need(path), Need::Root, "{path}");
        }
    }

    #[test]
    fn each_known_method_is_judged_and_no_other() {
        let mut paths = RULES.map(|(path, _)| format!("/{path}"));
        paths.sort();
        assert_eq!(
            paths[..],
            METHODS,
            "each known method is judged, and no other"
        );
        for (path, _) in NEEDS.iter().filter(|(path, _)| !path.ends_with('/')) {
            assert_eq!(method::known(path), Some(*path), "its method is known");
        }
    }
}
