//! What must not allocate: looking up what a caller may do, which every request does while authentication is on.

use quorate::internals::{
    auth::{
        Caller,
        change::{Change, Permission},
        state::AuthState,
    },
    kv::{
        authorize::{allow_now, allow_reads},
        command::{Command, Put, RangeQuery, Txn, TxnOp},
    },
};

/// A user with write permission for `a/` and read permission for `b/`, through two of many roles.
fn users() -> (AuthState, Caller) {
    let role = |name: &str| Change::AddRole { name: name.into() };
    let grant = |role: &str, kind, key: &str, range_end: &str| Change::GrantPermission {
        role: role.into(),
        permission: Some(Permission {
            kind,
            key: key.into(),
            range_end: range_end.into(),
        }),
    };
    let user = |name: &str| Change::AddUser {
        name: name.into(),
        password: None,
    };
    let give = |user: &str, role: &str| Change::GrantRole {
        user: user.into(),
        role: role.into(),
    };
    let mut auth = AuthState::default();
    let mut apply = |change: &Change| {
        auth.apply(change, 1, &mut Vec::new())
            .expect("it is allowed");
    };
    for change in [
        user("root"),
        give("root", "root"),
        user("u"),
        role("writes"),
        role("reads"),
        grant("writes", Permission::WRITE, "a/", "a0"),
        grant("reads", Permission::READ, "b/", "b0"),
        give("u", "writes"),
        give("u", "reads"),
        Change::Enable,
    ] {
        apply(&change);
    }
    for n in 0..100 {
        let (name, key) = (format!("role-{n}"), format!("c/{n}"));
        apply(&role(&name));
        apply(&grant(&name, Permission::READ_WRITE, &key, ""));
        apply(&give("u", &name));
    }
    let caller = auth.certified(&"u".into());
    (auth, caller)
}

fn put(key: &'static str) -> Put {
    Put {
        key: key.into(),
        value: "v".into(),
        ..Put::default()
    }
}

fn range(key: &'static str, range_end: &'static str) -> RangeQuery {
    RangeQuery {
        key: key.into(),
        range_end: range_end.into(),
        ..RangeQuery::default()
    }
}

#[test]
fn a_check_of_rights_allocates_nothing() {
    let (auth, caller) = users();
    let (allowed, refused) = (Command::Put(put("a/1")), Command::Put(put("b/1")));
    let txn = Txn {
        success: vec![
            TxnOp::Range(range("b/", "b0")),
            TxnOp::Txn(Txn {
                failure: vec![TxnOp::Range(range("c/7", ""))],
                ..Txn::default()
            }),
        ],
        ..Txn::default()
    };
    let check = || {
        assert!(allow_now(&auth, &caller, &allowed).is_ok());
        assert!(allow_now(&auth, &caller, &refused).is_err());
        assert!(allow_reads(&auth, &caller, &txn).is_ok());
        assert!(auth.may_go_on_watching(&caller, b"b/1", b""));
    };
    // The first check after a change compiles the user's grants.
    let compiled = allocation_counter::measure(check);
    assert!(compiled.count_total > 0, "allocations are counted");
    let checked = allocation_counter::measure(check);
    assert_eq!(checked.count_total, 0, "{checked:?}");
}
