//! How a log is kept.

use crate::{storage::disk::DIRECT_ALIGN, types::Identity};

/// The settings of a log.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// Whose log it is; one with another identity is refused.
    pub identity: Identity,
    /// A random number, used only when the log is created.
    pub salt: u64,
    /// Size of a segment file; a multiple of 4 KiB and at least two of them. A batch that is larger gets a larger file.
    pub segment_bytes: u64,
    /// How many released files are kept for reuse; more are removed.
    pub free_segments_max: usize,
}

impl WalOptions {
    /// 16 MiB segments, so that the first start is quick, and up to four waiting for reuse.
    pub fn new(identity: Identity, salt: u64) -> Self {
        Self {
            identity,
            salt,
            segment_bytes: 16 * 1024 * 1024,
            free_segments_max: 4,
        }
    }

    /// Fails if a segment would not hold whole blocks.
    pub(super) fn check(&self) {
        let align = DIRECT_ALIGN as u64;
        assert!(
            self.segment_bytes.is_multiple_of(align) && self.segment_bytes >= 2 * align,
            "a segment of {} bytes does not hold whole blocks",
            self.segment_bytes
        );
    }
}
