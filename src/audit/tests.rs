//! Lines, the queue's bound, and files.

use super::{
    entry::{Entry, OPS_MAX},
    file::RotatedFile,
    queue::{QUEUE_BYTES_MAX, Queue},
    *,
};
use serde_json::Value;
use std::{fs, net::SocketAddr, path::Path, time::Duration};

fn call(method: &'static str, kind: Kind) -> Call {
    let peer = SocketAddr::from(([10, 0, 0, 7], 50_312));
    Call::new(method, kind, Some(&"u".into()), Some(peer))
}

fn refused() -> Ended {
    Ended {
        code: "PermissionDenied",
        refused: Some("permission denied"),
    }
}

fn parsed(audit: &Audit) -> Vec<Value> {
    let texts = audit.take_texts();
    texts
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_line_is_one_json_object() {
    let audit = Audit::unwritten(Level::All);
    let line = audit.line(call("/etcdserverpb.KV/Put", Kind::Change));
    line.about(|| Subject {
        lease: 7,
        ..Subject::of_range(b"a\n\"1", b"")
    });
    line.about(Subject::default);
    line.at(12);
    line.close(&Ended::OK);
    line.close(&refused());
    drop(line);
    let texts = audit.take_texts();
    assert_eq!(texts.len(), 1, "once: {texts:?}");
    assert_eq!(texts[0].matches('\n').count(), 1, "one line");
    let line: Value = serde_json::from_str(&texts[0]).unwrap();
    for (field, expected) in [
        ("id", Value::from(1)),
        ("member", "1".into()),
        ("user", "u".into()),
        ("peer", "10.0.0.7:50312".into()),
        ("method", "/etcdserverpb.KV/Put".into()),
        ("key", "a\n\"1".into()),
        ("lease", 7.into()),
        ("code", "OK".into()),
        ("revision", 12.into()),
    ] {
        assert_eq!(line[field], expected, "{field}");
    }
    assert!(line.get("refused").is_none() && line.get("range_end").is_none());
    let ts = line["ts"].as_str().unwrap();
    assert!(ts.len() == 27 && ts.ends_with('Z'), "{ts}");
}

#[test]
fn a_certificate_without_a_name_is_not_shown() {
    let audit = Audit::unwritten(Level::All);
    for name in ["client", ""] {
        let call = call("m", Kind::Read).certified(Some(&name.into()));
        audit.line(call).close(&Ended::OK);
    }
    let lines = parsed(&audit);
    assert_eq!(
        (&lines[0]["user"], &lines[0]["cn"]),
        (&"u".into(), &"client".into())
    );
    assert!(lines[1].get("cn").is_none());
}

#[test]
fn keys_that_are_no_text_or_long_are_shown_in_part() {
    let audit = Audit::unwritten(Level::All);
    let long = "ü".repeat(600);
    for (key, end) in [(&b"\xff\0"[..], &b"\0"[..]), (long.as_bytes(), b"")] {
        let line = audit.line(call("m", Kind::Read));
        line.about(|| Subject::of_range(key, end));
        line.close(&Ended::OK);
    }
    let lines = parsed(&audit);
    assert_eq!(lines[0]["key_base64"], "/wA=");
    assert_eq!(lines[0]["range_end"], "\0");
    assert_eq!(lines[1]["key"], "ü".repeat(512));
    assert_eq!(lines[1]["key_bytes"], 1_200);
}

#[test]
fn a_transaction_shows_its_first_operations() {
    let audit = Audit::unwritten(Level::Writes);
    let line = audit.line(call("/etcdserverpb.KV/Txn", Kind::Change));
    line.about(|| {
        let mut txn = TxnSubject {
            compares: 3,
            ..TxnSubject::default()
        };
        for number in 0..100 {
            txn.add("put", format!("k{number}").as_bytes(), b"");
        }
        Subject {
            txn: Some(txn),
            ..Subject::default()
        }
    });
    drop(line);
    let lines = parsed(&audit);
    assert_eq!(lines[0]["compares"], 3);
    assert_eq!(lines[0]["ops"].as_array().unwrap().len(), OPS_MAX);
    assert_eq!(lines[0]["ops"][1]["key"], "k1");
    assert_eq!(lines[0]["ops_left_out"], 36);
    assert_eq!(lines[0]["code"], "Canceled", "it was not closed");
}

#[test]
fn the_level_says_what_is_in_the_log() {
    let refused = refused();
    for (level, expected) in [(Level::Auth, 4), (Level::Writes, 5), (Level::All, 7)] {
        let audit = Audit::unwritten(level);
        for kind in [Kind::Read, Kind::Change, Kind::Auth] {
            audit.line(call("m", kind)).close(&Ended::OK);
            audit.line(call("m", kind)).close(&refused);
        }
        // A transaction that only reads.
        let line = audit.line(call("m", Kind::Change));
        line.reads();
        line.close(&Ended::OK);
        assert_eq!(parsed(&audit).len(), expected, "{level:?}");
    }
}

fn entry(key_bytes: usize) -> Entry {
    Entry {
        at: Duration::from_secs(1),
        id: 1,
        duration: Duration::ZERO,
        call: call("m", Kind::Change),
        subject: Subject::of_range(&vec![b'k'; key_bytes], b""),
        ended: Ended::OK,
        revision: 0,
    }
}

/// A line whose texts a client has chosen, as long as they can be.
fn long_entry() -> Entry {
    let long = || "ü".repeat(32_000);
    let call = Call::new("m", Kind::Change, Some(&long().into()), None);
    let call = call.certified(Some(&long().into()));
    Entry {
        call: call.of_unknown(&format!("/{}", long())),
        subject: Subject {
            target_user: Some(long().as_str().into()),
            role: Some(long().as_str().into()),
            other: Some(("peer_urls", long().as_str().into())),
            ..entry(0).subject
        },
        ..entry(0)
    }
}

#[test]
fn names_and_paths_that_clients_choose_are_cut_and_counted() {
    let (short, long) = (entry(0), long_entry());
    let shown = 255 + 5 * 1_024;
    // The user of the short one has a name too.
    assert_eq!(long.bytes(), short.bytes() - "u".len() + shown);
    let line: Value = serde_json::from_str(&text::of(&long, "1")).unwrap();
    assert_eq!(line["method"], format!("/{}", "ü".repeat(127)));
    for field in ["user", "cn", "target_user", "role", "peer_urls"] {
        assert_eq!(line[field], "ü".repeat(512), "{field}");
    }
    assert_eq!(line["target_user_bytes"], 64_000);
    assert_eq!(line["role_bytes"], 64_000);
}

#[test]
fn a_full_queue_drops_lines_and_counts_them() {
    let queue = Queue::default();
    let fit = QUEUE_BYTES_MAX / entry(1_000).bytes();
    for _ in 0..fit + 5 {
        queue.push(entry(1_000));
    }
    assert_eq!(queue.counts().dropped(), 5);
    let taken = queue.wait().unwrap();
    assert_eq!((taken.lines.len(), taken.dropped), (fit, 5));
    queue.push(entry(1_000));
    let taken = queue.wait().unwrap();
    assert_eq!((taken.lines.len(), taken.dropped), (1, 0), "there is room");
    queue.push(entry(1));
    queue.close();
    assert_eq!(queue.wait().unwrap().lines.len(), 1, "what is there first");
    assert!(queue.wait().is_none(), "the end");
}

fn numbers(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_full_file_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let limits = FileLimits {
        bytes_max: 10,
        files_max: 3,
    };
    let mut file = RotatedFile::open(&path, limits).unwrap();
    file.write("1\n2\n3\n4\n5\n6\n7\n").unwrap();
    let numbered = |number: usize| dir.path().join(format!("audit.log.{number}"));
    assert_eq!(numbers(&path), ["6", "7"]);
    assert_eq!(numbers(&numbered(1)), ["1", "2", "3", "4", "5"]);
    // A line that is longer than a file gets one of its own.
    file.write("a line of its own\n8\n").unwrap();
    assert_eq!(numbers(&path), ["8"]);
    assert_eq!(numbers(&numbered(1)), ["a line of its own"]);
    assert_eq!(numbers(&numbered(2)), ["6", "7"]);
    // A crash between two renames.
    drop(file);
    fs::remove_file(numbered(1)).unwrap();
    let mut file = RotatedFile::open(&path, limits).unwrap();
    file.write("9\n10\n11\n12\n").unwrap();
    assert_eq!(numbers(&numbered(1)), ["8", "9", "10", "11"], "it goes on");
    assert_eq!(numbers(&path), ["12"]);
    assert!(!numbered(3).exists());
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_line_that_was_cut_off_is_ended_before_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    fs::write(&path, "1\n2").unwrap();
    let limits = FileLimits {
        bytes_max: 100,
        files_max: 3,
    };
    RotatedFile::open(&path, limits)
        .unwrap()
        .write("3\n")
        .unwrap();
    RotatedFile::open(&path, limits)
        .unwrap()
        .write("4\n")
        .unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "1\n2\n3\n4\n");
}

/// Waits until the writer has written, however slow the machine is.
fn flush(audit: &Audit) {
    audit.flush(Duration::from_mins(1));
}

#[test]
fn what_could_not_be_written_is_said_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("logs");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("audit.log");
    let limits = FileLimits {
        // Each line makes a new file, which the missing folder prevents.
        bytes_max: 1,
        files_max: 2,
    };
    let output = Output::File(path.clone(), limits);
    let audit = Audit::start(Level::All, output.open().unwrap(), 0xab).unwrap();
    let log = |audit: &Audit| {
        audit.line(call("m", Kind::Read)).close(&Ended::OK);
        flush(audit);
    };
    log(&audit);
    assert_eq!(audit.counts().written(), 1);
    fs::remove_dir_all(&folder).unwrap();
    log(&audit);
    log(&audit);
    assert_eq!((audit.counts().written(), audit.counts().dropped()), (1, 2));
    fs::create_dir(&folder).unwrap();
    log(&audit);
    assert_eq!(audit.counts().written(), 2);
    let gap = numbers(&folder.join("audit.log.1"));
    let gap: Value = serde_json::from_str(&gap[0]).unwrap();
    assert_eq!((&gap["dropped"], &gap["member"]), (&2.into(), &"ab".into()));
    assert_eq!(numbers(&path).len(), 1);
}

/// They went into the deleted file and counted as written.
#[test]
fn lines_for_a_file_that_was_deleted_are_dropped_until_there_is_one_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("logs");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("audit.log");
    let limits = FileLimits {
        bytes_max: 10_000,
        files_max: 2,
    };
    let output = Output::File(path.clone(), limits).open().unwrap();
    let audit = Audit::start(Level::All, output, 0xab).unwrap();
    let log = |audit: &Audit| {
        audit.line(call("m", Kind::Read)).close(&Ended::OK);
        flush(audit);
    };
    log(&audit);
    assert_eq!(audit.counts().written(), 1);
    fs::remove_dir_all(&folder).unwrap();
    audit.look_at_file();
    flush(&audit);
    log(&audit);
    log(&audit);
    assert_eq!((audit.counts().written(), audit.counts().dropped()), (1, 2));
    fs::create_dir(&folder).unwrap();
    log(&audit);
    assert_eq!(audit.counts().written(), 2);
    let lines = numbers(&path);
    let gap: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!((&gap["dropped"], lines.len()), (&2.into(), 2));
}

#[test]
fn a_file_that_cannot_be_opened_is_named_at_the_start() {
    let limits = FileLimits {
        bytes_max: 1,
        files_max: 2,
    };
    let output = Output::File("/nowhere/audit.log".into(), limits);
    let error = output.open().unwrap_err().to_string();
    assert!(error.contains("/nowhere/audit.log"), "{error}");
}

/// Without a line that would make the writer look.
#[test]
fn the_writer_looks_at_its_file_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let limits = FileLimits {
        bytes_max: 10_000,
        files_max: 2,
    };
    let output = Output::File(path.clone(), limits).open().unwrap();
    let audit = Audit::start(Level::All, output, 1).unwrap();
    audit.line(call("m", Kind::Read)).close(&Ended::OK);
    flush(&audit);
    let moved = dir.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    audit.look_at_file();
    flush(&audit);
    assert_eq!((numbers(&path).len(), numbers(&moved).len()), (0, 1));
    assert!(path.exists());
    audit.line(call("m", Kind::Read)).close(&Ended::OK);
    flush(&audit);
    assert_eq!((numbers(&path).len(), numbers(&moved).len()), (1, 1));
}
