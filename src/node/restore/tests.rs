//! A store of etcd's format becomes a member's data directory, or nothing.

use super::*;
use crate::{
    LocalNode,
    actors::fail_stop::FailStop,
    config::{HostPort, InitialMember, PeerTls},
    kv::{
        command::{Put, RangeQuery},
        record::{Fields, encode, encode_tombstone},
    },
    node::{data_directory::Contents, progress::Progress, startup},
    storage::{
        refill,
        sim_disk::{Fault, SimDisk},
    },
    types::{LeaseId, Record, RecordKind, Rev},
};
use quorate_etcd_files::{
    messages::{self, AlarmMember, Lease, Permission, Role, User, UserAddOptions},
    store::{Auth, Cluster, Contents as EtcdContents, Meta, RecordRef, export, export_layout},
};

/// The contents of an etcd: three records, two leases, two users and a role.
struct Sample {
    records: Vec<(i64, bool, Bytes)>,
    alarms: Vec<AlarmMember>,
    leases: Vec<Lease>,
}

fn put(key: &str, major: i64, lease: i64) -> (i64, bool, Bytes) {
    let kv = encode(&Fields {
        key: key.as_bytes(),
        create_revision: Revision(major),
        mod_revision: Revision(major),
        version: 1,
        value: b"value",
        lease: LeaseId(lease),
    });
    (major, false, kv)
}

fn lease(id: i64, ttl: i64) -> Lease {
    Lease {
        id,
        ttl,
        remaining_ttl: 1,
    }
}

fn sample() -> Sample {
    Sample {
        records: vec![
            put("k1", 2, 7),
            put("k2", 3, 0),
            (4, true, encode_tombstone(b"k2")),
        ],
        alarms: Vec::new(),
        leases: vec![lease(7, 60), lease(-7, 3_600)],
    }
}

impl EtcdContents for Sample {
    type Error = StoreError;

    fn alarms(&self) -> Result<Vec<AlarmMember>, StoreError> {
        Ok(self.alarms.clone())
    }

    fn auth(&self) -> Result<Auth, StoreError> {
        Ok(Auth {
            enabled: Some(false),
            revision: Some(9),
        })
    }

    fn roles(
        &self,
        each: &mut dyn FnMut(&Role) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        each(&Role {
            name: "reader".into(),
            permissions: vec![Permission {
                kind: 0,
                key: "k".into(),
                range_end: "l".into(),
            }],
        })
    }

    fn users(
        &self,
        each: &mut dyn FnMut(&User) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        each(&User {
            name: "certificate".into(),
            password: Bytes::new(),
            roles: Vec::new(),
            options: Some(UserAddOptions { no_password: true }),
        })?;
        each(&User {
            name: "root".into(),
            password: "$2a$10$hash".into(),
            roles: vec!["root".to_owned()],
            options: Some(UserAddOptions { no_password: false }),
        })
    }

    fn cluster(&self) -> Result<Cluster, StoreError> {
        Ok(Cluster::default())
    }

    fn records(
        &self,
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.records.iter().try_for_each(|(main, tombstone, kv)| {
            each(RecordRef {
                main: *main,
                sub: 0,
                tombstone: *tombstone,
                kv,
            })
        })
    }

    fn leases(
        &self,
        each: &mut dyn FnMut(&Lease) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.leases.iter().try_for_each(each)
    }

    fn members(&self) -> Result<Vec<messages::Member>, StoreError> {
        Ok(Vec::new())
    }

    fn removed(&self) -> Result<Vec<u64>, StoreError> {
        Ok(Vec::new())
    }

    fn meta(&self) -> Result<Meta, StoreError> {
        Ok(Meta {
            consistent_index: Some(9),
            ..Meta::default()
        })
    }
}

fn alone() -> Config {
    let mut config = Config::default();
    config.storage.wal_segment_bytes = 1 << 20;
    config
}

/// Member `own` of two.
fn one_of_two(own: u16) -> Config {
    let host = |n| HostPort {
        host: format!("n{n}"),
        port: 2380,
    };
    let mut config = alone();
    config.name = format!("n{own}");
    config.peer.tls = PeerTls::Insecure;
    config.peer.advertise = Some(host(own));
    config.cluster.initial = [1, 2]
        .map(|n| InitialMember {
            name: format!("n{n}"),
            peer: host(n),
        })
        .into();
    config
}

/// A record that is written behind those of the store.
fn late(db: &mut Db) -> Result<(), RestoreError> {
    let (major, _, kv) = put("late", 5, 0);
    let record = Record {
        rev: Rev::new(Revision(major), 0),
        kind: RecordKind::Put,
        kv,
    };
    let mut summary = Summary::read(&db.reader()?)?;
    summary.revision = Revision(major);
    Ok(db.commit(&CommitBatch {
        records: vec![Arc::from(vec![record])],
        applied: db.applied(),
        meta: summary.meta(),
        ..CommitBatch::default()
    })?)
}

fn restore_with(
    sample: &Sample,
    request: &RestoreRequest,
    config: &Config,
    disk: &SimDisk,
    further: Option<FurtherChanges<'_>>,
) -> Result<Restored, RestoreError> {
    let layout = export_layout(sample).unwrap();
    let file = export(sample, layout, Vec::new()).unwrap();
    let store = Store::open(Image::open(file).unwrap()).unwrap();
    let unchanged = || Ok(());
    let mut job = Job::new(request, config, &store, &unchanged)?;
    if let Some(further) = further {
        job.further = Some(further);
    }
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    job.run(&disk)
}

fn restore(
    sample: &Sample,
    request: &RestoreRequest,
    config: &Config,
    disk: &SimDisk,
) -> Result<Restored, RestoreError> {
    restore_with(sample, request, config, disk, None)
}

/// Of a member that is restored together with others, or with the same number once more.
fn numbered() -> RestoreRequest {
    RestoreRequest {
        restore_id: Some("00000000000000a1".parse().unwrap()),
        ..RestoreRequest::default()
    }
}

/// The cluster's id that comes out of it.
fn cluster(sample: &Sample, request: &RestoreRequest, config: &Config) -> ClusterId {
    let done = restore(sample, request, config, &SimDisk::new(1)).unwrap();
    done.owner.identity.cluster
}

/// How many keys begin with k, and the revision of a new put, of a member that starts on the disk.
fn served(disk: &SimDisk) -> (i64, i64) {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    clock::paused_system().block_on(async move {
        let fail_stop = FailStop::new(|reason| panic!("{reason}"));
        let node = LocalNode::start(&alone(), &shared, &fail_stop).unwrap();
        let all = RangeQuery {
            key: "k".into(),
            range_end: "l".into(),
            count_only: true,
            ..RangeQuery::default()
        };
        let keys = node.requests().range(all).await.unwrap().count;
        let put = Put {
            key: "new".into(),
            ..Put::default()
        };
        (keys, node.requests().put(put).await.unwrap().revision.0)
    })
}

#[test]
fn what_was_restored_is_served_and_can_be_written_at_once() {
    let disk = SimDisk::new(1);
    restore(&sample(), &RestoreRequest::default(), &alone(), &disk).unwrap();
    disk.crash();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let plan = startup::plan_alone(&alone(), &shared).unwrap();
    let open = startup::open(&alone(), &shared, plan).unwrap();
    assert_eq!(open.db.applied(), RESTORED_AT);
    let loaded = &open.loaded;
    assert_eq!(loaded.revision, Revision(4));
    assert_eq!(loaded.compacted, Revision::NEVER_COMPACTED);
    let leases = loaded.leases.iter();
    let leases: Vec<_> = leases
        .map(|(id, lease)| (id.0, lease.row.start_secs(), lease.keys.len()))
        .collect();
    assert_eq!(leases, [(-7, 3_600, 0), (7, 60, 1)], "all of their time");
    assert_eq!(loaded.auth.revision(), 9);
    let password = |name| loaded.auth.user(name).unwrap().password();
    assert_eq!(password("root"), Some(b"$2a$10$hash".as_slice()));
    assert_eq!(password("certificate"), None);
    assert_eq!(loaded.auth.permissions("reader").unwrap().len(), 1);
    drop(open);
    let text = data_directory::restored_text(&disk).unwrap().unwrap();
    assert!(text.contains("revision 4, never compacted"), "{text}");
    assert_eq!(served(&disk), (1, 5));
}

#[test]
fn a_restore_that_is_cut_short_anywhere_is_refused_or_complete() {
    for fault in [Fault::Io, Fault::Death] {
        for step in 1.. {
            if is_whole_in_spite_of(fault, step) {
                assert!(step > 20, "a restore has many operations, not {step}");
                break;
            }
        }
    }
}

/// Fails the operation with this number. Returns whether there was none.
fn is_whole_in_spite_of(fault: Fault, step: u64) -> bool {
    let disk = SimDisk::new(step);
    disk.fail_nth(step, fault);
    let done = restore(&sample(), &RestoreRequest::default(), &alone(), &disk).is_ok();
    let failed = disk.operations() >= step;
    if step.is_multiple_of(2) {
        disk.crash();
    } else {
        disk.kill_process();
    }
    disk.forgive();
    match data_directory::inspect(&disk) {
        Err(error) => {
            assert!(!done, "{step}: one that succeeds is complete: {error}");
            let text = error.to_string();
            assert!(text.contains("run that command again"), "{step}: {text}");
        }
        Ok(Contents::New) => assert!(!done, "{step}: one that succeeds is durable"),
        Ok(Contents::Member(_)) => assert_eq!(served(&disk), (1, 5), "{step}"),
    }
    assert!(failed || done, "{step}: nothing failed");
    !failed
}

#[test]
fn members_of_one_state_are_a_cluster_and_others_are_not() {
    let plain = numbered();
    let first = cluster(&sample(), &plain, &one_of_two(1));
    assert_eq!(first, cluster(&sample(), &plain, &one_of_two(2)));
    let bumped = RestoreRequest {
        bump_revision: Some(1),
        ..numbered()
    };
    assert_ne!(first, cluster(&sample(), &bumped, &one_of_two(2)));
    let mut other = sample();
    other.leases[0].ttl = 61;
    assert_ne!(first, cluster(&other, &plain, &one_of_two(2)));
    let mut token = one_of_two(2);
    token.cluster.token = "other".to_owned();
    assert_ne!(first, cluster(&sample(), &plain, &token));
    assert_ne!(
        first,
        formed_member(&one_of_two(1)).identity.cluster,
        "a new cluster of the same configuration is another one"
    );
    let done = restore(&sample(), &plain, &one_of_two(1), &SimDisk::new(1)).unwrap();
    let member = formed_member(&one_of_two(1)).identity.member;
    assert_eq!(done.owner.identity.member, member);
    let said = done.to_string();
    assert!(said.contains("quorate restore '' --name n2"), "{said}");
    let id = "--initial-cluster-token etcd-cluster --peer-insecure --restore-id 00000000000000a1";
    assert!(said.contains(id), "{said}");
    assert!(!said.contains("quorate restore '' --name n1"), "{said}");
}

/// Else members that are restored once more could meet those of the cluster that was restored before, and has gone on since.
#[test]
fn all_members_restored_once_more_are_another_cluster() {
    let plain = RestoreRequest::default();
    let done = restore(&sample(), &plain, &one_of_two(1), &SimDisk::new(1)).unwrap();
    let first = done.owner.identity.cluster;
    assert_ne!(first, cluster(&sample(), &plain, &one_of_two(1)));
    let printed = RestoreRequest {
        restore_id: Some(done.restore_id.to_string().parse().unwrap()),
        ..RestoreRequest::default()
    };
    assert_eq!(first, cluster(&sample(), &printed, &one_of_two(2)));
}

/// Else a member that lost its disk and was restored once more would take part without what it had acknowledged.
#[test]
fn one_of_several_asks_the_others_before_it_takes_part() {
    let disk = SimDisk::new(1);
    restore(&sample(), &RestoreRequest::default(), &one_of_two(1), &disk).unwrap();
    let starts = starts::read(&disk).unwrap();
    assert_eq!(starts, Starts::new(Origin::Restored, false));
    let disk = SimDisk::new(1);
    restore(&sample(), &RestoreRequest::default(), &alone(), &disk).unwrap();
    let starts = starts::read(&disk).unwrap();
    assert_eq!(starts, Starts::new(Origin::Restored, true));
}

/// It does not know whom to ask, or has nobody to ask: so it must not begin, also not by way of a refill.
#[test]
fn one_of_several_that_cannot_ask_does_not_start() {
    let disk = SimDisk::new(1);
    let config = one_of_two(1);
    restore(&sample(), &RestoreRequest::default(), &config, &disk).unwrap();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let refused = startup::plan_alone(&config, &shared).unwrap_err();
    let alone = matches!(refused, StartError::RestoredAlone { members: 2, .. });
    assert!(alone, "{refused}");
    refill::request(&disk, "a test").unwrap();
    disk.remove(DATABASE).unwrap();
    let progress = Progress::default();
    let refused = clock::paused_system().block_on(async {
        let asking = startup::plan(&config, &shared, None, &progress);
        [
            asking.await.unwrap_err(),
            startup::plan_alone(&config, &shared).unwrap_err(),
        ]
    });
    for refused in refused {
        let unreadable = matches!(refused, StartError::RestoredUnreadable { .. });
        assert!(unreadable && refused.needs_operator(), "{refused}");
    }
    let starts = starts::read(&disk).unwrap();
    assert_eq!(starts.origin, Origin::Restored, "it has not asked");
}

#[test]
fn the_revision_is_raised_and_marked_compacted() {
    let request = RestoreRequest {
        bump_revision: Some(1_000),
        mark_compacted: true,
        ..RestoreRequest::default()
    };
    let disk = SimDisk::new(1);
    let done = restore(&sample(), &request, &alone(), &disk).unwrap();
    let said = done.to_string();
    assert!(
        said.contains("revision   1004, compacted at 1004"),
        "{said}"
    );
    assert_eq!(served(&disk), (1, 1_005));
    for by in [u64::MAX, REVISION_MAX.unsigned_abs()] {
        let request = RestoreRequest {
            bump_revision: Some(by),
            ..RestoreRequest::default()
        };
        let disk = SimDisk::new(1);
        let refused = restore(&sample(), &request, &alone(), &disk).unwrap_err();
        assert!(matches!(refused, RestoreError::Revision { newest: 4, .. }));
        assert_eq!(disk.operations(), 0, "nothing is written");
    }
}

#[test]
fn further_changes_are_part_of_the_state() {
    let request = numbered();
    let disk = SimDisk::new(1);
    let mut further = late;
    let further: FurtherChanges<'_> = &mut further;
    let done = restore_with(&sample(), &request, &alone(), &disk, Some(further)).unwrap();
    let without = cluster(&sample(), &request, &alone());
    assert_ne!(done.owner.identity.cluster, without);
    assert_eq!(done.totals.revision, Revision(5));
    assert_eq!(served(&disk), (1, 6));
    let mut fails = |_: &mut Db| Err(RestoreError::LeaseId);
    let further: FurtherChanges<'_> = &mut fails;
    let disk = SimDisk::new(1);
    let failed = restore_with(&sample(), &request, &alone(), &disk, Some(further));
    assert!(matches!(failed, Err(RestoreError::LeaseId)));
    let left = data_directory::inspect(&disk);
    assert!(matches!(left, Ok(Contents::New)), "{left:?}");
}

#[test]
fn alarms_of_members_that_are_gone_are_dropped_and_corrupt_is_refused() {
    let own = formed_member(&alone()).identity.member;
    let alarm = |member_id, alarm| AlarmMember { member_id, alarm };
    let raised = |disk: &SimDisk, alarms: Vec<AlarmMember>, ignore_corrupt_alarm| {
        let request = RestoreRequest {
            ignore_corrupt_alarm,
            ..RestoreRequest::default()
        };
        let sample = Sample { alarms, ..sample() };
        let done = restore(&sample, &request, &alone(), disk)?;
        let identity = done.owner.identity;
        let db = Db::open(disk, DATABASE, DbOptions::default(), identity).unwrap();
        let summary = Summary::read(&db.reader().unwrap()).unwrap();
        Ok::<_, RestoreError>((done.to_string(), summary.alarms))
    };
    let (said, stay) = raised(&SimDisk::new(1), vec![alarm(77, 1)], false).unwrap();
    assert!(said.contains("NOSPACE of member 4d was dropped"), "{said}");
    assert!(stay.is_empty(), "{stay:?}");
    let (said, stay) = raised(&SimDisk::new(1), vec![alarm(own.0, 1)], false).unwrap();
    assert!(said.contains("etcdctl alarm disarm"), "{said}");
    assert_eq!(stay, [(own, AlarmKind::NoSpace)].into());
    let disk = SimDisk::new(1);
    let refused = raised(&disk, vec![alarm(77, 2)], false).unwrap_err();
    assert!(
        refused.to_string().contains("--ignore-corrupt-alarm"),
        "{refused}"
    );
    assert_eq!(disk.operations(), 0, "nothing is written");
    let (said, stay) = raised(&disk, vec![alarm(77, 2)], true).unwrap();
    assert!(said.contains("CORRUPT of member 4d was dropped"), "{said}");
    assert!(stay.is_empty(), "{stay:?}");
}

#[test]
fn leases_that_no_etcd_has_are_refused() {
    for (ttl, id) in [(0, 5), (-1, 5), (i64::MAX, 5), (60, 0)] {
        let sample = Sample {
            leases: vec![lease(id, ttl)],
            ..sample()
        };
        let disk = SimDisk::new(1);
        let refused = restore(&sample, &RestoreRequest::default(), &alone(), &disk);
        assert!(
            matches!(
                refused,
                Err(RestoreError::LeaseTime { .. } | RestoreError::LeaseId)
            ),
            "{ttl}, {id}"
        );
        assert_eq!(disk.operations(), 0, "nothing is written");
    }
}

/// The source is verified for minutes, and meanwhile the directory may have become that of a member.
#[test]
fn a_directory_that_is_filled_before_it_is_locked_is_refused_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        data_dir: dir.path().join("data"),
        ..alone()
    };
    require_empty(&config.data_dir).unwrap();
    let (taken, _keeper) = take(&config).unwrap();
    let locked = take(&config);
    assert!(matches!(locked, Err(RestoreError::Start(_))));
    drop(taken);
    drop(take(&config).unwrap());
    let database = config.data_dir.join(DATABASE);
    fs::create_dir_all(database.parent().unwrap()).unwrap();
    fs::write(&database, "records").unwrap();
    let refused = take(&config);
    assert!(matches!(refused, Err(RestoreError::NotEmpty { .. })));
    assert_eq!(fs::read(&database).unwrap(), b"records");
}

#[test]
fn a_directory_with_anything_in_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    require_empty(&path).unwrap();
    fs::create_dir(&path).unwrap();
    for name in [LOCK_FILE, ".hidden"] {
        fs::write(path.join(name), "").unwrap();
    }
    fs::create_dir(path.join("db")).unwrap();
    require_empty(&path).unwrap();
    fs::write(path.join("db/some"), "").unwrap();
    let refused = require_empty(&path).unwrap_err();
    assert!(refused.to_string().contains("holds \"db\""), "{refused}");
    fs::write(path.join(UNFINISHED_RESTORE), "").unwrap();
    let refused = require_empty(&path).unwrap_err();
    assert!(
        refused.to_string().contains("delete it, and run"),
        "{refused}"
    );
}

/// A start on what is left would serve an empty store.
#[test]
fn nothing_is_left_of_a_restore_that_failed_but_what_is_marked() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("n1");
    let fill = || {
        for folder in ["db", "wal"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        fs::write(dir.join(LOCK_FILE), "").unwrap();
    };
    fill();
    leave_nothing(&dir, true);
    assert_eq!(
        fs::read_dir(&dir).unwrap().count(),
        0,
        "it was there before"
    );
    fill();
    fs::write(dir.join(UNFINISHED_RESTORE), "").unwrap();
    leave_nothing(&dir, false);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 4, "it is marked");
    fs::remove_file(dir.join(UNFINISHED_RESTORE)).unwrap();
    leave_nothing(&dir, false);
    assert!(!dir.exists());
}

#[test]
fn a_pipe_is_no_snapshot() {
    let home = tempfile::tempdir().unwrap();
    let pipe = home.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let said = open(&pipe).unwrap_err().to_string();
    assert!(said.contains("no regular file"), "{said}");
}
