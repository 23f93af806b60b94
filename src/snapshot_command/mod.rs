//! `quorate snapshot`: saves a snapshot of a running member, or of an etcd, and says what a snapshot file holds.
//!
//! A file under its final name is whole: what arrives is written beside it, and renamed once its hash was verified and it is
//! synced. Looking at a file does not change it.

mod error;
mod save;
mod status;

pub use error::SnapshotError;

use clap::{Args, Subcommand};
use save::SaveArgs;
use status::StatusArgs;

/// `quorate snapshot`: files in etcd's format.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Save a snapshot of a running member to a file
    Save(Box<SaveArgs>),
    /// Verify a snapshot file, and say what it holds
    Status(StatusArgs),
}

impl SnapshotArgs {
    /// Carries the command out. Returns what it has to say.
    pub fn run(&self) -> Result<String, SnapshotError> {
        match &self.command {
            SnapshotCommand::Save(args) => args.run(),
            SnapshotCommand::Status(args) => args.run(),
        }
    }
}
