//! The settings of the audit log, its start and its end.

use crate::{
    audit::{Audit, AuditError, FileLimits, Level, OpenOutput, Output},
    config::{AuditConfig, AuditLevel, AuditOutput},
    types::MemberId,
};
use std::time::Duration;

/// How long a stop waits for the last lines.
const FINISH_MAX: Duration = Duration::from_secs(5);

/// Opens the output, before anything else is begun; `None` if the log is off.
pub(super) fn open(config: &AuditConfig) -> Result<Option<OpenOutput>, AuditError> {
    let output = match &config.output {
        AuditOutput::Off => return Ok(None),
        AuditOutput::Stderr => Output::Stderr,
        AuditOutput::Stdout => Output::Stdout,
        AuditOutput::File(path) => Output::File(
            path.clone(),
            FileLimits {
                bytes_max: config.file_bytes_max,
                files_max: config.files_max,
            },
        ),
    };
    output.open().map(Some)
}

/// Begins the log of a member.
pub(super) fn start(
    config: &AuditConfig,
    to: Option<OpenOutput>,
    member: MemberId,
) -> Result<Option<Audit>, AuditError> {
    let level = match config.level {
        AuditLevel::Auth => Level::Auth,
        AuditLevel::Writes => Level::Writes,
        AuditLevel::All => Level::All,
    };
    to.map(|to| Audit::start(level, to, member.0)).transpose()
}

/// Writes the last lines.
pub(super) async fn finish(audit: Option<Audit>) {
    if let Some(audit) = audit {
        let flushed = tokio::task::spawn_blocking(move || audit.flush(FINISH_MAX));
        // An error means that the runtime ends.
        drop(flushed.await);
    }
}
