//! The keys that wrap data keys: they come from a file or from a command, and are never written by a member.
//!
//! One key a line, in hexadecimal (64 digits) or base64 (44 characters); the first wraps, the others only unwrap what was wrapped
//! before. Empty lines and lines that begin with `#` are skipped. No error shows what a line holds.

use super::sealer::{KEY_BYTES, SecretKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hkdf;
use std::{
    fmt, fs,
    io::{self, Read},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

/// The most that a file or a command may give, in bytes.
const TEXT_BYTES_MAX: usize = 64 * 1024;
/// The most keys at a time.
const KEYS_MAX: usize = 16;
/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(30);
/// The pause between two looks at whether a command has written or ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How often is looked whether a command has ended that was killed.
const REAP_LOOKS: u32 = 200;
/// Bytes that are read from a command at once.
const PART_BYTES: usize = 4 * 1024;

const ID: &[u8] = b"quorate key id 1";

/// What a key is called: eight bytes that follow from it, and from which it does not follow.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyId(pub(super) [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl KeyId {
    fn of(key: &SecretKey) -> Self {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&key.0);
        let expanded = extracted.expand(&[ID], hkdf::HKDF_SHA256);
        let mut whole = [0; KEY_BYTES];
        let filled = expanded.and_then(|expanded| expanded.fill(&mut whole));
        filled.expect("HKDF expands to 32 bytes");
        let mut id = Self::default();
        id.0.copy_from_slice(&whole[..8]);
        id
    }
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeySourceError {
    #[error("encryption.key_file {}: {cause}", path.display())]
    File {
        path: PathBuf,
        /// Why it gives no key.
        cause: KeyCause,
    },
    /// The command is not shown: it may hold a secret.
    #[error("encryption.key_command: {0}")]
    Command(KeyCause),
}

/// Why a text gives no keys, or there is no text.
#[derive(Debug, thiserror::Error)]
pub enum KeyCause {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it holds no key; make one with `openssl rand -hex 32`")]
    NoKey,
    #[error(
        "line {0} is no key: a key is 32 bytes, in 64 hexadecimal digits (`openssl rand -hex 32`) or in base64 \
         (`openssl rand -base64 32`)"
    )]
    Malformed(usize),
    #[error("lines {0} and {1} hold the same key")]
    Twice(usize, usize),
    #[error("it holds more than {KEYS_MAX} keys")]
    TooMany,
    #[error("it gives more than {TEXT_BYTES_MAX} bytes, which cannot be a list of keys")]
    TooLong,
    #[error("it ended with {0}")]
    Failed(ExitStatus),
    #[error("it has not ended after {} seconds, and was killed", .0.as_secs())]
    TooSlow(Duration),
}

/// The keys at hand; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappingKeys(Vec<(KeyId, SecretKey)>);

impl WrappingKeys {
    /// Reads the lines of a file or of a command's output.
    pub fn parse(text: &[u8]) -> Result<Self, KeyCause> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(KeyCause::TooLong);
        }
        let mut keys: Vec<(usize, KeyId, SecretKey)> = Vec::new();
        for (line, text) in text.split(|byte| *byte == b'\n').enumerate() {
            let (line, text) = (line + 1, text.trim_ascii());
            if text.is_empty() || text.starts_with(b"#") {
                continue;
            }
            let key = parse_key(text).ok_or(KeyCause::Malformed(line))?;
            let id = KeyId::of(&key);
            if let Some((other, ..)) = keys.iter().find(|(_, other, _)| *other == id) {
                return Err(KeyCause::Twice(*other, line));
            }
            if keys.len() == KEYS_MAX {
                return Err(KeyCause::TooMany);
            }
            keys.push((line, id, key));
        }
        if keys.is_empty() {
            return Err(KeyCause::NoKey);
        }
        let keys = keys.into_iter().map(|(_, id, key)| (id, key));
        Ok(Self(keys.collect()))
    }

    /// The key that wraps.
    pub(super) fn first(&self) -> (KeyId, &SecretKey) {
        let (id, key) = &self.0[0];
        (*id, key)
    }

    /// A key, and its place among those at hand.
    pub(super) fn find(&self, id: KeyId) -> Option<(usize, &SecretKey)> {
        let at = self.0.iter().position(|(own, _)| *own == id)?;
        Some((at, &self.0[at].1))
    }

    /// Their ids, for an error.
    pub(super) fn ids(&self) -> String {
        let ids: Vec<String> = self.0.iter().map(|(id, _)| id.to_string()).collect();
        ids.join(", ")
    }
}

fn parse_key(text: &[u8]) -> Option<SecretKey> {
    let mut key = [0; KEY_BYTES];
    if text.len() == 2 * KEY_BYTES {
        for (at, digits) in text.chunks_exact(2).enumerate() {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            let byte = digit(digits[0])? * 16 + digit(digits[1])?;
            key[at] = u8::try_from(byte).ok()?;
        }
        return Some(SecretKey(key));
    }
    let bytes = STANDARD.decode(text).ok()?;
    Some(SecretKey(bytes.try_into().ok()?))
}

/// Where the keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    /// The standard output of a command, which a shell runs.
    Command(String),
}

impl KeySource {
    /// Gets the keys; blocks, for a command up to half a minute.
    pub fn read(&self) -> Result<WrappingKeys, KeySourceError> {
        self.read_within(COMMAND_MAX)
    }

    fn read_within(&self, command_max: Duration) -> Result<WrappingKeys, KeySourceError> {
        match self {
            Self::File(path) => file(path).map_err(|cause| KeySourceError::File {
                path: path.clone(),
                cause,
            }),
            Self::Command(command) => {
                let keys = output(command, command_max);
                let keys = keys.and_then(|text| WrappingKeys::parse(&text));
                keys.map_err(KeySourceError::Command)
            }
        }
    }

    /// The file that others can read although it should be the member's alone.
    pub fn readable_by_others(&self) -> Option<&PathBuf> {
        let Self::File(path) = self else {
            return None;
        };
        let mode = fs::metadata(path).map_or(0, |about| about.permissions().mode());
        (mode & 0o077 != 0).then_some(path)
    }
}

fn file(path: &PathBuf) -> Result<WrappingKeys, KeyCause> {
    // Before it is opened: a pipe would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file").into());
    }
    WrappingKeys::parse(&limited(fs::File::open(path)?)?)
}

/// All that `from` gives, or a little more than is allowed.
fn limited(from: impl Read) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    from.take(TEXT_BYTES_MAX as u64 + 1)
        .read_to_end(&mut text)?;
    Ok(text)
}

/// The standard output of a command. Its standard error output is the member's.
fn output(command: &str, within: Duration) -> Result<Vec<u8>, KeyCause> {
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = rustix::process::Pid::from_child(&child);
    let finished = finish(&mut child, within);
    if finished.is_err() {
        // With all that it has started. An error means that it is gone.
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
            .unwrap_or_default();
    }
    reap(&mut child);
    finished
}

/// Takes note of the end of a child that has ended or was killed. One that may not be killed, since it runs as another user, is
/// left behind after a second.
#[expect(
    clippy::disallowed_methods,
    reason = "callers give it a thread that may block"
)]
fn reap(child: &mut Child) {
    for _ in 0..REAP_LOOKS {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        thread::sleep(LOOK_EVERY);
    }
    let id = child.id();
    tracing::warn!("encryption.key_command does not end: its process {id} cannot be killed");
}

/// Waits until the output and the command have ended. Neither is waited for in the system: a process that the command has left
/// behind may keep the output open for ever. It is closed here when this returns.
#[expect(
    clippy::disallowed_methods,
    reason = "callers give it a thread that may block"
)]
fn finish(child: &mut Child, within: Duration) -> Result<Vec<u8>, KeyCause> {
    let mut stdout = child.stdout.take();
    if let Some(stdout) = &stdout {
        let flags = rustix::fs::fcntl_getfl(stdout).map_err(io::Error::from)?;
        let flags = flags | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(stdout, flags).map_err(io::Error::from)?;
    }
    let mut text = Vec::new();
    let mut left = within;
    loop {
        if let Some(open) = &mut stdout
            && take_there(open, &mut text)?
        {
            stdout = None;
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(KeyCause::TooLong);
        }
        if stdout.is_none()
            && let Some(status) = child.try_wait()?
        {
            if !status.success() {
                return Err(KeyCause::Failed(status));
            }
            return Ok(text);
        }
        if left.is_zero() {
            return Err(KeyCause::TooSlow(within));
        }
        thread::sleep(LOOK_EVERY.min(left));
        left = left.saturating_sub(LOOK_EVERY);
    }
}

/// Adds what can be read without waiting, or a little more than is allowed. True at the end.
fn take_there(from: &mut ChildStdout, text: &mut Vec<u8>) -> io::Result<bool> {
    let mut part = [0; PART_BYTES];
    while text.len() <= TEXT_BYTES_MAX {
        match from.read(&mut part) {
            Ok(0) => return Ok(true),
            Ok(count) => text.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1F";

    fn command(text: &str, within: Duration) -> Result<WrappingKeys, String> {
        let source = KeySource::Command(text.to_owned());
        source
            .read_within(within)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_hexadecimal_or_base64_one_a_line() {
        let key = SecretKey(std::array::from_fn(|at| u8::try_from(at).unwrap()));
        let base64 = STANDARD.encode(key.0);
        assert_eq!(base64.len(), 44);
        for text in [
            HEX.to_owned(),
            base64,
            format!("# a comment\n\n  {HEX} \r\n"),
        ] {
            let keys = WrappingKeys::parse(text.as_bytes()).unwrap();
            assert_eq!(keys.first().1, &key, "{text}");
        }
        let two = format!("{}\n{HEX}\n", "ab".repeat(32));
        let two = WrappingKeys::parse(two.as_bytes()).unwrap();
        assert_eq!(two.first().1, &SecretKey([0xab; KEY_BYTES]));
        assert_eq!(two.find(KeyId::of(&key)).unwrap().0, 1);
        assert!(!format!("{two:?}").contains("0xab"), "{two:?}");
    }

    #[test]
    fn what_is_no_key_is_named_by_its_line_and_not_shown() {
        let bad = [
            ("", "it holds no key"),
            ("# only a comment\n", "it holds no key"),
            ("secretsecret", "line 1 is no key"),
            ("00ff", "line 1 is no key"),
            (&HEX[1..], "line 1 is no key"),
            (&format!("{HEX}00"), "line 1 is no key"),
            (&format!("#\n{HEX}\nzz{}", &HEX[2..]), "line 3 is no key"),
            (&format!("{HEX}\n{HEX}"), "lines 1 and 2 hold the same key"),
            (&"x".repeat(TEXT_BYTES_MAX + 1), "more than 65536 bytes"),
        ];
        for (text, expected) in bad {
            let error = WrappingKeys::parse(text.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("secretsecret"), "{error}");
        }
        let many: Vec<String> = (0..17)
            .map(|fill| format!("{fill:02x}").repeat(32))
            .collect();
        let error = WrappingKeys::parse(many.join("\n").as_bytes()).unwrap_err();
        assert!(matches!(error, KeyCause::TooMany), "{error}");
    }

    #[test]
    fn a_file_is_read_and_one_that_cannot_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let source = KeySource::File(path.clone());
        let error = source.read().unwrap_err().to_string();
        assert!(
            error.contains("encryption.key_file") && error.contains("No such file"),
            "{error}"
        );
        fs::write(&path, HEX).unwrap();
        assert_eq!(
            source.read().unwrap(),
            WrappingKeys::parse(HEX.as_bytes()).unwrap()
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(source.readable_by_others(), Some(&path));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(source.readable_by_others(), None);
        let error = KeySource::File(dir.path().to_owned()).read().unwrap_err();
        assert!(error.to_string().ends_with("it is no file"), "{error}");
        // Opening one waits for a writer, which never comes.
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
        let error = KeySource::File(fifo).read().unwrap_err();
        assert!(error.to_string().ends_with("it is no file"), "{error}");
    }

    #[test]
    fn a_command_gives_keys_or_says_how_it_failed() {
        let long = Duration::from_mins(1);
        let keys = command(&format!("echo {HEX}"), long).unwrap();
        assert_eq!(keys, WrappingKeys::parse(HEX.as_bytes()).unwrap());
        let error = command(&format!("echo {HEX}; exit 3"), long).unwrap_err();
        assert!(error.ends_with("it ended with exit status: 3"), "{error}");
        let error = command("/no/such/program 2>/dev/null", long).unwrap_err();
        assert!(error.ends_with("exit status: 127"), "{error}");
        // It would never end by itself.
        let error = command("yes", long).unwrap_err();
        assert!(error.contains("more than 65536 bytes"), "{error}");
        let error = command("echo nokey", long).unwrap_err();
        assert!(error.contains("line 1 is no key"), "{error}");
    }

    /// A thread waited for the end of such an output, and there was one more after each look.
    #[test]
    fn an_output_that_a_process_keeps_open_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        // It is in a session of its own, so it is not killed with the command. It gives up some time after the command's time.
        let tries = "for try in $(seq 100); do echo x 2>/dev/null || exec echo closed >$0; sleep 0.1; done; echo open >$0";
        let text = format!(
            "setsid sh -c 'trap \"\" PIPE; {tries}' {} &",
            path.display()
        );
        let error = command(&text, Duration::from_secs(1)).unwrap_err();
        assert!(error.contains("has not ended after 1 seconds"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "closed\n");
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        // The child of the shell holds the lock as long as it lives.
        let text = format!("exec 9>{}; flock 9; sleep 3600 & wait", path.display());
        let error = command(&text, Duration::from_secs(1)).unwrap_err();
        let expected = "has not ended after 1 seconds, and was killed";
        assert!(error.contains(expected), "{error}");
        fs::File::create(&path).unwrap().lock().unwrap();
    }
}
