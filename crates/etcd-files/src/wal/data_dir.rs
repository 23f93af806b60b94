//! Where the parts of an etcd's data are.

use super::{directory, error::WalError, running};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// An etcd's data directory that has all its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDirectory {
    /// The file of bbolt, `member/snap/db`.
    pub database: PathBuf,
    /// The directory of the snapshot files, `member/snap`.
    pub snapshots: PathBuf,
    /// The directory of the log, `member/wal` unless the etcd was told otherwise.
    pub wal: PathBuf,
}

impl DataDirectory {
    /// Finds an etcd's data at `path`, its data directory or the `member` in it.
    ///
    /// `NotEtcd` if there is nothing of an etcd, `NoDatabase` and `NoLog` if there is only the other part.
    pub fn look(path: &Path) -> Result<Self, WalError> {
        Self::find(path, None)
    }

    /// The same for an etcd that was started with `--wal-dir`: its log is the directory `wal` itself.
    pub fn look_with_wal(path: &Path, wal: &Path) -> Result<Self, WalError> {
        Self::find(path, Some(wal))
    }

    fn find(path: &Path, wal: Option<&Path>) -> Result<Self, WalError> {
        fs::read_dir(path).map_err(|source| WalError::Io {
            path: path.to_owned(),
            source,
        })?;
        let member = member(path);
        let found = Self {
            database: member.join("snap/db"),
            snapshots: member.join("snap"),
            wal: wal.map_or_else(|| member.join("wal"), Path::to_owned),
        };
        match (found.database.is_file(), has_log(&found.wal)?) {
            (true, true) => Ok(found),
            (false, true) => Err(WalError::NoDatabase {
                path: path.to_owned(),
                database: found.database,
            }),
            (true, false) => Err(WalError::NoLog {
                path: path.to_owned(),
                wal: found.wal,
            }),
            (false, false) => Err(WalError::NotEtcd {
                path: path.to_owned(),
            }),
        }
    }

    /// Fails with `Running` if an etcd runs on this data.
    pub fn refuse_running(&self) -> Result<(), WalError> {
        running::refuse_running([self.database.as_path()])?;
        let listing = directory::list(&self.wal)?;
        let segments = listing.segments.iter();
        running::refuse_running(segments.map(|segment| segment.path.as_path()))
    }
}

/// The folder `member`: within the path, or the path itself. Only etcd's has a folder `snap`; other stores have a `wal` too.
fn member(path: &Path) -> PathBuf {
    let within = path.join("member");
    if !within.is_dir() && path.join("snap").is_dir() {
        path.to_owned()
    } else {
        within
    }
}

fn has_log(wal: &Path) -> Result<bool, WalError> {
    match directory::names(wal) {
        Ok(names) => Ok(names
            .iter()
            .any(|name| directory::parse(name, ".wal").is_some())),
        Err(WalError::Io { source, .. })
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::DataDirectory;
    use crate::wal::WalError;
    use std::{fs, path::Path};

    const SEGMENT: &str = "0000000000000000-0000000000000000.wal";

    fn touch(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn a_data_directory_and_its_member_are_found() {
        let dir = tempfile::tempdir().unwrap();
        touch(&dir.path().join("member/snap/db"));
        touch(&dir.path().join("member/wal").join(SEGMENT));
        let found = DataDirectory::look(dir.path()).unwrap();
        assert_eq!(found.database, dir.path().join("member/snap/db"));
        assert_eq!(found.snapshots, dir.path().join("member/snap"));
        assert_eq!(found.wal, dir.path().join("member/wal"));
        assert_eq!(
            DataDirectory::look(&dir.path().join("member")).unwrap(),
            found
        );
        found.refuse_running().unwrap();
    }

    #[test]
    fn a_log_may_be_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        touch(&dir.path().join("data/member/snap/db"));
        touch(&dir.path().join("log").join(SEGMENT));
        let data = dir.path().join("data");
        let missing = DataDirectory::look(&data);
        assert!(
            matches!(&missing, Err(WalError::NoLog { wal, .. }) if *wal == data.join("member/wal")),
            "{missing:?}"
        );
        let log = dir.path().join("log");
        let found = DataDirectory::look_with_wal(&data, &log).unwrap();
        assert_eq!(found.wal, log);
    }

    #[test]
    fn what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = DataDirectory::look(dir.path());
        assert!(
            matches!(nothing, Err(WalError::NotEtcd { .. })),
            "{nothing:?}"
        );
        touch(&dir.path().join("member/wal").join(SEGMENT));
        let no_database = DataDirectory::look(dir.path()).unwrap_err();
        let wanted = dir.path().join("member/snap/db");
        assert!(
            no_database
                .to_string()
                .contains(&wanted.display().to_string()),
            "{no_database}"
        );
        let absent = DataDirectory::look(&dir.path().join("absent"));
        assert!(matches!(absent, Err(WalError::Io { .. })), "{absent:?}");
    }

    #[test]
    fn another_store_with_a_log_is_none() {
        let dir = tempfile::tempdir().unwrap();
        touch(&dir.path().join("wal").join(SEGMENT));
        let refused = DataDirectory::look(dir.path());
        assert!(
            matches!(refused, Err(WalError::NotEtcd { .. })),
            "{refused:?}"
        );
    }
}
