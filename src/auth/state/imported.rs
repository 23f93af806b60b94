//! The rows of users and roles that come from another store, such as an etcd's. Tokens do not come along: their users log in
//! again.

use super::{ROLE, Role, Row, STATE, USER, UserRecord, row_name};
use crate::{
    auth::change::{PasswordHash, Permission},
    codec,
};
use std::collections::BTreeSet;

/// The row of whether authentication is on, and of the auth revision.
pub fn state_row(enabled: bool, revision: u64) -> Row {
    (STATE.to_owned(), Some(codec::encode(&(enabled, revision))))
}

/// The row of a user; without a password, the user can only log in with a certificate. What is signed for the user counts from
/// `revision`, the auth revision of the whole, on.
pub fn user_row(
    name: &str,
    password: Option<PasswordHash>,
    roles: BTreeSet<String>,
    revision: u64,
) -> Row {
    let record = UserRecord {
        password,
        added: revision,
        password_set: revision,
        roles: roles.into_iter().collect(),
    };
    let stored = codec::encode(&(name, &record));
    (row_name(USER, name), Some(stored))
}

/// The row of a role. Permissions of one key stay in their order.
pub fn role_row(name: &str, mut permissions: Vec<Permission>) -> Row {
    permissions.sort_by(|one, other| one.key.cmp(&other.key));
    let stored = codec::encode(&(name, &Role { permissions }));
    (row_name(ROLE, name), Some(stored))
}

#[cfg(test)]
mod tests {
    use super::super::Restoring;
    use super::*;

    #[test]
    fn imported_rows_are_a_state() {
        let permission = |key: &str| Permission {
            kind: Permission::READ,
            key: key.into(),
            range_end: Vec::new(),
        };
        let hash = PasswordHash(b"$2a$10$x".as_slice().into());
        let roles = ["b".to_owned(), "a".to_owned()];
        let rows = [
            state_row(true, 9),
            user_row("root", Some(hash), roles.into(), 9),
            user_row("cert", None, BTreeSet::new(), 9),
            role_row("a", vec![permission("y"), permission("x")]),
        ];
        let mut restoring = Restoring::default();
        for (name, bytes) in rows {
            restoring.take(&name, &bytes.unwrap()).unwrap();
        }
        let state = restoring.finish();
        assert!(state.is_enabled());
        assert_eq!(state.revision(), 9);
        let root = state.user("root").unwrap();
        assert_eq!(root.password(), Some(b"$2a$10$x".as_slice()));
        assert_eq!(root.roles(), ["a", "b"]);
        assert_eq!((root.added(), root.password_set()), (9, 9));
        assert_eq!(state.user("cert").unwrap().password(), None);
        let keys = state.permissions("a").unwrap();
        let keys: Vec<&[u8]> = keys.iter().map(|it| it.key.as_slice()).collect();
        assert_eq!(keys, [b"x", b"y"]);
        assert_eq!(state.tokens().len(), 0);
    }
}
