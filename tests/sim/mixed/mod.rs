//! The workload that uses everything, and the judgement of what its clients saw.
//!
//! | file | owns |
//! |---|---|
//! | `keys` | clients that read, write, delete, compare and compact |
//! | `convert` | requests and answers between the crate's terms and the history's |
//! | `watchers` | clients that watch, resume, and are told of progress; one of them writes down the true history |
//! | `past` | clients that read and watch old revisions, most of all on members that have just restarted |
//! | `leases` | clients that hold leases, renew them, and let them go |
//! | `observe` | what can be seen of consensus on each member, after each step |
//!
//! Every request is recorded with its call, its return and its outcome; what came back as nothing, and what timed out,
//! is unknown. Nobody retries. After the run the history is judged against the true one (`tests/support/history`), and so is the
//! state that each member ends with.

mod convert;
mod keys;
mod leases;
mod observe;
mod past;
mod watchers;

use crate::{
    clients::Client,
    cluster::{Cluster, member},
    history::{
        Checked, Event, OpId, Outcome, Put, Recorder, Replay, Request, Revision, check, check_state,
    },
    network::Slot,
    run::Workload,
};
use convert::{Told, ask};
use quorate::types::LeaseId;
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};

/// Clients of keys.
const KEY_CLIENTS: u64 = 6;
/// Watchers besides the historian.
const WATCHERS: u64 = 3;
/// Clients of old revisions.
const PAST_CLIENTS: u64 = 2;
/// A member counts as just restarted for so long.
const RESTARTED_MILLIS: u64 = 3_000;
/// The pause between two looks at a member's leases in the end.
const LEASE_LOOK_MILLIS: u64 = 100;
/// Clients of leases.
const LEASE_CLIENTS: u64 = 3;
/// How long a client waits for an answer: longer than a member takes to give up.
const PATIENCE_MILLIS: u64 = 8_000;
/// All leases must be gone, and all watchers up to date, within so long after the clients' end.
const SETTLE_MILLIS: u64 = 40_000;

/// What a member tells in the end: all keys, and all leases.
type Final = (Slot, Told, Option<Arc<[LeaseId]>>);

/// What all clients share: one thread runs them.
pub(crate) type Shared = Rc<RefCell<Board>>;

/// What was asked, told and seen.
#[derive(Default)]
pub(crate) struct Board {
    pub(crate) ended: bool,
    recorder: Recorder,
    truth: Replay,
    next_value: u64,
    compacts_often: bool,
    watchers: Vec<watchers::Seen>,
    leases: leases::Ledger,
    /// When each machine's newest process began to serve, and which of its starts that was.
    served_since: BTreeMap<Slot, (u64, u64)>,
    /// Members that could not read what they should hold.
    unreadable: Vec<String>,
}

/// The workload.
#[derive(Default)]
pub(crate) struct Mixed {
    board: Shared,
    observer: observe::Observer,
}

#[cfg(feature = "mutations")]
impl Mixed {
    /// With compactions several times a second.
    pub(crate) fn compacting() -> Self {
        let mixed = Self::default();
        mixed.board.borrow_mut().compacts_often = true;
        mixed
    }
}

impl Workload for Mixed {
    fn begin(&mut self, cluster: &mut Cluster) {
        let size = cluster.nodes.len();
        let crew = |number| Crew {
            board: self.board.clone(),
            number,
            size,
        };
        let mut number = 0;
        let mut next = || {
            number += 1;
            crew(number)
        };
        let historian = next();
        cluster.client(move |client| watchers::historian(client, historian));
        for _ in 0..KEY_CLIENTS {
            let crew = next();
            cluster.client(move |client| keys::work(client, crew));
        }
        let compactor = next();
        cluster.client(move |client| keys::compact(client, compactor));
        for _ in 0..WATCHERS {
            let crew = next();
            cluster.client(move |client| watchers::watch(client, crew));
        }
        for _ in 0..LEASE_CLIENTS {
            let crew = next();
            cluster.client(move |client| leases::work(client, crew));
        }
        for _ in 0..PAST_CLIENTS {
            let crew = next();
            cluster.client(move |client| past::work(client, crew));
        }
    }

    fn watch(&mut self, cluster: &Cluster) {
        self.observer.look(cluster);
        self.board.borrow_mut().note_restarts(cluster);
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.board.borrow_mut().ended = true;
        cluster.run(PATIENCE_MILLIS + 1_000);
        let board = self.board.clone();
        let settled = cluster.run_until(SETTLE_MILLIS, move |cluster| {
            let newest = cluster
                .requests(0)
                .map(|requests| requests.status().revision.0);
            let board = board.borrow();
            board.truth.newest() == newest.unwrap_or_default() && board.leases.all_ended()
        });
        let board = self.board.borrow();
        assert!(
            settled,
            "leases that nobody renews, and did not end: {:?}; the watch is at {}",
            board.leases.alive(),
            board.truth.newest()
        );
    }

    fn judge(&mut self, cluster: &mut Cluster) {
        self.observer.look(cluster);
        self.board.borrow_mut().explain_liveness();
        let board = self.board.borrow();
        assert!(board.unreadable.is_empty(), "{:#?}", board.unreadable);
        match check(board.recorder.ops(), &board.truth) {
            Ok(checked) => tell(cluster, &checked),
            Err(violations) => {
                let shown: Vec<String> = violations.iter().map(ToString::to_string).collect();
                let first = shown.iter().take(5).cloned().collect::<Vec<_>>();
                panic!("{} violations:\n{}", shown.len(), first.join("\n"));
            }
        }
        for seen in &board.watchers {
            seen.check(&board.truth);
        }
        board.leases.check();
        drop(board);
        self.same_everywhere(cluster);
    }
}

fn tell(cluster: &Cluster, checked: &Checked) {
    cluster.story(format_args!(
        "judged: {} acknowledged, {} failed, {} unknown of which {} happened, {} revisions",
        checked.acknowledged, checked.failed, checked.unknown, checked.happened, checked.newest
    ));
}

impl Mixed {
    /// All members end with the same keys, compacted revision, leases and membership.
    fn same_everywhere(&self, cluster: &mut Cluster) {
        let size = cluster.nodes.len();
        let found: Rc<RefCell<Vec<Final>>> = Rc::default();
        for slot in 0..size {
            let found = found.clone();
            cluster.client(move |client| async move {
                let told = ask(&client, slot, 10_000, &convert::everything()).await;
                let leases = no_leases(&client, slot).await;
                found.borrow_mut().push((slot, told, leases));
            });
        }
        cluster.run_until(12_000 + SETTLE_MILLIS, |_| found.borrow().len() == size);
        let found = found.borrow();
        assert_eq!(found.len(), size, "every member answers");
        let board = self.board.borrow();
        for (slot, told, leases) in &*found {
            let Some((revision, kvs)) = told.everything() else {
                panic!(
                    "{} does not tell what it holds: {told:?}",
                    member(*slot).name
                );
            };
            if let Err(violation) = check_state(&board.truth, *slot as u64 + 1, revision, kvs) {
                panic!("{violation}");
            }
            assert_eq!(
                leases.as_deref(),
                Some(&[][..]),
                "{} has leases that nobody renews, and did not end",
                member(*slot).name
            );
        }
        let state = |slot: Slot| {
            let requests = cluster.requests(slot).expect("every member runs");
            let published = requests.published();
            let members: Vec<_> = published.members.iter().map(|m| format!("{m:?}")).collect();
            (published.view.window, members, published.alarms.clone())
        };
        for slot in 1..size {
            assert_eq!(state(slot), state(0), "{} differs", member(slot).name);
        }
    }
}

/// A member's leases, once there are none, or the last look's. A lease whose keys never came may have been renewed a moment ago,
/// and a member may apply the end of one a moment after another.
async fn no_leases(client: &Client, slot: Slot) -> Option<Arc<[LeaseId]>> {
    let mut leases = None;
    for _ in 0..SETTLE_MILLIS / LEASE_LOOK_MILLIS {
        let look = client.call(slot, 1_000, |requests| async move {
            requests.leases().await.ok()
        });
        leases = look.await.flatten();
        if leases.as_ref().is_some_and(|leases| leases.is_empty()) {
            break;
        }
        client.pause(LEASE_LOOK_MILLIS).await;
    }
    leases
}

impl Board {
    fn note_restarts(&mut self, cluster: &Cluster) {
        for (slot, node) in cluster.nodes.iter().enumerate() {
            let known = self.served_since.get(&slot).map(|(start, _)| *start);
            if known != Some(node.starts) && cluster.requests(slot).is_some() {
                self.served_since.insert(slot, (node.starts, cluster.now));
            }
        }
    }

    /// The run itself has written, to see whether the cluster is alive.
    fn explain_liveness(&mut self) {
        for revision in 2..=self.truth.newest() {
            if let [Event::Put(kv)] = self.truth.events(revision)
                && kv.key.as_ref() == b"alive"
            {
                let put = Put {
                    key: kv.key.clone(),
                    value: kv.value.clone(),
                    ..Put::default()
                };
                self.recorder.call(0, 0, 0, Request::Put(put));
            }
        }
    }
}

/// What a client knows of the others.
#[derive(Clone)]
pub(crate) struct Crew {
    pub(crate) board: Shared,
    /// Who it is.
    pub(crate) number: u64,
    /// Members of the cluster.
    pub(crate) size: usize,
}

impl Crew {
    /// Some member.
    pub(crate) fn any(&self, client: &Client) -> Slot {
        usize::try_from(client.below(self.size as u64)).unwrap()
    }

    /// Some member that has restarted a moment ago, if there is one.
    pub(crate) fn restarted(&self, client: &Client) -> Option<Slot> {
        let now = client.now() / 1_000;
        let board = self.board.borrow();
        let recent = board
            .served_since
            .iter()
            .filter(|(_, (start, since))| *start > 1 && now < since + RESTARTED_MILLIS);
        let recent: Vec<Slot> = recent.map(|(slot, _)| *slot).collect();
        let drawn = client.below(recent.len() as u64);
        recent.get(usize::try_from(drawn).unwrap()).copied()
    }

    pub(crate) fn ended(&self) -> bool {
        self.board.borrow().ended
    }

    /// A value that nobody has written before.
    pub(crate) fn value(&self) -> bytes::Bytes {
        let mut board = self.board.borrow_mut();
        board.next_value += 1;
        format!("{}.{}", self.number, board.next_value).into()
    }

    /// The newest revision that the historian has seen.
    pub(crate) fn newest(&self) -> Revision {
        self.board.borrow().truth.newest()
    }

    /// Sends a recorded request to some member, and says how it ended.
    pub(crate) async fn request(&self, client: &Client, request: Request) -> Outcome {
        self.request_at(client, self.any(client), request).await
    }

    /// Sends a recorded request to this member, and says how it ended.
    pub(crate) async fn request_at(
        &self,
        client: &Client,
        slot: Slot,
        request: Request,
    ) -> Outcome {
        let id = self.called(client, request.clone());
        let told = ask(client, slot, PATIENCE_MILLIS, &request).await;
        self.returned(client, id, told)
    }

    fn called(&self, client: &Client, request: Request) -> OpId {
        let mut board = self.board.borrow_mut();
        board.recorder.call(self.number, 0, client.now(), request)
    }

    fn returned(&self, client: &Client, id: OpId, told: Told) -> Outcome {
        let result = match &told.outcome {
            Outcome::Done { revision, answer } => Some(Ok((*revision, answer.clone()))),
            Outcome::Failed(refusal) => Some(Err(format!("{refusal:?}"))),
            Outcome::Unknown => None,
        };
        // Which process answered is a number of this run of the program: it is no part of the trace.
        client.note(result, drop);
        let mut board = self.board.borrow_mut();
        board.unreadable.extend(told.unreadable);
        board.recorder.answered_by(id, told.process);
        board
            .recorder
            .returned(id, client.now(), told.outcome.clone());
        told.outcome
    }
}
