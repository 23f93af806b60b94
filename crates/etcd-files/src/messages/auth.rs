//! Users and roles: the values of the buckets `authUsers` and `authRoles`, and the requests that change them.

use bytes::Bytes;

#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct UserAddOptions {
    /// The user can only authenticate with a certificate.
    #[prost(bool, tag = "1")]
    pub no_password: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct User {
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    /// A hash of bcrypt; empty where there is no password.
    #[prost(bytes = "bytes", tag = "2")]
    pub password: Bytes,
    /// In order of their names.
    #[prost(string, repeated, tag = "3")]
    pub roles: Vec<String>,
    /// `None` in users of old versions.
    #[prost(message, optional, tag = "4")]
    pub options: Option<UserAddOptions>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PermissionKind {
    Read = 0,
    Write = 1,
    ReadWrite = 2,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Permission {
    /// A `PermissionKind`.
    #[prost(enumeration = "PermissionKind", tag = "1")]
    pub kind: i32,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub range_end: Bytes,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Role {
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    /// In order of their keys.
    #[prost(message, repeated, tag = "2")]
    pub permissions: Vec<Permission>,
}

/// A request that says all with its name: to enable or disable authentication, to ask whether it is enabled, to list users or
/// roles.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct EmptyRequest {}

/// A login. It changes no data: members keep the token in memory.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct InternalAuthenticateRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub password: String,
    #[prost(string, tag = "3")]
    pub simple_token: String,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthUserAddRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Only in logs of etcd before 3.5.
    #[prost(string, tag = "2")]
    pub password: String,
    #[prost(message, optional, tag = "3")]
    pub options: Option<UserAddOptions>,
    /// Base64 of the hash of bcrypt; it wins over `password`.
    #[prost(string, tag = "4")]
    pub hashed_password: String,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthUserGetRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthUserDeleteRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthUserChangePasswordRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Only in logs of etcd before 3.5.
    #[prost(string, tag = "2")]
    pub password: String,
    /// Base64 of the hash of bcrypt; it wins over `password`.
    #[prost(string, tag = "3")]
    pub hashed_password: String,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthUserGrantRoleRequest {
    #[prost(string, tag = "1")]
    pub user: String,
    #[prost(string, tag = "2")]
    pub role: String,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthUserRevokeRoleRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub role: String,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthRoleAddRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthRoleGetRequest {
    #[prost(string, tag = "1")]
    pub role: String,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthRoleDeleteRequest {
    #[prost(string, tag = "1")]
    pub role: String,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthRoleGrantPermissionRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub permission: Option<Permission>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AuthRoleRevokePermissionRequest {
    #[prost(string, tag = "1")]
    pub role: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub range_end: Bytes,
}
