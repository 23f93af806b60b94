//! The paths of gRPC methods, and which part of the API serves each.

use super::status::Status;

/// The services whose answers are spliced from stored bytes; tonic's generated servers serve all others.
const SPLICED: [&str; 2] = ["/etcdserverpb.KV/", "/etcdserverpb.Watch/"];

pub(super) const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// etcd: the methods that a learner serves. Of ranges it serves only the serializable ones, which the range itself checks.
const LEARNER: [&str; 3] = [
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Snapshot",
    "/etcdserverpb.KV/Range",
];

/// The methods of tonic's services that take a stream. Any other call needs exactly one message.
const CLIENT_STREAMS: [&str; 1] = ["/etcdserverpb.Lease/LeaseKeepAlive"];

/// The methods that answer one message with a stream.
const SERVER_STREAMS: [&str; 4] = [
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.Maintenance/Snapshot",
    "/grpc.health.v1.Health/Watch",
    "/v3electionpb.Election/Observe",
];

/// The methods of tonic's services that watch keys for their caller.
const WATCHING: [&str; 3] = [
    "/v3lockpb.Lock/Lock",
    "/v3electionpb.Election/Campaign",
    "/v3electionpb.Election/Observe",
];

/// All methods by which clients of etcd call, ascending; those that are answered as unknown included.
pub(super) const METHODS: [&str; 52] = [
    "/etcdserverpb.Auth/AuthDisable",
    "/etcdserverpb.Auth/AuthEnable",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/RoleAdd",
    "/etcdserverpb.Auth/RoleDelete",
    "/etcdserverpb.Auth/RoleGet",
    "/etcdserverpb.Auth/RoleGrantPermission",
    "/etcdserverpb.Auth/RoleList",
    "/etcdserverpb.Auth/RoleRevokePermission",
    "/etcdserverpb.Auth/UserAdd",
    "/etcdserverpb.Auth/UserChangePassword",
    "/etcdserverpb.Auth/UserDelete",
    "/etcdserverpb.Auth/UserGet",
    "/etcdserverpb.Auth/UserGrantRole",
    "/etcdserverpb.Auth/UserList",
    "/etcdserverpb.Auth/UserRevokeRole",
    "/etcdserverpb.Cluster/MemberAdd",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Cluster/MemberPromote",
    "/etcdserverpb.Cluster/MemberRemove",
    "/etcdserverpb.Cluster/MemberUpdate",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Lease/LeaseRevoke",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Maintenance/Alarm",
    "/etcdserverpb.Maintenance/Defragment",
    "/etcdserverpb.Maintenance/Downgrade",
    "/etcdserverpb.Maintenance/Hash",
    "/etcdserverpb.Maintenance/HashKV",
    "/etcdserverpb.Maintenance/MoveLeader",
    "/etcdserverpb.Maintenance/Snapshot",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Watch/Watch",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
    "/v3electionpb.Election/Campaign",
    "/v3electionpb.Election/Leader",
    "/v3electionpb.Election/Observe",
    "/v3electionpb.Election/Proclaim",
    "/v3electionpb.Election/Resign",
    "/v3lockpb.Lock/Lock",
    "/v3lockpb.Lock/Unlock",
];

/// The path, if it is a known method's.
pub(super) fn known(path: &str) -> Option<&'static str> {
    let at = METHODS.binary_search(&path).ok()?;
    Some(METHODS[at])
}

pub(super) fn is_watching(path: &str) -> bool {
    WATCHING.contains(&path)
}

pub(super) fn is_spliced(path: &str) -> bool {
    SPLICED.iter().any(|service| path.starts_with(service))
}

pub(super) fn is_served_by_learners(path: &str) -> bool {
    LEARNER.contains(&path)
}

/// Whether the answer goes on after the call's function has returned.
pub(super) fn answers_stream(path: &str) -> bool {
    path == WATCH || takes_stream(path) || SERVER_STREAMS.contains(&path)
}

pub(super) fn takes_stream(path: &str) -> bool {
    CLIENT_STREAMS.contains(&path)
}

/// The error of a call whose one message could not be read. etcd: its gRPC library words it otherwise for methods that answer
/// with a stream.
pub(super) fn unread_message(path: &str, status: Status) -> Status {
    if SERVER_STREAMS.contains(&path) {
        status.of_server_stream()
    } else {
        status
    }
}

/// The service and the method that a path names.
pub(super) fn split(path: &str) -> Result<(&str, &str), Status> {
    path.strip_prefix('/')
        .and_then(|rest| rest.rsplit_once('/'))
        .ok_or_else(|| Status::malformed_path(path))
}

/// The error for a path that no spliced service answers.
pub(super) fn unknown(path: &str) -> Status {
    match split(path) {
        Ok((service, method)) if is_spliced(path) => Status::unknown_method(method, service),
        Ok((service, _)) => Status::unknown_service(service),
        Err(status) => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::Code;

    #[test]
    fn unknown_paths_are_named() {
        let table = [
            ("/a.B/C", "unknown service a.B"),
            ("/a/b/c", "unknown service a/b"),
            (
                "/etcdserverpb.KV/C",
                "unknown method C for service etcdserverpb.KV",
            ),
            (
                "/etcdserverpb.KV/",
                "unknown method  for service etcdserverpb.KV",
            ),
            ("/nothing", "malformed method name: \"/nothing\""),
            ("*", "malformed method name: \"*\""),
        ];
        for (path, text) in table {
            let status = unknown(path);
            assert_eq!((status.code, &*status.message), (Code::Unimplemented, text));
        }
    }
}
