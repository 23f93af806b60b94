//! The keys of JSON Web Tokens, taken up again when their files change. What they verify is `jwt_desk`'s.
//!
//! Files are read at the start and then on a thread that may block. A file that cannot be used changes nothing: it is logged
//! with its name, and the keys that were valid stay so.

use super::background::in_background;
use crate::{
    jwt::{Algorithm, KeyError, SigningKey, VerifyingKey},
    log_gate::{self, LogGate},
};
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};
use tokio::time::sleep;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A key file that is longer is none, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Files that cannot be used.
pub(super) static FAILURES: LogGate = LogGate::new();

/// Secrets in force that others can read.
static LOOSENED: LogGate = LogGate::new();

/// What tokens are signed with, and where the keys are.
#[derive(Clone, Debug)]
pub struct JwtSettings {
    /// The only way to sign.
    pub algorithm: Algorithm,
    /// The file of the key that signs, and whose signatures are good.
    pub private_key: Option<PathBuf>,
    /// The files of further keys whose signatures are good.
    pub public_keys: Vec<PathBuf>,
    /// How long a token is good.
    pub ttl: Duration,
    /// Whether a secret that others can read is refused, instead of a warning.
    pub refuse_readable_keys: bool,
}

/// The setting of the key that signs, as a message names it.
const PRIVATE: &str = "auth.jwt_private_key (or priv-key in auth.token)";
/// That of the keys that verify.
const PUBLIC: &str = "auth.jwt_public_keys (or pub-key in auth.token)";

/// The most keys that a signature is checked against.
const KEYS_MAX: usize = 16;

/// Whether others than the owner can read a file.
fn others_read(path: &Path) -> bool {
    fs::metadata(path).map_or(0, |about| about.permissions().mode()) & 0o077 != 0
}

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: the key file {} cannot be used: {cause}", path.display())]
pub struct KeyFileError {
    /// The setting that names the file.
    pub setting: &'static str,
    pub path: PathBuf,
    pub cause: KeyFileCause,
}

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileCause {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// Others can read a secret, and the settings refuse that.
    #[error("others can read it, which tls.refuse_readable_keys refuses: chmod 600 {}", .0.display())]
    Readable(PathBuf),
    /// With it there are too many keys.
    #[error("with it there are more than {KEYS_MAX} keys")]
    TooMany,
    /// It has no key for the algorithm.
    #[error("{0}")]
    Key(#[from] KeyError),
}

/// The keys that are valid at one time.
#[derive(Debug)]
pub(super) struct KeySet {
    pub(super) signing: Option<SigningKey>,
    pub(super) verifying: Vec<VerifyingKey>,
    /// How many keys are of which file.
    files: Vec<(PathBuf, usize)>,
    /// The digest of each file.
    digests: Vec<[u8; 32]>,
    /// What an operator should know about the files.
    warnings: Vec<String>,
    /// Of the files, to see that they change.
    digest: [u8; 32],
}

impl KeySet {
    /// How many keys of which files are in force.
    fn in_force(&self) -> String {
        let each = self.files.iter().map(|(path, count)| {
            let path = path.display();
            format!("{count} of {path}")
        });
        let each = each.collect::<Vec<_>>().join(", ");
        format!("keys that verify: {} ({each})", self.verifying.len())
    }

    fn warn(&self) {
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
    }
}

/// The keys. All front ends of a node share them.
#[derive(Debug)]
pub struct JwtKeys {
    settings: JwtSettings,
    valid: RwLock<Arc<KeySet>>,
    /// The file that could not be used at the last look.
    failed: Mutex<Option<PathBuf>>,
}

impl JwtKeys {
    /// Reads all files; blocks.
    pub fn open(settings: JwtSettings) -> Result<Arc<Self>, KeyFileError> {
        let found = read(&settings)?;
        found.warn();
        tracing::info!("JWT: {}", found.in_force());
        Ok(Arc::new(Self {
            settings,
            valid: RwLock::new(Arc::new(found)),
            failed: Mutex::default(),
        }))
    }

    /// The keys that are valid now.
    pub(super) fn valid(&self) -> Arc<KeySet> {
        let valid = self.valid.read().unwrap_or_else(PoisonError::into_inner);
        valid.clone()
    }

    /// How long a new token is good.
    pub(super) fn ttl(&self) -> Duration {
        self.settings.ttl
    }

    /// Takes up the files if they have changed; blocks.
    pub(super) fn look(&self) {
        for news in self.take_up() {
            tracing::info!("{news}");
        }
    }

    /// Takes up the files and returns what is good news.
    fn take_up(&self) -> Vec<String> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let in_force = self.valid();
        let found = match read_beside(&self.settings, Some(in_force.as_ref())) {
            Ok(found) => found,
            Err(error) => {
                log_gate::error!(FAILURES, "{error}; the keys that were valid stay so");
                *failed = Some(error.path);
                return Vec::new();
            }
        };
        let mut news = Vec::new();
        if let Some(path) = failed.take() {
            FAILURES.forget("");
            let path = path.display();
            news.push(format!("the key file {path} of JWT can be used again"));
        }
        if found.digest != in_force.digest {
            found.warn();
            let now = found.in_force();
            news.push(format!("the keys of JWT have changed; {now}"));
            let mut valid = self.valid.write().unwrap_or_else(PoisonError::into_inner);
            *valid = Arc::new(found);
        }
        news
    }
}

fn read(settings: &JwtSettings) -> Result<KeySet, KeyFileError> {
    read_beside(settings, None)
}

/// Reads the files that take the place of those `in_force`.
fn read_beside(settings: &JwtSettings, in_force: Option<&KeySet>) -> Result<KeySet, KeyFileError> {
    let private = settings.private_key.iter().map(|path| (PRIVATE, path));
    let public = settings.public_keys.iter().map(|path| (PUBLIC, path));
    let mut set = KeySet {
        signing: None,
        verifying: Vec::new(),
        files: Vec::new(),
        digests: Vec::new(),
        warnings: Vec::new(),
        digest: [0; 32],
    };
    let mut digest = Sha256::new();
    for (setting, path) in private.chain(public) {
        let signs = setting == PRIVATE;
        let added = add(&mut set, &mut digest, settings, in_force, signs, path);
        added.map_err(|cause| KeyFileError {
            setting,
            path: path.clone(),
            cause,
        })?;
    }
    set.digest = digest.finalize().into();
    Ok(set)
}

/// Adds the keys of one file.
fn add(
    set: &mut KeySet,
    digest: &mut Sha256,
    settings: &JwtSettings,
    in_force: Option<&KeySet>,
    signs: bool,
    path: &Path,
) -> Result<(), KeyFileCause> {
    let algorithm = settings.algorithm;
    let bytes = file_bytes(path)?;
    let own: [u8; 32] = Sha256::digest(&bytes).into();
    let is_in_force = in_force.is_some_and(|set| set.digests.contains(&own));
    set.digests.push(own);
    if signs || algorithm.has_secrets() {
        judge_mode(set, settings, is_in_force, path)?;
    }
    digest.update(bytes.len().to_le_bytes());
    digest.update(&bytes);
    let keys = if signs {
        let key = SigningKey::read(algorithm, &bytes)?;
        let verifying = vec![key.verifying()];
        set.signing = Some(key);
        verifying
    } else {
        let file = VerifyingKey::read_all(algorithm, &bytes)?;
        if file.has_private {
            set.warnings.push(format!(
                "{PUBLIC}: the file {} holds a private key too, which is not used there, and which makes tokens: take it out",
                path.display()
            ));
            judge_mode(set, settings, is_in_force, path)?;
        }
        file.keys
    };
    if set.verifying.len() + keys.len() > KEYS_MAX {
        return Err(KeyFileCause::TooMany);
    }
    if let Some(min) = algorithm.secret_bytes_min()
        && bytes.len() < min
    {
        let (path, count, name) = (path.display(), bytes.len(), algorithm.name());
        set.warnings.push(format!(
            "the secret in {path} has {count} bytes, and {name} should have {min} at least, or it may be guessed: make a new one \
             with `openssl rand -out FILE {min}`, and give it to every member"
        ));
    }
    set.files.push((path.to_owned(), keys.len()));
    set.verifying.extend(keys);
    Ok(())
}

/// Warns of a file with a secret that others can read, or refuses it, as the settings say. What is in force is never refused:
/// that would keep the other files from being used.
fn judge_mode(
    set: &mut KeySet,
    settings: &JwtSettings,
    is_in_force: bool,
    path: &Path,
) -> Result<(), KeyFileCause> {
    if !others_read(path) {
        return Ok(());
    }
    if settings.refuse_readable_keys && !is_in_force {
        return Err(KeyFileCause::Readable(path.to_owned()));
    }
    let path = path.display();
    let text = "others can read the key of JWT, and make tokens with it";
    if settings.refuse_readable_keys {
        log_gate::warn!(
            LOOSENED,
            "{text}: chmod 600 {path} (it has been in force before and stays so, but tls.refuse_readable_keys lets no start use \
             it)"
        );
        return Ok(());
    }
    set.warnings.push(format!("{text}: chmod 600 {path}"));
    Ok(())
}

fn file_bytes(path: &Path) -> Result<Vec<u8>, KeyFileCause> {
    let about = fs::metadata(path)?;
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        let text = "it is no file of at most 1 MiB";
        return Err(io::Error::other(text).into());
    }
    Ok(fs::read(path)?)
}

/// Looks at the files until `gone` is ready.
pub async fn keep(keys: Arc<JwtKeys>, gone: impl Future<Output = ()>) {
    let mut gone = std::pin::pin!(gone);
    loop {
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            () = &mut gone => return,
        }
        let keys = keys.clone();
        // An error means that the runtime ends.
        drop(in_background(move || keys.look()).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        dir: tempfile::TempDir,
        settings: JwtSettings,
    }

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

    /// The file of a public key of Ed25519 with so many bytes.
    fn public_key(bytes: u8, each: u8) -> String {
        let mut der = vec![
            0x30,
            bytes + 10,
            0x30,
            5,
            6,
            3,
            0x2b,
            0x65,
            0x70,
            3,
            bytes + 1,
            0,
        ];
        der.extend(vec![each; bytes.into()]);
        pem::encode(&pem::Pem::new("PUBLIC KEY", der))
    }

    #[test]
    fn a_public_key_that_can_verify_nothing_is_named_and_changes_nothing() {
        let mut scene = scene(None, &["public 1", "public 2"]);
        scene.settings.algorithm = Algorithm::EdDsa;
        let [one, other] = &scene.settings.public_keys[..] else {
            panic!("two files");
        };
        let named = format!("{} cannot be used", other.display());
        fs::write(one, public_key(32, 7)).unwrap();
        fs::write(other, public_key(31, 7)).unwrap();
        let error = JwtKeys::open(scene.settings.clone()).unwrap_err();
        assert!(error.to_string().contains(&named), "{error}");

        fs::write(other, public_key(32, 7)).unwrap();
        let keys = JwtKeys::open(scene.settings.clone()).unwrap();
        let valid = keys.valid();
        fs::write(one, public_key(32, 8)).unwrap();
        fs::write(other, public_key(33, 7)).unwrap();
        keys.look();
        assert!(Arc::ptr_eq(&keys.valid(), &valid), "all stay");
        let said = FAILURES.texts();
        assert!(said.iter().any(|said| said.contains(&named)), "{said:?}");
        fs::write(other, public_key(32, 7)).unwrap();
        keys.look();
        assert!(!Arc::ptr_eq(&keys.valid(), &valid), "the first file is new");
    }

    #[test]
    fn a_file_that_is_missing_is_named_at_the_start() {
        let mut scene = scene(None, &["a"]);
        scene.settings.public_keys.push("/nowhere/key.pem".into());
        let error = JwtKeys::open(scene.settings).unwrap_err().to_string();
        assert!(error.contains("/nowhere/key.pem"), "{error}");
    }

    /// The second key was ignored, and nothing said which keys are in force.
    #[test]
    fn all_keys_of_a_file_are_in_force_and_counted() {
        let mut scene = scene(None, &["public 1", "public 2"]);
        scene.settings.algorithm = Algorithm::EdDsa;
        let [one, other] = &scene.settings.public_keys[..] else {
            panic!("two files");
        };
        fs::write(one, public_key(32, 7)).unwrap();
        fs::write(other, public_key(32, 8)).unwrap();
        let keys = JwtKeys::open(scene.settings.clone()).unwrap();
        assert_eq!(keys.take_up(), Vec::<String>::new());
        fs::write(one, public_key(32, 7) + &public_key(32, 9)).unwrap();
        let (first, second) = (one.display(), other.display());
        let text = format!(
            "the keys of JWT have changed; keys that verify: 3 (2 of {first}, 1 of {second})"
        );
        assert_eq!(keys.take_up(), [text]);
        assert_eq!(keys.valid().verifying.len(), 3);
        fs::write(one, public_key(32, 7) + &public_key(31, 9)).unwrap();
        assert_eq!(keys.take_up(), Vec::<String>::new());
        assert_eq!(keys.valid().verifying.len(), 3, "the whole file is refused");
        fs::write(one, public_key(32, 7).repeat(16)).unwrap();
        let error = JwtKeys::open(scene.settings.clone()).unwrap_err();
        let text = format!("{second} cannot be used: with it there are more than 16 keys");
        assert!(error.to_string().ends_with(&text), "{error}");
    }

    /// Nothing was logged.
    #[test]
    fn a_file_that_can_be_used_again_is_news_once() {
        let scene = scene(Some("secret"), &[]);
        let keys = JwtKeys::open(scene.settings.clone()).unwrap();
        let path = scene.dir.path().join("key");
        fs::write(&path, "").unwrap();
        assert_eq!(keys.take_up(), Vec::<String>::new());
        fs::write(&path, "secret").unwrap();
        let text = format!("the key file {} of JWT can be used again", path.display());
        assert_eq!(keys.take_up(), [text]);
        assert_eq!(keys.take_up(), Vec::<String>::new());
    }

    #[test]
    fn secrets_that_others_can_read_are_refused_where_the_settings_say_so() {
        let mut scene = scene(Some("secret"), &["other"]);
        let mode = |name: &str, mode| {
            let path = scene.dir.path().join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        mode("key", 0o600);
        let other = mode("other", 0o644);
        let set = read(&scene.settings).unwrap();
        let text = format!("chmod 600 {}", other.display());
        let said = |text: &str| set.warnings.iter().any(|warning| warning.ends_with(text));
        assert!(said(&text), "{:?}", set.warnings);
        scene.settings.refuse_readable_keys = true;
        let error = read(&scene.settings).unwrap_err().to_string();
        assert!(
            error.starts_with(PUBLIC) && error.ends_with(&text),
            "{error}"
        );
        mode("other", 0o600);
        let key = mode("key", 0o644);
        let error = read(&scene.settings).unwrap_err().to_string();
        let text = format!("chmod 600 {}", key.display());
        assert!(
            error.starts_with(PRIVATE) && error.ends_with(&text),
            "{error}"
        );
        mode("key", 0o600);
        assert!(read(&scene.settings).is_ok());
        scene.settings.algorithm = Algorithm::EdDsa;
        scene.settings.private_key = None;
        fs::write(mode("other", 0o644), public_key(32, 7)).unwrap();
        assert!(read(&scene.settings).is_ok(), "a public key is no secret");
    }

    /// It kept a new public key from being used.
    #[test]
    fn a_secret_in_force_that_others_can_read_keeps_no_other_file_from_being_used() {
        let mut scene = scene(Some("secret"), &["other"]);
        scene.settings.refuse_readable_keys = true;
        let path = |name: &str| scene.dir.path().join(name);
        let set_mode = |name: &str, mode| {
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        set_mode("key", 0o600);
        set_mode("other", 0o600);
        let keys = JwtKeys::open(scene.settings.clone()).unwrap();
        let changes = || {
            let before = keys.valid();
            keys.look();
            !Arc::ptr_eq(&keys.valid(), &before)
        };
        set_mode("key", 0o644);
        assert!(!changes());
        let command = format!("chmod 600 {}", path("key").display());
        let said = LOOSENED.texts();
        assert!(said.iter().any(|said| said.contains(&command)), "{said:?}");
        fs::write(path("other"), "new").unwrap();
        assert!(changes(), "the other file is new");
        fs::write(path("key"), "another secret").unwrap();
        assert!(!changes(), "a new secret is refused");
        set_mode("key", 0o600);
        assert!(changes());
    }

    /// Its mode was not looked at, and nothing said that it is there.
    #[test]
    fn a_private_key_in_a_file_of_public_ones_is_reported_and_guarded() {
        let mut scene = scene(None, &["public"]);
        scene.settings.algorithm = Algorithm::EdDsa;
        let path = scene.settings.public_keys[0].clone();
        let private = pem::encode(&pem::Pem::new("PRIVATE KEY", vec![7; 48]));
        fs::write(&path, private + &public_key(32, 7)).unwrap();
        let set_mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let command = format!("chmod 600 {}", path.display());
        for (mode, warned) in [(0o644, true), (0o600, false)] {
            set_mode(mode);
            let set = read(&scene.settings).unwrap();
            assert_eq!(set.verifying.len(), 1);
            let said = |text: &str| set.warnings.iter().any(|warning| warning.contains(text));
            assert!(said("holds a private key too"), "{:?}", set.warnings);
            assert_eq!(said(&command), warned, "{:?}", set.warnings);
        }
        scene.settings.refuse_readable_keys = true;
        assert!(read(&scene.settings).is_ok(), "only its owner reads it");
        set_mode(0o644);
        let error = read(&scene.settings).unwrap_err().to_string();
        assert!(
            error.starts_with(PUBLIC) && error.ends_with(&command),
            "{error}"
        );
    }

    #[test]
    fn a_short_secret_is_warned_of() {
        for (algorithm, bytes) in [
            (Algorithm::Hs256, 32),
            (Algorithm::Hs384, 48),
            (Algorithm::Hs512, 64),
        ] {
            let mut scene = scene(Some("secret"), &[]);
            scene.settings.algorithm = algorithm;
            let path = scene.dir.path().join("key");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let warnings = |length| {
                fs::write(&path, vec![7; length]).unwrap();
                read(&scene.settings).unwrap().warnings
            };
            let command = format!("openssl rand -out FILE {bytes}");
            let short = warnings(bytes - 1);
            assert!(short.len() == 1 && short[0].contains(&command), "{short:?}");
            assert_eq!(warnings(bytes), Vec::<String>::new());
        }
    }
}
