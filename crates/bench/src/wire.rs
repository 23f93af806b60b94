//! Hand-written encoding and decoding of the few etcd v3 messages that the load generator uses.
//!
//! A load generator shares the machine with the server it measures, so it encodes requests straight into one
//! reused buffer and looks only at the fields it checks. Replies are input: a malformed one is a
//! [`WireError`], never a panic. Field numbers follow etcd's `rpc.proto` and `kv.proto`.

use bytes::{BufMut, Bytes, BytesMut};

/// gRPC's prefix of each message: one compression byte and four of length.
pub(super) const PREFIX_BYTES: usize = 5;

/// Room reserved for one request before it is written; larger ones make the buffer grow.
const REQUEST_BYTES_HINT: usize = 512;

/// A reply that is not the protobuf message it should be. Retrying does not help.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// The message ends inside a field.
    #[error("reply ends inside a field")]
    Truncated,
    /// A varint is longer than ten bytes.
    #[error("reply has a varint longer than ten bytes")]
    Varint,
    /// A wire type that proto3 messages do not use.
    #[error("reply has a field of unknown wire type {0}")]
    WireType(u64),
}

/// Writes one gRPC message: its prefix, then what `body` writes. The buffer is left empty for the next one.
pub(super) fn message(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) -> Bytes {
    assert!(
        out.is_empty(),
        "the request buffer must be empty: each message is split off whole"
    );
    out.reserve(REQUEST_BYTES_HINT);
    out.put_bytes(0, PREFIX_BYTES);
    body(out);
    let length =
        u32::try_from(out.len() - PREFIX_BYTES).expect("requests are bounded by the flags");
    out[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    out.split().freeze()
}

fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8((value & 0x7f) as u8);
}

/// Writes a number field; zero is proto3's default and is left out.
fn put_number(out: &mut impl BufMut, tag: u64, value: i64) {
    if value != 0 {
        put_varint(out, tag << 3);
        put_varint(out, value.cast_unsigned());
    }
}

/// Writes a bytes, string or message field.
fn put_bytes(out: &mut impl BufMut, tag: u64, value: &[u8]) {
    put_varint(out, tag << 3 | 2);
    put_varint(out, value.len() as u64);
    out.put_slice(value);
}

/// Writes a message field.
fn put_message(out: &mut impl BufMut, tag: u64, body: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::with_capacity(REQUEST_BYTES_HINT);
    body(&mut inner);
    put_bytes(out, tag, &inner);
}

/// The fields of a `RangeRequest` that the workloads use.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Range<'a> {
    pub(super) key: &'a [u8],
    pub(super) end: &'a [u8],
    pub(super) limit: i64,
    pub(super) serializable: bool,
    pub(super) count_only: bool,
}

impl Range<'_> {
    pub(super) fn encode(&self, out: &mut impl BufMut) {
        put_bytes(out, 1, self.key);
        if !self.end.is_empty() {
            put_bytes(out, 2, self.end);
        }
        put_number(out, 3, self.limit);
        put_number(out, 7, self.serializable.into());
        put_number(out, 9, self.count_only.into());
    }
}

pub(super) fn put(out: &mut impl BufMut, key: &[u8], value: &[u8], lease: i64) {
    put_bytes(out, 1, key);
    put_bytes(out, 2, value);
    put_number(out, 3, lease);
}

/// Writes texts as the first fields of a message: a login, a user, a role.
pub(super) fn texts(out: &mut impl BufMut, texts: &[&str]) {
    for (tag, text) in (1..).zip(texts) {
        put_bytes(out, tag, text.as_bytes());
    }
}

/// Writes an `AuthRoleGrantPermissionRequest`: to read and write a range.
pub(super) fn grant(out: &mut impl BufMut, role: &str, key: &[u8], range_end: &[u8]) {
    put_bytes(out, 1, role.as_bytes());
    put_message(out, 2, |permission| {
        put_number(permission, 1, 2);
        put_bytes(permission, 2, key);
        put_bytes(permission, 3, range_end);
    });
}

/// What a compare-and-swap does when the key's mod revision is the expected one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Swap<'a> {
    Put { value: &'a [u8], lease: i64 },
    Delete,
}

/// Writes a `TxnRequest`: if the key's mod revision is `expected` then `swap`, else (unless the key is
/// expected to be absent, as Kubernetes does it) read the key.
pub(super) fn swap(out: &mut impl BufMut, key: &[u8], expected: i64, swap: Swap<'_>) {
    put_message(out, 1, |compare| {
        put_number(compare, 2, 2); // target MOD; result EQUAL is zero
        put_bytes(compare, 3, key);
        put_varint(compare, 6 << 3); // a oneof's member is written even when zero
        put_varint(compare, expected.cast_unsigned());
    });
    put_message(out, 2, |operation| match swap {
        Swap::Put { value, lease } => put_message(operation, 2, |b| put(b, key, value, lease)),
        Swap::Delete => put_message(operation, 3, |b| put_bytes(b, 1, key)),
    });
    if expected != 0 {
        put_message(out, 3, |operation| {
            put_message(operation, 1, |b| {
                Range {
                    key,
                    ..Range::default()
                }
                .encode(b);
            });
        });
    }
}

/// The fields of a `WatchCreateRequest` that the workloads use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch<'a> {
    pub(super) key: &'a [u8],
    pub(super) end: &'a [u8],
    pub(super) start_revision: i64,
    pub(super) progress_notify: bool,
    pub(super) previous: bool,
}

impl<'a> Watch<'a> {
    /// A watcher of future events.
    pub(super) fn from_now_on(key: &'a [u8], end: &'a [u8]) -> Self {
        Self {
            key,
            end,
            start_revision: 0,
            progress_notify: false,
            previous: false,
        }
    }

    /// Writes the `WatchRequest` that creates the watcher.
    pub(super) fn encode(&self, out: &mut impl BufMut) {
        put_message(out, 1, |create| {
            put_bytes(create, 1, self.key);
            put_bytes(create, 2, self.end);
            put_number(create, 3, self.start_revision);
            put_number(create, 4, self.progress_notify.into());
            put_number(create, 6, self.previous.into());
        });
    }
}

/// Writes the `WatchRequest` that asks for progress.
pub(super) fn progress_request(out: &mut impl BufMut) {
    put_bytes(out, 3, &[]);
}

/// Writes a `LeaseGrantRequest` whose id the server chooses.
pub(super) fn lease_grant(out: &mut impl BufMut, ttl_secs: i64) {
    put_number(out, 1, ttl_secs);
}

pub(super) fn lease_keep_alive(out: &mut impl BufMut, id: i64) {
    put_number(out, 1, id);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(i64),
    /// Bytes, a string or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message, in wire order.
#[derive(Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0_u64;
        for (position, byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * position);
            if byte & 0x80 == 0 {
                self.0 = &self.0[position + 1..];
                return Ok(value);
            }
        }
        Err(if self.0.len() < 10 {
            WireError::Truncated
        } else {
            WireError::Varint
        })
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), WireError> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?.cast_signed()),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| WireError::Truncated)?;
                let (bytes, rest) = self
                    .0
                    .split_at_checked(length)
                    .ok_or(WireError::Truncated)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            other => return Err(WireError::WireType(other)),
        };
        Ok((key >> 3, value))
    }

    /// The first field `tag` that is a number; zero where there is none.
    pub(super) fn number(&self, tag: u64) -> Result<i64, WireError> {
        for field in Fields(self.0) {
            if let (found, Value::Number(number)) = field?
                && found == tag
            {
                return Ok(number);
            }
        }
        Ok(0)
    }

    /// The first field `tag` that is a message or bytes; empty where there is none.
    pub(super) fn bytes(&self, tag: u64) -> Result<&'a [u8], WireError> {
        for field in Fields(self.0) {
            if let (found, Value::Bytes(bytes)) = field?
                && found == tag
            {
                return Ok(bytes);
            }
        }
        Ok(&[])
    }

    /// The store revision in the reply's header.
    pub(super) fn header_revision(&self) -> Result<i64, WireError> {
        Fields(self.bytes(1)?).number(3)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// The outcome of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Swapped {
    /// It took effect at this revision.
    Done { revision: i64 },
    /// The key's mod revision is this one (zero: the key is absent, or the request did not ask).
    Conflict { found: i64 },
}

impl Swapped {
    /// Reads a `TxnResponse` to a request of [`swap`].
    pub(super) fn decode(reply: &[u8]) -> Result<Self, WireError> {
        let reply = Fields(reply);
        if reply.number(2)? != 0 {
            return Ok(Self::Done {
                revision: reply.header_revision()?,
            });
        }
        let range = Fields(reply.bytes(3)?).bytes(1)?;
        let found = Fields(Fields(range).bytes(2)?).number(3)?;
        Ok(Self::Conflict { found })
    }
}

/// One reply on a watch stream. Its events are read by [`WatchReply::values`].
#[derive(Clone, Copy, Debug)]
pub(super) struct WatchReply<'a> {
    reply: &'a [u8],
    pub(super) created: bool,
    pub(super) canceled: bool,
}

impl<'a> WatchReply<'a> {
    /// Reads what comes before the events.
    pub(super) fn decode(reply: &'a [u8]) -> Result<Self, WireError> {
        let mut decoded = Self {
            reply,
            created: false,
            canceled: false,
        };
        for field in Fields(reply) {
            match field? {
                (3, Value::Number(number)) => decoded.created = number != 0,
                (4, Value::Number(number)) => decoded.canceled = number != 0,
                (11, _) => break, // servers write fields in order: nothing but events follows
                _ => {}
            }
        }
        Ok(decoded)
    }

    /// Why the server ended the watcher.
    pub(super) fn cancel_reason(&self) -> Result<String, WireError> {
        let reason = String::from_utf8_lossy(Fields(self.reply).bytes(6)?).into_owned();
        let compacted = Fields(self.reply).number(5)?;
        Ok(if compacted != 0 {
            format!("{reason} (compacted at {compacted})")
        } else {
            reason
        })
    }

    /// Calls `each` with the value of every event's key (empty for a deletion); returns how many there were.
    pub(super) fn values(&self, mut each: impl FnMut(&'a [u8])) -> Result<u64, WireError> {
        let mut events = 0;
        for field in Fields(self.reply) {
            if let (11, Value::Bytes(event)) = field? {
                events += 1;
                each(Fields(Fields(event).bytes(2)?).bytes(5)?);
            }
        }
        Ok(events)
    }
}

/// The key that ends the range of all keys with this prefix.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0] // etcd: a range end of one zero byte means "to the last key"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        body(&mut out);
        out
    }

    #[test]
    fn a_message_carries_its_length_and_leaves_the_buffer_empty() {
        let mut out = BytesMut::new();
        let first = message(&mut out, |b| put(b, b"k", b"v", 0));
        assert_eq!(
            &first[..],
            b"\x00\x00\x00\x00\x06\x0a\x01k\x12\x01v",
            "first message"
        );
        let second = message(&mut out, |b| put(b, b"k", b"v", 300));
        assert_eq!(
            &second[..],
            b"\x00\x00\x00\x00\x09\x0a\x01k\x12\x01v\x18\xac\x02",
            "second"
        );
    }

    #[test]
    fn a_range_leaves_defaults_out() {
        let plain = encoded(|b| {
            Range {
                key: b"k",
                ..Range::default()
            }
            .encode(b);
        });
        assert_eq!(plain, b"\x0a\x01k", "only the key");
        let full = Range {
            key: b"a",
            end: b"b",
            limit: 7,
            serializable: true,
            count_only: true,
        };
        assert_eq!(
            encoded(|b| full.encode(b)),
            b"\x0a\x01a\x12\x01b\x18\x07\x38\x01\x48\x01",
            "every field"
        );
    }

    #[test]
    fn a_swap_compares_the_mod_revision_and_reads_on_conflict() {
        let create = encoded(|b| {
            swap(
                b,
                b"k",
                0,
                Swap::Put {
                    value: b"v",
                    lease: 0,
                },
            );
        });
        assert_eq!(
            create, b"\x0a\x07\x10\x02\x1a\x01k\x30\x00\x12\x08\x12\x06\x0a\x01k\x12\x01v",
            "a creation has no else branch"
        );
        let delete = encoded(|b| swap(b, b"k", 5, Swap::Delete));
        assert_eq!(
            delete,
            b"\x0a\x07\x10\x02\x1a\x01k\x30\x05\x12\x05\x1a\x03\x0a\x01k\x1a\x05\x0a\x03\x0a\x01k",
            "a deletion reads the key when it lost"
        );
    }

    #[test]
    fn a_txn_reply_tells_success_from_conflict() {
        let done = encoded(|b| {
            put_message(b, 1, |header| put_number(header, 3, 77));
            put_number(b, 2, 1);
        });
        assert_eq!(
            Swapped::decode(&done),
            Ok(Swapped::Done { revision: 77 }),
            "done"
        );
        let lost = encoded(|b| {
            put_message(b, 1, |header| put_number(header, 3, 78));
            put_message(b, 3, |operation| {
                put_message(operation, 1, |range| {
                    put_message(range, 2, |kv| put_number(kv, 3, 42));
                });
            });
        });
        assert_eq!(
            Swapped::decode(&lost),
            Ok(Swapped::Conflict { found: 42 }),
            "conflict"
        );
    }

    #[test]
    fn a_watch_reply_gives_its_flags_and_the_values_of_its_events() {
        let reply = encoded(|b| {
            put_message(b, 1, |header| put_number(header, 3, 9));
            put_number(b, 3, 1);
            for value in [&b"one"[..], b"two"] {
                put_message(b, 11, |event| {
                    put_message(event, 2, |kv| {
                        put_bytes(kv, 1, b"key");
                        put_bytes(kv, 5, value);
                    });
                });
            }
        });
        let reply = WatchReply::decode(&reply).unwrap();
        assert!(reply.created, "field 3 is set");
        assert!(!reply.canceled, "field 4 is absent");
        let mut seen = Vec::new();
        assert_eq!(reply.values(|value| seen.push(value)), Ok(2), "two events");
        assert_eq!(seen, [&b"one"[..], b"two"], "their values in order");
    }

    #[test]
    fn malformed_replies_are_errors() {
        assert_eq!(
            Fields(b"\x0a\x05ab").bytes(1),
            Err(WireError::Truncated),
            "short bytes"
        );
        assert_eq!(
            Fields(b"\x08\xff").number(1),
            Err(WireError::Truncated),
            "short varint"
        );
        assert_eq!(
            Fields(&[0x08; 1]).number(1),
            Err(WireError::Truncated),
            "no value"
        );
        let endless = [&[0x08][..], &[0xff; 11]].concat();
        assert_eq!(
            Fields(&endless).number(1),
            Err(WireError::Varint),
            "endless varint"
        );
        assert_eq!(
            Fields(b"\x0d1234").number(1),
            Err(WireError::WireType(5)),
            "fixed32"
        );
    }

    #[test]
    fn negative_numbers_survive() {
        let bytes = encoded(|b| put_number(b, 2, -1));
        assert_eq!(Fields(&bytes).number(2), Ok(-1), "ten-byte varint");
    }

    #[test]
    fn a_prefix_ends_at_its_successor() {
        assert_eq!(prefix_end(b"ab"), b"ac", "the last byte grows");
        assert_eq!(prefix_end(b"a\xff"), b"b", "0xff is dropped");
        assert_eq!(
            prefix_end(b"\xff"),
            b"\x00",
            "no successor: to the last key"
        );
    }
}
