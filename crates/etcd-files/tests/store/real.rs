//! Stores of a real etcd: read, hashed, written again, and given to etcd again.

use crate::{
    etcd::{Address, Programs, base64},
    history::{History, Random, answers},
    support::{Raw, file, read},
};
use quorate_etcd_files::{
    bolt::Image,
    store::{Bump, Rewrite, RewriteOptions, Store, hash_kv, status},
};
use serde_json::{Value, json};
use std::{
    collections::hash_map::RandomState,
    env,
    fs::{self, File},
    hash::{BuildHasher, Hasher},
    path::Path,
};

/// How many histories the normal run has.
const FEW: u64 = 3;

const REQUESTS: u64 = 120;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

#[test]
fn histories_come_back_as_they_were() {
    let Some(programs) = Programs::find("histories_come_back_as_they_were") else {
        return;
    };
    if let Some(seed) = number("SEED") {
        return check_history(&programs, seed);
    }
    let first = RandomState::new().build_hasher().finish() >> 1;
    for seed in first..first + number("HISTORIES").unwrap_or(FEW) {
        println!("SEED={seed}");
        check_history(&programs, seed);
    }
}

fn open(path: &Path) -> Store<File> {
    Store::open(Image::open(File::open(path).unwrap()).unwrap()).unwrap()
}

fn check_history(programs: &Programs, seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let [saved, written] = ["saved", "written"].map(|name| directory.path().join(name));
    let [data, restored] = ["data", "restored"].map(|name| directory.path().join(name));

    let etcd = programs.start_old(&data, &Address::new());
    let mut history = History::new(&etcd, seed);
    history.run(REQUESTS);
    let (revision, compacted) = (history.revision, history.compacted);
    etcd.save(&saved);
    let wanted = answers(&etcd, compacted.max(1));
    let has_auth = etcd.is_logged_in();
    drop(etcd);

    let store = open(&saved);
    check_contents(&store, programs.has_old());
    check_status(programs, &saved);
    check_hashes(programs, &saved, (revision, compacted), seed);
    let hash = json!({ "hash": hash_kv(&store, 0).unwrap().hash });
    if !wanted["hash"].is_null() {
        assert_contains(&wanted["hash"], &hash);
    }

    let rewrite = Rewrite::new(&store, RewriteOptions::default()).unwrap();
    fs::write(&written, file(&rewrite)).unwrap();
    assert_same_items(&saved, &written);
    let [before, after] = [&saved, &written].map(|file| check_status(programs, file));
    // Old versions lack buckets.
    if !programs.has_old() {
        assert_eq!(before["hash"], after["hash"]);
    }

    let address = Address::new();
    programs.restore(&written, &restored, &address, &[]);
    let etcd = programs.start(&restored, &address);
    if has_auth {
        etcd.log_in();
    }
    let found = answers(&etcd, compacted.max(1));
    assert_contains(&found, &wanted);
    drop(etcd);
    if seed.is_multiple_of(3) {
        check_bump(programs, &saved, directory.path(), &address, seed);
    }
}

/// Newer versions answer more.
fn assert_contains(found: &Value, wanted: &Value) {
    for (what, wanted) in wanted.as_object().unwrap() {
        match wanted {
            Value::Null => {}
            Value::Object(_) => assert_contains(&found[what], wanted),
            _ => assert_eq!(&found[what], wanted, "{what}"),
        }
    }
}

fn check_contents(store: &Store<File>, is_old: bool) {
    store.image().verify_hash().unwrap();
    store.image().check().unwrap();
    assert!(store.unknown().unwrap().is_empty());
    store.verify_histories().unwrap();
    let read = read(store).unwrap();
    assert_eq!(read.members.len(), 1);
    assert!(read.meta.consistent_index.is_some());
    if is_old {
        return;
    }
    assert!(read.meta.term.is_some() && read.meta.conf_state.is_some());
    let version = read.meta.storage_version.unwrap();
    assert!(version.starts_with("3."), "{version}");
}

/// Compares ours with that of etcdutl, and returns it.
fn check_status(programs: &Programs, path: &Path) -> Value {
    let wanted = programs.etcdutl_json(&["snapshot", "status"], path);
    let found = status(open(path).image()).unwrap();
    let found = json!({
        "hash": found.hash,
        "revision": found.revision,
        "totalKey": found.total_keys,
        "totalSize": found.total_bytes,
        "version": found.version,
    });
    assert_eq!(found, wanted);
    wanted
}

/// Compares our hashes at some revisions with those of etcdutl.
fn check_hashes(programs: &Programs, path: &Path, revisions: (i64, i64), seed: u64) {
    let store = open(path);
    let (revision, compacted) = revisions;
    // At the compacted revision etcdutl may already answer with a hash that it stored while it finished a compaction.
    let span = (revision - compacted).unsigned_abs().max(1);
    let mut random = Random(seed);
    let mut asked = vec![0, revision];
    asked.extend([(); 2].map(|()| revision - random.below(span).cast_signed()));
    for asked in asked {
        let copy = path.with_extension("copy");
        fs::copy(path, &copy).unwrap();
        let wanted = programs.etcdutl_json(&["hashkv", "--rev", &asked.to_string()], &copy);
        let found = hash_kv(&store, asked).unwrap();
        let found = json!({
            "hash": found.hash,
            "hashRevision": found.hash_revision,
            "compactRevision": found.compact_revision,
        });
        assert_eq!(found, wanted, "at {asked} of {revisions:?}");
    }
}

fn assert_same_items(one: &Path, other: &Path) {
    let [one, other] = [one, other].map(|path| Raw::of(File::open(path).unwrap()));
    for (name, items) in &one.0 {
        let shown = name.escape_ascii();
        assert_eq!(other.0.get(name), Some(items), "bucket {shown}");
    }
    // Old versions lack some that are empty.
    let more = other
        .0
        .iter()
        .filter(|(name, _)| !one.0.contains_key(*name));
    assert!(more.into_iter().all(|(_, items)| items.is_empty()));
}

/// What we bump before a restore, and what etcdutl bumps in one, is the same.
fn check_bump(programs: &Programs, saved: &Path, directory: &Path, address: &Address, seed: u64) {
    let by = 1 + seed % 1_000_000;
    let store = open(saved);
    let bump = Bump {
        by,
        mark_compacted: true,
    };
    let options = RewriteOptions {
        bump: Some(bump),
        ..RewriteOptions::default()
    };
    let rewrite = Rewrite::new(&store, options).unwrap();
    let [bumped, ours, theirs] = ["bumped", "ours", "theirs"].map(|name| directory.join(name));
    fs::write(&bumped, file(&rewrite)).unwrap();
    programs.restore(&bumped, &ours, address, &[]);
    let by = by.to_string();
    let flags = ["--bump-revision", &by, "--mark-compacted"];
    programs.restore(saved, &theirs, address, &flags);
    let [ours, theirs] = [ours, theirs].map(|data| data.join("member/snap/db"));
    assert_same_items(&theirs, &ours);
    check_status(programs, &ours);
    let found = hash_kv(&open(&ours), 0).unwrap();
    let wanted = programs.etcdutl_json(&["hashkv"], &ours);
    assert_eq!(wanted["hash"], found.hash);
    assert_eq!(wanted["compactRevision"], found.compact_revision);
}

#[test]
fn etcd_goes_on_after_a_bump() {
    let Some(programs) = Programs::find("etcd_goes_on_after_a_bump") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let [saved, bumped] = ["saved", "bumped"].map(|name| directory.path().join(name));
    let etcd = programs.start(&directory.path().join("data"), &Address::new());
    let put = json!({"key": base64(b"k"), "value": base64(b"v")});
    for _ in 0..3 {
        etcd.ask("kv/put", &put);
    }
    let member = etcd.ask("cluster/member/list", &json!({}))["members"][0]["ID"].clone();
    for member in [member, "7".into()] {
        let alarm = json!({"action": "ACTIVATE", "memberID": member, "alarm": "NOSPACE"});
        etcd.ask("maintenance/alarm", &alarm);
    }
    etcd.save(&saved);
    drop(etcd);

    let store = open(&saved);
    let options = RewriteOptions {
        bump: Some(Bump {
            by: 1_000,
            mark_compacted: true,
        }),
        drop_alarms_of_missing_members: true,
    };
    let rewrite = Rewrite::new(&store, options).unwrap();
    assert_eq!(rewrite.bumped_revision(), Some(1_004));
    fs::write(&bumped, file(&rewrite)).unwrap();
    assert_eq!(open(&bumped).alarms().unwrap().count(), 1);

    let (address, data) = (Address::new(), directory.path().join("restored"));
    programs.restore(&bumped, &data, &address, &[]);
    let etcd = programs.start(&data, &address);
    let mut get = json!({"key": base64(b"k")});
    let answer = etcd.post("kv/range", &get).unwrap();
    assert_eq!(answer["header"]["revision"], "1004");
    assert_eq!(answer["kvs"][0]["version"], "3");
    get["revision"] = "4".into();
    let error = etcd.post("kv/range", &get).unwrap_err();
    assert!(error.to_string().contains("has been compacted"), "{error}");
    // Read again what etcd made of it.
    let again = directory.path().join("again");
    etcd.save(&again);
    let store = open(&again);
    check_contents(&store, false);
    let found = hash_kv(&store, 0).unwrap();
    assert_eq!(
        etcd.ask("maintenance/hashkv", &json!({}))["hash"],
        found.hash
    );
    check_status(&programs, &again);
    // The alarm of the member that is gone blocks writes, as it was kept: its member is in the store.
    let alarms = etcd.ask("maintenance/alarm", &json!({}));
    assert_eq!(alarms["alarms"].as_array().unwrap().len(), 1);
}
