//! Checks every message between members against Raft's rules, before the network can lose it.
//!
//! - A member votes once in a term, and after it has voted or acknowledged entries in a term it sends nothing in an older one,
//!   even after a crash. So term and vote were durable before they were used.
//! - Log matching: an entry is identified by index and term; every sender sends it with the same bytes and predecessor.
//! - Leader completeness: once an entry was applied anywhere, no leader of a later term sends another one at its index.

use crate::trace::digest;
use quorate::internals::{
    raft::{Message, MessageBody},
    types::{LogIndex, LogPosition, MemberId, Term},
};
use std::collections::BTreeMap;

/// What the messages so far commit their senders to.
#[derive(Debug, Default)]
pub(crate) struct MessageRules {
    votes: BTreeMap<(MemberId, Term), MemberId>,
    bound: BTreeMap<MemberId, Term>,
    entries: BTreeMap<(LogIndex, Term), (Term, u64)>,
    /// Applied entries: their term, and the newest term of any message by then.
    applied: BTreeMap<LogIndex, (Term, Term)>,
    newest: Term,
    violations: Vec<String>,
}

impl MessageRules {
    /// Checks a message that a member sends.
    pub(crate) fn check(&mut self, from: MemberId, to: MemberId, message: &Message) {
        let term = message.term;
        self.newest = self.newest.max(term);
        let bound = self.bound.entry(from).or_default();
        if term < *bound {
            let (name, bound) = (message.body.name(), *bound);
            self.violation(format!(
                "{} says {name} in term {term} after it acted in {bound}",
                from.hex()
            ));
            return;
        }
        match &message.body {
            MessageBody::RequestVote { .. } => self.vote(from, term, from),
            MessageBody::Vote { granted: true } => self.vote(from, term, to),
            MessageBody::AppendReply { .. } => {
                self.bound.insert(from, term);
            }
            MessageBody::Append { prev, entries, .. } => {
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
            self.violation(format!(
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
            self.violation(format!(
                "{} sends another entry {id} than was sent before",
                from.hex()
            ));
        }
        if let Some((applied, spoken)) = self.applied.get(&id.index)
            && term > *spoken
            && id.term != *applied
        {
            self.violation(format!(
                "{} leads term {term} with {id}, where term {applied}'s entry was applied",
                from.hex()
            ));
        }
    }

    /// Records that some member has applied this entry.
    pub(crate) fn applied(&mut self, index: LogIndex, term: Term) {
        let newest = self.newest;
        self.applied.entry(index).or_insert((term, newest));
    }

    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// The messages that break a rule.
    pub(crate) fn violations(&self) -> &[String] {
        &self.violations
    }
}
