//! Identifies the caller of a call, and checks the rights that can be checked before the call's request is read.
//!
//! Calls on keys, leases and users are authorized when they are carried out: reads in the state that they read, writes when their
//! log entry is applied. All other calls have a row in `NEEDS`; a call without a row needs the role root.

use super::{Api, status::Status};
use crate::auth::Caller;
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

impl Api {
    /// Identifies the caller by the token in the headers, or, without one, by `user`, the name in the connection's certificate.
    /// An invalid token is refused even if there is a certificate. While authentication is off, neither is read.
    pub(super) fn caller(&self, headers: &HeaderMap, user: Option<&Arc<str>>) -> Caller {
        if !self.requests.is_auth_on() {
            return Caller::Nobody;
        }
        if let Some(token) = token(&TOKEN_NAMES, headers) {
            return self.requests.identify(token);
        }
        match user.filter(|_| !headers.contains_key(GATEWAY)) {
            Some(user) => self.requests.published().auth.certified(user),
            None => Caller::Nobody,
        }
    }

    /// The same for a request of the JSON gateway. etcd: a name in the client's certificate proves nothing there.
    #[expect(dead_code, reason = "the gateway will use it")]
    pub(super) fn gateway_caller(&self, headers: &HeaderMap) -> Caller {
        if !self.requests.is_auth_on() {
            return Caller::Nobody;
        }
        let token = token(&GATEWAY_TOKEN_NAMES, headers);
        token.map_or(Caller::Nobody, |token| self.requests.identify(token))
    }

    /// Refuses a caller without the role root, by this member's newest state.
    pub(super) fn require_root(&self) -> Result<(), Status> {
        let auth = self.requests.published().auth.clone();
        Ok(auth.require_root(self.requests.caller())?)
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

    #[test]
    fn tokens_are_found_where_etcd_looks() {
        let headers = |sent: &[(&'static str, &'static str)]| {
            let sent = sent.iter().map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, http::HeaderValue::from_static(value))
            });
            sent.collect::<HeaderMap>()
        };
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
    #[test]
    fn every_call_has_the_need_that_etcd_gives_it() {
        use Need::{Identity, JudgedLater, Nothing, Root};
        let table = [
            ("etcdserverpb.KV/Range", JudgedLater),
            ("etcdserverpb.KV/RangeStream", JudgedLater),
            ("etcdserverpb.KV/Put", JudgedLater),
            ("etcdserverpb.KV/DeleteRange", JudgedLater),
            ("etcdserverpb.KV/Txn", JudgedLater),
            ("etcdserverpb.KV/Compact", Root),
            ("etcdserverpb.Watch/Watch", JudgedLater),
            ("etcdserverpb.Lease/LeaseGrant", JudgedLater),
            ("etcdserverpb.Lease/LeaseRevoke", JudgedLater),
            ("etcdserverpb.Lease/LeaseKeepAlive", JudgedLater),
            ("etcdserverpb.Lease/LeaseTimeToLive", JudgedLater),
            ("etcdserverpb.Lease/LeaseLeases", JudgedLater),
            ("etcdserverpb.Cluster/MemberAdd", Root),
            ("etcdserverpb.Cluster/MemberRemove", Root),
            ("etcdserverpb.Cluster/MemberUpdate", Root),
            ("etcdserverpb.Cluster/MemberPromote", Root),
            ("etcdserverpb.Cluster/MemberList", Identity),
            ("etcdserverpb.Maintenance/Alarm", Identity),
            ("etcdserverpb.Maintenance/Status", Identity),
            ("etcdserverpb.Maintenance/Defragment", Root),
            ("etcdserverpb.Maintenance/Hash", Root),
            ("etcdserverpb.Maintenance/HashKV", Root),
            ("etcdserverpb.Maintenance/Snapshot", Root),
            ("etcdserverpb.Maintenance/MoveLeader", Root),
            ("etcdserverpb.Maintenance/Downgrade", Root),
            ("etcdserverpb.Auth/AuthEnable", JudgedLater),
            ("etcdserverpb.Auth/AuthDisable", JudgedLater),
            ("etcdserverpb.Auth/AuthStatus", Nothing),
            ("etcdserverpb.Auth/Authenticate", Nothing),
            ("etcdserverpb.Auth/UserAdd", JudgedLater),
            ("etcdserverpb.Auth/UserGet", JudgedLater),
            ("etcdserverpb.Auth/UserList", JudgedLater),
            ("etcdserverpb.Auth/UserDelete", JudgedLater),
            ("etcdserverpb.Auth/UserChangePassword", JudgedLater),
            ("etcdserverpb.Auth/UserGrantRole", JudgedLater),
            ("etcdserverpb.Auth/UserRevokeRole", JudgedLater),
            ("etcdserverpb.Auth/RoleAdd", JudgedLater),
            ("etcdserverpb.Auth/RoleGet", JudgedLater),
            ("etcdserverpb.Auth/RoleList", JudgedLater),
            ("etcdserverpb.Auth/RoleDelete", JudgedLater),
            ("etcdserverpb.Auth/RoleGrantPermission", JudgedLater),
            ("etcdserverpb.Auth/RoleRevokePermission", JudgedLater),
            ("v3lockpb.Lock/Lock", JudgedLater),
            ("v3lockpb.Lock/Unlock", JudgedLater),
            ("v3electionpb.Election/Campaign", JudgedLater),
            ("v3electionpb.Election/Proclaim", JudgedLater),
            ("v3electionpb.Election/Leader", JudgedLater),
            ("v3electionpb.Election/Observe", JudgedLater),
            ("v3electionpb.Election/Resign", JudgedLater),
            ("grpc.health.v1.Health/Check", Nothing),
            ("grpc.health.v1.Health/Watch", Nothing),
            ("grpc.health.v1.Health/List", Nothing),
        ];
        for (path, expected) in table {
            assert_eq!(need(&format!("/{path}")), expected, "{path}");
        }
        let mut paths = table.map(|(path, _)| format!("/{path}"));
        paths.sort();
        assert_eq!(
            paths[..],
            METHODS,
            "each known method is judged, and no other"
        );
        for (path, _) in NEEDS.iter().filter(|(path, _)| !path.ends_with('/')) {
            assert_eq!(method::known(path), Some(*path), "its method is known");
        }
        for path in [
            "/etcdserverpb.Maintenance/NotMadeYet",
            "/another.Service/Method",
        ] {
            assert_eq!(need(path), Root, "{path}");
        }
    }
}
