//! Blocking tasks: work that takes long runs on a thread of its own, so that no actor waits for it.
//!
//! A simulation has one thread: there the work runs on that thread after a short delay, which follows from the seed. So events
//! that can happen during a blocking task can happen in a simulation too.

use crate::clock;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::JoinHandle};

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

/// Runs `work` as a blocking task that holds one of `turns`: from before it begins until it ends, even if its caller no longer
/// waits. If its caller is gone before it begins, it does not. `None` if the thread ended early.
pub(super) async fn in_turn<T: Send + 'static>(
    turns: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let turn = turns.acquire_owned().await.ok()?;
    let caller = Arc::new(());
    let waiting = Arc::downgrade(&caller);
    let working = in_background(move || {
        let done = (waiting.strong_count() > 0).then(work);
        drop(turn);
        done
    });
    let done = working.await.ok()?;
    drop(caller);
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use tokio::sync::oneshot;

    #[actix::test]
    async fn a_read_whose_caller_is_gone_keeps_its_turn_until_it_ends() {
        let turns = Arc::new(Semaphore::new(1));
        let (begun, begins) = oneshot::channel();
        let (end, ends) = mpsc::channel::<()>();
        let read = in_turn(turns.clone(), move || {
            begun.send(()).expect("the test waits");
            ends.recv()
        });
        let caller = actix::spawn(read);
        begins.await.expect("it begins");
        caller.abort();
        assert!(caller.await.is_err(), "the caller is gone");
        assert_eq!(turns.available_permits(), 0, "its thread still runs");
        end.send(()).expect("it waits");
        let next = in_turn(turns, || "read").await;
        assert_eq!(next, Some("read"), "when it has ended, the next one begins");
    }

    #[test]
    fn work_whose_caller_is_gone_before_it_begins_is_not_done() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let (end, ends) = mpsc::channel::<()>();
            let busy = in_background(move || ends.recv());
            let turns = Arc::new(Semaphore::new(1));
            let (did, done) = mpsc::channel();
            let work = in_turn(turns.clone(), move || did.send(()));
            let caller = tokio::spawn(work);
            while turns.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
            caller.abort();
            assert!(caller.await.is_err(), "the caller is gone");
            end.send(()).expect("it waits");
            busy.await.unwrap().expect("the thread is free");
            let next = in_turn(turns, || "done").await;
            assert_eq!(next, Some("done"), "its turn is free");
            assert!(done.recv().is_err(), "nobody waits for it");
        });
    }
}
