//! The disasters of a run: which there are, how often they come, and how each ends.
//!
//! A [`Storm`] draws them from the seed, several at once, and mends what it broke after a while; [`Storm::end`] mends all that is
//! left. It keeps to what the cluster promises to survive: any number of crashes and losses of power at any time, but
//! damage to what a disk had made durable on a minority of members only, until those are replaced.

use crate::{
    cluster::{Cluster, Crash, DISK_TAKES, Node, Trust, member},
    network::{CLIENTS, Slot, Weather},
    operator::{self, Job, Operator, Remedy, wish_for_refill},
};
use quorate::{
    actors::requests::Requests,
    storage::{disk::Disk, sim_disk::Fault as DiskFault},
};
use std::{collections::BTreeMap, time::Duration};

/// Pauses between two disasters, in milliseconds.
const CALM_MILLIS_MAX: u64 = 3_000;
/// How long most disasters last, in milliseconds.
const LAST_MILLIS: std::ops::Range<u64> = 200..6_000;
/// How long a member is away that is to miss a lot, in milliseconds.
const AWAY_MILLIS: std::ops::Range<u64> = 5_000..15_000;
/// Fewer members than these are not left on purpose, but while one is replaced.
const MEMBERS_LEAST: usize = 3;
/// Where a member keeps its log and its database.
const LOG: &str = "wal";
const DATABASE: &str = "db/revisions.redb";
/// Clocks go wrong by up to so many parts in a million.
pub(crate) const DRIFT_PPM_MAX: u64 = 50_000;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disaster {
    /// A process is killed, or its machine loses power.
    Crash,
    /// As [`Disaster::Crash`], and the member is cut off from the others when it comes back: it has what its disk had.
    CrashCutOff,
    /// All machines lose power.
    Blackout,
    /// A disk operation to come fails, of a kind that stops the member.
    DiskError,
    /// As [`Disaster::DiskError`], and the machine loses power at that operation.
    PowerAtWrite,
    /// A disk takes seconds.
    DiskStall,
    /// A disk becomes slow.
    DiskSlow,
    /// Two groups of members do not hear each other.
    Partition,
    /// One direction between two members carries nothing.
    OneWay,
    /// A member hears nobody, or nobody hears it.
    Deaf,
    /// The stream of consensus of one member to another stands still, and then brings all at once.
    Stall,
    /// A process stands still, and goes on late.
    Pause,
    /// A member's clock goes wrong.
    Drift,
    /// Clients cannot reach a member.
    NoClients,
    /// The network becomes better or worse.
    Weather,
    /// Leadership is handed over.
    Transfer,
    /// A member is away for so long that it may need a snapshot.
    Away,
    /// A bit flips in what a member's log holds on its disk.
    FlipLog,
    /// A bit flips in a member's database on its disk.
    FlipDatabase,
    /// The end of a file of a member's log, or of its database, is gone.
    CutFile,
    /// A member is added, with a vote or without.
    Add,
    /// A member without a vote gets one.
    Promote,
    /// A member is removed.
    Remove,
    /// A member is removed, and its machine becomes another member.
    Replace,
}

/// All disasters, with how often each comes.
const ALL: [(Disaster, u32); 24] = [
    (Disaster::Crash, 6),
    (Disaster::CrashCutOff, 2),
    (Disaster::Blackout, 1),
    (Disaster::DiskError, 3),
    (Disaster::PowerAtWrite, 4),
    (Disaster::DiskStall, 2),
    (Disaster::DiskSlow, 2),
    (Disaster::Partition, 4),
    (Disaster::OneWay, 3),
    (Disaster::Deaf, 3),
    (Disaster::Stall, 3),
    (Disaster::Pause, 4),
    (Disaster::Drift, 2),
    (Disaster::NoClients, 1),
    (Disaster::Weather, 2),
    (Disaster::Transfer, 3),
    (Disaster::Away, 2),
    (Disaster::FlipLog, 3),
    (Disaster::FlipDatabase, 3),
    (Disaster::CutFile, 1),
    (Disaster::Add, 2),
    (Disaster::Promote, 2),
    (Disaster::Remove, 1),
    (Disaster::Replace, 1),
];

/// How a disaster ends.
#[derive(Clone, Debug)]
enum Mend {
    Links(Vec<(Slot, Slot)>),
    Stall(Slot, Slot),
    Resume(Slot),
    Disk(Slot),
    Clock(Slot),
}

/// Disasters, drawn from a seed.
pub(crate) struct Storm {
    rng: fastrand::Rng,
    next: u64,
    mends: BTreeMap<(u64, u64), Mend>,
    struck: u64,
    /// Nodes whose process is to lose power when it stops by itself.
    doomed: Vec<Slot>,
    calm_millis: u64,
    operator: Operator,
    /// Members at the beginning.
    size: usize,
}

impl Storm {
    /// Begins with a quiet time, so that there is something to break.
    pub(crate) fn new(cluster: &mut Cluster) -> Self {
        let mut rng = cluster.rng.fork();
        let calm_millis = match rng.u8(0..3) {
            0 => rng.u64(CALM_MILLIS_MAX..3 * CALM_MILLIS_MAX),
            _ => rng.u64(300..CALM_MILLIS_MAX),
        };
        Self {
            next: cluster.now + rng.u64(500..4_000),
            rng,
            mends: BTreeMap::new(),
            struck: 0,
            doomed: Vec::new(),
            calm_millis,
            operator: Operator::default(),
            size: cluster.nodes.len(),
        }
    }

    /// One that strikes only when it is told to.
    pub(crate) fn silent(cluster: &mut Cluster) -> Self {
        Self {
            next: u64::MAX,
            ..Self::new(cluster)
        }
    }

    /// One step of the cluster, and of the storm over it.
    pub(crate) fn step(&mut self, cluster: &mut Cluster) {
        self.repair(cluster);
        while let Some(entry) = self.mends.first_entry() {
            if entry.key().0 > cluster.now {
                break;
            }
            let mend = entry.remove();
            Self::mend(cluster, &mend);
        }
        if cluster.now >= self.next {
            self.next = cluster.now + 1 + self.rng.u64(0..self.calm_millis);
            self.strike(cluster);
        }
    }

    /// One step of the cluster in which nothing more happens to it, while its operator goes on.
    pub(crate) fn repair(&mut self, cluster: &mut Cluster) {
        cluster.step();
        self.restart(cluster);
        self.operator.step(cluster);
    }

    /// Mends all: the network, the clocks and the disks are well, and every process runs.
    pub(crate) fn end(&mut self, cluster: &mut Cluster) {
        cluster.story("the storm is over");
        for mend in std::mem::take(&mut self.mends).into_values() {
            Self::mend(cluster, &mend);
        }
        {
            let mut net = cluster.network.borrow_mut();
            net.heal();
            net.weather = Weather::fair();
        }
        for slot in 0..cluster.nodes.len() {
            cluster.nodes[slot].disk.forgive();
            cluster.nodes[slot].trust = Trust::Sound;
            // Who has not noticed its damage yet does so when it starts.
            if cluster.nodes[slot].damaged_before.is_some() {
                self.end_process(cluster, slot, Crash::Process);
            }
        }
        self.restart(cluster);
        for node in &mut cluster.nodes {
            if let Some(at) = &mut node.restart_at {
                *at = cluster.now;
            }
        }
    }

    /// Members that nothing is wrong with once the storm is over: the cluster must be alive by them alone.
    pub(crate) fn whole(&self, cluster: &Cluster) -> Vec<Slot> {
        let slots = 0..cluster.nodes.len();
        let whole = slots.filter(|slot| {
            let node = &cluster.nodes[*slot];
            !node.vacant
                && !node.joins
                && node.damaged_before.is_none()
                && !self.operator.is_at(*slot)
        });
        whole.collect()
    }

    /// After the storm: whether every machine has a member with a vote, and none is damaged. If something is still to be done,
    /// the operator begins it.
    pub(crate) fn is_settled(&mut self, cluster: &Cluster) -> bool {
        if self.operator.is_busy() {
            return false;
        }
        let slots = 0..cluster.nodes.len();
        let serves = |slot: Slot| cluster.requests(slot);
        if let Some(slot) = slots.clone().find(|slot| cluster.nodes[*slot].vacant) {
            self.operator.begin(cluster, Job::add(slot, false));
            return false;
        }
        if let Some(slot) = slots
            .clone()
            .find(|slot| operator::votes(cluster, *slot) == Some(false))
        {
            self.operator.begin(cluster, Job::promote(slot));
            return false;
        }
        let votes = |slot| operator::votes(cluster, slot) == Some(true);
        let sound = |slot: Slot| cluster.nodes[slot].damaged_before.is_none();
        let well = |slot| serves(slot).is_some() && sound(slot) && votes(slot);
        slots.clone().all(well)
    }

    /// How every machine stands, for a failure.
    pub(crate) fn standing(&self, cluster: &Cluster) -> String {
        let stands = |slot: Slot| {
            let node = &cluster.nodes[slot];
            let serves = cluster.requests(slot).map(Requests::status);
            format!(
                "{}: vacant {}, joins {}, damaged {:?}, stopped {:?}, votes {:?}, {serves:?}\n",
                node.name,
                node.vacant,
                node.joins,
                node.damaged_before,
                node.stopped,
                operator::votes(cluster, slot)
            )
        };
        let all: String = (0..cluster.nodes.len()).map(stands).collect();
        format!("{:?}\n{all}", self.operator)
    }

    /// Whoever stopped by itself comes back after a while; if its last words ask for more, its operator does it.
    fn restart(&mut self, cluster: &mut Cluster) {
        for slot in 0..cluster.nodes.len() {
            let node = &cluster.nodes[slot];
            let (Some(reason), None) = (node.stopped.clone(), node.restart_at) else {
                continue;
            };
            let leaves = self.operator.is_at(slot) && reason.contains("was removed");
            if node.vacant || leaves {
                continue;
            }
            let damaged = node.damaged_before.is_some();
            let finds_nobody = node.joins && reason.starts_with("cannot join the cluster");
            assert!(
                node.trust == Trust::Damaged || damaged || finds_nobody,
                "{} stopped, and nothing was done to it: {reason}",
                node.name
            );
            let remedy = Remedy::of(&reason);
            assert!(
                remedy == Remedy::Restart || damaged,
                "{} says that it is damaged, and it is not: {reason}",
                node.name
            );
            match remedy {
                Remedy::Restart => {}
                Remedy::Refill => wish_for_refill(cluster, slot),
                Remedy::Replace => {
                    if !self.operator.is_at(slot) && self.operator.make_way() {
                        self.operator.begin(cluster, Job::replace(slot));
                    }
                    continue;
                }
            }
            let node = &mut cluster.nodes[slot];
            node.trust = Trust::Sound;
            node.disk.forgive();
            if let Some(at) = self.doomed.iter().position(|doomed| *doomed == slot) {
                self.doomed.swap_remove(at);
                node.disk.crash();
            }
            node.restart_at = Some(cluster.now + self.rng.u64(50..4_000));
        }
    }

    fn strike(&mut self, cluster: &mut Cluster) {
        let total: u32 = ALL.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.rng.u32(0..total);
        let found = ALL.iter().find(|(_, weight)| {
            let here = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            here
        });
        let Some((disaster, _)) = found else {
            return;
        };
        self.strike_with(cluster, *disaster);
    }

    /// One of these, drawn.
    pub(crate) fn one_of(&mut self, all: &[Disaster]) -> Disaster {
        all[self.rng.usize(0..all.len())]
    }

    /// Lets a disaster happen. Tells whether it found somebody to happen to.
    pub(crate) fn strike_with(&mut self, cluster: &mut Cluster, disaster: Disaster) -> bool {
        let count = cluster.nodes.len();
        let slot = self.rng.usize(0..count);
        let other = (slot + self.rng.usize(1..count.max(2))) % count;
        let lasts = self.rng.u64(LAST_MILLIS);
        match disaster {
            Disaster::Crash => return self.crash(cluster, slot),
            Disaster::CrashCutOff => return self.crash_cut_off(cluster, slot, lasts),
            Disaster::Blackout => {
                for slot in 0..count {
                    self.end_process(cluster, slot, Crash::Power);
                }
            }
            Disaster::DiskError | Disaster::PowerAtWrite => {
                return self.disk_error(cluster, slot, disaster == Disaster::PowerAtWrite);
            }
            Disaster::DiskStall | Disaster::DiskSlow => {
                self.slow_disk(cluster, slot, disaster == Disaster::DiskStall, lasts);
            }
            Disaster::Partition => self.partition(cluster, lasts),
            Disaster::OneWay => self.cut(cluster, vec![(slot, other)], lasts),
            Disaster::Deaf => {
                let hears = self.rng.bool();
                let others = (0..count).filter(|other| *other != slot);
                let link = |other| if hears { (slot, other) } else { (other, slot) };
                self.cut(cluster, others.map(link).collect(), lasts);
            }
            Disaster::Stall => {
                cluster.network.borrow_mut().stall(slot, other, true);
                self.mend_later(cluster, lasts, Mend::Stall(slot, other));
            }
            Disaster::Pause => {
                if !cluster.is_running(slot) {
                    return false;
                }
                cluster.pause(slot, true);
                self.mend_later(cluster, lasts, Mend::Resume(slot));
            }
            Disaster::Drift => {
                let rate = self
                    .rng
                    .u64(1_000_000 - DRIFT_PPM_MAX..=1_000_000 + DRIFT_PPM_MAX);
                cluster.set_rate(slot, rate);
                self.mend_later(cluster, lasts * 4, Mend::Clock(slot));
            }
            Disaster::NoClients => {
                self.cut(cluster, vec![(slot, CLIENTS), (CLIENTS, slot)], lasts);
            }
            Disaster::Weather => {
                cluster.network.borrow_mut().weather = Weather::drawn(&mut self.rng);
            }
            Disaster::Transfer => {
                if !transfer(cluster, other) {
                    return false;
                }
            }
            Disaster::Away
            | Disaster::FlipLog
            | Disaster::FlipDatabase
            | Disaster::CutFile
            | Disaster::Add
            | Disaster::Promote
            | Disaster::Remove
            | Disaster::Replace => {
                if !self.strike_member(cluster, slot, disaster) {
                    return false;
                }
            }
        }
        self.told(cluster, disaster, slot);
        true
    }

    /// What happens to a member as such: it is gone for long, its data is damaged, or the membership changes.
    fn strike_member(&mut self, cluster: &mut Cluster, slot: Slot, disaster: Disaster) -> bool {
        match disaster {
            Disaster::Away => {
                let runs = cluster.has_process(slot);
                if runs {
                    cluster.crash(slot, Crash::Process);
                    let back = cluster.now + self.rng.u64(AWAY_MILLIS);
                    cluster.nodes[slot].restart_at = Some(back);
                }
                runs
            }
            Disaster::FlipLog | Disaster::FlipDatabase | Disaster::CutFile => {
                self.damage(cluster, slot, disaster)
            }
            _ => {
                let job = self.change(cluster, slot, disaster);
                let begins = job.is_some();
                if let Some(job) = job {
                    self.operator.begin(cluster, job);
                }
                begins
            }
        }
    }

    /// Damages what a member had made durable: never on two members at a time.
    fn damage(&mut self, cluster: &mut Cluster, slot: Slot, disaster: Disaster) -> bool {
        let operator = &self.operator;
        let busy = operator.is_at(slot) || operator.removes() || cluster.nodes[slot].vacant;
        let voters =
            (0..cluster.nodes.len()).filter(|slot| operator::votes(cluster, *slot) == Some(true));
        let too_few = voters.count() < MEMBERS_LEAST;
        let learns = cluster.requests(slot).is_none_or(Requests::is_learner);
        let other = cluster
            .nodes
            .iter()
            .any(|node| node.damaged_before.is_some());
        if busy || learns || other || too_few {
            return false;
        }
        let disk = cluster.nodes[slot].disk.clone();
        let mut names = vec![DATABASE.to_owned()];
        if disaster != Disaster::FlipDatabase {
            let all = disk.list(LOG).unwrap_or_default();
            let live = all.iter().filter(|name| name.contains(".seg"));
            let log = live.map(|name| format!("{LOG}/{name}"));
            if disaster == Disaster::FlipLog {
                names.clear();
            }
            names.extend(log);
        }
        let name = &names[self.rng.usize(0..names.len())];
        let bytes = disk.contents(name).unwrap_or_default();
        // Most of a log's segment is empty, and so is some of a database: what is used is hit more often.
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64 + 1;
        let length = if self.rng.bool() {
            used
        } else {
            bytes.len() as u64
        };
        let at = self.rng.u64(0..length.max(1));
        if disaster == Disaster::CutFile {
            disk.cut(name, at);
        } else {
            disk.flip_bit(name, at, self.rng.u32(0..8));
        }
        cluster.story(format_args!("damage in {name} at byte {at}"));
        let node = &mut cluster.nodes[slot];
        node.damaged_before = Some(node.starts + 1);
        true
    }

    /// The job of a change of the membership, if it is the time for it.
    fn change(&mut self, cluster: &mut Cluster, slot: Slot, disaster: Disaster) -> Option<Job> {
        let damaged = |node: &Node| node.damaged_before.is_some();
        if self.operator.is_busy() || cluster.nodes.iter().any(damaged) {
            return None;
        }
        let vacant = cluster.nodes.iter().position(|node| node.vacant);
        let learner = (0..cluster.nodes.len())
            .find(|slot| cluster.requests(*slot).is_some_and(Requests::is_learner));
        let members = cluster.nodes.len() - usize::from(vacant.is_some());
        match disaster {
            Disaster::Add if vacant.is_some() || members == self.size => {
                let slot = vacant.unwrap_or_else(|| cluster.add_machine());
                Some(Job::add(slot, self.rng.bool()))
            }
            Disaster::Promote => learner.map(Job::promote),
            Disaster::Remove if vacant.is_none() && members > MEMBERS_LEAST => Some(Job::remove(
                learner.filter(|_| self.rng.bool()).unwrap_or(slot),
            )),
            Disaster::Replace if vacant.is_none() => Some(Job::replace(slot)),
            _ => None,
        }
    }

    fn told(&mut self, cluster: &mut Cluster, disaster: Disaster, slot: Slot) {
        self.struck += 1;
        cluster.story(format_args!("{disaster:?} at {}", member(slot).name));
        *cluster.faults.entry(disaster.name()).or_default() += 1;
    }

    fn mend_later(&mut self, cluster: &Cluster, after: u64, mend: Mend) {
        self.mends.insert((cluster.now + after, self.struck), mend);
    }

    fn mend(cluster: &mut Cluster, mend: &Mend) {
        match mend {
            Mend::Links(links) => {
                let mut net = cluster.network.borrow_mut();
                for (from, to) in links {
                    net.cut(*from, *to, false);
                }
            }
            Mend::Stall(from, to) => cluster.network.borrow_mut().stall(*from, *to, false),
            Mend::Resume(slot) => cluster.pause(*slot, false),
            Mend::Disk(slot) => {
                let disk = &cluster.nodes[*slot].disk;
                disk.stall(Duration::ZERO);
                disk.take_up_to(DISK_TAKES);
            }
            Mend::Clock(slot) => cluster.set_rate(*slot, 1_000_000),
        }
        cluster.story(format_args!("mended: {mend:?}"));
    }

    fn crash(&mut self, cluster: &mut Cluster, slot: Slot) -> bool {
        if !cluster.has_process(slot) {
            return false;
        }
        let crash = self.kind_of_crash();
        self.end_process(cluster, slot, crash);
        self.told(cluster, Disaster::Crash, slot);
        true
    }

    fn crash_cut_off(&mut self, cluster: &mut Cluster, slot: Slot, lasts: u64) -> bool {
        if !cluster.has_process(slot) {
            return false;
        }
        let crash = self.kind_of_crash();
        cluster.crash(slot, crash);
        let away = self.rng.u64(20..500);
        cluster.nodes[slot].restart_at = Some(cluster.now + away);
        let others = (0..cluster.nodes.len()).filter(|other| *other != slot);
        let links = others.flat_map(|other| [(slot, other), (other, slot)]);
        self.cut(cluster, links.collect(), away + lasts);
        self.told(cluster, Disaster::CrashCutOff, slot);
        true
    }

    fn kind_of_crash(&mut self) -> Crash {
        if self.rng.bool() {
            Crash::Process
        } else {
            Crash::Power
        }
    }

    fn end_process(&mut self, cluster: &mut Cluster, slot: Slot, crash: Crash) {
        if cluster.has_process(slot) {
            cluster.crash(slot, crash);
            let back = cluster.now + self.rng.u64(20..5_000);
            cluster.nodes[slot].restart_at = Some(back);
        }
    }

    fn disk_error(&mut self, cluster: &mut Cluster, slot: Slot, power: bool) -> bool {
        if !cluster.has_process(slot) {
            return false;
        }
        let fault = if self.rng.bool() {
            DiskFault::Io
        } else {
            DiskFault::NoSpace
        };
        let nth = self.rng.u64(1..60);
        let node = &mut cluster.nodes[slot];
        node.disk.fail_nth(nth, fault);
        node.trust = Trust::Damaged;
        if power && !self.doomed.contains(&slot) {
            self.doomed.push(slot);
        }
        let disaster = if power {
            Disaster::PowerAtWrite
        } else {
            Disaster::DiskError
        };
        self.told(cluster, disaster, slot);
        true
    }

    fn slow_disk(&mut self, cluster: &Cluster, slot: Slot, stalls: bool, lasts: u64) {
        let disk = &cluster.nodes[slot].disk;
        if stalls {
            disk.stall(Duration::from_millis(lasts));
            self.mend_later(cluster, lasts, Mend::Disk(slot));
        } else {
            disk.take_up_to(Duration::from_millis(self.rng.u64(5..200)));
            self.mend_later(cluster, lasts * 2, Mend::Disk(slot));
        }
    }

    fn partition(&mut self, cluster: &Cluster, lasts: u64) {
        let count = cluster.nodes.len();
        let mut slots: Vec<Slot> = (0..count).collect();
        self.rng.shuffle(&mut slots);
        let (here, there) = slots.split_at(self.rng.usize(1..count.max(2)));
        let pairs = here.iter().flat_map(|a| there.iter().map(|b| (*a, *b)));
        let links = pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect();
        self.cut(cluster, links, lasts);
    }

    fn cut(&mut self, cluster: &Cluster, links: Vec<(Slot, Slot)>, lasts: u64) {
        let mut net = cluster.network.borrow_mut();
        for (from, to) in &links {
            net.cut(*from, *to, true);
        }
        drop(net);
        self.mend_later(cluster, lasts, Mend::Links(links));
    }
}

impl Disaster {
    /// What a report calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::CrashCutOff => "crash and cut off",
            Self::Blackout => "blackout",
            Self::DiskError => "disk error",
            Self::PowerAtWrite => "power lost in a write",
            Self::DiskStall => "disk stall",
            Self::DiskSlow => "slow disk",
            Self::Partition => "partition",
            Self::OneWay => "one-way cut",
            Self::Deaf => "deaf or mute member",
            Self::Stall => "stalled stream",
            Self::Pause => "pause",
            Self::Drift => "clock drift",
            Self::NoClients => "clients cut off",
            Self::Weather => "weather",
            Self::Transfer => "leadership transfer",
            Self::Away => "away for long",
            Self::FlipLog => "bit flipped in the log",
            Self::FlipDatabase => "bit flipped in the database",
            Self::CutFile => "file cut short",
            Self::Add => "member added",
            Self::Promote => "learner promoted",
            Self::Remove => "member removed",
            Self::Replace => "member replaced",
        }
    }
}

/// Asks the leader to hand over to another member.
fn transfer(cluster: &mut Cluster, to: Slot) -> bool {
    let (Some(leader), Some(target)) = (cluster.leader(), cluster.requests(to)) else {
        return false;
    };
    let to = target.identity().member;
    cluster.story(format_args!("{} is to hand over", member(leader).name));
    cluster.client(move |client| async move {
        let moved = client.call(leader, 5_000, move |requests| async move {
            requests.move_leader(to).await.is_ok()
        });
        // Nobody needs to know whether it worked.
        moved.await.unwrap_or_default();
    });
    true
}
