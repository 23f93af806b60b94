//! Snapshots, as the Raft node sees them: who needs one, how much of the log stays and for whom, and when a received one counts.
//!
//! Entries stay in the log for members that lack them, but only up to a bound in entries and bytes: past it they go as soon as
//! the database of this member has them, and whoever comes back later gets a snapshot. While one is on its way, and until its
//! receiver has caught up, the entries after it stay, or the receiver would need the next one at once.

use super::RaftNode;
use crate::{
    actors::{
        applier::{ReplaceState, StateReplaced},
        peer_ask::PeerAsk,
        requests::RequestError,
        snapshots::{Received, SendSnapshotTo, TransferError},
    },
    clock,
    raft::Membership,
    types::{LogIndex, LogPosition, MemberId},
};
use actix::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// Entries that stay although every member has them, or the bound if that is less: so that a new leader, which does not know yet
/// how far the others are, does not take one for too far behind.
const KEPT_ENTRIES: u64 = 5_000;

/// After a transfer that failed the next one to the same member waits so long.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How long the log waits for a member that has its snapshot to catch up.
const CATCH_UP_TIME: Duration = Duration::from_mins(1);

/// How much of the log stays for members that lack it.
#[derive(Clone, Copy, Debug)]
pub struct LogBound {
    /// Entries at most.
    pub entries: u64,
    /// Bytes at most.
    pub bytes: u64,
}

/// What became of a snapshot that was to be sent.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct TransferEnded {
    /// To whom.
    pub to: MemberId,
    /// The log position it brought the member to.
    pub outcome: Result<LogIndex, TransferError>,
}

/// Puts a received snapshot in place of this member's state. The reply comes when it is there, or says why it is not.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct InstallSnapshot {
    /// The snapshot.
    pub received: Box<Received>,
    /// Who waits.
    pub done: oneshot::Sender<Result<(), String>>,
}

/// The snapshots under way.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    sent: BTreeMap<MemberId, Transfer>,
    installing: Option<Installing>,
    /// Entries up to here are past the bound.
    past_bound: LogIndex,
    /// Members that lack entries which are gone, as was said.
    too_far_behind: BTreeSet<MemberId>,
    /// When a leader is asked for a snapshot again.
    ask_at: Option<Instant>,
}

/// A snapshot for one member. Entries after `from` stay.
#[derive(Debug)]
enum Transfer {
    Running {
        from: LogIndex,
    },
    CatchingUp {
        from: LogIndex,
        target: LogIndex,
        until: Instant,
    },
    Failed {
        retry_at: Instant,
    },
}

/// A received snapshot on its way to being the state.
#[derive(Debug)]
struct Installing {
    id: LogPosition,
    membership: Membership,
    done: oneshot::Sender<Result<(), String>>,
}

impl Transfers {
    pub(super) fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// Entries after this one stay for members whose snapshot is on its way.
    fn held(&self) -> Option<LogIndex> {
        let held = self.sent.values().filter_map(|transfer| match transfer {
            Transfer::Running { from } | Transfer::CatchingUp { from, .. } => Some(*from),
            Transfer::Failed { .. } => None,
        });
        held.min()
    }
}

impl Handler<TransferEnded> for RaftNode {
    type Result = ();

    fn handle(&mut self, TransferEnded { to, outcome }: TransferEnded, _: &mut Self::Context) {
        let now = clock::now();
        let next = match outcome {
            Ok(through) => {
                self.raft.snapshot_sent(to, through);
                self.transfers.too_far_behind.remove(&to);
                Transfer::CatchingUp {
                    from: through,
                    target: self.raft.commit(),
                    until: now + CATCH_UP_TIME,
                }
            }
            Err(error) => {
                if !matches!(error, TransferError::Busy(_)) {
                    tracing::warn!(to = to.hex(), "a snapshot did not get through: {error}");
                }
                self.raft.snapshot_failed(to);
                Transfer::Failed {
                    retry_at: now + RETRY_PAUSE,
                }
            }
        };
        self.transfers.sent.insert(to, next);
        self.carry_out();
    }
}

impl Handler<InstallSnapshot> for RaftNode {
    type Result = ();

    fn handle(&mut self, install: InstallSnapshot, _: &mut Self::Context) {
        let InstallSnapshot { received, done } = install;
        if let Err(refusal) = self.begin_install(&received) {
            // The file is closed before its receiver removes it. Nobody may be waiting.
            drop(received);
            drop(done.send(Err(refusal)));
            return;
        }
        let applied = received.db.applied();
        self.transfers.installing = Some(Installing {
            id: applied,
            membership: received.membership.clone(),
            done,
        });
        self.life
            .deliver(&self.peers.replace, ReplaceState { received });
        self.carry_out();
    }
}

impl Handler<StateReplaced> for RaftNode {
    type Result = ();

    /// The database is this snapshot, durably: now the log is told. If this member dies first, its start tells the log.
    fn handle(&mut self, replaced: StateReplaced, _: &mut Self::Context) {
        let installing = self.transfers.installing.take();
        assert!(
            installing.is_some(),
            "the state is replaced only when the Raft node asks for it"
        );
        let Some(Installing {
            id,
            membership,
            done,
        }) = installing
        else {
            return;
        };
        assert_eq!(
            id.index, replaced.applied.index,
            "the snapshot that was asked for is the one that is in place"
        );
        // What was committed and not handed on is in the snapshot. It happened, but what came of it is not known any more.
        for committed in std::mem::take(&mut self.unsent_entries) {
            if let Some(reply) = committed.reply {
                reply.send(Err(RequestError::TimedOut));
            }
        }
        self.applies.clear();
        self.applied = id.index;
        self.stored = id.index;
        self.raft.snapshot_installed(id, membership);
        tracing::info!(index = id.index.0, "a snapshot took the place of the state");
        self.membership_in_force();
        // Nobody may be waiting.
        drop(done.send(Ok(())));
        self.carry_out();
    }
}

impl RaftNode {
    fn begin_install(&mut self, received: &Received) -> Result<(), String> {
        if self.raft.is_leader() {
            return Err("this member leads: it has every committed entry".to_owned());
        }
        if self.transfers.is_installing() {
            return Err("another snapshot is being put in place".to_owned());
        }
        let applied = received.db.applied();
        let id = applied;
        self.raft
            .snapshot_starts(id)
            .map_err(|refused| refused.to_string())
    }

    /// A member needs entries that this one has given up.
    pub(super) fn begin_snapshot(&mut self, to: MemberId) {
        match self.transfers.sent.get(&to) {
            // Its end is reported in any case.
            Some(Transfer::Running { .. }) => return,
            Some(Transfer::Failed { retry_at }) if *retry_at > clock::now() => {
                self.raft.snapshot_failed(to);
                return;
            }
            Some(Transfer::Failed { .. } | Transfer::CatchingUp { .. }) | None => {}
        }
        let from = self.stored;
        self.transfers.sent.insert(to, Transfer::Running { from });
        if let Err(SendError::Full(_)) = self.peers.snapshots.try_send(SendSnapshotTo { to }) {
            self.transfers.sent.remove(&to);
            self.raft.snapshot_failed(to);
        }
    }

    /// A member whose database was put aside asks the leader for another one: the log says nothing of it.
    pub(super) fn ask_for_state(&mut self) {
        let now = clock::now();
        let waiting = self.transfers.ask_at.is_some_and(|at| at > now);
        if !self.raft.awaits_snapshot() || self.transfers.is_installing() || waiting {
            return;
        }
        if let Some(leader) = self.raft.leader() {
            self.transfers.ask_at = Some(now + RETRY_PAUSE);
            // Nobody waits for an answer.
            let (reply, _) = oneshot::channel();
            self.ask(leader, PeerAsk::WantSnapshot.encode(), reply);
        }
    }

    /// Once in a while: how much of the log is past the bound, and whom it need not wait for any longer.
    pub(super) fn bound_log(&mut self) {
        let bound = self.pacing.log_bound;
        let commit = self.raft.commit();
        let by_entries = LogIndex(commit.0.saturating_sub(bound.entries));
        let by_bytes = self.peers.log.before_newest(bound.bytes).min(commit);
        let past = by_entries.max(by_bytes);
        self.transfers.past_bound = self.transfers.past_bound.max(past);
        self.end_waits();
        self.release();
        self.tell_who_is_behind();
    }

    fn tell_who_is_behind(&mut self) {
        let (released, behind) = (self.released, &mut self.transfers.too_far_behind);
        for peer in self.raft.peers() {
            // Nothing is known of a member that a new leader has not heard yet.
            if peer.matched >= released || peer.matched == LogIndex(0) {
                behind.remove(&peer.id);
            } else if behind.insert(peer.id) {
                tracing::info!(
                    member = peer.id.hex(),
                    has = peer.matched.0,
                    log_begins_after = released.0,
                    "a member lacks entries that the log has given up: it needs a snapshot"
                );
            }
        }
    }

    fn end_waits(&mut self) {
        let (now, peers) = (clock::now(), self.raft.peers());
        let matched = |id: &MemberId| peers.iter().find(|peer| peer.id == *id).map(|p| p.matched);
        self.transfers.sent.retain(|id, transfer| match transfer {
            Transfer::Running { .. } => true,
            Transfer::CatchingUp {
                from,
                target,
                until,
            } => match matched(id) {
                Some(matched) => {
                    *from = matched.max(*from);
                    matched < *target && now < *until
                }
                None => false,
            },
            Transfer::Failed { retry_at } => now < *retry_at,
        });
    }

    /// Entries that a restart of this member does not need, and no other member, or none that the log waits for.
    pub(super) fn dispensable(&self) -> LogIndex {
        if self.peers.links.is_alone() {
            return self.stored;
        }
        let kept = KEPT_ENTRIES.min(self.pacing.log_bound.entries);
        let had = LogIndex(self.links.everybody_has().0.saturating_sub(kept));
        let through = self.stored.min(had.max(self.transfers.past_bound));
        self.transfers
            .held()
            .map_or(through, |held| held.min(through))
    }
}
