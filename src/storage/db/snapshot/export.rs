//! The sending side: reads a read transaction piece by piece, and encodes it in chunks.

use super::super::{
    error::{Damage, DbError},
    format::{Usage, meta, revision_key},
    reader::DbReader,
};
use super::{SnapshotHeader, Totals, tag};
use crate::{
    mutation::{Mutation, mutated},
    types::{Identity, LeaseId, LogPosition, Rev, Revision},
};
use bytes::{BufMut, Bytes, BytesMut};
use std::ops::ControlFlow;

/// A snapshot of one commit that is being sent. Pages that later commits free are not reused before it is dropped.
#[derive(Debug)]
pub struct Export {
    reader: DbReader,
    left_out: &'static [&'static str],
    header: SnapshotHeader,
    place: Place,
    buffer: BytesMut,
    totals: Totals,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Blobs,
    Leases(LeaseId),
    Records(Rev),
    End,
    Nothing,
}

impl Export {
    /// A snapshot of what `reader` sees, without the blobs in `left_out`.
    pub fn new(reader: DbReader, left_out: &'static [&'static str]) -> Result<Self, DbError> {
        let owner: Identity = reader.own(meta::IDENTITY)?;
        let mut applied: LogPosition = reader.applied()?;
        if mutated(Mutation::SnapshotWithoutLastEntry) {
            applied.index = applied.index.next();
        }
        let usage: Usage = reader.own(meta::USAGE)?;
        let header = SnapshotHeader {
            format: format_of(&reader)?,
            cluster: owner.cluster,
            from: owner.member,
            applied,
            usage,
            compaction: reader.meta(meta::COMPACTION)?,
        };
        Ok(Self {
            reader,
            left_out,
            header,
            place: Place::Blobs,
            buffer: BytesMut::new(),
            totals: Totals::default(),
        })
    }

    /// The header, which is sent first.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// The next chunk, of `chunk_bytes` unless it is the last; `None` after that. Reads about as many bytes as it returns.
    pub fn chunk(&mut self, chunk_bytes: usize) -> Result<Option<Bytes>, DbError> {
        while self.buffer.len() < chunk_bytes && !matches!(self.place, Place::Nothing) {
            self.read_on(chunk_bytes)?;
        }
        let ready = self.buffer.len().min(chunk_bytes);
        Ok((ready > 0).then(|| self.buffer.split_to(ready).freeze()))
    }

    fn read_on(&mut self, chunk_bytes: usize) -> Result<(), DbError> {
        let before = self.buffer.len();
        self.place = match self.place {
            Place::Blobs => self.blobs()?,
            Place::Leases(from) => self.leases(from, chunk_bytes)?,
            Place::Records(from) => self.records(from, chunk_bytes)?,
            Place::End => {
                self.buffer.put_u8(tag::END);
                self.buffer.put_slice(&self.totals.encode());
                self.place = Place::Nothing;
                return Ok(());
            }
            Place::Nothing => Place::Nothing,
        };
        self.totals.crc = crc32c::crc32c_append(self.totals.crc, &self.buffer[before..]);
        Ok(())
    }

    fn blobs(&mut self) -> Result<Place, DbError> {
        let (buffer, totals, left_out) = (&mut self.buffer, &mut self.totals, self.left_out);
        self.reader.for_each_meta(|name, value| {
            if name.starts_with(meta::RESERVED) || left_out.contains(&name) {
                return;
            }
            buffer.put_u8(tag::BLOB);
            buffer.put_u16_le(u16::try_from(name.len()).unwrap_or(u16::MAX));
            buffer.put_u32_le(length(value));
            buffer.put_slice(name.as_bytes());
            buffer.put_slice(value);
            totals.blobs += 1;
        })?;
        Ok(Place::Leases(LeaseId(i64::MIN)))
    }

    fn leases(&mut self, from: LeaseId, chunk_bytes: usize) -> Result<Place, DbError> {
        let (buffer, totals) = (&mut self.buffer, &mut self.totals);
        let mut next = None;
        self.reader.scan_leases(from, |id, value| {
            if buffer.len() >= chunk_bytes {
                next = Some(id);
                return ControlFlow::Break(());
            }
            buffer.put_u8(tag::LEASE);
            buffer.put_i64_le(id.0);
            buffer.put_u32_le(length(value));
            buffer.put_slice(value);
            totals.leases += 1;
            ControlFlow::Continue(())
        })?;
        Ok(next.map_or(Place::Records(Rev::default()), Place::Leases))
    }

    fn records(&mut self, from: Rev, chunk_bytes: usize) -> Result<Place, DbError> {
        let (buffer, totals) = (&mut self.buffer, &mut self.totals);
        let mut next = None;
        let everything_after = from..Rev::new(Revision(i64::MAX), u32::MAX);
        self.reader.scan(everything_after, |record| {
            if buffer.len() >= chunk_bytes {
                next = Some(record.rev);
                return ControlFlow::Break(());
            }
            buffer.put_u8(tag::RECORD);
            buffer.put_slice(&revision_key(record.rev, record.kind));
            buffer.put_u32_le(length(record.kv));
            buffer.put_slice(record.kv);
            totals.records += 1;
            ControlFlow::Continue(())
        })?;
        Ok(next.map_or(Place::End, Place::Records))
    }
}

fn length(value: &[u8]) -> u32 {
    u32::try_from(value.len()).unwrap_or(u32::MAX)
}

/// The database's format. Its bytes are not bincode.
fn format_of(reader: &DbReader) -> Result<u32, DbError> {
    let entry = || format!("entry {}", meta::FORMAT);
    let damaged = |damage| DbError::Damaged {
        file: reader.file(),
        damage,
    };
    let table = "meta";
    let bytes = reader.meta(meta::FORMAT)?.ok_or_else(|| {
        let entry = entry();
        damaged(Damage::Missing { table, entry })
    })?;
    let bytes = bytes.as_slice().try_into().map_err(|_| {
        let entry = entry();
        damaged(Damage::Malformed { table, entry })
    });
    bytes.map(u32::from_le_bytes)
}
