//! Fuzz targets for the log's bytes: single batches with right checksums and arbitrary content, and segments with patches.

use super::{
    Append, SegmentId, Wal, WalOptions,
    batch::{BatchHeader, HEADER_BYTES, HEADER_CRC_AT, MAGIC, header_crc},
};
use crate::{
    storage::{
        disk::{Disk, OpenMode},
        sim_disk::SimDisk,
    },
    types::{ClusterId, Entry, EntryKind, HardState, Identity, LogIndex, MemberId, Term},
};
use bytes::Bytes;
use std::sync::Arc;

const SALT: u64 = 7;
const SEGMENT_BYTES: u64 = 64 * 1024;

/// Decodes `data` as a batch after its checksums are corrected, so that only the content decides. A header that is accepted must
/// survive its encoding.
pub fn batch(data: &[u8]) {
    if data.len() < HEADER_BYTES {
        return;
    }
    let (header, payload) = data.split_at(HEADER_BYTES);
    let payload = Bytes::copy_from_slice(payload);
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut header = header.to_vec();
    header[..4].copy_from_slice(&MAGIC);
    header[24..28].copy_from_slice(&length.to_le_bytes());
    header[32..36].copy_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    let crc = header_crc(&header, SALT);
    header[HEADER_CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    let Ok((decoded, _)) = BatchHeader::decode(&header, SALT) else {
        return;
    };
    let mut again = vec![0; HEADER_BYTES];
    decoded.encode(SALT, &mut again);
    let reread = BatchHeader::decode(&again, SALT).map(|(header, _)| format!("{header:?}"));
    assert_eq!(
        reread.ok(),
        Some(format!("{decoded:?}")),
        "a header survives its encoding"
    );
    if let Ok(entries) = decoded.decode_payload(&payload) {
        consecutive(&entries);
    }
}

/// A log of a few batches, patched: three bytes of offset, one of length, that many bytes, and so on. It opens or fails with an
/// error. A log that opens accepts new entries, and afterwards holds them and all that it held.
pub fn segment(data: &[u8]) {
    let disk = SimDisk::new(1);
    disk.take_direct(false);
    let Some((mut wal, _)) = open(&disk) else {
        unreachable!("an empty disk opens");
    };
    for index in 1..=6 {
        append(&mut wal, index);
    }
    drop(wal);
    patch(&disk, data);
    let Some((mut wal, entries)) = open(&disk) else {
        return;
    };
    consecutive(&entries);
    let next = wal.last().next();
    append(&mut wal, next.0);
    let last = wal.last();
    drop(wal);
    let Some((_, again)) = open(&disk) else {
        unreachable!("what was opened and closed opens again");
    };
    assert_eq!(
        again.last().map(|entry| entry.index),
        Some(last),
        "what was added is there"
    );
    assert_eq!(
        again[..again.len() - 1],
        entries[..],
        "opening changes nothing that it accepted"
    );
}

fn share(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

fn open(disk: &SimDisk) -> Option<(Wal, Vec<Entry>)> {
    let identity = Identity {
        cluster: ClusterId(1),
        member: MemberId(2),
    };
    let options = WalOptions {
        segment_bytes: SEGMENT_BYTES,
        ..WalOptions::new(identity, SALT)
    };
    let (wal, recovered) = Wal::open(share(disk), "wal", options, LogIndex(0)).ok()?;
    Some((wal, recovered.entries))
}

fn append(wal: &mut Wal, index: u64) {
    let term = Term(wal.hard_state().term.0.max(1));
    let entry = Entry {
        term,
        index: LogIndex(index),
        kind: EntryKind::Command,
        data: vec![7; 300].into(),
    };
    let append = Append {
        snapshot: None,
        hard_state: Some(HardState {
            term,
            vote: None,
            commit: LogIndex(0),
        }),
        entries: &[entry],
    };
    let done = wal.append(&append).and_then(|()| wal.flush());
    assert!(done.is_ok(), "the disk is sound: {done:?}");
}

fn patch(disk: &SimDisk, mut data: &[u8]) {
    let mode = OpenMode {
        create: false,
        direct: false,
    };
    let names = share(disk).list("wal").unwrap_or_default();
    let first = names
        .iter()
        .find(|name| SegmentId::from_live_name(name).is_some());
    let path = format!("wal/{}", first.map_or("", String::as_str));
    let Ok(file) = share(disk).open(&path, mode) else {
        unreachable!("the first segment is there: {names:?}");
    };
    while let [a, b, c, len, rest @ ..] = data {
        let offset = u64::from(u32::from_le_bytes([*a, *b, *c, 0])) % SEGMENT_BYTES;
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        let room = usize::try_from(SEGMENT_BYTES - offset).unwrap_or_default();
        let written = file.write_at(offset, &bytes[..bytes.len().min(room)]);
        assert!(written.is_ok(), "the disk is sound: {written:?}");
        data = rest;
    }
    assert!(file.sync_data().is_ok(), "the disk is sound");
}

fn consecutive(entries: &[Entry]) {
    for pair in entries.windows(2) {
        assert_eq!(pair[0].index.next(), pair[1].index, "a log without gaps");
    }
}
