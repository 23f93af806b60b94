//! The operator's work on a machine, cut short at any step and begun again: a member joins, is refilled, is replaced, and a
//! survivor's data become a new cluster.
//!
//! Each is first done whole, which counts the operations of the machine's disk: writes, syncs, changes of names. Then it is done
//! again and again, and each time the process dies at another of these operations, by `kill -9` or by a loss of power. The
//! operator begins the work again, as the documents advise. In the end the machine votes and holds what others hold.

use crate::{
    cluster::{Cluster, Crash},
    network::Slot,
    number,
    operator::{Job, Operator, request_refill, votes},
    scene::Scene,
};
use quorate::internals::{
    node::recover_quorum_on,
    storage::{
        disk::Disk,
        sim_disk::{Fault, SimDisk},
    },
};
use std::{collections::BTreeMap, sync::Arc};

/// In how many places each work is cut short, evenly spread over its operations; `SIM_CUTS` says otherwise. Each run draws where
/// the first one is, so all are reached over time; `SIM_CUT` names a single one, to replay it.
const CUTS: u64 = 20;
/// The longest that a work may take with its restarts, in milliseconds.
const WITHIN_MILLIS: u64 = 120_000;
/// Additions are refused until all voters have been connected for a while.
const CONNECTED_MILLIS: u64 = 6_000;
/// How often a machine may stop while one work is done.
const STOPS_MAX: u64 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Join,
    Refill,
    Replace,
}

/// How a work went.
struct Done {
    /// Of the machine's disk.
    operations: u64,
    /// How often its process stopped.
    stops: u64,
}

/// Does a work; the process dies at the `cut`th operation of the machine's disk.
fn run(work: Work, cut: Option<u64>) -> Done {
    // The log is so short that the machine needs a snapshot.
    let mut scene = Scene::with_short_log(1, 3, 20);
    for n in 0..40 {
        scene.put(&[0, 1, 2], &format!("k{n}"), &"v".repeat(1_000));
    }
    let slot = match work {
        Work::Join => scene.cluster.add_machine(),
        Work::Refill | Work::Replace => scene.follower(),
    };
    let cluster = &mut scene.cluster;
    cluster.run(CONNECTED_MILLIS);
    let mut operator = Operator::default();
    match work {
        Work::Join => operator.begin(cluster, Job::add(slot, false)),
        Work::Replace => operator.begin(cluster, Job::replace(slot)),
        Work::Refill => {
            cluster.crash(slot, Crash::Process);
            request_refill(cluster, slot);
            cluster.nodes[slot].restart_at = Some(cluster.now + 2);
        }
    }
    let until = cluster.now + WITHIN_MILLIS;
    let (mut first, mut stops) = (None, 0);
    let is_done = |cluster: &Cluster, operator: &Operator, begun: bool| {
        let serves = cluster.requests(slot).is_some() && votes(cluster, slot) == Some(true);
        begun && serves && !operator.is_busy()
    };
    while !is_done(&*cluster, &operator, first.is_some()) {
        let node = &mut cluster.nodes[slot];
        assert!(
            cluster.now < until,
            "{work:?}, cut at {cut:?}: {operator:?}, {:?}",
            node.stopped
        );
        // The machine is about to start on what the work has prepared.
        if first.is_none() && node.restart_at.is_some() {
            first = Some(node.disk.operations());
            if let Some(cut) = cut {
                node.disk.fail_nth(cut, Fault::Death);
            }
        }
        cluster.step();
        operator.step(cluster);
        if cluster.nodes[slot].disk.is_dead() {
            cluster.crash(slot, Crash::Process);
        }
        let ended = !cluster.has_process(slot);
        let node = &mut cluster.nodes[slot];
        if first.is_some() && ended && node.restart_at.is_none() {
            stops += 1;
            assert!(stops <= STOPS_MAX, "it stops again: {:?}", node.stopped);
            if cut.is_some_and(loses_power) {
                node.disk.crash();
            }
            node.restart_at = Some(cluster.now + 2);
        }
    }
    let operations = cluster.nodes[slot].disk.operations() - first.unwrap_or_default();
    scene.same_everywhere();
    Done { operations, stops }
}

/// Whether the machine loses power at this cut. Otherwise the process is killed, and the system keeps what was written.
fn loses_power(cut: u64) -> bool {
    cut.is_multiple_of(2)
}

fn is_begun_again_after_a_cut_anywhere(work: Work) {
    // In the simulation, what is drawn is always the same.
    let drawn = quorate::internals::clock::entropy();
    let whole = run(work, None);
    let operations = whole.operations;
    assert!(operations > CUTS, "{operations} operations");
    assert_eq!(whole.stops, 0, "nothing is wrong with it");
    let cuts = number("SIM_CUTS").unwrap_or(CUTS).min(operations);
    let cuts = match number("SIM_CUT") {
        Some(cut) => vec![cut.clamp(1, operations)],
        None => places(operations, cuts, drawn),
    };
    for cut in cuts {
        announce(work, cut, operations);
        let stops = run(work, Some(cut)).stops;
        assert_eq!(stops, 1, "{work:?}, cut at {cut} of {operations}");
    }
}

#[expect(clippy::print_stdout, reason = "who reads of a failure can replay it")]
fn announce(work: Work, cut: u64, operations: u64) {
    println!("{work:?}, cut at operation {cut} of {operations}: SIM_CUT={cut}");
}

/// So many of the operations, evenly spread. Which they are follows from `drawn`.
fn places(operations: u64, count: u64, drawn: u64) -> Vec<u64> {
    let first = drawn % operations;
    let place = |part: u64| 1 + (operations * part / count + first) % operations;
    (0..count).map(place).collect()
}

#[test]
fn every_operation_is_the_place_of_a_cut_in_some_run() {
    for (operations, count) in [(20, 20), (137, 20), (401, 7)] {
        let mut times = BTreeMap::new();
        for drawn in 0..operations {
            let places = places(operations, count, drawn);
            assert!(places.iter().all(|cut| (1..=operations).contains(cut)));
            for cut in places {
                *times.entry(cut).or_default() += 1;
            }
        }
        let each: Vec<u64> = times.into_values().collect();
        let all = usize::try_from(operations).unwrap();
        assert_eq!(each, vec![count; all], "{count} of {operations}");
    }
}

#[test]
fn a_join_that_is_cut_short_anywhere_is_begun_again() {
    is_begun_again_after_a_cut_anywhere(Work::Join);
}

#[test]
fn a_refill_that_is_cut_short_anywhere_is_begun_again() {
    is_begun_again_after_a_cut_anywhere(Work::Refill);
}

#[test]
fn a_replacement_that_is_cut_short_anywhere_is_begun_again() {
    is_begun_again_after_a_cut_anywhere(Work::Replace);
}

/// The command is cut short at every operation of the new disk, and given again with an empty one. What an unfinished run left
/// never starts; what the finished one left has every write that the survivor acknowledged, and grows to three members again.
#[test]
fn a_quorum_recovery_that_is_cut_short_anywhere_is_begun_again() {
    for seed in 1..3 {
        let mut scene = Scene::of(seed, 3);
        let survivor = scene.follower();
        let kept = written_through(&mut scene, survivor);
        lose_the_others(&mut scene, survivor, seed);
        let old = scene.cluster.nodes[survivor].disk.clone();
        let mut cuts = 0;
        let new = loop {
            let new = SimDisk::new(1_000 * seed + cuts);
            if recover(&old, &new, cuts + 1) {
                break new;
            }
            cuts += 1;
            is_refused_or_complete(&mut scene, survivor, new, &kept);
        };
        assert!(cuts > 20, "only {cuts} operations");
        scene.cluster.nodes[survivor].disk = new;
        scene.cluster.start(survivor);
        has_all(&mut scene, &[survivor], &kept);
        grow_again(&mut scene, survivor);
        scene.put(&[0, 1, 2], "after", "the recovery");
        scene.same_everywhere();
        has_all(&mut scene, &[0, 1, 2], &kept);
    }
}

/// Keys that the survivor has acknowledged, with what each must hold; `None` is a deleted one.
type Kept = BTreeMap<String, Option<String>>;

fn written_through(scene: &mut Scene, survivor: Slot) -> Kept {
    let mut kept = Kept::new();
    for n in 0..40 {
        let (key, value) = (format!("k{}", n % 25), format!("{n}"));
        scene.put(&[survivor], &key, &value);
        kept.insert(key, Some(value));
    }
    for n in 0..5 {
        let key = format!("k{}", n * 4);
        scene.delete(&[survivor], &key);
        kept.insert(key, None);
    }
    kept
}

/// The other machines are lost in the middle of writes whose outcome nobody will know, and the survivor stops.
fn lose_the_others(scene: &mut Scene, survivor: Slot, seed: u64) {
    let others = (0..3).filter(|slot| *slot != survivor);
    for n in 0..10 {
        let cluster = &scene.cluster;
        cluster.client(move |client| async move {
            let put = quorate::internals::kv::command::Put {
                key: format!("unsure{n}").into(),
                value: "perhaps".into(),
                ..Default::default()
            };
            let put = client.call(survivor, 1_000, |requests| async move {
                requests.put(put).await.is_ok()
            });
            put.await.unwrap_or_default();
        });
    }
    scene.cluster.run(4);
    for slot in others {
        scene.cluster.crash(slot, Crash::Power);
    }
    scene.cluster.run(2_000);
    let crash = if loses_power(seed) {
        Crash::Power
    } else {
        Crash::Process
    };
    scene.cluster.crash(survivor, crash);
}

/// Runs the command, which dies at the `cut`th operation of the new disk. Returns whether it ended before that.
fn recover(old: &SimDisk, new: &SimDisk, cut: u64) -> bool {
    new.fail_nth(cut, Fault::Death);
    let (from, into): (Arc<dyn Disk>, Arc<dyn Disk>) =
        (Arc::new(old.clone()), Arc::new(new.clone()));
    let done = recover_quorum_on(&from, &into);
    assert_eq!(
        done.is_err(),
        new.is_dead(),
        "it fails if and only if it was cut short at {cut}: {:?}",
        done.map(|done| done.to_string())
    );
    if loses_power(cut) {
        new.crash();
    } else {
        new.kill_process();
    }
    done.is_ok()
}

/// Starts on what a run left that was cut short: it is refused, or nothing is there yet, or only the last sync was missing and it
/// is complete.
fn is_refused_or_complete(scene: &mut Scene, slot: Slot, left: SimDisk, kept: &Kept) {
    let names = left.list("").unwrap();
    scene.cluster.nodes[slot].disk = left;
    scene.cluster.start(slot);
    let decided = |cluster: &Cluster| {
        cluster.nodes[slot].stopped.is_some() || cluster.requests(slot).is_some()
    };
    scene.cluster.run_until(1_000, decided);
    if let Some(reason) = scene.cluster.nodes[slot].stopped.clone() {
        let advises = reason.contains("run that command again");
        assert!(advises, "{reason}");
        return;
    }
    if scene.cluster.requests(slot).is_some() {
        has_all(scene, &[slot], kept);
    } else {
        let begun = names
            .iter()
            .any(|name| name == "member" || name == "db" || name == "wal");
        assert!(!begun, "it neither starts nor refuses: {names:?}");
    }
    scene.cluster.crash(slot, Crash::Process);
}

fn has_all(scene: &mut Scene, through: &[Slot], kept: &Kept) {
    for (key, value) in kept {
        assert_eq!(scene.get(through, key), *value, "{key}");
    }
}

/// The lost machines get empty disks, and become members of the new cluster one after the other.
fn grow_again(scene: &mut Scene, survivor: Slot) {
    for slot in (0..3).filter(|slot| *slot != survivor) {
        let cluster = &mut scene.cluster;
        cluster.wipe(slot);
        let mut operator = Operator::default();
        operator.begin(cluster, Job::add(slot, false));
        let until = cluster.now + WITHIN_MILLIS;
        while operator.is_busy() || votes(cluster, slot) != Some(true) {
            assert!(
                cluster.now < until,
                "{operator:?}, {:?}",
                cluster.nodes[slot].stopped
            );
            cluster.step();
            operator.step(cluster);
        }
    }
}
