//! Why the data model refuses a request. `api/status.rs` turns each into etcd's code and text.

use crate::{
    auth::AuthError,
    types::{LeaseId, Revision},
};

/// A refusal. It depends on the request and the replicated state alone, so every member gives the same one; repeating the
/// request unchanged gives it again unless the state has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    #[error("key is not provided")]
    EmptyKey,
    /// A put keeps the value or lease of a key that does not exist, or an operation of a transaction is missing.
    #[error("key not found")]
    KeyNotFound,
    /// A put both keeps the value and brings one.
    #[error("value is provided although ignore_value is set")]
    ValueProvided,
    /// A put both keeps the lease and brings one.
    #[error("lease is provided although ignore_lease is set")]
    LeaseProvided,
    /// A transaction holds more operations than allowed.
    #[error("too many operations in a transaction, at most {max}")]
    TooManyOps { max: usize },
    /// A transaction would change a key twice.
    #[error("a transaction changes a key twice")]
    DuplicateKey,
    /// A sort order or target outside the enum.
    #[error("invalid sort option")]
    InvalidSortOption,
    /// The revision was compacted away. Reading at `oldest` or later works.
    #[error("revision {asked} is compacted, oldest is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    /// The revision does not exist yet.
    #[error("revision {asked} is in the future, newest is {newest}")]
    FutureRevision { asked: Revision, newest: Revision },
    /// A member is out of space: deletes and compactions still work.
    #[error("database space exceeded")]
    NoSpace,
    /// A member's state differs from the others': writes are refused.
    #[error("corrupt cluster")]
    Corrupt,
    #[error("lease {0} not found")]
    LeaseNotFound(LeaseId),
    /// The lease id is taken.
    #[error("lease {0} already exists")]
    LeaseExists(LeaseId),
    /// There are as many leases as may be; when some have ended, it can be tried again.
    #[error("too many leases, at most {max}")]
    TooManyLeases { max: usize },
    /// A lease's time to live is over the maximum.
    #[error("too large lease TTL: {asked_secs} s, at most {max_secs} s")]
    LeaseTtlTooLarge {
        /// What was asked for, in seconds.
        asked_secs: i64,
        /// The maximum, in seconds.
        max_secs: i64,
    },
    /// The answer to a read is longer than one may be, or takes too much work to find.
    #[error("the answer takes more than {bytes_max} bytes")]
    AnswerTooLarge { bytes_max: usize },
    /// The caller may not do this, or a change of users and roles makes no sense.
    #[error(transparent)]
    Auth(#[from] AuthError),
}
