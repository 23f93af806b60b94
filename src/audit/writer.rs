//! The thread that writes. It alone blocks on the output.

use super::{
    file::{FileLimits, RotatedFile},
    queue::{Queue, Taken},
    text,
};
use crate::{
    clock,
    log_gate::{self, LogGate},
};
use std::{
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};
use tokio::time::Instant;

/// Text that is written at once, in bytes.
const BATCH_BYTES: usize = 256 * 1024;

/// How often is looked whether the file was moved or deleted.
const LOOK_EVERY: Duration = Duration::from_secs(1);

static FAILURES: LogGate = LogGate::new();

static MOVED: LogGate = LogGate::new();
static UNSEEN: LogGate = LogGate::new();

#[derive(Clone, Debug)]
pub enum Output {
    Stderr,
    Stdout,
    /// A file, and those that it was renamed to.
    File(PathBuf, FileLimits),
}

/// Why the audit log cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened.
    #[error(
        "cannot open the audit log {path}: {source}; set audit.output to a file in a directory that exists and that this \
         process may write to"
    )]
    File { path: PathBuf, source: io::Error },
    /// SIGHUP cannot be listened for.
    #[error("the audit log cannot listen for SIGHUP: {0}")]
    Signal(io::Error),
    /// The thread cannot be started.
    #[error("cannot start the thread of the audit log: {0}")]
    Thread(io::Error),
}

impl Output {
    pub fn open(self) -> Result<OpenOutput, AuditError> {
        let file = match &self {
            Self::File(path, limits) => {
                let opened = RotatedFile::open(path, *limits);
                let failed = |source| AuditError::File {
                    path: path.clone(),
                    source,
                };
                Some(opened.map_err(failed)?)
            }
            Self::Stderr | Self::Stdout => None,
        };
        Ok(OpenOutput {
            output: self,
            file,
            looked: clock::now(),
        })
    }
}

/// An output that is open.
#[derive(Debug)]
pub struct OpenOutput {
    output: Output,
    /// Open, if the output is a file and the last write was fine.
    file: Option<RotatedFile>,
    /// When was last looked whether it is where it was.
    looked: Instant,
}

/// Starts the thread.
pub(super) fn start(to: OpenOutput, queue: Arc<Queue>, member: String) -> Result<(), AuditError> {
    let mut writer = Writer {
        to,
        member,
        missing: 0,
    };
    let body = move || {
        while let Some(taken) = queue.wait() {
            writer.write(taken, &queue);
        }
    };
    let thread = thread::Builder::new().name("quorate-audit".to_owned());
    thread.spawn(body).map_err(AuditError::Thread)?;
    Ok(())
}

struct Writer {
    to: OpenOutput,
    member: String,
    /// Lines that are missing in the output since its last line.
    missing: u64,
}

impl Writer {
    fn write(&mut self, taken: Taken, queue: &Queue) {
        let Taken {
            lines,
            dropped,
            look,
        } = taken;
        self.missing += dropped;
        if look && let Err(error) = self.to.look() {
            log_gate::error!(FAILURES, "the audit log cannot be written: {error}");
        }
        let (mut text, mut count) = (String::new(), 0);
        for line in lines {
            text.push_str(&text::of(&line, &self.member));
            count += 1;
            if text.len() >= BATCH_BYTES {
                self.put(&mut text, &mut count, queue);
            }
        }
        self.put(&mut text, &mut count, queue);
    }

    /// Writes lines, after one that says how many are missing before them.
    fn put(&mut self, text: &mut String, count: &mut usize, queue: &Queue) {
        if *count == 0 {
            return;
        }
        if self.missing > 0 {
            let gap = text::of_dropped(clock::unix_time(), &self.member, self.missing);
            text.insert_str(0, &gap);
        }
        match self.to.write(text) {
            Ok(()) => {
                self.missing = 0;
                queue.counts().add_written(*count);
            }
            Err(error) => {
                // What was written of them is not known; the file is opened anew.
                self.to.file = None;
                self.missing += *count as u64;
                queue.counts().add_dropped(*count as u64);
                log_gate::error!(FAILURES, "the audit log cannot be written: {error}");
            }
        }
        text.clear();
        *count = 0;
    }
}

impl OpenOutput {
    /// Whether it is a file.
    pub fn is_file(&self) -> bool {
        matches!(self.output, Output::File(..))
    }

    /// Opens the file anew if it was moved or deleted.
    fn look(&mut self) -> io::Result<()> {
        self.looked = clock::now();
        let seen = self.follow();
        if seen.is_err() && self.file.as_ref().is_some_and(RotatedFile::is_deleted) {
            // Nobody can read what it takes: lines are dropped and counted until there is a file again.
            self.file = None;
        }
        seen
    }

    fn follow(&mut self) -> io::Result<()> {
        let (Output::File(path, limits), Some(file)) = (&self.output, &self.file) else {
            return Ok(());
        };
        if file.is_gone()? {
            self.file = Some(RotatedFile::open(path, *limits)?);
            let path = path.display();
            log_gate::warn!(
                MOVED,
                "the audit log {path} was moved or deleted, and is begun anew"
            );
        }
        Ok(())
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if self.looked.elapsed() >= LOOK_EVERY
            && let Err(error) = self.look()
        {
            // A file that is open takes the lines all the same.
            log_gate::error!(UNSEEN, "the audit log cannot be looked at: {error}");
        }
        match &self.output {
            Output::Stderr => io::stderr().lock().write_all(text.as_bytes()),
            Output::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text.as_bytes())?;
                stdout.flush()
            }
            Output::File(path, limits) => {
                let file = match &mut self.file {
                    Some(file) => file,
                    None => self.file.insert(RotatedFile::open(path, *limits)?),
                };
                file.write(text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The lines were dropped, and the file that was open was closed.
    #[test]
    fn a_file_whose_path_cannot_be_looked_at_takes_lines() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, moved) = (dir.path().join("audit"), dir.path().join("moved"));
        fs::create_dir(&folder).unwrap();
        let limits = FileLimits {
            bytes_max: 1_000,
            files_max: 2,
        };
        let output = Output::File(folder.join("audit.log"), limits);
        let mut output = output.open().unwrap();
        output.write("1\n").unwrap();
        fs::rename(&folder, &moved).unwrap();
        fs::write(&folder, "no folder").unwrap();
        output.looked = clock::now().checked_sub(LOOK_EVERY).unwrap();
        output.write("2\n").unwrap();
        let lines = fs::read_to_string(moved.join("audit.log")).unwrap();
        assert_eq!(lines, "1\n2\n");
    }

    /// It wrote to the old file for ever.
    #[test]
    fn a_file_that_was_moved_or_deleted_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("audit.log"), dir.path().join("moved"));
        let limits = FileLimits {
            bytes_max: 1_000,
            files_max: 2,
        };
        let mut output = Output::File(path.clone(), limits).open().unwrap();
        output.write("1\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        output.looked += LOOK_EVERY;
        output.write("2\n").unwrap();
        assert!(!path.exists(), "it is looked once in a second");
        output.looked = clock::now().checked_sub(LOOK_EVERY).unwrap();
        output.write("3\n").unwrap();
        assert_eq!(fs::read_to_string(&moved).unwrap(), "1\n2\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "3\n");
        fs::remove_file(&path).unwrap();
        output.look().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        // Another file of that name.
        fs::rename(&moved, &path).unwrap();
        output.look().unwrap();
        output.write("4\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n2\n4\n");
        let text = format!(
            "the audit log {} was moved or deleted, and is begun anew",
            path.display()
        );
        let said = MOVED.texts().into_iter().filter(|said| *said == text);
        assert_eq!(said.count(), 1);
    }
}
