//! What an operator asks for.

use std::path::PathBuf;

/// What to restore, and how; the settings of the member are those of its server.
#[derive(Clone, Debug, Default)]
pub struct RestoreRequest {
    /// The file of the snapshot, or the data directory of an etcd.
    pub file: PathBuf,
    /// The flags of `quorate import` that say more of the source, if it is a data directory.
    pub import: Option<Vec<String>>,
    /// The SHA-256 at its end need not be there, and is not compared.
    pub skip_hash_check: bool,
    /// By how much the revision is raised.
    pub bump_revision: Option<u64>,
    /// The history before the raised revision counts as compacted.
    pub mark_compacted: bool,
    /// The snapshot counts as right although the alarm CORRUPT was raised.
    pub ignore_corrupt_alarm: bool,
    /// Where the settings come from, for the commands of other members.
    pub config_file: Option<PathBuf>,
}
