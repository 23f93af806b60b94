//! What a member without data asks the running cluster before it starts: who it is there, and whether it has run before.
//!
//! A member that forms its cluster knows all ids without asking. But if the cluster runs already and knows it as one that has
//! run, its data directory is lost, and with it what this member promised: starting anew under the same id could undo what
//! was acknowledged, so it does not start. The question is one round trip, on the first start only.

use super::{
    network::PeerNetwork,
    recover::{StartError, formed_cluster},
    refill,
};
use crate::{
    actors::{members::Members, peer_ask::GuestInfo, restore::RestoreError},
    codec,
    config::{ClusterState, Config, PeerTls},
    net::{self, GuestAnswer, NetError, Pacing, PeerSecurity, TlsFiles},
    storage::{disk::Disk, member},
    types::{ClusterId, MemberId},
};
use bytes::Bytes;
use std::time::Duration;

/// How long each member has to answer. One that starts at the same time does not yet.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// What a member that joins was told.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) cluster: ClusterId,
    pub(super) id: MemberId,
    /// The membership that it found, encoded.
    pub(super) membership: Bytes,
}

/// How this member proves who it is; nothing if nothing was set.
pub(super) fn security(config: &Config) -> Option<PeerSecurity> {
    match &config.peer.tls {
        PeerTls::Unset => None,
        PeerTls::Insecure => Some(PeerSecurity::Insecure),
        PeerTls::Files { cert, key, ca } => Some(PeerSecurity::Files(TlsFiles {
            cert: cert.clone(),
            key: key.clone(),
            ca: ca.clone(),
        })),
    }
}

/// How the others are asked.
enum Way<'a> {
    Quic(PeerSecurity),
    Given(&'a dyn PeerNetwork),
}

impl<'a> Way<'a> {
    /// Nothing if nobody can be asked.
    fn of(config: &Config, network: Option<&'a dyn PeerNetwork>) -> Option<Self> {
        let quic = || security(config).map(Self::Quic);
        network.map(Self::Given).or_else(quic)
    }
}

/// Asks the other members in the configuration, if this member has no data. Gives its place in the cluster if it joins one.
pub(super) async fn ask_around(
    config: &Config,
    disk: &dyn Disk,
    network: Option<&dyn PeerNetwork>,
) -> Result<Option<Joined>, StartError> {
    let Some(way) = Way::of(config, network) else {
        return Ok(None);
    };
    if member::read(disk)?.is_some() {
        return Ok(None);
    }
    let (mut last, joins) = (String::from("there are none"), joins(config));
    for member in &config.cluster.initial {
        if member.name == config.name {
            continue;
        }
        match ask(config, &way, &member.peer.to_string()).await {
            Ok((cluster, info)) => {
                if !joins && cluster != formed_cluster(config) {
                    continue;
                }
                return placed(config, cluster, info, joins);
            }
            Err(error) => last = format!("{}: {error}", member.peer),
        }
    }
    if joins {
        return Err(StartError::NobodyAnswers(last));
    }
    Ok(None)
}

/// Asks who the members are, if this member's database is to be put aside: it may not tell. Nothing if nobody answers.
pub(super) async fn ask_for_members(
    config: &Config,
    disk: &dyn Disk,
    network: Option<&dyn PeerNetwork>,
) -> Result<Option<Bytes>, StartError> {
    let (Some(way), Some(own)) = (Way::of(config, network), member::read(disk)?) else {
        return Ok(None);
    };
    if !refill::is_asked_for(disk)? {
        return Ok(None);
    }
    for member in &config.cluster.initial {
        if member.name == config.name {
            continue;
        }
        if let Ok((cluster, info)) = ask(config, &way, &member.peer.to_string()).await
            && cluster == own.identity.cluster
        {
            return Ok(Some(Bytes::from(info.membership)));
        }
    }
    Ok(None)
}

fn joins(config: &Config) -> bool {
    config.cluster.state == ClusterState::Existing
}

fn placed(
    config: &Config,
    cluster: ClusterId,
    info: GuestInfo,
    joins: bool,
) -> Result<Option<Joined>, StartError> {
    if info.started {
        return Err(StartError::HasRun {
            name: config.name.clone(),
        });
    }
    if !joins {
        return Ok(None);
    }
    let id = info.id.ok_or_else(|| StartError::NotAdded {
        name: config.name.clone(),
        address: config.peer_advertise().to_string(),
        scheme: config.peer.tls.scheme(),
    })?;
    let membership = Bytes::from(info.membership);
    Members::decode(&membership).map_err(RestoreError::from)?;
    tracing::info!(id = id.hex(), "joins a running cluster");
    Ok(Some(Joined {
        cluster,
        id,
        membership,
    }))
}

async fn ask(
    config: &Config,
    way: &Way<'_>,
    address: &str,
) -> Result<(ClusterId, GuestInfo), NetError> {
    let pacing = Pacing {
        handshake_timeout: ANSWER_WITHIN,
        ..Pacing::default()
    };
    let question = Bytes::from(config.peer_advertise().to_string());
    let asked = match way {
        Way::Given(network) => network.ask(&config.name, address, question).await,
        Way::Quic(security) => net::ask(security, &config.name, address, question, &pacing).await,
    };
    let GuestAnswer {
        cluster, answer, ..
    } = asked?;
    let info = codec::decode("answer to who joins", &answer)
        .map_err(|_| NetError::StreamEnded("with an answer that cannot be read"))?;
    Ok((cluster, info))
}
