//! Why a snapshot is not saved, or a file is no snapshot.

use crate::api::snapshot_client::ClientError;
use quorate_etcd_files::store::StoreError;
use std::{io, path::PathBuf};

/// Why `quorate snapshot` fails. It leaves no new file.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{0}")]
    Argument(&'static str),
    #[error("cannot {action} {path}: {source}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} exists already: choose another name, or replace it with --overwrite")]
    Exists { path: PathBuf },
    #[error("another process is writing {path}")]
    Busy { path: PathBuf },
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the snapshot ended {left} bytes too early: ask again, or another member")]
    Short { left: u64 },
    /// What arrived is not what was sent, or the disk returns other bytes than were written.
    #[error("what was received is no good snapshot: {0}")]
    Received(Box<StoreError>),
    #[error("{path} is no good snapshot: {source}")]
    Unusable {
        path: PathBuf,
        source: Box<StoreError>,
    },
}

impl SnapshotError {
    /// For `map_err`: an action on a file that failed.
    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
