//! The guard of the state: members compare what they have applied, and one that came to another state takes itself out.
//!
//! Once in [`COMPARE_TICKS`] the leader asks every member, itself included, for the hash of its state after one entry. A
//! majority of the voters is right, so also the leader can be found wrong. Whoever is wrong is told, looks for itself, and then
//!
//! - serves nothing any more but its status, the list of members and alarms (`etcdserver: corrupt cluster`),
//! - does not lead, and hands on its leadership; it votes and stores the log as ever, for the log is not in doubt,
//! - raises the alarm CORRUPT in its own name through the log, which also tells it after a restart.
//!
//! The others go on. When the alarm is taken back (by an operator, or since the member was refilled) it serves again, until it
//! is found to differ again.
//!
//! Where no majority agrees (one against one; or half and half) nobody can tell who is right. If that lasts for
//! [`UNDECIDED_MAX`], so that members away had time to decide it, the alarm is raised for all who were asked, and as in etcd
//! nobody writes until an operator has decided: removed the members that are wrong, and taken the alarms back.

use super::RaftNode;
use crate::{
    actors::{peer_ask::PeerAsk, state_check::TellStateHash},
    clock, codec,
    kv::{
        command::AlarmKind,
        state_hash::{Judgement, StateHash, judge},
    },
    net::Responder,
    types::{LogIndex, MemberId},
};
use actix::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};

/// Ticks between two comparisons.
const COMPARE_TICKS: u32 = 10;

/// How long members may differ without a majority before all of them stop.
const UNDECIDED_MAX: Duration = Duration::from_secs(10);

/// Questions to the applier under way. Past it a question gets no answer, and is asked again.
const QUESTIONS_MAX: usize = 4;

/// What the Raft node knows of the members' states.
#[derive(Debug)]
pub(super) struct Guard {
    ticks: u32,
    questions: Arc<Semaphore>,
    /// The comparison under way, while this member leads.
    round: Option<Round>,
    /// What the leader says that a majority has; this member's own hash is on its way.
    accusation: Option<(LogIndex, StateHash)>,
    standing: Standing,
    /// Who was found to differ; said once for each.
    found: BTreeSet<MemberId>,
    undecided_since: Option<Instant>,
    undecided_told: bool,
}

/// Whether this member's state is the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// As far as it knows.
    In,
    /// It differs; its alarm is not in the log yet.
    Found,
    /// It differs, and its alarm stands.
    Out,
}

/// One comparison.
#[derive(Debug)]
struct Round {
    index: LogIndex,
    told: BTreeMap<MemberId, StateHash>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            ticks: 0,
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            round: None,
            accusation: None,
            standing: Standing::In,
            found: BTreeSet::new(),
            undecided_since: None,
            undecided_told: false,
        }
    }
}

impl Guard {
    /// Whether this member serves nothing.
    pub(super) fn is_out(&self) -> bool {
        self.standing != Standing::In
    }
}

/// What a member told of its state after an entry.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct HashTold {
    by: MemberId,
    index: LogIndex,
    hash: StateHash,
}

impl Handler<HashTold> for RaftNode {
    type Result = ();

    fn handle(&mut self, said: HashTold, _: &mut Self::Context) {
        if said.by == self.member.id {
            self.own_hash_told(said.index, said.hash);
        }
        if let Some(round) = &mut self.guard.round
            && round.index == said.index
        {
            round.told.insert(said.by, said.hash);
        }
    }
}

impl RaftNode {
    /// Compares, and keeps to the consequences; once a tick.
    pub(super) fn guard_state(&mut self) {
        if self.peers.links.is_alone() {
            return;
        }
        self.heed_own_alarm();
        self.guard.ticks += 1;
        if !self.guard.ticks.is_multiple_of(COMPARE_TICKS) {
            return;
        }
        if self.guard.standing == Standing::Found {
            self.raise_own_alarm();
        }
        if let Some(round) = self.guard.round.take()
            && self.raft.is_leader()
        {
            self.judge_round(&round);
        }
        if self.raft.is_leader() {
            self.begin_round();
        }
    }

    /// The alarm in the replicated state is what lasts, over restarts too.
    fn heed_own_alarm(&mut self) {
        let published = self.peers.views.borrow().clone();
        let alarmed = published
            .alarms
            .contains(&(self.member.id, AlarmKind::Differs));
        let before = self.guard.standing;
        let now = match (before, alarmed) {
            (Standing::In | Standing::Found | Standing::Out, true) => Standing::Out,
            (Standing::In | Standing::Out, false) => Standing::In,
            (Standing::Found, false) => Standing::Found,
        };
        self.guard.standing = now;
        self.raft.forbid_leading(self.guard.is_out());
        match (before, now) {
            (Standing::In, Standing::Out) => tracing::error!(
                "the alarm CORRUPT stands for this member: its state differs from the others', and it serves nothing. Replace it"
            ),
            (Standing::Out, Standing::In) => {
                tracing::info!("the alarm CORRUPT for this member was taken back: it serves again");
            }
            (Standing::In | Standing::Found, Standing::In | Standing::Found)
            | (Standing::Found | Standing::Out, Standing::Out)
            | (Standing::Out, Standing::Found) => {}
        }
    }

    fn begin_round(&mut self) {
        let index = self.applied;
        self.guard.round = Some(Round {
            index,
            told: BTreeMap::new(),
        });
        let own = self.own_hash(index);
        self.await_hash(self.member.id, index, async move { own?.await.ok() });
        for id in self
            .raft
            .membership()
            .ids()
            .filter(|id| *id != self.member.id)
        {
            let (reply, outcome) = oneshot::channel();
            self.ask(id, PeerAsk::StateHash(index).encode(), reply);
            self.await_hash(id, index, async move {
                let bytes = outcome.await.ok()?.ok()?;
                codec::decode("hash of a state", &bytes).ok()
            });
        }
    }

    fn await_hash(
        &self,
        by: MemberId,
        index: LogIndex,
        hash: impl Future<Output = Option<StateHash>> + 'static,
    ) {
        let told = self.peers.told.clone();
        let patience = self.pacing.request_timeout;
        actix_rt::spawn(async move {
            if let Ok(Some(hash)) = tokio::time::timeout(patience, hash).await {
                // A node that is gone compares nothing.
                told.send(HashTold { by, index, hash })
                    .await
                    .unwrap_or_default();
            }
        });
    }

    /// Asks this member's applier.
    fn own_hash(&self, index: LogIndex) -> Option<oneshot::Receiver<StateHash>> {
        let turn = self.guard.questions.clone().try_acquire_owned().ok()?;
        let (reply, hash) = oneshot::channel();
        let ask = TellStateHash { index, reply, turn };
        self.life.deliver(&self.peers.hashes, ask);
        Some(hash)
    }

    /// A leader asks for the hash.
    pub(super) fn tell_hash(&self, index: LogIndex, responder: Responder) {
        let Some(own) = self.own_hash(index) else {
            return;
        };
        let patience = self.pacing.request_timeout;
        actix_rt::spawn(async move {
            // A dropped responder tells the leader that there is no answer.
            if let Ok(Ok(hash)) = tokio::time::timeout(patience, own).await {
                responder.answer(codec::encode(&hash).into());
            }
        });
    }

    fn judge_round(&mut self, round: &Round) {
        let voters: Vec<MemberId> = self.raft.membership().voters().map(|(id, _)| id).collect();
        match judge(&voters, &round.told) {
            Judgement::Same => {
                self.guard.found.clear();
                self.guard.undecided_since = None;
                self.guard.undecided_told = false;
            }
            Judgement::Differ { right, wrong } => {
                self.guard.undecided_since = None;
                for id in wrong {
                    self.differs(round, id, right);
                }
            }
            Judgement::Undecided(camps) => self.undecided(round.index, &camps),
        }
    }

    fn differs(&mut self, round: &Round, id: MemberId, right: StateHash) {
        let index = round.index;
        let hash = round.told.get(&id).copied().unwrap_or_default();
        if self.guard.found.insert(id) {
            tracing::error!(
                member = id.hex(),
                "the state of a member differs from that of the majority after entry {index}: its hash is {hash}, the \
                 majority's {right}; it is taken out"
            );
        }
        if id == self.member.id {
            self.take_out(index, hash, right);
        } else {
            // Nobody waits for an answer.
            let (reply, _) = oneshot::channel();
            self.ask(id, PeerAsk::Differs(index, right).encode(), reply);
        }
    }

    /// The leader says that a majority has another hash. Whether that is so this member sees for itself.
    pub(super) fn accused(&mut self, index: LogIndex, right: StateHash) {
        if self.guard.is_out() {
            return;
        }
        let Some(own) = self.own_hash(index) else {
            return;
        };
        self.guard.accusation = Some((index, right));
        self.await_hash(self.member.id, index, async move { own.await.ok() });
    }

    fn own_hash_told(&mut self, index: LogIndex, hash: StateHash) {
        let Some((_, right)) = self.guard.accusation.take_if(|said| said.0 == index) else {
            return;
        };
        if hash == right {
            tracing::error!(
                "the leader says that this member differs after entry {index}, which is not so"
            );
        } else {
            self.take_out(index, hash, right);
        }
    }

    fn take_out(&mut self, index: LogIndex, hash: StateHash, right: StateHash) {
        if self.guard.is_out() {
            return;
        }
        self.guard.standing = Standing::Found;
        tracing::error!(
            "the state of this member differs from that of the majority after entry {index}: its hash is {hash}, the \
             majority's {right}. It serves nothing and does not lead until it is replaced: remove it, delete its data directory, \
             and add it anew"
        );
        self.raft.forbid_leading(true);
        self.publish_status();
        self.raise_own_alarm();
    }

    fn raise_own_alarm(&self) {
        self.raise_alarm(self.member.id, AlarmKind::Differs);
    }

    fn undecided(&mut self, index: LogIndex, camps: &BTreeMap<StateHash, Vec<MemberId>>) {
        let now = clock::now();
        let since = *self.guard.undecided_since.get_or_insert(now);
        if !self.guard.undecided_told {
            self.guard.undecided_told = true;
            for (hash, members) in camps {
                let members: Vec<String> = members.iter().map(|id| id.hex()).collect();
                tracing::error!(
                    "members differ after entry {index}, and no majority agrees: {} have hash {hash}",
                    members.join(", ")
                );
            }
        }
        if now.duration_since(since) < UNDECIDED_MAX {
            return;
        }
        let alarms = self.peers.views.borrow().alarms.clone();
        for member in camps.values().flatten().copied() {
            if !alarms.contains(&(member, AlarmKind::Corrupt)) {
                self.raise_alarm(member, AlarmKind::Corrupt);
            }
        }
    }

    fn raise_alarm(&self, member: MemberId, kind: AlarmKind) {
        let consensus = self.peers.consensus.clone();
        actix_rt::spawn(async move {
            if let Err(error) = consensus.raise_alarm(member, kind).await {
                tracing::warn!("the alarm CORRUPT is not raised yet: {error}");
            }
        });
    }
}
