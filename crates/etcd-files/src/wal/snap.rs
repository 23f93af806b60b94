//! The snapshot files of an etcd, `member/snap/*.snap`.
//!
//! They are small: the data is in the database, and a file says up to which index a member's state was in it when the file was
//! written, and who voted then. The log begins behind the newest file, or earlier.

use super::{
    directory,
    error::WalError,
    log::{SnapshotMark, Wal},
    records::PAYLOAD_BYTES_MAX,
};
use crate::messages::{ConfState, SnapshotFrame, SnapshotMetadata};
use bytes::Bytes;
use prost::Message;
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Longest file that is read. The v2 keys of an old cluster are in it; else it has some kilobytes.
pub const SNAPSHOT_BYTES_MAX: u64 = 64 << 20;

/// A valid snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    pub path: PathBuf,
    pub mark: SnapshotMark,
    /// The voters.
    pub conf_state: ConfState,
}

/// An invalid snapshot file, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenSnapshot {
    pub path: PathBuf,
    pub reason: String,
}

/// All snapshot files of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshots {
    /// Newest first: by term, then by index, as etcd orders them.
    pub whole: Vec<SnapshotFile>,
    pub broken: Vec<BrokenSnapshot>,
    /// Databases `INDEX.snap.db` that the member received from its leader and had not yet put in the place of its own, with the
    /// index that each is of. If the newest file has one, `member/snap/db` is older than it.
    pub received: Vec<(u64, PathBuf)>,
}

/// The part of a snapshot that is decoded here. The other one, field 1, has no bound.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Outline {
    #[prost(bytes = "bytes", tag = "2")]
    metadata: Bytes,
}

impl Snapshots {
    /// Reads a member's `snap` directory. Fails only if the directory cannot be read: broken files are part of the answer.
    pub fn read(directory: &Path) -> Result<Self, WalError> {
        let mut found = Self::default();
        for name in directory::names(directory)?.into_iter().rev() {
            let path = directory.join(&name);
            if let Some(index) = name.strip_suffix(".snap.db") {
                if let Ok(index) = u64::from_str_radix(index, 16) {
                    found.received.push((index, path));
                }
            } else if let Some((term, index)) = directory::parse(&name, ".snap") {
                found.add(path, SnapshotMark { index, term });
            }
        }
        Ok(found)
    }

    /// The newest whole file.
    pub fn newest(&self) -> Option<&SnapshotFile> {
        self.whole.first()
    }

    /// The newest whole file that the log has a note of: the one that etcd would start with.
    pub fn newest_noted(&self, log: &Wal) -> Option<&SnapshotFile> {
        let noted = |file: &&SnapshotFile| log.snapshots().any(|mark| mark == file.mark);
        self.whole.iter().find(noted)
    }

    fn add(&mut self, path: PathBuf, named: SnapshotMark) {
        match read(&path, named) {
            Ok(conf_state) => self.whole.push(SnapshotFile {
                path,
                mark: named,
                conf_state,
            }),
            Err(reason) => self.broken.push(BrokenSnapshot { path, reason }),
        }
    }
}

/// Reads who voted; the file must be what its name says.
fn read(path: &Path, named: SnapshotMark) -> Result<ConfState, String> {
    let content = content(path).map_err(|error| error.to_string())?;
    let frame = SnapshotFrame::decode(content).map_err(|error| error.to_string())?;
    if frame.data.is_empty() || frame.crc == 0 {
        return Err("it is empty".to_owned());
    }
    let computed = crc32c::crc32c(&frame.data);
    if computed != frame.crc {
        let stored = frame.crc;
        return Err(format!(
            "the checksum is {computed:#010x}, the file says {stored:#010x}"
        ));
    }
    let outline = Outline::decode(frame.data).map_err(|error| error.to_string())?;
    if outline.metadata.len() > PAYLOAD_BYTES_MAX {
        let bytes = outline.metadata.len();
        return Err(format!("metadata of {bytes} bytes"));
    }
    let metadata = SnapshotMetadata::decode(outline.metadata).map_err(|error| error.to_string())?;
    if (metadata.index, metadata.term) != (named.index, named.term) {
        let SnapshotMetadata { index, term, .. } = metadata;
        return Err(format!("it is of index {index} and term {term}"));
    }
    Ok(metadata.conf_state.unwrap_or_default())
}

fn content(path: &Path) -> io::Result<Bytes> {
    let mut content = Vec::new();
    File::open(path)?
        .take(SNAPSHOT_BYTES_MAX + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > SNAPSHOT_BYTES_MAX {
        return Err(io::Error::other(format!(
            "more than {SNAPSHOT_BYTES_MAX} bytes"
        )));
    }
    Ok(content.into())
}
