//! The contents of the lasting streams: which message goes on which, and how each is encoded. The only module of `net` that
//! depends on Raft's messages.
//!
//! `docs/format.md` has the bytes under "Peer frames"; the frames themselves are in `frame`.

use super::frame::{Frame, FrameBatch, FrameBuffer, FrameError};
use crate::{
    codec,
    raft::{Message, MessageBody},
    types::{Entry, EntryKind, LogIndex, LogPosition, Term},
};
use bincode::{Decode, Encode};
use bytes::{Bytes, BytesMut};

/// The oldest version of the peer protocol that this member supports.
pub const VERSION_LOW: u16 = 1;
/// The newest version of the peer protocol that this member supports.
pub const VERSION_HIGH: u16 = 3;

/// The lasting streams of a connection, one of each in each direction, so that no kind waits behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Heartbeats, votes and read rounds: small, and sent before the others.
    Votes,
    /// Appends and their replies.
    Log,
    /// Forwarded requests and their answers.
    Requests,
}

impl Lane {
    pub const ALL: [Self; 3] = [Self::Votes, Self::Log, Self::Requests];

    pub(super) fn index(self) -> usize {
        self as usize
    }

    /// The first byte of the lane's streams.
    pub(super) fn kind(self) -> u8 {
        match self {
            Self::Votes => 1,
            Self::Log => 2,
            Self::Requests => 3,
        }
    }

    /// The lane whose streams begin with `kind`.
    pub(super) fn of_kind(kind: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.kind() == kind)
    }

    /// The priority of the lane's streams in QUIC; higher is sent first. Snapshots have 0.
    pub(super) fn priority(self) -> i32 {
        match self {
            Self::Votes => 3,
            Self::Log => 2,
            Self::Requests => 1,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Votes => "votes",
            Self::Log => "log",
            Self::Requests => "requests",
        }
    }

    /// The lane that carries a message.
    pub fn of(body: &MessageBody) -> Self {
        match body {
            MessageBody::PreVote { .. }
            | MessageBody::PreVoteReply { .. }
            | MessageBody::RequestVote { .. }
            | MessageBody::Vote { .. }
            | MessageBody::Heartbeat { .. }
            | MessageBody::HeartbeatReply { .. }
            | MessageBody::ReadIndex { .. }
            | MessageBody::ReadIndexReply { .. }
            | MessageBody::TimeoutNow
            | MessageBody::StaleTerm => Self::Votes,
            MessageBody::Append { .. }
            | MessageBody::AppendReply { .. }
            | MessageBody::AppendRejected { .. }
            | MessageBody::Commit { .. } => Self::Log,
        }
    }
}

/// Appends a Raft message to a batch of frames.
pub(super) fn push_message(batch: &mut FrameBatch, message: &Message) {
    let entries = match &message.body {
        MessageBody::Append { entries, .. } => entries.as_slice(),
        _ => &[],
    };
    batch.push(
        &WireMessage::of(message),
        entries.iter().map(|entry| &entry.data),
    );
}

/// The bytes of messages, as a lane carries them. For benchmarks and fuzzing.
pub fn encode_messages(messages: &[Message]) -> Vec<Bytes> {
    let mut batch = FrameBatch::default();
    for message in messages {
        push_message(&mut batch, message);
    }
    batch.into_chunks()
}

/// The messages in bytes from `lane`, up to the last whole frame. `None` if one is malformed.
pub fn decode_messages(lane: Lane, bytes: BytesMut) -> Option<Vec<Message>> {
    let mut buffer = FrameBuffer { bytes };
    let mut messages = Vec::new();
    while let Some(frame) = buffer.next().ok()? {
        messages.push(decode_message(lane, frame).ok()?);
    }
    Some(messages)
}

/// Appends a frame about a forwarded request to a batch of frames.
pub(super) fn push_request(batch: &mut FrameBatch, header: &WireRequest, payload: &Bytes) {
    batch.push(header, std::iter::once(payload));
}

/// Decodes a Raft message from `lane`.
pub(super) fn decode_message(lane: Lane, frame: Frame) -> Result<Message, FrameError> {
    let wire: WireMessage = codec::decode("peer message", &frame.header)?;
    let message = wire.into_message(frame.payload)?;
    if Lane::of(&message.body) == lane {
        Ok(message)
    } else {
        Err(FrameError::WrongLane {
            what: message.body.name(),
            lane: lane.name(),
        })
    }
}

/// Decodes a frame about a forwarded request; returns its header and payload.
pub(super) fn decode_request(frame: Frame) -> Result<(WireRequest, Bytes), FrameError> {
    let header: WireRequest = codec::decode("forwarded request", &frame.header)?;
    let (stated, found) = (header.payload_bytes(), frame.payload.len());
    if stated == found {
        Ok((header, frame.payload))
    } else {
        Err(FrameError::Payload { stated, found })
    }
}

/// The header of a frame on the requests stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum WireRequest {
    /// A request; `id` is the sender's own.
    Ask { id: u64, bytes: u32 },
    /// The answer to the receiver's request `id`.
    Answer { id: u64, bytes: u32 },
    /// The receiver's request `id` was not begun: too many are in flight.
    Overloaded { id: u64 },
    /// The receiver's request `id` ended without an answer.
    Abandoned { id: u64 },
    /// The caller of the sender's request `id` is gone.
    Cancel { id: u64 },
    /// Empty. QUIC's acknowledgement shows that the other process still runs.
    Ping,
}

impl WireRequest {
    fn payload_bytes(self) -> usize {
        match self {
            Self::Ask { bytes, .. } | Self::Answer { bytes, .. } => bytes as usize,
            Self::Overloaded { .. } | Self::Abandoned { .. } | Self::Cancel { .. } | Self::Ping => {
                0
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct WireMessage {
    term: Term,
    body: WireBody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
struct WirePosition {
    term: Term,
    index: LogIndex,
}

/// The header of an entry. Its index follows from its place in the append, and its data is in the frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
struct WireEntry {
    term: Term,
    kind: EntryKind,
    bytes: u32,
}

/// The number of each variant is its place here: new ones go to the end, and need a new protocol version.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum WireBody {
    PreVote {
        last: WirePosition,
    },
    PreVoteReply {
        asked: Term,
        granted: bool,
    },
    RequestVote {
        last: WirePosition,
        transfer: bool,
    },
    Vote {
        granted: bool,
    },
    Append {
        prev: WirePosition,
        commit: LogIndex,
        entries: Vec<WireEntry>,
    },
    AppendReply {
        matched: LogIndex,
    },
    AppendRejected {
        rejected: LogIndex,
        hint: WirePosition,
    },
    Commit {
        commit: LogIndex,
    },
    Heartbeat {
        commit: LogIndex,
        round: u64,
    },
    HeartbeatReply {
        round: u64,
    },
    ReadIndex {
        round: u64,
    },
    ReadIndexReply {
        round: u64,
        index: LogIndex,
    },
    TimeoutNow,
    StaleTerm,
}

impl From<LogPosition> for WirePosition {
    fn from(id: LogPosition) -> Self {
        Self {
            term: id.term,
            index: id.index,
        }
    }
}

impl From<WirePosition> for LogPosition {
    fn from(id: WirePosition) -> Self {
        Self {
            term: id.term,
            index: id.index,
        }
    }
}

impl WireEntry {
    fn of(entry: &Entry) -> Self {
        let bytes = u32::try_from(entry.data.len());
        assert!(
            bytes.is_ok(),
            "entry {} is longer than a frame may be",
            entry.index
        );
        Self {
            term: entry.term,
            kind: entry.kind,
            bytes: bytes.unwrap_or_default(),
        }
    }
}

impl WireMessage {
    fn of(message: &Message) -> Self {
        Self {
            term: message.term,
            body: WireBody::of(&message.body),
        }
    }

    fn into_message(self, payload: Bytes) -> Result<Message, FrameError> {
        if !matches!(self.body, WireBody::Append { .. }) && !payload.is_empty() {
            return Err(FrameError::Payload {
                stated: 0,
                found: payload.len(),
            });
        }
        Ok(Message {
            term: self.term,
            body: self.body.into_body(payload)?,
        })
    }
}

impl WireBody {
    fn of(body: &MessageBody) -> Self {
        match body {
            MessageBody::PreVote { last } => Self::PreVote {
                last: (*last).into(),
            },
            MessageBody::PreVoteReply { asked, granted } => Self::PreVoteReply {
                asked: *asked,
                granted: *granted,
            },
            MessageBody::RequestVote { last, transfer } => Self::RequestVote {
                last: (*last).into(),
                transfer: *transfer,
            },
            MessageBody::Vote { granted } => Self::Vote { granted: *granted },
            MessageBody::Append {
                prev,
                commit,
                entries,
            } => {
                let entries = entries.iter().map(WireEntry::of).collect();
                Self::Append {
                    prev: (*prev).into(),
                    commit: *commit,
                    entries,
                }
            }
            MessageBody::AppendReply { matched } => Self::AppendReply { matched: *matched },
            MessageBody::AppendRejected { rejected, hint } => Self::AppendRejected {
                rejected: *rejected,
                hint: (*hint).into(),
            },
            MessageBody::Commit { commit } => Self::Commit { commit: *commit },
            MessageBody::Heartbeat { commit, round } => Self::Heartbeat {
                commit: *commit,
                round: *round,
            },
            MessageBody::HeartbeatReply { round } => Self::HeartbeatReply { round: *round },
            MessageBody::ReadIndex { round } => Self::ReadIndex { round: *round },
            MessageBody::ReadIndexReply { round, index } => Self::ReadIndexReply {
                round: *round,
                index: *index,
            },
            MessageBody::TimeoutNow => Self::TimeoutNow,
            MessageBody::StaleTerm => Self::StaleTerm,
        }
    }

    fn into_body(self, payload: Bytes) -> Result<MessageBody, FrameError> {
        Ok(match self {
            Self::PreVote { last } => MessageBody::PreVote { last: last.into() },
            Self::PreVoteReply { asked, granted } => MessageBody::PreVoteReply { asked, granted },
            Self::RequestVote { last, transfer } => MessageBody::RequestVote {
                last: last.into(),
                transfer,
            },
            Self::Vote { granted } => MessageBody::Vote { granted },
            Self::Append {
                prev,
                commit,
                entries,
            } => {
                let entries = entries_of(prev, &entries, payload)?;
                MessageBody::Append {
                    prev: prev.into(),
                    commit,
                    entries,
                }
            }
            Self::AppendReply { matched } => MessageBody::AppendReply { matched },
            Self::AppendRejected { rejected, hint } => MessageBody::AppendRejected {
                rejected,
                hint: hint.into(),
            },
            Self::Commit { commit } => MessageBody::Commit { commit },
            Self::Heartbeat { commit, round } => MessageBody::Heartbeat { commit, round },
            Self::HeartbeatReply { round } => MessageBody::HeartbeatReply { round },
            Self::ReadIndex { round } => MessageBody::ReadIndex { round },
            Self::ReadIndexReply { round, index } => MessageBody::ReadIndexReply { round, index },
            Self::TimeoutNow => MessageBody::TimeoutNow,
            Self::StaleTerm => MessageBody::StaleTerm,
        })
    }
}

/// The entries after `prev`, their data taken from `payload`.
fn entries_of(
    prev: WirePosition,
    wires: &[WireEntry],
    mut payload: Bytes,
) -> Result<Vec<Entry>, FrameError> {
    let stated: usize = wires.iter().map(|wire| wire.bytes as usize).sum();
    let overflows = prev.index.0.checked_add(wires.len() as u64).is_none();
    if stated != payload.len() || overflows {
        return Err(FrameError::Payload {
            stated,
            found: payload.len(),
        });
    }
    let mut index = prev.index;
    let entries = wires.iter().map(|wire| {
        index = index.next();
        let data = payload.split_to(wire.bytes as usize);
        Entry {
            term: wire.term,
            index,
            kind: wire.kind,
            data,
        }
    });
    Ok(entries.collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::net::frame::FrameBuffer;
    use proptest::prelude::*;

    fn log_id() -> impl Strategy<Value = LogPosition> {
        (any::<u64>(), 0..u64::MAX / 2)
            .prop_map(|(term, index)| LogPosition::new(Term(term), LogIndex(index)))
    }

    fn entries(prev: LogPosition) -> impl Strategy<Value = Vec<Entry>> {
        let kinds = prop_oneof![
            Just(EntryKind::Noop),
            Just(EntryKind::Command),
            Just(EntryKind::Membership)
        ];
        let sizes = prop_oneof![9 => 0..100_usize, 1 => 4_000..9_000_usize];
        let entry = (any::<u64>(), kinds, sizes, any::<u8>());
        prop::collection::vec(entry, 0..20).prop_map(move |parts| {
            let numbered = parts.into_iter().zip(prev.index.0 + 1..);
            let entries = numbered.map(|((term, kind, size, byte), index)| Entry {
                term: Term(term),
                index: LogIndex(index),
                kind,
                data: vec![byte; size].into(),
            });
            entries.collect()
        })
    }

    /// Every kind of message.
    pub(in crate::net) fn body() -> impl Strategy<Value = MessageBody> {
        let index = || any::<u64>().prop_map(LogIndex);
        let term = || any::<u64>().prop_map(Term);
        prop_oneof![
            log_id().prop_map(|last| MessageBody::PreVote { last }),
            (term(), any::<bool>())
                .prop_map(|(asked, granted)| MessageBody::PreVoteReply { asked, granted }),
            (log_id(), any::<bool>())
                .prop_map(|(last, transfer)| MessageBody::RequestVote { last, transfer }),
            any::<bool>().prop_map(|granted| MessageBody::Vote { granted }),
            (log_id(), index())
                .prop_flat_map(|(prev, commit)| (Just(prev), Just(commit), entries(prev)))
                .prop_map(|(prev, commit, entries)| MessageBody::Append {
                    prev,
                    commit,
                    entries
                }),
            index().prop_map(|matched| MessageBody::AppendReply { matched }),
            (index(), log_id())
                .prop_map(|(rejected, hint)| MessageBody::AppendRejected { rejected, hint }),
            index().prop_map(|commit| MessageBody::Commit { commit }),
            (index(), any::<u64>())
                .prop_map(|(commit, round)| MessageBody::Heartbeat { commit, round }),
            any::<u64>().prop_map(|round| MessageBody::HeartbeatReply { round }),
            any::<u64>().prop_map(|round| MessageBody::ReadIndex { round }),
            (any::<u64>(), index())
                .prop_map(|(round, index)| MessageBody::ReadIndexReply { round, index }),
            Just(MessageBody::TimeoutNow),
            Just(MessageBody::StaleTerm),
        ]
    }

    pub(in crate::net) fn message() -> impl Strategy<Value = Message> {
        (any::<u64>(), body()).prop_map(|(term, body)| Message {
            term: Term(term),
            body,
        })
    }

    fn encoded(messages: &[Message]) -> Vec<u8> {
        let mut batch = FrameBatch::default();
        for message in messages {
            push_message(&mut batch, message);
        }
        batch.into_chunks().concat()
    }

    fn decoded(buffer: &mut FrameBuffer) -> Result<Vec<Message>, FrameError> {
        let mut messages = Vec::new();
        while let Some(frame) = buffer.next()? {
            let wire: WireMessage = codec::decode("peer message", &frame.header)?;
            messages.push(wire.into_message(frame.payload)?);
        }
        Ok(messages)
    }

    proptest! {
        #[test]
        fn messages_come_back_whatever_pieces_they_arrive_in(
            messages in prop::collection::vec(message(), 0..8),
            piece in 1..5_000_usize,
        ) {
            let bytes = encoded(&messages);
            let (mut buffer, mut found) = (FrameBuffer::default(), Vec::new());
            for part in bytes.chunks(piece) {
                buffer.bytes.extend_from_slice(part);
                found.extend(decoded(&mut buffer).unwrap());
            }
            prop_assert_eq!(found, messages);
            prop_assert!(buffer.bytes.is_empty());
        }

        #[test]
        fn damaged_frames_never_panic(
            messages in prop::collection::vec(message(), 1..4),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encoded(&messages);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(cut.index(bytes.len()) + 1);
            let mut buffer = FrameBuffer::default();
            buffer.bytes.extend_from_slice(&bytes);
            // Either is fine: most bytes are part of some value.
            drop(decoded(&mut buffer));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = FrameBuffer::default();
            buffer.bytes.extend_from_slice(&bytes);
            drop(decoded(&mut buffer));
            let frame = Frame { header: bytes.clone().into(), payload: bytes.into() };
            drop(decode_request(frame.clone()));
            drop(decode_message(Lane::Log, frame));
        }
    }

    #[test]
    fn a_message_on_the_wrong_stream_is_refused() {
        let message = Message {
            term: Term(1),
            body: MessageBody::TimeoutNow,
        };
        let mut buffer = FrameBuffer {
            bytes: encoded(&[message]).as_slice().into(),
        };
        let frame = buffer.next().unwrap().unwrap();
        let error = decode_message(Lane::Log, frame).unwrap_err();
        assert_eq!(error.to_string(), "a TimeoutNow came over stream log");
    }

    #[test]
    fn payloads_that_are_not_announced_are_refused() {
        let header = codec::encode(&WireRequest::Ping).into();
        let frame = Frame {
            header,
            payload: Bytes::from_static(b"x"),
        };
        assert!(matches!(
            decode_request(frame),
            Err(FrameError::Payload {
                stated: 0,
                found: 1
            })
        ));
    }

    #[test]
    fn the_wire_is_what_the_format_page_says() {
        let message = Message {
            term: Term(3),
            body: MessageBody::Append {
                prev: LogPosition::new(Term(2), LogIndex(7)),
                commit: LogIndex(6),
                entries: vec![Entry {
                    term: Term(3),
                    index: LogIndex(8),
                    kind: EntryKind::Command,
                    data: Bytes::from_static(b"ab"),
                }],
            },
        };
        let bytes = encoded(&[message]);
        let expected = [
            15, 0, 0, 0, 9, 0, 0, 0, 3, 4, 2, 7, 6, 1, 3, 1, 2, b'a', b'b',
        ];
        assert_eq!(bytes, expected);
    }
}
