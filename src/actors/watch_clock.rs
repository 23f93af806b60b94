//! When each stream is due for a progress notification. There is one timer for all of them, since an actor polls each of its
//! timers whenever it wakes up.

use crate::kv::watch::StreamId;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// Streams by the time they are due. Invariant: `due` and `intervals` hold the same streams.
#[derive(Debug, Default)]
pub(super) struct ProgressClock {
    due: BTreeSet<(Instant, StreamId)>,
    intervals: BTreeMap<StreamId, (Instant, Duration)>,
}

impl ProgressClock {
    /// A new stream, due after `interval` and from then on at that interval.
    pub(super) fn add(&mut self, stream: StreamId, interval: Duration, now: Instant) {
        let at = now + interval;
        self.due.insert((at, stream));
        let before = self.intervals.insert(stream, (at, interval));
        assert!(before.is_none(), "stream ids are never used twice");
    }

    /// A stream is gone.
    pub(super) fn remove(&mut self, stream: StreamId) {
        if let Some((at, _)) = self.intervals.remove(&stream) {
            self.due.remove(&(at, stream));
        }
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Streams that are due; each is due again after its interval.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<StreamId> {
        let mut streams = Vec::new();
        while let Some((at, stream)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, stream));
            if let Some((at, interval)) = self.intervals.get_mut(&stream) {
                // From now on: notifications missed while the machine slept are skipped.
                *at = now + *interval;
                self.due.insert((*at, stream));
            }
            streams.push(stream);
        }
        streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[tokio::test(start_paused = true)]
    async fn each_stream_is_due_at_its_own_interval() {
        let (start, secs) = (clock::now(), Duration::from_secs);
        let mut clock = ProgressClock::default();
        assert_eq!(clock.next(), None, "nobody waits");
        clock.add(StreamId(1), secs(10), start);
        clock.add(StreamId(2), secs(11), start);
        clock.add(StreamId(3), secs(7), start + secs(2));
        assert_eq!(clock.next(), Some(start + secs(9)), "the last one is first");
        assert!(clock.take_due(start + secs(8)).is_empty(), "nobody yet");
        let due = clock.take_due(start + secs(10));
        assert_eq!(
            due,
            [StreamId(3), StreamId(1)],
            "in the order of their times"
        );
        assert_eq!(clock.next(), Some(start + secs(11)), "then the second");
        clock.remove(StreamId(2));
        clock.remove(StreamId(2));
        assert_eq!(
            clock.next(),
            Some(start + secs(17)),
            "a stream that left is not due"
        );
        assert_eq!(
            clock.take_due(start + secs(20)).len(),
            2,
            "and both are due again"
        );
    }
}
