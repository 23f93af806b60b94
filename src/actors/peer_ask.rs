//! Requests between members besides consensus messages: to append proposals, to change the membership, to renew leases, to
//! compare states, and to say how much of the log all members have. One request carries all proposals of a turn.

use super::{
    lease_messages::LeaseCall,
    membership_change::{ChangeRefusal, MemberChange},
};
use crate::{
    codec::{self, Blob, CodecError},
    kv::state_hash::StateHash,
    types::{LogIndex, MemberId, Term},
};
use bincode::{BorrowDecode, Decode, Encode};
use bytes::Bytes;

/// From this version of the peer protocol on, members read the alarm of a quota (`AlarmKind::QuotaReached`). One of an earlier
/// version stops at an entry that has it.
pub const QUOTA_ALARM_VERSION: u16 = 3;

/// A request to the leader, or by it.
#[derive(Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "codec::Shared")]
pub enum PeerAsk {
    /// As [`PeerAsk::ProposeIn`], in whatever term the leader is: from or to a member that speaks version 1 of the peer protocol.
    /// The same proposal is never sent twice.
    Propose(Vec<Blob>),
    /// From a follower: change the membership. Answered by [`ChangeAnswer`] when the change is committed.
    Change(MemberChange),
    /// From a follower: renewals of leases, and questions for the time left. Answered by a list of `LeaseAnswer`, one for each.
    Leases(Vec<LeaseCall>),
    /// From the leader: every member has the log durably up to here. Answered by nothing.
    EverybodyHas(LogIndex),
    /// From the leader: the hash of the state after this entry. Answered by a [`StateHash`] once the entry is applied; a member
    /// that does not know the hash, or the question, gives no answer.
    StateHash(LogIndex),
    /// From the leader: after this entry a majority has this hash, and the receiver's is different. Answered by nothing.
    StateDiffers(LogIndex, StateHash),
    /// To the leader: send a snapshot, since the sender has no state. Answered by nothing.
    WantSnapshot,
    /// From a member without a leader, to any other: who are the members? Answered by [`KnownMembers`].
    WhoIsMember,
    /// From a follower, to the leader of this term and of no other: append these proposals, in this order. Answered by [`Taken`]
    /// for each, at once: the outcome is known to the asker when it commits them.
    ProposeIn(TermPart, Vec<Blob>),
    /// From a follower that lost an answer of the leader of this term: what of its proposals is in the log? Answered by
    /// [`Option<Settled>`], which is none if the member does not lead this term.
    Settle(Term),
    /// From a member that forms a cluster with others: record, durably, that it begins. Answered by nothing, once that is so.
    RecordStart,
}

/// A part of a term, by what one follower forwards in it: each [`PeerAsk::Settle`] of that follower begins the next part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct TermPart {
    pub term: Term,
    /// 0 until the follower's first question in this term. The leader counts, not the follower: so a late request, of an earlier
    /// connection or an earlier process, never has the number of the present part.
    pub part: u64,
}

/// All that the leader took from the asker in earlier parts of its term is in its log at `through` or before, and nothing will be
/// added: what is not there when `through` is committed is in no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Settled {
    /// The number of the part that begins.
    pub part: u64,
    pub through: LogIndex,
}

/// Whether a forwarded proposal was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Taken {
    /// It is in the leader's log. It may still be lost with that leader.
    Appended,
    /// It was not appended: the member does not lead.
    NotLeader,
    /// It was not appended: too much is under way.
    TooMany,
    /// It was not appended: another part of the term has begun.
    OtherPart,
}

/// The outcome of a change: the membership after it, encoded, or why it is refused.
pub type ChangeAnswer = Result<Vec<u8>, ChangeRefusal>;

/// What a member answers a process that starts and asks, by its own address, which member it is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GuestInfo {
    /// The member with that address.
    pub id: Option<MemberId>,
    /// Whether that member has ever run.
    pub started: bool,
    /// The membership, encoded; empty if the answering process has no data itself.
    pub membership: Vec<u8>,
    /// Whether a quorum confirmed, by a read index after the question, that this is the newest membership.
    pub confirmed: bool,
    /// The last entry in the answering member's log; 0 if it has none.
    pub last: LogIndex,
}

impl GuestInfo {
    /// The answer of a process that has no data itself.
    pub fn without_data() -> Self {
        Self {
            id: None,
            started: false,
            membership: Vec::new(),
            confirmed: false,
            last: LogIndex(0),
        }
    }
}

/// What a member answers a process without data that asks whether a member has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RecordedStart {
    /// The member asked the answering member to record its start.
    Recorded,
    /// No such request was recorded.
    NotRecorded,
    /// This member was not there when the others formed the cluster: it was added later.
    WasNotThere,
}

/// What the question for a [`RecordedStart`] begins with: no address does.
const START_QUESTION: &[u8] = b"\xffstart of ";
/// What its answer begins with: no [`GuestInfo`] does.
const START_ANSWER: &[u8] = b"\xffstart: ";

impl RecordedStart {
    /// The question whether the member `id` has begun.
    pub fn question(id: MemberId) -> Bytes {
        [START_QUESTION, &id.0.to_le_bytes()].concat().into()
    }

    /// The member that such a question is about; `None` if it is another question.
    pub fn asked(question: &[u8]) -> Option<MemberId> {
        let id = question.strip_prefix(START_QUESTION)?;
        Some(MemberId(u64::from_le_bytes(id.try_into().ok()?)))
    }

    /// The bytes of the answer.
    pub fn encode(self) -> Bytes {
        [START_ANSWER, &codec::encode(&self)].concat().into()
    }

    /// Reads an answer. A member of an earlier version, and one without data, do not know the question: they have no records.
    pub fn decode(answer: &[u8]) -> Option<Self> {
        match answer.strip_prefix(START_ANSWER) {
            Some(answer) => codec::decode("record of a start", answer).ok(),
            None => Some(Self::NotRecorded),
        }
    }
}

/// The membership, as another member has it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KnownMembers {
    /// The commit index of the member that answers; the higher one has the newer membership.
    pub commit: LogIndex,
    pub membership: Vec<u8>,
}

impl PeerAsk {
    /// The version of the peer protocol that has this request.
    pub fn version(&self) -> u16 {
        match self {
            Self::Propose(_)
            | Self::Change(_)
            | Self::Leases(_)
            | Self::EverybodyHas(_)
            | Self::StateHash(_)
            | Self::StateDiffers(..)
            | Self::WantSnapshot
            | Self::WhoIsMember => 1,
            Self::ProposeIn(..) | Self::Settle(_) | Self::RecordStart => 2,
        }
    }

    /// The bytes of a request.
    pub fn encode(&self) -> Bytes {
        codec::encode(self).into()
    }

    /// Reads a request; proposals share `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Self, CodecError> {
        codec::decode_shared("request of a member", bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_back() {
        let asks = [
            PeerAsk::Propose(vec![Blob::from("one"), Blob::from("")]),
            PeerAsk::ProposeIn(
                TermPart {
                    term: Term(7),
                    part: 2,
                },
                vec![Blob::from("one"), Blob::from("")],
            ),
            PeerAsk::Settle(Term(7)),
            PeerAsk::RecordStart,
            PeerAsk::Change(MemberChange::Promote { id: MemberId(7) }),
            PeerAsk::EverybodyHas(LogIndex(9)),
            PeerAsk::StateHash(LogIndex(9)),
            PeerAsk::StateDiffers(LogIndex(9), StateHash::default()),
            PeerAsk::WantSnapshot,
            PeerAsk::WhoIsMember,
        ];
        for ask in asks {
            assert_eq!(PeerAsk::decode(&ask.encode()).unwrap(), ask);
        }
    }

    #[test]
    fn the_question_for_a_start_is_no_other_and_older_members_have_no_record() {
        let id = MemberId(0x1234);
        assert_eq!(RecordedStart::asked(&RecordedStart::question(id)), Some(id));
        assert_eq!(RecordedStart::asked(b"10.0.0.1:2380"), None);
        for said in [
            RecordedStart::Recorded,
            RecordedStart::NotRecorded,
            RecordedStart::WasNotThere,
        ] {
            assert_eq!(RecordedStart::decode(&said.encode()), Some(said));
        }
        let info = codec::encode(&GuestInfo::without_data());
        let none = Some(RecordedStart::NotRecorded);
        assert_eq!(RecordedStart::decode(&info), none);
        assert_eq!(RecordedStart::decode(b"\xffstart: \x07"), None);
    }

    #[test]
    fn garbage_is_an_error() {
        for bytes in [&b""[..], b"\x0b", b"\x00\xff\xff\xff\xff", b"\x03\x01\x01"] {
            assert!(
                PeerAsk::decode(&Bytes::copy_from_slice(bytes)).is_err(),
                "{bytes:?}"
            );
        }
    }
}
