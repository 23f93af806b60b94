//! Whether the records of each key fit together, and whether one is missing.

use super::{
    error::{ItemFault, StoreError, shown},
    identity::KeyId,
    read::Store,
    record::Record,
    revision::Revision,
};
use crate::bolt::Source;
use std::collections::HashMap;

/// The newest record of a key that exists.
#[derive(Debug, Clone, Copy)]
struct Last {
    create: i64,
    version: i64,
}

/// What is known of the records so far.
#[derive(Debug)]
struct Histories {
    /// Up to here, records may have been removed.
    compacted: i64,
    previous: Revision,
    /// The keys that exist now.
    live: HashMap<KeyId, Last>,
}

impl<S: Source> Store<S> {
    /// Reads all records and verifies what each of them says about those before it: a version follows the one before, or is the
    /// first; only keys that exist are deleted; and since the last compaction no revision is missing.
    ///
    /// Up to the last compaction, records are missing by design, and a first visible record may say anything. In memory are 32
    /// bytes for each key that exists, whatever its length, in a hash table that is between 7/16 and 7/8 full: 38 to 76 bytes a
    /// key, and half as much again for a moment when the table grows.
    pub fn verify_histories(&self) -> Result<(), StoreError> {
        let mut histories = Histories {
            compacted: self.meta()?.compacted(),
            // etcd's first change has revision 2.
            previous: Revision { main: 1, sub: 0 },
            live: HashMap::new(),
        };
        for record in self.records()? {
            let record = record?;
            let checked = histories.next(&record);
            checked.map_err(|fault| record.error(fault))?;
        }
        Ok(())
    }
}

impl Histories {
    fn next(&mut self, record: &Record) -> Result<(), ItemFault> {
        let visible = record.main > self.compacted;
        if visible && !record.is_bump() {
            self.check_gap(record.revision())?;
        }
        self.previous = record.revision();
        if record.is_bump() {
            return Ok(());
        }
        let id = KeyId::of(&record.key_value.key);
        if record.tombstone {
            let deleted = self.live.remove(&id);
            if deleted.is_none() && visible {
                let key = shown(&record.key_value.key);
                return Err(ItemFault::NothingDeleted { key });
            }
            return Ok(());
        }
        let next = Last {
            create: record.key_value.create_revision,
            version: record.key_value.version,
        };
        check_put(self.live.insert(id, next), next, visible, record)
    }

    fn check_gap(&self, revision: Revision) -> Result<(), ItemFault> {
        let Revision { main, sub } = if self.previous.main == revision.main {
            Revision {
                main: revision.main,
                sub: self.previous.sub.saturating_add(1),
            }
        } else {
            Revision {
                main: self.previous.main.max(self.compacted) + 1,
                sub: 0,
            }
        };
        if revision != (Revision { main, sub }) {
            return Err(ItemFault::Gap { main, sub });
        }
        Ok(())
    }
}

fn check_put(
    last: Option<Last>,
    next: Last,
    visible: bool,
    record: &Record,
) -> Result<(), ItemFault> {
    let key = || shown(&record.key_value.key);
    match last {
        Some(last) if next.create != last.create || next.version - 1 != last.version => {
            Err(ItemFault::Succession {
                key: key(),
                version: next.version,
                create: next.create,
                last_version: last.version,
                last_create: last.create,
            })
        }
        None if visible && next.version != 1 => Err(ItemFault::NoPredecessor {
            key: key(),
            version: next.version,
        }),
        Some(_) | None => Ok(()),
    }
}
