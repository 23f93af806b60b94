//! Builds the log and its memberships from what the disk contained. All of that is input, and checked here.

use super::{
    interface::{Config, InitialState, InitialStateError},
    log::Log,
    membership::{History, Membership},
};
use crate::types::{EntryKind, LogIndex, LogPosition, MemberId};

/// Checks the configuration by itself: whether its values fit together.
pub(super) fn check_config(config: &Config) -> Result<(), InitialStateError> {
    let wrong = InitialStateError::Config;
    if config.id == MemberId(0) {
        return Err(wrong("0 is not a member id"));
    }
    if config.heartbeat_ticks == 0 {
        return Err(wrong("heartbeats need an interval of a tick at least"));
    }
    if config.election_ticks <= config.heartbeat_ticks {
        return Err(wrong(
            "the election timeout must exceed the heartbeat interval",
        ));
    }
    Ok(())
}

/// Builds the log and the memberships in it.
pub(super) fn load_log(
    config: &Config,
    state: InitialState,
) -> Result<(Log, History), InitialStateError> {
    let applied = state.applied;
    let mut log = Log::new(state.start, config.cached_bytes_max);
    let before = state
        .entries
        .first()
        .map(|first| first.index.0.saturating_sub(1));
    if let Some(index) = before
        .map(LogIndex)
        .filter(|index| *index > state.start.index)
    {
        // Without a run all of them have the term of `start`; a log that begins at index 1 has no such term.
        let term = match state.evicted_terms.last() {
            None if state.start.index == LogIndex(0) => {
                let (first, applied) = (index.next(), state.applied);
                return Err(InitialStateError::Gap { first, applied });
            }
            None => state.start.term,
            Some(run) => run.term,
        };
        let last = LogPosition::new(term, index);
        log.extend_evicted(&check_runs(state.start, &state.evicted_terms, last)?, last);
    }
    let first = state
        .entries
        .first()
        .map_or(log.last().index.next(), |entry| entry.index);
    if first > applied.next() || state.start.index > applied {
        return Err(InitialStateError::Gap { first, applied });
    }
    let mut history = History::new(applied, state.membership);
    for entry in state.entries {
        let (found, after) = (entry.position(), log.last());
        if found.index != after.index.next() || found.term < after.term {
            return Err(InitialStateError::Disorder { found, after });
        }
        if entry.kind == EntryKind::Membership && entry.index > applied {
            let membership = Membership::decode(&entry.data);
            let index = entry.index;
            let wrong = |source| InitialStateError::Membership { index, source };
            history.append(index, membership.map_err(wrong)?);
        }
        log.push(entry);
    }
    let (last, commit) = (log.last().index, state.hard_state.commit);
    if last < applied || last < commit {
        return Err(InitialStateError::Lost {
            last,
            applied,
            commit,
        });
    }
    log.loaded(commit.max(applied));
    history.commit(log.commit());
    Ok((log, history))
}

/// The runs must rise from `start` and stay before the first entry given.
fn check_runs(
    start: LogPosition,
    runs: &[LogPosition],
    last: LogPosition,
) -> Result<Vec<LogPosition>, InitialStateError> {
    let mut after = start;
    for &found in runs {
        if found.index <= after.index || found.term < after.term || found.index > last.index {
            return Err(InitialStateError::Disorder { found, after });
        }
        after = found;
    }
    Ok(runs.to_vec())
}

#[cfg(test)]
mod tests {
    use super::super::{
        Message, MessageBody, RaftCore,
        testing::{index, opaque_entry as entry, voters},
    };
    use super::*;
    use crate::types::{HardState, Term};

    #[test]
    fn disks_that_lost_something_are_refused() {
        let start =
            |state: InitialState| RaftCore::new(Config::new(MemberId(1), 1), state).unwrap_err();
        let gap = InitialState {
            entries: vec![entry(1, 3, EntryKind::Command)],
            ..InitialState::default()
        };
        assert!(matches!(start(gap), InitialStateError::Gap { .. }));
        let disorder = InitialState {
            entries: vec![
                entry(2, 1, EntryKind::Command),
                entry(1, 2, EntryKind::Command),
            ],
            ..InitialState::default()
        };
        assert!(matches!(
            start(disorder),
            InitialStateError::Disorder { .. }
        ));
        let (term, vote, commit) = (Term(1), None, index(5));
        let lost = InitialState {
            hard_state: HardState { term, vote, commit },
            ..InitialState::default()
        };
        assert!(matches!(start(lost), InitialStateError::Lost { .. }));
        let damaged = InitialState {
            entries: vec![entry(1, 1, EntryKind::Membership)],
            ..InitialState::default()
        };
        assert!(matches!(
            start(damaged),
            InitialStateError::Membership { .. }
        ));
    }

    #[test]
    fn entries_that_stay_on_the_disk_are_part_of_the_log() {
        let state = InitialState {
            applied: index(9),
            start: LogPosition::new(Term(3), index(4)),
            entries: vec![entry(3, 9, EntryKind::Command)],
            ..InitialState::default()
        };
        let node = RaftCore::new(Config::new(MemberId(1), 1), state).unwrap();
        assert_eq!(node.last(), LogPosition::new(Term(3), index(9)));
        assert_eq!(node.term_at(index(6)), Some(Term(3)));
        node.check();
    }

    /// The messages sent and indexes committed until there is no more output; all writes are durable at once.
    fn drain(node: &mut RaftCore) -> (Vec<MessageBody>, Vec<u64>) {
        let (mut sent, mut committed) = (Vec::new(), Vec::new());
        while let Some(ready) = node.ready() {
            sent.extend(
                ready
                    .messages
                    .into_iter()
                    .map(|envelope| envelope.message.body),
            );
            committed.extend(ready.committed.iter().map(|entry| entry.index.0));
            if let Some(persist) = ready.persist {
                node.persisted(persist.seq);
            }
        }
        node.check();
        (sent, committed)
    }

    #[test]
    fn a_member_without_a_state_machine_votes_and_waits_for_a_snapshot() {
        let (term, vote, commit) = (Term(3), Some(MemberId(2)), index(7));
        let state = InitialState {
            hard_state: HardState { term, vote, commit },
            applied: commit,
            membership: voters(1..=3),
            start: LogPosition::new(term, index(4)),
            entries: (7..=9).map(|at| entry(3, at, EntryKind::Command)).collect(),
            awaits_snapshot: true,
            ..InitialState::default()
        };
        let mut node = RaftCore::new(Config::new(MemberId(1), 1), state).unwrap();
        for _ in 0..100 {
            node.tick();
            assert_eq!(drain(&mut node), (Vec::new(), Vec::new()));
        }
        assert_eq!(node.status().term, term, "it does not campaign");

        let from = |term, body| Message {
            term: Term(term),
            body,
        };
        let (last, transfer) = (LogPosition::new(term, index(8)), false);
        let short = from(4, MessageBody::RequestVote { last, transfer });
        node.step(MemberId(2), short).unwrap();
        let refused = MessageBody::Vote { granted: false };
        assert_eq!(drain(&mut node).0, [refused], "its own log is longer");
        let last = LogPosition::new(term, index(9));
        let long = from(4, MessageBody::RequestVote { last, transfer });
        node.step(MemberId(3), long).unwrap();
        assert_eq!(drain(&mut node).0, [MessageBody::Vote { granted: true }]);

        let at = |at| LogPosition::new(term, index(at));
        assert!(
            node.snapshot_starts(at(6)).is_err(),
            "entry 7 may have been served"
        );
        node.snapshot_starts(at(7)).unwrap();
        node.snapshot_installed(at(7), voters([1, 3]));
        assert!(!node.awaits_snapshot());
        assert_eq!(node.membership(), &voters([1, 3]), "the snapshot had it");
        let (commit, round) = (index(9), 0);
        let heartbeat = from(4, MessageBody::Heartbeat { commit, round });
        node.step(MemberId(3), heartbeat).unwrap();
        assert_eq!(drain(&mut node).1, [8, 9], "the log goes on after it");
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        let refuse = |change: fn(&mut Config)| {
            let mut config = Config::new(MemberId(1), 1);
            change(&mut config);
            let refused = RaftCore::new(config, InitialState::default()).unwrap_err();
            assert!(matches!(refused, InitialStateError::Config(_)), "{refused}");
        };
        refuse(|config| config.id = MemberId(0));
        refuse(|config| config.heartbeat_ticks = 0);
        refuse(|config| config.election_ticks = config.heartbeat_ticks);
    }

    #[test]
    fn a_torn_write_that_lost_the_new_term_leaves_it_known() {
        let state = InitialState {
            entries: vec![entry(4, 1, EntryKind::Command)],
            ..InitialState::default()
        };
        let node = RaftCore::new(Config::new(MemberId(1), 1), state).unwrap();
        assert_eq!(node.status().term, Term(4));
        node.check();
    }
}
