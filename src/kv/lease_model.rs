//! Tests of the countdown: situations one by one, and random ones beside a naive countdown. Several members and their log are
//! in `lease_cluster_model`.

use super::{
    command::ExpireLeases,
    lease::{LeaseChange, LeaseMark, LeaseRow},
    lease_clock::{Backlog, ClockSettings, LeaseClock, Renewal},
};
use crate::types::{LeaseId, LogIndex, Millis, Term};
use proptest::prelude::*;

const SETTINGS: ClockSettings = ClockSettings {
    grace: Millis(500),
    checkpoint_every: Millis(5_000),
};

const ID: LeaseId = LeaseId(1);

fn granted(id: LeaseId, ttl_secs: i64, index: u64) -> LeaseChange {
    LeaseChange::Granted {
        id,
        row: LeaseRow::new(ttl_secs, LogIndex(index)),
    }
}

fn renewed(id: LeaseId, ttl_secs: i64, index: u64) -> LeaseChange {
    LeaseChange::Renewed {
        id,
        row: LeaseRow::new(ttl_secs, LogIndex(index)),
        cleared: false,
    }
}

/// A clock that leads and has one lease, granted at 0.
fn leader(ttl_secs: i64) -> LeaseClock {
    let mut clock = LeaseClock::new(SETTINGS, [], Millis(0));
    clock.lead(Term(3), Millis(0));
    clock.applied(&granted(ID, ttl_secs, 5), Millis(0));
    clock
}

fn begin(clock: &mut LeaseClock, now: u64) -> LeaseMark {
    let renewal = clock.renew(ID, Millis(now));
    let Renewal::Begun { mark, .. } = renewal else {
        panic!("a running lease can be renewed: {renewal:?}");
    };
    mark
}

fn expired_ids(clock: &mut LeaseClock, now: u64) -> Vec<i64> {
    let expired = clock.take_expired(Millis(now), usize::MAX);
    let leases = expired.map(|expire| expire.leases).unwrap_or_default();
    leases.into_iter().map(|mark| mark.id.0).collect()
}

#[test]
fn a_follower_ends_and_renews_nothing() {
    let lease = (ID, LeaseRow::new(2, LogIndex(1)));
    let mut clock = LeaseClock::new(SETTINGS, [lease], Millis(0));
    assert_eq!(clock.renew(ID, Millis(0)), Renewal::NotLeading);
    assert_eq!(clock.time_left(ID, Millis(0)), None);
    assert!(expired_ids(&mut clock, 1_000_000).is_empty());
}

#[test]
fn a_new_leader_goes_on_from_its_own_count() {
    let mut clock = LeaseClock::new(SETTINGS, [], Millis(0));
    clock.applied(&granted(ID, 10, 1), Millis(1_000));
    clock.applied(&granted(LeaseId(2), 10, 2), Millis(1_000));
    clock.applied(&renewed(LeaseId(2), 10, 2), Millis(7_000));
    clock.lead(Term(3), Millis(9_000));
    assert!(expired_ids(&mut clock, 10_999).is_empty());
    assert_eq!(expired_ids(&mut clock, 11_000), [1]);
    assert!(expired_ids(&mut clock, 16_999).is_empty());
    assert_eq!(expired_ids(&mut clock, 17_000), [2]);
}

#[test]
fn what_came_due_while_nobody_led_has_a_grace() {
    let mut clock = LeaseClock::new(SETTINGS, [], Millis(0));
    clock.applied(&granted(ID, 2, 1), Millis(0));
    clock.lead(Term(3), Millis(9_000));
    assert!(expired_ids(&mut clock, 9_499).is_empty());
    let mark = begin(&mut clock, 9_499);
    clock.applied(&renewed(ID, 2, 1), Millis(9_600));
    clock.settle(Term(3), mark, true, Millis(9_600));
    assert!(expired_ids(&mut clock, 11_599).is_empty());
    assert_eq!(expired_ids(&mut clock, 11_600), [1]);
}

#[test]
fn a_member_that_starts_gives_all_time_or_what_a_checkpoint_says() {
    let mut checkpointed = LeaseRow::new(60, LogIndex(2));
    checkpointed.remaining_secs = 7;
    let leases = [
        (ID, LeaseRow::new(60, LogIndex(1))),
        (LeaseId(2), checkpointed),
    ];
    let mut clock = LeaseClock::new(SETTINGS, leases, Millis(1_000));
    assert_eq!(clock.due(ID), Some(Millis(61_000)));
    assert_eq!(clock.due(LeaseId(2)), Some(Millis(8_000)));
    // A checkpoint made since may be newer than its state; time that it counted itself is not in it.
    let row = LeaseRow {
        remaining_secs: 30,
        ..LeaseRow::new(60, LogIndex(1))
    };
    clock.applied(&LeaseChange::Checkpointed { id: ID, row }, Millis(2_000));
    assert_eq!(clock.due(ID), Some(Millis(32_000)));
    clock.applied(&LeaseChange::Checkpointed { id: ID, row }, Millis(9_000));
    assert_eq!(clock.due(ID), Some(Millis(32_000)));
    clock.replace([(ID, row)], Millis(20_000));
    assert_eq!(clock.due(ID), Some(Millis(50_000)));
}

#[test]
fn a_lease_whose_time_is_up_never_comes_back_in_this_term() {
    let mut clock = leader(2);
    assert_eq!(clock.renew(ID, Millis(2_000)), Renewal::Ending);
    let expired = clock.take_expired(Millis(2_000), 10);
    assert_eq!(clock.renew(ID, Millis(2_001)), Renewal::Ending);
    // Its proposal times out: it is proposed again, and only once.
    clock.expiry_unknown(&expired.expect("it is due"));
    assert_eq!(expired_ids(&mut clock, 2_002), [1]);
    assert!(expired_ids(&mut clock, 9_000).is_empty());
    assert_eq!(clock.renew(ID, Millis(9_000)), Renewal::Ending);
    clock.lead(Term(4), Millis(9_000));
    begin(&mut clock, 9_001);
}

#[test]
fn a_lease_does_not_end_while_a_renewal_is_on_its_way() {
    let mut clock = leader(2);
    let first = begin(&mut clock, 1_000);
    assert!(expired_ids(&mut clock, 5_000).is_empty());
    // Late, but the first may be in the log.
    let second = begin(&mut clock, 5_000);
    clock.settle(Term(3), first, false, Millis(6_000));
    assert!(expired_ids(&mut clock, 6_000).is_empty());
    clock.settle(Term(3), second, true, Millis(7_000));
    assert!(expired_ids(&mut clock, 8_999).is_empty());
    // The clock gets the entry after the caller has got its answer.
    clock.applied(&renewed(ID, 2, 5), Millis(7_100));
    assert!(expired_ids(&mut clock, 9_099).is_empty());
    assert_eq!(expired_ids(&mut clock, 9_100), [1]);
}

#[test]
fn a_renewal_of_unknown_fate_leaves_the_lease_as_due_as_it_was() {
    let mut clock = leader(2);
    let mark = begin(&mut clock, 1_000);
    clock.settle(Term(3), mark, false, Millis(9_000));
    assert_eq!(expired_ids(&mut clock, 9_000), [1]);
    // What a term began is over with it.
    let mut clock = leader(2);
    let mark = begin(&mut clock, 1_000);
    clock.lead(Term(4), Millis(1_100));
    begin(&mut clock, 1_200);
    clock.settle(Term(3), mark, true, Millis(1_300));
    assert!(expired_ids(&mut clock, 50_000).is_empty());
}

/// For each second: the seconds that a member which starts then would give a lease that is not renewed.
fn given_after_a_restart(ttl_secs: i64, checkpoint_every: u64) -> Vec<i64> {
    let settings = ClockSettings {
        checkpoint_every: Millis(checkpoint_every),
        ..SETTINGS
    };
    let mut clock = LeaseClock::new(settings, [], Millis(0));
    clock.lead(Term(3), Millis(0));
    clock.applied(&granted(ID, ttl_secs, 5), Millis(0));
    let mut row = LeaseRow::new(ttl_secs, LogIndex(5));
    let mut given = Vec::new();
    for second in 0..ttl_secs.cast_unsigned() {
        let now = Millis(second * 1_000);
        if let Some(checkpoint) = clock.take_checkpoints(now, 1, 10) {
            row.remaining_secs = checkpoint.leases[0].1;
            clock.applied(&LeaseChange::Checkpointed { id: ID, row }, now);
        }
        // The sweep reaches its end.
        assert_eq!(clock.take_checkpoints(now, 1, 10), None);
        given.push(row.start_secs());
    }
    given
}

#[test]
fn a_long_lease_is_checkpointed_in_intervals_and_a_short_one_never() {
    let given = given_after_a_restart(100, 20_000);
    let at = |second: usize| given[second];
    assert_eq!([at(19), at(20), at(40), at(60)], [100, 80, 60, 40]);
    assert_eq!([at(79), at(80), at(99)], [40, 20, 20]);
    assert_eq!(given_after_a_restart(4, 5_000), [4, 4, 4, 4]);
}

#[test]
fn a_lease_that_is_renewed_has_no_checkpoint() {
    let mut clock = leader(20);
    for second in 0..600 {
        let now = Millis(second * 1_000);
        if second % 4 == 0 {
            clock.applied(&renewed(ID, 20, 5), now);
        }
        assert_eq!(clock.take_checkpoints(now, 10, 10), None);
    }
    assert!(clock.take_checkpoints(Millis(601_000), 10, 10).is_some());
    // If it came after a renewal in the log, it would undo that.
    begin(&mut clock, 601_000);
    assert_eq!(clock.take_checkpoints(Millis(602_000), 10, 10), None);
}

#[test]
fn the_sweep_visits_all_leases_in_bounded_steps() {
    let mut clock = LeaseClock::new(SETTINGS, [], Millis(0));
    clock.lead(Term(3), Millis(0));
    for id in 1..=1_000 {
        clock.applied(&granted(LeaseId(id), 60, 5), Millis(0));
    }
    assert_eq!(clock.sweep_step(Millis(100)), 81);
    let mut seen = Vec::new();
    for _ in 0..40 {
        let checkpoint = clock.take_checkpoints(Millis(10_000), 81, 30);
        let leases = checkpoint.map(|checkpoint| checkpoint.leases);
        let leases = leases.unwrap_or_default();
        assert!(leases.len() <= 30);
        for (mark, secs) in leases {
            let row = LeaseRow {
                remaining_secs: secs,
                ..LeaseRow::new(60, mark.granted)
            };
            let id = mark.id;
            clock.applied(&LeaseChange::Checkpointed { id, row }, Millis(10_000));
            seen.push(id.0);
        }
    }
    assert_eq!(seen, (1..=1_000).collect::<Vec<_>>());
}

#[test]
fn expiries_come_in_bounded_batches_oldest_first() {
    let mut clock = LeaseClock::new(SETTINGS, [], Millis(0));
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
    assert_eq!(take(&mut clock), [1]);
    assert_eq!(take(&mut clock), [0; 0]);
}

#[test]
fn the_backlog_tells_what_waited_and_what_nobody_counted() {
    let mut clock = LeaseClock::new(SETTINGS, [], Millis(0));
    clock.applied(&granted(LeaseId(1), 2, 1), Millis(0));
    clock.lead(Term(1), Millis(3_000));
    clock.applied(&granted(LeaseId(2), 2, 1), Millis(3_000));
    assert_eq!(clock.backlog(Millis(3_499)), None);
    let (leases, waited) = (1, None);
    assert_eq!(
        clock.backlog(Millis(3_600)),
        Some(Backlog { leases, waited })
    );
    assert_eq!(expired_ids(&mut clock, 3_600), [1]);
    let waited = Some(Millis(40));
    assert_eq!(
        clock.backlog(Millis(5_040)),
        Some(Backlog { leases, waited })
    );
}

/// The countdown, done simply: one list.
#[derive(Default)]
struct Naive {
    leases: Vec<NaiveLease>,
}

struct NaiveLease {
    id: i64,
    ttl: u64,
    due: u64,
    /// Renewals in flight.
    renewals: Vec<LeaseMark>,
    /// Whether its end is proposed.
    proposed: bool,
    /// Whether a scan, or a renewal, found its time up.
    overdue: bool,
}

impl Naive {
    fn get(&mut self, id: i64) -> Option<&mut NaiveLease> {
        self.leases.iter_mut().find(|lease| lease.id == id)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Wait(u64),
    Grant(i64, u64),
    Renew(i64),
    Settle(i64, bool),
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
        3 => (id.clone(), any::<bool>()).prop_map(|(id, applied)| Step::Settle(id, applied)),
        1 => id.prop_map(Step::Revoke),
        2 => Just(Step::Scan),
        1 => Just(Step::Forget),
    ]
}

/// A leader's clock beside the naive one.
struct Beside {
    clock: LeaseClock,
    naive: Naive,
    last: Option<ExpireLeases>,
    now: u64,
    index: u64,
}

impl Beside {
    fn new() -> Self {
        let mut clock = LeaseClock::new(SETTINGS, [], Millis(0));
        clock.lead(Term(1), Millis(0));
        Self {
            clock,
            naive: Naive::default(),
            last: None,
            now: 0,
            index: 0,
        }
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Wait(millis) => self.now += millis,
            Step::Grant(id, ttl) => self.grant(id, ttl),
            Step::Renew(id) => self.renew(id),
            Step::Settle(id, applied) => self.settle(id, applied),
            Step::Revoke(id) => {
                self.naive.leases.retain(|lease| lease.id != id);
                let change = LeaseChange::Revoked { id: LeaseId(id) };
                self.clock.applied(&change, Millis(now));
            }
            Step::Scan => self.scan(),
            Step::Forget => {
                if let Some(expire) = self.last.take() {
                    self.clock.expiry_unknown(&expire);
                    for mark in &expire.leases {
                        if let Some(lease) = self.naive.get(mark.id.0) {
                            lease.proposed = false;
                        }
                    }
                }
            }
        }
    }

    fn grant(&mut self, id: i64, ttl: u64) {
        if self.naive.get(id).is_some() {
            return;
        }
        self.index += 1;
        self.naive.leases.push(NaiveLease {
            id,
            ttl,
            due: self.now + ttl * 1_000,
            renewals: Vec::new(),
            proposed: false,
            overdue: false,
        });
        let change = granted(LeaseId(id), ttl.cast_signed(), self.index);
        self.clock.applied(&change, Millis(self.now));
    }

    fn renew(&mut self, id: i64) {
        let now = self.now;
        let answer = self.clock.renew(LeaseId(id), Millis(now));
        let Some(lease) = self.naive.get(id) else {
            assert_eq!(answer, Renewal::Unknown);
            return;
        };
        let up = lease.overdue || lease.renewals.is_empty() && lease.due <= now;
        if let Renewal::Begun { mark, ttl_secs } = answer {
            assert!(!up, "its time is up");
            assert_eq!(ttl_secs.cast_unsigned(), lease.ttl);
            lease.renewals.push(mark);
        } else {
            assert!(up && answer == Renewal::Ending, "{answer:?}");
        }
    }

    /// The oldest renewal of a lease ends, in an entry that is applied, or in none.
    fn settle(&mut self, id: i64, applied: bool) {
        let now = self.now;
        let Some(lease) = self
            .naive
            .get(id)
            .filter(|lease| !lease.renewals.is_empty())
        else {
            return;
        };
        let mark = lease.renewals.remove(0);
        let ttl = lease.ttl.cast_signed();
        if applied {
            lease.due = now + lease.ttl * 1_000;
            let change = renewed(mark.id, ttl, mark.granted.0);
            self.clock.applied(&change, Millis(now));
        }
        self.clock.settle(Term(1), mark, applied, Millis(now));
    }

    fn scan(&mut self) {
        let now = self.now;
        self.last = self.clock.take_expired(Millis(now), usize::MAX);
        let taken = self.last.iter().flat_map(|expire| &expire.leases);
        let mut taken: Vec<i64> = taken.map(|mark| mark.id.0).collect();
        taken.sort_unstable();
        let mut due = Vec::new();
        let idle = self
            .naive
            .leases
            .iter_mut()
            .filter(|lease| lease.renewals.is_empty());
        for lease in idle.filter(|lease| lease.due <= now && !lease.proposed) {
            (lease.proposed, lease.overdue) = (true, true);
            due.push(lease.id);
        }
        due.sort_unstable();
        assert_eq!(taken, due);
    }

    fn compare(&mut self) {
        let now = self.now;
        for lease in &self.naive.leases {
            let left = if lease.overdue {
                0
            } else {
                lease.due.saturating_sub(now)
            };
            let time = self.clock.time_left(LeaseId(lease.id), Millis(now));
            let time = time.map(|time| (time.left.0, time.ttl_secs.cast_unsigned()));
            assert_eq!(time, Some((left, lease.ttl)));
        }
        assert_eq!(self.clock.ids_by_due().len(), self.naive.leases.len());
    }
}

proptest! {
    #[test]
    fn the_countdown_is_the_naive_one(steps in proptest::collection::vec(step(), 1..120)) {
        let mut beside = Beside::new();
        for step in steps {
            beside.step(step);
            beside.compare();
        }
    }
}
