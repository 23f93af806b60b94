//! Failures that systems of this kind have had, a test each, named for its situation.
//!
//! Some are storms of one kind of fault under load; some are scenes with given steps. The usual storms draw all of this as well,
//! among much else; here each situation is repeated. `docs/reliability.md` has the list.

use crate::{
    cluster::{Cluster, Crash, ELECTION_MILLIS},
    faults::{Fault, Storm, all_take_part},
    mixed::Mixed,
    network::{STEP_MILLIS, Slot},
    operator,
    run::{Plan, run_with},
    scene::{SEEDS, Scene, of},
};
use quorate::internals::{
    Inspect,
    actors::requests::RequestError,
    kv::{
        KvError,
        command::{Put, RangeQuery, Txn, TxnOp},
        record::KeyValue,
    },
    types::Revision,
};
use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

/// Members are added and removed only while the voters have been connected for a while.
const CONNECTED_MILLIS: u64 = 6_000;

/// How long a cluster may take to form.
const FORM_MILLIS: u64 = 20_000;

/// How long the storms here last.
const STORM_MILLIS: u64 = 15_000;

/// Runs the usual clients while `inject` is called at each step.
fn live_through(size: usize, inject: impl Fn(&mut Cluster, &mut Storm)) {
    for seed in SEEDS {
        let plan = Plan {
            size,
            storm_millis: STORM_MILLIS,
            ..Plan::of(seed)
        };
        run_with(plan, &mut Mixed::default(), &inject);
    }
}

/// Whether something that happens every `millis` is due in this step.
fn every(cluster: &Cluster, millis: u64) -> bool {
    cluster.now % millis < STEP_MILLIS
}

/// After a crash the database was behind or ahead of the log, and the member continued with another revision than the others.
#[test]
fn the_revision_is_the_same_on_all_members_after_crashes_under_load() {
    live_through(3, |cluster, storm| {
        if every(cluster, 1_200) {
            storm.inject(cluster, Fault::Crash);
        }
        if every(cluster, 6_000) {
            storm.inject(cluster, Fault::Blackout);
        }
    });
}

/// A cluster of one member acknowledged writes before its log was synced.
#[test]
fn a_member_alone_keeps_every_acknowledged_write_when_power_fails() {
    live_through(1, |cluster, storm| {
        if every(cluster, 700) {
            storm.inject(cluster, Fault::PowerAtWrite);
        }
        if every(cluster, 1_900) {
            storm.inject(cluster, Fault::Crash);
        }
    });
}

/// Members applied the same change of the membership differently, and their states diverged.
#[test]
fn members_agree_after_changes_of_the_membership_under_load() {
    live_through(3, |cluster, storm| {
        if every(cluster, 900) {
            let change = storm.one_of(&[Fault::Add, Fault::Promote, Fault::Remove, Fault::Replace]);
            storm.inject(cluster, change);
        }
        if every(cluster, 4_000) {
            storm.inject(cluster, Fault::Crash);
        }
    });
}

/// After a crash during a compaction or defragmentation, keys were missing or deleted ones were there again.
#[test]
fn no_key_is_lost_or_back_after_crashes_while_space_is_given_back() {
    for seed in SEEDS {
        let mut scene = Scene::of(seed, 3);
        let all = [0, 1, 2];
        for round in 0..4 {
            for n in 0..40 {
                scene.put(&all, &format!("k{}", n % 20), &format!("{round}.{n}"));
            }
            for n in 0..5 {
                scene.delete(&all, &format!("k{n}"));
            }
            let compacted = compact(&mut scene, &all);
            // The records are removed in steps with pauses between: power fails somewhere in between.
            let wait = 2 + seed * 17 + round * 31;
            scene.cluster.run(wait);
            for slot in all {
                scene.cluster.crash(slot, Crash::Power);
            }
            scene.start_all();
            for n in 0..20 {
                let found = scene.get(&all, &format!("k{n}"));
                let written = format!("{round}.{}", n + 20);
                let expected = (n >= 5).then_some(written);
                assert_eq!(found, expected, "k{n} after round {round}, {compacted}");
            }
        }
        scene.same_everywhere();
    }
}

fn compact(scene: &mut Scene, slots: &[Slot]) -> Revision {
    let slot = scene.leader();
    let newest = scene
        .cluster
        .requests(slot)
        .unwrap()
        .status()
        .unwrap()
        .revision;
    scene.retry_until_ok(slots, move |requests| async move {
        match requests.compact(newest, false).await {
            // The answer to an earlier attempt was lost.
            Ok(_) | Err(RequestError::Kv(KvError::Compacted { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    });
    newest
}

/// The newest revision was a deletion, a compaction removed its record, and after a crash the revision was counted from the
/// newest record that was left.
#[test]
fn the_revision_does_not_go_back_when_all_crash_after_the_compaction_of_a_deletion() {
    for seed in SEEDS {
        let mut scene = Scene::of(seed, 3);
        let all = [0, 1, 2];
        scene.put(&all, "gone", "soon");
        scene.delete(&all, "gone");
        scene.put(&all, "kept", "yes");
        let newest = scene.delete(&all, "kept");
        compact(&mut scene, &all);
        // By then some members have removed the records, and others are removing them.
        scene.cluster.run(seed * 1_500);
        for slot in all {
            let crash = if slot == 0 {
                Crash::Process
            } else {
                Crash::Power
            };
            scene.cluster.crash(slot, crash);
        }
        scene.start_all();
        for slot in all {
            let revision = scene.ask(slot, 5_000, |requests| async move {
                requests.range(of("gone")).await.map(|done| done.revision)
            });
            let revision = revision.expect("it answers").expect("it reads");
            assert!(revision >= newest, "{revision} after {newest}");
        }
        let next = scene.put(&all, "next", "one");
        assert!(next > newest, "{next} is given again after {newest}");
        scene.same_everywhere();
    }
}

/// A transaction read a revision that some members had compacted and others not yet: it wrote on some of them.
#[test]
fn a_transaction_that_reads_a_compacted_revision_does_the_same_on_all_members() {
    for seed in SEEDS {
        let mut scene = Scene::of(seed, 3);
        let all = [0, 1, 2];
        let refused: Rc<RefCell<BTreeSet<bool>>> = Rc::default();
        for round in 0..6 {
            for n in 0..10 {
                scene.put(&all, "old", &format!("{round}.{n}"));
            }
            let leader = scene.leader();
            let lags = (leader + 1) % 3;
            // One member receives all of it later, at once, and after a crash.
            scene.isolate(lags, true);
            let newest = scene
                .cluster
                .requests(leader)
                .unwrap()
                .status()
                .unwrap()
                .revision;
            for n in 0..12_u64 {
                let refused = refused.clone();
                let txn = old_and_new(newest, n);
                scene.cluster.client(move |client| async move {
                    client.pause(client.below(30)).await;
                    let done = client.call(leader, 5_000, move |requests| async move {
                        if n == 5 {
                            return requests.compact(newest, false).await.map(drop);
                        }
                        requests.txn(txn).await.map(drop)
                    });
                    let done = done.await;
                    if n != 5 {
                        refused.borrow_mut().extend(done.map(|done| done.is_err()));
                    }
                });
            }
            scene.cluster.run(400);
            scene.cluster.crash(lags, Crash::Power);
            scene.isolate(lags, false);
            scene.start_all();
            scene.same_everywhere();
        }
        let refused = refused.borrow();
        assert_eq!(
            refused.len(),
            2,
            "some are refused and some are not: {refused:?}"
        );
    }
}

/// Reads the revision before one that is about to be compacted, and writes.
fn old_and_new(newest: Revision, n: u64) -> Txn {
    let put = Put {
        key: format!("new{n}").into(),
        value: "written".into(),
        ..Put::default()
    };
    let old = RangeQuery {
        revision: newest.0 - 1,
        ..of("old")
    };
    Txn {
        success: vec![TxnOp::Put(put), TxnOp::Range(old)],
        ..Txn::default()
    }
}

/// A second snapshot came while the first one was still being put in place, and left a mixture of both.
#[test]
fn two_snapshots_in_quick_succession_leave_the_newer_state() {
    for seed in SEEDS {
        let mut scene = Scene::with_short_log(seed, 3, 20);
        let away = scene.follower();
        let others: Vec<Slot> = (0..3).filter(|slot| *slot != away).collect();
        let mut taken = 0;
        for round in 0..3 {
            scene.isolate(away, true);
            fall_behind(&mut scene, &others, round);
            scene.isolate(away, false);
            // As soon as one is in place the member is away again, so that the next one follows at once; and before it is, the
            // leader may be another one, which sends its own.
            if round == 1 {
                scene.cluster.run(ELECTION_MILLIS / 2 + seed * 10);
                let leader = scene.leader();
                let to = others.iter().find(|slot| **slot != leader);
                scene.move_leader(*to.unwrap());
            }
            let before = taken;
            let came = scene.cluster.run_until(30_000, |cluster| {
                cluster.network.borrow().snapshots > before
            });
            assert!(came, "round {round}: no snapshot comes");
            taken = scene.cluster.network.borrow().snapshots;
        }
        scene.same_everywhere();
        for n in 0..80 {
            let found = scene.get(&[away], &format!("k{n}"));
            assert_eq!(
                found,
                Some(format!("2.{n}")),
                "k{n} on the member that was away"
            );
        }
    }
}

/// Writes so much that the log's beginning is released on all members.
fn fall_behind(scene: &mut Scene, others: &[Slot], round: u64) {
    for n in 0..80 {
        scene.put(others, &format!("k{n}"), &format!("{round}.{n}"));
    }
}

/// A leader was paused while the others elected another one; when it was resumed, it answered reads from its old state.
#[test]
fn a_leader_that_stood_still_reads_nothing_stale_when_it_goes_on() {
    for seed in SEEDS {
        let mut scene = Scene::of(seed, 3);
        for round in 0..5 {
            scene.put(&[0, 1, 2], "k", "old");
            let stood = scene.leader();
            let others: Vec<Slot> = (0..3).filter(|slot| *slot != stood).collect();
            scene.cluster.pause(stood, true);
            let value = format!("new in round {round}");
            scene.put(&others, "k", &value);
            // A read waits for it, and is the first thing that it handles.
            let read: Rc<RefCell<Option<String>>> = Rc::default();
            let found = read.clone();
            scene.cluster.client(move |client| async move {
                let done = client.call(stood, 10_000, |requests| async move {
                    requests.range(of("k")).await.ok().map(|done| done.kvs)
                });
                if let Some(Some(kvs)) = done.await {
                    let kv = KeyValue::decode(&kvs[0]).unwrap();
                    *found.borrow_mut() = Some(String::from_utf8(kv.value.to_vec()).unwrap());
                }
            });
            scene.cluster.run(STEP_MILLIS * 5);
            scene.cluster.pause(stood, false);
            scene.cluster.run(3 * ELECTION_MILLIS);
            let read = read.take();
            assert!(
                read.is_none() || read.as_ref() == Some(&value),
                "{read:?} was read where {value} had been acknowledged"
            );
        }
        scene.same_everywhere();
    }
}

/// The applied index was stored before the data of its entries, so after a crash these entries were skipped.
#[test]
fn the_applied_index_is_never_ahead_of_the_data() {
    live_through(3, |cluster, storm| {
        if every(cluster, 400) {
            storm.inject(cluster, Fault::PowerAtWrite);
        }
        if every(cluster, 2_500) {
            storm.inject(cluster, Fault::Blackout);
        }
    });
}

/// Found here (seed 950009548): a member was added and became leader while another one was away, which then refused its leader's
/// connections for ever, since the leader was not in its address book.
#[test]
fn a_member_that_was_away_hears_of_a_leader_it_does_not_know() {
    for seed in SEEDS {
        let mut scene = Scene::of(seed, 3);
        let leader = scene.leader();
        let away = (leader + 1) % 3;
        let others: Vec<Slot> = (0..3).filter(|slot| *slot != away).collect();
        // It gets nothing of the log. The other two must have been connected for a while to add a member.
        scene.cluster.run(6_000);
        scene.cluster.network.borrow_mut().stall(leader, away, true);
        let new = scene.add_member(&others);
        scene.cluster.crash(away, Crash::Process);
        scene.cluster.network.borrow_mut().restore_all();
        let votes = scene.cluster.run_until(30_000, |cluster| {
            operator::votes(cluster, new) == Some(true)
        });
        assert!(votes, "the new one gets no vote");
        scene.lead_with(new);
        scene.start_all();
        scene.put(&[away], "k", "by the one that was away");
        scene.same_everywhere();
    }
}

/// A leader whose disk stalled stayed leader, and no write could commit.
#[test]
fn a_leader_whose_disk_stalls_hands_over_and_writes_go_on() {
    for seed in SEEDS {
        let mut scene = Scene::of(seed, 3);
        scene.put(&[0, 1, 2], "k", "before");
        let stalls = scene.leader();
        let disk = scene.cluster.nodes[stalls].disk.clone();
        disk.stall(std::time::Duration::from_mins(1));
        // Without a write nothing goes to the disk, and the stall is not noticed.
        scene.ask(stalls, 10, |requests| async move {
            requests
                .put(Put {
                    key: "k".into(),
                    ..Put::default()
                })
                .await
                .is_ok()
        });
        let moved = scene.cluster.run_until(10 * ELECTION_MILLIS, |cluster| {
            cluster.leader().is_some_and(|slot| slot != stalls)
        });
        assert!(moved, "the leader does not hand over");
        assert!(
            scene.cluster.has_process(stalls),
            "it keeps running, as a follower"
        );
        let others: Vec<Slot> = (0..3).filter(|slot| *slot != stalls).collect();
        scene.put(&others, "k", "after");
        disk.stall(std::time::Duration::ZERO);
        scene.cluster.run(60_000);
        scene.same_everywhere();
    }
}

/// A member is removed and added anew, with another id and without data, and then hears only of a member that was cut off before:
/// that one says that it has run before. It waits until a quorum can be asked.
pub(crate) fn a_new_member_hears_only_a_stale_one(seed: u64) {
    let mut scene = Scene::of(seed, 5);
    scene.put(&[0, 1, 2, 3, 4], "k", "v");
    let led = scene.leader();
    let (anew, stale) = ((led + 1) % 5, (led + 2) % 5);
    scene.cluster.run(CONNECTED_MILLIS);
    for apart in [anew, stale] {
        scene.isolate(apart, true);
    }
    for (from, to) in [(anew, stale), (stale, anew)] {
        scene.cluster.network.borrow_mut().cut(from, to, false);
    }
    let cluster = &mut scene.cluster;
    let mut operator = operator::Operator::default();
    operator.begin(cluster, operator::Job::replace(anew));
    let (until, mut begun) = (cluster.now + 60_000, false);
    while cluster.now < until {
        cluster.step();
        operator.step(cluster);
        begun |= cluster.nodes[anew].joins;
        let stopped = &cluster.nodes[anew].stopped;
        assert!(!begun || stopped.is_none(), "it stopped: {stopped:?}");
    }
    assert!(begun, "it was added anew: {operator:?}");
    assert!(cluster.requests(anew).is_none(), "it waits");
    cluster.network.borrow_mut().restore_all();
    let until = cluster.now + 60_000;
    while operator.is_busy() {
        assert!(cluster.now < until, "it never serves: {operator:?}");
        cluster.step();
        operator.step(cluster);
    }
    scene.same_everywhere();
}

/// A voter loses its disk before the log says that it has started, and is started again as it was. Only the others' records say
/// that it took part: they stop it, and it is replaced.
fn a_voter_loses_its_disk_at_the_beginning(seed: u64) {
    let size = if seed.is_multiple_of(2) { 5 } else { 3 };
    let mut cluster = Cluster::new(seed, size, false);
    assert!(
        cluster.run_until(FORM_MILLIS, all_take_part),
        "the cluster does not form"
    );
    let mut scene = Scene { cluster };
    let lost = (scene.leader() + 1) % size;
    assert!(!is_started(&scene.cluster, lost), "the log would say it");
    scene.cluster.lose_disk(lost);
    scene.cluster.start(lost);
    let cluster = &mut scene.cluster;
    let ended = cluster.run_until(FORM_MILLIS, |cluster| !cluster.has_process(lost));
    assert!(ended, "it is not stopped");
    let reason = cluster.nodes[lost].stopped.clone().unwrap_or_default();
    let remedy = operator::Remedy::of(&reason);
    assert_eq!(remedy, operator::Remedy::Replace, "{reason}");
    cluster.run(CONNECTED_MILLIS);
    operate(cluster, operator::Job::replace(lost));
    scene.same_everywhere();
}

/// Found by a storm (seed 135219340): a member that was added loses its disk before the log says that it has started. It has no
/// vote yet, so it may begin again under its id, with an empty log. Or its leader, which knows what it had acknowledged, stops
/// it, and it is replaced. Nothing is lost either way.
fn an_added_member_loses_its_disk_before_it_has_started(seed: u64) {
    let mut scene = Scene::of(seed, 3);
    scene.put(&[0, 1, 2], "k", "v");
    scene.cluster.run(CONNECTED_MILLIS);
    let added = scene.cluster.add_machine();
    scene.add(&[0, 1, 2], added, false);
    let cluster = &mut scene.cluster;
    cluster.nodes[added].vacant = false;
    cluster.start(added);
    // From a member that has received nothing to one that is about to vote.
    let millis = seed % 20 * 50;
    let votes = |cluster: &Cluster| operator::votes(cluster, added) == Some(true);
    if cluster.run_until(millis, votes) {
        return;
    }
    cluster.crash(added, Crash::Power);
    cluster.nodes[added].disk = cluster.new_disk();
    cluster.start(added);
    let stopped = |cluster: &Cluster| cluster.nodes[added].stopped.clone();
    let decided = cluster.run_until(60_000, |cluster| {
        votes(cluster) || stopped(cluster).is_some()
    });
    assert!(decided, "it neither votes nor stops");
    if let Some(reason) = stopped(cluster) {
        let remedy = operator::Remedy::of(&reason);
        assert_eq!(remedy, operator::Remedy::Replace, "{reason}");
        operate(cluster, operator::Job::replace(added));
    }
    scene.same_everywhere();
}

/// Whether the log says that a machine's member has started.
fn is_started(cluster: &Cluster, slot: Slot) -> bool {
    let requests = cluster.requests(slot).expect("it runs");
    let member = requests.identity().member;
    let published = requests.published();
    let own = published.members.get(member);
    own.is_some_and(|own| own.info.is_started())
}

/// Lets an operator do a job.
fn operate(cluster: &mut Cluster, job: operator::Job) {
    let mut operator = operator::Operator::default();
    operator.begin(cluster, job);
    let until = cluster.now + 60_000;
    while operator.is_busy() {
        assert!(cluster.now < until, "it is not done: {operator:?}");
        cluster.step();
        operator.step(cluster);
    }
}

#[test]
fn a_voter_that_loses_its_disk_at_the_beginning_is_stopped() {
    for seed in SEEDS {
        a_voter_loses_its_disk_at_the_beginning(seed);
    }
}

#[test]
fn an_added_member_that_loses_its_disk_before_it_has_started_votes_in_the_end() {
    for seed in 0..20 {
        an_added_member_loses_its_disk_before_it_has_started(seed);
    }
}

#[test]
fn a_new_member_that_hears_only_a_stale_one_waits() {
    for seed in SEEDS {
        a_new_member_hears_only_a_stale_one(seed);
    }
}
