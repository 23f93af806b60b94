//! From an entry of an etcd's log to a command of the state machine: a pure function, and a total one. A request without a
//! translation is an error that names it. `docs/import.md` has the table.
//!
//! What a command comes to is not decided here: that depends on the state, and the state machine has the rules.

use super::{
    error::EntryFault,
    password::{self, Place},
    requests,
};
use crate::{
    auth::{Change, change::Permission},
    kv::{
        KvError, check,
        command::{AlarmKind as Kind, Command, Compact, GrantLease, RevokeLease, SetAlarm},
    },
    types::{LeaseId, MemberId, Revision},
};
use quorate_etcd_files::messages::{
    AlarmAction, AlarmKind, AlarmRequest, Command as Content, Entry, InternalRaftRequest,
    LeaseGrantRequest, OPERATIONS_MAX, RequestHeader,
};

/// etcd: the longest time to live of a lease, in seconds.
const LEASE_TTL_MAX: i64 = 9_000_000_000;

/// What the entries themselves do not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// The etcd's cluster.
    pub(super) cluster: u64,
    /// The shortest time to live of a lease, in seconds, which followed from the etcd's election timeout.
    pub(super) lease_ttl_min: i64,
}

/// A command, and who asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) author: Author,
    pub(super) command: Command,
}

/// Who asks, as of the request's header. Without one, and while authentication is off, it is nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Author {
    pub(super) user: String,
    /// The auth revision when the member that proposed the request knew the user; 0 for nobody.
    pub(super) auth_revision: u64,
}

impl Author {
    fn of(header: RequestHeader) -> Self {
        Self {
            user: header.username,
            auth_revision: header.auth_revision,
        }
    }
}

/// The command that an entry is; `None` if it changes nothing that is imported.
pub(super) fn translate(entry: &Entry, settings: &Settings) -> Result<Option<Asked>, EntryFault> {
    let request = match Content::decode(entry)? {
        // A leader's first entry; keys of the v2 API, and the members' attributes; changes of the members. The new cluster has
        // members of its own.
        Content::Nothing | Content::V2(_) | Content::Change(_) => return Ok(None),
        Content::ChangeV2(_) => return Err(EntryFault::ChangeV2),
        Content::Request(request) => *request,
    };
    let place = Place {
        cluster: settings.cluster,
        term: entry.term,
        index: entry.index,
    };
    let mut reading = Reading {
        rest: request,
        field: None,
        command: None,
    };
    reading.keys()?;
    reading.leases(settings)?;
    reading.users(place)?;
    reading.roles()?;
    reading.without_effect()?;
    reading.finish()
}

/// A request under translation: each step takes the parts that it knows.
struct Reading {
    /// What nobody has taken yet.
    rest: InternalRaftRequest,
    /// The part that was found, with its number.
    field: Option<&'static str>,
    command: Option<Command>,
}

impl Reading {
    /// Translates a part, if it is there. One request has one part.
    fn take<T>(
        &mut self,
        field: &'static str,
        part: Option<T>,
        translate: impl FnOnce(T) -> Result<Option<Command>, EntryFault>,
    ) -> Result<(), EntryFault> {
        let Some(part) = part else { return Ok(()) };
        if let Some(first) = self.field.replace(field) {
            let second = field;
            return Err(EntryFault::AsksTwice { first, second });
        }
        self.command = translate(part)?;
        Ok(())
    }

    fn keys(&mut self) -> Result<(), EntryFault> {
        let field = "put (4)";
        let put = self.rest.put.take();
        self.take(field, put, |put| {
            let put = requests::put(put);
            possible(field, check::put(&put))?;
            Ok(Some(Command::Put(put)))
        })?;
        let field = "delete_range (5)";
        let delete = self.rest.delete_range.take();
        self.take(field, delete, |delete| {
            let delete = requests::delete_range(delete);
            possible(field, check::delete_range(&delete))?;
            Ok(Some(Command::DeleteRange(delete)))
        })?;
        let field = "txn (6)";
        let txn = self.rest.txn.take();
        self.take(field, txn, |txn| {
            let txn = requests::txn(txn);
            // etcd: --max-txn-ops is not in the data.
            possible(field, check::txn(&txn, OPERATIONS_MAX))?;
            Ok(Some(Command::Txn(txn)))
        })?;
        let compaction = self.rest.compaction.take();
        self.take("compaction (7)", compaction, |compaction| {
            // `physical` only delays the answer.
            let revision = Revision(compaction.revision);
            Ok(Some(Command::Compact(Compact { revision })))
        })
    }

    fn leases(&mut self, settings: &Settings) -> Result<(), EntryFault> {
        let grant = self.rest.lease_grant.take();
        let ttl_min = settings.lease_ttl_min;
        self.take("lease_grant (8)", grant, |grant| {
            Ok(lease_grant(grant, ttl_min))
        })?;
        let revoke = self.rest.lease_revoke.take();
        self.take("lease_revoke (9)", revoke, |revoke| {
            let id = LeaseId(revoke.id);
            Ok(Some(Command::RevokeLease(RevokeLease { id })))
        })?;
        let alarm = self.rest.alarm.take();
        self.take("alarm (10)", alarm, |alarm| set_alarm(&alarm))
    }

    fn users(&mut self, place: Place) -> Result<(), EntryFault> {
        let enable = self.rest.auth_enable.take();
        self.take("auth_enable (1000)", enable, |_| auth(Change::Enable))?;
        let disable = self.rest.auth_disable.take();
        self.take("auth_disable (1011)", disable, |_| auth(Change::Disable))?;
        let field = "user_add (1100)";
        let add = self.rest.auth_user_add.take();
        self.take(field, add, |add| {
            let no_password = add.options.is_some_and(|options| options.no_password);
            let hash =
                || password::hash(&add.password, &add.hashed_password, field, &add.name, place);
            let password = (!no_password).then(hash).transpose()?;
            let name = add.name;
            auth(Change::AddUser { name, password })
        })?;
        let delete = self.rest.auth_user_delete.take();
        self.take("user_delete (1101)", delete, |delete| {
            auth(Change::DeleteUser { name: delete.name })
        })?;
        let field = "user_change_password (1103)";
        let change = self.rest.auth_user_change_password.take();
        self.take(field, change, |change| {
            let (plain, hashed) = (&change.password, &change.hashed_password);
            let password = password::hash(plain, hashed, field, &change.name, place)?;
            let name = change.name;
            auth(Change::ChangePassword { name, password })
        })?;
        let grant = self.rest.auth_user_grant_role.take();
        self.take("user_grant_role (1104)", grant, |grant| {
            let (user, role) = (grant.user, grant.role);
            auth(Change::GrantRole { user, role })
        })?;
        let revoke = self.rest.auth_user_revoke_role.take();
        self.take("user_revoke_role (1105)", revoke, |revoke| {
            let (user, role) = (revoke.name, revoke.role);
            auth(Change::RevokeRole { user, role })
        })
    }

    fn roles(&mut self) -> Result<(), EntryFault> {
        let add = self.rest.auth_role_add.take();
        self.take("role_add (1200)", add, |add| {
            auth(Change::AddRole { name: add.name })
        })?;
        let delete = self.rest.auth_role_delete.take();
        self.take("role_delete (1201)", delete, |delete| {
            auth(Change::DeleteRole { name: delete.role })
        })?;
        let grant = self.rest.auth_role_grant_permission.take();
        self.take("role_grant_permission (1203)", grant, |grant| {
            let permission = grant.permission.map(|permission| Permission {
                kind: permission.kind,
                key: permission.key.into(),
                range_end: permission.range_end.into(),
            });
            let role = grant.name;
            if permission.as_ref().is_some_and(|given| !has_range(given)) {
                return Err(EntryFault::PermissionRange { role });
            }
            auth(Change::GrantPermission { role, permission })
        })?;
        let revoke = self.rest.auth_role_revoke_permission.take();
        self.take("role_revoke_permission (1204)", revoke, |revoke| {
            auth(Change::RevokePermission {
                role: revoke.role,
                key: revoke.key.into(),
                range_end: revoke.range_end.into(),
            })
        })
    }

    /// What changes nothing, and what is about the etcd's own members and versions.
    fn without_effect(&mut self) -> Result<(), EntryFault> {
        let rest = &mut self.rest;
        let parts = [
            ("v2 (2)", rest.v2.take().is_some()),
            ("range (3)", rest.range.take().is_some()),
            (
                "lease_checkpoint (11)",
                rest.lease_checkpoint.take().is_some(),
            ),
            ("authenticate (1012)", rest.authenticate.take().is_some()),
            ("auth_status (1013)", rest.auth_status.take().is_some()),
            ("user_get (1102)", rest.auth_user_get.take().is_some()),
            ("user_list (1106)", rest.auth_user_list.take().is_some()),
            ("role_list (1107)", rest.auth_role_list.take().is_some()),
            ("role_get (1202)", rest.auth_role_get.take().is_some()),
            (
                "cluster_version_set (1300)",
                rest.cluster_version_set.take().is_some(),
            ),
            (
                "cluster_member_attr_set (1301)",
                rest.cluster_member_attr_set.take().is_some(),
            ),
            (
                "downgrade_info_set (1302)",
                rest.downgrade_info_set.take().is_some(),
            ),
            (
                "downgrade_version_test (9900)",
                rest.downgrade_version_test.take().is_some(),
            ),
        ];
        parts
            .into_iter()
            .try_for_each(|(field, there)| self.take(field, there.then_some(()), |()| Ok(None)))
    }

    fn finish(mut self) -> Result<Option<Asked>, EntryFault> {
        let header = self.rest.header.take();
        let author = header.map(Author::of).unwrap_or_default();
        self.rest.id = 0;
        let field = self.field.unwrap_or("its number");
        if self.rest != InternalRaftRequest::default() {
            return Err(EntryFault::NotTranslated { field });
        }
        if self.field.is_none() {
            return Err(EntryFault::AsksNothing);
        }
        Ok(self.command.map(|command| Asked { author, command }))
    }
}

fn possible(field: &'static str, checked: Result<(), KvError>) -> Result<(), EntryFault> {
    checked.map_err(|source| EntryFault::Impossible { field, source })
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "it ends the translation of a part, which may fail"
)]
fn auth(change: Change) -> Result<Option<Command>, EntryFault> {
    Ok(Some(Command::Auth(change)))
}

/// etcd: refused without an id or with too long a time; raised to the minimum.
fn lease_grant(grant: LeaseGrantRequest, ttl_min: i64) -> Option<Command> {
    let granted = grant.id != 0 && grant.ttl <= LEASE_TTL_MAX;
    granted.then_some(Command::GrantLease(GrantLease {
        id: LeaseId(grant.id),
        ttl_secs: grant.ttl.max(ttl_min),
    }))
}

fn set_alarm(request: &AlarmRequest) -> Result<Option<Command>, EntryFault> {
    let unknown = |field, number| EntryFault::UnknownNumber { field, number };
    let action = AlarmAction::try_from(request.action);
    let raised = match action.map_err(|_| unknown("alarm's action", request.action))? {
        AlarmAction::Get => return Ok(None),
        AlarmAction::Activate => true,
        AlarmAction::Deactivate => false,
    };
    let kind = AlarmKind::try_from(request.alarm);
    let kind = match kind.map_err(|_| unknown("alarm's kind", request.alarm))? {
        AlarmKind::None => return Ok(None),
        AlarmKind::NoSpace => Kind::NoSpace,
        AlarmKind::Corrupt => Kind::Corrupt,
    };
    Ok(Some(Command::SetAlarm(SetAlarm {
        member: MemberId(request.member_id),
        kind,
        raised,
    })))
}

/// etcd: as later versions check it.
fn has_range(permission: &Permission) -> bool {
    let (key, end) = (&permission.key, &permission.range_end);
    !key.is_empty() && (end.is_empty() || *end == [0] || key < end)
}

#[cfg(test)]
mod tests;
