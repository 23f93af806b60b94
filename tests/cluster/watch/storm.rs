//! Three members under faults, with writers at all of them and followers of what is written.
//!
//! In this order, and always while writers write: a compaction; a follower of the leader is killed and comes back; the leader is
//! cut off from the others, which elect another one, and comes back; the leader is frozen, another one is elected, and the old
//! one wakes up; another compaction; the leader is killed and comes back; a member is stopped by SIGTERM and comes back.

use super::{
    follow::{END, Journal, Plan, follow},
    members::{Members, all_of, delete, put, revision},
    truth::History,
};
use crate::{
    ctl::leader,
    network::{Drops, Network},
    support::Cluster,
};
use bytes::Bytes;
use fastrand::Rng;
use quorate::internals::api::proto::etcdserverpb::RequestOp;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Each writes keys of its own prefix, which is its name.
const WRITERS: [&str; 3] = ["a", "b", "c"];
/// Pause between two writes of a writer.
const WRITE_PAUSE: Duration = Duration::from_millis(8);
/// How far writers may be ahead of the historian: on a busy machine they would fill the disk before it has read it all.
const AHEAD_MAX: i64 = 400;
/// Revisions written during each fault.
const PHASE_REVISIONS: i64 = 120;
/// Now and then a value is as long as this, so that a follower that does not read falls behind.
const LONG_BYTES: usize = 64 * 1024;
/// Generous, for a loaded machine and a debug build.
const OPENED_MAX: Duration = Duration::from_mins(2);
/// The history that a compaction leaves.
const KEPT_REVISIONS: i64 = 40;

/// The outcome of a storm.
#[derive(Debug)]
pub(crate) struct StormOutcome {
    pub(crate) history: History,
    pub(crate) journals: Vec<Journal>,
    /// How often the leader changed.
    pub(crate) leaders: usize,
}

/// The historian: reads the true history as it grows, before it is compacted.
struct Historian {
    members: Members,
    history: History,
}

impl Historian {
    /// Reads until the store has grown by `revisions`.
    async fn pass(&mut self, revisions: i64) {
        let until = self.history.read + revisions;
        while self.history.read < until {
            self.history.read_on(&mut self.members).await;
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn compact(&mut self) {
        self.history.read_on(&mut self.members).await;
        let oldest = self.history.read - KEPT_REVISIONS;
        self.members.compact(oldest).await;
    }
}

/// Runs followers with these plans through all faults. Plan n begins at member n.
pub(crate) async fn run_storm(plans: Vec<Plan>) -> StormOutcome {
    let mut cluster = Cluster::start_on(Network::relay(3).await).await;
    let ports = cluster.ports();
    let mut historian = Historian {
        members: Members::at(&ports, 0),
        history: History::new(),
    };
    let (wake, awake) = watch::channel(false);
    // A follower whose member does not serve yet would go to another one, and the storm might spare all that have followers.
    for n in 0..ports.len() {
        Members::at(&ports, n).serves().await;
    }
    let opened = Arc::new(Semaphore::new(0));
    let followers: Vec<JoinHandle<Journal>> = plans
        .into_iter()
        .enumerate()
        .map(|(n, plan)| {
            let members = Members::at(&ports, n);
            tokio::spawn(follow(members, plan, opened.clone(), awake.clone()))
        })
        .collect();
    let all = u32::try_from(followers.len()).expect("few followers");
    let all_open = timeout(OPENED_MAX, opened.acquire_many(all)).await;
    let all_open = all_open.expect("every follower opens a stream");
    drop(all_open.expect("it is never closed"));
    let done = Arc::new(AtomicBool::new(false));
    let writers = WRITERS.iter().enumerate().map(|(n, name)| {
        let writer = Writer {
            members: Members::at(&ports, n),
            name,
            random: Rng::with_seed(fastrand::u64(..)),
            read: historian.history.progress.clone(),
            done: done.clone(),
        };
        tokio::spawn(writer.write())
    });
    let writers: Vec<JoinHandle<()>> = writers.collect();

    historian.pass(PHASE_REVISIONS).await;
    let leaders = storm(&mut cluster, &mut historian).await;
    wake.send_replace(true);
    historian.pass(PHASE_REVISIONS).await;

    done.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("writers write on");
    }
    let last = WRITERS.iter().map(|name| put(format!("{name}/0"), END));
    historian.members.txn(all_of(last.collect())).await;
    let mut journals = Vec::new();
    for follower in followers {
        journals.push(follower.await.expect("followers see the end"));
    }
    historian.history.read_on(&mut historian.members).await;
    StormOutcome {
        history: historian.history,
        journals,
        leaders,
    }
}

/// The faults, one after the other. Returns how often the leader changed.
async fn storm(cluster: &mut Cluster, historian: &mut Historian) -> usize {
    let ports = cluster.ports();
    let others = |gone: usize| -> Vec<u16> {
        let all = ports.iter().enumerate();
        all.filter(|(at, _)| *at != gone)
            .map(|(_, port)| *port)
            .collect()
    };
    historian.compact().await;

    let first = leader(&ports).await;
    let follower = (first + 1) % 3;
    cluster.members[follower].kill().await;
    historian.pass(PHASE_REVISIONS).await;
    cluster.members[follower].start();

    let cut_off = leader(&ports).await;
    super::cut_off(cluster, cut_off);
    leader(&others(cut_off)).await;
    historian.pass(PHASE_REVISIONS).await;
    super::network(cluster).heal(Drops::Some);

    let frozen = leader(&ports).await;
    cluster.members[frozen].freeze();
    let second = leader(&others(frozen)).await;
    historian.pass(PHASE_REVISIONS).await;
    cluster.members[frozen].thaw();

    historian.compact().await;
    let third = leader(&ports).await;
    cluster.members[third].kill().await;
    leader(&others(third)).await;
    historian.pass(PHASE_REVISIONS).await;
    cluster.members[third].start();

    let fourth = leader(&ports).await;
    cluster.members[(fourth + 1) % 3].stop().await;
    historian.pass(PHASE_REVISIONS).await;
    cluster.members[(fourth + 1) % 3].start();
    let seen = [
        first,
        cut_off,
        frozen,
        others_place(second, frozen),
        third,
        fourth,
    ];
    seen.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

/// Maps a position among the other two to one among three, where `gone` is left out.
fn others_place(at: usize, gone: usize) -> usize {
    at + usize::from(at >= gone)
}

/// Writes to keys `name/0` … `name/6` until it is stopped: puts, deletions, and transactions of several changes.
struct Writer {
    members: Members,
    name: &'static str,
    random: Rng,
    /// The revision that the historian has reached.
    read: Arc<AtomicI64>,
    done: Arc<AtomicBool>,
}

impl Writer {
    async fn write(mut self) {
        let mut newest = 0;
        while !self.done.load(Ordering::Relaxed) {
            if newest <= self.read.load(Ordering::Relaxed) + AHEAD_MAX {
                let ops = operations(self.name, &mut self.random);
                // The historian finds out whether a write without an answer happened.
                match self.members.try_txn(all_of(ops)).await {
                    Ok(answer) => newest = revision(answer.header.as_ref()),
                    Err(_) => self.members.move_on(),
                }
            }
            sleep(WRITE_PAUSE).await;
        }
    }
}

fn operations(name: &str, random: &mut Rng) -> Vec<RequestOp> {
    let key = |n: usize| format!("{name}/{}", n % 7);
    let first = random.usize(..7);
    match random.u8(..10) {
        0 => vec![delete(key(first), "")],
        1 => vec![delete(format!("{name}/4"), format!("{name}0"))],
        2 | 3 => {
            let puts = (0..3).map(|n| put(key(first + n), value(n, random)));
            let mut ops: Vec<RequestOp> = puts.collect();
            ops.insert(random.usize(..3), delete(key(first + 3), ""));
            ops
        }
        _ => vec![put(key(first), value(0, random))],
    }
}

/// A value that begins with its turn among its transaction's puts.
fn value(turn: usize, random: &mut Rng) -> Bytes {
    let len = if random.u8(..4) == 0 { LONG_BYTES } else { 8 };
    let mut value = vec![random.u8(..); len];
    value[0] = u8::try_from(turn).expect("few puts in a transaction");
    value.into()
}
