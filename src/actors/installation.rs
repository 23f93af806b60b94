//! Installing a snapshot as the applier's state, in steps: it waits, the committer switches the database, the state is
//! replaced.

use super::{members::Members, snapshot_messages::ReceivedSnapshot};
use crate::{
    kv::{index::Index as Tree, machine::LoadedState},
    storage::db::Db,
    types::LogPosition,
};

/// How far the installation of the state has come.
#[derive(Debug)]
pub(super) enum Installation {
    None,
    /// It waits until every applied batch is visible.
    Wanted(Db, InstalledState, LogPosition),
    /// The committer switches the database.
    Switching(InstalledState, LogPosition),
}

/// The state that is to be.
#[derive(Debug)]
pub(super) struct InstalledState {
    pub(super) loaded: LoadedState,
    pub(super) tree: Tree,
    pub(super) members: Members,
}

impl Installation {
    /// A snapshot that is to replace a state at `before`.
    pub(super) fn wanted(received: Box<ReceivedSnapshot>, before: LogPosition) -> Self {
        let ReceivedSnapshot {
            db,
            loaded,
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
        let state = InstalledState {
            loaded,
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
    pub(super) fn end(&mut self) -> (InstalledState, LogPosition) {
        match std::mem::replace(self, Self::None) {
            Self::Switching(state, applied) => (state, applied),
            Self::None | Self::Wanted(..) => {
                unreachable!("the committer switches only what it was given")
            }
        }
    }
}
