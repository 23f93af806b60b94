//! Several listeners with TLS, beside a plain one: each checks what the others check.

use super::{Authority, Secure, Shows, ask, text};
use crate::support::ports;
use std::fs;

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
