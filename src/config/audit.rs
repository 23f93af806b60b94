//! The settings of the audit log.

use super::{
    error::ConfigError,
    layers::Layers,
    read::{choice, number, refuse, text},
};
use std::path::PathBuf;

#[derive(Clone, Debug)]
pub struct AuditConfig {
    pub output: AuditOutput,
    /// What is in it.
    pub level: AuditLevel,
    /// The longest a file becomes, in bytes.
    pub file_bytes_max: u64,
    /// How many files there are in all.
    pub files_max: usize,
}

/// Where the audit log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditOutput {
    Off,
    Stderr,
    Stdout,
    /// A file, and those that it was renamed to when it was full.
    File(PathBuf),
}

/// What is in the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditLevel {
    /// Logins, changes of users and roles, refusals.
    Auth,
    /// All other changes too.
    Writes,
    All,
}

pub(super) fn read(layers: &Layers) -> Result<AuditConfig, ConfigError> {
    const OUTPUT: &str = "audit.output";
    let output = match text(layers, OUTPUT) {
        "" => AuditOutput::Off,
        "stderr" => AuditOutput::Stderr,
        "stdout" => AuditOutput::Stdout,
        other => match other.strip_prefix("file:") {
            Some(path) if !path.is_empty() && !path.ends_with('/') => {
                AuditOutput::File(path.into())
            }
            Some(_) | None => {
                let allowed = "empty, stderr, stdout, or file: and the path of a file";
                return Err(refuse(layers, OUTPUT, allowed));
            }
        },
    };
    let levels = [
        ("auth", AuditLevel::Auth),
        ("writes", AuditLevel::Writes),
        ("all", AuditLevel::All),
    ];
    Ok(AuditConfig {
        output,
        level: choice(layers, "audit.level", &levels)?,
        file_bytes_max: number(layers, "audit.file_bytes_max", 1 << 16..=1 << 40)?,
        files_max: number(layers, "audit.files_max", 1..=1_000)?,
    })
}
