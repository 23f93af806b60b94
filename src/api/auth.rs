//! The calls of `etcdserverpb.Auth`.
//!
//! etcd: while authentication is off, everybody may make these calls. Some clients make them first of all, and stop if they fail.

use super::{
    Api, lines,
    proto::{authpb, etcdserverpb as pb},
    status::Status,
};
use crate::{
    audit::Subject,
    auth::{
        AuthError, Caller, Change,
        change::{PasswordHash, Permission},
    },
    types::Revision,
};

impl Api {
    /// Everybody may make this call, but an invalid token is refused.
    pub async fn auth_status(&self) -> Result<pb::AuthStatusResponse, Status> {
        let published = self.requests.auth_view().await?;
        let auth = &published.auth;
        match self.requests.caller() {
            Caller::Nobody => {}
            caller @ (Caller::Node | Caller::BadToken | Caller::User(_) | Caller::Jwt(_)) => {
                auth.require_identity(caller)?;
            }
        }
        Ok(pb::AuthStatusResponse {
            header: Some(self.header(published.view.window.newest).into()),
            enabled: auth.is_enabled(),
            auth_revision: auth.revision(),
        })
    }

    pub async fn auth_enable(&self) -> Result<pb::AuthEnableResponse, Status> {
        let header = self.change(Change::Enable).await?;
        Ok(pb::AuthEnableResponse { header })
    }

    pub async fn auth_disable(&self) -> Result<pb::AuthDisableResponse, Status> {
        let header = self.change(Change::Disable).await?;
        Ok(pb::AuthDisableResponse { header })
    }

    /// etcd: a token in the headers of this call is ignored, valid or not.
    pub async fn authenticate(
        &self,
        request: pb::AuthenticateRequest,
    ) -> Result<pb::AuthenticateResponse, Status> {
        self.about(|| {
            // Some users type their password in place of their name, so only names that exist go into the audit log.
            let published = self.requests.published();
            match published.auth.user(&request.name) {
                Some(_) => lines::of_user(&request.name, None),
                None => Subject {
                    unknown_user: true,
                    ..Subject::default()
                },
            }
        });
        let (name, password) = (request.name, request.password);
        let logging_in = self.requests.log_in(name, password, self.peer.origin());
        let (token, revision) = logging_in.await?;
        Ok(pb::AuthenticateResponse {
            header: Some(self.header(revision).into()),
            token,
        })
    }

    /// etcd: a hashed password in the request is ignored; this member hashes the plain one.
    pub async fn user_add(
        &self,
        request: pb::AuthUserAddRequest,
    ) -> Result<pb::AuthUserAddResponse, Status> {
        self.about(|| lines::of_user(&request.name, None));
        let without = request.options.is_some_and(|options| options.no_password);
        let password = if without {
            None
        } else {
            self.require_leave_to_change().await?;
            Some(self.requests.hash_password(request.password).await?)
        };
        let name = request.name;
        let header = self.change(Change::AddUser { name, password }).await?;
        Ok(pb::AuthUserAddResponse { header })
    }

    pub async fn user_get(
        &self,
        request: pb::AuthUserGetRequest,
    ) -> Result<pb::AuthUserGetResponse, Status> {
        self.about(|| lines::of_user(&request.name, None));
        let published = self.requests.auth_view().await?;
        let auth = &published.auth;
        auth.require_root_or_self(self.requests.caller(), &request.name)?;
        let user = auth.user(&request.name);
        let user = user.ok_or(AuthError::UserNotFound)?;
        Ok(pb::AuthUserGetResponse {
            header: Some(self.header(published.view.window.newest).into()),
            roles: user.roles().to_vec(),
        })
    }

    pub async fn user_list(&self) -> Result<pb::AuthUserListResponse, Status> {
        let published = self.requests.auth_view().await?;
        published.auth.require_root(self.requests.caller())?;
        Ok(pb::AuthUserListResponse {
            header: Some(self.header(published.view.window.newest).into()),
            users: published.auth.users().map(str::to_owned).collect(),
        })
    }

    pub async fn user_delete(
        &self,
        request: pb::AuthUserDeleteRequest,
    ) -> Result<pb::AuthUserDeleteResponse, Status> {
        self.about(|| lines::of_user(&request.name, None));
        let name = request.name;
        let header = self.change(Change::DeleteUser { name }).await?;
        Ok(pb::AuthUserDeleteResponse { header })
    }

    /// etcd: if the request has no password, no login with a password succeeds for this user any more.
    pub async fn user_change_password(
        &self,
        request: pb::AuthUserChangePasswordRequest,
    ) -> Result<pb::AuthUserChangePasswordResponse, Status> {
        self.about(|| lines::of_user(&request.name, None));
        let password = if request.password.is_empty() {
            PasswordHash::default()
        } else {
            self.require_leave_to_change().await?;
            self.requests.hash_password(request.password).await?
        };
        let name = request.name;
        let header = self.change(Change::ChangePassword { name, password });
        let header = header.await?;
        Ok(pb::AuthUserChangePasswordResponse { header })
    }

    pub async fn user_grant_role(
        &self,
        request: pb::AuthUserGrantRoleRequest,
    ) -> Result<pb::AuthUserGrantRoleResponse, Status> {
        self.about(|| lines::of_user(&request.user, Some(&request.role)));
        let (user, role) = (request.user, request.role);
        let header = self.change(Change::GrantRole { user, role }).await?;
        Ok(pb::AuthUserGrantRoleResponse { header })
    }

    pub async fn user_revoke_role(
        &self,
        request: pb::AuthUserRevokeRoleRequest,
    ) -> Result<pb::AuthUserRevokeRoleResponse, Status> {
        self.about(|| lines::of_user(&request.name, Some(&request.role)));
        let (user, role) = (request.name, request.role);
        let header = self.change(Change::RevokeRole { user, role }).await?;
        Ok(pb::AuthUserRevokeRoleResponse { header })
    }

    pub async fn role_add(
        &self,
        request: pb::AuthRoleAddRequest,
    ) -> Result<pb::AuthRoleAddResponse, Status> {
        self.about(|| lines::of_role(&request.name, None, None));
        let name = request.name;
        let header = self.change(Change::AddRole { name }).await?;
        Ok(pb::AuthRoleAddResponse { header })
    }

    pub async fn role_get(
        &self,
        request: pb::AuthRoleGetRequest,
    ) -> Result<pb::AuthRoleGetResponse, Status> {
        self.about(|| lines::of_role(&request.role, None, None));
        let published = self.requests.auth_view().await?;
        let auth = &published.auth;
        auth.require_root_or_role(self.requests.caller(), &request.role)?;
        let permissions = auth.permissions(&request.role);
        let permissions = permissions.ok_or(AuthError::RoleNotFound)?;
        let wire = |permission: Permission| authpb::Permission {
            perm_type: permission.kind,
            key: permission.key.into(),
            range_end: permission.range_end.into(),
        };
        Ok(pb::AuthRoleGetResponse {
            header: Some(self.header(published.view.window.newest).into()),
            perm: permissions.into_iter().map(wire).collect(),
        })
    }

    pub async fn role_list(&self) -> Result<pb::AuthRoleListResponse, Status> {
        let published = self.requests.auth_view().await?;
        published.auth.require_root(self.requests.caller())?;
        Ok(pb::AuthRoleListResponse {
            header: Some(self.header(published.view.window.newest).into()),
            roles: published.auth.roles().map(str::to_owned).collect(),
        })
    }

    pub async fn role_delete(
        &self,
        request: pb::AuthRoleDeleteRequest,
    ) -> Result<pb::AuthRoleDeleteResponse, Status> {
        self.about(|| lines::of_role(&request.role, None, None));
        let name = request.role;
        let header = self.change(Change::DeleteRole { name }).await?;
        Ok(pb::AuthRoleDeleteResponse { header })
    }

    pub async fn role_grant_permission(
        &self,
        request: pb::AuthRoleGrantPermissionRequest,
    ) -> Result<pb::AuthRoleGrantPermissionResponse, Status> {
        self.about(|| {
            let perm = request.perm.as_ref();
            let range = perm.map(|perm| (&*perm.key, &*perm.range_end));
            lines::of_role(&request.name, range, perm.map(|perm| perm.perm_type))
        });
        let permission = request.perm.map(|permission| Permission {
            kind: permission.perm_type,
            key: permission.key.into(),
            range_end: permission.range_end.into(),
        });
        let role = request.name;
        let header = self.change(Change::GrantPermission { role, permission });
        let header = header.await?;
        Ok(pb::AuthRoleGrantPermissionResponse { header })
    }

    pub async fn role_revoke_permission(
        &self,
        request: pb::AuthRoleRevokePermissionRequest,
    ) -> Result<pb::AuthRoleRevokePermissionResponse, Status> {
        self.about(|| {
            let range = (&*request.key, &*request.range_end);
            lines::of_role(&request.role, Some(range), None)
        });
        let header = self.change(Change::RevokePermission {
            role: request.role,
            key: request.key.into(),
            range_end: request.range_end.into(),
        });
        let header = header.await?;
        Ok(pb::AuthRoleRevokePermissionResponse { header })
    }

    async fn change(&self, change: Change) -> Result<Option<pb::ResponseHeader>, Status> {
        let revision: Revision = self.requests.change_auth(change).await?;
        Ok(Some(self.header(revision).into()))
    }

    /// Refuses callers without the role root before a password is hashed for them: hashing is slow, and its queue is short. The
    /// state has all changes acknowledged before, so whoever was given the role may use it; the log still decides.
    async fn require_leave_to_change(&self) -> Result<(), Status> {
        let published = self.requests.auth_view().await?;
        Ok(published.auth.require_root(self.requests.caller())?)
    }
}
