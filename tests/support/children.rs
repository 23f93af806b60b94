//! Servers that a test has started end before the folder that they write into is removed, also when the test fails.

use std::time::Duration;
use tokio::process::Child;

/// The polling interval, and the number of polls, for the end of a process: one that the disk holds up may take a while.
const PAUSE: Duration = Duration::from_millis(5);
const LOOKS_MAX: usize = 4_000;

/// `kill -9`, and waits for the end.
#[expect(
    clippy::disallowed_methods,
    reason = "the test is over, and a drop cannot wait otherwise"
)]
pub(crate) fn end(child: &mut Child) {
    // One that has ended by itself needs no signal.
    child.start_kill().unwrap_or_default();
    for _ in 0..LOOKS_MAX {
        if !matches!(child.try_wait(), Ok(None)) {
            break;
        }
        std::thread::sleep(PAUSE);
    }
}
