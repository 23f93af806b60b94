//! TLS of the client port: who gets in, who does not and why, and what happens when certificates change.

mod authority;
mod listeners;
#[cfg(feature = "etcd-client-tests")]
mod rotation;
mod users;

use crate::support::{Kind, Server, Setup, etcdctl_at, ports, run_to_exit};
use authority::{Answer, Authority, Made, Shows, ask, close_and_go_on, named, replace};
use quorate::internals::clock;
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, date_time_ymd};
use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::Path, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    process::Command,
    task::spawn_blocking,
    time::{sleep, timeout},
};

/// A server with a plain port and one for TLS, and the authority of everybody.
struct Secure {
    server: Server,
    port: u16,
    authority: Authority,
    own: Made,
}

impl Secure {
    /// One that does not run yet, without checks of clients.
    fn new(more: &[&str]) -> Self {
        let server = Server::new(Kind::Quorate, Setup::default());
        let authority = Authority::new(server.home(), "ca");
        let own = authority.server("server");
        let port = ports::free_port();
        let listen = format!(
            "http://127.0.0.1:{},https://127.0.0.1:{port}",
            server.client_port()
        );
        let server = server.also(&["--client-listen", &listen]);
        let server = server.also(&[
            "--client-cert",
            text(&own.cert),
            "--client-key",
            text(&own.key),
        ]);
        Self {
            server: server.also(more),
            port,
            authority,
            own,
        }
    }

    /// One that does not run yet, where clients must show certificates.
    fn checked(more: &[&str]) -> Self {
        let mut secure = Self::new(&[]);
        let ca = text(&secure.authority.file).to_owned();
        secure.server = secure.server.also(&["--client-ca", &ca]).also(more);
        secure
    }

    /// What a client shows that has a certificate, or none.
    fn shows(&self, own: Option<&Made>) -> Shows {
        Shows::new(&self.authority, own)
    }

    async fn ask(&self, own: Option<&Made>) -> Result<Answer, String> {
        ask(self.port, &self.shows(own)).await
    }

    /// The error of a client that is refused, once the log has the reason, too.
    async fn refused(&self, own: Option<&Made>, reason: &str) -> String {
        let error = self.ask(own).await.expect_err(reason);
        self.logged(reason).await;
        error
    }

    /// Waits until the log has a text.
    async fn logged(&self, wanted: &str) {
        while !self.server.log().contains(wanted) {
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ctl(&self, own: &Made, args: &[&str]) -> crate::support::CtlOutput {
        let endpoint = format!("https://127.0.0.1:{}", self.port);
        let files = [&self.authority.file, &own.cert, &own.key].map(|path| text(path));
        let mut all = vec!["--cacert", files[0], "--cert", files[1], "--key", files[2]];
        all.extend(args);
        etcdctl_at(&endpoint, &all).await
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path")
}

#[tokio::test]
async fn etcdctl_and_http_over_mutual_tls_beside_a_plain_port() {
    let mut secure = Secure::checked(&[]);
    secure.server.restart().await;
    let client = secure.authority.client("anybody");
    let ok = secure.ctl(&client, &["put", "key", "value"]).await.ok();
    assert_eq!(ok, "OK\n");
    let long = "x".repeat(900_000);
    secure
        .ctl(&client, &["put", "long", &long[..100_000]])
        .await
        .ok();
    let got = secure
        .ctl(&client, &["get", "long", "--print-value-only"])
        .await
        .ok();
    assert_eq!(got.trim().len(), 100_000);
    let plain = format!("127.0.0.1:{}", secure.server.client_port());
    let got = etcdctl_at(&plain, &["get", "key", "--print-value-only"])
        .await
        .ok();
    assert_eq!(got, "value\n", "one store at both ports");
    let urls = format!("http://{plain},https://127.0.0.1:{}", secure.port);
    let members = secure.ctl(&client, &["member", "list"]).await.ok();
    assert!(members.contains(&urls), "{members}");
    for tls12_only in [false, true] {
        let shows = Shows {
            tls12_only,
            alpn: vec!["http/1.1"],
            ..secure.shows(Some(&client))
        };
        let answer = ask(secure.port, &shows).await.unwrap();
        assert!(answer.text.contains("etcdserver"), "{answer:?}");
    }
    let shows = Shows {
        alpn: vec!["spdy/1"],
        ..secure.shows(Some(&client))
    };
    let error = ask(secure.port, &shows).await.unwrap_err();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
}

#[tokio::test]
async fn a_snapshot_is_saved_over_mutual_tls() {
    let mut secure = Secure::checked(&[]);
    secure.server.restart().await;
    let client = secure.authority.client("anybody");
    let file = secure.server.home().join("backup.db");
    let endpoint = format!("https://127.0.0.1:{}", secure.port);
    let save = async |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command
            .args(["snapshot", "save", text(&file), "--endpoints", &endpoint])
            .args(["--cacert", text(&secure.authority.file)])
            .args(more);
        run_to_exit(command).await
    };
    let refused = save(&[]).await;
    assert!(!refused.status.success(), "it shows no certificate");
    assert!(!file.exists(), "{refused:?}");
    let shown = ["--cert", text(&client.cert), "--key", text(&client.key)];
    let saved = save(&shown).await;
    assert!(saved.status.success() && file.exists(), "{saved:?}");
}

#[tokio::test]
async fn a_watch_and_long_answers_pass_through_tls() {
    let mut secure = Secure::checked(&[]);
    secure.server.restart().await;
    let client = secure.authority.client("anybody");
    let value = "v".repeat(100_000);
    for n in 0..20 {
        secure
            .ctl(&client, &["put", &format!("key{n:02}"), &value])
            .await
            .ok();
    }
    let args = ["get", "key", "--prefix", "--print-value-only"];
    let got = secure.ctl(&client, &args).await.ok();
    assert_eq!(got.len(), 20 * 100_001, "all of two megabytes");
    let args = [
        "watch",
        "key",
        "--prefix",
        "--rev=2",
        "--command-timeout=60s",
    ];
    let endpoint = format!("https://127.0.0.1:{}", secure.port);
    let mut all = vec!["--cacert", text(&secure.authority.file)];
    all.extend(["--cert", text(&client.cert), "--key", text(&client.key)]);
    all.extend(args);
    let mut watching = crate::support::start_etcdctl_at(&endpoint, &all);
    let mut output = watching.stdout.take().expect("a pipe");
    let mut received = vec![0; 20 * 100_000];
    output.read_exact(&mut received).await.expect("all events");
}

#[tokio::test]
async fn who_shows_a_bad_certificate_is_refused_with_the_reason() {
    let mut secure = Secure::checked(&[]);
    let authority = &secure.authority;
    let other = Authority::new(secure.server.home(), "other");
    let good = authority.client("good");
    let revoked = authority.client("revoked");
    let crl = secure.server.home().join("list.pem");
    fs::write(&crl, authority.revoke(&[&revoked]).0).unwrap();
    let expired = authority.client_with("old", |params| {
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let early = authority.client_with("early", |params| {
        params.not_before = date_time_ymd(2039, 1, 1);
    });
    let foreign = other.client("foreign");
    let not_a_client = authority.make("not-a-client", &[], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    secure.server = secure.server.also(&["--client-crl", text(&crl)]);
    secure.server.restart().await;
    for (own, reason, alert) in [
        (None, "it shows no certificate", "CertificateRequired"),
        (
            Some(&foreign),
            "none of the authorities signed it",
            "UnknownCA",
        ),
        (Some(&expired), "it has expired", "CertificateExpired"),
        (Some(&early), "it is not valid yet", "CertificateExpired"),
        (Some(&revoked), "it was revoked", "CertificateRevoked"),
        (
            Some(&not_a_client),
            "its certificate is refused: it is of another kind",
            "UnsupportedCertificate",
        ),
    ] {
        let error = secure.refused(own, reason).await;
        assert!(error.contains(alert), "{reason}: {error}");
        secure
            .ask(Some(&good))
            .await
            .expect("others are not affected");
    }
    // Also of the server's certificate, which clients check.
    let endpoint = format!("https://127.0.0.1:{}", secure.port);
    let args = [
        "--cacert",
        text(&other.file),
        "--cert",
        text(&good.cert),
        "--key",
        text(&good.key),
    ];
    let args = [
        &args[..],
        &["--command-timeout=3s", "--dial-timeout=2s", "get", "x"],
    ]
    .concat();
    assert_ne!(
        etcdctl_at(&endpoint, &args).await.code,
        0,
        "another authority"
    );
    let refusal =
        "it refuses this member: this member's certificate is not good for it (BadCertificate)";
    secure.logged(refusal).await;
}

#[tokio::test]
async fn a_server_for_another_host_is_refused_by_clients() {
    let mut secure = Secure::new(&[]);
    let made = secure
        .authority
        .make("elsewhere", &["elsewhere.example"], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
    let (cert, key) = (text(&made.cert).to_owned(), text(&made.key).to_owned());
    secure.server = secure
        .server
        .also(&["--client-cert", &cert, "--client-key", &key]);
    secure.server.restart().await;
    let ca = text(&secure.authority.file).to_owned();
    let ask = async |more: &[&str]| {
        let endpoint = format!("https://127.0.0.1:{}", secure.port);
        let limits = ["--command-timeout=3s", "--dial-timeout=2s", "--cacert", &ca];
        let get = ["get", "x"];
        etcdctl_at(&endpoint, &[&limits, more, &get].concat())
            .await
            .code
    };
    assert_ne!(ask(&[]).await, 0, "it is not 127.0.0.1");
    let other_name = ask(&["--insecure-skip-tls-verify"]).await;
    assert_eq!(other_name, 0, "nothing else is wrong");
}

#[tokio::test]
async fn names_and_hosts_can_be_limited() {
    let mut secure = Secure::checked(&["--client-allowed-cn", "alice,bob"]);
    secure.server.restart().await;
    let [alice, bob, eve] = ["alice", "bob", "eve"].map(|user| secure.authority.client(user));
    secure.ask(Some(&alice)).await.unwrap();
    secure.ask(Some(&bob)).await.unwrap();
    let reason = "its common name is \"eve\", which is not allowed here";
    secure.refused(Some(&eve), reason).await;

    let mut secure = Secure::checked(&["--client-allowed-hosts", "n1.example.com,10.0.0.7"]);
    secure.server.restart().await;
    let host = |host: &str| {
        secure
            .authority
            .make(&format!("host-{host}"), &[host], |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            })
    };
    let hosts = ["*.example.com", "10.0.0.7", "10.0.0.8"].map(host);
    secure.ask(Some(&hosts[0])).await.unwrap();
    secure.ask(Some(&hosts[1])).await.unwrap();
    secure
        .refused(Some(&hosts[2]), "it is valid for none of the hosts")
        .await;
}

#[tokio::test]
async fn a_certificate_that_is_not_required_must_be_good_all_the_same() {
    let mut secure = Secure::checked(&["--client-require-cert=false"]);
    secure.server.restart().await;
    let other = Authority::new(secure.server.home(), "other");
    secure.ask(None).await.unwrap();
    secure
        .ask(Some(&secure.authority.client("good")))
        .await
        .unwrap();
    secure
        .refused(
            Some(&other.client("foreign")),
            "none of the authorities signed it",
        )
        .await;
}

#[tokio::test]
async fn versions_and_suites_can_be_limited() {
    let flag = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
    let mut secure = Secure::new(&[]);
    let setup = [
        ("QUORATE_TLS_CIPHER_SUITES", flag),
        ("QUORATE_TLS_MAX_VERSION", "1.2"),
    ];
    secure.server = secure.server.with_env(&setup);
    secure.server.restart().await;
    assert_eq!(secure.ask(None).await.unwrap().suite, flag);
    let mut secure = Secure::new(&[]);
    secure.server = secure
        .server
        .with_env(&[("QUORATE_TLS_MIN_VERSION", "1.3")]);
    secure.server.restart().await;
    let shows = Shows {
        tls12_only: true,
        ..secure.shows(None)
    };
    let error = ask(secure.port, &shows).await.unwrap_err();
    assert!(error.contains("ProtocolVersion"), "{error}");
    secure.ask(None).await.unwrap();
}

#[tokio::test]
async fn plain_http_at_a_tls_port_and_tls_at_a_plain_port_are_told() {
    let mut secure = Secure::new(&[]);
    secure.server.restart().await;
    for request in [
        "GET /version HTTP/1.1\r\nhost: x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = exchange(secure.port, request.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{answer}"
        );
        assert!(
            answer.ends_with("Client sent an HTTP request to an HTTPS server.\n"),
            "{answer}"
        );
    }
    secure
        .logged("a client at 127.0.0.1 is refused: it speaks plain HTTP to a TLS port")
        .await;
    let answer = exchange(secure.port, b"\x05\x01\x00").await;
    assert_eq!(answer, "", "what is neither is closed");
    secure
        .logged("a client at 127.0.0.1 is refused: what it sends is no TLS")
        .await;

    let error = ask(secure.server.client_port(), &secure.shows(None))
        .await
        .unwrap_err();
    assert!(!error.is_empty(), "a plain port has no TLS");
    secure
        .logged("a client at 127.0.0.1 speaks TLS to a port without it")
        .await;
}

async fn exchange(port: u16, request: &[u8]) -> String {
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    socket.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A server that closes with unread bytes resets the connection.
    drop(socket.read_to_end(&mut answer).await);
    String::from_utf8(answer).unwrap()
}

/// It takes the ten seconds of a handshake.
#[tokio::test]
async fn half_a_handshake_is_closed_and_delays_nobody() {
    let mut secure = Secure::new(&[]);
    secure.server.restart().await;
    let mut halves = Vec::new();
    for _ in 0..50 {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, secure.port))
            .await
            .unwrap();
        // A record of 512 bytes, of which some have come.
        socket
            .write_all(b"\x16\x03\x01\x02\x00\x01\x00")
            .await
            .unwrap();
        halves.push(socket);
    }
    for _ in 0..10 {
        secure.ask(None).await.unwrap();
    }
    for mut half in halves {
        let mut rest = Vec::new();
        drop(half.read_to_end(&mut rest).await);
        assert_eq!(rest, b"", "it is closed");
    }
    secure
        .logged("its TLS handshake was not over in 10 s")
        .await;
    let cut = TcpStream::connect((Ipv4Addr::LOCALHOST, secure.port)).await;
    cut.unwrap().write_all(b"\x16\x03\x01").await.unwrap();
    secure
        .logged("it left in the middle of its TLS handshake")
        .await;
    secure.ask(None).await.unwrap();
}

/// A refusal is logged once a minute for each address and reason, and no more than 64 of a kind in a minute.
#[tokio::test]
async fn refused_clients_without_end_fill_no_log() {
    const TIMES: usize = 300;
    const ADDRESSES: u8 = 200;
    const TEXTS_MAX: usize = 64;
    let mut secure = Secure::new(&[]);
    secure.server.restart().await;
    let start = clock::now();
    let refused = async |from: Ipv4Addr, port: u16, sent: &[u8]| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let connected = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await;
        let mut socket = connected.unwrap();
        socket.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        drop(socket.read_to_end(&mut answer).await);
    };
    let (port, plain) = (secure.port, secure.server.client_port());
    for _ in 0..TIMES {
        refused(Ipv4Addr::LOCALHOST, port, b"GET / HTTP/1.1\r\n\r\n").await;
        refused(Ipv4Addr::LOCALHOST, port, b"what is no TLS").await;
        refused(Ipv4Addr::LOCALHOST, plain, b"\x16\x03\x01\x02\x00\x01\x00").await;
    }
    let reasons = [
        "a client at 127.0.0.1 is refused: it speaks plain HTTP",
        "a client at 127.0.0.1 is refused: what it sends is no TLS",
        "a client at 127.0.0.1 speaks TLS to a port without it",
    ];
    let minutes = || 1 + usize::try_from(start.elapsed().as_secs() / 60).unwrap();
    for reason in reasons {
        secure.logged(reason).await;
        let times = secure.server.log().matches(reason).count();
        assert!(times <= minutes(), "{times} times: {reason}");
    }
    for last in 2..ADDRESSES {
        refused(Ipv4Addr::new(127, 0, 0, last), port, b"no TLS").await;
    }
    secure.logged("a client at 127.0.0.2 is refused").await;
    secure.ask(None).await.unwrap();
    let times = secure.server.log().matches("is refused: ").count();
    assert!(times <= TEXTS_MAX * minutes(), "{times} lines");
}

#[tokio::test]
async fn what_follows_the_end_of_tls_is_ignored() {
    let mut secure = Secure::new(&[]);
    secure.server.restart().await;
    let mut ended = Vec::new();
    for bytes in [1, 4_096, 5_000, 60_000] {
        let shows = secure.shows(None);
        let port = secure.port;
        let closing = spawn_blocking(move || close_and_go_on(port, &shows, bytes));
        ended.push(closing.await.unwrap());
        let asked = timeout(Duration::from_mins(1), secure.ask(None));
        let answer = asked.await.expect("others are served").unwrap();
        assert!(answer.text.contains("etcdserver"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_handshakes() {
    let mut secure = Secure::new(&[]);
    secure.server.restart().await;
    let half = TcpStream::connect((Ipv4Addr::LOCALHOST, secure.port)).await;
    let mut half = half.unwrap();
    half.write_all(b"\x16\x03\x01\x02\x00\x01\x00")
        .await
        .unwrap();
    // Connections are accepted in order, so that one's handshake has begun.
    secure.ask(None).await.unwrap();
    secure.server.signal(rustix::process::Signal::TERM);
    assert!(secure.server.stopped().await.success());
    let log = secure.server.log();
    assert!(!log.contains("kept calls open for too long"), "{log}");
}

#[tokio::test]
async fn what_cannot_be_used_stops_the_start_and_is_named() {
    let other = |secure: &Secure| Authority::new(secure.server.home(), "other");
    let refused = async |secure: Secure, text: &str| {
        let exit = run_to_exit(secure.server.command()).await;
        assert!(
            !exit.status.success() && exit.output.contains(text),
            "{}",
            exit.output
        );
        assert!(!secure.server.data_dir().exists(), "nothing is written");
    };
    let secure = Secure::new(&["--client-cert", "/no/such.pem"]);
    refused(secure, "cannot read /no/such.pem").await;
    let mut secure = Secure::new(&[]);
    let key = other(&secure).server("another").key;
    secure.server = secure.server.also(&["--client-key", text(&key)]);
    refused(secure, "it is not the key of the certificate in ").await;
    let secure = Secure::checked(&[]);
    let list = secure.server.home().join("list.pem");
    fs::write(&list, other(&secure).revoke(&[]).0).unwrap();
    let secure = Secure {
        server: secure.server.also(&["--client-crl", text(&list)]),
        ..secure
    };
    refused(secure, "list.pem: its issuer is none of the authorities").await;
    let secure = Secure::checked(&[]);
    let list = secure.server.home().join("list.der");
    let (_, mut der) = secure.authority.revoke(&[&secure.own]);
    *der.last_mut().unwrap() ^= 1;
    fs::write(&list, der).unwrap();
    let secure = Secure {
        server: secure.server.also(&["--client-crl", text(&list)]),
        ..secure
    };
    refused(
        secure,
        "list.der: its signature is not that of the authority",
    )
    .await;
    let secure = Secure::new(&[]);
    fs::set_permissions(&secure.own.key, fs::Permissions::from_mode(0o644)).unwrap();
    let secure = Secure {
        server: secure
            .server
            .with_env(&[("QUORATE_TLS_REFUSE_READABLE_KEYS", "true")]),
        ..secure
    };
    refused(
        secure,
        "every user of this machine may read this private key: chmod o= ",
    )
    .await;
}

/// Clients refuse it if they check it, and the others are served.
#[tokio::test]
async fn a_certificate_that_only_some_clients_refuse_is_shown_with_a_warning() {
    for (file, text) in [
        ("old", "it ended on 2021-01-01: clients"),
        (
            "early",
            "it is not valid before 2039-01-01 00:00:00 UTC, and",
        ),
        ("authority", "it is the certificate of an authority, which"),
    ] {
        let mut secure = Secure::new(&[]);
        let made = secure
            .authority
            .make(file, &["127.0.0.1"], |params| match file {
                "old" => params.not_after = date_time_ymd(2021, 1, 1),
                "early" => params.not_before = date_time_ymd(2039, 1, 1),
                _ => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            });
        let files = [&made.cert, &made.key].map(|path| path.display().to_string());
        secure.server =
            secure
                .server
                .also(&["--client-cert", &files[0], "--client-key", &files[1]]);
        secure.server.restart().await;
        let text = format!("client.cert: {}: {text}", files[0]);
        secure.logged(&text).await;
        let endpoint = format!("https://127.0.0.1:{}", secure.port);
        let unchecked = ["--insecure-skip-tls-verify", "--insecure-transport=false"];
        let args = [&unchecked[..], &["put", "key", "value"]].concat();
        assert_eq!(etcdctl_at(&endpoint, &args).await.ok(), "OK\n", "{file}");
    }
}

#[tokio::test]
async fn a_change_to_an_ended_certificate_is_refused_and_to_an_early_one_is_taken() {
    let mut secure = Secure::new(&[]);
    secure.server.restart().await;
    let put = |made: &Made| {
        replace(&secure.own.key, fs::read(&made.key).unwrap());
        replace(&secure.own.cert, fs::read(&made.cert).unwrap());
    };
    let first = secure.ask(None).await.unwrap().server;
    put(&secure.authority.make("old", &["127.0.0.1"], |params| {
        params.not_after = date_time_ymd(2021, 1, 1);
    }));
    secure.logged("the old ones stay: client.cert: ").await;
    secure.logged("it ended on 2021-01-01: replace it").await;
    assert_eq!(secure.ask(None).await.unwrap().server, first);
    // As one from an authority whose clock is ahead. It is not read again once its time has come.
    put(&secure.authority.make("early", &["127.0.0.1"], |params| {
        params.not_before = date_time_ymd(2039, 1, 1);
    }));
    secure
        .logged("new certificates of the client port are in force")
        .await;
    secure.logged("it is not valid before 2039-01-01").await;
    secure
        .ask(None)
        .await
        .expect_err("a client that checks refuses it");
}

#[tokio::test]
async fn files_that_change_are_taken_up_and_bad_ones_are_not() {
    let mut secure = Secure::checked(&[]);
    let list = secure.server.home().join("list");
    fs::write(&list, secure.authority.revoke(&[]).1).unwrap();
    secure.server = secure.server.also(&["--client-crl", text(&list)]);
    secure.server.restart().await;
    secure.logged("the certificate of the client port, ").await;
    let (good, bad) = (
        secure.authority.client("good"),
        secure.authority.client("bad"),
    );
    let first = secure.ask(Some(&bad)).await.unwrap().server;

    replace(&secure.own.cert, "no certificate");
    secure.logged("the old ones stay: ").await;
    assert!(
        secure
            .server
            .log()
            .contains("server.pem: there is no certificate in it")
    );
    assert_eq!(
        secure.ask(Some(&bad)).await.unwrap().server,
        first,
        "it stays in force"
    );

    let next = secure.authority.server("next");
    replace(&secure.own.key, fs::read(&next.key).unwrap());
    replace(&secure.own.cert, fs::read(&next.cert).unwrap());
    secure
        .logged("new certificates of the client port are in force")
        .await;
    assert_ne!(secure.ask(Some(&bad)).await.unwrap().server, first);

    // A list in the other form, and one that nobody here signed.
    replace(&list, secure.authority.revoke(&[&bad]).0);
    while secure.ask(Some(&bad)).await.is_ok() {
        sleep(Duration::from_millis(20)).await;
    }
    let other = Authority::new(secure.server.home(), "other");
    replace(&list, other.revoke(&[]).0);
    secure
        .logged("list: its issuer is none of the authorities")
        .await;
    secure.refused(Some(&bad), "it was revoked").await;
    secure.ask(Some(&good)).await.unwrap();
}

#[tokio::test]
async fn a_signal_takes_new_files_up_at_once() {
    let mut secure = Secure::new(&[]);
    secure.server.restart().await;
    let first = secure.ask(None).await.unwrap().server;
    let next = secure.authority.server("next");
    replace(&secure.own.key, fs::read(&next.key).unwrap());
    replace(&secure.own.cert, fs::read(&next.cert).unwrap());
    secure.server.signal(rustix::process::Signal::HUP);
    while secure
        .ask(None)
        .await
        .is_ok_and(|answer| answer.server == first)
    {
        sleep(Duration::from_millis(5)).await;
    }
    let seen = secure
        .ask(None)
        .await
        .expect("a signal does not end the member")
        .server;
    assert_ne!(seen, first);
}

#[tokio::test]
async fn a_member_can_make_its_own_certificate() {
    let server = Server::new(Kind::Quorate, Setup::default());
    let port = ports::free_port();
    let listen = format!(
        "http://127.0.0.1:{},https://127.0.0.1:{port}",
        server.client_port()
    );
    let mut server = server.also(&["--client-listen", &listen, "--client-auto-tls"]);
    server.restart().await;
    let endpoint = format!("https://127.0.0.1:{port}");
    let args = [
        "--insecure-skip-tls-verify",
        "--insecure-transport=false",
        "put",
        "key",
        "value",
    ];
    assert_eq!(etcdctl_at(&endpoint, &args).await.ok(), "OK\n");
    let folder = server.data_dir().join("client-tls");
    let own = fs::read(folder.join("cert.pem")).unwrap();
    let ca = ["--cacert", text(&folder.join("cert.pem"))].map(str::to_owned);
    let args = [&ca[0], &ca[1], "get", "key", "--print-value-only"];
    assert_eq!(etcdctl_at(&endpoint, &args).await.ok(), "value\n");
    let mode = fs::metadata(folder.join("key.pem"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    server.kill().await;
    server.restart().await;
    assert_eq!(
        fs::read(folder.join("cert.pem")).unwrap(),
        own,
        "it is kept"
    );
}
