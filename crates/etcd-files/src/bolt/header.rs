//! The header of a page, and the numbers that reader and writer share.

/// The bytes of a page's header.
pub(super) const HEADER_BYTES: usize = 16;

/// The bytes of an element of a leaf or a branch, without key and value.
pub(super) const ELEMENT_BYTES: usize = 16;

pub(super) const BRANCH: u16 = 0x01;
pub(super) const LEAF: u16 = 0x02;
pub(super) const META: u16 = 0x04;
pub(super) const FREELIST: u16 = 0x10;

/// The flags of a leaf's element whose value is a bucket.
pub(super) const BUCKET: u32 = 0x01;

/// The `N` bytes at `at`. The caller has verified that they exist.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// Converts a count or position to `usize`, saturating.
pub(super) fn as_index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u64,
    pub(super) flags: u16,
    pub(super) count: u16,
    pub(super) overflow: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self {
            id: u64::from_le_bytes(array(bytes, 0)),
            flags: u16::from_le_bytes(array(bytes, 8)),
            count: u16::from_le_bytes(array(bytes, 10)),
            overflow: u32::from_le_bytes(array(bytes, 12)),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.flags.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..].copy_from_slice(&self.overflow.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_as_it_was_written() {
        let header = Header {
            id: 0x0102_0304_0506_0708,
            flags: LEAF,
            count: 0xfffe,
            overflow: 0x0a0b_0c0d,
        };
        assert_eq!(Header::parse(&header.encode()), header);
    }
}
