//! Inputs from this member's own parts: the WAL, the state machine, and snapshot transfers report what they have done.

use super::interface::{LogReadError, Reader, Released, SnapshotRefused};
use super::membership::Membership;
use super::message::LogId;
use super::raft_core::{RaftCore, Role};
use crate::types::{Entry, LogIndex, MemberId};

impl RaftCore {
    // --- the WAL ---

    /// The write `seq` of [`Ready::persist`](super::Ready::persist), and all before it, are durable.
    pub fn persisted(&mut self, seq: u64) {
        self.state.persisted(seq);
        if let Role::Leader(leader) = &mut self.role {
            if leader.advance_commit(&mut self.state) {
                self.resign();
            }
        } else {
            self.count_own_vote();
        }
    }

    /// Answers a [`ReadLog`](super::ReadLog). The answer may come at any later time: one that is no longer needed, after a
    /// change of term or a snapshot, is dropped. An error means that the WAL cannot be trusted.
    pub fn log_read(
        &mut self,
        reader: Reader,
        from: LogIndex,
        result: Result<Vec<Entry>, Released>,
    ) -> Result<(), LogReadError> {
        if !self.awaits_log_read(reader, from) {
            return Ok(());
        }
        if let Ok(entries) = &result
            && (entries.is_empty() || !self.state.log.recognises_durable(from, entries))
        {
            return Err(LogReadError { from });
        }
        match (reader, &mut self.role) {
            (Reader::Apply, _) => {
                let entries = result.map_err(|_| LogReadError { from })?;
                self.state.applying.log_read(entries);
            }
            (Reader::Peer(id), Role::Leader(leader)) => {
                leader.on_log_read(&mut self.state, id, from, result.ok());
            }
            (Reader::Peer(_), Role::Follower(_) | Role::Candidate(_)) => {}
        }
        Ok(())
    }

    /// Whether the answer to a [`ReadLog`](super::ReadLog) for `reader` that begins at `from` is still needed.
    pub fn awaits_log_read(&self, reader: Reader, from: LogIndex) -> bool {
        match (reader, &self.role) {
            (Reader::Apply, _) => self.state.applying.is_reading(from),
            (Reader::Peer(id), Role::Leader(leader)) => leader.is_reading(id, from),
            (Reader::Peer(_), Role::Follower(_) | Role::Candidate(_)) => false,
        }
    }

    /// The WAL dropped, or is about to drop, entries up to `through`. Entries that are not applied stay in the log.
    pub fn log_released(&mut self, through: LogIndex) {
        let through = through.min(self.state.applying.index());
        self.state.log.release(through);
    }

    // --- the state machine ---

    /// The state machine applied every entry of [`Ready::committed`](super::Ready::committed) up to `index`.
    pub fn applied(&mut self, index: LogIndex) {
        self.state.applying.applied(index);
    }

    /// Whether there is no state machine until a snapshot is installed: the leader should be asked for one.
    pub fn awaits_snapshot(&self) -> bool {
        self.state.applying.awaits_snapshot()
    }

    /// A verified snapshot at `id` is about to replace the state machine. No entries are given out to be applied until
    /// [`snapshot_installed`](Self::snapshot_installed) or [`snapshot_abandoned`](Self::snapshot_abandoned).
    pub fn snapshot_starts(&mut self, id: LogId) -> Result<(), SnapshotRefused> {
        let commit = self.state.log.commit();
        if !self.state.applying.is_newer(id.index, commit) {
            return Err(SnapshotRefused {
                snapshot: id,
                commit,
            });
        }
        assert!(
            !self.is_leader(),
            "a leader has every committed entry: nobody can send it newer ones"
        );
        if matches!(self.role, Role::Candidate(_)) {
            self.become_follower(self.state.term, None);
        }
        self.state.applying.begin_install();
        Ok(())
    }

    /// The snapshot that [`snapshot_starts`](Self::snapshot_starts) announced was not installed: the state machine stays.
    pub fn snapshot_abandoned(&mut self) {
        self.state.applying.abandon_install();
    }

    /// The snapshot at `id` has replaced the state machine, durably; it contained `membership`. The caller has announced it
    /// with [`snapshot_starts`](Self::snapshot_starts).
    pub fn snapshot_installed(&mut self, id: LogId, membership: Membership) {
        assert!(
            self.state.applying.is_installing(),
            "a snapshot starts before it is installed"
        );
        assert!(
            !self.is_leader(),
            "a member that installs a snapshot does not campaign"
        );
        self.state.snapshot_installed(id, membership);
        if let Role::Follower(follower) = &mut self.role {
            follower.snapshot_installed(id.index);
        }
    }

    // --- snapshots for other members ---

    /// `peer` has installed the snapshot that was sent to it; it contains everything up to `through`.
    pub fn snapshot_sent(&mut self, peer: MemberId, through: LogIndex) {
        let last = self.state.log.last().index;
        if let Role::Leader(leader) = &mut self.role {
            leader.on_snapshot_sent(peer, through, last);
        }
    }

    /// The snapshot for `peer` did not arrive. It is requested again once the peer replies to something.
    pub fn snapshot_failed(&mut self, peer: MemberId) {
        if let Role::Leader(leader) = &mut self.role {
            leader.on_snapshot_failed(peer);
        }
    }
}
