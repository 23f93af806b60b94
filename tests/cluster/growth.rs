//! Members are added, removed and replaced, under load.

use crate::{
    ctl::{etcdctl, eventually},
    membership::{id, join},
    scene::Scene,
    support::Cluster,
};
use std::time::Duration;

/// How long the load runs on between two changes.
const BETWEEN: Duration = Duration::from_secs(1);

/// Positions of the members that are part of the cluster, and their roles.
struct Changing {
    scene: Scene,
    there: Vec<usize>,
}

impl Changing {
    async fn begin(name: &'static str) -> Self {
        let scene = Scene::begin(name, Cluster::start(3).await).await;
        Self {
            scene,
            there: vec![0, 1, 2],
        }
    }

    fn ports(&self) -> Vec<u16> {
        let all = self.scene.cluster.ports();
        self.there.iter().map(|at| all[*at]).collect()
    }

    /// A member of its own name joins, and clients use it.
    async fn grow(&mut self) {
        let at = self.scene.cluster.members.len();
        let name = format!("n{}", at + 1);
        let ports = self.ports();
        join(&mut self.scene.cluster, &name, &ports, &[]).await;
        self.scene.say(&format!("{name} joined"));
        self.there.push(at);
        self.scene.targets.add(at, self.scene.cluster.clients()[at]);
        self.scene.pass(BETWEEN).await;
    }

    /// A member is removed while clients use it.
    async fn shrink(&mut self, running: bool) {
        let at = self
            .there
            .remove(self.scene.random.usize(..self.there.len()));
        if !running {
            self.scene.say(&format!("kill -9 n{}", at + 1));
            self.scene.kill(at).await;
        }
        let name = self.scene.cluster.members[at].name.clone();
        let id = id(&self.ports(), &name).await;
        self.remove(&id).await;
        if running {
            self.scene.cluster.members[at].stopped().await;
        }
        self.scene.say(&format!("{name} was removed"));
        self.scene.targets.remove(at);
        self.scene.pass(BETWEEN).await;
    }

    /// Removes a member; a leader that is removed may stop before it answers.
    async fn remove(&self, id: &str) {
        loop {
            let output = etcdctl(&self.ports(), &["member", "remove", id]).await;
            if output.good {
                return;
            }
            self.scene.say(&format!("member remove: {}", output.stderr));
            let list = eventually(&self.ports(), &["member", "list"], |_| true).await;
            if !list.contains(id) {
                return;
            }
        }
    }

    async fn end(self) {
        self.scene.end_with(&self.there).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_is_replaced_under_load() {
    let mut changing = Changing::begin("replaced").await;
    changing.shrink(false).await;
    changing.grow().await;
    changing.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_grow_to_five_and_shrink_to_three_under_load() {
    let mut changing = Changing::begin("growth").await;
    changing.grow().await;
    changing.grow().await;
    changing.shrink(true).await;
    changing.shrink(true).await;
    changing.end().await;
}
