//! Compactor: carries out compactions step by step, and asks for them where auto-compaction is on.
//!
//! A compaction is decided in the log; readers see it at once. Then space is freed: first the index drops the
//! history, then the committer removes the records that no read needs any more, a bounded number at a time with a pause
//! between, so that no request waits long behind it. After a restart it goes on where the database says it stopped.
//!
//! Invariant: no record is removed before the database holds the log entry that decided the compaction. A member that lost power
//! in between would start without the records and without the compaction, and its answers to reads of old revisions
//! would lack keys. So the compactor waits for [`Published::stored_applied`], and the database asserts it.

use super::{
    committer::CompactRecords,
    compaction_hashes::CompactionHashes,
    consensus::Consensus,
    fail_stop::Lifeline,
    index::{PruneIndex, PruneProgress},
    latest,
    published::Published,
    raft_status::RaftStatus,
    request_error::RequestError,
};
use crate::{
    clock,
    kv::{
        KvError,
        command::{Command, Compact},
        hash::{CompactionHasher, HistoryHash},
        index::Snapshot,
        retention::{AutoCompaction, Retention},
    },
    log_gate::{self, LogGate},
    mutation::{Mutation, mutated},
    types::{LogIndex, Millis, Rev, Revision},
};
use actix::prelude::*;
use std::{sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::Instant};

/// Messages that may wait.
const MAILBOX_MAX: usize = 1_024;

/// Keys that one prune step visits.
const PRUNE_KEYS_MAX: usize = 1_000;

/// Warnings of automatic compactions that failed and are tried again.
static AGAIN: LogGate = LogGate::new();

/// How a compaction is paced.
#[derive(Clone, Copy, Debug)]
pub struct CompactionPacing {
    /// Records that one step visits.
    pub records_max: usize,
    /// Pause between two steps.
    pub pause: Duration,
}

/// Owns the progress of compactions.
#[derive(Debug)]
pub struct Compactor {
    /// The newest compaction that the log has decided.
    wanted: Decision,
    /// The newest one carried out.
    done: Revision,
    running: bool,
    /// Where the database's interrupted compaction goes on.
    resume: Option<(Revision, Rev)>,
    /// The history was replaced while a compaction ran: what to go on with after it.
    replaced: Option<CompactionState>,
    waiting: Vec<(Revision, oneshot::Sender<()>)>,
    auto: AutoCompaction,
    began: Instant,
    pacing: CompactionPacing,
    peers: CompactorPeers,
    _life: Lifeline,
}

/// The actors that the compactor sends to.
#[derive(Clone, Debug)]
pub struct CompactorPeers {
    pub index: Recipient<PruneIndex>,
    pub committer: Recipient<CompactRecords>,
    /// Takes auto-compactions through the log.
    pub consensus: Consensus,
    pub views: latest::Receiver<Arc<Published>>,
    /// Who leads: only the leader compacts on its own.
    pub raft_status: latest::Receiver<RaftStatus>,
    /// Gets the hash of each compaction.
    pub hashes: CompactionHashes,
}

/// A compaction that the log has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decision {
    pub revision: Revision,
    /// A log index at or after the entry that decided it: once the database holds the effects of this entry, a restart knows of
    /// the compaction.
    pub index: LogIndex,
}

/// Where compactions stand at start.
#[derive(Clone, Copy, Debug)]
pub struct CompactionState {
    /// The newest compaction that the log has decided.
    pub wanted: Decision,
    /// How far the database got with its newest: the revision, and where to go on if it is not complete.
    pub stored: Option<(Revision, Option<Rev>)>,
}

impl CompactionState {
    /// The newest compaction carried out, and where an interrupted one goes on.
    fn progress(&self) -> (Revision, Option<(Revision, Rev)>) {
        match self.stored {
            None => (Revision::NEVER_COMPACTED, None),
            Some((through, None)) => (through, None),
            Some((through, Some(next))) => (Revision::NEVER_COMPACTED, Some((through, next))),
        }
    }
}

impl Compactor {
    /// A compactor that goes on at `state`.
    pub fn new(
        state: CompactionState,
        retention: Retention,
        pacing: CompactionPacing,
        peers: CompactorPeers,
        life: Lifeline,
    ) -> Self {
        let (done, resume) = state.progress();
        Self {
            wanted: state.wanted,
            done,
            running: false,
            resume,
            replaced: None,
            waiting: Vec::new(),
            auto: AutoCompaction::new(retention, Millis(0)),
            began: clock::now(),
            pacing,
            peers,
            _life: life,
        }
    }
}

/// The log has decided a compaction, and readers see it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct CompactionAccepted(pub Decision);

/// A snapshot replaced the history: compactions stand here from now on.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct HistoryReplaced(pub CompactionState);

/// Answered when this member has removed what the compaction at `revision` gave up.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AwaitCompaction {
    pub revision: Revision,
}

impl Actor for Compactor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
        if let Some(Millis(interval)) = self.auto.interval() {
            ctx.run_interval(Duration::from_millis(interval), Self::sample);
            self.sample(ctx);
        }
        self.carry_on(ctx);
    }
}

impl Handler<CompactionAccepted> for Compactor {
    type Result = ();

    fn handle(
        &mut self,
        CompactionAccepted(decision): CompactionAccepted,
        ctx: &mut Self::Context,
    ) {
        self.wanted = self.wanted.max(decision);
        self.carry_on(ctx);
    }
}

impl Handler<HistoryReplaced> for Compactor {
    type Result = ();

    /// A compaction that runs goes on: what it removes, the new history does not need either. But what it went through before
    /// was the old one's, so the new one begins with its own progress.
    fn handle(&mut self, HistoryReplaced(state): HistoryReplaced, ctx: &mut Self::Context) {
        self.wanted = self.wanted.max(state.wanted);
        if self.running {
            self.replaced = Some(state);
        } else {
            self.go_on_with(state, ctx);
        }
    }
}

impl Handler<AwaitCompaction> for Compactor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, wait: AwaitCompaction, _: &mut Self::Context) -> Self::Result {
        if self.done >= wait.revision {
            return Box::pin(async {});
        }
        let (done, waiting) = oneshot::channel();
        self.waiting.push((wait.revision, done));
        Box::pin(async move { waiting.await.unwrap_or_default() })
    }
}

impl Compactor {
    /// Starts the next compaction, if one is wanted and none runs.
    fn carry_on(&mut self, ctx: &mut Context<Self>) {
        if self.running || self.wanted.revision <= self.done {
            return;
        }
        self.running = true;
        let decision = self.wanted;
        let at = decision.revision;
        let (from, hasher) = match self.resume.take() {
            Some((through, next)) if through == at => (next, None),
            // What an interrupted one has removed is missing from the hash of another.
            Some(_) => (Rev::default(), None),
            None => (Rev::default(), Some(CompactionHasher::new(self.done, at))),
        };
        let work = compact(self.peers.clone(), self.pacing, decision, from, hasher);
        let then = work.into_actor(self).map(move |done, compactor, ctx| {
            if let Some(Compacted { removed, hash }) = done {
                tracing::info!(revision = at.0, removed, "compaction done");
                compactor.finished(at, hash, ctx);
            }
        });
        ctx.spawn(then);
    }

    fn finished(&mut self, at: Revision, hash: Option<HistoryHash>, ctx: &mut Context<Self>) {
        self.running = false;
        if let Some(state) = self.replaced.take() {
            self.go_on_with(state, ctx);
            return;
        }
        if let Some(hash) = hash {
            self.peers.hashes.add(hash);
        }
        self.done = at;
        self.answer_waiting();
        self.carry_on(ctx);
    }

    fn go_on_with(&mut self, state: CompactionState, ctx: &mut Context<Self>) {
        (self.done, self.resume) = state.progress();
        self.answer_waiting();
        self.carry_on(ctx);
    }

    fn answer_waiting(&mut self) {
        let at = self.done;
        for (_, done) in self.waiting.extract_if(.., |(revision, _)| *revision <= at) {
            // A caller that has gone away in the meantime does not matter.
            done.send(()).unwrap_or_default();
        }
    }

    /// Lets auto-compaction look at the newest revision.
    fn sample(&mut self, ctx: &mut Context<Self>) {
        let newest = self.peers.views.borrow().view.window.newest;
        let status = *self.peers.raft_status.borrow();
        let leads = status.leads && !status.out;
        let Some(at) = self.auto.sample(clock::since(self.began), newest, leads) else {
            return;
        };
        let consensus = self.peers.consensus.clone();
        let compact = Command::Compact(Compact { revision: at });
        let work = async move { consensus.propose(&compact).await };
        let then = work
            .into_actor(self)
            .map(move |outcome, compactor, _| match outcome {
                Ok(_) | Err(RequestError::Kv(KvError::Compacted { .. })) => {
                    compactor.auto.compacted(clock::since(compactor.began), at);
                }
                Err(error) => {
                    log_gate::warn!(AGAIN, "auto-compaction will be tried again: {error}");
                }
            });
        ctx.spawn(then);
    }
}

/// What a compaction did.
struct Compacted {
    removed: u64,
    hash: Option<HistoryHash>,
}

/// Carries out one compaction. Nothing if the node is stopping.
async fn compact(
    mut peers: CompactorPeers,
    pacing: CompactionPacing,
    decision: Decision,
    mut from: Rev,
    mut hasher: Option<CompactionHasher>,
) -> Option<Compacted> {
    let at = decision.revision;
    let keys = prune(&peers.index, at).await?;
    // Records on their way to the database would be missed, and a restart must know of the compaction before it lacks records.
    let early = mutated(Mutation::CompactBeforeState);
    peers
        .views
        .wait_for(|published| {
            published.stored_through >= at && (early || published.stored_applied >= decision.index)
        })
        .await
        .ok()?;
    let mut removed = 0;
    loop {
        let step = CompactRecords {
            through: at,
            decided_at: decision.index,
            from,
            records_max: pacing.records_max,
            keys: keys.clone(),
            hasher,
        };
        let progress = peers.committer.send(step).await.ok()?;
        removed += progress.removed;
        hasher = progress.hasher;
        let Some(next) = progress.next else {
            let hash = hasher.as_ref().map(CompactionHasher::finish);
            return Some(Compacted { removed, hash });
        };
        from = next;
        tokio::time::sleep(pacing.pause).await;
    }
}

async fn prune(index: &Recipient<PruneIndex>, at: Revision) -> Option<Snapshot> {
    loop {
        let step = PruneIndex {
            at,
            keys_max: PRUNE_KEYS_MAX,
        };
        match index.send(step).await.ok()? {
            PruneProgress::Done(keys) => return Some(keys),
            PruneProgress::More => tokio::task::yield_now().await,
        }
    }
}
