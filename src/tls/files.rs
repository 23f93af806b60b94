//! Notices that files changed. Blocks on the file system, so it runs on threads that serve nobody.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// What is known of a file without reading it, through symbolic links; `None` if it cannot be looked at. A copy that keeps length
/// and time of change of the contents still has another inode, or another time of change of the inode.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

/// Notices that one of some files changed.
#[derive(Debug)]
pub(crate) struct FileWatch {
    paths: Vec<PathBuf>,
    /// When the files were last taken up, or refused.
    used: Vec<Stamp>,
    /// At the last look.
    last: Vec<Stamp>,
}

impl FileWatch {
    /// Watches the files as they are now; make it before they are read, so that a change meanwhile is noticed.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        let now = stamps(&paths);
        Self {
            paths,
            used: now.clone(),
            last: now,
        }
    }

    /// Whether the files are to be read again: they changed, and have stayed the same since the last look, as tools write
    /// several files one after the other; with `at_once`, whether they changed. It is said once for each change.
    pub(crate) fn look(&mut self, at_once: bool) -> bool {
        let now = stamps(&self.paths);
        let settled = at_once || now == self.last;
        self.last.clone_from(&now);
        if !settled || now == self.used {
            return false;
        }
        self.used = now;
        true
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    paths.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Stamp {
    let data = std::fs::metadata(path).ok()?;
    Some((
        data.dev(),
        data.ino(),
        data.len(),
        data.mtime(),
        data.mtime_nsec(),
        data.ctime(),
        data.ctime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn a_change_is_noticed_once_it_is_over_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = FileWatch::new(vec![path.clone()]);
        assert!(!watch.look(false), "nothing changed");
        fs::write(&path, "two, longer").unwrap();
        assert!(!watch.look(false), "it may still be written");
        fs::write(&path, "two, longer still").unwrap();
        assert!(!watch.look(false), "it is still written");
        assert!(watch.look(false), "it stayed the same");
        assert!(!watch.look(false), "once");
        fs::remove_file(&path).unwrap();
        assert!(
            watch.look(true),
            "a file that goes is a change, and a signal does not wait"
        );
        assert!(!watch.look(true), "once");
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for version in ["old", "new"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("tls.crt"), "same length").unwrap();
        }
        symlink(at("old"), at("data")).unwrap();
        let mut watch = FileWatch::new(vec![at("data").join("tls.crt")]);
        symlink(at("new"), at("data.new")).unwrap();
        fs::rename(at("data.new"), at("data")).unwrap();
        assert!(watch.look(true), "as Kubernetes replaces secrets");
    }
}
