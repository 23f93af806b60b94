//! The log's errors. Retrying does not help: a member whose log fails stops.

use super::segment_id::SegmentId;
use crate::types::{Identity, LogIndex};
use std::io;

/// The advice at the end of each error about a damaged log.
const ADVICE: &str = "acknowledged entries may be lost with it, so this member does not start: if a majority of the \
     other members is healthy, remove this member, delete its data directory and add it anew; otherwise restore a backup";

/// Why the log could not be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The disk failed. After a failed write or sync the content of the disk is unknown: the log refuses all further operations.
    #[error("cannot {action} log file {file}: {source}")]
    Io {
        /// The operation that failed.
        action: &'static str,
        /// The file, relative to the data directory.
        file: String,
        /// The error of the disk.
        source: io::Error,
    },
    /// An earlier write or sync failed. The process has to restart.
    #[error("the log refuses all work after an earlier disk error")]
    Poisoned,
    /// Durable bytes have changed since they were written. This is not a torn write, which is possible only at the log's end.
    #[error("log segment {file} is damaged at byte {offset}: {what}; {ADVICE}")]
    Damaged {
        segment: SegmentId,
        /// The segment's file, relative to the data directory.
        file: String,
        /// Where in the file the first bad byte range starts.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A segment between two others is missing.
    #[error("log segment {file} is missing, while older and newer ones are there; {ADVICE}")]
    MissingSegment {
        /// The number of the missing segment.
        segment: SegmentId,
        /// The file that should be there.
        file: String,
    },
    /// The log was written by a newer version of this program. Start that one.
    #[error(
        "log segment {file} has format {found}, newer than {supported}, the newest this version reads: start the \
         version that wrote it"
    )]
    NewerFormat {
        file: String,
        found: u32,
        /// The newest format known here.
        supported: u32,
    },
    /// The log belongs to another member or another cluster: the data directory is the wrong one.
    #[error("log segment {file} belongs to {found}, this is {expected}: wrong data directory?")]
    Foreign {
        file: String,
        found: Identity,
        expected: Identity,
    },
    /// The log starts after entries that are still needed.
    #[error("the log starts at entry {first}, but entry {needed} is needed; {ADVICE}")]
    StartsTooLate {
        first: LogIndex,
        /// The entry after the last one the database holds.
        needed: LogIndex,
    },
    /// The entries were released: only the database contains their effects, and a member that needs them gets a snapshot.
    #[error("log entry {asked} was released, the oldest is {first}")]
    Released {
        /// The entry asked for.
        asked: LogIndex,
        /// The oldest entry in the log.
        first: LogIndex,
    },
}

impl WalError {
    /// For `map_err`: adds the operation and the file to an error of the disk.
    pub(super) fn io(action: &'static str, file: &str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            file: file.to_owned(),
            source,
        }
    }
}
