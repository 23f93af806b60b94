//! Logs of a real etcd.

use crate::etcd::{Etcd, Programs};
use quorate_etcd_files::{
    messages::{
        Command, ConfChange, ConfChangeKind, ConfigChangeContext, InternalRaftRequest, Operation,
        from_json,
    },
    wal::{DataDirectory, Snapshots, Wal, WalError},
};
use serde_json::Value;
use std::path::Path;

/// All entries of a stopped etcd, in order.
fn commands(wal: &Wal) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut next = wal.first_index();
    wal.all_after(next - 1, |entry| {
        assert_eq!(entry.index, next);
        next += 1;
        let command = Command::decode(&entry);
        commands.push(command.unwrap_or_else(|error| panic!("{entry:?}: {error}")));
        Ok::<_, WalError>(())
    })
    .unwrap();
    assert_eq!(next, wal.last_index() + 1);
    commands
}

fn requests(commands: &[Command]) -> Vec<&InternalRaftRequest> {
    let requests = commands.iter().filter_map(|command| match command {
        Command::Request(request) => Some(request.as_ref()),
        Command::Nothing | Command::V2(_) | Command::Change(_) | Command::ChangeV2(_) => None,
    });
    requests.collect()
}

/// Key and length of the value of each put, in order.
fn puts(commands: &[Command]) -> Vec<(String, usize)> {
    let puts = requests(commands)
        .into_iter()
        .filter_map(|request| request.put.as_ref());
    puts.map(|put| {
        (
            String::from_utf8_lossy(&put.key).into_owned(),
            put.value.len(),
        )
    })
    .collect()
}

fn open(data: &Path) -> (DataDirectory, Wal) {
    let found = DataDirectory::look(data).unwrap();
    found.refuse_running().unwrap();
    let wal = Wal::open(&found.wal).unwrap();
    (found, wal)
}

/// One of everything that clients ask for; returns the lease's id.
fn ask_for_everything(etcd: &Etcd<'_>) -> i64 {
    for number in 0..30 {
        etcd.ctl(&["put", &format!("key{number}"), "value"]);
    }
    let granted = etcd.ctl(&["lease", "grant", "500"]);
    let lease = granted.split_whitespace().nth(1).unwrap();
    etcd.ctl(&["put", "leased", "value", "--lease", lease]);
    etcd.ctl(&["del", "key1", "key2"]);
    let txn = b"value(\"key0\") = \"value\"\n\nput in-txn a\ndel key3\n\nget key4\n\n";
    etcd.ctl_with(&["txn"], txn);
    etcd.ctl(&["compaction", "20"]);
    for arguments in [
        &["user", "add", "root:secret"] as &[&str],
        &["user", "add", "alice:secret"],
        &["user", "add", "--no-password", "bob"],
        &["user", "passwd", "alice", "--interactive=false"],
        &["role", "add", "reader"],
        &[
            "role",
            "grant-permission",
            "reader",
            "readwrite",
            "key",
            "kez",
        ],
        &["role", "revoke-permission", "reader", "key", "kez"],
        &["user", "grant-role", "alice", "reader"],
        &["user", "revoke-role", "alice", "reader"],
        &["user", "grant-role", "root", "root"],
        &["user", "delete", "bob"],
        &["role", "delete", "reader"],
        &["auth", "enable"],
        &["--user", "root:secret", "put", "last", "value"],
    ] {
        etcd.ctl_with(arguments, b"secret2\n");
    }
    i64::from_str_radix(lease, 16).unwrap()
}

#[test]
fn all_that_an_etcd_acknowledged_is_read_after_it_was_killed() {
    let Some(programs) = Programs::find("a killed etcd") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let etcd = programs.start(directory.path(), &["--snapshot-count", "10"]);
    let members = etcd.ctl(&["member", "list"]);
    let lease = ask_for_everything(&etcd);
    etcd.kill();

    let (data, wal) = open(directory.path());
    let commands = commands(&wal);
    let mut expected: Vec<_> = (0..30).map(|number| format!("key{number}")).collect();
    expected.extend(["leased".to_owned(), "last".to_owned()]);
    let expected: Vec<_> = expected.into_iter().map(|key| (key, 5)).collect();
    assert_eq!(puts(&commands), expected);
    check_requests(&requests(&commands), lease);
    check_members(&commands, &wal, &members);
    check_attributes(&commands);

    // etcd: the number of the last commit is handed to the kernel with the next entry, and there was none. Up to 3.4 (which
    // writes requests of the v2 API) the only voter commits an entry before it is written.
    let old = commands
        .iter()
        .any(|command| matches!(command, Command::V2(_)));
    assert!(old || wal.hard_state().commit < wal.last_index(), "{wal:?}");
    let snapshots = Snapshots::read(&data.snapshots).unwrap();
    assert_eq!(snapshots.broken, []);
    let newest = snapshots.newest_noted(&wal).unwrap();
    assert!(newest.mark.index > 10, "{newest:?}");
    assert_eq!(newest.conf_state.voters, [wal.metadata().node_id]);
}

fn check_requests(requests: &[&InternalRaftRequest], lease: i64) {
    fn only<'a, T>(
        requests: &[&'a InternalRaftRequest],
        part: fn(&'a InternalRaftRequest) -> Option<&'a T>,
    ) -> Vec<&'a T> {
        requests
            .iter()
            .filter_map(|request| part(request))
            .collect()
    }
    let granted = only(requests, |request| request.lease_grant.as_ref());
    assert_eq!((granted[0].id, granted[0].ttl), (lease, 500));
    let leased = only(requests, |request| request.put.as_ref());
    assert!(leased.iter().any(|put| put.lease == lease), "{leased:?}");
    let deleted = only(requests, |request| request.delete_range.as_ref());
    assert_eq!(
        (&*deleted[0].key, &*deleted[0].range_end),
        (&b"key1"[..], &b"key2"[..])
    );
    let txn = only(requests, |request| request.txn.as_ref())[0];
    assert_eq!(
        (txn.compare.len(), txn.success.len(), txn.failure.len()),
        (1, 2, 1)
    );
    let put = txn.success[0].request.as_ref();
    assert!(
        matches!(put, Some(Operation::Put(put)) if *put.key == *b"in-txn"),
        "{put:?}"
    );
    let compacted = only(requests, |request| request.compaction.as_ref());
    assert_eq!(compacted[0].revision, 20);
    let users = only(requests, |request| request.auth_user_add.as_ref());
    let names: Vec<_> = users.iter().map(|user| user.name.as_str()).collect();
    assert_eq!(names, ["root", "alice", "bob"]);
    // etcd: up to 3.4 the password itself is in the log.
    let user = users[0];
    assert!(
        user.password.is_empty() != user.hashed_password.is_empty(),
        "{user:?}"
    );
    let permission = only(requests, |request| {
        request.auth_role_grant_permission.as_ref()
    });
    let permission = permission[0].permission.as_ref().unwrap();
    assert_eq!((permission.kind, &*permission.range_end), (2, &b"kez"[..]));
    assert_eq!(
        only(requests, |request| request.auth_enable.as_ref()).len(),
        1
    );
    let last = requests.last().unwrap().header.as_ref().unwrap();
    assert_eq!(last.username, "root");
    assert!(last.auth_revision > 1, "{last:?}");
}

/// The member has made its name known, and the cluster its version.
fn check_attributes(commands: &[Command]) {
    let mut names = Vec::new();
    let mut versions = Vec::new();
    for command in commands {
        match command {
            Command::Request(request) => {
                let set = request.cluster_member_attr_set.as_ref();
                let attributes = set.and_then(|set| set.member_attributes.as_ref());
                names.extend(attributes.map(|attributes| attributes.name.clone()));
                let set = request.cluster_version_set.as_ref();
                versions.extend(set.map(|set| set.version.clone()));
            }
            // etcd up to 3.5.
            Command::V2(request) if request.path().ends_with("/attributes") => {
                let member: Value = from_json("attributes", request.value().as_bytes()).unwrap();
                names.extend(member["name"].as_str().map(str::to_owned));
            }
            Command::V2(request) => versions.push(request.value().to_owned()),
            Command::Nothing | Command::Change(_) | Command::ChangeV2(_) => {}
        }
    }
    assert_eq!(names, ["one"]);
    assert!(!versions.is_empty(), "{commands:?}");
    for version in versions {
        assert!(version.starts_with("3."), "{version}");
    }
}

/// The first entries add the members that the cluster began with.
fn check_members(commands: &[Command], wal: &Wal, listed: &str) {
    let node_id = wal.metadata().node_id;
    let Some(Command::Change(ConfChange {
        kind,
        node_id: added,
        context,
        ..
    })) = commands.first()
    else {
        panic!("{commands:?}");
    };
    assert_eq!((*kind, *added), (ConfChangeKind::AddNode.into(), node_id));
    let context: ConfigChangeContext = from_json("context", context).unwrap();
    assert_eq!(context.member.id, node_id);
    assert_eq!(context.member.peer_urls.len(), 1);
    assert!(listed.starts_with(&format!("{node_id:x}, ")), "{listed}");
}

#[test]
fn several_files_and_restarts_are_read() {
    let Some(programs) = Programs::find("a log of several files") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    // Two files hold 128 MB; the rest of the log is written by a second run.
    for run in 0..2 {
        let etcd = programs.start(directory.path(), &[]);
        for number in 0..50 {
            let key = format!("run{run}-{number}");
            let value = vec![b'a' + number; 1_400_000 - usize::from(number)];
            etcd.ctl_with(&["put", &key], &value);
            expected.push((key, value.len()));
        }
        if run == 0 {
            etcd.stop();
        } else {
            etcd.kill();
        }
        let (data, wal) = open(directory.path());
        assert_eq!(puts(&commands(&wal)), expected);
        assert_eq!(wal.torn_tail(), None);
        if run == 0 {
            assert_eq!(
                wal.hard_state().commit,
                wal.last_index(),
                "it ended in order"
            );
        } else {
            let files = std::fs::read_dir(&data.wal).unwrap();
            let files = files.filter(|file| {
                let name = file.as_ref().unwrap().file_name();
                name.to_string_lossy().ends_with(".wal")
            });
            assert_eq!(files.count(), 3);
        }
    }
}

#[test]
fn a_running_etcd_is_refused() {
    let Some(programs) = Programs::find("a running etcd") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let etcd = programs.start(directory.path(), &[]);
    let data = DataDirectory::look(directory.path()).unwrap();
    for refused in [data.refuse_running(), Wal::open(&data.wal).map(drop)] {
        let error = refused.unwrap_err();
        assert!(
            matches!(error, WalError::Running { pid: Some(pid), .. } if pid == etcd.pid()),
            "{error}"
        );
    }
    // It has not been disturbed.
    etcd.ctl(&["put", "key", "value"]);
    etcd.kill();
    data.refuse_running().unwrap();
    let (_, wal) = open(directory.path());
    assert_eq!(puts(&commands(&wal)), [("key".to_owned(), 5)]);
}

#[test]
fn a_restored_directory_is_read() {
    let Some(programs) = Programs::find("a restored directory") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let etcd = programs.start(&directory.path().join("source"), &[]);
    etcd.ctl(&["put", "key", "value"]);
    let snapshot = directory.path().join("snapshot");
    etcd.ctl(&["snapshot", "save", snapshot.to_str().unwrap()]);
    etcd.kill();
    let restored = directory.path().join("restored");
    if !programs.restore(&snapshot, &restored) {
        return;
    }
    let (data, wal) = open(&restored);
    assert_eq!(commands(&wal).len(), 1, "the change that adds the member");
    assert_eq!((wal.hard_state().commit, wal.last_index()), (1, 1));
    let snapshots = Snapshots::read(&data.snapshots).unwrap();
    assert_eq!(snapshots.newest_noted(&wal).unwrap().mark.index, 1);
}
