//! Which files a log consists of.

use super::error::WalError;
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

/// Names of files without meaning here that are kept for a message.
const IGNORED_MAX: usize = 100;

/// One file of the log.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    sequence: u64,
}

/// The files of the log in order, and the names of others in its directory.
pub(super) struct Listing {
    pub(super) segments: Vec<Segment>,
    pub(super) ignored: Vec<String>,
}

/// Lists the log's directory. The sequence must have no hole: a log without its beginning is complete, since etcd removes old
/// files, but one without its middle is not.
pub(super) fn list(directory: &Path) -> Result<Listing, WalError> {
    let mut segments = Vec::new();
    let mut ignored = Vec::new();
    for name in names(directory)? {
        match parse(&name, ".wal") {
            Some((sequence, _)) => segments.push(Segment {
                path: directory.join(&name),
                sequence,
            }),
            // Preallocated files that have no place in the log yet.
            None if name.strip_suffix(".tmp").is_some() => {}
            None if ignored.len() < IGNORED_MAX => ignored.push(name),
            None => {}
        }
    }
    segments.sort_by_key(|segment| segment.sequence);
    check_sequence(directory, &segments)?;
    Ok(Listing { segments, ignored })
}

fn check_sequence(directory: &Path, segments: &[Segment]) -> Result<(), WalError> {
    if segments.is_empty() {
        let directory = directory.to_owned();
        return Err(WalError::NoSegment { directory });
    }
    for pair in segments.windows(2) {
        let [before, after] = pair else { continue };
        let wanted = before.sequence.saturating_add(1);
        if after.sequence != wanted {
            return Err(WalError::MissingSegment {
                found: after.path.clone(),
                previous: before.sequence,
                wanted,
            });
        }
    }
    Ok(())
}

/// The names in a directory, in order. A name that is not UTF-8 is none of etcd's; it stands here with replacement characters.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, WalError> {
    let failed = |source| WalError::Io {
        path: directory.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.push(OsStr::to_string_lossy(&name).into_owned());
    }
    names.sort();
    Ok(names)
}

/// The two numbers of a name such as `0000000000000003-00000000000001f4.wal`.
pub(super) fn parse(name: &str, extension: &str) -> Option<(u64, u64)> {
    let stem = name.strip_suffix(extension)?;
    let (first, second) = stem.split_once('-')?;
    Some((number(first)?, number(second)?))
}

/// 16 lower-case hexadecimal digits.
fn number(digits: &str) -> Option<u64> {
    let written = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let proper = digits.len() == 16 && digits.bytes().all(written);
    proper.then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn names_are_two_numbers() {
        let parsed = parse("0000000000000003-00000000000001f4.wal", ".wal");
        assert_eq!(parsed, Some((3, 500)));
        for other in [
            "0.tmp",
            "0000000000000003-00000000000001f4.wal.broken",
            "0000000000000003-00000000000001F4.wal",
            "3-1f4.wal",
            "+000000000000003-00000000000001f4.wal",
            "0000000000000003.wal",
        ] {
            assert_eq!(parse(other, ".wal"), None, "{other}");
        }
    }
}
