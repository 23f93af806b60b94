//! Authenticated encryption with nonces that never repeat.
//!
//! A data key never encrypts anything itself. Every process start draws a random salt of 128 bits, and HKDF-SHA256 derives from
//! the data key and the salt the key that this process encrypts with; the nonce is a counter that begins at zero and is never
//! stored. So a copy of a directory that is put back and continued encrypts with another key than the process that wrote it, and
//! a torn write or a crash cannot bring a counter back. What is needed to decrypt (the data key's id, the salt, the counter, the
//! tag) is stored beside each encrypted piece as its [`Seal`].

use ring::{
    aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
    rand::{SecureRandom, SystemRandom},
};
use std::{
    collections::HashMap,
    fmt, io,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Length of a seal: what is stored beside an encrypted piece.
pub(crate) const SEAL_BYTES: usize = 48;
/// What is stored beside an encrypted piece.
pub(crate) type Seal = [u8; SEAL_BYTES];

/// Length of every key: data keys, and the keys that wrap them.
pub(super) const KEY_BYTES: usize = 32;
pub(super) const SALT_BYTES: usize = 16;
/// Length of the tag of both algorithms.
pub(super) const TAG_BYTES: usize = 16;

/// Pieces that are encrypted with one derived key; the next one gets a new salt. Far below the bounds of both algorithms.
const PIECES_MAX: u64 = 1 << 32;
/// Derived keys that are kept for decryption, about 600 bytes each: one for each start whose data are still in the directory;
/// past the bound a key is derived for each piece, which takes some microseconds.
const KEPT_KEYS_MAX: usize = 1_024;

const DATA: &[u8] = b"quorate data 1";

/// How data are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Algorithm {
    fn ring(self) -> &'static ring::aead::Algorithm {
        match self {
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }
}

/// The bytes of a key. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SecretKey(pub(super) [u8; KEY_BYTES]);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey")
    }
}

impl SecretKey {
    /// A key from the system's random numbers.
    pub(super) fn random() -> io::Result<Self> {
        random().map(Self)
    }
}

/// Random bytes of the system.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the system has no random numbers"))?;
    Ok(bytes)
}

/// The key that `secret` and `salt` give for one purpose.
pub(super) fn derive(
    algorithm: Algorithm,
    secret: &SecretKey,
    salt: &[u8],
    purpose: &[u8],
) -> LessSafeKey {
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&secret.0);
    let purpose = [purpose];
    let expanded = extracted.expand(&purpose, algorithm.ring());
    let expanded = expanded.expect("HKDF expands to the 32 bytes of a key");
    LessSafeKey::new(UnboundKey::from(expanded))
}

pub(super) fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// A data key, and what it is called in the seals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataKey {
    pub(super) id: u32,
    pub(super) algorithm: Algorithm,
    pub(super) secret: SecretKey,
}

/// Why a piece cannot be decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsealed {
    /// The data key that its seal names is not in the keyring. A damaged seal can look like that too.
    #[error("encrypted with data key {0}, which is not in the keyring")]
    UnknownKey(u32),
    /// Text, seal or place are not those that were written.
    #[error("not what was encrypted for this place")]
    Changed,
}

/// The key that pieces are encrypted with at present.
#[derive(Debug)]
struct Sealing {
    id: u32,
    salt: [u8; SALT_BYTES],
    key: Arc<LessSafeKey>,
    counter: AtomicU64,
    pieces_max: u64,
}

impl Sealing {
    fn new(key: &DataKey, pieces_max: u64) -> io::Result<Self> {
        let salt = random()?;
        Ok(Self {
            id: key.id,
            key: Arc::new(derive(key.algorithm, &key.secret, &salt, DATA)),
            salt,
            counter: AtomicU64::new(0),
            pieces_max,
        })
    }

    /// A number that no other piece has under this key; `None` once it has encrypted enough.
    fn next(&self) -> Option<u64> {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        (counter < self.pieces_max).then_some(counter)
    }
}

type KeptKeys = HashMap<(u32, [u8; SALT_BYTES]), Arc<LessSafeKey>>;

/// Encrypts and decrypts pieces of the log and of the database, on any thread. Opaque outside of this crate.
#[derive(Debug)]
pub struct Sealer {
    /// All data keys; the last one encrypts.
    keys: RwLock<Vec<DataKey>>,
    sealing: RwLock<Arc<Sealing>>,
    kept: RwLock<KeptKeys>,
}

impl Sealer {
    /// Encrypts with the last of `keys`, under a salt of its own.
    pub(super) fn new(keys: Vec<DataKey>) -> io::Result<Self> {
        let newest = keys.last().expect("a keyring has a data key");
        Ok(Self {
            sealing: RwLock::new(Arc::new(Sealing::new(newest, PIECES_MAX)?)),
            keys: RwLock::new(keys),
            kept: RwLock::default(),
        })
    }

    pub(super) fn keys(&self) -> Vec<DataKey> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.clone()
    }

    /// Encrypts with `key` from now on; the keyring must have it durably.
    pub(super) fn add(&self, key: DataKey) -> io::Result<()> {
        let next = Arc::new(Sealing::new(&key, PIECES_MAX)?);
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.push(key);
        drop(keys);
        *self.sealing.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// Encrypts `text` in place. `place` must be given again to decrypt it.
    pub(crate) fn seal(&self, place: &[u8], text: &mut [u8]) -> io::Result<Seal> {
        let (sealing, counter) = self.next()?;
        let sealed = sealing
            .key
            .seal_in_place_separate_tag(nonce(counter), Aad::from(place), text);
        let tag = sealed.map_err(|_| io::Error::other("a piece is too long to be encrypted"))?;
        let mut seal = [0; SEAL_BYTES];
        seal[..4].copy_from_slice(&sealing.id.to_le_bytes());
        seal[8..24].copy_from_slice(&sealing.salt);
        seal[24..32].copy_from_slice(&counter.to_le_bytes());
        seal[32..].copy_from_slice(tag.as_ref());
        Ok(seal)
    }

    /// Decrypts `text` in place. After an error its content is unspecified.
    pub(crate) fn open(&self, place: &[u8], seal: &Seal, text: &mut [u8]) -> Result<(), Unsealed> {
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|next| seal[at + next]));
        if number(4) != 0 {
            return Err(Unsealed::Changed);
        }
        let id = number(0);
        let (mut salt, mut counter, mut tag) = ([0; SALT_BYTES], [0; 8], [0; TAG_BYTES]);
        salt.copy_from_slice(&seal[8..24]);
        counter.copy_from_slice(&seal[24..32]);
        tag.copy_from_slice(&seal[32..]);
        let kept = self.kept(id, &salt);
        let is_new = kept.is_none();
        let key = match kept {
            Some(key) => key,
            None => self.derived(id, &salt)?,
        };
        let nonce = nonce(u64::from_le_bytes(counter));
        let opened = key.open_in_place_separate_tag(nonce, Aad::from(place), tag.into(), text, 0..);
        opened.map_err(|_| Unsealed::Changed)?;
        // Only a salt that is proved right: damaged ones would fill the table.
        if is_new {
            self.keep(id, salt, key);
        }
        Ok(())
    }

    fn next(&self) -> io::Result<(Arc<Sealing>, u64)> {
        loop {
            let sealing = {
                let sealing = self.sealing.read().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(&sealing)
            };
            if let Some(counter) = sealing.next() {
                return Ok((sealing, counter));
            }
            self.renew(&sealing)?;
        }
    }

    /// Replaces `used`, which has encrypted enough, unless another thread has done so.
    fn renew(&self, used: &Arc<Sealing>) -> io::Result<()> {
        let mut sealing = self.sealing.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&sealing, used) {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            let key = keys.iter().find(|key| key.id == used.id);
            let key = key.expect("a data key is never forgotten while the process runs");
            *sealing = Arc::new(Sealing::new(key, used.pieces_max)?);
        }
        Ok(())
    }

    fn kept(&self, id: u32, salt: &[u8; SALT_BYTES]) -> Option<Arc<LessSafeKey>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.get(&(id, *salt)).cloned()
    }

    fn derived(&self, id: u32, salt: &[u8; SALT_BYTES]) -> Result<Arc<LessSafeKey>, Unsealed> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.iter().find(|key| key.id == id);
        let key = key.ok_or(Unsealed::UnknownKey(id))?;
        Ok(Arc::new(derive(key.algorithm, &key.secret, salt, DATA)))
    }

    fn keep(&self, id: u32, salt: [u8; SALT_BYTES], key: Arc<LessSafeKey>) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_KEYS_MAX {
            kept.insert((id, salt), key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn data_key(id: u32, algorithm: Algorithm) -> DataKey {
        DataKey {
            id,
            algorithm,
            secret: SecretKey([u8::try_from(id).unwrap(); KEY_BYTES]),
        }
    }

    fn sealer() -> Sealer {
        Sealer::new(vec![data_key(1, Algorithm::Aes256Gcm)]).unwrap()
    }

    /// Salt and counter.
    fn used(seal: &Seal) -> [u8; 24] {
        seal[8..32].try_into().unwrap()
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_and_any_flipped_bit_is_found() {
        for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
            let sealer = Sealer::new(vec![data_key(7, algorithm)]).unwrap();
            let mut text = *b"some value";
            let mut seal = sealer.seal(b"here", &mut text).unwrap();
            assert_ne!(&text, b"some value");
            let stored = text;
            let open = |place: &[u8], seal: &Seal, text: &[u8; 10]| {
                let mut text = *text;
                sealer.open(place, seal, &mut text).map(|()| text)
            };
            assert_eq!(open(b"here", &seal, &stored).as_ref(), Ok(b"some value"));
            assert_eq!(open(b"there", &seal, &stored), Err(Unsealed::Changed));
            for bit in 0..SEAL_BYTES * 8 {
                seal[bit / 8] ^= 1 << (bit % 8);
                assert!(open(b"here", &seal, &stored).is_err(), "bit {bit}");
                seal[bit / 8] ^= 1 << (bit % 8);
            }
            for bit in 0..stored.len() * 8 {
                let mut changed = stored;
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(open(b"here", &seal, &changed).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn no_nonce_repeats_within_a_start_nor_in_another_start_with_the_same_keys() {
        let mut seen = BTreeSet::new();
        for _ in 0..50 {
            let sealer = sealer();
            for _ in 0..100 {
                let seal = sealer.seal(b"", &mut [0; 8]).unwrap();
                assert!(seen.insert(used(&seal)), "a key and nonce came twice");
            }
        }
        let salts: BTreeSet<_> = seen.iter().map(|used| used[..16].to_vec()).collect();
        assert_eq!(salts.len(), 50, "each start has a salt of its own");
    }

    #[test]
    fn a_key_that_has_encrypted_enough_is_replaced() {
        let sealer = sealer();
        let short = Sealing::new(&data_key(1, Algorithm::Aes256Gcm), 3).unwrap();
        *sealer.sealing.write().unwrap() = Arc::new(short);
        let mut pieces = Vec::new();
        for number in 0..10_u8 {
            let mut text = [number; 4];
            let seal = sealer.seal(b"", &mut text).unwrap();
            pieces.push((seal, text));
        }
        let salts: BTreeSet<_> = pieces
            .iter()
            .map(|(seal, _)| seal[8..24].to_vec())
            .collect();
        assert_eq!(salts.len(), 4, "ten pieces, three to a key");
        for (number, (seal, mut text)) in pieces.into_iter().enumerate() {
            sealer.open(b"", &seal, &mut text).unwrap();
            assert_eq!(text, [u8::try_from(number).unwrap(); 4]);
        }
    }

    #[test]
    fn threads_that_seal_at_once_never_share_a_nonce() {
        let sealer = Arc::new(sealer());
        let short = Sealing::new(&data_key(1, Algorithm::Aes256Gcm), 50).unwrap();
        *sealer.sealing.write().unwrap() = Arc::new(short);
        let threads = [0; 4].map(|_| {
            let sealer = sealer.clone();
            std::thread::spawn(move || {
                let seals = (0..500).map(|_| sealer.seal(b"", &mut [0; 8]).unwrap());
                seals.map(|seal| used(&seal)).collect::<Vec<_>>()
            })
        });
        let mut seen = BTreeSet::new();
        for used in threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
        {
            assert!(seen.insert(used), "a key and nonce came twice");
        }
        assert_eq!(seen.len(), 2_000);
    }

    #[test]
    fn an_added_key_encrypts_and_the_old_one_still_decrypts() {
        let sealer = sealer();
        let mut old = *b"old";
        let old_seal = sealer.seal(b"", &mut old).unwrap();
        sealer
            .add(data_key(2, Algorithm::ChaCha20Poly1305))
            .unwrap();
        let mut new = *b"new";
        let new_seal = sealer.seal(b"", &mut new).unwrap();
        assert_eq!((old_seal[0], new_seal[0]), (1, 2));
        sealer.open(b"", &old_seal, &mut old).unwrap();
        sealer.open(b"", &new_seal, &mut new).unwrap();
        assert_eq!((&old, &new), (b"old", b"new"));
        let other = Sealer::new(vec![data_key(3, Algorithm::Aes256Gcm)]).unwrap();
        let unknown = other.open(b"", &new_seal, &mut new);
        assert_eq!(unknown, Err(Unsealed::UnknownKey(2)));
    }

    #[test]
    fn the_table_of_kept_keys_is_bounded_and_what_is_past_it_opens_too() {
        let reader = sealer();
        for start in 0..KEPT_KEYS_MAX + 20 {
            let writer = sealer();
            let mut text = *b"text";
            let seal = writer.seal(b"", &mut text).unwrap();
            reader.open(b"", &seal, &mut text).unwrap();
            assert_eq!(&text, b"text", "start {start}");
        }
        assert_eq!(reader.kept.read().unwrap().len(), KEPT_KEYS_MAX);
        let mut garbage = [0; SEAL_BYTES];
        garbage[0] = 1;
        let fresh = sealer();
        assert!(fresh.open(b"", &garbage, &mut [0; 4]).is_err());
        assert!(
            fresh.kept.read().unwrap().is_empty(),
            "a wrong salt is not kept"
        );
    }
}
