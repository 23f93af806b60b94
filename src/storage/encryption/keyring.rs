//! The file `keyring`: the data keys of a directory, each wrapped by a key that the member gets from outside.
//!
//! `docs/format.md` has the bytes. The file is replaced by one rename, and is durable before the first byte that needs it.

use super::{
    sealer::{
        Algorithm, DataKey, KEY_BYTES, SALT_BYTES, SecretKey, TAG_BYTES, derive, nonce, random,
    },
    wrapping::{KeyId, WrappingKeys},
};
use ring::aead::Aad;
use std::io;

/// The file's name in the data directory.
pub const KEYRING: &str = "keyring";
/// The file under construction.
pub const KEYRING_UNFINISHED: &str = "keyring.new";

/// Data keys that a directory has at most. Each rotation adds one.
pub(super) const KEYS_MAX: usize = 256;
/// The largest file there can be.
pub(super) const FILE_BYTES_MAX: usize = HEAD_BYTES + KEYS_MAX * RECORD_BYTES + CRC_BYTES;

const MAGIC: [u8; 8] = *b"QUORKEYS";
const FORMAT: u32 = 1;
const HEAD_BYTES: usize = 16;
const RECORD_BYTES: usize = 80;
const CRC_BYTES: usize = 4;
const WRAPPED_AT: usize = 32;

const WRAPPING: &[u8] = b"quorate wrapping 1";

/// Why a keyring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file is not what was written.
    #[error(
        "file {KEYRING} of the data directory is damaged ({0}), and nothing can be decrypted without it: put it back from a \
         backup of this directory, or, in a cluster with a healthy majority, remove this member, delete its data directory and \
         add it anew"
    )]
    Damaged(&'static str),
    /// A newer version wrote the file. Start that one.
    #[error(
        "file {KEYRING} of the data directory has format {0}, this version reads {FORMAT}: start a newer version"
    )]
    NewerFormat(u32),
    /// None of the keys at hand wrapped it.
    #[error(
        "the data directory is encrypted under the key {needed}, which encryption.key_file or encryption.key_command does not \
         give (it gives {given}): add that key to it, below the one that is to be used from now on"
    )]
    WrongKey {
        /// The key that wraps the data keys.
        needed: KeyId,
        /// The ids of the keys at hand.
        given: String,
    },
    /// The system has no random numbers.
    #[error("cannot make a data key: {0}")]
    Random(io::Error),
}

/// Data keys as they were read, and whether all of them were wrapped by the first of the keys at hand.
#[derive(Debug)]
pub(super) struct Unwrapped {
    pub(super) keys: Vec<DataKey>,
    pub(super) is_current: bool,
}

/// A data key that no directory has yet.
pub(super) fn new_key(algorithm: Algorithm, id: u32) -> io::Result<DataKey> {
    Ok(DataKey {
        id,
        algorithm,
        secret: SecretKey::random()?,
    })
}

/// The file's bytes: `keys`, wrapped by the first of `wrapping`.
pub(super) fn encode(keys: &[DataKey], wrapping: &WrappingKeys) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(FILE_BYTES_MAX);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_le_bytes());
    let (id, secret) = wrapping.first();
    for key in keys {
        let start = out.len();
        out.extend_from_slice(&key.id.to_le_bytes());
        out.extend_from_slice(&number_of(key.algorithm).to_le_bytes());
        out.extend_from_slice(&id.0);
        // Used for one key only, so its counter is always zero.
        let salt: [u8; SALT_BYTES] = random()?;
        out.extend_from_slice(&salt);
        let mut wrapped = key.secret.0;
        let sealing = derive(key.algorithm, secret, &salt, WRAPPING);
        let place = Aad::from(&out[start..start + 8]);
        let tag = sealing.seal_in_place_separate_tag(nonce(0), place, &mut wrapped);
        let tag = tag.map_err(|_| io::Error::other("a data key cannot be wrapped"))?;
        out.extend_from_slice(&wrapped);
        out.extend_from_slice(tag.as_ref());
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// Unwraps the keys in the file's bytes.
pub(super) fn decode(bytes: &[u8], wrapping: &WrappingKeys) -> Result<Unwrapped, KeyringError> {
    use KeyringError::Damaged;
    let (content, crc) = bytes
        .split_last_chunk::<CRC_BYTES>()
        .ok_or(Damaged("it is too short"))?;
    if content.len() < HEAD_BYTES || content[..8] != MAGIC {
        return Err(Damaged("it does not begin as it should"));
    }
    if crc32c::crc32c(content) != u32::from_le_bytes(*crc) {
        return Err(Damaged("its checksum is wrong"));
    }
    let format = number(content, 8);
    if format > FORMAT {
        return Err(KeyringError::NewerFormat(format));
    }
    let records = content[HEAD_BYTES..].chunks_exact(RECORD_BYTES);
    let count = number(content, 12) as usize;
    if count == 0 || records.len() != count || !records.remainder().is_empty() {
        return Err(Damaged("its length is wrong"));
    }
    let mut keys = Vec::with_capacity(count);
    let mut is_current = true;
    for record in records {
        let algorithm = algorithm_of(number(record, 4)).ok_or(Damaged("an unknown algorithm"))?;
        let mut needed = KeyId::default();
        needed.0.copy_from_slice(&record[8..16]);
        let Some((at, secret)) = wrapping.find(needed) else {
            let given = wrapping.ids();
            return Err(KeyringError::WrongKey { needed, given });
        };
        is_current &= at == 0;
        let (mut wrapped, mut tag) = ([0; KEY_BYTES], [0; TAG_BYTES]);
        wrapped.copy_from_slice(&record[WRAPPED_AT..WRAPPED_AT + KEY_BYTES]);
        tag.copy_from_slice(&record[WRAPPED_AT + KEY_BYTES..]);
        let opening = derive(algorithm, secret, &record[16..WRAPPED_AT], WRAPPING);
        let place = Aad::from(&record[..8]);
        opening
            .open_in_place_separate_tag(nonce(0), place, tag.into(), &mut wrapped, 0..)
            .map_err(|_| Damaged("a wrapped key is not what was written"))?;
        keys.push(DataKey {
            id: number(record, 0),
            algorithm,
            secret: SecretKey(wrapped),
        });
    }
    Ok(Unwrapped { keys, is_current })
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|next| bytes[at + next]))
}

fn number_of(algorithm: Algorithm) -> u32 {
    match algorithm {
        Algorithm::Aes256Gcm => 1,
        Algorithm::ChaCha20Poly1305 => 2,
    }
}

fn algorithm_of(number: u32) -> Option<Algorithm> {
    match number {
        1 => Some(Algorithm::Aes256Gcm),
        2 => Some(Algorithm::ChaCha20Poly1305),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapping(fills: &[u8]) -> WrappingKeys {
        let lines: Vec<String> = fills
            .iter()
            .map(|fill| format!("{fill:02x}").repeat(32))
            .collect();
        WrappingKeys::parse(lines.join("\n").as_bytes()).unwrap()
    }

    fn keys() -> Vec<DataKey> {
        vec![
            new_key(Algorithm::Aes256Gcm, 1).unwrap(),
            new_key(Algorithm::ChaCha20Poly1305, 2).unwrap(),
        ]
    }

    #[test]
    fn keys_are_unwrapped_by_the_key_that_wrapped_them_and_by_no_other() {
        let keys = keys();
        let bytes = encode(&keys, &wrapping(&[1])).unwrap();
        assert!(bytes.len() <= FILE_BYTES_MAX);
        for key in &keys {
            let mut windows = bytes.windows(KEY_BYTES);
            assert!(windows.all(|window| window != key.secret.0), "wrapped");
        }
        let found = decode(&bytes, &wrapping(&[1])).unwrap();
        assert_eq!((found.keys, found.is_current), (keys.clone(), true));
        let found = decode(&bytes, &wrapping(&[2, 1])).unwrap();
        assert_eq!((found.keys, found.is_current), (keys, false));
        let error = decode(&bytes, &wrapping(&[2, 3])).unwrap_err();
        let text = error.to_string();
        for fill in [1, 2, 3] {
            let id = wrapping(&[fill]).first().0.to_string();
            assert!(text.contains(&id), "{text}");
        }
    }

    #[test]
    fn the_same_key_is_never_wrapped_to_the_same_bytes() {
        let keys = keys();
        let wrapping = wrapping(&[1]);
        assert_ne!(
            encode(&keys, &wrapping).unwrap(),
            encode(&keys, &wrapping).unwrap()
        );
    }

    #[test]
    fn every_flipped_bit_and_every_shorter_file_is_refused() {
        let wrapping = wrapping(&[1]);
        let mut bytes = encode(&keys(), &wrapping).unwrap();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let refused = decode(&bytes, &wrapping);
            assert!(
                matches!(refused, Err(KeyringError::Damaged(_))),
                "bit {bit}"
            );
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 0..bytes.len() {
            let refused = decode(&bytes[..len], &wrapping);
            assert!(
                matches!(refused, Err(KeyringError::Damaged(_))),
                "{len} bytes"
            );
        }
    }

    #[test]
    fn changed_bytes_under_a_right_checksum_are_refused_too() {
        let wrapping = wrapping(&[1]);
        let sound = encode(&keys(), &wrapping).unwrap();
        for at in HEAD_BYTES..sound.len() - CRC_BYTES {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            let end = bytes.len() - CRC_BYTES;
            let crc = crc32c::crc32c(&bytes[..end]);
            bytes[end..].copy_from_slice(&crc.to_le_bytes());
            assert!(decode(&bytes, &wrapping).is_err(), "byte {at}");
        }
        let mut newer = sound;
        newer[8] = 2;
        let end = newer.len() - CRC_BYTES;
        let crc = crc32c::crc32c(&newer[..end]);
        newer[end..].copy_from_slice(&crc.to_le_bytes());
        let refused = decode(&newer, &wrapping);
        assert!(matches!(refused, Err(KeyringError::NewerFormat(2))));
    }
}
