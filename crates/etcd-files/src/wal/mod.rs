//! The write-ahead log of an etcd that does not run, and the files beside it. Everything here only reads.
//!
//! # The files
//!
//! The log is a directory of files `SEQUENCE-INDEX.wal`: two numbers of 16 hexadecimal digits, the file's place in the log and
//! the index of the entry that was to come next when it was begun. Files are preallocated, so zeros follow the last record. A
//! file is a sequence of frames (`frames`): a length and a record. Records are chained by a checksum that runs on from file to
//! file (`records`); each file begins with a record that repeats the checksum so far, and with the metadata.
//!
//! # What counts
//!
//! The log is only appended to. A member that has to replace entries, since they were never committed, appends the new ones: an
//! entry of index 8 removes all earlier ones from 8 on. So the content is known only once all is read, and a log of many
//! gigabytes must not be kept in memory. `Wal::open` reads everything once and remembers where runs of entries begin that
//! survive (`survivors`); `Wal::committed_after` reads it again, and hands out the entries that count, in order.
//!
//! ```text
//! appended   1 2 3 4 5   4 5 6   5
//! survivors  1 2 3       4       5
//! ```
//!
//! A member that lagged behind receives a snapshot, of which the log has a note. If it is committed, and the log has no entry at
//! its index or one of another term, then all entries before the note are dead, those with higher indices as well, and the log
//! begins behind the snapshot. etcd renames the snapshot's database only after the note: until then, the database in use is
//! older than the log's beginning, and reading from there is an error.
//!
//! # How far to read
//!
//! An entry is committed if its index is at most the hard state's `commit`. etcd writes that number lazily: not synced, and not
//! even handed to the kernel before the next entry. So the log of an etcd that was killed ends with entries that were
//! acknowledged and applied, and of which its hard state knows nothing. A member that is the only voter commits all of its log
//! when it starts again, and an importer must do the same: `Wal::all_after`. In a larger cluster the other members decide, and
//! one member's log proves no more than its hard state says: `Wal::committed_after`. (`etcd --force-new-cluster` discards the
//! rest, too.)
//!
//! # What a crash may leave
//!
//! The last file may end within a frame, or with a frame of which some sectors were never written. Then the log ends before that
//! frame, by the same rule as in etcd's reader, and `Wal::torn_tail` says so. All other damage is an error that names file and
//! offset: nothing is skipped. The same rule cannot tell a torn write from a length that was damaged later, so an importer
//! should report a torn tail.

mod data_dir;
mod directory;
mod error;
mod frames;
mod log;
mod records;
mod running;
mod snap;
mod survivors;

pub use {
    data_dir::DataDirectory,
    error::WalError,
    frames::FRAME_BYTES_MAX,
    log::{SnapshotMark, TornTail, Wal},
    records::PAYLOAD_BYTES_MAX,
    running::refuse_running,
    snap::{BrokenSnapshot, SNAPSHOT_BYTES_MAX, SnapshotFile, Snapshots},
};
