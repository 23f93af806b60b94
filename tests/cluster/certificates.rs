//! Members' certificates: those of kubeadm, and an authority that is replaced while the cluster serves.

use crate::{
    ctl::{etcdctl, eventually, leader},
    support::{Cluster, Member},
};
use quorate::internals::net::cert;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;

/// An authority as kubeadm makes one for etcd: it knows nothing of members.
struct Kubeadm(Issuer<'static, KeyPair>);

impl Kubeadm {
    fn new(folder: &Path) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(["etcd-ca".to_owned()]).expect("a name");
        params.distinguished_name = named("etcd-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let cert = params.self_signed(&key).expect("it can be signed");
        fs::write(folder.join("etcd-ca.crt"), cert.pem()).expect("written");
        Self(Issuer::new(params, key))
    }

    /// `peer.crt` of a node: its name and its address.
    fn peer(&self, folder: &Path, node: &str, address: &str) {
        let key = KeyPair::generate().expect("a key");
        let sans = [node, "localhost", address, "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new(sans).expect("names");
        params.distinguished_name = named(node);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let cert = params.signed_by(&key, &self.0).expect("it can be signed");
        fs::write(folder.join(format!("{node}.crt")), cert.pem()).expect("written");
        fs::write(folder.join(format!("{node}.key")), key.serialize_pem()).expect("written");
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut all = DistinguishedName::new();
    all.push(DnType::CommonName, name);
    all
}

#[tokio::test]
async fn certificates_of_kubeadm_form_a_cluster() {
    let mut cluster = Cluster::new(3).await;
    let folder = cluster.folder().to_owned();
    let authority = Kubeadm::new(&folder);
    let at = |n: usize, port: u16| format!("127.0.1.{}:{port}", n + 1);
    let members = cluster.members.iter().enumerate();
    let initial: Vec<_> = members
        .map(|(n, member)| format!("{}=https://{}", member.name, at(n, member.peer)))
        .collect();
    for (n, member) in cluster.members.iter_mut().enumerate() {
        let node = format!("control-plane-{n}");
        authority.peer(&folder, &node, &format!("127.0.1.{}", n + 1));
        let file = |name: String| folder.join(name).display().to_string();
        member.args = vec![
            format!("--peer-cert={}", file(format!("{node}.crt"))),
            format!("--peer-key={}", file(format!("{node}.key"))),
            format!("--peer-ca={}", file("etcd-ca.crt".to_owned())),
            format!("--peer-listen={}", at(n, member.peer)),
            format!("--peer-advertise={}", at(n, member.peer)),
            format!("--initial-cluster={}", initial.join(",")),
        ];
        member.start();
    }
    let ports = cluster.ports();
    leader(&ports).await;
    etcdctl(&ports, &["put", "key", "value"]).await.ok();

    // A certificate of another node: its owner does not start, and says why.
    let stray = &mut cluster.members[2];
    stray.kill().await;
    let other = ["crt", "key"].map(|end| folder.join(format!("stray.{end}")));
    authority.peer(&folder, "stray", "127.0.1.9");
    let at = stray.args.len();
    stray
        .args
        .push(format!("--peer-cert={}", other[0].display()));
    stray
        .args
        .push(format!("--peer-key={}", other[1].display()));
    stray.start();
    assert!(!stray.stopped().await.success());
    let text = "not of member \"n3\", and not valid for \"127.0.1.3\"";
    assert!(stray.log().contains(text), "{}", stray.log());
    stray.args.truncate(at);
    stray.start();
    eventually(&ports[2..], &["get", "key", "--print-value-only"], |got| {
        got == "value\n"
    })
    .await;
}

#[tokio::test]
async fn a_certificate_that_nobody_would_take_stops_the_start_before_anything_is_written() {
    let mut cluster = Cluster::new(1).await;
    cluster.cert(&["server", "--host", "127.0.0.1"]).await;
    cluster.cert(&["client", "--name", "root"]).await;
    cluster.cert(&["ca", "--dir", "other"]).await;
    let folder = cluster.folder().display().to_string();
    let own = cluster.members[0].args.len();
    let pair = |port: &str, name: &str| {
        vec![
            format!("--{port}-cert={folder}/{name}.pem"),
            format!("--{port}-key={folder}/{name}-key.pem"),
        ]
    };
    let member = &mut cluster.members[0];
    for (flags, text) in [
        (
            pair("peer", "root"),
            "peer.cert: FOLDER/root.pem: it is the certificate of a client only",
        ),
        (
            pair("peer", "server"),
            "peer.cert: FOLDER/server.pem: it is the certificate of a server only",
        ),
        (
            vec![format!("--peer-ca={folder}/other/ca.pem")],
            "none of the authorities in peer.ca, FOLDER/other/ca.pem, signed it",
        ),
        (
            vec![format!("--peer-key={folder}/root-key.pem")],
            "peer.key: FOLDER/root-key.pem: it is not the key of the certificate in FOLDER/n1.pem",
        ),
        (
            pair("client", "root"),
            "client.cert: FOLDER/root.pem: it is a client's certificate",
        ),
        (
            vec![format!("--peer-ca={folder}/missing.pem")],
            "peer.ca: cannot read FOLDER/missing.pem",
        ),
    ] {
        member.args.extend(flags);
        member.start();
        // What issues certificates may replace them, and then the next start succeeds.
        assert_eq!(member.stopped().await.code(), Some(1));
        let text = text.replace("FOLDER", &folder);
        assert!(member.log().contains(&text), "{text}:\n{}", member.log());
        assert!(!member.data_dir().exists(), "nothing is written");
        member.args.truncate(own);
    }
    // Without cluster.initial it forms a cluster of its own, and says so.
    let initial = member.args.pop().expect("its last argument");
    assert!(initial.starts_with("--initial-cluster="), "{initial}");
    member.start();
    eventually(&cluster.ports(), &["endpoint", "health"], |_| true).await;
    let log = cluster.members[0].log();
    let text = "cluster.initial is empty, so \"n1\" forms a cluster of its own";
    assert!(log.contains(text), "{log}");
    cluster.members[0].kill().await;
    cluster.members[0].start();
    eventually(&cluster.ports(), &["endpoint", "health"], |_| true).await;
    let said = cluster.members[0].log().matches(text).count();
    assert_eq!(said, 1, "it is a member already");
}

/// It has nobody to show its certificate to.
#[tokio::test]
async fn a_single_member_serves_with_an_ended_certificate_and_says_so() {
    let mut cluster = Cluster::new(1).await;
    let folder = cluster.folder().to_owned();
    cert::make_member(&folder, &folder.join("old"), "n1", &[], 0).expect("a certificate");
    let file = |name: &str| folder.join(name).display().to_string();
    let member = &mut cluster.members[0];
    member.args.extend([
        format!("--peer-cert={}", file("old/n1.pem")),
        format!("--peer-key={}", file("old/n1-key.pem")),
    ]);
    member.start();
    eventually(&cluster.ports(), &["put", "key", "value"], |_| true).await;
    let log = cluster.members[0].log();
    let text = format!("peer.cert: {}: it ended on ", file("old/n1.pem"));
    assert!(log.contains(&text), "{text}:\n{log}");
}

/// Puts, one after the other, through all members.
async fn put_on(ports: Vec<u16>, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) {
    while !stop.load(Ordering::Relaxed) {
        etcdctl(&ports, &["put", "key", "value"]).await.ok();
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn the_authority_of_members_is_replaced_while_they_serve() {
    let mut cluster = Cluster::start(3).await;
    let (folder, ports) = (cluster.folder().to_owned(), cluster.ports());
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let load = tokio::spawn(put_on(ports.clone(), stop.clone(), done.clone()));
    let replace = |name: &str, bytes: &[u8]| {
        let new = folder.join(format!("{name}.new"));
        fs::write(&new, bytes).unwrap();
        fs::rename(new, folder.join(name)).unwrap();
    };
    // Every member looks at its files once a second and says what it took up.
    let taken = "new peer certificates are in use";
    let counts = |cluster: &Cluster| -> Vec<usize> {
        let logs = cluster.members.iter().map(Member::log);
        logs.map(|log| log.matches(taken).count()).collect()
    };
    let all_took = async |cluster: &Cluster, before: Vec<usize>| {
        while counts(cluster)
            .iter()
            .zip(&before)
            .any(|(now, before)| now <= before)
        {
            sleep(Duration::from_millis(50)).await;
        }
    };
    cluster.cert(&["ca", "--dir", "new"]).await;
    let old = fs::read(folder.join("ca.pem")).unwrap();
    let new = fs::read(folder.join("new/ca.pem")).unwrap();
    let before = counts(&cluster);
    replace("ca.pem", &[old, new.clone()].concat());
    all_took(&cluster, before).await;
    let trusts = |count: &str| {
        let text = format!("authorities in peer.ca, all of them trusted: {count}\n");
        let says = |member: &Member| member.log().contains(&text);
        assert!(cluster.members.iter().all(says), "{text}");
    };
    trusts("2");
    let before = counts(&cluster);
    for name in ["n1", "n2", "n3"] {
        let args = [
            "member",
            "--ca",
            "new",
            "--dir",
            ".",
            "--name",
            name,
            "--replace",
        ];
        cluster.cert(&args).await;
    }
    all_took(&cluster, before).await;
    let before = counts(&cluster);
    replace("ca.pem", &new);
    all_took(&cluster, before).await;
    trusts("1");
    let at = done.load(Ordering::Relaxed);
    while done.load(Ordering::Relaxed) < at + 3 {
        sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    load.await.expect("no request fails");
    // What is connected stays so; each new connection needs the new authority.
    for n in 0..3 {
        cluster.members[n].kill().await;
        cluster.members[n].start();
        eventually(&ports[n..=n], &["put", "key", "after"], |_| true).await;
    }
}
