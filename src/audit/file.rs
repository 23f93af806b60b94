//! The file that lines go to, and those that it was renamed to when it was full.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// How long a file becomes, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLimits {
    /// The longest a file becomes, in bytes; a longer line gets a file of its own.
    pub bytes_max: u64,
    /// How many files there are in all; at least one.
    pub files_max: usize,
}

/// A file to append to.
#[derive(Debug)]
pub(super) struct RotatedFile {
    path: PathBuf,
    limits: FileLimits,
    file: File,
    bytes: u64,
}

impl RotatedFile {
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path, limits: FileLimits) -> io::Result<Self> {
        let mut file = open(path)?;
        if ends_within_a_line(path)? {
            file.write_all(b"\n")?;
        }
        Ok(Self {
            path: path.to_owned(),
            limits,
            bytes: file.metadata()?.len(),
            file,
        })
    }

    /// Whether its path names another file by now, or none: somebody has moved or deleted it.
    pub(super) fn is_gone(&self) -> io::Result<bool> {
        let identity = |about: &fs::Metadata| (about.dev(), about.ino());
        match fs::metadata(&self.path) {
            Ok(named) => Ok(identity(&named) != identity(&self.file.metadata()?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether no path names it any more. One that was only moved still has a name.
    pub(super) fn is_deleted(&self) -> bool {
        self.file.metadata().is_ok_and(|about| about.nlink() == 0)
    }

    /// Appends lines, which come one by one in `ends`. A line is never split between files.
    pub(super) fn write(&mut self, lines: &str) -> io::Result<()> {
        let mut rest = lines;
        while !rest.is_empty() {
            let now = self.fitting(rest);
            if now == 0 {
                self.rotate()?;
                continue;
            }
            let (piece, later) = rest.split_at(now);
            self.file.write_all(piece.as_bytes())?;
            self.bytes += piece.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// The length of the whole lines that fit; an empty file takes at least one.
    fn fitting(&self, lines: &str) -> usize {
        let room = self.limits.bytes_max.saturating_sub(self.bytes);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        if lines.len() <= room {
            return lines.len();
        }
        let whole = lines.as_bytes()[..room]
            .iter()
            .rposition(|byte| *byte == b'\n');
        match whole {
            Some(at) => at + 1,
            None if self.bytes == 0 => lines.find('\n').map_or(lines.len(), |at| at + 1),
            None => 0,
        }
    }

    /// Renames from the oldest to the newest, and begins a new file. A rename that a crash left out leaves a gap in the numbers.
    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: usize| {
            let mut name = self.path.clone().into_os_string();
            if number > 0 {
                name.push(format!(".{number}"));
            }
            PathBuf::from(name)
        };
        let oldest = self.limits.files_max.saturating_sub(1);
        missing_is_fine(fs::remove_file(numbered(oldest)))?;
        for number in (0..oldest).rev() {
            missing_is_fine(fs::rename(numbered(number), numbered(number + 1)))?;
        }
        self.file = open(&self.path)?;
        self.bytes = self.file.metadata()?.len();
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// Whether the last line is not complete: the disk was full, or the process died as it wrote.
fn ends_within_a_line(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

fn missing_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
