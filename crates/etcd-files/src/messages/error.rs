//! Why bytes are not the message that they should be.

use prost::DecodeError;

/// Bytes of an etcd that cannot be taken for what they should be. Reading them again gives the same.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("not a valid {what}: {source}")]
    Malformed {
        what: &'static str,
        source: DecodeError,
    },
    #[error("not a valid {what}: {source}")]
    Json {
        what: &'static str,
        source: serde_json::Error,
    },
    /// More than this crate reads, so that a small file cannot fill the memory.
    #[error("{what} of {bytes} bytes, at most {max} are read")]
    TooLong {
        what: &'static str,
        bytes: usize,
        max: usize,
    },
    /// The request is of a later etcd; applying the rest of it would lose a change.
    #[error(
        "a request has the fields {numbers:?}, which are not known here: it is of a later etcd"
    )]
    UnknownFields { numbers: Vec<u32> },
    /// Some field deeper within the request is not known, or is encoded as no etcd does it.
    #[error("of a request of {encoded} bytes only {understood} are understood")]
    NotUnderstood { encoded: usize, understood: usize },
    #[error("a transaction has more than {max} comparisons and operations")]
    TooManyOperations { max: usize },
    #[error("an entry of the unknown kind {kind}")]
    UnknownEntryKind { kind: i32 },
    #[error("a change of the members that has no content")]
    EmptyChange,
}
