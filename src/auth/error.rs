//! Why a change of users and roles, or a request on behalf of a user, is refused. `api/status.rs` turns each into etcd's code
//! and text.

/// A refusal. It depends on the request and the replicated state alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Authentication cannot be turned on without the user root.
    #[error("root user does not exist")]
    RootUserMissing,
    /// Authentication cannot be turned on while the user root lacks the role root.
    #[error("root user does not have root role")]
    RootRoleMissing,
    #[error("user name already exists")]
    UserExists,
    /// A user is added without a name, or a request came without credentials.
    #[error("user name is empty")]
    UserEmpty,
    #[error("user name not found")]
    UserNotFound,
    /// The caller's name is no user's. etcd: the same text, where only an administrator may ask.
    #[error("user name not found")]
    CallerNotFound,
    #[error("role name already exists")]
    RoleExists,
    /// A role is added without a name.
    #[error("role name is empty")]
    RoleEmpty,
    #[error("role name not found")]
    RoleNotFound,
    /// No such user, or another password.
    #[error("authentication failed, invalid user ID or password")]
    AuthenticationFailed,
    /// The user has no password and can only log in with a certificate.
    #[error("authentication failed, password was given for no password user")]
    NoPasswordUser,
    /// A grant names no permission.
    #[error("permission not given")]
    PermissionNotGiven,
    /// The user may not do this.
    #[error("permission denied")]
    PermissionDenied,
    /// The user does not have the role.
    #[error("role is not granted to the user")]
    RoleNotGranted,
    /// The role does not have the permission.
    #[error("permission is not granted to the role")]
    PermissionNotGranted,
    /// Authentication is off.
    #[error("authentication is not enabled")]
    NotEnabled,
    /// The token is not one that is good now.
    #[error("invalid auth token")]
    InvalidToken,
    /// It would lock everybody out, or the permission's range makes no sense.
    #[error("invalid auth management")]
    InvalidManagement,
    /// bcrypt looks at no more.
    #[error("password length exceeds 72 bytes")]
    PasswordTooLong,
    /// Authenticate needs the private key of JWT, which this member does not have.
    #[error("token signing attempted with verify-only key")]
    VerifyOnly,
    /// Too many wrong passwords; later, or from elsewhere, it is tried again.
    #[error("too many failed logins")]
    TooManyFailedLogins,
    /// Users changed while the request was under way; another try decides anew.
    #[error("revision of auth store is old")]
    OldRevision,
}
