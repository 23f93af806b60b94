//! The names of buckets, and of keys where a bucket has a fixed set of them.

pub(super) const ALARM: &str = "alarm";
pub(super) const AUTH: &str = "auth";
pub(super) const ROLES: &str = "authRoles";
pub(super) const USERS: &str = "authUsers";
pub(super) const CLUSTER: &str = "cluster";
pub(super) const KEY: &str = "key";
pub(super) const LEASE: &str = "lease";
pub(super) const MEMBERS: &str = "members";
pub(super) const REMOVED: &str = "members_removed";
pub(super) const META: &str = "meta";

/// In the order of their bytes, which is that of the file.
pub(super) const BUCKETS: [&str; 10] = [
    ALARM, AUTH, ROLES, USERS, CLUSTER, KEY, LEASE, MEMBERS, REMOVED, META,
];

pub(super) const AUTH_ENABLED: &str = "authEnabled";
pub(super) const AUTH_REVISION: &str = "authRevision";

pub(super) const CLUSTER_VERSION: &str = "clusterVersion";
pub(super) const DOWNGRADE: &str = "downgrade";

pub(super) const CONF_STATE: &str = "confState";
pub(super) const CONSISTENT_INDEX: &str = "consistent_index";
pub(super) const FINISHED_COMPACTION: &str = "finishedCompactRev";
pub(super) const SCHEDULED_COMPACTION: &str = "scheduledCompactRev";
pub(super) const STORAGE_VERSION: &str = "storageVersion";
pub(super) const TERM: &str = "term";

/// The buckets that hold a fixed set of keys.
pub(super) const FIXED: [(&str, &[&str]); 3] = [
    (AUTH, &[AUTH_ENABLED, AUTH_REVISION]),
    (CLUSTER, &[CLUSTER_VERSION, DOWNGRADE]),
    (
        META,
        &[
            CONF_STATE,
            CONSISTENT_INDEX,
            FINISHED_COMPACTION,
            SCHEDULED_COMPACTION,
            STORAGE_VERSION,
            TERM,
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::{BUCKETS, FIXED};

    #[test]
    fn names_ascend_as_the_file_wants_them() {
        assert!(BUCKETS.is_sorted_by(|one, next| one < next));
        for (_, keys) in FIXED {
            assert!(keys.is_sorted_by(|one, next| one < next));
        }
    }
}
