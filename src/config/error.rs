//! What can be wrong with a configuration. The member does not start; nothing but a changed setting helps.

use std::{fmt, io, path::PathBuf};

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// In the file given with `--config`.
    File {
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// In the environment.
    Variable(String),
    /// On the command line.
    Flag(&'static str),
}

impl Origin {
    /// The place of its layer: each overrides those with a lower one.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File { .. } => 1,
            Self::Variable(_) => 2,
            Self::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file given with `--config` cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not valid TOML: {message}", path.display())]
    Syntax {
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What the parser expected.
        message: String,
    },
    /// A key that no member has.
    #[error("{origin}: unknown key {key} = {value}; {hint}")]
    UnknownKey {
        origin: Origin,
        /// The key with its section.
        key: String,
        value: String,
        /// The known key that is spelled alike, if there is one, and the keys its section takes.
        hint: String,
    },
    /// A variable under our prefix that is no key's.
    #[error(
        "unknown environment variable {name} = {value:?}; {suggestion}\
         each is QUORATE_ and a key of config/node.toml in capitals, with _ for the dot"
    )]
    UnknownVariable {
        name: String,
        value: String,
        /// A question about the known variable that is spelled most like it; empty if none is spelled alike.
        suggestion: String,
    },
    /// A value that its key does not take.
    #[error("{origin}: {key} = {value}: must be {allowed}")]
    BadValue {
        /// Where it was set.
        origin: Origin,
        /// The key with its section.
        key: String,
        /// The value as written.
        value: String,
        /// What the key takes.
        allowed: String,
    },
    /// Several members, and no certificates to authenticate each other.
    #[error(
        "members of a cluster need certificates to know each other: set peer.cert, peer.key and peer.ca (--peer-cert, \
         --peer-key, --peer-ca; `quorate cert` makes them), or --peer-insecure on a network where everybody may join"
    )]
    Unauthenticated,
}
