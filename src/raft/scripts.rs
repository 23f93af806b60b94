//! Runs the scripts in `testscripts/`. Each file shows one situation: commands, and what the members then do.
//!
//! `UPDATE_GOLDENFILES=1 cargo test raft::scripts` writes the outputs again; commit only what you can explain.
//!
//! | command | does |
//! |---|---|
//! | `cluster nodes=3 [leader=1] [others=4] [pre-vote=no] [check-quorum=no] [append-bytes=N]` | starts members 1, 2, …; `others` wait to be added |
//! | `tick 1 count=10`, `tick 2-3`, `tick all` | time passes there; after each tick everything settles, unless `settle=no` |
//! | `run` | settles: disks finish, messages arrive, entries apply, until nothing moves |
//! | `deliver 1 2` | only what member 1 has sent member 2 arrives |
//! | `sync 1` | the disk of a member finishes, and it applies what it may |
//! | `drop` | what is on its way is lost |
//! | `campaign 1`, `put 1 x`, `read 1 r`, `transfer 1 2`, `stall 1` | inputs of a member |
//! | `add-learner 1 4`, `promote 1 4`, `remove 1 2` | member 1 proposes a membership change |
//! | `partition 1-2 3-4-5`, `heal` | messages between the groups are lost |
//! | `deafen 1` | messages to member 1 are lost, until `heal` |
//! | `hold 1`, `release-disk 1` | the disk of a member stalls; goes on |
//! | `crash 1`, `restart 1` | loses what is not durable; comes back |
//! | `forget 1` | the state machine's disk catches up and the WAL drops what is applied |
//! | `trace on`, `trace off` | whether messages are printed |
//! | `state` | each member's role, log end and commit index |

use super::testing::{Disk, Host, Judge, voters};
use super::*;
use crate::types::{Entry, EntryKind, MemberId};
use bytes::Bytes;
use goldenscript::{Command, Context, Runner};
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write as _,
};

type Outcome = Result<(), Box<dyn Error>>;

#[derive(Default)]
struct Script {
    hosts: BTreeMap<u64, Host>,
    crashed: BTreeMap<u64, Disk>,
    statuses: BTreeMap<u64, Status>,
    network: Vec<(u64, Envelope)>,
    snapshots: Vec<(u64, u64)>,
    groups: Vec<BTreeSet<u64>>,
    deaf: BTreeSet<u64>,
    held: BTreeSet<u64>,
    reads: BTreeMap<u64, String>,
    judge: Judge,
    trace: bool,
    pre_vote: bool,
    check_quorum: bool,
    append_bytes_max: usize,
    starts: u64,
    out: String,
}

impl Script {
    fn say(&mut self, id: u64, text: &str) {
        let term = self.hosts.get(&id).map(|host| host.node.status().term.0);
        let term = term.map_or(String::new(), |term| format!("@{term}"));
        writeln!(self.out, "n{id}{term} {text}").unwrap();
    }

    fn start(&mut self, id: u64, disk: Disk) {
        self.starts += 1;
        let mut config = Config::new(MemberId(id), id * 100 + self.starts);
        config.pre_vote = self.pre_vote;
        config.check_quorum = self.check_quorum;
        config.append_bytes_max = self.append_bytes_max;
        self.hosts.insert(id, Host::start(config, disk, usize::MAX));
        let status = Status {
            role: RoleName::Follower,
            ..self.hosts[&id].node.status()
        };
        self.statuses.insert(id, status);
        self.collect(id);
    }

    fn collect(&mut self, id: u64) {
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let mut readies = Vec::new();
        while let Some(ready) = host.node.ready() {
            readies.push(ready);
        }
        host.node.check();
        self.judge.saw_status(MemberId(id), host);
        Judge::saw_commit(host);
        for ready in readies {
            let host = self.hosts.get_mut(&id).unwrap();
            host.writes.extend(ready.persist);
            host.to_apply.extend(ready.committed);
            host.log_reads.extend(ready.log_reads);
            if let Some(status) = ready.status {
                self.describe_status(id, status);
            }
            for read in ready.reads {
                self.describe_read(id, read);
            }
            for SendSnapshot { to, .. } in ready.snapshots {
                self.say(id, &format!("sends n{to} a snapshot"));
                self.snapshots.push((id, to.0));
            }
            for envelope in ready.messages {
                if self.trace {
                    let text = format!("→ n{}: {}", envelope.to, describe(&envelope.message));
                    self.say(id, &text);
                }
                self.network.push((id, envelope));
            }
        }
    }

    fn describe_status(&mut self, id: u64, status: Status) {
        let before = self.statuses.insert(id, status).expect("start() noted it");
        let role = |status: Status| match (status.role, status.leader) {
            (RoleName::Follower, Some(leader)) => format!("follower of n{leader}"),
            (RoleName::Follower, None) => "follower".to_owned(),
            (RoleName::PreCandidate, _) => "pre-candidate".to_owned(),
            (RoleName::Candidate, _) => "candidate".to_owned(),
            (RoleName::Leader, _) => "leader".to_owned(),
        };
        if role(before) != role(status) {
            self.say(id, &format!("{} → {}", role(before), role(status)));
        }
    }

    fn describe_read(&mut self, id: u64, read: ReadState) {
        self.judge.saw_read(read);
        let name = self.reads.remove(&read.context).expect("read() noted it");
        match read.outcome {
            Ok(index) => self.say(id, &format!("read {name}: wait for {index}")),
            Err(error) => self.say(id, &format!("read {name}: {error}")),
        }
    }

    fn connected(&self, from: u64, to: u64) -> bool {
        let joined = |group: &BTreeSet<u64>| group.contains(&from) && group.contains(&to);
        !self.deaf.contains(&to) && (self.groups.is_empty() || self.groups.iter().any(joined))
    }

    fn disk(&mut self, id: u64) -> bool {
        let mut moved = false;
        if !self.held.contains(&id)
            && let Some(host) = self.hosts.get_mut(&id)
        {
            while host.persist_one() || host.read_log_one() {
                moved = true;
            }
        }
        self.collect(id);
        moved
    }

    fn apply(&mut self, id: u64) -> bool {
        let mut moved = false;
        while let Some(entry) = self.hosts.get_mut(&id).and_then(Host::apply_one) {
            self.judge
                .saw_applied(&entry, self.hosts[&id].node.status().term);
            self.say(id, &format!("applied {}", describe_entry(&entry)));
            moved = true;
        }
        self.collect(id);
        moved
    }

    fn arrive(&mut self, from: u64, Envelope { to, message }: Envelope) {
        if !self.connected(from, to.0) {
            return;
        }
        let Some(host) = self.hosts.get_mut(&to.0) else {
            return;
        };
        if let Err(error) = host.node.step(MemberId(from), message) {
            self.say(to.0, &format!("dropped a message: {error}"));
        }
        self.collect(to.0);
    }

    fn send_snapshot(&mut self, from: u64, to: u64) {
        let Some(sender) = self.hosts.get(&from) else {
            return;
        };
        let (at, membership) = (sender.applied, sender.membership.clone());
        let arrived = self.connected(from, to)
            && self
                .hosts
                .get_mut(&to)
                .is_some_and(|host| host.install(at, &membership));
        let sender = self.hosts.get_mut(&from).expect("it was there");
        if arrived {
            sender.node.snapshot_sent(MemberId(to), at.index);
            self.say(to, &format!("installed the snapshot at {at}"));
        } else {
            sender.node.snapshot_failed(MemberId(to));
        }
        self.collect(to);
        self.collect(from);
    }

    fn run_until_quiet(&mut self) {
        loop {
            let ids: Vec<_> = self.hosts.keys().copied().collect();
            let mut moved = false;
            for &id in &ids {
                self.collect(id);
                moved |= self.disk(id);
                moved |= self.apply(id);
            }
            for (from, envelope) in std::mem::take(&mut self.network) {
                self.arrive(from, envelope);
                moved = true;
            }
            for (from, to) in std::mem::take(&mut self.snapshots) {
                self.send_snapshot(from, to);
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }

    fn host(&mut self, id: u64) -> Result<&mut Host, Box<dyn Error>> {
        self.hosts
            .get_mut(&id)
            .ok_or_else(|| format!("n{id} does not run").into())
    }

    fn cluster(&mut self, command: &Command) -> Outcome {
        *self = Self {
            held: std::mem::take(&mut self.held),
            ..Self::default()
        };
        let mut args = command.consume_args();
        let mut number = |name: &str, default: usize| -> Result<usize, Box<dyn Error>> {
            Ok(args.take_key(name).map_or(Ok(default), str::parse)?)
        };
        let size = number("nodes", 3)?;
        let leader = number("leader", 0)?;
        let others = number("others", 0)?;
        self.append_bytes_max = number("append-bytes", 1 << 20)?;
        self.pre_vote = args.take_key("pre-vote") != Some("no");
        self.check_quorum = args.take_key("check-quorum") != Some("no");
        args.reject_next()?;
        let (size, others) = (u64::try_from(size)?, u64::try_from(others)?);
        for id in 1..=size {
            self.start(id, Disk::new(voters(1..=size)));
        }
        for id in (others..=others).filter(|&id| id > 0) {
            self.start(id, Disk::default());
        }
        if leader > 0 {
            self.host(u64::try_from(leader)?)?.node.campaign();
            self.run_until_quiet();
            let ids = self.hosts.keys().copied().collect();
            self.tick_some(&ids)?;
            self.run_until_quiet();
            self.out.clear();
        }
        Ok(())
    }

    fn tick_some(&mut self, ids: &BTreeSet<u64>) -> Outcome {
        for &id in ids {
            self.host(id)?.node.tick();
            self.collect(id);
        }
        Ok(())
    }

    fn tick(&mut self, command: &Command) -> Outcome {
        let mut args = command.consume_args();
        let count: u32 = args.take_key("count").map_or(Ok(1), str::parse)?;
        let settle = args.take_key("settle") != Some("no");
        let who = args.next_pos().ok_or("tick whom?")?;
        for _ in 0..count {
            let ids = match who {
                "all" => self.hosts.keys().copied().collect(),
                some => group(some)?,
            };
            self.tick_some(&ids)?;
            if settle {
                self.run_until_quiet();
            }
        }
        Ok(())
    }

    fn lose_everything(&mut self) {
        self.network.clear();
        for (from, to) in std::mem::take(&mut self.snapshots) {
            if let Some(host) = self.hosts.get_mut(&from) {
                host.node.snapshot_failed(MemberId(to));
            }
            self.say(
                from,
                &format!("learns that the snapshot for n{to} was lost"),
            );
        }
    }

    fn put(&mut self, id: u64, value: &str) -> Outcome {
        let result = self.host(id)?.node.propose(Bytes::from(value.to_owned()));
        match result {
            Ok(at) => self.say(id, &format!("put {value} at {at}")),
            Err(error) => self.say(id, &format!("refused put {value}: {error}")),
        }
        self.collect(id);
        Ok(())
    }

    fn read(&mut self, id: u64, name: &str) -> Outcome {
        let context = u64::try_from(self.reads.len())? + self.judge.reads_served * 1_000;
        self.host(id)?.node.read_index(context)?;
        self.reads.insert(context, name.to_owned());
        self.judge.reads.insert(context, self.judge.acknowledged());
        self.collect(id);
        Ok(())
    }

    fn change(&mut self, id: u64, change: &MembershipChange) -> Outcome {
        let result = self.host(id)?.node.propose_membership(change);
        match result {
            Ok(at) => self.say(id, &format!("proposed a membership at {at}")),
            Err(error) => self.say(id, &format!("refused: {error}")),
        }
        self.collect(id);
        Ok(())
    }

    fn state(&mut self) {
        let ids: Vec<_> = self.hosts.keys().copied().collect();
        for id in ids {
            let node = &self.hosts[&id].node;
            let text = format!(
                "{:?} last {} commit {} members {}",
                node.status().role,
                node.last(),
                node.commit(),
                describe_membership(node.membership())
            );
            self.say(id, &text);
        }
    }

    fn execute(&mut self, command: &Command) -> Outcome {
        let mut args = command.consume_args();
        let mut word = || args.next_pos().ok_or("an argument is missing");
        match command.name.as_str() {
            "cluster" => self.cluster(command)?,
            "tick" => self.tick(command)?,
            "run" => self.run_until_quiet(),
            "heal" => {
                self.groups.clear();
                self.deaf.clear();
            }
            "state" => self.state(),
            "drop" => self.lose_everything(),
            "trace" => self.trace = word()? == "on",
            "partition" => self.groups = groups(command)?,
            name => {
                let id: u64 = word()?.parse()?;
                let argument = word().unwrap_or_default();
                self.execute_at(name, id, argument)?;
            }
        }
        Ok(())
    }

    fn execute_at(&mut self, name: &str, id: u64, argument: &str) -> Outcome {
        let member = || argument.parse().map(MemberId);
        match name {
            "put" => self.put(id, argument)?,
            "read" => self.read(id, argument)?,
            "deliver" => self.deliver(id, argument.parse()?),
            "sync" => {
                self.disk(id);
                self.apply(id);
            }
            "campaign" => self.host(id)?.node.campaign(),
            "transfer" => self.transfer(id, member()?)?,
            "stall" => {
                let to = self.host(id)?.node.yield_leadership();
                self.say(id, &format!("hands over to {to:?}"));
            }
            "add-learner" => {
                self.change(
                    id,
                    &MembershipChange::AddLearner {
                        id: member()?,
                        context: Bytes::new(),
                    },
                )?;
            }
            "promote" => self.change(id, &MembershipChange::Promote { id: member()? })?,
            "remove" => self.change(id, &MembershipChange::Remove { id: member()? })?,
            "deafen" => {
                self.deaf.insert(id);
            }
            "hold" => {
                self.held.insert(id);
            }
            "release-disk" => {
                self.held.remove(&id);
            }
            "crash" => {
                let host = self.hosts.remove(&id).ok_or("it does not run")?;
                self.crashed.insert(id, host.disk);
            }
            "restart" => {
                let disk = self.crashed.remove(&id).ok_or("it did not crash")?;
                self.start(id, disk);
            }
            "forget" => {
                let host = self.host(id)?;
                host.checkpoint();
                host.disk.release(host.applied.index);
                host.node.log_released(host.applied.index);
            }
            name => return Err(format!("unknown command {name}").into()),
        }
        self.collect(id);
        Ok(())
    }

    fn transfer(&mut self, id: u64, to: MemberId) -> Outcome {
        if let Err(error) = self.host(id)?.node.transfer_leadership(to) {
            self.say(id, &format!("refused: {error}"));
        }
        Ok(())
    }

    fn deliver(&mut self, from: u64, to: u64) {
        let taken = std::mem::take(&mut self.network);
        let wanted = |(sender, envelope): &(u64, Envelope)| *sender == from && envelope.to.0 == to;
        let (now, later): (Vec<_>, Vec<_>) = taken.into_iter().partition(wanted);
        self.network = later;
        for (from, envelope) in now {
            self.arrive(from, envelope);
        }
        self.disk(to);
        self.apply(to);
    }
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        self.execute(command)?;
        Ok(std::mem::take(&mut self.out))
    }
}

fn groups(command: &Command) -> Result<Vec<BTreeSet<u64>>, Box<dyn Error>> {
    let mut args = command.consume_args();
    let mut groups = Vec::new();
    while let Some(text) = args.next_pos() {
        groups.push(group(text)?);
    }
    Ok(groups)
}

fn group(text: &str) -> Result<BTreeSet<u64>, Box<dyn Error>> {
    Ok(text.split('-').map(str::parse).collect::<Result<_, _>>()?)
}

fn describe_membership(membership: &Membership) -> String {
    let ids = |ids: Vec<MemberId>| {
        ids.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    let voters = ids(membership.voters().map(|(id, _)| id).collect());
    let learners = ids(membership.learners().map(|(id, _)| id).collect());
    if learners.is_empty() {
        voters
    } else {
        format!("{voters} learning {learners}")
    }
}

fn describe_entry(entry: &Entry) -> String {
    let id = entry.position();
    match entry.kind {
        EntryKind::Noop => format!("{id}"),
        EntryKind::Command => format!("{id} {}", String::from_utf8_lossy(&entry.data)),
        EntryKind::Membership => {
            let membership = Membership::decode(&entry.data).unwrap();
            format!("{id} members {}", describe_membership(&membership))
        }
    }
}

fn describe(message: &Message) -> String {
    let name = message.body.name();
    match &message.body {
        MessageBody::RequestVote {
            last,
            transfer: true,
        } => format!("{name} last {last} by transfer"),
        MessageBody::PreVote { last } | MessageBody::RequestVote { last, .. } => {
            format!("{name} last {last}")
        }
        MessageBody::PreVoteReply { granted, .. } | MessageBody::Vote { granted } => {
            format!("{name} {}", if *granted { "granted" } else { "refused" })
        }
        MessageBody::Append {
            prev,
            commit,
            entries,
        } => {
            let entries: Vec<_> = entries.iter().map(describe_entry).collect();
            format!(
                "{name} after {prev} [{}] commit {commit}",
                entries.join(", ")
            )
        }
        MessageBody::AppendReply { matched } => format!("{name} {matched}"),
        MessageBody::AppendRejected { rejected, hint } => format!("{name} {rejected} hint {hint}"),
        MessageBody::Commit { commit } => format!("{name} {commit}"),
        MessageBody::Heartbeat { commit, round } => format!("{name} commit {commit} round {round}"),
        MessageBody::HeartbeatReply { round } => format!("{name} round {round}"),
        MessageBody::ReadIndexReply { index, .. } => format!("{name} {index}"),
        MessageBody::ReadIndex { .. } | MessageBody::TimeoutNow | MessageBody::StaleTerm => {
            name.to_owned()
        }
    }
}

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/raft/testscripts/");
                let path = format!("{dir}{}", stringify!($name));
                goldenscript::run(&mut Script::default(), path).unwrap();
            }
        )*
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

scripts!(
    check_quorum,
    disk_stall,
    divergent_tail,
    durable_before_promised,
    election,
    figure_8,
    hand_over,
    leader_removal,
    learner_promotion,
    partition_ab_cde,
    pre_vote_rejoin,
    read_index_partition,
    single_voter,
    snapshot_laggard,
    split_vote,
    transfer,
    uncommitted_change_undone,
);

#[test]
fn every_script_is_run() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/raft/testscripts");
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, NAMES);
}
