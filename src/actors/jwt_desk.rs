//! Issues and checks JSON Web Tokens for one front end, and remembers those that it has checked, in bounded tables.
//!
//! A call with a known token costs a digest and a lookup, whether the token was good or refused. A stream may outlive the token
//! that opened it: what it asks later is judged by a [`JwtProof`], without the token and without its signature.

use super::jwt_keys::{JwtKeys, KeySet};
use crate::{
    auth::{Caller, caller::JwtUser},
    clock,
    jwt::{self, Claims, KeyDigest, KeyError, TokenError},
};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Verified tokens that a front end remembers, in bytes.
const KNOWN_BYTES_MAX: usize = 1024 * 1024;

/// Refused tokens that a front end remembers.
const REFUSED_MAX: usize = 4_096;

type TokenDigest = [u8; 32];

/// Whom a token proves.
#[derive(Clone, Debug)]
pub struct Identified {
    pub caller: Caller,
    /// If the token is a JWT, what makes it good.
    pub proof: Option<Arc<JwtProof>>,
}

impl From<Caller> for Identified {
    fn from(caller: Caller) -> Self {
        Self {
            caller,
            proof: None,
        }
    }
}

/// What makes a JWT good: the key that verified it, which may be withdrawn, and its time, which may end.
#[derive(Debug)]
pub struct JwtProof {
    key: KeyDigest,
    /// Since 1970; `None` is never.
    expires: Option<Duration>,
}

impl JwtProof {
    fn is_over(&self, now: Duration) -> bool {
        self.expires.is_some_and(|end| now >= end)
    }
}

/// Issues and checks tokens for one front end.
#[derive(Debug)]
pub(super) struct JwtDesk {
    keys: Arc<JwtKeys>,
    cluster: String,
    known: Mutex<Known>,
}

/// What is signed, and with which key.
pub(super) struct ToSign {
    keys: Arc<KeySet>,
    claims: Claims,
}

impl ToSign {
    /// The token; takes about a millisecond.
    pub(super) fn sign(&self) -> Option<Result<String, KeyError>> {
        let key = self.keys.signing.as_ref()?;
        Some(jwt::sign(key, &self.claims))
    }
}

impl JwtDesk {
    /// Tokens of the cluster with this id.
    pub(super) fn new(keys: Arc<JwtKeys>, cluster: u64) -> Self {
        Self {
            keys,
            cluster: format!("{cluster:x}"),
            known: Mutex::default(),
        }
    }

    /// A token for a user whose password was right at an auth revision; `None` if no key signs.
    pub(super) fn issue(&self, user: &str, revision: u64) -> Option<ToSign> {
        let keys = self.keys.valid();
        keys.signing.as_ref()?;
        let claims = Claims {
            username: user.to_owned(),
            revision,
            expires: Some(clock::unix_time() + self.keys.ttl()),
            cluster: Some(self.cluster.clone()),
        };
        Some(ToSign { keys, claims })
    }

    /// Whom a token proves, as far as the token goes: its user may have changed since.
    pub(super) fn identify(&self, token: &[u8]) -> Identified {
        self.identify_at(token, clock::unix_time())
    }

    fn identify_at(&self, token: &[u8], now: Duration) -> Identified {
        let keys = self.keys.valid();
        let digest: TokenDigest = Sha256::digest(token).into();
        let remembered = self.known().find(&keys, &digest, now);
        match remembered {
            Some(Remembered::Good(token)) => return token.identified(),
            Some(Remembered::Bad) => return Caller::BadToken.into(),
            None => {}
        }
        // Without the lock: other threads need not wait for a signature.
        let token = match jwt::verify(&keys.verifying, token, now) {
            Ok((claims, key)) if self.is_ours(&claims) => KnownToken::new(claims, key),
            // To find this out took a signature, so it is remembered, for the times at which it holds: the clock may be wrong.
            Ok(_) | Err(TokenError::Signature) => {
                return self.refuse(&keys, digest, Duration::ZERO..Duration::MAX);
            }
            Err(TokenError::Time { end }) => {
                return self.refuse(&keys, digest, end..Duration::MAX);
            }
            Err(TokenError::NotYet { begin }) => {
                return self.refuse(&keys, digest, Duration::ZERO..begin);
            }
            Err(TokenError::Malformed | TokenError::OtherAlgorithm) => {
                return Caller::BadToken.into();
            }
        };
        let identified = token.identified();
        self.known().add(&keys, digest, token);
        identified
    }

    /// Refuses a token, and remembers the times at which it is bad with these keys.
    fn refuse(&self, keys: &Arc<KeySet>, digest: TokenDigest, bad: Range<Duration>) -> Identified {
        self.known().refuse(keys, digest, bad);
        Caller::BadToken.into()
    }

    /// Whether a token that was good is so still.
    pub(super) fn is_good(&self, proof: &JwtProof) -> bool {
        let keys = self.keys.valid();
        let mut valid = keys.verifying.iter().map(jwt::VerifyingKey::digest);
        !proof.is_over(clock::unix_time()) && valid.any(|key| *key == proof.key)
    }

    fn is_ours(&self, claims: &Claims) -> bool {
        let cluster = claims.cluster.as_ref();
        cluster.is_none_or(|cluster| *cluster == self.cluster)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokens that were looked at with a set of keys.
#[derive(Debug, Default)]
struct Known {
    keys: Option<Arc<KeySet>>,
    tokens: HashMap<TokenDigest, KnownToken>,
    bytes: usize,
    /// Since 1970, when each is bad.
    refused: HashMap<TokenDigest, Range<Duration>>,
}

#[derive(Clone, Debug)]
struct KnownToken {
    user: Arc<JwtUser>,
    proof: Arc<JwtProof>,
}

/// What is known of a token.
enum Remembered {
    Good(KnownToken),
    Bad,
}

impl KnownToken {
    fn new(claims: Claims, key: KeyDigest) -> Self {
        Self {
            user: Arc::new(JwtUser {
                name: claims.username.into(),
                revision: claims.revision,
            }),
            proof: Arc::new(JwtProof {
                key,
                expires: claims.expires,
            }),
        }
    }

    fn identified(&self) -> Identified {
        Identified {
            caller: Caller::Jwt(self.user.clone()),
            proof: Some(self.proof.clone()),
        }
    }
}

impl Known {
    fn find(
        &mut self,
        keys: &Arc<KeySet>,
        digest: &TokenDigest,
        now: Duration,
    ) -> Option<Remembered> {
        if !self.is_of(keys) {
            *self = Self {
                keys: Some(keys.clone()),
                ..Self::default()
            };
        }
        if self
            .refused
            .get(digest)
            .is_some_and(|bad| bad.contains(&now))
        {
            return Some(Remembered::Bad);
        }
        let found = self.tokens.get(digest)?;
        if found.proof.is_over(now) {
            return Some(Remembered::Bad);
        }
        Some(Remembered::Good(found.clone()))
    }

    /// Adds a good token, unless the keys have changed meanwhile. At the bound all are forgotten: they are verified again as they
    /// come.
    fn add(&mut self, keys: &Arc<KeySet>, digest: TokenDigest, token: KnownToken) {
        if !self.is_of(keys) {
            return;
        }
        // The table has up to twice the room that it needs.
        let entry = 2 * (size_of::<TokenDigest>() + size_of::<KnownToken>());
        let behind = size_of::<JwtUser>() + token.user.name.len() + size_of::<JwtProof>();
        let bytes = entry + behind;
        if self.bytes + bytes > KNOWN_BYTES_MAX {
            self.tokens = HashMap::new();
            self.bytes = 0;
        }
        if self.tokens.insert(digest, token).is_none() {
            self.bytes += bytes;
        }
    }

    /// Adds a token that is bad at these times, likewise.
    fn refuse(&mut self, keys: &Arc<KeySet>, digest: TokenDigest, bad: Range<Duration>) {
        if !self.is_of(keys) {
            return;
        }
        if self.refused.len() >= REFUSED_MAX {
            self.refused = HashMap::new();
        }
        self.refused.insert(digest, bad);
    }

    fn is_of(&self, keys: &Arc<KeySet>) -> bool {
        self.keys.as_ref().is_some_and(|of| Arc::ptr_eq(of, keys))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::jwt_keys::{FAILURES, JwtSettings},
        *,
    };
    use crate::jwt::Algorithm;
    use std::fs;

    const ALWAYS: Range<Duration> = Duration::ZERO..Duration::MAX;

    struct Scene {
        dir: tempfile::TempDir,
        settings: JwtSettings,
    }

    /// Secrets in files: that in `key` signs, and each other has the name of its file.
    fn scene(secret: Option<&str>, others: &[&str]) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, secret: &str| {
            let path = dir.path().join(name);
            fs::write(&path, secret).unwrap();
            path
        };
        let settings = JwtSettings {
            algorithm: Algorithm::Hs256,
            private_key: secret.map(|secret| file("key", secret)),
            public_keys: others.iter().map(|name| file(name, name)).collect(),
            ttl: Duration::from_mins(1),
            refuse_readable_keys: false,
        };
        Scene { dir, settings }
    }

    fn desk(scene: &Scene) -> JwtDesk {
        JwtDesk::new(JwtKeys::open(scene.settings.clone()).unwrap(), 0xab)
    }

    fn token(desk: &JwtDesk, user: &str) -> Vec<u8> {
        let signed = desk.issue(user, 7).unwrap().sign().unwrap();
        signed.unwrap().into_bytes()
    }

    fn is_good(desk: &JwtDesk, token: &[u8]) -> bool {
        matches!(desk.identify(token).caller, Caller::Jwt(_))
    }

    fn of_user(name: &str, revision: u64, expires: Option<Duration>) -> KnownToken {
        let claims = Claims {
            username: name.to_owned(),
            revision,
            expires,
            cluster: None,
        };
        KnownToken::new(claims, [0; 32])
    }

    fn numbered(number: usize) -> TokenDigest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        digest
    }

    #[test]
    fn a_token_proves_its_user() {
        let scene = scene(Some("secret"), &[]);
        let desk = desk(&scene);
        let token = token(&desk, "u");
        for _ in 0..2 {
            let Caller::Jwt(user) = desk.identify(&token).caller else {
                panic!("a good token");
            };
            assert_eq!((&*user.name, user.revision), ("u", 7));
        }
        assert_eq!(desk.known().tokens.len(), 1);
        let elsewhere = JwtDesk::new(desk.keys.clone(), 0xac);
        let refused = elsewhere.identify(&token).caller;
        assert_eq!(refused, Caller::BadToken, "another cluster");
        assert_eq!(desk.identify(b"a.b.c").caller, Caller::BadToken);
        assert_eq!(elsewhere.known().tokens.len(), 0);
    }

    #[test]
    fn a_known_token_ends_with_its_time() {
        let mut scene = scene(Some("secret"), &[]);
        scene.settings.ttl = Duration::ZERO;
        let desk = desk(&scene);
        let over = token(&desk, "u");
        assert_eq!(desk.identify(&over).caller, Caller::BadToken);
        let keys = desk.keys.valid();
        let mut known = Known::default();
        let (now, end) = (Duration::from_secs(5), Duration::from_secs(6));
        assert!(known.find(&keys, &[1; 32], now).is_none());
        known.add(&keys, [1; 32], of_user("u", 7, Some(end)));
        let mut found = |now| known.find(&keys, &[1; 32], now);
        assert!(matches!(found(now), Some(Remembered::Good(_))));
        assert!(matches!(found(end), Some(Remembered::Bad)));
    }

    /// It stayed refused after the clock was put right, until the keys changed.
    #[test]
    fn a_token_that_a_wrong_clock_refused_is_good_once_the_clock_is_right() {
        let scene = scene(Some("secret"), &[]);
        let desk = desk(&scene);
        let token = token(&desk, "u");
        let now = clock::unix_time();
        let ahead = now + Duration::from_hours(1);
        let caller = |now| desk.identify_at(&token, now).caller;
        for _ in 0..2 {
            for _ in 0..2 {
                assert_eq!(caller(ahead), Caller::BadToken);
                assert_eq!(desk.known().refused.len(), 1, "no further signature");
            }
            assert!(matches!(caller(now), Caller::Jwt(_)));
        }

        let keys = desk.keys.valid();
        let begin = Duration::from_secs(6);
        let not_yet = Duration::ZERO..begin;
        desk.known().refuse(&keys, [1; 32], not_yet);
        let found = |secs| {
            let now = Duration::from_secs(secs);
            desk.known().find(&keys, &[1; 32], now)
        };
        assert!(matches!(found(5), Some(Remembered::Bad)));
        assert!(found(6).is_none(), "its time has begun");
    }

    #[test]
    fn known_tokens_have_a_bound() {
        let keys = desk(&scene(Some("secret"), &[])).keys.valid();
        let mut known = Known::default();
        assert!(known.find(&keys, &[1; 32], Duration::ZERO).is_none());
        let name = "u".repeat(100);
        for number in 0..100_000_usize {
            known.add(&keys, numbered(number), of_user(&name, 7, None));
            assert!(known.bytes <= KNOWN_BYTES_MAX);
            let counted = known.tokens.len() * (2 * 32 + 100);
            assert!(counted <= known.bytes, "{counted} of {}", known.bytes);
            known.refuse(&keys, numbered(number), ALWAYS);
            assert!(known.refused.len() <= REFUSED_MAX);
        }
        assert!(known.tokens.len() < 10_000);
    }

    /// Each time it was compared with all keys.
    #[test]
    fn a_refused_token_is_remembered_until_the_keys_change() {
        let scene = scene(Some("secret"), &[]);
        let desk = desk(&scene);
        let path = scene.dir.path().join("key");
        let elsewhere = {
            fs::write(&path, "another").unwrap();
            JwtDesk::new(JwtKeys::open(scene.settings.clone()).unwrap(), 0xab)
        };
        let foreign = token(&elsewhere, "u");
        for _ in 0..2 {
            assert!(!is_good(&desk, &foreign));
            assert_eq!(desk.known().refused.len(), 1);
        }
        assert!(!is_good(&desk, b"a.b.c"));
        let refused = desk.known().refused.len();
        assert_eq!(refused, 1, "that cost no signature");
        desk.keys.look();
        assert!(is_good(&desk, &foreign), "its key is valid now");
        assert_eq!(desk.known().refused.len(), 0);
    }

    /// What was found out with former keys says nothing about these.
    #[test]
    fn what_is_found_out_while_the_keys_change_is_forgotten() {
        let scene = scene(Some("secret"), &[]);
        let (former, now) = (desk(&scene).keys.valid(), desk(&scene).keys.valid());
        let mut known = Known::default();
        assert!(known.find(&now, &[1; 32], Duration::ZERO).is_none());
        known.add(&former, [1; 32], of_user("u", 7, None));
        known.refuse(&former, [2; 32], ALWAYS);
        assert!(known.tokens.is_empty() && known.refused.is_empty());
    }

    /// An open stream could go on with new watches and with renewals.
    #[test]
    fn a_proof_ends_with_the_time_and_with_the_key() {
        let scene = scene(Some("secret"), &["other"]);
        let desk = desk(&scene);
        let token = token(&desk, "u");
        let proof = desk.identify(&token).proof.unwrap();
        assert!(desk.is_good(&proof));
        let over = JwtProof {
            key: proof.key,
            expires: Some(Duration::from_secs(1)),
        };
        assert!(!desk.is_good(&over));
        let endless = JwtProof {
            key: proof.key,
            expires: None,
        };
        assert!(desk.is_good(&endless));

        // The key is exchanged, then allowed again by another file.
        let (key, other) = (scene.dir.path().join("key"), scene.dir.path().join("other"));
        fs::write(key, "new").unwrap();
        desk.keys.look();
        assert!(!desk.is_good(&proof) && !desk.is_good(&endless));
        fs::write(other, "secret").unwrap();
        desk.keys.look();
        assert!(desk.is_good(&proof));
    }

    #[test]
    fn keys_change_with_their_files_and_bad_files_change_nothing() {
        let scene = scene(Some("old"), &["other"]);
        let desk = desk(&scene);
        let by_old = token(&desk, "u");
        assert!(is_good(&desk, &by_old));
        desk.keys.look();
        assert!(is_good(&desk, &by_old));

        let (key, other) = (scene.dir.path().join("key"), scene.dir.path().join("other"));
        fs::write(&key, "").unwrap();
        desk.keys.look();
        assert!(is_good(&desk, &by_old));
        let named = format!("{} cannot be used: the file is empty", key.display());
        let said = |text: &str| FAILURES.texts().iter().any(|said| said.contains(text));
        assert!(said(&named), "{:?}", FAILURES.texts());
        fs::remove_file(&other).unwrap();
        fs::write(&key, "new").unwrap();
        desk.keys.look();
        assert!(is_good(&desk, &by_old));
        assert!(said(&other.display().to_string()), "{:?}", FAILURES.texts());

        // The old key still verifies.
        fs::write(&other, "old").unwrap();
        desk.keys.look();
        let by_new = token(&desk, "u");
        for token in [&by_old, &by_new] {
            assert!(is_good(&desk, token));
        }
        fs::write(&other, "something else").unwrap();
        desk.keys.look();
        assert!(!is_good(&desk, &by_old), "also a known one");
        assert!(is_good(&desk, &by_new));
    }

    #[test]
    fn without_a_private_key_no_token_is_issued() {
        let issuing = desk(&scene(Some("secret"), &[]));
        let verifying = desk(&scene(None, &["secret"]));
        assert!(verifying.issue("u", 7).is_none());
        let token = token(&issuing, "u");
        assert!(is_good(&verifying, &token));
    }
}
