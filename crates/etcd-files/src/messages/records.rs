//! What the log and the snapshot files consist of, around the messages of raft.

use super::raft::ConfState;
use bytes::Bytes;

/// One record of the log (`walpb.Record`), the content of a frame.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Record {
    #[prost(int64, tag = "1")]
    pub kind: i64,
    /// CRC-32C of the data of all records of the chain up to this one; in a record that begins a file, the value to go on from.
    #[prost(uint32, tag = "2")]
    pub crc: u32,
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

/// The log's note of a snapshot (`walpb.Snapshot`).
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct LogSnapshot {
    #[prost(uint64, tag = "1")]
    pub index: u64,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Written since etcd 3.5.
    #[prost(message, optional, tag = "3")]
    pub conf_state: Option<ConfState>,
}

/// The content of a `.snap` file (`snappb.snapshot`): an encoded `Snapshot` and its CRC-32C.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SnapshotFrame {
    #[prost(uint32, tag = "1")]
    pub crc: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
}

/// Whose log it is; the same at the head of each file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Metadata {
    #[prost(uint64, tag = "1")]
    pub node_id: u64,
    #[prost(uint64, tag = "2")]
    pub cluster_id: u64,
}
