//! Members of the cluster as the replicated membership describes them: name, addresses, role.
//!
//! Consensus stores these bytes beside each id and does not decode them; only this file does. A member's entry has no name
//! and no client URLs until the member has started and published them; so a member that was added but has never
//! started can be recognized.

use crate::{
    codec::{self, CodecError},
    net::PeerAddress,
    raft::{Membership, MembershipError},
    types::MemberId,
};
use bincode::{Decode, Encode};
use bytes::Bytes;
use sha2::{Digest, Sha256};

/// What the membership stores of a member, besides its id and its role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct MemberInfo {
    /// Its name; empty if it was added and has not started yet.
    pub name: String,
    /// Where the other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty if it has not started yet.
    pub client_urls: Vec<String>,
    /// It becomes a voter as soon as it has started and caught up: until then no quorum depends on it.
    pub awaits_vote: bool,
}

impl MemberInfo {
    /// The bytes stored beside the id.
    pub fn encode(&self) -> Bytes {
        codec::encode(self).into()
    }

    /// Reads the bytes stored beside an id.
    pub fn decode(context: &Bytes) -> Result<Self, CodecError> {
        codec::decode("member", context)
    }

    /// Whether the member has ever started.
    pub fn is_started(&self) -> bool {
        !self.client_urls.is_empty()
    }
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterMember {
    pub id: MemberId,
    /// Whether it has no vote.
    pub learner: bool,
    pub info: MemberInfo,
}

impl ClusterMember {
    /// Whether it is a voter, or will be promoted automatically.
    pub fn is_meant_to_vote(&self) -> bool {
        !self.learner || self.info.awaits_vote
    }
}

/// Why a membership does not decode. Members write none like that.
#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    /// The list of ids does not decode.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// What is stored beside an id does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// All members, in order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members(Vec<ClusterMember>);

impl Members {
    /// The members of a membership.
    pub(crate) fn of(membership: &Membership) -> Result<Self, CodecError> {
        let voters = membership.voters().map(|member| (member, false));
        let learners = membership.learners().map(|member| (member, true));
        let mut members = Vec::new();
        for ((id, context), learner) in voters.chain(learners) {
            let info = MemberInfo::decode(context)?;
            members.push(ClusterMember { id, learner, info });
        }
        members.sort_by_key(|member| member.id);
        Ok(Self(members))
    }

    /// The members of an encoded membership.
    pub fn decode(bytes: &Bytes) -> Result<Self, MembersError> {
        Ok(Self::of(&Membership::decode(bytes)?)?)
    }

    /// The members, in order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &ClusterMember> {
        self.0.iter()
    }

    /// The member with this id.
    pub fn get(&self, id: MemberId) -> Option<&ClusterMember> {
        self.0.iter().find(|member| member.id == id)
    }

    /// The address at which the others reach each of them.
    pub(crate) fn addresses(&self) -> Vec<PeerAddress> {
        let address = |member: &ClusterMember| PeerAddress {
            id: member.id,
            name: member.info.name.clone(),
            addresses: member
                .info
                .peer_urls
                .iter()
                .filter_map(|url| url_address(url).map(str::to_owned))
                .collect(),
        };
        self.0.iter().map(address).collect()
    }
}

/// The host and port of a URL that a member can be reached at: `http` or `https`, and no path.
pub fn url_address(url: &str) -> Option<&str> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))?;
    let address = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = address.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let fits = !host.is_empty() && host.len() <= 253 && host.bytes().all(plain) && port != 0;
    fits.then_some(address)
}

/// Whether a member may have this URL. etcd: a socket of the file system is allowed too. No member is reached there.
pub fn is_peer_url(url: &str) -> bool {
    is_socket_url(url) || url_address(url).is_some()
}

fn is_socket_url(url: &str) -> bool {
    let rest = url
        .strip_prefix("unix:")
        .or_else(|| url.strip_prefix("unixs:"));
    let Some(rest) = rest else { return false };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte);
    // Go's clients parse the URLs of all members, and read what follows a colon as a port.
    let host = rest
        .strip_prefix("//")
        .and_then(|rest| rest.split('/').next());
    let port = host.and_then(|host| host.rsplit_once(':'));
    let port = port.is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    !rest.is_empty() && port && rest.bytes().all(plain)
}

/// A hash of these words as an id, never zero. Different words practically never give the same id.
pub fn id_of(words: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    for word in words {
        hash.update((word.len() as u64).to_be_bytes());
        hash.update(word.as_bytes());
    }
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    // Zero is not a valid id.
    u64::from_be_bytes(first).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str) -> MemberInfo {
        MemberInfo {
            name: name.to_owned(),
            peer_urls: vec![format!("http://{name}:2380")],
            ..MemberInfo::default()
        }
    }

    #[test]
    fn members_are_read_back_in_order_of_their_ids() {
        let voters = [(MemberId(9), info("a")), (MemberId(3), info("b"))];
        let voters = voters.map(|(id, info)| (id, info.encode()));
        let membership = Membership::of_voters(voters).unwrap();
        let members = Members::decode(&membership.encode()).unwrap();
        let names: Vec<&str> = members.iter().map(|m| m.info.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(members.addresses()[0].addresses, ["b:2380"]);
        assert!(!members.iter().any(|m| m.info.is_started()), "none has run");
    }

    #[test]
    fn a_context_of_other_bytes_is_an_error() {
        let voters = [(MemberId(1), Bytes::from_static(b"\xff\xff"))];
        let membership = Membership::of_voters(voters).unwrap();
        assert!(Members::of(&membership).is_err(), "no member info");
    }

    #[test]
    fn peer_urls_have_a_host_and_a_port_and_nothing_else() {
        assert_eq!(url_address("http://n1:2380"), Some("n1:2380"));
        assert_eq!(url_address("https://[::1]:1/"), Some("[::1]:1"));
        for bad in [
            "",
            "n1:2380",
            "http://n1",
            "http://n1:0",
            "http://:1",
            "http://n1:1/x",
            "ftp://n1:1",
        ] {
            assert_eq!(url_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_socket_of_the_file_system_is_a_url_without_an_address() {
        for url in [
            "unix://localhost:1",
            "unixs:///run/n1",
            "unix:n1",
            "http://n1:1",
        ] {
            assert!(is_peer_url(url), "{url}");
        }
        assert_eq!(url_address("unix://localhost:1"), None);
        for bad in ["unix", "unix:", "n1:1", "unix://localhost:m1", "unix:a b"] {
            assert!(!is_peer_url(bad), "{bad}");
        }
    }

    #[test]
    fn ids_follow_from_words_and_their_borders() {
        assert_eq!(id_of(&["a", "b"]), id_of(&["a", "b"]));
        assert_ne!(id_of(&["a", "b"]), id_of(&["ab", ""]));
    }
}
