//! The simulated operator: changes the membership, replaces members, and repairs a damaged member as its error message advises.
//!
//! A [`Job`] is a sequence of steps for one machine. A change of the membership is requested from random members until the
//! membership shows it, since answers may be lost and leaders may fail. One job is in progress at a time.

use crate::{
    clients::Client,
    cluster::{Cluster, Crash, member},
    network::Slot,
    scene::Scene,
};
use quorate::internals::{
    Inspect,
    actors::{
        members::{ClusterMember, Members},
        membership_change::MemberChange,
    },
    storage::refill,
};
use std::{cell::Cell, collections::VecDeque, rc::Rc};

/// How long the operator waits for an answer, in milliseconds.
const PATIENCE_MILLIS: u64 = 4_000;
/// The pause before the next attempt, in milliseconds.
const RETRY_MILLIS: u64 = 300;
/// How long a removed member may take to stop by itself; it may never learn of its removal.
const LEAVES_MILLIS: u64 = 3_000;

/// What the membership is to say of a machine's member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// There is none.
    Out,
    /// There is one: a learner, or one that is promoted to a voter.
    In { learner: bool },
    /// It is a voter.
    Vote,
}

/// A step of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Ask(Wanted),
    /// The machine gets an empty disk.
    Wipe,
    /// The machine starts, to join.
    Start,
    /// Waits until it serves.
    Serve,
}

/// The steps for one machine that are left.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    slot: Slot,
    steps: VecDeque<Step>,
    /// Whether it began with a member's removal.
    removes: bool,
}

impl Job {
    fn new(slot: Slot, steps: &[Step]) -> Self {
        Self {
            slot,
            steps: steps.iter().copied().collect(),
            removes: steps.contains(&Step::Ask(Wanted::Out)),
        }
    }

    /// Adds a member on a machine.
    pub(crate) fn add(slot: Slot, learner: bool) -> Self {
        let add = Step::Ask(Wanted::In { learner });
        Self::new(slot, &[add, Step::Start, Step::Serve])
    }

    /// Promotes a learner.
    pub(crate) fn promote(slot: Slot) -> Self {
        Self::new(slot, &[Step::Ask(Wanted::Vote)])
    }

    /// Removes a member and deletes its data.
    pub(crate) fn remove(slot: Slot) -> Self {
        Self::new(slot, &[Step::Ask(Wanted::Out), Step::Wipe])
    }

    /// Removes a member, deletes its data, and adds a new one on its machine.
    pub(crate) fn replace(slot: Slot) -> Self {
        let mut job = Self::remove(slot);
        job.steps.extend(Self::add(slot, false).steps);
        job
    }
}

/// The operator and its work.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    job: Option<Job>,
    /// An addition that waits until another member is replaced: the cluster refuses additions while that one is down.
    put_off: Option<Job>,
    /// Whether the present step's request has its effect; `None` if nothing was requested yet.
    asked: Option<Rc<Cell<bool>>>,
    /// When the present step began.
    since: u64,
}

impl Operator {
    /// Whether a job is in progress.
    pub(crate) fn is_busy(&self) -> bool {
        self.job.is_some()
    }

    /// Whether a job is about this machine.
    pub(crate) fn is_at(&self, slot: Slot) -> bool {
        let mut jobs = self.job.iter().chain(&self.put_off);
        jobs.any(|job| job.slot == slot)
    }

    /// Whether a member is being removed or replaced: then no other member's data may be damaged.
    pub(crate) fn removes(&self) -> bool {
        let mut jobs = self.job.iter().chain(&self.put_off);
        jobs.any(|job| job.removes)
    }

    /// Postpones a job that only adds a member, so that another one can begin. Returns whether none is in progress now.
    pub(crate) fn put_off_add(&mut self) -> bool {
        let adds = |job: &Job| matches!(job.steps.front(), Some(Step::Ask(Wanted::In { .. })));
        if self.job.as_ref().is_some_and(adds) && !self.removes() {
            self.put_off = self.job.take();
            self.asked = None;
        }
        self.job.is_none()
    }

    /// Ends the job at a machine whose member cannot be repaired, unless the job removes that member anyway: a member that does
    /// not run will never be promoted, nor serve.
    pub(crate) fn give_up_on_damaged(&mut self, slot: Slot) {
        let hopeless = |job: &Job| job.slot == slot && !job.steps.contains(&Step::Wipe);
        if self.job.as_ref().is_some_and(hopeless) {
            (self.job, self.asked) = (None, None);
        }
    }

    /// Resumes the postponed addition if its member was added all the same: the cluster refuses others until that one is up. If
    /// the present job's member was added as well, neither waits for the other, and the present job goes first.
    fn resume_put_off(&mut self, cluster: &Cluster) {
        let added = |job: &Job| votes(cluster, job.slot).is_some();
        let waits = self.job.as_ref().is_some_and(|job| !added(job));
        if waits && self.put_off.as_ref().is_some_and(added) {
            std::mem::swap(&mut self.job, &mut self.put_off);
            self.asked = None;
        }
    }

    /// Begins a job; the one before must be done.
    pub(crate) fn begin(&mut self, cluster: &Cluster, job: Job) {
        assert!(self.job.is_none(), "one job at a time");
        let name = member(job.slot).name;
        cluster.log_event(format_args!("the operator, at {name}: {:?}", job.steps));
        self.since = cluster.now;
        self.job = Some(job);
    }

    /// Continues the job.
    pub(crate) fn step(&mut self, cluster: &mut Cluster) {
        let Some(job) = &mut self.job else {
            return;
        };
        let slot = job.slot;
        let Some(step) = job.steps.front().copied() else {
            self.job = self.put_off.take();
            return;
        };
        let adds = matches!(step, Step::Ask(Wanted::In { .. }));
        let done = match step {
            Step::Ask(wanted) => {
                let asked = self
                    .asked
                    .get_or_insert_with(|| request_until_done(cluster, slot, wanted));
                asked.get()
            }
            Step::Wipe => {
                let leaves = cluster.now < self.since + LEAVES_MILLIS;
                if cluster.has_process(slot) && leaves {
                    false
                } else {
                    cluster.crash(slot, Crash::Process);
                    cluster.wipe(slot);
                    true
                }
            }
            Step::Start => {
                let node = &mut cluster.nodes[slot];
                (node.vacant, node.joins) = (false, true);
                node.restart_at = Some(cluster.now + 2);
                true
            }
            Step::Serve => cluster.requests(slot).is_some(),
        };
        if done {
            job.steps.pop_front();
            self.asked = None;
            self.since = cluster.now;
            cluster.log_event(format_args!(
                "the operator has done {step:?} at {}",
                member(slot).name
            ));
        } else if adds {
            self.resume_put_off(cluster);
        }
    }
}

/// What a stopped member's error message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// A restart.
    Restart,
    /// A refill of its database from the others.
    Refill,
    /// Its log, or all of its data, is damaged or lost: a new member has to replace it.
    Replace,
}

impl Remedy {
    /// What the documentation advises for this error.
    pub(crate) fn of(reason: &str) -> Self {
        if reason.contains("log segment") && reason.contains("add it anew")
            || reason.contains("its log holds no entry")
            || reason.contains("has been part of this cluster already")
            || reason.contains("lost entries it had acknowledged")
        {
            return Self::Replace;
        }
        if reason.contains("revisions.redb is damaged") {
            return Self::Refill;
        }
        Self::Restart
    }
}

/// Requests a refill, as an operator does.
pub(crate) fn request_refill(cluster: &mut Cluster, slot: Slot) {
    let disk = &cluster.nodes[slot].disk;
    disk.forgive();
    let wished = refill::request(disk, "as its error message advises");
    assert!(
        wished.is_ok(),
        "nothing is wrong with the disk itself: {wished:?}"
    );
    *cluster.faults.entry("refill").or_default() += 1;
    cluster.log_event(format_args!("{} is to be refilled", member(slot).name));
}

/// Requests a change until the membership shows it. Dropping the returned flag ends the attempts.
fn request_until_done(cluster: &Cluster, slot: Slot, wanted: Wanted) -> Rc<Cell<bool>> {
    let done = Rc::new(Cell::new(false));
    let (answer, size) = (Rc::downgrade(&done), cluster.nodes.len() as u64);
    cluster.client(move |client| async move {
        while answer.strong_count() > 0 {
            if try_once(&client, size, slot, wanted).await {
                if let Some(done) = answer.upgrade() {
                    done.set(true);
                }
                return;
            }
            client.pause(RETRY_MILLIS).await;
        }
    });
    done
}

/// Makes one attempt. Returns whether the membership showed the change before.
async fn try_once(client: &Client, size: u64, slot: Slot, wanted: Wanted) -> bool {
    let asked = usize::try_from(client.below(size)).unwrap();
    let members = client.call(asked, PATIENCE_MILLIS, |requests| async move {
        requests.members(true).await.ok()
    });
    let Some(Some(members)) = members.await else {
        return false;
    };
    let peer_url = peer_url(slot);
    let found = find(&members, &peer_url);
    let change = match (wanted, found) {
        (Wanted::Out, None) | (Wanted::In { .. }, Some(_)) => return true,
        (Wanted::Vote, Some(found)) if !found.learner => return true,
        (Wanted::Out, Some(found)) => MemberChange::Remove { id: found.id },
        // The cluster allows one learner: the one before is promoted first.
        (Wanted::In { learner }, None) => match members.iter().find(|member| member.learner) {
            Some(before) => MemberChange::Promote { id: before.id },
            None => MemberChange::Add {
                peer_urls: vec![peer_url],
                learner,
            },
        },
        (Wanted::Vote, Some(found)) => MemberChange::Promote { id: found.id },
        (Wanted::Vote, None) => return false,
    };
    let changed = client.call(asked, PATIENCE_MILLIS, move |requests| async move {
        requests.change_membership(change).await.map(drop)
    });
    // The next attempt sees whether it happened.
    client.note(changed.await, drop);
    false
}

/// Whether a machine's member is a voter, as the leader has it; `None` if the machine has no member.
pub(crate) fn votes(cluster: &Cluster, slot: Slot) -> Option<bool> {
    let leader = cluster.requests(cluster.leader()?)?;
    let published = leader.published();
    find(&published.members, &peer_url(slot)).map(|found| !found.learner)
}

/// A machine's peer URL in the membership.
fn peer_url(slot: Slot) -> String {
    format!("http://{}", member(slot).peer)
}

fn find<'a>(members: &'a Members, peer_url: &str) -> Option<&'a ClusterMember> {
    let same = |url: &String| url.split("//").last() == peer_url.split("//").last();
    members
        .iter()
        .find(|member| member.info.peer_urls.iter().any(same))
}

/// Both members had been added when the operator looked, and it went to and fro between the two jobs for ever.
#[test]
fn an_addition_and_a_postponed_one_are_both_completed() {
    let mut scene = Scene::of(1, 3);
    // Additions are refused until all voters have been connected for a while.
    scene.cluster.run(6_000);
    let postponed = scene.cluster.add_machine();
    let present = scene.cluster.add_machine();
    for (slot, learner) in [(postponed, true), (present, false)] {
        scene.add(&[0, 1, 2], slot, learner);
    }
    let mut operator = Operator {
        job: Some(Job::add(present, false)),
        put_off: Some(Job::add(postponed, true)),
        ..Operator::default()
    };
    let until = scene.cluster.now + 30_000;
    while operator.is_busy() {
        assert!(scene.cluster.now < until, "it is not done: {operator:?}");
        scene.cluster.step();
        operator.step(&mut scene.cluster);
    }
    for slot in [postponed, present] {
        assert!(scene.cluster.requests(slot).is_some(), "it serves");
    }
}
