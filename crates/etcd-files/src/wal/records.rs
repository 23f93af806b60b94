//! The records of a log, file after file, along the chain of their checksums.

use super::{
    directory::Segment,
    error::WalError,
    frames::{Frame, Frames, Next},
    log::TornTail,
};
use crate::messages::Record;
use bytes::Bytes;
use prost::Message;
use std::{path::Path, slice};

/// Longest content of a record that is not an entry: ids, terms and who votes.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;

// The kinds of records.
const METADATA: i64 = 1;
const ENTRY: i64 = 2;
const STATE: i64 = 3;
const CHECKSUM: i64 = 4;
const SNAPSHOT: i64 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Metadata,
    Entry,
    State,
    Snapshot,
}

/// A record whose checksum is right.
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) data: Bytes,
    /// Of its frame in the current file.
    pub(super) offset: u64,
    /// How many records precede it in the log, those of checksums not counted.
    pub(super) number: u64,
}

/// Reads the log's files one after the other.
pub(super) struct Records<'a> {
    current: Frames,
    rest: slice::Iter<'a, Segment>,
    /// Of the records so far; `None` before the first checksum.
    crc: Option<u32>,
    /// Whether a checksum of the current file has been read.
    begun: bool,
    number: u64,
    ended: bool,
    torn_tail: Option<TornTail>,
}

impl<'a> Records<'a> {
    /// Begins with the first file. `None` if there is none.
    pub(super) fn open(segments: &'a [Segment]) -> Result<Option<Self>, WalError> {
        let mut rest = segments.iter();
        let Some(first) = rest.next() else {
            return Ok(None);
        };
        Ok(Some(Self {
            current: Frames::open(&first.path)?,
            rest,
            crc: None,
            begun: false,
            number: 0,
            ended: false,
            torn_tail: None,
        }))
    }

    /// The file that the last record is in.
    pub(super) fn path(&self) -> &Path {
        self.current.path()
    }

    /// Once there is no next record: what a crash left behind the last one.
    pub(super) fn torn_tail(&self) -> Option<&TornTail> {
        self.torn_tail.as_ref()
    }

    /// The next record, or `None` at the log's end.
    pub(super) fn next(&mut self) -> Result<Option<Found>, WalError> {
        while !self.ended {
            match self.current.next()? {
                Next::Frame(frame) => {
                    if let Some(found) = self.take(&frame)? {
                        return Ok(Some(found));
                    }
                }
                Next::End => self.next_file()?,
                Next::CutShort if self.in_last_file() => self.end_at(self.current.offset())?,
                Next::CutShort => {
                    return Err(WalError::CutShort {
                        file: self.path().to_owned(),
                        offset: self.current.offset(),
                    });
                }
            }
        }
        Ok(None)
    }

    fn in_last_file(&self) -> bool {
        self.rest.as_slice().is_empty()
    }

    fn next_file(&mut self) -> Result<(), WalError> {
        let Some(next) = self.rest.next() else {
            return self.end_at(self.current.offset());
        };
        if !self.begun {
            // etcd syncs the head of a file before it renames the file to its name: what was in this one is lost. If it is the
            // first, the chain of checksums does not tell.
            let file = self.path().to_owned();
            return Err(WalError::NoHead { file });
        }
        self.current = Frames::open(&next.path)?;
        self.begun = false;
        Ok(())
    }

    /// Ends the log within the last file. What follows that is not zero was never completely written.
    fn end_at(&mut self, offset: u64) -> Result<(), WalError> {
        self.ended = true;
        let lost_bytes = self.current.bytes_after(offset)?;
        if lost_bytes > 0 {
            self.torn_tail = Some(TornTail {
                file: self.path().to_owned(),
                offset,
                lost_bytes,
            });
        }
        Ok(())
    }

    /// Checks a frame. `None` if it only sets the checksum, or if the log ends before it.
    fn take(&mut self, frame: &Frame) -> Result<Option<Found>, WalError> {
        let checked = self.check(frame);
        let torn = frame.has_zero_sector && self.in_last_file();
        match checked {
            Err(WalError::Malformed { .. } | WalError::BadChecksum { .. }) if torn => {
                self.end_at(frame.offset)?;
                Ok(None)
            }
            checked => checked,
        }
    }

    fn check(&mut self, frame: &Frame) -> Result<Option<Found>, WalError> {
        let record = Record::decode(frame.content.clone());
        let record = record.map_err(|source| WalError::Malformed {
            file: self.path().to_owned(),
            offset: frame.offset,
            what: "record",
            source,
        })?;
        if record.kind == CHECKSUM {
            self.set_checksum(frame.offset, record.crc)?;
            return Ok(None);
        }
        let computed = crc32c::crc32c_append(self.crc.unwrap_or(0), &record.data);
        if computed != record.crc {
            return Err(WalError::BadChecksum {
                file: self.path().to_owned(),
                offset: frame.offset,
                stored: record.crc,
                computed,
            });
        }
        if !self.begun {
            let file = self.path().to_owned();
            return Err(WalError::NoHead { file });
        }
        self.crc = Some(computed);
        let found = self.found(frame.offset, record)?;
        self.number += 1;
        Ok(Some(found))
    }

    /// Takes the first checksum as it is: the files before it may be gone. Later ones must be that of the records so far.
    fn set_checksum(&mut self, offset: u64, stored: u32) -> Result<(), WalError> {
        let computed = self.crc.unwrap_or(stored);
        if stored != computed {
            return Err(WalError::BrokenChain {
                file: self.path().to_owned(),
                offset,
                stored,
                computed,
            });
        }
        self.crc = Some(stored);
        self.begun = true;
        Ok(())
    }

    fn found(&self, offset: u64, record: Record) -> Result<Found, WalError> {
        let kind = match record.kind {
            METADATA => Kind::Metadata,
            ENTRY => Kind::Entry,
            STATE => Kind::State,
            SNAPSHOT => Kind::Snapshot,
            kind => {
                return Err(WalError::UnknownRecord {
                    file: self.path().to_owned(),
                    offset,
                    kind,
                });
            }
        };
        if kind != Kind::Entry && record.data.len() > PAYLOAD_BYTES_MAX {
            return Err(WalError::PayloadTooLong {
                file: self.path().to_owned(),
                offset,
                bytes: record.data.len(),
                max: PAYLOAD_BYTES_MAX,
            });
        }
        Ok(Found {
            kind,
            data: record.data,
            offset,
            number: self.number,
        })
    }
}
