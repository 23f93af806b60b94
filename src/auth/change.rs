//! The commands of the log that change users, roles, permissions and tokens.

use bincode::{Decode, Encode};
use std::{fmt, sync::Arc};

/// A change, as the log carries it. It holds no password and no secret of a token.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Change {
    Enable,
    /// Turn authentication off; all tokens end.
    Disable,
    AddUser {
        name: String,
        /// The bcrypt hash of the password; `None` for a user who can only log in with a certificate.
        password: Option<PasswordHash>,
    },
    /// Remove a user, and end the user's tokens.
    DeleteUser {
        name: String,
    },
    /// Replace a user's password, and end the user's tokens.
    ChangePassword {
        name: String,
        /// The bcrypt hash of the new password; empty if none was given, which no password matches.
        password: PasswordHash,
    },
    /// Give a user a role.
    GrantRole {
        user: String,
        role: String,
    },
    /// Take a role from a user.
    RevokeRole {
        user: String,
        role: String,
    },
    /// Add a role without permissions.
    AddRole {
        name: String,
    },
    /// Remove a role, also from all users.
    DeleteRole {
        name: String,
    },
    /// Give a role a permission.
    GrantPermission {
        role: String,
        /// The permission; a client may leave it out.
        permission: Option<Permission>,
    },
    /// Take from a role all permissions with exactly this range.
    RevokePermission {
        role: String,
        /// First key.
        key: Vec<u8>,
        range_end: Vec<u8>,
    },
    /// A token for a user whose password was right. Its number is the index of the log entry.
    IssueToken {
        user: String,
        /// The auth revision at which the password that was compared had been set.
        password_set: u64,
        /// SHA-256 of the token's secret part.
        digest: [u8; 32],
    },
    /// Tokens that were used: their time begins again.
    RenewTokens {
        tokens: Vec<u64>,
    },
    /// Tokens whose time is up: each ends unless it was renewed after what its mark says.
    ExpireTokens {
        tokens: Vec<TokenMark>,
    },
}

/// A token as of its last renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct TokenMark {
    pub token: u64,
    /// The log index of its issue or last renewal.
    pub renewed: u64,
}

/// The bcrypt hash of a password. It does not appear in debug output.
#[derive(Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct PasswordHash(pub Arc<[u8]>);

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash")
    }
}

/// What a role may do with a range of keys.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Permission {
    /// etcd's number: [`Permission::READ`], [`Permission::WRITE`], [`Permission::READ_WRITE`]. Others are stored and grant
    /// nothing.
    pub kind: i32,
    /// First key.
    pub key: Vec<u8>,
    /// End of the range, as in requests.
    pub range_end: Vec<u8>,
}

impl Permission {
    pub const READ: i32 = 0;
    pub const WRITE: i32 = 1;
    pub const READ_WRITE: i32 = 2;

    /// Whether it has this range.
    pub fn covers_exactly(&self, key: &[u8], range_end: &[u8]) -> bool {
        self.key == key && self.range_end == range_end
    }
}
