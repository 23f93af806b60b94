//! What etcd stores as JSON: values of the buckets `members`, `cluster` and `meta` (`ConfState`), and the contexts of changes of
//! the members. Keys stand in the order in which etcd writes them, so that a value that is written here equals etcd's.

use super::error::MessageError;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

/// Longest JSON that is read.
pub const JSON_BYTES_MAX: usize = 1 << 20;

/// A member: a value of the bucket `members` (its key is the id in hexadecimal digits), and the context of a change that updates
/// one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: u64,
    #[serde(rename = "peerURLs", default, deserialize_with = "or_default")]
    pub peer_urls: Vec<String>,
    #[serde(rename = "isLearner", default, skip_serializing_if = "is_false")]
    pub is_learner: bool,
    /// Empty until the member has started.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(
        rename = "clientURLs",
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub client_urls: Vec<String>,
}

/// The context of a change that adds a member, or makes a voter of a learner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigChangeContext {
    #[serde(flatten)]
    pub member: Member,
    #[serde(rename = "isPromote", default)]
    pub is_promote: bool,
}

/// The value of `downgrade` in the bucket `cluster`. That of `clusterVersion` is plain text, such as `3.7.0`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downgrade {
    #[serde(rename = "target-version", default)]
    pub target_version: String,
    #[serde(default)]
    pub enabled: bool,
}

/// Reads one of the values above, or a `ConfState`. `what` names it in the error.
pub fn from_json<T: DeserializeOwned>(what: &'static str, json: &[u8]) -> Result<T, MessageError> {
    if json.len() > JSON_BYTES_MAX {
        return Err(MessageError::TooLong {
            what,
            bytes: json.len(),
            max: JSON_BYTES_MAX,
        });
    }
    serde_json::from_slice(json).map_err(|source| MessageError::Json { what, source })
}

/// Writes one as etcd writes it.
pub fn to_json<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, MessageError> {
    serde_json::to_vec(value).map_err(|source| MessageError::Json { what, source })
}

// Go writes an empty list as `null` where it has never been filled.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::{ConfigChangeContext, Downgrade, JSON_BYTES_MAX, Member, from_json, to_json};
    use crate::messages::{ConfState, MessageError};
    use serde::{Serialize, de::DeserializeOwned};

    fn round_trip<T: Serialize + DeserializeOwned>(json: &str) -> T {
        let value = from_json("value", json.as_bytes()).unwrap();
        let written = to_json("value", &value).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), json);
        value
    }

    #[test]
    fn values_are_written_as_etcd_writes_them() {
        let member: Member = round_trip(concat!(
            r#"{"id":10276657743932975437,"peerURLs":["http://localhost:2380"],"#,
            r#""name":"default","clientURLs":["http://localhost:2379"]}"#
        ));
        assert_eq!(member.id, 0x8e9e_05c5_2164_694d);
        let learner: Member = round_trip(r#"{"id":1,"peerURLs":["http://a:1"],"isLearner":true}"#);
        assert!(learner.is_learner, "it says so");
        let promoted: ConfigChangeContext =
            round_trip(r#"{"id":1,"peerURLs":[],"isPromote":true}"#);
        assert!(promoted.is_promote, "it says so");
        let downgrade: Downgrade = round_trip(r#"{"target-version":"","enabled":false}"#);
        assert_eq!(downgrade, Downgrade::default());
        let state: ConfState =
            round_trip(r#"{"voters":[10276657743932975437],"auto_leave":false}"#);
        assert_eq!(state.voters, [0x8e9e_05c5_2164_694d]);
    }

    #[test]
    fn lists_that_go_never_filled_are_empty() {
        let json = br#"{"id":1,"peerURLs":null,"clientURLs":null}"#;
        let member: Member = from_json("member", json).unwrap();
        assert!(member.peer_urls.is_empty(), "null is empty");
        let state: ConfState = from_json("state", br#"{"voters":null,"auto_leave":null}"#).unwrap();
        assert_eq!(state, ConfState::default());
    }

    #[test]
    fn other_bytes_are_refused() {
        for json in ["", "[]", "{}", r#"{"id":-1}"#, r#"{"id":"8e9e"}"#, "\u{0}"] {
            let refused = from_json::<Member>("member", json.as_bytes());
            assert!(matches!(refused, Err(MessageError::Json { .. })), "{json}");
        }
        let long = vec![b' '; JSON_BYTES_MAX + 1];
        let refused = from_json::<Member>("member", &long);
        assert!(
            matches!(refused, Err(MessageError::TooLong { .. })),
            "{refused:?}"
        );
    }
}
