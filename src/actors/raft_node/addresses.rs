//! Which addresses of members the peer hub has, and members that this one knows only from others.
//!
//! A member accepts connections only from members that it knows. One that was away while another was added, which now leads,
//! would refuse its leader for ever: the entry that adds the leader is in the log that only the leader can send. So a member
//! without a leader asks those that are connected who the members are, one after the other, and uses the answer beside its own
//! membership until its log has come as far.

use crate::{
    actors::{members::Members, peer_ask::KnownMembers},
    codec,
    net::{ForwardError, PeerAddress},
    raft::Membership,
    types::{LogIndex, MemberId},
};
use bytes::Bytes;
use std::{collections::BTreeSet, time::Duration};
use tokio::{sync::oneshot, time::Instant};

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
    /// The members that another member knows at a later commit index than this one's.
    learned: Option<(LogIndex, Members)>,
}

impl MemberAddresses {
    /// Whether the peer hub does not have the addresses of `membership` yet.
    pub(super) fn is_outdated(&self, membership: &Membership) -> bool {
        self.sent.as_ref() != Some(membership)
    }

    /// The peer hub has the addresses of `membership`.
    pub(super) fn sent(&mut self, membership: Membership) {
        self.sent = Some(membership);
    }

    /// `known` addresses, and those of members that only others know.
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
        .inspect_err(|error| tracing::error!("an answer is dropped: {error}"))
        .ok()?;
    let members = Members::decode(&Bytes::from(known.membership))
        .inspect_err(|error| tracing::error!("an answer about members is dropped: {error}"))
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
            addresses.is_outdated(&own),
            "the peer hub needs another one"
        );
        let known = Members::of(&own).unwrap().addresses();
        assert_eq!(addresses.with_learned(known.clone()).len(), 3);
        addresses.sent(own.clone());
        addresses.update(LogIndex(9));
        assert!(addresses.is_outdated(&own));
        assert_eq!(
            addresses.with_learned(known),
            Members::of(&own).unwrap().addresses()
        );
    }

    #[test]
    fn older_knowledge_is_ignored() {
        let mut addresses = MemberAddresses::default();
        let own = membership(&[1]);
        addresses.sent(own.clone());
        addresses.asked(answer(5, &[1, 2]));
        addresses.update(LogIndex(5));
        assert!(!addresses.is_outdated(&own));
    }
}
