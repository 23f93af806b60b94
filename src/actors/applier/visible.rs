//! What readers see: the state after the newest published batch.
//!
//! Invariants: `keys` and `tail` hold every change up to `window.newest`; every record that `keys` names is in `tail` or in
//! `stored`, or in both.

use super::{
    super::{latest, published::Published},
    state::{Shared, State},
    storing::Storing,
};
use crate::{
    kv::{
        index::Snapshot,
        range::RevisionWindow,
        tail::{self, Tail},
        view::View,
    },
    storage::db::DbReader,
    types::{LogPosition, Rev, Revision},
};
use std::sync::Arc;

/// The database that holds all records which are not in the tail.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pub(super) reader: DbReader,
    pub(super) file_bytes: u64,
    pub(super) used_bytes: u64,
}

/// The published state.
#[derive(Debug)]
pub(super) struct Visible {
    pub(super) applied: LogPosition,
    pub(super) window: RevisionWindow,
    pub(super) keys: Snapshot,
    pub(super) tail: Tail,
    pub(super) shared: Shared,
    pub(super) database: Database,
}

impl Visible {
    /// Everything that was applied is visible, and the database holds all of it.
    pub(super) fn new(state: &State, keys: Snapshot, database: Database) -> Self {
        Self {
            applied: state.applied,
            window: state.window(),
            keys,
            tail: Tail::default(),
            shared: state.shared.clone(),
            database,
        }
    }

    /// Adds the records of a batch whose keys are in the index's snapshot.
    pub(super) fn add(
        &mut self,
        applied: LogPosition,
        window: RevisionWindow,
        records: tail::RecordBatch,
        shared: Shared,
    ) {
        assert!(
            window.newest >= self.window.newest,
            "revisions do not go back"
        );
        (self.applied, self.window, self.shared) = (applied, window, shared);
        self.tail.push(records);
    }

    /// The database holds all records up to `through`: readers find them there from now on. Gives the tail as it was, for
    /// another thread to drop.
    pub(super) fn stored(&mut self, through: Revision) -> Tail {
        let before = self.tail.clone();
        self.tail.drop_through(Rev::new(through, u32::MAX));
        before
    }

    /// Publishes this state to `readers`.
    pub(super) fn publish(
        &self,
        storing: &Storing,
        readers: &latest::Sender<Arc<Published>>,
    ) -> Arc<Published> {
        let database = &self.database;
        let published = Arc::new(Published {
            view: View {
                window: self.window,
                keys: self.keys.clone(),
                tail: self.tail.clone(),
                stored: Arc::new(database.reader.clone()),
            },
            applied: self.applied,
            alarms: self.shared.alarms.clone(),
            members: self.shared.members.clone(),
            stored: database.reader.clone(),
            stored_through: storing.stored_through(),
            stored_applied: storing.stored_applied(),
            file_bytes: database.file_bytes,
            used_bytes: database.used_bytes,
        });
        readers.send_replace(published.clone());
        published
    }
}
