//! Repairs `:authority` values that the HTTP/2 library would refuse.
//!
//! etcd: Go's server ignores `:authority`, and clients send what they like: `etcdctl` up to 3.4 a URL, gRPC's C core with several
//! addresses a list of them (`127.0.0.1:1,127.0.0.1:2`), Go with a name resolver a part of its target (`svc%2Ffoo`). The library
//! used here resets a stream whose authority is not a valid host. So every header block is checked while it is received, and an
//! invalid authority is replaced by a valid one, in which `-` stands for every character other than letters, digits and dots.
//! No part of the server uses the value.
//!
//! The replacement has as many bytes as the original value. An entry of the header compression's table counts by its decoded
//! length, so the tables of client and server keep evicting the same entries, and later blocks may refer to the replaced value.

use super::{
    frame_budget::{FRAME_HEADER_BYTES, FrameHeader, Tally},
    huffman,
};
use http::uri::Authority;
use std::{borrow::Cow, mem};

/// The first bytes of an HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest frame that a client may send by default.
const FRAME_BYTES_MAX: usize = 16 * 1024;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
/// `:authority` in the static header table.
const AUTHORITY: usize = 1;
const AUTHORITY_NAME: &[u8] = b":authority";
/// The field that refers to the static table's entry, which has an empty authority.
const EMPTY_AUTHORITY: u8 = 0x81;

/// Checks what a client sends, and repairs it as it passes.
#[derive(Debug, Default)]
pub struct Repair {
    stage: Stage,
    /// Bytes that cannot pass before more are received: part of the preface, of a frame's header, or of a header block.
    held: Vec<u8>,
    /// Cost and earnings of the frames that passed since the last [`Repair::take_tally`].
    tally: Tally,
    /// The highest stream that the client has opened.
    opened: u32,
    /// The streams that the client has reset since the last [`Repair::take_resets`].
    resets: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    /// The preface is not complete.
    #[default]
    Preface,
    /// `skip` bytes of the preface or of frames other than HEADERS precede the next frame.
    Frames { skip: usize },
    /// The client does not use HTTP/2, or has closed its side: everything passes.
    Off { http2: bool },
}

impl Repair {
    /// Takes received bytes, or none at the end of the connection, and passes those on to `out` that are checked.
    pub fn pass(&mut self, bytes: &[u8], out: &mut impl FnMut(&[u8])) {
        let joined;
        let received = if self.held.is_empty() {
            bytes
        } else {
            self.held.extend_from_slice(bytes);
            joined = mem::take(&mut self.held);
            &joined[..]
        };
        let kept = self.scan(received, out);
        if bytes.is_empty() {
            let http2 = self.is_http2() == Some(true);
            self.stage = Stage::Off { http2 };
            out(kept);
        } else {
            self.held.extend_from_slice(kept);
        }
    }

    /// What the frames that passed since the last call cost and earned.
    pub(super) fn take_tally(&mut self) -> Tally {
        mem::take(&mut self.tally)
    }

    /// The streams that the client has reset since the last call.
    pub(super) fn take_resets(&mut self) -> Vec<u32> {
        mem::take(&mut self.resets)
    }

    /// Whether the client uses HTTP/2, once that is known.
    pub fn is_http2(&self) -> Option<bool> {
        match self.stage {
            Stage::Preface => None,
            Stage::Frames { skip: _ } => Some(true),
            Stage::Off { http2 } => Some(http2),
        }
    }

    /// Passes bytes on; returns the last ones if they must be held.
    fn scan<'a>(&mut self, bytes: &'a [u8], out: &mut impl FnMut(&[u8])) -> &'a [u8] {
        // Everything before `passed` has passed, everything before `at` may pass.
        let (mut passed, mut at) = (0, 0);
        loop {
            let rest = &bytes[at..];
            match self.stage {
                Stage::Preface => {
                    let known = rest.len().min(PREFACE.len());
                    if rest[..known] != PREFACE[..known] {
                        self.stage = Stage::Off { http2: false };
                    } else if known < PREFACE.len() {
                        break;
                    } else {
                        let skip = PREFACE.len();
                        self.stage = Stage::Frames { skip };
                    }
                }
                Stage::Off { http2: _ } => {
                    at = bytes.len();
                    break;
                }
                Stage::Frames { skip } if skip > 0 => {
                    let taken = skip.min(rest.len());
                    at += taken;
                    self.stage = Stage::Frames { skip: skip - taken };
                    if taken < skip {
                        break;
                    }
                }
                Stage::Frames { skip: _ } => {
                    let Some(frame) = FrameHeader::of(rest) else {
                        break;
                    };
                    let len = FRAME_HEADER_BYTES + frame.len;
                    let opened = (1..=self.opened).contains(&frame.stream);
                    if frame.is_empty_data() && opened {
                        // The library would end the connection after a hundred of them in its life.
                        out(&bytes[passed..at]);
                        at += len;
                        passed = at;
                        self.tally.count(frame);
                        continue;
                    }
                    if frame.kind == FrameHeader::HEADERS && opened && !frame.is_short_trailers() {
                        self.tally.refuse();
                    }
                    if frame.kind == FrameHeader::HEADERS && frame.len <= FRAME_BYTES_MAX {
                        let Some(whole) = rest.get(..len) else { break };
                        if let Some(repaired) = repaired(frame, whole) {
                            out(&bytes[passed..at]);
                            out(&repaired);
                            passed = at + len;
                        }
                    }
                    self.tally.count(frame);
                    match frame.kind {
                        FrameHeader::HEADERS => self.opened = self.opened.max(frame.stream),
                        FrameHeader::RST_STREAM => self.resets.push(frame.stream),
                        _ => {}
                    }
                    self.stage = Stage::Frames { skip: len };
                }
            }
        }
        if at > passed {
            out(&bytes[passed..at]);
        }
        &bytes[at..]
    }
}

/// A HEADERS frame with another authority; `None` if it can stay as it is. A malformed block stays too: the library says what is
/// wrong with it.
fn repaired(header: FrameHeader, frame: &[u8]) -> Option<Vec<u8>> {
    let padded = header.flags & PADDED != 0;
    let priority_bytes = if header.flags & PRIORITY == 0 { 0 } else { 5 };
    let (start, padding) = if padded {
        let padding = usize::from(*frame.get(FRAME_HEADER_BYTES)?);
        (FRAME_HEADER_BYTES + 1 + priority_bytes, padding)
    } else {
        (FRAME_HEADER_BYTES + priority_bytes, 0)
    };
    let end = frame.len().checked_sub(padding)?;
    let found = find_authority(frame.get(..end)?, start)?;
    let mut repaired = Vec::with_capacity(frame.len() + found.value.len());
    repaired.extend_from_slice(&frame[..found.start]);
    if !found.value.is_empty() {
        push_integer(&mut repaired, found.value.len());
        repaired.extend_from_slice(&found.value);
    }
    repaired.extend_from_slice(&frame[found.end..]);
    let len = repaired.len() - FRAME_HEADER_BYTES;
    if len > FRAME_BYTES_MAX {
        return None;
    }
    let [_, high, middle, low] = u32::try_from(len).ok()?.to_be_bytes();
    repaired[..3].copy_from_slice(&[high, middle, low]);
    Some(repaired)
}

/// An invalid authority in a header block.
struct Found {
    /// The bytes of the block that are replaced: the coded value, or a whole field without value.
    start: usize,
    end: usize,
    /// The replacement; empty if the field is removed.
    value: Vec<u8>,
}

/// Walks through the fields of a header block (RFC 7541) from `at` on.
fn find_authority(block: &[u8], mut at: usize) -> Option<Found> {
    while let Some(&first) = block.get(at) {
        if first == EMPTY_AUTHORITY {
            return Some(Found {
                start: at,
                end: at + 1,
                value: Vec::new(),
            });
        }
        let indexed = first & 0x80 != 0;
        let resized = first & 0xe0 == 0x20;
        let prefix_bits = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let (index, next) = integer(block, at, prefix_bits)?;
        at = next;
        if indexed || resized {
            continue;
        }
        let mut is_authority = index == AUTHORITY;
        if index == 0 {
            let name = Text::at(block, at)?;
            is_authority = name.len <= AUTHORITY_NAME.len() && *name.decoded()? == *AUTHORITY_NAME;
            at = name.end;
        }
        let value = Text::at(block, at)?;
        if is_authority {
            return Some(Found {
                start: at,
                end: value.end,
                value: valid_authority(&value.decoded()?)?,
            });
        }
        at = value.end;
    }
    None
}

/// A valid authority as long as `value`; `None` if `value` is valid or empty.
fn valid_authority(value: &[u8]) -> Option<Vec<u8>> {
    if value.is_empty() || Authority::try_from(value).is_ok() {
        return None;
    }
    // Only its length: it may be a URL with a password in it, and is as long as the client likes.
    let bytes = value.len();
    tracing::debug!(bytes, "a request's authority is not a host; it is ignored");
    let valid = |byte: &u8| match byte {
        b'.' => b'.',
        byte if byte.is_ascii_alphanumeric() => *byte,
        _ => b'-',
    };
    Some(value.iter().map(valid).collect())
}

/// A string in a header block.
struct Text<'a> {
    coded: &'a [u8],
    huffman: bool,
    len: usize,
    end: usize,
}

impl<'a> Text<'a> {
    fn at(block: &'a [u8], at: usize) -> Option<Self> {
        let huffman = block.get(at)? & 0x80 != 0;
        let (len, start) = integer(block, at, 7)?;
        let end = start.checked_add(len)?;
        Some(Self {
            coded: block.get(start..end)?,
            huffman,
            len,
            end,
        })
    }

    fn decoded(&self) -> Option<Cow<'a, [u8]>> {
        if self.huffman {
            huffman::decode(self.coded).map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(self.coded))
        }
    }
}

/// Appends an integer with a prefix of seven bits, the length of a string that is not Huffman-coded.
fn push_integer(out: &mut Vec<u8>, mut value: usize) {
    const PREFIX_MAX: usize = 0x7f;
    if value < PREFIX_MAX {
        out.push(value.to_le_bytes()[0]);
        return;
    }
    out.push(0x7f);
    value -= PREFIX_MAX;
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// An integer with a prefix of `prefix_bits` bits, and the position after it.
fn integer(block: &[u8], at: usize, prefix_bits: u32) -> Option<(usize, usize)> {
    let mask = (1usize << prefix_bits) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut next = at + 1;
    if value < mask {
        return Some((value, next));
    }
    for shift in (0..28).step_by(7) {
        let byte = usize::from(*block.get(next)?);
        next += 1;
        value += (byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some((value, next));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::Wire;
    use std::rc::Rc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const HEADERS: u8 = FrameHeader::HEADERS;

    /// RFC 7541's codes of the characters used here.
    fn huffman(text: &str) -> Vec<u8> {
        let code = |character| match character {
            'h' => "100111",
            't' => "01001",
            'p' => "101011",
            ':' => "1011100",
            '/' => "011000",
            '.' => "010111",
            '1' => "00001",
            '2' => "00010",
            '0' => "00000",
            '3' => "011001",
            '7' => "011101",
            '9' => "011111",
            other => panic!("no code for {other}"),
        };
        let mut bits: String = text.chars().map(code).collect();
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let byte = |at| u8::from_str_radix(&bits[at..at + 8], 2).unwrap();
        (0..bits.len()).step_by(8).map(byte).collect()
    }

    const END_HEADERS: u8 = 0x04;
    const END_STREAM: u8 = 0x01;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&len[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    /// The start of a block up to its authority.
    const BEFORE: &[u8] = &[0x83, 0x86, 0x44, 2, b'/', b'a'];

    fn call(stream: u8, block: &[u8]) -> Vec<u8> {
        frame(HEADERS, END_HEADERS | END_STREAM, stream, block)
    }

    /// What a client sends for two calls, where the second refers to the authority of the first.
    fn two_calls(value: &[u8], huffman: bool) -> Vec<u8> {
        let flag = if huffman { 0x80 } else { 0 };
        let len = u8::try_from(value.len()).unwrap();
        let block = [BEFORE, &[0x41, flag | len], value].concat();
        [
            PREFACE.to_vec(),
            frame(4, 0, 0, &[]),
            call(1, &block),
            // 0xbe is entry 62, the newest of the table.
            call(3, &[0x83, 0x86, 0x84, 0xbe]),
        ]
        .concat()
    }

    /// The authorities of `calls` calls that a server sees, when what the client sends arrives in pieces.
    async fn authorities(sent: &[u8], piece: usize, calls: usize) -> Vec<Option<String>> {
        let (mut client, server) = duplex(1 << 16);
        let client_side = async {
            for bytes in sent.chunks(piece) {
                client.write_all(bytes).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let serve = async {
            let mut connection = h2::server::handshake(Wire::new(server, Rc::default()))
                .await
                .unwrap();
            let mut found = Vec::new();
            for _ in 0..calls {
                let (request, _) = connection.accept().await.unwrap().unwrap();
                found.push(request.uri().authority().map(ToString::to_string));
            }
            found
        };
        tokio::join!(serve, client_side).0
    }

    #[tokio::test]
    async fn invalid_authorities_are_replaced() {
        let table = [
            ("http://127.0.0.1:2379", "http---127.0.0.1-2379"),
            ("127.0.0.1:1,127.0.0.1:2", "127.0.0.1-1-127.0.0.1-2"),
            ("127.0.0.1:1%2C127.0.0.1:2", "127.0.0.1-1-2C127.0.0.1-2"),
            ("svc%2Ffoo", "svc-2Ffoo"),
            ("a b", "a-b"),
            ("\u{fc}", "--"),
            ("::1", "--1"),
        ];
        for (sent, expected) in table {
            let expected = vec![Some(expected.to_owned()); 2];
            for piece in [1, 7, 30, 1_000] {
                let plain = two_calls(sent.as_bytes(), false);
                let seen = authorities(&plain, piece, 2).await;
                assert_eq!(seen, expected, "plain, in pieces of {piece}");
            }
        }
    }

    #[tokio::test]
    async fn the_tables_of_client_and_server_stay_alike() {
        let url = "http://127.0.0.1:2379";
        for piece in [1, 7, 30, 1_000] {
            let coded = two_calls(&huffman(url), true);
            let expected = vec![Some("http---127.0.0.1-2379".to_owned()); 2];
            let seen = authorities(&coded, piece, 2).await;
            assert_eq!(seen, expected, "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn every_block_of_a_connection_is_checked() {
        let literal = |first: &[u8], value: &[u8]| {
            let len = u8::try_from(value.len()).unwrap();
            [BEFORE, first, &[len], value].concat()
        };
        let named = [&[0x10, 10], AUTHORITY_NAME].concat();
        let good = literal(&[0x01], b"host:1");
        let bad = literal(&[0x01], b"a b");
        let padded = [&[2], &bad[..], &[0, 0]].concat();
        let prioritised = [&[0; 5], &bad[..]].concat();
        let end = END_HEADERS | END_STREAM;
        let sent = [
            PREFACE.to_vec(),
            frame(4, 0, 0, &[]),
            call(1, &good),
            call(3, &bad),
            call(5, &literal(&named, b"c d")),
            frame(HEADERS, end | PADDED, 7, &padded),
            frame(HEADERS, end | PRIORITY, 9, &prioritised),
            // In two frames, of which the first has the authority.
            frame(HEADERS, END_STREAM, 11, &bad),
            frame(9, END_HEADERS, 11, &[0, 1, b'x', 1, b'y']),
            // The empty authority of the static table, and none at all.
            call(13, &[BEFORE, &[EMPTY_AUTHORITY]].concat()),
            call(15, BEFORE),
        ]
        .concat();
        let expected = ["host:1", "a-b", "c-d", "a-b", "a-b", "a-b"].map(Some);
        let expected: Vec<_> = expected.into_iter().chain([None, None]).collect();
        for piece in [1, 7, 1_000] {
            let seen = authorities(&sent, piece, 8).await;
            let seen: Vec<_> = seen.iter().map(Option::as_deref).collect();
            assert_eq!(seen, expected, "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn a_host_stays_as_it_is() {
        let host = "127.0.0.1:2379";
        let expected = vec![Some(host.to_owned()); 2];
        for piece in [1, 1_000] {
            for sent in [
                two_calls(host.as_bytes(), false),
                two_calls(&huffman(host), true),
            ] {
                assert_eq!(authorities(&sent, piece, 2).await, expected);
                assert_eq!(passed(&sent, piece).await, sent, "byte for byte");
            }
        }
    }

    async fn passed(sent: &[u8], piece: usize) -> Vec<u8> {
        let (mut client, server) = duplex(16);
        let client_side = async {
            for bytes in sent.chunks(piece) {
                client.write_all(bytes).await.unwrap();
            }
            drop(client);
        };
        let mut read = Vec::new();
        let mut mended = Wire::new(server, Rc::default());
        let receive = mended.read_to_end(&mut read);
        tokio::join!(receive, client_side).0.unwrap();
        read
    }

    #[tokio::test]
    async fn everything_else_passes_untouched() {
        let bad_block = [PREFACE, &frame(HEADERS, END_HEADERS, 1, b"\x41\x7fhttp://")].concat();
        let long_claim = [
            PREFACE,
            &[0xff, 0xff, 0xff, HEADERS, END_HEADERS, 0, 0, 0, 1],
        ]
        .concat();
        let sent: [&[u8]; 7] = [
            b"",
            b"GET /version HTTP/1.1\r\n\r\n",
            b"PRI",
            b"PRI * HTTP/1.1\r\n\r\n",
            &PREFACE[..20],
            &bad_block,
            &long_claim,
        ];
        for bytes in sent {
            for piece in [1, 5, 1_000] {
                assert_eq!(passed(bytes, piece).await, bytes, "in pieces of {piece}");
            }
        }
    }
}
