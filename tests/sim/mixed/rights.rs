//! Judges what users did by the log: nobody may act after the entry that took the right away.
//!
//! The committed log, as it was sent between members, is applied to a model of users, roles and tokens that shares nothing with
//! the crate's. A user's write is in the history exactly if the model allows it at its place in the log. An answer to a read, and
//! an event of a watch, must be allowed in a state that the member can have had: the revision of an answer is between two writes
//! whose places are known. In the end all members have the model's users, roles, permissions, tokens and auth revision.

use super::{SharedState, users::Read};
use crate::{
    cluster::{Cluster, member},
    history::{Event, Revision, Value},
};
use quorate::internals::{
    Inspect,
    actors::{consensus::PROPOSAL_HEADER_BYTES, requests::Published},
    auth::{AuthState, Caller, Change, change::Permission},
    codec,
    kv::command::{Command, DeleteRange, Put, Txn, TxnOp},
    types::{EntryKind, LogPosition},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

const ROOT: &str = "root";
/// The log may begin with so many entries that every member had from the beginning.
const FIRST_ENTRIES: u64 = 4;

/// Sets of keys: of `u0`, what is between `u0` and `u1`, `u1`, and so on; the last bits stand for everything after them.
type KeySet = u32;

/// The keys of a range as requests and permissions name it.
fn keys(key: &[u8], range_end: &[u8]) -> KeySet {
    let bit = |key: &[u8]| match key {
        [b'u', digit] if digit.is_ascii_digit() => u32::from(digit - b'0') * 2,
        other => panic!("{other:?} is no user's key"),
    };
    let from = KeySet::MAX << bit(key);
    match range_end {
        [] => 1 << bit(key),
        [0] => from,
        end => from & !(KeySet::MAX << bit(end)),
    }
}

/// A user in the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct User {
    added: u64,
    password_set: u64,
    roles: BTreeSet<String>,
}

/// A role's permissions: the kind, by key and range end.
type Permissions = BTreeMap<(Vec<u8>, Vec<u8>), i32>;

/// Users, roles and tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Permissions>,
    /// The user of each token, and the index of its last renewal.
    tokens: BTreeMap<u64, (String, u64)>,
}

impl Model {
    fn new() -> Self {
        Self {
            enabled: false,
            revision: 1,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            tokens: BTreeMap::new(),
        }
    }

    /// Applies an accepted change. One that is refused for what it is changes nothing.
    fn apply(&mut self, change: &Change, index: u64) {
        match change {
            Change::IssueToken {
                user, password_set, ..
            } => {
                let known = self.users.get(user);
                if self.enabled && known.is_some_and(|it| it.password_set == *password_set) {
                    self.tokens.insert(index, (user.clone(), index));
                }
            }
            Change::RenewTokens { tokens } => {
                for token in tokens {
                    if let Some((_, renewed)) = self.tokens.get_mut(token) {
                        *renewed = index;
                    }
                }
            }
            Change::ExpireTokens { tokens } => {
                for mark in tokens {
                    let token = self.tokens.get(&mark.token);
                    if token.is_some_and(|(_, renewed)| *renewed == mark.renewed) {
                        self.tokens.remove(&mark.token);
                    }
                }
            }
            Change::Enable => {
                let root = self.users.get(ROOT);
                self.enabled |= root.is_some_and(|root| root.roles.contains(ROOT));
            }
            other => {
                if self.administer(other).is_some() {
                    self.revision += 1;
                }
            }
        }
    }

    /// Carries out a change that counts in the auth revision; `None` if it changes nothing.
    fn administer(&mut self, change: &Change) -> Option<()> {
        let next = self.revision + 1;
        match change {
            Change::Disable => {
                if !std::mem::take(&mut self.enabled) {
                    return None;
                }
                self.tokens.clear();
            }
            Change::AddUser { name, .. } => {
                if self.users.contains_key(name) {
                    return None;
                }
                let user = User {
                    added: next,
                    password_set: next,
                    roles: BTreeSet::new(),
                };
                self.users.insert(name.clone(), user);
            }
            Change::DeleteUser { name } => {
                self.users.remove(name)?;
                self.tokens.retain(|_, (user, _)| user != name);
            }
            Change::ChangePassword { name, .. } => {
                self.users.get_mut(name)?.password_set = next;
                self.tokens.retain(|_, (user, _)| user != name);
            }
            Change::GrantRole { user, role } => {
                let known = role == ROOT || self.roles.contains_key(role);
                let new = known && self.users.get_mut(user)?.roles.insert(role.clone());
                new.then_some(())?;
            }
            Change::RevokeRole { user, role } => {
                let had = self.users.get_mut(user)?.roles.remove(role);
                had.then_some(())?;
            }
            Change::AddRole { name } => {
                if self.roles.contains_key(name) {
                    return None;
                }
                self.roles.insert(name.clone(), BTreeMap::new());
            }
            Change::DeleteRole { name } => {
                self.roles.remove(name)?;
                for user in self.users.values_mut() {
                    user.roles.remove(name);
                }
            }
            Change::GrantPermission { role, permission } => {
                let new = permission.clone()?;
                let role = self.roles.get_mut(role)?;
                role.insert((new.key, new.range_end), new.kind);
            }
            Change::RevokePermission {
                role,
                key,
                range_end,
            } => {
                let role = self.roles.get_mut(role)?;
                role.remove(&(key.clone(), range_end.clone()))?;
            }
            Change::Enable
            | Change::IssueToken { .. }
            | Change::RenewTokens { .. }
            | Change::ExpireTokens { .. } => return None,
        }
        Some(())
    }

    /// The keys that a caller may read, and those that it may write.
    fn rights(&self, caller: &Caller) -> (KeySet, KeySet) {
        let all = (KeySet::MAX, KeySet::MAX);
        if !self.enabled {
            return all;
        }
        match caller {
            Caller::Node => all,
            // No member of a simulated cluster has keys for signed tokens.
            Caller::Nobody | Caller::BadToken | Caller::Jwt(_) => (0, 0),
            Caller::User(user) => {
                let token = self.tokens.get(&user.token);
                if token.is_some_and(|(name, _)| **name == *user.name) {
                    self.granted(&user.name)
                } else {
                    (0, 0)
                }
            }
        }
    }

    fn granted(&self, name: &str) -> (KeySet, KeySet) {
        let roles = self.users.get(name).map(|user| &user.roles);
        let (mut read, mut write) = (0, 0);
        for role in roles.into_iter().flatten() {
            if role == ROOT {
                return (KeySet::MAX, KeySet::MAX);
            }
            let permissions = self.roles.get(role).into_iter().flatten();
            for ((key, range_end), kind) in permissions {
                let granted = keys(key, range_end);
                if [Permission::READ, Permission::READ_WRITE].contains(kind) {
                    read |= granted;
                }
                if [Permission::WRITE, Permission::READ_WRITE].contains(kind) {
                    write |= granted;
                }
            }
        }
        (read, write)
    }

    /// Whether a caller may do something that needs these keys.
    fn allows(&self, caller: &Caller, (read, write): (KeySet, KeySet)) -> bool {
        let (may_read, may_write) = self.rights(caller);
        read & !may_read == 0 && write & !may_write == 0
    }

    /// Whether a caller may change users.
    fn is_root(&self, caller: &Caller) -> bool {
        let root = match caller {
            Caller::Node => true,
            Caller::Nobody | Caller::BadToken | Caller::Jwt(_) => false,
            Caller::User(user) => {
                let known = self.tokens.contains_key(&user.token);
                known && *user.name == *ROOT && self.users[ROOT].roles.contains(ROOT)
            }
        };
        root || !self.enabled
    }

    /// Whether a user's watch may go on: it outlives its token.
    fn may_watch(&self, caller: &Caller, needs: KeySet) -> bool {
        let Caller::User(user) = caller else {
            return !self.enabled;
        };
        let known = self.users.get(&*user.name);
        let same = known.is_some_and(|known| known.added == user.added);
        !self.enabled || same && needs & !self.granted(&user.name).0 == 0
    }

    /// Panics if a member's state is another.
    fn assert_is(&self, found: &AuthState, name: &str) {
        assert_eq!(
            (found.is_enabled(), found.revision()),
            (self.enabled, self.revision),
            "{name}: authentication on, and the auth revision"
        );
        let users: BTreeMap<String, User> = found
            .users()
            .map(|name| {
                let user = found.user(name).unwrap();
                let user = User {
                    added: user.added(),
                    password_set: user.password_set(),
                    roles: user.roles().iter().cloned().collect(),
                };
                (name.to_owned(), user)
            })
            .collect();
        assert_eq!(users, self.users, "{name}'s users");
        let roles: BTreeMap<String, Permissions> = found
            .roles()
            .map(|role| {
                let all = found.permissions(role).unwrap().into_iter();
                let all = all.map(|it| ((it.key, it.range_end), it.kind));
                (role.to_owned(), all.collect())
            })
            .collect();
        assert_eq!(roles, self.roles, "{name}'s roles");
        let tokens: BTreeMap<u64, (String, u64)> = found
            .tokens()
            .iter()
            .map(|it| (it.number, (it.user.to_string(), it.renewed)))
            .collect();
        assert_eq!(tokens, self.tokens, "{name}'s tokens");
    }
}

/// The keys that a command reads and writes, wherever they stand in it.
fn needs(command: &Command) -> (KeySet, KeySet) {
    match command {
        Command::Put(put) => of_put(put),
        Command::DeleteRange(delete) => of_delete(delete),
        Command::Txn(txn) => of_txn(txn),
        other => panic!("no user sends {other:?}"),
    }
}

fn of_put(put: &Put) -> (KeySet, KeySet) {
    let key = keys(&put.key, &[]);
    (if put.prev_kv { key } else { 0 }, key)
}

fn of_delete(delete: &DeleteRange) -> (KeySet, KeySet) {
    let range = keys(&delete.key, &delete.range_end);
    (if delete.prev_kv { range } else { 0 }, range)
}

fn of_txn(txn: &Txn) -> (KeySet, KeySet) {
    let compares = txn.compares.iter();
    let compares = compares.map(|it| (keys(&it.key, &it.range_end), 0));
    let ops = txn.success.iter().chain(&txn.failure).map(|op| match op {
        TxnOp::Range(range) => (keys(&range.key, &range.range_end), 0),
        TxnOp::Put(put) => of_put(put),
        TxnOp::DeleteRange(delete) => of_delete(delete),
        TxnOp::Txn(txn) => of_txn(txn),
        TxnOp::Empty => (0, 0),
    });
    let both = |sum: (KeySet, KeySet), one: (KeySet, KeySet)| (sum.0 | one.0, sum.1 | one.1);
    compares.chain(ops).fold((0, 0), both)
}

/// The values that a command writes, whichever branches run.
fn values(command: &Command) -> Vec<Value> {
    fn of(ops: &mut dyn Iterator<Item = &TxnOp>, found: &mut Vec<Value>) {
        for op in ops {
            match op {
                TxnOp::Put(put) => found.push(put.value.0.clone()),
                TxnOp::Txn(txn) => of(&mut txn.success.iter().chain(&txn.failure), found),
                TxnOp::Range(_) | TxnOp::DeleteRange(_) | TxnOp::Empty => {}
            }
        }
    }
    let mut found = Vec::new();
    match command {
        Command::Put(put) => found.push(put.value.0.clone()),
        Command::Txn(txn) => of(&mut txn.success.iter().chain(&txn.failure), &mut found),
        _ => {}
    }
    found
}

/// The states of the model, each from the entry on that made it, and places of revisions in the log.
struct Timeline {
    states: Vec<(u64, Model)>,
    /// Entries that made a revision, ascending in both; not all of them.
    places: Vec<(u64, Revision)>,
}

impl Timeline {
    /// The last entry that is known to be at or before a revision's.
    fn least(&self, revision: Revision) -> u64 {
        let after = self.places.partition_point(|(_, made)| *made <= revision);
        after.checked_sub(1).map_or(0, |at| self.places[at].0)
    }

    /// The last entry that a state with this revision as its newest can have applied.
    fn most(&self, revision: Revision) -> u64 {
        let after = self.places.partition_point(|(_, made)| *made <= revision);
        self.places
            .get(after)
            .map_or(u64::MAX, |(index, _)| index - 1)
    }

    /// The states that were there after some entry from `from` to `to`.
    fn between(&self, from: u64, to: u64) -> impl Iterator<Item = &Model> {
        let first = self.states.partition_point(|(since, _)| *since <= from);
        let states = self.states[first.saturating_sub(1)..].iter();
        states
            .take_while(move |(since, _)| *since <= to)
            .map(|(_, state)| state)
    }
}

/// Checks all that users did. `cluster` has converged.
pub(super) fn judge(shared: &SharedState, cluster: &Cluster) {
    if shared.alone {
        // A cluster of one member sends no entries.
        return;
    }
    let views: Vec<Arc<Published>> = (0..cluster.nodes.len())
        .map(|slot| {
            let requests = cluster.requests(slot).expect("every member runs");
            requests.published()
        })
        .collect();
    let newest = views.iter().max_by_key(|view| view.applied.index);
    let timeline = replay(shared, cluster, newest.expect("there are members").applied);
    for (slot, view) in views.iter().enumerate() {
        let applied = view.applied.index.0;
        let expected = timeline.between(applied, applied).last();
        let expected = expected.expect("there is the first state");
        expected.assert_is(&view.auth, &member(slot).name);
    }
    for read in &shared.users.reads {
        check_read(read, &timeline);
    }
    for watch in &shared.users.watches {
        let needs = keys(&watch.key, &watch.range_end);
        let created = watch.created_at;
        let to = timeline.most(created).min(watch.through);
        let allowed = |from: u64, to: u64| {
            let mut states = timeline.between(from, to);
            states.any(|state| state.may_watch(&watch.caller, needs))
        };
        assert!(
            allowed(timeline.least(created), to),
            "a watch was created that its user may not have: {watch:?}"
        );
        for (revision, through) in watch.events.iter().filter(|(made, _)| *made > created) {
            assert!(
                allowed(timeline.least(*revision), *through),
                "revision {revision} reached a watch whose user had lost the right: {watch:?}"
            );
        }
    }
}

fn check_read(read: &Read, timeline: &Timeline) {
    let needs = (keys(&read.range.key, &read.range.range_end), 0);
    let linearizable = !read.range.serializable;
    let after = if linearizable { read.after } else { 0 };
    if let Some(revision) = read.revision {
        let from = timeline.least(revision).max(after);
        let to = timeline.most(revision).min(read.through);
        let mut states = timeline.between(from, to);
        assert!(
            states.any(|state| state.allows(&read.caller, needs)),
            "a read was answered that was not allowed in the state that it read: {read:?}"
        );
    } else if linearizable {
        let mut states = timeline.between(after, read.through);
        assert!(
            states.any(|state| !state.allows(&read.caller, needs)),
            "a read was refused that was allowed all the time: {read:?}"
        );
    }
}

/// Applies the committed log to the model, and checks every write of a user on the way.
fn replay(shared: &SharedState, cluster: &Cluster, last: LogPosition) -> Timeline {
    let made = revisions_by_value(shared);
    let network = cluster.network.borrow();
    let log = network.sent_log.through(last);
    let first = log.first().map_or(u64::MAX, |entry| entry.index.0);
    assert!(
        first <= FIRST_ENTRIES,
        "entries before {first} were committed and never sent"
    );
    let mut model = Model::new();
    let mut timeline = Timeline {
        states: vec![(0, model.clone())],
        places: Vec::new(),
    };
    for entry in log.iter().filter(|entry| entry.kind == EntryKind::Command) {
        let index = entry.index.0;
        let data = entry.data.slice(PROPOSAL_HEADER_BYTES..);
        let command: Command = codec::decode_shared("log command", &data).unwrap();
        let values = values(command.unchecked());
        // A member that does not know yet that authentication is on proposes its own command again, on behalf of the program.
        let refused = model.enabled && !matches!(command, Command::Checked(_));
        if let Some(revision) = values.iter().find_map(|value| made.get(value))
            && !refused
        {
            timeline.places.push((index, *revision));
        }
        let user = values
            .iter()
            .find_map(|it| Some((it, shared.users.writes.get(it)?)));
        if let Some((value, caller)) = user {
            let allowed = model.allows(caller, needs(command.unchecked()));
            let happened = made.contains_key(value);
            assert_eq!(
                happened, allowed,
                "entry {index} of {caller:?}: happened, and allowed there: {command:?}, {model:?}"
            );
        }
        if let Command::Auth(change) = command.unchecked()
            && accepts(&model, &command)
        {
            model.apply(change, index);
            timeline.states.push((index, model.clone()));
        }
    }
    let places = &timeline.places;
    let mut pairs = places.windows(2);
    let wrong = pairs.find(|pair| pair[0].1 >= pair[1].1);
    assert_eq!(wrong, None, "revisions follow the log");
    timeline
}

/// Whether a change of users may be made by whoever sent it.
fn accepts(model: &Model, command: &Command) -> bool {
    match command {
        Command::Checked(checked) => model.is_root(&checked.caller),
        Command::Auth(
            Change::IssueToken { .. } | Change::RenewTokens { .. } | Change::ExpireTokens { .. },
        ) => true,
        _ => !model.enabled,
    }
}

/// The revision of each value that was written once.
fn revisions_by_value(shared: &SharedState) -> BTreeMap<Value, Revision> {
    let mut made = BTreeMap::new();
    let mut repeated = BTreeSet::new();
    for revision in 2..=shared.truth.newest() {
        for event in shared.truth.events(revision) {
            if let Event::Put(kv) = event
                && let Some(before) = made.insert(kv.value.clone(), revision)
                && before != revision
            {
                repeated.insert(kv.value.clone());
            }
        }
    }
    made.retain(|value, _| !repeated.contains(value));
    made
}
