//! What members say to each other, held against what Raft allows them to say. All of it is heard before the network loses any.
//!
//! - A term's vote is given once, over all lives of a member, and so is a term itself: whoever has voted or acknowledged entries
//!   in a term speaks in no older one, even after a crash. So both were durable before they were used.
//! - Log matching: an entry is told apart by index and term; whoever sends it sends the same bytes behind the same predecessor.
//! - Leader completeness: once an entry was applied anywhere, no leader of a later term sends another one at its index.

use crate::trace::digest;
use quorate::{
    raft::{Body, Message},
    types::{LogIndex, LogPosition, MemberId, Term},
};
use std::collections::BTreeMap;

/// What was said so far, as far as it binds.
#[derive(Debug, Default)]
pub(crate) struct Spoken {
    votes: BTreeMap<(MemberId, Term), MemberId>,
    bound: BTreeMap<MemberId, Term>,
    entries: BTreeMap<(LogIndex, Term), (Term, u64)>,
    /// Applied entries: their term, and the newest term anybody had spoken in by then.
    applied: BTreeMap<LogIndex, (Term, Term)>,
    newest: Term,
    lies: Vec<String>,
}

impl Spoken {
    /// A member says something.
    pub(crate) fn hear(&mut self, from: MemberId, to: MemberId, message: &Message) {
        let term = message.term;
        self.newest = self.newest.max(term);
        let bound = self.bound.entry(from).or_default();
        if term < *bound {
            let (name, bound) = (message.body.name(), *bound);
            self.lie(format!(
                "{} says {name} in term {term} after it acted in {bound}",
                from.hex()
            ));
            return;
        }
        match &message.body {
            Body::RequestVote { .. } => self.vote(from, term, from),
            Body::Vote { granted: true } => self.vote(from, term, to),
            Body::AppendReply { .. } => {
                self.bound.insert(from, term);
            }
            Body::Append { prev, entries, .. } => {
                let mut before = *prev;
                for entry in entries {
                    let known = (before.term, digest(&entry.data));
                    self.entry(from, term, entry.position(), known);
                    before = entry.position();
                }
            }
            _ => {}
        }
    }

    fn vote(&mut self, from: MemberId, term: Term, candidate: MemberId) {
        self.bound.insert(from, term);
        let given = *self.votes.entry((from, term)).or_insert(candidate);
        if given != candidate {
            self.lie(format!(
                "{} votes for {} in term {term}, after {}",
                from.hex(),
                candidate.hex(),
                given.hex()
            ));
        }
    }

    fn entry(&mut self, from: MemberId, term: Term, id: LogPosition, known: (Term, u64)) {
        let first = *self.entries.entry((id.index, id.term)).or_insert(known);
        if first != known {
            self.lie(format!(
                "{} sends another entry {id} than was sent before",
                from.hex()
            ));
        }
        if let Some((applied, spoken)) = self.applied.get(&id.index)
            && term > *spoken
            && id.term != *applied
        {
            self.lie(format!(
                "{} leads term {term} with {id}, where term {applied}'s entry was applied",
                from.hex()
            ));
        }
    }

    /// Some member has applied this entry.
    pub(crate) fn applied(&mut self, index: LogIndex, term: Term) {
        let newest = self.newest;
        self.applied.entry(index).or_insert((term, newest));
    }

    fn lie(&mut self, what: String) {
        self.lies.push(what);
    }

    /// What should not have been said.
    pub(crate) fn lies(&self) -> &[String] {
        &self.lies
    }
}
