//! Encryption at rest, as the configuration asks for it: the keys at a start, and the keys that change while the member runs.

use super::{
    data_directory::{self, Contents},
    error::StartError,
    identity::require_own,
    placement::Placement,
    progress::{self, Progress},
};
use crate::{
    clock,
    config::{Config, EncryptionAlgorithm, EncryptionConfig, EncryptionKey},
    storage::{
        disk::Disk,
        encryption::{self, Algorithm, EncryptedDisk, KeySource, TurnedOn, Watch, WrappingKeys},
    },
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    thread,
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    time::{interval, sleep},
};

/// How often the key file is read.
const READ_FILE_EVERY: Duration = Duration::from_secs(2);
/// How often the command is run: it may ask a service for each.
const RUN_COMMAND_EVERY: Duration = Duration::from_mins(1);

/// How often is reported how much of a database is encrypted.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// How the report of a failure ends that has changed nothing.
const UNCHANGED: &str = "the key in force stays so";
/// How that of a write ends.
const DOUBTFUL: &str = "it may be wrapped by either key, in force or new, and is written again at the next look: keep both";

/// Where the keys come from, and which are at hand.
pub(super) struct Keys {
    from: CheckedSource,
    wrapping: WrappingKeys,
    algorithm: Algorithm,
}

/// A source of keys, and what the settings say about one that others can read.
#[derive(Clone)]
struct CheckedSource {
    source: KeySource,
    refuse_readable: bool,
}

/// Keys, and the file that they came from if others can read it, which the settings allow.
struct ReadKeys {
    wrapping: WrappingKeys,
    readable: Option<PathBuf>,
}

impl CheckedSource {
    /// Gets the keys. Blocks.
    fn read(&self) -> Result<ReadKeys, StartError> {
        let wrapping = self.source.read()?;
        let readable = self.source.readable_by_others().cloned();
        match readable {
            Some(path) if self.refuse_readable => Err(StartError::ReadableEncryptionKey { path }),
            readable => Ok(ReadKeys { wrapping, readable }),
        }
    }
}

fn warn_of_readers(path: &Path) {
    let path = path.display();
    tracing::warn!(
        "others can read the key of encryption.key_file, and decrypt the data with it: chmod 600 {path}"
    );
}

/// The source of keys in the settings.
pub(super) fn source(key: &EncryptionKey) -> KeySource {
    match key {
        EncryptionKey::File(path) => KeySource::File(path.clone()),
        EncryptionKey::Command(command) => KeySource::Command(command.clone()),
    }
}

impl Keys {
    /// Gets the keys, before anything is written; `None` without encryption. Blocks.
    pub(super) fn read(config: &Config) -> Result<Option<Self>, StartError> {
        let EncryptionConfig { key, algorithm } = &config.encryption;
        let Some(key) = key else {
            return Ok(None);
        };
        let from = CheckedSource {
            source: source(key),
            refuse_readable: config.refuse_readable_keys,
        };
        let ReadKeys { wrapping, readable } = from.read()?;
        if let Some(path) = readable {
            warn_of_readers(&path);
        }
        let algorithm = match algorithm {
            EncryptionAlgorithm::Aes256Gcm => Algorithm::Aes256Gcm,
            EncryptionAlgorithm::ChaCha20Poly1305 => Algorithm::ChaCha20Poly1305,
        };
        Ok(Some(Self {
            from,
            wrapping,
            algorithm,
        }))
    }

    /// As [`Keys::read`], on a thread that may block: a command may take its time.
    pub(super) async fn read_in_background(config: &Config) -> Result<Option<Self>, StartError> {
        let config = config.clone();
        let read = on_new_thread(move || Self::read(&config)).await;
        read.ok_or(StartError::Thread)?
    }
}

/// Does work on a thread that nobody waits for at a stop, as the runtime would for one of its own: a command may hang. `None` if
/// there is no thread, or it panics.
async fn on_new_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, answer) = oneshot::channel();
    let thread = thread::Builder::new().name("quorate-keys".to_owned());
    // An error means that the answer is not waited for any more.
    let spawned = thread.spawn(move || done.send(work()).map_or_else(drop, |()| ()));
    if let Err(error) = spawned {
        tracing::error!("cannot start a thread that gets the key: {error}");
    }
    answer.await.ok()
}

/// Keeps the data directory's keys up to date, if it is encrypted.
pub(super) struct Keeper(Option<(Weak<EncryptedDisk>, CheckedSource)>);

/// The data directory `disk` as the member reads and writes it. One that is encrypted is refused without keys. What a first start
/// left that was cut short needs no key: it is removed. Another member's data are refused before anything is changed.
pub(super) fn open(
    config: &Config,
    keys: Option<Keys>,
    disk: Arc<dyn Disk>,
) -> Result<(Arc<dyn Disk>, Keeper), StartError> {
    open_watched(config, keys, disk, &|_, _| true)
}

/// As [`open`], on a thread that may block: if encryption was turned on, it takes as long as copying the database. If this is
/// dropped, the thread removes what it has made, and the runtime waits for that.
pub(super) async fn open_in_background(
    config: &Config,
    keys: Option<Keys>,
    disk: Arc<dyn Disk>,
    progress: &Progress,
) -> Result<(Arc<dyn Disk>, Keeper), StartError> {
    let config = config.clone();
    let (send_progress, newest) = watch::channel((0, 0));
    let mut opening = tokio::task::spawn_blocking(move || {
        let goes_on = |done, total| send_progress.send((done, total)).is_ok();
        open_watched(&config, keys, disk, &goes_on)
    });
    let mut reports = interval(REPORT_EVERY);
    let mut reported = (0, 0);
    loop {
        tokio::select! {
            opened = &mut opening => {
                if reported != (0, 0) {
                    progress.waits_for("the database was encrypted, and is opened");
                }
                return opened.map_err(|_| StartError::Thread)?;
            }
            _ = reports.tick() => {}
        }
        let now @ (done, total) = *newest.borrow();
        if now != reported {
            let percent = u128::from(done) * 100 / u128::from(total.max(1));
            progress.waits_for(&format!("the database is being encrypted, {percent} %"));
            progress::needs_time();
            reported = now;
        }
    }
}

fn open_watched(
    config: &Config,
    keys: Option<Keys>,
    disk: Arc<dyn Disk>,
    watch: &Watch<'_>,
) -> Result<(Arc<dyn Disk>, Keeper), StartError> {
    let is_new = match data_directory::inspect(&*disk)? {
        Contents::New => true,
        Contents::Member(owner) => {
            require_own(config, &owner)?;
            false
        }
    };
    let Some(keys) = keys else {
        if !is_new {
            encryption::require_plain(&*disk)?;
        }
        return Ok((disk, Keeper(None)));
    };
    let (opened, turned_on) = if is_new {
        let created = EncryptedDisk::create(disk, keys.wrapping, keys.algorithm)?;
        (created, TurnedOn::default())
    } else {
        EncryptedDisk::open(disk, keys.wrapping, keys.algorithm, watch)?
    };
    tracing::info!(
        "the data directory is encrypted, its data keys are wrapped by the key {}",
        opened.wrapped_by()
    );
    let TurnedOn { databases, bytes } = turned_on;
    if databases > 0 {
        tracing::warn!(
            databases,
            bytes,
            "encryption was turned on: the database is encrypted now. Log segments from before are not, until they are released; \
             and what was deleted may still be on the medium"
        );
    }
    let keeper = Keeper(Some((Arc::downgrade(&opened), keys.from)));
    Ok((opened, keeper))
}

impl Keeper {
    /// Looks at the keys for as long as the member runs.
    pub(super) fn run_on(self, placement: &Placement) {
        if let Some((disk, from)) = self.0 {
            let started = placement.services.spawn(keep(disk, from));
            assert!(started, "the arbiter runs as long as its actors");
        }
    }
}

async fn keep(disk: Weak<EncryptedDisk>, from: CheckedSource) {
    let pause = match from.source {
        KeySource::File(_) => READ_FILE_EVERY,
        KeySource::Command(_) => RUN_COMMAND_EVERY,
    };
    // What was logged last, so that it is not logged each time.
    let mut logged = String::new();
    loop {
        sleep(pause).await;
        let read = if clock::is_simulated() {
            Some(from.read())
        } else {
            let from = from.clone();
            on_new_thread(move || from.read()).await
        };
        // Not before: a stop must find the data directory free while a command takes its time.
        let Some(disk) = disk.upgrade() else {
            return;
        };
        let Some(read) = read else {
            continue;
        };
        let take_up = move || take_up(&disk, read);
        let taken = if clock::is_simulated() {
            Ok(take_up())
        } else {
            tokio::task::spawn_blocking(take_up).await
        };
        // An error means that the runtime ends.
        let failure = taken.unwrap_or_default().unwrap_or_default();
        match news(&failure, &logged, &from.source) {
            Some(Ok(good)) => tracing::info!("{good}"),
            Some(Err(bad)) => tracing::error!("{bad}"),
            None => {}
        }
        logged = failure;
    }
}

/// What a look found, if it is not what the one before found: good or bad.
fn news(failure: &str, before: &str, source: &KeySource) -> Option<Result<String, String>> {
    if failure == before {
        None
    } else if failure.is_empty() {
        Some(Ok(usable_again(source)))
    } else {
        Some(Err(failure.to_owned()))
    }
}

fn usable_again(source: &KeySource) -> String {
    match source {
        KeySource::File(path) => {
            let path = path.display();
            format!("encryption.key_file: the key file {path} can be used again")
        }
        // The command itself may hold a secret.
        KeySource::Command(_) => "the key of encryption.key_command can be used again".to_owned(),
    }
}

/// Takes up a new key. Returns a text about what cannot be used, or not be written.
fn take_up(disk: &EncryptedDisk, read: Result<ReadKeys, StartError>) -> Option<String> {
    let ReadKeys { wrapping, readable } = match read {
        Ok(read) => read,
        Err(error) => return Some(format!("{error}; {UNCHANGED}")),
    };
    match disk.rotate(wrapping) {
        Ok(None) => None,
        Ok(Some(id)) => {
            tracing::info!("the data keys are wrapped by the key {id} now");
            if let Some(path) = readable {
                warn_of_readers(&path);
            }
            None
        }
        Err(error) if error.leaves_doubt() => Some(format!("{error}; {DOUBTFUL}")),
        Err(error) => Some(format!("{error}; {UNCHANGED}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        encryption::testing,
        sim_disk::{Fault, SimDisk},
    };
    use std::{fs, os::unix::fs::PermissionsExt};

    fn unchecked(source: KeySource) -> CheckedSource {
        CheckedSource {
            source,
            refuse_readable: false,
        }
    }

    /// It said that the key in force stays so.
    #[test]
    fn a_keyring_that_may_be_written_is_reported_as_such() {
        let disk = SimDisk::new(1);
        let opened = testing::open(Arc::new(disk.clone()), &[1]);
        opened.sealer().unwrap();
        let new_and_old = format!("echo {}; echo {}", "02".repeat(32), "01".repeat(32));
        let source = unchecked(KeySource::Command(new_and_old));
        disk.fail_nth(5, Fault::Io);
        let text = take_up(&opened, source.read()).unwrap();
        assert!(text.ends_with(DOUBTFUL), "{text}");
        let wrong = unchecked(KeySource::Command(format!("echo {}", "03".repeat(32))));
        let text = take_up(&opened, wrong.read()).unwrap();
        assert!(text.ends_with(UNCHANGED), "{text}");
        assert_eq!(take_up(&opened, source.read()), None);
    }

    /// Nothing was logged after a repair.
    #[test]
    fn a_key_that_can_be_used_again_is_news_once() {
        let disk = Arc::new(SimDisk::new(1));
        let opened = testing::open(disk, &[1]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let from = unchecked(KeySource::File(path.clone()));
        let mut before = String::new();
        let mut look = |key: String| {
            fs::write(&path, key).unwrap();
            let failure = take_up(&opened, from.read()).unwrap_or_default();
            let news = news(&failure, &before, &from.source);
            before = failure;
            news
        };
        let good = || "01".repeat(32);
        let again = format!(
            "encryption.key_file: the key file {} can be used again",
            path.display()
        );
        assert_eq!(look(good()), None);
        assert!(matches!(look("bad".to_owned()), Some(Err(_))));
        assert_eq!(look("bad".to_owned()), None);
        assert_eq!(look(good()), Some(Ok(again)));
        assert_eq!(look(good()), None);
    }

    /// It was taken up, and the next start refused it.
    #[test]
    fn a_key_that_others_can_read_is_not_taken_up_where_the_settings_say_so() {
        let opened = testing::open(Arc::new(SimDisk::new(1)), &[1]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let from = CheckedSource {
            source: KeySource::File(path.clone()),
            refuse_readable: true,
        };
        let lines = format!("{}\n{}", "02".repeat(32), "01".repeat(32));
        fs::write(&path, lines).unwrap();
        let first = opened.wrapped_by().to_string();
        let mut before = String::new();
        let mut look = |mode: u32| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let failure = take_up(&opened, from.read()).unwrap_or_default();
            let news = news(&failure, &before, &from.source);
            before = failure;
            (news, opened.wrapped_by().to_string())
        };
        let (refused, in_force) = look(0o644);
        let refused = refused.unwrap().unwrap_err();
        let end = format!("chmod 600 {}; {UNCHANGED}", path.display());
        assert!(refused.ends_with(&end), "{refused}");
        assert_eq!(in_force, first);
        assert_eq!(look(0o644), (None, first.clone()), "once");
        let (again, in_force) = look(0o600);
        assert!(matches!(again, Some(Ok(_))), "{again:?}");
        assert_ne!(in_force, first);
    }

    /// The runtime waited for it.
    #[test]
    fn a_command_that_hangs_does_not_delay_a_stop() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, lock) = (dir.path().join("fifo"), dir.path().join("lock"));
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
        let command = format!(
            "exec 9>{}; flock 9; echo $$ >{}; exec sleep 3600",
            lock.display(),
            fifo.display()
        );
        let opened = testing::open(Arc::new(SimDisk::new(1)), &[1]);
        let disk = Arc::downgrade(&opened);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let group = runtime.block_on(async move {
            tokio::spawn(keep(disk, unchecked(KeySource::Command(command))));
            on_new_thread(move || fs::read_to_string(fifo))
                .await
                .unwrap()
        });
        drop(runtime);
        let runs = fs::File::create(lock).unwrap().try_lock().is_err();
        let group = rustix::process::Pid::from_raw(group.unwrap().trim().parse().unwrap());
        let killed =
            rustix::process::kill_process_group(group.unwrap(), rustix::process::Signal::KILL);
        assert!(runs && killed.is_ok(), "the command was waited for");
        assert_eq!(Arc::strong_count(&opened), 1, "the directory is free");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_where_the_settings_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "00".repeat(32)).unwrap();
        let mut config = Config::default();
        assert!(Keys::read(&config).unwrap().is_none(), "off by default");
        config.encryption.key = Some(EncryptionKey::File(path.clone()));
        for (mode, refuses, good) in [
            (0o644, false, true),
            (0o644, true, false),
            (0o600, true, true),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            config.refuse_readable_keys = refuses;
            match Keys::read(&config) {
                Ok(keys) => assert!(good && keys.is_some(), "{mode:o}"),
                Err(error) => {
                    let text = format!("chmod 600 {}", path.display());
                    assert!(!good && error.to_string().ends_with(&text), "{error}");
                }
            }
        }
    }
}
