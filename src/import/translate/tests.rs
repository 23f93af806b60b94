//! Every kind of request that an etcd logs, and what it becomes.

use super::*;
use crate::{
    auth::change::PasswordHash,
    kv::command::{DeleteRange, Put, Txn, TxnOp},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use quorate_etcd_files::messages::{
    self, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest, AuthUserAddRequest, AuthUserChangePasswordRequest,
    AuthUserDeleteRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, CompactionRequest,
    ConfChange, DeleteRangeRequest, EmptyRequest, EntryKind, LeaseRevokeRequest, Operation,
    PutRequest, RequestOp, TxnRequest, UserAddOptions, V2Request,
};

const SETTINGS: Settings = Settings {
    cluster: 7,
    lease_ttl_min: 2,
};

fn entry(kind: EntryKind, data: Vec<u8>) -> Entry {
    Entry {
        kind: kind.into(),
        term: 2,
        index: 9,
        data: data.into(),
    }
}

fn translated(request: &InternalRaftRequest) -> Result<Option<Command>, EntryFault> {
    let entry = entry(EntryKind::Normal, request.encode_to_vec());
    Ok(translate(&entry, &SETTINGS)?.map(|asked| asked.command))
}

/// What a request with this one part comes to.
fn of(part: impl FnOnce(&mut InternalRaftRequest)) -> Result<Option<Command>, EntryFault> {
    let mut request = InternalRaftRequest {
        id: 3,
        ..InternalRaftRequest::default()
    };
    part(&mut request);
    translated(&request)
}

#[track_caller]
fn assert_is(part: impl FnOnce(&mut InternalRaftRequest), expected: Command) {
    assert_eq!(of(part).expect("it has a translation"), Some(expected));
}

#[track_caller]
fn assert_change(part: impl FnOnce(&mut InternalRaftRequest), expected: Change) {
    assert_is(part, Command::Auth(expected));
}

#[test]
fn entries_without_a_request_change_nothing() {
    let v2 = V2Request {
        method: Some("PUT".to_owned()),
        path: Some("/0/members/1/attributes".to_owned()),
        ..V2Request::default()
    };
    let change = ConfChange {
        node_id: 1,
        ..ConfChange::default()
    };
    for entry in [
        entry(EntryKind::Normal, Vec::new()),
        entry(EntryKind::Normal, v2.encode_to_vec()),
        entry(EntryKind::ConfChange, change.encode_to_vec()),
    ] {
        assert_eq!(translate(&entry, &SETTINGS).unwrap(), None, "{entry:?}");
    }
    let joint = messages::ConfChangeV2 {
        transition: 1,
        ..messages::ConfChangeV2::default()
    };
    let refused = translate(
        &entry(EntryKind::ConfChangeV2, joint.encode_to_vec()),
        &SETTINGS,
    );
    assert!(matches!(refused, Err(EntryFault::ChangeV2)), "{refused:?}");
}

#[test]
fn requests_for_keys_become_ours() {
    let put = PutRequest {
        key: "k".into(),
        value: "v".into(),
        lease: 5,
        ..PutRequest::default()
    };
    let ours = Put {
        key: "k".into(),
        value: "v".into(),
        lease: LeaseId(5),
        ..Put::default()
    };
    let delete = DeleteRangeRequest {
        key: "a".into(),
        range_end: "b".into(),
        ..DeleteRangeRequest::default()
    };
    let deletes = DeleteRange {
        key: "a".into(),
        range_end: "b".into(),
        ..DeleteRange::default()
    };
    assert_is(
        |request| request.put = Some(put.clone()),
        Command::Put(ours.clone()),
    );
    assert_is(
        |request| request.delete_range = Some(delete.clone()),
        Command::DeleteRange(deletes.clone()),
    );
    let nested = TxnRequest {
        success: vec![RequestOp {
            request: Some(Operation::Put(put)),
        }],
        ..TxnRequest::default()
    };
    let txn = TxnRequest {
        success: vec![
            RequestOp {
                request: Some(Operation::DeleteRange(delete)),
            },
            RequestOp {
                request: Some(Operation::Txn(nested)),
            },
        ],
        ..TxnRequest::default()
    };
    let inner = Txn {
        success: vec![TxnOp::Put(ours)],
        ..Txn::default()
    };
    assert_is(
        |request| request.txn = Some(txn),
        Command::Txn(Txn {
            success: vec![TxnOp::DeleteRange(deletes), TxnOp::Txn(inner)],
            ..Txn::default()
        }),
    );
    let revision = Revision(8);
    assert_is(
        |request| {
            request.compaction = Some(CompactionRequest {
                revision: 8,
                physical: true,
            });
        },
        Command::Compact(Compact { revision }),
    );
}

/// The state machine relies on the checks that front ends make.
#[test]
fn what_no_front_end_lets_pass_is_refused() {
    let refused = of(|request| request.put = Some(PutRequest::default()));
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("put (4)"), "{text}");
    assert!(text.contains("key is not provided"), "{text}");
    assert!(text.contains("SIGTERM"), "it says what to do: {text}");
    let refused = of(|request| request.delete_range = Some(DeleteRangeRequest::default()));
    assert!(
        matches!(&refused, Err(EntryFault::Impossible { field, .. }) if field.contains("(5)")),
        "{refused:?}"
    );
    let empty = TxnRequest {
        failure: vec![RequestOp::default()],
        ..TxnRequest::default()
    };
    let refused = of(|request| request.txn = Some(empty));
    assert!(
        matches!(&refused, Err(EntryFault::Impossible { field, .. }) if field.contains("(6)")),
        "{refused:?}"
    );
}

#[test]
fn leases_have_the_least_time_of_their_etcd() {
    let grant =
        |id, ttl| of(|request| request.lease_grant = Some(LeaseGrantRequest { ttl, id })).unwrap();
    let granted = |ttl_secs| {
        Some(Command::GrantLease(GrantLease {
            id: LeaseId(-4),
            ttl_secs,
        }))
    };
    assert_eq!(grant(-4, 60), granted(60));
    assert_eq!(grant(-4, 1), granted(2), "raised");
    assert_eq!(grant(-4, -9), granted(2), "raised");
    assert_eq!(grant(-4, LEASE_TTL_MAX), granted(LEASE_TTL_MAX));
    assert_eq!(grant(-4, LEASE_TTL_MAX + 1), None, "refused");
    assert_eq!(grant(0, 60), None, "refused");
    assert_is(
        |request| request.lease_revoke = Some(LeaseRevokeRequest { id: -4 }),
        Command::RevokeLease(RevokeLease { id: LeaseId(-4) }),
    );
}

#[test]
fn alarms_are_raised_and_taken_back() {
    let alarm = |action, alarm| {
        of(|request| {
            request.alarm = Some(AlarmRequest {
                action,
                member_id: 5,
                alarm,
            });
        })
    };
    let set = |kind, raised| {
        Some(Command::SetAlarm(SetAlarm {
            member: MemberId(5),
            kind,
            raised,
        }))
    };
    assert_eq!(alarm(1, 1).unwrap(), set(Kind::NoSpace, true));
    assert_eq!(alarm(1, 2).unwrap(), set(Kind::Corrupt, true));
    assert_eq!(alarm(2, 1).unwrap(), set(Kind::NoSpace, false));
    assert_eq!(alarm(0, 1).unwrap(), None, "only asks");
    assert_eq!(alarm(1, 0).unwrap(), None, "no alarm");
    for (action, kind, field) in [(3, 1, "alarm's action"), (1, 3, "alarm's kind")] {
        let refused = alarm(action, kind).unwrap_err().to_string();
        assert!(refused.contains(field), "{refused}");
        assert!(refused.contains('3'), "{refused}");
    }
}

#[test]
fn authentication_is_turned_on_and_off() {
    assert_change(
        |request| request.auth_enable = Some(EmptyRequest {}),
        Change::Enable,
    );
    assert_change(
        |request| request.auth_disable = Some(EmptyRequest {}),
        Change::Disable,
    );
}

fn hash(text: &str) -> PasswordHash {
    PasswordHash(text.as_bytes().into())
}

#[test]
fn users_become_ours() {
    let (name, stored) = ("u".to_owned(), STANDARD.encode("$2a$hash"));
    let add = |no_password| AuthUserAddRequest {
        name: "u".to_owned(),
        hashed_password: STANDARD.encode("$2a$hash"),
        options: Some(UserAddOptions { no_password }),
        ..AuthUserAddRequest::default()
    };
    for (no_password, password) in [(false, Some(hash("$2a$hash"))), (true, None)] {
        let name = name.clone();
        assert_change(
            |request| request.auth_user_add = Some(add(no_password)),
            Change::AddUser { name, password },
        );
    }
    assert_change(
        |request| {
            request.auth_user_delete = Some(AuthUserDeleteRequest { name: name.clone() });
        },
        Change::DeleteUser { name: name.clone() },
    );
    assert_change(
        |request| {
            request.auth_user_change_password = Some(AuthUserChangePasswordRequest {
                name: name.clone(),
                hashed_password: stored,
                ..AuthUserChangePasswordRequest::default()
            });
        },
        Change::ChangePassword {
            name: name.clone(),
            password: hash("$2a$hash"),
        },
    );
    let (user, role) = (name.clone(), "r".to_owned());
    assert_change(
        |request| {
            request.auth_user_grant_role = Some(AuthUserGrantRoleRequest {
                user: user.clone(),
                role: role.clone(),
            });
        },
        Change::GrantRole {
            user: user.clone(),
            role: role.clone(),
        },
    );
    assert_change(
        |request| {
            request.auth_user_revoke_role = Some(AuthUserRevokeRoleRequest {
                name,
                role: role.clone(),
            });
        },
        Change::RevokeRole {
            user,
            role: role.clone(),
        },
    );
}

#[test]
fn a_plain_password_is_hashed_alike_by_everyone() {
    let add = || {
        of(|request| {
            request.auth_user_add = Some(AuthUserAddRequest {
                name: "u".to_owned(),
                password: "secret".to_owned(),
                ..AuthUserAddRequest::default()
            });
        })
        .unwrap()
    };
    let Some(Command::Auth(Change::AddUser {
        password: Some(PasswordHash(hash)),
        ..
    })) = add()
    else {
        panic!("no user")
    };
    let text = String::from_utf8(hash.to_vec()).unwrap();
    assert!(bcrypt::verify("secret", &text).unwrap(), "{text}");
    assert_eq!(add(), add());
}

#[test]
fn a_password_that_is_no_base64_is_refused() {
    let refused = of(|request| {
        request.auth_user_change_password = Some(AuthUserChangePasswordRequest {
            hashed_password: "***".to_owned(),
            ..AuthUserChangePasswordRequest::default()
        });
    });
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("user_change_password (1103)"), "{text}");
}

#[test]
fn roles_become_ours() {
    let role = "r".to_owned();
    assert_change(
        |request| request.auth_role_add = Some(AuthRoleAddRequest { name: role.clone() }),
        Change::AddRole { name: role.clone() },
    );
    assert_change(
        |request| {
            request.auth_role_delete = Some(AuthRoleDeleteRequest { role: role.clone() });
        },
        Change::DeleteRole { name: role.clone() },
    );
    let grant = |key: &'static str, range_end: &'static str| AuthRoleGrantPermissionRequest {
        name: "r".to_owned(),
        permission: Some(messages::Permission {
            kind: 2,
            key: key.into(),
            range_end: range_end.into(),
        }),
    };
    let permission = Permission {
        kind: Permission::READ_WRITE,
        key: b"a".to_vec(),
        range_end: b"b".to_vec(),
    };
    assert_change(
        |request| request.auth_role_grant_permission = Some(grant("a", "b")),
        Change::GrantPermission {
            role: role.clone(),
            permission: Some(permission),
        },
    );
    for (key, range_end) in [("", ""), ("b", "a"), ("a", "a")] {
        let refused = of(|request| {
            request.auth_role_grant_permission = Some(grant(key, range_end));
        });
        assert!(
            matches!(&refused, Err(EntryFault::PermissionRange { role }) if role == "r"),
            "{refused:?}"
        );
    }
    assert_change(
        |request| {
            request.auth_role_revoke_permission = Some(AuthRoleRevokePermissionRequest {
                role: role.clone(),
                key: "a".into(),
                range_end: "b".into(),
            });
        },
        Change::RevokePermission {
            role: role.clone(),
            key: b"a".to_vec(),
            range_end: b"b".to_vec(),
        },
    );
}

#[test]
fn what_has_no_effect_here_is_known() {
    let parts: [fn(&mut InternalRaftRequest); 13] = [
        |request| request.v2 = Some(V2Request::default()),
        |request| request.range = Some(messages::RangeRequest::default()),
        |request| request.lease_checkpoint = Some(messages::LeaseCheckpointRequest::default()),
        |request| request.authenticate = Some(messages::InternalAuthenticateRequest::default()),
        |request| request.auth_status = Some(EmptyRequest {}),
        |request| request.auth_user_get = Some(messages::AuthUserGetRequest::default()),
        |request| request.auth_user_list = Some(EmptyRequest {}),
        |request| request.auth_role_list = Some(EmptyRequest {}),
        |request| request.auth_role_get = Some(messages::AuthRoleGetRequest::default()),
        |request| {
            request.cluster_version_set = Some(messages::ClusterVersionSetRequest::default());
        },
        |request| {
            let attributes = messages::ClusterMemberAttrSetRequest::default();
            request.cluster_member_attr_set = Some(attributes);
        },
        |request| request.downgrade_info_set = Some(messages::DowngradeInfoSetRequest::default()),
        |request| {
            let test = messages::DowngradeVersionTestRequest::default();
            request.downgrade_version_test = Some(test);
        },
    ];
    for (at, part) in parts.into_iter().enumerate() {
        assert_eq!(of(part).unwrap(), None, "part {at}");
    }
}

#[test]
fn who_asked_comes_along() {
    let request = InternalRaftRequest {
        header: Some(RequestHeader {
            id: 1,
            username: "u".to_owned(),
            auth_revision: 6,
        }),
        compaction: Some(CompactionRequest::default()),
        ..InternalRaftRequest::default()
    };
    let entry = entry(EntryKind::Normal, request.encode_to_vec());
    let asked = translate(&entry, &SETTINGS).unwrap().unwrap();
    let expected = Author {
        user: "u".to_owned(),
        auth_revision: 6,
    };
    assert_eq!(asked.author, expected);
}

#[test]
fn a_request_asks_for_one_thing() {
    let nothing = of(|_| {});
    assert!(
        matches!(nothing, Err(EntryFault::AsksNothing)),
        "{nothing:?}"
    );
    let both = of(|request| {
        request.compaction = Some(CompactionRequest::default());
        request.auth_enable = Some(EmptyRequest {});
    });
    let text = both.unwrap_err().to_string();
    assert!(
        text.contains("compaction (7) and for auth_enable (1000)"),
        "{text}"
    );
}

/// Each field of the struct, one at a time, is one that some step takes: none is `NotTranslated`.
#[test]
fn every_field_has_a_translation() {
    for number in [
        2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1000, 1011, 1012, 1013, 1100, 1101, 1102, 1103, 1104, 1105,
        1106, 1107, 1200, 1201, 1202, 1203, 1204, 1300, 1301, 1302, 9900,
    ] {
        let mut data = Vec::new();
        let wire_type = prost::encoding::WireType::LengthDelimited;
        prost::encoding::encode_key(number, wire_type, &mut data);
        data.push(0);
        let translated = translate(&entry(EntryKind::Normal, data), &SETTINGS);
        assert!(
            !matches!(
                translated,
                Err(EntryFault::NotTranslated { .. }
                    | EntryFault::AsksNothing
                    | EntryFault::Message(_))
            ),
            "field {number}: {translated:?}"
        );
    }
}

#[test]
fn an_unknown_field_is_named() {
    let mut data = Vec::new();
    let wire_type = prost::encoding::WireType::LengthDelimited;
    prost::encoding::encode_key(1303, wire_type, &mut data);
    data.push(0);
    let refused = translate(&entry(EntryKind::Normal, data), &SETTINGS);
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("1303"), "{text}");
    assert!(text.contains("SIGTERM"), "{text}");
}
