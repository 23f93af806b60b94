//! The state of users, roles and tokens, and how changes change it.
//!
//! etcd: the order of checks, what counts as a change, and what moves the auth revision are those of `server/auth/store.go`.
//! Tokens do not move it.

pub mod imported;

use super::{
    AuthError, Change, ROOT,
    change::{PasswordHash, Permission, TokenMark},
    grants::Grants,
    tokens::{TOKENS_MAX, Token, Tokens, USER_TOKENS_MAX},
};
use crate::{
    codec::{self, CodecError},
    mutation::{Mutation, mutated},
};
use bincode::{Decode, Encode};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, OnceLock},
};

/// How the names of all rows begin.
pub const ROWS: &str = "auth.";
const STATE: &str = "auth.state";
const USER: &str = "auth.user/";
const ROLE: &str = "auth.role/";
const TOKEN: &str = "auth.token/";

/// A stored part of the state: its name, and its bytes or that it is gone.
pub type Row = (String, Option<Vec<u8>>);

/// Who is who, who may do what, and which tokens are good. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthState {
    enabled: bool,
    revision: u64,
    pub(super) directory: Arc<Directory>,
    pub(super) tokens: Tokens,
}

/// All users and roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) users: BTreeMap<Arc<str>, Arc<User>>,
    pub(super) roles: BTreeMap<String, Arc<Role>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    record: UserRecord,
    grants: Compiled,
}

/// What is stored of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
struct UserRecord {
    /// `None`: the user can only log in with a certificate.
    password: Option<PasswordHash>,
    /// The auth revisions at which the user was added, and the password set.
    added: u64,
    password_set: u64,
    /// Sorted.
    roles: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Role {
    /// Sorted by key.
    pub(super) permissions: Vec<Permission>,
}

/// A user's grants, compiled at the first check after a change. They follow from roles, so they are no state of their own.
#[derive(Clone, Debug, Default)]
struct Compiled(OnceLock<Grants>);

impl PartialEq for Compiled {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Compiled {}

impl Default for AuthState {
    fn default() -> Self {
        Self {
            enabled: false,
            // etcd: that of a new store.
            revision: 1,
            directory: Arc::default(),
            tokens: Tokens::default(),
        }
    }
}

impl User {
    /// The hash of the password; `None` if the user can only log in with a certificate.
    pub fn password(&self) -> Option<&[u8]> {
        self.record.password.as_ref().map(|hash| &*hash.0)
    }

    /// The auth revision at which the user was added.
    pub fn added(&self) -> u64 {
        self.record.added
    }

    /// The auth revision at which the password was set.
    pub fn password_set(&self) -> u64 {
        self.record.password_set
    }

    /// The user's roles, sorted.
    pub fn roles(&self) -> &[String] {
        &self.record.roles
    }

    /// Whether the user has a role.
    pub fn has_role(&self, role: &str) -> bool {
        let roles = &self.record.roles;
        roles.binary_search_by(|own| own.as_str().cmp(role)).is_ok()
    }

    /// What the user may read and write, unless the user is root.
    pub(super) fn grants(&self, directory: &Directory) -> &Grants {
        self.grants.0.get_or_init(|| {
            let roles = self.record.roles.iter();
            let roles = roles.filter_map(|role| directory.roles.get(role));
            Grants::compile(roles.flat_map(|role| &role.permissions))
        })
    }
}

impl AuthState {
    /// Whether authentication is on.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.directory.users.get(name).map(|user| &**user)
    }

    /// All users' names, sorted.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.directory.users.keys().map(|name| &**name)
    }

    /// All roles' names, sorted.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.directory.roles.keys().map(String::as_str)
    }

    /// The permissions of a role, sorted by key; `None` if there is no such role. etcd: root has all, whatever was granted.
    pub fn permissions(&self, role: &str) -> Option<Vec<Permission>> {
        let found = self.directory.roles.get(role)?;
        if role != ROOT {
            return Some(found.permissions.clone());
        }
        Some(vec![Permission {
            kind: Permission::READ_WRITE,
            key: Vec::new(),
            range_end: vec![0],
        }])
    }

    /// What was granted to a role, sorted by key, also to root, who needs no grant; nothing if there is no such role.
    pub fn granted(&self, role: &str) -> &[Permission] {
        let role = self.directory.roles.get(role);
        role.map_or(&[], |role| role.permissions.as_slice())
    }

    /// The tokens that are good.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Applies the change at log index `at`, and adds the rows that it changes. A refused change leaves no trace.
    pub fn apply(
        &mut self,
        change: &Change,
        at: u64,
        rows: &mut Vec<Row>,
    ) -> Result<(), AuthError> {
        match change {
            Change::Enable => self.enable(rows),
            Change::Disable => {
                self.disable(rows);
                Ok(())
            }
            Change::AddUser { name, password } => self.add_user(name, password.as_ref(), rows),
            Change::DeleteUser { name } => self.delete_user(name, rows),
            Change::ChangePassword { name, password } => self.change_password(name, password, rows),
            Change::GrantRole { user, role } => self.grant_role(user, role, rows),
            Change::RevokeRole { user, role } => self.revoke_role(user, role, rows),
            Change::AddRole { name } => self.add_role(name, rows),
            Change::DeleteRole { name } => self.delete_role(name, rows),
            Change::GrantPermission { role, permission } => {
                self.grant_permission(role, permission.as_ref(), rows)
            }
            Change::RevokePermission {
                role,
                key,
                range_end,
            } => self.revoke_permission(role, key, range_end, rows),
            Change::IssueToken {
                user,
                password_set,
                digest,
            } => self.issue_token(user, *password_set, *digest, at, rows),
            Change::RenewTokens { tokens } => {
                self.renew_tokens(tokens, at, rows);
                Ok(())
            }
            Change::ExpireTokens { tokens } => {
                self.expire_tokens(tokens, rows);
                Ok(())
            }
        }
    }

    fn enable(&mut self, rows: &mut Vec<Row>) -> Result<(), AuthError> {
        if self.enabled {
            return Ok(());
        }
        let root = self.user(ROOT).ok_or(AuthError::RootUserMissing)?;
        if !root.has_role(ROOT) {
            return Err(AuthError::RootRoleMissing);
        }
        self.enabled = true;
        rows.push(self.state_row());
        Ok(())
    }

    fn disable(&mut self, rows: &mut Vec<Row>) {
        if !self.enabled {
            return;
        }
        self.enabled = false;
        let all: Vec<u64> = self.tokens.iter().map(|token| token.number).collect();
        self.end_tokens(&all, rows);
        self.commit(rows);
    }

    fn add_user(
        &mut self,
        name: &str,
        password: Option<&PasswordHash>,
        rows: &mut Vec<Row>,
    ) -> Result<(), AuthError> {
        if name.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        if self.user(name).is_some() {
            return Err(AuthError::UserExists);
        }
        let added = self.revision + 1;
        let record = UserRecord {
            password: password.cloned(),
            added,
            password_set: added,
            roles: Vec::new(),
        };
        self.put_user(name.into(), record, rows);
        self.commit(rows);
        Ok(())
    }

    fn delete_user(&mut self, name: &str, rows: &mut Vec<Row>) -> Result<(), AuthError> {
        if self.enabled && name == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        if self.user(name).is_none() {
            return Err(AuthError::UserNotFound);
        }
        Arc::make_mut(&mut self.directory).users.remove(name);
        rows.push((row_name(USER, name), None));
        if !mutated(Mutation::TokenOutlivesUser) {
            self.end_tokens(&self.tokens.of_user(name), rows);
        }
        self.commit(rows);
        Ok(())
    }

    fn change_password(
        &mut self,
        name: &str,
        password: &PasswordHash,
        rows: &mut Vec<Row>,
    ) -> Result<(), AuthError> {
        let user = self.user(name).ok_or(AuthError::UserNotFound)?;
        let mut record = user.record.clone();
        record.password_set = self.revision + 1;
        // etcd: a user without a password stays without one.
        record.password = record.password.map(|_| password.clone());
        self.put_user(name.into(), record, rows);
        self.end_tokens(&self.tokens.of_user(name), rows);
        self.commit(rows);
        Ok(())
    }

    fn grant_role(&mut self, name: &str, role: &str, rows: &mut Vec<Row>) -> Result<(), AuthError> {
        let user = self.user(name).ok_or(AuthError::UserNotFound)?;
        if role != ROOT && !self.directory.roles.contains_key(role) {
            return Err(AuthError::RoleNotFound);
        }
        let mut record = user.record.clone();
        let Err(at) = record.roles.binary_search_by(|own| own.as_str().cmp(role)) else {
            return Ok(());
        };
        record.roles.insert(at, role.to_owned());
        self.put_user(name.into(), record, rows);
        self.commit(rows);
        Ok(())
    }

    fn revoke_role(
        &mut self,
        name: &str,
        role: &str,
        rows: &mut Vec<Row>,
    ) -> Result<(), AuthError> {
        if self.enabled && name == ROOT && role == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        let user = self.user(name).ok_or(AuthError::UserNotFound)?;
        if !user.has_role(role) {
            return Err(AuthError::RoleNotGranted);
        }
        let mut record = user.record.clone();
        record.roles.retain(|own| own != role);
        self.put_user(name.into(), record, rows);
        self.commit(rows);
        Ok(())
    }

    fn add_role(&mut self, name: &str, rows: &mut Vec<Row>) -> Result<(), AuthError> {
        if name.is_empty() {
            return Err(AuthError::RoleEmpty);
        }
        if self.directory.roles.contains_key(name) {
            return Err(AuthError::RoleExists);
        }
        self.put_role(name, Vec::new(), rows);
        self.commit(rows);
        Ok(())
    }

    fn delete_role(&mut self, name: &str, rows: &mut Vec<Row>) -> Result<(), AuthError> {
        if self.enabled && name == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        if !self.directory.roles.contains_key(name) {
            return Err(AuthError::RoleNotFound);
        }
        Arc::make_mut(&mut self.directory).roles.remove(name);
        rows.push((row_name(ROLE, name), None));
        for user in self.users_with(name) {
            let Some(mut record) = self.user(&user).map(|user| user.record.clone()) else {
                continue;
            };
            record.roles.retain(|own| own != name);
            self.put_user(user, record, rows);
        }
        self.commit(rows);
        Ok(())
    }

    fn grant_permission(
        &mut self,
        role: &str,
        permission: Option<&Permission>,
        rows: &mut Vec<Row>,
    ) -> Result<(), AuthError> {
        let permission = permission.ok_or(AuthError::PermissionNotGiven)?;
        let (key, end) = (&permission.key, &permission.range_end);
        if key.is_empty() || !(end.is_empty() || *end == [0] || key < end) {
            return Err(AuthError::InvalidManagement);
        }
        let found = self.directory.roles.get(role);
        let mut permissions = found.ok_or(AuthError::RoleNotFound)?.permissions.clone();
        let known = permissions
            .iter()
            .position(|own| own.covers_exactly(key, end));
        if let Some(at) = known {
            permissions[at].kind = permission.kind;
        } else {
            let at = permissions.partition_point(|own| own.key <= *key);
            permissions.insert(at, permission.clone());
        }
        self.put_role(role, permissions, rows);
        self.commit(rows);
        Ok(())
    }

    fn revoke_permission(
        &mut self,
        role: &str,
        key: &[u8],
        range_end: &[u8],
        rows: &mut Vec<Row>,
    ) -> Result<(), AuthError> {
        let found = self.directory.roles.get(role);
        let mut permissions = found.ok_or(AuthError::RoleNotFound)?.permissions.clone();
        let before = permissions.len();
        permissions.retain(|own| !own.covers_exactly(key, range_end));
        if permissions.len() == before {
            return Err(AuthError::PermissionNotGranted);
        }
        self.put_role(role, permissions, rows);
        self.commit(rows);
        Ok(())
    }

    fn issue_token(
        &mut self,
        name: &str,
        password_set: u64,
        digest: [u8; 32],
        at: u64,
        rows: &mut Vec<Row>,
    ) -> Result<(), AuthError> {
        if !self.enabled {
            return Err(AuthError::NotEnabled);
        }
        let user = self.directory.users.get_key_value(name);
        let (owner, user) = user.ok_or(AuthError::AuthenticationFailed)?;
        if user.password().is_none() {
            return Err(AuthError::AuthenticationFailed);
        }
        if user.password_set() != password_set {
            return Err(AuthError::OldRevision);
        }
        let owner = owner.clone();
        if self.tokens.len() >= USER_TOKENS_MAX {
            let own = self.tokens.of_user(name);
            if own.len() >= USER_TOKENS_MAX {
                self.end_tokens(&own[..1], rows);
            }
        }
        if self.tokens.len() >= TOKENS_MAX {
            let oldest: Vec<u64> = self.tokens.iter().take(1).map(|old| old.number).collect();
            self.end_tokens(&oldest, rows);
        }
        let token = Token::new(at, owner, digest, at);
        rows.push(token_row(&token));
        self.tokens.push(token);
        Ok(())
    }

    fn renew_tokens(&mut self, numbers: &[u64], at: u64, rows: &mut Vec<Row>) {
        for number in numbers {
            if let Some(token) = self.tokens.renew(*number, at) {
                rows.push(token_row(&token));
            }
        }
    }

    fn expire_tokens(&mut self, marks: &[TokenMark], rows: &mut Vec<Row>) {
        let as_marked = |mark: &&TokenMark| {
            let token = self.tokens.get(mark.token);
            token.is_some_and(|token| token.renewed == mark.renewed)
        };
        let over = marks.iter().filter(as_marked).map(|mark| mark.token);
        let over: Vec<u64> = over.collect();
        self.end_tokens(&over, rows);
    }

    fn end_tokens(&mut self, numbers: &[u64], rows: &mut Vec<Row>) {
        for number in numbers {
            if self.tokens.remove(*number) {
                rows.push((token_name(*number), None));
            }
        }
    }

    fn put_user(&mut self, name: Arc<str>, record: UserRecord, rows: &mut Vec<Row>) {
        let stored = codec::encode(&(&*name, &record));
        rows.push((row_name(USER, &name), Some(stored)));
        let user = User {
            record,
            grants: Compiled::default(),
        };
        let users = &mut Arc::make_mut(&mut self.directory).users;
        users.insert(name, Arc::new(user));
    }

    fn put_role(&mut self, name: &str, permissions: Vec<Permission>, rows: &mut Vec<Row>) {
        let role = Role { permissions };
        let stored = codec::encode(&(name, &role));
        rows.push((row_name(ROLE, name), Some(stored)));
        let holders = self.users_with(name);
        let directory = Arc::make_mut(&mut self.directory);
        directory.roles.insert(name.to_owned(), Arc::new(role));
        for holder in holders {
            if let Some(user) = directory.users.get_mut(&holder)
                && !mutated(Mutation::StaleGrants)
            {
                Arc::make_mut(user).grants = Compiled::default();
            }
        }
    }

    fn users_with(&self, role: &str) -> Vec<Arc<str>> {
        let users = self.directory.users.iter();
        let with = users.filter(|(_, user)| user.has_role(role));
        with.map(|(name, _)| name.clone()).collect()
    }

    fn commit(&mut self, rows: &mut Vec<Row>) {
        self.revision += 1;
        rows.push(self.state_row());
    }

    fn state_row(&self) -> Row {
        let stored = codec::encode(&(self.enabled, self.revision));
        (STATE.to_owned(), Some(stored))
    }
}

/// Collects the rows of a stored state, in any order.
#[derive(Debug, Default)]
pub struct Restoring {
    state: AuthState,
    tokens: BTreeMap<u64, Token>,
}

impl Restoring {
    /// Takes a row whose name begins with [`ROWS`].
    pub fn take(&mut self, name: &str, bytes: &[u8]) -> Result<(), CodecError> {
        let directory = Arc::make_mut(&mut self.state.directory);
        if name == STATE {
            (self.state.enabled, self.state.revision) = codec::decode(STATE, bytes)?;
        } else if name.starts_with(USER) {
            let (name, record): (String, UserRecord) = codec::decode("stored user", bytes)?;
            let user = User {
                record,
                grants: Compiled::default(),
            };
            directory.users.insert(name.into(), Arc::new(user));
        } else if name.starts_with(ROLE) {
            let (name, role): (String, Role) = codec::decode("stored role", bytes)?;
            directory.roles.insert(name, Arc::new(role));
        } else if name.starts_with(TOKEN) {
            let (number, user, digest, renewed): (u64, String, [u8; 32], u64) =
                codec::decode("stored token", bytes)?;
            let token = Token::new(number, user.into(), digest, renewed);
            self.tokens.insert(number, token);
        }
        Ok(())
    }

    pub fn finish(mut self) -> AuthState {
        for token in self.tokens.into_values() {
            self.state.tokens.push(token);
        }
        self.state
    }
}

fn token_row(token: &Token) -> Row {
    let stored = (token.number, &*token.user, token.digest, token.renewed);
    (token_name(token.number), Some(codec::encode(&stored)))
}

fn token_name(number: u64) -> String {
    format!("{TOKEN}{number:020}")
}

/// Names of users and roles may be long and hold any character: the row is named by a digest, and its bytes have the name.
fn row_name(kind: &str, name: &str) -> String {
    let mut row = String::with_capacity(kind.len() + 64);
    row.push_str(kind);
    for byte in Sha256::digest(name.as_bytes()) {
        // Writing to a string does not fail.
        write!(row, "{byte:02x}").unwrap_or_default();
    }
    row
}

#[cfg(test)]
pub(crate) mod tests;
