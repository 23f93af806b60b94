//! Requests between members besides consensus messages: to append proposals, to change the membership, to renew leases, to
//! compare states, and to say how much of the log all members have. One request carries all proposals of a turn.

use super::{
    lease_messages::LeaseCall,
    membership_change::{ChangeRefusal, MemberChange},
};
use crate::{
    codec::{self, Blob, CodecError},
    kv::state_hash::StateHash,
    types::{LogIndex, MemberId},
};
use bincode::{BorrowDecode, Decode, Encode};
use bytes::Bytes;

/// A request to the leader, or by it.
#[derive(Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "codec::Shared")]
pub enum PeerAsk {
    /// From a follower: append these proposals, in this order. Answered by [`Taken`] for each, at once: the outcome is known
    /// to the asker when it applies them.
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
    Differs(LogIndex, StateHash),
    /// To the leader: send a snapshot, since the sender has no state. Answered by nothing.
    WantSnapshot,
    /// From a member without a leader, to any other: who are the members? Answered by [`KnownMembers`].
    WhoIsMember,
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

/// Who the members are, as another member knows it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KnownMembers {
    /// The commit index of the member that answers; the higher one knows the newer membership.
    pub commit: LogIndex,
    /// The membership, encoded.
    pub membership: Vec<u8>,
}

impl PeerAsk {
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
            PeerAsk::Change(MemberChange::Promote { id: MemberId(7) }),
            PeerAsk::EverybodyHas(LogIndex(9)),
            PeerAsk::StateHash(LogIndex(9)),
            PeerAsk::Differs(LogIndex(9), StateHash::default()),
            PeerAsk::WantSnapshot,
            PeerAsk::WhoIsMember,
        ];
        for ask in asks {
            assert_eq!(PeerAsk::decode(&ask.encode()).unwrap(), ask);
        }
    }

    #[test]
    fn garbage_is_an_error() {
        for bytes in [&b""[..], b"\x09", b"\x00\xff\xff\xff\xff", b"\x03\x01\x01"] {
            assert!(
                PeerAsk::decode(&Bytes::copy_from_slice(bytes)).is_err(),
                "{bytes:?}"
            );
        }
    }
}
