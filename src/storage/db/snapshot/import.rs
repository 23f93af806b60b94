//! The receiving side: decodes the stream, and fills a database of its own with it, which is opened and verified before it
//! replaces the old one.

use super::super::{
    Db,
    format::{KEY_BYTES, meta, parse_revision_key},
};
use super::{
    END_BYTES, SnapshotFault, SnapshotHeader, Totals, VALUE_BYTES_MAX,
    new_db::{NewDb, OwnEntries},
    site::DbSite,
    tag,
};
use crate::types::{LeaseId, Record, Rev};
use bytes::{Buf, Bytes, BytesMut};

/// A snapshot that is being received.
#[derive(Debug)]
pub struct Import {
    new: NewDb,
    header: SnapshotHeader,
    /// Received bytes of items that are not complete yet.
    buffer: BytesMut,
    /// Number of bytes of complete items.
    taken: u64,
    totals: Totals,
    last: Rev,
    ended: bool,
}

/// One item of the stream.
enum Item {
    Blob(String, Bytes),
    Lease(LeaseId, Bytes),
    Record(Record),
    End(Totals),
}

impl Import {
    /// Begins a file for the snapshot with this header; what an earlier attempt left is removed.
    pub fn begin(site: &DbSite, header: SnapshotHeader) -> Result<Self, SnapshotFault> {
        Ok(Self {
            new: NewDb::begin(site)?,
            header,
            buffer: BytesMut::new(),
            taken: 0,
            totals: Totals::default(),
            last: Rev::default(),
            ended: false,
        })
    }

    /// The header that the sender sent.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// Takes the next chunk, and commits once enough bytes have arrived.
    pub fn take(&mut self, chunk: &[u8]) -> Result<(), SnapshotFault> {
        if self.ended && !chunk.is_empty() {
            return Err(self.malformed("bytes follow its end"));
        }
        self.buffer.extend_from_slice(chunk);
        while let Some((item, bytes)) = self.parse()? {
            match item {
                Item::End(said) => self.end(said)?,
                Item::Blob(name, value) => {
                    self.totals.blobs += 1;
                    self.new.put_blob(name, value)?;
                }
                Item::Lease(id, value) => {
                    self.totals.leases += 1;
                    self.new.put_lease(id, value)?;
                }
                Item::Record(record) => {
                    if self.totals.records > 0 && record.rev <= self.last {
                        return Err(self.malformed("a record is out of order"));
                    }
                    self.last = record.rev;
                    self.totals.records += 1;
                    self.new.put_record(record)?;
                }
            }
            self.taken += bytes as u64;
        }
        Ok(())
    }

    /// Completes the file, opens it and verifies all of it. `own` are the receiver's blobs, which replace the sender's.
    pub fn finish(self, own: &[(&'static str, Vec<u8>)]) -> Result<Db, SnapshotFault> {
        if !self.ended {
            let what = format!("it stops after {} bytes", self.taken);
            return Err(SnapshotFault::NotWhole(what));
        }
        let Self {
            mut new, header, ..
        } = self;
        for (name, value) in own {
            new.put_blob((*name).to_owned(), Bytes::copy_from_slice(value))?;
        }
        let db = new.finish_with(&OwnEntries {
            format: header.format,
            applied: header.applied,
            usage: header.usage,
            compaction: header.compaction.as_deref(),
        })?;
        if db.usage() != header.usage || db.applied() != header.applied {
            let what = format!(
                "the file holds {} at entry {}, the sender had {} at {}",
                db.usage(),
                db.applied().index,
                header.usage,
                header.applied.index
            );
            return Err(SnapshotFault::NotWhole(what));
        }
        Ok(db)
    }

    fn malformed(&self, what: &'static str) -> SnapshotFault {
        SnapshotFault::Malformed {
            at: self.taken,
            what,
        }
    }

    /// The next item and its length, if it is complete.
    fn parse(&mut self) -> Result<Option<(Item, usize)>, SnapshotFault> {
        let Some((&kind, rest)) = self.buffer.split_first() else {
            return Ok(None);
        };
        let head_bytes = match kind {
            tag::END => END_BYTES,
            tag::BLOB => 6,
            tag::LEASE => 12,
            tag::RECORD => KEY_BYTES + 4,
            _ => return Err(self.malformed("an item of an unknown kind")),
        };
        let Some(head) = rest.get(..head_bytes) else {
            return Ok(None);
        };
        if let (tag::END, Ok(end)) = (kind, head.try_into()) {
            let said = Totals::decode(end);
            self.buffer.advance(1 + END_BYTES);
            return Ok(Some((Item::End(said), 1 + END_BYTES)));
        }
        let value_bytes = (&head[head_bytes - 4..]).get_u32_le() as usize;
        let name_bytes = match kind {
            tag::BLOB => usize::from((&head[..2]).get_u16_le()),
            _ => 0,
        };
        if value_bytes > VALUE_BYTES_MAX {
            return Err(self.malformed("an item is too long"));
        }
        let bytes = 1 + head_bytes + name_bytes + value_bytes;
        if self.buffer.len() < bytes {
            return Ok(None);
        }
        let mut item = self.buffer.split_to(bytes).freeze();
        self.totals.crc = crc32c::crc32c_append(self.totals.crc, &item);
        let value = item.split_off(bytes - value_bytes);
        item.advance(1);
        self.read(kind, &item, name_bytes, value)
            .map(|item| Some((item, bytes)))
    }

    fn read(
        &self,
        kind: u8,
        head: &Bytes,
        name_bytes: usize,
        kv: Bytes,
    ) -> Result<Item, SnapshotFault> {
        if kind == tag::LEASE {
            return Ok(Item::Lease(LeaseId((&head[..8]).get_i64_le()), kv));
        }
        if kind == tag::BLOB {
            let name = head.slice(head.len() - name_bytes..);
            let name = str::from_utf8(&name)
                .ok()
                .filter(|name| !name.starts_with(meta::RESERVED));
            let name = name.ok_or_else(|| self.malformed("a blob's name is not allowed"))?;
            return Ok(Item::Blob(name.to_owned(), kv));
        }
        let key = head.first_chunk::<KEY_BYTES>().and_then(parse_revision_key);
        let (rev, kind) = key.ok_or_else(|| self.malformed("a record's key is malformed"))?;
        Ok(Item::Record(Record { rev, kind, kv }))
    }

    fn end(&mut self, said: Totals) -> Result<(), SnapshotFault> {
        if said != self.totals {
            let what = format!("sent as {said:?}, received as {:?}", self.totals);
            return Err(SnapshotFault::NotWhole(what));
        }
        if !self.buffer.is_empty() {
            return Err(self.malformed("bytes follow its end"));
        }
        self.ended = true;
        Ok(())
    }
}
