//! Tests of snapshots: the receiver gets what was sent, and refuses everything else.

use super::super::{
    CommitBatch, Db, DbError, DbOptions, DbSite, Export, Import,
    testing::{OWNER, applied, batch, dump, expected, span},
};
use super::{SnapshotFault, SnapshotHeader};
use crate::{
    storage::{
        encryption::testing,
        sim_disk::{Fault, SimDisk},
    },
    types::{ClusterId, Identity, MemberId, Rev, Revision, SplitMix64},
};
use bytes::Bytes;
use std::sync::Arc;

const NAME: &str = "db/revisions.redb";
const CHUNK: usize = 1_000;

fn site(disk: &SimDisk, node: u64) -> DbSite {
    DbSite {
        disk: testing::share(Arc::new(disk.clone())),
        name: NAME,
        options: DbOptions::default(),
        identity: Identity {
            member: MemberId(node),
            ..OWNER
        },
    }
}

fn open(site: &DbSite) -> Result<Db, DbError> {
    Db::open(&*site.disk, site.name, site.options, site.identity)
}

/// A member's database with so many batches.
fn filled(batches: u64) -> (SimDisk, Db) {
    let disk = SimDisk::new(batches);
    let mut db = open(&site(&disk, 1)).unwrap();
    for index in 1..=batches {
        db.commit(&batch(index, 5)).unwrap();
    }
    (disk, db)
}

fn sent(db: &Db) -> (Vec<u8>, Vec<Bytes>) {
    let mut export = Export::new(db.reader().unwrap(), &[]).unwrap();
    let header = export.header().encode();
    let mut chunks = Vec::new();
    while let Some(chunk) = export.chunk(CHUNK).unwrap() {
        assert!(chunk.len() <= CHUNK, "chunks are bounded");
        chunks.push(chunk);
    }
    (header, chunks)
}

fn take(site: &DbSite, header: &[u8], chunks: &[Bytes]) -> Result<Db, SnapshotFault> {
    let header = SnapshotHeader::decode(header, OWNER.cluster)?;
    let mut import = Import::begin(site, header)?;
    for chunk in chunks {
        import.take(chunk)?;
    }
    import.finish(&[])
}

#[test]
fn what_is_sent_takes_the_place_of_what_was_there() {
    let (_from, mut db) = filled(40);
    let removed = |record: super::super::RecordRef<'_>| record.rev.sub % 2 == 1;
    db.compact_step(span(Rev::default(), Revision(20), 30), removed)
        .unwrap();
    let (header, chunks) = sent(&db);
    assert!(chunks.len() > 10, "the tests want several chunks");
    let disk = SimDisk::new(7);
    let site = site(&disk, 2);
    let mut old = open(&site).unwrap();
    old.commit(&batch(1, 5)).unwrap();
    let before = old.reader().unwrap();

    let received = take(&site, &header, &chunks).unwrap();
    assert_eq!(dump(&old).unwrap(), expected(1, 5), "nothing is switched");
    let new = site.switch(received).unwrap();
    assert_eq!(dump(&new).unwrap(), dump(&db).unwrap());
    assert_eq!(
        (new.applied(), new.fallback(), new.usage(), new.compaction()),
        (applied(40), applied(40), db.usage(), db.compaction())
    );
    assert!(
        before.get_put(Rev::new(Revision(2), 1)).unwrap().is_some(),
        "who read the old one reads on"
    );
    assert!(old.has_readers(), "so it is kept");
    drop((before, old, new));
    let mut again = open(&site).unwrap();
    assert_eq!(dump(&again).unwrap(), dump(&db).unwrap());
    again.commit(&batch(41, 5)).unwrap();
}

#[test]
fn a_member_keeps_what_is_its_own() {
    let (_from, db) = filled(3);
    let export = Export::new(db.reader().unwrap(), &["blob"]);
    let mut export = export.unwrap();
    let header = export.header().clone();
    let to = SimDisk::new(7);
    let mut import = Import::begin(&site(&to, 2), header).unwrap();
    while let Some(chunk) = export.chunk(CHUNK).unwrap() {
        import.take(&chunk).unwrap();
    }
    let received = import.finish(&[("own", vec![7])]).unwrap();
    let reader = received.reader().unwrap();
    assert_eq!(reader.meta("blob").unwrap(), None, "the sender's alone");
    assert_eq!(reader.meta("own").unwrap(), Some(vec![7]));
}

#[test]
fn a_stream_that_is_not_the_sender_s_is_refused() {
    let (_from, db) = filled(10);
    let (header, chunks) = sent(&db);
    let disk = SimDisk::new(7);
    let site = site(&disk, 2);
    let whole: Vec<u8> = chunks.concat();
    let mut random = SplitMix64::new(3);
    for _ in 0..150 {
        let mut damaged = whole.clone();
        let what = match random.below(3) {
            0 => {
                let at = random.below(damaged.len() * 8);
                damaged[at / 8] ^= 1 << (at % 8);
                "a flipped bit"
            }
            1 => {
                damaged.truncate(random.below(whole.len()));
                "a short stream"
            }
            _ => {
                damaged.extend_from_slice(&whole[..=random.below(40)]);
                "a long stream"
            }
        };
        let taken = take(&site, &header, &[damaged.into()]);
        assert!(taken.is_err(), "{what} is taken");
    }
    assert!(
        take(&site, &header, &chunks).is_ok(),
        "none of it does harm"
    );
}

#[test]
fn headers_of_others_are_refused() {
    let (_from, db) = filled(1);
    let (header, _) = sent(&db);
    let of = |bytes: &[u8], cluster| SnapshotHeader::decode(bytes, cluster);
    assert!(of(&header, OWNER.cluster).is_ok());
    let other = of(&header, ClusterId(9)).unwrap_err();
    assert!(
        matches!(other, SnapshotFault::OtherCluster { .. }),
        "{other}"
    );
    for length in 0..header.len() {
        assert!(of(&header[..length], OWNER.cluster).is_err(), "{length}");
    }
    let mut newer = header;
    newer[0] += 2;
    let newer = of(&newer, OWNER.cluster).unwrap_err();
    assert!(
        matches!(newer, SnapshotFault::Version { found: 3 }),
        "{newer}"
    );
}

#[test]
fn rows_are_sent_and_only_then_the_newer_format() {
    let (_from, mut db) = filled(3);
    assert_eq!(sent(&db).0[..4], [1, 0, 0, 0], "every version takes it");
    let row = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
    db.commit(&CommitBatch {
        rows: [row("auth.a", Some(b"1")), row("auth.b", Some(b"2"))].into(),
        ..batch(4, 5)
    })
    .unwrap();
    db.commit(&CommitBatch {
        rows: [row("auth.a", None)].into(),
        ..batch(5, 5)
    })
    .unwrap();
    let (header, chunks) = sent(&db);
    assert_eq!(header[..4], [2, 0, 0, 0]);
    let to = SimDisk::new(9);
    let site = site(&to, 2);
    drop(open(&site).unwrap());
    let received = take(&site, &header, &chunks).unwrap();
    for db in [&db, &received] {
        let reader = db.reader().unwrap();
        assert_eq!(reader.meta("auth.a").unwrap(), None, "removed");
        assert_eq!(reader.meta("auth.b").unwrap(), Some(b"2".to_vec()));
        let format = reader.meta("db.format").unwrap();
        assert_eq!(format, Some(vec![2, 0, 0, 0]));
    }
    drop(site.switch(received).unwrap());
    assert_eq!(sent(&open(&site).unwrap()).0[..4], [2, 0, 0, 0]);
}

/// A member that gets a snapshot dies after any of its disk operations: it is at the old state or at the new one, and an
/// interrupted transfer leaves nothing.
#[test]
fn a_crash_at_any_step_leaves_the_old_state_or_the_new_one() {
    let (_from, db) = filled(12);
    let (header, chunks) = sent(&db);
    let (mut old_found, mut new_found) = (0, 0);
    for crash_at in 1.. {
        let disk = SimDisk::new(crash_at);
        let site = site(&disk, 2);
        let mut old = open(&site).unwrap();
        old.commit(&batch(1, 5)).unwrap();
        let fault = [Fault::Io, Fault::NoSpace][usize::try_from(crash_at % 2).unwrap()];
        let before = disk.operations();
        disk.fail_nth(crash_at, fault);
        let switched = take(&site, &header, &chunks).and_then(|db| Ok(site.switch(db)?));
        let operations = disk.operations() - before;
        let acknowledged = switched.is_ok() && operations < crash_at;
        let outcome = switched.as_ref().map(|_| ()).map_err(ToString::to_string);
        disk.crash();
        drop((old, switched));
        let db = open(&site).unwrap_or_else(|error| {
            panic!("crash at {crash_at} of {operations}, {outcome:?}: {error}")
        });
        let names = site.disk.list("db").unwrap();
        assert_eq!(names, ["revisions.redb", "synced"], "crash at {crash_at}");
        match db.applied().index.0 {
            1 => {
                assert!(!acknowledged, "crash at {crash_at}: it was in place");
                assert_eq!(dump(&db).unwrap(), expected(1, 5), "crash at {crash_at}");
                old_found += 1;
            }
            12 => {
                assert_eq!(dump(&db).unwrap(), expected(12, 5), "crash at {crash_at}");
                new_found += 1;
            }
            other => panic!("crash at {crash_at}: applied {other}"),
        }
        if acknowledged {
            break;
        }
    }
    assert!(old_found > 10, "most steps come before the switch");
    assert!(new_found > 0, "the last ones after it");
}

/// The process dies before the new name is durable, the next one continues with the new database, and power is lost.
#[test]
fn a_database_in_place_is_durable_before_the_next_process_uses_it() {
    let (_from, db) = filled(12);
    let (header, chunks) = sent(&db);
    let switch = |disk: &SimDisk| {
        let site = site(disk, 2);
        let mut old = open(&site).unwrap();
        old.commit(&batch(1, 5)).unwrap();
        let received = take(&site, &header, &chunks);
        received.and_then(|db| Ok(site.switch(db)?)).is_ok()
    };
    let whole = SimDisk::new(1);
    assert!(switch(&whole));
    let all = whole.operations();
    let mut in_place = 0;
    for (back, seed) in (0..30).flat_map(|back| (0..4).map(move |seed| (back, seed))) {
        let disk = SimDisk::new(seed);
        disk.fail_nth(all - back, Fault::Death);
        switch(&disk);
        disk.kill_process();
        let site = site(&disk, 2);
        let mut db = open(&site).unwrap();
        let next = db.applied().index.0 + 1;
        in_place += u32::from(next == 13);
        db.commit(&batch(next, 5)).unwrap();
        drop(db);
        disk.crash();
        let db = open(&site).unwrap();
        assert_eq!(dump(&db).unwrap(), expected(next, 5), "{back}, seed {seed}");
    }
    assert!(in_place > 0, "some deaths come after the rename");
}

#[test]
fn an_encrypted_member_gets_a_snapshot_as_any_does() {
    testing::encrypted(what_is_sent_takes_the_place_of_what_was_there);
    testing::encrypted(a_crash_at_any_step_leaves_the_old_state_or_the_new_one);
    testing::encrypted(a_database_in_place_is_durable_before_the_next_process_uses_it);
}
