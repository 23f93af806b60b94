//! Blocking tasks: work that takes long runs on a thread of its own, so that no actor waits for it.
//!
//! A simulation has one thread: there the work runs on that thread after a short delay, which follows from the seed. So events
//! that can happen during a blocking task can happen in a simulation too.

use crate::clock;
use std::time::Duration;
use tokio::task::JoinHandle;

/// The longest that a simulated thread takes.
const SIMULATED_MILLIS_MAX: u64 = 20;

/// Begins `work`. Must be called inside an arbiter.
pub(super) fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    if !clock::is_simulated() {
        return tokio::task::spawn_blocking(work);
    }
    let takes = Duration::from_millis(clock::entropy() % SIMULATED_MILLIS_MAX);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(takes).await;
        work()
    })
}
