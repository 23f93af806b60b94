//! Passwords of the log: bcrypt hashes, or, up to etcd 3.4, the passwords themselves.

use super::error::EntryFault;
use crate::auth::change::PasswordHash;
use base64::{Engine, engine::general_purpose::STANDARD};
use bcrypt::Version;
use sha2::{Digest, Sha256};

/// etcd's default. What another setting was is not in the data.
const COST: u32 = 10;

/// What a salt is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) cluster: u64,
    pub(super) term: u64,
    pub(super) index: u64,
}

/// The hash to store: `hashed` decoded if there is one, otherwise that of `plain`.
///
/// An entry without both is one of an empty password. Members of etcd 3.4 hashed it, later ones store an empty hash when they
/// replay it; no password matches that, so nobody gets in who should not.
pub(super) fn hash(
    plain: &str,
    hashed: &str,
    field: &'static str,
    user: &str,
    place: Place,
) -> Result<PasswordHash, EntryFault> {
    if !hashed.is_empty() || plain.is_empty() {
        let decoded = STANDARD.decode(hashed);
        let decoded = decoded.map_err(|_| EntryFault::Password { field })?;
        return Ok(PasswordHash(decoded.into()));
    }
    let parts = bcrypt::hash_with_salt(plain, COST, salt(user, place));
    // Only a cost out of bounds is refused.
    let parts = parts.map_err(|_| EntryFault::Password { field })?;
    let hash = parts.format_for_version(Version::TwoA);
    Ok(PasswordHash(hash.into_bytes().into()))
}

/// The same for everyone who imports the entry, and another for every entry. The password is no part of it: a salt is readable,
/// and a fast hash of a password would be guessed long before the slow one.
fn salt(user: &str, place: Place) -> [u8; 16] {
    let mut digest = Sha256::new();
    digest.update(b"quorate import: salt of a password\0");
    for number in [place.cluster, place.term, place.index] {
        digest.update(number.to_le_bytes());
    }
    digest.update(user);
    let digest = digest.finalize();
    let mut salt = [0; 16];
    for (byte, of) in salt.iter_mut().zip(digest) {
        *byte = of;
    }
    salt
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        cluster: 7,
        term: 2,
        index: 9,
    };

    fn text(hash: &PasswordHash) -> String {
        String::from_utf8(hash.0.to_vec()).unwrap()
    }

    #[test]
    fn a_hash_is_taken_as_it_is() {
        let stored = "$2a$10$abcdefghijklmnopqrstuu";
        let encoded = STANDARD.encode(stored);
        let taken = hash("", &encoded, "field", "u", PLACE).unwrap();
        assert_eq!(text(&taken), stored);
        let both = hash("plain", &encoded, "field", "u", PLACE).unwrap();
        assert_eq!(text(&both), stored, "the hash wins");
        let refused = hash("", "*", "field", "u", PLACE);
        assert!(
            matches!(refused, Err(EntryFault::Password { field: "field" })),
            "{refused:?}"
        );
    }

    #[test]
    fn a_plain_password_gets_the_same_hash_everywhere_and_another_in_each_entry() {
        let one = text(&hash("secret", "", "field", "u", PLACE).unwrap());
        assert!(one.starts_with("$2a$10$"), "{one}");
        assert!(bcrypt::verify("secret", &one).unwrap(), "{one}");
        assert_eq!(text(&hash("secret", "", "field", "u", PLACE).unwrap()), one);
        let later = Place { index: 10, ..PLACE };
        for other in [
            hash("secret", "", "field", "u", later),
            hash("secret", "", "field", "v", PLACE),
        ] {
            assert_ne!(text(&other.unwrap()), one);
        }
        // Only the password differs, so the salt must not.
        let guess = text(&hash("guess", "", "field", "u", PLACE).unwrap());
        assert_eq!(guess[..29], one[..29], "the salt knows no password");
        assert_ne!(guess, one);
    }

    #[test]
    fn without_a_password_nobody_gets_in() {
        assert_eq!(text(&hash("", "", "field", "u", PLACE).unwrap()), "");
    }
}
