//! Installing a snapshot as the applier's state, in steps: it waits, the committer switches the database, the state is
//! replaced.

use super::{members::Members, snapshot_messages::ReceivedSnapshot};
use crate::{
    kv::{index::Index as Tree, machine::Restored},
    storage::db::Db,
    types::LogPosition,
};

/// How far the replacement of the state has come.
#[derive(Debug)]
pub(super) enum Replacement {
    /// There is none.
    None,
    /// It waits until every applied batch is visible.
    Wanted(Db, ReplacedState, LogPosition),
    /// The committer switches the database.
    Switching(ReplacedState, LogPosition),
}

/// The state that is to be.
#[derive(Debug)]
pub(super) struct ReplacedState {
    pub(super) restored: Restored,
    pub(super) tree: Tree,
    pub(super) members: Members,
}

impl Replacement {
    /// A snapshot that is to replace a state at `before`.
    pub(super) fn wanted(received: Box<ReceivedSnapshot>, before: LogPosition) -> Self {
        let ReceivedSnapshot {
            db,
            restored,
            tree,
            members,
            ..
        } = *received;
        let applied = db.applied();
        assert!(
            before.index < applied.index,
            "a snapshot at entry {} would undo what is applied up to {}",
            applied.index,
            before.index
        );
        let state = ReplacedState {
            restored,
            tree,
            members,
        };
        Self::Wanted(db, state, applied)
    }

    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Returns the snapshot's database, if it waits, for the committer to switch to.
    pub(super) fn begin(&mut self) -> Option<Db> {
        match std::mem::replace(self, Self::None) {
            Self::Wanted(db, state, applied) => {
                *self = Self::Switching(state, applied);
                Some(db)
            }
            other @ (Self::None | Self::Switching(..)) => {
                *self = other;
                None
            }
        }
    }

    /// The database is switched.
    pub(super) fn end(&mut self) -> (ReplacedState, LogPosition) {
        match std::mem::replace(self, Self::None) {
            Self::Switching(state, applied) => (state, applied),
            Self::None | Self::Wanted(..) => {
                unreachable!("the committer switches only what it was given")
            }
        }
    }
}
