//! The rolling hash of the state: members compare it to detect that one of them has diverged.
//!
//! Every applied entry is folded into 64 bits together with what it did *here*: the records it made (keys, values, revisions,
//! versions), leases, alarms, the revisions after it, and whether it was refused. The log is the same on all members, and
//! applying is a function of it; so after the same entry all have the same hash, or one of them has a fault: its memory, its
//! disk, or a bug. Each step is invertible, so a difference never goes away by itself.
//!
//! [`RecentHashes`] remembers the hashes of the last entries, so that members can compare at an index that both have applied.
//! [`judge`] decides from the reported hashes which state is right: that of a majority of the voters. Without one, none is.
//!
//! The hash covers changes, not the whole state: a stored record that rots later is not noticed. `HashKV` covers that.

use super::{
    command::Verdict,
    lease::{LeaseChange, LeaseRow},
};
use crate::{
    auth::Row,
    types::{LogIndex, LogPosition, MemberId, Record, RecordKind, Revision},
};
use bincode::{Decode, Encode};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

/// Odd, so that multiplying by it is invertible.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hashes that a member remembers, of as many entries: 128 KiB. Members compare every second, at an entry that the asker has
/// just applied; one that has applied so many more since then is asked again.
const REMEMBERED: usize = 16_384;

/// The hash of a state and of all that led to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct StateHash(u64);

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What applying an entry has done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effects<'a> {
    /// The caller's answer; `None` if it was no command.
    pub(super) verdict: Option<&'a Verdict>,
    /// The newest revision after it.
    pub(super) revision: Revision,
    /// The compacted revision after it.
    pub(super) compacted: Revision,
    /// The records it made.
    pub(super) records: &'a [Record],
    /// What it did to leases.
    pub(super) leases: &'a [LeaseChange],
    /// Alarms that are raised after it.
    pub(super) alarms: usize,
    /// The parts of users, roles and tokens that it changed.
    pub(super) auth: &'a [Row],
}

impl StateHash {
    /// Folds in the entry at `at`.
    pub(super) fn fold(&mut self, at: LogPosition, done: &Effects<'_>) {
        self.word(at.index.0);
        self.word(at.term.0);
        self.word(match done.verdict {
            None => 0,
            Some(Ok(_)) => 1,
            Some(Err(_)) => 2,
        });
        self.word(done.revision.0.cast_unsigned());
        self.word(done.compacted.0.cast_unsigned());
        self.word(done.alarms as u64);
        done.records.iter().for_each(|record| self.record(record));
        done.leases.iter().for_each(|change| self.lease(change));
        done.auth.iter().for_each(|row| self.auth(row));
    }

    fn auth(&mut self, (name, row): &Row) {
        self.word(u64::from(crc32c::crc32c(name.as_bytes())));
        let sum = row.as_ref().map(|row| u64::from(crc32c::crc32c(row)));
        self.word(sum.map_or(u64::MAX, |sum| sum << 1));
    }

    fn record(&mut self, record: &Record) {
        let kind = match record.kind {
            RecordKind::Put => 0,
            RecordKind::Tombstone => 1,
        };
        self.word(record.rev.major.0.cast_unsigned());
        self.word((u64::from(record.rev.sub) << 1) | kind);
        let sum = u64::from(crc32c::crc32c(&record.kv));
        self.word((sum << 32) ^ record.kv.len() as u64);
    }

    fn lease(&mut self, change: &LeaseChange) {
        let (kind, id, row) = match change {
            LeaseChange::Granted { id, row } => (1, id, *row),
            LeaseChange::Checkpointed { id, row } => (2, id, *row),
            LeaseChange::Revoked { id } => (3, id, LeaseRow::default()),
            LeaseChange::Renewed { id, row, .. } => (4, id, *row),
        };
        self.word(kind);
        self.word(id.0.cast_unsigned());
        self.word(row.ttl_secs.cast_unsigned());
        self.word(row.remaining_secs.cast_unsigned());
        self.word(row.granted.0);
    }

    fn word(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(29) ^ word).wrapping_mul(STEP);
    }
}

/// The hashes after the last applied entries. Invariant: `hashes` is never empty; its last is that of entry `newest`.
#[derive(Clone, Debug)]
pub struct RecentHashes {
    newest: LogIndex,
    hashes: VecDeque<StateHash>,
}

impl RecentHashes {
    /// Begins with the state after entry `index`.
    pub fn new(index: LogIndex, hash: StateHash) -> Self {
        Self {
            newest: index,
            hashes: VecDeque::from([hash]),
        }
    }

    /// The state after the next entry.
    pub fn push(&mut self, index: LogIndex, hash: StateHash) {
        assert_eq!(
            index,
            self.newest.next(),
            "each applied entry has its hash, in log order"
        );
        if self.hashes.len() == REMEMBERED {
            self.hashes.pop_front();
        }
        self.newest = index;
        self.hashes.push_back(hash);
    }

    /// The newest entry that was applied.
    pub fn newest(&self) -> LogIndex {
        self.newest
    }

    /// The hash after entry `index`, if it was applied and not long ago.
    pub fn get(&self, index: LogIndex) -> Option<StateHash> {
        let back = self.newest.0.checked_sub(index.0)?;
        let at = (self.hashes.len() as u64 - 1).checked_sub(back)?;
        self.hashes.get(usize::try_from(at).ok()?).copied()
    }
}

/// What the hashes after one entry say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// All reported hashes are the same.
    Same,
    /// A majority of the voters is in one state, and these members are in others.
    Differ {
        right: StateHash,
        /// The members with another one, ascending.
        wrong: Vec<MemberId>,
    },
    /// Members differ, and no state has a majority: the members in each.
    Undecided(BTreeMap<StateHash, Vec<MemberId>>),
}

/// Judges the hashes that members, voters or not, report after one entry. A member that reports none counts for no state.
pub fn judge(voters: &[MemberId], reported: &BTreeMap<MemberId, StateHash>) -> Judgement {
    let mut members_by_hash: BTreeMap<StateHash, Vec<MemberId>> = BTreeMap::new();
    for (id, hash) in reported {
        members_by_hash.entry(*hash).or_default().push(*id);
    }
    if members_by_hash.len() <= 1 {
        return Judgement::Same;
    }
    let majority = |members: &[MemberId]| {
        let with_vote = members.iter().filter(|id| voters.contains(id));
        with_vote.count() > voters.len() / 2
    };
    let right = members_by_hash
        .iter()
        .find(|(_, members)| majority(members));
    let Some(right) = right.map(|(hash, _)| *hash) else {
        return Judgement::Undecided(members_by_hash);
    };
    let wrong = reported.iter().filter(|(_, hash)| **hash != right);
    Judgement::Differ {
        right,
        wrong: wrong.map(|(id, _)| *id).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kv::KvError,
        types::{LeaseId, Rev, Term},
    };

    fn at(index: u64) -> LogPosition {
        LogPosition {
            index: LogIndex(index),
            term: Term(1),
        }
    }

    fn record(major: i64, kv: &'static [u8]) -> Record {
        Record {
            rev: Rev::new(Revision(major), 0),
            kind: RecordKind::Put,
            kv: kv.into(),
        }
    }

    fn lease(secs: i64) -> LeaseChange {
        LeaseChange::Granted {
            id: LeaseId(7),
            row: LeaseRow::new(secs, LogIndex(1)),
        }
    }

    const NOTHING: Effects<'_> = Effects {
        verdict: None,
        revision: Revision(1),
        compacted: Revision(-1),
        records: &[],
        leases: &[],
        alarms: 0,
        auth: &[],
    };

    fn folded(entries: &[(u64, Effects<'_>)]) -> StateHash {
        let mut hash = StateHash::default();
        for (index, done) in entries {
            hash.fold(at(*index), done);
        }
        hash
    }

    #[test]
    fn every_effect_counts_and_a_difference_stays() {
        let (one, other) = ([record(2, b"a")], [record(2, b"b")]);
        let (late, gone) = ([record(3, b"a")], [record(2, b"")]);
        let (short, long) = ([lease(1)], [lease(2)]);
        let revoked = [LeaseChange::Revoked { id: LeaseId(7) }];
        let refused: Verdict = Err(KvError::EmptyKey);
        let variants = [
            NOTHING,
            Effects {
                records: &one,
                ..NOTHING
            },
            Effects {
                records: &other,
                ..NOTHING
            },
            Effects {
                records: &late,
                ..NOTHING
            },
            Effects {
                records: &gone,
                ..NOTHING
            },
            Effects {
                leases: &short,
                ..NOTHING
            },
            Effects {
                leases: &long,
                ..NOTHING
            },
            Effects {
                leases: &revoked,
                ..NOTHING
            },
            Effects {
                alarms: 1,
                ..NOTHING
            },
            Effects {
                revision: Revision(2),
                ..NOTHING
            },
            Effects {
                compacted: Revision(1),
                ..NOTHING
            },
            Effects {
                verdict: Some(&refused),
                ..NOTHING
            },
        ];
        let hash = |done: Effects<'_>| {
            let mut entries = vec![(1, done)];
            entries.extend((2..100).map(|index| (index, NOTHING)));
            folded(&entries)
        };
        for (n, a) in variants.into_iter().enumerate() {
            for (m, b) in variants.into_iter().enumerate() {
                assert_eq!(hash(a) == hash(b), n == m, "{n} and {m}");
            }
        }
        assert_ne!(
            folded(&[(1, NOTHING)]),
            folded(&[(2, NOTHING)]),
            "its place"
        );
    }

    #[test]
    fn each_part_of_users_counts() {
        let row = |name: &str, row: Option<Vec<u8>>| [(name.to_owned(), row)];
        let rows = [
            row("auth.user/x", Some(vec![1])),
            row("auth.user/x", Some(vec![2])),
            row("auth.user/y", Some(vec![1])),
            row("auth.user/x", None),
        ];
        let mut hashes = vec![folded(&[(1, NOTHING)])];
        for auth in &rows {
            hashes.push(folded(&[(1, Effects { auth, ..NOTHING })]));
        }
        for (n, a) in hashes.iter().enumerate() {
            for (m, b) in hashes.iter().enumerate() {
                assert_eq!(a == b, n == m, "{n} and {m}");
            }
        }
    }

    #[test]
    fn recent_hashes_are_found_by_index_and_old_ones_forgotten() {
        let hash = |index: u64| StateHash(index * 3);
        let mut recent = RecentHashes::new(LogIndex(10), hash(10));
        assert_eq!(recent.get(LogIndex(10)), Some(hash(10)), "the start counts");
        assert_eq!(recent.get(LogIndex(9)), None);
        let last = 10 + REMEMBERED as u64 + 4;
        for index in 11..=last {
            recent.push(LogIndex(index), hash(index));
        }
        assert_eq!(recent.hashes.len(), REMEMBERED, "a bound on memory");
        let oldest = last - REMEMBERED as u64 + 1;
        for index in [oldest, oldest + 1, last] {
            assert_eq!(recent.get(LogIndex(index)), Some(hash(index)));
        }
        for index in [0, oldest - 1, last + 1, u64::MAX] {
            assert_eq!(recent.get(LogIndex(index)), None, "{index}");
        }
    }

    fn judged(voters: u64, reported: &[(u64, u64)]) -> Judgement {
        let voters: Vec<MemberId> = (1..=voters).map(MemberId).collect();
        let reported = reported
            .iter()
            .map(|(id, hash)| (MemberId(*id), StateHash(*hash)));
        judge(&voters, &reported.collect())
    }

    fn differ(right: u64, wrong: &[u64]) -> Judgement {
        Judgement::Differ {
            right: StateHash(right),
            wrong: wrong.iter().copied().map(MemberId).collect(),
        }
    }

    #[test]
    fn a_majority_of_the_voters_is_right() {
        assert_eq!(judged(3, &[(1, 5), (2, 5), (3, 5)]), Judgement::Same);
        assert_eq!(judged(3, &[]), Judgement::Same, "nobody differs");
        assert_eq!(judged(3, &[(1, 5), (2, 6), (3, 6)]), differ(6, &[1]));
        assert_eq!(judged(3, &[(1, 5), (2, 5), (3, 6)]), differ(5, &[3]));
        assert_eq!(
            judged(5, &[(1, 1), (2, 2), (3, 2), (4, 2), (5, 9)]),
            differ(2, &[1, 5])
        );
    }

    #[test]
    fn without_a_majority_nobody_is_right() {
        let undecided = |voters, reported: &[(u64, u64)]| {
            matches!(judged(voters, reported), Judgement::Undecided(_))
        };
        assert!(undecided(2, &[(1, 5), (2, 6)]), "one against one");
        assert!(undecided(3, &[(1, 5), (2, 6)]), "the third may decide");
        assert!(undecided(3, &[(1, 5), (2, 6), (3, 7)]), "all differ");
        assert!(
            undecided(4, &[(1, 5), (2, 5), (3, 6), (4, 6)]),
            "half and half"
        );
    }

    #[test]
    fn who_has_no_vote_is_judged_and_does_not_judge() {
        assert_eq!(judged(1, &[(1, 5), (8, 6), (9, 6)]), differ(5, &[8, 9]));
        let split = judged(2, &[(1, 5), (2, 6), (9, 6)]);
        assert!(matches!(split, Judgement::Undecided(_)), "{split:?}");
    }
}
