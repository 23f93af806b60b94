//! The operator of a run: changes the membership, replaces machines, and does for a damaged member what its own words advise.
//!
//! A [`Job`] is a row of steps for one machine. What has to be asked of the cluster is asked again and again, of any member,
//! until the membership says that it is so: an answer may be lost, and a leader may fall. One job is under way at a time.

use crate::{
    clients::Client,
    cluster::{Cluster, Crash, member},
    network::Slot,
};
use quorate::{
    actors::{
        members::{ClusterMember, Members},
        membership_change::MemberChange,
    },
    storage::refill,
};
use std::{cell::Cell, collections::VecDeque, rc::Rc};

/// How long an answer is waited for, in milliseconds.
const PATIENCE_MILLIS: u64 = 4_000;
/// The pause before the next try.
const RETRY_MILLIS: u64 = 300;
/// A removed member stops by itself within so long, if it hears of it.
const LEAVES_MILLIS: u64 = 3_000;

/// What the membership is to say of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It is no member.
    Out,
    /// It is one, at first without a vote; whether it stays so.
    In { learner: bool },
    /// It has a vote.
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
    /// Until it serves.
    Serve,
}

/// What is done to one machine, step by step.
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

    /// A machine becomes a member.
    pub(crate) fn add(slot: Slot, learner: bool) -> Self {
        let add = Step::Ask(Wanted::In { learner });
        Self::new(slot, &[add, Step::Start, Step::Serve])
    }

    /// A member without a vote gets one.
    pub(crate) fn promote(slot: Slot) -> Self {
        Self::new(slot, &[Step::Ask(Wanted::Vote)])
    }

    /// A member is removed, and its data deleted.
    pub(crate) fn remove(slot: Slot) -> Self {
        Self::new(slot, &[Step::Ask(Wanted::Out), Step::Wipe])
    }

    /// A member is removed, its data deleted, and added anew.
    pub(crate) fn replace(slot: Slot) -> Self {
        let mut job = Self::remove(slot);
        job.steps.extend(Self::add(slot, false).steps);
        job
    }
}

/// Who runs the cluster.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    job: Option<Job>,
    /// A member that was to be added: that waits while another one has to be replaced, since nobody is added meanwhile.
    put_off: Option<Job>,
    /// Whether what was asked for is so; nothing if nothing was asked.
    asked: Option<Rc<Cell<bool>>>,
    /// When the present step began.
    since: u64,
}

impl Operator {
    /// Whether a job is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.job.is_some()
    }

    /// Whether a job is about this machine.
    pub(crate) fn is_at(&self, slot: Slot) -> bool {
        let mut jobs = self.job.iter().chain(&self.put_off);
        jobs.any(|job| job.slot == slot)
    }

    /// Whether a member is on its way out, or its place is empty: then nothing may happen to the others' data.
    pub(crate) fn removes(&self) -> bool {
        let mut jobs = self.job.iter().chain(&self.put_off);
        jobs.any(|job| job.removes)
    }

    /// Puts off a job that only adds somebody, so that another one can begin. Tells whether there is none now.
    pub(crate) fn make_way(&mut self) -> bool {
        let adds = |job: &Job| matches!(job.steps.front(), Some(Step::Ask(Wanted::In { .. })));
        if self.job.as_ref().is_some_and(adds) && !self.removes() {
            self.put_off = self.job.take();
            self.asked = None;
        }
        self.job.is_none()
    }

    /// Goes on with the job that was put off, if its member was added all the same: while it is awaited nobody else can be added.
    fn resume_put_off(&mut self, cluster: &Cluster) {
        let added = |job: &Job| votes(cluster, job.slot).is_some();
        if self.put_off.as_ref().is_some_and(added) {
            std::mem::swap(&mut self.job, &mut self.put_off);
            self.asked = None;
        }
    }

    /// Begins a job; the one before must be over.
    pub(crate) fn begin(&mut self, cluster: &Cluster, job: Job) {
        assert!(self.job.is_none(), "one job at a time");
        let name = member(job.slot).name;
        cluster.story(format_args!("the operator, at {name}: {:?}", job.steps));
        self.since = cluster.now;
        self.job = Some(job);
    }

    /// Goes on with the job, if it is time for it.
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
                let asked = self.asked.get_or_insert_with(|| ask(cluster, slot, wanted));
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
            cluster.story(format_args!(
                "the operator has done {step:?} at {}",
                member(slot).name
            ));
        } else if adds {
            self.resume_put_off(cluster);
        }
    }
}

/// What a stopped member's last words call for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Starting it again.
    Restart,
    /// Another database, from the others.
    Refill,
    /// Its log is not to be trusted, or its directory lost: it has to become another member.
    Replace,
}

impl Remedy {
    /// What the documentation says to do about a member that ended so.
    pub(crate) fn of(reason: &str) -> Self {
        if reason.contains("log segment") && reason.contains("add it anew")
            || reason.contains("its log holds no entry")
        {
            return Self::Replace;
        }
        if reason.contains("revisions.redb is damaged") {
            return Self::Refill;
        }
        Self::Restart
    }
}

/// Writes the wish for another database, as an operator does.
pub(crate) fn wish_for_refill(cluster: &mut Cluster, slot: Slot) {
    let disk = &cluster.nodes[slot].disk;
    disk.forgive();
    let wished = refill::request(disk, "as its last words advise");
    assert!(
        wished.is_ok(),
        "nothing is wrong with the disk itself: {wished:?}"
    );
    *cluster.faults.entry("refill").or_default() += 1;
    cluster.story(format_args!("{} is to be refilled", member(slot).name));
}

/// Asks for what is wanted until it is so, or until the job no longer waits for it: dropping the answer ends it.
fn ask(cluster: &Cluster, slot: Slot, wanted: Wanted) -> Rc<Cell<bool>> {
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

/// Whether it is so, by now.
async fn try_once(client: &Client, size: u64, slot: Slot, wanted: Wanted) -> bool {
    let asked = usize::try_from(client.below(size)).unwrap();
    let members = client.call(asked, PATIENCE_MILLIS, |requests| async move {
        requests.members(true).await.ok()
    });
    let Some(Some(members)) = members.await else {
        return false;
    };
    let place = place(slot);
    let found = find(&members, &place);
    let change = match (wanted, found) {
        (Wanted::Out, None) | (Wanted::In { .. }, Some(_)) => return true,
        (Wanted::Vote, Some(found)) if !found.learner => return true,
        (Wanted::Out, Some(found)) => MemberChange::Remove { id: found.id },
        // There may be one learner at a time: the one before gets its vote first.
        (Wanted::In { learner }, None) => match members.iter().find(|member| member.learner) {
            Some(before) => MemberChange::Promote { id: before.id },
            None => MemberChange::Add {
                peer_urls: vec![place],
                learner,
            },
        },
        (Wanted::Vote, Some(found)) => MemberChange::Promote { id: found.id },
        (Wanted::Vote, None) => return false,
    };
    let changed = client.call(asked, PATIENCE_MILLIS, move |requests| async move {
        requests.change_membership(change).await.map(drop)
    });
    // The next look at the members tells whether it happened.
    client.note(changed.await, drop);
    false
}

/// What the leader's membership says of a machine: whether its member votes; nothing if it has none.
pub(crate) fn votes(cluster: &Cluster, slot: Slot) -> Option<bool> {
    let leader = cluster.requests(cluster.leader()?)?;
    let published = leader.published();
    find(&published.members, &place(slot)).map(|found| !found.learner)
}

/// Where the others reach a machine, as the membership says it.
fn place(slot: Slot) -> String {
    format!("http://{}", member(slot).peer)
}

fn find<'a>(members: &'a Members, place: &str) -> Option<&'a ClusterMember> {
    let same = |url: &String| url.split("//").last() == place.split("//").last();
    members
        .iter()
        .find(|member| member.info.peer_urls.iter().any(same))
}
