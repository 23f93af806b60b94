//! Lines on their way to the thread that writes them: a queue with a bound in bytes, and no waiting on the side of calls.

use super::entry::Entry;
use std::{
    collections::VecDeque,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// What may wait to be written, in bytes of memory: some 16,000 lines.
pub(super) const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How many lines were written, and dropped.
#[derive(Debug, Default)]
pub struct AuditCounts {
    written: AtomicU64,
    dropped: AtomicU64,
}

impl AuditCounts {
    /// Lines that the output took.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Lines that had no room in the queue, or that could not be written.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn add_written(&self, lines: usize) {
        self.written.fetch_add(lines as u64, Ordering::Relaxed);
    }

    pub(super) fn add_dropped(&self, lines: u64) {
        self.dropped.fetch_add(lines, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    /// Woken when lines come, and when they have been written.
    changed: Condvar,
    counts: AuditCounts,
}

#[derive(Debug, Default)]
struct QueueState {
    lines: VecDeque<Entry>,
    bytes: usize,
    /// Lines dropped since the last time they were taken.
    dropped: u64,
    /// Whether what was taken last is still being written.
    is_writing: bool,
    /// Whether the writer is to look at its file now.
    is_to_look: bool,
    /// Whether no more lines come.
    is_closed: bool,
}

/// What the writer takes at once.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) lines: VecDeque<Entry>,
    /// Lines that were dropped before these.
    pub(super) dropped: u64,
    /// Whether to look at the file now.
    pub(super) look: bool,
}

impl Queue {
    pub(super) fn counts(&self) -> &AuditCounts {
        &self.counts
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line; drops it if there is no room.
    pub(super) fn push(&self, line: Entry) {
        let mut state = self.lock();
        let bytes = line.bytes();
        if state.bytes + bytes > QUEUE_BYTES_MAX {
            state.dropped += 1;
            self.counts.add_dropped(1);
            return;
        }
        state.bytes += bytes;
        state.lines.push_back(line);
        let is_first = state.lines.len() == 1 && !state.is_writing;
        drop(state);
        // The writer looks again before it waits.
        if is_first {
            self.changed.notify_all();
        }
    }

    /// No more lines come: the writer ends once it has written those that are there.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Has the writer look at its file.
    pub(super) fn look(&self) {
        self.lock().is_to_look = true;
        self.changed.notify_all();
    }

    /// Waits for lines and takes all of them; `None` at the end. What was taken before is written.
    pub(super) fn wait(&self) -> Option<Taken> {
        let mut state = self.lock();
        state.is_writing = false;
        self.changed.notify_all();
        while state.lines.is_empty() && !state.is_to_look {
            if state.is_closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.is_writing = true;
        state.bytes = 0;
        Some(Taken {
            lines: std::mem::take(&mut state.lines),
            dropped: std::mem::take(&mut state.dropped),
            look: std::mem::take(&mut state.is_to_look),
        })
    }

    /// Waits until all lines are written, at most `time_max`.
    pub(super) fn flush(&self, time_max: Duration) {
        let state = self.lock();
        let unwritten = |state: &mut QueueState| {
            state.is_writing || state.is_to_look || !state.lines.is_empty()
        };
        drop(self.changed.wait_timeout_while(state, time_max, unwritten));
    }

    #[cfg(test)]
    pub(super) fn take(&self) -> Taken {
        let mut state = self.lock();
        state.bytes = 0;
        Taken {
            lines: std::mem::take(&mut state.lines),
            dropped: std::mem::take(&mut state.dropped),
            look: false,
        }
    }
}
