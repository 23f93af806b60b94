//! Answers as gRPC frames. A stored `KeyValue` is spliced into the answer as it is; nothing is decoded or encoded again.
//!
//! An [`Encoded`] is a whole gRPC frame: one byte that says "not compressed", four bytes of length, the message. Its size is
//! known before the first byte is written, so it is written into one buffer once and sent from there. What is long and was
//! stored or encoded before is not even copied into that buffer: it is sent from where it is, between pieces of the buffer.

use super::{payload::Payload, status::Status};
use crate::{
    kv::{
        command::{DeleteRangeDone, EncodedKv, OpDone, PutDone, RangeDone, TxnDone},
        range::COPIED_MIN,
        record::{put_varint, varint_len},
    },
    types::{ClusterId, MemberId, Revision, Term},
};
use bytes::Bytes;

/// Bytes before each gRPC message: a compression flag and the length.
pub const PREFIX_BYTES: usize = 5;

/// From this length on, bytes that are there already are sent from where they are: a piece of its own costs as much as copying
/// some hundred bytes.
pub const SPLICED_BYTES_MIN: usize = 1024;

/// The longest message gRPC implementations send and receive.
const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;

/// Which member answered, and what it knew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member that answered.
    pub member: MemberId,
    /// The store's revision.
    pub revision: Revision,
    /// The member's term.
    pub term: Term,
}

/// An encoded answer: one gRPC frame, or several behind each other.
#[derive(Clone, Debug)]
pub struct Encoded(Payload);

/// Frames on their way to becoming one [`Encoded`].
#[derive(Debug, Default)]
pub struct Frames {
    /// All that is written here.
    written: Vec<u8>,
    /// What is sent from where it is, and how much of `written` precedes it.
    spliced: Vec<(usize, Bytes)>,
    spliced_bytes: usize,
}

impl Frames {
    /// None yet, and room to write so many bytes of them.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            written: Vec::with_capacity(bytes),
            ..Self::default()
        }
    }

    /// Bytes of all frames so far.
    pub fn len(&self) -> usize {
        self.written.len() + self.spliced_bytes
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a `WatchResponse`. The events are encoded already, each as its field.
    pub fn add_watch(&mut self, reply: &WatchReply, events: Bytes) -> Result<(), Status> {
        self.add(reply.len() + events.len(), |out| {
            reply.write(&mut out.written);
            out.splice(events);
        })
    }

    /// Adds a message of exactly `len` bytes behind its prefix.
    fn add(&mut self, len: usize, body: impl FnOnce(&mut Self)) -> Result<(), Status> {
        let prefix = match u32::try_from(len) {
            Ok(prefix) if len <= MESSAGE_BYTES_MAX => prefix,
            Ok(_) | Err(_) => return Err(Status::sent_too_large(len, MESSAGE_BYTES_MAX)),
        };
        let start = self.len();
        self.written.push(0);
        self.written.extend_from_slice(&prefix.to_be_bytes());
        body(self);
        assert_eq!(
            self.len() - start,
            PREFIX_BYTES + len,
            "the length was computed from the same answer"
        );
        Ok(())
    }

    /// Adds bytes, without a copy if they are many.
    fn splice(&mut self, bytes: Bytes) {
        if bytes.len() < SPLICED_BYTES_MIN {
            self.written.extend_from_slice(&bytes);
        } else {
            self.spliced_bytes += bytes.len();
            self.spliced.push((self.written.len(), bytes));
        }
    }
}

impl From<Frames> for Encoded {
    fn from(frames: Frames) -> Self {
        let mut written = Bytes::from(frames.written);
        if frames.spliced.is_empty() {
            return Self(written.into());
        }
        let (mut payload, mut passed) = (Payload::default(), 0);
        for (at, bytes) in frames.spliced {
            payload.push(written.split_to(at - passed));
            payload.push(bytes);
            passed = at;
        }
        payload.push(written);
        Self(payload)
    }
}

impl Encoded {
    /// Encodes a generated message.
    pub fn message(message: &impl prost::Message) -> Result<Self, Status> {
        Self::write(message.encoded_len(), |out| {
            message.encode_raw(out);
        })
    }

    /// What [`Encoded::into_frame`] gave.
    pub fn from_frame(frame: Payload) -> Self {
        Self(frame)
    }

    /// The whole frame, prefix included.
    pub fn into_frame(self) -> Payload {
        self.0
    }

    /// Writes a message of exactly `len` bytes behind its prefix.
    fn write(len: usize, body: impl FnOnce(&mut Vec<u8>)) -> Result<Self, Status> {
        let mut frames = Frames::with_capacity(PREFIX_BYTES + len.min(MESSAGE_BYTES_MAX));
        frames.add(len, |out| body(&mut out.written))?;
        Ok(frames.into())
    }
}

/// `RangeResponse`. Long records that are in memory for it alone become part of it as they are, so it is in memory once.
pub fn range(header: &Header, done: RangeDone) -> Result<Encoded, Status> {
    let parts = RangeParts::of(Some(header), &done);
    let len = parts.len();
    let apart = done.kvs.len() >= COPIED_MIN;
    // Others are part of a batch, all of which an answer that waits for its client would keep in memory.
    let is_spliced = |kv: &EncodedKv| kv.len() >= SPLICED_BYTES_MIN && (apart || kv.is_unique());
    let spliced: usize = done
        .kvs
        .iter()
        .filter(|kv| is_spliced(kv))
        .map(Bytes::len)
        .sum();
    if spliced == 0 {
        return Encoded::write(len, |out| parts.write(out));
    }
    let RangeDone {
        kvs, more, count, ..
    } = done;
    let mut frames = Frames::with_capacity(PREFIX_BYTES + len.saturating_sub(spliced));
    frames.add(len, |out| {
        header.write(&mut out.written);
        for kv in kvs {
            put_nested(&mut out.written, 2, kv.len());
            if is_spliced(&kv) {
                out.splice(kv);
            } else {
                out.written.extend_from_slice(&kv);
            }
        }
        put_number(&mut out.written, 3, u64::from(more));
        put_number(&mut out.written, 4, count.cast_unsigned());
    })?;
    Ok(frames.into())
}

/// `PutResponse`.
pub fn put(header: &Header, done: &PutDone) -> Result<Encoded, Status> {
    Encoded::write(put_len(header, done), |out| write_put(out, header, done))
}

/// `DeleteRangeResponse`.
pub fn delete_range(header: &Header, done: &DeleteRangeDone) -> Result<Encoded, Status> {
    Encoded::write(delete_len(header, done), |out| {
        write_delete(out, header, done);
    })
}

/// `TxnResponse`. Inner answers carry the revision alone in their header, nested transactions an empty header.
pub fn txn(header: &Header, done: &TxnDone) -> Result<Encoded, Status> {
    Encoded::write(txn_len(header, done), |out| write_txn(out, header, done))
}

/// `CompactionResponse`, and every other answer that is a header alone.
pub fn header_only(header: &Header) -> Result<Encoded, Status> {
    Encoded::write(nested_len(header.len()), |out| header.write(out))
}

/// A `RangeStreamResponse` before the last: keys and nothing else.
pub fn stream_chunk(kvs: &[EncodedKv]) -> Result<Encoded, Status> {
    stream(&RangeParts {
        header: None,
        kvs,
        more: false,
        count: 0,
    })
}

/// The last `RangeStreamResponse`.
pub fn stream_end(header: &Header, done: &RangeDone) -> Result<Encoded, Status> {
    stream(&RangeParts::of(Some(header), done))
}

/// What a `WatchResponse` says besides its events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchReply {
    /// Who answers.
    pub header: Header,
    /// The watch, or -1.
    pub watch_id: i64,
    /// Answers a create request.
    pub created: bool,
    /// The watch is over.
    pub canceled: bool,
    /// Where history begins, if the watch ended for that.
    pub compact_revision: i64,
    /// Why there is no watch.
    pub cancel_reason: &'static str,
    /// More of the same revisions follows.
    pub fragment: bool,
}

impl WatchReply {
    /// Length of the message without events.
    pub fn len(&self) -> usize {
        let numbers = [
            self.watch_id.cast_unsigned(),
            u64::from(self.created),
            u64::from(self.canceled),
            self.compact_revision.cast_unsigned(),
            u64::from(self.fragment),
        ];
        let reason = match self.cancel_reason.len() {
            0 => 0,
            len => nested_len(len),
        };
        let numbers: usize = numbers.into_iter().map(number_len).sum();
        nested_len(self.header.len()) + numbers + reason
    }

    /// Whether it says nothing, which it never does: there is a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.header.write(out);
        put_number(out, 2, self.watch_id.cast_unsigned());
        put_number(out, 3, u64::from(self.created));
        put_number(out, 4, u64::from(self.canceled));
        put_number(out, 5, self.compact_revision.cast_unsigned());
        if !self.cancel_reason.is_empty() {
            put_nested(out, 6, self.cancel_reason.len());
            out.extend_from_slice(self.cancel_reason.as_bytes());
        }
        put_number(out, 7, u64::from(self.fragment));
    }
}

fn stream(parts: &RangeParts<'_>) -> Result<Encoded, Status> {
    Encoded::write(nested_len(parts.len()), |out| {
        put_nested(out, 1, parts.len());
        parts.write(out);
    })
}

impl Header {
    /// The header of an answer inside a transaction.
    fn inner(revision: Revision) -> Self {
        Self {
            revision,
            ..Self::default()
        }
    }

    fn len(&self) -> usize {
        number_len(self.cluster.0)
            + number_len(self.member.0)
            + number_len(self.revision.0.cast_unsigned())
            + number_len(self.term.0)
    }

    /// Every answer has it as field 1.
    fn write(&self, out: &mut Vec<u8>) {
        put_nested(out, 1, self.len());
        put_number(out, 1, self.cluster.0);
        put_number(out, 2, self.member.0);
        put_number(out, 3, self.revision.0.cast_unsigned());
        put_number(out, 4, self.term.0);
    }
}

/// The fields of a `RangeResponse`; the chunks of a stream leave some out.
struct RangeParts<'a> {
    header: Option<&'a Header>,
    kvs: &'a [EncodedKv],
    more: bool,
    count: i64,
}

impl<'a> RangeParts<'a> {
    fn of(header: Option<&'a Header>, done: &'a RangeDone) -> Self {
        Self {
            header,
            kvs: &done.kvs,
            more: done.more,
            count: done.count,
        }
    }

    fn len(&self) -> usize {
        self.header.map_or(0, |header| nested_len(header.len()))
            + kvs_len(self.kvs)
            + number_len(u64::from(self.more))
            + number_len(self.count.cast_unsigned())
    }

    fn write(&self, out: &mut Vec<u8>) {
        if let Some(header) = self.header {
            header.write(out);
        }
        put_kvs(out, 2, self.kvs);
        put_number(out, 3, u64::from(self.more));
        put_number(out, 4, self.count.cast_unsigned());
    }
}

fn put_len(header: &Header, done: &PutDone) -> usize {
    nested_len(header.len()) + kvs_len(done.prev.as_slice())
}

fn write_put(out: &mut Vec<u8>, header: &Header, done: &PutDone) {
    header.write(out);
    put_kvs(out, 2, done.prev.as_slice());
}

fn delete_len(header: &Header, done: &DeleteRangeDone) -> usize {
    nested_len(header.len()) + number_len(done.deleted.cast_unsigned()) + kvs_len(&done.prevs)
}

fn write_delete(out: &mut Vec<u8>, header: &Header, done: &DeleteRangeDone) {
    header.write(out);
    put_number(out, 2, done.deleted.cast_unsigned());
    put_kvs(out, 3, &done.prevs);
}

/// Each level of nesting is measured once for every level around it; the decoder bounds the depth of requests.
fn txn_len(header: &Header, done: &TxnDone) -> usize {
    let responses = done
        .responses
        .iter()
        .map(|op| nested_len(nested_len(op_len(op))));
    nested_len(header.len()) + number_len(u64::from(done.succeeded)) + responses.sum::<usize>()
}

fn write_txn(out: &mut Vec<u8>, header: &Header, done: &TxnDone) {
    header.write(out);
    put_number(out, 2, u64::from(done.succeeded));
    for op in &done.responses {
        let len = op_len(op);
        put_nested(out, 3, nested_len(len));
        write_op(out, op, len);
    }
}

fn op_len(op: &OpDone) -> usize {
    match op {
        OpDone::Range(done) => RangeParts::of(Some(&Header::inner(done.revision)), done).len(),
        OpDone::Put(done) => put_len(&Header::inner(done.revision), done),
        OpDone::DeleteRange(done) => delete_len(&Header::inner(done.revision), done),
        OpDone::Txn(done) => txn_len(&Header::default(), done),
    }
}

/// Writes the member of a `ResponseOp`, whose message takes `len` bytes.
fn write_op(out: &mut Vec<u8>, op: &OpDone, len: usize) {
    match op {
        OpDone::Range(done) => {
            put_nested(out, 1, len);
            RangeParts::of(Some(&Header::inner(done.revision)), done).write(out);
        }
        OpDone::Put(done) => {
            put_nested(out, 2, len);
            write_put(out, &Header::inner(done.revision), done);
        }
        OpDone::DeleteRange(done) => {
            put_nested(out, 3, len);
            write_delete(out, &Header::inner(done.revision), done);
        }
        OpDone::Txn(done) => {
            put_nested(out, 4, len);
            write_txn(out, &Header::default(), done);
        }
    }
}

/// Bytes of a nested message of `len` bytes with its tag and length; all field numbers here take one byte.
fn nested_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

fn put_nested(out: &mut Vec<u8>, field: u8, len: usize) {
    out.push(field << 3 | 2);
    put_varint(out, len as u64);
}

fn number_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

fn put_number(out: &mut Vec<u8>, field: u8, value: u64) {
    if value != 0 {
        out.push(field << 3);
        put_varint(out, value);
    }
}

fn kvs_len(kvs: &[EncodedKv]) -> usize {
    kvs.iter().map(|kv| nested_len(kv.len())).sum()
}

fn put_kvs(out: &mut Vec<u8>, field: u8, kvs: &[EncodedKv]) {
    for kv in kvs {
        put_nested(out, field, kv.len());
        out.extend_from_slice(kv);
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
    use pb::response_op::Response;
    use proptest::prelude::*;
    use prost::Message;

    const HEADER: Header = Header {
        cluster: ClusterId(u64::MAX),
        member: MemberId(2),
        revision: Revision(300),
        term: Term(4),
    };

    /// The frame must be what the generated encoder would send for `expected`.
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
        assert_sends(range(&HEADER, done), &expected);
        let empty = pb::RangeResponse {
            header: Some(header_pb()),
            ..Default::default()
        };
        assert_sends(range(&HEADER, RangeDone::default()), &empty);
    }

    #[test]
    fn long_records_that_nobody_else_holds_are_sent_from_where_they_are() {
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
        let copied = RangeParts::of(Some(&HEADER), &done);
        let mut expected = Vec::new();
        copied.write(&mut expected);
        let mut frame = range(&HEADER, done).unwrap().into_frame();
        assert_eq!(frame.clone().into_bytes()[PREFIX_BYTES..], expected);
        let mut spliced = Vec::new();
        while frame.has_remaining() {
            spliced.push(frame.chunk().as_ptr());
            frame.advance(frame.chunk().len());
        }
        assert_eq!(spliced.len(), 5, "written, long, written, long, written");
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
    fn only_the_last_part_of_a_stream_has_a_header() {
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

    /// Every kind of answer, `depth` transactions deep.
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
            Response::ResponseRange(pb::RangeResponse {
                header,
                kvs: vec![kv_pb("b", 2)],
                more: true,
                count: 3,
            }),
            Response::ResponsePut(pb::PutResponse {
                header,
                prev_kv: Some(kv_pb("a", 1)),
            }),
            Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                header,
                deleted: 1,
                prev_kvs: vec![kv_pb("a", 1)],
            }),
        ];
        if depth > 0 {
            ops.push(Response::ResponseTxn(pb::TxnResponse {
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
        fn lengths_are_exact_at_every_size(
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
            assert_sends(range(&header, done), &expected);
        }
    }
}
