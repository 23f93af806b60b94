//! One flipped bit in the last batch, told from a write that a crash tore.
//!
//! Until the last batch is sealed, nothing behind it proves that it was durable. But its own bytes can: if turning one single
//! bit back makes it the batch that belongs there, checksums, entries and all, then the whole of it was written, and no
//! crash left that one bit. The exception is a bit that reads as zero, where a crash may have left nothing but zeros: such a
//! batch counts as torn.

use super::batch::{BatchHeader, HEADER_BYTES, array_at};
use bytes::Bytes;

/// Larger payloads are not searched: a single entry may have up to a gigabyte.
const PAYLOAD_SEARCHED_MAX: usize = 8 * 1024 * 1024;
/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;
/// CRC-32C, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The byte of `batch`, a batch's bytes as they were read, in which turning one bit back makes it sound and one that
/// `belongs` here. Nothing if it is sound, or too different, or if a crash may have left it so.
pub(super) fn flipped_byte(
    batch: &[u8],
    salt: u64,
    belongs: impl Fn(&BatchHeader) -> bool,
) -> Option<usize> {
    let head: [u8; HEADER_BYTES] = array_at(batch.get(..HEADER_BYTES)?, 0);
    let bit = match BatchHeader::decode(&head, salt) {
        Ok((header, _)) if belongs(&header) => in_payload(batch, &header)?,
        Ok(_) => return None,
        Err(_) => in_header(batch, head, salt, belongs)?,
    };
    (!may_be_torn(batch, bit)).then_some(bit / 8)
}

/// The payload that follows a batch's header.
fn payload(batch: &[u8], header: &BatchHeader) -> Option<Bytes> {
    let end = HEADER_BYTES.checked_add(header.payload_len as usize)?;
    batch.get(HEADER_BYTES..end).map(Bytes::copy_from_slice)
}

fn in_header(
    batch: &[u8],
    head: [u8; HEADER_BYTES],
    salt: u64,
    belongs: impl Fn(&BatchHeader) -> bool,
) -> Option<usize> {
    (0..HEADER_BYTES * 8).find(|bit| {
        let mut turned = head;
        turned[bit / 8] ^= 1 << (bit % 8);
        BatchHeader::decode(&turned, salt).is_ok_and(|(header, _)| {
            belongs(&header)
                && payload(batch, &header).is_some_and(|all| header.decode_payload(&all).is_ok())
        })
    })
}

fn in_payload(batch: &[u8], header: &BatchHeader) -> Option<usize> {
    let all = payload(batch, header)?;
    if all.len() > PAYLOAD_SEARCHED_MAX {
        return None;
    }
    let bit = bit_of(crc32c::crc32c(&all) ^ header.payload_crc, all.len())?;
    let mut turned = all.to_vec();
    turned[bit / 8] ^= 1 << (bit % 8);
    let sound = header.decode_payload(&turned.into()).is_ok();
    sound.then_some(HEADER_BYTES * 8 + bit)
}

/// The bit that, turned in `len` bytes, changes their checksum by `difference`. A checksum is linear: what one bit changes in it
/// depends only on how many bits follow.
fn bit_of(difference: u32, len: usize) -> Option<usize> {
    let mut change = 1_u32;
    for following in 1..=len * 8 {
        let odd = change & 1 == 1;
        change >>= 1;
        if odd {
            change ^= POLYNOMIAL;
        }
        if change == difference {
            let from_end = (following - 1) / 8;
            let bit = 8 * (from_end + 1) - following;
            return Some((len - 1 - from_end) * 8 + bit);
        }
    }
    None
}

/// Whether the bit may be missing because the write was torn before it: it, and all that would be missing with it, is zero.
fn may_be_torn(batch: &[u8], bit: usize) -> bool {
    let at = bit / 8;
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let sector = at / SECTOR_BYTES * SECTOR_BYTES;
    let sector = &batch[sector..(sector + SECTOR_BYTES).min(batch.len())];
    let cleared = batch[at] & (1 << (bit % 8)) == 0;
    cleared && (is_zero(sector) || is_zero(&batch[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bit_that_changed_a_checksum_is_found() {
        let bytes: Vec<u8> = (0..97_u8).map(|n| n.wrapping_mul(73)).collect();
        let sound = crc32c::crc32c(&bytes);
        for bit in 0..bytes.len() * 8 {
            let mut turned = bytes.clone();
            turned[bit / 8] ^= 1 << (bit % 8);
            let difference = sound ^ crc32c::crc32c(&turned);
            assert_eq!(bit_of(difference, bytes.len()), Some(bit));
        }
        assert_eq!(bit_of(0, bytes.len()), None, "nothing changed");
    }
}
