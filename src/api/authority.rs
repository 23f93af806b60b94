//! A repair for clients that put a URL where HTTP/2 wants a host.
//!
//! etcd: `etcdctl` up to 3.4, asked for `endpoint status` of `http://host:port`, sends exactly that as `:authority`. Go's server
//! does not look; the HTTP/2 library used here refuses the call. So the first header block of a connection is looked at, and
//! `http://` there becomes `httpB--`, which is a valid start of a host name. Nothing reads the name. The
//! replacement takes as many characters as the original and, Huffman-coded, as many bits: no length changes, and the two
//! ends' header tables stay alike.
//! Later blocks refer to the table, so from the second block on bytes pass untouched.

use bytes::BytesMut;

/// What an HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length, kind, flags and stream of a frame.
const FRAME_HEADER_BYTES: usize = 9;
/// The longest frame a client may send by default.
const FRAME_BYTES_MAX: usize = 16 * 1024;
/// The kind of frame that opens a stream.
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
/// `:authority` in the static header table.
const AUTHORITY: usize = 1;
/// Both forms of the start that is replaced, and of what replaces it. Huffman-coded there is a 41st bit, zero in both.
const PLAIN: (&[u8], &[u8]) = (b"http://", b"httpB--");
const HUFFMAN: (&[u8], &[u8]) = (
    &[0x9d, 0x29, 0xae, 0xe3, 0x0c],
    &[0x9d, 0x29, 0xae, 0xea, 0xcb],
);
/// Looks at what a client sends first, and repairs it as it passes.
#[derive(Debug)]
pub struct Repair {
    /// Nothing once the first block has passed; boxed, since that comes soon.
    scan: Option<Box<Scan>>,
    http2: Option<bool>,
}

impl Default for Repair {
    fn default() -> Self {
        Self {
            scan: Some(Box::default()),
            http2: None,
        }
    }
}

impl Repair {
    /// Takes the next bytes, none at the end, and gives out what may pass.
    pub fn pass(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let Some(scan) = &mut self.scan else {
            out.extend_from_slice(bytes);
            return;
        };
        let over = scan.feed(bytes, out) || bytes.is_empty();
        if self.http2.is_none() {
            match scan.stage {
                Stage::Frames(_) => self.http2 = Some(true),
                Stage::Preface if over => self.http2 = Some(false),
                Stage::Preface => {}
            }
        }
        if over {
            out.extend_from_slice(&scan.held);
            self.scan = None;
        }
    }

    /// Whether nothing is looked at any more.
    pub fn is_over(&self) -> bool {
        self.scan.is_none()
    }

    /// Whether the client speaks HTTP/2, once that is known.
    pub fn is_http2(&self) -> Option<bool> {
        self.http2
    }
}

/// The way to the first header block.
#[derive(Debug, Default)]
struct Scan {
    stage: Stage,
    /// Bytes that cannot pass before more are known: part of the preface, of a frame's header, or of the block itself.
    held: BytesMut,
}

#[derive(Debug, Default)]
enum Stage {
    /// The preface is not complete.
    #[default]
    Preface,
    /// So many bytes of other frames come before the next frame begins.
    Frames(usize),
}

impl Scan {
    /// Takes bytes in, gives out what may pass, and tells whether the search is over.
    fn feed(&mut self, bytes: &[u8], out: &mut BytesMut) -> bool {
        self.held.extend_from_slice(bytes);
        loop {
            match self.stage {
                Stage::Preface => {
                    let known = self.held.len().min(PREFACE.len());
                    if self.held[..known] != PREFACE[..known] {
                        return true;
                    }
                    if known < PREFACE.len() {
                        return false;
                    }
                    self.stage = Stage::Frames(PREFACE.len());
                }
                Stage::Frames(0) => {
                    let Some((len, kind, flags)) = frame_header(&self.held) else {
                        return false;
                    };
                    if kind != HEADERS {
                        self.stage = Stage::Frames(FRAME_HEADER_BYTES + len);
                        continue;
                    }
                    let whole = flags & END_HEADERS != 0 && flags & PADDED == 0;
                    if !whole || len > FRAME_BYTES_MAX {
                        return true;
                    }
                    let end = FRAME_HEADER_BYTES + len;
                    if self.held.len() < end {
                        return false;
                    }
                    let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
                    // A block that cannot be followed is left to the library, which says what is wrong.
                    mend(&mut self.held[FRAME_HEADER_BYTES..end], priority).unwrap_or_default();
                    return true;
                }
                Stage::Frames(left) => {
                    let passing = left.min(self.held.len());
                    out.extend_from_slice(&self.held.split_to(passing));
                    self.stage = Stage::Frames(left - passing);
                    if passing < left {
                        return false;
                    }
                }
            }
        }
    }
}

/// Length, kind and flags of the frame that begins here.
fn frame_header(bytes: &[u8]) -> Option<(usize, u8, u8)> {
    let &[high, middle, low, kind, flags, _, _, _, _] = bytes.first_chunk::<9>()?;
    let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    Some((len, kind, flags))
}

/// Walks a header block (RFC 7541) from `at` and repairs the authority's value.
fn mend(block: &mut [u8], mut at: usize) -> Option<()> {
    while let Some(&first) = block.get(at) {
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
        if index == 0 {
            at = string_end(block, at)?.1;
        }
        let (start, end) = string_end(block, at)?;
        if index == AUTHORITY {
            let huffman = block[at] & 0x80 != 0;
            mend_value(block.get_mut(start..end)?, huffman);
            return Some(());
        }
        at = end;
    }
    Some(())
}

fn mend_value(value: &mut [u8], huffman: bool) {
    let (from, to) = if huffman { HUFFMAN } else { PLAIN };
    let last_bit_fits = !huffman || value.get(from.len()).is_some_and(|next| next & 0x80 == 0);
    if value.starts_with(from) && last_bit_fits {
        value[..to.len()].copy_from_slice(to);
    }
}

/// Where a string's bytes begin and end.
fn string_end(block: &[u8], at: usize) -> Option<(usize, usize)> {
    let (len, start) = integer(block, at, 7)?;
    Some((start, start.checked_add(len)?))
}

/// An integer with a prefix of so many bits, and where it ends.
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

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&len[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    /// What a client sends for two calls; the second refers to the first one's authority.
    fn two_calls(value: &[u8], huffman: bool) -> Vec<u8> {
        let flag = if huffman { 0x80 } else { 0 };
        let len = u8::try_from(value.len()).unwrap();
        let block = [&[0x83, 0x86, 0x44, 2, b'/', b'a', 0x41, flag | len], value].concat();
        let end = END_HEADERS | 1;
        [
            PREFACE.to_vec(),
            frame(4, 0, 0, &[]),
            frame(HEADERS, end, 1, &block),
            // 0xbe is entry 62, the newest of the table.
            frame(HEADERS, end, 3, &[0x83, 0x86, 0x84, 0xbe]),
        ]
        .concat()
    }

    /// The authorities a server sees, when what the client sends arrives in pieces.
    async fn authorities(sent: &[u8], piece: usize) -> Vec<String> {
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
            for _ in 0..2 {
                let (request, _) = connection.accept().await.unwrap().unwrap();
                found.push(request.uri().authority().unwrap().to_string());
            }
            found
        };
        tokio::join!(serve, client_side).0
    }

    #[tokio::test]
    async fn a_url_becomes_a_host_and_the_tables_stay_alike() {
        let url = "http://127.0.0.1:2379";
        let mended = vec!["httpB--127.0.0.1:2379"; 2];
        for piece in [1, 7, 30, 1_000] {
            let plain = two_calls(url.as_bytes(), false);
            assert_eq!(
                authorities(&plain, piece).await,
                mended,
                "plain, in pieces of {piece}"
            );
            let coded = two_calls(&huffman(url), true);
            assert_eq!(
                authorities(&coded, piece).await,
                mended,
                "coded, in pieces of {piece}"
            );
        }
    }

    #[tokio::test]
    async fn a_host_stays_as_it_is() {
        let host = "127.0.0.1:2379";
        for piece in [1, 1_000] {
            let plain = two_calls(host.as_bytes(), false);
            assert_eq!(authorities(&plain, piece).await, [host; 2], "plain");
            let coded = two_calls(&huffman(host), true);
            assert_eq!(authorities(&coded, piece).await, [host; 2], "coded");
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
        let cut_block = [PREFACE, &frame(HEADERS, 0, 1, b"\x41\x07http://")].concat();
        let bad_block = [PREFACE, &frame(HEADERS, END_HEADERS, 1, b"\x41\x7fhttp://")].concat();
        let long_claim = [
            PREFACE,
            &[0xff, 0xff, 0xff, HEADERS, END_HEADERS, 0, 0, 0, 1],
        ]
        .concat();
        let sent: [&[u8]; 8] = [
            b"",
            b"GET /version HTTP/1.1\r\n\r\n",
            b"PRI",
            b"PRI * HTTP/1.1\r\n\r\n",
            &PREFACE[..20],
            &cut_block,
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
