//! The countdown of leases, pure: time comes in as [`Millis`], commands to propose come out.
//!
//! Every member follows which leases exist; only the leader counts. A member that begins to lead gives each lease all of its
//! time, or what the newest checkpoint left of it, and one election timeout more, since its predecessor may have renewed it a
//! moment ago. Renewals are not replicated, so two rules keep them true across the log:
//!
//! - A lease whose time is up never comes back in this term: its expiry may be in the log already, and would take it away
//!   from a client that was told it lives. A renewal that comes then learns its fate once the expiry is applied.
//! - A lease that may have a checkpoint in the log is renewed only once the checkpoint is taken back, by a later entry:
//!   else the next leader would give it less time than the client was told.
//!
//! So that a change of leaders does not reset what is left, leases are checkpointed: a long one in intervals, a short one when
//! half of its time has gone without a renewal, and when half of the rest has. Clients renew earlier, hence living leases cost
//! the log nothing.
//!
//! `docs/leases.md` goes through every crash and change of leaders between these steps.

use super::{
    command::{CheckpointLeases, ExpireLeases, LeaseMark},
    lease::{ALL_TIME, LeaseChange, LeaseRow},
};
use crate::types::{LeaseId, Millis, Term};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How leases are counted.
#[derive(Clone, Copy, Debug)]
pub struct ClockSettings {
    /// What a new leader adds to each lease: an election timeout.
    pub grace: Millis,
    /// A lease with more time left than this is checkpointed that often; one with less, as `next_checkpoint`
    /// says.
    pub checkpoint_every: Millis,
}

/// What a checkpoint could save of a lease with less time left than this is not worth one.
const CHECKPOINT_LEFT_MIN: Millis = Millis(4_000);

impl ClockSettings {
    /// How long after now a lease is to be checkpointed, if it is not renewed before: `left` of `time` is left. The last ones
    /// find a half and a quarter of a short lease left.
    fn next_checkpoint(self, left: Millis, time: Millis) -> Option<Millis> {
        let every = self.checkpoint_every;
        if left > every {
            return Some(every);
        }
        let worth = left >= CHECKPOINT_LEFT_MIN && left.0 > time.min(every).0 / 4;
        worth.then_some(Millis(left.0 / 2))
    }
}

/// All leases as this member knows them, with their countdown while it leads.
#[derive(Debug)]
pub struct LeaseClock {
    settings: ClockSettings,
    leases: BTreeMap<LeaseId, LeaseRow>,
    leading: Option<Leading>,
}

/// The countdown. Invariants: `counts` has the ids of the leases, no more and no less; `deadlines` has exactly the running
/// ones, `checkpoints` exactly those with a time for one; every overdue lease is in `overdue`, and every lease whose
/// checkpoint is to be taken back and not yet proposed is in `to_clear`.
#[derive(Debug)]
struct Leading {
    term: Term,
    counts: BTreeMap<LeaseId, Count>,
    deadlines: BTreeSet<(Millis, LeaseId)>,
    checkpoints: BTreeSet<(Millis, LeaseId)>,
    overdue: VecDeque<LeaseId>,
    to_clear: BTreeSet<LeaseId>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    phase: Phase,
    checkpoint: Checkpoint,
    /// When the next checkpoint is due.
    checkpoint_at: Option<Millis>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until then.
    Running(Millis),
    /// Time is up; its expiry is to be proposed.
    Overdue,
    /// Its expiry is on its way into the log, or in it.
    Proposed,
}

/// What the log may say of a lease's remaining time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checkpoint {
    /// All of it.
    None,
    /// Less, by an entry that is applied or on its way.
    Some,
    /// Less, and an entry that takes it back is on its way; no other checkpoint is made until it is applied.
    Clearing,
}

/// What came of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The countdown starts again. To be told to the client if this member still leads in `term`.
    Renewed {
        /// All of its time, in seconds.
        ttl_secs: i64,
        /// The term it counts in.
        term: Term,
    },
    /// The countdown starts again, but the client may be told only after a checkpoint of [`ALL_TIME`] is applied.
    AfterClear,
    /// Its time is up; it ends when its expiry is applied.
    Ending,
    /// There is no such lease as far as this member has applied.
    Unknown,
    /// This member does not count.
    NotLeading,
}

/// A lease's time, as the leader counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLeft {
    /// What is left of it; zero if it is up.
    pub left: Millis,
    /// All of it, in seconds.
    pub ttl_secs: i64,
    /// The term it is counted in.
    pub term: Term,
}

impl LeaseClock {
    /// The leases that exist at start. Nothing is counted.
    pub fn new(
        settings: ClockSettings,
        leases: impl IntoIterator<Item = (LeaseId, LeaseRow)>,
    ) -> Self {
        Self {
            settings,
            leases: leases.into_iter().collect(),
            leading: None,
        }
    }

    /// Forgets all leases, for these: a snapshot replaced the state. Nothing is counted until this member leads anew.
    pub fn replace(&mut self, leases: impl IntoIterator<Item = (LeaseId, LeaseRow)>) {
        self.leases = leases.into_iter().collect();
        self.leading = None;
    }

    /// The ids of all leases, ascending.
    pub fn ids(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.keys().copied()
    }

    /// The term this member counts in, if it does.
    pub fn term(&self) -> Option<Term> {
        self.leading.as_ref().map(|leading| leading.term)
    }

    /// Begins to count. An entry of `term` is applied, hence all that earlier leaders may have committed; what the last of them
    /// did may follow in [`LeaseClock::applied`] before anything else is asked.
    pub fn lead(&mut self, term: Term, now: Millis) {
        let mut leading = Leading::new(term);
        for (&id, row) in &self.leases {
            let time = millis(row.start_secs());
            leading.start(
                id,
                row,
                now,
                Millis(time.0 + self.settings.grace.0),
                self.settings,
            );
        }
        self.leading = Some(leading);
    }

    /// Stops counting.
    pub fn follow(&mut self) {
        self.leading = None;
    }

    /// Follows what an applied entry did.
    pub fn applied(&mut self, change: &LeaseChange, now: Millis) {
        match *change {
            LeaseChange::Granted { id, row } => {
                self.leases.insert(id, row);
                if let Some(leading) = &mut self.leading {
                    leading.start(id, &row, now, millis(row.start_secs()), self.settings);
                }
            }
            LeaseChange::Checkpointed { id, row } => {
                self.leases.insert(id, row);
                let counting = self.leading.as_mut();
                let count = counting.and_then(|leading| leading.counts.get_mut(&id));
                if let Some(count) = count {
                    count.checkpoint = match (count.checkpoint, row.remaining_secs) {
                        (Checkpoint::Clearing, ALL_TIME) => Checkpoint::None,
                        (Checkpoint::None | Checkpoint::Some, ALL_TIME) => count.checkpoint,
                        // An earlier leader's, applied in the batch with which this member began to count.
                        (Checkpoint::None | Checkpoint::Some, _) => Checkpoint::Some,
                        (Checkpoint::Clearing, _) => Checkpoint::Clearing,
                    };
                }
            }
            LeaseChange::Revoked { id } => {
                self.leases.remove(&id);
                if let Some(leading) = &mut self.leading {
                    leading.stop(id);
                }
            }
        }
    }

    /// Starts a lease's countdown again.
    pub fn renew(&mut self, id: LeaseId, now: Millis) -> Renewal {
        let Some(leading) = &mut self.leading else {
            return Renewal::NotLeading;
        };
        let (Some(row), Some(count)) = (self.leases.get(&id), leading.counts.get(&id).copied())
        else {
            return Renewal::Unknown;
        };
        match count.phase {
            Phase::Running(deadline) if deadline > now => {}
            Phase::Running(_) | Phase::Overdue | Phase::Proposed => return Renewal::Ending,
        }
        let checkpoint = match count.checkpoint {
            Checkpoint::None => Checkpoint::None,
            Checkpoint::Some => {
                leading.to_clear.insert(id);
                Checkpoint::Clearing
            }
            Checkpoint::Clearing => Checkpoint::Clearing,
        };
        leading.remove_times(id, count);
        leading.begin(id, now, millis(row.ttl_secs), checkpoint, self.settings);
        if checkpoint == Checkpoint::Clearing {
            return Renewal::AfterClear;
        }
        Renewal::Renewed {
            ttl_secs: row.ttl_secs,
            term: leading.term,
        }
    }

    /// The time a lease has left; nothing if it is not known. Only the leader knows.
    pub fn time_left(&self, id: LeaseId, now: Millis) -> Option<TimeLeft> {
        let (row, leading) = (self.leases.get(&id)?, self.leading.as_ref()?);
        let left = match leading.counts.get(&id)?.phase {
            Phase::Running(deadline) => deadline.0.saturating_sub(now.0),
            Phase::Overdue | Phase::Proposed => 0,
        };
        Some(TimeLeft {
            left: Millis(left),
            ttl_secs: row.ttl_secs,
            term: leading.term,
        })
    }

    /// A lease's row, if it exists.
    pub fn row(&self, id: LeaseId) -> Option<LeaseRow> {
        self.leases.get(&id).copied()
    }

    /// The leases whose time is up and whose end is not proposed yet, at most `max` of them, the oldest first.
    pub fn take_expired(&mut self, now: Millis, max: usize) -> Option<ExpireLeases> {
        let leading = self.leading.as_mut()?;
        while let Some(&(deadline, id)) = leading.deadlines.first().filter(|(at, _)| *at <= now) {
            leading.deadlines.remove(&(deadline, id));
            leading.set_phase(id, Phase::Overdue);
            leading.overdue.push_back(id);
        }
        let mut leases = Vec::new();
        while leases.len() < max
            && let Some(id) = leading.overdue.pop_front()
        {
            // It may have been revoked since, and even granted again.
            let overdue = leading
                .counts
                .get(&id)
                .is_some_and(|count| count.phase == Phase::Overdue);
            if let Some(row) = self.leases.get(&id).filter(|_| overdue) {
                leading.set_phase(id, Phase::Proposed);
                let granted = row.granted;
                leases.push(LeaseMark { id, granted });
            }
        }
        let term = leading.term;
        (!leases.is_empty()).then_some(ExpireLeases { term, leases })
    }

    /// Whether leases wait for [`LeaseClock::take_expired`].
    pub fn has_expired(&self, now: Millis) -> bool {
        self.leading.as_ref().is_some_and(|leading| {
            let first = leading.deadlines.first();
            !leading.overdue.is_empty() || first.is_some_and(|(deadline, _)| *deadline <= now)
        })
    }

    /// The outcome of proposed expiries is not known: they are proposed again, unless they have ended, or this member has
    /// another term by now. That some are then in the log twice does no harm.
    pub fn expiry_unknown(&mut self, expire: &ExpireLeases) {
        let Some(leading) = self.leading_in(expire.term) else {
            return;
        };
        for mark in &expire.leases {
            let count = leading.counts.get(&mark.id);
            if count.is_some_and(|count| count.phase == Phase::Proposed) {
                leading.set_phase(mark.id, Phase::Overdue);
                leading.overdue.push_back(mark.id);
            }
        }
    }

    /// The checkpoints that are due, at most `max`.
    pub fn take_checkpoints(&mut self, now: Millis, max: usize) -> Option<CheckpointLeases> {
        let settings = self.settings;
        let leading = self.leading.as_mut()?;
        let mut leases = Vec::new();
        while leases.len() < max
            && let Some(&(at, id)) = leading.checkpoints.first().filter(|(at, _)| *at <= now)
        {
            leading.checkpoints.remove(&(at, id));
            let (Some(count), Some(row)) = (leading.counts.get_mut(&id), self.leases.get(&id))
            else {
                continue;
            };
            count.checkpoint_at = None;
            let Phase::Running(deadline) = count.phase else {
                continue;
            };
            let left = deadline.0.saturating_sub(now.0);
            if let Some(wait) = settings.next_checkpoint(Millis(left), millis(row.ttl_secs)) {
                let next = Millis(now.0.saturating_add(wait.0));
                count.checkpoint_at = Some(next);
                leading.checkpoints.insert((next, id));
            }
            if count.checkpoint == Checkpoint::Clearing || left == 0 {
                continue;
            }
            count.checkpoint = Checkpoint::Some;
            let granted = row.granted;
            // Rounded up: less than it has would end it early.
            let secs = i64::try_from(left.div_ceil(1_000)).unwrap_or(i64::MAX);
            leases.push((LeaseMark { id, granted }, secs.min(row.ttl_secs)));
        }
        let term = leading.term;
        (!leases.is_empty()).then_some(CheckpointLeases { term, leases })
    }

    /// The checkpoints that renewals want taken back, at most `max`. They must enter the log after all checkpoints taken
    /// before.
    pub fn take_clears(&mut self, max: usize) -> Option<CheckpointLeases> {
        let leading = self.leading.as_mut()?;
        let mut leases = Vec::new();
        while leases.len() < max
            && let Some(id) = leading.to_clear.pop_first()
        {
            if let Some(row) = self.leases.get(&id) {
                let granted = row.granted;
                leases.push((LeaseMark { id, granted }, ALL_TIME));
            }
        }
        let term = leading.term;
        (!leases.is_empty()).then_some(CheckpointLeases { term, leases })
    }

    /// The outcome of clears is not known: they are proposed again, as [`LeaseClock::expiry_unknown`] does.
    pub fn clears_unknown(&mut self, clears: &CheckpointLeases) {
        let Some(leading) = self.leading_in(clears.term) else {
            return;
        };
        for (mark, _) in &clears.leases {
            let count = leading.counts.get(&mark.id);
            if count.is_some_and(|count| count.checkpoint == Checkpoint::Clearing) {
                leading.to_clear.insert(mark.id);
            }
        }
    }

    fn leading_in(&mut self, term: Term) -> Option<&mut Leading> {
        self.leading.as_mut().filter(|leading| leading.term == term)
    }
}

/// Seconds of a lease as milliseconds; a TTL is never negative.
fn millis(secs: i64) -> Millis {
    Millis(u64::try_from(secs).unwrap_or(0).saturating_mul(1_000))
}

impl Leading {
    fn new(term: Term) -> Self {
        Self {
            term,
            counts: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            checkpoints: BTreeSet::new(),
            overdue: VecDeque::new(),
            to_clear: BTreeSet::new(),
        }
    }

    /// Counts a lease that this member has not counted before.
    fn start(
        &mut self,
        id: LeaseId,
        row: &LeaseRow,
        now: Millis,
        time: Millis,
        settings: ClockSettings,
    ) {
        let checkpoint = if row.remaining_secs == ALL_TIME {
            Checkpoint::None
        } else {
            Checkpoint::Some
        };
        self.begin(id, now, time, checkpoint, settings);
    }

    fn begin(
        &mut self,
        id: LeaseId,
        now: Millis,
        time: Millis,
        checkpoint: Checkpoint,
        settings: ClockSettings,
    ) {
        let deadline = Millis(now.0.saturating_add(time.0));
        let wait = settings.next_checkpoint(time, time);
        let checkpoint_at = wait.map(|wait| Millis(now.0.saturating_add(wait.0)));
        self.deadlines.insert((deadline, id));
        if let Some(at) = checkpoint_at {
            self.checkpoints.insert((at, id));
        }
        let count = Count {
            phase: Phase::Running(deadline),
            checkpoint,
            checkpoint_at,
        };
        self.counts.insert(id, count);
    }

    fn stop(&mut self, id: LeaseId) {
        if let Some(count) = self.counts.remove(&id) {
            self.remove_times(id, count);
            self.to_clear.remove(&id);
        }
    }

    fn remove_times(&mut self, id: LeaseId, count: Count) {
        if let Phase::Running(deadline) = count.phase {
            self.deadlines.remove(&(deadline, id));
        }
        if let Some(at) = count.checkpoint_at {
            self.checkpoints.remove(&(at, id));
        }
    }

    fn set_phase(&mut self, id: LeaseId, phase: Phase) {
        if let Some(count) = self.counts.get_mut(&id) {
            count.phase = phase;
        }
    }
}
