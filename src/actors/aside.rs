//! Work that takes long: it runs on a thread of its own, so that it does not hold up the actors.
//!
//! In a simulation, where there is one thread, it runs on that one after a short while, which the seed draws: whoever asked
//! for it must live with all that happened meanwhile, as with threads.

use crate::clock;
use std::time::Duration;
use tokio::task::JoinHandle;

/// The longest that a simulated thread takes.
const SIMULATED_MILLIS_MAX: u64 = 20;

/// Begins `work`. Inside an arbiter.
pub(super) fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    if !clock::is_simulated() {
        return tokio::task::spawn_blocking(work);
    }
    let takes = Duration::from_millis(clock::entropy() % SIMULATED_MILLIS_MAX);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(takes).await;
        work()
    })
}
