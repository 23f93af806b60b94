//! Who may do what: the one authorizer. Every front end asks it, and so does the state machine for every command of a client.
//!
//! While authentication is off everything is allowed. etcd: which right each operation needs is that of
//! `server/etcdserver/apply/auth.go`, so is the order in which refusals come.

use super::{
    AuthError, AuthState, Caller, ROOT,
    caller::UserRef,
    grants::{Grants, Interval, Right},
    state::User,
    tokens::{self, Token},
};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// What a caller may do.
#[derive(Clone, Copy, Debug)]
pub enum Rights<'a> {
    All,
    /// What is granted to the user.
    Some(&'a Grants),
}

impl Rights<'_> {
    /// Whether all keys of a request's range may be read.
    pub fn read(&self, key: &[u8], range_end: &[u8]) -> Result<(), AuthError> {
        match self {
            Self::All => Ok(()),
            Self::Some(grants) => permitted(grants.may_read(key, range_end)),
        }
    }

    /// Whether all keys of a request's range may be written.
    pub fn write(&self, key: &[u8], range_end: &[u8]) -> Result<(), AuthError> {
        match self {
            Self::All => Ok(()),
            Self::Some(grants) => permitted(grants.may_write(key, range_end)),
        }
    }

    /// Whether this may be done to a key.
    pub fn allow(&self, right: Right, key: &[u8]) -> Result<(), AuthError> {
        match right {
            Right::Read => self.read(key, &[]),
            Right::Write => self.write(key, &[]),
        }
    }

    /// The intervals that hold all keys to which this may not be done, ascending.
    pub fn gaps(&self, right: Right) -> impl Iterator<Item = Interval<'_>> {
        self.grants().flat_map(move |grants| grants.gaps(right))
    }

    /// How many such intervals there are.
    pub fn gap_count(&self, right: Right) -> usize {
        self.grants().map(|grants| grants.gaps(right).len()).sum()
    }

    fn grants(&self) -> impl Iterator<Item = &Grants> {
        let grants = match self {
            Self::All => None,
            Self::Some(grants) => Some(*grants),
        };
        grants.into_iter()
    }

    /// Whether it is everything.
    pub fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }
}

fn permitted(yes: bool) -> Result<(), AuthError> {
    yes.then_some(()).ok_or(AuthError::PermissionDenied)
}

impl AuthState {
    /// Whom a token's text proves. A number that is not in the table is refused at once: it may belong to an entry that this
    /// member has not applied yet, but nobody waits for it. So is a token that has ended on this member.
    pub fn identify(&self, text: &[u8]) -> Caller {
        let Some((token, user)) = self.known(text) else {
            return Caller::BadToken;
        };
        token.note_use();
        Caller::User(Arc::new(UserRef {
            name: token.user.clone(),
            added: user.added(),
            token: token.number,
        }))
    }

    /// The caller with a certificate of this common name. etcd: a name that no user has is accepted here and refused when rights
    /// are checked.
    pub fn certified(&self, name: &Arc<str>) -> Caller {
        Caller::User(Arc::new(UserRef {
            name: name.clone(),
            added: self.user(name).map_or(0, User::added),
            token: 0,
        }))
    }

    fn known(&self, text: &[u8]) -> Option<(&Token, &User)> {
        let (secret, number) = tokens::parse(text)?;
        let token = self.tokens.get(number)?;
        // Digests are compared, so how long that takes says nothing about the secret.
        (token.digest == digest(secret) && !token.has_ended_here()).then_some(())?;
        Some((token, self.user(&token.user)?))
    }

    /// Whether a caller's token has ended on this member, but not yet in the log. That depends on this member's clock, so what is
    /// decided for commands of the log does not ask for it.
    pub fn has_ended_here(&self, caller: &Caller) -> bool {
        match caller {
            Caller::User(user) => {
                let token = self.tokens.get(user.token);
                token.is_some_and(|token| token.has_ended_here())
            }
            Caller::Node | Caller::Nobody | Caller::BadToken | Caller::Jwt(_) => false,
        }
    }

    /// Notes that a caller's token is in use. A JWT is no part of the state.
    pub fn note_use(&self, caller: &Caller) {
        if let Caller::User(user) = caller
            && let Some(token) = self.tokens.get(user.token)
        {
            token.note_use();
        }
    }

    /// What a caller may do to keys, while authentication is on or off.
    pub fn rights(&self, caller: &Caller) -> Result<Rights<'_>, AuthError> {
        if !self.is_enabled() {
            return Ok(Rights::All);
        }
        let Some(name) = self.proven(caller)? else {
            return Ok(Rights::All);
        };
        let user = self.user(name).ok_or(AuthError::PermissionDenied)?;
        Ok(self.rights_of(user))
    }

    fn rights_of<'a>(&'a self, user: &'a User) -> Rights<'a> {
        if user.has_role(ROOT) {
            Rights::All
        } else {
            Rights::Some(user.grants(&self.directory))
        }
    }

    /// Refuses whoever is not logged in.
    pub fn require_identity(&self, caller: &Caller) -> Result<(), AuthError> {
        if !self.is_enabled() {
            return Ok(());
        }
        self.proven(caller).map(drop)
    }

    /// Refuses whoever does not have the role root.
    pub fn require_root(&self, caller: &Caller) -> Result<(), AuthError> {
        if !self.is_enabled() {
            return Ok(());
        }
        self.require_root_always(caller)
    }

    /// As [`AuthState::require_root`], also while authentication is off: for what is still good once it is on.
    pub fn require_root_always(&self, caller: &Caller) -> Result<(), AuthError> {
        let Some(name) = self.proven(caller)? else {
            return Ok(());
        };
        // etcd: as from a certificate without a name.
        if name.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        let user = self.user(name).ok_or(AuthError::CallerNotFound)?;
        permitted(user.has_role(ROOT))
    }

    /// Refuses whoever may not be told a user's roles: everybody but root and the user.
    pub fn require_root_or_self(&self, caller: &Caller, name: &str) -> Result<(), AuthError> {
        self.require_root(caller)
            .or_else(|refusal| match caller.user() {
                Some(user) if is_of_rights(refusal) && **user == *name => Ok(()),
                // etcd: nobody has the empty name, which is no user's.
                None if *caller == Caller::Nobody && name.is_empty() => Ok(()),
                Some(_) | None => Err(refusal),
            })
    }

    /// Refuses whoever may not be told a role's permissions: everybody but root and those who have the role.
    pub fn require_root_or_role(&self, caller: &Caller, role: &str) -> Result<(), AuthError> {
        self.require_root(caller).or_else(|refusal| {
            let has = |name: &str| self.user(name).is_some_and(|user| user.has_role(role));
            match caller.user() {
                Some(user) if is_of_rights(refusal) && has(user) => Ok(()),
                Some(_) | None => Err(refusal),
            }
        })
    }

    /// Whether a watch that a caller created may go on. Its token may have ended since then; but the user must be the same.
    pub fn may_go_on_watching(&self, caller: &Caller, key: &[u8], range_end: &[u8]) -> bool {
        if !self.is_enabled() {
            return true;
        }
        let same = match caller {
            Caller::Node => return true,
            Caller::Nobody | Caller::BadToken => None,
            Caller::User(user) => {
                let found = self.user(&user.name);
                found.filter(|found| found.added() == user.added)
            }
            Caller::Jwt(user) => {
                let found = self.user(&user.name);
                found.filter(|found| found.added() <= user.revision)
            }
        };
        same.is_some_and(|found| self.rights_of(found).read(key, range_end).is_ok())
    }

    /// The name of the user that a caller has proven to be; `None` for the node itself.
    fn proven<'a>(&self, caller: &'a Caller) -> Result<Option<&'a str>, AuthError> {
        match caller {
            Caller::Node => Ok(None),
            Caller::Nobody => Err(AuthError::UserEmpty),
            Caller::BadToken => Err(AuthError::InvalidToken),
            Caller::User(user) => {
                let ended = user.token != 0 && self.tokens.get(user.token).is_none();
                if ended {
                    return Err(AuthError::InvalidToken);
                }
                // The end of a user ends its tokens; who has none may still name a user that was replaced.
                let found = self.user(&user.name);
                let other = |found: &User| user.token == 0 && found.added() != user.added;
                if user.added != 0 && found.is_some_and(other) {
                    return Err(AuthError::PermissionDenied);
                }
                Ok(Some(&user.name))
            }
            Caller::Jwt(user) => {
                // etcd: refuses whatever revision is not the newest. Here the user's own decide, and one ahead of this state.
                let newest_allowed = self.revision();
                let since = match self.user(&user.name) {
                    Some(found) => found.added().max(found.password_set()),
                    // A user who is not there may have been removed after the login.
                    None => newest_allowed,
                };
                if user.revision < since || user.revision > newest_allowed {
                    return Err(AuthError::OldRevision);
                }
                Ok(Some(&user.name))
            }
        }
    }
}

/// Whether it is about what a user may do, and not about who the user is.
fn is_of_rights(refusal: AuthError) -> bool {
    matches!(
        refusal,
        AuthError::PermissionDenied | AuthError::CallerNotFound
    )
}

/// The digest of a token's secret part.
pub fn digest(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Change,
            caller::JwtUser,
            state::tests::{add_user, applied, enabled, grant, grant_role},
        },
        *,
    };

    fn state() -> AuthState {
        let role = Change::AddRole { name: "r".into() };
        let mut state = enabled(&[
            add_user("u"),
            role,
            grant("r", 2, "a", "b"),
            grant_role("u", "r"),
            add_user("nobody's"),
        ]);
        for (at, user, set) in [(20, "u", 2), (21, "root", 7)] {
            let issue = Change::IssueToken {
                user: user.into(),
                password_set: set,
                digest: digest(b"secret"),
            };
            state.apply(&issue, at, &mut Vec::new()).unwrap();
        }
        state
    }

    #[test]
    fn a_token_proves_its_user_and_nothing_else_does() {
        let state = state();
        let Caller::User(user) = state.identify(b"secret.20") else {
            panic!("a good token");
        };
        assert_eq!((&*user.name, user.added, user.token), ("u", 2, 20));
        assert!(state.tokens().get(20).unwrap().is_used());
        assert!(!state.tokens().get(21).unwrap().is_used());
        for bad in [
            "secret.22",
            "other.20",
            "secret",
            "",
            "secret.20 ",
            "secret.020.20",
        ] {
            assert_eq!(state.identify(bad.as_bytes()), Caller::BadToken, "{bad}");
        }
    }

    /// All members must decide alike about a command, whichever of them has lost touch.
    #[test]
    fn a_token_that_ended_here_identifies_nobody_and_is_good_in_the_log() {
        let mut state = state();
        let u = state.identify(b"secret.20");
        assert!(!state.has_ended_here(&u));
        state.tokens().get(20).unwrap().end_here();
        assert_eq!(state.identify(b"secret.20"), Caller::BadToken);
        assert!(state.has_ended_here(&u));
        assert_eq!(state.require_identity(&u), Ok(()));
        assert!(state.rights(&u).is_ok());
        let tokens = vec![20];
        let renew = Change::RenewTokens { tokens };
        state.apply(&renew, 30, &mut Vec::new()).unwrap();
        assert_eq!(state.identify(b"secret.20"), u);
        assert!(!state.has_ended_here(&u));
    }

    #[test]
    fn each_caller_gets_what_etcd_gives() {
        let state = state();
        let (u, root) = (state.identify(b"secret.20"), state.identify(b"secret.21"));
        let gone = Caller::User(Arc::new(UserRef {
            name: "gone".into(),
            added: 2,
            token: 0,
        }));
        let table = [
            (&Caller::Node, Ok(()), Ok(()), Ok(()), Ok(())),
            (&root, Ok(()), Ok(()), Ok(()), Ok(())),
            (
                &u,
                Ok(()),
                Ok(()),
                Err(AuthError::PermissionDenied),
                Err(AuthError::PermissionDenied),
            ),
            (
                &Caller::Nobody,
                Err(AuthError::UserEmpty),
                Err(AuthError::UserEmpty),
                Err(AuthError::UserEmpty),
                Err(AuthError::UserEmpty),
            ),
            (
                &Caller::BadToken,
                Err(AuthError::InvalidToken),
                Err(AuthError::InvalidToken),
                Err(AuthError::InvalidToken),
                Err(AuthError::InvalidToken),
            ),
            (
                &gone,
                Ok(()),
                Err(AuthError::PermissionDenied),
                Err(AuthError::PermissionDenied),
                Err(AuthError::CallerNotFound),
            ),
        ];
        for (caller, identity, inside, outside, admin) in table {
            let read = |key: &[u8], end: &[u8]| state.rights(caller)?.read(key, end);
            let write = |key: &[u8], end: &[u8]| state.rights(caller)?.write(key, end);
            assert_eq!(state.require_identity(caller), identity, "{caller:?}");
            assert_eq!(read(b"a", b"b"), inside, "{caller:?}");
            assert_eq!(write(b"a1", b""), inside, "{caller:?}");
            assert_eq!(read(b"a", b"c"), outside, "{caller:?}");
            assert_eq!(write(b"b", b""), outside, "{caller:?}");
            assert_eq!(state.require_root(caller), admin, "{caller:?}");
        }
        assert_eq!(state.require_root_or_self(&u, "u"), Ok(()));
        assert_eq!(
            state.require_root_or_self(&u, "root"),
            Err(AuthError::PermissionDenied)
        );
        assert_eq!(state.require_root_or_role(&u, "r"), Ok(()));
        assert_eq!(
            state.require_root_or_role(&u, "root"),
            Err(AuthError::PermissionDenied)
        );
        assert_eq!(
            state.require_root_or_role(&Caller::Nobody, "r"),
            Err(AuthError::UserEmpty)
        );
        let off = applied(&[add_user("u")]);
        for caller in [&Caller::Nobody, &Caller::BadToken, &u] {
            assert!(off.rights(caller).is_ok_and(|rights| rights.is_all()));
            assert_eq!(off.require_root(caller), Ok(()));
            assert!(off.require_root_always(caller).is_err(), "{caller:?}");
        }
        assert_eq!(off.require_root_always(&Caller::Node), Ok(()));
    }

    #[test]
    fn a_user_without_a_token_is_not_another_one_of_that_name() {
        let u = |added| {
            Caller::User(Arc::new(UserRef {
                name: "u".into(),
                added,
                token: 0,
            }))
        };
        let state = state();
        assert_eq!(state.require_identity(&u(2)), Ok(()));
        let replaced = u(1);
        let denied = Err(AuthError::PermissionDenied);
        assert_eq!(state.require_identity(&replaced), denied);
        assert_eq!(state.rights(&replaced).map(drop), denied);
        assert_eq!(state.require_root(&replaced), denied);
    }

    #[test]
    fn a_jwt_is_good_until_its_user_or_the_password_changes() {
        let jwt = |name: &str, revision| {
            let name = name.into();
            Caller::Jwt(Arc::new(JwtUser { name, revision }))
        };
        let mut state = state();
        let login = state.revision();
        let (u, root) = (jwt("u", login), jwt("root", login));
        assert!(state.rights(&u).unwrap().read(b"a", b"b").is_ok());
        let denied = state.rights(&u).unwrap().read(b"a", b"c");
        assert_eq!(denied, Err(AuthError::PermissionDenied));
        assert_eq!(state.require_root(&u), Err(AuthError::PermissionDenied));
        assert_eq!(state.require_root(&root), Ok(()));
        assert_eq!(state.require_root_or_self(&u, "u"), Ok(()));
        assert_eq!(state.require_root_or_role(&u, "r"), Ok(()));
        let stranger = state.rights(&jwt("gone", login)).unwrap_err();
        assert_eq!(stranger, AuthError::PermissionDenied, "as in etcd");
        let ahead = jwt("u", login + 1);
        assert_eq!(state.require_identity(&ahead), Err(AuthError::OldRevision));
        assert!(state.may_go_on_watching(&u, b"a", b"b"));

        // What concerns others, or rights, ends no token.
        let apply = |state: &mut AuthState, change| {
            state.apply(&change, 40, &mut Vec::new()).unwrap();
        };
        apply(&mut state, add_user("other"));
        apply(&mut state, grant("r", 2, "c", "d"));
        assert!(state.rights(&u).unwrap().read(b"c", b"d").is_ok());

        let password = super::super::state::tests::hash("new");
        let name = "u".into();
        apply(&mut state, Change::ChangePassword { name, password });
        for refused in [
            state.require_identity(&u),
            state.require_root(&u),
            state.require_root_or_self(&u, "u"),
            state.require_root_or_role(&u, "r"),
            state.rights(&u).map(drop),
        ] {
            assert_eq!(refused, Err(AuthError::OldRevision));
        }
        assert!(state.may_go_on_watching(&u, b"a", b"b"), "but not a watch");
        let again = jwt("u", state.revision());
        assert_eq!(state.require_identity(&again), Ok(()));
        apply(&mut state, Change::DeleteUser { name: "u".into() });
        assert_eq!(state.require_identity(&again), Err(AuthError::OldRevision));
        assert!(!state.may_go_on_watching(&again, b"a", b"b"));
        apply(&mut state, add_user("u"));
        apply(&mut state, grant_role("u", "r"));
        assert_eq!(state.require_identity(&again), Err(AuthError::OldRevision));
        assert!(
            !state.may_go_on_watching(&again, b"a", b"b"),
            "another user of that name"
        );
        assert_eq!(state.require_identity(&root), Ok(()), "nobody changed root");
    }

    #[test]
    fn an_ended_token_proves_nothing_and_a_watch_outlives_it() {
        let mut state = state();
        let u = state.identify(b"secret.20");
        let apply = |state: &mut AuthState, change| {
            state.apply(&change, 30, &mut Vec::new()).unwrap();
        };
        let change = Change::ChangePassword {
            name: "u".into(),
            password: super::super::state::tests::hash("new"),
        };
        apply(&mut state, change);
        assert_eq!(state.require_identity(&u), Err(AuthError::InvalidToken));
        assert!(state.may_go_on_watching(&u, b"a", b"b"));
        assert!(
            !state.may_go_on_watching(&u, b"a", b"\0"),
            "what it really covers"
        );
        assert!(!state.may_go_on_watching(&Caller::Nobody, b"a", b""));
        apply(&mut state, Change::DeleteUser { name: "u".into() });
        apply(&mut state, add_user("u"));
        apply(&mut state, grant_role("u", "r"));
        assert!(
            !state.may_go_on_watching(&u, b"a", b"b"),
            "another user of that name"
        );
    }
}
