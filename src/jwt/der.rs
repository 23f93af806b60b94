//! As much of DER (X.690) as it takes to find a key inside what OpenSSL writes.

/// Object identifiers, as they are encoded.
pub(super) const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
pub(super) const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
pub(super) const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
pub(super) const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
pub(super) const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const IDENTIFIER: u8 = 0x06;
const INTEGER: u8 = 0x02;
/// The field of an EC private key that has the public one.
const EC_PUBLIC: u8 = 0xa1;

/// Takes one value after the other off a byte string.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let len = match first {
            0..=0x7f => usize::from(first),
            0x81..=0x83 => {
                let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
                rest = after;
                let shift = |len, byte: &u8| len << 8 | usize::from(*byte);
                let len = bytes.iter().fold(0, shift);
                // DER: a length has one form, the shortest.
                (len > 0x7f && bytes.first() != Some(&0)).then_some(len)?
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((tag, value))
    }

    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.any()
            .and_then(|(found, value)| (found == tag).then_some(value))
    }
}

/// The bytes of a positive number, without leading zeros.
fn positive(content: &[u8]) -> Option<&[u8]> {
    match content {
        [0, rest @ ..] if rest.first().is_some_and(|first| *first > 0x7f) => Some(rest),
        [1..=0x7f, ..] => Some(content),
        _ => None,
    }
}

/// The content of a bit string without unused bits.
fn bits(content: &[u8]) -> Option<&[u8]> {
    content.strip_prefix(&[0])
}

/// A `SubjectPublicKeyInfo`: the algorithm, its parameter if that is an identifier, and the key.
pub(super) struct PublicKey<'a> {
    pub(super) algorithm: &'a [u8],
    pub(super) parameter: Option<&'a [u8]>,
    pub(super) key: &'a [u8],
}

/// Reads a `SubjectPublicKeyInfo` (RFC 5280).
pub(super) fn public_key(der: &[u8]) -> Option<PublicKey<'_>> {
    let mut outer = Reader(Reader(der).take(SEQUENCE)?);
    let mut algorithm = Reader(outer.take(SEQUENCE)?);
    let key = bits(outer.take(BIT_STRING)?)?;
    Some(PublicKey {
        algorithm: algorithm.take(IDENTIFIER)?,
        parameter: algorithm.take(IDENTIFIER),
        key,
    })
}

/// The modulus and the exponent of an `RSAPublicKey` (RFC 8017), and nothing else.
pub(super) fn rsa_public_key(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut outer = Reader(der);
    let mut fields = Reader(outer.take(SEQUENCE)?);
    let modulus = positive(fields.take(INTEGER)?)?;
    let exponent = positive(fields.take(INTEGER)?)?;
    (outer.0.is_empty() && fields.0.is_empty()).then_some((modulus, exponent))
}

/// The private and the public part of an `ECPrivateKey` (RFC 5915).
pub(super) fn ec_private_key(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut fields = Reader(Reader(der).take(SEQUENCE)?);
    fields.take(INTEGER)?;
    let private = fields.take(OCTET_STRING)?;
    let public = loop {
        if let (EC_PUBLIC, field) = fields.any()? {
            break Reader(field).take(BIT_STRING)?;
        }
    };
    Some((private, bits(public)?))
}
