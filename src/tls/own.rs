//! The checks of the certificate that a member shows, before others see it: what it may be used for, its dates, its key, who
//! signed it. A certificate that every peer or client would refuse is refused here, where the error can name the setting. What
//! only some refuse, or only until a certificate is replaced, is a warning: dates depend on the clocks of others, and the member
//! may serve without it.

use super::{
    error::TlsError,
    facts::Facts,
    made::midnight,
    names::member_uris,
    pem::{authorities, certificates, private_key, provider, readable_key},
};
use crate::clock;
use rustls::{
    Error, InconsistentKeys,
    pki_types::{CertificateDer, UnixTime},
    sign::CertifiedKey,
};
use std::{path::Path, time::Duration};
use webpki::{EndEntityCert, KeyUsage};

/// To whom a certificate is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShownTo<'a> {
    /// Clients: it is a server's.
    Clients,
    /// Other members: it is a server's and a client's, and an authority in the file `ca` signed it.
    Members { ca: &'a Path },
}

/// The files of a member's own certificate, and the settings that name them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnFiles<'a> {
    pub(crate) shown_to: ShownTo<'a>,
    pub(crate) cert: &'a Path,
    pub(crate) key: &'a Path,
    /// Whether a private key that every user of the machine may read is an error.
    pub(crate) refuse_readable_key: bool,
}

impl ShownTo<'_> {
    /// The setting of the certificate, and that of its key.
    fn settings(self) -> (&'static str, &'static str) {
        match self {
            Self::Clients => ("client.cert", "client.key"),
            Self::Members { .. } => ("peer.cert", "peer.key"),
        }
    }

    /// What makes the right one.
    fn remedy(self) -> &'static str {
        match self {
            Self::Clients => "make one with `quorate cert server`",
            Self::Members { .. } => "make one with `quorate cert member`",
        }
    }

    /// What replaces one that has ended.
    fn renewal(self) -> &'static str {
        match self {
            Self::Clients => "replace it (`quorate cert server … --replace`)",
            Self::Members { .. } => "replace it (`quorate cert member … --replace`)",
        }
    }

    fn checkers(self) -> &'static str {
        match self {
            Self::Clients => "clients that check certificates",
            Self::Members { .. } => "other members",
        }
    }
}

impl OwnFiles<'_> {
    /// Refuses files that nobody would take, and warns of what some would refuse. Where the files have changed, `in_force` is the
    /// certificate that they would replace.
    pub(crate) fn check(&self, in_force: Option<&CertificateDer<'_>>) -> Result<(), TlsError> {
        let (setting, path) = (self.shown_to.settings().0, self.cert.display());
        for doubt in self.doubts(in_force)? {
            tracing::warn!("{setting}: {path}: {doubt}");
        }
        if let Some(warning) = self.check_mode(in_force)? {
            tracing::warn!("{warning}");
        }
        Ok(())
    }

    /// Warnings; an error if no peer or client would accept the certificate.
    fn doubts(&self, in_force: Option<&CertificateDer<'_>>) -> Result<Vec<String>, TlsError> {
        let (cert_setting, key_setting) = self.shown_to.settings();
        let chain = certificates(self.cert).map_err(TlsError::in_setting(cert_setting))?;
        let unfit = |problem: String| {
            let path = self.cert.to_owned();
            TlsError::in_setting(cert_setting)(TlsError::Pem { path, problem })
        };
        let facts = Facts::of(&chain[0]);
        let facts =
            facts.ok_or_else(|| unfit("its first certificate cannot be read".to_owned()))?;
        let mut doubts = match self.shown_to {
            ShownTo::Clients => self.check_server_kind(&chain[0], &facts),
            ShownTo::Members { .. } => self.check_member_kind(&facts).map(|()| Vec::new()),
        }
        .map_err(unfit)?;
        doubts.extend(self.check_dates(&chain, in_force).map_err(unfit)?);
        self.check_key(&chain, key_setting)?;
        if let ShownTo::Members { ca } = self.shown_to {
            self.check_signed(&chain, &facts, ca, unfit)?;
        }
        Ok(doubts)
    }

    /// Clients take what etcd can show them: also the certificate of an authority that they were given as theirs, as
    /// `openssl req -x509` makes it, and one for any purpose.
    fn check_server_kind(
        &self,
        own: &CertificateDer<'_>,
        facts: &Facts<'_>,
    ) -> Result<Vec<String>, String> {
        let (usages, remedy) = (facts.usages(), self.shown_to.remedy());
        if !usages.server && !usages.any {
            return Err(format!(
                "it is a client's certificate, which no client takes from a server: {remedy}"
            ));
        }
        let mut doubts = Vec::new();
        if facts.is_authority() {
            doubts.push(format!(
                "it is the certificate of an authority, which some clients refuse from a server: {remedy}"
            ));
        }
        if let Some(uri) = member_uris(own).first() {
            doubts.push(format!(
                "it is a member's certificate ({uri}), for connections between members, whose authority clients need not trust: \
                 {remedy}"
            ));
        }
        Ok(doubts)
    }

    fn check_member_kind(&self, facts: &Facts<'_>) -> Result<(), String> {
        let (usages, remedy) = (facts.usages(), self.shown_to.remedy());
        if facts.is_authority() {
            return Err(format!("it is the certificate of an authority: {remedy}"));
        }
        if usages.server && usages.client {
            return Ok(());
        }
        let whose = match (usages.server, usages.client) {
            (true, _) => "a server only",
            (false, true) => "a client only",
            (false, false) => "neither a server nor a client",
        };
        Err(format!(
            "it is the certificate of {whose}, and members show theirs as server and as client: {remedy} (with another tool: \
             the extended key usages serverAuth and clientAuth)"
        ))
    }

    /// Refuses, when the files have changed, only what ended in the place of what has not. Where what is in force has ended, too,
    /// a refusal would only keep the other files, such as a list of revoked certificates, from being used.
    fn check_dates(
        &self,
        chain: &[CertificateDer<'_>],
        in_force: Option<&CertificateDer<'_>>,
    ) -> Result<Vec<String>, String> {
        let now = now();
        let has_ended = |facts: &Facts<'_>| facts.not_after < now;
        let (checkers, renewal) = (self.shown_to.checkers(), self.shown_to.renewal());
        let good_in_force = in_force
            .and_then(|cert| Facts::of(cert))
            .is_some_and(|facts| !has_ended(&facts));
        let mut doubts = Vec::new();
        let facts = chain.iter().map(|cert| Facts::of(cert)).enumerate();
        for (at, facts) in facts.filter_map(|(at, facts)| Some((at, facts?))) {
            let problem = if has_ended(&facts) {
                format!("ended on {}", day(facts.not_after))
            } else if facts.not_before > now {
                format!(
                    "is not valid before {}, and this machine's clock says {}",
                    second(facts.not_before),
                    second(now)
                )
            } else {
                continue;
            };
            doubts.push(match (at, has_ended(&facts)) {
                (0, true) if good_in_force => return Err(format!("it {problem}: {renewal}")),
                (0, true) => {
                    format!("it {problem}: {checkers} refuse it; {renewal}, no restart is needed")
                }
                (0, false) => format!(
                    "it {problem}: until then {checkers} refuse it; set the clock, if it is wrong"
                ),
                (at, _) => format!(
                    "certificate {} of the file {problem}: {checkers} refuse the first one if they find no other way to an \
                     authority; leave the other out, or replace it",
                    at + 1
                ),
            });
        }
        Ok(doubts)
    }

    fn check_key(
        &self,
        chain: &[CertificateDer<'static>],
        setting: &'static str,
    ) -> Result<(), TlsError> {
        let key = private_key(self.key).map_err(TlsError::in_setting(setting))?;
        let unfit = |problem: String| {
            let path = self.key.to_owned();
            TlsError::in_setting(setting)(TlsError::Pem { path, problem })
        };
        match CertifiedKey::from_der(chain.to_vec(), key, &provider()) {
            Ok(_) => Ok(()),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(unfit(format!(
                "it is not the key of the certificate in {}: give the two that were made together",
                self.cert.display()
            ))),
            Err(error) => Err(unfit(format!(
                "it cannot be used ({error}): keys are RSA of 2048 to 8192 bits, ECDSA with P-256 or P-384, or Ed25519"
            ))),
        }
    }

    /// Refuses a key that every user of the machine may read, or returns a warning. Of the key in force it is always a warning: a
    /// refusal would keep nobody from reading it, but the other files, such as a list of revoked certificates, from being used.
    fn check_mode(
        &self,
        in_force: Option<&CertificateDer<'_>>,
    ) -> Result<Option<String>, TlsError> {
        let (cert_setting, key_setting) = self.shown_to.settings();
        let of_key = TlsError::in_setting(key_setting);
        let Some(readable) = readable_key(self.key).map_err(&of_key)? else {
            return Ok(None);
        };
        let readable = of_key(readable);
        if !self.refuse_readable_key {
            return Ok(Some(readable.to_string()));
        }
        let chain = certificates(self.cert).map_err(TlsError::in_setting(cert_setting))?;
        if in_force.is_some_and(|cert| have_one_key(cert, &chain[0])) {
            return Ok(Some(format!(
                "{readable} (it has been in force before and stays so, but tls.refuse_readable_keys lets no start use it)"
            )));
        }
        Err(readable)
    }

    /// Whether an authority signed it is asked for a time at which it is valid: [`Self::check_dates`] checks the dates.
    fn check_signed(
        &self,
        chain: &[CertificateDer<'_>],
        facts: &Facts<'_>,
        ca: &Path,
        unfit: impl Fn(String) -> TlsError,
    ) -> Result<(), TlsError> {
        let (_, roots) = authorities(ca).map_err(TlsError::in_setting("peer.ca"))?;
        let algorithms = provider().signature_verification_algorithms.all;
        let (own, intermediates) = (EndEntityCert::try_from(&chain[0]), &chain[1..]);
        let secs = now().min(facts.not_after).max(facts.not_before);
        let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(secs).unwrap_or(0)));
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            let verified = match &own {
                Ok(own) => own
                    .verify_for_usage(
                        algorithms,
                        &roots.roots,
                        intermediates,
                        at,
                        usage,
                        None,
                        None,
                    )
                    .map(drop),
                Err(error) => Err(error.clone()),
            };
            match verified {
                // Of another certificate of the chain.
                Ok(())
                | Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }) => {
                }
                Err(error) => return Err(unfit(self.unsigned(ca, &error))),
            }
        }
        Ok(())
    }

    fn unsigned(&self, ca: &Path, error: &webpki::Error) -> String {
        match error {
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => format!(
                "none of the authorities in peer.ca, {}, signed it: give the ca.pem of the authority that did, or a certificate \
                 that one of these signed (`quorate cert member --ca DIR`)",
                ca.display()
            ),
            other => format!(
                "it does not hold with the authorities in peer.ca, {} ({other}): {}",
                ca.display(),
                self.shown_to.remedy()
            ),
        }
    }
}

/// Whether two certificates are of the same key.
fn have_one_key(one: &CertificateDer<'_>, other: &CertificateDer<'_>) -> bool {
    let key = Facts::of(one).map(|facts| facts.key);
    key.is_some() && key == Facts::of(other).map(|facts| facts.key)
}

/// Now, in seconds since 1970.
fn now() -> i64 {
    i64::try_from(clock::unix_time().as_secs()).unwrap_or(i64::MAX)
}

/// A time in seconds since 1970, as a date and the time of that day.
fn second(secs: i64) -> String {
    let of_day = secs.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", day(secs))
}

/// The day of a time in seconds since 1970.
pub(crate) fn day(secs: i64) -> String {
    let days = u64::try_from(secs).unwrap_or(0) / 86_400;
    midnight(days).date().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
        KeyPair, date_time_ymd,
    };
    use std::{fs, os::unix::fs::PermissionsExt};

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2100, 1, 1);
        params
    }

    fn authority(name: &str) -> CertificateParams {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn doubts(
        dir: &Path,
        shown_to: ShownTo<'_>,
        in_force: Option<&CertificateDer<'_>>,
    ) -> Result<Vec<String>, String> {
        let (cert, key) = (&dir.join("own.pem"), &dir.join("own-key.pem"));
        let files = OwnFiles {
            shown_to,
            cert,
            key,
            refuse_readable_key: true,
        };
        files.doubts(in_force).map_err(|error| error.to_string())
    }

    #[test]
    fn an_ended_authority_between_the_certificate_and_its_root_is_a_doubt() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        let keys = [(); 3].map(|()| KeyPair::generate().unwrap());
        let (root, mut between, mut own) = (authority("root"), authority("between"), params("own"));
        between.not_after = date_time_ymd(2021, 1, 1);
        own.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        fs::write(dir.join("own-key.pem"), keys[2].serialize_pem()).unwrap();
        let ca = root.self_signed(&keys[0]).unwrap().pem();
        let issuers = [
            Issuer::new(root, &keys[0]),
            Issuer::new(between.clone(), &keys[1]),
        ];
        let between = between.signed_by(&keys[1], &issuers[0]).unwrap().pem();
        let own = own.signed_by(&keys[2], &issuers[1]).unwrap();
        fs::write(dir.join("own.pem"), own.pem() + &between).unwrap();
        fs::write(dir.join("ca.pem"), ca).unwrap();
        let ca = &dir.join("ca.pem");
        for (shown_to, in_force, who) in [
            (ShownTo::Members { ca }, None, "other members"),
            (ShownTo::Members { ca }, Some(own.der()), "other members"),
            (ShownTo::Clients, None, "clients that check certificates"),
        ] {
            let found = doubts(dir, shown_to, in_force).unwrap();
            let text = format!(
                "certificate 2 of the file ended on 2021-01-01: {who} refuse the first one if they find no other way to an \
                 authority; leave the other out, or replace it"
            );
            assert_eq!(found, [text]);
        }
    }

    #[test]
    fn an_ended_certificate_is_a_doubt_unless_it_replaces_one_that_has_not_ended() {
        let home = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        fs::write(home.path().join("own-key.pem"), key.serialize_pem()).unwrap();
        let good = params("own").self_signed(&key).unwrap();
        let mut ended = params("own");
        ended.not_after = date_time_ymd(2021, 1, 1);
        let ended = ended.self_signed(&key).unwrap();
        fs::write(home.path().join("own.pem"), ended.pem()).unwrap();
        let doubts = |in_force| doubts(home.path(), ShownTo::Clients, in_force);
        let remedy = "replace it (`quorate cert server … --replace`)";
        let text = format!(
            "it ended on 2021-01-01: clients that check certificates refuse it; {remedy}, no restart is needed"
        );
        assert_eq!(doubts(None).unwrap(), std::slice::from_ref(&text));
        assert_eq!(doubts(Some(ended.der())).unwrap(), [text]);
        let error = doubts(Some(good.der())).unwrap_err();
        assert!(
            error.ends_with(&format!("own.pem: it ended on 2021-01-01: {remedy}")),
            "{error}"
        );
    }

    /// The key in force was refused, too, and with it a list or an authority that had changed.
    #[test]
    fn a_key_that_others_may_read_is_refused_unless_it_is_in_force() {
        let home = tempfile::tempdir().unwrap();
        let (cert, key) = (home.path().join("own.pem"), home.path().join("own-key.pem"));
        let [own, other] = [(); 2].map(|()| KeyPair::generate().unwrap());
        fs::write(&key, own.serialize_pem()).unwrap();
        let certificate = |key: &KeyPair| params("own").self_signed(key).unwrap();
        fs::write(&cert, certificate(&own).pem()).unwrap();
        let checked = |refuse_readable_key, in_force| {
            let files = OwnFiles {
                shown_to: ShownTo::Clients,
                cert: &cert,
                key: &key,
                refuse_readable_key,
            };
            let checked = files.check_mode(in_force);
            checked.map_err(|error| error.to_string())
        };
        let set_mode = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        set_mode(0o640);
        assert_eq!(checked(true, None), Ok(None), "the group is the operator's");
        set_mode(0o644);
        let text = format!(
            "client.key: {key}: every user of this machine may read this private key: chmod o= {key}",
            key = key.display()
        );
        assert_eq!(checked(false, None), Ok(Some(text.clone())));
        assert_eq!(checked(true, None), Err(text.clone()), "a start");
        let (renewed, former) = (certificate(&own), certificate(&other));
        assert_eq!(checked(true, Some(former.der())), Err(text.clone()));
        let warning = checked(true, Some(renewed.der())).unwrap().unwrap();
        assert!(warning.starts_with(&text), "{warning}");
    }

    #[test]
    fn times_are_said_to_the_second() {
        assert_eq!(
            second(951_782_400 + 3_600 * 7 + 61),
            "2000-02-29 07:01:01 UTC"
        );
    }
}
