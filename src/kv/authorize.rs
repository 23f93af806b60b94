//! Which commands a caller may give, decided under the state at the command's place in the log.
//!
//! etcd: as `authApplierV3` does. A front end does not decide for commands, since its state may be behind: a revoked permission
//! ends with the log entry that revokes it, on every member alike. While authentication is on, a command without a caller is one
//! that a member proposes itself (it expires leases, for example); any other command without a caller is refused.

use super::{
    command::{Command, Put, Txn, TxnOp},
    lease::LeaseTable,
};
use crate::{
    auth::{AuthError, AuthState, Caller, Change, check::Rights},
    types::LeaseId,
};

/// The command to apply, if its caller may give it.
pub(super) fn authorize<'a>(
    auth: &AuthState,
    leases: &LeaseTable,
    command: &'a Command,
) -> Result<&'a Command, AuthError> {
    let asked = command.unchecked();
    if !auth.is_enabled() {
        return Ok(asked);
    }
    match command {
        Command::Checked(checked) => allow(auth, leases, &checked.caller, asked)?,
        Command::Put(_)
        | Command::DeleteRange(_)
        | Command::Txn(_)
        | Command::GrantLease(_)
        | Command::RevokeLease(_) => return Err(AuthError::UserEmpty),
        Command::Auth(change) => {
            if !is_own_work(change) {
                return Err(AuthError::UserEmpty);
            }
        }
        Command::Compact(_)
        | Command::SetAlarm(_)
        | Command::ExpireLeases(_)
        | Command::CheckpointLeases(_)
        | Command::RenewLeases(_) => {}
    }
    Ok(asked)
}

/// Whether a member proposes this change itself, without a caller.
fn is_own_work(change: &Change) -> bool {
    match change {
        Change::IssueToken { .. } | Change::RenewTokens { .. } | Change::ExpireTokens { .. } => {
            true
        }
        Change::Enable
        | Change::Disable
        | Change::AddUser { .. }
        | Change::DeleteUser { .. }
        | Change::ChangePassword { .. }
        | Change::GrantRole { .. }
        | Change::RevokeRole { .. }
        | Change::AddRole { .. }
        | Change::DeleteRole { .. }
        | Change::GrantPermission { .. }
        | Change::RevokePermission { .. } => false,
    }
}

fn allow(
    auth: &AuthState,
    leases: &LeaseTable,
    caller: &Caller,
    command: &Command,
) -> Result<(), AuthError> {
    let rights = || auth.rights(caller);
    match command {
        Command::Put(put) => allow_put(rights()?, leases, put),
        Command::DeleteRange(delete) => {
            let rights = rights()?;
            rights.write(&delete.key, &delete.range_end)?;
            if delete.prev_kv {
                rights.read(&delete.key, &delete.range_end)?;
            }
            Ok(())
        }
        Command::Txn(txn) => allow_txn(rights()?, leases, txn),
        Command::GrantLease(_) => auth.require_identity(caller),
        Command::RevokeLease(revoke) => allow_lease(rights()?, leases, revoke.id),
        // Members propose these without a caller. A caller must be root.
        Command::Compact(_)
        | Command::SetAlarm(_)
        | Command::ExpireLeases(_)
        | Command::CheckpointLeases(_)
        | Command::RenewLeases(_)
        | Command::Auth(_)
        | Command::Checked(_) => auth.require_root(caller),
    }
}

/// A put needs permission to write its key and all keys of its lease; and to read the key, if the previous value is asked for.
fn allow_put(rights: Rights<'_>, leases: &LeaseTable, put: &Put) -> Result<(), AuthError> {
    rights.write(&put.key, &[])?;
    allow_lease(rights, leases, put.lease)?;
    if put.prev_kv {
        rights.read(&put.key, &[])?;
    }
    Ok(())
}

/// Ending a lease deletes its keys, so it needs permission to write them all. etcd: a lease that does not exist needs none.
fn allow_lease(rights: Rights<'_>, leases: &LeaseTable, id: LeaseId) -> Result<(), AuthError> {
    if rights.is_all() {
        return Ok(());
    }
    let mut keys = leases
        .get(id)
        .into_iter()
        .flat_map(|lease| lease.keys.iter());
    keys.try_for_each(|key| rights.write(key, &[]))
}

/// All compares and the operations of both branches, at every depth, whether they run or not.
fn allow_txn(rights: Rights<'_>, leases: &LeaseTable, txn: &Txn) -> Result<(), AuthError> {
    if rights.is_all() {
        return Ok(());
    }
    for compare in &txn.compares {
        rights.read(&compare.key, &compare.range_end)?;
    }
    for op in txn.branches() {
        match op {
            TxnOp::Range(query) => rights.read(&query.key, &query.range_end)?,
            TxnOp::Put(put) => allow_put(rights, leases, put)?,
            TxnOp::DeleteRange(delete) => {
                if delete.prev_kv {
                    rights.read(&delete.key, &delete.range_end)?;
                }
                rights.write(&delete.key, &delete.range_end)?;
            }
            TxnOp::Txn(inner) => allow_txn(rights, leases, inner)?,
            TxnOp::Empty => {}
        }
    }
    Ok(())
}

/// Whether a caller may give a command in this state; the keys of leases are not checked. Only for a deliberate bug, in which the
/// front end decides.
pub fn allow_now(auth: &AuthState, caller: &Caller, command: &Command) -> Result<(), AuthError> {
    allow(auth, &LeaseTable::default(), caller, command)
}

/// Whether a caller may run a transaction that only reads.
pub fn allow_reads(auth: &AuthState, caller: &Caller, txn: &Txn) -> Result<(), AuthError> {
    allow_txn(auth.rights(caller)?, &LeaseTable::default(), txn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::{caller::UserRef, change::Permission},
        codec::Blob,
        kv::{
            command::{
                Checked, Compact, Compare, DeleteRange, Operand, RangeQuery, Relation, RenewLeases,
                RevokeLease,
            },
            lease::LeaseRow,
        },
        types::{LogIndex, Revision, Term},
    };
    use bytes::Bytes;
    use std::sync::Arc;

    /// `u` may read `r` to `s` and write `w` to `x`; lease 1 has the key `w1`, lease 2 the key `z`.
    fn scene() -> (AuthState, LeaseTable) {
        let user = |name: &str| Change::AddUser {
            name: name.into(),
            password: None,
        };
        let role = |user: &str, role: &str| Change::GrantRole {
            user: user.into(),
            role: role.into(),
        };
        let grant = |kind, key: &str, range_end: &str| Change::GrantPermission {
            role: "role".into(),
            permission: Some(Permission {
                kind,
                key: key.into(),
                range_end: range_end.into(),
            }),
        };
        let name = "role".into();
        let mut auth = AuthState::default();
        for change in [
            user("root"),
            role("root", "root"),
            user("u"),
            Change::AddRole { name },
            grant(Permission::READ, "r", "s"),
            grant(Permission::WRITE, "w", "x"),
            role("u", "role"),
            Change::Enable,
        ] {
            let done = auth.apply(&change, 1, &mut Vec::new());
            assert_eq!(done, Ok(()), "{change:?}");
        }
        let mut leases = LeaseTable::default();
        for (id, key) in [(1, "w1"), (2, "z")] {
            let row = LeaseRow::new(60, LogIndex(1));
            assert!(leases.grant(LeaseId(id), row).is_ok());
            leases.attach(key.as_bytes(), LeaseId(0), LeaseId(id));
        }
        (auth, leases)
    }

    fn caller(name: &str) -> Caller {
        Caller::User(Arc::new(UserRef {
            name: name.into(),
            added: 0,
            token: 0,
        }))
    }

    fn blob(key: &'static str) -> Blob {
        Blob(Bytes::from_static(key.as_bytes()))
    }

    fn put(key: &'static str, lease: i64, prev_kv: bool) -> Put {
        Put {
            key: blob(key),
            lease: LeaseId(lease),
            prev_kv,
            ..Put::default()
        }
    }

    fn range(key: &'static str, range_end: &'static str) -> TxnOp {
        TxnOp::Range(RangeQuery {
            key: blob(key),
            range_end: blob(range_end),
            ..RangeQuery::default()
        })
    }

    fn delete(key: &'static str, range_end: &'static str, prev_kv: bool) -> DeleteRange {
        DeleteRange {
            key: blob(key),
            range_end: blob(range_end),
            prev_kv,
        }
    }

    fn asked(caller: Caller, command: Command) -> Result<(), AuthError> {
        let (auth, leases) = scene();
        let command = Box::new(command);
        let checked = Command::Checked(Checked { caller, command });
        let allowed = authorize(&auth, &leases, &checked);
        allowed.map(|command| assert_eq!(command, checked.unchecked()))
    }

    #[test]
    fn a_user_gets_what_is_granted_wherever_the_operation_stands() {
        let ops = [
            (TxnOp::Put(put("w1", 0, false)), true),
            (TxnOp::Put(put("r1", 0, false)), false),
            (TxnOp::Put(put("w1", 0, true)), false),
            (TxnOp::Put(put("w1", 1, false)), true),
            (TxnOp::Put(put("w1", 2, false)), false),
            (TxnOp::Put(put("w1", 9, false)), true),
            (TxnOp::DeleteRange(delete("w", "x", false)), true),
            (TxnOp::DeleteRange(delete("w", "x", true)), false),
            (TxnOp::DeleteRange(delete("w", "\0", false)), false),
            (range("r", "s"), true),
            (range("r", "t"), false),
            (range("w1", ""), false),
        ];
        for (op, allowed) in ops {
            let expected = allowed.then_some(()).ok_or(AuthError::PermissionDenied);
            let alone = match op.clone() {
                TxnOp::Put(put) => Some(Command::Put(put)),
                TxnOp::DeleteRange(delete) => Some(Command::DeleteRange(delete)),
                TxnOp::Range(_) | TxnOp::Txn(_) | TxnOp::Empty => None,
            };
            if let Some(command) = alone {
                assert_eq!(asked(caller("u"), command), expected, "{op:?}");
            }
            let nest = |inner| Txn {
                failure: vec![TxnOp::Txn(inner)],
                ..Txn::default()
            };
            let taken = Txn {
                success: vec![range("r1", ""), op.clone()],
                ..Txn::default()
            };
            let not_taken = Txn {
                failure: vec![op.clone()],
                ..Txn::default()
            };
            for txn in [
                nest(nest(taken.clone())),
                taken,
                nest(not_taken.clone()),
                not_taken,
            ] {
                let command = Command::Txn(txn);
                assert_eq!(asked(caller("u"), command.clone()), expected, "{command:?}");
                assert_eq!(asked(caller("root"), command.clone()), Ok(()), "root");
                assert_eq!(asked(Caller::Node, command.clone()), Ok(()), "the node");
                let nobody = asked(Caller::Nobody, command);
                assert_eq!(nobody, Err(AuthError::UserEmpty));
            }
        }
        let compare = |key| Txn {
            compares: vec![Compare {
                key: blob(key),
                range_end: blob(""),
                relation: Relation::Equal,
                operand: Operand::Version(1),
            }],
            ..Txn::default()
        };
        assert_eq!(asked(caller("u"), Command::Txn(compare("r1"))), Ok(()));
        let denied = asked(caller("u"), Command::Txn(compare("w1")));
        assert_eq!(denied, Err(AuthError::PermissionDenied));
    }

    #[test]
    fn leases_end_with_the_right_to_their_keys_and_the_rest_is_roots() {
        let revoke = |id| Command::RevokeLease(RevokeLease { id: LeaseId(id) });
        let compact = || {
            let revision = Revision(1);
            Command::Compact(Compact { revision })
        };
        let change = || Command::Auth(Change::Disable);
        for (command, expected) in [
            (revoke(1), Ok(())),
            (revoke(2), Err(AuthError::PermissionDenied)),
            (revoke(3), Ok(())),
            (compact(), Err(AuthError::PermissionDenied)),
            (change(), Err(AuthError::PermissionDenied)),
        ] {
            assert_eq!(asked(caller("u"), command.clone()), expected, "{command:?}");
            assert_eq!(asked(caller("root"), command.clone()), Ok(()));
            let gone = asked(caller("gone"), command);
            assert!(gone.is_err(), "{gone:?}");
        }
    }

    #[test]
    fn bare_commands_are_the_members_own_work() {
        let (auth, leases) = scene();
        let renew = Command::RenewLeases(RenewLeases {
            term: Term(1),
            leases: Vec::new(),
        });
        let tokens = Command::Auth(Change::RenewTokens { tokens: Vec::new() });
        let compact = Command::Compact(Compact {
            revision: Revision(1),
        });
        for own in [renew, tokens, compact] {
            assert_eq!(authorize(&auth, &leases, &own), Ok(&own));
        }
        let revoke = Command::RevokeLease(RevokeLease { id: LeaseId(3) });
        for clients in [
            Command::Put(put("w1", 0, false)),
            Command::DeleteRange(delete("w1", "", false)),
            Command::Txn(Txn::default()),
            revoke,
            Command::Auth(Change::Disable),
        ] {
            let refused = authorize(&auth, &leases, &clients);
            assert_eq!(refused, Err(AuthError::UserEmpty), "{clients:?}");
            let off = authorize(&AuthState::default(), &leases, &clients);
            assert_eq!(off, Ok(&clients), "while it is off");
        }
    }
}
