//! What an etcd stores, as it encodes it: protobufs in its database, in its log and in its snapshot files, and a few JSON
//! values.
//!
//! Numbers and types are those of etcd 3.4 to 3.7. The structs are written by hand, so that neither a build script nor `protoc`
//! is needed. Fields of proto2 messages (the log's own) that etcd always writes are plain fields here: an absent one is zero,
//! which is how etcd reads it too.
//!
//! A protobuf decoder drops fields that it does not know. For most values that is right; for a request of the log it would lose a
//! change of the store. So `InternalRaftRequest::decode_whole` refuses what it does not understand in full.

mod auth;
mod cluster;
mod command;
mod error;
mod json;
mod kv;
mod raft;
mod records;
mod request;
mod stored;
pub(crate) mod wire;

pub use {
    auth::{
        AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest,
        AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest,
        AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
        AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, EmptyRequest,
        InternalAuthenticateRequest, Permission, PermissionKind, Role, User, UserAddOptions,
    },
    cluster::{
        ClusterMemberAttrSetRequest, ClusterVersionSetRequest, DowngradeInfoSetRequest,
        DowngradeVersionTestRequest, MemberAttributes, V2Request,
    },
    command::Command,
    error::MessageError,
    json::{ConfigChangeContext, Downgrade, JSON_BYTES_MAX, Member, from_json, to_json},
    kv::{
        AlarmAction, AlarmKind, AlarmRequest, CompactionRequest, Compare, CompareResult,
        CompareTarget, DeleteRangeRequest, LeaseCheckpoint, LeaseCheckpointRequest,
        LeaseGrantRequest, LeaseRevokeRequest, Operand, Operation, PutRequest, RangeRequest,
        RequestOp, SortOrder, SortTarget, TxnRequest,
    },
    raft::{
        ConfChange, ConfChangeKind, ConfChangeSingle, ConfChangeV2, ConfState, Entry, EntryKind,
        HardState, Snapshot, SnapshotMetadata,
    },
    records::{LogSnapshot, Metadata, Record, SnapshotFrame},
    request::{InternalRaftRequest, OPERATIONS_MAX, RequestHeader, unknown_fields},
    stored::{AlarmMember, KeyValue, Lease, VALUE_BYTES_MAX, decode_value},
};
