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
};

/// Text that is written at once, in bytes.
const BATCH_BYTES: usize = 256 * 1024;

static FAILURES: LogGate = LogGate::new();

/// Where lines go.
#[derive(Clone, Debug)]
pub enum Output {
    /// The standard error output.
    Stderr,
    /// The standard output.
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
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The thread cannot be started.
    #[error("cannot start the thread of the audit log: {0}")]
    Thread(io::Error),
}

impl Output {
    /// Opens it.
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
        Ok(OpenOutput { output: self, file })
    }
}

/// An output that is open.
#[derive(Debug)]
pub struct OpenOutput {
    output: Output,
    /// Open, if the output is a file and the last write was fine.
    file: Option<RotatedFile>,
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
        let Taken { lines, dropped } = taken;
        self.missing += dropped;
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
    fn write(&mut self, text: &str) -> io::Result<()> {
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
