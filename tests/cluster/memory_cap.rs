//! A bound on a process's memory that the kernel keeps: past it, it kills the process.
//!
//! It is a memory control group of version 1 or 2. Making one takes root and, in a container, permission; elsewhere the tests say
//! that they run without.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// A control group. Dropping it removes it, if its processes have ended.
#[derive(Debug)]
pub(crate) struct MemoryCap {
    dir: PathBuf,
}

impl MemoryCap {
    /// A group named `name` whose processes may have so many bytes together; `None` where none can be made.
    #[expect(clippy::print_stderr, reason = "a reader of the log should know")]
    pub(crate) fn new(name: &str, bytes: u64) -> Option<Self> {
        let name = format!("quorate-test-{}-{name}", std::process::id());
        let versions = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ];
        for (root, limit) in versions {
            let dir = PathBuf::from(root).join(&name);
            match Self::make(dir, limit, bytes) {
                Ok(cap) => return Some(cap),
                Err(error) => eprintln!("no memory control group in {root}: {error}"),
            }
        }
        None
    }

    fn make(dir: PathBuf, limit: &str, bytes: u64) -> io::Result<Self> {
        fs::create_dir(&dir)?;
        let cap = Self { dir };
        set(&cap.dir.join(limit), &bytes.to_string())?;
        Ok(cap)
    }

    /// From now on this process's new memory counts.
    #[expect(clippy::print_stderr, reason = "a reader of the log should know")]
    pub(crate) fn hold(&self, process: u32) {
        let file = self.dir.join("cgroup.procs");
        if let Err(error) = set(&file, &process.to_string()) {
            eprintln!("no bound on process {process}: {}: {error}", file.display());
        }
    }
}

/// Writes a file that is there: a group without the controller has none.
fn set(file: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(file)?;
    file.write_all(value.as_bytes())
}

impl Drop for MemoryCap {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.dir));
    }
}
