//! The public face, tried as a program that embeds a member uses it: with `quorate` and `quorate::ext`, and nothing of
//! `quorate::internals`. It brings a disk of its own, and names every type that the public methods take or return.

#![expect(
    clippy::missing_assert_message,
    reason = "the expression says what failed"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use quorate::{
    Config, LocalNode, Node,
    ext::{
        AlarmKind, Blob, ChangeRefusal, ClusterId, ClusterMember, Compare, DIRECT_ALIGN,
        DeleteRange, DeleteRangeDone, Disk, DiskFile, DiskHealth, EncodedKv, EventBatch, FailStop,
        HistoryHash, Identity, KeyEvent, KeyRange, KeyValue, KvError, LeaseGranted, LeaseId,
        LeaseTime, LogIndex, MemberChange, MemberId, MemberInfo, Members, NodeStatus,
        NotStreamable, OpDone, OpenMode, Operand, Put, PutDone, RangeChunk, RangeChunks, RangeDone,
        RangeQuery, RangeStreamEnd, ReadError, RecordError, RecordKind, Refusal, Relation,
        RequestError, RequestLimits, Requests, Rev, Revision, SetAlarm, StartError, Store, Term,
        Txn, TxnDone, TxnOp, Watch, WatchError, WatchSpec,
        causes::{CodecError, DbError, InitialStateError, LoadStateError, NetError, WalError},
        election::{self, ElectionError, LeaderSeen, Leadership, Observer},
        lock::{self, LockError, Locked},
    },
};
use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

/// A disk in memory.
#[derive(Debug, Default)]
struct Memory {
    files: Mutex<BTreeMap<String, Arc<MemoryFile>>>,
}

#[derive(Debug, Default)]
struct MemoryFile(Mutex<Vec<u8>>);

impl Disk for Memory {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = self.files.lock().unwrap();
        if !mode.create && !files.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = files.entry(name.to_owned()).or_default();
        Ok(file.clone())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let files = self.files.lock().unwrap();
        let inside = |name: &String| {
            let rest = name.strip_prefix(dir)?.strip_prefix('/')?;
            (!rest.contains('/')).then(|| rest.to_owned())
        };
        Ok(files.keys().filter_map(inside).collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.lock().unwrap();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = self.files.lock().unwrap().remove(name);
        removed.map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
}

/// The positions of `len` bytes from `offset` on.
fn span(offset: u64, len: usize) -> Range<usize> {
    let start = usize::try_from(offset).unwrap();
    start..start + len
}

impl DiskFile for MemoryFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let span = span(offset, data.len());
        let mut bytes = self.0.lock().unwrap();
        if bytes.len() < span.end {
            bytes.resize(span.end, 0);
        }
        bytes[span].copy_from_slice(data);
        Ok(())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let found = bytes.get(span(offset, out.len()));
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        self.0.lock().unwrap().resize(len, 0);
        Ok(())
    }

    fn is_direct(&self) -> bool {
        false
    }
}

fn put(key: &str, value: &str) -> Put {
    Put {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Put::default()
    }
}

fn all() -> RangeQuery {
    let key: Blob = "k".into();
    RangeQuery {
        key,
        range_end: "l".into(),
        ..RangeQuery::default()
    }
}

#[actix::test]
async fn a_program_brings_a_disk_and_names_every_type() {
    assert_eq!(DIRECT_ALIGN, 4096, "what a disk with direct writes needs");
    let disk: Arc<dyn Disk> = Arc::new(Memory::default());
    let fail_stop = FailStop::new(|reason: &str| panic!("{reason}"));
    let started: Result<LocalNode, StartError> =
        LocalNode::start(&Config::default(), &disk, &fail_stop);
    let node = started.unwrap();
    let requests: &Requests = node.requests();
    keys(requests).await.unwrap();
    watches(requests).await.unwrap();
    leases(requests).await.unwrap();
    the_member(requests).await.unwrap();
    node.stop().await;
    assert!(!disk.list("wal").unwrap().is_empty(), "it used this disk");
}

async fn keys(requests: &Requests) -> Result<(), RequestError> {
    let done: PutDone = requests.put(put("k1", "v")).await?;
    let first: Revision = done.revision;
    let prev: Option<EncodedKv> = done.prev;
    assert!(prev.is_none(), "a new key");
    let txn = Txn {
        compares: vec![Compare {
            key: "k1".into(),
            range_end: "".into(),
            relation: Relation::Equal,
            operand: Operand::Mod(first.0),
        }],
        success: vec![TxnOp::Range(all())],
        ..Txn::default()
    };
    let done: TxnDone = requests.txn(txn).await?;
    let responses: Vec<OpDone> = done.responses;
    assert!(matches!(responses[..], [OpDone::Range(_)]), "{responses:?}");
    let done: RangeDone = requests.range(all()).await?;
    let decoded: Result<KeyValue, RecordError> = KeyValue::decode(&done.kvs[0]);
    assert_eq!(decoded.unwrap().value, "v");
    let streamed: Result<RangeChunks, NotStreamable> = requests.range_stream(all());
    let chunk: RangeChunk = streamed.unwrap().next().await.unwrap()?;
    let end: Option<RangeStreamEnd> = chunk.end;
    assert_eq!(end.unwrap().count, 1);
    let delete = DeleteRange {
        key: "k1".into(),
        ..DeleteRange::default()
    };
    let done: DeleteRangeDone = requests.delete_range(delete).await?;
    assert_eq!(done.deleted, 1);
    let hash: HistoryHash = requests.hash_kv(Revision(0)).await?;
    assert_eq!(hash, requests.hash_kv(done.revision).await?);
    let compacted: Revision = requests.compact(done.revision, true).await?;
    assert_eq!(compacted, done.revision);
    let old = RangeQuery {
        revision: first.0,
        ..all()
    };
    let refused = requests.range(old).await;
    assert!(
        matches!(refused, Err(RequestError::Kv(KvError::Compacted { .. }))),
        "{refused:?}"
    );
    Ok(())
}

async fn watches(requests: &Requests) -> Result<(), WatchError> {
    let mut watch: Watch = requests.watch(WatchSpec::of(KeyRange::all())).await?;
    let put = requests.put(put("k2", "w")).await?;
    let batch: EventBatch = watch.next().await?;
    let event: &KeyEvent = &batch.events[0];
    let (rev, kind): (Rev, RecordKind) = (event.rev, event.kind);
    assert_eq!((rev.major, kind), (put.revision, RecordKind::Put));
    let nowhere = KeyRange::from_wire(&"b".into(), &"a".into());
    let refused = requests.watch(WatchSpec::of(nowhere)).await;
    assert!(
        matches!(refused, Err(WatchError::Refused(Refusal::EmptyRange))),
        "{refused:?}"
    );
    Ok(())
}

async fn leases(requests: &Requests) -> Result<(), RequestError> {
    let granted: LeaseGranted = requests.grant_lease(None, 60).await?;
    let id: LeaseId = granted.id;
    assert_eq!(requests.keep_alive(id).await?, Some(granted.ttl_secs));
    let time: Option<LeaseTime> = requests.time_to_live(id, true).await?;
    assert!(time.unwrap().keys.is_empty(), "no key is attached");
    let listed: Arc<[LeaseId]> = requests.leases().await?;
    assert_eq!(*listed, [id]);
    let locked: Result<Locked, LockError> = lock::lock(requests, "lock".into(), id).await;
    let locked = locked.unwrap();
    lock::unlock(requests, locked.key).await.unwrap();
    let led: Result<(Leadership, Revision), ElectionError> =
        election::campaign(requests, "election".into(), id, "me".into()).await;
    let (leadership, _) = led.unwrap();
    let seen: Result<LeaderSeen, ElectionError> = election::leader(requests, b"election").await;
    assert_eq!(seen.unwrap().kv.key, leadership.key);
    let observer: Result<Observer, ElectionError> =
        election::observe(requests, "election".into()).await;
    assert_eq!(observer.unwrap().next().await.unwrap().kv.value, "me");
    let revoked: Revision = requests.revoke_lease(id).await?;
    assert!(revoked > leadership.created, "its key is deleted");
    Ok(())
}

async fn the_member(requests: &Requests) -> Result<(), RequestError> {
    let identity: Identity = requests.identity();
    let limits: RequestLimits = requests.limits();
    assert!(limits.timeout > Duration::ZERO, "{limits:?}");
    let status: NodeStatus = requests.status()?;
    let ids: (ClusterId, MemberId) = (status.cluster, status.member);
    assert_eq!(ids, (identity.cluster, identity.member));
    let positions: (LogIndex, Term) = (status.applied, status.term);
    assert!(positions.0 > LogIndex(0), "{positions:?}");
    let disk: &DiskHealth = &status.disk;
    assert!(!format!("{disk:?}").is_empty(), "it can be shown");
    let alarm = SetAlarm {
        member: identity.member,
        kind: AlarmKind::NoSpace,
        raised: false,
    };
    assert!(!requests.set_alarm(alarm).await?, "it was not raised");
    let members: Arc<Members> = requests.members(true).await?;
    let member: &ClusterMember = members.iter().next().unwrap();
    let info: &MemberInfo = &member.info;
    assert!(!info.awaits_vote, "{info:?}");
    let change = MemberChange::Remove { id: MemberId(99) };
    let refused: Result<Members, RequestError> = requests.change_membership(change).await;
    assert!(
        matches!(refused, Err(RequestError::Change(ChangeRefusal::NotFound))),
        "{refused:?}"
    );
    Ok(())
}

/// The record that could not be read, if that is what went wrong.
fn unreadable(error: &RequestError) -> Option<&ReadError> {
    match error {
        RequestError::Unreadable(cause) => Some(cause),
        _ => None,
    }
}

/// The causes of a start that fails, down to what a program may want to tell apart.
#[test]
fn a_failed_start_can_be_matched_on() {
    fn kind(error: &StartError) -> &'static str {
        match error {
            StartError::Db(DbError::Damaged { .. }) | StartError::Wal(WalError::Damaged { .. }) => {
                "damage"
            }
            StartError::Net(NetError::Listen { .. }) => "port",
            StartError::Raft(InitialStateError::Config(_)) => "bug",
            StartError::Load(LoadStateError::Codec(CodecError::Malformed { .. })) => "format",
            _ => "other",
        }
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = Config {
        data_dir: file.path().join("below a file"),
        ..Config::default()
    };
    let error = Node::start(&config).map(|_| ()).unwrap_err();
    assert_eq!(kind(&error), "other", "{error}");
    assert!(
        unreadable(&RequestError::Stopped).is_none(),
        "another error"
    );
    let store: fn(Requests) -> Store = Store::new;
    assert!(size_of_val(&store) > 0, "it is named");
}
