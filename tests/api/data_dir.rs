//! Data directories that cannot be used: each is refused with a message that says what is wrong, and none is changed.

use crate::support::{Exit, Kind, Server, Setup, only_quorate_has, run_to_exit};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// A value that does not occur in a file by chance.
const MARKER: &[u8] = b"a-value-to-be-found-on-the-disk-7c1e93d05b";
/// The value that is written last.
const LAST: &[u8] = b"the last of all values of this test";
const FLUSH_MAX: Duration = Duration::from_secs(30);

/// Starts on `server`'s directory, which must be refused without a panic.
async fn refusal(server: &Server) -> String {
    let Exit { status, output } = run_to_exit(server.command()).await;
    assert!(
        !status.success(),
        "a refusal is no success; output:\n{output}"
    );
    assert!(
        status.code().is_some(),
        "a refusal is no crash: {status}; output:\n{output}"
    );
    assert!(
        !output.contains("panicked at"),
        "a refusal is no panic:\n{output}"
    );
    output
}

fn stopped() -> Server {
    Server::new(Kind::Quorate, Setup::default())
}

#[track_caller]
fn names(output: &str, parts: &[&str]) {
    for part in parts {
        assert!(output.contains(part), "expected `{part}` in:\n{output}");
    }
}

#[tokio::test]
async fn a_file_is_no_data_directory() {
    if only_quorate_has("the refusal's text") {
        return;
    }
    let server = stopped();
    fs::write(server.data_dir(), "precious").unwrap();
    let output = refusal(&server).await;
    names(
        &output,
        &[server.data_dir().to_str().unwrap(), "is not a directory"],
    );
    assert_eq!(
        fs::read_to_string(server.data_dir()).unwrap(),
        "precious",
        "it is left alone"
    );
    let below = stopped().on(server.data_dir().join("below"));
    names(
        &refusal(&below).await,
        &[below.data_dir().to_str().unwrap()],
    );
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named() {
    if only_quorate_has("the refusal's text") {
        return;
    }
    // Not even root can create files in /proc.
    let server = stopped().on("/proc/quorate-data");
    names(
        &refusal(&server).await,
        &["cannot create data directory /proc/quorate-data"],
    );
    let server = stopped().on("/proc");
    names(
        &refusal(&server).await,
        &["/proc is no data directory of a member"],
    );
}

#[tokio::test]
async fn a_second_process_is_refused_and_the_first_goes_on() {
    if only_quorate_has("the refusal's text") {
        return;
    }
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", "1").await;
    let second = stopped().on(server.data_dir());
    let output = refusal(&second).await;
    names(
        &output,
        &[
            server.data_dir().to_str().unwrap(),
            "in use by another process",
        ],
    );
    assert_eq!(client.must_put("k", "2").await, 3);
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "seg")
}

/// Where the marker starts in each file of the log, or of the rest, that has it.
fn marked(server: &Server, log: bool) -> Vec<(PathBuf, Vec<usize>)> {
    places_of(server, MARKER, log)
}

/// Where `value` starts in each file of the log, or of the rest, that has it.
fn places_of(server: &Server, value: &[u8], log: bool) -> Vec<(PathBuf, Vec<usize>)> {
    let mut found = Vec::new();
    for path in files(server.data_dir())
        .into_iter()
        .filter(|path| is_log(path) == log)
    {
        let bytes = fs::read(&path).unwrap();
        let all = bytes.windows(value.len()).enumerate();
        let places: Vec<_> = all
            .filter(|(_, window)| *window == value)
            .map(|(at, _)| at)
            .collect();
        if !places.is_empty() {
            found.push((path, places));
        }
    }
    found
}

/// Flips one bit in each of the places; a second call undoes the first.
fn flip(places: &[(PathBuf, Vec<usize>)]) {
    for (path, places) in places {
        let mut bytes = fs::read(path).unwrap();
        for at in places {
            bytes[at + MARKER.len() / 2] ^= 0x10;
        }
        fs::write(path, bytes).unwrap();
    }
}

/// Waits until the database holds `value`.
async fn stored(server: &Server, value: &[u8]) {
    let found = async {
        while places_of(server, value, false).is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(FLUSH_MAX, found)
        .await
        .expect("the database gets what was applied");
}

/// A killed server with the marker in the middle of what it wrote. In the database it is in a commit before the newest: damage
/// to the newest one alone is repaired from the log.
async fn with_marker(in_database: bool) -> Server {
    let mut server = Server::start().await;
    let client = server.client().await;
    for number in 0..100 {
        client.must_put(format!("before{number}"), "v").await;
    }
    client.must_put("marked", MARKER).await;
    if in_database {
        stored(&server, MARKER).await;
    }
    for number in 0..99 {
        client.must_put(format!("after{number}"), "v").await;
    }
    client.must_put("after99", LAST).await;
    if in_database {
        stored(&server, LAST).await;
    }
    server.kill().await;
    server
}

/// Once the bits are restored, all data can be read: the refused start has changed nothing.
async fn is_whole(server: &mut Server) {
    server.restart().await;
    let client = server.client().await;
    assert_eq!(client.revision().await, 202);
    let kv = client
        .range(crate::support::get("marked"))
        .await
        .unwrap()
        .kvs
        .remove(0);
    assert_eq!((kv.value.as_ref(), kv.mod_revision), (MARKER, 102));
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_stops_the_start() {
    if only_quorate_has("the refusal's text") {
        return;
    }
    let mut server = with_marker(false).await;
    let places = marked(&server, true);
    assert_eq!(
        places.len(),
        1,
        "one put is one entry in one segment: {places:?}"
    );
    flip(&places);
    let output = refusal(&server).await;
    let segment = places[0].0.file_name().unwrap().to_str().unwrap();
    names(
        &output,
        &[segment, "is damaged at byte", "restore a backup"],
    );
    flip(&places);
    is_whole(&mut server).await;
}

#[tokio::test]
async fn a_flipped_bit_in_the_database_stops_the_start() {
    if only_quorate_has("the refusal's text") {
        return;
    }
    let mut server = with_marker(true).await;
    let places = marked(&server, false);
    flip(&places);
    let output = refusal(&server).await;
    names(
        &output,
        &[
            places[0].0.file_name().unwrap().to_str().unwrap(),
            "is damaged",
        ],
    );
    flip(&places);
    is_whole(&mut server).await;
}

#[tokio::test]
async fn a_log_of_a_newer_version_is_refused_with_both_versions() {
    if only_quorate_has("the refusal's text") {
        return;
    }
    let mut server = with_marker(false).await;
    let segments: Vec<_> = files(server.data_dir())
        .into_iter()
        .filter(|path| is_log(path))
        .collect();
    assert!(!segments.is_empty(), "a log has a segment");
    // The header of docs/format.md: magic, format, …, and a checksum of the first 60 bytes.
    let set_format = |format: u32| {
        for path in &segments {
            let mut bytes = fs::read(path).unwrap();
            bytes[8..12].copy_from_slice(&format.to_le_bytes());
            let checksum = crc32c::crc32c(&bytes[..60]);
            bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
            fs::write(path, bytes).unwrap();
        }
    };
    set_format(41);
    names(&refusal(&server).await, &["has format 41", "newer than 3"]);
    set_format(1);
    is_whole(&mut server).await;
}

#[tokio::test]
async fn a_torn_end_of_the_log_is_cut_and_nothing_acknowledged_goes() {
    if only_quorate_has("the log's file names") {
        return;
    }
    let mut server = with_marker(false).await;
    let (path, places) = marked(&server, true).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("a log is not empty")
        + 1;
    assert!(places[0] < end, "the marker is before the end");
    // A crash can leave the first bytes of a batch that was never acknowledged, after the last complete batch.
    let start = end.next_multiple_of(4096);
    if start + 64 <= bytes.len() {
        bytes[start..start + 16].copy_from_slice(b"QWB\x01torn torn to");
        fs::write(&path, bytes).unwrap();
    }
    is_whole(&mut server).await;
}

#[tokio::test]
async fn a_data_directory_is_created_with_its_parents_and_for_the_owner_alone() {
    if only_quorate_has("the directory's mode") {
        return;
    }
    let home = stopped();
    let mut server = stopped().on(home.home().join("some/where/new"));
    server.restart().await;
    assert_eq!(server.client().await.must_put("k", "v").await, 2);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(server.data_dir()).unwrap().permissions(),
    );
    assert_eq!(
        mode & 0o077,
        0,
        "mode {mode:o}: what is stored is nobody else's"
    );
}
