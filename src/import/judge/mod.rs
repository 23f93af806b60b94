//! Whether an etcd carried a request out, where the state machine alone does not say: it knows tokens, and an etcd's log has the
//! name and the auth revision of who asked; and versions of etcd judge some requests differently.
//!
//! etcd: `authApplierV3`, `applierV3Capped` and `applierV3Corrupt`. A request of keys with an older auth revision than the
//! present one is refused; changes of users need the role root, whatever the revision; grants of leases, compactions and alarms
//! need nothing here, since they were checked before they entered the log.

use super::{
    error::EntryFault,
    translate::{Asked, Author},
};
use crate::{
    auth::{AuthState, Caller, caller::UserRef},
    kv::{
        authorize::{allow_reads, authorize},
        command::{AlarmKind, Checked, Command, Put, Txn, TxnOp},
        machine::Machine,
    },
    types::LeaseId,
};
use std::sync::Arc;

/// What etcds up to 3.5.32, 3.6.13 and 3.7.0 do, and later ones do not, is to let a transaction pass the alarm NOSPACE if all its
/// puts are in nested transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedPuts {
    Passed,
    Refused,
}

/// What is known of the etcd that carried the log out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Etcd {
    /// Its version was below 3.6, or may have been.
    pub(super) may_be_3_5: bool,
    pub(super) nested_puts: Option<NestedPuts>,
}

/// What becomes of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// The etcd refused it: it changes nothing.
    Refused,
    /// The state machine decides.
    Decide(Command),
    /// The same, without regard to the alarm NOSPACE.
    Passes(Command),
}

/// What a request needs while authentication is on.
enum Need {
    Nothing,
    /// Rights to keys, of a user as of the present auth revision.
    Rights,
    /// The role root.
    Root,
}

/// Judges the next command of the log in the present state.
pub(super) fn judge(machine: &Machine, etcd: Etcd, asked: Asked) -> Result<Judged, EntryFault> {
    let Asked { author, command } = asked;
    let raised = |kind| machine.alarms().iter().any(|(_, raised)| *raised == kind);
    let exempt = matches!(command, Command::SetAlarm(_) | Command::Auth(_));
    if raised(AlarmKind::Corrupt) && etcd.may_be_3_5 && !exempt {
        return Err(EntryFault::CorruptUnsure);
    }
    let command = if machine.auth().is_enabled() {
        let Some(permitted) = permit(machine, etcd, &author, command)? else {
            return Ok(Judged::Refused);
        };
        permitted
    } else {
        command
    };
    if raised(AlarmKind::NoSpace) && has_only_nested_puts(command.unchecked()) {
        return match etcd.nested_puts {
            Some(NestedPuts::Passed) => Ok(Judged::Passes(command)),
            Some(NestedPuts::Refused) => Ok(Judged::Refused),
            None => Err(EntryFault::NestedPuts),
        };
    }
    Ok(Judged::Decide(command))
}

/// The command on behalf of its author; `None` if it is refused. Authentication is on.
fn permit(
    machine: &Machine,
    etcd: Etcd,
    author: &Author,
    command: Command,
) -> Result<Option<Command>, EntryFault> {
    let (auth, leases) = (machine.auth(), machine.leases());
    let caller = match need(machine, &command) {
        Need::Nothing => Caller::Node,
        // A revision of 0 is nobody's.
        Need::Rights if author.auth_revision < auth.revision() => Caller::Nobody,
        Need::Root | Need::Rights => user(author),
    };
    let by = caller.clone();
    let command = Command::Checked(Checked {
        caller,
        command: Box::new(command),
    });
    let permitted = authorize(auth, leases, &command).is_ok();
    if !permitted && etcd.may_be_3_5 && !machine.alarms().is_empty() {
        let user = author.user.clone();
        return Err(EntryFault::AlarmPermissions { user });
    }
    if let (false, Command::Txn(txn)) = (permitted, command.unchecked())
        && was_once_permitted(auth, &by, txn)
    {
        let user = author.user.clone();
        return Err(EntryFault::TxnPermissions { user });
    }
    Ok(permitted.then_some(command))
}

fn user(author: &Author) -> Caller {
    if author.user.is_empty() {
        return Caller::Nobody;
    }
    Caller::User(Arc::new(UserRef {
        name: author.user.as_str().into(),
        added: 0,
        token: 0,
    }))
}

fn need(machine: &Machine, command: &Command) -> Need {
    match command {
        Command::Txn(txn) if is_empty(txn) => Need::Nothing,
        Command::Put(_) | Command::DeleteRange(_) | Command::Txn(_) => Need::Rights,
        Command::RevokeLease(revoke) => {
            // etcd: it looks at each key of the lease.
            let lease = machine.leases().get(revoke.id);
            if lease.is_some_and(|lease| !lease.keys.is_empty()) {
                Need::Rights
            } else {
                Need::Nothing
            }
        }
        Command::Auth(_) => Need::Root,
        Command::Compact(_)
        | Command::GrantLease(_)
        | Command::SetAlarm(_)
        | Command::ExpireLeases(_)
        | Command::CheckpointLeases(_)
        | Command::RenewLeases(_)
        | Command::Checked(_) => Need::Nothing,
    }
}

fn is_empty(txn: &Txn) -> bool {
    txn.compares.is_empty() && txn.branches().next().is_none()
}

/// Whether etcds before 2026 let a transaction pass.
fn was_once_permitted(auth: &AuthState, caller: &Caller, txn: &Txn) -> bool {
    let checked = as_once_checked(txn);
    is_empty(&checked) || allow_reads(auth, caller, &checked).is_ok()
}

/// What they checked of it: neither nested ones, nor leases, nor previous values of puts.
fn as_once_checked(txn: &Txn) -> Txn {
    Txn {
        compares: txn.compares.clone(),
        success: ops_once_checked(&txn.success),
        failure: ops_once_checked(&txn.failure),
    }
}

fn ops_once_checked(ops: &[TxnOp]) -> Vec<TxnOp> {
    let checked = ops.iter().filter_map(|op| match op {
        TxnOp::Put(put) => Some(TxnOp::Put(Put {
            prev_kv: false,
            lease: LeaseId(0),
            ..put.clone()
        })),
        TxnOp::Range(_) | TxnOp::DeleteRange(_) => Some(op.clone()),
        TxnOp::Txn(_) | TxnOp::Empty => None,
    });
    checked.collect()
}

fn has_only_nested_puts(command: &Command) -> bool {
    let Command::Txn(txn) = command else {
        return false;
    };
    txn.puts() && !txn.branches().any(|op| matches!(op, TxnOp::Put(_)))
}

#[cfg(test)]
mod tests;
