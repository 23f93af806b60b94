//! A cluster without random faults that a test controls step by step.

use crate::{
    cluster::{Cluster, ELECTION_MILLIS, member},
    network::Slot,
};
use quorate::internals::{
    Inspect,
    actors::{
        membership_change::{ChangeRefusal, MemberChange},
        requests::{RequestError, Requests},
    },
    kv::{
        command::{DeleteRange, Put, RangeQuery},
        record::KeyValue,
    },
    types::Revision,
};
use std::{cell::RefCell, rc::Rc};

/// The seeds that each scene is run with.
pub(crate) const SEEDS: std::ops::Range<u64> = 1..5;
/// The longest that any step may take, in milliseconds.
const WITHIN_MILLIS: u64 = 30_000;
/// The pause between two attempts.
const RETRY_MILLIS: u64 = 100;

/// A cluster that a test controls.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
}

impl Scene {
    /// A cluster with a leader.
    pub(crate) fn of(seed: u64, size: usize) -> Self {
        Self::formed(Cluster::new(seed, size, false))
    }

    /// As [`Scene::of`]; the members keep at most `entries` log entries for members that are away.
    pub(crate) fn with_short_log(seed: u64, size: usize, entries: u64) -> Self {
        Self::formed(Cluster::with_short_log(seed, size, entries))
    }

    fn formed(mut cluster: Cluster) -> Self {
        let serve = |cluster: &Cluster| {
            let mut slots = 0..cluster.nodes.len();
            cluster.leader().is_some() && slots.all(|slot| cluster.requests(slot).is_some())
        };
        assert!(
            cluster.run_until(WITHIN_MILLIS, serve),
            "the cluster does not form"
        );
        Self { cluster }
    }

    /// Waits for a leader.
    pub(crate) fn leader(&mut self) -> Slot {
        let led = |cluster: &Cluster| {
            cluster
                .leader()
                .is_some_and(|slot| cluster.is_running(slot))
        };
        assert!(
            self.cluster.run_until(WITHIN_MILLIS, led),
            "no member leads"
        );
        self.cluster.leader().unwrap()
    }

    /// Some member that does not lead.
    pub(crate) fn follower(&mut self) -> Slot {
        (self.leader() + 1) % self.cluster.nodes.len()
    }

    /// Sends a request to a member and runs the cluster until it answers; `None` if it takes longer than `millis`.
    pub(crate) fn ask<T, Asking>(
        &mut self,
        slot: Slot,
        millis: u64,
        ask: impl FnOnce(Requests) -> Asking + 'static,
    ) -> Option<T>
    where
        T: 'static,
        Asking: Future<Output = T> + 'static,
    {
        let answered: Rc<RefCell<Option<Option<T>>>> = Rc::default();
        let answer = answered.clone();
        self.cluster.client(move |client| async move {
            let result = client.call(slot, millis, ask).await;
            *answer.borrow_mut() = Some(result);
        });
        self.cluster
            .run_until(millis + RETRY_MILLIS, |_| answered.borrow().is_some());
        answered.take().flatten()
    }

    /// Sends a request to each of `slots` in turn until it succeeds. It may be carried out more than once.
    pub(crate) fn retry_until_ok<T, Asking>(
        &mut self,
        slots: &[Slot],
        ask: impl Fn(Requests) -> Asking + Clone + 'static,
    ) -> T
    where
        T: 'static,
        Asking: Future<Output = Result<T, RequestError>> + 'static,
    {
        let until = self.cluster.now + WITHIN_MILLIS;
        let mut refusals = Vec::new();
        while self.cluster.now < until {
            for slot in slots {
                match self.ask(*slot, 3 * ELECTION_MILLIS, ask.clone()) {
                    Some(Ok(answer)) => return answer,
                    Some(Err(error)) => refusals.push(error.to_string()),
                    None => refusals.push("no answer".to_owned()),
                }
                self.cluster.run(RETRY_MILLIS);
            }
        }
        panic!("none of {slots:?} does it: {:?}", refusals.last());
    }

    /// Writes a key through one of `slots`, perhaps more than once; returns the revision of the last write.
    pub(crate) fn put(&mut self, slots: &[Slot], key: &str, value: &str) -> Revision {
        let put = Put {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Put::default()
        };
        self.retry_until_ok(slots, move |requests| {
            let put = put.clone();
            async move { requests.put(put).await.map(|done| done.revision) }
        })
    }

    /// Deletes a key.
    pub(crate) fn delete(&mut self, slots: &[Slot], key: &str) -> Revision {
        let delete = DeleteRange {
            key: key.to_owned().into(),
            ..DeleteRange::default()
        };
        self.retry_until_ok(slots, move |requests| {
            let delete = delete.clone();
            async move {
                requests
                    .delete_range(delete)
                    .await
                    .map(|done| done.revision)
            }
        })
    }

    /// A key's value, read linearizably at one of `slots`.
    pub(crate) fn get(&mut self, slots: &[Slot], key: &str) -> Option<String> {
        let query = of(key);
        let found = self.retry_until_ok(slots, move |requests| {
            let query = query.clone();
            async move { requests.range(query).await.map(|done| done.kvs) }
        });
        found.first().map(|kv| {
            let kv = KeyValue::decode(kv).unwrap();
            String::from_utf8(kv.value.to_vec()).unwrap()
        })
    }

    /// Asserts that all members apply the same entries and hold the same history, revisions and membership.
    pub(crate) fn same_everywhere(&mut self) {
        let even = |cluster: &Cluster| {
            let applied = (0..cluster.nodes.len()).map(|slot| {
                let status = cluster.requests(slot)?.status().ok()?;
                (status.commit == status.applied).then_some(status.applied)
            });
            let applied: std::collections::BTreeSet<_> = applied.collect();
            applied.len() == 1 && !applied.contains(&None)
        };
        assert!(
            self.cluster.run_until(WITHIN_MILLIS, even),
            "the members do not come to the same applied entry"
        );
        // A member may still be publishing its name: then their states are compared again.
        let until = self.cluster.now + WITHIN_MILLIS;
        loop {
            let slots = 0..self.cluster.nodes.len();
            let states: Vec<String> = slots.map(|slot| self.state(slot)).collect();
            if states.iter().all(|state| *state == states[0]) {
                return;
            }
            assert!(self.cluster.now < until, "the members differ: {states:#?}");
            self.cluster.run(ELECTION_MILLIS);
        }
    }

    fn state(&mut self, slot: Slot) -> String {
        let hash = self.ask(slot, WITHIN_MILLIS, |requests| async move {
            requests.hash_kv(Revision(0)).await.ok()
        });
        let requests = self.cluster.requests(slot).expect("every member runs");
        let published = requests.published();
        let members: Vec<String> = published.members.iter().map(|m| format!("{m:?}")).collect();
        let window = published.view.window;
        assert!(
            hash.flatten().is_some(),
            "{} has no hash",
            member(slot).name
        );
        format!("{hash:?} {window:?} {members:?}")
    }

    /// Cuts all links between a member and the others, or restores them. Clients still reach it.
    pub(crate) fn isolate(&mut self, slot: Slot, cut: bool) {
        for other in (0..self.cluster.nodes.len()).filter(|other| *other != slot) {
            let mut network = self.cluster.network.borrow_mut();
            network.cut(slot, other, cut);
            network.cut(other, slot, cut);
        }
    }

    /// Asks the leader once to transfer leadership; it may fail.
    pub(crate) fn move_leader(&mut self, to: Slot) {
        let leader = self.leader();
        let to = self.cluster.requests(to).unwrap().identity().member;
        let moved = self.ask(leader, 3_000, move |requests| async move {
            requests.move_leader(to).await.is_ok()
        });
        moved.unwrap_or_default();
    }

    /// Transfers leadership until this member has it.
    pub(crate) fn lead_with(&mut self, slot: Slot) {
        let until = self.cluster.now + WITHIN_MILLIS;
        while self.leader() != slot {
            assert!(
                self.cluster.now < until,
                "{} never leads",
                member(slot).name
            );
            self.move_leader(slot);
        }
    }

    /// Adds a learner on a new machine, starts it there, and promotes it: that works while a minority is away.
    pub(crate) fn add_member(&mut self, through: &[Slot]) -> Slot {
        let slot = self.cluster.add_machine();
        let url = format!("http://{}", member(slot).peer);
        self.add(through, slot, true);
        self.cluster.nodes[slot].vacant = false;
        self.cluster.start(slot);
        self.retry_until_ok(through, move |requests| {
            let url = url.clone();
            async move {
                let members = requests.members(true).await?;
                let added = members.iter().find(|one| one.info.peer_urls.contains(&url));
                let added = added.ok_or(RequestError::TimedOut)?;
                if added.learner {
                    let promote = MemberChange::Promote { id: added.id };
                    requests.change_membership(promote).await?;
                }
                Ok(())
            }
        });
        slot
    }

    /// Adds a machine's member to the membership.
    pub(crate) fn add(&mut self, through: &[Slot], slot: Slot, learner: bool) {
        let url = format!("http://{}", member(slot).peer);
        self.retry_until_ok(through, move |requests| {
            let change = MemberChange::Add {
                peer_urls: vec![url.clone()],
                learner,
            };
            async move {
                match requests.change_membership(change).await {
                    // The answer to an earlier attempt was lost.
                    Ok(_) | Err(RequestError::Change(ChangeRefusal::UrlsExist)) => Ok(()),
                    Err(error) => Err(error),
                }
            }
        });
    }

    /// Starts all members that do not run, and waits until all serve.
    pub(crate) fn start_all(&mut self) {
        for slot in 0..self.cluster.nodes.len() {
            if !self.cluster.has_process(slot) {
                self.cluster.start(slot);
            }
        }
        let serve = |cluster: &Cluster| {
            (0..cluster.nodes.len()).all(|slot| cluster.requests(slot).is_some())
        };
        assert!(
            self.cluster.run_until(WITHIN_MILLIS, serve),
            "not every member comes back: {:?}",
            self.stop_reasons()
        );
    }

    /// Why members stopped by themselves.
    pub(crate) fn stop_reasons(&self) -> Vec<String> {
        let nodes = self.cluster.nodes.iter();
        nodes.filter_map(|node| node.stopped.clone()).collect()
    }
}

/// A linearizable read of one key.
pub(crate) fn of(key: &str) -> RangeQuery {
    RangeQuery {
        key: key.to_owned().into(),
        ..RangeQuery::default()
    }
}
