//! The sockets that clients connect to: several ports and Unix sockets of one member.

use crate::support::{Kind, Server, Setup, etcdctl_at, ports, run_to_exit};
use rustix::process::Signal;
use std::{os::unix::net::UnixListener, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::sleep,
};

#[tokio::test]
async fn etcdctl_reaches_a_member_at_each_of_its_addresses() {
    let server = Server::new(Kind::Quorate, Setup::default());
    let socket = server.home().join("q.sock");
    let unix = format!("unix://{}", socket.display());
    let (port, second) = (server.client_port(), ports::free_port());
    let endpoints = [
        format!("127.0.0.1:{port}"),
        unix.clone(),
        format!("[::1]:{second}"),
    ];
    let mut server = server.also(&["--client-listen", &endpoints.join(",")]);
    // As a process that was killed leaves it.
    drop(UnixListener::bind(&socket).expect("the path is free"));
    server.restart().await;
    for (n, endpoint) in endpoints.iter().enumerate() {
        let value = format!("value {n}");
        assert_eq!(
            etcdctl_at(endpoint, &["put", "key", &value]).await.ok(),
            "OK\n"
        );
        for endpoint in &endpoints {
            let got = etcdctl_at(endpoint, &["get", "key", "--print-value-only"]).await;
            assert_eq!(got.ok(), format!("{value}\n"), "{endpoint}");
        }
    }
    let members = etcdctl_at(&unix, &["member", "list"]).await.ok();
    let urls = format!(", http://127.0.0.1:{port},http://[::1]:{second}, false\n");
    assert!(
        members.ends_with(&urls),
        "clients elsewhere cannot use a file: {members}"
    );
    let mut plain = UnixStream::connect(&socket).await.expect("it listens");
    let request = b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    plain.write_all(request).await.expect("it reads");
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.expect("it answers");
    assert!(answer.contains("etcdserver"), "{answer}");

    let other = Server::new(Kind::Quorate, Setup::default()).also(&["--client-listen", &unix]);
    let refused = run_to_exit(other.command()).await;
    assert!(
        !refused.status.success(),
        "two processes listen on one socket"
    );
    let text = format!("cannot listen for clients on {unix}: another process listens there");
    assert!(refused.output.contains(&text), "{}", refused.output);
    assert!(
        !other.data_dir().exists(),
        "a start that is refused writes nothing"
    );

    server.kill().await;
    assert!(socket.exists(), "a process that is killed cannot remove it");
    server.restart().await;
    let got = etcdctl_at(&unix, &["get", "key", "--print-value-only"]).await;
    assert_eq!(got.ok(), "value 2\n");
    server.signal(Signal::TERM);
    assert!(server.stopped().await.success(), "{}", server.log());
    assert!(!socket.exists(), "the socket's file goes with the member");
}

#[tokio::test]
async fn a_member_on_a_unix_socket_alone_tells_clients_of_it() {
    let server = Server::new(Kind::Quorate, Setup::default());
    let unix = format!("unix://{}", server.home().join("q.sock").display());
    let server = server.also(&["--client-listen", &unix]);
    let _child = server.command().spawn().expect("the program starts");
    loop {
        let members = etcdctl_at(&unix, &["--command-timeout=1s", "member", "list"]).await;
        if members.code == 0 {
            let urls = format!(", {unix}, false\n");
            assert!(members.stdout.ends_with(&urls), "{}", members.stdout);
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}
