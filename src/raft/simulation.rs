//! Random schedules: a cluster under message loss, duplication, delay and reordering, partitions, slow disks,
//! crashes that lose what was not durable, membership changes, snapshots; all from one seed.
//!
//! `SEED=7 cargo test raft::simulation` replays one; `SEEDS=5000` runs more.

use super::testing::{Disk, Host, Judge, index, voters};
use super::*;
use crate::types::{LogIndex, LogPosition, MemberId, SplitMix64};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

const STEPS: u32 = 8_000;
/// Steps without faults at the end, after which all members must agree.
const HEALED_ROUNDS: u32 = 150;

enum Packet {
    Message(Message),
    Snapshot {
        at: LogPosition,
        membership: Membership,
    },
}

struct World {
    seed: u64,
    random: SplitMix64,
    hosts: BTreeMap<u64, Host>,
    crashed: BTreeMap<u64, Disk>,
    network: Vec<(u64, u64, Packet)>,
    cut: BTreeSet<(u64, u64)>,
    judge: Judge,
    next_context: u64,
    next_value: u64,
    loss_percent: u64,
}

impl World {
    fn new(seed: u64, size: u64) -> Self {
        let mut world = Self {
            seed,
            random: SplitMix64::new(seed),
            hosts: BTreeMap::new(),
            crashed: BTreeMap::new(),
            network: Vec::new(),
            cut: BTreeSet::new(),
            judge: Judge::default(),
            next_context: 0,
            next_value: 0,
            loss_percent: seed % 4 * 8,
        };
        for id in 1..=size {
            world.crashed.insert(id, Disk::new(voters(1..=size)));
        }
        // Two that wait to be added.
        for id in size + 1..=size + 2 {
            world.crashed.insert(id, Disk::default());
        }
        for id in 1..=size + 2 {
            world.restart(id);
        }
        world
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    fn config(&mut self, id: u64) -> Config {
        let mut config = Config::new(MemberId(id), self.random.next_u64());
        config.election_ticks = 5;
        config.pre_vote = !self.seed.is_multiple_of(3);
        // Without both, a removed member that has not received its removal may disturb elections for ever.
        config.check_quorum = !config.pre_vote || !self.seed.is_multiple_of(5);
        config.append_bytes_max = 200;
        config.inflight_bytes_max = 600;
        config.uncommitted_bytes_max = 4_000;
        config.cached_bytes_max = usize::try_from(self.below(1_000)).unwrap();
        config.applying_bytes_max = 400;
        config
    }

    fn restart(&mut self, id: u64) {
        if let Some(disk) = self.crashed.remove(&id) {
            let tail = usize::try_from(self.below(4)).unwrap();
            let config = self.config(id);
            self.hosts.insert(id, Host::start(config, disk, tail));
        }
    }

    fn restart_all(&mut self) {
        let ids: Vec<_> = self.crashed.keys().copied().collect();
        for id in ids {
            self.restart(id);
        }
    }

    /// Loses what is not durable; some writes may have made it unreported, the last one torn.
    fn crash(&mut self, id: u64) {
        let Some(mut host) = self.hosts.remove(&id) else {
            return;
        };
        let survive = self.below(u64::try_from(host.writes.len()).unwrap() + 1);
        for _ in 0..survive {
            let write = host.writes.pop_front().unwrap();
            host.disk.write(&write, None);
        }
        if let Some(torn) = host.writes.pop_front() {
            let kept = self.below(u64::try_from(torn.entries.len()).unwrap() + 1);
            host.disk.write(&torn, Some(usize::try_from(kept).unwrap()));
        }
        self.crashed.insert(id, host.disk);
    }

    fn any_id(&mut self) -> MemberId {
        let count = self.hosts.len() + self.crashed.len();
        MemberId(self.below(u64::try_from(count).unwrap()) + 1)
    }

    fn some_host(&mut self) -> Option<u64> {
        let ids: Vec<_> = self.hosts.keys().copied().collect();
        if ids.is_empty() {
            return None;
        }
        let at = self.below(u64::try_from(ids.len()).unwrap());
        Some(ids[usize::try_from(at).unwrap()])
    }

    fn some_leader(&self) -> Option<u64> {
        let mut hosts = self.hosts.iter();
        hosts
            .find(|(_, host)| host.node.is_leader())
            .map(|(&id, _)| id)
    }

    fn collect(&mut self, id: u64) {
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        while let Some(ready) = host.node.ready() {
            host.writes.extend(ready.persist);
            host.to_apply.extend(ready.committed);
            host.log_reads.extend(ready.log_reads);
            for Envelope { to, message } in ready.messages {
                self.network.push((id, to.0, Packet::Message(message)));
            }
            for read in ready.reads {
                self.judge.saw_read(read);
            }
            for SendSnapshot { to, .. } in ready.snapshots {
                let membership = host.membership.clone();
                self.network.push((
                    id,
                    to.0,
                    Packet::Snapshot {
                        at: host.applied,
                        membership,
                    },
                ));
            }
        }
        self.judge.saw_status(MemberId(id), host);
        Judge::saw_commit(host);
    }

    /// Delivers a random packet, perhaps twice, perhaps not at all.
    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let count = u64::try_from(self.network.len()).unwrap();
        // Mostly in order, sometimes not.
        let at = if self.one_in(4) { self.below(count) } else { 0 };
        let (from, to, packet) = self.network.remove(usize::try_from(at).unwrap());
        let lost = self.below(100) < self.loss_percent || self.cut.contains(&(from, to));
        if let Packet::Message(message) = &packet
            && !lost
            && self.one_in(20)
        {
            self.network
                .push((from, to, Packet::Message(message.clone())));
        }
        self.arrive(from, to, packet, lost);
        self.collect(to);
        self.collect(from);
    }

    fn arrive(&mut self, from: u64, to: u64, packet: Packet, lost: bool) {
        match packet {
            Packet::Message(message) if !lost => {
                if let Some(host) = self.hosts.get_mut(&to) {
                    host.node
                        .step(MemberId(from), message)
                        .expect("honest members send no nonsense");
                }
            }
            Packet::Message(_) => {}
            Packet::Snapshot { at, membership } => {
                let arrived = match self.hosts.get_mut(&to) {
                    Some(host) if !lost => host.install(at, &membership),
                    _ => false,
                };
                if let Some(host) = self.hosts.get_mut(&from) {
                    if arrived {
                        host.node.snapshot_sent(MemberId(to), at.index);
                    } else {
                        host.node.snapshot_failed(MemberId(to));
                    }
                }
            }
        }
    }

    fn apply(&mut self, id: u64, count: u64) {
        for _ in 0..count {
            let Some(host) = self.hosts.get_mut(&id) else {
                return;
            };
            let Some(entry) = host.apply_one() else {
                return;
            };
            self.judge.saw_applied(&entry, host.node.status().term);
        }
    }

    fn propose(&mut self, id: u64) {
        self.next_value += 1;
        let data = Bytes::from(format!("value {}", self.next_value));
        if let Some(host) = self.hosts.get_mut(&id)
            && let Ok(at) = host.node.propose(data)
        {
            assert_eq!(at, host.node.last(), "a proposal is the last entry");
        }
    }

    fn read(&mut self, id: u64) {
        self.next_context += 1;
        if let Some(host) = self.hosts.get_mut(&id)
            && host.node.read_index(self.next_context).is_ok()
        {
            self.judge
                .reads
                .insert(self.next_context, self.judge.acknowledged());
        }
    }

    fn change_membership(&mut self, id: u64) {
        let target = self.any_id();
        let kind = self.below(6);
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let voters = host.node.membership().voters().count();
        let context = Bytes::new();
        let change = match kind {
            0 => MembershipChange::AddLearner {
                id: target,
                context,
            },
            1 => MembershipChange::AddVoter {
                id: target,
                context,
            },
            2 | 3 => MembershipChange::Promote { id: target },
            4 if voters > 2 => MembershipChange::Remove { id: target },
            _ => MembershipChange::Update {
                id: target,
                context,
            },
        };
        if let Err(ChangeError::Propose(ProposeError::TooMuchUncommitted { bytes })) =
            host.node.propose_membership(&change)
        {
            assert!(bytes > 0, "something waits when proposals are refused");
        }
    }

    fn partition(&mut self) {
        self.cut.clear();
        let ids: Vec<u64> = self
            .hosts
            .keys()
            .chain(self.crashed.keys())
            .copied()
            .collect();
        let one_way = self.one_in(3);
        // Half of the partitions isolate a leader, which then becomes stale.
        let alone = self.one_in(2).then(|| self.some_leader()).flatten();
        let sides: Vec<bool> = ids
            .iter()
            .map(|&id| alone.map_or_else(|| self.one_in(2), |alone| alone == id))
            .collect();
        for (a, side_a) in ids.iter().zip(&sides) {
            for (b, side_b) in ids.iter().zip(&sides) {
                if side_a != side_b && (*side_a || !one_way) {
                    self.cut.insert((*a, *b));
                }
            }
        }
    }

    fn random_step(&mut self) {
        let action = self.below(1_000);
        let Some(id) = self.some_host() else {
            self.restart_all();
            return;
        };
        match action {
            0..540 => (0..3).for_each(|_| self.deliver()),
            540..620 => self.hosts.get_mut(&id).unwrap().node.tick(),
            620..760 => {
                let host = self.hosts.get_mut(&id).unwrap();
                while host.persist_one() && self.random.next_u64().is_multiple_of(2) {}
            }
            760..800 => {
                self.hosts.get_mut(&id).unwrap().read_log_one();
            }
            800..860 => self.apply(id, 3),
            860..920 => self.propose(id),
            920..950 => self.read(id),
            950..960 => self.change_membership(id),
            960..963 => self.crash(id),
            963..977 => {
                let at = self.any_id();
                self.restart(at.0);
            }
            977..979 => self.partition(),
            979..981 => self.cut.clear(),
            981..986 => self.deliver(),
            986..992 => self.checkpoint(id),
            992..994 => {
                let to = self.any_id();
                let node = &mut self.hosts.get_mut(&id).unwrap().node;
                if node.transfer_leadership(to).is_ok() {
                    assert!(node.is_leader(), "only a leader hands over");
                }
            }
            994..996 => {
                self.hosts.get_mut(&id).unwrap().node.yield_leadership();
            }
            996..998 => self.hosts.get_mut(&id).unwrap().node.campaign(),
            _ => {
                let peer = self.any_id();
                self.hosts.get_mut(&id).unwrap().node.unreachable(peer);
            }
        }
        self.collect(id);
    }

    fn checkpoint(&mut self, id: u64) {
        let keep = self.below(10);
        let host = self.hosts.get_mut(&id).unwrap();
        host.checkpoint();
        let through = index(host.applied.index.0.saturating_sub(keep));
        host.disk.release(through);
        host.node.log_released(host.disk.start.index);
    }

    fn check(&self) {
        for host in self.hosts.values() {
            host.node.check();
        }
        let hosts: Vec<_> = self.hosts.values().collect();
        for (at, one) in hosts.iter().enumerate() {
            for other in &hosts[at + 1..] {
                Judge::compare_logs(one, other);
            }
        }
    }

    /// No more faults: a leader must emerge, commit, and bring every member to the same log.
    fn heal(&mut self) {
        self.cut.clear();
        self.loss_percent = 0;
        self.restart_all();
        let ids: Vec<_> = self.hosts.keys().copied().collect();
        for round in 0..HEALED_ROUNDS {
            for &id in &ids {
                let host = self.hosts.get_mut(&id).unwrap();
                host.node.tick();
                while host.persist_one() || host.read_log_one() {}
                self.apply(id, u64::MAX);
                self.collect(id);
            }
            for _ in 0..self.network.len() {
                self.deliver();
            }
            if round == HEALED_ROUNDS / 2 {
                for &id in &ids {
                    self.propose(id);
                    self.read(id);
                }
            }
        }
        self.assert_converged();
    }

    fn assert_converged(&self) {
        let (_, leader) = self
            .hosts
            .iter()
            .find(|(_, host)| host.node.is_leader())
            .unwrap_or_else(|| panic!("nobody leads after healing: {:?}", self.statuses()));
        assert_eq!(
            leader.applied,
            leader.node.last(),
            "the leader applied its whole log"
        );
        for id in leader.node.membership().ids() {
            let host = &self.hosts[&id.0];
            assert_eq!(host.applied, leader.applied, "member {id} caught up");
            assert_eq!(
                host.membership, leader.membership,
                "member {id} knows the members"
            );
        }
        for id in self
            .hosts
            .keys()
            .filter(|&&id| leader.node.membership().contains(MemberId(id)))
        {
            let waiting = &self.judge.reads;
            assert!(
                self.hosts[id].node.commit() > LogIndex(0),
                "{id} follows; {waiting:?} wait"
            );
        }
    }

    fn statuses(&self) -> Vec<(u64, Status, LogPosition, Membership)> {
        let of = |(&id, host): (&u64, &Host)| {
            (
                id,
                host.node.status(),
                host.node.last(),
                host.node.membership().clone(),
            )
        };
        self.hosts.iter().map(of).collect()
    }
}

/// Returns how much happened, so that a schedule without any event fails.
fn run(seed: u64) -> (u64, u64, u64) {
    let mut world = World::new(seed, if seed.is_multiple_of(2) { 3 } else { 5 });
    for step in 0..STEPS {
        world.random_step();
        if step % 50 == 0 {
            world.check();
        }
    }
    world.heal();
    world.check();
    let leaders = u64::try_from(world.judge.leaders.len()).unwrap();
    (
        world.judge.acknowledged().0,
        world.judge.reads_served,
        leaders,
    )
}

#[test]
fn random_schedules_keep_every_promise() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let seeds = number("SEED").map_or(0..number("SEEDS").unwrap_or(150), |seed| seed..seed + 1);
    let (mut committed, mut reads, mut leaders) = (0, 0, 0);
    for seed in seeds {
        let result = catch_unwind(AssertUnwindSafe(|| run(seed)));
        let (more_committed, more_reads, more_leaders) = result.unwrap_or_else(|panic| {
            eprintln!("replay with SEED={seed}");
            resume_unwind(panic)
        });
        committed += more_committed;
        reads += more_reads;
        leaders += more_leaders;
    }
    assert!(
        committed > 20,
        "only {committed} entries were committed: the schedules test nothing"
    );
    assert!(reads > 0, "no read was served: the schedules test nothing");
    eprintln!("{committed} entries committed, {reads} reads served, {leaders} leaders");
}
