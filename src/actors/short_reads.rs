//! Short reads of records that are not in memory: a few threads take them from one queue.
//!
//! Such a read takes microseconds while the system has the page cached, and as long as the disk takes otherwise. To wake a thread
//! for each read would cost more than the reads, so a thread takes reads until the queue is empty. While the disk stalls, all of
//! these threads may be stuck; reads from memory go on.
//!
//! Bounds: each read says how many bytes it holds until it has begun, and reads that wait hold 16 MiB in all; further ones are
//! refused. A read whose caller is gone leaves the queue.

use super::{background::in_background, request_error::RequestError};
use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

/// Threads that read at once, for one front end.
const THREADS_MAX: usize = 4;

/// What the reads hold that wait for a thread.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a read holds besides its request: its place in the queue, and its caller's.
const READ_BYTES: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

/// The reads of one front end that wait for a thread.
#[derive(Default)]
pub(super) struct ShortReads {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// By number, oldest first; with the bytes of each.
    waiting: BTreeMap<u64, (usize, Job)>,
    /// The bytes of all that wait.
    bytes: usize,
    next_number: u64,
    threads: usize,
}

impl fmt::Debug for ShortReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.lock();
        f.debug_struct("ShortReads")
            .field("waiting", &queue.waiting.len())
            .field("threads", &queue.threads)
            .finish()
    }
}

/// Takes a read out of the queue when its caller no longer waits.
struct Waiting<'a> {
    reads: &'a ShortReads,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let read = self.reads.lock().remove(self.number);
        // Without the lock: what a read holds may take long to drop, and the threads and arbiters wait for the lock.
        drop(read);
    }
}

impl ShortReads {
    /// Runs `read`, which holds `bytes` bytes until then, on a thread that may block. `TooManyRequests` if too much waits,
    /// `Stopped` if the read panics or its thread ends early. Inside an arbiter.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        bytes: usize,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        let (reply, outcome) = oneshot::channel();
        // Sending fails if the caller is gone.
        let number = self.add(bytes, Box::new(move || drop(reply.send(read()))))?;
        let _waiting = Waiting {
            reads: self,
            number,
        };
        outcome.await.map_err(|_| RequestError::Stopped)
    }

    fn add(self: &Arc<Self>, bytes: usize, job: Job) -> Result<u64, RequestError> {
        let mut queue = self.lock();
        let bytes = bytes + READ_BYTES;
        if queue.bytes + bytes > WAITING_BYTES_MAX {
            return Err(RequestError::TooManyRequests);
        }
        let number = queue.next_number;
        queue.next_number += 1;
        queue.bytes += bytes;
        queue.waiting.insert(number, (bytes, job));
        if queue.threads < THREADS_MAX {
            queue.threads += 1;
            let reads = self.clone();
            drop(in_background(move || reads.work()));
        }
        Ok(number)
    }

    /// Runs reads until none waits.
    fn work(&self) {
        while let Some(job) = self.next() {
            // Where panics unwind, one read must not take the thread from the others. Its caller is told: its reply is dropped.
            drop(catch_unwind(AssertUnwindSafe(job)));
        }
    }

    /// The next read. With `None` the thread ends, and is no longer counted.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        let oldest = queue.waiting.keys().next().copied();
        let next = oldest.and_then(|oldest| queue.remove(oldest));
        if next.is_none() {
            queue.threads -= 1;
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn remove(&mut self, number: u64) -> Option<Job> {
        let (bytes, job) = self.waiting.remove(&number)?;
        self.bytes -= bytes;
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Reads that do not end, one for each of `threads` threads, until the senders are dropped.
    async fn stall(reads: &Arc<ShortReads>, threads: usize) -> Vec<mpsc::Sender<()>> {
        let mut ends = Vec::new();
        for _ in 0..threads {
            let (end, ended) = mpsc::channel::<()>();
            let (begun, begins) = oneshot::channel();
            let reads = reads.clone();
            actix::spawn(async move {
                let read = move || {
                    begun.send(()).expect("the test waits");
                    ended.recv().unwrap_or_default();
                };
                reads.run(0, read).await
            });
            begins.await.expect("it begins");
            ends.push(end);
        }
        ends
    }

    #[actix::test]
    async fn a_stalled_read_does_not_hold_up_the_others() {
        let reads = Arc::new(ShortReads::default());
        let _stalled = stall(&reads, THREADS_MAX - 1).await;
        for n in 0..100 {
            assert_eq!(reads.run(0, move || n).await.unwrap(), n);
        }
    }

    #[actix::test]
    async fn a_read_whose_caller_is_gone_leaves_the_queue() {
        let reads = Arc::new(ShortReads::default());
        let stalled = stall(&reads, THREADS_MAX).await;
        let gone = reads.run(0, || unreachable!("nobody waits for it"));
        let gone = tokio::time::timeout(std::time::Duration::ZERO, gone).await;
        assert!(gone.is_err(), "no thread is free");
        assert_eq!(reads.lock().waiting.len(), 0);
        drop(stalled);
        assert_eq!(reads.run(0, || "read").await.unwrap(), "read");
    }

    /// Notes when it is dropped whether the queue was locked.
    struct Dropped(Arc<ShortReads>, mpsc::Sender<bool>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            let is_locked = self.0.queue.try_lock().is_err();
            self.1.send(is_locked).expect("the test waits");
        }
    }

    #[actix::test]
    async fn a_read_that_leaves_the_queue_is_dropped_without_the_lock() {
        let reads = Arc::new(ShortReads::default());
        let stalled = stall(&reads, THREADS_MAX).await;
        let (noted, dropped) = mpsc::channel();
        let note = Dropped(reads.clone(), noted);
        let gone = reads.run(0, move || drop(note));
        let gone = tokio::time::timeout(std::time::Duration::ZERO, gone).await;
        assert!(gone.is_err(), "no thread is free");
        assert_eq!(dropped.try_recv(), Ok(false));
        drop(stalled);
    }

    #[actix::test]
    async fn a_read_that_panics_takes_no_thread_along() {
        let reads = Arc::new(ShortReads::default());
        for _ in 0..2 * THREADS_MAX {
            let read = reads.run(0, || panic!("a read of the test"));
            assert!(matches!(read.await, Err::<(), _>(RequestError::Stopped)));
        }
        let stalled = stall(&reads, THREADS_MAX - 1).await;
        assert_eq!(reads.run(0, || "read").await.unwrap(), "read");
        drop(stalled);
    }

    #[actix::test]
    async fn the_bytes_of_waiting_reads_are_bounded() {
        let reads = Arc::new(ShortReads::default());
        let stalled = stall(&reads, THREADS_MAX).await;
        let each = WAITING_BYTES_MAX / 10;
        let mut waiting: Vec<_> = (0..9)
            .map(|n| Box::pin(reads.run(each, move || n)))
            .collect();
        for read in &mut waiting {
            assert!(futures_now(read.as_mut()).is_pending(), "it waits");
        }
        let refused = reads.run(each, || 0).await;
        assert!(matches!(refused, Err(RequestError::TooManyRequests)));
        drop(waiting.pop());
        let mut next = Box::pin(reads.run(each, || 9));
        assert!(
            futures_now(next.as_mut()).is_pending(),
            "there is room again"
        );
        drop(stalled);
        for (n, read) in waiting.into_iter().enumerate() {
            assert_eq!(read.await.unwrap(), n);
        }
        assert_eq!(next.await.unwrap(), 9);
        assert_eq!(reads.lock().bytes, 0);
    }

    fn futures_now<F: Future>(future: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
        future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }
}
