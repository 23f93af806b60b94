//! Decodes the Huffman code of HTTP/2 header strings (RFC 7541, appendix B).
//!
//! The code is canonical: codes of one length are consecutive numbers in the order of their bytes, and the first code of a length
//! follows from the number of shorter ones. So the lengths alone define it.

/// The length of each byte's code, in bits.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

const LENGTH_MAX: usize = 30;

/// How many codes have each length.
const COUNTS: [usize; LENGTH_MAX + 1] = {
    let mut counts = [0; LENGTH_MAX + 1];
    let mut byte = 0;
    while byte < 256 {
        counts[LENGTHS[byte] as usize] += 1;
        byte += 1;
    }
    counts
};

/// The bytes in the order of their codes.
const BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let (mut at, mut length) = (0, 0);
    while length <= LENGTH_MAX {
        let mut byte: u8 = 0;
        loop {
            if LENGTHS[byte as usize] as usize == length {
                bytes[at] = byte;
                at += 1;
            }
            if byte == u8::MAX {
                break;
            }
            byte += 1;
        }
        length += 1;
    }
    bytes
};

/// The decoded string; `None` if `coded` is malformed.
pub(super) fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(coded.len() * 2);
    let mut bits = Bits { coded, at: 0 };
    while !bits.are_padding() {
        decoded.push(bits.next_byte()?);
    }
    Some(decoded)
}

struct Bits<'a> {
    coded: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bit(&self, at: usize) -> Option<usize> {
        let byte = *self.coded.get(at / 8)?;
        Some((byte >> (7 - at % 8) & 1).into())
    }

    /// Whether at most seven bits are left, all of them one. No code is a prefix of that.
    fn are_padding(&self) -> bool {
        let end = self.coded.len() * 8;
        end - self.at < 8 && (self.at..end).all(|at| self.bit(at) == Some(1))
    }

    fn next_byte(&mut self) -> Option<u8> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in &COUNTS[1..] {
            code = code << 1 | self.bit(self.at)?;
            self.at += 1;
            first <<= 1;
            if code < first + count {
                return BYTES.get(index + code - first).copied();
            }
            index += count;
            first += count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_rfc_are_decoded() {
        let table: [(&[u8], &[u8]); 4] = [
            (
                b"www.example.com",
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ],
            ),
            (b"no-cache", &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]),
            (
                b"custom-key",
                &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f],
            ),
            (b"", b""),
        ];
        for (text, coded) in table {
            assert_eq!(decode(coded).unwrap(), text);
        }
    }

    #[test]
    fn malformed_codes_are_refused() {
        let table: [&[u8]; 3] = [
            // The end marker, which must not occur.
            &[0xff, 0xff, 0xff, 0xff],
            // A whole byte of padding.
            &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf, 0xff],
            // Padding with zeros: "w" is 1111000.
            &[0xf0],
        ];
        for coded in table {
            assert_eq!(decode(coded), None, "{coded:?}");
        }
    }
}
