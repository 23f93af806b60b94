//! What is written is read again, bytes for bytes as etcd stores them.

use crate::support::{Memory, Raw, file, open, put, read, sample};
use quorate_etcd_files::{
    bolt::BoltError,
    messages::{AlarmMember, Lease},
    store::{ItemFault, Meta, Rewrite, RewriteOptions, StoreError, Unknown, export, export_layout},
};

#[test]
fn what_is_written_is_read_again() {
    let written = sample();
    let file = file(&written);
    let store = open(&file);
    store.image().verify_hash().unwrap();
    store.image().check().unwrap();
    store.verify_histories().unwrap();
    assert!(store.unknown().unwrap().is_empty());
    let mut read = read(&store).unwrap();
    // Those that come as vectors are sorted by their keys.
    assert_eq!(read.alarms.len(), 3);
    assert_eq!(read.removed, [3, 0xb2]);
    read.alarms.clone_from(&written.alarms);
    read.removed.clone_from(&written.removed);
    // "7" sorts before "a1".
    assert_eq!(read, written);
    let rewrite = Rewrite::new(&store, RewriteOptions::default()).unwrap();
    assert!(crate::support::file(&rewrite) == file, "the same file");
}

#[test]
fn bytes_are_those_of_etcd() {
    let mut raw = Raw::of(file(&sample()));
    let names: Vec<_> = raw
        .0
        .keys()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    let wanted = [
        "alarm",
        "auth",
        "authRoles",
        "authUsers",
        "cluster",
        "key",
        "lease",
        "members",
        "members_removed",
        "meta",
    ];
    assert_eq!(names, wanted);
    let mut value = |bucket: &str, key: &str| {
        let value = raw.bucket(bucket)[key.as_bytes()].clone();
        String::from_utf8(value).unwrap()
    };
    assert_eq!(
        value("members", "a1"),
        r#"{"id":161,"peerURLs":["http://localhost:2380/?a=1\u0026b=\u003c2\u003e"],"name":"one"}"#
    );
    assert_eq!(
        value("meta", "confState"),
        r#"{"voters":[7,161],"auto_leave":false}"#
    );
    assert_eq!(value("meta", "storageVersion"), "3.6.0");
    assert_eq!(value("meta", "consistent_index"), "\0\0\0\0\0\0\0\x28");
    assert_eq!(
        value("cluster", "downgrade"),
        r#"{"target-version":"3.5.0","enabled":true}"#
    );
    assert_eq!(value("members_removed", "b2"), "removed");
    assert_eq!(value("auth", "authEnabled"), "\x01");
    assert_eq!(value("alarm", "\x08\x07\x10\x02"), "");
    let leases: Vec<_> = raw.bucket("lease").keys().cloned().collect();
    assert_eq!(leases, [1_i64, 5, -3].map(|id| id.to_be_bytes().to_vec()));
    let records: Vec<_> = raw.bucket("key").keys().cloned().collect();
    assert_eq!(records[3], b"\0\0\0\0\0\0\0\x04_\0\0\0\0\0\0\0\0t");
}

#[test]
fn an_empty_store_has_all_buckets() {
    let file = file(&Memory::default());
    assert_eq!(Raw::of(file.clone()).0.len(), 10);
    assert_eq!(read(&open(&file)).unwrap(), Memory::default());
}

#[test]
fn buckets_that_old_versions_lack_are_empty() {
    let mut raw = Raw::of(file(&sample()));
    let records = read(&open(&raw.file())).unwrap().records;
    raw.0.retain(|name, _| name == b"key" || name == b"meta");
    let meta = raw.bucket("meta");
    for key in ["term", "confState"] {
        meta.remove(key.as_bytes()).unwrap();
    }
    // As etcd 3.5 leaves it while it is upgraded.
    meta.insert(b"storageVersion".into(), vec![]);
    let read = read(&open(&raw.file())).unwrap();
    let meta = Meta {
        consistent_index: Some(40),
        ..Meta::default()
    };
    let wanted = Memory {
        records,
        meta,
        ..Memory::default()
    };
    assert_eq!(read, wanted);
}

#[test]
fn what_is_not_known_is_listed_and_not_lost() {
    let mut raw = Raw::of(file(&sample()));
    raw.bucket("test").insert(b"k".into(), b"v".into());
    raw.bucket("meta").insert(b"new".into(), b"v".into());
    let file = raw.file();
    let store = open(&file);
    let wanted = [
        Unknown::Bucket {
            name: b"test".into(),
        },
        Unknown::Key {
            bucket: "meta",
            key: b"new".into(),
        },
    ];
    assert_eq!(store.unknown().unwrap(), wanted);
    read(&store).unwrap();
    let lost = Rewrite::new(&store, RewriteOptions::default()).unwrap_err();
    assert!(matches!(lost, StoreError::UnknownLost { .. }));
    assert_eq!(
        lost.to_string(),
        "bucket \"test\" is not known here and would be lost"
    );
}

#[test]
fn contents_out_of_order_are_refused() {
    let refused = |change: fn(&mut Memory)| {
        let mut contents = sample();
        change(&mut contents);
        export_layout(&contents).unwrap_err()
    };
    let order = |error| matches!(error, StoreError::Bolt(BoltError::ItemOrder { .. }));
    assert!(order(refused(|contents| contents.leases.swap(0, 1))));
    assert!(order(refused(|contents| contents.users.swap(0, 1))));
    assert!(order(refused(|contents| contents.roles.swap(0, 1))));
    assert!(order(refused(|contents| contents.removed.push(3))));
    let twice = AlarmMember {
        member_id: 7,
        alarm: 1,
    };
    contents_with_alarm(twice);
    let fault = |error| match error {
        StoreError::Item { fault, .. } => fault,
        other => panic!("{other}"),
    };
    let swapped = fault(refused(|contents| contents.records.swap(0, 1)));
    assert!(matches!(
        swapped,
        ItemFault::RevisionOrder { main: 3, sub: 0 }
    ));
    let both = fault(refused(|contents| {
        contents.records.insert(0, (2, 0, true, vec![]));
    }));
    assert!(matches!(both, ItemFault::RevisionOrder { main: 2, sub: 0 }));
    let zero = fault(refused(|contents| contents.records[0].0 = 0));
    assert!(matches!(zero, ItemFault::RevisionRange { main: 0, sub: 0 }));
}

fn contents_with_alarm(alarm: AlarmMember) {
    let mut contents = sample();
    contents.alarms.push(alarm);
    assert!(export_layout(&contents).is_err());
}

#[test]
fn contents_that_change_between_the_passes_are_refused() {
    let mut contents = sample();
    let layout = export_layout(&contents).unwrap();
    contents.records[4].3 = put("a", 5, 5, 1, &"longer".repeat(2_000));
    let changed = export(&contents, layout, Vec::new()).unwrap_err();
    assert!(matches!(
        changed,
        StoreError::Bolt(BoltError::ContentsChanged { .. })
    ));
}

#[test]
fn an_error_of_the_contents_comes_back() {
    let mut contents = sample();
    contents.leases = vec![Lease::default(); 2];
    let error = export_layout(&contents).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bucket \"lease\", item 1: its key does not sort after the key before it"
    );
}
