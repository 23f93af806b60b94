//! The ids and the membership that a configuration gives to a new cluster, and how they differ from what is stored.

use super::error::StartError;
use crate::{
    actors::members::{MemberInfo, Members, id_of},
    config::{ClientAddress, Config, HostPort},
    raft::Membership,
    storage::member::Owner,
    types::{ClusterId, Identity, MemberId},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// Refuses data that belong to another member than the configuration names.
pub(super) fn require_own(config: &Config, owner: &Owner) -> Result<(), StartError> {
    if owner.name == config.name {
        return Ok(());
    }
    Err(StartError::OtherMember {
        holds: owner.name.clone(),
        name: config.name.clone(),
    })
}

/// This member in the cluster that its configuration forms.
pub(super) fn formed_member(config: &Config) -> Owner {
    let formed = initial_ids(config);
    Owner {
        identity: Identity {
            cluster: cluster_id(config, &formed),
            member: formed[&config.name],
        },
        name: config.name.clone(),
    }
}

/// This member in a cluster that was restored. Its id is the one that it would have in a new cluster. The cluster's id follows
/// from `state`, the hash of all that was restored, and from the membership: so members that were restored from different data,
/// or with different options, refuse each other instead of serving different data. And it follows from the number of this
/// restore, so that they refuse those of an earlier cluster, too, that was restored from the same.
pub(super) fn restored_member(
    config: &Config,
    restore_id: &str,
    state: &str,
    membership: &Membership,
) -> Owner {
    let formed = formed_member(config);
    let members = hex_of(&membership.encode());
    let token = config.cluster.token.as_str();
    let words = ["restored", token, restore_id, state, &members];
    Owner {
        identity: Identity {
            cluster: ClusterId(id_of(&words)),
            ..formed.identity
        },
        ..formed
    }
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

/// The id of the member called `name` in the cluster that the configuration forms.
pub(super) fn formed_id(config: &Config, name: &str) -> Option<MemberId> {
    initial_ids(config).get(name).copied()
}

/// The members that form the cluster, by name: ids that follow from token, name and address, so that all members compute the
/// same ones.
fn initial_ids(config: &Config) -> BTreeMap<String, MemberId> {
    let id = |name: &str, peer: &HostPort| {
        MemberId(id_of(&[&config.cluster.token, name, &peer.to_string()]))
    };
    let mut ids: BTreeMap<String, MemberId> = config
        .cluster
        .initial
        .iter()
        .map(|member| (member.name.clone(), id(&member.name, &member.peer)))
        .collect();
    ids.entry(config.name.clone())
        .or_insert_with(|| id(&config.name, config.peer_advertise()));
    ids
}

/// A cluster's id follows from all members that form it.
fn cluster_id(config: &Config, members: &BTreeMap<String, MemberId>) -> ClusterId {
    let mut ids: Vec<String> = members.values().map(|id| id.hex()).collect();
    ids.sort();
    let mut words = vec![config.cluster.token.as_str()];
    words.extend(ids.iter().map(String::as_str));
    ClusterId(id_of(&words))
}

/// The membership that the cluster begins with. Each member publishes its client URLs itself once it runs; a member that is
/// alone has nobody to publish them to, so they are in its first membership.
pub(super) fn first_membership(config: &Config) -> Result<Membership, StartError> {
    let alone = config.cluster.initial.len() <= 1;
    let ids = initial_ids(config);
    let peers: BTreeMap<&str, String> = config
        .cluster
        .initial
        .iter()
        .map(|member| (member.name.as_str(), member.peer.to_string()))
        .collect();
    let scheme = config.peer.tls.scheme();
    let voters = ids.iter().map(|(name, id)| {
        let own = config.peer_advertise().to_string();
        let peer = peers.get(name.as_str()).unwrap_or(&own);
        let info = MemberInfo {
            name: name.clone(),
            peer_urls: vec![format!("{scheme}://{peer}")],
            client_urls: if alone {
                client_urls(config)
            } else {
                Vec::new()
            },
            awaits_vote: false,
        };
        (*id, info.encode())
    });
    Ok(Membership::of_voters(voters)?)
}

/// The URLs at which clients reach this member.
pub(super) fn client_urls(config: &Config) -> Vec<String> {
    config
        .client_advertise()
        .iter()
        .map(ClientAddress::url)
        .collect()
}

/// Logs what the configuration gives and the data directory has otherwise: a member that has data ignores `cluster.initial`.
pub(super) fn report_differences(config: &Config, owner: &Owner, members: &Members) {
    let given: BTreeSet<String> = config
        .cluster
        .initial
        .iter()
        .map(|member| format!("{}={}", member.name, member.peer))
        .collect();
    let stored: BTreeSet<String> = members
        .addresses()
        .into_iter()
        .map(|peer| format!("{}={}", peer.name, peer.addresses.join("+")))
        .collect();
    if given.is_empty() || stored.is_empty() || given == stored {
        return;
    }
    let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(",");
    tracing::warn!(
        cluster = format!("{:x}", owner.identity.cluster.0),
        given = list(given),
        stored = list(stored),
        "cluster.initial is ignored: the data directory holds a member already, and its cluster has other members"
    );
}
