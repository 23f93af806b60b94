//! Configuration: the file, the environment and the flags, to a checked [`Config`].
//!
//! `config/node.toml` describes every key and holds its default. [`Sources`] names what overrides the defaults; [`Config::load`]
//! checks the result once, so no other module has to. An error says where the value was set, the key, the value, and what is
//! allowed.
//!
//! This file has the allowed values of each key, `layers` the keys and which source overrides which, `values` the notations.
//! It reads one file and nothing else of the machine; it opens no socket and creates no directory.

mod error;
mod layers;
mod values;

pub use error::{ConfigError, Origin};
pub use values::{HostPort, InitialMember};

use layers::{Layers, Value, bad};
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// The longest interval that may be set, in milliseconds.
const DAY_MS: u64 = 86_400_000;

/// A configuration that was checked. `Config::default()` is one member alone, on its default ports.
#[derive(Clone, Debug)]
pub struct Config {
    /// The member's name.
    pub name: String,
    /// The directory that holds everything the member must not lose.
    pub data_dir: PathBuf,
    /// What is logged, and how.
    pub log: LogConfig,
    /// Where clients connect.
    pub client: ClientConfig,
    /// Where other members connect.
    pub peer: PeerConfig,
    /// Which cluster this is a member of.
    pub cluster: ClusterConfig,
    /// Timeouts of consensus.
    pub raft: RaftConfig,
    /// Limits past which requests are refused.
    pub limits: Limits,
    /// When history is compacted without a client asking.
    pub auto_compaction: AutoCompaction,
    /// The pace of a compaction.
    pub compaction: CompactionPace,
    /// Intervals of watches.
    pub watch: WatchConfig,
    /// Intervals of leases.
    pub lease: LeaseConfig,
    /// Sizes and intervals of the log and the database.
    pub storage: StorageConfig,
    /// Threads, and what runs on them.
    pub runtime: RuntimeConfig,
    /// Environment variables that look like those that Kubernetes sets for a service, and were skipped.
    pub skipped_variables: Vec<String>,
}

/// What is logged, and how.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The least important level that is logged.
    pub level: tracing::Level,
    /// What a line looks like.
    pub format: LogFormat,
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text, coloured on a terminal.
    Auto,
    /// Text without colours.
    Text,
    /// One JSON object.
    Json,
}

/// Where clients connect.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The address to listen on.
    pub listen: HostPort,
    /// The address clients are told to use; without one, the address listened on.
    pub advertise: Option<HostPort>,
}

/// Where other members connect.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// The address to listen on.
    pub listen: HostPort,
    /// The address the other members use; without one, the address listened on.
    pub advertise: Option<HostPort>,
    /// TLS between members.
    pub tls: PeerTls,
}

/// TLS between members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerTls {
    /// None was set. One member alone needs none; more refuse to start.
    Unset,
    /// Members do not prove who they are.
    Insecure,
    /// Members prove who they are by certificates of one authority. All are PEM files.
    Files {
        /// The certificate chain.
        cert: PathBuf,
        /// The private key.
        key: PathBuf,
        /// The authority.
        ca: PathBuf,
    },
}

impl PeerTls {
    /// How the members' URLs begin. etcd: `https` where members have certificates.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Files { .. } => "https",
            Self::Unset | Self::Insecure => "http",
        }
    }
}

/// Which cluster this is a member of.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The members of a new cluster, each name and address once, this one among them; empty when it is alone.
    pub initial: Vec<InitialMember>,
    /// Form the cluster, or join it.
    pub state: ClusterState,
    /// Part of the cluster's identity.
    pub token: String,
    /// Refuse membership changes after which the voters may have no quorum.
    pub strict_reconfig_check: bool,
}

/// Whether a member without data forms its cluster or joins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Forms it, with the other initial members.
    New,
    /// Joins it.
    Existing,
}

/// Timeouts of consensus. Relations: `election >= 5 * heartbeat`.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// The interval of a leader's heartbeats.
    pub heartbeat: Duration,
    /// How long a follower waits for a silent leader before it campaigns.
    pub election: Duration,
    /// A write to the log that takes longer is a stall: a leader then hands over leadership.
    pub disk_stall: Duration,
}

/// Limits past which requests are refused.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest request, in bytes.
    pub request_bytes_max: usize,
    /// The most operations in a transaction.
    pub txn_ops_max: usize,
    /// The most concurrent calls on a connection.
    pub concurrent_streams_max: u32,
    /// The most client connections.
    pub connections_max: usize,
    /// The most leases. Members that grant leases at the same time can exceed it a little.
    pub leases_max: usize,
    /// The size of the database, in bytes, past which writes are refused; without one there is no limit.
    pub quota_bytes: Option<u64>,
    /// How many committed entries may wait to be applied before requests are refused.
    pub apply_gap_max: u64,
}

/// When history is compacted without a client asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Never.
    Off,
    /// To the revision that was the newest this long ago.
    Periodic(Duration),
    /// To this many revisions before the newest; above zero.
    Revision(i64),
}

/// The pace of a compaction.
#[derive(Clone, Debug)]
pub struct CompactionPace {
    /// Records removed in one step.
    pub batch: usize,
    /// Between two steps.
    pub pause: Duration,
}

/// Intervals of watches.
#[derive(Clone, Debug)]
pub struct WatchConfig {
    /// How often a watch without events gets a progress notification.
    pub progress_interval: Duration,
}

/// Intervals of leases.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// How often the leader checkpoints the remaining time of long leases.
    pub checkpoint_interval: Duration,
}

/// Sizes and intervals of the log and the database.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    /// One segment of the write-ahead log, in bytes; a multiple of 4096.
    pub wal_segment_bytes: u64,
    /// The database's cache, in bytes.
    pub database_cache_bytes: usize,
    /// The longest that revisions wait until they are committed to the database.
    pub commit_interval: Duration,
    /// The most revisions that wait until they are committed to the database.
    pub commit_records_max: usize,
    /// Entries that the log keeps for members that lack them.
    pub log_keep_entries: u64,
    /// The same in bytes.
    pub log_keep_bytes: u64,
    /// How fast a snapshot is sent, in bytes a second.
    pub snapshot_bytes_per_sec: u64,
}

/// Threads, and what runs on them.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Threads for client connections; without a number, chosen for the machine.
    pub api_arbiters: Option<usize>,
    /// Which actors share a thread.
    pub spread: Spread,
}

/// Which actors share a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// By the number of cores.
    Auto,
    /// Consensus and apply together.
    One,
    /// Each its own.
    Many,
}

/// What overrides the defaults; each field overrides the ones before it.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file to read, if any.
    pub file: Option<PathBuf>,
    /// The environment: names and values. Names that do not begin with `QUORATE_` are ignored.
    pub variables: Vec<(OsString, OsString)>,
    /// Flags that were given: the flag, the key it sets, the text.
    pub flags: Vec<(&'static str, &'static str, String)>,
}

/// Reads `data` as a configuration file: it is one, or the error names what is wrong.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut layers = Layers::defaults();
    let read = layers.lay_file(std::path::Path::new("node.toml"), text);
    if let Err(error) = read.and_then(|()| check(&layers).map(drop)) {
        assert!(!error.to_string().is_empty(), "an error says what is wrong");
    }
}

impl Default for Config {
    fn default() -> Self {
        let checked = check(&Layers::defaults());
        checked.expect("the defaults are part of the program, and a test checks them")
    }
}

impl Config {
    /// Reads all sources and checks the result.
    pub fn load(sources: Sources) -> Result<Self, ConfigError> {
        let mut layers = Layers::defaults();
        if let Some(path) = sources.file {
            match std::fs::read_to_string(&path) {
                Ok(text) => layers.lay_file(&path, &text)?,
                Err(source) => return Err(ConfigError::Unreadable { path, source }),
            }
        }
        let skipped_variables = layers.lay_variables(sources.variables)?;
        for (flag, key, text) in sources.flags {
            layers.lay_flag(flag, key, &text)?;
        }
        Ok(Self {
            skipped_variables,
            ..check(&layers)?
        })
    }

    /// The address clients are told to use, given the one listened on.
    pub fn client_advertise(&self) -> &HostPort {
        self.client
            .advertise
            .as_ref()
            .unwrap_or(&self.client.listen)
    }

    /// The address other members use, given the one listened on.
    pub fn peer_advertise(&self) -> &HostPort {
        self.peer.advertise.as_ref().unwrap_or(&self.peer.listen)
    }
}

/// Checks every key.
fn check(layers: &Layers) -> Result<Config, ConfigError> {
    let name = text(layers, "name");
    if !values::is_name(name) {
        return Err(refuse(
            layers,
            "name",
            "1 to 128 bytes without = , or control characters",
        ));
    }
    let cluster = cluster(layers, name)?;
    let config = Config {
        name: name.to_owned(),
        data_dir: filled(layers, "data_dir")?.into(),
        log: log(layers)?,
        client: ClientConfig {
            listen: listen(layers, "client.listen")?,
            advertise: advertise(layers, "client.advertise")?,
        },
        peer: peer(layers, name, &cluster.initial)?,
        cluster,
        raft: raft(layers)?,
        limits: limits(layers)?,
        auto_compaction: auto_compaction(layers)?,
        compaction: CompactionPace {
            batch: number(layers, "compaction.batch", 1..=100_000)?,
            pause: millis(layers, "compaction.pause_ms", 0..=10_000)?,
        },
        watch: WatchConfig {
            progress_interval: millis(layers, "watch.progress_interval_ms", 100..=DAY_MS)?,
        },
        lease: LeaseConfig {
            checkpoint_interval: millis(layers, "lease.checkpoint_interval_ms", 1_000..=DAY_MS)?,
        },
        storage: storage(layers)?,
        runtime: runtime(layers)?,
        skipped_variables: Vec::new(),
    };
    authenticated_members(&config)?;
    Ok(config)
}

/// Refuses several members without certificates, unless `peer.insecure` is set.
fn authenticated_members(config: &Config) -> Result<(), ConfigError> {
    let alone = config.cluster.initial.len() <= 1 && config.cluster.state == ClusterState::New;
    if alone || config.peer.tls != PeerTls::Unset {
        return Ok(());
    }
    Err(ConfigError::Unauthenticated)
}

fn log(layers: &Layers) -> Result<LogConfig, ConfigError> {
    use tracing::Level;
    let levels = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    let formats = [
        ("auto", LogFormat::Auto),
        ("text", LogFormat::Text),
        ("json", LogFormat::Json),
    ];
    Ok(LogConfig {
        level: choice(layers, "log.level", &levels)?,
        format: choice(layers, "log.format", &formats)?,
    })
}

fn cluster(layers: &Layers, name: &str) -> Result<ClusterConfig, ConfigError> {
    const KEY: &str = "cluster.initial";
    let Value::List(items) = &layers.get(KEY).value else {
        unreachable!("the default of {KEY} is a list, so every value is")
    };
    let mut initial: Vec<InitialMember> = Vec::new();
    for item in items {
        let Some(member) = InitialMember::parse(item) else {
            return Err(refuse(
                layers,
                KEY,
                "a list of name=host:port (name=https://host:port is the same), with hosts that other members can reach",
            ));
        };
        let same = |other: &InitialMember| other.name == member.name || other.peer == member.peer;
        if initial.iter().any(same) {
            return Err(refuse(
                layers,
                KEY,
                "a list that has each name and each address once",
            ));
        }
        initial.push(member);
    }
    if !initial.is_empty() && !initial.iter().any(|member| member.name == name) {
        let allowed = format!("a list that has this member, {name:?}, too");
        return Err(refuse(layers, KEY, &allowed));
    }
    let states = [
        ("new", ClusterState::New),
        ("existing", ClusterState::Existing),
    ];
    Ok(ClusterConfig {
        initial,
        state: choice(layers, "cluster.state", &states)?,
        token: filled(layers, "cluster.token")?.to_owned(),
        strict_reconfig_check: switch(layers, "cluster.strict_reconfig_check"),
    })
}

fn peer(layers: &Layers, name: &str, initial: &[InitialMember]) -> Result<PeerConfig, ConfigError> {
    let own = initial
        .iter()
        .find(|member| member.name == name)
        .map(|member| &member.peer);
    let advertise = match (advertise(layers, "peer.advertise")?, own) {
        (Some(set), Some(own)) if set != *own => {
            let allowed = format!("empty or {own}, which cluster.initial has for {name:?}");
            return Err(refuse(layers, "peer.advertise", &allowed));
        }
        (set, own) => set.or_else(|| own.cloned()),
    };
    let files = ["peer.cert", "peer.key", "peer.ca"].map(|key| (key, text(layers, key)));
    let set = files.iter().find(|(_, path)| !path.is_empty());
    let empty = files.iter().filter(|(_, path)| path.is_empty());
    let empty: Vec<&str> = empty.map(|(key, _)| *key).collect();
    let insecure = switch(layers, "peer.insecure");
    let tls = match (set, empty.is_empty()) {
        (None, _) if insecure => PeerTls::Insecure,
        (None, _) => PeerTls::Unset,
        (Some((key, _)), false) => {
            let allowed = format!("given together with {}", empty.join(" and "));
            return Err(refuse(layers, key, &allowed));
        }
        (Some((key, _)), true) if insecure => {
            let allowed = format!("false, since {key} is set");
            return Err(refuse(layers, "peer.insecure", &allowed));
        }
        (Some(_), true) => {
            let [cert, key, ca] = files.map(|(_, path)| PathBuf::from(path));
            PeerTls::Files { cert, key, ca }
        }
    };
    Ok(PeerConfig {
        listen: listen(layers, "peer.listen")?,
        advertise,
        tls,
    })
}

fn raft(layers: &Layers) -> Result<RaftConfig, ConfigError> {
    let heartbeat = millis(layers, "raft.heartbeat_ms", 1..=10_000)?;
    let election = millis(layers, "raft.election_ms", 1..=50_000)?;
    if election < 5 * heartbeat {
        let least = 5 * heartbeat.as_millis();
        let allowed = format!("at least five times raft.heartbeat_ms: {least} to 50000");
        return Err(refuse(layers, "raft.election_ms", &allowed));
    }
    Ok(RaftConfig {
        disk_stall: millis(layers, "raft.disk_stall_ms", 100..=60_000)?,
        heartbeat,
        election,
    })
}

fn limits(layers: &Layers) -> Result<Limits, ConfigError> {
    let quota = match integer(layers, "limits.quota_bytes") {
        0 => integer(&Layers::defaults(), "limits.quota_bytes"),
        set => set,
    };
    Ok(Limits {
        // The codec decodes at most 64 MiB, and a request grows a little on its way into the log.
        request_bytes_max: number(layers, "limits.request_bytes_max", 1_024..=33_554_432)?,
        txn_ops_max: number(layers, "limits.txn_ops_max", 1..=65_536)?,
        concurrent_streams_max: number(layers, "limits.concurrent_streams_max", 1..=u32::MAX)?,
        connections_max: number(layers, "limits.connections_max", 1..=1_000_000)?,
        leases_max: number(layers, "limits.leases_max", 1..=100_000_000)?,
        quota_bytes: u64::try_from(quota).ok(),
        apply_gap_max: number(layers, "limits.apply_gap_max", 1..=1_000_000)?,
    })
}

fn auto_compaction(layers: &Layers) -> Result<AutoCompaction, ConfigError> {
    const KEY: &str = "auto_compaction.retention";
    let retention = text(layers, KEY);
    if choice(
        layers,
        "auto_compaction.mode",
        &[("periodic", true), ("revision", false)],
    )? {
        match values::retention_period(retention) {
            Some(Duration::ZERO) => Ok(AutoCompaction::Off),
            Some(period) => Ok(AutoCompaction::Periodic(period)),
            None => Err(refuse(
                layers,
                KEY,
                "a duration like \"30m\" or \"1h30m\", or hours",
            )),
        }
    } else {
        match retention.parse() {
            Ok(0) => Ok(AutoCompaction::Off),
            Ok(count @ 1..) => Ok(AutoCompaction::Revision(count)),
            _ => Err(refuse(
                layers,
                KEY,
                "a number of revisions in mode \"revision\"",
            )),
        }
    }
}

fn storage(layers: &Layers) -> Result<StorageConfig, ConfigError> {
    const SEGMENT: &str = "storage.wal_segment_bytes";
    let wal_segment_bytes: u64 = number(layers, SEGMENT, 1 << 20..=1 << 30)?;
    if !wal_segment_bytes.is_multiple_of(4_096) {
        return Err(refuse(layers, SEGMENT, "a multiple of 4096"));
    }
    Ok(StorageConfig {
        wal_segment_bytes,
        database_cache_bytes: number(layers, "storage.database_cache_bytes", 1 << 20..=1 << 40)?,
        commit_interval: millis(layers, "storage.commit_interval_ms", 1..=60_000)?,
        commit_records_max: number(layers, "storage.commit_records_max", 1..=1_000_000)?,
        log_keep_entries: number(layers, "storage.log_keep_entries", 100..=1_000_000_000)?,
        log_keep_bytes: number(layers, "storage.log_keep_bytes", 1 << 20..=1 << 40)?,
        snapshot_bytes_per_sec: number(
            layers,
            "storage.snapshot_bytes_per_sec",
            1 << 16..=1 << 40,
        )?,
    })
}

fn runtime(layers: &Layers) -> Result<RuntimeConfig, ConfigError> {
    let arbiters: usize = number(layers, "runtime.api_arbiters", 0..=256)?;
    let spreads = [
        ("auto", Spread::Auto),
        ("one", Spread::One),
        ("many", Spread::Many),
    ];
    Ok(RuntimeConfig {
        api_arbiters: Some(arbiters).filter(|count| *count > 0),
        spread: choice(layers, "runtime.spread", &spreads)?,
    })
}

/// The error for a key's value as it was set.
fn refuse(layers: &Layers, key: &str, allowed: &str) -> ConfigError {
    let setting = layers.get(key);
    bad(
        setting.origin.clone(),
        key,
        setting.value.to_string(),
        allowed,
    )
}

fn text<'l>(layers: &'l Layers, key: &str) -> &'l str {
    match &layers.get(key).value {
        Value::Text(text) => text,
        other => unreachable!("the default of {key} is a string, so {other} cannot be its value"),
    }
}

fn switch(layers: &Layers, key: &str) -> bool {
    match &layers.get(key).value {
        Value::Switch(on) => *on,
        other => unreachable!("the default of {key} is a switch, so {other} cannot be its value"),
    }
}

fn integer(layers: &Layers, key: &str) -> i64 {
    match &layers.get(key).value {
        Value::Integer(number) => *number,
        other => unreachable!("the default of {key} is a number, so {other} cannot be its value"),
    }
}

fn filled<'l>(layers: &'l Layers, key: &str) -> Result<&'l str, ConfigError> {
    match text(layers, key) {
        "" => Err(refuse(layers, key, "a string that is not empty")),
        text => Ok(text),
    }
}

fn choice<T: Copy>(layers: &Layers, key: &str, choices: &[(&str, T)]) -> Result<T, ConfigError> {
    let written = text(layers, key);
    let found = choices.iter().find(|(name, _)| *name == written);
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        refuse(layers, key, &format!("one of {}", names.join(", ")))
    })
}

/// A number in a range of its own type.
fn number<T>(layers: &Layers, key: &str, range: RangeInclusive<T>) -> Result<T, ConfigError>
where
    T: TryFrom<i64> + PartialOrd + std::fmt::Display,
{
    let found = T::try_from(integer(layers, key)).ok();
    found
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            refuse(
                layers,
                key,
                &format!("from {} to {}", range.start(), range.end()),
            )
        })
}

fn millis(layers: &Layers, key: &str, range: RangeInclusive<u64>) -> Result<Duration, ConfigError> {
    number(layers, key, range).map(Duration::from_millis)
}

fn listen(layers: &Layers, key: &str) -> Result<HostPort, ConfigError> {
    let found = HostPort::parse(text(layers, key));
    found.ok_or_else(|| refuse(layers, key, "HOST:PORT, like 127.0.0.1:2379 or [::1]:2379"))
}

fn advertise(layers: &Layers, key: &str) -> Result<Option<HostPort>, ConfigError> {
    match (text(layers, key), HostPort::parse(text(layers, key))) {
        ("", _) => Ok(None),
        (_, Some(address)) if address.is_reachable() => Ok(Some(address)),
        _ => Err(refuse(
            layers,
            key,
            "empty, or HOST:PORT that others can reach: a port above 0, and not 0.0.0.0 or [::]",
        )),
    }
}

#[cfg(test)]
mod tests;
