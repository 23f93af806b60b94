//! Configuration: the file, the environment and the flags, to a checked [`Config`].
//!
//! `config/node.toml` describes every key and holds its default. [`Sources`] names what overrides the defaults; [`Config::load`]
//! checks the result once, so no other module has to. An error says where the value was set, the key, the value, and what is
//! allowed.
//!
//! This file has the allowed values of each key (`tls` those of TLS), `layers` the keys and which source overrides which, `read`
//! reads one of its kind, `values` has the notations.
//! It reads one file and no other state of the machine; it opens no socket and creates no directory.

mod audit;
mod encryption;
mod error;
mod layers;
mod read;
mod tls;
mod tokens;
mod values;

pub use audit::{AuditConfig, AuditLevel, AuditOutput};
pub use encryption::{EncryptionAlgorithm, EncryptionConfig, EncryptionKey};
pub use error::{ConfigError, Origin};
#[cfg(test)]
pub(crate) use tls::SUITES;
pub use tls::{AllowedNames, ClientCertificates, ClientTls, ServerCertificate, TlsProtocol};
pub use tokens::{JwtConfig, SIGN_METHODS, TokenKind};
pub use values::{ClientAddress, HostPort, InitialMember};

use layers::Layers;
use read::{choice, filled, integer, list, millis, number, refuse, switch, text};
use std::{ffi::OsString, path::PathBuf, time::Duration};

/// The longest interval that may be set, in milliseconds.
const DAY_MS: u64 = 86_400_000;

/// A configuration that was checked. `Config::default()` is one member alone, on its default ports.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    /// The directory that holds everything the member must not lose.
    pub data_dir: PathBuf,
    /// What is logged, and how.
    pub log: LogConfig,
    pub client: ClientConfig,
    /// Where other members connect.
    pub peer: PeerConfig,
    /// Which cluster this is a member of.
    pub cluster: ClusterConfig,
    pub raft: RaftConfig,
    /// Limits past which requests are refused.
    pub limits: Limits,
    /// When history is compacted without a client asking.
    pub auto_compaction: AutoCompaction,
    /// The pace of a compaction.
    pub compaction: CompactionPace,
    pub watch: WatchConfig,
    pub lease: LeaseConfig,
    pub auth: AuthConfig,
    pub audit: AuditConfig,
    /// Encryption of the data directory.
    pub encryption: EncryptionConfig,
    /// Sizes and intervals of the log and the database.
    pub storage: StorageConfig,
    /// Threads, and what runs on them.
    pub runtime: RuntimeConfig,
    /// A private key that every user of the machine may read stops the start.
    pub refuse_readable_keys: bool,
    /// Cipher suites that were set and cannot be used.
    pub weak_suites: Vec<String>,
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

#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The addresses to listen on, at least one.
    pub listen: Vec<ClientAddress>,
    /// The addresses that clients get to connect to; without any, those listened on.
    pub advertise: Vec<ClientAddress>,
    /// TLS; `None` if no address uses it.
    pub tls: Option<ClientTls>,
}

/// Where other members connect.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// The address to listen on.
    pub listen: HostPort,
    /// The address the other members use; without one, the address listened on.
    pub advertise: Option<HostPort>,
    pub tls: PeerTls,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerTls {
    /// None was set. One member alone needs none; more refuse to start.
    Unset,
    /// Members do not prove who they are.
    Insecure,
    /// Members prove who they are by certificates of one authority. All are PEM files.
    Files {
        cert: PathBuf,
        key: PathBuf,
        /// The authority; several stand one after the other.
        ca: PathBuf,
        /// Certificates that were revoked (PEM or DER).
        crl: Option<PathBuf>,
        /// Which of the certificates are taken.
        allowed: AllowedNames,
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

#[derive(Clone, Debug)]
pub struct WatchConfig {
    /// How often a watch without events gets a progress notification.
    pub progress_interval: Duration,
}

#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// How often the leader checkpoints the remaining time of long leases.
    pub checkpoint_interval: Duration,
}

#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// How long a token is good after its last use.
    pub token_ttl: Duration,
    /// The bcrypt cost of new passwords.
    pub bcrypt_cost: u32,
    /// What Authenticate answers with.
    pub token: TokenKind,
    /// How many wrong passwords are free, of a user from an address; without a number there is no bound.
    pub failed_logins_max: Option<u32>,
}

/// Sizes and intervals of the log and the database.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    /// One segment of the write-ahead log, in bytes; a multiple of 4096.
    pub wal_segment_bytes: u64,
    /// The database's cache of pages, in bytes.
    pub database_cache_bytes: usize,
    /// The cache of single records, in bytes.
    pub record_cache_bytes: usize,
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

    /// The addresses that clients get to connect to, given those listened on: sockets of this machine only where there is nothing
    /// else.
    pub fn client_advertise(&self) -> Vec<ClientAddress> {
        let ClientConfig {
            listen, advertise, ..
        } = &self.client;
        if !advertise.is_empty() {
            return advertise.clone();
        }
        let ports = listen.iter().filter(|address| address.tcp().is_some());
        let ports: Vec<_> = ports.cloned().collect();
        if ports.is_empty() {
            listen.clone()
        } else {
            ports
        }
    }

    /// The address other members use, given the one listened on.
    pub fn peer_advertise(&self) -> &HostPort {
        self.peer.advertise.as_ref().unwrap_or(&self.peer.listen)
    }
}

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
    let tls = tls::client(layers)?;
    let config = Config {
        name: name.to_owned(),
        data_dir: filled(layers, "data_dir")?.into(),
        log: log(layers)?,
        client: ClientConfig {
            listen: client_listen(layers, tls.is_some())?,
            advertise: client_addresses(
                layers,
                "client.advertise",
                tls.is_some(),
                |address| address.tcp().is_none_or(HostPort::is_reachable),
                "empty, or a list of HOST:PORT that clients can reach (a port above 0, and not 0.0.0.0 or [::]) and unix:///PATH",
            )?,
            tls,
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
        auth: AuthConfig {
            token_ttl: Duration::from_secs(number(layers, "auth.token_ttl_secs", 1..=86_400)?),
            bcrypt_cost: number(layers, "auth.bcrypt_cost", 4..=31)?,
            token: token_kind(layers)?,
            failed_logins_max: Some(number(layers, "auth.failed_logins_max", 0..=1_000)?)
                .filter(|count| *count > 0),
        },
        audit: audit::read(layers)?,
        encryption: encryption::read(layers)?,
        storage: storage(layers)?,
        runtime: runtime(layers)?,
        refuse_readable_keys: switch(layers, "tls.refuse_readable_keys"),
        weak_suites: tls::weak_suites(layers),
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

fn token_kind(layers: &Layers) -> Result<TokenKind, ConfigError> {
    let written = tokens::Written {
        token: text(layers, tokens::KEY),
        sign_method: text(layers, tokens::SIGN_METHOD),
        private_key: text(layers, tokens::PRIVATE_KEY),
        public_keys: list(layers, tokens::PUBLIC_KEYS),
        ttl_secs: number(layers, tokens::TTL, 1..=tokens::TTL_SECS_MAX)?,
    };
    let kind = written.kind();
    kind.map_err(|unusable| refuse(layers, unusable.key, &unusable.allowed))
}

fn cluster(layers: &Layers, name: &str) -> Result<ClusterConfig, ConfigError> {
    const KEY: &str = "cluster.initial";
    let mut initial: Vec<InitialMember> = Vec::new();
    for item in list(layers, KEY) {
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
            PeerTls::Files {
                cert,
                key,
                ca,
                crl: tls::optional(text(layers, "peer.crl")),
                allowed: tls::allowed_names(layers, "peer.allowed_cn", "peer.allowed_hosts")?,
            }
        }
    };
    let checks = [
        !text(layers, "peer.crl").is_empty(),
        !list(layers, "peer.allowed_cn").is_empty(),
        !list(layers, "peer.allowed_hosts").is_empty(),
    ];
    let keys = ["peer.crl", "peer.allowed_cn", "peer.allowed_hosts"];
    if let (false, Some((key, _))) = (
        matches!(tls, PeerTls::Files { .. }),
        keys.iter().zip(checks).find(|(_, set)| *set),
    ) {
        return Err(refuse(
            layers,
            key,
            "given together with peer.cert, peer.key and peer.ca",
        ));
    }
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
        record_cache_bytes: number(layers, "storage.record_cache_bytes", 0..=1 << 40)?,
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

fn listen(layers: &Layers, key: &str) -> Result<HostPort, ConfigError> {
    // An address that other members cannot use is of no use here.
    let found = HostPort::parse(text(layers, key)).filter(|address| !address.has_scope());
    found.ok_or_else(|| refuse(layers, key, "HOST:PORT, like 127.0.0.1:2380 or [::1]:2380"))
}

/// Where clients connect. `0.0.0.0` together with `[::]`, and sockets of several kinds, are fine.
fn client_listen(layers: &Layers, tls: bool) -> Result<Vec<ClientAddress>, ConfigError> {
    const KEY: &str = "client.listen";
    const ALLOWED: &str = "a list of HOST:PORT, like 127.0.0.1:2379, https://10.0.0.1:2379 or [::1]:2379, and unix:///PATH";
    let found = client_addresses(layers, KEY, tls, |_| true, ALLOWED)?;
    if found.is_empty() {
        return Err(refuse(layers, KEY, ALLOWED));
    }
    Ok(found)
}

/// The addresses in a list, each once, as etcd takes one that is given twice.
fn client_addresses(
    layers: &Layers,
    key: &str,
    tls: bool,
    fits: impl Fn(&ClientAddress) -> bool,
    allowed: &str,
) -> Result<Vec<ClientAddress>, ConfigError> {
    let mut found = Vec::new();
    for item in list(layers, key) {
        let address = ClientAddress::parse(item).filter(&fits);
        let address = address.ok_or_else(|| refuse(layers, key, allowed))?;
        found.push((address, item.contains("://")));
    }
    tls::with_schemes(layers, key, found, tls)
}

fn advertise(layers: &Layers, key: &str) -> Result<Option<HostPort>, ConfigError> {
    match (text(layers, key), HostPort::parse(text(layers, key))) {
        ("", _) => Ok(None),
        (_, Some(address)) if address.is_reachable() && !address.has_scope() => Ok(Some(address)),
        _ => Err(refuse(
            layers,
            key,
            "empty, or HOST:PORT that others can reach: a port above 0, not 0.0.0.0 or [::], without an interface",
        )),
    }
}

#[cfg(test)]
mod tests;
