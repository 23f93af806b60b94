//! The settings of encryption at rest.

use super::{
    error::ConfigError,
    layers::{Layers, bad},
    read::{choice, is_set_without, refuse, text},
};
use std::path::PathBuf;

/// How the data directory is encrypted.
#[derive(Clone, Debug)]
pub struct EncryptionConfig {
    /// Where the key is; `None` without encryption.
    pub key: Option<EncryptionKey>,
    /// With what new data are encrypted.
    pub algorithm: EncryptionAlgorithm,
}

/// Where the key is that wraps the data keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncryptionKey {
    File(PathBuf),
    /// In what a command prints.
    Command(String),
}

/// What data are encrypted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncryptionAlgorithm {
    Aes256Gcm,
    ChaCha20Poly1305,
}

pub(super) fn read(layers: &Layers) -> Result<EncryptionConfig, ConfigError> {
    const FILE: &str = "encryption.key_file";
    const COMMAND: &str = "encryption.key_command";
    const ALGORITHM: &str = "encryption.algorithm";
    let key = match (text(layers, FILE), text(layers, COMMAND)) {
        ("", "") => None,
        (file, "") => Some(EncryptionKey::File(file.into())),
        ("", command) => Some(EncryptionKey::Command(command.to_owned())),
        (_, _) => {
            // The command may hold a secret.
            let (origin, value) = (layers.get(COMMAND).origin.clone(), "(not shown)");
            let allowed = format!("empty, since {FILE} is set");
            return Err(bad(origin, COMMAND, value.to_owned(), &allowed));
        }
    };
    let algorithms = [
        ("aes-256-gcm", EncryptionAlgorithm::Aes256Gcm),
        ("chacha20-poly1305", EncryptionAlgorithm::ChaCha20Poly1305),
    ];
    let algorithm = choice(layers, ALGORITHM, &algorithms)?;
    if key.is_none() && is_set_without(layers, ALGORITHM, &[FILE, COMMAND]) {
        let allowed =
            format!("given together with {FILE} or {COMMAND}: without a key encryption is off");
        return Err(refuse(layers, ALGORITHM, &allowed));
    }
    Ok(EncryptionConfig { key, algorithm })
}
