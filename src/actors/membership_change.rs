//! Changes of the membership that clients ask for, and the leader's checks on them.
//!
//! Consensus accepts any change of one member that leaves a voter. The rules here protect an operator from mistakes:
//! addresses are unique, learners are few, and after a change the voters must have a quorum of members that are certainly
//! running (etcd's strict reconfiguration check). A new voter begins as a learner and is promoted automatically once it runs
//! and has caught up, so no quorum ever depends on a machine that has never been connected. The leader judges a change by the
//! membership in force, so two changes cannot both pass.
//!
//! Only members that certainly run are counted: see [`ClusterState::healthy`]. A member about which that is not certain counts as
//! down, and one that is removed does not count at all. So neither a member that was just killed nor one that has just
//! come back can make a change pass that leaves the cluster without a quorum.

use super::members::{MemberInfo, Members, id_of, is_peer_url, url_address};
use crate::{
    clock,
    raft::{Membership, MembershipChange},
    types::MemberId,
};
use bincode::{Decode, Encode};
use std::collections::BTreeSet;

/// Learners that a cluster may have, as etcd's default.
const LEARNERS_MAX: usize = 1;

/// Addresses of one member.
const URLS_MAX: usize = 16;

/// A change of the membership that a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MemberChange {
    /// Adds a member that has not started yet.
    Add {
        /// Where the others will reach it.
        peer_urls: Vec<String>,
        /// It stays without a vote until it is promoted.
        learner: bool,
    },
    /// Makes a learner a voter, if it has caught up.
    Promote { id: MemberId },
    /// Removes a member for good.
    Remove { id: MemberId },
    /// Changes a member's peer URLs.
    Move {
        id: MemberId,
        /// Where the others reach it from now on.
        peer_urls: Vec<String>,
    },
    /// Publishes the name and client URLs of a member that has started.
    Publish {
        /// The member, which asks for this itself.
        id: MemberId,
        name: String,
        /// Where clients reach it.
        client_urls: Vec<String>,
    },
}

/// Why the membership was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Encode, Decode)]
pub enum ChangeRefusal {
    /// There are no URLs, or one is not `http` or `https` with a host and a port.
    #[error("given member URLs are invalid")]
    BadUrls,
    /// Another member has that address.
    #[error("peer URLs already exist")]
    UrlsExist,
    /// There is no such member.
    #[error("member not found")]
    NotFound,
    /// The member is a voter already.
    #[error("can only promote a learner member")]
    NotLearner,
    /// The learner has not started, or its log is behind. Try again when it has caught up.
    #[error("can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    /// The maximum number of learners is reached.
    #[error("too many learner members in cluster")]
    TooManyLearners,
    /// Too few of the voters have ever started to form a quorum after the change.
    #[error("re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    /// Too few voters certainly run to form a quorum after the change.
    #[error("unhealthy cluster")]
    Unhealthy,
    /// This member does not lead, and there is no known leader or no connection to it.
    #[error("not leader")]
    NotLeader,
    /// It was not committed in time; it may be committed later.
    #[error("request timed out")]
    TimedOut,
    /// No more members are possible.
    #[error("the cluster has as many members as it may have")]
    TooMany,
    /// This member has no peer port, so no other member can join it.
    #[error("this member has no certificates for peers and cannot be joined")]
    NoPeers,
    /// The membership does not decode.
    #[error("the membership cannot be read")]
    Unreadable,
}

/// What a leader's decision on a change depends on.
#[derive(Debug)]
pub struct ClusterState<'a> {
    /// The membership in force.
    pub membership: &'a Membership,
    /// The leader, which certainly runs.
    pub leader: MemberId,
    /// The other members that certainly run: they have been connected for a while, their logs keep up with the leader's, and they
    /// have replied to a heartbeat since the change was asked for.
    pub healthy: &'a BTreeSet<MemberId>,
    /// Refuse changes after which the voters may have no quorum (`cluster.strict_reconfig_check`).
    pub strict: bool,
}

impl MemberChange {
    /// The change for consensus.
    pub(crate) fn judge(
        &self,
        state: &ClusterState<'_>,
    ) -> Result<MembershipChange, ChangeRefusal> {
        let members = Members::of(state.membership).map_err(|_| ChangeRefusal::Unreadable)?;
        let find = |id: MemberId| members.get(id).ok_or(ChangeRefusal::NotFound);
        match self {
            Self::Add { peer_urls, learner } => {
                check_urls(peer_urls)?;
                check_unused(&members, None, peer_urls)?;
                state.check_add(&members, *learner)?;
                let info = MemberInfo {
                    peer_urls: peer_urls.clone(),
                    awaits_vote: !learner,
                    ..MemberInfo::default()
                };
                let (id, context) = (new_id(&members, peer_urls), info.encode());
                Ok(MembershipChange::AddLearner { id, context })
            }
            Self::Promote { id } => {
                if find(*id)?.is_meant_to_vote() {
                    return Err(ChangeRefusal::NotLearner);
                }
                state.check_promote(&members, *id)?;
                Ok(MembershipChange::Promote { id: *id })
            }
            Self::Remove { id } => {
                if !find(*id)?.learner {
                    state.check_remove(&members, *id)?;
                }
                Ok(MembershipChange::Remove { id: *id })
            }
            Self::Move { id, peer_urls } => {
                let info = find(*id)?.info.clone();
                check_urls(peer_urls)?;
                check_unused(&members, Some(*id), peer_urls)?;
                let peer_urls = peer_urls.clone();
                let context = MemberInfo { peer_urls, ..info }.encode();
                Ok(MembershipChange::Update { id: *id, context })
            }
            Self::Publish {
                id,
                name,
                client_urls,
            } => {
                let context = MemberInfo {
                    name: name.clone(),
                    client_urls: client_urls.clone(),
                    ..find(*id)?.info.clone()
                };
                let context = context.encode();
                Ok(MembershipChange::Update { id: *id, context })
            }
        }
    }
}

impl ClusterState<'_> {
    fn check_add(&self, members: &Members, learner: bool) -> Result<(), ChangeRefusal> {
        let learners = members.iter().filter(|one| !one.is_meant_to_vote());
        if learner && learners.count() >= LEARNERS_MAX {
            return Err(ChangeRefusal::TooManyLearners);
        }
        let (voters, started) = count(members, None);
        // etcd: a cluster of one may grow, although its quorum then includes the new member.
        let grows_from_one = !learner && voters == 1 && started == 1;
        if !self.strict || grows_from_one {
            return Ok(());
        }
        let voters_after = voters + usize::from(!learner);
        if !learner && started < quorum(voters_after) {
            return Err(ChangeRefusal::NotEnoughStarted);
        }
        self.check_quorum(self.healthy_voters(members, None), voters_after)
    }

    fn check_remove(&self, members: &Members, id: MemberId) -> Result<(), ChangeRefusal> {
        let (voters, started) = count(members, Some(id));
        if voters == 0 || (self.strict && started < quorum(voters)) {
            return Err(ChangeRefusal::NotEnoughStarted);
        }
        self.check_quorum(self.healthy_voters(members, Some(id)), voters)
    }

    /// The promoted learner is counted as healthy: consensus promotes it only if it has caught up and replies.
    fn check_promote(&self, members: &Members, id: MemberId) -> Result<(), ChangeRefusal> {
        let learner = members.get(id);
        // etcd: a learner that has never started is not in sync either.
        if !learner.is_some_and(|learner| learner.info.is_started()) {
            return Err(ChangeRefusal::LearnerNotReady);
        }
        let (voters, started) = count(members, None);
        if self.strict && started + 1 < quorum(voters + 1) {
            return Err(ChangeRefusal::NotEnoughStarted);
        }
        self.check_quorum(self.healthy_voters(members, None) + 1, voters + 1)
    }

    fn check_quorum(&self, healthy: usize, voters: usize) -> Result<(), ChangeRefusal> {
        if self.strict && healthy < quorum(voters) {
            return Err(ChangeRefusal::Unhealthy);
        }
        Ok(())
    }

    /// How many voters, except `without`, certainly run.
    fn healthy_voters(&self, members: &Members, without: Option<MemberId>) -> usize {
        let runs = |id| id == self.leader || self.healthy.contains(&id);
        let voters = members.iter().filter(|one| one.is_meant_to_vote());
        voters
            .filter(|one| Some(one.id) != without && runs(one.id))
            .count()
    }
}

/// The number of voters except `without`, and how many of them have ever started.
fn count(members: &Members, without: Option<MemberId>) -> (usize, usize) {
    let voters = || {
        members
            .iter()
            .filter(|member| member.is_meant_to_vote() && Some(member.id) != without)
    };
    let started = voters().filter(|member| member.info.is_started()).count();
    (voters().count(), started)
}

fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

fn check_urls(urls: &[String]) -> Result<(), ChangeRefusal> {
    let good = urls.iter().all(|url| is_peer_url(url));
    if urls.is_empty() || urls.len() > URLS_MAX || !good {
        return Err(ChangeRefusal::BadUrls);
    }
    Ok(())
}

fn check_unused(
    members: &Members,
    except: Option<MemberId>,
    urls: &[String],
) -> Result<(), ChangeRefusal> {
    let mut others = members
        .iter()
        .filter(|member| Some(member.id) != except)
        .flat_map(|member| &member.info.peer_urls);
    let place = |url| url_address(url).unwrap_or(url);
    let clash = others.any(|used| urls.iter().any(|url| place(url) == place(used)));
    if clash {
        Err(ChangeRefusal::UrlsExist)
    } else {
        Ok(())
    }
}

/// An id that no member has or had: the id of a removed member is never used again.
fn new_id(members: &Members, urls: &[String]) -> MemberId {
    loop {
        let salt = clock::entropy().to_string();
        let mut words: Vec<&str> = urls.iter().map(String::as_str).collect();
        words.push(&salt);
        let id = MemberId(id_of(&words));
        if members.get(id).is_none() {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(started: &[bool]) -> Membership {
        let info = |n: usize, started: bool| MemberInfo {
            name: format!("n{n}"),
            peer_urls: vec![format!("http://n{n}:1")],
            client_urls: if started {
                vec![format!("http://n{n}:2")]
            } else {
                Vec::new()
            },
            awaits_vote: false,
        };
        let voters = started.iter().enumerate();
        let voters = voters.map(|(n, &up)| (MemberId(n as u64 + 1), info(n + 1, up).encode()));
        Membership::of_voters(voters).unwrap()
    }

    fn judge(
        membership: &Membership,
        healthy: &[u64],
        change: &MemberChange,
    ) -> Result<MembershipChange, ChangeRefusal> {
        judge_with(true, membership, healthy, change)
    }

    fn judge_with(
        strict: bool,
        membership: &Membership,
        healthy: &[u64],
        change: &MemberChange,
    ) -> Result<MembershipChange, ChangeRefusal> {
        let healthy = healthy.iter().map(|&id| MemberId(id)).collect();
        change.judge(&ClusterState {
            membership,
            leader: MemberId(1),
            healthy: &healthy,
            strict,
        })
    }

    fn add(url: &str, learner: bool) -> MemberChange {
        let peer_urls = vec![url.to_owned()];
        MemberChange::Add { peer_urls, learner }
    }

    #[test]
    fn addresses_are_checked_before_anything_else() {
        let three = cluster(&[true; 3]);
        assert_eq!(
            judge(&three, &[2, 3], &add("n4", false)),
            Err(ChangeRefusal::BadUrls)
        );
        let taken = add("https://n2:1/", true);
        assert_eq!(
            judge(&three, &[2, 3], &taken),
            Err(ChangeRefusal::UrlsExist)
        );
        assert!(
            judge(&three, &[2, 3], &add("http://n4:1", false)).is_ok(),
            "healthy"
        );
    }

    fn remove(id: u64) -> MemberChange {
        MemberChange::Remove { id: MemberId(id) }
    }

    #[test]
    fn a_voter_is_added_only_if_the_larger_cluster_has_a_quorum() {
        let voter = add("http://n9:1", false);
        let unstarted = cluster(&[true, true, false]);
        assert_eq!(
            judge(&unstarted, &[2], &voter),
            Err(ChangeRefusal::NotEnoughStarted)
        );
        let three = cluster(&[true; 3]);
        assert_eq!(judge(&three, &[2], &voter), Err(ChangeRefusal::Unhealthy));
        assert!(
            judge(&cluster(&[true]), &[], &voter).is_ok(),
            "one grows to two"
        );
        let four = cluster(&[true; 4]);
        assert!(judge(&four, &[2, 3], &voter).is_ok(), "three of five");
    }

    #[test]
    fn a_learner_is_added_while_a_minority_is_down() {
        let (four, learner) = (cluster(&[true; 4]), add("http://n9:1", true));
        assert!(
            judge(&four, &[2, 3], &learner).is_ok(),
            "one of four is down"
        );
        assert_eq!(judge(&four, &[2], &learner), Err(ChangeRefusal::Unhealthy));
    }

    #[test]
    fn a_voter_that_is_down_can_go_and_one_that_is_needed_cannot() {
        let three = cluster(&[true; 3]);
        assert!(judge(&three, &[2], &remove(3)).is_ok(), "it is down");
        assert_eq!(
            judge(&three, &[2], &remove(2)),
            Err(ChangeRefusal::Unhealthy)
        );
        assert!(judge(&three, &[2, 3], &remove(1)).is_ok(), "the leader");
        assert_eq!(
            judge(&three, &[2, 3], &remove(4)),
            Err(ChangeRefusal::NotFound)
        );
        let two = cluster(&[true, false]);
        assert_eq!(
            judge(&two, &[], &remove(1)),
            Err(ChangeRefusal::NotEnoughStarted)
        );
        assert_eq!(
            judge(&cluster(&[true]), &[], &remove(1)),
            Err(ChangeRefusal::NotEnoughStarted)
        );
    }

    /// Five members, two of them stopped; the third has just come back, so it is not certain that it runs.
    #[test]
    fn a_voter_that_may_be_needed_is_not_removed() {
        let five = cluster(&[true; 5]);
        assert_eq!(
            judge(&five, &[2], &remove(3)),
            Err(ChangeRefusal::Unhealthy)
        );
        assert_eq!(
            judge(&cluster(&[true; 3]), &[], &remove(2)),
            Err(ChangeRefusal::Unhealthy),
            "a cluster that has just started"
        );
    }

    #[test]
    fn a_learner_that_never_started_is_not_in_sync() {
        let one = cluster(&[true]);
        let change = judge(&one, &[], &add("http://n2:1", true)).unwrap();
        let two = one.with(&change).unwrap();
        let learner = two.learners().next().unwrap().0;
        let promote = MemberChange::Promote { id: learner };
        for strict in [true, false] {
            let refused = judge_with(strict, &two, &[], &promote);
            assert_eq!(refused, Err(ChangeRefusal::LearnerNotReady));
        }
    }

    #[test]
    fn without_the_strict_check_any_change_that_leaves_a_voter_passes() {
        let three = cluster(&[true, false, false]);
        let loose = |change| judge_with(false, &three, &[], &change);
        assert!(loose(add("http://n9:1", false)).is_ok());
        assert!(loose(add("http://n9:1", true)).is_ok());
        assert!(loose(remove(1)).is_ok());
        let one = cluster(&[true]);
        assert_eq!(
            judge_with(false, &one, &[], &remove(1)),
            Err(ChangeRefusal::NotEnoughStarted)
        );
    }

    /// What is certain of a voter, and what is true of it.
    #[derive(Clone, Copy, PartialEq)]
    enum Voter {
        /// It has replied just now, and has been connected for long.
        Healthy,
        /// It runs, but has just come back, or its log is behind.
        Uncertain,
        /// It does not run.
        Down,
    }

    /// All clusters of one to five voters, led by member 1, with every combination of the others' states.
    fn all_clusters() -> Vec<Vec<Voter>> {
        let mut all = vec![vec![Voter::Healthy]];
        let mut last = all.clone();
        for _ in 1..5 {
            let states = [Voter::Healthy, Voter::Uncertain, Voter::Down];
            let longer = |voters: &Vec<Voter>| states.map(|state| [&voters[..], &[state]].concat());
            last = last.iter().flat_map(longer).collect();
            all.extend(last.clone());
        }
        all
    }

    /// In the worst case only the healthy voters run.
    fn has_quorum(healthy: usize, voters: usize) -> bool {
        healthy >= quorum(voters)
    }

    #[test]
    fn in_every_small_cluster_a_change_passes_exactly_if_healthy_voters_are_a_quorum_after_it() {
        for voters in all_clusters() {
            let membership = cluster(&vec![true; voters.len()]);
            let ids = (1..).zip(&voters);
            let healthy: Vec<u64> = ids
                .filter(|(_, state)| **state == Voter::Healthy)
                .map(|(id, _)| id)
                .collect();
            let (up, all) = (healthy.len(), voters.len());
            let passes = |change: &MemberChange| judge(&membership, &healthy, change).is_ok();
            let shown: Vec<u64> = healthy.clone();
            for id in 1..=all as u64 {
                let left = up - usize::from(healthy.contains(&id));
                let safe = all > 1 && has_quorum(left, all - 1);
                assert_eq!(
                    passes(&remove(id)),
                    safe,
                    "remove {id} of {all}, {shown:?} run"
                );
            }
            let learner = add("http://n9:1", true);
            assert_eq!(passes(&learner), has_quorum(up, all), "{shown:?} of {all}");
            // etcd: one grows to two although the quorum then includes the new member.
            let safe = all == 1 || has_quorum(up, all + 1);
            assert_eq!(
                passes(&add("http://n9:1", false)),
                safe,
                "{shown:?} of {all}"
            );
        }
    }

    #[test]
    fn learners_are_few_and_only_they_are_promoted() {
        let three = cluster(&[true; 3]);
        let learner = add("http://n4:1", true);
        let change = judge(&three, &[2, 3], &learner).unwrap();
        let four = three.with(&change).unwrap();
        let another = add("http://n5:1", true);
        assert_eq!(
            judge(&four, &[2, 3], &another),
            Err(ChangeRefusal::TooManyLearners)
        );
        let promote = MemberChange::Promote { id: MemberId(2) };
        assert_eq!(
            judge(&four, &[2, 3], &promote),
            Err(ChangeRefusal::NotLearner)
        );
    }

    #[test]
    fn publishing_keeps_a_members_addresses() {
        let three = cluster(&[false; 3]);
        let publish = MemberChange::Publish {
            id: MemberId(2),
            name: "n2".to_owned(),
            client_urls: vec!["http://c:1".to_owned()],
        };
        let after = three.with(&judge(&three, &[], &publish).unwrap()).unwrap();
        let members = Members::of(&after).unwrap();
        let second = members.get(MemberId(2)).unwrap();
        assert_eq!(second.info.peer_urls, ["http://n2:1"]);
        assert!(second.info.is_started(), "it has client URLs");
    }
}
