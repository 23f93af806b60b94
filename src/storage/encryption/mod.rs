//! Encryption at rest: the log's entries and the database's pages, in any file of the data directory.
//!
//! `docs/encryption.md` says what is encrypted, with which keys, why no nonce repeats, and what a crash between two steps leaves.
//! The cryptography is ring's.
//!
//! | file | owns |
//! |---|---|
//! | `sealer` | encrypting pieces, with nonces that never repeat |
//! | `wrapping` | the keys from outside |
//! | `keyring` | the file with the wrapped data keys |
//! | `pages` | a file of encrypted pages |
//! | `disk` | a data directory with encryption: which file is encrypted how, rotation |
//! | `turning_on` | encrypting the databases of a directory without encryption |

mod disk;
mod keyring;
mod pages;
mod sealer;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod turning_on;
#[cfg(test)]
mod turning_on_tests;
mod wrapping;

pub use disk::{EncryptedDisk, EncryptionError, require_plain};
pub use keyring::{KEYRING, KEYRING_UNFINISHED, KeyringError};
pub use sealer::{Algorithm, Sealer};
pub(crate) use sealer::{SEAL_BYTES, Seal, Unsealed};
pub use turning_on::{TurnedOn, Watch};
pub use wrapping::{KeyCause, KeyId, KeySource, KeySourceError, WrappingKeys};
