//! The entries that the applier applies together.

use super::{incoming::Prefetched, state::DecodedEntry};
use std::collections::VecDeque;

/// Entries that may depend on stored values and are applied without a pause. Before each of them up to thousands of values are
/// looked for, and one that keeps a value makes a record that is much longer than the entry.
pub(super) const READING_ENTRIES_MAX: usize = 16;

/// Entries that are applied together, in log order.
#[derive(Debug, Default)]
pub(super) struct IncomingBatch {
    pub(super) entries: VecDeque<DecodedEntry>,
    /// How many of them were such as may depend on stored values.
    pub(super) reading: usize,
    /// The stored values that were read for them.
    pub(super) values: Prefetched,
}

impl IncomingBatch {
    /// The batches that so many entries make: of those that may depend on stored values, each has [`READING_ENTRIES_MAX`].
    pub(super) fn of(entries: VecDeque<DecodedEntry>) -> Vec<Self> {
        let reading = entries.iter().filter(|entry| entry.reads_values).count();
        if reading <= READING_ENTRIES_MAX {
            return vec![Self {
                entries,
                reading,
                values: Prefetched::default(),
            }];
        }
        let mut batches = vec![Self::default()];
        for entry in entries {
            let is_full = |batch: &Self| entry.reads_values && batch.reading == READING_ENTRIES_MAX;
            if batches.last().is_none_or(is_full) {
                batches.push(Self::default());
            }
            if let Some(batch) = batches.last_mut() {
                batch.reading += usize::from(entry.reads_values);
                batch.entries.push_back(entry);
            }
        }
        batches
    }
}
