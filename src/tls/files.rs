//! Notices that files changed. Blocks on the file system, so it runs on threads that serve nobody.

use crate::clock;
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;

/// When files that could not be used are read again, though they are the same: the reason may have been one that passes, such as
/// too many open files.
const RETRY_EVERY: Duration = Duration::from_mins(1);

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
    /// When they could not be used, if that was so the last time.
    failed: Option<Instant>,
}

impl FileWatch {
    /// Watches the files as they are now; make it before they are read, so that a change meanwhile is noticed.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        let now = stamps(&paths);
        Self {
            paths,
            used: now.clone(),
            last: now,
            failed: None,
        }
    }

    /// Whether the files are to be read again: they changed, or could not be used, which the caller says with
    /// [`FileWatch::failed`]. A change is taken up once the files have stayed the same since the last look, as tools write
    /// several files one after the other; what could not be used, a minute later; with `at_once`, both at once.
    pub(crate) fn look(&mut self, at_once: bool) -> bool {
        let now = stamps(&self.paths);
        let settled = at_once || now == self.last;
        self.last.clone_from(&now);
        let is_due = |at| at_once || clock::now().saturating_duration_since(at) >= RETRY_EVERY;
        if !settled || now == self.used && !self.failed.is_some_and(is_due) {
            return false;
        }
        self.used = now;
        self.failed = None;
        true
    }

    /// The files were read after a look, and cannot be used.
    pub(crate) fn failed(&mut self) {
        self.failed = Some(clock::now());
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

    #[tokio::test(start_paused = true)]
    async fn files_that_could_not_be_used_are_read_again_without_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = FileWatch::new(vec![path.clone()]);
        fs::write(&path, "two, longer").unwrap();
        assert!(watch.look(true));
        watch.failed();
        assert!(!watch.look(false), "not every second");
        assert!(watch.look(true), "a signal does not wait");
        assert!(!watch.look(true), "this time they were good");
        watch.failed();
        tokio::time::advance(RETRY_EVERY).await;
        assert!(watch.look(false));
        tokio::time::advance(RETRY_EVERY).await;
        assert!(!watch.look(false), "this time they were good");
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
