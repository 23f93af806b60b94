//! Why an image of the database is not made, or ends early.

use crate::{
    actors::{load::LoadStateError, request_error::RequestError},
    auth::AuthError,
    codec::CodecError,
    storage::db::DbError,
    types::Revision,
};
use quorate_etcd_files::store::StoreError;
use std::io;

/// Why there is no whole image. What was sent of it has no hash.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The caller may not have one, or the member does not serve.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// As many are made already as may be at once.
    #[error("{max} snapshots are being made already")]
    Busy { max: usize },
    /// There is no thread that could make it.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error(transparent)]
    State(#[from] LoadStateError),
    /// What is stored does not fit etcd's file, or nobody takes the file any more.
    #[error(transparent)]
    File(Box<StoreError>),
    /// Nobody waits for it any more.
    #[error("the caller has gone")]
    Unwanted,
    /// The database and the view of it that was chosen do not belong together.
    #[error("the database is compacted at {found}, and its view at {expected}")]
    OtherCompaction { found: Revision, expected: Revision },
    /// The thread that made it has ended without an error of its own.
    #[error("the snapshot was interrupted")]
    Interrupted,
}

impl From<AuthError> for ImageError {
    fn from(error: AuthError) -> Self {
        RequestError::from(error).into()
    }
}

impl From<StoreError> for ImageError {
    fn from(error: StoreError) -> Self {
        Self::File(Box::new(error))
    }
}

impl From<DbError> for ImageError {
    fn from(error: DbError) -> Self {
        LoadStateError::from(error).into()
    }
}

impl From<CodecError> for ImageError {
    fn from(error: CodecError) -> Self {
        LoadStateError::from(error).into()
    }
}
