//! What is changed while a store is written again.

use crate::support::{Memory, Raw, file, open, read, sample};
use quorate_etcd_files::store::{
    Bump, REVISION_MAX, Rewrite, RewriteOptions, StoreError, hash_kv, status,
};

fn bump(by: u64, mark_compacted: bool) -> RewriteOptions {
    RewriteOptions {
        bump: Some(Bump { by, mark_compacted }),
        ..RewriteOptions::default()
    }
}

fn rewritten(store: &Memory, options: RewriteOptions) -> Result<Memory, StoreError> {
    let before = file(store);
    let store = open(&before);
    let after = file(&Rewrite::new(&store, options)?);
    let store = open(&after);
    store.verify_histories()?;
    read(&store)
}

#[test]
fn a_bump_adds_a_mark_and_schedules_a_compaction() {
    let same = rewritten(&sample(), bump(0, true)).unwrap();
    let mut wanted = same.clone();
    wanted.records.push((1_005, 0, false, vec![]));
    assert_eq!(rewritten(&sample(), bump(1_000, false)).unwrap(), wanted);
    wanted.meta.scheduled_compaction = Some(1_005);
    let bumped = rewritten(&sample(), bump(1_000, true)).unwrap();
    assert_eq!(bumped, wanted);
    // Once more, as after a second restore.
    let again = rewritten(&bumped, bump(5, true)).unwrap();
    wanted.records.push((1_010, 0, false, vec![]));
    wanted.meta.scheduled_compaction = Some(1_010);
    assert_eq!(again, wanted);
    let file = file(&again);
    let store = open(&file);
    let marks = store
        .records()
        .unwrap()
        .filter(|record| record.as_ref().unwrap().is_bump());
    assert_eq!(marks.count(), 2);
    // The mark counts as a key in etcd's tools.
    assert_eq!(status(store.image()).unwrap().total_keys, 3);
    assert_eq!(hash_kv(&store, 0).unwrap().current_revision, 1_010);
}

#[test]
fn a_bump_never_lowers_the_revision() {
    let mut store = sample();
    store.meta.finished_compaction = Some(50);
    let bumped = rewritten(&store, bump(10, true)).unwrap();
    assert_eq!(bumped.records.last().unwrap().0, 60);
    assert_eq!(bumped.meta.scheduled_compaction, Some(60));
}

#[test]
fn a_bump_that_overflows_is_refused() {
    let most = REVISION_MAX.unsigned_abs() - 5;
    let bumped = rewritten(&sample(), bump(most, true)).unwrap();
    assert_eq!(bumped.records.last().unwrap().0, REVISION_MAX);
    for by in [most + 1, i64::MAX.unsigned_abs(), u64::MAX] {
        let error = rewritten(&sample(), bump(by, true)).unwrap_err();
        assert!(
            matches!(error, StoreError::BumpTooLarge { newest: 5, .. }),
            "{error}"
        );
    }
}

#[test]
fn alarms_of_missing_members_can_be_dropped() {
    let options = RewriteOptions {
        drop_alarms_of_missing_members: true,
        ..RewriteOptions::default()
    };
    let alarms = rewritten(&sample(), options).unwrap().alarms;
    assert_eq!(alarms.len(), 2);
    assert!(alarms.iter().all(|alarm| alarm.member_id == 7));
    let all = rewritten(&sample(), RewriteOptions::default())
        .unwrap()
        .alarms;
    assert_eq!(all.len(), 3);
}

#[test]
fn fields_of_json_that_are_not_known_are_not_lost() {
    let cases = [
        ("members", "7"),
        ("meta", "confState"),
        ("cluster", "downgrade"),
    ];
    for (bucket, key) in cases {
        let with = |field: &str| {
            let mut raw = Raw::of(file(&sample()));
            let value = raw.bucket(bucket).get_mut(key.as_bytes()).unwrap();
            assert_eq!(value.pop(), Some(b'}'));
            value.extend_from_slice(field.as_bytes());
            let file = raw.file();
            Rewrite::new(&open(&file), RewriteOptions::default()).map(drop)
        };
        with("}").unwrap();
        with(r#","zone":null}"#).unwrap();
        let error = with(r#","zone":"a"}"#).unwrap_err().to_string();
        let what = format!(r#"bucket "{bucket}", key "{key}", field "zone" is not known here"#);
        assert!(error.starts_with(&what), "{error}");
    }
}
