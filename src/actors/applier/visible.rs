//! What readers see: the state after the newest published batch.
//!
//! Invariants: `keys` and `tail` hold every change up to `window.newest`; every record that `keys` names is in `tail` or in
//! `stored`, or in both.

use super::{
    super::{latest, published::Published},
    state::{AppliedState, Shared},
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
    pub(super) fn new(state: &AppliedState, keys: Snapshot, database: Database) -> Self {
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
        let published = Arc::new(self.published(storing));
        readers.send_replace(published.clone());
        published
    }

    fn published(&self, storing: &Storing) -> Published {
        let database = &self.database;
        Published {
            view: View {
                window: self.window,
                keys: self.keys.clone(),
                tail: self.tail.clone(),
                stored: Arc::new(database.reader.clone()),
            },
            applied: self.applied,
            alarms: self.shared.alarms.clone(),
            members: self.shared.members.clone(),
            auth: self.shared.auth.clone(),
            hash: self.shared.hash,
            stored: database.reader.clone(),
            stored_through: storing.stored_through(),
            stored_applied: storing.stored_applied(),
            file_bytes: database.file_bytes,
            used_bytes: database.used_bytes,
            unstored_bytes: storing.waiting_record_bytes() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            storing::CommitPacing,
            testing::{at, database, record, rev},
        },
        *,
    };
    use crate::{
        actors::members::Members,
        kv::{
            index::Index,
            machine::{LoadedState, Machine},
        },
        types::LogIndex,
    };
    use std::time::Duration;

    fn state() -> AppliedState {
        let machine = Machine::new(LoadedState::default(), Index::new().snapshot());
        let members = Arc::new(Members::default());
        AppliedState::new(machine, at(1), members, Revision::NEVER_COMPACTED)
    }

    fn visible(state: &AppliedState) -> Visible {
        Visible::new(state, Index::new().snapshot(), database(&[]).1)
    }

    fn window(newest: i64) -> RevisionWindow {
        RevisionWindow {
            newest: Revision(newest),
            compacted: Revision::NEVER_COMPACTED,
        }
    }

    /// Adds a batch with one record at each of the revisions.
    fn add(visible: &mut Visible, state: &AppliedState, index: u64, majors: std::ops::Range<i64>) {
        let newest = majors.end - 1;
        let records = majors.map(|major| record(major, "v")).collect();
        visible.add(at(index), window(newest), records, state.shared.clone());
    }

    #[test]
    fn records_stay_in_the_tail_until_the_database_has_them() {
        let state = state();
        let mut visible = visible(&state);
        assert!(
            visible.tail.is_empty(),
            "the database holds the first state"
        );
        add(&mut visible, &state, 2, 2..4);
        add(&mut visible, &state, 3, 4..6);
        assert_eq!((visible.applied, visible.window), (at(3), window(5)));
        let before = visible.stored(Revision(3));
        assert_eq!(before.iter().count(), 4, "all of it, for another thread");
        let left: Vec<Rev> = visible.tail.iter().map(|record| record.rev).collect();
        assert_eq!(left, [rev(4), rev(5)]);
        visible.stored(Revision(5));
        assert!(visible.tail.is_empty());
    }

    #[test]
    #[should_panic(expected = "batches are committed whole")]
    fn the_database_never_holds_part_of_a_batch() {
        let state = state();
        let mut visible = visible(&state);
        add(&mut visible, &state, 2, 2..4);
        visible.stored(Revision(2));
    }

    #[test]
    #[should_panic(expected = "revisions do not go back")]
    fn readers_never_see_an_older_state() {
        let state = state();
        let mut visible = visible(&state);
        add(&mut visible, &state, 2, 2..4);
        let shared = state.shared.clone();
        visible.add(at(3), window(2), Vec::new().into(), shared);
    }

    #[test]
    fn a_published_state_does_not_change() {
        let state = state();
        let mut visible = visible(&state);
        let pacing = CommitPacing {
            interval: Duration::from_secs(1),
            records_max: 1,
            bytes_max: 1,
        };
        let storing = Storing::new(pacing, at(1), LogIndex(0), Revision(1));
        let first = Arc::new(visible.published(&storing));
        let (readers, newest) = latest::channel(first.clone());
        add(&mut visible, &state, 2, 2..4);
        assert_eq!(newest.borrow().applied, at(1), "not before it is published");
        let second = visible.publish(&storing, &readers);
        assert!(Arc::ptr_eq(&newest.borrow(), &second));
        visible.stored(Revision(3));
        let counts = [&first, &second].map(|published| published.view.tail.iter().count());
        assert_eq!(counts, [0, 2], "each has the records of its own time");
        assert_eq!(second.applied, at(2));
        assert_eq!(
            (second.stored_through, second.stored_applied),
            (Revision(1), LogIndex(1)),
            "what the database holds"
        );
        assert_eq!((second.file_bytes, second.used_bytes), (3, 2));
    }
}
