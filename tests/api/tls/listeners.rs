//! Several listeners, plain or with TLS: each checks what the others check; and what a start says of those that are open.

use super::{Authority, Secure, Shows, ask, text};
use crate::support::ports;
use std::{fs, os::unix::fs::PermissionsExt};

#[tokio::test]
async fn every_check_holds_on_each_of_several_listeners() {
    let mut secure = Secure::checked(&["--client-allowed-cn", "good,revoked,foreign"]);
    let authority = &secure.authority;
    let [good, revoked, eve] = ["good", "revoked", "eve"].map(|name| authority.client(name));
    let foreign = Authority::new(secure.server.home(), "other").client("foreign");
    let list = secure.server.home().join("list.pem");
    fs::write(&list, authority.revoke(&[&revoked]).0).unwrap();
    let all = [secure.port, ports::free_port(), ports::free_port()];
    let plain = secure.server.client_port();
    // The last one on another address of this machine.
    let listen = format!(
        "https://127.0.0.1:{},http://127.0.0.1:{plain},https://127.0.0.1:{},https://0.0.0.0:{}",
        all[0], all[1], all[2]
    );
    let more = ["--client-crl", text(&list), "--client-listen", &listen];
    secure.server = secure.server.also(&more);
    secure.server.restart().await;
    for port in all {
        let shown = |own| Shows::new(&secure.authority, own);
        ask(port, &shown(Some(&good))).await.unwrap();
        for (own, alert) in [
            (None, "CertificateRequired"),
            (Some(&revoked), "CertificateRevoked"),
            (Some(&foreign), "UnknownCA"),
        ] {
            let error = ask(port, &shown(own)).await.expect_err(alert);
            assert!(error.contains(alert), "{port}: {error}");
        }
        let error = ask(port, &shown(Some(&eve))).await;
        error.expect_err("its name is not allowed");
    }
    // A new list counts for all of them, too.
    let both = secure.authority.revoke(&[&revoked, &good]).0;
    super::replace(&list, both);
    for port in all {
        let shown = secure.shows(Some(&good));
        while ask(port, &shown).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_start_says_what_others_can_read_or_use() {
    let mut secure = Secure::new(&[]);
    let plain = secure.server.client_port();
    let open = format!("0.0.0.0:{}", ports::free_port());
    let listen = format!(
        "http://127.0.0.1:{plain},http://{open},https://127.0.0.1:{}",
        secure.port
    );
    fs::create_dir(secure.server.data_dir()).unwrap();
    fs::set_permissions(secure.server.data_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&secure.own.key, fs::Permissions::from_mode(0o644)).unwrap();
    secure.server = secure.server.also(&["--client-listen", &listen]);
    secure.server.restart().await;
    let log = secure.server.log();
    for wanted in [
        format!("clients on {open}: connections are not encrypted"),
        format!("clients on {open}: authentication is off"),
        format!(
            "(mode 755): chmod 700 {}",
            secure.server.data_dir().display()
        ),
        format!("chmod o= {}", secure.own.key.display()),
    ] {
        assert!(log.contains(&wanted), "{wanted}\n{log}");
    }
    // Where certificates are required it is said too, once, of the port that checks them.
    let mut secure = Secure::checked(&[]);
    let plain = secure.server.client_port();
    let open = format!("https://0.0.0.0:{}", secure.port);
    let listen = format!("http://127.0.0.1:{plain},{open}");
    secure.server = secure.server.also(&["--client-listen", &listen]);
    secure.server.restart().await;
    let log = secure.server.log();
    let said = format!("clients on {open}: authentication is off, so whoever has a certificate");
    let count = log.matches("authentication is off").count();
    assert!(log.contains(&said) && count == 1, "{said}\n{log}");
    let mut secure = Secure::checked(&[]);
    secure.server.restart().await;
    let log = secure.server.log();
    for quiet in ["not encrypted", "authentication is off", "chmod"] {
        assert!(!log.contains(quiet), "{quiet}\n{log}");
    }
    let mode = fs::metadata(secure.server.data_dir())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700, "a data directory that it made");
}
