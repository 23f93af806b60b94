//! The name in a client's certificate is its user: the same calls beside a real etcd, with the same answers.

use super::{Authority, Made, named, text};
use crate::support::{Kind, Server, Setup, etcd_version, etcdctl_at, note, ports};
use rcgen::ExtendedKeyUsagePurpose;
use std::{path::Path, time::Duration};
use tokio::time::{sleep, timeout};

/// Who calls: a certificate, and further flags.
struct Caller {
    own: Made,
    flags: &'static [&'static str],
}

/// What etcdctl says that does not differ from run to run.
async fn call(port: u16, ca: &Path, caller: &Caller, args: &[&str]) -> String {
    let endpoint = format!("https://127.0.0.1:{port}");
    let own = [&caller.own.cert, &caller.own.key].map(|path| text(path));
    let mut all = vec!["--cacert", text(ca), "--cert", own[0], "--key", own[1]];
    all.extend(caller.flags);
    all.extend(args);
    let said = etcdctl_at(&endpoint, &all).await;
    let errors = said
        .stderr
        .lines()
        .filter(|line| line.starts_with("Error: "));
    let errors: Vec<_> = errors.collect();
    format!("{} {:?} {errors:?}", said.code, said.stdout)
}

/// A server that asks clients for certificates, beside a plain port.
fn server(kind: Kind, authority: &Authority, own: &Made) -> (Server, u16) {
    let server = Server::new(kind, Setup::default());
    let port = ports::free_port();
    let listen = format!(
        "http://127.0.0.1:{},https://127.0.0.1:{port}",
        server.client_port()
    );
    let files = [&own.cert, &own.key, &authority.file].map(|path| text(path));
    let server = match kind {
        Kind::Quorate => server.also(&[
            "--client-listen",
            &listen,
            "--client-cert",
            files[0],
            "--client-key",
            files[1],
            "--client-ca",
            files[2],
        ]),
        Kind::Etcd => server.also(&[
            "--listen-client-urls",
            &listen,
            "--cert-file",
            files[0],
            "--key-file",
            files[1],
            "--trusted-ca-file",
            files[2],
            "--client-cert-auth",
        ]),
    };
    (server, port)
}

/// What root does first.
const SETUP: [&[&str]; 11] = [
    &["put", "/a/x", "of a"],
    &["user", "add", "root", "--no-password"],
    &["user", "grant-role", "root", "root"],
    &["role", "add", "r"],
    &["role", "grant-permission", "r", "readwrite", "/a/", "/a0"],
    &["user", "add", "alice", "--no-password"],
    &["user", "grant-role", "alice", "r"],
    &["user", "add", "bob:secret"],
    &["role", "add", "other"],
    &["user", "grant-role", "bob", "other"],
    &["auth", "enable"],
];

/// What each caller tries.
const PROBES: [&[&str]; 14] = [
    &["get", "/a/x"],
    &["put", "/a/x", "new"],
    &["get", "/b"],
    &["del", "/b"],
    &["get", "/a/", "/a0", "--keys-only"],
    &["get", "", "--prefix"],
    &["user", "list"],
    &["user", "get", "alice"],
    &["role", "get", "r"],
    &["role", "list"],
    &["auth", "status"],
    &["compact", "1"],
    &["alarm", "list"],
    &["user", "add", "eve", "--no-password"],
];

fn callers(authority: &Authority) -> [Caller; 6] {
    let user = |name: &str, flags: &'static [&'static str]| Caller {
        own: authority.client(name),
        flags,
    };
    let nameless = Caller {
        own: authority.make("nameless", &[], |params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params
                .distinguished_name
                .push(rcgen::DnType::OrganizationName, "x");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }),
        flags: &[],
    };
    [
        user("alice", &[]),
        user("mallory", &[]),
        nameless,
        user("alice", &["--user=bob:secret"]),
        user("alice", &["--auth-jwt-token=nonsense.1"]),
        user("root", &["--user=bob:secret"]),
    ]
}

#[tokio::test]
async fn the_name_in_a_certificate_is_the_user_as_in_etcd() {
    if etcd_version() < (3, 7) {
        return note("skipped: what an etcd before 3.7 answers is not compared");
    }
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::new(home.path(), "ca");
    // etcd logs in to itself with this one.
    let own = authority.make("server", &["localhost", "127.0.0.1"], |params| {
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
    });
    let callers = callers(&authority);
    let root = Caller {
        own: authority.client("root"),
        flags: &[],
    };
    let mut answers = Vec::new();
    for kind in [Kind::Quorate, Kind::Etcd] {
        let (mut server, port) = server(kind, &authority, &own);
        server.restart().await;
        let mut said = Vec::new();
        for args in SETUP {
            said.push(call(port, &authority.file, &root, args).await);
        }
        assert!(
            said.iter().all(|said| said.starts_with('0')),
            "{kind:?}: {said:?}"
        );
        for caller in &callers {
            for args in PROBES {
                let answer = call(port, &authority.file, caller, args).await;
                let who = caller.own.cert.file_name().unwrap();
                said.push(format!("{who:?} {:?} {args:?}: {answer}", caller.flags));
            }
        }
        said.push(call(port, &authority.file, &root, &["user", "list"]).await);
        answers.push(said);
    }
    let [ours, etcds] = answers.try_into().unwrap();
    let differ: Vec<_> = ours
        .iter()
        .zip(&etcds)
        .filter(|(ours, etcds)| ours != etcds)
        .collect();
    assert!(differ.is_empty(), "ours and etcd's: {differ:#?}");
    assert!(
        ours.iter().any(|said| said.contains("permission denied")),
        "something is refused"
    );
    assert!(
        ours.iter().any(|said| said.contains("invalid auth token")),
        "a bad token stays bad"
    );
}

/// A user that is added later, and one whose right goes, on the same connection.
#[tokio::test]
async fn the_user_is_looked_up_at_each_call() {
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::new(home.path(), "ca");
    let own = authority.server("server");
    let (mut server, port) = server(Kind::Quorate, &authority, &own);
    server.restart().await;
    let root = Caller {
        own: authority.client("root"),
        flags: &[],
    };
    let late = Caller {
        own: authority.client_with("late", |params| params.distinguished_name = named("late")),
        flags: &[],
    };
    for args in [
        &["user", "add", "root", "--no-password"][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
        &["put", "k", "v"],
    ] {
        let said = call(port, &authority.file, &root, args).await;
        assert!(said.starts_with('0'), "{said}");
    }
    let endpoint = format!("https://127.0.0.1:{port}");
    let files = [&authority.file, &late.own.cert, &late.own.key].map(|path| text(path));
    let args = [
        "--cacert", files[0], "--cert", files[1], "--key", files[2], "watch", "-i",
    ];
    // One connection, on which the same call is made until it succeeds.
    let mut watching = crate::support::start_etcdctl_at(&endpoint, &args);
    let mut input = watching.stdin.take().expect("a pipe");
    let mut output = watching.stdout.take().expect("a pipe");
    for args in [
        &["user", "add", "late", "--no-password"][..],
        &["user", "grant-role", "late", "root"],
    ] {
        let said = call(port, &authority.file, &root, args).await;
        assert!(said.starts_with('0'), "{said}");
    }
    let mut read = vec![0; 4];
    let seen = async {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        input.write_all(b"watch k --rev=1\n").await.unwrap();
        output.read_exact(&mut read).await.unwrap();
    };
    timeout(Duration::from_mins(1), seen)
        .await
        .expect("the event arrives");
    assert_eq!(read, b"PUT\n");
    let said = call(port, &authority.file, &root, &["user", "delete", "late"]).await;
    assert!(said.starts_with('0'), "{said}");
    loop {
        let said = call(port, &authority.file, &late, &["get", "k"]).await;
        if said.contains("permission denied") {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_audit_log_has_the_certificate_beside_the_user() {
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::new(home.path(), "ca");
    let own = authority.server("server");
    let (server, port) = server(Kind::Quorate, &authority, &own);
    let log = home.path().join("audit.log");
    let output = format!("file:{}", text(&log));
    let mut server = server.with_env(&[
        ("QUORATE_AUDIT_OUTPUT", output.as_str()),
        ("QUORATE_AUDIT_LEVEL", "all"),
    ]);
    server.restart().await;
    let [alice, .., with_token, bad_token, _] = callers(&authority);
    let root = Caller {
        own: authority.client("root"),
        flags: &[],
    };
    for args in SETUP {
        let said = call(port, &authority.file, &root, args).await;
        assert!(said.starts_with('0'), "{said}");
    }
    for caller in [&alice, &with_token, &bad_token] {
        call(port, &authority.file, caller, &["get", "/a/x"]).await;
    }
    server.signal(rustix::process::Signal::TERM);
    server.stopped().await;
    let lines = std::fs::read_to_string(&log).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| {
            line["method"] == "/etcdserverpb.KV/Range" && line["key"] == "/a/x"
        });
    let shown = lines.map(|line| {
        let text = |field: &str| line[field].as_str().unwrap_or("-").to_owned();
        [text("user"), text("cn"), text("refused")]
    });
    let shown: Vec<_> = shown.collect();
    for (user, refused) in [
        ("alice", "-"),
        ("bob", "permission denied"),
        ("-", "invalid auth token"),
    ] {
        let expected = [user, "alice", refused].map(str::to_owned);
        assert!(shown.contains(&expected), "{expected:?} in {shown:?}");
    }
}
