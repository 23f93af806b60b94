//! Lists of revoked certificates, as of RFC 5280: read, checked against the authorities, and asked.
//!
//! etcd: every certificate that the other side shows is looked up, and a list counts however old it is. Unlike etcd, a list
//! counts only if an authority signed it, and for certificates of the same issuer only. A list may be of version 1, as openssl
//! makes them by default, which the TLS library does not take.

use super::{
    der::{BIT_STRING, INTEGER, OBJECT_ID, Reader, SEQUENCE, bytes_of_bits},
    error::TlsError,
    facts::Facts,
    names::NotTaken,
    pem::{self, provider},
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use std::{collections::BTreeSet, path::Path};

const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
const BOOLEAN: u8 = 0x01;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The extensions of a list.
const EXTENSIONS: u8 = 0xa0;

/// Issuers and numbers of revoked certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Revoked(BTreeSet<(Vec<u8>, Vec<u8>)>);

impl Revoked {
    /// Reads a file with lists, each of which one of the authorities signed; none if there is no file.
    pub(crate) fn load(
        path: Option<&Path>,
        authorities: &[CertificateDer<'_>],
    ) -> Result<Self, TlsError> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let bytes = pem::read(path, FILE_BYTES_MAX)?;
        let bad = |problem: String| TlsError::Pem {
            path: path.to_owned(),
            problem,
        };
        let mut revoked = Self::default();
        let lists = lists(&bytes).map_err(&bad)?;
        if lists.is_empty() {
            return Err(bad(
                "there is no list of revoked certificates in it".to_owned()
            ));
        }
        for list in lists {
            revoked
                .add(&list, authorities)
                .map_err(|problem| bad(problem.to_owned()))?;
        }
        Ok(revoked)
    }

    /// The numbers of the revoked certificates.
    pub(crate) fn serials(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|(_, serial)| serial.as_slice())
    }

    /// Refuses a chain with a certificate that was revoked.
    pub(crate) fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut shown = std::iter::once(certificate).chain(intermediates);
        let is_revoked = |shown: &CertificateDer<'_>| {
            // What cannot be read was verified, so it does not occur; it is not let in.
            Facts::of(shown).is_none_or(|facts| self.has(&facts))
        };
        if shown.any(is_revoked) {
            return Err(NotTaken::Revoked.into());
        }
        Ok(())
    }

    fn has(&self, facts: &Facts<'_>) -> bool {
        self.0
            .contains(&(facts.issuer.to_vec(), facts.serial.to_vec()))
    }

    fn add(&mut self, list: &[u8], authorities: &[CertificateDer<'_>]) -> Result<(), &'static str> {
        const MALFORMED: &str = "it is no list of revoked certificates";
        let list = List::read(list).ok_or(MALFORMED)?;
        if list.has_critical_extension {
            return Err(
                "the list has a critical extension: delta lists and indirect lists cannot be used",
            );
        }
        let facts = authorities
            .iter()
            .filter_map(|authority| Facts::of(authority));
        let mut issuers = facts
            .filter(|facts| facts.subject == list.issuer)
            .peekable();
        if issuers.peek().is_none() {
            return Err(
                "its issuer is none of the authorities: add the issuer's certificate to the ca file",
            );
        }
        if !issuers.any(|issuer| list.is_signed_by(&issuer)) {
            return Err("its signature is not that of the authority that it names");
        }
        for serial in list.serials().ok_or(MALFORMED)? {
            self.0.insert((list.issuer.to_vec(), serial.to_vec()));
        }
        Ok(())
    }
}

/// The lists in a file, in DER.
fn lists(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if bytes.first() == Some(&SEQUENCE) {
        return Ok(vec![bytes.to_vec()]);
    }
    let found = CertificateRevocationListDer::pem_slice_iter(bytes);
    let found = found.map(|list| list.map(|list| list.to_vec()));
    found
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

struct List<'a> {
    /// What is signed.
    body: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    issuer: &'a [u8],
    entries: Option<&'a [u8]>,
    has_critical_extension: bool,
}

impl<'a> List<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut outer = Reader::new(bytes);
        let mut signed = outer.sequence().filter(|_| outer.is_at_end())?;
        let body = signed.next().filter(|body| body.tag == SEQUENCE)?;
        let algorithm = signed.expect(SEQUENCE)?;
        let signature = bytes_of_bits(signed.expect(BIT_STRING)?)?;
        let mut parts = Reader::new(body.content);
        parts.optional(INTEGER);
        parts.expect(SEQUENCE).filter(|inner| *inner == algorithm)?;
        let issuer = parts.expect(SEQUENCE)?;
        is_time(parts.next()?.tag).then_some(())?;
        if parts.optional(UTC_TIME).is_none() {
            parts.optional(GENERALIZED_TIME);
        }
        let entries = parts.optional(SEQUENCE);
        let extensions = parts.optional(EXTENSIONS);
        parts.is_at_end().then_some(())?;
        let has_critical_extension = match extensions {
            Some(extensions) => has_critical(Reader::new(extensions).expect(SEQUENCE)?)?,
            None => false,
        };
        Some(Self {
            body: body.whole,
            algorithm,
            signature,
            issuer,
            entries,
            has_critical_extension,
        })
    }

    fn is_signed_by(&self, issuer: &Facts<'_>) -> bool {
        let (key_algorithm, key) = issuer.key;
        let known = provider().signature_verification_algorithms.all;
        known.iter().any(|known| {
            *known.signature_alg_id() == *self.algorithm
                && *known.public_key_alg_id() == *key_algorithm
                && known
                    .verify_signature(key, self.body, self.signature)
                    .is_ok()
        })
    }

    /// The numbers of the certificates in it.
    fn serials(&self) -> Option<Vec<&'a [u8]>> {
        let mut serials = Vec::new();
        let mut entries = Reader::new(self.entries.unwrap_or_default());
        while !entries.is_at_end() {
            let mut entry = entries.sequence()?;
            serials.push(entry.expect(INTEGER)?);
            is_time(entry.next()?.tag).then_some(())?;
            if let Some(extensions) = entry.optional(SEQUENCE)
                && has_critical(extensions)?
            {
                // It would belong to another issuer.
                return None;
            }
        }
        Some(serials)
    }
}

fn is_time(tag: u8) -> bool {
    matches!(tag, UTC_TIME | GENERALIZED_TIME)
}

fn has_critical(extensions: &[u8]) -> Option<bool> {
    let (mut extensions, mut critical) = (Reader::new(extensions), false);
    while !extensions.is_at_end() {
        let mut extension = extensions.sequence()?;
        extension.expect(OBJECT_ID)?;
        critical |= extension
            .optional(BOOLEAN)
            .is_some_and(|value| value != [0]);
    }
    Some(critical)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
        KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
    };

    struct Authority {
        cert: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        Authority { cert, issuer }
    }

    fn issue(by: &Authority, serial: u64) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &by.issuer).unwrap().der().clone()
    }

    fn list(by: &Authority, serials: &[u64]) -> rcgen::CertificateRevocationList {
        let date = rcgen::date_time_ymd(2020, 1, 1);
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date,
            next_update: rcgen::date_time_ymd(2020, 2, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&by.issuer).unwrap()
    }

    fn load(bytes: &[u8], authorities: &[&Authority]) -> Result<Revoked, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let authorities: Vec<_> = authorities.iter().map(|it| it.cert.clone()).collect();
        let loaded = Revoked::load(Some(file.path()), &authorities);
        loaded.map_err(|error| error.to_string())
    }

    #[test]
    fn lists_in_both_forms_refuse_what_they_name() {
        let (one, two) = (authority("one"), authority("two"));
        let der = list(&one, &[7, 300]).der().to_vec();
        let both = list(&one, &[7]).pem().unwrap() + &list(&two, &[8]).pem().unwrap();
        let by_der = load(&der, &[&one]).unwrap();
        let by_pem = load(both.as_bytes(), &[&two, &one]).unwrap();
        let revoked = |lists: &Revoked, cert| lists.check(&cert, &[]).is_err();
        assert!(revoked(&by_der, issue(&one, 7)) && revoked(&by_der, issue(&one, 300)));
        assert!(!revoked(&by_der, issue(&one, 8)));
        assert!(
            !revoked(&by_der, issue(&two, 7)),
            "another authority's number"
        );
        assert!(revoked(&by_pem, issue(&one, 7)) && revoked(&by_pem, issue(&two, 8)));
        let chain = [issue(&one, 7)];
        assert!(
            by_der.check(&issue(&one, 9), &chain).is_err(),
            "in the chain"
        );
        let empty = load(list(&one, &[]).der(), &[&one]).unwrap();
        assert!(!revoked(&empty, issue(&one, 7)));
    }

    #[test]
    fn a_list_that_no_authority_signed_is_refused() {
        let (one, same_name, other) = (authority("one"), authority("one"), authority("other"));
        let der = list(&one, &[7]).der().to_vec();
        let text = load(&der, &[&same_name]).unwrap_err();
        assert!(text.contains("its signature is not that"), "{text}");
        let text = load(&der, &[&other]).unwrap_err();
        assert!(
            text.contains("its issuer is none of the authorities"),
            "{text}"
        );
        load(&der, &[&same_name, &one]).expect("one of that name signed it");
        let mut forged = der;
        let at = forged.len() / 2;
        forged[at] ^= 1;
        load(&forged, &[&one]).unwrap_err();
        for (bytes, text) in [
            (&b"nonsense"[..], "there is no list"),
            (b"\x30\x03\x02\x01\x05", "it is no list"),
        ] {
            let refused = load(bytes, &[&one]).unwrap_err();
            assert!(refused.contains(text), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_list_never_panics(at in 0..250_usize, byte in any::<u8>()) {
            let one = authority("one");
            let whole = list(&one, &[7, 8]).der().to_vec();
            let mut der = whole.clone();
            if let Some(place) = der.get_mut(at) {
                *place = byte;
            }
            let taken = Revoked::default().add(&der, &[one.cert]).is_ok();
            prop_assert_eq!(taken, der == whole);
        }
    }
}
