//! The buckets with a fixed set of keys: `meta`, `auth` and `cluster`.

use super::{
    error::{ItemFault, StoreError, shown},
    names,
    read::Store,
    revision,
};
use crate::{
    bolt::Source,
    messages::{ConfState, Downgrade, from_json},
};

/// The version of what we write. etcd 3.6 and 3.7 start from it; the latter raises it.
pub const STORAGE_VERSION: &str = "3.6.0";

/// Longest version that is read.
const VERSION_BYTES_MAX: usize = 64;

/// The bucket `meta`. Which values are there depends on the version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// The index of the last entry of the log that is in the store. Missing before the first one.
    pub consistent_index: Option<u64>,
    /// The term of that entry. Since etcd 3.5.
    pub term: Option<u64>,
    /// Who votes. Since etcd 3.5.
    pub conf_state: Option<ConfState>,
    /// Such as `3.6.0`. Since etcd 3.6.
    pub storage_version: Option<String>,
    /// The revision of the last compaction that was begun.
    pub scheduled_compaction: Option<i64>,
    /// The revision of the last compaction after which no superseded record was left.
    pub finished_compaction: Option<i64>,
}

impl Meta {
    /// The revision that is compacted, as etcd sees it once it has started: -1 if there never was a compaction.
    pub fn compacted(&self) -> i64 {
        // etcd: at its start it goes on with a compaction that is scheduled later than the finished one.
        let compactions = [self.finished_compaction, self.scheduled_compaction];
        compactions.into_iter().flatten().max().unwrap_or(-1)
    }
}

/// The bucket `auth`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Auth {
    /// `None` if it has never been enabled or disabled, which means disabled.
    pub enabled: Option<bool>,
    /// Counts changes of users and roles.
    pub revision: Option<u64>,
}

/// The bucket `cluster`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The version of all members, such as `3.6.0`.
    pub version: Option<String>,
    pub downgrade: Option<Downgrade>,
}

impl<S: Source> Store<S> {
    pub fn meta(&self) -> Result<Meta, StoreError> {
        let mut meta = Meta::default();
        self.each(names::META, |key, value| {
            match key {
                names::CONSISTENT_INDEX => meta.consistent_index = Some(number(value)?),
                names::TERM => meta.term = Some(number(value)?),
                names::CONF_STATE => meta.conf_state = Some(from_json("ConfState", value)?),
                // etcd: while it migrates from 3.5, the value is empty.
                names::STORAGE_VERSION if value.is_empty() => {}
                names::STORAGE_VERSION => meta.storage_version = Some(version(value)?),
                names::SCHEDULED_COMPACTION => {
                    meta.scheduled_compaction = Some(revision::parse_compaction(value)?);
                }
                names::FINISHED_COMPACTION => {
                    meta.finished_compaction = Some(revision::parse_compaction(value)?);
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(meta)
    }

    pub fn auth(&self) -> Result<Auth, StoreError> {
        let mut auth = Auth::default();
        self.each(names::AUTH, |key, value| {
            match key {
                names::AUTH_ENABLED => auth.enabled = Some(flag(value)?),
                names::AUTH_REVISION => auth.revision = Some(number(value)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(auth)
    }

    pub fn cluster(&self) -> Result<Cluster, StoreError> {
        let mut cluster = Cluster::default();
        self.each(names::CLUSTER, |key, value| {
            match key {
                names::CLUSTER_VERSION => cluster.version = Some(version(value)?),
                names::DOWNGRADE => cluster.downgrade = Some(downgrade(value)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(cluster)
    }

    /// Calls back with every item whose key is text.
    fn each(
        &self,
        bucket: &'static str,
        mut each: impl FnMut(&str, &[u8]) -> Result<(), ItemFault>,
    ) -> Result<(), StoreError> {
        for item in self.items(bucket)?.into_iter().flatten() {
            let (key, value) = item?;
            if let Ok(text) = str::from_utf8(&key) {
                let done = each(text, &value);
                done.map_err(|fault| StoreError::item(bucket, &key, fault))?;
            }
        }
        Ok(())
    }
}

pub(super) fn number(value: &[u8]) -> Result<u64, ItemFault> {
    let bytes = value.try_into().map_err(|_| ItemFault::Length {
        bytes: value.len(),
        wanted: 8,
    })?;
    Ok(u64::from_be_bytes(bytes))
}

fn flag(value: &[u8]) -> Result<bool, ItemFault> {
    match value {
        [0] => Ok(false),
        [1] => Ok(true),
        [found] => Err(ItemFault::Flag { found: *found }),
        _ => Err(ItemFault::Length {
            bytes: value.len(),
            wanted: 1,
        }),
    }
}

fn downgrade(value: &[u8]) -> Result<Downgrade, ItemFault> {
    let downgrade: Downgrade = from_json("downgrade", value)?;
    // etcd panics at an enabled downgrade to what is not a version.
    if downgrade.enabled {
        version(downgrade.target_version.as_bytes())?;
    }
    Ok(downgrade)
}

/// Three numbers, as etcd stores versions.
pub(super) fn version(value: &[u8]) -> Result<String, ItemFault> {
    let text = str::from_utf8(value).ok();
    let parts = |text: &&str| {
        let mut parts = text.split('.');
        parts.clone().count() == 3
            && text.len() <= VERSION_BYTES_MAX
            && parts
                .all(|part| !part.is_empty() && part.bytes().all(|digit| digit.is_ascii_digit()))
    };
    let version = text.filter(parts).map(str::to_owned);
    version.ok_or_else(|| ItemFault::VersionText {
        found: shown(value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_three_numbers() {
        for text in ["3.6.0", "0.0.0", "10.20.30"] {
            assert_eq!(version(text.as_bytes()).expect("a version"), text);
        }
        for text in ["", "3.6", "3.6.", "3.6.0.0", "3.6.x", "3.6.-1", "v3.6.0"] {
            let refused = version(text.as_bytes());
            assert!(
                matches!(refused, Err(ItemFault::VersionText { .. })),
                "{text}"
            );
        }
        assert!(version(b"\xff.0.0").is_err());
        assert!(version("1".repeat(100).as_bytes()).is_err());
    }

    #[test]
    fn the_later_compaction_holds() {
        let compacted = |scheduled_compaction, finished_compaction| {
            let meta = Meta {
                scheduled_compaction,
                finished_compaction,
                ..Meta::default()
            };
            meta.compacted()
        };
        assert_eq!(compacted(None, None), -1);
        assert_eq!(compacted(Some(0), None), 0);
        assert_eq!(compacted(Some(9), Some(5)), 9);
        assert_eq!(compacted(Some(5), Some(5)), 5);
    }
}
