//! Changes against the rules, and what is stored of them.

use super::*;
use proptest::prelude::*;

pub(crate) fn hash(text: &str) -> PasswordHash {
    PasswordHash(text.as_bytes().into())
}

pub(crate) fn add_user(name: &str) -> Change {
    Change::AddUser {
        name: name.into(),
        password: Some(hash("h")),
    }
}

pub(crate) fn grant_role(user: &str, role: &str) -> Change {
    Change::GrantRole {
        user: user.into(),
        role: role.into(),
    }
}

pub(crate) fn grant(role: &str, kind: i32, key: &str, range_end: &str) -> Change {
    Change::GrantPermission {
        role: role.into(),
        permission: Some(Permission {
            kind,
            key: key.into(),
            range_end: range_end.into(),
        }),
    }
}

fn issue(user: &str, password_set: u64) -> Change {
    Change::IssueToken {
        user: user.into(),
        password_set,
        digest: [1; 32],
    }
}

pub(crate) fn applied(changes: &[Change]) -> AuthState {
    let mut state = AuthState::default();
    for (at, change) in (1..).zip(changes) {
        let done = state.apply(change, at, &mut Vec::new());
        assert_eq!(done, Ok(()), "{change:?}");
    }
    state
}

pub(crate) fn enabled(changes: &[Change]) -> AuthState {
    let root = [add_user("root"), grant_role("root", "root"), Change::Enable];
    applied(&[changes, &root[..]].concat())
}

#[test]
fn only_changes_move_the_auth_revision() {
    let role = |name: &str| Change::AddRole { name: name.into() };
    let mut state = enabled(&[add_user("u"), role("r"), grant_role("u", "r")]);
    assert_eq!(state.revision(), 6, "enabling does not count");
    let mut rows = Vec::new();
    let unmoved = [Change::Enable, grant_role("u", "r")];
    for change in unmoved {
        assert_eq!(state.apply(&change, 9, &mut rows), Ok(()));
    }
    assert_eq!((state.revision(), rows.len()), (6, 0), "nothing changed");
    assert_eq!(state.apply(&Change::Disable, 10, &mut rows), Ok(()));
    assert_eq!(state.apply(&Change::Disable, 11, &mut rows), Ok(()));
    assert_eq!(state.revision(), 7, "once");
}

#[expect(clippy::too_many_lines, reason = "most of it is a table")]
#[test]
fn refusals_are_etcds_and_leave_no_trace() {
    let mut on = enabled(&[add_user("u"), Change::AddRole { name: "r".into() }]);
    let unlike = |key: &str, end: &str| grant("r", 0, key, end);
    let revoke = |user: &str, role: &str| Change::RevokeRole {
        user: user.into(),
        role: role.into(),
    };
    let cases = [
        (add_user(""), AuthError::UserEmpty),
        (add_user("u"), AuthError::UserExists),
        (
            Change::DeleteUser { name: "x".into() },
            AuthError::UserNotFound,
        ),
        (
            Change::DeleteUser {
                name: "root".into(),
            },
            AuthError::InvalidManagement,
        ),
        (
            Change::DeleteRole {
                name: "root".into(),
            },
            AuthError::InvalidManagement,
        ),
        (
            Change::DeleteRole { name: "x".into() },
            AuthError::RoleNotFound,
        ),
        (Change::AddRole { name: "r".into() }, AuthError::RoleExists),
        (
            Change::AddRole {
                name: String::new(),
            },
            AuthError::RoleEmpty,
        ),
        (grant_role("x", "r"), AuthError::UserNotFound),
        (grant_role("u", "x"), AuthError::RoleNotFound),
        (revoke("root", "root"), AuthError::InvalidManagement),
        (revoke("u", "r"), AuthError::RoleNotGranted),
        (revoke("x", "r"), AuthError::UserNotFound),
        (unlike("", ""), AuthError::InvalidManagement),
        (unlike("b", "a"), AuthError::InvalidManagement),
        (unlike("b", "b"), AuthError::InvalidManagement),
        (grant("x", 0, "a", ""), AuthError::RoleNotFound),
        (
            Change::GrantPermission {
                role: "x".into(),
                permission: None,
            },
            AuthError::PermissionNotGiven,
        ),
        (
            Change::RevokePermission {
                role: "r".into(),
                key: b"a".to_vec(),
                range_end: Vec::new(),
            },
            AuthError::PermissionNotGranted,
        ),
        (
            Change::ChangePassword {
                name: "x".into(),
                password: hash("h"),
            },
            AuthError::UserNotFound,
        ),
        (issue("x", 2), AuthError::AuthenticationFailed),
        (issue("u", 7), AuthError::OldRevision),
    ];
    for (change, refusal) in cases {
        let before = on.clone();
        let mut rows = Vec::new();
        assert_eq!(on.apply(&change, 9, &mut rows), Err(refusal), "{change:?}");
        assert_eq!((&on, rows.len()), (&before, 0), "{change:?}");
    }
    let mut off = applied(&[add_user("root")]);
    let mut rows = Vec::new();
    assert_eq!(
        off.apply(&Change::Enable, 9, &mut rows),
        Err(AuthError::RootRoleMissing)
    );
    assert_eq!(
        off.apply(&issue("root", 2), 9, &mut rows),
        Err(AuthError::NotEnabled)
    );
    let delete = Change::DeleteUser {
        name: "root".into(),
    };
    assert_eq!(off.apply(&delete, 9, &mut rows), Ok(()), "while it is off");
    assert_eq!(
        off.apply(&Change::Enable, 9, &mut rows),
        Err(AuthError::RootUserMissing)
    );
}

#[test]
fn a_change_ends_the_tokens_of_whom_it_concerns() {
    let mut state = enabled(&[add_user("u"), add_user("v")]);
    let mut at = 100;
    let mut rows = Vec::new();
    let mut apply = |state: &mut AuthState, change: Change| {
        at += 1;
        assert_eq!(state.apply(&change, at, &mut rows), Ok(()), "{change:?}");
        at
    };
    let (u, v) = (
        apply(&mut state, issue("u", 2)),
        apply(&mut state, issue("v", 3)),
    );
    apply(&mut state, Change::AddRole { name: "r".into() });
    apply(&mut state, grant_role("u", "r"));
    apply(&mut state, Change::DeleteRole { name: "r".into() });
    assert_eq!(state.tokens().len(), 2, "roles end no token");
    let change = Change::ChangePassword {
        name: "u".into(),
        password: hash("other"),
    };
    apply(&mut state, change);
    assert!(state.tokens().get(u).is_none() && state.tokens().get(v).is_some());
    apply(&mut state, Change::RenewTokens { tokens: vec![u, v] });
    let expire = |renewed| Change::ExpireTokens {
        tokens: vec![TokenMark { token: v, renewed }],
    };
    apply(&mut state, expire(v));
    assert!(state.tokens().get(v).is_some(), "it was renewed since");
    let renewed = state.tokens().get(v).unwrap().renewed;
    apply(&mut state, expire(renewed));
    assert!(state.tokens().is_empty());
    apply(&mut state, issue("v", 3));
    apply(&mut state, Change::Disable);
    assert!(state.tokens().is_empty(), "off: none is left");
}

#[test]
fn one_user_cannot_end_the_tokens_of_others() {
    let mut state = enabled(&[add_user("u"), add_user("v")]);
    let mut rows = Vec::new();
    state.apply(&issue("v", 3), 50, &mut rows).unwrap();
    for at in 0..USER_TOKENS_MAX as u64 + 10 {
        rows.clear();
        state.apply(&issue("u", 2), 100 + at, &mut rows).unwrap();
    }
    assert_eq!(state.tokens().len(), USER_TOKENS_MAX + 1);
    assert!(state.tokens().get(50).is_some(), "v's");
    assert!(state.tokens().get(100).is_none(), "u's oldest");
    assert_eq!(rows.len(), 2, "one ends for one that is issued");
}

fn any_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "root", "a", "b", "c"]).prop_map(str::to_owned)
}

fn any_change() -> impl Strategy<Value = Change> {
    let key = || prop::sample::select(vec!["", "\0", "a", "b", "c"]);
    prop_oneof![
        1 => Just(Change::Enable),
        1 => Just(Change::Disable),
        3 => (any_name(), any::<bool>()).prop_map(|(name, given)| Change::AddUser {
            name,
            password: given.then(|| hash("h")),
        }),
        1 => any_name().prop_map(|name| Change::DeleteUser { name }),
        1 => any_name().prop_map(|name| Change::ChangePassword {
            name,
            password: hash("i"),
        }),
        3 => (any_name(), any_name()).prop_map(|(user, role)| Change::GrantRole { user, role }),
        1 => (any_name(), any_name()).prop_map(|(user, role)| Change::RevokeRole { user, role }),
        3 => any_name().prop_map(|name| Change::AddRole { name }),
        1 => any_name().prop_map(|name| Change::DeleteRole { name }),
        3 => (any_name(), 0..4, key(), key()).prop_map(|(role, kind, key, range_end)| {
            grant(&role, kind, key, range_end)
        }),
        1 => (any_name(), key(), key()).prop_map(|(role, key, range_end)| {
            Change::RevokePermission {
                role,
                key: key.into(),
                range_end: range_end.into(),
            }
        }),
        3 => (any_name(), 1..9_u64).prop_map(|(user, set)| issue(&user, set)),
        1 => prop::collection::vec(1..60_u64, 0..4)
            .prop_map(|tokens| Change::RenewTokens { tokens }),
        1 => (1..60_u64, 1..60_u64).prop_map(|(token, renewed)| Change::ExpireTokens {
            tokens: vec![TokenMark { token, renewed }],
        }),
    ]
}

proptest! {
    /// After any changes, what was stored gives the same state again, and so does the encoded log.
    #[test]
    fn the_rows_hold_the_state(changes in prop::collection::vec(any_change(), 0..60)) {
        let mut state = AuthState::default();
        let mut stored = BTreeMap::new();
        for (at, change) in (1..).zip(&changes) {
            let encoded = codec::encode(change);
            let decoded: Change = codec::decode("change", &encoded).unwrap();
            prop_assert_eq!(change, &decoded);
            let mut rows = Vec::new();
            let before = state.clone();
            if state.apply(change, at, &mut rows).is_err() {
                prop_assert_eq!(&state, &before);
            }
            prop_assert_eq!(rows.is_empty(), state == before, "rows exactly for what changed");
            for (name, row) in rows {
                prop_assert!(name.starts_with(ROWS));
                match row {
                    Some(row) => stored.insert(name, row),
                    None => stored.remove(&name),
                };
            }
        }
        let mut restoring = Restoring::default();
        for (name, row) in &stored {
            restoring.take(name, row).unwrap();
        }
        prop_assert_eq!(restoring.finish(), state);
    }
}
