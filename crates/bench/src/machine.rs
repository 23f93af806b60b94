//! Measures the machine itself, as a bound on what a server can reach: one durable write, and one round trip.

use super::{
    BenchError,
    stats::{Recorder, Report},
};
use std::{
    fs::File,
    io::{Error, Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
};
use tokio::time::Instant;

/// One write, about what a log appends at a time.
const BLOCK_BYTES: usize = 4_096;
/// Blocks in the file, which is written through once before: a log reuses its segments.
const BLOCKS: u64 = 2_000;
/// Round trips on loopback.
const ROUND_TRIPS: u32 = 20_000;
/// Bytes sent each way, about a small request.
const PING_BYTES: usize = 128;

/// Measures `fdatasync` of a 4 KiB overwrite in `dir`, and a round trip over TCP on loopback.
pub(super) fn measure(dir: &Path) -> Result<Report, BenchError> {
    let mut report = Report::new("machine");
    let path = dir.join(format!("quorate-bench-{}.tmp", std::process::id()));
    let disk = disk(&path);
    // Whether or not the measurement succeeded, the file is not needed any more.
    std::fs::remove_file(&path).ok();
    let disk = disk.map_err(|cause| BenchError::Machine {
        what: path.display().to_string(),
        cause,
    })?;
    let loopback = loopback();
    let loopback = loopback.map_err(|cause| BenchError::Machine {
        what: "loopback".into(),
        cause,
    })?;
    report.latency("fdatasync_4k_", &disk, 0);
    report.latency("loopback_", &loopback, 0);
    Ok(report)
}

fn disk(path: &Path) -> Result<Recorder, Error> {
    let mut file = File::create_new(path)?;
    let block = [0x5a; BLOCK_BYTES];
    for _ in 0..BLOCKS {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    let mut recorder = Recorder::new(1);
    for _ in 0..BLOCKS {
        let started = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        recorder.record(0, started.elapsed());
    }
    Ok(recorder)
}

fn loopback() -> Result<Recorder, Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let echo = std::thread::Builder::new()
        .name("echo".into())
        .spawn(move || {
            let mut ping = [0; PING_BYTES];
            while far
                .read_exact(&mut ping)
                .and_then(|()| far.write_all(&ping))
                .is_ok()
            {}
        })?;
    let (mut recorder, mut ping) = (Recorder::new(1), [1; PING_BYTES]);
    for _ in 0..ROUND_TRIPS {
        let started = Instant::now();
        near.write_all(&ping)?;
        near.read_exact(&mut ping)?;
        recorder.record(0, started.elapsed());
    }
    drop(near);
    echo.join()
        .map_err(|_| Error::other("the echo thread panicked"))?;
    Ok(recorder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measuring_leaves_no_file_behind() {
        let dir = tempfile::tempdir().unwrap();
        measure(dir.path()).unwrap();
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "the file is removed"
        );
        let error = measure(&dir.path().join("missing"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("missing"), "names the directory: {error}");
    }
}
