//! Requests that the members themselves put into the log: versions, names and addresses, downgrades; and those of the v2 API.

/// Sets the cluster's version, such as `3.7.0`. Since etcd 3.5.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ClusterVersionSetRequest {
    #[prost(string, tag = "1")]
    pub version: String,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct MemberAttributes {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub client_urls: Vec<String>,
}

/// A member that starts makes its name and client URLs known. Since etcd 3.5.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ClusterMemberAttrSetRequest {
    #[prost(uint64, tag = "1")]
    pub member_id: u64,
    #[prost(message, optional, tag = "2")]
    pub member_attributes: Option<MemberAttributes>,
}

/// Begins or ends a downgrade. Since etcd 3.5.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DowngradeInfoSetRequest {
    #[prost(bool, tag = "1")]
    pub enabled: bool,
    #[prost(string, tag = "2")]
    pub version: String,
}

/// Does nothing; tests of etcd write it. Since etcd 3.6.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DowngradeVersionTestRequest {
    #[prost(string, tag = "1")]
    pub version: String,
}

/// A request of the v2 API. Up to 3.5 members publish their attributes with it (`PUT /0/members/ID/attributes`, the value is
/// JSON), and up to 3.4 the cluster's version (`PUT /0/version`). Other paths are v2 keys of users; `SYNC` lets them expire.
///
/// etcd writes all its fields, zero or not: `Some(0)` is an encoded zero, so that encoding it again gives the same bytes.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct V2Request {
    #[prost(uint64, optional, tag = "1")]
    pub id: Option<u64>,
    #[prost(string, optional, tag = "2")]
    pub method: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub path: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub value: Option<String>,
    #[prost(bool, optional, tag = "5")]
    pub directory: Option<bool>,
    #[prost(string, optional, tag = "6")]
    pub previous_value: Option<String>,
    #[prost(uint64, optional, tag = "7")]
    pub previous_index: Option<u64>,
    #[prost(bool, optional, tag = "8")]
    pub previous_exists: Option<bool>,
    #[prost(int64, optional, tag = "9")]
    pub expiration: Option<i64>,
    #[prost(bool, optional, tag = "10")]
    pub wait: Option<bool>,
    #[prost(uint64, optional, tag = "11")]
    pub since: Option<u64>,
    #[prost(bool, optional, tag = "12")]
    pub recursive: Option<bool>,
    #[prost(bool, optional, tag = "13")]
    pub sorted: Option<bool>,
    #[prost(bool, optional, tag = "14")]
    pub quorum: Option<bool>,
    #[prost(int64, optional, tag = "15")]
    pub time: Option<i64>,
    #[prost(bool, optional, tag = "16")]
    pub stream: Option<bool>,
    #[prost(bool, optional, tag = "17")]
    pub refresh: Option<bool>,
}
