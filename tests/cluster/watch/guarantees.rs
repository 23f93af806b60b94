//! etcd's promises about watches, each as a check of the journal of one follower against the true history.

use super::{
    follow::{Journal, Note, modified},
    truth::{Change, History},
};
use bytes::Bytes;
use quorate::internals::api::proto::mvccpb::{Event, event::EventType};
use std::collections::BTreeSet;

fn responses(journal: &Journal) -> impl Iterator<Item = (i64, &Vec<Event>)> {
    journal.notes.iter().filter_map(|note| match note {
        Note::Events { header, events } => Some((*header, events)),
        Note::Opened { .. } | Note::Progress(_) | Note::Compacted(_) | Note::Broken => None,
    })
}

fn key(event: &Event) -> &Bytes {
    &event.kv.as_ref().expect("an event has its key").key
}

/// Events come in the order of their revisions, and a header is never behind its events.
pub(crate) fn ordered(journal: &Journal) {
    let mut last = 0;
    for (header, events) in responses(journal) {
        let of = |event: &Event| modified(event);
        assert!(events.is_sorted_by_key(of), "inside one response");
        let (first, end) = (of(&events[0]), of(&events[events.len() - 1]));
        assert!(first > last, "revision {first} after {last}");
        assert!(header >= end, "header {header}, event {end}");
        last = end;
    }
}

/// No change comes twice, whatever happened to the streams.
pub(crate) fn unique(journal: &Journal) {
    let mut seen = BTreeSet::new();
    for (_, events) in responses(journal) {
        for event in events {
            let (revision, key) = (modified(event), key(event));
            assert!(seen.insert((revision, key)), "{key:?} at {revision} again");
        }
    }
}

/// Nothing is missing, and each event is what happened. Only what a response called compacted is left out.
pub(crate) fn reliable(journal: &Journal, history: &History) {
    let mut next = journal.from;
    for note in &journal.notes {
        match note {
            Note::Events { events, .. } => {
                let last = modified(&events[events.len() - 1]);
                let happened = history.of(&journal.plan.range, next, last);
                let mut got: Vec<&Event> = events.iter().collect();
                got.sort_by_key(|event| (modified(event), key(event)));
                let owed: Vec<(i64, &Change)> = happened
                    .iter()
                    .flat_map(|(revision, changes)| changes.iter().map(|c| (*revision, *c)))
                    .collect();
                let places = |event: &&Event| (modified(event), key(event).clone());
                assert_eq!(
                    got.iter().map(places).collect::<Vec<_>>(),
                    owed.iter()
                        .map(|(at, c)| (*at, c.key.clone()))
                        .collect::<Vec<_>>(),
                    "from {next}"
                );
                for (event, (at, change)) in got.into_iter().zip(owed) {
                    same(event, at, change, journal.plan.prev_kv);
                }
                next = last + 1;
            }
            Note::Compacted(oldest) => next = *oldest,
            Note::Opened { .. } | Note::Progress(_) | Note::Broken => {}
        }
    }
    assert_eq!(next, history.read + 1, "the last write was seen");
}

fn same(event: &Event, at: i64, change: &Change, prev_kv: bool) {
    let kv = event.kv.as_ref().expect("an event has its key");
    if let Some(new) = &change.new {
        let got = (event.r#type(), kv);
        assert_eq!(got, (EventType::Put, new), "what was written at {at}");
    } else {
        let got = (event.r#type(), &kv.key, kv.mod_revision);
        assert_eq!(got, (EventType::Delete, &change.key, at), "a deletion");
        assert!(kv.value.is_empty() && kv.version == 0, "{kv:?}");
    }
    // The state before may be compacted by the time a watch that lags gets the event.
    let before = change.old.as_ref().filter(|_| prev_kv);
    if event.prev_kv.is_some() || !prev_kv {
        assert_eq!(event.prev_kv.as_ref(), before, "the state before {at}");
    }
}

/// A revision comes whole, in one response, in the order of its changes.
pub(crate) fn atomic(journal: &Journal, history: &History) {
    let mut seen = BTreeSet::new();
    for (_, events) in responses(journal) {
        for revision in events.chunk_by(|a, b| modified(a) == modified(b)) {
            let at = modified(&revision[0]);
            assert!(seen.insert(at), "revision {at} in two responses");
            let owed = history.of(&journal.plan.range, at, at);
            assert_eq!(revision.len(), owed[&at].len(), "all of revision {at}");
            // The writers number the puts of a transaction in their values.
            let puts = revision
                .iter()
                .filter(|event| event.r#type() == EventType::Put);
            let turns: Vec<u8> = puts.map(turn).collect();
            assert!(turns.is_sorted(), "{turns:?} in revision {at}");
        }
    }
}

/// Which put of its transaction this is: the first byte of the value.
fn turn(event: &Event) -> u8 {
    let kv = event.kv.as_ref().expect("an event has its key");
    *kv.value.first().expect("values are not empty")
}

/// A stream that goes on after the last seen revision begins with the very next change.
pub(crate) fn resumable(journal: &Journal, history: &History) {
    let mut notes = journal.notes.iter();
    while let Some(note) = notes.next() {
        let Note::Opened { from, at } = note else {
            continue;
        };
        let begun = notes
            .clone()
            .take_while(|note| !matches!(note, Note::Opened { .. }));
        let mut begun = begun.filter_map(|note| match note {
            Note::Events { events, .. } => Some(modified(&events[0])),
            Note::Opened { .. } | Note::Progress(_) | Note::Compacted(_) | Note::Broken => None,
        });
        let Some(first) = begun.next() else { continue };
        let owed = history.of(&journal.plan.range, *from, history.read);
        let owed = owed.keys().next().copied();
        assert_eq!(
            Some(first),
            owed,
            "the first from {from} on, at member {at}"
        );
    }
}

/// Before a bookmark everything up to it has come; after it, nothing.
pub(crate) fn bookmarkable(journal: &Journal, history: &History) {
    let (mut seen, mut passed) = (journal.from - 1, journal.from - 1);
    for note in &journal.notes {
        match note {
            Note::Events { events, .. } => {
                let first = modified(&events[0]);
                assert!(first > passed, "{first} comes after the bookmark {passed}");
                seen = modified(&events[events.len() - 1]);
            }
            Note::Progress(through) => {
                let owed = history.of(&journal.plan.range, seen + 1, *through);
                assert!(
                    owed.is_empty(),
                    "{owed:?} are missing at bookmark {through}"
                );
                passed = *through;
            }
            Note::Compacted(oldest) => seen = *oldest - 1,
            Note::Opened { .. } | Note::Broken => {}
        }
    }
}
