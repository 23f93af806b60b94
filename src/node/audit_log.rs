//! The settings of the audit log, its start and its end.

use crate::{
    audit::{Audit, AuditError, FileLimits, Level, OpenOutput, Output},
    config::{AuditConfig, AuditLevel, AuditOutput},
    types::MemberId,
};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long a stop waits for the last lines.
const FINISH_MAX: Duration = Duration::from_secs(5);

/// An output that is open.
pub(super) struct Opened {
    output: OpenOutput,
    /// For a file. Listened for from the beginning: the signal would end a process that does not.
    hangups: Option<Signal>,
}

/// Opens the output, before anything else is begun; `None` if the log is off.
pub(super) fn open(config: &AuditConfig) -> Result<Option<Opened>, AuditError> {
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
    let output = output.open()?;
    let hangups = output.is_file().then(|| signal(SignalKind::hangup()));
    let hangups = hangups.transpose().map_err(AuditError::Signal)?;
    Ok(Some(Opened { output, hangups }))
}

/// Begins the log of a member. On each SIGHUP it looks whether its file was moved.
pub(super) fn start(
    config: &AuditConfig,
    to: Option<Opened>,
    member: MemberId,
) -> Result<Option<Audit>, AuditError> {
    let level = match config.level {
        AuditLevel::Auth => Level::Auth,
        AuditLevel::Writes => Level::Writes,
        AuditLevel::All => Level::All,
    };
    let Some(Opened { output, hangups }) = to else {
        return Ok(None);
    };
    let audit = Audit::start(level, output, member.0)?;
    if let Some(mut hangups) = hangups {
        let audit = audit.clone();
        actix::spawn(async move {
            while hangups.recv().await.is_some() {
                audit.look_at_file();
            }
        });
    }
    Ok(Some(audit))
}

/// Writes the last lines.
pub(super) async fn finish(audit: Option<Audit>) {
    if let Some(audit) = audit {
        let flushed = tokio::task::spawn_blocking(move || audit.flush(FINISH_MAX));
        // An error means that the runtime ends.
        drop(flushed.await);
    }
}
