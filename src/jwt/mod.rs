//! JSON Web Tokens (RFC 7519) as etcd makes and takes them: a user's name and the auth revision of the login, signed.
//!
//! Here is the text of a token, and what its claims must be. [`algorithm`] names the ways to sign, [`keys`] reads key files,
//! signs and verifies, `der` takes apart what the cryptographic library wants in parts. Cryptography itself is `ring`'s, which
//! the connections between members use too.
//!
//! A token is `HEADER.CLAIMS.SIGNATURE`, each in base64url without padding. The algorithm is a setting: a header that says
//! another one, `none` included, is refused before a key is touched, so a public key cannot be used as a secret. `docs/auth.md`
//! has the rules. Nothing here reads a clock or a file.

pub mod algorithm;
mod der;
pub mod keys;

pub use algorithm::Algorithm;
pub use keys::{KeyDigest, KeyError, SigningKey, VerifyingKey};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::{Deserialize, Deserializer, Serialize};
use std::{borrow::Cow, time::Duration};

/// The longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub username: String,
    /// The auth revision of the login.
    pub revision: u64,
    /// When it ends, since 1970; `None` is never.
    pub expires: Option<Duration>,
    /// The cluster that it is of, if it says so.
    pub cluster: Option<String>,
}

/// Why a token is refused: for logs, clients are told no more than that it is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is not three parts of base64url, or they are not what they have to be.
    #[error("a malformed token")]
    Malformed,
    /// Its header has another algorithm than the setting.
    #[error("a token with another algorithm than auth.token sets")]
    OtherAlgorithm,
    /// No valid key verifies the signature.
    #[error("a token that no valid key has signed")]
    Signature,
    /// Its time is over, since `end`.
    #[error("a token whose time is over")]
    Time { end: Duration },
    /// Its time has not begun, until `begin`.
    #[error("a token whose time has not begun")]
    NotYet { begin: Duration },
}

#[derive(Serialize)]
struct HeaderMade<'a> {
    alg: &'a str,
    typ: &'a str,
}

#[derive(Serialize)]
struct ClaimsMade<'a> {
    username: &'a str,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
}

#[derive(Deserialize)]
struct HeaderTaken<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    /// Extensions that must be understood, of which there is none.
    #[serde(default, deserialize_with = "present")]
    crit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct ClaimsTaken<'a> {
    #[serde(borrow)]
    username: Cow<'a, str>,
    /// etcd: numbers are those of JavaScript.
    revision: f64,
    #[serde(default, deserialize_with = "present")]
    exp: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<f64>,
    #[serde(borrow)]
    cluster: Option<Cow<'a, str>>,
}

/// A field that may be missing, but not `null`: a token whose end is `null` must not be one without an end.
fn present<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// Whether a client's token can only be a JWT: it has three parts, which simple tokens do not have.
pub fn is_jwt(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'.').take(4).count() == 3
}

/// A token with these claims.
pub fn sign(key: &SigningKey, claims: &Claims) -> Result<String, KeyError> {
    let header = HeaderMade {
        alg: key.algorithm().name(),
        typ: "JWT",
    };
    let claims = ClaimsMade {
        username: &claims.username,
        revision: claims.revision,
        exp: claims.expires.map(|end| end.as_secs()),
        cluster: claims.cluster.as_deref(),
    };
    let mut token = BASE64URL.encode(json(&header));
    token.push('.');
    BASE64URL.encode_string(json(&claims), &mut token);
    let signature = key.sign(token.as_bytes())?;
    token.push('.');
    BASE64URL.encode_string(signature, &mut token);
    Ok(token)
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a structure of texts and whole numbers")
}

/// The claims of a token that one of `keys` has signed, and that is good `now`, which counts from 1970; and which key that is.
pub fn verify(
    keys: &[VerifyingKey],
    token: &[u8],
    now: Duration,
) -> Result<(Claims, KeyDigest), TokenError> {
    use TokenError::{Malformed, NotYet, OtherAlgorithm, Signature, Time};
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Malformed);
    }
    let parts: Vec<&[u8]> = token.splitn(4, |byte| *byte == b'.').collect();
    let [header, claims, signature] = parts[..] else {
        return Err(Malformed);
    };
    let signed = &token[..header.len() + 1 + claims.len()];
    let header = BASE64URL.decode(header).map_err(|_| Malformed)?;
    let header: HeaderTaken<'_> = serde_json::from_slice(&header).map_err(|_| Malformed)?;
    if header.crit.is_some() {
        return Err(Malformed);
    }
    let named = |key: &&VerifyingKey| key.algorithm().name() == header.alg;
    if !keys.iter().any(|key| named(&key)) {
        return Err(OtherAlgorithm);
    }
    let signature = BASE64URL.decode(signature).map_err(|_| Malformed)?;
    let mut valid = keys.iter().filter(named);
    let Some(key) = valid.find(|key| key.verifies(signed, &signature)) else {
        return Err(Signature);
    };
    let claims = BASE64URL.decode(claims).map_err(|_| Malformed)?;
    let claims: ClaimsTaken<'_> = serde_json::from_slice(&claims).map_err(|_| Malformed)?;
    let revision = whole(claims.revision).ok_or(Malformed)?;
    let expires = claims.exp.map(instant).transpose()?;
    let begins = claims.nbf.map(instant).transpose()?;
    if let Some(end) = expires.filter(|end| now >= *end) {
        return Err(Time { end });
    }
    if let Some(begin) = begins.filter(|begin| now < *begin) {
        return Err(NotYet { begin });
    }
    let claims = Claims {
        username: claims.username.into_owned(),
        revision,
        expires,
        cluster: claims.cluster.map(Cow::into_owned),
    };
    Ok((claims, *key.digest()))
}

/// A revision. etcd: what follows the point is cut off.
fn whole(number: f64) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range is checked, and what follows the point is cut off on purpose"
    )]
    (0.0..1.8e19)
        .contains(&number)
        .then_some(number.trunc() as u64)
}

fn instant(secs: f64) -> Result<Duration, TokenError> {
    Duration::try_from_secs_f64(secs).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests;
