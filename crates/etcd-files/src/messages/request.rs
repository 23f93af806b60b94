//! The requests of the log.

use super::{
    auth::{
        AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest,
        AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest,
        AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
        AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, EmptyRequest,
        InternalAuthenticateRequest,
    },
    cluster::{
        ClusterMemberAttrSetRequest, ClusterVersionSetRequest, DowngradeInfoSetRequest,
        DowngradeVersionTestRequest, V2Request,
    },
    error::MessageError,
    kv::{
        AlarmRequest, CompactionRequest, DeleteRangeRequest, LeaseCheckpointRequest,
        LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, TxnRequest,
    },
    wire::Fields,
};
use bytes::Bytes;
use prost::Message;

/// Comparisons and operations of one transaction, those of inner transactions included. etcd's default limit is 128.
pub const OPERATIONS_MAX: usize = 100_000;
/// Length of all parts of a request that are neither keys, values nor transactions.
const OTHER_BYTES_MAX: usize = 1 << 20;
/// Unknown fields that are named.
const UNKNOWN_MAX: usize = 16;

/// Numbers of the fields of `InternalRaftRequest`, in order.
const KNOWN: [u32; 33] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 100, 1000, 1011, 1012, 1013, 1100, 1101, 1102, 1103, 1104,
    1105, 1106, 1107, 1200, 1201, 1202, 1203, 1204, 1300, 1301, 1302, 9900,
];

/// Who asks.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RequestHeader {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Empty if authentication was not enabled.
    #[prost(string, tag = "2")]
    pub username: String,
    /// A request of another revision than the current one fails when it is applied.
    #[prost(uint64, tag = "3")]
    pub auth_revision: u64,
}

/// A request: one of its fields is set, beside the header.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct InternalRaftRequest {
    #[prost(message, optional, tag = "100")]
    pub header: Option<RequestHeader>,
    /// 0 where there is a header, which has the number then.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Up to etcd 3.5.
    #[prost(message, optional, tag = "2")]
    pub v2: Option<V2Request>,
    #[prost(message, optional, tag = "3")]
    pub range: Option<RangeRequest>,
    #[prost(message, optional, tag = "4")]
    pub put: Option<PutRequest>,
    #[prost(message, optional, tag = "5")]
    pub delete_range: Option<DeleteRangeRequest>,
    #[prost(message, optional, tag = "6")]
    pub txn: Option<TxnRequest>,
    #[prost(message, optional, tag = "7")]
    pub compaction: Option<CompactionRequest>,
    #[prost(message, optional, tag = "8")]
    pub lease_grant: Option<LeaseGrantRequest>,
    #[prost(message, optional, tag = "9")]
    pub lease_revoke: Option<LeaseRevokeRequest>,
    #[prost(message, optional, tag = "10")]
    pub alarm: Option<AlarmRequest>,
    #[prost(message, optional, tag = "11")]
    pub lease_checkpoint: Option<LeaseCheckpointRequest>,
    #[prost(message, optional, tag = "1000")]
    pub auth_enable: Option<EmptyRequest>,
    #[prost(message, optional, tag = "1011")]
    pub auth_disable: Option<EmptyRequest>,
    #[prost(message, optional, tag = "1012")]
    pub authenticate: Option<InternalAuthenticateRequest>,
    /// Since etcd 3.5.
    #[prost(message, optional, tag = "1013")]
    pub auth_status: Option<EmptyRequest>,
    #[prost(message, optional, tag = "1100")]
    pub auth_user_add: Option<AuthUserAddRequest>,
    #[prost(message, optional, tag = "1101")]
    pub auth_user_delete: Option<AuthUserDeleteRequest>,
    #[prost(message, optional, tag = "1102")]
    pub auth_user_get: Option<AuthUserGetRequest>,
    #[prost(message, optional, tag = "1103")]
    pub auth_user_change_password: Option<AuthUserChangePasswordRequest>,
    #[prost(message, optional, tag = "1104")]
    pub auth_user_grant_role: Option<AuthUserGrantRoleRequest>,
    #[prost(message, optional, tag = "1105")]
    pub auth_user_revoke_role: Option<AuthUserRevokeRoleRequest>,
    #[prost(message, optional, tag = "1106")]
    pub auth_user_list: Option<EmptyRequest>,
    #[prost(message, optional, tag = "1107")]
    pub auth_role_list: Option<EmptyRequest>,
    #[prost(message, optional, tag = "1200")]
    pub auth_role_add: Option<AuthRoleAddRequest>,
    #[prost(message, optional, tag = "1201")]
    pub auth_role_delete: Option<AuthRoleDeleteRequest>,
    #[prost(message, optional, tag = "1202")]
    pub auth_role_get: Option<AuthRoleGetRequest>,
    #[prost(message, optional, tag = "1203")]
    pub auth_role_grant_permission: Option<AuthRoleGrantPermissionRequest>,
    #[prost(message, optional, tag = "1204")]
    pub auth_role_revoke_permission: Option<AuthRoleRevokePermissionRequest>,
    /// Since etcd 3.5.
    #[prost(message, optional, tag = "1300")]
    pub cluster_version_set: Option<ClusterVersionSetRequest>,
    /// Since etcd 3.5.
    #[prost(message, optional, tag = "1301")]
    pub cluster_member_attr_set: Option<ClusterMemberAttrSetRequest>,
    /// Since etcd 3.5.
    #[prost(message, optional, tag = "1302")]
    pub downgrade_info_set: Option<DowngradeInfoSetRequest>,
    /// Since etcd 3.6.
    #[prost(message, optional, tag = "9900")]
    pub downgrade_version_test: Option<DowngradeVersionTestRequest>,
}

impl InternalRaftRequest {
    /// Decodes a request, and refuses one that is not understood in full. So that no field deeper within is dropped either, the
    /// decoded request must be as long as the encoded one when it is encoded again; what etcd writes always is.
    pub fn decode_whole(encoded: Bytes) -> Result<Self, MessageError> {
        let numbers = unknown_fields(&encoded)?;
        if !numbers.is_empty() {
            return Err(MessageError::UnknownFields { numbers });
        }
        check_size(&encoded)?;
        let length = encoded.len();
        let request = Self::decode(encoded).map_err(malformed)?;
        let understood = request.encoded_len();
        if understood != length {
            return Err(MessageError::NotUnderstood {
                encoded: length,
                understood,
            });
        }
        Ok(request)
    }
}

/// Numbers of the fields of an encoded `InternalRaftRequest` that are not known here: each once, the first 16 of them.
pub fn unknown_fields(encoded: &[u8]) -> Result<Vec<u32>, MessageError> {
    let mut unknown = Vec::new();
    for field in Fields::of(encoded) {
        let number = field.map_err(malformed)?.number;
        let known = KNOWN.binary_search(&number).is_ok() || unknown.contains(&number);
        if !known && unknown.len() < UNKNOWN_MAX {
            unknown.push(number);
        }
    }
    Ok(unknown)
}

/// Refuses a request that would take many times its length in memory, since it consists of many small parts.
fn check_size(encoded: &[u8]) -> Result<(), MessageError> {
    let mut other_bytes = 0;
    let mut operations = 0;
    for field in Fields::of(encoded) {
        let field = field.map_err(malformed)?;
        match field.number {
            2..=5 => {}
            6 => count_operations(field.body, &mut operations)?,
            _ => other_bytes += field.body.len(),
        }
    }
    if other_bytes > OTHER_BYTES_MAX {
        return Err(MessageError::TooLong {
            what: "parts of a request",
            bytes: other_bytes,
            max: OTHER_BYTES_MAX,
        });
    }
    Ok(())
}

/// Adds the comparisons and operations of an encoded transaction to `count`.
fn count_operations(txn: &[u8], count: &mut usize) -> Result<(), MessageError> {
    let mut add = || {
        *count += 1;
        if *count > OPERATIONS_MAX {
            let max = OPERATIONS_MAX;
            return Err(MessageError::TooManyOperations { max });
        }
        Ok(())
    };
    let mut transactions = vec![txn];
    while let Some(txn) = transactions.pop() {
        for part in Fields::of(txn) {
            let part = part.map_err(malformed)?;
            add()?;
            if matches!(part.number, 2 | 3) {
                for operation in Fields::of(part.body) {
                    let operation = operation.map_err(malformed)?;
                    if operation.number == 4 {
                        add()?;
                        transactions.push(operation.body);
                    }
                }
            }
        }
    }
    Ok(())
}

fn malformed(source: prost::DecodeError) -> MessageError {
    MessageError::Malformed {
        what: "request of the log",
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::{InternalRaftRequest, KNOWN, OPERATIONS_MAX, unknown_fields};
    use crate::messages::{
        DeleteRangeRequest, MessageError, Operation, PutRequest, RequestHeader, RequestOp,
        TxnRequest,
    };
    use bytes::Bytes;
    use prost::Message;

    /// Each known number, one after the other, as an empty part of a request; field 1 is a number.
    fn every_field() -> Vec<u8> {
        let mut encoded = vec![1 << 3, 7];
        for number in KNOWN.iter().skip(1) {
            prost::encoding::encode_key(
                *number,
                prost::encoding::WireType::LengthDelimited,
                &mut encoded,
            );
            encoded.push(0);
        }
        encoded
    }

    fn put(key: &'static [u8]) -> PutRequest {
        PutRequest {
            key: Bytes::from_static(key),
            ..PutRequest::default()
        }
    }

    fn txn(success: Vec<RequestOp>) -> InternalRaftRequest {
        InternalRaftRequest {
            txn: Some(TxnRequest {
                success,
                ..TxnRequest::default()
            }),
            ..InternalRaftRequest::default()
        }
    }

    #[test]
    fn the_list_of_known_fields_is_that_of_the_struct() {
        let encoded = every_field();
        assert_eq!(unknown_fields(&encoded).unwrap(), [0; 0]);
        let request = InternalRaftRequest::decode_whole(encoded.into()).unwrap();
        let again = InternalRaftRequest::decode_whole(request.encode_to_vec().into()).unwrap();
        assert_eq!(request, again);
        assert!(
            request.downgrade_version_test.is_some(),
            "the last field is one of the struct's"
        );
    }

    #[test]
    fn unknown_fields_are_named_once() {
        let mut encoded = txn(Vec::new()).encode_to_vec();
        for number in [12, 1303, 12] {
            prost::encoding::encode_key(number, prost::encoding::WireType::Varint, &mut encoded);
            encoded.push(1);
        }
        assert_eq!(unknown_fields(&encoded).unwrap(), [12, 1303]);
        let refused = InternalRaftRequest::decode_whole(encoded.into()).unwrap_err();
        assert!(refused.to_string().contains("[12, 1303]"), "{refused}");
    }

    #[test]
    fn a_field_of_a_part_that_is_not_known_is_noticed() {
        // A put with a field 7, which has no meaning yet.
        let encoded = Bytes::from_static(&[4 << 3 | 2, 5, 1 << 3 | 2, 1, b'k', 7 << 3, 1]);
        let refused = InternalRaftRequest::decode_whole(encoded);
        assert!(
            matches!(
                refused,
                Err(MessageError::NotUnderstood {
                    encoded: 7,
                    understood: 5
                })
            ),
            "{refused:?}"
        );
    }

    #[test]
    fn requests_survive_encoding() {
        let inner = txn(vec![RequestOp {
            request: Some(Operation::DeleteRange(DeleteRangeRequest {
                key: Bytes::from_static(b"a"),
                range_end: Bytes::from_static(b"b"),
                prev_kv: true,
            })),
        }]);
        let request = InternalRaftRequest {
            header: Some(RequestHeader {
                id: 9,
                username: "root".to_owned(),
                auth_revision: 4,
            }),
            ..txn(vec![
                RequestOp {
                    request: Some(Operation::Put(put(b"k"))),
                },
                RequestOp {
                    request: inner.txn.map(Operation::Txn),
                },
            ])
        };
        let decoded = InternalRaftRequest::decode_whole(request.encode_to_vec().into());
        assert_eq!(decoded.unwrap(), request);
    }

    #[test]
    fn a_request_of_countless_small_parts_is_refused() {
        let many = txn(vec![RequestOp::default(); OPERATIONS_MAX + 1]);
        let refused = InternalRaftRequest::decode_whole(many.encode_to_vec().into());
        assert!(
            matches!(refused, Err(MessageError::TooManyOperations { .. })),
            "{refused:?}"
        );
        let enough = txn(vec![RequestOp::default(); OPERATIONS_MAX]);
        InternalRaftRequest::decode_whole(enough.encode_to_vec().into()).unwrap();
        // 2 MiB of checkpoints without content.
        let mut encoded = vec![11 << 3 | 2];
        prost::encoding::encode_varint(2 << 20, &mut encoded);
        encoded.extend([1 << 3 | 2, 0].repeat(1 << 20));
        let refused = InternalRaftRequest::decode_whole(encoded.into());
        assert!(
            matches!(refused, Err(MessageError::TooLong { .. })),
            "{refused:?}"
        );
    }
}
