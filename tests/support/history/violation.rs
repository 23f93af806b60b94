//! What can be wrong with a history.

use super::{
    model::{Answer, Event, KeyValue, Revision},
    record::Op,
};
use std::fmt;

/// One violation, with the requests and revisions that show it.
#[derive(Clone, Debug)]
pub(crate) enum Violation {
    /// The true history skips or repeats a revision, or one without events.
    Gap { expected: Revision, found: Revision },
    /// An event does not follow from the state before it.
    ImpossibleEvent {
        revision: Revision,
        before: Option<KeyValue>,
        event: Event,
    },
    /// A request was acknowledged at a revision that the true history does not have: it was lost.
    Lost { op: Op, newest: Revision },
    /// A request did something else than asked, or not all of it.
    WrongEffect {
        op: Op,
        expected: Vec<Event>,
        found: Vec<Event>,
    },
    /// The answer is not what the state at its revision gives.
    WrongAnswer { op: Op, expected: Answer },
    /// Two requests were given one revision.
    Reused { revision: Revision, ops: [Op; 2] },
    /// A request that was called after another had returned has its place before it: a stale read, or a write in the past.
    Stale { earlier: Op, later: Op },
    /// A member showed an older revision than it had before.
    WentBack { earlier: Op, later: Op },
    /// Nobody asked for what this revision did: a write applied twice, a failed one that happened, or half of one.
    Unexplained {
        revision: Revision,
        events: Vec<Event>,
    },
    /// It read a revision, or compacted at one, that a compaction acknowledged before had given up.
    ReadCompacted { op: Op, compaction: Op },
    /// Its answer says that its revision is compacted, or in the future, when that was not so.
    WronglyRefused { op: Op },
    /// A member holds something else in the end than the history leaves.
    WrongState {
        member: u64,
        expected: Option<KeyValue>,
        found: Option<KeyValue>,
    },
    /// A member is at another revision in the end.
    WrongRevision {
        member: u64,
        expected: Revision,
        found: Revision,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gap { expected, found } => {
                write!(f, "history: revision {expected} should follow, not {found}")
            }
            Self::ImpossibleEvent {
                revision,
                before,
                event,
            } => write!(
                f,
                "history: revision {revision} has {event:?} after {before:?}"
            ),
            Self::Lost { op, newest } => {
                write!(f, "lost: the history ends at {newest}, but {op}")
            }
            Self::WrongEffect {
                op,
                expected,
                found,
            } => write!(
                f,
                "wrong effect: {op}\n  should do {expected:?}\n  did {found:?}"
            ),
            Self::WrongAnswer { op, expected } => {
                write!(f, "wrong answer: {op}\n  should be {expected:?}")
            }
            Self::Reused { revision, ops } => {
                let [first, second] = ops;
                write!(f, "revision {revision} twice: {first}\n  and {second}")
            }
            Self::Stale { earlier, later } => {
                write!(f, "stale: {later}\n  after {earlier}")
            }
            Self::WentBack { earlier, later } => {
                write!(f, "went back: {later}\n  after {earlier}")
            }
            Self::Unexplained { revision, events } => {
                write!(f, "nobody asked for revision {revision}: {events:?}")
            }
            Self::ReadCompacted { op, compaction } => {
                write!(f, "compacted before: {op}\n  after {compaction}")
            }
            Self::WronglyRefused { op } => write!(f, "wrongly refused: {op}"),
            Self::WrongState {
                member,
                expected,
                found,
            } => write!(
                f,
                "member {member} ends with {found:?} instead of {expected:?}"
            ),
            Self::WrongRevision {
                member,
                expected,
                found,
            } => {
                write!(
                    f,
                    "member {member} ends at revision {found} instead of {expected}"
                )
            }
        }
    }
}
