//! Members are killed and frozen at random, under load.

use crate::{scene::Scene, support::Cluster};
use std::{env, time::Duration};

/// How long it goes on, unless `QUORATE_TEST_CRASH_SECS` says otherwise.
const CRASH_SECS: u64 = 12;
/// The longest that a member is down, and the longest that all are up again.
const TURN_MILLIS_MAX: u64 = 2_500;

/// One turn in this many takes down two members, so that there is no majority for a while.
const BOTH_EVERY: u32 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_members_are_killed_and_frozen_in_turn() {
    let secs = env::var("QUORATE_TEST_CRASH_SECS").ok();
    let secs = secs.map_or(CRASH_SECS, |secs| {
        secs.parse().expect("a number of seconds")
    });
    let start = quorate::internals::clock::now();
    let mut scene = Scene::begin("crash", Cluster::start(3).await).await;
    let mut kill = scene.random.bool();
    while start.elapsed() < Duration::from_secs(secs) {
        let first = scene.random.usize(..3);
        let second = (first + scene.random.usize(1..3)) % 3;
        let both = scene.random.u32(..BOTH_EVERY) == 0;
        let members = if both {
            vec![first, second]
        } else {
            vec![first]
        };
        turn(&mut scene, kill, &members).await;
        kill = !kill;
    }
    scene.end().await;
}

/// Kills or freezes these members for a while.
async fn turn(scene: &mut Scene, kill: bool, members: &[usize]) {
    let away = Duration::from_millis(scene.random.u64(1..TURN_MILLIS_MAX));
    let back = Duration::from_millis(scene.random.u64(1..TURN_MILLIS_MAX));
    let names: Vec<String> = members
        .iter()
        .map(|member| format!("n{}", member + 1))
        .collect();
    let how = if kill { "kill -9" } else { "SIGSTOP" };
    scene.say(&format!("{how} {} for {away:?}", names.join(" and ")));
    for member in members {
        if kill {
            scene.kill(*member).await;
        } else {
            scene.cluster.members[*member].freeze();
        }
    }
    scene.pass(away).await;
    for member in members {
        if kill {
            scene.restart(*member);
        } else {
            scene.cluster.members[*member].thaw();
        }
    }
    scene.pass(back).await;
}
