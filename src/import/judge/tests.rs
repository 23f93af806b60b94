//! Requests of an etcd's log that the state machine alone would judge otherwise than the etcd did.

use super::*;
use crate::{
    auth::{Change, change::Permission},
    kv::{
        command::{Compact, DeleteRange, GrantLease, RevokeLease, SetAlarm},
        index::Index,
        machine::LoadedState,
        records::{ReadError, Records},
    },
    types::{LogIndex, LogPosition, MemberId, Rev, Revision, Term},
};
use bytes::Bytes;

const NEW: Etcd = Etcd {
    may_be_3_5: false,
    nested_puts: None,
};

struct Nothing;

impl Records for Nothing {
    fn get(&self, rev: Rev) -> Result<Bytes, ReadError> {
        panic!("nothing is read, but {rev:?}")
    }
}

fn run(machine: &mut Machine, command: &Command) {
    let at = LogPosition::new(Term(1), LogIndex(1));
    let verdict = machine.apply(command, at, &Nothing, None);
    let verdict = verdict.expect("nothing is read");
    assert!(verdict.is_ok(), "{command:?}: {verdict:?}");
}

/// Authentication is off; `u` may write `w` to `x`, lease 1 has the key `w1`, lease 2 the key `z`, lease 3 none.
fn open() -> Machine {
    let mut machine = Machine::new(LoadedState::default(), Index::new().snapshot());
    for id in [1, 2, 3] {
        let (id, ttl_secs) = (LeaseId(id), 60);
        run(
            &mut machine,
            &Command::GrantLease(GrantLease { id, ttl_secs }),
        );
    }
    run(&mut machine, &Command::Put(put("w1", 1)));
    run(&mut machine, &Command::Put(put("z", 2)));
    let role = |user: &str, role: &str| Change::GrantRole {
        user: user.into(),
        role: role.into(),
    };
    let user = |name: &str| Change::AddUser {
        name: name.into(),
        password: None,
    };
    let permission = Permission {
        kind: Permission::WRITE,
        key: b"w".to_vec(),
        range_end: b"x".to_vec(),
    };
    for change in [
        user("root"),
        role("root", "root"),
        user("u"),
        Change::AddRole {
            name: "role".into(),
        },
        Change::GrantPermission {
            role: "role".into(),
            permission: Some(permission),
        },
        role("u", "role"),
    ] {
        run(&mut machine, &Command::Auth(change));
    }
    machine
}

/// The same with authentication on.
fn closed() -> Machine {
    let mut machine = open();
    run(&mut machine, &Command::Auth(Change::Enable));
    machine
}

fn raise(machine: &mut Machine, kind: AlarmKind) {
    let by_root = Command::Checked(Checked {
        caller: Caller::Node,
        command: Box::new(Command::SetAlarm(SetAlarm {
            member: MemberId(1),
            kind,
            raised: true,
        })),
    });
    run(machine, &by_root);
}

fn put(key: &'static str, lease: i64) -> Put {
    Put {
        key: key.into(),
        value: "v".into(),
        lease: LeaseId(lease),
        ..Put::default()
    }
}

fn txn(ops: Vec<TxnOp>) -> Txn {
    Txn {
        success: ops,
        ..Txn::default()
    }
}

fn by(user: &str, auth_revision: u64, command: Command) -> Asked {
    let user = user.to_owned();
    Asked {
        author: Author {
            user,
            auth_revision,
        },
        command,
    }
}

/// What a command of a user comes to, who knew the present auth revision.
fn judged(machine: &Machine, user: &str, command: Command) -> Result<Judged, EntryFault> {
    let revision = machine.auth().revision();
    judge(machine, NEW, by(user, revision, command))
}

#[track_caller]
fn assert_decided(result: Result<Judged, EntryFault>) {
    let judged = result.expect("it has one meaning");
    assert!(matches!(judged, Judged::Decide(_)), "{judged:?}");
}

#[track_caller]
fn assert_refused(result: Result<Judged, EntryFault>) {
    assert_eq!(result.expect("it has one meaning"), Judged::Refused);
}

#[test]
fn without_authentication_everyone_may_do_everything() {
    let machine = open();
    let command = Command::Put(put("z", 2));
    let judged = judge(&machine, NEW, by("", 0, command.clone()));
    assert_eq!(judged.unwrap(), Judged::Decide(command));
}

#[test]
fn users_have_their_rights_as_of_the_present_auth_revision() {
    let machine = closed();
    let now = machine.auth().revision();
    let write = || Command::Put(put("w2", 0));
    assert_decided(judge(&machine, NEW, by("u", now, write())));
    assert_decided(judge(&machine, NEW, by("root", now, write())));
    for (user, revision) in [("u", now - 1), ("root", now - 1), ("", 0), ("gone", now)] {
        let asked = by(user, revision, write());
        assert_refused(judge(&machine, NEW, asked));
    }
    assert_refused(judged(&machine, "u", Command::Put(put("z", 0))));
    let leased = Command::Put(put("w2", 2));
    assert_refused(judged(&machine, "u", leased));
    let delete = |range_end: &'static str| {
        Command::DeleteRange(DeleteRange {
            key: "w".into(),
            range_end: range_end.into(),
            prev_kv: false,
        })
    };
    assert_decided(judged(&machine, "u", delete("x")));
    assert_refused(judged(&machine, "u", delete("y")));
}

#[test]
fn changes_of_users_need_root_whatever_the_revision() {
    let machine = closed();
    let change = || {
        Command::Auth(Change::AddRole {
            name: "other".into(),
        })
    };
    assert_decided(judge(&machine, NEW, by("root", 1, change())));
    assert_refused(judged(&machine, "u", change()));
    assert_refused(judge(&machine, NEW, by("", 0, change())));
}

#[test]
fn leases_and_compactions_were_checked_before_the_log() {
    let machine = closed();
    let id = LeaseId(9);
    let revision = Revision(2);
    for command in [
        Command::GrantLease(GrantLease { id, ttl_secs: 60 }),
        Command::Compact(Compact { revision }),
        Command::RevokeLease(RevokeLease { id: LeaseId(3) }),
        Command::RevokeLease(RevokeLease { id: LeaseId(99) }),
        Command::Txn(Txn::default()),
    ] {
        assert_decided(judge(&machine, NEW, by("", 0, command)));
    }
    let revoke = |id| Command::RevokeLease(RevokeLease { id: LeaseId(id) });
    assert_refused(judge(&machine, NEW, by("", 0, revoke(1))));
    assert_decided(judged(&machine, "u", revoke(1)));
    assert_refused(judged(&machine, "u", revoke(2)));
    assert_decided(judged(&machine, "root", revoke(2)));
}

#[test]
fn what_versions_check_differently_in_a_transaction_is_not_guessed() {
    let machine = closed();
    let now = machine.auth().revision();
    let nested = || TxnOp::Txn(txn(vec![TxnOp::Put(put("z", 0))]));
    let previous = TxnOp::Put(Put {
        prev_kv: true,
        ..put("w1", 0)
    });
    for ops in [
        vec![nested()],
        vec![TxnOp::Put(put("w2", 0)), nested()],
        vec![previous],
        vec![TxnOp::Put(put("w2", 2))],
    ] {
        let command = Command::Txn(txn(ops));
        let unsure = judged(&machine, "u", command.clone());
        assert!(
            matches!(&unsure, Err(EntryFault::TxnPermissions { user }) if user == "u"),
            "{unsure:?}"
        );
        assert_decided(judge(&machine, NEW, by("root", now, command)));
    }
    let outer = Command::Txn(txn(vec![TxnOp::Put(put("z", 0)), nested()]));
    assert_refused(judged(&machine, "u", outer));
}

#[test]
fn puts_that_are_only_nested_may_pass_the_alarm() {
    let mut machine = open();
    let nested = Command::Txn(txn(vec![TxnOp::Txn(txn(vec![TxnOp::Put(put("k", 0))]))]));
    assert_decided(judge(&machine, NEW, by("", 0, nested.clone())));
    raise(&mut machine, AlarmKind::NoSpace);
    let unsure = judge(&machine, NEW, by("", 0, nested.clone()));
    let text = unsure.unwrap_err().to_string();
    assert!(text.contains("--nested-puts-passed"), "{text}");
    let told = |nested_puts| {
        let etcd = Etcd {
            nested_puts: Some(nested_puts),
            ..NEW
        };
        judge(&machine, etcd, by("", 0, nested.clone())).unwrap()
    };
    assert_eq!(told(NestedPuts::Passed), Judged::Passes(nested.clone()));
    assert_eq!(told(NestedPuts::Refused), Judged::Refused);
    // The state machine refuses these itself.
    let outer = Command::Txn(txn(vec![
        TxnOp::Put(put("j", 0)),
        TxnOp::Txn(txn(vec![TxnOp::Put(put("k", 0))])),
    ]));
    assert_decided(judge(&machine, NEW, by("", 0, outer)));
}

#[test]
fn an_etcd_up_to_3_5_is_not_trusted_while_alarms_are_raised() {
    let old = Etcd {
        may_be_3_5: true,
        ..NEW
    };
    let mut machine = closed();
    let denied = || by("u", machine_revision(), Command::Put(put("z", 0)));
    assert_refused(judge(&machine, old, denied()));
    raise(&mut machine, AlarmKind::NoSpace);
    let unsure = judge(&machine, old, denied());
    assert!(
        matches!(unsure, Err(EntryFault::AlarmPermissions { .. })),
        "{unsure:?}"
    );
    assert_refused(judge(&machine, NEW, denied()));
    raise(&mut machine, AlarmKind::Corrupt);
    let write = || by("root", machine_revision(), Command::Put(put("w", 0)));
    let unsure = judge(&machine, old, write());
    assert!(
        matches!(unsure, Err(EntryFault::CorruptUnsure)),
        "{unsure:?}"
    );
    assert_decided(judge(&machine, NEW, write()));
}

/// The auth revision of every machine here.
fn machine_revision() -> u64 {
    closed().auth().revision()
}
