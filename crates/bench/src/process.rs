//! CPU time and memory of server processes, from Linux's `/proc`.

use super::BenchError;
use std::time::Duration;

/// One tick of the times in `/proc/PID/stat`: Linux reports them in hundredths on every common machine.
const TICK: Duration = Duration::from_millis(10);

/// CPU time and memory of several processes, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// User and system time since the processes started.
    pub(super) cpu: Duration,
    pub(super) resident_bytes: u64,
    pub(super) peak_bytes: u64,
}

/// What the processes have used so far, summed.
pub(super) fn usage(pids: &[u32]) -> Result<Usage, BenchError> {
    let mut total = Usage::default();
    for pid in pids {
        let one = read(&pid.to_string())?;
        total.cpu += one.cpu;
        total.resident_bytes += one.resident_bytes;
        total.peak_bytes += one.peak_bytes;
    }
    Ok(total)
}

/// What this process has used so far.
pub(super) fn own_usage() -> Result<Usage, BenchError> {
    read("self")
}

fn read(pid: &str) -> Result<Usage, BenchError> {
    let file = |name| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).map_err(|cause| BenchError::Process { path, cause })
    };
    let malformed = |name: &str| BenchError::Process {
        path: format!("/proc/{pid}/{name}"),
        cause: std::io::Error::other("not the format Linux documents"),
    };
    let (stat, status) = (file("stat")?, file("status")?);
    Ok(Usage {
        cpu: cpu(&stat).ok_or_else(|| malformed("stat"))?,
        resident_bytes: kibibytes(&status, "VmRSS:").ok_or_else(|| malformed("status"))?,
        peak_bytes: kibibytes(&status, "VmHWM:").ok_or_else(|| malformed("status"))?,
    })
}

/// utime and stime are fields 14 and 15; the name in field 2 may hold spaces and parentheses.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut times = after_name.split(' ').skip(11).map(str::parse::<u32>);
    let ticks = times.next()?.ok()?.checked_add(times.next()?.ok()?)?;
    Some(TICK * ticks)
}

fn kibibytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim()
        .strip_suffix(" kB")?
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_an_odd_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 5 1000 200";
        assert_eq!(cpu(stat), Some(Duration::from_secs(3)), "300 ticks");
        assert_eq!(cpu("7 (a) S 1"), None, "too short");
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(kibibytes(status, "VmRSS:"), Some(1 << 20), "resident");
        assert_eq!(kibibytes(status, "VmHWM:"), Some(2 << 20), "peak");
        assert_eq!(kibibytes(status, "VmSwap:"), None, "missing");
    }

    #[test]
    fn this_process_can_be_read_and_a_missing_one_is_named() {
        assert!(
            own_usage().unwrap().resident_bytes > 0,
            "a running process has memory"
        );
        let error = usage(&[u32::MAX]).unwrap_err().to_string();
        assert!(
            error.contains("/proc/4294967295/stat"),
            "names the file: {error}"
        );
    }
}
