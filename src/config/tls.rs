//! The keys of TLS: certificates for the client port, what clients must show, versions and cipher suites, and the same for peers.

use super::{
    error::ConfigError,
    layers::Layers,
    read::{is_set_without, list, number, refuse, switch, text},
    values::ClientAddress,
};
use std::{path::PathBuf, time::Duration};

/// The cipher suites that connections can use, by IANA's names: those of TLS 1.3, then those of TLS 1.2.
pub(crate) const SUITES: [&str; 9] = [
    "TLS_AES_256_GCM_SHA384",
    "TLS_AES_128_GCM_SHA256",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];
/// How many of these are of TLS 1.3.
const SUITES_13: usize = 3;

/// etcd: Go's older names.
const ALIASES: [(&str, &str); 2] = [
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    ),
];

/// etcd takes these too. They have no forward secrecy, or a mode that was broken.
const WEAK_SUITES: [&str; 16] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

/// TLS of the client port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// Where its certificate comes from.
    pub certificate: ServerCertificate,
    /// What clients have to show; `None`: nothing.
    pub clients: Option<ClientCertificates>,
    /// Versions and cipher suites.
    pub protocol: TlsProtocol,
}

/// Where the certificate of the client port comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerCertificate {
    Files {
        /// The certificate chain.
        cert: PathBuf,
        key: PathBuf,
    },
    /// The member makes and signs it.
    SelfSigned {
        /// How long it is valid.
        validity: Duration,
    },
}

/// Which certificates clients have to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// The authorities (PEM).
    pub ca: PathBuf,
    /// Certificates that were revoked (PEM or DER).
    pub crl: Option<PathBuf>,
    /// Nobody gets in without a certificate.
    pub required: bool,
    /// The common name is the user.
    pub are_users: bool,
    /// Which of the certificates are taken.
    pub allowed: AllowedNames,
}

/// Which certificates of an authority are taken: all, unless a list is not empty. At most one is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedNames {
    pub common_names: Vec<String>,
    /// Host names and addresses that a certificate must be valid for.
    pub hosts: Vec<String>,
}

/// Versions and cipher suites of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsProtocol {
    /// TLS 1.2 is spoken.
    pub tls12: bool,
    /// TLS 1.3 is spoken.
    pub tls13: bool,
    /// The suites, by IANA's names.
    pub suites: Vec<&'static str>,
}

/// What was set of `client.cert` and its like; `None`: no address can be TLS.
pub(super) fn client(layers: &Layers) -> Result<Option<ClientTls>, ConfigError> {
    let protocol = protocol(layers)?;
    for key in ["client.require_cert", "client.cert_users"] {
        // Without authorities nobody is asked for a certificate: what this was to protect would be open.
        let is_alone = is_set_without(layers, key, &["client.ca"]);
        if is_alone && switch(layers, key) && text(layers, "client.ca").is_empty() {
            return Err(refuse(
                layers,
                key,
                "given together with client.ca, or false",
            ));
        }
    }
    let Some(certificate) = certificate(layers)? else {
        let paths = ["client.ca", "client.crl"].into_iter();
        let lists = ["client.allowed_cn", "client.allowed_hosts"].into_iter();
        let paths = paths.filter(|key| !text(layers, key).is_empty());
        let mut set = paths.chain(lists.filter(|key| !list(layers, key).is_empty()));
        return match set.next() {
            Some(key) => {
                let allowed = "given together with client.cert and client.key";
                Err(refuse(layers, key, allowed))
            }
            None => Ok(None),
        };
    };
    let clients = clients(layers)?;
    let own = matches!(certificate, ServerCertificate::SelfSigned { .. });
    if own && clients.is_some() {
        let allowed =
            "false, since client.ca is set: who checks clients has a certificate of its own";
        return Err(refuse(layers, "client.auto_tls", allowed));
    }
    Ok(Some(ClientTls {
        certificate,
        clients,
        protocol,
    }))
}

fn certificate(layers: &Layers) -> Result<Option<ServerCertificate>, ConfigError> {
    let [cert, key] = ["client.cert", "client.key"].map(|key| text(layers, key));
    let days: u64 = number(layers, "client.auto_tls_days", 1..=36_500)?;
    let made = switch(layers, "client.auto_tls");
    match (cert, key) {
        ("", "") if made => Ok(Some(ServerCertificate::SelfSigned {
            validity: Duration::from_hours(24 * days),
        })),
        ("", "") => Ok(None),
        ("", _) => Err(refuse(
            layers,
            "client.key",
            "given together with client.cert",
        )),
        (_, "") => Err(refuse(
            layers,
            "client.cert",
            "given together with client.key",
        )),
        _ if made => {
            let allowed = "false, since client.cert is set";
            Err(refuse(layers, "client.auto_tls", allowed))
        }
        (cert, key) => Ok(Some(ServerCertificate::Files {
            cert: cert.into(),
            key: key.into(),
        })),
    }
}

fn clients(layers: &Layers) -> Result<Option<ClientCertificates>, ConfigError> {
    let ca = text(layers, "client.ca");
    let crl = text(layers, "client.crl");
    let allowed = allowed_names(layers, "client.allowed_cn", "client.allowed_hosts")?;
    if ca.is_empty() {
        if !crl.is_empty() {
            return Err(refuse(
                layers,
                "client.crl",
                "given together with client.ca",
            ));
        }
        for key in ["client.allowed_cn", "client.allowed_hosts"] {
            if !list(layers, key).is_empty() {
                return Err(refuse(layers, key, "given together with client.ca"));
            }
        }
        return Ok(None);
    }
    Ok(Some(ClientCertificates {
        ca: ca.into(),
        crl: optional(crl),
        required: switch(layers, "client.require_cert"),
        are_users: switch(layers, "client.cert_users"),
        allowed,
    }))
}

/// etcd: one of the lists only.
pub(super) fn allowed_names(
    layers: &Layers,
    names: &str,
    hosts: &str,
) -> Result<AllowedNames, ConfigError> {
    let allowed = AllowedNames {
        common_names: list(layers, names).to_vec(),
        hosts: list(layers, hosts).to_vec(),
    };
    if !allowed.common_names.is_empty() && !allowed.hosts.is_empty() {
        let text = format!("empty, since {names} is set");
        return Err(refuse(layers, hosts, &text));
    }
    let is_host = |host: &String| rustls::pki_types::ServerName::try_from(host.as_str()).is_ok();
    if !allowed.hosts.iter().all(is_host) {
        return Err(refuse(
            layers,
            hosts,
            "a list of host names and IP addresses, without ports",
        ));
    }
    Ok(allowed)
}

pub(super) fn optional(path: &str) -> Option<PathBuf> {
    (!path.is_empty()).then(|| path.into())
}

fn protocol(layers: &Layers) -> Result<TlsProtocol, ConfigError> {
    const KEY: &str = "tls.cipher_suites";
    let (min, max) = (
        version(layers, "tls.min_version")?,
        version(layers, "tls.max_version")?,
    );
    if min > max {
        let allowed = format!("at most tls.max_version, 1.{max}");
        return Err(refuse(layers, "tls.min_version", &allowed));
    }
    let mut named: Vec<&'static str> = Vec::new();
    for name in list(layers, KEY) {
        let alias = ALIASES.iter().find(|(alias, _)| alias == name);
        let name = alias.map_or(name.as_str(), |(_, name)| name);
        match SUITES.iter().find(|known| **known == name) {
            Some(known) => named.push(known),
            None if WEAK_SUITES.contains(&name) => {}
            None => {
                let allowed = format!("of {}", SUITES.join(", "));
                return Err(refuse(layers, KEY, &allowed));
            }
        }
    }
    if named.is_empty() && !list(layers, KEY).is_empty() {
        let allowed = format!(
            "a list with one that is safe, of {}: it has only ones without forward secrecy, or with CBC, 3DES or RC4",
            SUITES.join(", ")
        );
        return Err(refuse(layers, KEY, &allowed));
    }
    let (suites_13, suites_12) = SUITES.split_at(SUITES_13);
    // etcd: a list chooses among those of TLS 1.2. One of TLS 1.3 that is named chooses there as well.
    let chosen = |all: &[&'static str]| -> Vec<&'static str> {
        all.iter()
            .filter(|suite| named.contains(*suite))
            .copied()
            .collect()
    };
    let (mut of_13, mut of_12) = (chosen(suites_13), chosen(suites_12));
    if of_13.is_empty() {
        of_13 = suites_13.to_vec();
    }
    if named.is_empty() {
        of_12 = suites_12.to_vec();
    }
    let (tls12, tls13) = (min <= 2 && !of_12.is_empty(), max >= 3);
    if !tls12 && !tls13 {
        let allowed = "a list with a suite of TLS 1.2, since tls.max_version is 1.2";
        return Err(refuse(layers, KEY, allowed));
    }
    let mut suites = Vec::new();
    if tls13 {
        suites.append(&mut of_13);
    }
    if tls12 {
        suites.append(&mut of_12);
    }
    Ok(TlsProtocol {
        tls12,
        tls13,
        suites,
    })
}

/// The names in `tls.cipher_suites` that are left out, because no connection can use them.
pub(super) fn weak_suites(layers: &Layers) -> Vec<String> {
    let named = list(layers, "tls.cipher_suites").iter();
    let weak = named.filter(|name| WEAK_SUITES.contains(&name.as_str()));
    weak.cloned().collect()
}

/// The second number of a version.
fn version(layers: &Layers, key: &str) -> Result<u8, ConfigError> {
    match text(layers, key) {
        "1.2" | "TLS1.2" => Ok(2),
        "1.3" | "TLS1.3" => Ok(3),
        _ => Err(refuse(layers, key, "1.2 or 1.3")),
    }
}

/// Addresses with the scheme that they have, or get: an address without one is TLS if there is a certificate.
pub(super) fn with_schemes(
    layers: &Layers,
    key: &str,
    addresses: Vec<(ClientAddress, bool)>,
    tls: bool,
) -> Result<Vec<ClientAddress>, ConfigError> {
    let mut found = Vec::new();
    for (address, has_scheme) in addresses {
        let address = match address {
            ClientAddress::Tcp(port) if tls && !has_scheme => ClientAddress::Tls(port),
            ClientAddress::Tls(_) if !tls && key == "client.listen" => {
                let allowed = "without https://, or given together with client.cert and client.key (or client.auto_tls)";
                return Err(refuse(layers, key, allowed));
            }
            other => other,
        };
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    fn load(flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
        let flags = flags
            .iter()
            .map(|(key, text)| ("--x", *key, (*text).to_owned()));
        Config::load(Sources {
            flags: flags.collect(),
            ..Sources::default()
        })
    }

    fn tls(more: &[(&'static str, &str)]) -> Result<ClientTls, ConfigError> {
        let mut flags = vec![("client.cert", "c"), ("client.key", "k")];
        flags.extend_from_slice(more);
        load(&flags).map(|config| config.client.tls.expect("there is a certificate"))
    }

    fn refused(flags: &[(&'static str, &str)]) -> String {
        load(flags).expect_err("it cannot work").to_string()
    }

    #[test]
    fn a_list_of_suites_chooses_as_in_etcd() {
        let suites = |list: &str| tls(&[("tls.cipher_suites", list)]).unwrap().protocol.suites;
        assert_eq!(suites(""), SUITES);
        let one = suites("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305");
        assert_eq!(one.len(), 4, "those of TLS 1.3 stay: {one:?}");
        let one = suites("TLS_AES_128_GCM_SHA256,TLS_RSA_WITH_AES_128_CBC_SHA");
        assert_eq!(one, ["TLS_AES_128_GCM_SHA256"]);
        let text = tls(&[("tls.cipher_suites", "FOO")])
            .unwrap_err()
            .to_string();
        assert!(text.contains("must be of TLS_AES_256"), "{text}");
        let text = tls(&[("tls.cipher_suites", "TLS_RSA_WITH_RC4_128_SHA")]);
        let text = text.unwrap_err().to_string();
        assert!(text.contains("only ones without forward secrecy"), "{text}");
    }

    #[test]
    fn versions_must_leave_one_that_can_be_spoken() {
        let protocol = tls(&[("tls.min_version", "1.3")]).unwrap().protocol;
        assert_eq!((protocol.tls12, protocol.tls13), (false, true));
        let protocol = tls(&[("tls.max_version", "TLS1.2")]).unwrap().protocol;
        assert_eq!((protocol.tls12, protocol.tls13), (true, false));
        assert_eq!(protocol.suites.len(), 6);
        for (flags, text) in [
            (
                vec![("tls.min_version", "1.3"), ("tls.max_version", "1.2")],
                "at most tls.max_version, 1.2",
            ),
            (vec![("tls.min_version", "1.1")], "must be 1.2 or 1.3"),
            (
                vec![
                    ("tls.max_version", "1.2"),
                    ("tls.cipher_suites", "TLS_AES_128_GCM_SHA256"),
                ],
                "a suite of TLS 1.2",
            ),
        ] {
            let refused = tls(&flags).unwrap_err().to_string();
            assert!(refused.contains(text), "{refused}");
        }
    }

    #[test]
    fn half_a_setting_is_refused() {
        for (flags, text) in [
            (
                vec![("client.cert", "c")],
                "client.cert = \"c\": must be given together with client.key",
            ),
            (vec![("client.key", "k")], "given together with client.cert"),
            (
                vec![("client.ca", "a")],
                "client.ca = \"a\": must be given together with client.cert",
            ),
            (
                vec![("client.listen", "https://127.0.0.1:1")],
                "client.cert and client.key (or client.auto_tls)",
            ),
            (
                vec![
                    ("client.cert", "c"),
                    ("client.key", "k"),
                    ("client.crl", "r"),
                ],
                "client.crl = \"r\": must be given together with client.ca",
            ),
            (
                vec![
                    ("client.cert", "c"),
                    ("client.key", "k"),
                    ("client.allowed_cn", "r"),
                ],
                "client.allowed_cn = [\"r\"]: must be given together with client.ca",
            ),
            (
                vec![("client.auto_tls", "true"), ("client.ca", "a")],
                "client.auto_tls = true: must be false, since client.ca is set",
            ),
            (
                vec![
                    ("client.auto_tls", "true"),
                    ("client.cert", "c"),
                    ("client.key", "k"),
                ],
                "must be false, since client.cert is set",
            ),
            (
                vec![
                    ("client.cert", "c"),
                    ("client.key", "k"),
                    ("client.ca", "a"),
                    ("client.allowed_cn", "x"),
                    ("client.allowed_hosts", "y"),
                ],
                "client.allowed_hosts = [\"y\"]: must be empty, since client.allowed_cn is set",
            ),
        ] {
            let refused = refused(&flags);
            assert!(refused.contains(text), "{refused}");
        }
    }

    #[test]
    fn clients_cannot_be_required_to_show_what_nobody_could_check() {
        for key in ["client.require_cert", "client.cert_users"] {
            let expected = format!("{key} = true: must be given together with client.ca, or false");
            let text = refused(&[(key, "true")]);
            assert!(text.contains(&expected), "{text}");
            let text = tls(&[(key, "true")]).unwrap_err().to_string();
            assert!(text.contains(&expected), "{text}");
            let both = tls(&[(key, "true"), ("client.ca", "a")]).unwrap();
            assert!(both.clients.is_some_and(|clients| clients.required));
            assert_eq!(tls(&[(key, "false")]).unwrap().clients, None);
        }
    }

    #[test]
    fn a_copy_of_the_defaults_requires_nothing_of_clients() {
        let copy = |flags| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), crate::config::layers::DEFAULTS).unwrap();
            Config::load(Sources {
                file: Some(file.path().to_owned()),
                flags,
                ..Sources::default()
            })
        };
        copy(Vec::new()).expect("the defaults are good as a file");
        let flag = |key, text: &str| vec![("--x", key, text.to_owned())];
        let text = copy(flag("client.require_cert", "true")).unwrap_err();
        assert!(text.to_string().contains("with client.ca"), "{text}");
        let text = copy(flag("encryption.algorithm", "chacha20-poly1305")).unwrap_err();
        assert!(text.to_string().contains("encryption is off"), "{text}");
    }

    #[test]
    fn an_address_without_a_scheme_is_tls_where_there_is_a_certificate() {
        let listen = "127.0.0.1:1,http://127.0.0.1:2,https://127.0.0.1:3,unix:///q";
        let config = load(&[
            ("client.listen", listen),
            ("client.cert", "c"),
            ("client.key", "k"),
        ]);
        let config = config.unwrap();
        let urls: Vec<_> = config
            .client
            .listen
            .iter()
            .map(ClientAddress::url)
            .collect();
        let expected = [
            "https://127.0.0.1:1",
            "http://127.0.0.1:2",
            "https://127.0.0.1:3",
            "unix:///q",
        ];
        assert_eq!(urls, expected);
        let config = load(&[("client.advertise", "https://proxy:1,other:2")]).unwrap();
        let urls: Vec<_> = config
            .client
            .advertise
            .iter()
            .map(ClientAddress::url)
            .collect();
        assert_eq!(
            urls,
            ["https://proxy:1", "http://other:2"],
            "something else may do TLS"
        );
    }
}
