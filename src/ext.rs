//! What a program works with when it embeds a member: requests and answers, messages for actors, errors.
//!
//! There are two ways to ask a member, with the same checks, order and durability:
//!
//! - [`Requests`] has an async method for each request. [`Node::requests`](crate::Node::requests) gives it; it is cheap to clone
//!   and works on any thread.
//! - [`Store`] is an actor that takes the same requests as messages ([`PutKey`], [`ReadRange`], [`RunTxn`], …).
//!   [`Node::store`](crate::Node::store) starts one on the caller's arbiter.
//!
//! Keys and values are bytes. A [`RangeDone`] holds each pair as it is stored; [`KeyValue::decode`] takes it apart. Revisions,
//! leases, and what else is a number on the wire, have types of their own.
//!
//! Locks and elections are ordinary keys behind a lease: [`lock`] and [`election`].

pub use crate::{
    actors::{
        fail_stop::FailStop,
        leases::{LeaseGranted, LeaseTime},
        members::{ClusterMember, MemberInfo, Members},
        membership_change::{ChangeRefusal, MemberChange},
        range_chunks::{NotStreamable, RangeChunk, RangeChunks, RangeStreamEnd},
        request_error::RequestError,
        requests::{NodeStatus, RequestLimits, Requests},
        store::{
            CompactHistory, DeleteKeys, GrantLease, KeepLeaseAlive, ListLeases, PutKey,
            ReadLeaseTime, ReadRange, RevokeLease, RunTxn, Store,
        },
        watch_messages::{Subscribe, Subscription, WatchKeys, WatchNews},
        watch_stream::{EventBatch, KeyEvent, Watch, WatchError},
    },
    kv::{
        KeyRange, KvError, RangeEnd,
        command::{
            AlarmKind, Compare, DeleteRange, DeleteRangeDone, EncodedKv, OpDone, Operand, Put,
            PutDone, RangeDone, RangeQuery, Relation, RevisionFilter, SetAlarm, SortOrder,
            SortTarget, Txn, TxnDone, TxnOp,
        },
        hash::HistoryHash,
        record::{KeyValue, RecordError},
        watch::{Filters, Refusal, WatchSpec},
    },
    node::StartError,
    storage::{disk::Disk, real_disk::RealDisk},
    types::{ClusterId, Identity, LeaseId, LogIndex, MemberId, RecordKind, Rev, Revision, Term},
};

/// The parts of a [`Config`](crate::Config).
pub mod config {
    pub use crate::config::{
        AutoCompaction, ClientConfig, ClusterConfig, ClusterState, CompactionPace, ConfigError,
        HostPort, InitialMember, LeaseConfig, Limits, LogConfig, LogFormat, Origin, PeerConfig,
        PeerTls, RaftConfig, RuntimeConfig, Sources, Spread, StorageConfig, WatchConfig,
    };
}

/// Elections: who leads, one at a time.
pub mod election {
    pub use crate::services::{
        election::{
            ElectionError, LeaderSeen, Leadership, Observer, campaign, leader, observe, proclaim,
            resign,
        },
        messages::{Campaign, ObserveLeaders, Proclaim, ReadLeader, Resign},
    };
}

/// Locks, one holder at a time.
pub mod lock {
    pub use crate::services::{
        lock::{LockError, Locked, lock, unlock},
        messages::{ReleaseLock, TakeLock},
    };
}
