//! A snapshot on its way to being the applier's state: wanted, then with the committer, then in place.

use super::{members::Members, snapshots::Received};
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
    pub(super) fn wanted(received: Box<Received>, before: LogPosition) -> Self {
        let Received {
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

    /// Gives the database out, if one waits.
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
