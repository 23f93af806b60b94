//! Stores with one fault each: the error says where it is and what is wrong.

use crate::support::{Raw, deletion, file, open, put, read, sample};
use quorate_etcd_files::{
    bolt::Image,
    store::{Store, StoreError},
};

/// The text of the error that a store has after a change of its items.
fn error(change: impl FnOnce(&mut Raw)) -> String {
    let mut raw = Raw::of(file(&sample()));
    change(&mut raw);
    let file = raw.file();
    let store = match Store::open(Image::open(file.as_slice()).unwrap()) {
        Ok(store) => store,
        Err(error) => return error.to_string(),
    };
    let error = match read(&store) {
        Ok(_) => store.verify_histories().unwrap_err(),
        Err(error) => error,
    };
    error.to_string()
}

/// The error of a store with this item.
fn error_with(bucket: &str, key: &[u8], value: &[u8]) -> String {
    error(|raw| {
        raw.bucket(bucket).insert(key.into(), value.into());
    })
}

fn revision(main: u8, sub: u8) -> Vec<u8> {
    [&[0; 7][..], &[main], b"_", &[0; 7], &[sub]].concat()
}

fn tombstone(main: u8, sub: u8) -> Vec<u8> {
    [revision(main, sub).as_slice(), b"t"].concat()
}

#[test]
fn buckets_that_every_etcd_has_are_needed() {
    for bucket in ["key", "meta"] {
        let text = error(|raw| drop(raw.0.remove(bucket.as_bytes())));
        let wanted = format!(
            "bucket \"{bucket}\" is missing: the file is a bbolt database, but not that of an etcd"
        );
        assert_eq!(text, wanted);
    }
}

#[test]
fn unknown_buckets_are_bounded() {
    let text = error(|raw| {
        for number in 0..65 {
            raw.bucket(&format!("x{number}"));
        }
    });
    assert_eq!(text, "more than 64 buckets and keys are not known here");
    let mut raw = Raw::of(file(&sample()));
    for number in 0..65 {
        raw.bucket("meta")
            .insert(format!("x{number}").into(), vec![]);
    }
    let file = raw.file();
    let unknown = open(&file).unknown().unwrap_err();
    assert!(matches!(unknown, StoreError::TooManyUnknown { max: 64 }));
}

#[test]
fn keys_of_records_are_revisions() {
    let with = |key: &[u8]| error_with("key", key, &put("c", 6, 6, 1, ""));
    assert_eq!(
        with(b"zz"),
        "bucket \"key\", key \"zz\": its key has 2 bytes, but a revision has 17, and that of a deletion 18"
    );
    let mut key = revision(6, 0);
    key[8] = b'-';
    assert!(with(&key).ends_with("byte 8 of its key is 0x2d, but a revision has '_' there"));
    key = tombstone(6, 0);
    key[17] = b'x';
    assert!(with(&key).ends_with("the last byte of its key is 0x78, but a deletion has 't' there"));
    let range = "is out of range: main is from 1 to 2^63 - 1, sub less than 2^32";
    assert!(with(&revision(0, 0)).ends_with(range));
    key = revision(6, 0);
    key[0] = 0x80;
    assert!(with(&key).ends_with(range));
    key = revision(6, 0);
    key[12] = 1;
    assert!(with(&key).ends_with(range));
    assert_eq!(
        error_with("key", &tombstone(5, 0), &deletion("a")),
        "bucket \"key\", revision 5.0: it does not come after revision 5.0, the record before it"
    );
}

#[test]
fn values_of_records_are_those_of_etcd() {
    let with = |value: &[u8]| error_with("key", &revision(6, 0), value);
    assert!(with(b"\x0a\x05k").starts_with(
        "bucket \"key\", revision 6.0: not a valid KeyValue: failed to decode Protobuf message"
    ));
    let unknown = [put("c", 6, 6, 1, "").as_slice(), b"\x40\x01"].concat();
    assert!(with(&unknown).ends_with("is not encoded as etcd encodes it"));
    assert!(with(&put("", 6, 6, 1, "v")).ends_with("the key of the user is empty"));
    assert_eq!(
        with(&put("c", 7, 7, 1, "")),
        "bucket \"key\", revision 6.0: its value says that it was written at revision 7"
    );
    assert_eq!(
        with(&put("c", 6, 6, 2, "")),
        "bucket \"key\", revision 6.0: version 2 of a key that was created at 6 is not possible at 6"
    );
    let deleted = |value: &[u8]| error_with("key", &tombstone(6, 0), value);
    assert!(deleted(&put("a", 6, 5, 2, "")).ends_with("but its value has more than a key"));
    let empty = "its value is empty, which only the mark of a bumped revision is";
    assert!(deleted(b"").ends_with(empty));
    assert!(error_with("key", &revision(5, 1), b"").ends_with(empty));
}

#[test]
fn histories_fit_together() {
    let with = |value: &[u8]| error_with("key", &revision(6, 0), value);
    assert_eq!(
        with(&put("a", 6, 4, 2, "")),
        "bucket \"key\", revision 6.0: key \"a\": version 2, created at 4, follows version 1, created at 5"
    );
    assert!(with(&put("b", 6, 3, 3, "")).contains("follows version 1, created at 3"));
    assert!(with(&put("b", 6, 6, 1, "")).contains("follows version 1, created at 3"));
    assert_eq!(
        with(&put("c", 6, 5, 2, "")),
        "bucket \"key\", revision 6.0: key \"c\": version 2 has no version before it, and none was compacted"
    );
    assert_eq!(
        error_with("key", &tombstone(6, 0), &deletion("c")),
        "bucket \"key\", revision 6.0: key \"c\" is deleted, but does not exist"
    );
    // A key that was deleted begins anew.
    let removed = |key: &[u8]| error(|raw| drop(raw.bucket("key").remove(key)));
    assert!(removed(&tombstone(4, 0)).contains("record 4.0 should come before it, but is missing"));
    assert!(removed(&revision(3, 0)).contains("record 3.0 should come before it, but is missing"));
    assert!(removed(&revision(2, 0)).contains("record 2.0 should come before it, but is missing"));
    assert!(error_with("key", &revision(5, 2), &put("c", 5, 5, 1, "")).contains("record 5.1"));
}

#[test]
fn compaction_explains_what_is_missing() {
    let mut raw = Raw::of(file(&sample()));
    for key in [revision(2, 0), revision(3, 0)] {
        raw.bucket("key").remove(&key).unwrap();
    }
    raw.bucket("meta")
        .insert(b"finishedCompactRev".into(), revision(4, 0));
    open(&raw.file()).verify_histories().unwrap();
    raw.bucket("key").remove(&tombstone(4, 0)).unwrap();
    open(&raw.file()).verify_histories().unwrap();
    raw.bucket("key").remove(&revision(5, 0)).unwrap();
    raw.bucket("key")
        .insert(revision(6, 0), put("a", 6, 6, 1, ""));
    let gap = open(&raw.file()).verify_histories().unwrap_err();
    assert!(gap.to_string().contains("record 5.0 should come before it"));
}

#[test]
fn values_of_fixed_keys_are_verified() {
    let with = |key: &str, value: &[u8]| error_with("meta", key.as_bytes(), value);
    assert_eq!(
        with("consistent_index", b"123"),
        "bucket \"meta\", key \"consistent_index\": it has 3 bytes, but 8 are needed"
    );
    assert!(with("term", b"").ends_with("it has 0 bytes, but 8 are needed"));
    assert!(with("confState", b"{").contains("key \"confState\": not a valid ConfState: EOF"));
    assert_eq!(
        with("storageVersion", b"3.6"),
        "bucket \"meta\", key \"storageVersion\": \"3.6\" is not a version, such as 3.6.0"
    );
    for key in ["scheduledCompactRev", "finishedCompactRev"] {
        assert!(with(key, &revision(4, 1)).contains("revision 4.1 is out of range"));
        assert!(with(key, &tombstone(4, 0)).contains("is out of range"));
        assert!(with(key, b"").contains("its key has 0 bytes"));
    }
    let with = |key: &str, value: &[u8]| error_with("auth", key.as_bytes(), value);
    assert!(with("authEnabled", b"\x02").ends_with("2 is neither 0 nor 1"));
    assert!(with("authEnabled", b"").ends_with("it has 0 bytes, but 1 are needed"));
    assert!(with("authRevision", b"1").ends_with("it has 1 bytes, but 8 are needed"));
    let with = |key: &str, value: &[u8]| error_with("cluster", key.as_bytes(), value);
    assert!(with("clusterVersion", b"new").ends_with("\"new\" is not a version, such as 3.6.0"));
    assert!(with("downgrade", b"[]}").contains("not a valid downgrade"));
    let target = br#"{"target-version":"x","enabled":true}"#;
    assert!(with("downgrade", target).ends_with("\"x\" is not a version, such as 3.6.0"));
}

#[test]
fn values_belong_to_their_keys() {
    let lease = error_with("lease", &9_u64.to_be_bytes(), b"\x08\x0a\x10\x01");
    assert!(lease.ends_with("the value is that of lease a"), "{lease}");
    assert!(error_with("lease", b"9", b"").ends_with("it has 1 bytes, but 8 are needed"));
    let user = error_with("authUsers", b"bob", b"\x0a\x03eve");
    assert_eq!(
        user,
        "bucket \"authUsers\", key \"bob\": the value is that of user \"eve\""
    );
    assert!(error_with("authUsers", b"bob", b"\x0a").contains("not a valid user"));
    assert!(error_with("authRoles", b"r", b"\x0a\x01s").ends_with("that of role \"s\""));
    let role = error_with("authRoles", b"r", b"\x0a\x01r\x98\x06\x00");
    assert!(
        role.ends_with("its role of 6 bytes is not encoded as etcd encodes it"),
        "{role}"
    );
    let member = error_with("members", b"9", br#"{"id":10}"#);
    assert!(
        member.ends_with("the value is that of member a"),
        "{member}"
    );
    assert!(error_with("members", b"9", b"9").contains("not a valid member"));
    let hex = "the key is not an id in hexadecimal digits, as etcd writes it";
    assert!(error_with("members", b"one", b"{}").ends_with(hex));
    assert!(error_with("members_removed", b"01", b"removed").ends_with(hex));
    assert!(error_with("alarm", b"\x08\x07\x10\x05", b"").ends_with("the unknown kind 5"));
    assert!(error_with("alarm", b"\x08\x08\x10\x01", b"x").ends_with("but this has 1 bytes"));
    assert!(
        error_with("alarm", b"x", b"").contains("bucket \"alarm\", key \"x\": not a valid alarm")
    );
}

#[test]
fn damage_of_the_file_is_an_error_of_the_file() {
    let mut file = file(&sample());
    let pages = Image::open(file.as_slice()).unwrap().pages();
    // The flags of the root page, which is the last one.
    let root = usize::try_from((pages - 1) * 4_096).unwrap();
    file[root + 8] = 0x55;
    let error = Store::open(Image::open(file.as_slice()).unwrap()).unwrap_err();
    assert!(matches!(error, StoreError::Bolt(_)), "{error}");
}
