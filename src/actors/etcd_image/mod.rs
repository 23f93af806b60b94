//! Images of the database in etcd's file format, for `Maintenance.Snapshot`.
//!
//! An image is one commit, which holds everything that was published before the call: it is read through one read transaction,
//! while writes go on. A thread of its own reads the commit twice, first for the length of the file, which its first bytes say,
//! then for its bytes; there is no temporary file. What waits for the client is bounded, and so is the number of images at once,
//! since the database cannot use pages again that an open transaction sees.
//!
//! Left out: the file itself (`quorate_etcd_files`), and what a client must do to keep its image (`api::snapshot`).

mod blobs;
mod contents;
mod error;

pub use {blobs::Blob, error::ImageError};

use super::{latest, published::Published, request_error::RequestError, snapshots::SnapshotPacing};
use crate::{
    clock,
    kv::index::Snapshot,
    log_gate::{self, LogGate},
    storage::db::DbReader,
    types::Revision,
};
use blobs::{BLOBS_MAX, BlobWriter};
use contents::ImageContents;
use quorate_etcd_files::store::{STORAGE_VERSION, export, export_layout};
use std::{sync::Arc, thread, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep_until, timeout},
};

/// Images of a member that are made at once.
const IMAGES_MAX: usize = 2;

/// How long a further call waits for its turn. etcd: its request time-out.
const TURN_TIMEOUT: Duration = Duration::from_secs(7);

/// The nice value of the thread, above that of the others: no request waits for it.
const NICER: i32 = 5;

/// A timer may be late by so much without making the image slower.
const LATENESS: Duration = Duration::from_millis(10);

/// Images that this member could not make.
static NOT_MADE: LogGate = LogGate::new();

/// What all front ends of a member have together. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct ImageMaker {
    turns: Arc<Semaphore>,
    pacing: SnapshotPacing,
}

/// An image that is being made. Dropping it ends that.
#[derive(Debug)]
pub struct ImageStream {
    blobs: mpsc::Receiver<Result<Blob, ImageError>>,
    pacing: SnapshotPacing,
    /// When the next blob may go.
    due: Instant,
    /// Whether the last item was returned: the hash, or an error.
    is_over: bool,
}

/// A commit, and an index of its records.
struct Chosen {
    reader: DbReader,
    keys: Snapshot,
    compacted: Revision,
}

impl ImageMaker {
    pub fn new(pacing: SnapshotPacing) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(IMAGES_MAX)),
            pacing,
        }
    }

    /// Begins an image that holds everything published before now.
    pub(super) async fn begin(
        &self,
        views: latest::Receiver<Arc<Published>>,
    ) -> Result<ImageStream, ImageError> {
        let turn = timeout(TURN_TIMEOUT, self.turns.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| ImageError::Busy { max: IMAGES_MAX })?;
        let turn = turn.map_err(|_| RequestError::Stopped)?;
        let chosen = choose(views).await?;
        let (out, blobs) = mpsc::channel(BLOBS_MAX);
        let thread = thread::Builder::new().name("quorate-image".to_owned());
        let spawned = thread.spawn(move || make(chosen, &out, turn));
        spawned.map_err(ImageError::Thread)?;
        Ok(ImageStream {
            blobs,
            pacing: self.pacing,
            due: clock::now(),
            is_over: false,
        })
    }
}

impl ImageStream {
    /// etcd: the storage version, which is in the image too.
    pub const VERSION: &'static str = STORAGE_VERSION;

    /// The next piece, at the pace that is set; `None` after the hash or an error.
    pub async fn next(&mut self) -> Option<Result<Blob, ImageError>> {
        if self.is_over {
            return None;
        }
        let next = self.blobs.recv().await;
        let next = next.unwrap_or(Err(ImageError::Interrupted));
        let Ok(blob) = &next else {
            self.is_over = true;
            return Some(next);
        };
        sleep_until(self.due).await;
        let now = clock::now();
        let due = self.due.max(now.checked_sub(LATENESS).unwrap_or(now));
        self.due = due + self.pacing.time_of(blob.bytes.len() as u64);
        self.is_over = blob.is_hash;
        Some(next)
    }
}

/// Waits for a commit that holds everything published before now, and for an index that fits it.
///
/// A commit may be ahead of what is published, so the index is that of a later view. If the history was compacted between the
/// first view and that one, one cannot tell whether the commit has the compaction, and the next commit is waited for.
async fn choose(mut views: latest::Receiver<Arc<Published>>) -> Result<Chosen, ImageError> {
    let stopped = |latest::Closed| RequestError::Stopped;
    loop {
        let first = views.borrow().clone();
        let stored = views
            .wait_for(|view| view.stored_applied >= first.applied.index)
            .await
            .map_err(stopped)?;
        let last = views
            .wait_for(|view| view.applied.index >= stored.stored_applied)
            .await
            .map_err(stopped)?;
        let compacted = first.view.window.compacted;
        if last.view.window.compacted == compacted {
            return Ok(Chosen {
                reader: stored.stored.clone(),
                keys: last.view.keys.clone(),
                compacted,
            });
        }
    }
}

/// Makes an image, in a thread of its own, which has the turn until it ends.
fn make(chosen: Chosen, out: &mpsc::Sender<Result<Blob, ImageError>>, turn: OwnedSemaphorePermit) {
    // On Linux each thread has a nice value of its own. If the system refuses the change, it stays as it is.
    if let Err(error) = rustix::process::nice(NICER) {
        tracing::debug!("the thread of an image is as nice as the others: {error}");
    }
    match write(chosen, out) {
        Ok(()) => {}
        Err(_) if out.is_closed() => tracing::info!("the client of a snapshot has gone"),
        Err(error) => {
            log_gate::warn!(NOT_MADE, "a snapshot for a client was not made: {error}");
            // Sending fails only if nobody waits any more.
            out.blocking_send(Err(error)).unwrap_or_default();
        }
    }
    drop(turn);
}

fn write(chosen: Chosen, out: &mpsc::Sender<Result<Blob, ImageError>>) -> Result<(), ImageError> {
    let Chosen {
        reader,
        keys,
        compacted,
    } = chosen;
    let began = clock::now();
    let contents = ImageContents::new(reader, keys, compacted, || !out.is_closed())?;
    let layout = export_layout(&contents)?;
    let (index, bytes) = (contents.state().applied.index.0, layout.bytes());
    tracing::info!(index, bytes, "sends a snapshot to a client");
    let image_bytes = layout.pages() * u64::from(layout.page_bytes());
    export(&contents, layout, BlobWriter::new(out.clone(), image_bytes))?;
    let millis = clock::since(began).0;
    tracing::info!(index, bytes, millis, "sent a snapshot to a client");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec,
        kv::{
            command::AlarmKind,
            index::Index,
            lease::LeaseRow,
            range::RevisionWindow,
            record::{self, Fields},
            tail::Tail,
            view::View,
        },
        storage::{
            db::{CommitBatch, Db, DbOptions},
            sim_disk::SimDisk,
        },
        types::{
            ClusterId, Identity, LeaseId, LogIndex, LogPosition, MemberId, Record, RecordKind, Rev,
            Term,
        },
    };
    use quorate_etcd_files::{bolt::Image, store::Store};

    const NEVER: Revision = Revision::NEVER_COMPACTED;
    const PACING: SnapshotPacing = SnapshotPacing {
        bytes_per_sec: 1 << 30,
    };

    fn open() -> Db {
        let identity = Identity {
            cluster: ClusterId(1),
            member: MemberId(1),
        };
        Db::open(&SimDisk::new(1), "db", DbOptions::default(), identity).unwrap()
    }

    /// A put of key `k`, which created it at revision 2.
    fn put(major: i64) -> Record {
        let kv = record::encode(&Fields {
            key: b"k",
            create_revision: Revision(2),
            mod_revision: Revision(major),
            version: major - 1,
            value: &[7; 5_000],
            ..Fields::default()
        });
        Record {
            rev: Rev::new(Revision(major), 0),
            kind: RecordKind::Put,
            kv,
        }
    }

    /// Stores the puts at these revisions, the last of which is that of the log entry too.
    fn store(db: &mut Db, majors: &[i64], batch: CommitBatch) {
        let last = majors.last().unwrap().unsigned_abs();
        let records: Vec<Record> = majors.iter().map(|major| put(*major)).collect();
        db.commit(&CommitBatch {
            applied: LogPosition::new(Term(1), LogIndex(last)),
            records: vec![records.into()],
            ..batch
        })
        .unwrap();
    }

    /// The view after the entry at `newest`, with what `db` has stored of it.
    fn published(db: &Db, newest: i64, compacted: Revision) -> Arc<Published> {
        let stored = db.reader().unwrap();
        let mut index = Index::new();
        for major in 2..=newest {
            index.put(b"k", Rev::new(Revision(major), 0), LeaseId(0));
        }
        Arc::new(Published {
            view: View {
                window: RevisionWindow {
                    newest: Revision(newest),
                    compacted,
                },
                keys: index.snapshot(),
                tail: Tail::default(),
                stored: Arc::new(stored.clone()),
            },
            applied: LogPosition::new(Term(1), LogIndex(newest.unsigned_abs())),
            hash: None,
            alarms: Arc::default(),
            members: Arc::default(),
            auth: Arc::default(),
            stored,
            stored_through: Revision(newest),
            stored_applied: db.applied().index,
            file_bytes: db.size(),
            used_bytes: db.size_in_use(),
            unstored_bytes: 0,
        })
    }

    async fn image(stream: &mut ImageStream) -> Store<Vec<u8>> {
        let mut file = Vec::new();
        while let Some(blob) = stream.next().await {
            file.extend_from_slice(&blob.unwrap().bytes);
        }
        let image = Image::open(file).unwrap();
        image.verify_hash().unwrap();
        image.check().unwrap();
        Store::open(image).unwrap()
    }

    fn revisions(store: &Store<Vec<u8>>) -> Vec<i64> {
        let records = store.records().unwrap();
        records.map(|record| record.unwrap().main).collect()
    }

    #[tokio::test]
    async fn an_image_holds_what_was_published_before_the_call() {
        let mut db = open();
        store(&mut db, &[2], CommitBatch::default());
        let (views, receiver) = latest::channel(published(&db, 3, NEVER));
        let making = ImageMaker::new(PACING);
        let begun = tokio::spawn(async move { making.begin(receiver).await });
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!begun.is_finished(), "revision 3 is not stored");
        // The commit is ahead of what is published, as it may be.
        store(&mut db, &[3, 4], CommitBatch::default());
        views.send_replace(published(&db, 3, NEVER));
        tokio::task::yield_now().await;
        views.send_replace(published(&db, 4, NEVER));
        let mut stream = begun.await.unwrap().unwrap();
        // What is written from now on is not in it.
        store(&mut db, &[5], CommitBatch::default());
        let store = image(&mut stream).await;
        assert_eq!(revisions(&store), [2, 3, 4]);
        store.verify_histories().unwrap();
        let meta = store.meta().unwrap();
        assert_eq!((meta.consistent_index, meta.term), (Some(4), Some(1)));
        assert_eq!(meta.compacted(), NEVER.0);
    }

    #[tokio::test]
    async fn the_compacted_past_is_left_out_though_it_is_stored() {
        let mut db = open();
        let compacted = Revision(3);
        let batch = CommitBatch {
            meta: vec![("store.compacted", Some(codec::encode(&compacted)))],
            ..CommitBatch::default()
        };
        store(&mut db, &[2, 3, 4], batch);
        let (views, receiver) = latest::channel(published(&db, 4, compacted));
        let mut stream = ImageMaker::new(PACING).begin(receiver).await.unwrap();
        let store = image(&mut stream).await;
        assert_eq!(revisions(&store), [3, 4]);
        assert_eq!(store.meta().unwrap().compacted(), compacted.0);
        drop(views);
    }

    #[tokio::test]
    async fn leases_and_alarms_are_those_of_etcd() {
        let mut db = open();
        let row = LeaseRow {
            ttl_secs: 60,
            remaining_secs: 7,
            granted: LogIndex(1),
        };
        let ids = [LeaseId(-1), LeaseId(1), LeaseId(i64::MIN)];
        let alarms = [AlarmKind::Corrupt, AlarmKind::StateDiffers].map(|kind| (MemberId(9), kind));
        let batch = CommitBatch {
            leases: ids.map(|id| (id, Some(codec::encode(&row)))).into(),
            meta: vec![("store.alarms", Some(codec::encode(&alarms.to_vec())))],
            ..CommitBatch::default()
        };
        store(&mut db, &[2], batch);
        let (views, receiver) = latest::channel(published(&db, 2, NEVER));
        let mut stream = ImageMaker::new(PACING).begin(receiver).await.unwrap();
        let store = image(&mut stream).await;
        let leases: Vec<_> = store.leases().unwrap().map(Result::unwrap).collect();
        let found: Vec<i64> = leases.iter().map(|lease| lease.id).collect();
        assert_eq!(found, [1, i64::MIN, -1], "as unsigned numbers");
        assert!(
            leases
                .iter()
                .all(|it| (it.ttl, it.remaining_ttl) == (60, 7))
        );
        let alarms = store.alarms().unwrap().map(Result::unwrap);
        let alarms: Vec<_> = alarms.map(|it| (it.member_id, it.alarm)).collect();
        assert_eq!(alarms, [(9, 2)]);
        drop(views);
    }

    #[tokio::test(start_paused = true)]
    async fn a_third_image_waits_for_its_turn_and_then_gives_up() {
        let mut db = open();
        store(&mut db, &[2], CommitBatch::default());
        let (views, receiver) = latest::channel(published(&db, 2, NEVER));
        let making = ImageMaker::new(PACING);
        let first = making.turns.clone().acquire_owned().await.unwrap();
        let second = making.turns.clone().acquire_owned().await.unwrap();
        let refused = making.begin(receiver.clone()).await;
        assert!(matches!(refused, Err(ImageError::Busy { max: 2 })));
        drop(first);
        let mut stream = making.begin(receiver).await.unwrap();
        assert_eq!(revisions(&image(&mut stream).await), [2]);
        drop((second, views));
    }

    #[tokio::test]
    async fn a_thread_that_ends_early_is_an_error() {
        let (out, blobs) = mpsc::channel(1);
        let mut stream = ImageStream {
            blobs,
            pacing: PACING,
            due: clock::now(),
            is_over: false,
        };
        drop(out);
        let ended = stream.next().await;
        assert!(matches!(ended, Some(Err(ImageError::Interrupted))));
        assert!(stream.next().await.is_none(), "the error was the last item");
    }
}
