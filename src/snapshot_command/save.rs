//! `quorate snapshot save`: `FILE.part` is written, verified and synced, and then becomes `FILE`.
//!
//! | it is killed, or the machine stops | `FILE` | `FILE.part` |
//! |---|---|---|
//! | before the rename | as before | incomplete, or not synced; the next run begins it anew |
//! | after it | whole | – |
//!
//! The lock of `FILE.part` keeps a second run away until the first ends.

use super::error::SnapshotError;
use crate::api::snapshot_client::{Access, SnapshotClient};
use clap::Args;
use quorate_etcd_files::{
    bolt::Image,
    store::{Store, StoreError},
};
use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::Write,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};
use tokio::runtime;

/// Only its owner may read the file: it holds values, and hashes of passwords.
const MODE: u32 = 0o600;

#[derive(Debug, Args)]
pub(super) struct SaveArgs {
    /// The file to write
    file: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
    /// The member whose state is saved; https:// is TLS, http:// is not; without either it is TLS if --cacert is given
    #[arg(
        long,
        value_name = "HOST:PORT|unix:///PATH",
        default_value = "127.0.0.1:2379"
    )]
    endpoints: String,
    /// The authority that signs the member's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// The certificate that is shown to the member (PEM)
    #[arg(long, value_name = "FILE", requires = "key", requires = "cacert")]
    cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Who asks; needs the role root while authentication is on
    #[arg(long, value_name = "NAME[:PASSWORD]")]
    user: Option<String>,
    /// The file that holds the password
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// A JSON Web Token of who asks
    #[arg(long, value_name = "TOKEN", conflicts_with = "user")]
    auth_jwt_token: Option<String>,
}

impl SaveArgs {
    pub(super) fn run(&self) -> Result<String, SnapshotError> {
        if self.endpoints.contains(',') {
            return Err(SnapshotError::Argument(
                "--endpoints must name one member: a snapshot is the state of one",
            ));
        }
        let password = self.password()?;
        let mut part = Part::begin(&self.file, self.overwrite)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SnapshotError::Runtime)?;
        let version = runtime.block_on(self.receive(password.as_ref(), &mut part))?;
        let bytes = part.finish(&self.file, self.overwrite)?;
        let file = self.file.display();
        Ok(match version.as_str() {
            "" => format!("snapshot saved: {file} ({bytes} bytes)"),
            version => format!("snapshot saved: {file} ({bytes} bytes, version {version})"),
        })
    }

    /// The user's name and password.
    fn password(&self) -> Result<Option<(String, String)>, SnapshotError> {
        let Some(user) = &self.user else {
            return Ok(None);
        };
        if let Some(file) = &self.password_file {
            let text = fs::read_to_string(file).map_err(SnapshotError::file("read", file))?;
            return Ok(Some((user.clone(), text.trim_end_matches('\n').to_owned())));
        }
        let parts = user.split_once(':');
        let (name, password) = parts.ok_or(SnapshotError::Argument(
            "--user must be NAME:PASSWORD, or have a --password-file",
        ))?;
        Ok(Some((name.to_owned(), password.to_owned())))
    }

    /// Receives the snapshot into the file. Returns its version.
    async fn receive(
        &self,
        password: Option<&(String, String)>,
        part: &mut Part,
    ) -> Result<String, SnapshotError> {
        let mut client = SnapshotClient::connect(&Access {
            endpoint: self.endpoints.clone(),
            authorities: self.cacert.clone(),
            shown: self.cert.clone().zip(self.key.clone()),
        })
        .await?;
        if let Some((name, password)) = password {
            client.log_in(name, password).await?;
        }
        if let Some(token) = &self.auth_jwt_token {
            client.use_token(token)?;
        }
        let mut answer = client.snapshot().await?;
        let (mut left, mut version) = (0, String::new());
        while let Some(piece) = answer.next().await? {
            part.write(&piece.bytes)?;
            (left, version) = (piece.left, piece.version);
        }
        if left > 0 {
            return Err(SnapshotError::Short { left });
        }
        Ok(version)
    }
}

/// The file that is being written, which this process has locked. Dropping it removes it.
struct Part {
    handle: File,
    path: PathBuf,
    is_renamed: bool,
}

impl Part {
    fn begin(file: &Path, overwrite: bool) -> Result<Self, SnapshotError> {
        refuse_existing(file, overwrite)?;
        let Some(name) = file.file_name() else {
            return Err(SnapshotError::Argument("FILE must be the name of a file"));
        };
        let mut name = name.to_owned();
        name.push(".part");
        let path = file.with_file_name(name);
        let handle = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .open(&path)
            .map_err(SnapshotError::file("write", &path))?;
        let busy = || SnapshotError::Busy { path: path.clone() };
        match handle.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy()),
            Err(TryLockError::Error(source)) => {
                return Err(SnapshotError::file("lock", &path)(source));
            }
        }
        // The process that had the lock before may have given this file its final name.
        if !is_at(&handle, &path) {
            return Err(busy());
        }
        let emptied = handle.set_len(0);
        emptied.map_err(SnapshotError::file("write", &path))?;
        let private = handle.set_permissions(Permissions::from_mode(MODE));
        private.map_err(SnapshotError::file("protect", &path))?;
        Ok(Self {
            handle,
            path,
            is_renamed: false,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let written = self.handle.write_all(bytes);
        written.map_err(SnapshotError::file("write", &self.path))
    }

    /// Verifies what was written, and gives it its final name. Returns its length.
    fn finish(mut self, file: &Path, overwrite: bool) -> Result<u64, SnapshotError> {
        let synced = self.handle.sync_all();
        synced.map_err(SnapshotError::file("sync", &self.path))?;
        verify(&self.handle).map_err(|error| SnapshotError::Received(Box::new(error)))?;
        let length = self.handle.metadata().map(|metadata| metadata.len());
        let length = length.map_err(SnapshotError::file("look at", &self.path))?;
        refuse_existing(file, overwrite)?;
        fs::rename(&self.path, file).map_err(SnapshotError::file("rename", &self.path))?;
        self.is_renamed = true;
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(SnapshotError::file("sync", folder))?;
        Ok(length)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_renamed {
            // If it stays, the next run begins it anew.
            fs::remove_file(&self.path).unwrap_or_default();
        }
    }
}

fn verify(file: &File) -> Result<(), StoreError> {
    let image = Image::open(file)?;
    image.verify_hash()?;
    Store::open(image).map(drop)
}

fn refuse_existing(file: &Path, overwrite: bool) -> Result<(), SnapshotError> {
    if overwrite || fs::symlink_metadata(file).is_err() {
        return Ok(());
    }
    Err(SnapshotError::Exists {
        path: file.to_owned(),
    })
}

/// Whether the file is still the one that has this name.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let named = fs::symlink_metadata(path).map(identity);
    let opened = file.metadata().map(identity);
    matches!((named, opened), (Ok(named), Ok(opened)) if named == opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_exists_is_refused_and_stays() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("backup.db");
        fs::write(&file, "older").unwrap();
        let refused = Part::begin(&file, false);
        assert!(matches!(refused, Err(SnapshotError::Exists { .. })));
        assert_eq!(fs::read_to_string(&file).unwrap(), "older");
        drop(Part::begin(&file, true).unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "older");
        assert!(!home.path().join("backup.db.part").exists(), "it is gone");
    }

    #[test]
    fn a_second_run_waits_for_the_first_and_leftovers_are_begun_anew() {
        let home = tempfile::tempdir().unwrap();
        let (file, part) = (home.path().join("a"), home.path().join("a.part"));
        fs::write(&part, "of a run that was killed").unwrap();
        let first = Part::begin(&file, false).unwrap();
        let metadata = fs::metadata(&part).unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o777), (0, MODE));
        let second = Part::begin(&file, false);
        assert!(matches!(second, Err(SnapshotError::Busy { .. })));
        assert!(part.exists(), "it is the first one's");
        drop(first);
        assert!(Part::begin(&file, false).is_ok(), "its turn has come");
    }

    #[test]
    fn what_is_no_snapshot_does_not_get_the_final_name() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("a");
        let mut part = Part::begin(&file, false).unwrap();
        part.write(&[0; 8_192 + 32]).unwrap();
        let refused = part.finish(&file, false);
        assert!(matches!(refused, Err(SnapshotError::Received(_))));
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_another_has_renamed_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let (part, file) = (home.path().join("a.part"), home.path().join("a"));
        fs::write(&part, "whole").unwrap();
        let handle = File::open(&part).unwrap();
        assert!(is_at(&handle, &part), "it has its name");
        fs::rename(&part, &file).unwrap();
        assert!(!is_at(&handle, &part), "it has another");
        fs::write(&part, "the next one").unwrap();
        assert!(!is_at(&handle, &part), "this is another file");
    }
}
