//! Meta pages: which page size, root and number of pages a file has. There are two, so that bbolt can replace one while the other
//! stays valid.

use super::{
    PAGES_MAX,
    error::{BoltError, MetaFault},
    header::{HEADER_BYTES, Header, META, array},
    source::Source,
};

/// The bytes of a meta page that mean something: the page's header and the meta.
pub(super) const META_BYTES: usize = HEADER_BYTES + 64;

/// What a meta has as its freelist page if the file has none.
pub(super) const NO_FREELIST: u64 = u64::MAX;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

/// The page sizes of machines that etcd runs on, from the smallest that bbolt tries.
const PAGE_BYTES_MIN: u32 = 1 << 10;
const PAGE_BYTES_MAX: u32 = 1 << 16;

/// Whether files of this page size are read and written.
pub(super) fn is_page_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&bytes)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) page_bytes: u32,
    pub(super) root: u64,
    pub(super) freelist: u64,
    /// How many pages the file has: the first that was never used.
    pub(super) pages: u64,
    pub(super) txid: u64,
}

impl Meta {
    /// Reads what follows the header of a meta page.
    fn parse(bytes: &[u8; META_BYTES]) -> Result<Self, MetaFault> {
        let meta = &bytes[HEADER_BYTES..];
        let u32_at = |at| u32::from_le_bytes(array(meta, at));
        let u64_at = |at| u64::from_le_bytes(array(meta, at));
        if u32_at(0) != MAGIC {
            return Err(MetaFault::Magic { found: u32_at(0) });
        }
        if u32_at(4) != VERSION {
            return Err(MetaFault::Version { found: u32_at(4) });
        }
        let (stored, computed) = (u64_at(56), fnv_1a(&meta[..56]));
        if stored != computed {
            return Err(MetaFault::Checksum { stored, computed });
        }
        if !is_page_size(u32_at(8)) {
            return Err(MetaFault::PageSize { found: u32_at(8) });
        }
        // The flags at 12 and the root bucket's counter at 24 mean nothing: bbolt does not read the former, nor etcd the latter.
        Ok(Self {
            page_bytes: u32_at(8),
            root: u64_at(16),
            freelist: u64_at(32),
            pages: u64_at(40),
            txid: u64_at(48),
        })
    }

    /// The beginning of meta page `id`; zeros follow.
    pub(super) fn encode(&self, id: u64) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        let header = Header {
            id,
            flags: META,
            count: 0,
            overflow: 0,
        };
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        let mut put = |at: usize, field: &[u8]| {
            let start = HEADER_BYTES + at;
            bytes[start..start + field.len()].copy_from_slice(field);
        };
        put(0, &MAGIC.to_le_bytes());
        put(4, &VERSION.to_le_bytes());
        put(8, &self.page_bytes.to_le_bytes());
        put(16, &self.root.to_le_bytes());
        put(32, &self.freelist.to_le_bytes());
        put(40, &self.pages.to_le_bytes());
        put(48, &self.txid.to_le_bytes());
        let checksum = fnv_1a(&bytes[HEADER_BYTES..HEADER_BYTES + 56]);
        bytes[HEADER_BYTES + 56..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn verify_bounds(&self, image_bytes: u64) -> Result<(), MetaFault> {
        let (pages, inside) = (self.pages, 2..self.pages);
        if pages > PAGES_MAX {
            return Err(MetaFault::TooManyPages {
                found: pages,
                max: PAGES_MAX,
            });
        }
        // At most 2^30 pages of 2^16 bytes: this cannot overflow.
        if pages * u64::from(self.page_bytes) > image_bytes {
            return Err(MetaFault::Truncated {
                pages,
                page_bytes: self.page_bytes,
                image_bytes,
            });
        }
        if !inside.contains(&self.root) {
            let found = self.root;
            return Err(MetaFault::Root { found, pages });
        }
        if self.freelist != NO_FREELIST && !inside.contains(&self.freelist) {
            let found = self.freelist;
            return Err(MetaFault::Freelist { found, pages });
        }
        Ok(())
    }
}

/// A meta, and which page it is on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) meta: Meta,
    pub(super) page: u64,
}

impl Placed {
    pub(super) fn error(&self, fault: MetaFault) -> BoltError {
        BoltError::Meta {
            page: self.page,
            offset: self.page * u64::from(self.meta.page_bytes),
            fault,
        }
    }
}

/// The meta that holds: the valid one of the later transaction. That a meta is valid but says what cannot be is an error, even if
/// the other is sound: the other is older, so data would be lost silently.
pub(super) fn find(source: &impl Source, image_bytes: u64) -> Result<Placed, BoltError> {
    let placed = match read(source, image_bytes, 0)? {
        Some(Ok(meta)) => later(source, image_bytes, meta)?,
        Some(Err(fault)) => find_second(source, image_bytes, fault)?,
        None => return Err(BoltError::TooShort { bytes: image_bytes }),
    };
    let bounds = placed.meta.verify_bounds(image_bytes);
    bounds.map_err(|fault| placed.error(fault))?;
    Ok(placed)
}

fn later(source: &impl Source, image_bytes: u64, first: Meta) -> Result<Placed, BoltError> {
    let second = read(source, image_bytes, first.page_bytes.into())?;
    match second.and_then(Result::ok) {
        Some(second) if second.page_bytes == first.page_bytes && second.txid > first.txid => {
            Ok(Placed {
                meta: second,
                page: 1,
            })
        }
        _ => Ok(Placed {
            meta: first,
            page: 0,
        }),
    }
}

/// Looks for the second meta where any page size would put it, because the first, which is damaged, does not say the size.
fn find_second(
    source: &impl Source,
    image_bytes: u64,
    first_fault: MetaFault,
) -> Result<Placed, BoltError> {
    // The first page that at least has the magic number is what the user needs to know about.
    let mut damaged = match first_fault {
        MetaFault::Magic { .. } => None,
        fault => Some((0, 0, fault)),
    };
    let mut page_bytes = PAGE_BYTES_MIN;
    while page_bytes <= PAGE_BYTES_MAX {
        let fault = match read(source, image_bytes, page_bytes.into())? {
            Some(Ok(meta)) if meta.page_bytes == page_bytes => {
                return Ok(Placed { meta, page: 1 });
            }
            Some(Ok(meta)) => Some(MetaFault::Place {
                found: meta.page_bytes,
            }),
            Some(Err(MetaFault::Magic { .. })) | None => None,
            Some(Err(fault)) => Some(fault),
        };
        damaged = damaged.or(fault.map(|fault| (1, u64::from(page_bytes), fault)));
        page_bytes *= 2;
    }
    let (page, offset, fault) = damaged.ok_or(BoltError::NotADatabase)?;
    Err(BoltError::Meta {
        page,
        offset,
        fault,
    })
}

/// `None` if the image ends before.
fn read(
    source: &impl Source,
    image_bytes: u64,
    offset: u64,
) -> Result<Option<Result<Meta, MetaFault>>, BoltError> {
    if image_bytes < offset + META_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = [0; META_BYTES];
    let read = source.read_at(offset, &mut bytes);
    read.map_err(|cause| BoltError::Read {
        offset,
        bytes: META_BYTES,
        cause,
    })?;
    Ok(Some(Meta::parse(&bytes)))
}

/// FNV-1a of 64 bits.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const META_OF_TEST: Meta = Meta {
        page_bytes: 4_096,
        root: 3,
        freelist: NO_FREELIST,
        pages: 4,
        txid: 9,
    };

    /// Two metas of the given transactions in a file of four pages.
    fn file(page_bytes: u32, txids: [u64; 2]) -> Vec<u8> {
        let size = page_bytes as usize;
        let mut bytes = vec![0; 4 * size];
        for (page, txid) in txids.into_iter().enumerate() {
            let meta = Meta {
                page_bytes,
                txid,
                ..META_OF_TEST
            };
            let start = page * size;
            bytes[start..start + META_BYTES].copy_from_slice(&meta.encode(page as u64));
        }
        bytes
    }

    fn find_in(bytes: &[u8]) -> Result<Placed, BoltError> {
        find(&bytes, bytes.len() as u64)
    }

    #[test]
    fn the_checksum_is_that_of_fnv() {
        // From the test vectors of the FNV authors.
        assert_eq!(fnv_1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_meta_reads_as_it_was_written() {
        assert_eq!(Meta::parse(&META_OF_TEST.encode(1)), Ok(META_OF_TEST));
    }

    #[test]
    fn the_later_valid_meta_holds() {
        for (txids, page) in [([5, 4], 0), ([4, 5], 1), ([5, 5], 0)] {
            let found = find_in(&file(4_096, txids)).expect("both are valid");
            assert_eq!(found.page, page, "{txids:?}");
        }
        let mut damaged = file(4_096, [4, 5]);
        damaged[4_096 + 40] ^= 1;
        assert_eq!(find_in(&damaged).expect("the first is valid").page, 0);
    }

    #[test]
    fn the_second_meta_is_found_for_every_page_size() {
        for shift in 10..=16 {
            let mut bytes = file(1 << shift, [5, 4]);
            bytes[16 + 8] ^= 1;
            let found = find_in(&bytes).expect("the second is valid");
            assert_eq!((found.page, found.meta.page_bytes), (1, 1 << shift));
            assert_eq!(found.meta.txid, 4);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let fault = |meta: Meta| {
            let mut bytes = file(4_096, [1, 1]);
            bytes[..META_BYTES].copy_from_slice(&meta.encode(0));
            bytes[4_096..4_096 + META_BYTES].fill(0);
            match find_in(&bytes) {
                Err(BoltError::Meta { page: 0, fault, .. }) => fault,
                other => panic!("{other:?}"),
            }
        };
        let meta = META_OF_TEST;
        for found in [0, 512, 4_097, 1 << 17, 1 << 31] {
            let page_bytes = found;
            let wanted = MetaFault::PageSize { found };
            assert_eq!(fault(Meta { page_bytes, ..meta }), wanted);
        }
        for found in [0, 1, 4, u64::MAX] {
            let wanted = MetaFault::Root { found, pages: 4 };
            assert_eq!(
                fault(Meta {
                    root: found,
                    ..meta
                }),
                wanted
            );
        }
        for found in [0, 1, 4, u64::MAX - 1] {
            let wanted = MetaFault::Freelist { found, pages: 4 };
            let freelist = found;
            assert_eq!(fault(Meta { freelist, ..meta }), wanted);
        }
        let truncated = fault(Meta { pages: 5, ..meta });
        assert!(matches!(truncated, MetaFault::Truncated { pages: 5, .. }));
        for pages in [PAGES_MAX + 1, u64::MAX] {
            let many = fault(Meta { pages, ..meta });
            assert!(matches!(many, MetaFault::TooManyPages { .. }));
        }
    }

    #[test]
    fn a_damaged_meta_is_told_from_another_kind_of_file() {
        let zeros = vec![0; 20_000];
        assert!(matches!(find_in(&zeros), Err(BoltError::NotADatabase)));
        assert!(matches!(
            find_in(&zeros[..META_BYTES - 1]),
            Err(BoltError::TooShort { bytes: 79 })
        ));
        let mut both = file(4_096, [1, 2]);
        both[16 + 20] ^= 1;
        both[4_096 + 16 + 20] ^= 1;
        let fault = match find_in(&both) {
            Err(BoltError::Meta { page: 0, fault, .. }) => fault,
            other => panic!("{other:?}"),
        };
        assert!(matches!(fault, MetaFault::Checksum { .. }));
        let mut version = file(4_096, [1, 2]);
        version[16 + 4] = 3;
        version[4_096 + 16] = 0;
        assert!(matches!(
            find_in(&version),
            Err(BoltError::Meta {
                fault: MetaFault::Version { found: 3 },
                ..
            })
        ));
    }
}
