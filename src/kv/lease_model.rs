//! Tests of leases as a whole: the countdown against a naive one, and clocks, log and table of several members against the one
//! promise that counts: a client that was told its lease lives for so long keeps it for so long.

use super::{
    command::{CheckpointLeases, ExpireLeases, LogPosition},
    lease::{LeaseChange, LeaseRow, LeaseTable},
    lease_clock::{ClockSettings, LeaseClock, Renewal},
};
use crate::types::{LeaseId, LogIndex, Millis, Term};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SETTINGS: ClockSettings = ClockSettings {
    grace: Millis(1_000),
    checkpoint_every: Millis(5_000),
};

fn granted(id: LeaseId, ttl_secs: i64, index: u64) -> LeaseChange {
    LeaseChange::Granted {
        id,
        row: LeaseRow::new(ttl_secs, LogIndex(index)),
    }
}

fn expired_ids(clock: &mut LeaseClock, now: u64) -> Vec<i64> {
    let expired = clock.take_expired(Millis(now), usize::MAX);
    let leases = expired.map(|expire| expire.leases).unwrap_or_default();
    leases.into_iter().map(|mark| mark.id.0).collect()
}

#[test]
fn a_follower_counts_nothing() {
    let mut clock = LeaseClock::new(SETTINGS, [(LeaseId(1), LeaseRow::new(2, LogIndex(1)))]);
    assert_eq!(clock.renew(LeaseId(1), Millis(0)), Renewal::NotLeading);
    assert_eq!(clock.time_left(LeaseId(1), Millis(0)), None);
    assert!(expired_ids(&mut clock, 1_000_000).is_empty());
}

#[test]
fn a_new_leader_gives_all_time_and_an_election_timeout() {
    let mut clock = LeaseClock::new(SETTINGS, [(LeaseId(1), LeaseRow::new(2, LogIndex(1)))]);
    clock.lead(Term(3), Millis(10_000));
    assert!(expired_ids(&mut clock, 12_999).is_empty());
    assert_eq!(expired_ids(&mut clock, 13_000), [1]);
}

#[test]
fn a_lease_whose_time_is_up_never_comes_back_in_this_term() {
    let mut clock = LeaseClock::new(SETTINGS, []);
    clock.lead(Term(3), Millis(0));
    clock.applied(&granted(LeaseId(1), 2, 5), Millis(0));
    assert_eq!(clock.renew(LeaseId(1), Millis(2_000)), Renewal::Ending);
    let expired = clock.take_expired(Millis(2_000), 10);
    assert_eq!(clock.renew(LeaseId(1), Millis(2_001)), Renewal::Ending);
    // Its proposal times out: it is proposed again, and only once.
    clock.expiry_unknown(&expired.expect("it is due"));
    assert_eq!(expired_ids(&mut clock, 2_002), [1]);
    assert!(expired_ids(&mut clock, 9_000).is_empty());
    assert_eq!(clock.renew(LeaseId(1), Millis(9_000)), Renewal::Ending);
    clock.lead(Term(4), Millis(9_000));
    let renewed = Renewal::Renewed {
        ttl_secs: 2,
        term: Term(4),
    };
    assert_eq!(clock.renew(LeaseId(1), Millis(9_001)), renewed);
}

#[test]
fn a_renewal_waits_until_the_checkpoint_is_taken_back() {
    let id = LeaseId(1);
    let mut clock = LeaseClock::new(SETTINGS, []);
    clock.lead(Term(3), Millis(0));
    clock.applied(&granted(id, 20, 5), Millis(0));
    assert_eq!(clock.take_checkpoints(Millis(4_999), 10), None);
    let checkpoint = clock.take_checkpoints(Millis(5_000), 10);
    let checkpoint = checkpoint.expect("an interval has passed");
    assert_eq!(checkpoint.leases[0].1, 15);
    // Not applied yet, and already it counts.
    assert_eq!(clock.renew(id, Millis(6_000)), Renewal::AfterClear);
    assert_eq!(clock.take_checkpoints(Millis(11_000), 10), None);
    let clears = clock.take_clears(10).expect("a renewal waits");
    assert_eq!(clears.leases[0].1, 0);
    let mut row = LeaseRow::new(20, LogIndex(5));
    row.remaining_secs = 15;
    clock.applied(&LeaseChange::Checkpointed { id, row }, Millis(11_500));
    assert_eq!(clock.renew(id, Millis(11_600)), Renewal::AfterClear);
    row.remaining_secs = 0;
    clock.applied(&LeaseChange::Checkpointed { id, row }, Millis(11_700));
    let renewed = Renewal::Renewed {
        ttl_secs: 20,
        term: Term(3),
    };
    assert_eq!(clock.renew(id, Millis(11_800)), renewed);
    assert_eq!(clock.take_clears(10), None);
}

/// What a new leader would give each second to a lease that nobody renews, in seconds.
fn given_by_a_new_leader(ttl_secs: i64, checkpoint_every: u64) -> Vec<i64> {
    let settings = ClockSettings {
        checkpoint_every: Millis(checkpoint_every),
        ..SETTINGS
    };
    let mut clock = LeaseClock::new(settings, []);
    clock.lead(Term(3), Millis(0));
    clock.applied(&granted(LeaseId(1), ttl_secs, 5), Millis(0));
    let mut given = Vec::new();
    let mut row = LeaseRow::new(ttl_secs, LogIndex(5));
    for second in 0..ttl_secs.cast_unsigned() {
        let checkpoint = clock.take_checkpoints(Millis(second * 1_000), 10);
        if let Some(checkpoint) = checkpoint {
            row.remaining_secs = checkpoint.leases[0].1;
            let id = LeaseId(1);
            clock.applied(
                &LeaseChange::Checkpointed { id, row },
                Millis(second * 1_000),
            );
        }
        given.push(row.start_secs());
    }
    given
}

#[test]
fn a_short_lease_is_checkpointed_at_a_half_and_a_quarter() {
    assert_eq!(given_by_a_new_leader(8, 300_000), [8, 8, 8, 8, 4, 4, 2, 2]);
    let minute = given_by_a_new_leader(60, 300_000);
    assert_eq!(
        (minute[29], minute[30], minute[45], minute[59]),
        (60, 30, 15, 15)
    );
    assert_eq!(given_by_a_new_leader(3, 300_000), [3, 3, 3]);
}

#[test]
fn a_long_lease_is_checkpointed_in_intervals() {
    let given = given_by_a_new_leader(100, 20_000);
    let at = |second: usize| given[second];
    assert_eq!([at(19), at(20), at(40), at(60)], [100, 80, 60, 40]);
    // The last interval as a lease of that length.
    assert_eq!([at(80), at(90), at(95), at(99)], [20, 10, 5, 5]);
}

/// A lease that is renewed as clients do it never has a checkpoint in the log.
#[test]
fn a_renewed_lease_costs_the_log_nothing() {
    let mut clock = LeaseClock::new(SETTINGS, []);
    clock.lead(Term(3), Millis(0));
    clock.applied(&granted(LeaseId(1), 9, 5), Millis(0));
    for second in 0..600 {
        let now = Millis(second * 1_000);
        if second % 3 == 0 {
            let renewed = Renewal::Renewed {
                ttl_secs: 9,
                term: Term(3),
            };
            assert_eq!(clock.renew(LeaseId(1), now), renewed);
        }
        assert_eq!(clock.take_checkpoints(now, 10), None);
    }
}

#[test]
fn expiries_come_in_bounded_batches_oldest_first() {
    let mut clock = LeaseClock::new(SETTINGS, []);
    clock.lead(Term(1), Millis(0));
    for id in 1..=5 {
        clock.applied(&granted(LeaseId(id), 10 - id, 1), Millis(0));
    }
    let take = |clock: &mut LeaseClock| {
        let expired = clock.take_expired(Millis(20_000), 2).map(|e| e.leases);
        let ids = expired.into_iter().flatten().map(|mark| mark.id.0);
        ids.collect::<Vec<_>>()
    };
    assert_eq!(take(&mut clock), [5, 4]);
    assert_eq!(take(&mut clock), [3, 2]);
    assert!(clock.has_expired(Millis(20_000)));
    assert_eq!(take(&mut clock), [1]);
    assert!(!clock.has_expired(Millis(20_000)));
}

/// The countdown, done simply: one list.
#[derive(Default)]
struct Naive {
    /// Id, time to live, deadline, whether its end is proposed.
    leases: Vec<(i64, u64, u64, bool)>,
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Grant(i64, u64),
    Renew(i64),
    Revoke(i64),
    Scan,
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0_i64..6;
    prop_oneof![
        3 => (0_u64..2_500).prop_map(Step::Wait),
        3 => (id.clone(), 1_u64..9).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        3 => id.clone().prop_map(Step::Renew),
        1 => id.prop_map(Step::Revoke),
        2 => Just(Step::Scan),
        1 => Just(Step::Forget),
    ]
}

proptest! {
    #[test]
    fn the_countdown_is_the_naive_one(steps in proptest::collection::vec(step(), 1..120)) {
        let settings = ClockSettings { checkpoint_every: Millis(u64::MAX), ..SETTINGS };
        let mut clock = LeaseClock::new(settings, []);
        clock.lead(Term(1), Millis(0));
        let mut naive = Naive::default();
        let mut last: Option<ExpireLeases> = None;
        let (mut now, mut index) = (0, 0);
        for step in steps {
            match step {
                Step::Wait(millis) => now += millis,
                Step::Grant(id, ttl) => {
                    if naive.leases.iter().all(|lease| lease.0 != id) {
                        index += 1;
                        naive.leases.push((id, ttl, now + ttl * 1_000, false));
                        clock.applied(&granted(LeaseId(id), ttl.cast_signed(), index), Millis(now));
                    }
                }
                Step::Renew(id) => {
                    let mut expected = Renewal::Unknown;
                    for lease in naive.leases.iter_mut().filter(|lease| lease.0 == id) {
                        expected = Renewal::Ending;
                        if lease.2 > now && !lease.3 {
                            lease.2 = now + lease.1 * 1_000;
                            expected = Renewal::Renewed { ttl_secs: lease.1.cast_signed(), term: Term(1) };
                        }
                    }
                    prop_assert_eq!(clock.renew(LeaseId(id), Millis(now)), expected);
                }
                Step::Revoke(id) => {
                    naive.leases.retain(|lease| lease.0 != id);
                    clock.applied(&LeaseChange::Revoked { id: LeaseId(id) }, Millis(now));
                }
                Step::Scan => {
                    last = clock.take_expired(Millis(now), usize::MAX);
                    let mut taken: Vec<i64> = last.iter().flat_map(|e| &e.leases).map(|m| m.id.0).collect();
                    taken.sort_unstable();
                    let mut due: Vec<i64> = Vec::new();
                    for lease in naive.leases.iter_mut().filter(|lease| lease.2 <= now && !lease.3) {
                        lease.3 = true;
                        due.push(lease.0);
                    }
                    due.sort_unstable();
                    prop_assert_eq!(taken, due);
                }
                Step::Forget => {
                    if let Some(expire) = last.take() {
                        clock.expiry_unknown(&expire);
                        for mark in &expire.leases {
                            for lease in naive.leases.iter_mut().filter(|lease| lease.0 == mark.id.0) {
                                lease.3 = false;
                            }
                        }
                    }
                }
            }
            for &(id, ttl, deadline, proposed) in &naive.leases {
                let left = if proposed { 0 } else { deadline.saturating_sub(now) };
                let time = clock.time_left(LeaseId(id), Millis(now));
                prop_assert_eq!(time.map(|time| (time.left.0, time.ttl_secs)), Some((left, ttl.cast_signed())));
            }
            prop_assert_eq!(clock.ids().count(), naive.leases.len());
        }
    }
}

/// An entry of the model's log.
#[derive(Clone, Debug)]
enum Logged {
    Noop,
    Grant(LeaseId, i64),
    Revoke(LeaseId),
    Expire(ExpireLeases),
    Checkpoint(CheckpointLeases),
}

#[derive(Debug)]
struct Member {
    table: LeaseTable,
    clock: LeaseClock,
    applied: usize,
    applied_term: Term,
    /// Renewals that wait for a checkpoint to be taken back.
    waiting: Vec<LeaseId>,
}

/// Members over one log. Whoever is elected has the whole log; messages of deposed leaders may still enter it, as they do
/// where a proposal is forwarded late.
#[derive(Debug)]
struct Model {
    now: u64,
    term: Term,
    leader: usize,
    log: Vec<(Term, Logged)>,
    members: Vec<Member>,
    /// Until when a client was told each lease lives, by the grant it knows.
    promised: BTreeMap<(LeaseId, LogIndex), u64>,
    late: Vec<Logged>,
}

impl Model {
    fn new() -> Self {
        let member = |_| Member {
            table: LeaseTable::default(),
            clock: LeaseClock::new(SETTINGS, []),
            applied: 0,
            applied_term: Term(0),
            waiting: Vec::new(),
        };
        let mut model = Self {
            now: 0,
            term: Term(0),
            leader: 0,
            log: Vec::new(),
            members: (0..3).map(member).collect(),
            promised: BTreeMap::new(),
            late: Vec::new(),
        };
        model.elect(0);
        model
    }

    fn elect(&mut self, leader: usize) {
        self.term = Term(self.term.0 + 1);
        self.leader = leader;
        self.log.push((self.term, Logged::Noop));
    }

    fn apply(&mut self, who: usize, entries: usize) {
        for _ in 0..entries {
            let member = &mut self.members[who];
            let Some((term, entry)) = self.log.get(member.applied).cloned() else {
                break;
            };
            member.applied += 1;
            member.applied_term = term;
            let at = LogPosition {
                index: LogIndex(member.applied as u64),
                term,
            };
            let mut changes = Vec::new();
            match entry {
                Logged::Noop => {}
                Logged::Grant(id, ttl) => {
                    let row = LeaseRow::new(ttl, at.index);
                    if member.table.grant(id, row).is_ok() {
                        changes.push(LeaseChange::Granted { id, row });
                    }
                }
                Logged::Revoke(id) => {
                    if member.table.revoke(id).is_ok() {
                        changes.push(LeaseChange::Revoked { id });
                    }
                }
                Logged::Expire(expire) => {
                    for mark in expire.leases {
                        if member.table.guarded(mark, expire.term, at).is_some() {
                            let promised = self.promised.get(&(mark.id, mark.granted));
                            let until = promised.copied().unwrap_or(0);
                            assert!(until <= self.now, "{mark:?} was promised until {until}");
                            assert!(member.table.revoke(mark.id).is_ok(), "it is there");
                            changes.push(LeaseChange::Revoked { id: mark.id });
                        }
                    }
                }
                Logged::Checkpoint(checkpoint) => {
                    for (mark, secs) in checkpoint.leases {
                        if let Some(lease) = member.table.guarded(mark, checkpoint.term, at) {
                            lease.row.remaining_secs = secs;
                            let (id, row) = (mark.id, lease.row);
                            changes.push(LeaseChange::Checkpointed { id, row });
                        }
                    }
                }
            }
            for change in changes {
                self.members[who].clock.applied(&change, Millis(self.now));
                self.tell(who, &change);
            }
            let member = &mut self.members[who];
            if who == self.leader && term == self.term && member.clock.term() != Some(term) {
                member.clock.lead(term, Millis(self.now));
                member.waiting.clear();
            }
        }
    }

    /// What the leader tells clients when an entry is applied.
    fn tell(&mut self, who: usize, change: &LeaseChange) {
        if who != self.leader {
            return;
        }
        match *change {
            LeaseChange::Checkpointed { id, row } => {
                if row.remaining_secs == 0 && self.members[who].waiting.contains(&id) {
                    self.members[who].waiting.retain(|waiting| *waiting != id);
                    // The client counts from when it asked, which is no later than the leader's count.
                    let left = self.members[who].clock.time_left(id, Millis(self.now));
                    let until = self.now + left.map_or(0, |time| time.left.0);
                    let promised = self.promised.entry((id, row.granted)).or_default();
                    *promised = until.max(*promised);
                }
            }
            LeaseChange::Granted { .. } | LeaseChange::Revoked { .. } => {}
        }
    }

    /// The client counts from when it asked, whenever it is answered.
    fn grant(&mut self, id: LeaseId, ttl_secs: i64) {
        self.log.push((self.term, Logged::Grant(id, ttl_secs)));
        let granted = LogIndex(self.log.len() as u64);
        self.promise(id, LeaseRow::new(ttl_secs, granted));
    }

    fn promise(&mut self, id: LeaseId, row: LeaseRow) {
        let until = self.now + row.ttl_secs.cast_unsigned() * 1_000;
        self.promised.insert((id, row.granted), until);
    }

    fn renew(&mut self, who: usize, id: LeaseId) {
        let renewal = self.members[who].clock.renew(id, Millis(self.now));
        // What a deposed leader says reaches nobody: it cannot confirm that it leads.
        if who != self.leader {
            return;
        }
        match renewal {
            Renewal::Renewed { term, .. } if term == self.term => {
                if let Some(row) = self.members[who].clock.row(id) {
                    self.promise(id, row);
                }
            }
            Renewal::AfterClear => self.members[who].waiting.push(id),
            Renewal::Renewed { .. } | Renewal::Ending | Renewal::Unknown | Renewal::NotLeading => {}
        }
    }

    /// What a member's countdown wants in the log.
    fn scan(&mut self, who: usize, late: bool) {
        let now = Millis(self.now);
        let clock = &mut self.members[who].clock;
        let checkpoints = clock.take_checkpoints(now, 8).map(Logged::Checkpoint);
        let clears = clock.take_clears(8).map(Logged::Checkpoint);
        let expired = clock.take_expired(now, 8).map(Logged::Expire);
        let wanted = [checkpoints, clears, expired].into_iter().flatten();
        if who == self.leader && self.members[who].clock.term() == Some(self.term) {
            self.log.extend(wanted.map(|entry| (self.term, entry)));
        } else if late {
            self.late.extend(wanted);
        }
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
    Scan(usize, bool),
    Arrive,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0_u64..3_000).prop_map(Event::Wait),
        1 => (0_usize..3).prop_map(Event::Elect),
        6 => (0_usize..3, 1_usize..6).prop_map(|(who, entries)| Event::Apply(who, entries)),
        2 => (0_i64..3, 2_i64..20).prop_map(|(id, ttl)| Event::Grant(id, ttl)),
        1 => (0_i64..3).prop_map(Event::Revoke),
        4 => (0_usize..3, 0_i64..3).prop_map(|(who, id)| Event::Renew(who, id)),
        4 => (0_usize..3, any::<bool>()).prop_map(|(who, late)| Event::Scan(who, late)),
        1 => Just(Event::Arrive),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn no_lease_ends_before_its_client_was_told(events in proptest::collection::vec(event(), 1..150)) {
        let mut model = Model::new();
        for event in events {
            match event {
                Event::Wait(millis) => model.now += millis,
                Event::Elect(who) => model.elect(who),
                Event::Apply(who, entries) => model.apply(who, entries),
                Event::Grant(id, ttl) => model.grant(LeaseId(id), ttl),
                Event::Revoke(id) => model.log.push((model.term, Logged::Revoke(LeaseId(id)))),
                Event::Renew(who, id) => model.renew(who, LeaseId(id)),
                Event::Scan(who, late) => model.scan(who, late),
                Event::Arrive => {
                    let term = model.term;
                    model.log.extend(model.late.drain(..).map(|entry| (term, entry)));
                }
            }
        }
        for who in 0..3 {
            model.apply(who, usize::MAX);
        }
        prop_assert_eq!(&model.members[0].table, &model.members[1].table);
        prop_assert_eq!(&model.members[1].table, &model.members[2].table);
    }
}
