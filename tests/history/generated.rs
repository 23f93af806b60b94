//! Random histories, checked twice: by the checker, and by a search through all orders that ignores revisions.
//!
//! The search is `todc-utils`'s implementation of Wing and Gong's algorithm with Lowe's memory. It needs time that is exponential
//! in the number of concurrent requests, so the histories are small; the checker must agree with it on each, good or bad.

use crate::history::{
    Answer, Compare, DeleteRange, Event, Op, Operand, Outcome, Put, Range, Recorder, Relation,
    Replay, Request, Revision, Txn, TxnOp, check,
};
use todc_utils::{
    linearizability::{
        WGLChecker,
        history::{Action, History},
    },
    specifications::Specification,
};

/// The store as the search sees it.
struct Store;

/// A request with its outcome, or the look at the whole store in the end.
#[derive(Clone, Debug)]
enum Step {
    Op(Box<Op>),
    End(Vec<Vec<Event>>),
}

impl Specification for Store {
    /// The events of each revision from 2 on.
    type State = Vec<Vec<Event>>;
    type Operation = Step;

    fn init() -> Self::State {
        Vec::new()
    }

    fn apply(step: &Step, state: &Self::State) -> (bool, Self::State) {
        let op = match step {
            Step::End(truth) => return (truth == state, state.clone()),
            Step::Op(op) => op,
        };
        let replay = Replay::new((2..).zip(state.iter().cloned())).expect("made by requests");
        let (events, answer) = replay.run(&op.request, replay.newest());
        let mut after = state.clone();
        if !events.is_empty() {
            after.push(events);
        }
        let now = Revision::try_from(after.len()).unwrap() + 1;
        let valid = match &op.outcome {
            Outcome::Done {
                revision,
                answer: said,
            } => *revision == now && *said == answer,
            Outcome::Unknown => true,
            Outcome::Failed(_) => unreachable!("left out: it has no effect"),
        };
        (valid, after)
    }
}

/// Whether the search finds an order.
fn searched(ops: &[Op], truth: &Replay) -> bool {
    let mut actions = Vec::new();
    let mut end = Vec::new();
    for (process, op) in ops.iter().enumerate() {
        let unknown = op.outcome == Outcome::Unknown;
        // Calls before returns at equal times.
        actions.push((
            (op.called, 0),
            (process, Action::Call(Step::Op(Box::new(op.clone())))),
        ));
        let returned = (process, Action::Response(Step::Op(Box::new(op.clone()))));
        if unknown {
            end.push(returned);
        } else {
            actions.push(((op.returned, 1), returned));
        }
    }
    actions.sort_by_key(|(at, _)| *at);
    let mut actions: Vec<_> = actions.into_iter().map(|(_, action)| action).collect();
    let all = (2..=truth.newest()).map(|revision| truth.events(revision).to_vec());
    let look = Step::End(all.collect());
    actions.push((ops.len(), Action::Call(look.clone())));
    actions.push((ops.len(), Action::Response(look)));
    actions.extend(end);
    WGLChecker::<Store>::is_linearizable(History::from_actions(actions))
}

const KEYS: [&str; 3] = ["a", "b", "c"];

fn key(random: &mut fastrand::Rng) -> bytes::Bytes {
    KEYS[random.usize(..KEYS.len())].into()
}

fn range(random: &mut fastrand::Rng) -> Range {
    let all = random.bool();
    Range {
        key: key(random),
        range_end: if all { b"\0".as_slice() } else { b"" }.into(),
        ..Range::default()
    }
}

fn put(random: &mut fastrand::Rng) -> Put {
    Put {
        key: key(random),
        // Few values: several requests can be the cause of one revision.
        value: ["1", "2"][random.usize(..2)].into(),
        prev_kv: random.bool(),
        ..Put::default()
    }
}

fn request(random: &mut fastrand::Rng) -> Request {
    match random.u8(..10) {
        0..3 => Request::Range(range(random)),
        3..7 => Request::Put(put(random)),
        7 => Request::DeleteRange(DeleteRange {
            key: key(random),
            ..DeleteRange::default()
        }),
        _ => Request::Txn(Txn {
            compares: vec![Compare {
                key: key(random),
                relation: Relation::Less,
                operand: Operand::Version(random.i64(1..3)),
            }],
            success: vec![
                TxnOp::Put(Put {
                    key: "a".into(),
                    ..put(random)
                }),
                TxnOp::Put(Put {
                    key: "b".into(),
                    ..put(random)
                }),
            ],
            failure: vec![TxnOp::Range(range(random))],
        }),
    }
}

/// A history that a real store could have given: each request happens at one instant between call and return.
fn good(random: &mut fastrand::Rng, count: usize) -> (Vec<Op>, Replay) {
    let mut instants = Vec::new();
    for n in 0..count {
        let at = random.u64(10..60);
        instants.push((at, n));
    }
    instants.sort_unstable();
    let (mut recorder, mut replay) = (Recorder::default(), Replay::default());
    for (at, n) in instants {
        let called = at - random.u64(0..10);
        let request = request(random);
        let id = recorder.call(n as u64, n as u64, called, request.clone());
        let lost = random.u8(..6);
        if lost == 0 {
            continue;
        }
        let (events, answer) = replay.run(&request, replay.newest());
        if !events.is_empty() {
            replay.push(replay.newest() + 1, events).unwrap();
        }
        if lost > 1 {
            let revision = replay.newest();
            let outcome = Outcome::Done { revision, answer };
            recorder.returned(id, at + random.u64(0..10), outcome);
        }
    }
    (recorder.ops().to_vec(), replay)
}

/// Changes something at random. Often, not always, that makes the history bad.
fn spoil(random: &mut fastrand::Rng, ops: &mut [Op], truth: &Replay) {
    let at = random.usize(..ops.len());
    let other = random.usize(..ops.len());
    match random.u8(..5) {
        0 => {
            let shift = random.u64(1..20);
            ops[at].called += shift;
            ops[at].returned = ops[at].returned.saturating_add(shift);
        }
        1 => {
            if let Outcome::Done { revision, answer } = &mut ops[at].outcome {
                *revision = random.i64(1..=truth.newest());
                if random.bool() {
                    *answer = truth.run(&ops[at].request, *revision).1;
                }
            }
        }
        2 => ops[at].outcome = ops[other].outcome.clone(),
        3 => ops[at].request = ops[other].request.clone(),
        _ => {
            if let Outcome::Done {
                answer: Answer::Range { kvs, .. },
                ..
            } = &mut ops[at].outcome
            {
                kvs.pop();
            }
        }
    }
    if ops[at].outcome == Outcome::Unknown {
        ops[at].returned = u64::MAX;
    } else if ops[at].returned == u64::MAX {
        ops[at].returned = ops[at].called + 5;
    }
}

#[test]
fn what_a_store_could_have_given_is_accepted() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (ops, truth) = good(&mut random, 60);
        if let Err(violations) = check(&ops, &truth) {
            panic!("seed {seed}: {}", violations[0]);
        }
    }
}

#[test]
fn the_checker_and_a_search_agree() {
    let (mut accepted, mut rejected) = (0, 0);
    for seed in 0..4_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let count = random.usize(2..9);
        let (mut ops, truth) = good(&mut random, count);
        for _ in 0..random.usize(..3) {
            spoil(&mut random, &mut ops, &truth);
        }
        let judged = check(&ops, &truth);
        let found = searched(&ops, &truth);
        assert_eq!(
            judged.is_ok(),
            found,
            "seed {seed}: {judged:#?}\n{ops:#?}\n{truth:#?}"
        );
        if found {
            accepted += 1;
        } else {
            rejected += 1;
        }
    }
    assert!(accepted > 1_000, "{accepted} accepted: too few");
    assert!(rejected > 1_000, "{rejected} rejected: too few");
}
