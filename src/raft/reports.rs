//! Inputs from this member's own parts: the WAL, the state machine, and snapshot transfers report what they have done.

use super::{
    interface::{LogReadError, Reader, Released, SnapshotRefused},
    membership::Membership,
    raft_core::{RaftCore, Role},
};
use crate::types::{Entry, LogIndex, LogPosition, MemberId};

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
        // Entries that were released meanwhile can no longer be compared with the log. Only a peer may be behind them, since what
        // is not applied is not released.
        let is_released = from <= self.state.log.start().index;
        let result = if is_released { Err(Released) } else { result };
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
    pub fn snapshot_starts(&mut self, id: LogPosition) -> Result<(), SnapshotRefused> {
        let commit = self.state.log.commit();
        if !self.state.applying.is_newer(id.index, commit) {
            return Err(SnapshotRefused {
                snapshot: id,
                commit,
            });
        }
        assert!(
            !self.is_leader(),
            "a leader has every committed entry: no member can send it newer ones"
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
    pub fn snapshot_installed(&mut self, id: LogPosition, membership: Membership) {
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

#[cfg(test)]
mod tests {
    use super::super::{
        Config, InitialState, Message, MessageBody, ReadLog,
        testing::{entry, index, voters},
    };
    use super::*;
    use crate::types::{HardState, Term};

    /// Member 1 of three in term 3: its log has entries 5 to 9, all committed and none in memory; `applied` are applied.
    fn started(applied: u64) -> RaftCore {
        let mut config = Config::new(MemberId(1), 1);
        config.cached_bytes_max = 0;
        let initial = InitialState {
            hard_state: HardState {
                term: Term(3),
                vote: None,
                commit: index(9),
            },
            applied: index(applied),
            membership: voters(1..=3),
            start: LogPosition::new(Term(3), index(4)),
            entries: (5..=9).map(|at| entry(at, 3)).collect(),
            ..InitialState::default()
        };
        RaftCore::new(config, initial).unwrap()
    }

    /// The reads that are requested, and the indexes to apply, until there is no more output.
    fn drain(core: &mut RaftCore) -> (Vec<ReadLog>, Vec<u64>) {
        let (mut reads, mut committed) = (Vec::new(), Vec::new());
        while let Some(ready) = core.ready() {
            reads.extend(ready.log_reads);
            committed.extend(ready.committed.iter().map(|entry| entry.index.0));
            if let Some(persist) = ready.persist {
                core.persisted(persist.seq);
            }
        }
        core.check();
        (reads, committed)
    }

    fn receive(core: &mut RaftCore, from: u64, term: u64, body: MessageBody) {
        let term = Term(term);
        core.step(MemberId(from), Message { term, body }).unwrap();
    }

    /// Member 1 leads term 4 and reads entries from 7 on for member 3.
    fn leader_that_reads() -> (RaftCore, ReadLog) {
        let mut core = started(9);
        core.campaign();
        let (asked, granted) = (Term(4), true);
        receive(
            &mut core,
            2,
            3,
            MessageBody::PreVoteReply { asked, granted },
        );
        drain(&mut core);
        receive(&mut core, 2, 4, MessageBody::Vote { granted });
        drain(&mut core);
        let (rejected, hint) = (index(9), LogPosition::new(Term(3), index(6)));
        let reply = MessageBody::AppendRejected { rejected, hint };
        receive(&mut core, 3, 4, reply);
        let read = drain(&mut core).0[0];
        assert_eq!((read.reader, read.from.0), (Reader::Peer(MemberId(3)), 7));
        (core, read)
    }

    #[test]
    fn consensus_goes_on_while_a_read_is_out_and_uses_the_answer() {
        let (mut core, read) = leader_that_reads();
        for _ in 0..3 {
            core.tick();
            let ready = core.ready().unwrap();
            let heartbeats = ready.messages.iter();
            let is_heartbeat = |body: &MessageBody| matches!(body, MessageBody::Heartbeat { .. });
            let heartbeats = heartbeats.filter(|sent| is_heartbeat(&sent.message.body));
            assert_eq!(heartbeats.count(), 2, "one to each other member");
            receive(&mut core, 2, 4, MessageBody::HeartbeatReply { round: 0 });
        }
        assert!(core.awaits_log_read(read.reader, read.from));
        core.log_read(read.reader, read.from, Ok(vec![entry(7, 3)]))
            .unwrap();
        let sent = core.ready().unwrap().messages;
        assert!(
            matches!(&sent[0].message.body, MessageBody::Append { entries, .. } if entries[0].index.0 == 7)
        );
    }

    /// The leader stopped: it could not compare the entries, since it had released the first of them.
    #[test]
    fn entries_that_are_released_while_they_are_read_are_not_sent() {
        let (mut core, read) = leader_that_reads();
        core.log_released(index(8));
        core.check();
        core.log_read(read.reader, read.from, Ok(vec![entry(7, 3), entry(8, 3)]))
            .unwrap();
        assert!(!core.awaits_log_read(read.reader, read.from));
        let ready = core.ready();
        let appends = ready.iter().flat_map(|ready| &ready.messages);
        let is_append = |body: &MessageBody| matches!(body, MessageBody::Append { .. });
        assert!(!appends.clone().any(|sent| is_append(&sent.message.body)));
    }

    #[test]
    fn an_answer_after_a_change_of_term_is_dropped() {
        let (mut core, read) = leader_that_reads();
        let (commit, round) = (index(9), 0);
        receive(&mut core, 2, 5, MessageBody::Heartbeat { commit, round });
        drain(&mut core);
        assert!(!core.awaits_log_read(read.reader, read.from));
        for late in [Ok(vec![entry(7, 3)]), Ok(Vec::new()), Err(Released)] {
            core.log_read(read.reader, read.from, late).unwrap();
            assert_eq!(drain(&mut core), (vec![], vec![]));
        }
    }

    #[test]
    fn an_answer_after_a_snapshot_is_dropped() {
        let mut core = started(6);
        let read = drain(&mut core).0[0];
        assert_eq!((read.reader, read.from.0), (Reader::Apply, 7));
        let id = LogPosition::new(Term(3), index(12));
        core.snapshot_starts(id).unwrap();
        core.snapshot_installed(id, voters(1..=3));
        assert!(!core.awaits_log_read(read.reader, read.from));
        let entries = (7..=9).map(|at| entry(at, 3)).collect();
        for late in [Ok(entries), Err(Released)] {
            core.log_read(read.reader, read.from, late).unwrap();
            assert_eq!(drain(&mut core), (vec![], vec![]));
        }
    }

    #[test]
    fn a_truncation_does_not_touch_what_is_read() {
        let mut core = started(6);
        let read = drain(&mut core).0[0];
        let append = |entries| MessageBody::Append {
            prev: LogPosition::new(Term(3), index(9)),
            commit: index(9),
            entries,
        };
        receive(&mut core, 2, 4, append(vec![entry(10, 4), entry(11, 4)]));
        drain(&mut core);
        receive(&mut core, 3, 5, append(vec![entry(10, 5)]));
        drain(&mut core);
        assert_eq!(core.last(), LogPosition::new(Term(5), index(10)));
        let entries = (7..=9).map(|at| entry(at, 3)).collect();
        core.log_read(read.reader, read.from, Ok(entries)).unwrap();
        assert_eq!(drain(&mut core).1, [7, 8, 9]);
    }
}
