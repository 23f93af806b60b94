//! The guard of the state: members compare what they have applied, and one whose state differs stops serving it.
//!
//! Ten ticks apart the leader asks every member, itself included, for the hash of its state after one entry. A
//! majority of the voters is right, so the leader can be found wrong too. The member that is wrong is notified, compares its own
//! hash, and then
//!
//! - serves nothing but its status, the list of members and alarms (`etcdserver: corrupt cluster`),
//! - does not lead, and transfers its leadership; it votes and stores the log as before, since the log is not in doubt,
//! - raises the alarm CORRUPT for itself through the log, which also reaches it after a restart.
//!
//! The others go on. When the alarm is disarmed (by an operator, or since the member was refilled) it serves again, until it
//! is found to differ again.
//!
//! If no state has a majority (one against one, or half and half), it is unknown which is right. If that lasts for ten seconds,
//! so that members that were away had time to decide it, the alarm is raised for all that were asked, and as in etcd
//! no writes are accepted until an operator has decided: removed the members that are wrong, and disarmed the alarms.

use super::{
    guard_state::{Comparison, Differing, Standing, Verdict},
    node::RaftNode,
    own_messages::HashReceived,
};
use crate::{
    actors::{peer_ask::PeerAsk, state_check::ReportStateHash},
    clock, codec,
    kv::{command::AlarmKind, state_hash::StateHash},
    log_gate::{self, LogGate},
    net::Responder,
    types::{LogIndex, MemberId},
};
use actix::prelude::*;
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// What repeats as long as members do not agree.
static DISPUTED: LogGate = LogGate::new();

impl Handler<HashReceived> for RaftNode {
    type Result = ();

    fn handle(&mut self, received: HashReceived, _: &mut Self::Context) {
        if received.by == self.member.id {
            self.check_accusation(received.index, received.hash);
        }
        self.guard
            .answered(received.by, received.index, received.hash);
    }
}

impl RaftNode {
    /// Once a tick: compares the members' states, and acts on what was found.
    pub(super) fn guard_state(&mut self) {
        if self.peers.links.is_alone() {
            return;
        }
        self.follow_own_alarm();
        if !self.guard.is_due() {
            return;
        }
        if self.guard.awaits_alarm() {
            self.raise_own_alarm();
        }
        let ended = self.guard.end_comparison();
        if self.raft.is_leader() {
            if let Some(comparison) = ended {
                self.judge_states(&comparison);
            }
            self.begin_comparison();
        }
    }

    /// The alarm in the replicated state decides whether this member serves its state.
    fn follow_own_alarm(&mut self) {
        let published = self.peers.views.borrow().clone();
        let own = (self.member.id, AlarmKind::StateDiffers);
        let standing = self.guard.alarm(published.alarms.contains(&own));
        let forbidden = self.guard.is_out() || self.stopping.is_some();
        self.raft.forbid_leading(forbidden);
        match standing {
            (Standing::In, Standing::Out) => tracing::error!(
                "the alarm CORRUPT is raised for this member: its state differs from the others', and it serves nothing. \
                 Replace it"
            ),
            (Standing::Out, Standing::In) => {
                tracing::info!("the alarm CORRUPT for this member was disarmed: it serves again");
            }
            (Standing::In | Standing::Found, Standing::In | Standing::Found)
            | (Standing::Found | Standing::Out, Standing::Out)
            | (Standing::Out, Standing::Found) => {}
        }
    }

    fn begin_comparison(&mut self) {
        let index = self.deliveries.applied();
        self.guard.begin_comparison(index);
        let own = self.own_hash(index);
        self.await_hash(self.member.id, index, async move { own?.await.ok() });
        for id in self
            .raft
            .membership()
            .ids()
            .filter(|id| *id != self.member.id)
        {
            let (reply, outcome) = oneshot::channel();
            self.ask(id, &PeerAsk::StateHash(index), reply);
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
        let own = self.peers.hash_received.clone();
        let time_out = self.pacing.request_timeout;
        actix_rt::spawn(async move {
            if let Ok(Some(hash)) = tokio::time::timeout(time_out, hash).await {
                // A node that is gone compares nothing.
                own.send(HashReceived { by, index, hash })
                    .await
                    .unwrap_or_default();
            }
        });
    }

    /// Asks this member's applier for its hash after an entry.
    fn own_hash(&self, index: LogIndex) -> Option<oneshot::Receiver<StateHash>> {
        let turn = self.guard.question()?;
        let (reply, hash) = oneshot::channel();
        let ask = ReportStateHash { index, reply, turn };
        self.life.deliver(&self.peers.hashes, ask);
        Some(hash)
    }

    /// A leader asks for the hash.
    pub(super) fn answer_hash(&self, index: LogIndex, responder: Responder) {
        let Some(own) = self.own_hash(index) else {
            return;
        };
        let time_out = self.pacing.request_timeout;
        actix_rt::spawn(async move {
            // A dropped responder means to the leader that there is no answer.
            if let Ok(Ok(hash)) = tokio::time::timeout(time_out, own).await {
                responder.answer(codec::encode(&hash).into());
            }
        });
    }

    fn judge_states(&mut self, comparison: &Comparison) {
        let index = comparison.index;
        let voters: Vec<MemberId> = self.raft.membership().voters().map(|(id, _)| id).collect();
        match self.guard.judge(comparison, &voters, clock::now()) {
            Verdict::Same => {}
            Verdict::Differ(found) => {
                for differing in found {
                    self.differs(index, differing);
                }
            }
            Verdict::Undecided {
                members_by_hash,
                new,
                too_long,
            } => {
                if new {
                    log_undecided(index, &members_by_hash);
                }
                if too_long {
                    self.raise_alarms(members_by_hash.into_values().flatten());
                }
            }
        }
    }

    fn differs(&mut self, index: LogIndex, differing: Differing) {
        let Differing {
            id,
            hash,
            right,
            new,
        } = differing;
        if new {
            tracing::error!(
                member = id.hex(),
                "the state of a member differs from that of the majority after entry {index}: its hash is {hash}, the \
                 majority's {right}; it must stop serving"
            );
        }
        if id == self.member.id {
            self.stop_serving(index, hash, right);
        } else {
            self.notify(id, &PeerAsk::StateDiffers(index, right));
        }
    }

    /// The leader says that a majority has another hash. This member compares that with its own hash before it acts on it.
    pub(super) fn accused(&mut self, index: LogIndex, right: StateHash) {
        if self.guard.is_out() {
            return;
        }
        let Some(own) = self.own_hash(index) else {
            return;
        };
        self.guard.accuse(index, right);
        self.await_hash(self.member.id, index, async move { own.await.ok() });
    }

    fn check_accusation(&mut self, index: LogIndex, hash: StateHash) {
        let Some(right) = self.guard.take_accusation(index) else {
            return;
        };
        if hash == right {
            log_gate::error!(
                DISPUTED,
                "the leader says that this member's state differs, which is not so"
            );
        } else {
            self.stop_serving(index, hash, right);
        }
    }

    fn stop_serving(&mut self, index: LogIndex, hash: StateHash, right: StateHash) {
        if !self.guard.found_to_differ() {
            return;
        }
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
        self.raise_alarm(self.member.id, AlarmKind::StateDiffers);
    }

    fn raise_alarms(&self, members: impl Iterator<Item = MemberId>) {
        let alarms = self.peers.views.borrow().alarms.clone();
        for member in members {
            if !alarms.contains(&(member, AlarmKind::Corrupt)) {
                self.raise_alarm(member, AlarmKind::Corrupt);
            }
        }
    }

    fn raise_alarm(&self, member: MemberId, kind: AlarmKind) {
        let consensus = self.peers.consensus.clone();
        actix_rt::spawn(async move {
            if let Err(error) = consensus.raise_alarm(member, kind).await {
                log_gate::warn!(DISPUTED, "the alarm CORRUPT is not raised yet: {error}");
            }
        });
    }
}

fn log_undecided(index: LogIndex, members_by_hash: &BTreeMap<StateHash, Vec<MemberId>>) {
    for (hash, members) in members_by_hash {
        let members: Vec<String> = members.iter().map(|id| id.hex()).collect();
        tracing::error!(
            "members differ after entry {index}, and no majority agrees: {} have hash {hash}",
            members.join(", ")
        );
    }
}
