//! Encryption at rest, as the configuration asks for it: the keys at a start, and the keys that change while the member runs.

use super::{
    data_directory::{self, Contents},
    error::StartError,
    identity::require_own,
    placement::Placement,
};
use crate::{
    clock,
    config::{Config, EncryptionAlgorithm, EncryptionConfig, EncryptionKey},
    storage::{
        disk::Disk,
        encryption::{self, Algorithm, EncryptedDisk, KeySource, TurnedOn, WrappingKeys},
    },
};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::sleep;

/// How often the key file is read.
const READ_FILE_EVERY: Duration = Duration::from_secs(2);
/// How often the command is run: it may ask a service for each.
const RUN_COMMAND_EVERY: Duration = Duration::from_mins(1);

/// How the report of a failure ends that has changed nothing.
const UNCHANGED: &str = "the key in force stays so";
/// How that of a write ends.
const DOUBTFUL: &str = "it may be wrapped by either key, in force or new, and is written again at the next look: keep both";

/// Where the keys come from, and which are at hand.
pub(super) struct Keys {
    source: KeySource,
    wrapping: WrappingKeys,
    algorithm: Algorithm,
}

/// The source of keys in the settings.
pub(super) fn source(key: &EncryptionKey) -> KeySource {
    match key {
        EncryptionKey::File(path) => KeySource::File(path.clone()),
        EncryptionKey::Command(command) => KeySource::Command(command.clone()),
    }
}

impl Keys {
    /// Gets the keys, before anything is written; `None` without encryption. Blocks.
    pub(super) fn read(config: &Config) -> Result<Option<Self>, StartError> {
        let EncryptionConfig { key, algorithm } = &config.encryption;
        let Some(key) = key else {
            return Ok(None);
        };
        let source = source(key);
        let wrapping = source.read()?;
        if let Some(path) = source.readable_by_others() {
            if config.refuse_readable_keys {
                let path = path.clone();
                return Err(StartError::ReadableEncryptionKey { path });
            }
            let path = path.display();
            tracing::warn!(
                "others can read the key of encryption.key_file, and decrypt the data with it: chmod 600 {path}"
            );
        }
        let algorithm = match algorithm {
            EncryptionAlgorithm::Aes256Gcm => Algorithm::Aes256Gcm,
            EncryptionAlgorithm::ChaCha20Poly1305 => Algorithm::ChaCha20Poly1305,
        };
        Ok(Some(Self {
            source,
            wrapping,
            algorithm,
        }))
    }

    /// As [`Keys::read`], on a thread that may block: a command may take its time.
    pub(super) async fn read_aside(config: &Config) -> Result<Option<Self>, StartError> {
        let config = config.clone();
        let reading = tokio::task::spawn_blocking(move || Self::read(&config));
        reading.await.map_err(|_| StartError::Thread)?
    }
}

/// Keeps the data directory's keys up to date, if it is encrypted.
pub(super) struct Keeper(Option<(Weak<EncryptedDisk>, KeySource)>);

/// The data directory `disk` as the member reads and writes it. One that is encrypted is refused without keys. What a first start
/// left that was cut short needs no key: it is removed. Another member's data are refused before anything is changed.
pub(super) fn open(
    config: &Config,
    keys: Option<Keys>,
    disk: Arc<dyn Disk>,
) -> Result<(Arc<dyn Disk>, Keeper), StartError> {
    let is_new = match data_directory::inspect(&*disk)? {
        Contents::New => true,
        Contents::Member(owner) => {
            require_own(config, &owner)?;
            false
        }
    };
    let Some(keys) = keys else {
        if !is_new {
            encryption::require_plain(&*disk)?;
        }
        return Ok((disk, Keeper(None)));
    };
    let (opened, turned_on) = if is_new {
        let created = EncryptedDisk::create(disk, keys.wrapping, keys.algorithm)?;
        (created, TurnedOn::default())
    } else {
        EncryptedDisk::open(disk, keys.wrapping, keys.algorithm)?
    };
    tracing::info!(
        "the data directory is encrypted, its data keys are wrapped by the key {}",
        opened.wrapped_by()
    );
    let TurnedOn { databases, bytes } = turned_on;
    if databases > 0 {
        tracing::warn!(
            databases,
            bytes,
            "encryption was turned on: the database is encrypted now. Log segments from before are not, until they are released; \
             and what was deleted may still be on the medium"
        );
    }
    let keeper = Keeper(Some((Arc::downgrade(&opened), keys.source)));
    Ok((opened, keeper))
}

impl Keeper {
    /// Looks at the keys for as long as the member runs.
    pub(super) fn run_on(self, placement: &Placement) {
        if let Some((disk, source)) = self.0 {
            let started = placement.services.spawn(keep(disk, source));
            assert!(started, "the arbiter runs as long as its actors");
        }
    }
}

async fn keep(disk: Weak<EncryptedDisk>, source: KeySource) {
    let pause = match source {
        KeySource::File(_) => READ_FILE_EVERY,
        KeySource::Command(_) => RUN_COMMAND_EVERY,
    };
    // What was logged last, so that it is not logged each time.
    let mut logged = String::new();
    loop {
        sleep(pause).await;
        let Some(disk) = disk.upgrade() else {
            return;
        };
        let source = source.clone();
        let look = move || look(&disk, &source);
        let looked = if clock::is_simulated() {
            Ok(look())
        } else {
            tokio::task::spawn_blocking(look).await
        };
        // An error means that the runtime ends.
        let failure = looked.unwrap_or_default().unwrap_or_default();
        if !failure.is_empty() && failure != logged {
            tracing::error!("{failure}");
        }
        logged = failure;
    }
}

/// Takes up a new key. Returns a text about what cannot be used, or not be written.
fn look(disk: &EncryptedDisk, source: &KeySource) -> Option<String> {
    let wrapping = match source.read() {
        Ok(wrapping) => wrapping,
        Err(error) => return Some(format!("{error}; {UNCHANGED}")),
    };
    match disk.rotate(wrapping) {
        Ok(None) => None,
        Ok(Some(id)) => {
            tracing::info!(
                "the data keys are wrapped by the key {id} now, and new data have a new data key"
            );
            None
        }
        Err(error) if error.leaves_doubt() => Some(format!("{error}; {DOUBTFUL}")),
        Err(error) => Some(format!("{error}; {UNCHANGED}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        encryption::testing,
        sim_disk::{Fault, SimDisk},
    };
    use std::{fs, os::unix::fs::PermissionsExt};

    /// It said that the key in force stays so.
    #[test]
    fn a_keyring_that_may_be_written_is_reported_as_such() {
        let disk = SimDisk::new(1);
        let opened = testing::open(Arc::new(disk.clone()), &[1]);
        opened.sealer().unwrap();
        let new_and_old = format!("echo {}; echo {}", "02".repeat(32), "01".repeat(32));
        let source = KeySource::Command(new_and_old);
        disk.fail_nth(5, Fault::Io);
        let text = look(&opened, &source).unwrap();
        assert!(text.ends_with(DOUBTFUL), "{text}");
        let wrong = KeySource::Command(format!("echo {}", "03".repeat(32)));
        let text = look(&opened, &wrong).unwrap();
        assert!(text.ends_with(UNCHANGED), "{text}");
        assert_eq!(look(&opened, &source), None);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_where_the_settings_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "00".repeat(32)).unwrap();
        let mut config = Config::default();
        assert!(Keys::read(&config).unwrap().is_none(), "off by default");
        config.encryption.key = Some(EncryptionKey::File(path.clone()));
        for (mode, refuses, good) in [
            (0o644, false, true),
            (0o644, true, false),
            (0o600, true, true),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            config.refuse_readable_keys = refuses;
            match Keys::read(&config) {
                Ok(keys) => assert!(good && keys.is_some(), "{mode:o}"),
                Err(error) => {
                    let text = format!("chmod 600 {}", path.display());
                    assert!(!good && error.to_string().ends_with(&text), "{error}");
                }
            }
        }
    }
}
