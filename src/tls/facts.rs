//! What a certificate says that the TLS library does not tell: its common name, its dates, its issuer and number, its key, and
//! what it may be used for.

use super::der::{
    BIT_STRING, BOOLEAN, INTEGER, OBJECT_ID, OCTET_STRING, Reader, SET, bytes_of_bits,
};
use time::{Date, Month};

/// The object identifier of a common name, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// Of what a certificate may be used for, 2.5.29.37; of whether it is an authority's, 2.5.29.19.
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// The purposes of a server and of a client, 1.3.6.1.5.5.7.3.1 and …2.
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];
/// Any purpose, 2.5.29.37.0.
const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const BMP_STRING: u8 = 0x1e;

/// What a certificate says. Slices are the contents of their elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts<'a> {
    pub(super) serial: &'a [u8],
    pub(super) issuer: &'a [u8],
    pub(super) subject: &'a [u8],
    /// The algorithm of the key, and its bytes.
    pub(super) key: (&'a [u8], &'a [u8]),
    /// From when it is valid, in seconds since 1970.
    pub(super) not_before: i64,
    /// When it ends, in seconds since 1970.
    pub(super) not_after: i64,
    extensions: &'a [u8],
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usages {
    pub(super) server: bool,
    pub(super) client: bool,
    /// It names any purpose, which some take for each and others for none.
    pub(super) any: bool,
}

impl<'a> Facts<'a> {
    /// Reads a certificate in DER; `None` if it is none.
    pub(super) fn of(certificate: &'a [u8]) -> Option<Self> {
        let mut signed = Reader::new(certificate).sequence()?;
        let mut body = signed.sequence()?;
        // The version.
        body.optional(0xa0);
        let serial = body.expect(INTEGER)?;
        body.sequence()?;
        let issuer = body.next()?.content;
        let mut validity = body.sequence()?;
        let start = validity.next()?;
        let end = validity.next()?;
        let subject = body.next()?.content;
        let mut key = body.sequence()?;
        let algorithm = key.next()?.content;
        let key = bytes_of_bits(key.expect(BIT_STRING)?)?;
        // The unique numbers of version 2.
        body.optional(0x81);
        body.optional(0x82);
        Some(Self {
            serial,
            issuer,
            subject,
            key: (algorithm, key),
            not_before: seconds(start.tag, start.content)?,
            not_after: seconds(end.tag, end.content)?,
            extensions: body.optional(0xa3).unwrap_or_default(),
        })
    }

    /// What it may be used for: everything, if it does not say.
    pub(super) fn usages(&self) -> Usages {
        let Some(listed) = self.extension(EXTENDED_KEY_USAGE) else {
            return Usages {
                server: true,
                client: true,
                any: false,
            };
        };
        let (mut purposes, mut found) = (Reader::new(listed).sequence(), Vec::new());
        while let Some(purpose) = purposes.as_mut().and_then(|all| all.expect(OBJECT_ID)) {
            found.push(purpose);
        }
        Usages {
            server: found.contains(&SERVER_AUTH),
            client: found.contains(&CLIENT_AUTH),
            any: found.contains(&ANY_PURPOSE),
        }
    }

    /// Whether it says that it is an authority's.
    pub(super) fn is_authority(&self) -> bool {
        let constraints = self.extension(BASIC_CONSTRAINTS).map(Reader::new);
        let said = constraints.and_then(|mut all| all.sequence()?.expect(BOOLEAN));
        said.is_some_and(|said| said != [0])
    }

    fn extension(&self, wanted: &[u8]) -> Option<&'a [u8]> {
        let mut all = Reader::new(self.extensions).sequence()?;
        while let Some(mut extension) = all.sequence() {
            if extension.expect(OBJECT_ID) == Some(wanted) {
                extension.optional(BOOLEAN);
                return extension.expect(OCTET_STRING);
            }
        }
        None
    }

    /// The common name of whom it was issued to. etcd: of several the last.
    pub(super) fn common_name(&self) -> Option<String> {
        name_in(self.subject)
    }
}

/// The common name of whom a certificate was issued to.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    Facts::of(certificate)?.common_name()
}

/// The number of a certificate, as it is encoded.
pub(crate) fn serial_number(certificate: &[u8]) -> Option<&[u8]> {
    Facts::of(certificate).map(|facts| facts.serial)
}

fn name_in(name: &[u8]) -> Option<String> {
    let (mut sets, mut found) = (Reader::new(name), None);
    while let Some(set) = sets.expect(SET) {
        let mut parts = Reader::new(set);
        while let Some(mut part) = parts.sequence() {
            if part.expect(OBJECT_ID) == Some(COMMON_NAME) {
                let value = part.next()?;
                found = text(value.tag, value.content);
            }
        }
    }
    found
}

fn text(tag: u8, content: &[u8]) -> Option<String> {
    if tag == BMP_STRING {
        let units = content.chunks_exact(2);
        let units: Vec<u16> = units
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
            .collect();
        return String::from_utf16(&units).ok();
    }
    String::from_utf8(content.to_vec()).ok()
}

/// A date as certificates have it, in seconds since 1970.
fn seconds(tag: u8, digits: &[u8]) -> Option<i64> {
    let digits = digits.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = digits.get(from..to)?;
        Some(
            digits
                .iter()
                .fold(0_u16, |sum, digit| sum * 10 + u16::from(digit - b'0')),
        )
    };
    let (year, rest) = match (tag, digits.len()) {
        // RFC 5280: from 1950 to 2049.
        (UTC_TIME, 12) => {
            let year = number(0, 2)?;
            (
                if year < 50 {
                    2_000 + year
                } else {
                    1_900 + year
                },
                2,
            )
        }
        (GENERALIZED_TIME, 14) => (number(0, 4)?, 4),
        _ => return None,
    };
    let part =
        |at: usize| number(rest + at, rest + at + 2).and_then(|part| u8::try_from(part).ok());
    let month = Month::try_from(part(0)?).ok()?;
    let date = Date::from_calendar_date(i32::from(year), month, part(2)?).ok()?;
    let time = date.with_hms(part(4)?, part(6)?, part(8)?).ok()?;
    Some(time.assume_utc().unix_timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType,
        ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth},
        IsCa, KeyPair,
    };

    fn certificate(name: Option<&str>) -> Vec<u8> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "etcd");
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.not_after = rcgen::date_time_ymd(2049, 12, 31);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_says_what_it_was_made_with() {
        let der = certificate(Some("rööt"));
        let facts = Facts::of(&der).unwrap();
        assert_eq!(facts.common_name().as_deref(), Some("rööt"));
        assert_eq!(facts.not_after, 2_524_521_600, "31 December 2049");
        assert_eq!(facts.issuer, facts.subject, "it is self-signed");
        let der = certificate(None);
        assert_eq!(Facts::of(&der).unwrap().common_name(), None);
        let usages = facts.usages();
        assert!(usages.server && usages.client, "it names none");
        assert!(!facts.is_authority() && facts.not_before < facts.not_after);
    }

    #[test]
    fn a_certificate_says_what_it_is_for() {
        for (purposes, server, client, any) in [
            (vec![ServerAuth], true, false, false),
            (vec![ClientAuth], false, true, false),
            (vec![ClientAuth, ServerAuth], true, true, false),
            (vec![Any], false, false, true),
        ] {
            let mut params = CertificateParams::new(["n1".to_owned()]).unwrap();
            params.extended_key_usages = purposes;
            params.is_ca = if client {
                IsCa::NoCa
            } else {
                IsCa::Ca(BasicConstraints::Constrained(0))
            };
            let key = KeyPair::generate().unwrap();
            let made = params.self_signed(&key).unwrap();
            let facts = Facts::of(made.der()).unwrap();
            let expected = Usages {
                server,
                client,
                any,
            };
            assert_eq!(facts.usages(), expected);
            assert_eq!(facts.is_authority(), !client);
        }
    }

    #[test]
    fn dates() {
        assert_eq!(seconds(UTC_TIME, b"700101000001Z"), Some(1));
        assert_eq!(seconds(UTC_TIME, b"491231235959Z"), Some(2_524_607_999));
        assert_eq!(
            seconds(GENERALIZED_TIME, b"20500101000000Z"),
            Some(2_524_608_000)
        );
        for bad in [
            &b"7001010000Z"[..],
            b"700101000001",
            b"701301000000Z",
            b"7001010x0001Z",
        ] {
            assert_eq!(seconds(UTC_TIME, bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_never_panics(at in 0..200_usize, byte in any::<u8>(), cut in 0..300_usize) {
            let mut der = certificate(Some("x"));
            if let Some(place) = der.get_mut(at) {
                *place = byte;
            }
            der.truncate(cut);
            if let Some(facts) = Facts::of(&der) {
                drop(facts.common_name());
                let (_, _) = (facts.usages(), facts.is_authority());
            }
        }
    }
}
