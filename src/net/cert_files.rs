//! The files of certificates and keys that `quorate cert` reads and writes.

use crate::tls::{CertificateKind, TlsError, certificates};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

pub(super) fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| file_error("read", path, source))
}

/// Makes a folder for keys, which its owner alone may enter, unless it is there.
pub(super) fn make_folder(dir: &Path) -> Result<(), TlsError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(|source| file_error("make the folder", dir, source))
}

/// Refuses to replace what is no certificate, or one of another kind.
pub(super) fn check_replaced(file: &Path, kind: CertificateKind) -> Result<(), TlsError> {
    if !file.exists() {
        return Ok(());
    }
    let found = CertificateKind::of(&certificates(file)?[0]);
    if found == Some(kind) {
        return Ok(());
    }
    let found = found.map_or("one of another tool".to_owned(), |found| found.to_string());
    Err(TlsError::Pem {
        path: file.to_owned(),
        problem: format!(
            "it is {found} and not replaced by {kind}: give another --name or --dir, or remove it first"
        ),
    })
}

pub(super) fn refuse_existing(files: &[PathBuf]) -> Result<(), TlsError> {
    match files.iter().find(|file| file.exists()) {
        Some(file) => Err(file_error(
            "overwrite",
            file,
            io::ErrorKind::AlreadyExists.into(),
        )),
        None => Ok(()),
    }
}

/// Writes a new file that its owner alone may read.
pub(super) fn write_new(path: &Path, text: &str) -> Result<(), TlsError> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    opened
        .and_then(|mut file| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
        })
        .map_err(|source| file_error("write", path, source))
}

/// Replaces a file, or makes it, as [`write_new`] does: whole or not at all.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), TlsError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file_error("remove", &new, error));
        }
        Ok(()) | Err(_) => {}
    }
    write_new(&new, text)?;
    fs::rename(&new, path).map_err(|source| file_error("replace", path, source))
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> TlsError {
    TlsError::File {
        action,
        path: path.to_owned(),
        source,
    }
}
