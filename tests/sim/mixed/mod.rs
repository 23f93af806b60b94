//! The workload that uses everything, and the checks of what its clients saw.
//!
//! | file | owns |
//! |---|---|
//! | `keys` | clients that read, write, delete, compare and compact |
//! | `convert` | conversions between the crate's types and the history's |
//! | `watchers` | clients that watch and resume; one of them records the true history |
//! | `past` | clients that read and watch old revisions, most of all on members that have just restarted |
//! | `heavy` | clients with large values, answers and transactions, cancelled requests and unread watches |
//! | `leases` | clients that hold leases, renew them, and let them expire |
//! | `users` | clients that log in, and an administrator who changes users, roles and permissions |
//! | `rights` | what users did, judged by the log |
//! | `observe` | checks of each member's published state, after each step |
//!
//! Every request is recorded with the times of its call and its return and its outcome, which is unknown if no answer came in
//! time. No client retries. After the run the recorded requests are checked against the true history (`tests/support/history`),
//! and so is each member's final state.

mod convert;
mod heavy;
mod keys;
mod leases;
mod observe;
mod past;
mod rights;
mod users;
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
use convert::{Response, ask, ask_and_cancel};
use quorate::internals::{Inspect, types::LeaseId};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};

/// Clients of keys.
const KEY_CLIENTS: u64 = 6;
/// Watchers besides the historian.
const WATCHERS: u64 = 3;
/// Clients of old revisions.
const PAST_CLIENTS: u64 = 2;
/// Clients with heavy requests.
const HEAVY_CLIENTS: u64 = 1;
/// A member counts as just restarted for so long.
const RESTARTED_MILLIS: u64 = 3_000;
/// The pause between two reads of a member's leases at the end.
const LEASE_LOOK_MILLIS: u64 = 100;
/// Clients of leases.
const LEASE_CLIENTS: u64 = 3;
/// How long a client waits for an answer: longer than a member's own timeout.
const PATIENCE_MILLIS: u64 = 8_000;
/// How long after the clients' end the leases may take to end, and the historian to be up to date.
const SETTLE_MILLIS: u64 = 40_000;

/// A member's final keys and leases.
type Final = (Slot, Response, Option<Arc<[LeaseId]>>);

/// State that all clients share; they run on one thread.
pub(crate) type Shared = Rc<RefCell<SharedState>>;

/// What the clients have sent and seen.
#[derive(Default)]
pub(crate) struct SharedState {
    pub(crate) ended: bool,
    recorder: Recorder,
    truth: Replay,
    next_value: u64,
    compacts_often: bool,
    watchers: Vec<watchers::Seen>,
    leases: leases::LeaseRecords,
    /// Which start of each machine served last, and since when, in milliseconds.
    served_since: BTreeMap<Slot, (u64, u64)>,
    users: users::Acts,
    /// The cluster began with one member.
    alone: bool,
    /// Errors of members that could not read a record they must have.
    unreadable: Vec<String>,
}

/// The workload.
#[derive(Default)]
pub(crate) struct Mixed {
    shared: Shared,
    observer: observe::Observer,
}

#[cfg(feature = "mutations")]
impl Mixed {
    /// A workload with several compactions a second.
    pub(crate) fn compacting() -> Self {
        let mixed = Self::default();
        mixed.shared.borrow_mut().compacts_often = true;
        mixed
    }

    /// A workload in which users and roles change many times a second.
    pub(crate) fn administered() -> Self {
        let mixed = Self::default();
        mixed.shared.borrow_mut().users.change_often();
        mixed
    }
}

impl Workload for Mixed {
    fn begin(&mut self, cluster: &mut Cluster) {
        let size = cluster.nodes.len();
        self.shared.borrow_mut().alone = size == 1;
        let context = |number| ClientContext {
            shared: self.shared.clone(),
            number,
            size,
        };
        let mut number = 0;
        let mut next = || {
            number += 1;
            context(number)
        };
        let historian = next();
        cluster.client(move |client| watchers::historian(client, historian));
        for _ in 0..KEY_CLIENTS {
            let context = next();
            cluster.client(move |client| keys::work(client, context));
        }
        let compactor = next();
        cluster.client(move |client| keys::compact(client, compactor));
        for _ in 0..WATCHERS {
            let context = next();
            cluster.client(move |client| watchers::watch(client, context));
        }
        for _ in 0..LEASE_CLIENTS {
            let context = next();
            cluster.client(move |client| leases::work(client, context));
        }
        for _ in 0..PAST_CLIENTS {
            let context = next();
            cluster.client(move |client| past::work(client, context));
        }
        for _ in 0..HEAVY_CLIENTS {
            let context = next();
            cluster.client(move |client| heavy::work(client, context));
        }
        let administrator = next();
        cluster.client(move |client| users::administer(client, administrator));
        for name in users::USERS {
            let context = next();
            cluster.client(move |client| users::work(client, context, name));
        }
    }

    fn watch(&mut self, cluster: &Cluster) {
        self.observer.look(cluster);
        let mut shared = self.shared.borrow_mut();
        shared.note_restarts(cluster);
        shared.users.applied(self.observer.applied());
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.shared.borrow_mut().ended = true;
        cluster.run(PATIENCE_MILLIS + 1_000);
        let shared = self.shared.clone();
        let settled = cluster.run_until(SETTLE_MILLIS, move |cluster| {
            let newest = cluster
                .requests(0)
                .map(|requests| requests.status().unwrap().revision.0);
            let shared = shared.borrow();
            shared.truth.newest() == newest.unwrap_or_default() && shared.leases.all_ended()
        });
        let shared = self.shared.borrow();
        assert!(
            settled,
            "leases that were not renewed, and did not end: {:?}; the watch is at {}",
            shared.leases.alive(),
            shared.truth.newest()
        );
    }

    fn judge(&mut self, cluster: &mut Cluster) {
        self.watch(cluster);
        self.shared.borrow_mut().explain_liveness();
        let shared = self.shared.borrow();
        assert!(shared.unreadable.is_empty(), "{:#?}", shared.unreadable);
        match check(shared.recorder.ops(), &shared.truth) {
            Ok(checked) => report(cluster, &checked),
            Err(violations) => {
                let shown: Vec<String> = violations.iter().map(ToString::to_string).collect();
                let first = shown.iter().take(5).cloned().collect::<Vec<_>>();
                panic!("{} violations:\n{}", shown.len(), first.join("\n"));
            }
        }
        for seen in &shared.watchers {
            seen.check(&shared.truth);
        }
        shared.leases.check();
        rights::judge(&shared, cluster);
        drop(shared);
        self.same_everywhere(cluster);
    }
}

fn report(cluster: &Cluster, checked: &Checked) {
    cluster.log_event(format_args!(
        "judged: {} acknowledged, {} failed, {} unknown of which {} happened, {} revisions",
        checked.acknowledged, checked.failed, checked.unknown, checked.happened, checked.newest
    ));
}

impl Mixed {
    /// Asserts that all members end with the same keys, compacted revision, leases and membership.
    fn same_everywhere(&self, cluster: &mut Cluster) {
        let size = cluster.nodes.len();
        let found: Rc<RefCell<Vec<Final>>> = Rc::default();
        for slot in 0..size {
            let found = found.clone();
            cluster.client(move |client| async move {
                let response = ask(&client, slot, 10_000, &convert::everything()).await;
                let leases = no_leases(&client, slot).await;
                found.borrow_mut().push((slot, response, leases));
            });
        }
        cluster.run_until(12_000 + SETTLE_MILLIS, |_| found.borrow().len() == size);
        let found = found.borrow();
        assert_eq!(found.len(), size, "every member answers");
        let shared = self.shared.borrow();
        for (slot, response, leases) in &*found {
            let Some((revision, kvs)) = response.everything() else {
                panic!(
                    "{} does not return its keys: {response:?}",
                    member(*slot).name
                );
            };
            if let Err(violation) = check_state(&shared.truth, *slot as u64 + 1, revision, kvs) {
                panic!("{violation}");
            }
            assert_eq!(
                leases.as_deref(),
                Some(&[][..]),
                "{} has leases that were not renewed, and did not end",
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

/// Waits until a member has no leases, and returns those it still has. A lease without keys may have been renewed just before the
/// clients ended, and members apply a lease's end at different times.
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

impl SharedState {
    fn note_restarts(&mut self, cluster: &Cluster) {
        for (slot, node) in cluster.nodes.iter().enumerate() {
            let known = self.served_since.get(&slot).map(|(start, _)| *start);
            if known != Some(node.starts) && cluster.requests(slot).is_some() {
                self.served_since.insert(slot, (node.starts, cluster.now));
            }
        }
    }

    /// Records the writes of the run itself, which test whether the cluster accepts any.
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

/// What a client needs besides its access to the nodes.
#[derive(Clone)]
pub(crate) struct ClientContext {
    pub(crate) shared: Shared,
    /// The client's number.
    pub(crate) number: u64,
    /// How many members the cluster began with.
    pub(crate) size: usize,
}

impl ClientContext {
    /// A random member.
    pub(crate) fn any(&self, client: &Client) -> Slot {
        usize::try_from(client.below(self.size as u64)).unwrap()
    }

    /// A random member among those that have just restarted; `None` if there are none.
    pub(crate) fn restarted(&self, client: &Client) -> Option<Slot> {
        let now = client.now() / 1_000;
        let shared = self.shared.borrow();
        let recent = shared
            .served_since
            .iter()
            .filter(|(_, (start, since))| *start > 1 && now < since + RESTARTED_MILLIS);
        let recent: Vec<Slot> = recent.map(|(slot, _)| *slot).collect();
        let drawn = client.below(recent.len() as u64);
        recent.get(usize::try_from(drawn).unwrap()).copied()
    }

    pub(crate) fn ended(&self) -> bool {
        self.shared.borrow().ended
    }

    /// A value that no client has written before.
    pub(crate) fn value(&self) -> bytes::Bytes {
        let mut shared = self.shared.borrow_mut();
        shared.next_value += 1;
        format!("{}.{}", self.number, shared.next_value).into()
    }

    /// The newest revision that the historian has seen.
    pub(crate) fn newest(&self) -> Revision {
        self.shared.borrow().truth.newest()
    }

    /// Sends a request to a random member, and records it and its outcome.
    pub(crate) async fn request(&self, client: &Client, request: Request) -> Outcome {
        self.request_at(client, self.any(client), request).await
    }

    /// Sends a request to this member, and records it and its outcome.
    pub(crate) async fn request_at(
        &self,
        client: &Client,
        slot: Slot,
        request: Request,
    ) -> Outcome {
        let id = self.called(client, request.clone());
        let response = ask(client, slot, PATIENCE_MILLIS, &request).await;
        self.returned(client, id, response)
    }

    /// Sends a request to this member, which cancels it after `millis`, and records it and its outcome.
    pub(crate) async fn cancelled(
        &self,
        client: &Client,
        slot: Slot,
        millis: u64,
        request: Request,
    ) -> Outcome {
        let id = self.called(client, request.clone());
        let response = ask_and_cancel(client, slot, PATIENCE_MILLIS, millis, &request).await;
        self.returned(client, id, response)
    }

    fn called(&self, client: &Client, request: Request) -> OpId {
        let mut shared = self.shared.borrow_mut();
        shared.recorder.call(self.number, 0, client.now(), request)
    }

    fn returned(&self, client: &Client, id: OpId, response: Response) -> Outcome {
        let result = match &response.outcome {
            Outcome::Done { revision, answer } => Some(Ok((*revision, answer.clone()))),
            Outcome::Failed(refusal) => Some(Err(format!("{refusal:?}"))),
            Outcome::Unknown => None,
        };
        // The number of the process that answered differs between runs of one seed: it is no part of the trace.
        client.note(result, drop);
        let mut shared = self.shared.borrow_mut();
        shared.unreadable.extend(response.unreadable);
        shared.recorder.answered_by(id, response.process);
        shared
            .recorder
            .returned(id, client.now(), response.outcome.clone());
        response.outcome
    }
}
