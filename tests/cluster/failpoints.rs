//! Members of a build with failpoints crash at each of them in turn, or are held up for a second at a time, under load.
//!
//! Compiled with the feature `failpoints`, which the members then have too: `cargo test --features failpoints --test cluster
//! failpoints`.

use crate::{
    ctl::etcdctl,
    membership::id,
    scene::Scene,
    support::{Cluster, Member},
};
use quorate::internals::failpoint::FailPoint;
use std::time::Duration;
use tokio::time::timeout;

/// Entries that the members keep for others: so few that a member which was down for a moment needs a snapshot.
const LOG_KEEP_ENTRIES: &str = "100";
/// How long a member is down before it starts again and crashes. Meanwhile the others write far more than they keep.
const AWAY: Duration = Duration::from_millis(1_500);
/// A point is passed up to this many times before the crash.
const PASSES: u32 = 12;
/// How long a member may take to reach a point.
const REACH_MAX: Duration = Duration::from_mins(6);
/// How long a watch runs.
const LOOK: Duration = Duration::from_millis(400);
/// How long members are delayed at random points.
const HOLD: Duration = Duration::from_secs(12);

async fn members() -> Cluster {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        member.set("QUORATE_STORAGE_LOG_KEEP_ENTRIES", LOG_KEEP_ENTRIES);
        member.start();
    }
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_crashes_at_each_point_in_turn() {
    let mut scene = Scene::begin("failpoints", members().await).await;
    // These members keep too few entries to read any from their logs; `log_reads` has that point.
    let points = FailPoint::RUNNING.into_iter();
    let points = points.filter(|point| *point != FailPoint::BeforeLogRead);
    for (n, point) in points.enumerate() {
        let member = n % 3;
        scene.kill(member).await;
        scene.pass(AWAY).await;
        let passes = if is_rare(point) {
            0
        } else {
            scene.random.u32(..PASSES)
        };
        let action = format!("{}={passes}*off->return", point.name());
        scene.cluster.members[member].set("FAILPOINTS", &action);
        scene.restart(member);
        crash(&mut scene, member, point).await;
        scene.cluster.members[member].unset("FAILPOINTS");
        scene.restart(member);
        let served = scene.until_served(&[member]).await;
        scene.say(&format!(
            "n{} crashed at {action}, and served again after {served:?}",
            member + 1
        ));
    }
    scene.end().await;
}

/// Points that a member passes once in a while: waiting for the twelfth time takes too long.
fn is_rare(point: FailPoint) -> bool {
    use FailPoint as P;
    matches!(
        point,
        P::BeforeStoredRead
            | P::BeforeHardState
            | P::AfterHardState
            | P::BeforeMembershipApply
            | P::AfterMembershipApply
            | P::BeforeIndexPrune
            | P::BeforeCompactStep
            | P::AfterCompactStep
            | P::BeforeSnapshotSend
            | P::AfterSnapshotSend
            | P::BeforeSnapshotReceive
            | P::AfterSnapshotReceive
            | P::BeforeSnapshotSwitch
            | P::AfterSnapshotRename
            | P::AfterSnapshotSwitch
    )
}

/// Runs the operations that pass every point, until the member has crashed at its own.
async fn crash(scene: &mut Scene, member: usize, point: FailPoint) {
    let start = quorate::internals::clock::now();
    let said = format!("failpoint {}: crash", point.name());
    let mut turn = 0;
    while !scene.cluster.members[member].log().contains(&said) {
        assert!(
            start.elapsed() < REACH_MAX,
            "n{} never comes to {}",
            member + 1,
            point.name()
        );
        request_mixture(scene, member, turn).await;
        turn += 1;
    }
    if scene.cluster.members[member].runs() {
        scene.kill(member).await;
    } else {
        scene.cluster.members[member].stopped().await;
    }
}

/// A request that may fail: members die meanwhile.
async fn request_mixture(scene: &mut Scene, member: usize, turn: usize) {
    let all = scene.cluster.ports();
    let others: Vec<u16> = (0..3)
        .filter(|other| *other != member)
        .map(|other| all[other])
        .collect();
    let name = scene.cluster.members[member].name.clone();
    match turn % 6 {
        0 => {
            scene.compact((member + 1) % 3).await;
        }
        1 => {
            let own = [all[member]];
            let look = etcdctl(&own, &["watch", "", "--prefix"]);
            drop(timeout(LOOK, look).await);
        }
        2 => {
            let id = id(&others, &name).await;
            drop(etcdctl(&all, &["move-leader", &id]).await);
        }
        3 => {
            let id = id(&others, &name).await;
            let place = format!(
                "--peer-urls=http://127.0.0.1:{}",
                scene.cluster.members[member].peer
            );
            drop(etcdctl(&others, &["member", "update", &id, &place]).await);
        }
        4 => {
            // Another one falls behind, so that this one, if it leads, has a snapshot to send.
            let other = (member + 1) % 3;
            let id = id(&others, &name).await;
            scene.kill(other).await;
            scene.pass(AWAY).await;
            drop(etcdctl(&all, &["move-leader", &id]).await);
            scene.restart(other);
            scene.pass(AWAY).await;
        }
        _ if scene.cluster.members[member].runs() => {
            // This one falls behind once more, and has a snapshot to take.
            scene.kill(member).await;
            scene.pass(AWAY).await;
            scene.restart(member);
            scene.pass(AWAY).await;
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_held_up_at_any_point() {
    let mut cluster = Cluster::new(3).await;
    let everywhere: Vec<String> = FailPoint::RUNNING
        .iter()
        .map(|point| format!("{}=0.1%return(1000)", point.name()))
        .collect();
    for member in &mut cluster.members {
        member.set("QUORATE_STORAGE_LOG_KEEP_ENTRIES", LOG_KEEP_ENTRIES);
        member.set("FAILPOINTS", &everywhere.join(";"));
        member.start();
    }
    let mut scene = Scene::begin("held up", cluster).await;
    let start = quorate::internals::clock::now();
    let mut turn = 0;
    let held = |scene: &Scene| -> usize {
        let members = scene.cluster.members.iter();
        let held = |member: &Member| member.log().matches(": held for 1000 ms").count();
        members.map(held).sum()
    };
    while start.elapsed() < HOLD || held(&scene) == 0 {
        assert!(start.elapsed() < REACH_MAX, "no member is ever held up");
        let member = scene.random.usize(..3);
        request_mixture(&mut scene, member, turn).await;
        turn += 1;
    }
    scene.say(&format!("members were held up {} times", held(&scene)));
    scene.end().await;
}
