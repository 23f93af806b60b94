//! One of the two servers: runs a step and describes its outcome in text that is the same for both.

use super::steps::{Leadership, Step};
use crate::support::{Kind, Server, Setup};
use bytes::Bytes;
use quorate::internals::api::proto::{
    etcdserverpb as pb, mvccpb, v3electionpb as ep, v3lockpb as lp,
};
use std::time::Duration;
use tokio::time::timeout;
use tonic::{
    Code, Status,
    codegen::tokio_stream::{StreamExt as _, once},
    transport::{Channel, Endpoint},
};

/// How long an answer may take that must come at once.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// The outcome of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Given {
        text: String,
        /// Seconds that are left, which may differ a little.
        left: Vec<i64>,
    },
    Refused(Code, String),
}

impl Answer {
    /// Whether two correct servers may give these.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Given { text, left },
                Self::Given {
                    text: other,
                    left: right,
                },
            ) => {
                let near = |(left, right): (&i64, &i64)| left.abs_diff(*right) <= 5;
                text == other && left.len() == right.len() && left.iter().zip(right).all(near)
            }
            (left, right) => left == right,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Clients {
    kv: pb::kv_client::KvClient<Channel>,
    leases: pb::lease_client::LeaseClient<Channel>,
    locks: lp::lock_client::LockClient<Channel>,
    elections: ep::election_client::ElectionClient<Channel>,
}

/// A server, and its ids of the test's leases: the two servers choose different ones.
#[derive(Clone, Debug)]
pub(super) struct Side {
    clients: Clients,
    pub(super) ids: Vec<i64>,
    /// Whether it is the second one: keys in a step are given for both.
    pub(super) second: bool,
}

/// Starts a server and connects to it. Both have the same election timeout, of which the shortest time to live depends.
pub(super) async fn start(kind: Kind, fixed: &[i64]) -> (Server, Side) {
    let mut setup = Setup::default();
    if kind == Kind::Etcd {
        let timing = ["--heartbeat-interval", "100", "--election-timeout", "1000"];
        setup.args = timing.map(str::to_owned).to_vec();
    }
    let mut server = Server::new(kind, setup);
    server.restart().await;
    let uri = format!("http://127.0.0.1:{}", server.client_port());
    let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    let clients = Clients {
        kv: pb::kv_client::KvClient::new(channel.clone()),
        leases: pb::lease_client::LeaseClient::new(channel.clone()),
        locks: lp::lock_client::LockClient::new(channel.clone()),
        elections: ep::election_client::ElectionClient::new(channel),
    };
    let ids = fixed.to_vec();
    let second = false;
    (
        server,
        Side {
            clients,
            ids,
            second,
        },
    )
}

fn revision(header: Option<pb::ResponseHeader>) -> i64 {
    header.expect("every answer has a header").revision
}

/// An answer as text.
fn given(text: String) -> Answer {
    let left = Vec::new();
    Answer::Given { text, left }
}

/// The name of a candidate's key.
pub(super) fn key_of(name: &str, lease: i64) -> String {
    let sign = if lease < 0 { "-" } else { "" };
    format!("{name}/{sign}{:x}", lease.unsigned_abs())
}

impl Side {
    pub(super) async fn run(&mut self, step: &Step) -> Answer {
        let answer = timeout(ANSWER_MAX, self.perform(step)).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer to {step:?}"));
        answer.unwrap_or_else(|status| Answer::Refused(status.code(), status.message().to_owned()))
    }

    /// As [`Side::run`], for a call that waits in the queue.
    pub(super) async fn wait(&mut self, step: &Step) -> Answer {
        let answer = self.perform(step).await;
        answer.unwrap_or_else(|status| Answer::Refused(status.code(), status.message().to_owned()))
    }

    /// The revision that created a key, if it is there.
    pub(super) async fn has(&self, key: &str) -> Option<i64> {
        let range = pb::RangeRequest {
            key: key.to_owned().into(),
            ..pb::RangeRequest::default()
        };
        let found = self
            .clients
            .kv
            .clone()
            .range(range)
            .await
            .unwrap()
            .into_inner();
        found.kvs.first().map(|kv| kv.create_revision)
    }

    /// A lease as text: its number in the test.
    fn lease(&self, id: i64) -> String {
        match self.ids.iter().position(|known| *known == id) {
            _ if id == 0 => "none".to_owned(),
            Some(number) => format!("#{number}"),
            None => format!("unknown {id:x}"),
        }
    }

    /// A key as text: a candidate's key has its lease in it.
    pub(super) fn key(&self, key: &[u8]) -> String {
        let text = String::from_utf8_lossy(key).into_owned();
        let Some((name, _)) = text.rsplit_once('/') else {
            return text;
        };
        let own = self.ids.iter().position(|id| key_of(name, *id) == text);
        own.map_or(text.clone(), |number| format!("{name}/#{number}"))
    }

    fn kv(&self, kv: &mvccpb::KeyValue) -> String {
        format!(
            "{}={:?} created {} changed {} version {} lease {}",
            self.key(&kv.key),
            kv.value,
            kv.create_revision,
            kv.mod_revision,
            kv.version,
            self.lease(kv.lease)
        )
    }

    /// All keys with this prefix.
    pub(super) async fn keys(&self, prefix: &str) -> Vec<mvccpb::KeyValue> {
        let mut range_end = prefix.as_bytes().to_vec();
        match range_end.last_mut() {
            Some(last) => *last += 1,
            None => range_end.push(0),
        }
        let key = if prefix.is_empty() { "\0" } else { prefix };
        let range = pb::RangeRequest {
            key: key.to_owned().into(),
            range_end: range_end.into(),
            ..pb::RangeRequest::default()
        };
        self.clients
            .kv
            .clone()
            .range(range)
            .await
            .unwrap()
            .into_inner()
            .kvs
    }

    /// The whole store as text.
    pub(super) async fn store(&self) -> Vec<String> {
        let mut all: Vec<String> = self.keys("").await.iter().map(|kv| self.kv(kv)).collect();
        all.sort();
        all
    }

    fn put(key: &str, lease: i64, ignore_lease: bool) -> pb::PutRequest {
        pb::PutRequest {
            key: key.to_owned().into(),
            value: "v".into(),
            lease,
            ignore_lease,
            ..pb::PutRequest::default()
        }
    }

    async fn perform(&mut self, step: &Step) -> Result<Answer, Status> {
        match step {
            Step::Grant { .. }
            | Step::Brief { .. }
            | Step::Revoke { .. }
            | Step::TimeToLive { .. }
            | Step::Renew { .. }
            | Step::List => self.on_leases(step).await,
            Step::Put { .. } | Step::Txn { .. } | Step::Delete { .. } => self.on_keys(step).await,
            Step::Lock { .. } | Step::LockAlone { .. } | Step::Unlock { .. } => {
                self.on_locks(step).await
            }
            Step::Campaign { .. }
            | Step::Proclaim { .. }
            | Step::Resign { .. }
            | Step::Leader { .. }
            | Step::Observe { .. } => self.on_elections(step).await,
        }
    }

    async fn on_leases(&mut self, step: &Step) -> Result<Answer, Status> {
        let mut client = self.clients.leases.clone();
        match *step {
            Step::Grant { lease, ttl } => {
                let id = lease.map_or(0, |number| self.ids[number]);
                let granted = client
                    .lease_grant(pb::LeaseGrantRequest { ttl, id })
                    .await?
                    .into_inner();
                if lease.is_none() {
                    assert!(granted.id > 0, "a chosen id is positive: {granted:?}");
                    self.ids.push(granted.id);
                }
                let id = self.lease(granted.id);
                Ok(given(format!(
                    "{id} for {} at {}",
                    granted.ttl,
                    revision(granted.header)
                )))
            }
            Step::Brief { lease, ttl } => {
                let id = self.ids[lease];
                let granted = client
                    .lease_grant(pb::LeaseGrantRequest { ttl, id })
                    .await?
                    .into_inner();
                // It may have ended by itself on a slow machine.
                drop(client.lease_revoke(pb::LeaseRevokeRequest { id }).await);
                Ok(given(format!(
                    "{} for {}",
                    self.lease(granted.id),
                    granted.ttl
                )))
            }
            Step::Revoke { lease } => {
                let id = self.ids[lease];
                let revoked = client
                    .lease_revoke(pb::LeaseRevokeRequest { id })
                    .await?
                    .into_inner();
                Ok(given(format!("revoked at {}", revision(revoked.header))))
            }
            Step::TimeToLive { lease, keys } => {
                let id = self.ids[lease];
                let ask = pb::LeaseTimeToLiveRequest { id, keys };
                let time = client.lease_time_to_live(ask).await?.into_inner();
                let mut keys: Vec<String> = time.keys.iter().map(|key| self.key(key)).collect();
                keys.sort();
                let (id, at) = (self.lease(time.id), revision(time.header));
                let text = format!("{id} of {} with {keys:?} at {at}", time.granted_ttl);
                let left = vec![time.ttl];
                Ok(Answer::Given { text, left })
            }
            Step::Renew { lease } => {
                let id = self.ids[lease];
                let renewals = client.lease_keep_alive(once(pb::LeaseKeepAliveRequest { id }));
                let mut answers = renewals.await?.into_inner();
                let renewed = answers.next().await.expect("an answer")?;
                let (id, at) = (self.lease(renewed.id), revision(renewed.header));
                Ok(given(format!("{id} renewed for {} at {at}", renewed.ttl)))
            }
            _ => self.list().await,
        }
    }

    async fn list(&self) -> Result<Answer, Status> {
        let mut client = self.clients.leases.clone();
        let list = client.lease_leases(pb::LeaseLeasesRequest {}).await?;
        let list = list.into_inner();
        let mut ids: Vec<String> = list.leases.iter().map(|one| self.lease(one.id)).collect();
        ids.sort();
        let at = revision(list.header);
        Ok(given(format!("{ids:?} at {at}")))
    }

    async fn on_keys(&mut self, step: &Step) -> Result<Answer, Status> {
        let mut client = self.clients.kv.clone();
        match step {
            Step::Put {
                key,
                lease,
                ignore_lease,
            } => {
                let lease = lease.map_or(0, |number| self.ids[number]);
                let put = client
                    .put(Self::put(key, lease, *ignore_lease))
                    .await?
                    .into_inner();
                Ok(given(format!("put at {}", revision(put.header))))
            }
            Step::Txn { puts } => {
                let success = puts.iter().map(|(key, lease)| {
                    let lease = lease.map_or(0, |number| self.ids[number]);
                    let put = pb::request_op::Request::RequestPut(Self::put(key, lease, false));
                    pb::RequestOp { request: Some(put) }
                });
                let txn = pb::TxnRequest {
                    success: success.collect(),
                    ..pb::TxnRequest::default()
                };
                let done = client.txn(txn).await?.into_inner();
                Ok(given(format!("done at {}", revision(done.header))))
            }
            Step::Delete { key } => {
                let delete = pb::DeleteRangeRequest {
                    key: key.to_string().into(),
                    ..pb::DeleteRangeRequest::default()
                };
                let done = client.delete_range(delete).await?.into_inner();
                Ok(given(format!(
                    "{} deleted at {}",
                    done.deleted,
                    revision(done.header)
                )))
            }
            other => unreachable!("{other:?} is not about keys"),
        }
    }

    async fn on_locks(&mut self, step: &Step) -> Result<Answer, Status> {
        let mut client = self.clients.locks.clone();
        let lock = |name: &str, lease| lp::LockRequest {
            name: name.to_owned().into(),
            lease,
        };
        match step {
            Step::Lock { name, lease } => {
                let locked = client
                    .lock(lock(name, self.ids[*lease]))
                    .await?
                    .into_inner();
                Ok(given(format!(
                    "holds {} at {}",
                    self.key(&locked.key),
                    revision(locked.header)
                )))
            }
            Step::LockAlone { name } => {
                let locked = client.lock(lock(name, 0)).await?.into_inner();
                let id = String::from_utf8_lossy(&locked.key[name.len() + 1..]).into_owned();
                let id = i64::from_str_radix(&id, 16).expect("a lease's id");
                let ask = pb::LeaseTimeToLiveRequest { id, keys: true };
                let time = self
                    .clients
                    .leases
                    .clone()
                    .lease_time_to_live(ask)
                    .await?
                    .into_inner();
                let revoke = pb::LeaseRevokeRequest { id };
                let revoked = self
                    .clients
                    .leases
                    .clone()
                    .lease_revoke(revoke)
                    .await?
                    .into_inner();
                let at = (revision(locked.header), revision(revoked.header));
                let text = format!(
                    "held at {at:?} for {} by {}",
                    time.granted_ttl,
                    time.keys.len()
                );
                let left = vec![time.ttl];
                Ok(Answer::Given { text, left })
            }
            Step::Unlock { key } => {
                let key = Bytes::from(key[self.at()].clone());
                let unlocked = client.unlock(lp::UnlockRequest { key }).await?.into_inner();
                Ok(given(format!("unlocked at {}", revision(unlocked.header))))
            }
            other => unreachable!("{other:?} is not about locks"),
        }
    }

    async fn on_elections(&mut self, step: &Step) -> Result<Answer, Status> {
        let mut client = self.clients.elections.clone();
        match step {
            Step::Campaign { name, lease, value } => {
                let campaign = ep::CampaignRequest {
                    name: name.to_string().into(),
                    lease: self.ids[*lease],
                    value: value.to_string().into(),
                };
                let won = client.campaign(campaign).await?.into_inner();
                let leader = won.leader.expect("it names the leader");
                let (key, lease) = (self.key(&leader.key), self.lease(leader.lease));
                let at = (leader.rev, revision(won.header));
                Ok(given(format!(
                    "{:?} led by {key} of {lease} since and at {at:?}",
                    leader.name
                )))
            }
            Step::Proclaim { leader, value } => {
                let proclaim = ep::ProclaimRequest {
                    leader: self.leader(leader.as_ref()),
                    value: value.to_string().into(),
                };
                let done = client.proclaim(proclaim).await?.into_inner();
                Ok(given(format!("proclaimed at {}", revision(done.header))))
            }
            Step::Resign { leader } => {
                let leader = self.leader(leader.as_ref());
                let done = client
                    .resign(ep::ResignRequest { leader })
                    .await?
                    .into_inner();
                Ok(given(format!("resigned at {}", revision(done.header))))
            }
            Step::Leader { name } => {
                let name = name.to_string().into();
                let seen = client
                    .leader(ep::LeaderRequest { name })
                    .await?
                    .into_inner();
                let kv = self.kv(&seen.kv.expect("a leader has a key"));
                Ok(given(format!("{kv} at {}", revision(seen.header))))
            }
            Step::Observe { name } => {
                let name = name.to_string().into();
                let mut seen = client
                    .observe(ep::LeaderRequest { name })
                    .await?
                    .into_inner();
                let seen = seen.next().await.expect("somebody leads")?;
                let kv = self.kv(&seen.kv.expect("a leader has a key"));
                Ok(given(format!("{kv} at {}", revision(seen.header))))
            }
            other => unreachable!("{other:?} is not about elections"),
        }
    }

    fn leader(&self, leader: Option<&Leadership>) -> Option<ep::LeaderKey> {
        leader.map(|leader| ep::LeaderKey {
            name: leader.name.clone().into(),
            key: leader.key[self.at()].clone().into(),
            rev: leader.rev,
            lease: self.ids[leader.lease],
        })
    }

    /// The index of this server's key in a step.
    fn at(&self) -> usize {
        usize::from(self.second)
    }
}
