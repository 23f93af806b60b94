//! Encoded gRPC frames, and the encoder that writes messages into them.
//!
//! A frame is a prefix of five bytes (a flag for compression, the length) and a message. Protobuf puts the length of a message
//! before its bytes, so each message is visited twice: a `Measure` adds up the lengths, then [`Frames`] stores the bytes. Both
//! are a `Sink`, so the fields of a message are listed once, in `Fields::write`.
//!
//! Bytes that exist already, such as stored records, are not copied if they are long: the frame refers to them, between pieces
//! of the buffer that everything else is written to.

use super::{
    answer_budget::{Budget, Charge},
    payload::Payload,
    status::Status,
};
use crate::kv::record::{put_varint, varint_len};
use bytes::{Buf, Bytes};
use std::sync::Arc;

/// Bytes before each gRPC message: a compression flag and the length.
pub const PREFIX_BYTES: usize = 5;

/// Existing bytes of at least this length are referred to, not copied: a separate piece costs about as much as copying some
/// hundred bytes.
pub const SPLICED_BYTES_MIN: usize = 1024;

/// The longest message that gRPC implementations send and receive.
const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;

/// The fields of a protobuf message. All field numbers used here are below 16, so a tag takes one byte.
pub(super) trait Fields {
    fn write(&self, out: &mut impl Sink);
}

/// What the fields of a message are written to.
pub(super) trait Sink: Sized {
    /// Bytes that are copied.
    fn copied(&mut self, bytes: &[u8]);

    /// Bytes that are copied only if they are short.
    fn spliced(&mut self, bytes: &Bytes);

    fn varint(&mut self, value: u64);

    /// The tag of a field of wire type 2, and the length of what follows.
    fn length_delimited(&mut self, field: u8, len: usize) {
        self.copied(&[field << 3 | 2]);
        self.varint(len as u64);
    }

    /// An integer or a bool; protobuf leaves out zero.
    fn number(&mut self, field: u8, value: u64) {
        if value != 0 {
            self.copied(&[field << 3]);
            self.varint(value);
        }
    }

    fn text(&mut self, field: u8, text: &str) {
        if !text.is_empty() {
            self.length_delimited(field, text.len());
            self.copied(text.as_bytes());
        }
    }

    /// A message that contains no other messages. Each sink computes its length anew, so the length is not stored.
    fn leaf(&mut self, field: u8, message: &impl Fields) {
        self.length_delimited(field, Measure::of(message).len());
        message.write(self);
    }

    /// A message that contains others. Its length is computed once, however deep it is nested.
    fn nested(&mut self, field: u8, message: &impl Fields);
}

/// Adds up the length of a message.
#[derive(Debug, Default)]
struct Measure {
    copied: usize,
    spliced: usize,
    /// The lengths of nested messages, in the order in which they begin.
    nested: Vec<usize>,
}

impl Measure {
    fn of(message: &impl Fields) -> Self {
        let mut measure = Self::default();
        message.write(&mut measure);
        measure
    }

    fn len(&self) -> usize {
        self.copied + self.spliced
    }

    /// The prefix of the message's frame.
    fn prefix(&self) -> Result<[u8; PREFIX_BYTES], Status> {
        prefix(self.len())
    }
}

fn prefix(len: usize) -> Result<[u8; PREFIX_BYTES], Status> {
    match u32::try_from(len) {
        Ok(short) if len <= MESSAGE_BYTES_MAX => {
            let [a, b, c, d] = short.to_be_bytes();
            Ok([0, a, b, c, d])
        }
        Ok(_) | Err(_) => Err(Status::sent_too_large(len, MESSAGE_BYTES_MAX)),
    }
}

impl Sink for Measure {
    fn copied(&mut self, bytes: &[u8]) {
        self.copied += bytes.len();
    }

    fn spliced(&mut self, bytes: &Bytes) {
        if is_long(bytes) {
            self.spliced += bytes.len();
        } else {
            self.copied += bytes.len();
        }
    }

    fn varint(&mut self, value: u64) {
        self.copied += varint_len(value);
    }

    fn nested(&mut self, field: u8, message: &impl Fields) {
        let (at, before) = (self.nested.len(), self.len());
        self.nested.push(0);
        message.write(self);
        let len = self.len() - before;
        self.nested[at] = len;
        self.length_delimited(field, len);
    }
}

/// Gathers frames that become one [`Encoded`].
#[derive(Debug, Default)]
pub struct Frames {
    /// Everything that is copied.
    written: Vec<u8>,
    /// What is not copied, each with its position in `written`.
    spliced: Vec<(usize, Bytes)>,
    spliced_bytes: usize,
    /// The lengths of the nested messages that are still to be written.
    nested: std::vec::IntoIter<usize>,
}

impl Frames {
    /// No frames yet, and capacity for `bytes` of them.
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

    /// Whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a message with its prefix.
    pub(super) fn add(&mut self, message: &impl Fields) -> Result<(), Status> {
        self.add_measured(message, Measure::of(message))
    }

    fn add_measured(&mut self, message: &impl Fields, measure: Measure) -> Result<(), Status> {
        let prefix = measure.prefix()?;
        let end = self.len() + PREFIX_BYTES + measure.len();
        self.written.extend_from_slice(&prefix);
        self.nested = measure.nested.into_iter();
        message.write(self);
        assert_eq!(self.len(), end, "both sinks visited the same fields");
        Ok(())
    }
}

impl Sink for Frames {
    fn copied(&mut self, bytes: &[u8]) {
        self.written.extend_from_slice(bytes);
    }

    fn spliced(&mut self, bytes: &Bytes) {
        if is_long(bytes) {
            self.spliced_bytes += bytes.len();
            self.spliced.push((self.written.len(), bytes.clone()));
        } else {
            self.written.extend_from_slice(bytes);
        }
    }

    fn varint(&mut self, value: u64) {
        put_varint(&mut self.written, value);
    }

    fn nested(&mut self, field: u8, message: &impl Fields) {
        let len = self.nested.next();
        assert!(len.is_some(), "the measure visited this message too");
        self.length_delimited(field, len.unwrap_or_default());
        message.write(self);
    }
}

fn is_long(bytes: &Bytes) -> bool {
    bytes.len() >= SPLICED_BYTES_MIN
}

/// An encoded response: one gRPC frame, or several consecutive ones.
#[derive(Clone, Debug)]
pub struct Encoded(Payload);

impl Encoded {
    /// One frame with `message`.
    pub(super) fn of(message: &impl Fields) -> Result<Self, Status> {
        let measure = Measure::of(message);
        // Checked before the allocation: a message that is too long must not allocate.
        measure.prefix()?;
        let mut frames = Frames::with_capacity(PREFIX_BYTES + measure.copied);
        frames.add_measured(message, measure)?;
        Ok(frames.into())
    }

    /// The inverse of [`Encoded::into_frame`].
    pub fn from_frame(frame: Payload) -> Self {
        Self(frame)
    }

    /// All bytes, prefixes included.
    pub fn into_frame(self) -> Payload {
        self.0
    }

    /// How many bytes, prefixes included.
    pub fn len(&self) -> usize {
        self.0.remaining()
    }

    /// Whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts the bytes as unsent, unless they count already.
    #[must_use]
    pub(super) fn counted(self, budget: &Arc<Budget>) -> Self {
        if self.0.is_charged() {
            return self;
        }
        let len = self.len();
        self.charged(budget.unsent(len))
    }

    /// Counts the bytes against a budget until they are sent.
    #[must_use]
    pub(super) fn charged(self, charge: Charge) -> Self {
        Self(self.0.charged(charge))
    }

    /// The fields of a message without a prefix: a part of a message whose frame has begun.
    pub(super) fn part(fields: &impl Fields) -> Self {
        let measure = Measure::of(fields);
        let mut frames = Frames::with_capacity(measure.copied);
        frames.nested = measure.nested.into_iter();
        fields.write(&mut frames);
        frames.into()
    }

    /// The beginning of a frame: the prefix of a message of `len` bytes, and its first fields.
    pub(super) fn beginning(len: usize, fields: &impl Fields) -> Result<Self, Status> {
        let mut frames = Frames::default();
        frames.written.extend_from_slice(&prefix(len)?);
        fields.write(&mut frames);
        Ok(frames.into())
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

/// The length of a message without its prefix.
pub(super) fn message_len(message: &impl Fields) -> usize {
    Measure::of(message).len()
}
