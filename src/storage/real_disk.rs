//! The disk of the machine: one data directory, locked against a second process.
//!
//! It owns the data directory's lock and finds out once, with a probe, whether the file system supports direct I/O. What a file
//! holds, when it is synced, and what to do about an error is up to the callers.

use super::{
    descriptors::Reserve,
    disk::{DIRECT_ALIGN, Disk, DiskFile, OpenMode, aligned_zeros},
};
use rustix::fs::OFlags;
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// The file that a process locks while it uses the data directory, besides the directory itself. Programs that lock only this
/// file are kept away too.
pub const LOCK_FILE: &str = "LOCK";

/// The file that direct I/O is tried on; removed at once.
const PROBE_FILE: &str = "direct-io.probe";

/// The most bytes of one direct read, which bounds its aligned copy in memory.
const DIRECT_READ_BYTES_MAX: usize = 1024 * 1024;

/// Why a data directory cannot be used. Retrying helps only after someone changed the directory.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The path, or a part of it, names something else than a directory.
    #[error("data directory {path} is not a directory", path = path.display())]
    NotADirectory {
        /// The path asked for.
        path: PathBuf,
    },
    /// The directory could not be created.
    #[error("cannot create data directory {path}: {source}", path = path.display())]
    NotCreatable {
        /// The path asked for.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Files cannot be created or written in the directory.
    #[error("data directory {path} is not writable: {source}", path = path.display())]
    NotWritable {
        /// The path asked for.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Another process has the directory open.
    #[error("data directory {path} is in use by another process", path = path.display())]
    InUse {
        /// The path asked for.
        path: PathBuf,
    },
}

/// A data directory of this machine, held exclusively until dropped.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
    takes_direct: bool,
    reserve: Reserve,
    _locks: [File; 2], // held for their locks alone, which end when the files are closed
}

impl RealDisk {
    /// Creates the directory if there is none (readable by its owner only), locks it, and tries direct I/O in it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DiskError> {
        let root = path.as_ref().to_path_buf();
        create_root(&root)?;
        warn_if_open(&root);
        let not_writable = |source| DiskError::NotWritable {
            path: root.clone(),
            source,
        };
        // The directory too: the lock file can be deleted, and then a second process would make and lock another one.
        let directory = File::open(&root).map_err(not_writable)?;
        match directory.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::InUse { path: root }),
            Err(TryLockError::Error(error)) => tracing::warn!(
                directory = %root.display(), %error,
                "the file system cannot lock a directory: the data directory is safe from a second process only while its file \
                 {LOCK_FILE} is there"
            ),
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(root.join(LOCK_FILE))
            .map_err(not_writable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::InUse { path: root }),
            Err(TryLockError::Error(source)) => return Err(not_writable(source)),
        }
        let probe = root.join(PROBE_FILE);
        let direct = probe_direct(&probe);
        remove_if_there(&probe).map_err(not_writable)?;
        if let Err(refusal) = &direct {
            tracing::warn!(
                directory = %root.display(), %refusal,
                "the file system refuses direct I/O; the log is written through the page cache, which is slower"
            );
        }
        Ok(Self {
            takes_direct: direct.is_ok(),
            root,
            reserve: Reserve::new(),
            _locks: [directory, lock],
        })
    }

    /// Whether files opened with [`OpenMode::direct`] bypass the page cache here.
    pub fn takes_direct(&self) -> bool {
        self.takes_direct
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of a relative name. Fails for a name that leads out of the data directory.
    fn locate(&self, name: &str) -> io::Result<PathBuf> {
        let inside = Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} does not name a file inside the data directory"),
            ));
        }
        Ok(self.root.join(name))
    }

    /// Creates the directories above `path` that are missing, durably.
    fn create_parent(&self, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent() else {
            return Ok(());
        };
        if parent.is_dir() {
            return Ok(());
        }
        self.create_parent(parent)?;
        DirBuilder::new().mode(0o700).create(parent)?;
        match parent.parent() {
            Some(above) if above.starts_with(&self.root) => {
                self.reserve.open(|| File::open(above))?.sync_all()
            }
            _ => Ok(()),
        }
    }
}

impl Disk for RealDisk {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.locate(name)?;
        if mode.create {
            self.create_parent(&path)?;
        }
        let direct = mode.direct && self.takes_direct;
        let file = self
            .reserve
            .open(|| open_file(&path, mode.create, direct))?;
        Ok(Arc::new(RealFile { file, direct }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let path = self.locate(dir)?;
        let entries = match self.reserve.open(|| fs::read_dir(&path)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.locate(from)?, self.locate(to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.locate(name)?)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let path = self.locate(dir)?;
        self.reserve.open(|| File::open(&path))?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let about = rustix::fs::statvfs(&self.root)?;
        Ok(about.f_bavail.saturating_mul(about.f_frsize))
    }
}

/// An open file, with or without the page cache.
#[derive(Debug)]
struct RealFile {
    file: File,
    direct: bool,
}

impl DiskFile for RealFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if !self.direct {
            return self.file.read_exact_at(out, offset);
        }
        let mut at = offset;
        for part in out.chunks_mut(DIRECT_READ_BYTES_MAX) {
            read_direct(&self.file, at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn is_direct(&self) -> bool {
        self.direct
    }
}

/// Reads through an aligned copy, since neither `out` nor `offset` need be aligned.
fn read_direct(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    let align = DIRECT_ALIGN as u64;
    let first = offset / align * align;
    let Ok(skip) = usize::try_from(offset - first) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let needed = skip + out.len();
    let whole = needed.next_multiple_of(DIRECT_ALIGN);
    let (mut buffer, start) = aligned_zeros(whole);
    let aligned = &mut buffer[start..start + whole];
    let mut got = 0;
    while got < needed {
        let count = match file.read_at(&mut aligned[got..], first + got as u64) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // A direct read stops short of a whole block only at the end of the file.
        if count == 0 || (count % DIRECT_ALIGN != 0 && got + count < needed) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        got += count;
    }
    out.copy_from_slice(&aligned[skip..needed]);
    Ok(())
}

fn create_root(root: &Path) -> Result<(), DiskError> {
    let path = || root.to_path_buf();
    match fs::metadata(root) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(DiskError::NotADirectory { path: path() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .and_then(|()| match root.parent() {
                Some(above) if !above.as_os_str().is_empty() => File::open(above)?.sync_all(),
                _ => File::open(".")?.sync_all(),
            })
            .map_err(|source| DiskError::NotCreatable {
                path: path(),
                source,
            }),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(DiskError::NotADirectory { path: path() })
        }
        Err(source) => Err(DiskError::NotCreatable {
            path: path(),
            source,
        }),
    }
}

/// Warns if users other than its owner may enter the directory. It leaves the mode as it is, since an operator or an init
/// container may have set it.
fn warn_if_open(root: &Path) {
    let mode = fs::metadata(root).map(|found| found.permissions().mode() & 0o777);
    if let Ok(mode) = mode
        && mode & 0o077 != 0
    {
        let path = root.display();
        tracing::warn!(
            "data directory {path} is open to other users of this machine (mode {mode:o}): chmod 700 {path}"
        );
    }
}

fn open_file(path: &Path, create: bool, direct: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).mode(0o600);
    if direct {
        options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    }
    options.open(path)
}

/// Some file systems refuse direct I/O when a file is opened, others only when it is written: so write one block.
fn probe_direct(path: &Path) -> io::Result<()> {
    let file = open_file(path, true, true)?;
    let (block, start) = aligned_zeros(DIRECT_ALIGN);
    file.write_all_at(&block[start..start + DIRECT_ALIGN], 0)?;
    let mut back = [1];
    read_direct(&file, DIRECT_ALIGN as u64 - 1, &mut back)?;
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const BUFFERED: OpenMode = OpenMode {
        create: true,
        direct: false,
    };
    const DIRECT: OpenMode = OpenMode {
        create: true,
        direct: true,
    };

    fn disk() -> (tempfile::TempDir, RealDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path().join("data")).unwrap();
        (dir, disk)
    }

    #[test]
    fn a_second_opener_is_refused_until_the_first_is_gone() {
        let (dir, disk) = disk();
        let path = dir.path().join("data");
        let refused = RealDisk::open(&path).unwrap_err();
        assert!(matches!(refused, DiskError::InUse { .. }), "{refused}");
        assert!(
            refused.to_string().contains(path.to_str().unwrap()),
            "{refused}"
        );
        drop(disk);
        RealDisk::open(&path).unwrap();
    }

    #[test]
    fn a_second_opener_is_refused_although_the_lock_file_was_deleted() {
        let (dir, _disk) = disk();
        let path = dir.path().join("data");
        fs::remove_file(path.join(LOCK_FILE)).unwrap();
        let refused = RealDisk::open(&path).unwrap_err();
        assert!(matches!(refused, DiskError::InUse { .. }), "{refused}");
        assert!(
            !path.join(LOCK_FILE).exists(),
            "it touched nothing in the directory"
        );
    }

    #[test]
    fn the_directory_is_its_owners_alone_and_the_probe_is_gone() {
        let (_dir, disk) = disk();
        let mode = fs::metadata(disk.root()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(!disk.root().join(PROBE_FILE).exists());
    }

    #[test]
    fn a_path_that_is_a_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"x").unwrap();
        for bad in [path.clone(), path.join("below")] {
            let refused = RealDisk::open(&bad).unwrap_err();
            assert!(
                matches!(refused, DiskError::NotADirectory { .. }),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_refused() {
        // Nobody, not even root, creates files here.
        let refused = RealDisk::open("/proc/self").unwrap_err();
        assert!(
            matches!(refused, DiskError::NotWritable { .. }),
            "{refused}"
        );
        let refused = RealDisk::open("/proc/self/data").unwrap_err();
        assert!(
            matches!(refused, DiskError::NotCreatable { .. }),
            "{refused}"
        );
    }

    #[test]
    fn the_free_space_is_that_of_its_file_system() {
        let (_dir, disk) = disk();
        let free = disk.free_bytes().unwrap();
        assert!(free > 0 && free < u64::MAX, "{free}");
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let (_dir, disk) = disk();
        for name in ["../out", "/etc/out", "a/../../out"] {
            let refused = disk.open(name, BUFFERED);
            let refused = refused.map(|_| ()).map_err(|error| error.kind());
            assert_eq!(refused, Err(io::ErrorKind::InvalidInput), "{name}");
        }
    }

    #[test]
    fn files_are_created_listed_renamed_and_removed() {
        let (_dir, disk) = disk();
        assert!(disk.list("wal").unwrap().is_empty());
        disk.open("wal/b", BUFFERED).unwrap();
        disk.open("wal/a", BUFFERED).unwrap();
        assert_eq!(disk.list("wal").unwrap(), ["a", "b"]);
        disk.rename("wal/a", "wal/c").unwrap();
        disk.remove("wal/b").unwrap();
        disk.sync_dir("wal").unwrap();
        assert_eq!(disk.list("wal").unwrap(), ["c"]);
        let missing = OpenMode {
            create: false,
            direct: false,
        };
        let error = disk.open("wal/none", missing).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn reads_need_no_alignment_in_either_mode() {
        let (_dir, disk) = disk();
        for (name, mode) in [("buffered", BUFFERED), ("direct", DIRECT)] {
            let file = disk.open(name, mode).unwrap();
            assert_eq!(file.is_direct(), mode.direct && disk.takes_direct());
            let len = 3 * DIRECT_ALIGN;
            let (mut data, start) = aligned_zeros(len);
            for (at, byte) in data[start..start + len].iter_mut().enumerate() {
                *byte = u8::try_from(at % 251).unwrap();
            }
            file.write_at(0, &data[start..start + len]).unwrap();
            file.sync_data().unwrap();
            assert_eq!(file.len().unwrap(), len as u64);
            for (from, count) in [(0, len), (1, 4095), (4095, 2), (4096, 4096), (12287, 1)] {
                let mut out = vec![0; count];
                file.read_at(from as u64, &mut out).unwrap();
                assert_eq!(out, data[start + from..start + from + count], "{from}");
            }
            let past = file.read_at(12287, &mut [0; 2]).unwrap_err();
            assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof, "{name}");
        }
    }
}
