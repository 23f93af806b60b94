//! The addresses that the peer hub dials, among them those of members that this one has only from other members.
//!
//! A member accepts connections only from the members of its membership. One that was away while another was added, which now
//! leads, would refuse its leader for ever: the entry that adds the leader is in the log that only the leader can send. So a
//! member without a leader asks those that are connected who the members are, one after the other, and uses the answer beside its
//! own membership until its log has come as far.
//!
//! A member that was removed stays connected for a moment, so that it receives the entry that removed it and the answers to its
//! requests.

use crate::{
    actors::{members::Members, peer_ask::KnownMembers},
    codec,
    log_gate::{self, LogGate},
    net::{ForwardError, PeerAddress},
    raft::Membership,
    types::{LogIndex, MemberId},
};
use bytes::Bytes;
use std::{collections::BTreeSet, time::Duration};
use tokio::{sync::oneshot, time::Instant};

/// Answers of other members that do not decode.
static DROPPED: LogGate = LogGate::new();

/// An answer that has not arrived yet.
type PendingAnswer = oneshot::Receiver<Result<Bytes, ForwardError>>;

/// The addresses, and the questions for more.
#[derive(Debug, Default)]
pub(super) struct MemberAddresses {
    /// The membership whose addresses the peer hub has.
    sent: Option<Membership>,
    /// When the next member is asked, unless there is a leader by then.
    ask_at: Option<Instant>,
    last_asked: MemberId,
    answer: Option<PendingAnswer>,
    /// The addresses of the membership that was sent last.
    known: Vec<PeerAddress>,
    /// Members that were removed, and until when they stay connected.
    leaving: Vec<(PeerAddress, Instant)>,
    /// The members that another member has at a later commit index than this one's.
    learned: Option<(LogIndex, Members)>,
}

impl MemberAddresses {
    /// Whether the peer hub does not have the addresses of `membership` yet, or has those of a member whose time is up.
    pub(super) fn is_outdated(&self, membership: &Membership, now: Instant) -> bool {
        self.sent.as_ref() != Some(membership)
            || self.leaving.iter().any(|(_, until)| *until <= now)
    }

    /// `known` are the addresses of the present membership. Adds those of members that are in it no longer, until `until`; not
    /// one whose address another member has now.
    pub(super) fn with_leaving(
        &mut self,
        known: Vec<PeerAddress>,
        now: Instant,
        until: Instant,
    ) -> Vec<PeerAddress> {
        let before = std::mem::replace(&mut self.known, known.clone());
        self.leaving.retain(|(_, until)| *until > now);
        for peer in before {
            if self.leaving.iter().all(|(other, _)| other.id != peer.id) {
                self.leaving.push((peer, until));
            }
        }
        let same = |one: &PeerAddress, other: &PeerAddress| {
            one.id == other.id || one.addresses.iter().any(|it| other.addresses.contains(it))
        };
        self.leaving
            .retain(|(peer, _)| !known.iter().any(|other| same(peer, other)));
        let leaving = self.leaving.iter().map(|(peer, _)| peer.clone());
        known.into_iter().chain(leaving).collect()
    }

    /// The peer hub has the addresses of `membership`.
    pub(super) fn sent(&mut self, membership: Membership) {
        self.sent = Some(membership);
    }

    /// `known` addresses, and those of members that only others have.
    pub(super) fn with_learned(&self, mut known: Vec<PeerAddress>) -> Vec<PeerAddress> {
        let ids: BTreeSet<MemberId> = known.iter().map(|peer| peer.id).collect();
        let learned = self.learned.as_ref();
        let learned = learned.map_or_else(Vec::new, |(_, members)| members.addresses());
        known.extend(learned.into_iter().filter(|peer| !ids.contains(&peer.id)));
        known
    }

    /// Takes an answer that has arrived, and drops what was learned once the own log, committed up to `commit`, is as far.
    pub(super) fn update(&mut self, commit: LogIndex) {
        let answer = self.answer.as_mut().map(oneshot::Receiver::try_recv);
        match answer {
            None | Some(Err(oneshot::error::TryRecvError::Empty)) => {}
            Some(outcome) => {
                self.answer = None;
                // Without an answer the next member is asked.
                let known = outcome
                    .ok()
                    .and_then(Result::ok)
                    .and_then(|bytes| known(&bytes));
                if let Some(known) = known.filter(|(at, _)| *at > commit) {
                    self.learned = Some(known);
                    self.sent = None;
                }
            }
        }
        if self.learned.take_if(|(at, _)| *at <= commit).is_some() {
            self.sent = None;
        }
    }

    /// Which of the `connected` members to ask now, if there has been no leader for `pause`: each in its turn.
    pub(super) fn next_to_ask(
        &mut self,
        has_leader: bool,
        connected: impl Iterator<Item = MemberId>,
        now: Instant,
        pause: Duration,
    ) -> Option<MemberId> {
        if has_leader {
            self.ask_at = None;
            return None;
        }
        if *self.ask_at.get_or_insert(now + pause) > now {
            return None;
        }
        self.ask_at = Some(now + pause);
        let next = connected.min_by_key(|id| (*id <= self.last_asked, *id))?;
        self.last_asked = next;
        Some(next)
    }

    /// A member was asked; its answer arrives at `answer`.
    pub(super) fn asked(&mut self, answer: PendingAnswer) {
        self.answer = Some(answer);
    }
}

fn known(bytes: &[u8]) -> Option<(LogIndex, Members)> {
    let known: KnownMembers = codec::decode("answer about members", bytes)
        .inspect_err(|error| log_gate::error!(DROPPED, "an answer is dropped: {error}"))
        .ok()?;
    let members = Members::decode(&Bytes::from(known.membership))
        .inspect_err(|error| {
            log_gate::error!(DROPPED, "an answer about members is dropped: {error}");
        })
        .ok()?;
    Some((known.commit, members))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actors::members::MemberInfo, clock};

    const PAUSE: Duration = Duration::from_secs(2);

    fn membership(ids: &[u64]) -> Membership {
        let info = |id: &u64| MemberInfo {
            peer_urls: vec![format!("http://n{id}:1")],
            ..MemberInfo::default()
        };
        Membership::of_voters(ids.iter().map(|id| (MemberId(*id), info(id).encode()))).unwrap()
    }

    fn answer(commit: u64, ids: &[u64]) -> PendingAnswer {
        let known = KnownMembers {
            commit: LogIndex(commit),
            membership: membership(ids).encode().to_vec(),
        };
        let (reply, answer) = oneshot::channel();
        drop(reply.send(Ok(codec::encode(&known).into())));
        answer
    }

    #[test]
    fn connected_members_are_asked_in_turn_while_there_is_no_leader() {
        let start = clock::now();
        let mut addresses = MemberAddresses::default();
        let mut ask = |leader, seconds| {
            let connected = [2, 5].map(MemberId).into_iter();
            let now = start + Duration::from_secs(seconds);
            addresses.next_to_ask(leader, connected, now, PAUSE)
        };
        assert_eq!(ask(false, 0), None, "a leader may come");
        assert_eq!(ask(false, 2), Some(MemberId(2)));
        assert_eq!(ask(false, 3), None);
        assert_eq!(ask(false, 4), Some(MemberId(5)));
        assert_eq!(ask(false, 6), Some(MemberId(2)));
        assert_eq!(ask(true, 8), None);
        assert_eq!(ask(false, 9), None, "it waits anew");
    }

    #[test]
    fn members_that_others_know_count_until_the_own_log_is_as_far() {
        let mut addresses = MemberAddresses::default();
        let own = membership(&[1, 2]);
        addresses.sent(own.clone());
        addresses.asked(answer(9, &[1, 2, 3]));
        addresses.update(LogIndex(5));
        assert!(
            addresses.is_outdated(&own, clock::now()),
            "the peer hub needs another one"
        );
        let known = Members::of(&own).unwrap().addresses();
        assert_eq!(addresses.with_learned(known.clone()).len(), 3);
        addresses.sent(own.clone());
        addresses.update(LogIndex(9));
        assert!(addresses.is_outdated(&own, clock::now()));
        assert_eq!(
            addresses.with_learned(known),
            Members::of(&own).unwrap().addresses()
        );
    }

    #[test]
    fn a_removed_member_stays_connected_for_a_moment_unless_another_has_its_address() {
        let start = clock::now();
        let until = start + PAUSE;
        let of = |ids: &[u64]| Members::of(&membership(ids)).unwrap().addresses();
        let ids = |peers: Vec<PeerAddress>| peers.iter().map(|peer| peer.id.0).collect::<Vec<_>>();
        let mut addresses = MemberAddresses::default();
        addresses.with_leaving(of(&[1, 2, 3]), start, until);
        let after = addresses.with_leaving(of(&[1, 2]), start, until);
        assert_eq!(ids(after), [1, 2, 3]);
        addresses.sent(membership(&[1, 2]));
        assert!(!addresses.is_outdated(&membership(&[1, 2]), start));
        assert!(addresses.is_outdated(&membership(&[1, 2]), until));
        assert_eq!(
            ids(addresses.with_leaving(of(&[1, 2]), until, until + PAUSE)),
            [1, 2]
        );
        let mut successor = of(&[1, 2]);
        successor[1].id = MemberId(7);
        let after = addresses.with_leaving(successor, until, until + PAUSE);
        assert_eq!(ids(after), [1, 7], "member 7 listens where member 2 did");
    }

    #[test]
    fn older_knowledge_is_ignored() {
        let mut addresses = MemberAddresses::default();
        let own = membership(&[1]);
        addresses.sent(own.clone());
        addresses.asked(answer(5, &[1, 2]));
        addresses.update(LogIndex(5));
        assert!(!addresses.is_outdated(&own, clock::now()));
    }
}
