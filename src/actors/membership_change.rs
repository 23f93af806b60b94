//! Changes of the membership that clients ask for, and the leader's checks on them.
//!
//! Consensus admits any change of one member that leaves a voter. The rules here are those an operator is protected by: no
//! change may leave fewer running voters than a quorum needs (etcd's strict reconfiguration check), addresses are unique, and
//! learners are few. A new voter begins as a learner and is promoted by itself once it runs and has caught up, so that no quorum
//! ever depends on a machine that nobody has heard of. The leader judges them against the membership in
//! force, so that two changes cannot both pass.

use super::members::{MemberInfo, Members, id_of, url_address};
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

/// A change of the membership, as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MemberChange {
    /// Adds a member that has not started yet.
    Add {
        /// Where the others will reach it.
        peer_urls: Vec<String>,
        /// Without a vote.
        learner: bool,
    },
    /// Gives a learner that has caught up a vote.
    Promote {
        /// The learner.
        id: MemberId,
    },
    /// Takes a member out, for good.
    Remove {
        /// The member.
        id: MemberId,
    },
    /// Tells a member's new addresses.
    Move {
        /// The member.
        id: MemberId,
        /// Where the others reach it from now on.
        peer_urls: Vec<String>,
    },
    /// Tells what a member that has started is called, and where clients reach it.
    Publish {
        /// The member; itself.
        id: MemberId,
        /// Its name.
        name: String,
        /// Where clients reach it.
        client_urls: Vec<String>,
    },
}

/// Why the membership was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Encode, Decode)]
pub enum ChangeRefusal {
    /// The addresses are none, or no URLs of host and port.
    #[error("given member URLs are invalid")]
    BadUrls,
    /// Another member has that address.
    #[error("peer URLs already exist")]
    UrlsExist,
    /// There is no such member.
    #[error("member not found")]
    NotFound,
    /// The member votes already.
    #[error("can only promote a learner member")]
    NotLearner,
    /// The learner lags. Try again when it has caught up.
    #[error("can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    /// No more learners.
    #[error("too many learner members in cluster")]
    TooManyLearners,
    /// Too few members would be left to decide anything.
    #[error("re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    /// Too few members are connected, or have been only for a moment.
    #[error("unhealthy cluster")]
    Unhealthy,
    /// This member does not lead, and knows nobody who does, or lost it meanwhile.
    #[error("not leader")]
    NotLeader,
    /// It was not over in time; it may still happen.
    #[error("request timed out")]
    TimedOut,
    /// No more members are possible.
    #[error("the cluster has as many members as it may have")]
    TooMany,
    /// This member has no connections to others, so nobody can join it.
    #[error("this member has no certificates for peers and cannot be joined")]
    NoPeers,
    /// The membership holds what no member wrote.
    #[error("the membership cannot be read")]
    Unreadable,
}

/// What the leader knows when it judges a change.
#[derive(Debug)]
pub struct Standing<'a> {
    /// The membership in force.
    pub membership: &'a Membership,
    /// The leader.
    pub leader: MemberId,
    /// Members that have been connected for a while.
    pub connected: &'a BTreeSet<MemberId>,
}

impl MemberChange {
    /// The change for consensus.
    pub fn judge(&self, standing: &Standing<'_>) -> Result<MembershipChange, ChangeRefusal> {
        let members = Members::of(standing.membership).map_err(|_| ChangeRefusal::Unreadable)?;
        let find = |id: MemberId| members.get(id).ok_or(ChangeRefusal::NotFound);
        match self {
            Self::Add { peer_urls, learner } => {
                check_urls(peer_urls)?;
                check_unused(&members, None, peer_urls)?;
                standing.may_add(&members, *learner)?;
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
                may_promote(&members, *id)?;
                Ok(MembershipChange::Promote { id: *id })
            }
            Self::Remove { id } => {
                if !find(*id)?.learner {
                    standing.may_remove(&members, *id)?;
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

impl Standing<'_> {
    fn may_add(&self, members: &Members, learner: bool) -> Result<(), ChangeRefusal> {
        if learner {
            let learners = members
                .iter()
                .filter(|member| !member.is_meant_to_vote())
                .count();
            if learners >= LEARNERS_MAX {
                return Err(ChangeRefusal::TooManyLearners);
            }
        } else {
            let (voters, started) = count(members, None);
            // etcd: a cluster of one may grow although its quorum then needs the newcomer.
            if started < quorum(voters + 1) && !(voters == 1 && started == 1) {
                return Err(ChangeRefusal::NotEnoughStarted);
            }
        }
        if self.connected_voters(members) < count(members, None).0 {
            return Err(ChangeRefusal::Unhealthy);
        }
        Ok(())
    }

    fn may_remove(&self, members: &Members, id: MemberId) -> Result<(), ChangeRefusal> {
        let (voters, started) = count(members, Some(id));
        if voters == 0 || started < quorum(voters) {
            return Err(ChangeRefusal::NotEnoughStarted);
        }
        // Whoever is down already is no part of the running quorum.
        if id != self.leader && !self.connected.contains(&id) {
            return Ok(());
        }
        if self.connected_voters(members) - 1 < quorum(voters) {
            return Err(ChangeRefusal::Unhealthy);
        }
        Ok(())
    }

    fn connected_voters(&self, members: &Members) -> usize {
        let reached = |id| id == self.leader || self.connected.contains(&id);
        members
            .iter()
            .filter(|member| member.is_meant_to_vote() && reached(member.id))
            .count()
    }
}

/// Enough must run once a learner has its vote.
fn may_promote(members: &Members, id: MemberId) -> Result<(), ChangeRefusal> {
    let (voters, started) = count(members, None);
    let runs = members
        .get(id)
        .is_some_and(|member| member.info.is_started());
    if started + usize::from(runs) < quorum(voters + 1) {
        return Err(ChangeRefusal::NotEnoughStarted);
    }
    Ok(())
}

/// Voters, and how many of them have ever run, without one of them.
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
    let good = urls.iter().all(|url| url_address(url).is_some());
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
    let clash = others.any(|used| urls.iter().any(|url| url_address(url) == url_address(used)));
    if clash {
        Err(ChangeRefusal::UrlsExist)
    } else {
        Ok(())
    }
}

/// An id that no member has, nor had: removed ones never come back.
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
        connected: &[u64],
        change: &MemberChange,
    ) -> Result<MembershipChange, ChangeRefusal> {
        let connected = connected.iter().map(|&id| MemberId(id)).collect();
        change.judge(&Standing {
            membership,
            leader: MemberId(1),
            connected: &connected,
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

    #[test]
    fn a_voter_is_added_only_where_enough_run() {
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
    }

    #[test]
    fn a_voter_that_is_down_can_go_and_one_that_is_needed_cannot() {
        let three = cluster(&[true; 3]);
        let remove = |id| MemberChange::Remove { id: MemberId(id) };
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
    fn what_a_member_says_of_itself_keeps_its_addresses() {
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
        assert!(second.info.is_started(), "it said so");
    }
}
