//! What an entry of the log tells the member to do.

use super::{
    cluster::V2Request,
    error::MessageError,
    raft::{ConfChange, ConfChangeV2, Entry, EntryKind},
    request::InternalRaftRequest,
};
use bytes::Bytes;
use prost::Message;

/// The methods of the v2 API that change something or wait in the log.
const V2_METHODS: [&str; 5] = ["PUT", "POST", "DELETE", "QGET", "SYNC"];

/// The content of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The empty entry with which a leader begins its term.
    Nothing,
    Request(Box<InternalRaftRequest>),
    /// A request of the v2 API without the envelope of the others, as etcd 3.4 and 3.5 write it.
    V2(Box<V2Request>),
    Change(ConfChange),
    /// Defined, but proposed by no etcd.
    ChangeV2(ConfChangeV2),
}

impl Command {
    /// Decodes an entry's data. A request must be understood in full (see `InternalRaftRequest::decode_whole`).
    pub fn decode(entry: &Entry) -> Result<Self, MessageError> {
        let kind = EntryKind::try_from(entry.kind);
        let kind = kind.map_err(|_| MessageError::UnknownEntryKind { kind: entry.kind })?;
        let data = entry.data.clone();
        match kind {
            EntryKind::Normal if data.is_empty() => Ok(Self::Nothing),
            EntryKind::Normal => request(data),
            // A record of another kind could pass for it. etcd always writes all fields, and no change without a member.
            EntryKind::ConfChange | EntryKind::ConfChangeV2 if data.is_empty() => {
                Err(MessageError::EmptyChange)
            }
            EntryKind::ConfChange => {
                let decoded = ConfChange::decode(data).map_err(malformed)?;
                Ok(Self::Change(decoded))
            }
            EntryKind::ConfChangeV2 => {
                let decoded = ConfChangeV2::decode(data).map_err(malformed)?;
                Ok(Self::ChangeV2(decoded))
            }
        }
    }
}

// etcd: up to 3.5 an entry that is no `InternalRaftRequest` is a request of the v2 API. Its method is a string where the other
// has a message, and is no valid message.
fn request(data: Bytes) -> Result<Command, MessageError> {
    let error = match InternalRaftRequest::decode_whole(data.clone()) {
        Ok(request) => return Ok(Command::Request(Box::new(request))),
        Err(error) => error,
    };
    let v2 = V2Request::decode(data).ok();
    let v2 = v2.filter(|v2| V2_METHODS.contains(&v2.method()));
    v2.map(|v2| Command::V2(Box::new(v2))).ok_or(error)
}

fn malformed(source: prost::DecodeError) -> MessageError {
    MessageError::Malformed {
        what: "change of the members",
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::Command;
    use crate::messages::{
        ConfChange, ConfChangeKind, Entry, EntryKind, InternalRaftRequest, MessageError,
        PutRequest, V2Request,
    };
    use prost::Message;

    fn entry(kind: EntryKind, message: &impl Message) -> Entry {
        Entry {
            kind: kind.into(),
            term: 1,
            index: 1,
            data: message.encode_to_vec().into(),
        }
    }

    #[test]
    fn the_first_entry_of_a_leader_is_empty() {
        let command = Command::decode(&Entry::default()).unwrap();
        assert_eq!(command, Command::Nothing);
    }

    #[test]
    fn requests_and_changes_are_told_apart() {
        let request = InternalRaftRequest {
            id: 3,
            put: Some(PutRequest::default()),
            ..InternalRaftRequest::default()
        };
        let command = Command::decode(&entry(EntryKind::Normal, &request)).unwrap();
        assert_eq!(command, Command::Request(Box::new(request)));
        let change = ConfChange {
            kind: ConfChangeKind::RemoveNode.into(),
            node_id: 5,
            ..ConfChange::default()
        };
        let command = Command::decode(&entry(EntryKind::ConfChange, &change)).unwrap();
        assert_eq!(command, Command::Change(change));
    }

    #[test]
    fn bare_requests_of_the_v2_api_are_recognised() {
        for method in super::V2_METHODS {
            let request = V2Request {
                id: Some(77),
                method: Some(method.to_owned()),
                path: Some("/0/members/8e9e05c52164694d/attributes".to_owned()),
                value: Some(r#"{"name":"a","clientURLs":["http://127.0.0.1:2379"]}"#.to_owned()),
                directory: Some(false),
                ..V2Request::default()
            };
            let command = Command::decode(&entry(EntryKind::Normal, &request)).unwrap();
            assert_eq!(command, Command::V2(Box::new(request)), "{method}");
        }
    }

    #[test]
    fn changes_without_content_are_refused() {
        for kind in [EntryKind::ConfChange, EntryKind::ConfChangeV2] {
            let empty = Entry {
                kind: kind.into(),
                ..Entry::default()
            };
            let refused = Command::decode(&empty);
            assert!(
                matches!(refused, Err(MessageError::EmptyChange)),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn unknown_kinds_and_nonsense_are_refused() {
        let unknown = Entry {
            kind: 3,
            ..Entry::default()
        };
        let refused = Command::decode(&unknown);
        assert!(
            matches!(refused, Err(MessageError::UnknownEntryKind { kind: 3 })),
            "{refused:?}"
        );
        let nonsense = Entry {
            data: b"nonsense".as_slice().into(),
            ..Entry::default()
        };
        let refused = Command::decode(&nonsense);
        assert!(
            matches!(refused, Err(MessageError::Malformed { .. })),
            "{refused:?}"
        );
    }
}
