//! Members stop one after the other, as in an upgrade, while clients write through each of them: the leader hands over before it
//! stops, so nobody waits for an election.

use crate::{
    ctl::{etcdctl, eventually, leader, statuses},
    membership::id,
    support::Cluster,
};
use quorate::internals::api::proto::etcdserverpb as pb;
use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// How long something that must happen soon is waited for: generous, for a loaded machine and a debug build.
const PATIENCE: Duration = Duration::from_mins(1);
/// So long that no election happens by itself on a loaded machine: whoever follows another leader had it handed over.
const ELECTION_MS: &str = "10000";

type Kv = pb::kv_client::KvClient<Channel>;

/// A client that writes and reads without a pause: at its own member as long as that answers, else at the next.
struct Writer {
    done: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    /// The keys that were acknowledged.
    running: JoinHandle<Vec<String>>,
}

/// Whether the server refused the call; otherwise the connection ended.
fn is_refusal(status: &Status) -> bool {
    status.source().is_none()
}

async fn write_and_read(kv: &mut Kv, key: &str) -> Result<(), Status> {
    let put = pb::PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        ..pb::PutRequest::default()
    };
    kv.put(put).await?;
    let range = pb::RangeRequest {
        key: key.to_owned().into(),
        ..pb::RangeRequest::default()
    };
    let found = kv.range(range).await?.into_inner();
    assert_eq!(found.count, 1, "{key} was acknowledged");
    Ok(())
}

impl Writer {
    fn start(ports: Vec<u16>, own: usize) -> Self {
        let (done, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (count, end) = (done.clone(), stop.clone());
        let running = tokio::spawn(async move {
            let mut keys = Vec::new();
            let mut open: Vec<Option<Kv>> = ports.iter().map(|_| None).collect();
            let mut next = 0;
            while !end.load(Ordering::Relaxed) {
                for turn in 0..ports.len() {
                    let at = (own + turn) % ports.len();
                    if open[at].is_none() {
                        let address = format!("http://127.0.0.1:{}", ports[at]);
                        let endpoint = Endpoint::from_shared(address).expect("a valid URI");
                        open[at] = endpoint.connect().await.ok().map(Kv::new);
                    }
                    let Some(kv) = &mut open[at] else { continue };
                    let key = format!("w{own}-{next}");
                    next += 1;
                    match write_and_read(kv, &key).await {
                        Ok(()) => {
                            count.fetch_add(1, Ordering::Relaxed);
                            keys.push(key);
                            break;
                        }
                        Err(status) => {
                            assert!(!is_refusal(&status), "{key} is refused: {status}");
                            open[at] = None;
                        }
                    }
                }
            }
            keys
        });
        Self {
            done,
            stop,
            running,
        }
    }

    /// Waits until it has written some more.
    async fn goes_on(&self) {
        let wanted = self.done.load(Ordering::Relaxed) + 5;
        let goes_on = async {
            while self.done.load(Ordering::Relaxed) < wanted && !self.running.is_finished() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, goes_on).await.expect("it writes");
        assert!(!self.running.is_finished(), "it failed");
    }

    async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        timeout(PATIENCE, self.running)
            .await
            .expect("it ends")
            .expect("no call was refused")
    }
}

async fn patient_cluster() -> Cluster {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        member.set("QUORATE_RAFT_ELECTION_MS", ELECTION_MS);
        member.start();
    }
    leader(&cluster.ports()).await;
    cluster
}

/// The term, and the position of the leader, as all members at these ports tell.
async fn term_and_leader(ports: &[u16], among: &[u16]) -> (u64, usize) {
    let found = statuses(ports).await;
    let all = statuses(among).await;
    let term = found[0]["raftTerm"].as_u64().expect("a term");
    let leads = &found[0]["leader"];
    for status in &found {
        let same = (&status["leader"], status["raftTerm"].as_u64()) == (leads, Some(term));
        assert!(same, "they do not follow the same leader: {found:?}");
    }
    let at = all
        .iter()
        .position(|it| it["header"]["member_id"] == *leads);
    (term, at.expect("the leader is one of them"))
}

#[tokio::test]
async fn members_restart_one_by_one_and_no_call_is_refused() {
    let mut cluster = patient_cluster().await;
    let ports = cluster.ports();
    let writers: Vec<Writer> = (0..3)
        .map(|own| Writer::start(ports.clone(), own))
        .collect();
    let first = leader(&ports).await;
    for at in [first, (first + 1) % 3, (first + 2) % 3] {
        for writer in &writers {
            writer.goes_on().await;
        }
        let (term, led) = term_and_leader(&ports, &ports).await;
        cluster.members[at].stop().await;
        let mut others = ports.clone();
        others.remove(at);
        // Nobody has to wait for this: it is so before the process ends.
        let (term_now, leads_now) = term_and_leader(&others, &others).await;
        let leads_now = ports.iter().position(|port| *port == others[leads_now]);
        if at == led {
            assert_eq!(term_now, term + 1, "one transfer, and no other election");
            assert_ne!(leads_now, Some(led), "another member leads");
            let log = cluster.members[at].log();
            assert!(log.contains("leadership is handed over"), "{log}");
        } else {
            assert_eq!((term_now, leads_now), (term, Some(led)), "it followed");
        }
        for writer in &writers {
            writer.goes_on().await;
        }
        cluster.members[at].start();
        leader(&ports).await;
    }
    let mut keys = 0;
    for writer in writers {
        keys += writer.end().await.len();
    }
    assert!(keys > 0, "they wrote");
}

#[tokio::test]
async fn a_leader_that_is_removed_hands_over_first() {
    let mut cluster = patient_cluster().await;
    let ports = cluster.ports();
    let all = |list: &str| cluster.all_listed(list);
    eventually(&ports, &["member", "list"], all).await;
    let led = leader(&ports).await;
    let mut others = ports.clone();
    others.remove(led);
    let writers: Vec<Writer> = (0..2)
        .map(|own| Writer::start(others.clone(), own))
        .collect();
    let (term, _) = term_and_leader(&ports, &ports).await;
    let id = id(&ports, &cluster.members[led].name).await;
    // The leader itself is asked, and must have been connected to all for a while.
    eventually(&ports[led..=led], &["member", "remove", &id], |_| true).await;
    let (term_now, _) = term_and_leader(&others, &others).await;
    assert_eq!(term_now, term + 1, "one transfer, and no other election");
    let status = cluster.members[led].stopped().await;
    assert_eq!(status.code(), Some(3), "as docs/operations.md says");
    for writer in writers {
        writer.goes_on().await;
        writer.end().await;
    }
    etcdctl(&others, &["put", "after", "removal"]).await.ok();
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let mut cluster = patient_cluster().await;
    let ports = cluster.ports();
    let led = leader(&ports).await;
    for other in [(led + 1) % 3, (led + 2) % 3] {
        cluster.members[other].freeze();
    }
    // A call that nobody can answer, and successors that cannot take over.
    let port = ports[led];
    let waiting = tokio::spawn(async move { etcdctl(&[port], &["put", "k", "v"]).await });
    let member = &mut cluster.members[led];
    member.terminate();
    let said = async {
        while !member.log().contains("hands leadership over") {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, said).await.expect("it begins to stop");
    member.terminate();
    assert!(member.stopped().await.success(), "it stops in good order");
    let log = member.log();
    assert!(log.contains("stops at once"), "{log}");
    for other in [(led + 1) % 3, (led + 2) % 3] {
        cluster.members[other].thaw();
    }
    waiting.abort();
}

#[tokio::test]
async fn a_member_alone_stops_without_waiting_for_a_successor() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].stop().await;
    let log = cluster.members[0].log();
    assert!(log.contains("no other member can take over"), "{log}");
}
