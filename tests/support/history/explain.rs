//! Finds which requests with unknown outcomes may have caused the revisions that no acknowledged request has.
//!
//! A request with an unknown outcome causes one revision at most, and only if running it there gives exactly its events, and only
//! if it was called before anybody saw that revision. Which request caused which revision is a matching: found with
//! augmenting paths, so a wrong first guess does not lead to a false alarm.

use super::{
    model::Revision,
    record::Op,
    replay::{LeaseEnd, Replay},
};
use std::collections::BTreeMap;

/// Which causes were found.
#[derive(Debug, Default)]
pub(crate) struct Explained {
    /// Unknown requests that happened.
    pub(crate) happened: usize,
    pub(crate) lease_ends: Vec<LeaseEnd>,
    /// Revisions that nothing explains.
    pub(crate) unexplained: Vec<Revision>,
}

/// Explains `orphans` by `unknown` requests and ends of leases. `seen` gives the time by which a revision had been seen.
pub(crate) fn explain(
    replay: &Replay,
    orphans: &[Revision],
    unknown: &[&Op],
    seen: impl Fn(Revision) -> u64,
) -> Explained {
    let mut explained = Explained::default();
    let mut candidates = BTreeMap::new();
    for &revision in orphans {
        let events = replay.events(revision);
        let fits = |op: &&Op| {
            op.called <= seen(revision) && replay.run(&op.request, revision - 1).0 == events
        };
        let fitting = unknown.iter().enumerate().filter(|(_, op)| fits(op));
        let fitting: Vec<usize> = fitting.map(|(at, _)| at).collect();
        if let Some(lease) = replay.lease_ended_at(revision) {
            explained.lease_ends.push(LeaseEnd {
                lease,
                revision,
                certain: fitting.is_empty(),
            });
        } else {
            candidates.insert(revision, fitting);
        }
    }
    let mut cause = BTreeMap::new();
    for &revision in candidates.keys() {
        let mut tried = vec![false; unknown.len()];
        if augment(revision, &candidates, &mut cause, &mut tried) {
            explained.happened += 1;
        } else {
            explained.unexplained.push(revision);
        }
    }
    explained
}

/// Finds a request for `revision`, if need be by finding another one for the revision that has it now.
fn augment(
    revision: Revision,
    candidates: &BTreeMap<Revision, Vec<usize>>,
    cause: &mut BTreeMap<usize, Revision>,
    tried: &mut [bool],
) -> bool {
    for &op in &candidates[&revision] {
        if std::mem::replace(&mut tried[op], true) {
            continue;
        }
        let holder = cause.get(&op).copied();
        if holder.is_none_or(|holder| augment(holder, candidates, cause, tried)) {
            cause.insert(op, revision);
            return true;
        }
    }
    false
}
