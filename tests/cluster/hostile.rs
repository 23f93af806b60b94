//! Hostile and mistaken peers before a running cluster: each gets a clear error, and the cluster goes on.
//!
//! `src/net/tests` goes through the same cases on a connection alone; here real members are attacked, over their real port.

use crate::{
    ctl::{etcdctl, eventually, leader, same_history},
    support::{Cluster, Member},
};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, crypto::rustls::QuicClientConfig,
};
use quorate::internals::{clock, net::cert};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;
use std::{fs, net::Ipv4Addr, path::Path, sync::Arc};

/// The identity that the attacker claims.
#[derive(Clone, Copy, Debug)]
struct Claim {
    versions: (u16, u16),
    cluster: u64,
    member: u64,
}

/// The bytes of a hello, as docs/format.md has them.
fn hello(claim: Claim, name: &str) -> Vec<u8> {
    let mut rest = Vec::new();
    rest.extend(claim.cluster.to_le_bytes());
    rest.extend(claim.member.to_le_bytes());
    rest.extend(0x5eed_u64.to_le_bytes());
    rest.extend(u16::try_from(name.len()).expect("short").to_le_bytes());
    rest.extend(name.as_bytes());
    let mut bytes = b"QRT-PEER".to_vec();
    bytes.extend(claim.versions.0.to_le_bytes());
    bytes.extend(claim.versions.1.to_le_bytes());
    bytes.extend(u16::try_from(rest.len()).expect("short").to_le_bytes());
    bytes.extend(rest);
    bytes
}

/// Connects with the certificate of member `name` in `folder`, past TLS.
async fn connect(folder: &Path, name: &str, peer: u16) -> (Endpoint, Connection) {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(folder.join("ca.pem")).expect("the authority");
    roots.add(ca).expect("it can be trusted");
    let chain = CertificateDer::from_pem_file(folder.join(format!("{name}.pem")));
    let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}-key.pem")));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![chain.expect("a certificate")], key.expect("its key"))
        .expect("they go together");
    tls.alpn_protocols = vec![b"quorate-peer".to_vec()];
    let config = QuicClientConfig::try_from(tls).expect("it can be used for QUIC");
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("a socket");
    let address = (Ipv4Addr::LOCALHOST, peer).into();
    let config = ClientConfig::new(Arc::new(config));
    let connecting = endpoint.connect_with(config, address, "127.0.0.1");
    let connection = connecting.expect("it can be tried").await;
    (endpoint, connection.expect("TLS succeeds"))
}

/// Sends a hello; true if the other side answered with its own and confirmed the connection.
async fn say_hello(connection: &Connection, claim: Claim, name: &str) -> bool {
    let Ok((mut send, mut receive)) = connection.open_bi().await else {
        return false;
    };
    if send.write_all(&hello(claim, name)).await.is_err() {
        return false;
    }
    let mut head = [0; 14];
    if receive.read_exact(&mut head).await.is_err() {
        return false;
    }
    let mut rest = vec![0; usize::from(u16::from_le_bytes([head[12], head[13]]))];
    receive.read_exact(&mut rest).await.is_ok() && send.write_all(&[1]).await.is_ok()
}

/// The code and the text with which the other side closed the connection.
async fn closed(connection: &Connection) -> (u64, String) {
    match connection.closed().await {
        ConnectionError::ApplicationClosed(close) => (
            close.error_code.into_inner(),
            String::from_utf8_lossy(&close.reason).into_owned(),
        ),
        other => panic!("not closed by the other side's will: {other}"),
    }
}

/// Three members of which the third is down, and the third's identity.
async fn with_one_down() -> (Cluster, Claim) {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let all = |list: &str| cluster.all_listed(list);
    eventually(&ports, &["member", "list"], all).await;
    let status = etcdctl(&ports[2..], &["endpoint", "status", "-w", "json"]).await;
    let status: Value = status.json();
    let number = |field: &str| status[0]["Status"]["header"][field].as_u64();
    let claim = Claim {
        versions: (1, 1),
        cluster: number("cluster_id").expect("a cluster"),
        member: number("member_id").expect("a member"),
    };
    cluster.members[2].kill().await;
    leader(&ports[..2]).await;
    (cluster, claim)
}

/// Asserts that the cluster still serves, and that `text` is in the log of its first member.
async fn unmoved(cluster: &Cluster, value: &str, text: &str) {
    let ports = cluster.ports();
    etcdctl(&ports[..1], &["put", "k", value]).await.ok();
    let got = etcdctl(&ports[1..2], &["get", "k", "--print-value-only"]).await;
    assert_eq!(got.ok().trim(), value, "it is read at another member");
    logged(&cluster.members[0], text).await;
}

/// Waits until `text` is in a member's log.
async fn logged(member: &Member, text: &str) {
    for _ in 0..600 {
        if member.log().contains(text) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{text:?} is not in the log:\n{}", member.log());
}

#[tokio::test]
async fn a_member_that_sends_what_is_no_frame() {
    let (mut cluster, claim) = with_one_down().await;
    let garbage: Vec<u8> = (0..64).map(|n: u8| n.wrapping_mul(151) ^ 0x5a).collect();
    let cases: [(&str, Vec<u8>, bool, &str); 5] = [
        ("garbage", garbage, false, "a stream of kind 90"),
        (
            "oversized",
            vec![2, 1, 255, 255, 255, 255],
            false,
            "a frame of 4294967295 bytes",
        ),
        (
            "truncated",
            vec![2, 1, 5, 0, 0, 0, 1],
            true,
            "the peer ended stream log",
        ),
        (
            "undecodable",
            vec![2, 1, 5, 0, 0, 0, 1, 0, 0, 0, 255],
            false,
            "cannot decode peer message",
        ),
        (
            "misplaced",
            vec![2, 1, 6, 0, 0, 0, 2, 0, 0, 0, 1, 12],
            false,
            "a TimeoutNow came over stream log",
        ),
    ];
    let folder = cluster.folder().to_owned();
    for (what, bytes, ends, text) in cases {
        let (_endpoint, connection) = connect(&folder, "n3", cluster.members[0].peer).await;
        assert!(
            say_hello(&connection, claim, "n3").await,
            "{what}: it is member n3"
        );
        let mut stream = connection.open_uni().await.expect("a stream");
        stream.write_all(&bytes).await.expect("it is sent");
        if ends {
            stream.finish().expect("it ends");
        }
        let (code, reason) = closed(&connection).await;
        assert_eq!(code, 10, "{what}: {reason}");
        assert!(reason.contains(text), "{what}: {reason}");
        unmoved(&cluster, what, text).await;
    }
    cluster.members[2].start();
    same_history(&cluster.ports()).await;
}

#[tokio::test]
async fn a_peer_of_another_version_another_cluster_or_another_name() {
    let (mut cluster, claim) = with_one_down().await;
    let folder = cluster.folder().to_owned();
    let later = Claim {
        versions: (700, 701),
        ..claim
    };
    let elsewhere = Claim {
        cluster: claim.cluster ^ 1,
        ..claim
    };
    let cases = [
        (later, "n3", 2, "version"),
        (elsewhere, "n3", 3, "belongs to cluster"),
        (claim, "n2", 8, "certificate"),
    ];
    for (claim, certificate, code, text) in cases {
        let (_endpoint, connection) = connect(&folder, certificate, cluster.members[0].peer).await;
        say_hello(&connection, claim, "n3").await;
        let (found, reason) = closed(&connection).await;
        assert_eq!(found, code, "{reason}");
        assert!(reason.contains(text), "{reason}");
        unmoved(&cluster, &format!("after {code}"), text).await;
    }
    cluster.members[2].start();
    same_history(&cluster.ports()).await;
}

/// A refusal is logged once a minute for each address and reason, and a reason that differs each time for a while only.
#[tokio::test]
async fn refused_peers_without_end_fill_no_log() {
    const REFUSED: u64 = 200;
    /// Texts that a gate of the log lets pass in a minute.
    const TEXTS_MAX: usize = 64;
    let (mut cluster, claim) = with_one_down().await;
    let folder = cluster.folder().to_owned();
    let start = clock::now();
    for n in 0..2 * REFUSED {
        // The same foreign cluster at first, then always another one.
        let foreign = n.saturating_sub(REFUSED) + 1;
        let elsewhere = Claim {
            cluster: claim.cluster ^ foreign,
            ..claim
        };
        let (_endpoint, connection) = connect(&folder, "n3", cluster.members[0].peer).await;
        say_hello(&connection, elsewhere, "n3").await;
        let (code, reason) = closed(&connection).await;
        assert_eq!(code, 3, "{reason}");
        if n + 1 == REFUSED {
            unmoved(&cluster, "the same", "belongs to cluster").await;
            let minutes = usize::try_from(start.elapsed().as_secs() / 60).expect("a number");
            let lines = lines_with(&cluster.members[0], "belongs to cluster");
            assert!(lines.len() <= 1 + minutes, "{lines:#?}");
        }
    }
    unmoved(&cluster, "others", "belongs to cluster").await;
    let minutes = usize::try_from(start.elapsed().as_secs() / 60).expect("a number");
    let lines = lines_with(&cluster.members[0], "belongs to cluster");
    assert!(lines.len() <= TEXTS_MAX * (1 + minutes), "{lines:#?}");
    let named = lines.iter().all(|line| line.contains("127.0.0.1"));
    assert!(named, "whoever is refused is named: {lines:#?}");
    cluster.members[2].start();
    same_history(&cluster.ports()).await;
}

fn lines_with(member: &Member, text: &str) -> Vec<String> {
    let log = member.log();
    let lines = log.lines().filter(|line| line.contains(text));
    lines.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_member_with_a_wrong_authoritys_or_an_expired_certificate() {
    let (mut cluster, _) = with_one_down().await;
    let foreign = cluster.folder().join("foreign");
    fs::create_dir(&foreign).expect("a folder");
    cert::make_ca(&foreign, 1).expect("an authority");
    let hosts = ["127.0.0.1".to_owned()];
    cert::make_member(&foreign, &foreign, "n3", &hosts, 1).expect("a certificate");
    let expired = cluster.folder().join("expired");
    fs::create_dir(&expired).expect("a folder");
    let own = cluster.folder().to_owned();
    cert::make_member(&own, &expired, "n3", &hosts, 0).expect("a certificate");
    fs::copy(own.join("ca.pem"), expired.join("ca.pem")).expect("the authority");
    let good = cluster.members[2].args.clone();
    let shows = |folder: &Path| {
        let file = |name: &str| folder.join(name).display().to_string();
        [
            format!("--peer-cert={}", file("n3.pem")),
            format!("--peer-key={}", file("n3-key.pem")),
            format!("--peer-ca={}", file("ca.pem")),
        ]
    };
    for (folder, text) in [(foreign, "UnknownIssuer"), (expired, "expired")] {
        let member = &mut cluster.members[2];
        member.args.extend(shows(&folder));
        member.start();
        unmoved(&cluster, text, text).await;
        // It receives the reason too, if not at the same moment.
        logged(&cluster.members[2], text).await;
        let member = &mut cluster.members[2];
        if text == "expired" {
            let log = member.log();
            assert!(log.contains("n3.pem: it ended on "), "{log}");
        }
        member.kill().await;
        member.args.clone_from(&good);
    }
    cluster.members[2].start();
    same_history(&cluster.ports()).await;
}

#[tokio::test]
async fn a_name_twice_in_the_initial_cluster_is_refused_and_the_others_go_on() {
    let (mut cluster, _) = with_one_down().await;
    let twice = format!("{},n1=127.0.0.1:1", cluster.initial());
    let member = &mut cluster.members[2];
    let good = member.args.clone();
    member.args.push(format!("--initial-cluster={twice}"));
    let log = member.refusal().await;
    assert!(log.contains("each name and each address once"), "{log}");
    cluster.members[2].args = good;
    cluster.members[2].start();
    same_history(&cluster.ports()).await;
}
