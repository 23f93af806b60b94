//! Turning encryption on: a start encrypts each database that is not encrypted yet, behind one rename.
//!
//! ```text
//! keyring      db/x.redb      db/x.redb.encrypting     what the next start does
//! ──────────   ────────────   ──────────────────────   ────────────────────────────────────────────────────────────
//! none         plain          none                     begins, if there is room
//! there        plain          a part of it             removes it, and begins again
//! there        encrypted      none                     nothing
//! ```
//!
//! A start that fails removes what it has made, the keyring too unless a file needs it: without encryption the next one goes on.

use super::{
    disk::{
        CONVERTED, CREATE, EncryptedDisk, EncryptionError, MODE, PAGES_DIR, databases,
        encrypted_file, kind_of, list, unreadable,
    },
    keyring::{KEYRING, KEYRING_UNFINISHED},
    pages::{Kind, PAGE_BYTES, PageFile, encrypted_bytes},
    sealer::Algorithm,
    wrapping::WrappingKeys,
};
use crate::storage::disk::{Disk, DiskFile};
use std::{io, sync::Arc};

/// Bytes that are encrypted at once: whole pages.
const CHUNK_BYTES: usize = 1024 * 1024;
/// So many bytes are synced together: with one sync at the end nobody could say how far it is.
const SYNC_BYTES: u64 = 32 * CHUNK_BYTES as u64;
/// How the names of databases end that a start removes.
const LEFTOVERS: [&str; 3] = [CONVERTED, ".redb.incoming", ".redb.new"];

/// Hears before each part how many bytes are encrypted, out of how many. What is encrypted is dropped if it returns false.
pub type Watch<'w> = dyn Fn(u64, u64) -> bool + 'w;

/// What turning encryption on has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnedOn {
    /// Databases that were encrypted.
    pub databases: usize,
    /// Their size in bytes.
    pub bytes: u64,
}

/// A database without encryption.
struct Plain {
    name: String,
    file: Arc<dyn DiskFile>,
    bytes: u64,
}

impl EncryptedDisk {
    /// Opens the data directory `disk`. Without a keyring nothing is written before the first file that needs one, unless there
    /// is a database without encryption: that is encrypted here.
    pub fn open(
        disk: Arc<dyn Disk>,
        wrapping: WrappingKeys,
        algorithm: Algorithm,
        watch: &Watch<'_>,
    ) -> Result<(Arc<Self>, TurnedOn), EncryptionError> {
        let opened = Self::open_keyring(disk, wrapping, algorithm)?;
        let turned_on = opened.encrypt_databases(watch)?;
        Ok((opened, turned_on))
    }

    fn encrypt_databases(&self, watch: &Watch<'_>) -> Result<TurnedOn, EncryptionError> {
        let plain = self.plain_databases()?;
        self.require_room(&plain)?;
        let had_keyring = self.has_keyring();
        let done = self.encrypt_all(plain, watch);
        if done.is_err() && !had_keyring {
            self.withdraw_keyring();
        }
        done
    }

    /// The databases without encryption. Removes what an earlier start and interrupted transfers have left.
    fn plain_databases(&self) -> Result<Vec<Plain>, EncryptionError> {
        let disk = &*self.disk;
        let mut plain = Vec::new();
        let names = databases(disk)?;
        if !names.is_empty() {
            // The process that gave a database its name may have ended before that was durable. After a loss of power the plain
            // one would be back, without what was written since.
            let synced = disk.sync_dir(PAGES_DIR);
            synced.map_err(EncryptionError::io("sync", PAGES_DIR))?;
        }
        for name in names {
            if LEFTOVERS.iter().any(|end| name.ends_with(end)) {
                let removed = disk.remove(&name);
                removed.map_err(EncryptionError::io("remove", &name))?;
            } else if kind_of(disk, &name)? == Kind::Plain {
                let opened = disk.open(&name, MODE);
                let file = opened.map_err(EncryptionError::io("open", &name))?;
                let bytes = file.len().map_err(EncryptionError::io("read", &name))?;
                plain.push(Plain { name, file, bytes });
            }
        }
        Ok(plain)
    }

    /// Refuses to begin what cannot end for lack of space.
    fn require_room(&self, plain: &[Plain]) -> Result<(), EncryptionError> {
        let mut grown = 0;
        for Plain { name, bytes, .. } in plain {
            let needed = grown + encrypted_bytes(*bytes);
            let free = self.disk.free_bytes();
            let free = free.map_err(EncryptionError::io("find out the free space for", name))?;
            if free < needed {
                let file = name.clone();
                return Err(EncryptionError::NoSpace { file, needed, free });
            }
            grown = needed - bytes;
        }
        Ok(())
    }

    fn encrypt_all(
        &self,
        plain: Vec<Plain>,
        watch: &Watch<'_>,
    ) -> Result<TurnedOn, EncryptionError> {
        let total = plain.iter().map(|plain| plain.bytes).sum();
        let mut done = TurnedOn::default();
        for plain in plain {
            let watch = |bytes| watch(done.bytes + bytes, total);
            match self.encrypt(&plain, &watch) {
                Ok(()) => {
                    done.databases += 1;
                    done.bytes += plain.bytes;
                }
                Err(EncryptionError::Unreadable { file, source }) => {
                    unreadable(&*self.disk, &file, source)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Before the rename the old file counts, after it the new one.
    fn encrypt(&self, plain: &Plain, watch: &dyn Fn(u64) -> bool) -> Result<(), EncryptionError> {
        let name = &plain.name;
        let new_name = format!("{name}{CONVERTED}");
        let done = self
            .write_keyring()
            .and_then(|()| self.copy(plain, &new_name, watch))
            .and_then(|()| {
                let renamed = self.disk.rename(&new_name, name);
                renamed.map_err(EncryptionError::io("rename", &new_name))?;
                let synced = self.disk.sync_dir(PAGES_DIR);
                synced.map_err(EncryptionError::io("sync", PAGES_DIR))
            });
        done.map_err(|error| {
            log_failure(&new_name, self.remove_if_there(PAGES_DIR, &[&new_name]));
            self.with_room(error, plain)
        })
    }

    fn copy(
        &self,
        plain: &Plain,
        new_name: &str,
        watch: &dyn Fn(u64) -> bool,
    ) -> Result<(), EncryptionError> {
        let io = || EncryptionError::io("write", new_name);
        let file = self.disk.open(new_name, CREATE).map_err(io())?;
        file.set_len(0).map_err(io())?;
        let file = PageFile::open(file, Arc::clone(&self.sealer), true).map_err(io())?;
        let page = PAGE_BYTES as u64;
        let len = plain.bytes.next_multiple_of(page);
        file.set_len(len).map_err(io())?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut at = 0;
        while at < len {
            if !watch(at) {
                return Err(EncryptionError::Stopped);
            }
            let left = usize::try_from(len - at).unwrap_or(usize::MAX);
            let part = &mut chunk[..left.min(CHUNK_BYTES)];
            // A file that was cut off may end inside a page. Its opening says what is wrong with it.
            let there = usize::try_from(plain.bytes - at).unwrap_or(usize::MAX);
            let there = there.min(part.len());
            part[there..].fill(0);
            let read = plain.file.read_at(at, &mut part[..there]);
            read.map_err(|source| EncryptionError::Unreadable {
                file: plain.name.clone(),
                source,
            })?;
            file.write_at(at, part).map_err(io())?;
            at += part.len() as u64;
            if at.is_multiple_of(SYNC_BYTES) {
                file.sync_data().map_err(io())?;
            }
        }
        file.sync_data().map_err(io())
    }

    /// Says how much space is missing, if that is the reason.
    fn with_room(&self, error: EncryptionError, plain: &Plain) -> EncryptionError {
        let EncryptionError::Io { source, .. } = &error else {
            return error;
        };
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        match self.disk.free_bytes() {
            Ok(free) if full.contains(&source.kind()) => EncryptionError::NoSpace {
                file: plain.name.clone(),
                needed: encrypted_bytes(plain.bytes),
                free,
            },
            _ => error,
        }
    }

    /// Removes the keyring that this start has written, if no file needs it: because of it a start without encryption would be
    /// refused. A crash may leave it: then the next start says that it can be deleted.
    fn withdraw_keyring(&self) {
        let withdrawn = encrypted_file(&*self.disk).and_then(|found| match found {
            Some(_) => Ok(()),
            None => self.remove_if_there("", &[KEYRING, KEYRING_UNFINISHED]),
        });
        log_failure(KEYRING, withdrawn);
    }

    /// Removes files in `dir`, durably.
    fn remove_if_there(&self, dir: &str, paths: &[&str]) -> Result<(), EncryptionError> {
        let names = list(&*self.disk, dir)?;
        for path in paths {
            let name = path.rsplit('/').next().unwrap_or(path);
            if names.iter().any(|other| other == name) {
                let removed = self.disk.remove(path);
                removed.map_err(EncryptionError::io("remove", path))?;
            }
        }
        let synced = self.disk.sync_dir(dir);
        synced.map_err(EncryptionError::io("sync", dir))
    }
}

/// The start has failed already, for a reason that comes first.
fn log_failure(file: &str, removed: Result<(), EncryptionError>) {
    if let Err(error) = removed {
        tracing::error!("{file} of the data directory is left behind: {error}");
    }
}
