//! What tokens are: `auth.token` in our notation or in etcd's, and the keys of JWT.

use super::values;
use std::{path::PathBuf, time::Duration};

pub(super) const KEY: &str = "auth.token";

const ALLOWED: &str =
    "\"simple\", \"jwt\", or etcd's \"jwt,pub-key=FILE,priv-key=FILE,sign-method=RS256,ttl=5m\"";

/// The keys that say what `auth.token = "jwt"` needs.
pub(super) const SIGN_METHOD: &str = "auth.jwt_sign_method";
pub(super) const PRIVATE_KEY: &str = "auth.jwt_private_key";
pub(super) const PUBLIC_KEYS: &str = "auth.jwt_public_keys";
pub(super) const TTL: &str = "auth.jwt_ttl_secs";

/// The longest time to live of a JWT: a year, in seconds.
pub(super) const TTL_SECS_MAX: u64 = 31_536_000;

/// Public keys beside the private one.
const PUBLIC_KEYS_MAX: usize = 15;

/// etcd: the names of RFC 7518, but for ES512, which the cryptographic library here does not have.
pub const SIGN_METHODS: [&str; 12] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "HS256", "HS384",
    "HS512", "EdDSA",
];

/// What Authenticate answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Tokens that the cluster keeps.
    Simple,
    /// Tokens that are signed.
    Jwt(JwtConfig),
}

/// Tokens that are signed. At least one of the keys is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtConfig {
    /// How, as RFC 7518 names it.
    pub sign_method: String,
    /// The file of the key that signs.
    pub private_key: Option<PathBuf>,
    /// The files of further keys that verify.
    pub public_keys: Vec<PathBuf>,
    /// How long a token is good.
    pub ttl: Duration,
}

/// The options of `auth.token` in etcd's notation.
#[derive(Default)]
struct Options<'a> {
    sign_method: Option<&'a str>,
    private_key: Option<&'a str>,
    public_key: Option<&'a str>,
    ttl: Option<&'a str>,
}

/// The keys of the configuration as they were written.
pub(super) struct Written<'a> {
    pub(super) token: &'a str,
    pub(super) sign_method: &'a str,
    pub(super) private_key: &'a str,
    pub(super) public_keys: &'a [String],
    pub(super) ttl_secs: u64,
}

/// A key that cannot have the value that it has, and what is allowed.
pub(super) struct Unusable {
    pub(super) key: &'static str,
    pub(super) allowed: String,
}

fn unusable<T>(key: &'static str, allowed: impl Into<String>) -> Result<T, Unusable> {
    let allowed = allowed.into();
    Err(Unusable { key, allowed })
}

impl Written<'_> {
    pub(super) fn kind(&self) -> Result<TokenKind, Unusable> {
        let options = match self.token.split_once(',') {
            None if self.token == "simple" => return self.simple(),
            None if self.token == "jwt" => Options::default(),
            Some(("jwt", options)) => parse(options)?,
            // etcd: options of simple tokens are ignored.
            Some(("simple", _)) => return self.simple(),
            None | Some(_) => return unusable(KEY, ALLOWED),
        };
        let sign_method = once(SIGN_METHOD, self.sign_method, options.sign_method)?;
        if !SIGN_METHODS.contains(&sign_method) {
            let names = SIGN_METHODS.join(", ");
            let why = if sign_method == "ES512" {
                " (ES512 needs keys of P-521, which the cryptography here does not have: take ES384 or EdDSA)"
            } else {
                ""
            };
            let (key, allowed) = if options.sign_method.is_some() {
                let allowed = format!("jwt with a sign-method that is one of {names}{why}");
                (KEY, allowed)
            } else {
                let allowed = format!("one of {names}, since {KEY} is jwt{why}");
                (SIGN_METHOD, allowed)
            };
            return unusable(key, allowed);
        }
        let private_key = once(PRIVATE_KEY, self.private_key, options.private_key)?;
        let own = self.public_keys.iter().map(String::as_str);
        let public_keys = options.public_key.into_iter().chain(own);
        let public_keys: Vec<PathBuf> = public_keys.map(PathBuf::from).collect();
        if private_key.is_empty() && public_keys.is_empty() {
            let allowed =
                format!("one with priv-key or pub-key; or set {PRIVATE_KEY} or {PUBLIC_KEYS}");
            return unusable(KEY, allowed);
        }
        if sign_method.starts_with("HS") && options.public_key.is_some() {
            let allowed = format!(
                "one without pub-key, since {sign_method} has a secret: name its file with priv-key"
            );
            return unusable(KEY, allowed);
        }
        if public_keys.len() > PUBLIC_KEYS_MAX {
            let allowed = format!("a list of at most {PUBLIC_KEYS_MAX} files");
            return unusable(PUBLIC_KEYS, allowed);
        }
        let own_ttl = Duration::from_secs(self.ttl_secs);
        Ok(TokenKind::Jwt(JwtConfig {
            sign_method: sign_method.to_owned(),
            private_key: (!private_key.is_empty()).then(|| private_key.into()),
            public_keys,
            ttl: options.ttl.map_or(Ok(own_ttl), option_ttl)?,
        }))
    }

    /// Refuses settings that would have no effect.
    fn simple(&self) -> Result<TokenKind, Unusable> {
        for (key, is_set) in [
            (SIGN_METHOD, !self.sign_method.is_empty()),
            (PRIVATE_KEY, !self.private_key.is_empty()),
            (PUBLIC_KEYS, !self.public_keys.is_empty()),
        ] {
            if is_set {
                return unusable(key, format!("empty, since {KEY} is not jwt"));
            }
        }
        Ok(TokenKind::Simple)
    }
}

/// A value that is set by a key of its own or by an option, and not by both.
fn once<'a>(key: &'static str, own: &'a str, option: Option<&'a str>) -> Result<&'a str, Unusable> {
    match option {
        Some(_) if !own.is_empty() => unusable(key, format!("empty, since {KEY} has it too")),
        Some(option) => Ok(option),
        None => Ok(own),
    }
}

fn parse(options: &str) -> Result<Options<'_>, Unusable> {
    let mut parsed = Options::default();
    for option in options.split(',') {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let place = match name {
            "sign-method" => &mut parsed.sign_method,
            "priv-key" => &mut parsed.private_key,
            "pub-key" => &mut parsed.public_key,
            "ttl" => &mut parsed.ttl,
            _ => return unusable(KEY, format!("{ALLOWED}: there is no option {name:?}")),
        };
        if value.is_empty() || place.replace(value).is_some() {
            return unusable(KEY, format!("{ALLOWED}: the option {name} needs one value"));
        }
    }
    Ok(parsed)
}

fn option_ttl(text: &str) -> Result<Duration, Unusable> {
    let range = Duration::from_secs(1)..=Duration::from_secs(TTL_SECS_MAX);
    let found = values::go_duration(text).filter(|ttl| range.contains(ttl));
    let allowed = || format!("{ALLOWED}: ttl is from 1s to {}h", TTL_SECS_MAX / 3_600);
    found.map_or_else(|| unusable(KEY, allowed()), Ok)
}
