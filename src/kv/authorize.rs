//! Which commands a caller may give, decided under the state at the command's place in the log.
//!
//! etcd: as `authApplierV3` does. A front end does not decide for commands, since its state may be behind: a revoked permission
//! ends with the log entry that revokes it, on every member alike. While authentication is on, a command without a caller is one
//! that a member proposes itself (it expires leases, for example); any other command without a caller is refused.

use super::{
    command::{Command, Put, Txn, TxnOp},
    keys::Steps,
    lease::{LeaseKeys, LeaseTable},
};
use crate::{
    auth::{AuthError, AuthState, Caller, Change, check::Rights, grants::Right},
    types::LeaseId,
};
use std::collections::BTreeSet;

/// The command to apply, if its caller may give it.
pub fn authorize<'a>(
    auth: &AuthState,
    leases: &LeaseTable,
    command: &'a Command,
) -> Result<&'a Command, AuthError> {
    counted(auth, leases, command, &Steps::unlimited())
}

fn counted<'a>(
    auth: &AuthState,
    leases: &LeaseTable,
    command: &'a Command,
    steps: &Steps,
) -> Result<&'a Command, AuthError> {
    let asked = command.unchecked();
    if !auth.is_enabled() {
        return Ok(asked);
    }
    match command {
        Command::Checked(checked) => allow(auth, leases, &checked.caller, asked, steps)?,
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
    steps: &Steps,
) -> Result<(), AuthError> {
    let judge = || {
        let rights = auth.rights(caller)?;
        Ok(Judge::new(rights, leases, steps))
    };
    match command {
        Command::Put(put) => judge()?.put(put),
        Command::DeleteRange(delete) => {
            let rights = auth.rights(caller)?;
            rights.write(&delete.key, &delete.range_end)?;
            if delete.prev_kv {
                rights.read(&delete.key, &delete.range_end)?;
            }
            Ok(())
        }
        Command::Txn(txn) => judge()?.txn(txn),
        Command::GrantLease(_) => auth.require_identity(caller),
        Command::RevokeLease(revoke) => judge()?.lease(revoke.id),
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

/// Judges one command of a caller who has these rights.
struct Judge<'a> {
    rights: Rights<'a>,
    leases: &'a LeaseTable,
    /// The leases whose keys may all be written, of those that the command names: each is looked at once.
    allowed: BTreeSet<LeaseId>,
    steps: &'a Steps,
}

impl<'a> Judge<'a> {
    fn new(rights: Rights<'a>, leases: &'a LeaseTable, steps: &'a Steps) -> Self {
        Self {
            rights,
            leases,
            allowed: BTreeSet::new(),
            steps,
        }
    }

    /// A put needs permission to write its key and all keys of its lease; and to read the key, if the previous value is asked
    /// for.
    fn put(&mut self, put: &Put) -> Result<(), AuthError> {
        self.rights.write(&put.key, &[])?;
        self.lease(put.lease)?;
        if put.prev_kv {
            self.rights.read(&put.key, &[])?;
        }
        Ok(())
    }

    /// Ending a lease deletes its keys, so it needs permission to write them all. etcd: a lease that does not exist needs none.
    fn lease(&mut self, id: LeaseId) -> Result<(), AuthError> {
        if self.rights.is_all() || self.allowed.contains(&id) {
            return Ok(());
        }
        if let Some(lease) = self.leases.get(id) {
            allow_keys(self.rights, Right::Write, &lease.keys, self.steps)?;
            self.allowed.insert(id);
        }
        Ok(())
    }

    /// All compares and the operations of both branches, at every depth, whether they run or not.
    fn txn(&mut self, txn: &Txn) -> Result<(), AuthError> {
        let rights = self.rights;
        if rights.is_all() {
            return Ok(());
        }
        for compare in &txn.compares {
            rights.read(&compare.key, &compare.range_end)?;
        }
        for op in txn.branches() {
            match op {
                TxnOp::Range(query) => rights.read(&query.key, &query.range_end)?,
                TxnOp::Put(put) => self.put(put)?,
                TxnOp::DeleteRange(delete) => {
                    if delete.prev_kv {
                        rights.read(&delete.key, &delete.range_end)?;
                    }
                    rights.write(&delete.key, &delete.range_end)?;
                }
                TxnOp::Txn(inner) => self.txn(inner)?,
                TxnOp::Empty => {}
            }
        }
        Ok(())
    }
}

/// Whether this may be done to all of these keys. A step is a look-up of a key among the user's intervals, or of a gap between
/// those among the keys, whichever are fewer: a lease may have very many keys, and each put with it asks.
fn allow_keys(
    rights: Rights<'_>,
    right: Right,
    keys: &LeaseKeys,
    steps: &Steps,
) -> Result<(), AuthError> {
    match keys {
        LeaseKeys::Many(keys) if rights.gap_count(right) < keys.len() => {
            let mut gaps = rights.gaps(right);
            let lacking = |gap| steps.take() && keys.range::<[u8], _>(gap).next().is_some();
            if gaps.any(lacking) {
                return Err(AuthError::PermissionDenied);
            }
            Ok(())
        }
        LeaseKeys::None | LeaseKeys::One(_) | LeaseKeys::Many(_) => {
            keys.iter().try_for_each(|key| {
                steps.take();
                rights.allow(right, key)
            })
        }
    }
}

/// Whether a caller may do this to every key of a lease. etcd: a lease that does not exist needs no right.
pub fn allow_lease(
    auth: &AuthState,
    leases: &LeaseTable,
    caller: &Caller,
    id: LeaseId,
    right: Right,
) -> Result<(), AuthError> {
    let rights = auth.rights(caller)?;
    match leases.get(id) {
        Some(lease) => allow_keys(rights, right, &lease.keys, &Steps::unlimited()),
        None => Ok(()),
    }
}

/// Whether a caller may give a command in this state; the keys of leases are not checked. Only for a deliberate bug, in which the
/// front end decides.
pub fn allow_now(auth: &AuthState, caller: &Caller, command: &Command) -> Result<(), AuthError> {
    let leases = LeaseTable::default();
    allow(auth, &leases, caller, command, &Steps::unlimited())
}

/// Whether a caller may run a transaction that only reads.
pub fn allow_reads(auth: &AuthState, caller: &Caller, txn: &Txn) -> Result<(), AuthError> {
    let (rights, leases) = (auth.rights(caller)?, LeaseTable::default());
    Judge::new(rights, &leases, &Steps::unlimited()).txn(txn)
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
            index::Index,
            lease::LeaseRow,
            machine::{LoadedState, Machine},
        },
        types::{LogIndex, Rev, Revision, Term},
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

    /// The steps to judge `command` of `u`, whose rights are `spans` intervals, if lease 1 has `keys` keys that `u` may write and
    /// lease 2 has as many, and one that `u` may not.
    fn steps_of(command: Command, spans: usize, keys: usize) -> (u64, bool) {
        let (mut auth, mut leases) = scene();
        for span in 0..spans {
            let permission = Some(Permission {
                kind: Permission::WRITE,
                key: format!("x{span:06}").into(),
                range_end: Vec::new(),
            });
            let role = "role".into();
            let grant = Change::GrantPermission { role, permission };
            assert_eq!(auth.apply(&grant, 2, &mut Vec::new()), Ok(()));
        }
        for lease in [1, 2] {
            for key in 0..keys {
                let key = format!("w{key:06}/{lease}");
                leases.attach(key.as_bytes(), LeaseId(0), LeaseId(lease));
            }
        }
        let (caller, command) = (caller("u"), Box::new(command));
        let command = Command::Checked(Checked { caller, command });
        let (max, steps) = (1_000_000_000, Steps::new(1_000_000_000));
        let allowed = counted(&auth, &leases, &command, &steps).is_ok();
        (steps.taken(max), allowed)
    }

    #[test]
    fn the_keys_of_a_lease_are_looked_at_once_in_a_command() {
        let txn = |ops: usize| {
            let put = || TxnOp::Put(put("w1", 1, false));
            let success: Vec<_> = std::iter::repeat_with(put).take(ops).collect();
            Command::Txn(Txn {
                failure: success.clone(),
                success,
                ..Txn::default()
            })
        };
        // As many intervals as keys: neither is a way around the other.
        for size in [100, 200] {
            let (steps, allowed) = steps_of(txn(size), size, size);
            assert!(allowed);
            assert!(steps <= size as u64 + 2, "{steps} for {size}");
        }
    }

    #[test]
    fn puts_one_by_one_do_not_look_at_all_keys_of_their_lease() {
        for size in [1_000, 2_000] {
            for (lease, expected) in [(1, true), (2, false)] {
                let (steps, allowed) = steps_of(Command::Put(put("w1", lease, false)), 2, size);
                assert_eq!(allowed, expected);
                assert!(steps <= 4, "{steps} for {size} keys");
            }
        }
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
    fn what_is_refused_causes_no_reads_of_values() {
        let mut index = Index::new();
        for (major, key) in [(2, "r1"), (3, "w1"), (4, "z")] {
            let rev = Rev::new(Revision(major), 0);
            index.put(key.as_bytes(), rev, LeaseId(0));
        }
        let (auth, leases) = scene();
        let state = LoadedState {
            revision: Revision(4),
            leases,
            auth,
            ..LoadedState::default()
        };
        let machine = Machine::new(state, index.snapshot());
        let kept = |key| Put {
            ignore_value: true,
            ..put(key, 0, false)
        };
        let compared = |key: &'static str, range_end| Txn {
            compares: vec![Compare {
                key: blob(key),
                range_end: blob(range_end),
                relation: Relation::Equal,
                operand: Operand::Value(blob("v")),
            }],
            success: vec![TxnOp::Put(put("w1", 0, false))],
            ..Txn::default()
        };
        for (command, reads) in [
            (Command::Put(kept("w1")), &[3][..]),
            (Command::Put(kept("z")), &[]),
            (Command::Txn(compared("r1", "")), &[2]),
            (Command::Txn(compared("\0", "\0")), &[]),
        ] {
            let of = |caller| {
                let command = Box::new(command.clone());
                let checked = Command::Checked(Checked { caller, command });
                let reads = machine.value_reads([checked].iter()).into_iter();
                reads.map(|rev| rev.major.0).collect::<Vec<_>>()
            };
            assert_eq!(of(caller("u")), reads, "{command:?}");
            assert!(!of(caller("root")).is_empty(), "{command:?}");
            assert!(of(Caller::Nobody).is_empty(), "{command:?}");
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
