//! Requests of front ends about users, roles and tokens.
//!
//! Changes go through the log and are judged there. Reads and logins are answered from a view that holds everything acknowledged
//! before. A password is hashed before the change is proposed, and compared before a token is issued: the log has neither.

use super::{
    jwt_desk::Identified, passwords::Login, published::Published, request_error::RequestError,
    requests::Requests,
};
use crate::{
    auth::{AuthError, AuthState, Caller, Change, caller::UserRef, change::PasswordHash, check},
    clock, jwt,
    kv::{
        KvError,
        command::{Command, Outcome},
    },
    types::Revision,
};
use std::{net::IpAddr, sync::Arc};

/// Characters of a token's secret part. etcd: the same number of them.
const SECRET_LETTERS: usize = 16;

const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

impl Requests {
    /// Changes users, roles or permissions. Returns the store's revision.
    pub(crate) async fn change_auth(&self, change: Change) -> Result<Revision, RequestError> {
        Ok(self.propose_change(change).await?.0)
    }

    /// A view with users and roles as of every change that was acknowledged before now.
    pub(crate) async fn auth_view(&self) -> Result<Arc<Published>, RequestError> {
        let published = self.view_for(false).await?;
        published.auth.note_use(self.caller());
        Ok(published)
    }

    /// The hash of a new password.
    pub(crate) async fn hash_password(
        &self,
        password: String,
    ) -> Result<PasswordHash, RequestError> {
        self.passwords().hash(password).await
    }

    /// Whom a token's text proves.
    pub(crate) fn identify(&self, token: &[u8]) -> Identified {
        if !jwt::is_jwt(token) {
            return self.published().auth.identify(token).into();
        }
        match self.jwt() {
            Some(jwt) => jwt.identify(token),
            None => Caller::BadToken.into(),
        }
    }

    /// On whose behalf a stream asks for something now: [`Caller::BadToken`] once the token that opened the stream has ended.
    /// etcd: each such request is identified anew. Here it costs neither a signature nor an allocation.
    pub(crate) fn caller_now(&self) -> Caller {
        if self.is_auth_on() && self.has_token_ended() {
            return Caller::BadToken;
        }
        self.caller().clone()
    }

    fn has_token_ended(&self) -> bool {
        match (self.caller(), self.proof()) {
            (Caller::Jwt(_), Some(proof)) => self.jwt().is_none_or(|jwt| !jwt.is_good(proof)),
            (caller @ Caller::User(_), _) => self.published().auth.has_ended_here(caller),
            (Caller::Jwt(_) | Caller::Node | Caller::Nobody | Caller::BadToken, _) => false,
        }
    }

    /// The same requests on behalf of a user, without a password: for a program that knows by other means whom it acts for. The
    /// user gets what is granted, as of each request; no key any more once the user is removed. Only the node's own requests, and
    /// those of a user with the role root, can be turned into those of a user, even while authentication is off.
    pub fn as_user(&self, name: &str) -> Result<Self, AuthError> {
        let published = self.published();
        published.auth.require_root_always(self.caller())?;
        let user = published.auth.user(name).ok_or(AuthError::UserNotFound)?;
        Ok(self.on_behalf(Caller::User(Arc::new(UserRef {
            name: name.into(),
            added: user.added(),
            token: 0,
        }))))
    }

    /// A token for a caller with a user's password, and the store's revision. `origin` is where the client is.
    pub(crate) async fn log_in(
        &self,
        name: String,
        password: String,
        origin: IpAddr,
    ) -> Result<(String, Revision), RequestError> {
        loop {
            let published = self.view_for(false).await?;
            let auth = &published.auth;
            if !auth.is_enabled() {
                return Err(AuthError::NotEnabled.into());
            }
            self.logins().admit(&name, origin)?;
            let user = auth.user(&name);
            if user.is_some_and(|user| user.password().is_none()) {
                self.logins().failed(&name, origin);
                return Err(AuthError::NoPasswordUser.into());
            }
            let hash = user.and_then(|user| user.password().map(<[u8]>::to_vec));
            let login = Login {
                user: name.clone(),
                origin,
                password: password.clone(),
                hash,
                bounds: self.logins().clone(),
            };
            let right = self.passwords().matches(login).await?;
            let Some(user) = auth.user(&name).filter(|_| right) else {
                return Err(AuthError::AuthenticationFailed.into());
            };
            if self.jwt().is_some() {
                let token = self.signed_token(&name, auth).await?;
                return Ok((token, published.view.window.newest));
            }
            let secret = random_letters();
            let issue = Change::IssueToken {
                user: name.clone(),
                password_set: user.password_set(),
                digest: check::digest(secret.as_bytes()),
            };
            match self.issue(issue).await {
                // The password was changed meanwhile: it is compared again.
                Err(RequestError::Kv(KvError::Auth(AuthError::OldRevision))) => {}
                Ok((revision, index)) => return Ok((format!("{secret}.{index}"), revision)),
                Err(error) => return Err(error),
            }
        }
    }

    /// A JWT as of the state in which the password was right: if it was changed since, the token is not good any more.
    async fn signed_token(&self, name: &str, auth: &AuthState) -> Result<String, RequestError> {
        let to_sign = self.jwt().and_then(|jwt| jwt.issue(name, auth.revision()));
        let to_sign = to_sign.ok_or(AuthError::VerifyOnly)?;
        let signed = self.passwords().run(move || to_sign.sign()).await?;
        // Signing fails only without random bytes, and the process with it.
        let signed = signed.and_then(Result::ok);
        Ok(signed.ok_or(AuthError::VerifyOnly)?)
    }

    /// The password was right, so whatever else the caller said about who asks does not matter.
    async fn issue(&self, issue: Change) -> Result<(Revision, u64), RequestError> {
        let node = self.on_behalf(Caller::Node);
        node.propose_change(issue).await
    }

    async fn propose_change(&self, change: Change) -> Result<(Revision, u64), RequestError> {
        match self.propose(&Command::Auth(change)).await? {
            Outcome::Auth { revision, index } => Ok((revision, index.0)),
            other => unreachable!("the machine answers a change in kind, not with {other:?}"),
        }
    }
}

/// 91 random bits.
fn random_letters() -> String {
    let mut letters = String::with_capacity(SECRET_LETTERS);
    while letters.len() < SECRET_LETTERS {
        for byte in clock::secret::<32>() {
            // Each character stands for four of the values; the remaining values are drawn again.
            let letter = LETTERS.get(usize::from(byte) / 4);
            if let Some(letter) = letter.filter(|_| letters.len() < SECRET_LETTERS) {
                letters.push(char::from(*letter));
            }
        }
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_letters_that_differ() {
        let (one, other) = (random_letters(), random_letters());
        assert_eq!((one.len(), other.len()), (16, 16));
        assert!(one.bytes().all(|letter| letter.is_ascii_alphabetic()));
        assert_ne!(one, other);
        let all: String = (0..400).map(|_| random_letters()).collect();
        for letter in LETTERS {
            assert!(all.contains(char::from(*letter)), "every letter is drawn");
        }
    }
}
