//! Why the contents of a database are not those of an etcd. Every error of an item names its bucket and its key.

use crate::{bolt::BoltError, messages::MessageError};

/// Why a store cannot be read or written. Reading again gives the same, unless the cause is an error of the disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file itself, below what its items mean.
    #[error(transparent)]
    Bolt(#[from] BoltError),
    #[error(
        "bucket \"{bucket}\" is missing: the file is a bbolt database, but not that of an etcd"
    )]
    BucketMissing { bucket: &'static str },
    #[error("bucket \"{bucket}\", {key}: {fault}")]
    Item {
        bucket: &'static str,
        key: String,
        fault: ItemFault,
    },
    /// More than is remembered, so that a file cannot fill the memory. No etcd has so many.
    #[error("more than {max} buckets and keys are not known here")]
    TooManyUnknown { max: usize },
    /// Writing the store again would lose this.
    #[error("{what} is not known here and would be lost")]
    UnknownLost { what: String },
    #[error("revision {asked} is compacted, the oldest is {oldest}")]
    Compacted { asked: i64, oldest: i64 },
    #[error("revision {asked} is not reached yet, the newest is {newest}")]
    Future { asked: i64, newest: i64 },
    #[error("revision {newest} cannot be raised by {by}: at most {max} is possible")]
    BumpTooLarge { newest: i64, by: u64, max: i64 },
}

/// What is wrong with an item of a bucket.
#[derive(Debug, thiserror::Error)]
pub enum ItemFault {
    #[error("its key has {bytes} bytes, but a revision has 17, and that of a deletion 18")]
    RevisionLength { bytes: usize },
    #[error("byte 8 of its key is {found:#04x}, but a revision has '_' there")]
    RevisionSeparator { found: u8 },
    #[error("the last byte of its key is {found:#04x}, but a deletion has 't' there")]
    RevisionMark { found: u8 },
    #[error(
        "revision {main}.{sub} is out of range: main is from 1 to 2^63 - 1, sub less than 2^32"
    )]
    RevisionRange { main: u64, sub: u64 },
    #[error("it does not come after revision {main}.{sub}, the record before it")]
    RevisionOrder { main: i64, sub: u32 },
    #[error("{0}")]
    Message(#[from] MessageError),
    /// Some field is not known, is zero and yet encoded, or is out of order: writing the value again would change it.
    #[error("its {what} of {bytes} bytes is not encoded as etcd encodes it")]
    NotCanonical { what: &'static str, bytes: usize },
    #[error("its value is empty, which only the mark of a bumped revision is")]
    EmptyValue,
    #[error("the key of the user is empty")]
    EmptyKey,
    #[error("it is a deletion, but its value has more than a key")]
    TombstoneFields,
    #[error("its value says that it was written at revision {found}")]
    ModRevision { found: i64 },
    #[error("version {version} of a key that was created at {create} is not possible at {main}")]
    Version {
        version: i64,
        create: i64,
        main: i64,
    },
    #[error("it has {bytes} bytes, but {wanted} are needed")]
    Length { bytes: usize, wanted: usize },
    #[error("{found} is neither 0 nor 1")]
    Flag { found: u8 },
    #[error("\"{found}\" is not a version, such as 3.6.0")]
    VersionText { found: String },
    #[error("the value is that of {found}")]
    OtherName { found: String },
    #[error("the key is not an id in hexadecimal digits, as etcd writes it")]
    HexId,
    #[error("the alarm has the unknown kind {kind}")]
    AlarmKind { kind: i32 },
    #[error("an alarm has no value, but this has {bytes} bytes")]
    AlarmValue { bytes: usize },

    // From here on: faults of the order in which a key was written.
    #[error(
        "key \"{key}\": version {version}, created at {create}, follows version {last_version}, created at {last_create}"
    )]
    Succession {
        key: String,
        version: i64,
        create: i64,
        last_version: i64,
        last_create: i64,
    },
    #[error("key \"{key}\": version {version} has no version before it, and none was compacted")]
    NoPredecessor { key: String, version: i64 },
    #[error("key \"{key}\" is deleted, but does not exist")]
    NothingDeleted { key: String },
    #[error("record {main}.{sub} should come before it, but is missing")]
    Gap { main: i64, sub: u32 },
}

/// How messages show a key or a name: whole ones are up to 32 KiB of arbitrary bytes.
pub(super) fn shown(bytes: &[u8]) -> String {
    const SHOWN_MAX: usize = 64;
    match bytes.get(..SHOWN_MAX) {
        Some(start) if start.len() < bytes.len() => {
            format!("{}... ({} bytes)", start.escape_ascii(), bytes.len())
        }
        _ => bytes.escape_ascii().to_string(),
    }
}

impl StoreError {
    /// The error of an item that has this key.
    pub(super) fn item(bucket: &'static str, key: &[u8], fault: ItemFault) -> Self {
        let key = format!("key \"{}\"", shown(key));
        Self::Item { bucket, key, fault }
    }
}
