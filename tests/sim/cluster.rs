//! A cluster of whole nodes on simulated machines: how they are run, and what a test can do to them.
//!
//! [`Cluster::run`] advances time in steps of [`STEP_MILLIS`]. In each step every machine runs once: it receives each event at
//! the event's own instant and runs its timers, and what it sends arrives in a later step. The order of the machines is random.
//! Nothing else runs, so a seed gives the same run each time; two runs are compared by [`Cluster::hash`].

use crate::{
    clients::Client,
    hub::Uplink,
    machine::{Due, Life, Machine, panics},
    network::{Event, InFlight, LinkQuality, Network, STEP_MILLIS, SharedNetwork, Slot, deliver},
    trace::Trace,
};
use quorate::{
    Config, LocalNode,
    internals::{
        actors::{fail_stop::FailStop, requests::Requests},
        config::{ClusterState, HostPort, InitialMember},
        node::{StartError, start_among},
        storage::{disk::Disk, sim_disk::SimDisk},
    },
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

/// How often the connections' states are updated, in milliseconds.
const CONNECTIONS_MILLIS: u64 = 50;
/// The heartbeat interval and the election timeout.
pub(crate) const HEARTBEAT_MILLIS: u64 = 100;
pub(crate) const ELECTION_MILLIS: u64 = 1_000;
/// Size of a log segment: small, so that a run fills many.
const WAL_SEGMENT_BYTES: u64 = 64 * 1024;
const DATABASE_CACHE_BYTES: usize = 1024 * 1024;
/// The cheapest there is.
const BCRYPT_COST: u32 = 4;
/// So short that tokens are renewed and expire within a run.
const TOKEN_TTL: Duration = Duration::from_secs(6);
/// The longest a write and its sync usually take.
pub(crate) const DISK_TAKES: Duration = Duration::from_millis(3);

/// The outcome of a node's start, once there is one.
type Started = Rc<RefCell<Option<Result<LocalNode, StartError>>>>;

/// A node's process.
struct Process {
    machine: Machine,
    started: Started,
    requests: Option<Requests>,
    pace: Pace,
    /// What arrived while the process was paused; `None` if it is not.
    missed: Option<Vec<InFlight>>,
}

/// How a machine's clock follows the cluster's clock.
#[derive(Clone, Copy, Debug)]
struct Pace {
    since: u64,
    shown: Duration,
    /// In millionths of the cluster's rate.
    rate: u64,
}

impl Pace {
    /// What the clock shows at the cluster's time `now`.
    fn at(&self, now: u64) -> Duration {
        self.shown + Duration::from_nanos((now - self.since) * self.rate)
    }
}

/// Whether the run fails if the node stops by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Nothing was done to it: it must keep running.
    Sound,
    /// Its disk was made to fail, or its data was damaged: it may stop with a reason.
    Damaged,
}

/// A node: its disk, and its process if it runs.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) disk: SimDisk,
    pub(crate) trust: Trust,
    /// Why its process stopped by itself, or did not start.
    pub(crate) stopped: Option<String>,
    /// When it is started again; `None` if nobody has decided to.
    pub(crate) restart_at: Option<u64>,
    /// The machine exists and has no member.
    pub(crate) vacant: bool,
    /// It is joining a running cluster: it may stop because it reaches no member.
    pub(crate) joins: bool,
    /// Synced data was damaged before this start, counted from one: once that start succeeds, the data is known to be good.
    pub(crate) damaged_before: Option<u64>,
    /// Its disk is empty, and it took part in consensus before: it must never do so again under its old id.
    lost_disk: bool,
    /// How often it was started.
    pub(crate) starts: u64,
    config: Config,
    process: Option<Process>,
    rate: u64,
}

/// Settings that all members share, drawn from the seed.
#[derive(Clone, Copy, Debug)]
struct Shape {
    log_keep_entries: u64,
    log_keep_bytes: u64,
    snapshot_bytes_per_sec: u64,
}

impl Shape {
    /// In two runs of three the log is short and snapshots are slow: a member that was away for seconds needs a snapshot.
    fn drawn(rng: &mut fastrand::Rng) -> Self {
        let short = rng.u8(0..3) > 0;
        Self {
            log_keep_entries: if short { rng.u64(20..300) } else { 100_000 },
            log_keep_bytes: if short {
                rng.u64(16..512) * 1024
            } else {
                1 << 29
            },
            snapshot_bytes_per_sec: rng.u64(500_000..20_000_000),
        }
    }
}

/// The cluster.
pub(crate) struct Cluster {
    pub(crate) now: u64,
    pub(crate) rng: fastrand::Rng,
    pub(crate) network: SharedNetwork,
    pub(crate) nodes: Vec<Node>,
    /// How often each fault was injected.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    shape: Shape,
    clients: Machine,
    clients_begun: Cell<u64>,
    done: Rc<Cell<u64>>,
    panics: u64,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process is killed; everything it wrote stays.
    Process,
    /// The machine loses power, and what was not synced is lost.
    Power,
}

impl Cluster {
    /// A cluster of `size` nodes in their first start. Everything that happens follows from `seed`.
    pub(crate) fn new(seed: u64, size: usize, shown: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shape = Shape::drawn(&mut rng);
        Self::shaped(seed, rng, size, shown, shape)
    }

    /// As [`Cluster::new`]; the members keep at most `entries` log entries for members that are away.
    pub(crate) fn with_short_log(seed: u64, size: usize, entries: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shape = Shape {
            log_keep_entries: entries,
            ..Shape::drawn(&mut rng)
        };
        Self::shaped(seed, rng, size, false, shape)
    }

    fn shaped(seed: u64, mut rng: fastrand::Rng, size: usize, shown: bool, shape: Shape) -> Self {
        quorate::internals::clock::simulate(seed);
        let network = Network::new(rng.fork(), LinkQuality::fair(), Trace::new(shown));
        let mut cluster = Self {
            now: 0,
            network: Rc::new(RefCell::new(network)),
            nodes: Vec::new(),
            faults: BTreeMap::new(),
            clients: Machine::new(),
            clients_begun: Cell::new(1),
            done: Rc::default(),
            panics: panics(),
            shape,
            rng,
        };
        let initial: Vec<InitialMember> = (0..size).map(member).collect();
        for _ in 0..size {
            cluster.add_node(initial.clone(), ClusterState::New);
        }
        for slot in 0..size {
            cluster.start(slot);
        }
        cluster
    }

    /// Adds a machine with a node that is not started.
    pub(crate) fn add_node(&mut self, initial: Vec<InitialMember>, state: ClusterState) -> Slot {
        let slot = self.nodes.len();
        let InitialMember { name, peer } = member(slot);
        let address = peer.to_string();
        self.network.borrow_mut().addresses.insert(address, slot);
        let mut config = Config {
            name: name.clone(),
            ..Config::default()
        };
        config.peer.listen = peer.clone();
        config.peer.advertise = Some(peer);
        config.cluster.initial = initial;
        config.cluster.state = state;
        config.raft.heartbeat = Duration::from_millis(HEARTBEAT_MILLIS);
        config.raft.election = Duration::from_millis(ELECTION_MILLIS);
        config.storage.wal_segment_bytes = WAL_SEGMENT_BYTES;
        config.storage.log_keep_entries = self.shape.log_keep_entries;
        config.storage.log_keep_bytes = self.shape.log_keep_bytes;
        config.storage.snapshot_bytes_per_sec = self.shape.snapshot_bytes_per_sec;
        config.storage.database_cache_bytes = DATABASE_CACHE_BYTES;
        config.auth.bcrypt_cost = BCRYPT_COST;
        config.auth.token_ttl = TOKEN_TTL;
        let disk = self.new_disk();
        self.nodes.push(Node {
            name,
            disk,
            trust: Trust::Sound,
            stopped: None,
            restart_at: None,
            vacant: false,
            joins: false,
            damaged_before: None,
            lost_disk: false,
            starts: 0,
            config,
            process: None,
            rate: 1_000_000,
        });
        slot
    }

    pub(crate) fn new_disk(&mut self) -> SimDisk {
        let disk = SimDisk::new(self.rng.u64(..));
        disk.take_up_to(DISK_TAKES);
        disk
    }

    /// Adds a machine without a member, for one that will join.
    pub(crate) fn add_machine(&mut self) -> Slot {
        let known: Vec<InitialMember> = (0..=self.nodes.len()).map(member).collect();
        let slot = self.add_node(known, ClusterState::Existing);
        self.nodes[slot].vacant = true;
        slot
    }

    /// Replaces a machine's disk by an empty one, so that the next start there has to join. The process must have ended.
    pub(crate) fn wipe(&mut self, slot: Slot) {
        assert!(!self.has_process(slot), "it still runs");
        let disk = self.new_disk();
        let known: Vec<InitialMember> = (0..self.nodes.len()).map(member).collect();
        let node = &mut self.nodes[slot];
        node.disk = disk;
        node.config.cluster.state = ClusterState::Existing;
        node.config.cluster.initial = known;
        (node.vacant, node.trust, node.lost_disk) = (true, Trust::Sound, false);
        (node.stopped, node.restart_at, node.damaged_before) = (None, None, None);
        self.log_event(format!("{}'s disk is a new one", member(slot).name));
    }

    /// Replaces a machine's disk by an empty one. Nobody changes the configuration, so the next start is that of the same member.
    pub(crate) fn lose_disk(&mut self, slot: Slot) {
        self.crash(slot, Crash::Power);
        let disk = self.new_disk();
        let node = &mut self.nodes[slot];
        node.disk = disk;
        (node.trust, node.lost_disk) = (Trust::Sound, true);
        node.damaged_before = Some(node.starts + 1);
        self.log_event(format!("{} has lost its disk", member(slot).name));
    }

    /// Starts a node's process.
    pub(crate) fn start(&mut self, slot: Slot) {
        self.log_event(format!("{} starts", member(slot).name));
        let node = &mut self.nodes[slot];
        assert!(node.process.is_none(), "one process to a machine");
        let machine = Machine::new();
        let life = machine.life().clone();
        let fail_stop = fail_stop(life.clone(), node.disk.clone());
        let uplink = Uplink {
            network: self.network.clone(),
            slot,
            life,
        };
        let (config, disk) = (node.config.clone(), node.disk.clone());
        let started = Started::default();
        let outcome = started.clone();
        machine.spawn(async move {
            let disk: Arc<dyn Disk> = Arc::new(disk);
            let found = start_among(&config, &disk, &uplink, &fail_stop).await;
            *outcome.borrow_mut() = Some(found);
        });
        node.stopped = None;
        node.restart_at = None;
        node.starts += 1;
        node.process = Some(Process {
            machine,
            started,
            requests: None,
            pace: Pace {
                since: self.now,
                shown: Duration::ZERO,
                rate: node.rate,
            },
            missed: None,
        });
    }

    /// Ends a node's process at once.
    pub(crate) fn crash(&mut self, slot: Slot, crash: Crash) {
        let node = &mut self.nodes[slot];
        let Some(process) = node.process.take() else {
            return;
        };
        process.machine.life().end("crashed");
        match crash {
            Crash::Process => node.disk.kill_process(),
            Crash::Power => node.disk.crash(),
        }
        self.network.borrow_mut().detach(slot);
        drop(process);
        self.log_event(format!("{} ends: {crash:?}", member(slot).name));
    }

    /// A node's process is told that it will stop, as by a signal: it hands its leadership over and goes on. The result becomes
    /// true once that is done.
    pub(crate) fn hand_over(&self, slot: Slot) -> Rc<Cell<bool>> {
        self.log_event(format!("{} is about to stop", member(slot).name));
        let process = self.nodes[slot].process.as_ref().expect("it runs");
        let over = match process.started.borrow().as_ref() {
            Some(Ok(node)) => node.hand_over(),
            Some(Err(_)) | None => panic!("it has not started"),
        };
        let done = Rc::new(Cell::new(false));
        let told = done.clone();
        process.machine.spawn(async move {
            over.await;
            told.set(true);
        });
        done
    }

    /// Pauses a node's process, or resumes it: its timers are late then.
    pub(crate) fn pause(&mut self, slot: Slot, paused: bool) {
        let now = self.now;
        let Some(process) = self.nodes[slot].process.as_mut() else {
            return;
        };
        if process.missed.is_some() == paused {
            return;
        }
        self.network.borrow_mut().pause(slot, paused);
        if paused {
            process.missed = Some(Vec::new());
        } else {
            process.machine.leap(process.pace.at(now));
            let missed = process.missed.take().unwrap_or_default();
            for in_flight in missed {
                self.network.borrow_mut().schedule(0, in_flight);
            }
        }
        let what = if paused { "is paused" } else { "is resumed" };
        self.log_event(format!("{} {what}", member(slot).name));
    }

    /// Sets the rate of a node's clock, in millionths of the true rate.
    pub(crate) fn set_rate(&mut self, slot: Slot, rate: u64) {
        let now = self.now;
        let node = &mut self.nodes[slot];
        node.rate = rate;
        if let Some(process) = node.process.as_mut() {
            process.pace = Pace {
                since: now,
                shown: process.pace.at(now),
                rate,
            };
        }
        self.log_event(format!("{}'s clock runs at {rate} ppm", member(slot).name));
    }

    /// Whether the node has a process that is not paused.
    pub(crate) fn is_running(&self, slot: Slot) -> bool {
        let process = self.nodes[slot].process.as_ref();
        process.is_some_and(|process| process.missed.is_none())
    }

    /// Whether the node has a process, paused or not.
    pub(crate) fn has_process(&self, slot: Slot) -> bool {
        self.nodes[slot].process.is_some()
    }

    /// The entry point of requests; `None` until the node has started.
    pub(crate) fn requests(&self, slot: Slot) -> Option<&Requests> {
        self.nodes[slot].process.as_ref()?.requests.as_ref()
    }

    /// The node that considers itself leader in the highest term.
    pub(crate) fn leader(&self) -> Option<Slot> {
        let slots = 0..self.nodes.len();
        let statuses = slots.filter_map(|slot| {
            let status = self.requests(slot)?.status().ok()?;
            (status.leader == Some(status.member)).then_some((status.term, slot))
        });
        statuses.max().map(|(_, slot)| slot)
    }

    /// Starts a client: a task on the clients' machine.
    pub(crate) fn client<C, Work>(&self, work: C)
    where
        C: FnOnce(Client) -> Work + 'static,
        Work: Future<Output = ()> + 'static,
    {
        let (network, done) = (self.network.clone(), self.done.clone());
        let number = self.clients_begun.get();
        self.clients_begun.set(number + 1);
        let client = Client::new(number, network, done, self.clients.began());
        self.clients.spawn(work(client));
    }

    /// How many client requests are finished.
    pub(crate) fn operations(&self) -> u64 {
        self.done.get()
    }

    /// The trace's hash: equal for two runs of one seed.
    pub(crate) fn hash(&self) -> u64 {
        self.network.borrow().trace.hash()
    }

    /// Adds a rare event to the trace; a failure prints the latest ones.
    pub(crate) fn log_event(&self, text: impl std::fmt::Display) {
        let at = self.now;
        self.network.borrow_mut().trace.log_event(at, text);
    }

    /// Advances time.
    pub(crate) fn run(&mut self, millis: u64) {
        let until = self.now + millis;
        while self.now < until {
            self.step();
        }
    }

    /// Runs until `reached` holds, at most for `millis`. Returns whether it holds.
    pub(crate) fn run_until(&mut self, millis: u64, reached: impl Fn(&Self) -> bool) -> bool {
        let until = self.now + millis;
        while self.now < until {
            if reached(self) {
                return true;
            }
            self.step();
        }
        reached(self)
    }

    /// One step of all machines.
    pub(crate) fn step(&mut self) {
        let (from, until) = (self.now, self.now + STEP_MILLIS);
        self.network.borrow_mut().now = from;
        if from.is_multiple_of(CONNECTIONS_MILLIS) {
            self.network.borrow_mut().update_connections();
        }
        let arriving = self.network.borrow_mut().arriving(until);
        let mut inboxes: BTreeMap<Slot, Vec<(u64, InFlight)>> = BTreeMap::new();
        for (at, in_flight) in arriving {
            inboxes
                .entry(in_flight.to)
                .or_default()
                .push((at, in_flight));
        }
        let count = self.nodes.len();
        let first = self.rng.usize(0..=count);
        for turn in 0..=count {
            let slot = (first + turn) % (count + 1);
            if slot == count {
                self.clients.run(Duration::from_millis(until), Vec::new());
            } else {
                let inbox = inboxes.remove(&slot).unwrap_or_default();
                self.step_node(slot, inbox, until);
            }
        }
        self.now = until;
        self.network.borrow_mut().now = until;
        self.handle_exits(until);
        assert!(
            panics() == self.panics,
            "a task of a node or of a client panicked: see above"
        );
    }

    fn step_node(&mut self, slot: Slot, inbox: Vec<(u64, InFlight)>, until: u64) {
        let Some(process) = self.nodes[slot].process.as_mut() else {
            return;
        };
        let life = process.machine.life().clone();
        let meant = |in_flight: &InFlight| {
            in_flight
                .life
                .as_ref()
                .is_none_or(|meant| Arc::ptr_eq(meant, &life))
        };
        let inbox = inbox.into_iter().filter(|(_, in_flight)| meant(in_flight));
        if let Some(missed) = &mut process.missed {
            missed.extend(inbox.map(|(_, in_flight)| in_flight));
            return;
        }
        let mut due = Vec::new();
        for (at, in_flight) in inbox {
            self.network.borrow_mut().note(at, slot, &in_flight.event);
            let (network, requests) = (self.network.clone(), process.requests.clone());
            due.push(Due {
                at: process.pace.at(at),
                work: Box::new(move || arrive(&network, slot, in_flight.event, requests.as_ref())),
            });
        }
        process.machine.run(process.pace.at(until), due);
        if process.requests.is_none()
            && let Some(Ok(node)) = process.started.borrow().as_ref()
        {
            process.requests = Some(node.requests().clone());
        } else {
            return;
        }
        let node = &mut self.nodes[slot];
        assert!(
            !node.lost_disk,
            "{} lost its disk, and takes part again under its old id",
            node.name
        );
        node.joins = false;
        // The start has read and verified all of its log and its database.
        if node
            .damaged_before
            .is_some_and(|starts| starts <= node.starts)
        {
            node.damaged_before = None;
        }
    }

    /// Handles processes that have stopped by themselves, and starts those whose time has come.
    fn handle_exits(&mut self, now: u64) {
        for slot in 0..self.nodes.len() {
            let node = &mut self.nodes[slot];
            if node.restart_at.is_some_and(|at| at <= now) && node.process.is_none() {
                self.start(slot);
                continue;
            }
            let Some(process) = node.process.as_ref() else {
                continue;
            };
            let refused = match process.started.borrow().as_ref() {
                Some(Err(error)) => Some(error.to_string()),
                Some(Ok(_)) | None => None,
            };
            let Some(reason) = process.machine.life().reason().or(refused) else {
                continue;
            };
            node.stopped = Some(reason.clone());
            node.disk.kill_process();
            node.process = None;
            self.network.borrow_mut().detach(slot);
            self.log_event(format!("{} stops: {reason}", member(slot).name));
        }
    }
}

/// Delivers an event, on the node's machine.
fn arrive(network: &SharedNetwork, slot: Slot, event: Event, requests: Option<&Requests>) {
    let net = network.borrow();
    let Some(endpoint) = net.endpoint(slot) else {
        return;
    };
    // A real connection ends with its process, so it carries nothing to a member that came to the machine later.
    let misses = matches!(&event, Event::Messages { to, .. } if *to != endpoint.member);
    if !misses {
        let peers = endpoint.peers.clone();
        drop(net);
        deliver(slot, event, requests, &peers);
    }
}

/// How a node's process stops by itself: at once, and nothing it does afterwards has an effect.
fn fail_stop(life: Arc<Life>, disk: SimDisk) -> FailStop {
    FailStop::new(move |reason| {
        life.end(reason);
        disk.kill_process();
    })
}

/// Name and address of the node on a machine.
pub(crate) fn member(slot: Slot) -> InitialMember {
    InitialMember {
        name: format!("n{}", slot + 1),
        peer: HostPort {
            host: format!("n{}", slot + 1),
            port: 2380,
        },
    }
}
