//! Leases on several members, against what was promised: clocks and tables over one log, with elections, proposals of deposed
//! leaders that arrive late, entries that get lost, restarts of members, and clocks that differ.
//!
//! Never early: no applied entry ends a lease before the time that its client got. Never late: no member counts a lease as due
//! later than its time to live after the member itself applied its grant or latest renewal (or began to count, or to lead),
//! and what is due when a leader scans is proposed.

use super::{
    command::{CheckpointLeases, ExpireLeases, RenewLeases},
    lease::{LeaseChange, LeaseMark, LeaseRow, LeaseTable},
    lease_clock::{ClockSettings, LeaseClock, Renewal},
};
use crate::types::{LeaseId, LogIndex, LogPosition, Millis, Term};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SETTINGS: ClockSettings = ClockSettings {
    grace: Millis(500),
    checkpoint_every: Millis(5_000),
};

/// The clocks of members have nothing to do with each other.
const CLOCK_STARTS: [u64; 3] = [0, 1_000_000, 77_000];

#[derive(Clone, Debug)]
enum Logged {
    Noop,
    Grant(LeaseId, i64),
    Revoke(LeaseId),
    Expire(ExpireLeases),
    Checkpoint(CheckpointLeases),
    Renew(RenewLeases),
}

#[derive(Debug)]
struct Member {
    clock_start: u64,
    table: LeaseTable,
    clock: LeaseClock,
    applied: usize,
    /// The newest time from which each lease may count here.
    stamps: BTreeMap<(LeaseId, LogIndex), u64>,
    led_at: Option<u64>,
    /// The table as it is stored, with what was applied by then; a member that starts goes on from there.
    stored: (LeaseTable, usize),
    /// Renewals that clients wait for: when each asked, and in which entry it is.
    asked: Vec<Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    mark: LeaseMark,
    ttl_secs: i64,
    at: u64,
    term: Term,
    /// `None` until it is proposed.
    entry: Option<LogIndex>,
}

impl Member {
    fn new(clock_start: u64) -> Self {
        Self {
            clock_start,
            table: LeaseTable::default(),
            clock: LeaseClock::new(SETTINGS, [], Millis(clock_start)),
            applied: 0,
            stamps: BTreeMap::new(),
            led_at: None,
            stored: (LeaseTable::default(), 0),
            asked: Vec::new(),
        }
    }

    /// Applies an entry to the table.
    fn apply(&mut self, entry: Logged, at: LogPosition) -> Vec<LeaseChange> {
        let mut changes = Vec::new();
        match entry {
            Logged::Noop => {}
            Logged::Grant(id, ttl) => {
                let row = LeaseRow::new(ttl, at.index);
                if self.table.grant(id, row).is_ok() {
                    changes.push(LeaseChange::Granted { id, row });
                }
            }
            Logged::Revoke(id) => {
                if self.table.revoke(id).is_ok() {
                    changes.push(LeaseChange::Revoked { id });
                }
            }
            Logged::Expire(expire) => {
                for mark in expire.leases {
                    if self.table.guarded(mark, expire.term, at).is_some() {
                        assert!(self.table.revoke(mark.id).is_ok(), "it is there");
                        changes.push(LeaseChange::Revoked { id: mark.id });
                    }
                }
            }
            Logged::Checkpoint(checkpoint) => {
                for (mark, secs) in checkpoint.leases {
                    if let Some(lease) = self.table.guarded(mark, checkpoint.term, at) {
                        lease.row.remaining_secs = secs;
                        let (id, row) = (mark.id, lease.row);
                        changes.push(LeaseChange::Checkpointed { id, row });
                    }
                }
            }
            Logged::Renew(renewals) => {
                let marks = renewals.leases.into_iter();
                let renewed = marks.filter_map(|mark| self.table.renew(mark, renewals.term, at));
                changes.extend(renewed);
            }
        }
        changes
    }
}

/// Members over one log. An elected member has the whole log.
#[derive(Debug)]
struct Model {
    now: u64,
    term: Term,
    leader: usize,
    log: Vec<(Term, Logged)>,
    members: Vec<Member>,
    /// Until when each lease lives according to the answers that its client got.
    promised: BTreeMap<(LeaseId, LogIndex), u64>,
    /// Proposals in flight, of the leader or of deposed ones.
    late: Vec<Logged>,
}

impl Model {
    fn new() -> Self {
        let mut model = Self {
            now: 0,
            term: Term(0),
            leader: 0,
            log: Vec::new(),
            members: CLOCK_STARTS.into_iter().map(Member::new).collect(),
            promised: BTreeMap::new(),
            late: Vec::new(),
        };
        model.elect(0);
        model
    }

    /// The time by a member's clock.
    fn time(&self, who: usize) -> Millis {
        Millis(self.members[who].clock_start + self.now)
    }

    fn elect(&mut self, leader: usize) {
        self.term = Term(self.term.0 + 1);
        self.leader = leader;
        self.log.push((self.term, Logged::Noop));
    }

    fn apply(&mut self, who: usize, entries: usize) {
        for _ in 0..entries {
            let member = &self.members[who];
            let Some((term, entry)) = self.log.get(member.applied).cloned() else {
                break;
            };
            let index = LogIndex(member.applied as u64 + 1);
            self.apply_entry(who, entry, LogPosition { index, term });
        }
    }

    fn apply_entry(&mut self, who: usize, entry: Logged, at: LogPosition) {
        let (now, time) = (self.now, self.time(who));
        let expires = matches!(entry, Logged::Expire(_));
        let member = &mut self.members[who];
        member.applied += 1;
        if who == self.leader && at.term == self.term && member.clock.term() != Some(at.term) {
            member.clock.lead(at.term, time);
            member.led_at = Some(now);
        }
        let rows: BTreeMap<LeaseId, LeaseRow> = member
            .table
            .iter()
            .map(|(id, lease)| (id, lease.row))
            .collect();
        let changes = member.apply(entry, at);
        for change in &changes {
            match *change {
                LeaseChange::Granted { id, row } | LeaseChange::Renewed { id, row, .. } => {
                    member.stamps.insert((id, row.granted), now);
                }
                LeaseChange::Revoked { id } if expires => {
                    let until = self.promised.get(&(id, rows[&id].granted));
                    let until = until.copied().unwrap_or(0);
                    assert!(until <= now, "{id} was promised until {until}, it is {now}");
                }
                LeaseChange::Revoked { .. } | LeaseChange::Checkpointed { .. } => {}
            }
            member.clock.applied(change, time);
        }
        self.answer(who, at, &changes);
    }

    /// The answers to an applied entry that clients get from the member that proposed it, whether it still leads or not.
    fn answer(&mut self, who: usize, at: LogPosition, changes: &[LeaseChange]) {
        let time = self.time(who);
        let member = &mut self.members[who];
        let (over, waiting) = std::mem::take(&mut member.asked)
            .into_iter()
            .partition(|asked| asked.entry == Some(at.index));
        member.asked = waiting;
        let over: Vec<Asked> = over;
        for asked in over {
            let renewed = changes.iter().any(|change| match change {
                LeaseChange::Renewed { id, .. } => *id == asked.mark.id,
                LeaseChange::Granted { .. }
                | LeaseChange::Checkpointed { .. }
                | LeaseChange::Revoked { .. } => false,
            });
            member.clock.settle(asked.term, asked.mark, renewed, time);
            if renewed {
                let until = asked.at + asked.ttl_secs.cast_unsigned() * 1_000;
                let key = (asked.mark.id, asked.mark.granted);
                let promised = self.promised.entry(key).or_default();
                *promised = until.max(*promised);
            }
        }
    }

    /// The client counts from when it asked, whenever it is answered.
    fn grant(&mut self, id: LeaseId, ttl_secs: i64) {
        self.log.push((self.term, Logged::Grant(id, ttl_secs)));
        let granted = LogIndex(self.log.len() as u64);
        let until = self.now + ttl_secs.cast_unsigned() * 1_000;
        self.promised.insert((id, granted), until);
    }

    fn renew(&mut self, who: usize, id: LeaseId) {
        let time = self.time(who);
        let at = self.now;
        let member = &mut self.members[who];
        if let Renewal::Begun { mark, ttl_secs } = member.clock.renew(id, time) {
            let term = member.clock.term().expect("only a leader begins a renewal");
            member.asked.push(Asked {
                mark,
                ttl_secs,
                at,
                term,
                entry: None,
            });
        }
    }

    /// Proposes all waiting renewals as one entry. The entry of a deposed leader is lost, or, if `late`, it gets into the log
    /// later.
    fn propose_renewals(&mut self, who: usize, late: bool) {
        let Some(term) = self.members[who].clock.term() else {
            return;
        };
        let acts = who == self.leader && term == self.term;
        let index = LogIndex(self.log.len() as u64 + 1);
        let member = &mut self.members[who];
        let waiting = member
            .asked
            .iter_mut()
            .filter(|asked| asked.entry.is_none() && asked.term == term);
        let mut leases: Vec<LeaseMark> = Vec::new();
        for asked in waiting {
            // One that is late has no effect wherever it ends up, so its index does not matter.
            asked.entry = Some(if acts { index } else { LogIndex(u64::MAX) });
            leases.push(asked.mark);
        }
        leases.sort_unstable();
        leases.dedup();
        if leases.is_empty() {
            return;
        }
        let entry = Logged::Renew(RenewLeases { term, leases });
        if acts {
            self.log.push((self.term, entry));
        } else if late {
            self.late.push(entry);
        }
    }

    /// Renewals whose outcome stays unknown: no client gets an answer, and they may be in the log.
    fn give_up(&mut self, who: usize) {
        let time = self.time(who);
        let member = &mut self.members[who];
        for asked in std::mem::take(&mut member.asked) {
            member.clock.settle(asked.term, asked.mark, false, time);
        }
    }

    /// Proposes the checkpoints and expiries that a member's clock returns.
    fn scan(&mut self, who: usize, late: bool) {
        let time = self.time(who);
        let clock = &mut self.members[who].clock;
        let checkpoints = clock.take_checkpoints(time, 8, 8).map(Logged::Checkpoint);
        let expired = clock.take_expired(time, 8).map(Logged::Expire);
        let wanted = [checkpoints, expired].into_iter().flatten();
        if who == self.leader && self.members[who].clock.term() == Some(self.term) {
            self.log.extend(wanted.map(|entry| (self.term, entry)));
        } else if late {
            self.late.extend(wanted);
        }
    }

    /// Keeps the state as of now, as the database does.
    fn store(&mut self, who: usize) {
        let member = &mut self.members[who];
        member.stored = (member.table.clone(), member.applied);
    }

    /// A member restarts with its stored state, and without the renewals that clients waited for.
    fn restart(&mut self, who: usize) {
        let (now, time) = (self.now, self.time(who));
        let member = &mut self.members[who];
        (member.table, member.applied) = member.stored.clone();
        let rows: Vec<_> = member
            .table
            .iter()
            .map(|(id, lease)| (id, lease.row))
            .collect();
        member.stamps = rows
            .iter()
            .map(|(id, row)| ((*id, row.granted), now))
            .collect();
        member.clock = LeaseClock::new(SETTINGS, rows, time);
        member.led_at = None;
        member.asked.clear();
    }

    /// No lease is counted for longer than its time from when this member applied it, or began to lead.
    fn check_lateness(&self) {
        for member in &self.members {
            for (id, lease) in member.table.iter() {
                let Some(due) = member.clock.due(id) else {
                    panic!("{id} is not counted");
                };
                let ttl = lease.row.ttl_secs.cast_unsigned() * 1_000;
                let stamp = member.stamps[&(id, lease.row.granted)];
                let led = member.led_at.map_or(0, |at| at + SETTINGS.grace.0);
                let latest = member.clock_start + (stamp + ttl).max(led);
                assert!(due.0 <= latest, "{id} is due at {due:?}, not by {latest}");
            }
            assert_eq!(member.clock.ids_by_due().len(), member.table.iter().count());
        }
    }

    /// In the end the leader applies all, nobody renews any more, and every lease ends.
    fn run_out(&mut self) {
        self.propose_renewals(self.leader, false);
        for _ in 0..3 {
            self.apply(self.leader, usize::MAX);
            self.give_up(self.leader);
            let leader = &self.members[self.leader];
            let start = leader.clock_start;
            let dues = leader
                .clock
                .ids_by_due()
                .into_iter()
                .filter_map(|id| leader.clock.due(id));
            let last = dues.max().map_or(0, |due| due.0.saturating_sub(start));
            self.now = self.now.max(last);
            self.scan(self.leader, false);
        }
        self.apply(self.leader, usize::MAX);
        // An expiry whose outcome was forgotten before is proposed again only then; the model never forgets one.
        let left = self.members[self.leader].table.iter().count();
        assert_eq!(left, 0, "leases that never end");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Wait(u64),
    Elect(usize),
    Apply(usize, usize),
    Grant(i64, i64),
    Revoke(i64),
    Renew(usize, i64),
    Propose(usize, bool),
    GiveUp(usize),
    Scan(usize, bool),
    Store(usize),
    Restart(usize),
    Arrive,
}

fn event() -> impl Strategy<Value = Event> {
    let who = 0_usize..3;
    prop_oneof![
        4 => (0_u64..3_000).prop_map(Event::Wait),
        1 => who.clone().prop_map(Event::Elect),
        8 => (who.clone(), 1_usize..6).prop_map(|(who, entries)| Event::Apply(who, entries)),
        2 => (0_i64..3, 2_i64..20).prop_map(|(id, ttl)| Event::Grant(id, ttl)),
        1 => (0_i64..3).prop_map(Event::Revoke),
        6 => (who.clone(), 0_i64..3).prop_map(|(who, id)| Event::Renew(who, id)),
        4 => (who.clone(), any::<bool>()).prop_map(|(who, late)| Event::Propose(who, late)),
        1 => who.clone().prop_map(Event::GiveUp),
        4 => (who.clone(), any::<bool>()).prop_map(|(who, late)| Event::Scan(who, late)),
        1 => who.clone().prop_map(Event::Store),
        1 => who.prop_map(Event::Restart),
        1 => Just(Event::Arrive),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn no_lease_ends_early_none_late_and_members_agree(
        events in proptest::collection::vec(event(), 1..200),
    ) {
        let mut model = Model::new();
        for event in events {
            match event {
                Event::Wait(millis) => model.now += millis,
                Event::Elect(who) => model.elect(who),
                Event::Apply(who, entries) => model.apply(who, entries),
                Event::Grant(id, ttl) => model.grant(LeaseId(id), ttl),
                Event::Revoke(id) => model.log.push((model.term, Logged::Revoke(LeaseId(id)))),
                Event::Renew(who, id) => model.renew(who, LeaseId(id)),
                Event::Propose(who, late) => model.propose_renewals(who, late),
                Event::GiveUp(who) => model.give_up(who),
                Event::Scan(who, late) => model.scan(who, late),
                Event::Store(who) => model.store(who),
                // A leader that restarts leads no more.
                Event::Restart(who) if who == model.leader => {
                    model.restart(who);
                    model.elect((who + 1) % 3);
                }
                Event::Restart(who) => model.restart(who),
                Event::Arrive => {
                    let term = model.term;
                    model.log.extend(model.late.drain(..).map(|entry| (term, entry)));
                }
            }
            model.check_lateness();
        }
        model.run_out();
        for who in 0..3 {
            model.apply(who, usize::MAX);
        }
        prop_assert_eq!(&model.members[0].table, &model.members[1].table);
        prop_assert_eq!(&model.members[1].table, &model.members[2].table);
    }
}
