//! The same random requests by several users, with users, roles and permissions changing under them, against Quorate and a real
//! etcd: every answer, each error's code and text, and every revision must agree.
//!
//! `QUORATE_DIFF_OPS` steps from `SEED`, which a failure prints. Before them come fixed steps, so that every run makes each call
//! and gets each refusal of [`steps::REFUSALS`]. What differs on purpose is a [`Deliberate`] difference.

mod differences;
mod side;
mod steps;

use crate::support::{Difference, Kind, note};
use quorate::internals::api::proto::etcdserverpb as pb;
use side::Side;
use std::{
    collections::{BTreeMap, BTreeSet},
    env, mem,
};
use steps::{AUTH_CALLS, Generator, MARKED, REFUSALS, Step, Who};

const STEPS: usize = 2_500;
/// After so many steps authentication is brought on again, and open watches are compared.
const ROUND: usize = 100;
/// Watches that are open at each server.
const OPEN_MAX: usize = 8;

/// What Quorate does otherwise than etcd, as `docs/compat.md` says. Those of JWT, of tokens that outlive a restart, and of failed
/// logins have their tests in `jwt`, `auth` and `logins`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deliberate {
    /// A transaction without operations needs a user. The test of random steps allows it, and makes it happen.
    EmptyTransaction,
    /// A watch ends with its user's right. The test of random steps allows it, and makes it happen.
    EndOfWatch,
    /// A permission that a role has already, but not as the first with its key, is not stored a second time.
    TwinPermission,
    /// A candidate who may not read the queue leaves no key in it.
    CandidateWithoutRead,
    /// An observer who may not read the queue is told so.
    ObserverWithoutRead,
    /// A waiter who may not write its key any more gets no lock.
    WaiterWithoutWrite,
}

/// Both servers, and what has occurred.
struct Pair {
    ours: Side,
    theirs: Side,
    steps: BTreeSet<String>,
    refusals: BTreeMap<&'static str, usize>,
    differences: BTreeMap<Deliberate, usize>,
    /// How often an open watch was found to live.
    lived_on: usize,
}

impl Pair {
    async fn start() -> Self {
        let (ours, theirs) = tokio::join!(Side::start(Kind::Quorate), Side::start(Kind::Etcd));
        Self {
            ours,
            theirs,
            steps: BTreeSet::new(),
            refusals: BTreeMap::new(),
            differences: BTreeMap::new(),
            lived_on: 0,
        }
    }

    async fn answers(&mut self, who: Who, step: &Step) -> (String, String) {
        tokio::join!(self.ours.run(who, step), self.theirs.run(who, step))
    }

    /// Makes a step at both, whose answers must agree unless a difference explains them; gives ours.
    async fn same(&mut self, who: Who, step: &Step, at: &str) -> String {
        let (our, their) = self.answers(who, step).await;
        self.steps.insert(step.name());
        if our != their {
            let nobody = our == "InvalidArgument: etcdserver: user name is empty";
            let explained = step.is_empty_txn() && nobody && their.ends_with(" true []");
            assert!(
                explained,
                "{at}: {step:?} by {who:?}:\n  ours: {our}\ntheirs: {their}"
            );
            self.note(Deliberate::EmptyTransaction);
        }
        if let Some(refusal) = REFUSALS.iter().find(|refusal| our == **refusal) {
            *self.refusals.entry(*refusal).or_default() += 1;
        }
        our
    }

    async fn all_same(&mut self, steps: impl IntoIterator<Item = (Who, Step)>, at: &str) {
        for (who, step) in steps {
            self.same(who, &step, at).await;
        }
    }

    fn note(&mut self, difference: Deliberate) {
        *self.differences.entry(difference).or_default() += 1;
    }

    /// Compares what the open watches have seen. At etcd none has ended; those that have ended here saw the same until then.
    async fn compare_watches(&mut self, at: &str) {
        let put = pb::PutRequest {
            key: MARKED.into(),
            value: "mark".into(),
            ..Default::default()
        };
        let answer = self.same(Who::User("root"), &Step::Put(put), at).await;
        let through = revision_in(&answer);
        let ours = mem::take(&mut self.ours.watches);
        let theirs = mem::take(&mut self.theirs.watches);
        assert_eq!(ours.len(), theirs.len(), "{at}: they are opened together");
        for (mut our, mut their) in ours.into_iter().zip(theirs) {
            tokio::join!(our.follow(through), their.follow(through));
            assert_eq!(their.over, None, "{at}: etcd ends no watch");
            if let Some(reason) = &our.over {
                assert_eq!(reason, "etcdserver: permission denied", "{at}");
                let (ours, theirs) = (&our.seen, &their.seen);
                assert!(theirs.starts_with(ours), "{at}: {ours:?} {theirs:?}");
                self.note(Deliberate::EndOfWatch);
            } else {
                assert_eq!(our.seen, their.seen, "{at}");
                self.lived_on += 1;
                self.ours.watches.push(our);
                self.theirs.watches.push(their);
            }
        }
    }

    /// The steps that every run begins with.
    async fn begin(&mut self, at: &str) {
        self.all_same(steps::while_off(), at).await;
        self.all_same(steps::while_on(), at).await;
        self.compare_watches(at).await;
        let (lived_on, ended) = (self.lived_on, self.ended());
        assert_eq!((lived_on, ended), (2, 0), "{at}: no right was taken away");
        self.all_same(steps::taken_away(), at).await;
        self.compare_watches(at).await;
        let (lived_on, ended) = (self.lived_on, self.ended());
        assert_eq!((lived_on, ended), (3, 1), "{at}: one watch has ended");
        self.all_same(steps::removals(), at).await;
    }

    /// How many watches have ended here with a right.
    fn ended(&self) -> usize {
        let ended = self.differences.get(&Deliberate::EndOfWatch);
        ended.copied().unwrap_or_default()
    }
}

/// The revision in the header of an answer.
fn revision_in(answer: &str) -> i64 {
    let found = answer.split_once("revision: ").map(|(_, rest)| rest);
    let digits = found.and_then(|rest| rest.split(|byte: char| !byte.is_ascii_digit()).next());
    let number = digits.and_then(|digits| digits.parse().ok());
    number.unwrap_or_else(|| panic!("no revision in {answer}"))
}

/// Whether etcd has the rules of users that Quorate follows; otherwise that is printed.
fn comparable() -> bool {
    let old = Difference::RangeStream.in_etcd();
    if old {
        note("the rules of users are those of 3.7");
    }
    !old
}

#[tokio::test(flavor = "multi_thread")]
async fn users_get_what_etcd_gives_them() {
    if !comparable() {
        return;
    }
    let setting = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = setting("SEED").unwrap_or_else(|| fastrand::u64(..));
    let count = setting("QUORATE_DIFF_OPS").map_or(STEPS, |ops| usize::try_from(ops).unwrap());
    note(&format!("SEED={seed}"));
    let mut generator = Generator(fastrand::Rng::with_seed(seed));
    let mut pair = Pair::start().await;
    pair.begin("at the beginning").await;
    for number in 0..count {
        let at = format!("SEED={seed} step {number}");
        if number % ROUND == 0 {
            let root = if number == 0 {
                Who::Nobody
            } else {
                Who::User("root")
            };
            let revival = steps::revival().map(|step| (root, step));
            pair.all_same(revival, &at).await;
            pair.compare_watches(&at).await;
        }
        for (who, step) in generator.steps(i64::try_from(number).unwrap()) {
            let step = match step {
                Step::OpenWatch(range) if pair.ours.watches.len() >= OPEN_MAX => {
                    Step::Watch(range, 0)
                }
                step => step,
            };
            pair.same(who, &step, &at).await;
        }
    }
    let (refusals, differences) = (&pair.refusals, &pair.differences);
    note(&format!("{count} steps: {refusals:?}, {differences:?}"));
    for call in AUTH_CALLS {
        assert!(pair.steps.contains(call), "never {call}");
    }
    for refusal in REFUSALS {
        assert!(refusals.contains_key(refusal), "never {refusal:?}");
    }
    for difference in [Deliberate::EmptyTransaction, Deliberate::EndOfWatch] {
        assert!(differences.contains_key(&difference), "{difference:?}");
    }
}
