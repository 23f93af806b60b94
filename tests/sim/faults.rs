//! The faults of a run: which there are, how often they are injected, and how each ends.
//!
//! A [`Storm`] draws them from the seed, several at once, and repairs each after a while; [`Storm::end`] repairs the rest. It
//! injects only what the cluster promises to survive: any number of crashes and losses of power at any time, but damage to
//! synced data on one member at a time.

use crate::{
    cluster::{Cluster, Crash, DISK_TAKES, Node, Trust, member},
    network::{CLIENTS, LinkQuality, Slot},
    operator::{self, Job, Operator, Remedy, request_refill},
    scene::Scene,
};
use quorate::internals::{
    actors::requests::Requests,
    storage::{disk::Disk, sim_disk::Fault as DiskFault},
    types::Term,
};
use std::{collections::BTreeMap, time::Duration};

/// In one run of so many, a voter loses its disk at the beginning.
const EARLY_LOSS_IN: u8 = 6;
/// The longest usual pause between two faults, in milliseconds.
const PAUSE_MILLIS_MAX: u64 = 3_000;
/// How long most faults last, in milliseconds.
const LAST_MILLIS: std::ops::Range<u64> = 200..6_000;
/// How long a member is away that is to miss many entries, in milliseconds.
const AWAY_MILLIS: std::ops::Range<u64> = 5_000..15_000;
/// The storm removes a member for good only if more than these are left.
const MEMBERS_LEAST: usize = 3;
/// A member's log and database, in its data directory.
const LOG: &str = "wal";
const DATABASE: &str = "db/revisions.redb";
/// The largest error of a clock's rate, in millionths.
pub(crate) const DRIFT_PPM_MAX: u64 = 50_000;
/// The rates of clocks, in millionths of the true rate.
const RATES_PPM: std::ops::RangeInclusive<u64> =
    1_000_000 - DRIFT_PPM_MAX..=1_000_000 + DRIFT_PPM_MAX;

/// A fault that the storm injects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process is killed, or its machine loses power.
    Crash,
    /// As [`Fault::Crash`], and the member is cut off from the others when it comes back: it has what its disk had.
    CrashCutOff,
    /// All machines lose power.
    Blackout,
    /// One of the next disk operations fails, and the member stops.
    DiskError,
    /// As [`Fault::DiskError`], and the machine loses power at that operation.
    PowerAtWrite,
    /// A disk stalls for seconds.
    DiskStall,
    /// A disk becomes slow.
    DiskSlow,
    /// The members are partitioned into two groups.
    Partition,
    /// One direction between two members is cut.
    OneWay,
    /// All inbound or all outbound links of a member are cut.
    Deaf,
    /// The stream of Raft messages from one member to another stalls, and then delivers everything at once.
    Stall,
    /// A process is paused and resumed.
    Pause,
    /// A member's clock runs fast or slow.
    Drift,
    /// Clients cannot reach a member.
    NoClients,
    /// Latency, loss and order of the network change.
    LinkQuality,
    /// Leadership is transferred.
    Transfer,
    /// A member is away for so long that it may need a snapshot.
    Away,
    /// A bit flips in a member's log on its disk.
    FlipLog,
    /// A bit flips in a member's database on its disk.
    FlipDatabase,
    /// A file of a member's log, or its database, loses its end.
    CutFile,
    /// A voter loses its whole disk, and is started again as it was.
    LoseDisk,
    /// A voter or a learner is added.
    Add,
    /// A learner is promoted.
    Promote,
    /// A member is removed.
    Remove,
    /// A member is removed, and its machine becomes another member.
    Replace,
}

/// All faults, with their weights.
const ALL: [(Fault, u32); 25] = [
    (Fault::Crash, 6),
    (Fault::CrashCutOff, 2),
    (Fault::Blackout, 1),
    (Fault::DiskError, 3),
    (Fault::PowerAtWrite, 4),
    (Fault::DiskStall, 2),
    (Fault::DiskSlow, 2),
    (Fault::Partition, 4),
    (Fault::OneWay, 3),
    (Fault::Deaf, 3),
    (Fault::Stall, 3),
    (Fault::Pause, 4),
    (Fault::Drift, 2),
    (Fault::NoClients, 1),
    (Fault::LinkQuality, 2),
    (Fault::Transfer, 3),
    (Fault::Away, 2),
    (Fault::FlipLog, 3),
    (Fault::FlipDatabase, 3),
    (Fault::CutFile, 1),
    (Fault::LoseDisk, 1),
    (Fault::Add, 2),
    (Fault::Promote, 2),
    (Fault::Remove, 1),
    (Fault::Replace, 1),
];

/// How a fault ends.
#[derive(Clone, Debug)]
enum Repair {
    Links(Vec<(Slot, Slot)>),
    Stall(Slot, Slot),
    Resume(Slot),
    Disk(Slot),
    Clock(Slot),
}

/// Faults drawn from a seed, and the operator who repairs what they damage.
pub(crate) struct Storm {
    rng: fastrand::Rng,
    next: u64,
    repairs: BTreeMap<(u64, u64), Repair>,
    injected: u64,
    /// Machines that lose power when their process stops by itself.
    loses_power: Vec<Slot>,
    pause_millis_max: u64,
    /// A voter loses its disk as soon as all take part: the log does not say then that it has started.
    loses_disk_early: bool,
    operator: Operator,
    /// How many members there were at the beginning.
    size: usize,
}

impl Storm {
    /// The first fault comes after a pause, so that the cluster holds something by then.
    pub(crate) fn new(cluster: &mut Cluster) -> Self {
        let mut rng = cluster.rng.fork();
        let pause_millis_max = match rng.u8(0..3) {
            0 => rng.u64(PAUSE_MILLIS_MAX..3 * PAUSE_MILLIS_MAX),
            _ => rng.u64(300..PAUSE_MILLIS_MAX),
        };
        Self {
            next: cluster.now + rng.u64(500..4_000),
            repairs: BTreeMap::new(),
            injected: 0,
            loses_power: Vec::new(),
            pause_millis_max,
            loses_disk_early: rng.u8(0..EARLY_LOSS_IN) == 0,
            operator: Operator::default(),
            size: cluster.nodes.len(),
            rng,
        }
    }

    /// A storm in which a voter loses its disk at the beginning.
    #[cfg(feature = "mutations")]
    pub(crate) fn losing_a_disk_early(cluster: &mut Cluster) -> Self {
        Self {
            loses_disk_early: true,
            ..Self::new(cluster)
        }
    }

    /// A storm that injects only what a test asks for.
    pub(crate) fn silent(cluster: &mut Cluster) -> Self {
        Self {
            next: u64::MAX,
            loses_disk_early: false,
            ..Self::new(cluster)
        }
    }

    /// One step of the cluster, in which faults may begin and end.
    pub(crate) fn step(&mut self, cluster: &mut Cluster) {
        self.step_without_faults(cluster);
        while let Some(entry) = self.repairs.first_entry() {
            if entry.key().0 > cluster.now {
                break;
            }
            let repair = entry.remove();
            Self::apply_repair(cluster, &repair);
        }
        if self.loses_disk_early && all_take_part(cluster) {
            self.loses_disk_early = false;
            self.inject(cluster, Fault::LoseDisk);
        }
        if cluster.now >= self.next {
            self.next = cluster.now + 1 + self.rng.u64(0..self.pause_millis_max);
            self.inject_any(cluster);
        }
    }

    /// One step of the cluster in which no fault begins or ends; the operator keeps working.
    pub(crate) fn step_without_faults(&mut self, cluster: &mut Cluster) {
        cluster.step();
        self.restart(cluster);
        self.operator.step(cluster);
    }

    /// Ends all faults: network, clocks and disks work, and every process runs or is about to start.
    pub(crate) fn end(&mut self, cluster: &mut Cluster) {
        cluster.log_event("the storm is over");
        for repair in std::mem::take(&mut self.repairs).into_values() {
            Self::apply_repair(cluster, &repair);
        }
        {
            let mut net = cluster.network.borrow_mut();
            net.restore_all();
            net.quality = LinkQuality::fair();
        }
        for slot in 0..cluster.nodes.len() {
            cluster.nodes[slot].disk.forgive();
            cluster.nodes[slot].trust = Trust::Sound;
            // A member that has not noticed its damage yet finds it at its start.
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

    /// Members that need no repair once the storm is over: with these alone the cluster must accept writes.
    pub(crate) fn undisturbed(&self, cluster: &Cluster) -> Vec<Slot> {
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

    /// After the storm: whether every machine has an undamaged voter. If not, the operator begins what is still to be done.
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
        let settled = |slot| serves(slot).is_some() && sound(slot) && votes(slot);
        slots.clone().all(settled)
    }

    /// The state of every machine, for a failure's message.
    pub(crate) fn describe(&self, cluster: &Cluster) -> String {
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

    /// Restarts processes that stopped by themselves after a while, and does first what their error messages advise.
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
            assert!(
                node.trust == Trust::Damaged || damaged,
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
                Remedy::Refill => request_refill(cluster, slot),
                Remedy::Replace => {
                    self.operator.give_up_on_damaged(slot);
                    if !self.operator.is_at(slot) && self.operator.put_off_add() {
                        self.operator.begin(cluster, Job::replace(slot));
                    }
                    continue;
                }
            }
            let node = &mut cluster.nodes[slot];
            node.trust = Trust::Sound;
            node.disk.forgive();
            if let Some(at) = self
                .loses_power
                .iter()
                .position(|loses_power| *loses_power == slot)
            {
                self.loses_power.swap_remove(at);
                node.disk.crash();
            }
            node.restart_at = Some(cluster.now + self.rng.u64(50..4_000));
        }
    }

    fn inject_any(&mut self, cluster: &mut Cluster) {
        let total: u32 = ALL.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.rng.u32(0..total);
        let found = ALL.iter().find(|(_, weight)| {
            let here = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            here
        });
        let Some((fault, _)) = found else {
            return;
        };
        self.inject(cluster, *fault);
    }

    /// A random one of these.
    pub(crate) fn one_of(&mut self, all: &[Fault]) -> Fault {
        all[self.rng.usize(0..all.len())]
    }

    /// Injects a fault at a random member. Returns whether that was possible.
    pub(crate) fn inject(&mut self, cluster: &mut Cluster, fault: Fault) -> bool {
        let count = cluster.nodes.len();
        let slot = self.rng.usize(0..count);
        let other = (slot + self.rng.usize(1..count.max(2))) % count;
        let lasts = self.rng.u64(LAST_MILLIS);
        match fault {
            Fault::Crash => return self.crash(cluster, slot),
            Fault::CrashCutOff => return self.crash_cut_off(cluster, slot, lasts),
            Fault::Blackout => {
                for slot in 0..count {
                    self.end_process(cluster, slot, Crash::Power);
                }
            }
            Fault::DiskError | Fault::PowerAtWrite => {
                return self.disk_error(cluster, slot, fault == Fault::PowerAtWrite);
            }
            Fault::DiskStall | Fault::DiskSlow => {
                self.slow_disk(cluster, slot, fault == Fault::DiskStall, lasts);
            }
            Fault::Partition => self.partition(cluster, lasts),
            Fault::OneWay => self.cut(cluster, vec![(slot, other)], lasts),
            Fault::Deaf => {
                let hears = self.rng.bool();
                let others = (0..count).filter(|other| *other != slot);
                let link = |other| if hears { (slot, other) } else { (other, slot) };
                self.cut(cluster, others.map(link).collect(), lasts);
            }
            Fault::Stall => {
                cluster.network.borrow_mut().stall(slot, other, true);
                self.repair_later(cluster, lasts, Repair::Stall(slot, other));
            }
            Fault::Pause => {
                if !cluster.is_running(slot) {
                    return false;
                }
                cluster.pause(slot, true);
                self.repair_later(cluster, lasts, Repair::Resume(slot));
            }
            Fault::Drift => {
                let rate = self.rng.u64(RATES_PPM);
                cluster.set_rate(slot, rate);
                self.repair_later(cluster, lasts * 4, Repair::Clock(slot));
            }
            Fault::NoClients => {
                self.cut(cluster, vec![(slot, CLIENTS), (CLIENTS, slot)], lasts);
            }
            Fault::LinkQuality => {
                cluster.network.borrow_mut().quality = LinkQuality::drawn(&mut self.rng);
            }
            Fault::Transfer => {
                if !transfer(cluster, other) {
                    return false;
                }
            }
            Fault::Away
            | Fault::FlipLog
            | Fault::FlipDatabase
            | Fault::CutFile
            | Fault::LoseDisk
            | Fault::Add
            | Fault::Promote
            | Fault::Remove
            | Fault::Replace => {
                if !self.inject_at_member(cluster, slot, fault) {
                    return false;
                }
            }
        }
        self.record(cluster, fault, slot);
        true
    }

    /// Injects a long absence, damage, or a change of the membership.
    fn inject_at_member(&mut self, cluster: &mut Cluster, slot: Slot, fault: Fault) -> bool {
        match fault {
            Fault::Away => {
                let runs = cluster.has_process(slot);
                if runs {
                    cluster.crash(slot, Crash::Process);
                    let back = cluster.now + self.rng.u64(AWAY_MILLIS);
                    cluster.nodes[slot].restart_at = Some(back);
                }
                runs
            }
            Fault::FlipLog | Fault::FlipDatabase | Fault::CutFile => {
                self.damage(cluster, slot, fault)
            }
            Fault::LoseDisk => self.lose_disk(cluster, slot),
            _ => {
                let job = self.change(cluster, slot, fault);
                let begins = job.is_some();
                if let Some(job) = job {
                    self.operator.begin(cluster, job);
                }
                begins
            }
        }
    }

    /// Whether a member's synced data may be damaged: never that of two members at a time.
    fn may_damage(&self, cluster: &Cluster, slot: Slot) -> bool {
        let operator = &self.operator;
        let busy = operator.is_at(slot) || operator.removes() || cluster.nodes[slot].vacant;
        let voters =
            (0..cluster.nodes.len()).filter(|slot| operator::votes(cluster, *slot) == Some(true));
        let too_few = voters.count() < MEMBERS_LEAST;
        // One that was added to vote is a learner first. Without its disk it may begin again: nobody counted on it.
        let may_vote = operator::votes(cluster, slot) == Some(true);
        let other = cluster
            .nodes
            .iter()
            .any(|node| node.damaged_before.is_some());
        may_vote && !(busy || other || too_few)
    }

    fn lose_disk(&mut self, cluster: &mut Cluster, slot: Slot) -> bool {
        if !self.may_damage(cluster, slot) {
            return false;
        }
        cluster.lose_disk(slot);
        cluster.nodes[slot].restart_at = Some(cluster.now + self.rng.u64(20..2_000));
        true
    }

    fn damage(&mut self, cluster: &mut Cluster, slot: Slot, fault: Fault) -> bool {
        if !self.may_damage(cluster, slot) {
            return false;
        }
        let disk = cluster.nodes[slot].disk.clone();
        let mut names = vec![DATABASE.to_owned()];
        if fault != Fault::FlipDatabase {
            let all = disk.list(LOG).unwrap_or_default();
            let live = all.iter().filter(|name| name.contains(".seg"));
            let log = live.map(|name| format!("{LOG}/{name}"));
            if fault == Fault::FlipLog {
                names.clear();
            }
            names.extend(log);
        }
        let name = &names[self.rng.usize(0..names.len())];
        let bytes = disk.contents(name).unwrap_or_default();
        // Most of a log segment is empty, and so is some of a database: the used part is hit more often.
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64 + 1;
        let length = if self.rng.bool() {
            used
        } else {
            bytes.len() as u64
        };
        let at = self.rng.u64(0..length.max(1));
        if fault == Fault::CutFile {
            disk.cut(name, at);
        } else {
            disk.flip_bit(name, at, self.rng.u32(0..8));
        }
        cluster.log_event(format_args!("damage in {name} at byte {at}"));
        let node = &mut cluster.nodes[slot];
        node.damaged_before = Some(node.starts + 1);
        true
    }

    /// The operator's job for a change of the membership, if one is possible now.
    fn change(&mut self, cluster: &mut Cluster, slot: Slot, fault: Fault) -> Option<Job> {
        let damaged = |node: &Node| node.damaged_before.is_some();
        if self.operator.is_busy() || cluster.nodes.iter().any(damaged) {
            return None;
        }
        let vacant = cluster.nodes.iter().position(|node| node.vacant);
        let learner = (0..cluster.nodes.len())
            .find(|slot| cluster.requests(*slot).is_some_and(Requests::is_learner));
        let members = cluster.nodes.len() - usize::from(vacant.is_some());
        match fault {
            Fault::Add if vacant.is_some() || members == self.size => {
                let slot = vacant.unwrap_or_else(|| cluster.add_machine());
                Some(Job::add(slot, self.rng.bool()))
            }
            Fault::Promote => learner.map(Job::promote),
            Fault::Remove if vacant.is_none() && members > MEMBERS_LEAST => Some(Job::remove(
                learner.filter(|_| self.rng.bool()).unwrap_or(slot),
            )),
            Fault::Replace if vacant.is_none() => Some(Job::replace(slot)),
            _ => None,
        }
    }

    fn record(&mut self, cluster: &mut Cluster, fault: Fault, slot: Slot) {
        self.injected += 1;
        cluster.log_event(format_args!("{fault:?} at {}", member(slot).name));
        *cluster.faults.entry(fault.name()).or_default() += 1;
    }

    fn repair_later(&mut self, cluster: &Cluster, after: u64, repair: Repair) {
        self.repairs
            .insert((cluster.now + after, self.injected), repair);
    }

    fn apply_repair(cluster: &mut Cluster, repair: &Repair) {
        match repair {
            Repair::Links(links) => {
                let mut net = cluster.network.borrow_mut();
                for (from, to) in links {
                    net.cut(*from, *to, false);
                }
            }
            Repair::Stall(from, to) => cluster.network.borrow_mut().stall(*from, *to, false),
            Repair::Resume(slot) => cluster.pause(*slot, false),
            Repair::Disk(slot) => {
                let disk = &cluster.nodes[*slot].disk;
                disk.stall(Duration::ZERO);
                disk.take_up_to(DISK_TAKES);
            }
            Repair::Clock(slot) => cluster.set_rate(*slot, 1_000_000),
        }
        cluster.log_event(format_args!("repaired: {repair:?}"));
    }

    fn crash(&mut self, cluster: &mut Cluster, slot: Slot) -> bool {
        if !cluster.has_process(slot) {
            return false;
        }
        let crash = self.kind_of_crash();
        self.end_process(cluster, slot, crash);
        self.record(cluster, Fault::Crash, slot);
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
        self.record(cluster, Fault::CrashCutOff, slot);
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
        if power && !self.loses_power.contains(&slot) {
            self.loses_power.push(slot);
        }
        let fault = if power {
            Fault::PowerAtWrite
        } else {
            Fault::DiskError
        };
        self.record(cluster, fault, slot);
        true
    }

    fn slow_disk(&mut self, cluster: &Cluster, slot: Slot, stalls: bool, lasts: u64) {
        let disk = &cluster.nodes[slot].disk;
        if stalls {
            disk.stall(Duration::from_millis(lasts));
            self.repair_later(cluster, lasts, Repair::Disk(slot));
        } else {
            disk.take_up_to(Duration::from_millis(self.rng.u64(5..200)));
            self.repair_later(cluster, lasts * 2, Repair::Disk(slot));
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
        self.repair_later(cluster, lasts, Repair::Links(links));
    }
}

impl Fault {
    /// Its name in reports.
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
            Self::Deaf => "member without inbound or outbound links",
            Self::Stall => "stalled stream",
            Self::Pause => "pause",
            Self::Drift => "clock drift",
            Self::NoClients => "clients cut off",
            Self::LinkQuality => "link quality",
            Self::Transfer => "leadership transfer",
            Self::Away => "away for long",
            Self::FlipLog => "bit flipped in the log",
            Self::FlipDatabase => "bit flipped in the database",
            Self::CutFile => "file cut short",
            Self::LoseDisk => "disk lost",
            Self::Add => "member added",
            Self::Promote => "learner promoted",
            Self::Remove => "member removed",
            Self::Replace => "member replaced",
        }
    }
}

/// Whether all members take part in consensus: each knows a term.
pub(crate) fn all_take_part(cluster: &Cluster) -> bool {
    let mut slots = 0..cluster.nodes.len();
    slots.all(|slot| {
        let requests = cluster.requests(slot);
        requests.is_some_and(|requests| requests.term() > Term(0))
    })
}

/// Asks the leader to hand over to another member.
fn transfer(cluster: &mut Cluster, to: Slot) -> bool {
    let (Some(leader), Some(target)) = (cluster.leader(), cluster.requests(to)) else {
        return false;
    };
    let to = target.identity().member;
    cluster.log_event(format_args!("{} is to hand over", member(leader).name));
    cluster.client(move |client| async move {
        let moved = client.call(leader, 5_000, move |requests| async move {
            requests.move_leader(to).await.is_ok()
        });
        // It may fail.
        moved.await.unwrap_or_default();
    });
    true
}

/// The operator asked for ever for the promotion of a learner whose log was damaged: it did not run any more.
#[test]
fn a_damaged_learner_that_is_to_be_promoted_is_replaced() {
    let mut scene = Scene::of(1, 3);
    let slot = scene.cluster.add_machine();
    scene.add(&[0, 1, 2], slot, true);
    scene.cluster.nodes[slot].vacant = false;
    scene.start_all();
    let cluster = &mut scene.cluster;
    let mut storm = Storm::silent(cluster);
    cluster.crash(slot, Crash::Process);
    let node = &mut cluster.nodes[slot];
    let segments = node.disk.list(LOG).unwrap();
    let segment = segments.iter().find(|name| name.contains(".seg")).unwrap();
    node.disk.flip_bit(&format!("{LOG}/{segment}"), 11, 0);
    node.damaged_before = Some(node.starts + 1);
    node.restart_at = Some(cluster.now + 1);
    storm.operator.begin(cluster, Job::promote(slot));
    let until = cluster.now + 60_000;
    while !storm.is_settled(cluster) {
        assert!(cluster.now < until, "{}", storm.describe(cluster));
        storm.step_without_faults(cluster);
    }
    assert_eq!(cluster.nodes[slot].starts, 3, "it was added anew");
}
