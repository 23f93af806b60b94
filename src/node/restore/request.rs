//! What an operator asks for.

use crate::clock;
use std::{fmt, path::PathBuf, str::FromStr};

/// The digits of a [`RestoreId`].
const DIGITS: usize = 16;

/// The number of a restore of all members. The first draws it, and the others are given it: so a cluster that is restored once
/// more from the same data is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreId(u64);

impl RestoreId {
    pub(super) fn draw() -> Self {
        Self(clock::entropy())
    }
}

impl fmt::Display for RestoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0DIGITS$x}", self.0)
    }
}

/// Why a text is no [`RestoreId`].
#[derive(Debug, thiserror::Error)]
#[error("it has {DIGITS} hexadecimal digits, as the first member's restore printed it")]
pub struct NoRestoreId;

impl FromStr for RestoreId {
    type Err = NoRestoreId;

    fn from_str(text: &str) -> Result<Self, NoRestoreId> {
        let is_whole = text.len() == DIGITS && text.bytes().all(|it| it.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok();
        number.filter(|_| is_whole).map(Self).ok_or(NoRestoreId)
    }
}

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
    /// That of the first member's restore; `None` if this is the first.
    pub restore_id: Option<RestoreId>,
    /// Where the settings come from, for the commands of other members.
    pub config_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_restore_is_read_as_it_is_printed_and_only_whole() {
        for number in [0, 0xa1, u64::MAX] {
            let text = RestoreId(number).to_string();
            assert_eq!(text.parse::<RestoreId>().unwrap(), RestoreId(number));
        }
        for text in ["", "a1", "+000000000000001", "000000000000000g"] {
            let refused = text.parse::<RestoreId>().unwrap_err();
            assert!(refused.to_string().contains("16 hexadecimal"), "{text}");
        }
    }
}
