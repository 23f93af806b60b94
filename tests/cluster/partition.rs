//! The network between members breaks, under load.
//!
//! | fault | what is expected |
//! |---|---|
//! | the leader alone, cut off both ways | the others elect and serve; it refuses what needs a majority |
//! | nothing from the leader reaches the others | the same |
//! | nothing from the others reaches the leader | the same, once it has stepped down |
//! | nothing from one follower reaches the leader | the cluster serves |
//! | 30 % of packets lost; each delayed by 50 ms ± 50 ms | the cluster serves |
//! | five members split, the leader among the two | the three elect and serve; the two refuse |
//!
//! Clients reach all members throughout. After each fault all members must agree, and the history is checked. The election
//! timeout is one second here; the printed times depend on it and are only bounded by the test's patience.

use crate::{
    client,
    network::{Drops, Network},
    scene::Scene,
    support::Cluster,
};
use std::time::Duration;

/// How long the load runs in addition to what the test waits for.
const WHILE: Duration = Duration::from_secs(2);

fn all_but(size: usize, some: &[usize]) -> Vec<usize> {
    (0..size).filter(|member| !some.contains(member)).collect()
}

async fn scene_on(name: &'static str, network: Network) -> Scene {
    let on = network.name();
    let scene = Scene::begin(name, Cluster::start_on(network).await).await;
    scene.say(&format!("members are connected by {on}"));
    scene
}

fn network(scene: &Scene) -> &Network {
    scene.cluster.network.as_ref().expect("it was given one")
}

/// The minority, which has the leader, refuses requests; the others elect and serve; then the fault ends.
async fn the_others_serve(mut scene: Scene, minority: &[usize]) {
    let size = scene.cluster.members.len();
    let majority = all_but(size, minority);
    let time = scene.until_served(&majority).await;
    scene.say(&format!("the majority serves after {time:?}"));
    client::leader(&scene.addresses(&majority)).await;
    scene.refuses(minority).await;
    network(&scene).heal(Drops::Some);
    let time = scene.until_served(minority).await;
    scene.say(&format!("healed; after {time:?} the minority serves again"));
    scene.pass(WHILE).await;
    scene.end().await;
}

/// Asserts that the cluster serves, perhaps slowly.
async fn serves_anyhow(mut scene: Scene, drops: Drops) {
    let all = all_but(scene.cluster.members.len(), &[]);
    for _ in 0..3 {
        scene.pass(WHILE).await;
        let time = scene.until_served(&all).await;
        scene.say(&format!("a write takes {time:?}"));
    }
    network(&scene).heal(drops);
    scene.pass(WHILE).await;
    scene.end().await;
}

async fn leader_cut_off(scene: Scene) {
    let leader = scene.leader().await;
    scene.say(&format!("n{} leads and is cut off", leader + 1));
    network(&scene).split(&[leader], &all_but(3, &[leader]));
    the_others_serve(scene, &[leader]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_partitioned_away() {
    leader_cut_off(scene_on("leader away", Network::new(3).await).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_partitioned_away_by_a_relay() {
    leader_cut_off(scene_on("leader away, relay", Network::relay(3).await).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_heard_by_nobody() {
    let scene = scene_on("leader not heard", Network::new(3).await).await;
    let leader = scene.leader().await;
    scene.say(&format!(
        "nothing from n{}, which leads, reaches the others",
        leader + 1
    ));
    for other in all_but(3, &[leader]) {
        network(&scene).cut(leader, other);
    }
    the_others_serve(scene, &[leader]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_hears_nobody() {
    let scene = scene_on("leader deaf", Network::new(3).await).await;
    let leader = scene.leader().await;
    scene.say(&format!("nothing reaches n{}, which leads", leader + 1));
    for other in all_but(3, &[leader]) {
        network(&scene).cut(other, leader);
    }
    the_others_serve(scene, &[leader]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_does_not_hear_one_follower() {
    let scene = scene_on("one link", Network::new(3).await).await;
    let leader = scene.leader().await;
    let follower = all_but(3, &[leader])[0];
    let (deaf, mute) = (leader + 1, follower + 1);
    scene.say(&format!(
        "nothing from n{mute} reaches n{deaf}, which leads"
    ));
    network(&scene).cut(follower, leader);
    serves_anyhow(scene, Drops::Some).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_of_all_packets_is_lost() {
    let scene = scene_on("30 % lost", Network::new(3).await).await;
    scene.say("30 % of all packets between members are lost");
    network(&scene).lose(30);
    serves_anyhow(scene, Drops::Some).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_are_delayed_and_overtake_each_other() {
    let scene = scene_on("50 ms ± 50 ms", Network::relay(3).await).await;
    scene.say("each packet is delayed by 50 ms ± 50 ms");
    network(&scene).delay(Duration::ZERO, Duration::from_millis(100));
    serves_anyhow(scene, Drops::None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_members_are_split_in_two_and_three() {
    let scene = scene_on("AB|CDE", Network::new(5).await).await;
    let leader = scene.leader().await;
    let two = [leader, (leader + 1) % 5];
    scene.say(&format!(
        "n{} leads and is split off with n{}",
        two[0] + 1,
        two[1] + 1
    ));
    network(&scene).split(&two, &all_but(5, &two));
    the_others_serve(scene, &two).await;
}
