//! The calls of `etcdserverpb.Auth` that work while authentication is off, which it always is so far.
//!
//! etcd: some clients make these calls before any other and stop if they fail.

use super::{Api, proto::etcdserverpb as pb, status::Status};

/// etcd: the revision of a store of users and roles that was never changed.
const AUTH_REVISION: u64 = 1;

impl Api {
    /// `Auth.AuthStatus`: off.
    pub fn auth_status(&self) -> pb::AuthStatusResponse {
        pb::AuthStatusResponse {
            header: Some(self.header_now()),
            enabled: false,
            auth_revision: AUTH_REVISION,
        }
    }

    /// `Auth.Authenticate`: fails, as there are no passwords to compare with.
    pub fn authenticate(&self) -> Result<pb::AuthenticateResponse, Status> {
        Err(Status::auth_not_enabled())
    }

    /// `Auth.UserList`: there are none.
    pub fn user_list(&self) -> pb::AuthUserListResponse {
        pb::AuthUserListResponse {
            header: Some(self.header_now()),
            users: Vec::new(),
        }
    }

    /// `Auth.RoleList`: there are none.
    pub fn role_list(&self) -> pb::AuthRoleListResponse {
        pb::AuthRoleListResponse {
            header: Some(self.header_now()),
            roles: Vec::new(),
        }
    }
}
