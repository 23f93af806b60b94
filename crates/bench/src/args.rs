//! The command line of `quorate bench`, and the checked settings made of it.

use super::{BenchError, tls, users::User};
use clap::{Args, ValueEnum};
use http::HeaderValue;
use rustls::{ClientConfig, pki_types::ServerName};
use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// Decimal digits of a key's number, after the prefix.
pub(super) const KEY_DIGITS: usize = 10;
/// How long a run of `--requests` may take when no `--duration` bounds it.
const REQUESTS_TIME_MAX: Duration = Duration::from_hours(1);
/// Clients that share one connection when `--connections` is not given.
const CLIENTS_PER_CONNECTION: usize = 16;
/// The most connections that are opened when `--connections` is not given.
const CONNECTIONS_DEFAULT_MAX: usize = 64;

/// What load to put on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Write random keys of the key space
    Put,
    /// Read random keys one at a time (filled first)
    Get,
    /// Read --limit keys at a time (filled first)
    Scan,
    /// Compare-and-swap transactions on mod revisions, each client on keys of its own (filled first)
    Cas,
    /// What a Kubernetes API server does: creates, guaranteed updates, lists, gets, deletes, watches, leases
    K8s,
    /// --watchers on one prefix over --streams, while --clients write there; counts delivered events
    WatchFanout,
    /// Write --keys events, then time one watcher from revision 1 until it has them all
    WatchHistory,
    /// Grant leases
    LeaseGrant,
    /// Renew leases, one stream a client
    LeaseKeepalive,
    /// Write random keys while --leases leases with a key each end in the same second
    LeaseExpiry,
    /// Count the keys of the prefix (filled first)
    Count,
    /// Write every key of the key space once
    Fill,
    /// Open --connections, use each once and leave it open; memory per connection with --server-pid
    IdleConnections,
    /// Add root and --user, who may read and write the prefix and the keys of k8s, and turn authentication on
    EnableAuth,
    /// Log in as --user with half of the clients, while the others write random keys
    Login,
    /// Wait until the server answers a linearizable read (at most --duration), and say how long it took
    Wait,
    /// Measure this machine: fdatasync in --dir, and a round trip on loopback
    Machine,
}

/// How the result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Flags of `quorate bench`.
#[derive(Clone, Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags of a command line are given or not"
)]
pub struct BenchArgs {
    /// The load
    #[arg(value_enum)]
    pub workload: Workload,
    /// Servers, separated by commas; connections are spread over them evenly. https:// is TLS, http:// is not; without either it
    /// is TLS if --cacert is given
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:2379")]
    pub endpoints: Vec<String>,
    /// The authorities that sign the servers' certificates (PEM)
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// The certificate that this program shows to servers (PEM)
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// TCP connections (default: one for 16 clients, at most 64)
    #[arg(long)]
    pub connections: Option<usize>,
    /// Clients, each with one request in flight
    #[arg(long, default_value_t = 64)]
    pub clients: usize,
    /// Threads of this program, each with its own share of connections and clients
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Bytes in a value
    #[arg(long, default_value_t = 256)]
    pub value_bytes: usize,
    /// Bytes in a key, prefix included
    #[arg(long, default_value_t = 32)]
    pub key_bytes: usize,
    /// Keys in the key space
    #[arg(long, default_value_t = 10_000)]
    pub keys: u64,
    /// What all keys begin with
    #[arg(long, default_value = "bench/")]
    pub prefix: String,
    /// Seconds to measure (default 10; with --requests, the most it may take)
    #[arg(long)]
    pub duration: Option<f64>,
    /// Stop after this many measured operations
    #[arg(long)]
    pub requests: Option<u64>,
    /// Seconds of load before measuring
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    /// Operations a second over all clients (default: as fast as answers come)
    #[arg(long)]
    pub rate: Option<f64>,
    /// Seed of the choice of keys and operations
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Serializable reads instead of linearizable ones
    #[arg(long)]
    pub serializable: bool,
    /// Keys a scan or a Kubernetes list asks for
    #[arg(long, default_value_t = 500)]
    pub limit: i64,
    /// Watchers of watch-fanout
    #[arg(long, default_value_t = 1_000)]
    pub watchers: usize,
    /// Watch streams of watch-fanout and k8s
    #[arg(long, default_value_t = 16)]
    pub streams: usize,
    /// Each watcher of watch-fanout watches a part of the key space of its own, so an event is for one of them
    #[arg(long)]
    pub distinct: bool,
    /// Further watchers of watch-fanout, of all keys, each on a connection of its own that nobody reads
    #[arg(long, default_value_t = 0)]
    pub stalled: usize,
    /// Leases of lease-expiry
    #[arg(long, default_value_t = 20_000)]
    pub leases: u64,
    /// Seconds from the first grant of lease-expiry to the second in which all leases end
    #[arg(long, default_value_t = 30)]
    pub lease_ttl: u64,
    /// Who makes the calls; the program logs in once, before it measures
    #[arg(long, value_name = "NAME:PASSWORD")]
    pub user: Option<String>,
    /// The key space is filled already: do not fill it
    #[arg(long)]
    pub no_fill: bool,
    /// Server processes, separated by commas, whose CPU time and memory are reported
    #[arg(long, value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    /// Where `machine` writes its file
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// How the result is written to standard output
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// No progress lines on standard error
    #[arg(long)]
    pub quiet: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    /// Whom its certificate must name; `None` without TLS.
    pub(super) tls_name: Option<ServerName<'static>>,
}

/// Checked settings.
///
/// `1 <= threads <= connections`, and every number is within the bounds that [`Settings::check`] names.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) args: BenchArgs,
    pub(super) endpoints: Vec<Endpoint>,
    /// What connections to endpoints with TLS use.
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) connections: usize,
    pub(super) warmup: Duration,
    pub(super) duration: Duration,
    pub(super) user: Option<User>,
    /// What all calls carry.
    pub(super) token: Option<HeaderValue>,
}

impl Settings {
    /// Checks every flag; a bad one is named.
    pub(super) fn check(mut args: BenchArgs) -> Result<Self, BenchError> {
        let key_bytes_min = args.prefix.len() + KEY_DIGITS;
        within("clients", args.clients as u64, 1, 100_000)?;
        within("threads", args.threads as u64, 1, 64)?;
        within("value-bytes", args.value_bytes as u64, 0, 1_572_864)?;
        within(
            "key-bytes",
            args.key_bytes as u64,
            key_bytes_min as u64,
            65_536,
        )?;
        within("keys", args.keys, 1, 9_999_999_999)?;
        within("watchers", args.watchers as u64, 1, 1_000_000)?;
        within("leases", args.leases, 1, 10_000_000)?;
        within("lease-ttl", args.lease_ttl, 2, 86_400)?;
        within("streams", args.streams as u64, 1, 100_000)?;
        within("stalled", args.stalled as u64, 0, 10_000)?;
        if args.distinct {
            within("watchers", args.watchers as u64, 1, args.keys)?;
        }
        within("limit", args.limit.cast_unsigned(), 1, 10_000_000)?;
        within("requests", args.requests.unwrap_or(1), 1, u64::MAX >> 1)?;
        if args.rate.is_some_and(|rate| !(rate > 0.0 && rate <= 1e9)) {
            return Err(BenchError::Argument(
                "--rate must be above 0 and at most 1e9".into(),
            ));
        }
        let connections = args.connections.unwrap_or_else(|| {
            args.clients
                .div_ceil(CLIENTS_PER_CONNECTION)
                .min(CONNECTIONS_DEFAULT_MAX)
        });
        within("connections", connections as u64, 1, 60_000)?;
        args.threads = args.threads.min(connections).min(args.clients);
        let duration = match (args.duration, args.requests) {
            (Some(secs), _) => seconds("duration", secs)?,
            (None, Some(_)) => REQUESTS_TIME_MAX,
            (None, None) => Duration::from_secs(10),
        };
        let warmup = seconds("warmup", args.warmup)?;
        let tls = tls::config(&args)?;
        let endpoints = args
            .endpoints
            .iter()
            .map(|e| resolve(e, tls.is_some()))
            .collect::<Result<_, _>>()?;
        let user = match args.user.as_deref().map(User::parse) {
            None => None,
            Some(Some(user)) => Some(user),
            Some(None) => {
                let text = "--user must be NAME:PASSWORD";
                return Err(BenchError::Argument(text.into()));
            }
        };
        if user.is_none() && matches!(args.workload, Workload::EnableAuth | Workload::Login) {
            let text = "this load needs --user NAME:PASSWORD";
            return Err(BenchError::Argument(text.into()));
        }
        Ok(Self {
            user,
            token: None,
            args,
            endpoints,
            tls,
            connections,
            warmup,
            duration,
        })
    }

    /// The server that connection number `connection` goes to.
    pub(super) fn endpoint(&self, connection: usize) -> &Endpoint {
        &self.endpoints[connection % self.endpoints.len()]
    }

    /// The range of all keys of the key space, as (first, end).
    pub(super) fn all_keys(&self) -> (Vec<u8>, Vec<u8>) {
        let prefix = self.args.prefix.as_bytes();
        (prefix.to_vec(), super::wire::prefix_end(prefix))
    }

    /// Part number `part` of `parts` of the key space, as (first, end); all parts together hold each key once.
    pub(super) fn part_of_keys(&self, part: u64, parts: u64) -> (Vec<u8>, Vec<u8>) {
        let at = |part: u64| {
            let mut key = Vec::new();
            let index = u128::from(self.args.keys) * u128::from(part) / u128::from(parts);
            self.key(u64::try_from(index).unwrap_or(u64::MAX), &mut key);
            key
        };
        (at(part), at(part + 1))
    }

    /// Key number `index` of the key space, written over `key`.
    pub(super) fn key(&self, index: u64, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(self.args.prefix.as_bytes());
        key.resize(self.args.key_bytes, b'0');
        let mut rest = index;
        for digit in key.iter_mut().rev().take(KEY_DIGITS) {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
}

fn within(flag: &str, value: u64, least: u64, most: u64) -> Result<(), BenchError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(BenchError::Argument(format!(
        "--{flag} must be {least} to {most}, not {value}"
    )))
}

fn seconds(flag: &str, secs: f64) -> Result<Duration, BenchError> {
    let bounded = Duration::try_from_secs_f64(secs)
        .ok()
        .filter(|d| *d <= REQUESTS_TIME_MAX * 24);
    bounded.ok_or_else(|| BenchError::Argument(format!("--{flag} {secs} is no time up to a day")))
}

fn resolve(endpoint: &str, can_encrypt: bool) -> Result<Endpoint, BenchError> {
    let bad = |why: &str| BenchError::Argument(format!("--endpoints {endpoint}: {why}"));
    let (encrypted, bare) = match endpoint.split_once("://") {
        Some(("https", _)) if !can_encrypt => return Err(bad("https:// needs --cacert FILE")),
        Some(("https", bare)) => (true, bare),
        Some(("http", bare)) => (false, bare),
        Some(_) => {
            return Err(bad(
                "must be HOST:PORT, http://HOST:PORT or https://HOST:PORT",
            ));
        }
        None => (can_encrypt, endpoint),
    };
    let bare = bare.trim_end_matches('/');
    let mut found = bare
        .to_socket_addrs()
        .map_err(|error| bad(&error.to_string()))?;
    let address = found.next().ok_or_else(|| bad("no address"))?;
    let host = bare.rsplit_once(':').map_or(bare, |(host, _)| host);
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let tls_name = encrypted
        .then(|| ServerName::try_from(host))
        .transpose()
        .map_err(|_| bad("no certificate can be for this host"))?;
    Ok(Endpoint { address, tls_name })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    /// Settings from a command line.
    pub(crate) fn settings(line: &[&str]) -> Result<Settings, BenchError> {
        let line = Line::try_parse_from(std::iter::once(&"bench").chain(line)).unwrap();
        Settings::check(line.args)
    }

    #[test]
    fn defaults_suit_a_short_run_against_a_local_server() {
        let settings = settings(&["put"]).unwrap();
        let expected = Endpoint {
            address: "127.0.0.1:2379".parse().unwrap(),
            tls_name: None,
        };
        assert_eq!(settings.endpoints, [expected], "etcd's port");
        assert_eq!(settings.connections, 4, "64 clients share four connections");
        assert_eq!(
            settings.duration,
            Duration::from_secs(10),
            "default duration"
        );
    }

    #[test]
    fn endpoints_take_turns() {
        let settings = settings(&["put", "--endpoints", "http://127.0.0.1:1,127.0.0.1:2"]).unwrap();
        let ports: Vec<u16> = (0..4)
            .map(|c| settings.endpoint(c).address.port())
            .collect();
        assert_eq!(ports, [1, 2, 1, 2], "spread evenly");
    }

    #[test]
    fn a_bad_flag_is_named() {
        for (line, named) in [
            (&["put", "--clients", "0"][..], "--clients"),
            (&["put", "--key-bytes", "5"], "--key-bytes"),
            (&["put", "--rate", "0"], "--rate"),
            (&["put", "--rate", "NaN"], "--rate"),
            (&["put", "--user", "name"], "--user"),
            (&["login"], "--user"),
            (&["enable-auth"], "--user"),
            (&["put", "--warmup=-1"], "--warmup"),
            (&["put", "--duration", "1e300"], "--duration"),
            (&["put", "--endpoints", "nowhere"], "--endpoints nowhere"),
            (
                &["put", "--endpoints", "ftp://127.0.0.1:1"],
                "http://HOST:PORT",
            ),
            (&["put", "--endpoints", "https://127.0.0.1:1"], "--cacert"),
            (&["put", "--cert", "x"], "--cacert"),
            (&["put", "--cacert", "missing.pem"], "--cacert missing.pem"),
        ] {
            let error = settings(line).unwrap_err().to_string();
            assert!(error.contains(named), "{line:?} gives {error}");
        }
    }

    #[test]
    fn parts_hold_each_key_once() {
        let settings = settings(&["put", "--keys", "10"]).unwrap();
        let parts: Vec<_> = (0..3).map(|part| settings.part_of_keys(part, 3)).collect();
        let mut key = Vec::new();
        for index in 0..10 {
            settings.key(index, &mut key);
            let inside = parts.iter().filter(|(from, to)| *from <= key && key < *to);
            assert_eq!(inside.count(), 1, "key {index} in {parts:?}");
        }
    }

    #[test]
    fn keys_sort_by_number_and_have_the_asked_length() {
        let settings = settings(&["put", "--key-bytes", "24"]).unwrap();
        let mut key = Vec::new();
        settings.key(12_345, &mut key);
        assert_eq!(key, b"bench/000000000000012345", "prefix, padding, digits");
        assert_eq!(key.len(), 24, "--key-bytes");
        assert!(
            key.starts_with(&settings.all_keys().0),
            "inside the range of all keys"
        );
        assert!(key < settings.all_keys().1, "inside the range of all keys");
    }
}
