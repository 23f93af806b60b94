//! Every refusal of a call about users, roles and permissions: code and text, of Quorate and of a real etcd beside it; and what
//! etcdctl shows of it.

use crate::{
    auth::{by, enabled, log_in, quick},
    support::{Kind, Outcome, Server, etcdctl, get, refused},
};
use quorate::internals::api::proto::{authpb, etcdserverpb as pb};
use tonic::{Code, transport::Channel};

/// A server of each kind, which has to answer alike.
async fn both() -> [Server; 2] {
    let mut servers = [Kind::Quorate, Kind::Etcd].map(|kind| Server::new(kind, quick()));
    for server in &mut servers {
        server.restart().await;
    }
    servers
}

/// The calls, with nothing but whether they succeed.
struct Calls(pb::auth_client::AuthClient<Channel>);

impl Calls {
    async fn to(server: &Server) -> Self {
        Self(server.client().await.auth)
    }

    async fn add_user(&mut self, name: &str, no_password: bool) -> Outcome<()> {
        let request = pb::AuthUserAddRequest {
            name: name.into(),
            password: if no_password { "" } else { "secret" }.into(),
            options: Some(authpb::UserAddOptions { no_password }),
            ..Default::default()
        };
        self.0.user_add(request).await.map(drop)
    }

    async fn get_user(&mut self, name: &str) -> Outcome<()> {
        let request = pb::AuthUserGetRequest { name: name.into() };
        self.0.user_get(request).await.map(drop)
    }

    async fn delete_user(&mut self, name: &str) -> Outcome<()> {
        let request = pb::AuthUserDeleteRequest { name: name.into() };
        self.0.user_delete(request).await.map(drop)
    }

    async fn change_password(&mut self, name: &str) -> Outcome<()> {
        let request = pb::AuthUserChangePasswordRequest {
            name: name.into(),
            password: "other".into(),
            ..Default::default()
        };
        self.0.user_change_password(request).await.map(drop)
    }

    async fn grant_role(&mut self, user: &str, role: &str) -> Outcome<()> {
        let (user, role) = (user.into(), role.into());
        let request = pb::AuthUserGrantRoleRequest { user, role };
        self.0.user_grant_role(request).await.map(drop)
    }

    async fn revoke_role(&mut self, user: &str, role: &str) -> Outcome<()> {
        let (name, role) = (user.into(), role.into());
        let request = pb::AuthUserRevokeRoleRequest { name, role };
        self.0.user_revoke_role(request).await.map(drop)
    }

    async fn add_role(&mut self, name: &str) -> Outcome<()> {
        let request = pb::AuthRoleAddRequest { name: name.into() };
        self.0.role_add(request).await.map(drop)
    }

    async fn get_role(&mut self, role: &str) -> Outcome<()> {
        let request = pb::AuthRoleGetRequest { role: role.into() };
        self.0.role_get(request).await.map(drop)
    }

    async fn delete_role(&mut self, role: &str) -> Outcome<()> {
        let request = pb::AuthRoleDeleteRequest { role: role.into() };
        self.0.role_delete(request).await.map(drop)
    }

    async fn grant(
        &mut self,
        role: &str,
        range: Option<(&'static str, &'static str)>,
    ) -> Outcome<()> {
        let perm = range.map(|(key, range_end)| authpb::Permission {
            perm_type: 2,
            key: key.into(),
            range_end: range_end.into(),
        });
        let name = role.into();
        let request = pb::AuthRoleGrantPermissionRequest { name, perm };
        self.0.role_grant_permission(request).await.map(drop)
    }

    async fn revoke(&mut self, role: &str, key: &'static str, end: &'static str) -> Outcome<()> {
        let request = pb::AuthRoleRevokePermissionRequest {
            role: role.into(),
            key: key.into(),
            range_end: end.into(),
        };
        self.0.role_revoke_permission(request).await.map(drop)
    }

    async fn log_in(&mut self, name: &str, password: &str) -> Outcome<()> {
        let request = pb::AuthenticateRequest {
            name: name.into(),
            password: password.into(),
        };
        self.0.authenticate(request).await.map(drop)
    }
}

#[tokio::test]
async fn of_users() {
    for server in both().await {
        let mut calls = Calls::to(&server).await;
        calls.add_user("u", false).await.unwrap();
        let text = "etcdserver: user name already exists";
        for no_password in [false, true] {
            let again = calls.add_user("u", no_password).await;
            refused(again, Code::FailedPrecondition, text);
        }
        let text = "etcdserver: user name is empty";
        let nameless = calls.add_user("", false).await;
        refused(nameless, Code::InvalidArgument, text);
        calls.add_role("r").await.unwrap();
        for name in ["nobody", ""] {
            let outcomes = [
                calls.get_user(name).await,
                calls.delete_user(name).await,
                calls.change_password(name).await,
                calls.grant_role(name, "r").await,
                calls.revoke_role(name, "r").await,
            ];
            for outcome in outcomes {
                let text = "etcdserver: user name not found";
                refused(outcome, Code::FailedPrecondition, text);
            }
        }
    }
}

#[tokio::test]
async fn of_roles_and_permissions() {
    for server in both().await {
        let mut calls = Calls::to(&server).await;
        calls.add_user("u", false).await.unwrap();
        calls.add_role("r").await.unwrap();
        let text = "etcdserver: role name already exists";
        refused(calls.add_role("r").await, Code::FailedPrecondition, text);
        let text = "etcdserver: role name is empty";
        refused(calls.add_role("").await, Code::InvalidArgument, text);
        let outcomes = [
            calls.get_role("none").await,
            calls.delete_role("none").await,
            calls.grant_role("u", "none").await,
            calls.grant("none", Some(("a", "b"))).await,
            calls.revoke("none", "a", "b").await,
        ];
        for outcome in outcomes {
            let text = "etcdserver: role name not found";
            refused(outcome, Code::FailedPrecondition, text);
        }
        let text = "etcdserver: role is not granted to the user";
        for role in ["r", "none"] {
            let outcome = calls.revoke_role("u", role).await;
            refused(outcome, Code::FailedPrecondition, text);
        }
        let text = "etcdserver: permission not given";
        for role in ["r", "none"] {
            refused(calls.grant(role, None).await, Code::InvalidArgument, text);
        }
        let text = "etcdserver: invalid auth management";
        for range in [("", "b"), ("b", "a"), ("a", "a")] {
            let outcome = calls.grant("r", Some(range)).await;
            refused(outcome, Code::InvalidArgument, text);
        }
        calls.grant("r", Some(("a", "b"))).await.unwrap();
        let text = "etcdserver: permission is not granted to the role";
        for (key, end) in [("a", ""), ("a", "c"), ("b", "")] {
            let outcome = calls.revoke("r", key, end).await;
            refused(outcome, Code::FailedPrecondition, text);
        }
    }
}

#[tokio::test]
async fn of_logins_and_callers() {
    for server in both().await {
        let mut calls = Calls::to(&server).await;
        let text = "etcdserver: authentication is not enabled";
        let outcome = calls.log_in("u", "secret").await;
        refused(outcome, Code::FailedPrecondition, text);
        calls.add_user("n", true).await.unwrap();
        let client = enabled(&server).await;
        // etcd: its table lacks this one, so it has no prefix and no code.
        let text = "auth: authentication failed, password was given for no password user";
        for password in ["", "secret"] {
            let outcome = calls.log_in("n", password).await;
            refused(outcome, Code::Unknown, text);
        }
        let text = "etcdserver: authentication failed, invalid user ID or password";
        for (name, password) in [("u", "wrong"), ("u", ""), ("nobody", "secret"), ("", "")] {
            let outcome = calls.log_in(name, password).await;
            refused(outcome, Code::InvalidArgument, text);
        }
        let u = log_in(&client, "u").await;
        let mut kv = client.kv.clone();
        let outcome = kv.range(by(&u, get("b"))).await.map(drop);
        let text = "etcdserver: permission denied";
        refused(outcome, Code::PermissionDenied, text);
        let text = "etcdserver: user name is empty";
        refused(calls.add_role("x").await, Code::InvalidArgument, text);
        let outcome = kv.range(by("none.1", get("a"))).await.map(drop);
        let text = "etcdserver: invalid auth token";
        refused(outcome, Code::Unauthenticated, text);
    }
}

#[tokio::test]
async fn etcdctl_shows_them() {
    for server in both().await {
        let ctl = async |args: &[&str]| etcdctl(&server, args, "").await;
        for args in [
            &["user", "add", "u:secret"][..],
            &["user", "add", "n", "--no-password"],
            &["role", "add", "r"],
            &["user", "add", "root:secret"],
            &["role", "add", "root"],
            &["user", "grant-role", "root", "root"],
        ] {
            ctl(args).await.ok();
        }
        for (args, text) in [
            (&["user", "add", "u:secret"][..], "user name already exists"),
            (&["user", "get", "nobody"], "user name not found"),
            (&["role", "add", "r"], "role name already exists"),
            (&["role", "add", ""], "role name is empty"),
            (&["role", "get", "none"], "role name not found"),
            (&["user", "grant-role", "u", "none"], "role name not found"),
            (
                &["user", "revoke-role", "u", "r"],
                "role is not granted to the user",
            ),
            (
                &["role", "revoke-permission", "r", "a"],
                "permission is not granted to the role",
            ),
        ] {
            let refusal = ctl(args).await;
            let shown = refusal.code != 0 && refusal.stderr.contains(text);
            assert!(shown, "{:?} {args:?}: {refusal:?}", server.kind());
        }
        ctl(&["auth", "enable"]).await.ok();
        let refusal = ctl(&["--user=n:secret", "get", "a"]).await;
        let text = "password was given for no password user";
        assert!(refusal.stderr.contains(text), "{refusal:?}");
    }
}
