//! Messages of etcd's raft library (`raftpb`) that reach a disk.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What an entry's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum EntryKind {
    /// An `InternalRaftRequest`, or empty: the first entry of a leader.
    Normal = 0,
    ConfChange = 1,
    /// A `ConfChangeV2`, which no etcd proposes: its applier panics at one.
    ConfChangeV2 = 2,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Entry {
    /// An `EntryKind`.
    #[prost(enumeration = "EntryKind", tag = "1")]
    pub kind: i32,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(uint64, tag = "3")]
    pub index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct HardState {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    #[prost(uint64, tag = "3")]
    pub commit: u64,
}

/// Who votes. Also a JSON value of the bucket `meta` since etcd 3.5.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfState {
    #[prost(uint64, repeated, packed = "false", tag = "1")]
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "super::json::or_default"
    )]
    pub voters: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "2")]
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "super::json::or_default"
    )]
    pub learners: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "super::json::or_default"
    )]
    pub voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "super::json::or_default"
    )]
    pub learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    #[serde(deserialize_with = "super::json::or_default")]
    pub auto_leave: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SnapshotMetadata {
    #[prost(message, optional, tag = "1")]
    pub conf_state: Option<ConfState>,
    #[prost(uint64, tag = "2")]
    pub index: u64,
    #[prost(uint64, tag = "3")]
    pub term: u64,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Snapshot {
    /// etcd's v2 store as JSON: since 3.4 only the members and the cluster's version are in it.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SnapshotMetadata>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfChangeKind {
    /// Adds a voter, or makes one of a learner (`ConfigChangeContext::is_promote`).
    AddNode = 0,
    RemoveNode = 1,
    /// Changes a member's peer URLs.
    UpdateNode = 2,
    AddLearnerNode = 3,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfChange {
    /// The request that waits for the change.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A `ConfChangeKind`.
    #[prost(enumeration = "ConfChangeKind", tag = "2")]
    pub kind: i32,
    #[prost(uint64, tag = "3")]
    pub node_id: u64,
    /// JSON: a `ConfigChangeContext` where a member is added, a `Member` where one is updated.
    #[prost(bytes = "bytes", tag = "4")]
    pub context: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfChangeSingle {
    /// A `ConfChangeKind`.
    #[prost(enumeration = "ConfChangeKind", tag = "1")]
    pub kind: i32,
    #[prost(uint64, tag = "2")]
    pub node_id: u64,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfChangeV2 {
    /// 0: as simple as possible; 1: joint, left by itself; 2: joint, left by another change.
    #[prost(int32, tag = "1")]
    pub transition: i32,
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<ConfChangeSingle>,
    #[prost(bytes = "bytes", tag = "3")]
    pub context: Bytes,
}
