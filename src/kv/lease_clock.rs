//! The countdown of leases, pure: time comes in as [`Millis`], commands to propose come out.
//!
//! Every member counts every lease: it notes when it applied the lease's grant or its latest renewal, by its own clock, and the
//! lease is due when its time to live has passed since. A member applies a grant or a renewal only after the client has asked for
//! it, so no member counts a lease as due before the time that its client was promised. Only the leader acts on the count. A new
//! leader has applied everything that earlier leaders may have answered to their clients, and continues with its own count.
//!
//! Two rules keep the leader's proposals apart, so that their order in the log is the order in which it decided:
//!
//! - A lease with a renewal in flight is put into no expiry, however long the renewal takes: it may be in the log already.
//! - A lease whose time is up is not renewed in this term: its expiry may be in the log already, and would end it although
//!   its client's last answer was a renewal. A request to renew it is answered once the expiry is applied.
//!
//! A member that starts, or whose state was replaced, has the stored rows but no times. From that moment it counts the time in
//! each row: the whole time to live, or that of a checkpoint. Only long leases are checkpointed.
//!
//! `docs/leases.md` goes through every crash and change of leaders between these steps.

use super::{
    command::{CheckpointLeases, ExpireLeases},
    lease::{LeaseChange, LeaseMark, LeaseRow},
};
use crate::types::{LeaseId, Millis, Term};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
};

/// How leases are counted.
#[derive(Clone, Copy, Debug)]
pub struct ClockSettings {
    /// For so long after a member began to lead no lease is due: its client could not renew it while there was no leader.
    pub grace: Millis,
    /// A lease is checkpointed when it has lost so much of its time since its grant, renewal or last checkpoint.
    pub checkpoint_every: Millis,
}

/// All applied leases, with the time when each is due by this member's clock.
#[derive(Debug)]
pub struct LeaseClock {
    settings: ClockSettings,
    leases: BTreeMap<LeaseId, Counted>,
    leading: Option<Leading>,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    row: LeaseRow,
    /// When it is due; no earlier than any answer to a client says.
    due: Millis,
    /// Used by the leader only.
    phase: LeasePhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeasePhase {
    /// Until it is due.
    Running,
    /// So many renewals of it are in flight.
    Renewing(u32),
    /// Time is up; its expiry is to be proposed.
    Overdue,
    /// Its expiry is on its way into the log, or in it.
    Proposed,
}

/// What only a leader has. Invariants: `deadlines` has exactly the running leases, and every overdue one is in `overdue`.
#[derive(Debug)]
struct Leading {
    term: Term,
    /// Leases that were due before this time count as due at this time.
    earliest: Millis,
    deadlines: BTreeSet<(Millis, LeaseId)>,
    overdue: VecDeque<LeaseId>,
    /// Where the sweep for checkpoints goes on.
    swept: Bound<LeaseId>,
}

/// How far the leader is behind with ending leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Leases whose time is up and whose end is not proposed yet; a few of them may be gone already.
    pub leases: usize,
    /// How long the first of them has waited; `None` if there was no leader when it was due.
    pub waited: Option<Millis>,
}

/// The outcome of [`LeaseClock::renew`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It is to be proposed, and [`LeaseClock::settle`] gets the outcome.
    Begun {
        mark: LeaseMark,
        /// Its whole time to live, in seconds.
        ttl_secs: i64,
    },
    /// Its time is up; it ends when its expiry is applied.
    Ending,
    /// There is no such lease in the entries that this member has applied.
    Unknown,
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
    /// The leases that exist at start, counted from now.
    pub fn new(
        settings: ClockSettings,
        leases: impl IntoIterator<Item = (LeaseId, LeaseRow)>,
        now: Millis,
    ) -> Self {
        Self {
            settings,
            leases: counted(leases, now),
            leading: None,
        }
    }

    /// Replaces all leases: a snapshot was installed. This member leads no more.
    pub fn replace(&mut self, leases: impl IntoIterator<Item = (LeaseId, LeaseRow)>, now: Millis) {
        self.leases = counted(leases, now);
        self.leading = None;
    }

    /// The ids of all leases: what this member counts as due first comes first.
    pub fn ids_by_due(&self) -> Vec<LeaseId> {
        let by_due = self.leases.iter().map(|(&id, counted)| (counted.due, id));
        let mut by_due: Vec<_> = by_due.collect();
        by_due.sort_unstable();
        by_due.into_iter().map(|(_, id)| id).collect()
    }

    pub fn len(&self) -> usize {
        self.leases.len()
    }

    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// The term this member leads in, as far as leases go.
    pub fn term(&self) -> Option<Term> {
        self.leading.as_ref().map(|leading| leading.term)
    }

    /// Begins to lead. The caller has applied an entry of `term`, and so everything that earlier leaders may have committed; the
    /// effects of the last of these entries may still follow through [`LeaseClock::applied`], before any other call.
    pub fn lead(&mut self, term: Term, now: Millis) {
        let earliest = after(now, self.settings.grace);
        let mut deadlines = BTreeSet::new();
        for (&id, counted) in &mut self.leases {
            counted.phase = LeasePhase::Running;
            counted.due = counted.due.max(earliest);
            deadlines.insert((counted.due, id));
        }
        self.leading = Some(Leading {
            term,
            earliest,
            deadlines,
            overdue: VecDeque::new(),
            swept: Bound::Unbounded,
        });
    }

    /// Stops leading. The countdown continues.
    pub fn follow(&mut self) {
        self.leading = None;
    }

    /// Follows what an applied entry did.
    pub fn applied(&mut self, change: &LeaseChange, now: Millis) {
        match *change {
            LeaseChange::Granted { id, row } => {
                let due = after(now, millis(row.ttl_secs));
                let phase = LeasePhase::Running;
                self.leases.insert(id, Counted { row, due, phase });
                if let Some(leading) = &mut self.leading {
                    leading.deadlines.insert((due, id));
                }
            }
            LeaseChange::Renewed { id, row, .. } => {
                self.set_due(id, row, |_| after(now, millis(row.ttl_secs)));
            }
            // A checkpoint of this member's own count changes nothing: it was rounded up, and time has passed since.
            LeaseChange::Checkpointed { id, row } => {
                self.set_due(id, row, |due| due.min(after(now, millis(row.start_secs()))));
            }
            LeaseChange::Revoked { id } => {
                let counted = self.leases.remove(&id);
                if let (Some(counted), Some(leading)) = (counted, &mut self.leading) {
                    leading.deadlines.remove(&(counted.due, id));
                }
            }
        }
    }

    fn set_due(&mut self, id: LeaseId, row: LeaseRow, due: impl FnOnce(Millis) -> Millis) {
        let Some(counted) = self.leases.get_mut(&id) else {
            return;
        };
        let (before, due) = (counted.due, due(counted.due));
        counted.row = row;
        counted.due = due;
        if let (LeasePhase::Running, Some(leading)) = (counted.phase, &mut self.leading) {
            leading.deadlines.remove(&(before, id));
            leading.deadlines.insert((due, id));
        }
    }

    pub fn renew(&mut self, id: LeaseId, now: Millis) -> Renewal {
        let Some(leading) = &mut self.leading else {
            return Renewal::NotLeading;
        };
        let Some(counted) = self.leases.get_mut(&id) else {
            return Renewal::Unknown;
        };
        counted.phase = match counted.phase {
            LeasePhase::Running if counted.due > now => {
                leading.deadlines.remove(&(counted.due, id));
                LeasePhase::Renewing(1)
            }
            LeasePhase::Renewing(calls) => LeasePhase::Renewing(calls + 1),
            LeasePhase::Running | LeasePhase::Overdue | LeasePhase::Proposed => {
                return Renewal::Ending;
            }
        };
        let granted = counted.row.granted;
        Renewal::Begun {
            mark: LeaseMark { id, granted },
            ttl_secs: counted.row.ttl_secs,
        }
    }

    /// A renewal that began in `term` is over: the lease was renewed by an applied entry, or the client gets no answer.
    pub fn settle(&mut self, term: Term, mark: LeaseMark, renewed: bool, now: Millis) {
        let leading = self.leading.as_mut();
        let Some(leading) = leading.filter(|leading| leading.term == term) else {
            return;
        };
        let counted = self.leases.get_mut(&mark.id);
        let Some(counted) = counted.filter(|counted| counted.row.granted == mark.granted) else {
            return;
        };
        // The caller may get the outcome before `applied` gets the entry.
        if renewed {
            counted.due = counted.due.max(after(now, millis(counted.row.ttl_secs)));
        }
        if let LeasePhase::Renewing(calls) = counted.phase {
            counted.phase = match calls - 1 {
                0 => {
                    leading.deadlines.insert((counted.due, mark.id));
                    LeasePhase::Running
                }
                left => LeasePhase::Renewing(left),
            };
        }
    }

    /// The time that a lease has left; `None` if the lease does not exist or this member does not lead.
    pub fn time_left(&self, id: LeaseId, now: Millis) -> Option<TimeLeft> {
        let (counted, leading) = (self.leases.get(&id)?, self.leading.as_ref()?);
        let left = match counted.phase {
            LeasePhase::Running | LeasePhase::Renewing(_) => counted.due.0.saturating_sub(now.0),
            LeasePhase::Overdue | LeasePhase::Proposed => 0,
        };
        Some(TimeLeft {
            left: Millis(left),
            ttl_secs: counted.row.ttl_secs,
            term: leading.term,
        })
    }

    /// A lease's row, if it exists.
    pub fn row(&self, id: LeaseId) -> Option<LeaseRow> {
        self.leases.get(&id).map(|counted| counted.row)
    }

    /// When this member counts a lease as due, if it exists.
    pub fn due(&self, id: LeaseId) -> Option<Millis> {
        self.leases.get(&id).map(|counted| counted.due)
    }

    /// Finds the leases whose time is up.
    pub fn backlog(&mut self, now: Millis) -> Option<Backlog> {
        let leading = self.leading.as_mut()?;
        while let Some(&(due, id)) = leading.deadlines.first().filter(|(due, _)| *due <= now) {
            leading.deadlines.remove(&(due, id));
            if let Some(counted) = self.leases.get_mut(&id) {
                counted.phase = LeasePhase::Overdue;
                leading.overdue.push_back(id);
            }
        }
        let first = leading.overdue.front()?;
        let due = self.leases.get(first).map_or(now, |first| first.due);
        let led = due > leading.earliest;
        Some(Backlog {
            leases: leading.overdue.len(),
            waited: led.then_some(Millis(now.0.saturating_sub(due.0))),
        })
    }

    /// The leases whose time is up and whose end is not proposed yet, at most `max` of them, the oldest first.
    pub fn take_expired(&mut self, now: Millis, max: usize) -> Option<ExpireLeases> {
        self.backlog(now)?;
        let leading = self.leading.as_mut()?;
        let mut leases = Vec::new();
        while leases.len() < max
            && let Some(id) = leading.overdue.pop_front()
        {
            // It may have been revoked since, and even granted again.
            let overdue = self.leases.get_mut(&id);
            if let Some(counted) = overdue.filter(|counted| counted.phase == LeasePhase::Overdue) {
                counted.phase = LeasePhase::Proposed;
                let granted = counted.row.granted;
                leases.push(LeaseMark { id, granted });
            }
        }
        let term = leading.term;
        (!leases.is_empty()).then_some(ExpireLeases { term, leases })
    }

    /// The outcome of proposed expiries is not known: they are proposed again, unless they have ended, or this member has
    /// another term by now. That some are then in the log twice does no harm.
    pub fn expiry_unknown(&mut self, expire: &ExpireLeases) {
        let leading = self.leading.as_mut();
        let Some(leading) = leading.filter(|leading| leading.term == expire.term) else {
            return;
        };
        for mark in &expire.leases {
            let proposed = self.leases.get_mut(&mark.id);
            if let Some(counted) = proposed.filter(|counted| counted.phase == LeasePhase::Proposed)
            {
                counted.phase = LeasePhase::Overdue;
                leading.overdue.push_back(mark.id);
            }
        }
    }

    /// The checkpoints that are due among the next `visited` leases of the sweep, at most `max`.
    pub fn take_checkpoints(
        &mut self,
        now: Millis,
        visited: usize,
        max: usize,
    ) -> Option<CheckpointLeases> {
        let leading = self.leading.as_mut()?;
        let mut leases = Vec::new();
        let range = (leading.swept, Bound::Unbounded);
        let mut ended = true;
        for (at, (&id, counted)) in self.leases.range(range).enumerate() {
            if at == visited || leases.len() == max {
                ended = false;
                break;
            }
            leading.swept = Bound::Excluded(id);
            let left = Millis(counted.due.0.saturating_sub(now.0));
            let kept = millis(counted.row.start_secs());
            let worth = kept.0.saturating_sub(left.0) >= self.settings.checkpoint_every.0;
            // A renewal in flight could precede the checkpoint in the log, and the checkpoint would undo it.
            if worth && left.0 > 0 && counted.phase == LeasePhase::Running {
                let granted = counted.row.granted;
                // Rounded up, since a shorter time would end the lease early.
                let secs = i64::try_from(left.0.div_ceil(1_000)).unwrap_or(i64::MAX);
                let secs = secs.min(counted.row.ttl_secs);
                leases.push((LeaseMark { id, granted }, secs));
            }
        }
        if ended {
            leading.swept = Bound::Unbounded;
        }
        let term = leading.term;
        (!leases.is_empty()).then_some(CheckpointLeases { term, leases })
    }

    /// How many leases one step of the sweep visits: if steps are `pause` apart, it visits all leases four times in
    /// `checkpoint_every`.
    pub fn sweep_step(&self, pause: Millis) -> usize {
        let every = self.settings.checkpoint_every.0.max(1);
        let share = (self.leases.len() as u64).saturating_mul(4 * pause.0) / every;
        usize::try_from(share)
            .unwrap_or(usize::MAX)
            .saturating_add(1)
    }
}

fn counted(
    leases: impl IntoIterator<Item = (LeaseId, LeaseRow)>,
    now: Millis,
) -> BTreeMap<LeaseId, Counted> {
    let count = |(id, row): (LeaseId, LeaseRow)| {
        let due = after(now, millis(row.start_secs()));
        let phase = LeasePhase::Running;
        (id, Counted { row, due, phase })
    };
    leases.into_iter().map(count).collect()
}

fn after(now: Millis, time: Millis) -> Millis {
    Millis(now.0.saturating_add(time.0))
}

/// Seconds of a lease as milliseconds; a TTL is never negative.
fn millis(secs: i64) -> Millis {
    Millis(u64::try_from(secs).unwrap_or(0).saturating_mul(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LogIndex;

    const ID: LeaseId = LeaseId(1);
    const MARK: LeaseMark = LeaseMark {
        id: ID,
        granted: LogIndex(3),
    };
    const TERM: Term = Term(2);
    const EARLY: Millis = Millis(1_000);
    /// A time at which the lease of ten seconds has run out.
    const LATE: Millis = Millis(11_000);

    fn row() -> LeaseRow {
        LeaseRow::new(10, MARK.granted)
    }

    /// A lease of ten seconds, in the state of this name.
    fn clock(state: &str) -> LeaseClock {
        let settings = ClockSettings {
            grace: Millis(0),
            checkpoint_every: Millis(5_000),
        };
        let mut clock = LeaseClock::new(settings, [(ID, row())], Millis(0));
        clock.lead(TERM, Millis(0));
        match state {
            "running" => {}
            "renewing" => {
                clock.renew(ID, EARLY);
            }
            "overdue" => {
                clock.backlog(LATE);
            }
            "proposed" => {
                clock.take_expired(LATE, 1);
            }
            other => unreachable!("no state is called {other}"),
        }
        assert_eq!(state_of(&clock), state);
        clock
    }

    fn state_of(clock: &LeaseClock) -> String {
        let phase = clock.leases.get(&ID).map(|counted| counted.phase);
        match phase {
            Some(LeasePhase::Running) => "running".to_owned(),
            Some(LeasePhase::Renewing(1)) => "renewing".to_owned(),
            Some(LeasePhase::Renewing(times)) => format!("renewing ×{times}"),
            Some(LeasePhase::Overdue) => "overdue".to_owned(),
            Some(LeasePhase::Proposed) => "proposed".to_owned(),
            None => "gone".to_owned(),
        }
    }

    /// An event: its name, and what happens.
    type LeaseEvent = (&'static str, fn(&mut LeaseClock));

    const EVENTS: [LeaseEvent; 10] = [
        ("renewal asked", |clock| {
            clock.renew(ID, EARLY);
        }),
        ("renewal asked late", |clock| {
            clock.renew(ID, LATE);
        }),
        ("renewal committed", |clock| {
            clock.settle(TERM, MARK, true, EARLY);
        }),
        ("renewal failed", |clock| {
            clock.settle(TERM, MARK, false, EARLY);
        }),
        ("time passes", |clock| {
            clock.backlog(LATE);
        }),
        ("expiry taken", |clock| {
            clock.take_expired(LATE, 1);
        }),
        ("expiry failed", |clock| {
            let leases = vec![MARK];
            clock.expiry_unknown(&ExpireLeases { term: TERM, leases });
        }),
        ("renewal applied", |clock| {
            let change = LeaseChange::Renewed {
                id: ID,
                row: row(),
                cleared: false,
            };
            clock.applied(&change, EARLY);
        }),
        ("end applied", |clock| {
            clock.applied(&LeaseChange::Revoked { id: ID }, EARLY);
        }),
        ("leads anew", |clock| clock.lead(Term(3), EARLY)),
    ];

    const STATES: [&str; 4] = ["running", "renewing", "overdue", "proposed"];

    /// An empty cell: the state stays.
    const TABLE: &str = "
                   | running     | renewing    | overdue     | proposed
renewal asked      | renewing    | renewing ×2 |             |
renewal asked late |             | renewing ×2 |             |
renewal committed  |             | running     |             |
renewal failed     |             | running     |             |
time passes        | overdue     |             |             |
expiry taken       | proposed    |             | proposed    |
expiry failed      |             |             |             | overdue
renewal applied    |             |             |             |
end applied        | gone        | gone        | gone        | gone
leads anew         |             | running     | running     | running
";

    #[test]
    fn each_event_in_each_state_leads_where_the_table_says() {
        let line = |first: &str, cells: &[String]| {
            let cells: Vec<_> = cells.iter().map(|cell| format!(" | {cell:<11}")).collect();
            let line = format!("{first:<18}{}", cells.concat());
            line.trim_end().to_owned()
        };
        let mut lines = vec![String::new(), line("", &STATES.map(str::to_owned))];
        for (name, happens) in EVENTS {
            let after = STATES.map(|state| {
                let mut clock = clock(state);
                happens(&mut clock);
                let after = state_of(&clock);
                if after == state { String::new() } else { after }
            });
            lines.push(line(name, &after));
        }
        lines.push(String::new());
        let table = lines.join("\n");
        assert_eq!(table, TABLE, "the table is:\n{table}");
    }

    /// The page names the states that may follow each. It leaves out the end, which any state may have, and says below its table
    /// what a leader begins with.
    #[test]
    fn the_page_leads_from_each_state_where_the_table_does() {
        let page = include_str!("../../docs/leases.md");
        for (at, state) in STATES.iter().enumerate() {
            let begins = format!("| {state}");
            let row = page.lines().find(|line| line.starts_with(&begins));
            let row = row.expect("docs/leases.md has a row for each state");
            let described: BTreeSet<&str> = row.split('*').skip(1).step_by(2).collect();
            let lines = TABLE.lines().skip(2);
            let lines = lines.filter(|line| !line.starts_with("leads anew"));
            let cells = lines.filter_map(|line| line.split('|').nth(at + 1).map(str::trim));
            let tested: BTreeSet<&str> = cells
                .filter(|to| !["", "gone", "renewing ×2"].contains(to))
                .collect();
            assert_eq!(described, tested, "what follows {state}, in docs/leases.md");
        }
    }
}
