//! Checks every request against the true history.

use super::{
    explain::explain,
    model::{Answer, KeyValue, Refusal, Request, Revision, Txn, TxnOp},
    record::{Op, Outcome},
    replay::{LeaseEnd, Replay, branch},
    violation::Violation,
};
use std::collections::BTreeMap;

/// Figures of a history that passed, and the lease ends found in it.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) acknowledged: usize,
    /// Requests that were refused, or failed without effect.
    pub(crate) failed: usize,
    /// Requests with an unknown outcome, …
    pub(crate) unknown: usize,
    /// … and those of them that did something.
    pub(crate) happened: usize,
    pub(crate) newest: Revision,
    /// Leases that ended with their keys, other than by an acknowledged request.
    pub(crate) lease_ends: Vec<LeaseEnd>,
}

/// An acknowledged request and its place in the order of all.
#[derive(Clone, Copy)]
struct Placed<'a> {
    op: &'a Op,
    revision: Revision,
    /// Whether the revision is its own; a read is right after it.
    writes: bool,
}

/// Checks a history. All violations are given, in the order of the rules.
pub(crate) fn check(ops: &[Op], replay: &Replay) -> Result<Checked, Vec<Violation>> {
    let mut violations = Vec::new();
    let (placed, owners) = place(ops, replay, &mut violations);
    real_time(&placed, &mut violations);
    revisions_never_decrease(&placed, &mut violations);
    compactions(ops, &placed, &mut violations);
    refusals(ops, &placed, &mut violations);

    let unknown = |op: &&Op| op.outcome == Outcome::Unknown;
    let unknown: Vec<&Op> = ops.iter().filter(unknown).collect();
    let orphans: Vec<Revision> = (2..=replay.newest())
        .filter(|revision| !owners.contains_key(revision))
        .collect();
    let seen = first_seen(&placed, replay.newest());
    let explained = explain(replay, &orphans, &unknown, |revision| {
        seen[usize::try_from(revision).unwrap()]
    });
    let nobody = explained
        .unexplained
        .iter()
        .map(|&revision| Violation::Unexplained {
            revision,
            events: replay.events(revision).to_vec(),
        });
    violations.extend(nobody);
    if !violations.is_empty() {
        return Err(violations);
    }
    let failed = |op: &&Op| matches!(op.outcome, Outcome::Failed(_));
    Ok(Checked {
        acknowledged: placed.len(),
        failed: ops.iter().filter(failed).count(),
        unknown: unknown.len(),
        happened: explained.happened,
        newest: replay.newest(),
        lease_ends: explained.lease_ends,
    })
}

/// Checks what a member holds in the end: `found` are all its keys, in order.
pub(crate) fn check_state(
    replay: &Replay,
    member: u64,
    revision: Revision,
    found: &[KeyValue],
) -> Result<(), Violation> {
    if revision != replay.newest() {
        return Err(Violation::WrongRevision {
            member,
            expected: replay.newest(),
            found: revision,
        });
    }
    let expected = replay.state(revision);
    let differing =
        (0..expected.len().max(found.len())).find(|&at| expected.get(at) != found.get(at));
    match differing {
        None => Ok(()),
        Some(at) => Err(Violation::WrongState {
            member,
            expected: expected.get(at).cloned(),
            found: found.get(at).cloned(),
        }),
    }
}

/// Finds the place of each acknowledged request, and checks its effect and answer there.
fn place<'a>(
    ops: &'a [Op],
    replay: &Replay,
    violations: &mut Vec<Violation>,
) -> (Vec<Placed<'a>>, BTreeMap<Revision, &'a Op>) {
    let mut placed = Vec::new();
    let mut owners: BTreeMap<Revision, &Op> = BTreeMap::new();
    for op in ops {
        let Outcome::Done { revision, answer } = &op.outcome else {
            continue;
        };
        let revision = *revision;
        if revision > replay.newest() {
            let (op, newest) = (op.clone(), replay.newest());
            violations.push(Violation::Lost { op, newest });
            continue;
        }
        let (changes, as_write) = replay.run(&op.request, revision - 1);
        let found = replay.events(revision);
        let (leftover, as_read) = replay.run(&op.request, revision);
        let reads = leftover.is_empty() && as_read == *answer;
        let writes = !changes.is_empty() && changes == found && as_write == *answer;
        // The end of a lease says the same whether it deleted something or not.
        let writes = writes && !(reads && owners.contains_key(&revision));
        if writes {
            if let Some(first) = owners.insert(revision, op) {
                let ops = [first.clone(), op.clone()];
                violations.push(Violation::Reused { revision, ops });
            }
        } else if !reads {
            violations.push(wrong(
                op,
                answer,
                (changes, as_write),
                (leftover.is_empty(), as_read),
                found,
            ));
            continue;
        }
        placed.push(Placed {
            op,
            revision,
            writes,
        });
    }
    (placed, owners)
}

/// The violation of a request that fits neither as a write nor as a read.
fn wrong(
    op: &Op,
    answer: &Answer,
    write: (Vec<super::Event>, Answer),
    read: (bool, Answer),
    found: &[super::Event],
) -> Violation {
    let (expected, as_write) = write;
    let (reads, as_read) = read;
    let op = op.clone();
    if expected.is_empty() || reads && as_write != *answer {
        return Violation::WrongAnswer {
            op,
            expected: as_read,
        };
    }
    if expected == found {
        return Violation::WrongAnswer {
            op,
            expected: as_write,
        };
    }
    Violation::WrongEffect {
        op,
        expected,
        found: found.to_vec(),
    }
}

/// Whatever returned before a request was called has its place before it. Serializable reads may be behind.
fn real_time(placed: &[Placed<'_>], violations: &mut Vec<Violation>) {
    let mut floor: Option<Placed<'_>> = None;
    sweep(placed, |returned, called| match called {
        None => {
            if floor.is_none_or(|floor| returned.revision > floor.revision) {
                floor = Some(returned);
            }
        }
        Some(later) if !later.op.request.is_serializable() => {
            let Some(floor) = floor else { return };
            let in_order = if later.writes {
                floor.revision < later.revision
            } else {
                floor.revision <= later.revision
            };
            if !in_order {
                violations.push(Violation::Stale {
                    earlier: floor.op.clone(),
                    later: later.op.clone(),
                });
            }
        }
        Some(_) => {}
    });
}

/// The revisions that one member shows never decrease.
fn revisions_never_decrease(placed: &[Placed<'_>], violations: &mut Vec<Violation>) {
    let mut shown: BTreeMap<u64, Placed<'_>> = BTreeMap::new();
    sweep(placed, |returned, called| match called {
        None => {
            let newest = shown.entry(returned.op.member).or_insert(returned);
            if returned.revision > newest.revision {
                *newest = returned;
            }
        }
        Some(later) => {
            if let Some(earlier) = shown.get(&later.op.member)
                && earlier.revision > later.revision
            {
                violations.push(Violation::WentBack {
                    earlier: earlier.op.clone(),
                    later: later.op.clone(),
                });
            }
        }
    });
}

/// Goes through calls and returns by time: `visit(op, None)` for a return, `visit(op, Some(op))` for a call. Calls first where
/// times are equal, since equal times are no order.
fn sweep<'a>(placed: &[Placed<'a>], mut visit: impl FnMut(Placed<'a>, Option<Placed<'a>>)) {
    let mut by_call = placed.to_vec();
    let mut by_return = placed.to_vec();
    by_call.sort_by_key(|placed| placed.op.called);
    by_return.sort_by_key(|placed| placed.op.returned);
    let mut returns = by_return.into_iter().peekable();
    for call in by_call {
        while let Some(returned) = returns.next_if(|placed| placed.op.returned < call.op.called) {
            visit(returned, None);
        }
        visit(call, Some(call));
    }
}

/// For each revision, the time by which some answer had shown it or a later one.
fn first_seen(placed: &[Placed<'_>], newest: Revision) -> Vec<u64> {
    let mut seen = vec![u64::MAX; usize::try_from(newest).unwrap() + 1];
    for placed in placed {
        let at = &mut seen[usize::try_from(placed.revision.max(0)).unwrap()];
        *at = (*at).min(placed.op.returned);
    }
    for at in (1..seen.len()).rev() {
        seen[at - 1] = seen[at - 1].min(seen[at]);
    }
    seen
}

/// After an acknowledged compaction, older revisions are refused: to everyone who asks linearizably, and on the member that
/// acknowledged it to all.
fn compactions(ops: &[Op], placed: &[Placed<'_>], violations: &mut Vec<Violation>) {
    let done: Vec<(Revision, &Op)> = placed
        .iter()
        .filter_map(|placed| match placed.op.request {
            Request::Compact(revision) => Some((revision, placed.op)),
            _ => None,
        })
        .collect();
    for op in ops {
        let Outcome::Done { answer, .. } = &op.outcome else {
            continue;
        };
        let Some(oldest) = oldest_used(&op.request, answer) else {
            continue;
        };
        let given_up = |&&(revision, compaction): &&(Revision, &Op)| {
            let after = compaction.returned < op.called;
            let sees = !op.request.is_serializable() || compaction.member == op.member;
            // A compaction at the compacted revision itself is refused, a read there is not.
            let gone = match op.request {
                Request::Compact(_) => oldest <= revision,
                _ => oldest < revision,
            };
            after && sees && gone
        };
        if let Some((_, compaction)) = done.iter().find(given_up) {
            violations.push(Violation::ReadCompacted {
                op: op.clone(),
                compaction: (*compaction).clone(),
            });
        }
    }
}

/// The oldest revision that a request names and used: of a transaction, in the branches that ran.
fn oldest_used(request: &Request, answer: &Answer) -> Option<Revision> {
    fn of(txn: &Txn, answer: &Answer) -> Option<Revision> {
        let Answer::Txn { succeeded, answers } = answer else {
            return None;
        };
        let ops = branch(txn, *succeeded).iter().zip(answers);
        ops.filter_map(|(op, answer)| match op {
            TxnOp::Range(range) => (range.revision > 0).then_some(range.revision),
            TxnOp::Txn(inner) => of(inner, answer),
            TxnOp::Put(_) | TxnOp::DeleteRange(_) => None,
        })
        .min()
    }
    match request {
        Request::Range(range) => (range.revision > 0).then_some(range.revision),
        Request::Compact(revision) => Some(*revision),
        Request::Txn(txn) => of(txn, answer),
        Request::Put(_) | Request::DeleteRange(_) | Request::RevokeLease(_) => None,
    }
}

/// A refusal because of a compacted or a future revision must be justified.
fn refusals(ops: &[Op], placed: &[Placed<'_>], violations: &mut Vec<Violation>) {
    let compactions: Vec<(Revision, u64)> = ops
        .iter()
        .filter(|op| !matches!(op.outcome, Outcome::Failed(_)))
        .filter_map(|op| match op.request {
            Request::Compact(revision) => Some((revision, op.called)),
            _ => None,
        })
        .collect();
    for op in ops {
        let right = match op.outcome {
            Outcome::Failed(Refusal::Compacted) => {
                let mut asked = op.request.revisions_read();
                if let Request::Compact(revision) = op.request {
                    asked.push(revision - 1);
                }
                let gone = |asked: Revision| {
                    let mut all = compactions.iter();
                    all.any(|&(revision, called)| asked < revision && called <= op.returned)
                };
                asked.into_iter().any(gone)
            }
            Outcome::Failed(Refusal::Future) if !op.request.is_serializable() => {
                let mut asked = op.request.revisions_read();
                if let Request::Compact(revision) = op.request {
                    asked.push(revision);
                }
                let existed = |asked: Revision| {
                    let before = |placed: &Placed<'_>| {
                        placed.op.returned < op.called && placed.revision >= asked
                    };
                    placed.iter().any(before)
                };
                asked.into_iter().any(|asked| !existed(asked))
            }
            Outcome::Failed(_) | Outcome::Done { .. } | Outcome::Unknown => true,
        };
        if !right {
            violations.push(Violation::WronglyRefused { op: op.clone() });
        }
    }
}
