//! Certificates, authorities and lists are replaced under load, and no request fails: neither on a connection that stays, nor on
//! new ones.

use super::{Answer, Authority, Made, Secure, Shows, ask, replace, text};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;

fn options(ca: &Path, own: &Made) -> ConnectOptions {
    let read = |path: &Path| fs::read(path).unwrap();
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read(ca)))
        .identity(Identity::from_pem(read(&own.cert), read(&own.key)));
    ConnectOptions::new().with_tls(tls)
}

async fn connect(port: u16, ca: &Path, own: &Made) -> Client {
    let endpoint = format!("https://127.0.0.1:{port}");
    let client = Client::connect([endpoint], Some(options(ca, own))).await;
    client.expect("the crate connects over mutual TLS")
}

#[tokio::test]
async fn the_etcd_client_crate_over_mutual_tls() {
    let mut secure = Secure::checked(&[]);
    secure.server.restart().await;
    let own = secure.authority.client("anybody");
    let mut client = connect(secure.port, &secure.authority.file, &own).await;
    let mut watch = client.watch("key", None).await.unwrap();
    client.put("key", "value", None).await.unwrap();
    let got = client.get("key", None).await.unwrap();
    assert_eq!(got.kvs()[0].value_str().unwrap(), "value");
    let response = loop {
        let response = watch.message().await.unwrap().expect("it goes on");
        if !response.events().is_empty() {
            break response;
        }
    };
    assert_eq!(response.events()[0].kv().unwrap().key(), b"key");
}

/// What the load shows, and whether it goes on.
struct Load {
    shows: Mutex<Shows>,
    stop: AtomicBool,
    done: AtomicUsize,
}

impl Load {
    /// Asks over new connections, one after the other.
    async fn run(self: Arc<Self>, port: u16) {
        while !self.stop.load(Ordering::Relaxed) {
            let shows = self.shows.lock().unwrap().clone();
            let Answer { text, .. } = ask(port, &shows).await.expect("no request fails");
            assert!(text.contains("etcdserver"), "{text}");
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn until(mut is: impl AsyncFnMut() -> bool) {
    while !is().await {
        sleep(Duration::from_millis(20)).await;
    }
}

#[expect(clippy::too_many_lines, reason = "one story, told in its order")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_authority_and_list_rotate_under_load_without_a_failed_request() {
    let mut secure = Secure::checked(&[]);
    let list = secure.server.home().join("list.pem");
    fs::write(&list, secure.authority.revoke(&[]).0).unwrap();
    let ca = secure.server.home().join("clients-ca.pem");
    fs::copy(&secure.authority.file, &ca).unwrap();
    let files = ["--client-ca", text(&ca), "--client-crl", text(&list)];
    secure.server = secure.server.also(&files);
    secure.server.restart().await;
    let old_client = secure.authority.client("old");
    let victim = secure.authority.client("victim");
    let new = Authority::new(secure.server.home(), "new");
    let new_client = new.client("new");
    let both = [
        fs::read(&secure.authority.file).unwrap(),
        fs::read(&new.file).unwrap(),
    ]
    .concat();
    let both_file = secure.server.home().join("both.pem");
    fs::write(&both_file, &both).unwrap();

    let trusting_both = Shows {
        ca: both_file.clone(),
        ..secure.shows(Some(&old_client))
    };
    let load = Arc::new(Load {
        shows: Mutex::new(trusting_both.clone()),
        stop: AtomicBool::new(false),
        done: AtomicUsize::new(0),
    });
    let newcomers = tokio::spawn(load.clone().run(secure.port));
    let mut client = connect(secure.port, &both_file, &old_client).await;
    let staying = load.clone();
    let stayer = tokio::spawn(async move {
        let mut puts = 0;
        while !staying.stop.load(Ordering::Relaxed) {
            client
                .put("key", "value", None)
                .await
                .expect("no request fails");
            puts += 1;
        }
        puts
    });
    let first = ask(secure.port, &trusting_both).await.unwrap().server;

    // The list.
    replace(&list, secure.authority.revoke(&[&victim]).0);
    until(async || secure.ask(Some(&victim)).await.is_err()).await;
    // The certificate.
    let next = secure.authority.server("next");
    replace(&secure.own.key, fs::read(&next.key).unwrap());
    replace(&secure.own.cert, fs::read(&next.cert).unwrap());
    until(async || ask(secure.port, &trusting_both).await.unwrap().server != first).await;
    // The authority: both, then certificates of the new one everywhere, then the new one alone.
    replace(&ca, &both);
    let new_shows = Shows {
        own: Some(new_client),
        ..trusting_both.clone()
    };
    until(async || ask(secure.port, &new_shows).await.is_ok()).await;
    *load.shows.lock().unwrap() = new_shows.clone();
    let before = ask(secure.port, &new_shows).await.unwrap().server;
    let of_new = new.server("of-new");
    replace(&secure.own.key, fs::read(&of_new.key).unwrap());
    replace(&secure.own.cert, fs::read(&of_new.cert).unwrap());
    until(async || ask(secure.port, &new_shows).await.unwrap().server != before).await;
    // A request of the old kind may still be under way.
    let at = load.done.load(Ordering::Relaxed);
    until(async || load.done.load(Ordering::Relaxed) > at + 2).await;
    replace(&list, new.revoke(&[]).0);
    replace(&ca, fs::read(&new.file).unwrap());
    until(async || ask(secure.port, &trusting_both).await.is_err()).await;
    let at = load.done.load(Ordering::Relaxed);
    until(async || load.done.load(Ordering::Relaxed) > at + 2).await;

    load.stop.store(true, Ordering::Relaxed);
    newcomers
        .await
        .expect("no request on a new connection failed");
    let puts = stayer
        .await
        .expect("no request on the connection that stayed failed");
    assert!(puts > 0 && load.done.load(Ordering::Relaxed) > 10);
}
