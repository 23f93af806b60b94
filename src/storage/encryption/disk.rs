//! A data directory whose files are encrypted: a disk over a disk.
//!
//! The database's files become files of encrypted pages, whoever opens them. The log encrypts its batches itself, with the sealer
//! that [`Disk::sealer`] returns, because only it has room in a batch. All other files hold no user data and stay as they are.

use super::{
    keyring::{self, FILE_BYTES_MAX, KEYRING, KEYRING_UNFINISHED, KEYS_MAX, KeyringError, new_key},
    pages::{Kind, PageFile, kind},
    sealer::{Algorithm, DataKey, Sealer},
    wrapping::{KeyId, WrappingKeys},
};
use crate::storage::{
    disk::{Disk, DiskFile, OpenMode},
    refill,
};
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The directory of the database's files.
pub(super) const PAGES_DIR: &str = "db";
/// What the names of the database's files contain.
const PAGES: &str = ".redb";
/// The suffix of a database that is being encrypted.
pub(super) const CONVERTED: &str = ".encrypting";
/// The suffix of a database that was put aside, for people.
const PUT_ASIDE: &str = ".aside";
/// The directories of logs.
const LOG_DIRS: [&str; 2] = ["wal", "wal.before"];
/// How the names of a log's files end.
const LOG_FILES: [&str; 2] = [".seg", ".free"];
/// How a log segment begins, and the format whose batches may be encrypted.
const SEGMENT_MAGIC: [u8; 8] = *b"QUORWAL\0";
const SEGMENT_FORMAT: u32 = 3;

pub(super) const MODE: OpenMode = OpenMode {
    create: false,
    direct: false,
};
pub(super) const CREATE: OpenMode = OpenMode {
    create: true,
    direct: false,
};

/// Why a directory cannot be read or written with encryption, or without it.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// The keyring cannot be used.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// There are encrypted files, and no data keys.
    #[error(
        "file {KEYRING} of the data directory is missing, and {file} cannot be decrypted without it: put it back from a backup \
         of this directory, or, in a cluster with a healthy majority, remove this member, delete its data directory and add it \
         anew"
    )]
    KeyringMissing { file: String },
    /// The directory is encrypted, and the settings name no key.
    #[error(
        "the data directory is encrypted (it holds {file}), but encryption is off: set encryption.key_file or \
         encryption.key_command to where its key is"
    )]
    NoKey { file: String },
    /// A key was given for a directory without a keyring.
    #[error(
        "the data directory is not encrypted: it has no file {KEYRING}; give no key for it, neither by a flag nor by \
         QUORATE_ENCRYPTION_KEY_FILE or QUORATE_ENCRYPTION_KEY_COMMAND"
    )]
    NotEncrypted,
    /// A keyring is there, and all databases are plain.
    #[error(
        "the data directory holds {KEYRING}, and nothing is encrypted with it: turning encryption on was cut short. Set \
         encryption.key_file or encryption.key_command as it was; or, to leave encryption off, delete the file {KEYRING}"
    )]
    NothingEncrypted,
    /// The file system has no room for the encrypted database beside the plain one.
    #[error(
        "cannot encrypt {file} of the data directory: {needed} bytes have to be free in its file system, and {free} are. Make \
         room and start again. The file is as it was; if no other one was encrypted before, encryption can also be turned off \
         again"
    )]
    NoSpace {
        file: String,
        needed: u64,
        free: u64,
    },
    /// A database without encryption cannot be read.
    #[error(
        "cannot read {file} of the data directory ({source}): put it back from a backup; or, in a \
         cluster with a healthy majority, make a file named refill in the data directory and start again, which puts the \
         database aside and fetches a snapshot"
    )]
    Unreadable {
        file: String,
        /// The error of the disk.
        source: io::Error,
    },
    /// Whoever began it has stopped it.
    #[error("stopped while the database was being encrypted: the next start begins again")]
    Stopped,
    #[error("cannot {action} {file} of the data directory: {source}")]
    Io {
        /// The operation that failed.
        action: &'static str,
        file: String,
        /// The error of the disk.
        source: io::Error,
    },
}

impl EncryptionError {
    /// Whether it is unknown what was written.
    pub fn leaves_doubt(&self) -> bool {
        matches!(self, Self::Io { .. })
    }

    pub(super) fn io(action: &'static str, file: &str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            file: file.to_owned(),
            source,
        }
    }
}

/// The keyring as it is on the disk.
#[derive(Debug)]
struct Stored {
    wrapping: WrappingKeys,
    /// False until the first file that needs it is made.
    is_written: bool,
    /// Writing it has failed, perhaps after the rename: which key wraps what is on the disk is unknown.
    is_doubtful: bool,
}

/// A disk whose database and log are encrypted.
#[derive(Debug)]
pub struct EncryptedDisk {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) sealer: Arc<Sealer>,
    stored: Mutex<Stored>,
    /// A database that is not encrypted yet can be read: nothing is written.
    reads_plain: bool,
}

impl EncryptedDisk {
    /// The data directory `disk` with the keys of its keyring, or with a new one that is not written yet.
    pub(super) fn open_keyring(
        disk: Arc<dyn Disk>,
        wrapping: WrappingKeys,
        algorithm: Algorithm,
    ) -> Result<Arc<Self>, EncryptionError> {
        let stored = read(&*disk)?;
        let is_written = stored.is_some();
        let (mut keys, is_current) = match stored {
            Some(bytes) => {
                // The process that wrote it may have ended before the name was durable. After a loss of power the old file would
                // be back, without the data key that this process uses.
                make_durable(&*disk)?;
                let found = keyring::decode(&bytes, &wrapping)?;
                (found.keys, found.is_current)
            }
            None => match encrypted_file(&*disk)? {
                Some(file) => return Err(EncryptionError::KeyringMissing { file }),
                None => (Vec::new(), true),
            },
        };
        let is_other = keys.last().is_none_or(|key| key.algorithm != algorithm);
        if is_other || !is_current {
            add_key(&mut keys, algorithm).map_err(KeyringError::Random)?;
            if is_written {
                write(&*disk, &keys, &wrapping)?;
            }
        }
        let sealer = Sealer::new(keys).map_err(KeyringError::Random)?;
        Ok(Self::new(disk, Arc::new(sealer), wrapping, is_written))
    }

    fn new(
        disk: Arc<dyn Disk>,
        sealer: Arc<Sealer>,
        wrapping: WrappingKeys,
        is_written: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            disk,
            sealer,
            stored: Mutex::new(Stored {
                wrapping,
                is_written,
                is_doubtful: false,
            }),
            reads_plain: false,
        })
    }

    /// The data directory `disk` of a first start. A keyring that an earlier one left does not count.
    pub fn create(
        disk: Arc<dyn Disk>,
        wrapping: WrappingKeys,
        algorithm: Algorithm,
    ) -> Result<Arc<Self>, EncryptionError> {
        let key = new_key(algorithm, 1).map_err(KeyringError::Random)?;
        let sealer = Sealer::new(vec![key]).map_err(KeyringError::Random)?;
        Ok(Self::new(disk, Arc::new(sealer), wrapping, false))
    }

    /// Opens the encrypted data directory `disk`, and writes nothing to it. A database that is not encrypted yet can be read.
    pub fn open_to_read(
        disk: Arc<dyn Disk>,
        wrapping: WrappingKeys,
    ) -> Result<Arc<Self>, EncryptionError> {
        let bytes = read(&*disk)?.ok_or(EncryptionError::NotEncrypted)?;
        let keys = keyring::decode(&bytes, &wrapping)?.keys;
        Ok(Arc::new(Self {
            disk,
            sealer: Arc::new(Sealer::new(keys).map_err(KeyringError::Random)?),
            stored: Mutex::new(Stored {
                wrapping,
                is_written: true,
                is_doubtful: false,
            }),
            reads_plain: true,
        }))
    }

    /// The empty directory `disk` as one with the same data keys: encrypted log segments of this one can be copied to it.
    pub fn sibling(&self, disk: Arc<dyn Disk>) -> Arc<Self> {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        Self::new(
            disk,
            Arc::clone(&self.sealer),
            stored.wrapping.clone(),
            false,
        )
    }

    /// The key that wraps the data keys.
    pub fn wrapped_by(&self) -> KeyId {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.wrapping.first().0
    }

    /// Wraps the data keys with the first of `wrapping`, and encrypts with a new data key from then on. Returns the id of the
    /// new wrapping key; `None` if it is the present one. The present one must be among them.
    ///
    /// If it fails, the next call writes the keyring again, also if it gets the present key.
    pub fn rotate(&self, wrapping: WrappingKeys) -> Result<Option<KeyId>, EncryptionError> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, _) = wrapping.first();
        let needed = stored.wrapping.first().0;
        if id == needed && !stored.is_doubtful {
            return Ok(None);
        }
        if wrapping.find(needed).is_none() {
            // A wrong file or command, perhaps another member's.
            let given = wrapping.ids();
            return Err(KeyringError::WrongKey { needed, given }.into());
        }
        let mut keys = self.sealer.keys();
        let algorithm = keys.last().map(|key| key.algorithm);
        let algorithm = algorithm.expect("a keyring has a data key");
        let added = add_key(&mut keys, algorithm).map_err(KeyringError::Random)?;
        if stored.is_written {
            stored.is_doubtful = true;
            write(&*self.disk, &keys, &wrapping)?;
            stored.is_doubtful = false;
        }
        stored.wrapping = wrapping;
        if let Some(key) = added {
            self.sealer.add(key).map_err(KeyringError::Random)?;
        }
        Ok(Some(id))
    }

    /// Makes the keyring durable, before the first byte that needs it.
    pub(super) fn write_keyring(&self) -> Result<(), EncryptionError> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if !stored.is_written {
            write(&*self.disk, &self.sealer.keys(), &stored.wrapping)?;
            stored.is_written = true;
        }
        Ok(())
    }

    /// Whether the keyring is on the disk.
    pub(super) fn has_keyring(&self) -> bool {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.is_written
    }
}

/// Adds a data key, unless there are as many as there may be.
fn add_key(keys: &mut Vec<DataKey>, algorithm: Algorithm) -> io::Result<Option<DataKey>> {
    if keys.len() >= KEYS_MAX {
        tracing::warn!(
            "the keyring has {KEYS_MAX} data keys: no new one is made. Remove this member, delete its data directory and add it \
             anew, to begin with one"
        );
        return Ok(None);
    }
    let id = keys.last().map_or(1, |key| key.id.wrapping_add(1));
    let key = new_key(algorithm, id)?;
    tracing::info!("new data are to be encrypted with a new data key, number {id}");
    keys.push(key.clone());
    Ok(Some(key))
}

/// Whether this file is a database's.
fn is_pages(name: &str) -> bool {
    let inside = name.strip_prefix(PAGES_DIR);
    inside.is_some_and(|name| name.starts_with('/') && name.contains(PAGES))
}

pub(super) fn list(disk: &dyn Disk, dir: &str) -> Result<Vec<String>, EncryptionError> {
    disk.list(dir).map_err(EncryptionError::io("list", dir))
}

/// The keyring's bytes, if there is one.
fn read(disk: &dyn Disk) -> Result<Option<Vec<u8>>, EncryptionError> {
    if !list(disk, "")?.iter().any(|name| name == KEYRING) {
        return Ok(None);
    }
    let bytes = disk.open(KEYRING, MODE).and_then(|file| {
        // A longer one is cut, and refused for it.
        let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(FILE_BYTES_MAX)];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    });
    bytes
        .map(Some)
        .map_err(EncryptionError::io("read", KEYRING))
}

/// Makes the keyring that is there durable, and its name.
fn make_durable(disk: &dyn Disk) -> Result<(), EncryptionError> {
    let synced = disk.open(KEYRING, MODE).and_then(|file| {
        file.sync_data()?;
        disk.sync_dir("")
    });
    synced.map_err(EncryptionError::io("sync", KEYRING))
}

/// Replaces the keyring by one rename.
fn write(
    disk: &dyn Disk,
    keys: &[DataKey],
    wrapping: &WrappingKeys,
) -> Result<(), EncryptionError> {
    let bytes = keyring::encode(keys, wrapping).map_err(KeyringError::Random)?;
    let written = disk.open(KEYRING_UNFINISHED, CREATE).and_then(|file| {
        file.set_len(0)?;
        file.write_at(0, &bytes)?;
        file.sync_data()?;
        disk.rename(KEYRING_UNFINISHED, KEYRING)?;
        disk.sync_dir("")
    });
    written.map_err(EncryptionError::io("write", KEYRING))
}

/// The files of databases.
pub(super) fn databases(disk: &dyn Disk) -> Result<Vec<String>, EncryptionError> {
    let names = list(disk, PAGES_DIR)?.into_iter();
    let names = names.map(|name| format!("{PAGES_DIR}/{name}"));
    Ok(names.filter(|name| is_pages(name)).collect())
}

/// What a database's file is. One that cannot be read, and that the member can start without, is of an unknown kind.
pub(super) fn kind_of(disk: &dyn Disk, name: &str) -> Result<Kind, EncryptionError> {
    match disk.open(name, MODE).and_then(|file| kind(&*file)) {
        Ok(kind) => Ok(kind),
        Err(source) => unreadable(disk, name, source).map(|()| Kind::Unknown),
    }
}

/// What follows from a database that cannot be read: only a report, if it was put aside for people, or if a refill is asked for,
/// which puts it aside. Otherwise the start is refused.
pub(super) fn unreadable(
    disk: &dyn Disk,
    name: &str,
    source: io::Error,
) -> Result<(), EncryptionError> {
    let requested = refill::requested(disk);
    let requested = requested.map_err(EncryptionError::io("read", refill::REFILL))?;
    let file = name.to_owned();
    if !name.ends_with(PUT_ASIDE) && requested.is_none() {
        return Err(EncryptionError::Unreadable { file, source });
    }
    tracing::error!(
        "{file} of the data directory cannot be read ({source}): if it is not encrypted, it stays so. The member needs it no \
         more. Once it is put aside (its name ends in {PUT_ASIDE}), delete it or move it elsewhere"
    );
    Ok(())
}

/// A file of the database or the log that is encrypted. One that is being encrypted does not count: a start removes it.
pub(super) fn encrypted_file(disk: &dyn Disk) -> Result<Option<String>, EncryptionError> {
    for name in databases(disk)? {
        if !name.ends_with(CONVERTED) && kind_of(disk, &name)? == Kind::Encrypted {
            return Ok(Some(name));
        }
    }
    for dir in LOG_DIRS {
        let segments = list(disk, dir)?.into_iter();
        for name in segments.filter(|name| LOG_FILES.iter().any(|end| name.ends_with(end))) {
            let name = format!("{dir}/{name}");
            let encrypted = disk.open(&name, MODE).and_then(|file| is_segment(&*file));
            if encrypted.map_err(EncryptionError::io("read", &name))? {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}

/// Whether a file is a log segment whose batches may be encrypted.
fn is_segment(file: &dyn DiskFile) -> io::Result<bool> {
    let mut first = [0; 12];
    if file.len()? < first.len() as u64 {
        return Ok(false);
    }
    file.read_at(0, &mut first)?;
    let format = u32::from_le_bytes([first[8], first[9], first[10], first[11]]);
    // A later format is for the log to refuse.
    Ok(first[..8] == SEGMENT_MAGIC && format == SEGMENT_FORMAT)
}

/// Refuses a directory that is encrypted, for a start without encryption.
pub fn require_plain(disk: &dyn Disk) -> Result<(), EncryptionError> {
    let encrypted = encrypted_file(disk)?;
    let keyring = list(disk, "")?.into_iter().find(|name| name == KEYRING);
    if keyring.is_some() && encrypted.is_none() && all_are_plain(disk)? {
        return Err(EncryptionError::NothingEncrypted);
    }
    let found = keyring.or(encrypted);
    found.map_or(Ok(()), |file| Err(EncryptionError::NoKey { file }))
}

/// Whether it is sure that all databases, of which there is one, are without encryption.
fn all_are_plain(disk: &dyn Disk) -> Result<bool, EncryptionError> {
    let mut names = databases(disk)?;
    names.retain(|name| !name.ends_with(CONVERTED));
    for name in &names {
        if kind_of(disk, name)? != Kind::Plain {
            return Ok(false);
        }
    }
    Ok(!names.is_empty())
}

impl Disk for EncryptedDisk {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        if !is_pages(name) {
            return self.disk.open(name, mode);
        }
        if mode.create {
            self.write_keyring().map_err(io::Error::other)?;
        }
        let mode = OpenMode {
            direct: false,
            ..mode
        };
        let file = self.disk.open(name, mode)?;
        if self.reads_plain && kind(&*file)? == Kind::Plain {
            return Ok(file);
        }
        let sealer = Arc::clone(&self.sealer);
        Ok(Arc::new(PageFile::open(file, sealer, mode.create)?))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn takes(&self) -> Duration {
        self.disk.takes()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    fn sealer(&self) -> io::Result<Option<Arc<Sealer>>> {
        self.write_keyring().map_err(io::Error::other)?;
        Ok(Some(Arc::clone(&self.sealer)))
    }
}

/// A disk with a sealer that needs no keyring.
#[cfg(test)]
pub(super) fn wrap_for_tests(
    disk: Arc<dyn Disk>,
    sealer: Arc<Sealer>,
    wrapping: WrappingKeys,
) -> Arc<dyn Disk> {
    EncryptedDisk::new(disk, sealer, wrapping, true)
}
