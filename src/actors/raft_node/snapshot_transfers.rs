//! Snapshots under way: those sent to other members, and one that this member installs.

use crate::{
    raft::{Membership, PeerStatus},
    types::{LogIndex, LogPosition, MemberId},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// The pause between a failed transfer and the next one to the same member, or between two requests for a snapshot.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How long entries are kept for a member that has its snapshot and catches up.
const CATCH_UP_TIME: Duration = Duration::from_mins(1);

/// A snapshot for one member. Entries after `from` stay in the log.
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

/// A received snapshot that is about to replace this member's state.
#[derive(Debug)]
pub(super) struct Installing {
    pub(super) id: LogPosition,
    pub(super) membership: Membership,
    pub(super) done: oneshot::Sender<Result<(), String>>,
}

/// Whether a transfer may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransferStart {
    Now,
    /// One is running: its end will be reported.
    Running,
    /// The last one failed a moment ago.
    TooSoon,
}

/// The snapshots under way.
#[derive(Debug, Default)]
pub(super) struct SnapshotTransfers {
    sent: BTreeMap<MemberId, Transfer>,
    installing: Option<Installing>,
    /// Members that need released entries, each logged once.
    too_far_behind: BTreeSet<MemberId>,
    /// When the leader may be asked for a snapshot again.
    request_at: Option<Instant>,
}

impl SnapshotTransfers {
    // --- to other members ---

    /// A transfer to the member is wanted. If it starts now, entries after `from` stay in the log.
    pub(super) fn start(&mut self, to: MemberId, from: LogIndex, now: Instant) -> TransferStart {
        match self.sent.get(&to) {
            Some(Transfer::Running { .. }) => return TransferStart::Running,
            Some(Transfer::Failed { retry_at }) if *retry_at > now => {
                return TransferStart::TooSoon;
            }
            Some(Transfer::Failed { .. } | Transfer::CatchingUp { .. }) | None => {}
        }
        self.sent.insert(to, Transfer::Running { from });
        TransferStart::Now
    }

    /// The transfer that was started could not begin.
    pub(super) fn cancel(&mut self, to: MemberId) {
        self.sent.remove(&to);
    }

    /// The member has installed a snapshot of everything up to `through`; it has caught up when it reaches `target`.
    pub(super) fn succeeded(
        &mut self,
        to: MemberId,
        through: LogIndex,
        target: LogIndex,
        now: Instant,
    ) {
        self.too_far_behind.remove(&to);
        let catching_up = Transfer::CatchingUp {
            from: through,
            target,
            until: now + CATCH_UP_TIME,
        };
        self.sent.insert(to, catching_up);
    }

    pub(super) fn failed(&mut self, to: MemberId, now: Instant) {
        let retry_at = now + RETRY_PAUSE;
        self.sent.insert(to, Transfer::Failed { retry_at });
    }

    /// Entries after this one stay for members to which a snapshot is sent, or which catch up after it.
    pub(super) fn held(&self) -> Option<LogIndex> {
        let held = self.sent.values().filter_map(|transfer| match transfer {
            Transfer::Running { from } | Transfer::CatchingUp { from, .. } => Some(*from),
            Transfer::Failed { .. } => None,
        });
        held.min()
    }

    /// Forgets members that have caught up, left, or taken too long. `peers` is empty unless this member leads.
    pub(super) fn update(&mut self, peers: &[PeerStatus], now: Instant) {
        let matched = |id: &MemberId| peers.iter().find(|peer| peer.id == *id).map(|p| p.matched);
        self.sent.retain(|id, transfer| match transfer {
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

    /// The members of `peers` that need entries up to `released`, and did not when this was called last.
    pub(super) fn newly_too_far_behind(
        &mut self,
        peers: Vec<PeerStatus>,
        released: LogIndex,
    ) -> Vec<PeerStatus> {
        let mut found = Vec::new();
        for peer in peers {
            // A new leader has no match index for a member that has not replied yet.
            if peer.matched >= released || peer.matched == LogIndex(0) {
                self.too_far_behind.remove(&peer.id);
            } else if self.too_far_behind.insert(peer.id) {
                found.push(peer);
            }
        }
        found
    }

    // --- to this member ---

    pub(super) fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    pub(super) fn install(&mut self, installing: Installing) {
        self.installing = Some(installing);
    }

    /// The state was replaced by the snapshot.
    pub(super) fn installed(&mut self) -> Installing {
        let installing = self.installing.take();
        installing.expect("the state is replaced only when the Raft node asks for it")
    }

    /// Whether a member that has no state should ask for a snapshot now. If so, it does not ask again for a while.
    pub(super) fn should_request(&mut self, now: Instant) -> bool {
        let due = !self.is_installing() && self.request_at.is_none_or(|at| at <= now);
        if due {
            self.request_at = Some(now + RETRY_PAUSE);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const TO: MemberId = MemberId(2);

    fn peer(matched: u64) -> PeerStatus {
        PeerStatus {
            id: TO,
            matched: LogIndex(matched),
            in_snapshot: false,
            current: true,
            replied_at: 1,
        }
    }

    #[test]
    fn one_transfer_runs_at_a_time_and_a_failed_one_pauses() {
        let now = clock::now();
        let mut transfers = SnapshotTransfers::default();
        let start = |transfers: &mut SnapshotTransfers, now| transfers.start(TO, LogIndex(5), now);
        assert_eq!(start(&mut transfers, now), TransferStart::Now);
        assert_eq!(start(&mut transfers, now), TransferStart::Running);
        transfers.failed(TO, now);
        assert_eq!(start(&mut transfers, now), TransferStart::TooSoon);
        let later = now + RETRY_PAUSE;
        assert_eq!(start(&mut transfers, later), TransferStart::Now);
        transfers.cancel(TO);
        assert_eq!(start(&mut transfers, later), TransferStart::Now);
    }

    #[test]
    fn entries_are_held_until_the_receiver_has_caught_up_or_took_too_long() {
        let now = clock::now();
        let mut transfers = SnapshotTransfers::default();
        transfers.start(TO, LogIndex(5), now);
        assert_eq!(transfers.held(), Some(LogIndex(5)));
        transfers.succeeded(TO, LogIndex(8), LogIndex(20), now);
        transfers.update(&[peer(12)], now);
        assert_eq!(
            transfers.held(),
            Some(LogIndex(12)),
            "it needs these no more"
        );
        transfers.update(&[peer(12)], now + CATCH_UP_TIME);
        assert_eq!(transfers.held(), None, "too long");
        transfers.succeeded(TO, LogIndex(8), LogIndex(20), now);
        transfers.update(&[peer(20)], now);
        assert_eq!(transfers.held(), None, "caught up");
        transfers.succeeded(TO, LogIndex(8), LogIndex(20), now);
        transfers.update(&[], now);
        assert_eq!(transfers.held(), None, "this member no longer leads");
    }

    #[test]
    fn a_member_that_needs_released_entries_is_reported_once() {
        let mut transfers = SnapshotTransfers::default();
        let mut report = |matched| {
            let found = transfers.newly_too_far_behind(vec![peer(matched)], LogIndex(10));
            found.len()
        };
        assert_eq!(report(0), 0, "unknown");
        assert_eq!((report(9), report(9)), (1, 0));
        assert_eq!((report(10), report(9)), (0, 1), "again, after it had them");
    }

    #[test]
    fn a_snapshot_is_requested_now_and_then() {
        let now = clock::now();
        let mut transfers = SnapshotTransfers::default();
        assert!(transfers.should_request(now));
        assert!(!transfers.should_request(now));
        assert!(transfers.should_request(now + RETRY_PAUSE));
    }
}
