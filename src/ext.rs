//! What a program works with when it embeds a member: requests and answers, messages for actors, errors.
//!
//! There are two ways to send requests to a member, with the same checks, order and durability:
//!
//! - [`Requests`] has an async method for each request. [`Node::requests`](crate::Node::requests) gives it; it is cheap to clone
//!   and works on any thread.
//! - [`Store`] is an actor that takes the same requests as messages ([`PutKey`], [`ReadRange`], [`RunTxn`], …).
//!   [`Node::store`](crate::Node::store) starts one on the caller's arbiter.
//!
//! Keys and values are bytes. A [`RangeDone`] holds each pair as it is stored; [`KeyValue::decode`] decodes it. Revisions,
//! leases and other numbers of the wire have types of their own.
//!
//! Locks and elections are ordinary keys that are attached to a lease: [`lock`] and [`election`].
//!
//! Every type of a public signature has its name here or in one of the modules below, so that a program can keep it in a struct
//! of its own; `tests/face.rs` and the lint `unnameable_types` in `./check` hold that.

pub use crate::{
    actors::{
        fail_stop::FailStop,
        leases::{LeaseGranted, LeaseTime},
        login_bounds::LoginCounts,
        members::{ClusterMember, MemberInfo, Members},
        membership_change::{ChangeRefusal, MemberChange},
        raft_status::DiskHealth,
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
    auth::{
        AuthError, Caller,
        caller::{JwtUser, UserRef},
    },
    codec::Blob,
    kv::{
        KeyRange, KvError, RangeEnd,
        command::{
            AlarmKind, Compare, DeleteRange, DeleteRangeDone, EncodedKv, OpDone, Operand, Put,
            PutDone, RangeDone, RangeQuery, Relation, RevisionFilter, SetAlarm, SortOrder,
            SortTarget, Txn, TxnDone, TxnOp,
        },
        hash::HistoryHash,
        record::{KeyValue, RecordError},
        records::ReadError,
        watch::{Filters, Refusal, WatchId, WatchSpec},
    },
    node::StartError,
    storage::{
        disk::{DIRECT_ALIGN, Disk, DiskFile, OpenMode},
        encryption::Sealer,
        real_disk::{DiskError, RealDisk},
    },
    types::{ClusterId, Identity, LeaseId, LogIndex, MemberId, RecordKind, Rev, Revision, Term},
};

/// The parts of a [`Config`](crate::Config).
pub mod config {
    pub use crate::config::{
        AllowedNames, AuditConfig, AuditLevel, AuditOutput, AuthConfig, AutoCompaction,
        ClientAddress, ClientCertificates, ClientConfig, ClientTls, ClusterConfig, ClusterState,
        CompactionPace, ConfigError, EncryptionAlgorithm, EncryptionConfig, EncryptionKey,
        HostPort, InitialMember, JwtConfig, LeaseConfig, Limits, LogConfig, LogFormat, Origin,
        PeerConfig, PeerTls, RaftConfig, RuntimeConfig, ServerCertificate, Sources, Spread,
        StorageConfig, TlsProtocol, TokenKind, WatchConfig,
    };
}

/// The causes of a [`StartError`], and what they are made of.
pub mod causes {
    pub use crate::{
        actors::{
            jwt_keys::{KeyFileCause, KeyFileError},
            load::LoadStateError,
            members::MembersError,
        },
        audit::AuditError,
        codec::CodecError,
        jwt::KeyError,
        kv::index::LoadError,
        net::{NetError, Refusal},
        node::DirectoryError,
        raft::{InitialStateError, MembershipError},
        storage::{
            db::{Damage, DbError, Usage},
            encryption::{EncryptionError, KeyCause, KeyId, KeySourceError, KeyringError},
            value_file::ValueFileError,
            wal::{SegmentId, WalError},
        },
        tls::TlsError,
        types::LogPosition,
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

/// Locks, one owner at a time.
pub mod lock {
    pub use crate::services::{
        lock::{LockError, Locked, lock, unlock},
        messages::{ReleaseLock, TakeLock},
    };
}
