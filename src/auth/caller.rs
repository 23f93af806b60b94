//! On whose behalf a request is made.

use bincode::{Decode, Encode};
use std::sync::Arc;

/// On whose behalf a request is made. A command that is proposed while authentication is on carries it through the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Caller {
    /// The program that the member is part of: it may do everything.
    #[default]
    Node,
    /// A client without credentials.
    Nobody,
    /// A client with a token that was not good when the request came.
    BadToken,
    /// A client that is logged in.
    User(Arc<UserRef>),
    /// A client with a JWT, which says when its user logged in.
    Jwt(Arc<JwtUser>),
}

impl Caller {
    /// The user's name, if it is one.
    pub fn user(&self) -> Option<&Arc<str>> {
        match self {
            Self::User(user) => Some(&user.name),
            Self::Jwt(user) => Some(&user.name),
            Self::Node | Self::Nobody | Self::BadToken => None,
        }
    }
}

/// A user who is logged in.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UserRef {
    pub name: Arc<str>,
    /// The auth revision at which the user was added: another user may get the same name later.
    pub added: u64,
    /// The number of the token that proves it; zero if something else does.
    pub token: u64,
}

/// The user that a JWT names.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct JwtUser {
    pub name: Arc<str>,
    /// The auth revision of the login: the user's addition and password must not be newer.
    pub revision: u64,
}
