//! Keys as their files hold them, and what is done with them.
//!
//! Files are PEM, as OpenSSL writes them: RSA as PKCS#1 or PKCS#8, EC as SEC 1 or PKCS#8, Ed25519 as PKCS#8; public keys also
//! inside a certificate. A file may hold several public keys, of which etcd takes the first. The file of an HMAC key is the
//! secret, each byte of it. etcd: the same files.

use super::{
    algorithm::{Algorithm, Family},
    der,
};
use ring::{
    agreement::{self, EphemeralPrivateKey},
    hmac,
    rand::SystemRandom,
    rsa,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::fmt;

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// A public key would be a secret that everybody has.
    #[error("it holds a PEM key, but {0} takes a secret that is no key of another algorithm")]
    NoSecret(&'static str),
    /// No PEM with a key of the kind that is looked for.
    #[error("it holds no {wanted} in PEM")]
    NoKey {
        /// What is looked for.
        wanted: &'static str,
    },
    /// A block has a beginning and no right end, or is not in base64.
    #[error("a PEM block in it is malformed")]
    MalformedPem,
    /// A file of public keys has something else in PEM.
    #[error("it holds a block {tag}, which is no public key")]
    NoPublicKey {
        /// What the block says it is.
        tag: String,
    },
    /// Which one signs is not clear.
    #[error("it holds more than one private key")]
    SeveralPrivate,
    /// The authorities of a certificate's chain must not sign tokens.
    #[error("it holds a certificate beside other keys: put the certificate into a file of its own")]
    CertificateBeside,
    /// The key is another algorithm's, malformed, or too short or long.
    #[error("its key cannot be used for {algorithm}: {reason}")]
    Unusable {
        algorithm: &'static str,
        reason: String,
    },
    /// The library did not sign.
    #[error("signing failed")]
    Signing,
}

pub struct SigningKey {
    algorithm: Algorithm,
    pair: Pair,
}

enum Pair {
    Rsa(rsa::KeyPair),
    Ec(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Hmac(hmac::Key),
}

/// Says which key it is, and cannot be used as one.
pub type KeyDigest = [u8; 32];

#[derive(Clone)]
pub struct VerifyingKey {
    algorithm: Algorithm,
    key: Public,
    digest: KeyDigest,
}

/// What a file of keys that verify holds.
#[derive(Debug)]
pub struct KeyFile {
    /// The keys, at least one.
    pub keys: Vec<VerifyingKey>,
    /// Whether a private key stands beside them.
    pub has_private: bool,
}

#[derive(Clone)]
enum Public {
    Signature(UnparsedPublicKey<Vec<u8>>),
    Hmac(hmac::Key),
}

impl SigningKey {
    /// The key in a file with these bytes.
    pub fn read(algorithm: Algorithm, file: &[u8]) -> Result<Self, KeyError> {
        let pair = match algorithm.family() {
            Family::Hmac => Pair::Hmac(secret(algorithm, file)?),
            Family::Rsa | Family::Ec | Family::Ed25519 => pair(algorithm, file)?,
        };
        Ok(Self { algorithm, pair })
    }

    /// What verifies its signatures.
    pub fn verifying(&self) -> VerifyingKey {
        let public = match &self.pair {
            Pair::Rsa(pair) => pair.public_key().as_ref(),
            Pair::Ec(pair) => pair.public_key().as_ref(),
            Pair::Ed25519(pair) => pair.public_key().as_ref(),
            Pair::Hmac(key) => {
                return VerifyingKey::of_secret(self.algorithm, key.clone());
            }
        };
        VerifyingKey::of(self.algorithm, public.to_vec())
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::Ec(pair) => {
                let signed = pair.sign(&random, message);
                Ok(signed.map_err(|_| KeyError::Signing)?.as_ref().to_vec())
            }
            Pair::Rsa(pair) => {
                let encoding: &dyn signature::RsaEncoding = match self.algorithm {
                    Algorithm::Rs384 => &signature::RSA_PKCS1_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut signed = vec![0; pair.public().modulus_len()];
                let done = pair.sign(encoding, &random, message, &mut signed);
                done.map_err(|_| KeyError::Signing)?;
                Ok(signed)
            }
        }
    }
}

impl VerifyingKey {
    /// The keys in a file with these bytes, at least one. One that cannot be used refuses the whole file: a key that is left out
    /// shows only when a token is refused.
    pub fn read_all(algorithm: Algorithm, file: &[u8]) -> Result<KeyFile, KeyError> {
        if algorithm.family() == Family::Hmac {
            let key = Self::of_secret(algorithm, secret(algorithm, file)?);
            return Ok(KeyFile {
                keys: vec![key],
                has_private: false,
            });
        }
        let mut blocks = blocks(file)?;
        let is_public = |tag: &str| matches!(tag, "PUBLIC KEY" | "RSA PUBLIC KEY" | "CERTIFICATE");
        if !blocks.iter().any(|block| is_public(block.tag())) {
            let wanted = "public key";
            return Err(KeyError::NoKey { wanted });
        }
        // A file may hold a private key beside its public one. Here it is not needed, but it must be kept as one.
        let is_private = |tag: &str| tag.ends_with("PRIVATE KEY");
        let has_private = blocks.iter().any(|block| is_private(block.tag()));
        blocks.retain(|block| !is_private(block.tag()) && block.tag() != "EC PARAMETERS");
        if let Some(other) = blocks.iter().find(|block| !is_public(block.tag())) {
            let tag = other.tag().to_owned();
            return Err(KeyError::NoPublicKey { tag });
        }
        let is_certificate = |block: &pem::Pem| block.tag() == "CERTIFICATE";
        if blocks.iter().all(is_certificate) {
            // As etcd: the chain that follows a certificate has keys of authorities, which sign no tokens.
            blocks.truncate(1);
        }
        if blocks.len() > 1 && blocks.iter().any(is_certificate) {
            return Err(KeyError::CertificateBeside);
        }
        let keys = blocks
            .into_iter()
            .map(|block| Self::of_block(algorithm, block));
        Ok(KeyFile {
            keys: keys.collect::<Result<_, _>>()?,
            has_private,
        })
    }

    fn of_secret(algorithm: Algorithm, key: hmac::Key) -> Self {
        // The library does not give a secret back. What it signs says as well which one it is.
        let digest = Sha256::digest(hmac::sign(&key, b"which key it is")).into();
        let key = Public::Hmac(key);
        Self {
            algorithm,
            key,
            digest,
        }
    }

    fn of_block(algorithm: Algorithm, block: pem::Pem) -> Result<Self, KeyError> {
        let unusable = |reason: &str| unusable(algorithm, reason);
        if block.tag() == "RSA PUBLIC KEY" {
            if algorithm.family() != Family::Rsa {
                return Err(unusable("it is an RSA key"));
            }
            return Self::checked(algorithm, block.contents());
        }
        let info = if block.tag() == "CERTIFICATE" {
            let certificate = CertificateDer::from(block.into_contents());
            let read = webpki::EndEntityCert::try_from(&certificate);
            let read = read.map_err(|_| unusable("its certificate is malformed"))?;
            read.subject_public_key_info().to_vec()
        } else {
            block.into_contents()
        };
        let found = der::public_key(&info).ok_or_else(|| unusable("it is malformed"))?;
        let (kind, curve) = match algorithm.family() {
            Family::Rsa => (der::RSA, None),
            Family::Ec if algorithm == Algorithm::Es256 => (der::EC, Some(der::P256)),
            Family::Ec => (der::EC, Some(der::P384)),
            Family::Ed25519 | Family::Hmac => (der::ED25519, None),
        };
        if found.algorithm != kind || curve.is_some_and(|curve| found.parameter != Some(curve)) {
            return Err(unusable("it is a key of another kind"));
        }
        Self::checked(algorithm, found.key)
    }

    /// A key that signatures can be checked with. The library finds out only when it verifies one, and does not say why.
    fn checked(algorithm: Algorithm, key: &[u8]) -> Result<Self, KeyError> {
        let flaw = match algorithm.family() {
            Family::Rsa => rsa_flaw(key),
            Family::Ec => ec_flaw(algorithm, key),
            Family::Ed25519 => (key.len() != 32).then_some("it does not have 32 bytes"),
            Family::Hmac => None,
        };
        match flaw {
            Some(flaw) => Err(unusable(algorithm, flaw)),
            None => Ok(Self::of(algorithm, key.to_vec())),
        }
    }

    fn of(algorithm: Algorithm, key: Vec<u8>) -> Self {
        let verification: &'static dyn signature::VerificationAlgorithm = match algorithm {
            Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Algorithm::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
            Algorithm::Es384 => &signature::ECDSA_P384_SHA384_FIXED,
            Algorithm::EdDsa => &signature::ED25519,
            Algorithm::Rs256 | Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => {
                &signature::RSA_PKCS1_2048_8192_SHA256
            }
        };
        let digest = Sha256::digest(&key).into();
        let key = Public::Signature(UnparsedPublicKey::new(verification, key));
        Self {
            algorithm,
            key,
            digest,
        }
    }

    /// Which key it is.
    pub fn digest(&self) -> &KeyDigest {
        &self.digest
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            Public::Signature(key) => key.verify(message, signature).is_ok(),
            Public::Hmac(key) => hmac::verify(key, message, signature).is_ok(),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.algorithm.name())
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.algorithm.name())
    }
}

fn rsa_flaw(key: &[u8]) -> Option<&'static str> {
    let Some((modulus, exponent)) = der::rsa_public_key(key) else {
        return Some("it is malformed");
    };
    let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    match (modulus.len(), exponent.len()) {
        (..256, _) => Some("it is too short: RSA keys have 2048 to 8192 bits"),
        (1_025.., _) => Some("it is too long: RSA keys have 2048 to 8192 bits"),
        (_, 5..) => Some("its exponent is too large"),
        _ if !is_odd(modulus) || !is_odd(exponent) || exponent == [1] => {
            Some("its numbers are no RSA key")
        }
        _ => None,
    }
}

fn ec_flaw(algorithm: Algorithm, key: &[u8]) -> Option<&'static str> {
    let (curve, bytes) = if algorithm == Algorithm::Es256 {
        (&agreement::ECDH_P256, 65)
    } else {
        (&agreement::ECDH_P384, 97)
    };
    // The library has no other way to ask whether a point is on its curve.
    let on_curve = || {
        let own = EphemeralPrivateKey::generate(curve, &SystemRandom::new()).ok()?;
        let point = agreement::UnparsedPublicKey::new(curve, key);
        agreement::agree_ephemeral(own, &point, |_| ()).ok()
    };
    if key.first() != Some(&4) || key.len() != bytes {
        Some("it is no uncompressed point")
    } else {
        on_curve()
            .is_none()
            .then_some("its point is not on the curve")
    }
}

fn unusable(algorithm: Algorithm, reason: &str) -> KeyError {
    KeyError::Unusable {
        algorithm: algorithm.name(),
        reason: reason.to_owned(),
    }
}

fn secret(algorithm: Algorithm, file: &[u8]) -> Result<hmac::Key, KeyError> {
    if file.is_empty() {
        return Err(KeyError::Empty);
    }
    if pem::parse_many(file).is_ok_and(|blocks| !blocks.is_empty()) {
        return Err(KeyError::NoSecret(algorithm.name()));
    }
    let digest = match algorithm {
        Algorithm::Hs384 => hmac::HMAC_SHA384,
        Algorithm::Hs512 => hmac::HMAC_SHA512,
        _ => hmac::HMAC_SHA256,
    };
    Ok(hmac::Key::new(digest, file))
}

/// All blocks of a file. The library leaves out what follows a block that it cannot read.
fn blocks(file: &[u8]) -> Result<Vec<pem::Pem>, KeyError> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    if file.is_empty() {
        return Err(KeyError::Empty);
    }
    let blocks = pem::parse_many(file).map_err(|_| KeyError::MalformedPem)?;
    let begun = file.windows(BEGIN.len()).filter(|bytes| *bytes == BEGIN);
    if begun.count() != blocks.len() {
        return Err(KeyError::MalformedPem);
    }
    Ok(blocks)
}

fn private_block(file: &[u8]) -> Result<pem::Pem, KeyError> {
    let is_private = |block: &pem::Pem| block.tag().ends_with("PRIVATE KEY");
    let mut found = blocks(file)?.into_iter().filter(is_private);
    match (found.next(), found.next()) {
        (Some(block), None) => Ok(block),
        (Some(_), Some(_)) => Err(KeyError::SeveralPrivate),
        (None, _) => Err(KeyError::NoKey {
            wanted: "private key",
        }),
    }
}

fn pair(algorithm: Algorithm, file: &[u8]) -> Result<Pair, KeyError> {
    let block = private_block(file)?;
    let rejected = |error: ring::error::KeyRejected| unusable(algorithm, &rejection(&error));
    let (tag, key) = (block.tag(), block.contents());
    match (algorithm.family(), tag) {
        (Family::Rsa, "RSA PRIVATE KEY") => {
            let pair = rsa::KeyPair::from_der(key);
            pair.map(Pair::Rsa).map_err(rejected)
        }
        (Family::Rsa, "PRIVATE KEY") => {
            let pair = rsa::KeyPair::from_pkcs8(key);
            pair.map(Pair::Rsa).map_err(rejected)
        }
        (Family::Ec, "EC PRIVATE KEY") => {
            let parts = der::ec_private_key(key);
            let (private, public) = parts
                .ok_or_else(|| unusable(algorithm, "it is malformed, or has no public key"))?;
            let (curve, random) = (curve(algorithm), SystemRandom::new());
            let pair =
                EcdsaKeyPair::from_private_key_and_public_key(curve, private, public, &random);
            pair.map(Pair::Ec).map_err(rejected)
        }
        (Family::Ec, "PRIVATE KEY") => {
            let pair = EcdsaKeyPair::from_pkcs8(curve(algorithm), key, &SystemRandom::new());
            pair.map(Pair::Ec).map_err(rejected)
        }
        (Family::Ed25519, "PRIVATE KEY") => {
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key);
            pair.map(Pair::Ed25519).map_err(rejected)
        }
        (_, "ENCRYPTED PRIVATE KEY") => Err(unusable(algorithm, "it is encrypted")),
        _ => Err(unusable(algorithm, &format!("it is in a block {tag}"))),
    }
}

/// The library's reason in words.
fn rejection(error: &ring::error::KeyRejected) -> String {
    match error.to_string().as_str() {
        "TooSmall" => "it is too short: RSA keys have 2048 to 4096 bits".to_owned(),
        "TooLarge" => "it is too long: RSA keys have 2048 to 4096 bits".to_owned(),
        "WrongAlgorithm" => "it is a key of another kind".to_owned(),
        "InvalidEncoding" => "it is malformed, or a key of another kind".to_owned(),
        other => format!("it is malformed ({other})"),
    }
}

fn curve(algorithm: Algorithm) -> &'static signature::EcdsaSigningAlgorithm {
    if algorithm == Algorithm::Es256 {
        &signature::ECDSA_P256_SHA256_FIXED_SIGNING
    } else {
        &signature::ECDSA_P384_SHA384_FIXED_SIGNING
    }
}
