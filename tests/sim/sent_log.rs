//! Every log entry that a member sent to another, so that the log that was committed can be read in the end.
//!
//! Index and term identify an entry, and by log matching also all entries before it. An entry of a cluster of several members is
//! committed only after it was sent.

use bytes::Bytes;
use quorate::internals::types::{Entry, EntryKind, LogIndex, LogPosition, Term};
use std::collections::BTreeMap;

/// An entry, and the term of the one before it.
#[derive(Debug)]
struct Sent {
    before: Term,
    kind: EntryKind,
    data: Bytes,
}

/// All entries that were sent.
#[derive(Debug, Default)]
pub(crate) struct SentLog {
    entries: BTreeMap<(LogIndex, Term), Sent>,
}

/// An entry of the committed log.
#[derive(Debug)]
pub(crate) struct Committed<'a> {
    pub(crate) index: LogIndex,
    pub(crate) kind: EntryKind,
    pub(crate) data: &'a Bytes,
}

impl SentLog {
    /// Notes entries that follow `prev`.
    pub(crate) fn note(&mut self, prev: LogPosition, entries: &[Entry]) {
        let mut before = prev.term;
        for entry in entries {
            let sent = || Sent {
                before,
                kind: entry.kind,
                data: entry.data.clone(),
            };
            self.entries
                .entry((entry.index, entry.term))
                .or_insert_with(sent);
            before = entry.term;
        }
    }

    /// The log that ends with the entry at `last`, ascending: as far back as it was sent without a gap.
    pub(crate) fn through(&self, last: LogPosition) -> Vec<Committed<'_>> {
        let mut log = Vec::new();
        let (mut index, mut term) = (last.index, last.term);
        while let Some(sent) = self.entries.get(&(index, term)) {
            log.push(Committed {
                index,
                kind: sent.kind,
                data: &sent.data,
            });
            (index, term) = (LogIndex(index.0.saturating_sub(1)), sent.before);
        }
        log.reverse();
        log
    }
}
