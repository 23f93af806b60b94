//! TLS of the client port, as the configuration asks for it; and what a start says about ports that are open to others.

use super::{
    data_directory::OWN_CERTIFICATE, error::StartError, network::allowed_names, readiness,
};
use crate::{
    actors::requests::Requests,
    config::{ClientAddress, Config, HostPort, ServerCertificate},
    tls::{
        ClientChecks, ClientTls, ClientTlsKeeper, ClientTlsSettings, SELF_SIGNED_FILE, TlsError,
        certificates, check_signed, self_signed,
    },
};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};
use tokio::signal::unix::{SignalKind, signal};

/// TLS from files; `None` without them. Before a start does anything else: a wrong file should show at once.
pub(super) fn from_files(
    config: &Config,
) -> Result<Option<(ClientTls, ClientTlsKeeper)>, TlsError> {
    for suite in &config.weak_suites {
        tracing::warn!("tls.cipher_suites: {suite} is left out, it is not safe");
    }
    let certificate = config.client.tls.as_ref().map(|tls| &tls.certificate);
    match certificate {
        Some(ServerCertificate::Files { cert, key }) => {
            open(config, cert.clone(), key.clone()).map(Some)
        }
        Some(ServerCertificate::SelfSigned { .. }) | None => Ok(None),
    }
}

/// TLS with a certificate that the member makes; `None` if it has another one, or none. The data directory must be open.
pub(super) fn own(config: &Config) -> Result<Option<(ClientTls, ClientTlsKeeper)>, TlsError> {
    let certificate = config.client.tls.as_ref().map(|tls| &tls.certificate);
    let Some(ServerCertificate::SelfSigned { validity }) = certificate else {
        return Ok(None);
    };
    let folder = config.data_dir.join(OWN_CERTIFICATE);
    let (cert, key) = self_signed(&folder, &hosts(config), *validity)?;
    open(config, cert, key).map(Some)
}

fn open(
    config: &Config,
    cert: PathBuf,
    key: PathBuf,
) -> Result<(ClientTls, ClientTlsKeeper), TlsError> {
    let tls = config
        .client
        .tls
        .as_ref()
        .expect("its certificate is at hand");
    let clients = tls.clients.as_ref().map(|clients| ClientChecks {
        ca: clients.ca.clone(),
        crl: clients.crl.clone(),
        required: clients.required,
        are_users: clients.are_users,
        allowed: allowed_names(&clients.allowed),
    });
    ClientTls::open(ClientTlsSettings {
        cert,
        key,
        clients,
        tls12: tls.protocol.tls12,
        tls13: tls.protocol.tls13,
        suites: tls.protocol.suites.clone(),
        refuse_readable_keys: config.refuse_readable_keys,
    })
}

/// The certificate that [`own`] makes.
fn own_certificate(config: &Config) -> PathBuf {
    config.data_dir.join(OWN_CERTIFICATE).join(SELF_SIGNED_FILE)
}

/// The hosts at which clients reach this member, each once.
fn hosts(config: &Config) -> Vec<String> {
    let addresses = config.client.listen.iter().chain(&config.client.advertise);
    let ports = addresses.filter_map(ClientAddress::tcp);
    let mut hosts: Vec<String> = ports
        .filter(|port| !port.is_every_interface() && !port.has_scope())
        .map(|port| port.host.clone())
        .collect();
    hosts.sort();
    hosts.dedup();
    if hosts.is_empty() {
        hosts.push("localhost".to_owned());
    }
    hosts
}

/// Looks on each SIGHUP whether certificates changed, until this is dropped.
#[derive(Debug)]
pub(super) struct Looking(tokio::task::JoinHandle<()>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) fn look_on_hangups(keeper: ClientTlsKeeper) -> Result<Looking, StartError> {
    let mut hangups = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
    let looking = async move {
        while hangups.recv().await.is_some() {
            keeper.look_now();
        }
    };
    Ok(Looking(actix::spawn(looking)))
}

/// `etcdctl` with the flags that reach this member from its machine; what only the operator knows is in capitals. A port without
/// TLS needs fewest.
pub(super) fn etcdctl(config: &Config, auth_is_on: bool) -> String {
    let is_tls = |address: &&ClientAddress| matches!(address, ClientAddress::Tls(_));
    let (tls, plain): (Vec<_>, Vec<_>) = config.client.listen.iter().partition(is_tls);
    let owned = |addresses: Vec<&ClientAddress>| addresses.into_iter().cloned().collect::<Vec<_>>();
    if !plain.is_empty() {
        let endpoints = readiness::list(&owned(plain));
        let user = if auth_is_on { " --user=NAME" } else { "" };
        return format!("etcdctl --endpoints={endpoints}{user}");
    }
    // Certificates are for the addresses that clients are told, not for 0.0.0.0.
    let advertised: Vec<_> = config.client.advertise.iter().filter(is_tls).collect();
    let reached_at = if advertised.is_empty() {
        tls
    } else {
        advertised
    };
    let endpoints = readiness::list(&owned(reached_at));
    let settings = config.client.tls.as_ref();
    let clients = settings.and_then(|settings| settings.clients.as_ref());
    let authority = match settings.map(|settings| &settings.certificate) {
        Some(ServerCertificate::SelfSigned { .. }) => own_certificate(config).display().to_string(),
        Some(ServerCertificate::Files { cert, .. }) => clients
            .filter(|clients| has_signed(&clients.ca, cert))
            .map_or("CA-FILE".to_owned(), |clients| {
                clients.ca.display().to_string()
            }),
        None => "CA-FILE".to_owned(),
    };
    let shown = match clients {
        Some(_) => " --cert=CERT-FILE --key=KEY-FILE",
        None if auth_is_on => " --user=NAME",
        None => "",
    };
    format!("etcdctl --endpoints={endpoints} --cacert={authority}{shown}")
}

/// Whether clients that trust the authorities in `ca` trust the server whose certificate is in `cert`.
fn has_signed(ca: &Path, cert: &Path) -> bool {
    let chain = certificates(cert);
    chain.is_ok_and(|chain| check_signed(&chain[0], ca).is_ok())
}

/// Says which ports others can use without being checked, or can listen in on.
pub(super) fn report_open_ports(config: &Config, requests: &Requests) {
    let outside = |address: &&ClientAddress| address.tcp().is_some_and(is_beyond_loopback);
    let outside = config.client.listen.iter().filter(outside);
    let clients = config
        .client
        .tls
        .as_ref()
        .and_then(|tls| tls.clients.as_ref());
    let checked = clients.is_some_and(|clients| clients.required);
    let (plain, encrypted): (Vec<_>, Vec<_>) = outside
        .cloned()
        .partition(|address| matches!(address, ClientAddress::Tcp(_)));
    if !plain.is_empty() {
        tracing::warn!(
            "clients on {}: connections are not encrypted, so passwords and values can be read on their way. Give client.cert \
             and client.key (`quorate cert server` makes them), or client.auto_tls",
            readiness::list(&plain)
        );
    }
    if requests.is_auth_on() {
        return;
    }
    let (unchecked, certified) = if checked {
        (plain, encrypted)
    } else {
        ([plain, encrypted].concat(), Vec::new())
    };
    if !certified.is_empty() {
        tracing::warn!(
            "clients on {}: authentication is off, so whoever has a certificate that is taken here may read and change \
             everything. Turn it on (etcdctl auth enable) to give each name rights of its own",
            readiness::list(&certified)
        );
    }
    if !unchecked.is_empty() {
        tracing::warn!(
            "clients on {}: authentication is off, so whoever reaches this may read and change everything. Turn it on (etcdctl \
             auth enable), or let clients show certificates (https:// and client.ca)",
            readiness::list(&unchecked)
        );
    }
}

fn is_beyond_loopback(port: &HostPort) -> bool {
    let host = port.host.split('%').next().unwrap_or_default();
    match host.parse::<IpAddr>() {
        Ok(address) => !address.to_canonical().is_loopback(),
        Err(_) => host != "localhost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Sources, net::cert};

    #[test]
    fn the_command_that_a_start_prints_reaches_it() {
        let dir = tempfile::tempdir().unwrap();
        let ca = cert::make_ca(dir.path(), 1).unwrap().remove(0);
        let signed = cert::make_member(dir.path(), dir.path(), "n1", &[], 1).unwrap();
        let file = |path: &Path| path.to_str().unwrap().to_owned();
        let command = |auth: bool, flags: &[(&'static str, &str)]| {
            let flags = flags
                .iter()
                .map(|(key, text)| ("--x", *key, (*text).to_owned()));
            let flags = flags.collect();
            let sources = Sources {
                flags,
                ..Sources::default()
            };
            etcdctl(&Config::load(sources).unwrap(), auth)
        };
        let plain = ("client.listen", "127.0.0.1:1");
        assert_eq!(command(false, &[plain]), "etcdctl --endpoints=127.0.0.1:1");
        assert_eq!(
            command(true, &[plain]),
            "etcdctl --endpoints=127.0.0.1:1 --user=NAME"
        );
        let tls = ("client.listen", "https://h:1");
        let own = command(
            false,
            &[tls, ("client.auto_tls", "true"), ("data_dir", "d")],
        );
        assert_eq!(
            own,
            "etcdctl --endpoints=https://h:1 --cacert=d/client-tls/cert.pem"
        );
        let (cert, key) = (file(&signed[0]), file(&signed[1]));
        let files = [
            tls,
            ("client.cert", cert.as_str()),
            ("client.key", key.as_str()),
        ];
        let start = "etcdctl --endpoints=https://h:1 --cacert=";
        assert_eq!(command(true, &files), format!("{start}CA-FILE --user=NAME"));
        let (ca, foreign) = (file(&ca), file(&signed[0]));
        let checked = |ca| command(true, &[&files[..], &[("client.ca", ca)]].concat());
        let shown = "--cert=CERT-FILE --key=KEY-FILE";
        assert_eq!(checked(&ca), format!("{start}{ca} {shown}"));
        assert_eq!(checked(&foreign), format!("{start}CA-FILE {shown}"));
        let settings = [
            ("client.listen", "https://0.0.0.0:1"),
            ("client.advertise", "https://h:1"),
        ];
        let line = command(false, &[&settings[..], &files[1..]].concat());
        assert_eq!(line, format!("{start}CA-FILE"));
    }

    #[test]
    fn loopback_is_what_only_this_machine_reaches() {
        for (address, beyond) in [
            ("127.0.0.1:1", false),
            ("127.8.0.1:1", false),
            ("[::1]:1", false),
            ("localhost:1", false),
            ("0.0.0.0:1", true),
            ("[::]:1", true),
            ("10.0.0.1:1", true),
            ("[fe80::1%lo]:1", true),
            ("n1:1", true),
        ] {
            let port = HostPort::parse(address).unwrap();
            assert_eq!(is_beyond_loopback(&port), beyond, "{address}");
        }
    }
}
