//! The responses of KV and Watch, encoded without decoding what is stored: a stored `KeyValue` becomes part of a response as it
//! is.
//!
//! Each response lists its fields once, for both sinks of [`frames`](super::frames).

use super::{
    frames::{Encoded, Fields, Frames, SPLICED_BYTES_MIN, Sink, message_len},
    status::Status,
};
use crate::{
    kv::{
        command::{DeleteRangeDone, EncodedKv, OpDone, PutDone, RangeDone, TxnDone},
        range::COPIED_MIN,
        record::varint_len,
    },
    types::{ClusterId, MemberId, Revision, Term},
};
use bytes::Bytes;

/// The header of a response: who answered, in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    face,
    expect(
        unnameable_types,
        reason = "only in a conversion to a type of protobuf"
    )
)]
pub struct Header {
    pub cluster: ClusterId,
    /// The member that answered.
    pub member: MemberId,
    pub revision: Revision,
    pub term: Term,
}

pub fn range(header: &Header, done: &RangeDone) -> Result<Encoded, Status> {
    Encoded::of(&RangeFields::of(Some(header), done))
}

/// A `RangeResponse` that is sent in parts, because it is long.
#[derive(Clone, Copy, Debug)]
pub struct RangeParts {
    /// Whether the limit cut results off.
    pub more: bool,
    /// Keys in the range.
    pub count: i64,
}

impl RangeParts {
    /// What a result of `len` bytes takes in the message.
    pub fn kv_len(len: usize) -> usize {
        1 + varint_len(len as u64) + len
    }

    /// The beginning, if all results take `kvs_len` bytes in the message.
    pub fn beginning(&self, header: &Header, kvs_len: usize) -> Result<Encoded, Status> {
        let ends = RangeFields {
            header: Some(header),
            kvs: &[],
            more: self.more,
            count: self.count,
        };
        let begins = RangeFields {
            more: false,
            count: 0,
            ..ends
        };
        Encoded::beginning(message_len(&ends) + kvs_len, &begins)
    }

    /// Some of the results.
    pub fn kvs(kvs: &[EncodedKv]) -> Encoded {
        Encoded::part(&RangeFields {
            header: None,
            kvs,
            more: false,
            count: 0,
        })
    }

    /// The end, after all results.
    pub fn end(&self) -> Encoded {
        Encoded::part(&RangeFields {
            header: None,
            kvs: &[],
            more: self.more,
            count: self.count,
        })
    }
}

pub fn put(header: &Header, done: &PutDone) -> Result<Encoded, Status> {
    Encoded::of(&Response { header, done })
}

pub fn delete_range(header: &Header, done: &DeleteRangeDone) -> Result<Encoded, Status> {
    Encoded::of(&Response { header, done })
}

/// `TxnResponse`. The headers of its operations contain only the revision; those of nested transactions are empty.
pub fn txn(header: &Header, done: &TxnDone) -> Result<Encoded, Status> {
    Encoded::of(&Response { header, done })
}

/// `CompactionResponse`, and every other response that has only a header.
pub fn header_only(header: &Header) -> Result<Encoded, Status> {
    Encoded::of(&Response { header, done: &() })
}

/// A `RangeStreamResponse` before the last one, which has only keys.
pub fn stream_chunk(kvs: &[EncodedKv]) -> Result<Encoded, Status> {
    Encoded::of(&StreamFields(RangeFields {
        header: None,
        kvs,
        more: false,
        count: 0,
    }))
}

/// The last `RangeStreamResponse`.
pub fn stream_end(header: &Header, done: &RangeDone) -> Result<Encoded, Status> {
    Encoded::of(&StreamFields(RangeFields::of(Some(header), done)))
}

/// The fields of a `WatchResponse` except its events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchReply {
    pub header: Header,
    /// The watch, or -1.
    pub watch_id: i64,
    /// Whether this answers a create request.
    pub created: bool,
    /// Whether the watch has ended.
    pub canceled: bool,
    /// The oldest revision that can be read, if the watch ended because of a compaction.
    pub compact_revision: i64,
    /// Why the watch was not created.
    pub cancel_reason: &'static str,
    /// Whether more events of the same revisions follow.
    pub fragment: bool,
}

impl WatchReply {
    /// Length of the message without events.
    pub(super) fn encoded_len(&self) -> usize {
        message_len(self)
    }
}

impl Frames {
    /// Adds a `WatchResponse`. The events are already encoded, each as a field.
    pub fn add_watch(&mut self, reply: &WatchReply, events: Bytes) -> Result<(), Status> {
        self.add(&WatchFields { reply, events })
    }
}

impl Header {
    /// The header of a response inside a transaction.
    fn inner(revision: Revision) -> Self {
        Self {
            revision,
            ..Self::default()
        }
    }
}

impl Fields for Header {
    fn write(&self, out: &mut impl Sink) {
        out.number(1, self.cluster.0);
        out.number(2, self.member.0);
        out.number(3, self.revision.0.cast_unsigned());
        out.number(4, self.term.0);
    }
}

impl Fields for WatchReply {
    fn write(&self, out: &mut impl Sink) {
        out.leaf(1, &self.header);
        out.number(2, self.watch_id.cast_unsigned());
        out.number(3, u64::from(self.created));
        out.number(4, u64::from(self.canceled));
        out.number(5, self.compact_revision.cast_unsigned());
        out.text(6, self.cancel_reason);
        out.number(7, u64::from(self.fragment));
    }
}

struct WatchFields<'a> {
    reply: &'a WatchReply,
    events: Bytes,
}

impl Fields for WatchFields<'_> {
    fn write(&self, out: &mut impl Sink) {
        self.reply.write(out);
        out.spliced(&self.events);
    }
}

/// `RangeResponse`; the chunks of a stream leave out some fields.
struct RangeFields<'a> {
    header: Option<&'a Header>,
    kvs: &'a [EncodedKv],
    more: bool,
    count: i64,
}

impl<'a> RangeFields<'a> {
    fn of(header: Option<&'a Header>, done: &'a RangeDone) -> Self {
        Self {
            header,
            kvs: &done.kvs,
            more: done.more,
            count: done.count,
        }
    }
}

impl Fields for RangeFields<'_> {
    fn write(&self, out: &mut impl Sink) {
        if let Some(header) = self.header {
            out.leaf(1, header);
        }
        let copied = self.kvs.len() >= COPIED_MIN;
        for kv in self.kvs {
            out.length_delimited(2, kv.len());
            // A record that shares its memory with others is copied: a response that waits for its client would keep all of
            // that memory.
            if kv.len() >= SPLICED_BYTES_MIN && (copied || kv.is_unique()) {
                out.spliced(kv);
            } else {
                out.copied(kv);
            }
        }
        out.number(3, u64::from(self.more));
        out.number(4, self.count.cast_unsigned());
    }
}

struct StreamFields<'a>(RangeFields<'a>);

impl Fields for StreamFields<'_> {
    fn write(&self, out: &mut impl Sink) {
        out.nested(1, &self.0);
    }
}

/// A response whose field 1 is its header, as in every response except the chunks of a stream.
struct Response<'a, D> {
    header: &'a Header,
    done: &'a D,
}

impl Fields for Response<'_, ()> {
    fn write(&self, out: &mut impl Sink) {
        out.leaf(1, self.header);
    }
}

impl Fields for Response<'_, PutDone> {
    fn write(&self, out: &mut impl Sink) {
        out.leaf(1, self.header);
        kvs(out, 2, self.done.prev.as_slice());
    }
}

impl Fields for Response<'_, DeleteRangeDone> {
    fn write(&self, out: &mut impl Sink) {
        out.leaf(1, self.header);
        out.number(2, self.done.deleted.cast_unsigned());
        kvs(out, 3, &self.done.prevs);
    }
}

impl Fields for Response<'_, TxnDone> {
    fn write(&self, out: &mut impl Sink) {
        out.leaf(1, self.header);
        out.number(2, u64::from(self.done.succeeded));
        for op in &self.done.responses {
            out.nested(3, op);
        }
    }
}

/// `ResponseOp`.
impl Fields for OpDone {
    fn write(&self, out: &mut impl Sink) {
        let header = &Header::inner(match self {
            Self::Range(done) => done.revision,
            Self::Put(done) => done.revision,
            Self::DeleteRange(done) => done.revision,
            // etcd: the header of a nested transaction is empty.
            Self::Txn(_) => Revision(0),
        });
        match self {
            Self::Range(done) => out.nested(1, &RangeFields::of(Some(header), done)),
            Self::Put(done) => out.nested(2, &Response { header, done }),
            Self::DeleteRange(done) => out.nested(3, &Response { header, done }),
            Self::Txn(done) => out.nested(4, &Response { header, done }),
        }
    }
}

fn kvs(out: &mut impl Sink, field: u8, kvs: &[EncodedKv]) {
    for kv in kvs {
        out.length_delimited(field, kv.len());
        out.copied(kv);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::proto::{etcdserverpb as pb, mvccpb},
        kv::record::{Fields, encode},
        types::LeaseId,
    };
    use bytes::Buf;
    use pb::response_op::Response as OpResponse;
    use proptest::prelude::*;
    use prost::Message;

    const HEADER: Header = Header {
        cluster: ClusterId(u64::MAX),
        member: MemberId(2),
        revision: Revision(300),
        term: Term(4),
    };

    /// Checks that the frame has the bytes that the generated encoder produces for `expected`.
    fn assert_sends<M: Message + Default + PartialEq + std::fmt::Debug>(
        encoded: Result<Encoded, Status>,
        expected: &M,
    ) {
        let frame = encoded.unwrap().into_frame().into_bytes();
        let message = expected.encode_to_vec();
        assert_eq!(frame[0], 0, "not compressed");
        assert_eq!(
            frame[1..5],
            u32::try_from(message.len()).unwrap().to_be_bytes(),
            "length"
        );
        assert_eq!(&M::decode(&frame[5..]).unwrap(), expected, "decoded");
        assert_eq!(frame[5..], message, "byte for byte");
    }

    fn header_pb() -> pb::ResponseHeader {
        HEADER.into()
    }

    fn inner_pb(revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            revision,
            ..Default::default()
        }
    }

    fn kv_pb(key: &str, version: i64) -> mvccpb::KeyValue {
        mvccpb::KeyValue {
            key: key.to_owned().into(),
            create_revision: 2,
            mod_revision: 300,
            version,
            value: "value".repeat(40).into(),
            lease: -7,
        }
    }

    fn kv(key: &str, version: i64) -> EncodedKv {
        encode(&Fields {
            key: key.as_bytes(),
            create_revision: Revision(2),
            mod_revision: Revision(300),
            version,
            value: "value".repeat(40).as_bytes(),
            lease: LeaseId(-7),
        })
    }

    #[test]
    fn a_range_is_spliced() {
        let done = RangeDone {
            revision: Revision(300),
            kvs: vec![kv("a", 1), kv("b", 2)],
            more: true,
            count: 1_000,
        };
        let expected = pb::RangeResponse {
            header: Some(header_pb()),
            kvs: vec![kv_pb("a", 1), kv_pb("b", 2)],
            more: true,
            count: 1_000,
        };
        assert_sends(range(&HEADER, &done), &expected);
        let empty = pb::RangeResponse {
            header: Some(header_pb()),
            ..Default::default()
        };
        assert_sends(range(&HEADER, &RangeDone::default()), &empty);
    }

    #[test]
    fn long_records_that_share_no_memory_are_not_copied() {
        let long = |len: usize| Bytes::from(vec![7; len]);
        let held = long(SPLICED_BYTES_MIN);
        let alone = [long(5 * SPLICED_BYTES_MIN), long(SPLICED_BYTES_MIN)];
        let at = alone.each_ref().map(|kv| kv.as_ptr());
        let [first, second] = alone;
        let short = long(SPLICED_BYTES_MIN - 1);
        let done = RangeDone {
            kvs: vec![first, held.clone(), short, second],
            count: 4,
            ..RangeDone::default()
        };
        let shared = done.kvs.clone();
        let all_shared = RangeDone {
            kvs: shared,
            ..RangeDone {
                count: 4,
                ..RangeDone::default()
            }
        };
        let expected = range(&HEADER, &all_shared).unwrap().into_frame();
        assert_eq!(expected.chunk().len(), expected.remaining(), "one piece");
        drop(all_shared);
        let mut frame = range(&HEADER, &done).unwrap().into_frame();
        assert_eq!(frame.clone().into_bytes(), expected.into_bytes());
        let mut spliced = Vec::new();
        while frame.has_remaining() {
            spliced.push(frame.chunk().as_ptr());
            frame.advance(frame.chunk().len());
        }
        assert_eq!(spliced.len(), 5, "copied, long, copied, long, copied");
        assert_eq!([spliced[1], spliced[3]], at);
    }

    #[test]
    fn writes_are_spliced() {
        let done = PutDone {
            revision: Revision(300),
            prev: Some(kv("a", 1)),
        };
        let expected = pb::PutResponse {
            header: Some(header_pb()),
            prev_kv: Some(kv_pb("a", 1)),
        };
        assert_sends(put(&HEADER, &done), &expected);
        let bare = pb::PutResponse {
            header: Some(header_pb()),
            prev_kv: None,
        };
        assert_sends(put(&HEADER, &PutDone::default()), &bare);

        let prevs = vec![kv("a", 1), kv("b", 2)];
        let done = DeleteRangeDone {
            revision: Revision(300),
            deleted: 2,
            prevs,
        };
        let prev_kvs = vec![kv_pb("a", 1), kv_pb("b", 2)];
        let expected = pb::DeleteRangeResponse {
            header: Some(header_pb()),
            deleted: 2,
            prev_kvs,
        };
        assert_sends(delete_range(&HEADER, &done), &expected);

        let compacted = pb::CompactionResponse {
            header: Some(header_pb()),
        };
        assert_sends(header_only(&HEADER), &compacted);
    }

    #[test]
    fn only_the_last_chunk_of_a_stream_has_a_header() {
        let chunk = pb::RangeResponse {
            kvs: vec![kv_pb("a", 1)],
            ..Default::default()
        };
        let expected = pb::RangeStreamResponse {
            range_response: Some(chunk),
        };
        assert_sends(stream_chunk(&[kv("a", 1)]), &expected);
        let done = RangeDone {
            revision: Revision(300),
            kvs: vec![kv("b", 1)],
            more: true,
            count: 9,
        };
        let last = pb::RangeResponse {
            header: Some(header_pb()),
            kvs: vec![kv_pb("b", 1)],
            more: true,
            count: 9,
        };
        let expected = pb::RangeStreamResponse {
            range_response: Some(last),
        };
        assert_sends(stream_end(&HEADER, &done), &expected);
    }

    /// Every kind of response, inside `depth` nested transactions.
    fn ops(depth: usize) -> Vec<OpDone> {
        let (revision, prev) = (Revision(7), Some(kv("a", 1)));
        let mut ops = vec![
            OpDone::Range(RangeDone {
                revision,
                kvs: vec![kv("b", 2)],
                more: true,
                count: 3,
            }),
            OpDone::Put(PutDone {
                revision,
                prev: prev.clone(),
            }),
            OpDone::DeleteRange(DeleteRangeDone {
                revision,
                deleted: 1,
                prevs: prev.into_iter().collect(),
            }),
        ];
        if depth > 0 {
            let (succeeded, responses) = (depth.is_multiple_of(2), self::ops(depth - 1));
            ops.push(OpDone::Txn(TxnDone {
                revision,
                succeeded,
                responses,
            }));
        }
        ops
    }

    fn ops_pb(depth: usize) -> Vec<pb::ResponseOp> {
        let header = Some(inner_pb(7));
        let mut ops = vec![
            OpResponse::ResponseRange(pb::RangeResponse {
                header,
                kvs: vec![kv_pb("b", 2)],
                more: true,
                count: 3,
            }),
            OpResponse::ResponsePut(pb::PutResponse {
                header,
                prev_kv: Some(kv_pb("a", 1)),
            }),
            OpResponse::ResponseDeleteRange(pb::DeleteRangeResponse {
                header,
                deleted: 1,
                prev_kvs: vec![kv_pb("a", 1)],
            }),
        ];
        if depth > 0 {
            ops.push(OpResponse::ResponseTxn(pb::TxnResponse {
                header: Some(pb::ResponseHeader::default()),
                succeeded: depth.is_multiple_of(2),
                responses: ops_pb(depth - 1),
            }));
        }
        ops.into_iter()
            .map(|op| pb::ResponseOp { response: Some(op) })
            .collect()
    }

    #[test]
    fn transactions_nest() {
        let done = TxnDone {
            revision: Revision(300),
            succeeded: true,
            responses: ops(5),
        };
        let expected = pb::TxnResponse {
            header: Some(header_pb()),
            succeeded: true,
            responses: ops_pb(5),
        };
        assert_sends(txn(&HEADER, &done), &expected);
        let empty = pb::TxnResponse {
            header: Some(header_pb()),
            ..Default::default()
        };
        assert_sends(txn(&HEADER, &TxnDone::default()), &empty);
    }

    proptest! {
        #[test]
        fn lengths_are_exact_for_every_size(
            cluster: u64, member: u64, revision: i64, term: u64, count: i64, more: bool, len in 0..70_000usize,
        ) {
            let header = Header {
                cluster: ClusterId(cluster),
                member: MemberId(member),
                revision: Revision(revision),
                term: Term(term),
            };
            let value = vec![b'v'; len];
            let kvs = vec![encode(&Fields { value: &value, ..Fields::default() })];
            let done = RangeDone { revision: Revision(revision), kvs, more, count };
            let kvs = vec![mvccpb::KeyValue { value: value.into(), ..Default::default() }];
            let expected = pb::RangeResponse { header: Some(header.into()), kvs, more, count };
            assert_sends(range(&header, &done), &expected);
        }
    }
}
