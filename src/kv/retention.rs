//! Auto-compaction: decides when history is old enough to be compacted. Pure: time and revision come in, a revision to compact at
//! comes out. etcd: both modes compact at the same moments.

use crate::types::{Millis, Revision};
use std::collections::VecDeque;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

/// How often mode `revision` takes a sample.
const REVISION_INTERVAL: Millis = Millis(5 * MINUTE);

/// What history is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// All of it, until a client compacts.
    #[default]
    Off,
    /// That of the newest span of time.
    Period(Millis),
    /// The history of so many newest revisions.
    Revisions(i64),
}

/// An auto-compaction under way.
#[derive(Clone, Debug)]
pub enum AutoCompaction {
    Off,
    /// Keeps a span of time.
    Period(Period),
    /// Keeps a number of revisions.
    Revisions {
        keep: i64,
        /// The revision compacted at last.
        last: Revision,
    },
}

/// State of mode `periodic`.
#[derive(Clone, Debug)]
pub struct Period {
    retention: Millis,
    /// The newest samples, oldest first; as many as a retention has, plus one.
    samples: VecDeque<Revision>,
    /// When it last compacted; at first, when it began.
    last_success: Millis,
    last: Revision,
    /// The first compaction waits for a whole retention, later ones for an hour at most.
    waited: bool,
}

impl AutoCompaction {
    pub fn new(retention: Retention, now: Millis) -> Self {
        match retention {
            Retention::Off => Self::Off,
            Retention::Revisions(keep) => Self::Revisions {
                keep,
                last: Revision(0),
            },
            Retention::Period(retention) => Self::Period(Period {
                retention,
                samples: VecDeque::new(),
                last_success: now,
                last: Revision(0),
                waited: false,
            }),
        }
    }

    /// How long to wait between two calls of [`AutoCompaction::sample`]; `None` if it is never called.
    pub fn interval(&self) -> Option<Millis> {
        match self {
            Self::Off => None,
            Self::Revisions { .. } => Some(REVISION_INTERVAL),
            Self::Period(period) => Some(period.sample_interval()),
        }
    }

    /// Records the newest revision; returns the revision to compact at, if it is time. Only a leader compacts (`leads`).
    pub fn sample(&mut self, now: Millis, newest: Revision, leads: bool) -> Option<Revision> {
        let due = match self {
            Self::Off => None,
            Self::Revisions { keep, last } => {
                Some(Revision(newest.0 - *keep)).filter(|at| at.0 > 0 && at != last)
            }
            Self::Period(period) => period.sample(now, newest),
        };
        due.filter(|_| leads)
    }

    /// The compaction that [`AutoCompaction::sample`] asked for was done, or was not needed.
    pub fn compacted(&mut self, now: Millis, at: Revision) {
        match self {
            Self::Off => {}
            Self::Revisions { last, .. } => *last = at,
            Self::Period(period) => {
                period.last = at;
                period.last_success = now;
                period.waited = true;
            }
        }
    }
}

impl Period {
    /// The least time between two compactions, in milliseconds.
    fn compact_interval(&self) -> u64 {
        self.retention.0.min(HOUR)
    }

    fn sample_interval(&self) -> Millis {
        Millis((self.compact_interval() / 10).max(1))
    }

    fn sample(&mut self, now: Millis, newest: Revision) -> Option<Revision> {
        self.samples.push_back(newest);
        let kept =
            usize::try_from(self.retention.0 / self.sample_interval().0).unwrap_or(usize::MAX);
        while self.samples.len() > kept.saturating_add(1) {
            self.samples.pop_front();
        }
        let wait = if self.waited {
            self.compact_interval()
        } else {
            self.retention.0
        };
        let early = now.0.saturating_sub(self.last_success.0) < wait;
        self.samples
            .front()
            .copied()
            .filter(|&at| !early && at != self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples once an interval, with as many new revisions as hours have passed, and compacts when the retention asks for it.
    fn run(retention: Retention, hours: u64) -> Vec<(u64, i64)> {
        let mut auto = AutoCompaction::new(retention, Millis(0));
        let step = auto.interval().map_or(HOUR, |interval| interval.0);
        let mut done = Vec::new();
        let mut now = 0;
        while now <= hours * HOUR {
            let newest = Revision(1_000 + (now / MINUTE).cast_signed());
            if let Some(at) = auto.sample(Millis(now), newest, true) {
                auto.compacted(Millis(now), at);
                done.push((now / MINUTE, at.0));
            }
            now += step;
        }
        done
    }

    #[test]
    fn periodic_waits_one_retention_then_keeps_it() {
        let done = run(Retention::Period(Millis(3 * HOUR)), 6);
        let expected = [(180, 1_000), (240, 1_060), (300, 1_120), (360, 1_180)];
        assert_eq!(done, expected, "one retention late, then hourly");
        let minutes = run(Retention::Period(Millis(30 * MINUTE)), 2);
        assert_eq!(
            minutes,
            [(30, 1_000), (60, 1_030), (90, 1_060), (120, 1_090)]
        );
    }

    #[test]
    fn by_revision_keeps_the_newest() {
        let done = run(Retention::Revisions(1_010), 1);
        assert_eq!(done.first(), Some(&(15, 5)), "nothing at or below zero");
        assert_eq!(done.last(), Some(&(60, 50)));
    }

    #[test]
    fn followers_and_off_do_nothing() {
        assert_eq!(run(Retention::Off, 10), []);
        let mut auto = AutoCompaction::new(Retention::Revisions(1), Millis(0));
        assert_eq!(auto.sample(Millis(0), Revision(100), false), None);
    }
}
