//! Which key is meant, in 16 bytes whatever its length: what passes remember that need every live key.

use sha2::{Digest, Sha256};

/// Half of a key's SHA-256: no two keys have the same, even if someone looks for such.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct KeyId([u8; 16]);

impl KeyId {
    pub(super) fn of(key: &[u8]) -> Self {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let mut half = [0; 16];
        half.copy_from_slice(&hash[..16]);
        Self(half)
    }
}
