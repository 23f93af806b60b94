//! Members whose log is gone come back by a snapshot: after being away, in place while their clients stay, as new learners, and
//! when either side dies in the middle.

use crate::{
    ctl::{etcdctl, eventually, leader, same_history, statuses},
    support::{Cluster, Member, quorate},
    tools,
};
use base64::prelude::{BASE64_STANDARD, Engine};
use std::{collections::BTreeMap, fs, path::Path, process::Stdio, time::Duration};
use tokio::time::sleep;

/// How long a test waits for something that must happen soon.
const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);
/// How often keys are written again when a write of them fails.
const FILLS_MAX: usize = 3;

/// The log lines of a receiver when a snapshot is installed, and when one begins.
pub(crate) const IN_PLACE: &str = "a snapshot took the place of the state";
const BEGINS: &str = "receives a snapshot";
/// The log line of a leader about a member that needs one.
const BEHIND: &str = "it needs a snapshot";

/// Three members that keep little of their log.
async fn forgetful(bytes_per_sec: &str) -> Cluster {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        forgets(member, bytes_per_sec);
        member.start();
    }
    leader(&cluster.ports()).await;
    cluster
}

fn forgets(member: &mut Member, bytes_per_sec: &str) {
    let set = |name: &str, value: &str| (format!("QUORATE_STORAGE_{name}"), value.to_owned());
    member.env = vec![
        set("LOG_KEEP_ENTRIES", "100"),
        set("SNAPSHOT_BYTES_PER_SEC", bytes_per_sec),
        // A busy machine alone must not cause an election.
        ("QUORATE_RAFT_ELECTION_MS".to_owned(), "5000".to_owned()),
    ];
}

/// Writes each of so many keys, some of them twice.
pub(crate) async fn fill(ports: &[u16], prefix: &str, keys: usize) {
    fill_with(ports, prefix, keys, &["--clients=16"]).await;
}

/// As [`fill`], with further flags. An election on a busy machine makes a write fail, and then all are repeated.
pub(crate) async fn fill_with(ports: &[u16], prefix: &str, keys: usize, flags: &[&str]) {
    let endpoints: Vec<String> = ports.iter().map(|p| format!("127.0.0.1:{p}")).collect();
    let mut failures = Vec::new();
    loop {
        let filled = quorate()
            .args(["bench", "fill", "--warmup=0"])
            .args(flags)
            .arg(format!("--endpoints={}", endpoints.join(",")))
            .arg(format!("--prefix={prefix}"))
            .args([format!("--keys={keys}"), format!("--requests={keys}")])
            .output();
        let filled = filled.await.expect("the program starts");
        if filled.status.success() {
            return;
        }
        failures.push(filled);
        assert!(failures.len() < FILLS_MAX, "{failures:?}");
    }
}

/// Waits until a member's log contains a text this many times.
pub(crate) async fn said(member: &Member, what: &str, times: usize) {
    let start = quorate::internals::clock::now();
    while member.log().matches(what).count() < times {
        let waited = start.elapsed();
        assert!(
            waited < PATIENCE,
            "{} never says {what:?}:\n{}",
            member.name,
            member.log()
        );
        sleep(POLL).await;
    }
}

/// The leader of the running members, once it has logged that a member is too far behind; each time it logs that once more. Once
/// the connection is lost it sends nothing and logs nothing; by then it has long released the log.
async fn too_far_behind(cluster: &Cluster, away: usize, before: usize) -> usize {
    let mut ports = others(cluster, away);
    ports.truncate(2);
    let at = leader(&ports).await;
    let at = at + usize::from(at >= away);
    let (leader, name) = (&cluster.members[at], &cluster.members[away].name);
    let unheard = format!("({name}, ");
    let start = quorate::internals::clock::now();
    loop {
        let log = leader.log();
        let gone = |line: &str| line.contains(&unheard) && line.contains("timed out");
        if log.matches(BEHIND).count() > before || log.lines().any(gone) {
            return at;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{name} is not reported as behind:\n{log}"
        );
        sleep(POLL).await;
    }
}

/// The ports of all but one member.
fn others(cluster: &Cluster, but: usize) -> Vec<u16> {
    let mut ports = cluster.ports();
    ports.remove(but);
    ports
}

/// A member that does not lead.
pub(crate) async fn follower(cluster: &Cluster) -> usize {
    (leader(&cluster.ports()[..3]).await + 1) % 3
}

fn leftovers(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("db")).expect("the database's directory");
    let names = entries.map(|entry| {
        let entry = entry.expect("an entry");
        entry.file_name().to_string_lossy().into_owned()
    });
    let stay = ["revisions.redb", "synced"];
    names.filter(|name| !stay.contains(&&**name)).collect()
}

#[tokio::test]
async fn a_member_that_was_away_returns_by_snapshot() {
    let mut cluster = forgetful("33554432").await;
    let away = follower(&cluster).await;
    let ports = cluster.ports();
    fill(&ports, "before/", 200).await;
    same_history(&ports).await;
    cluster.members[away].kill().await;

    let alive = others(&cluster, away);
    let lease = etcdctl(&alive, &["lease", "grant", "6000"]).await.ok();
    let lease = lease.split_whitespace().nth(1).expect("an id").to_owned();
    let attached = ["put", "leased", "v", &format!("--lease={lease}")];
    etcdctl(&alive, &attached).await.ok();
    fill(&alive, "while/", 2_000).await;
    etcdctl(&alive, &["del", "before/", "--prefix"]).await.ok();
    etcdctl(&alive, &["compact", "500"]).await.ok();
    too_far_behind(&cluster, away, 0).await;

    cluster.members[away].start();
    said(&cluster.members[away], IN_PLACE, 1).await;
    same_history(&ports).await;
    let back = &ports[away..=away];
    let kept = etcdctl(back, &["lease", "timetolive", &lease, "--keys"]).await;
    assert!(kept.ok().contains("leased"), "the lease has its key");
    let early = etcdctl(back, &["get", "leased", "--rev=499"]).await;
    let refused = early.refused();
    assert!(refused.contains("has been compacted"), "{refused}");
    let lists = [back, &alive[..1]].map(|at| async move { etcdctl(at, &["member", "list"]).await });
    let [mine, theirs] = lists;
    assert_eq!(mine.await.ok(), theirs.await.ok(), "the membership");
    let found = statuses(&ports).await;
    let indexes = |status: &serde_json::Value| status["raftAppliedIndex"].is_number();
    assert!(found.iter().all(indexes), "{found:?}");

    // What it received is durable: after another crash it continues there.
    cluster.members[away].kill().await;
    cluster.members[away].start();
    eventually(back, &["put", "after", "v"], |_| true).await;
    same_history(&ports).await;
    assert_eq!(cluster.members[away].log().matches(IN_PLACE).count(), 1);
    assert_eq!(
        leftovers(&cluster.members[away].data_dir()),
        [] as [String; 0]
    );
}

/// How often each key was written, by the answer of a member.
async fn written(port: u16, prefix: &str) -> BTreeMap<String, usize> {
    let got = etcdctl(&[port], &["get", prefix, "--prefix", "-w", "json"]).await;
    let got = got.json();
    let kvs = got["kvs"].as_array().expect("keys").iter();
    kvs.map(|kv| {
        let key = BASE64_STANDARD.decode(kv["key"].as_str().expect("a key"));
        let key = String::from_utf8(key.expect("base64")).expect("UTF-8");
        let version = kv["version"].as_u64().expect("a version");
        (key, usize::try_from(version).expect("small"))
    })
    .collect()
}

/// The keys that a watch printed, in order.
fn watched(output: &Path) -> Vec<String> {
    // Values are any bytes.
    let text = String::from_utf8_lossy(&fs::read(output).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let puts = lines.iter().enumerate().filter(|(_, line)| **line == "PUT");
    puts.filter_map(|(at, _)| lines.get(at + 1).map(|key| (*key).to_owned()))
        .collect()
}

#[tokio::test]
async fn clients_of_a_member_that_gets_one_stay_and_miss_nothing() {
    let cluster = forgetful("33554432").await;
    let slow = follower(&cluster).await;
    let ports = cluster.ports();
    let output = cluster.members[slow].data_dir().with_extension("watch");
    let file = fs::File::create(&output).expect("a file");
    // Its connection must outlive the time in which the member stands still.
    let _watching = tokio::process::Command::new(tools::etcdctl())
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints=127.0.0.1:{}", ports[slow]))
        .args(["--keepalive-time=10m", "watch", "k/", "--prefix", "--rev=1"])
        .args(["--write-out=simple"])
        .stdin(Stdio::null())
        .stdout(file)
        .kill_on_drop(true)
        .spawn()
        .expect("etcdctl starts");

    let Member { name, peer, .. } = &cluster.members[slow];
    // Two, one soon after the other.
    for round in 1..=2 {
        fill(&ports, &format!("k/{round}/before/"), 100).await;
        let leads = leader(&ports).await;
        // Connections were lost before: members that start ask each other by connections of their own.
        let lost = format!("({name}, 127.0.0.1:{peer}): connection");
        let count = |at: usize, what: &str| cluster.members[at].log().matches(what).count();
        let before = count(leads, &lost);
        let (behind, in_place) = (count(leads, BEHIND), count(slow, IN_PLACE));
        cluster.members[slow].freeze();
        let alive = others(&cluster, slow);
        fill(&alive, &format!("k/{round}/while/"), 1_500).await;
        // Messages in flight were lost with the connection, and the entries are released.
        said(&cluster.members[leads], &lost, before + 1).await;
        said(&cluster.members[leads], BEHIND, behind + 1).await;
        cluster.members[slow].thaw();
        said(&cluster.members[slow], IN_PLACE, in_place + 1).await;
        same_history(&ports).await;
    }
    let expected = written(ports[slow], "k/").await;
    let start = quorate::internals::clock::now();
    while watched(&output).len() < expected.values().sum() {
        let found = watched(&output).len();
        assert!(start.elapsed() < PATIENCE, "only {found} events");
        sleep(POLL).await;
    }
    let mut counts = BTreeMap::new();
    for key in watched(&output) {
        *counts.entry(key).or_insert(0) += 1;
    }
    assert_eq!(counts, expected, "each event once");
    let written = eventually(&ports[slow..=slow], &["put", "at", "it"], |_| true).await;
    assert_eq!(written, "OK\n");
}

/// A cluster where a snapshot to a member that was away has just begun, slowly; that member and the sender.
async fn in_the_middle() -> (Cluster, usize, usize) {
    let mut cluster = forgetful("65536").await;
    let away = follower(&cluster).await;
    cluster.members[away].kill().await;
    let alive = others(&cluster, away);
    fill(&alive, "k/", 1_200).await;
    let sender = too_far_behind(&cluster, away, 0).await;
    cluster.members[away].start();
    said(&cluster.members[away], BEGINS, 1).await;
    let in_place = cluster.members[away].log().matches(IN_PLACE).count();
    assert_eq!(in_place, 0, "the transfer is slow");
    (cluster, away, sender)
}

#[tokio::test]
async fn the_sender_dies_in_the_middle() {
    let (mut cluster, away, sender) = in_the_middle().await;
    cluster.members[sender].kill().await;
    // The other one leads now, and begins anew.
    said(&cluster.members[away], "was not taken", 1).await;
    said(&cluster.members[away], IN_PLACE, 1).await;
    same_history(&others(&cluster, sender)).await;
    cluster.members[sender].start();
    same_history(&cluster.ports()).await;
    let log = cluster.members[away].log();
    assert!(log.matches(BEGINS).count() >= 2, "{log}");
}

#[tokio::test]
async fn the_receiver_dies_in_the_middle() {
    let (mut cluster, away, _) = in_the_middle().await;
    let folder = cluster.members[away].data_dir();
    let start = quorate::internals::clock::now();
    while leftovers(&folder) != ["revisions.redb.incoming"] {
        let found = leftovers(&folder);
        assert!(start.elapsed() < PATIENCE, "what comes in: {found:?}");
        sleep(POLL).await;
    }
    cluster.members[away].kill().await;
    cluster.members[away].start();
    said(&cluster.members[away], IN_PLACE, 1).await;
    same_history(&cluster.ports()).await;
    assert_eq!(leftovers(&folder), [] as [String; 0]);
}

#[tokio::test]
async fn a_learner_begins_with_a_snapshot_and_is_promoted() {
    let mut cluster = forgetful("33554432").await;
    let ports = cluster.ports();
    fill(&ports, "k/", 1_000).await;
    let at = cluster.prepare("n4").await;
    forgets(&mut cluster.members[at], "33554432");
    let urls = format!("--peer-urls=http://127.0.0.1:{}", cluster.members[at].peer);
    let add = ["member", "add", "n4", &urls, "--learner"];
    let is_added = |text: &str| text.contains(" added ") && text.contains("to cluster");
    let added = eventually(&ports, &add, is_added).await;
    let id = added.split_whitespace().nth(1).expect("an id").to_owned();
    // Another member restarts, which shows when no member has the log's beginning any more; both get a snapshot at the same time.
    let away = follower(&cluster).await;
    cluster.members[away].kill().await;
    fill(&others(&cluster, away)[..2], "more/", 500).await;
    too_far_behind(&cluster, away, 0).await;
    cluster.members[away].start();
    let initial = cluster.initial();
    let member = &mut cluster.members[at];
    member.args.push(format!("--initial-cluster={initial}"));
    let state = "--initial-cluster-state=existing".to_owned();
    member.args.push(state);
    member.start();
    said(&cluster.members[at], IN_PLACE, 1).await;
    said(&cluster.members[away], IN_PLACE, 1).await;
    eventually(&ports, &["member", "promote", &id], |_| true).await;
    let ports = cluster.ports();
    same_history(&ports).await;
    let written = eventually(&ports[at..], &["put", "from", "n4"], |_| true).await;
    assert_eq!(written, "OK\n");
}
