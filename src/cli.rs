//! The command line: which command, and which configuration keys its flags set.
//!
//! Flags are not checked here: their text overrides the environment and the file, and is checked together with them, so that a
//! bad value is reported in one way wherever it was set.

use crate::config::{Config, ConfigError, EncryptionKey, Sources};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A strongly consistent key-value store for coordination that speaks the etcd v3 API.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, args_conflicts_with_subcommands = true)]
#[command(args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    server: ServerArgs,
}

/// What `quorate` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a member (what `quorate` alone does, too)
    Server(Box<ServerArgs>),
    /// Put load on a server of the etcd v3 API and measure it
    #[cfg(feature = "bench")]
    Bench(Box<quorate_bench::BenchArgs>),
    /// Run several members on this machine, to try things out
    Cluster(crate::local_cluster::ClusterArgs),
    /// Make certificates, for members and for clients, and lists of revoked ones
    Cert(crate::net::cert::CertArgs),
    /// Save a snapshot of a running member in etcd's format, or look at such a file
    Snapshot(Box<crate::snapshot_command::SnapshotArgs>),
    /// A majority is lost for good: make one stopped member's data a new cluster of its own
    Recover(RecoverArgs),
    /// Make a member's data directory out of a snapshot of etcd or Quorate
    Restore(Box<RestoreArgs>),
    /// Make a member's data directory out of that of a stopped etcd
    Import(Box<ImportArgs>),
}

/// `quorate recover`: neither directory may be in use.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The survivor's data directory; it stays as it is
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The data directory of the new cluster's only member; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    pub into: PathBuf,
    /// The file of the key that the survivor's data directory is encrypted with
    #[arg(long, value_name = "FILE", conflicts_with = "encryption_key_command")]
    encryption_key_file: Option<PathBuf>,
    /// The command that prints the key that the survivor's data directory is encrypted with
    #[arg(long, value_name = "COMMAND")]
    encryption_key_command: Option<String>,
}

impl RecoverArgs {
    /// Where the key of an encrypted data directory is: what the flags say, or else what the variables of a server say.
    pub fn key(&self) -> Result<Option<EncryptionKey>, ConfigError> {
        if let Some(file) = &self.encryption_key_file {
            return Ok(Some(EncryptionKey::File(file.clone())));
        }
        if let Some(command) = &self.encryption_key_command {
            return Ok(Some(EncryptionKey::Command(command.clone())));
        }
        let names = [
            "QUORATE_ENCRYPTION_KEY_FILE",
            "QUORATE_ENCRYPTION_KEY_COMMAND",
        ];
        let variables = std::env::vars_os().filter(|(name, _)| names.iter().any(|of| name == of));
        let config = Config::load(Sources {
            variables: variables.collect(),
            ..Sources::default()
        })?;
        Ok(config.encryption.key)
    }
}

/// `quorate restore`: the member's settings are those of its server, from the same file and environment.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The snapshot, as `etcdctl snapshot save` writes it; it stays as it is
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub member: NewMemberArgs,
    /// Take a file without its SHA-256, such as a copy of member/snap/db
    #[arg(long)]
    pub skip_hash_check: bool,
    /// Raise the revision by so much, so that clients which know later ones than the snapshot never see it fall
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub bump_revision: Option<u64>,
    /// The history before the raised revision counts as compacted: watches from there end with an error
    #[arg(long, requires = "bump_revision")]
    pub mark_compacted: bool,
    /// Take the snapshot as right although the alarm CORRUPT was raised
    #[arg(long)]
    pub ignore_corrupt_alarm: bool,
}

/// `quorate import`: the member's settings are those of its server, from the same file and environment.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct ImportArgs {
    /// The etcd's data directory; it stays as it is
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The etcd's log, if it was started with --wal-dir
    #[arg(long, value_name = "DIR")]
    pub wal_dir: Option<PathBuf>,
    #[command(flatten)]
    pub member: NewMemberArgs,
    /// Take the entries at the log's end, too, that may not have been committed
    #[arg(long, conflicts_with = "drop_uncommitted")]
    pub keep_uncommitted: bool,
    /// Leave them out
    #[arg(long)]
    pub drop_uncommitted: bool,
    /// While the alarm NOSPACE was raised, the etcd carried out puts in nested transactions: up to 3.5.32, 3.6.13 and 3.7.0
    #[arg(long, conflicts_with = "nested_puts_refused")]
    pub nested_puts_passed: bool,
    /// It refused them: later versions
    #[arg(long)]
    pub nested_puts_refused: bool,
    /// The etcd's shortest time to live of a lease: one and a half times its election timeout
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 2,
        value_parser = clap::value_parser!(i64).range(1..)
    )]
    pub lease_ttl_min: i64,
    /// Take the data as right although the alarm CORRUPT was raised
    #[arg(long)]
    pub ignore_corrupt_alarm: bool,
}

/// The member whose data directory is made.
#[derive(Debug, Args)]
pub struct NewMemberArgs {
    /// Configuration in TOML, the same as that of the member's server
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The member's name
    #[arg(long)]
    name: Option<String>,
    /// The data directory to make; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// The members of the restored cluster
    #[arg(long, value_name = "NAME=HOST:PORT,…")]
    initial_cluster: Option<String>,
    /// The address that other members use
    #[arg(long, value_name = "HOST:PORT|http://HOST:PORT")]
    initial_advertise_peer_urls: Option<String>,
    /// Part of the identity of the restored cluster
    #[arg(long, value_name = "TEXT")]
    initial_cluster_token: Option<String>,
    /// The member's certificate for connections to other members (PEM)
    #[arg(long, value_name = "FILE")]
    peer_cert: Option<String>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE")]
    peer_key: Option<String>,
    /// The authority that signs the members' certificates (PEM)
    #[arg(long, value_name = "FILE")]
    peer_ca: Option<String>,
    /// Members do not prove who they are to each other
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    peer_insecure: Option<String>,
    /// What the command for the first member of the cluster printed; leave it out for the first
    #[arg(long, value_name = "HEX")]
    pub restore_id: Option<String>,
}

impl NewMemberArgs {
    /// The settings of the member's server, with what the flags say.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let server = ServerArgs {
            config: self.config.clone(),
            name: self.name.clone(),
            data_dir: self.data_dir.clone(),
            initial_cluster: self.initial_cluster.clone(),
            initial_cluster_token: self.initial_cluster_token.clone(),
            peer_advertise: self
                .initial_advertise_peer_urls
                .as_deref()
                .map(without_scheme),
            peer_cert: self.peer_cert.clone(),
            peer_key: self.peer_key.clone(),
            peer_ca: self.peer_ca.clone(),
            peer_insecure: self.peer_insecure.clone(),
            ..ServerArgs::default()
        };
        server.config()
    }
}

/// An address, of which etcd's flags name a URL.
fn without_scheme(url: &str) -> String {
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme));
    let address = rest.map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    address.unwrap_or(url).to_owned()
}

/// Flags of `quorate server`. Each overrides the environment, which overrides the file; of one that is given twice, the
/// last counts, so that a script can append to a command.
#[derive(Clone, Debug, Default, Args)]
#[command(args_override_self = true)]
pub struct ServerArgs {
    /// Configuration in TOML; config/node.toml describes every key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The member's name
    #[arg(long)]
    name: Option<String>,
    /// The directory that holds the data
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where clients connect; several addresses are separated by commas
    #[arg(long, value_name = "HOST:PORT|https://HOST:PORT|unix:///PATH,…")]
    client_listen: Option<String>,
    /// The addresses that this member announces to clients
    #[arg(long, value_name = "HOST:PORT|unix:///PATH,…")]
    client_advertise: Option<String>,
    /// The certificate for clients (PEM)
    #[arg(long, value_name = "FILE")]
    client_cert: Option<String>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE")]
    client_key: Option<String>,
    /// The authority that signs clients' certificates (PEM)
    #[arg(long, value_name = "FILE")]
    client_ca: Option<String>,
    /// The clients' certificates that were revoked (PEM or DER)
    #[arg(long, value_name = "FILE")]
    client_crl: Option<String>,
    /// Take only clients' certificates with one of these common names
    #[arg(long, value_name = "NAME,…")]
    client_allowed_cn: Option<String>,
    /// Take only clients' certificates that are valid for one of these hosts
    #[arg(long, value_name = "HOST,…")]
    client_allowed_hosts: Option<String>,
    /// Whether a client without a certificate is refused
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    client_require_cert: Option<String>,
    /// Encrypt connections of clients with a certificate that this member makes
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    client_auto_tls: Option<String>,
    /// Where other members connect
    #[arg(long, value_name = "HOST:PORT")]
    peer_listen: Option<String>,
    /// The address that other members use
    #[arg(long, value_name = "HOST:PORT")]
    peer_advertise: Option<String>,
    /// The member's certificate for connections to other members (PEM)
    #[arg(long, value_name = "FILE")]
    peer_cert: Option<String>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE")]
    peer_key: Option<String>,
    /// The authority that signs the members' certificates (PEM)
    #[arg(long, value_name = "FILE")]
    peer_ca: Option<String>,
    /// The members' certificates that were revoked (PEM or DER)
    #[arg(long, value_name = "FILE")]
    peer_crl: Option<String>,
    /// Take only members' certificates with one of these common names
    #[arg(long, value_name = "NAME,…")]
    peer_allowed_cn: Option<String>,
    /// Take only members' certificates that are valid for one of these hosts
    #[arg(long, value_name = "HOST,…")]
    peer_allowed_hosts: Option<String>,
    /// Members do not prove who they are to each other
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    peer_insecure: Option<String>,
    #[command(flatten)]
    security: SecurityArgs,
    /// The members of a new cluster
    #[arg(long, value_name = "NAME=HOST:PORT,…")]
    initial_cluster: Option<String>,
    /// new: form the cluster; existing: join it
    #[arg(long, value_name = "new|existing")]
    initial_cluster_state: Option<String>,
    /// Part of the identity of a new cluster
    #[arg(long, value_name = "TEXT")]
    initial_cluster_token: Option<String>,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// auto, text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// The process with which this one ends: `quorate cluster` names itself
    #[arg(long, value_name = "PID", hide = true)]
    pub parent: Option<i32>,
}

/// Flags of `quorate server` about TLS, authentication and the audit log.
#[derive(Clone, Debug, Default, Args)]
struct SecurityArgs {
    /// While authentication is on, the name in a client's certificate is its user
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    client_cert_users: Option<String>,
    /// How many days the certificate is valid that this member makes
    #[arg(long, value_name = "DAYS")]
    client_auto_tls_days: Option<String>,
    /// The oldest version of TLS that clients may use
    #[arg(long, value_name = "1.2|1.3")]
    tls_min_version: Option<String>,
    /// The newest one
    #[arg(long, value_name = "1.2|1.3")]
    tls_max_version: Option<String>,
    /// The cipher suites for clients, by IANA's names
    #[arg(long, value_name = "NAME,…")]
    tls_cipher_suites: Option<String>,
    /// A private key that every user of this machine may read stops the start
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    tls_refuse_readable_keys: Option<String>,
    /// What a login answers with: simple, jwt, or jwt with etcd's options
    #[arg(long, value_name = "simple|jwt|jwt,OPTION=VALUE,…")]
    auth_token: Option<String>,
    /// How long a simple token is good after its last use
    #[arg(long, value_name = "SECONDS")]
    auth_token_ttl_secs: Option<String>,
    /// How slow the hash of a new password is
    #[arg(long, value_name = "4-31")]
    auth_bcrypt_cost: Option<String>,
    /// How a JWT is signed
    #[arg(long, value_name = "RS256|ES256|…")]
    auth_jwt_sign_method: Option<String>,
    /// The key that signs JWT
    #[arg(long, value_name = "FILE")]
    auth_jwt_private_key: Option<String>,
    /// Further keys whose JWT are good
    #[arg(long, value_name = "FILE,…")]
    auth_jwt_public_keys: Option<String>,
    /// How long a JWT is good
    #[arg(long, value_name = "SECONDS")]
    auth_jwt_ttl_secs: Option<String>,
    /// How many wrong passwords are free, of a user from an address; 0 for no bound
    #[arg(long, value_name = "NUMBER")]
    auth_failed_logins_max: Option<String>,
    /// Where the audit log goes
    #[arg(long, value_name = "stderr|stdout|file:PATH")]
    audit_output: Option<String>,
    /// What is in it
    #[arg(long, value_name = "auth|writes|all")]
    audit_level: Option<String>,
    /// The longest a file of it becomes
    #[arg(long, value_name = "BYTES")]
    audit_file_bytes_max: Option<String>,
    /// How many files of it there are
    #[arg(long, value_name = "NUMBER")]
    audit_files_max: Option<String>,
}

impl SecurityArgs {
    fn flags(self) -> [(&'static str, &'static str, Option<String>); 18] {
        [
            (
                "--client-cert-users",
                "client.cert_users",
                self.client_cert_users,
            ),
            (
                "--client-auto-tls-days",
                "client.auto_tls_days",
                self.client_auto_tls_days,
            ),
            ("--tls-min-version", "tls.min_version", self.tls_min_version),
            ("--tls-max-version", "tls.max_version", self.tls_max_version),
            (
                "--tls-cipher-suites",
                "tls.cipher_suites",
                self.tls_cipher_suites,
            ),
            (
                "--tls-refuse-readable-keys",
                "tls.refuse_readable_keys",
                self.tls_refuse_readable_keys,
            ),
            ("--auth-token", "auth.token", self.auth_token),
            (
                "--auth-token-ttl-secs",
                "auth.token_ttl_secs",
                self.auth_token_ttl_secs,
            ),
            (
                "--auth-bcrypt-cost",
                "auth.bcrypt_cost",
                self.auth_bcrypt_cost,
            ),
            (
                "--auth-jwt-sign-method",
                "auth.jwt_sign_method",
                self.auth_jwt_sign_method,
            ),
            (
                "--auth-jwt-private-key",
                "auth.jwt_private_key",
                self.auth_jwt_private_key,
            ),
            (
                "--auth-jwt-public-keys",
                "auth.jwt_public_keys",
                self.auth_jwt_public_keys,
            ),
            (
                "--auth-jwt-ttl-secs",
                "auth.jwt_ttl_secs",
                self.auth_jwt_ttl_secs,
            ),
            (
                "--auth-failed-logins-max",
                "auth.failed_logins_max",
                self.auth_failed_logins_max,
            ),
            ("--audit-output", "audit.output", self.audit_output),
            ("--audit-level", "audit.level", self.audit_level),
            (
                "--audit-file-bytes-max",
                "audit.file_bytes_max",
                self.audit_file_bytes_max,
            ),
            ("--audit-files-max", "audit.files_max", self.audit_files_max),
        ]
    }
}

impl Cli {
    /// The command asked for; running a member if none is named.
    pub fn asked(self) -> Command {
        self.command
            .unwrap_or_else(|| Command::Server(Box::new(self.server)))
    }
}

impl ServerArgs {
    /// Reads file and environment, overrides them by the flags, and checks the result.
    pub fn config(self) -> Result<Config, ConfigError> {
        let file = self.config.clone();
        let variables = std::env::vars_os().collect();
        Config::load(Sources {
            file,
            variables,
            flags: self.flags(),
        })
    }

    /// The flags that were given, and the keys they set.
    fn flags(self) -> Vec<(&'static str, &'static str, String)> {
        let all = [
            ("--name", "name", self.name),
            ("--data-dir", "data_dir", self.data_dir),
            ("--client-listen", "client.listen", self.client_listen),
            (
                "--client-advertise",
                "client.advertise",
                self.client_advertise,
            ),
            ("--client-cert", "client.cert", self.client_cert),
            ("--client-key", "client.key", self.client_key),
            ("--client-ca", "client.ca", self.client_ca),
            ("--client-crl", "client.crl", self.client_crl),
            (
                "--client-allowed-cn",
                "client.allowed_cn",
                self.client_allowed_cn,
            ),
            (
                "--client-allowed-hosts",
                "client.allowed_hosts",
                self.client_allowed_hosts,
            ),
            (
                "--client-require-cert",
                "client.require_cert",
                self.client_require_cert,
            ),
            ("--client-auto-tls", "client.auto_tls", self.client_auto_tls),
            ("--peer-listen", "peer.listen", self.peer_listen),
            ("--peer-advertise", "peer.advertise", self.peer_advertise),
            ("--peer-cert", "peer.cert", self.peer_cert),
            ("--peer-key", "peer.key", self.peer_key),
            ("--peer-ca", "peer.ca", self.peer_ca),
            ("--peer-crl", "peer.crl", self.peer_crl),
            ("--peer-allowed-cn", "peer.allowed_cn", self.peer_allowed_cn),
            (
                "--peer-allowed-hosts",
                "peer.allowed_hosts",
                self.peer_allowed_hosts,
            ),
            ("--peer-insecure", "peer.insecure", self.peer_insecure),
            ("--initial-cluster", "cluster.initial", self.initial_cluster),
            (
                "--initial-cluster-state",
                "cluster.state",
                self.initial_cluster_state,
            ),
            (
                "--initial-cluster-token",
                "cluster.token",
                self.initial_cluster_token,
            ),
            ("--log-level", "log.level", self.log_level),
            ("--log-format", "log.format", self.log_format),
        ];
        let given = all.into_iter().chain(self.security.flags());
        given
            .filter_map(|(flag, key, text)| Some((flag, key, text?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn flags(line: &str) -> Vec<(&'static str, &'static str, String)> {
        let asked = Cli::try_parse_from(line.split(' ')).unwrap().asked();
        let Command::Server(args) = asked else {
            panic!("{line} runs a member")
        };
        args.flags()
    }

    #[test]
    fn the_server_is_what_runs_without_a_command() {
        let expected = vec![("--name", "name", "n1".to_owned())];
        assert_eq!(flags("quorate --name n1"), expected);
        assert_eq!(flags("quorate server --name n1"), expected);
        assert_eq!(flags("quorate --name n0 --name n1"), expected);
        assert_eq!(flags("quorate server --name n0 --name n1"), expected);
        assert!(flags("quorate").is_empty(), "flags out of nowhere");
    }

    #[test]
    fn a_restore_takes_the_flags_of_etcdutl() {
        let line = "quorate restore a.db --name n1 --data-dir d --initial-cluster n1=http://a:1,n2=http://b:1 \
                    --initial-advertise-peer-urls http://a:1/ --initial-cluster-token t --peer-insecure --skip-hash-check \
                    --bump-revision 5 --mark-compacted --restore-id a1";
        let words = line.split_whitespace();
        let Command::Restore(args) = Cli::try_parse_from(words).unwrap().asked() else {
            panic!("{line} restores")
        };
        let config = args.member.config().unwrap();
        assert_eq!(
            (config.name.as_str(), config.cluster.token.as_str()),
            ("n1", "t")
        );
        assert_eq!(config.peer_advertise().to_string(), "a:1");
        assert_eq!(config.cluster.initial.len(), 2);
        assert_eq!((args.bump_revision, args.mark_compacted), (Some(5), true));
        assert_eq!(args.member.restore_id.as_deref(), Some("a1"));
        for refused in ["quorate restore", "quorate restore a --mark-compacted"] {
            assert!(
                Cli::try_parse_from(refused.split(' ')).is_err(),
                "{refused}"
            );
        }
    }

    #[test]
    fn an_import_takes_the_flags_of_a_restore_and_the_answers_to_its_questions() {
        let parse = |line: &str| {
            let args = Cli::try_parse_from(line.split(' ')).map(Cli::asked);
            match args {
                Ok(Command::Import(args)) => Ok(args),
                Ok(other) => panic!("{line}: {other:?}"),
                Err(error) => Err(error),
            }
        };
        let args = parse("quorate import dir --name n1 --data-dir d --keep-uncommitted").unwrap();
        assert_eq!(args.directory, PathBuf::from("dir"));
        assert_eq!((args.keep_uncommitted, args.lease_ttl_min), (true, 2));
        assert_eq!(args.member.config().unwrap().name, "n1");
        for refused in [
            "quorate import",
            "quorate import d --keep-uncommitted --drop-uncommitted",
            "quorate import d --nested-puts-passed --nested-puts-refused",
            "quorate import d --lease-ttl-min 0",
        ] {
            assert!(parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn every_flag_sets_a_key() {
        let mut command = Cli::command();
        command.build();
        let server = command.find_subcommand("server").unwrap();
        for flag in server.get_arguments().filter_map(clap::Arg::get_long) {
            if matches!(flag, "config" | "help" | "parent") {
                continue;
            }
            let args = Cli::try_parse_from(["quorate".to_owned(), format!("--{flag}=x")]).unwrap();
            let Command::Server(args) = args.asked() else {
                panic!("it runs a member")
            };
            let given = args.flags();
            assert_eq!(given.len(), 1, "--{flag} sets nothing");
            assert_eq!(given[0].0, format!("--{flag}"));
            let known = Config::load(Sources {
                flags: given,
                ..Sources::default()
            });
            assert!(
                matches!(known, Ok(_) | Err(ConfigError::BadValue { .. })),
                "{known:?}"
            );
        }
        command.debug_assert();
    }

    /// The table of docs/configuration.md has every flag, its key and its variable, and no other.
    #[test]
    fn every_flag_is_described() {
        let page = include_str!("../docs/configuration.md");
        let rows = page.lines().filter(|line| line.starts_with("| `--"));
        let mut described: Vec<String> = rows.map(str::to_owned).collect();
        let mut command = Cli::command();
        command.build();
        let server = command.find_subcommand("server").unwrap();
        let mut expected = Vec::new();
        for flag in server.get_arguments().filter_map(clap::Arg::get_long) {
            if matches!(flag, "config" | "help" | "parent") {
                continue;
            }
            let key = flags(&format!("quorate --{flag}=x"))[0].1;
            let variable = key.to_ascii_uppercase().replace('.', "_");
            expected.push(format!("| `--{flag}` | `{key}` | `QUORATE_{variable}` |"));
        }
        described.sort();
        expected.sort();
        assert_eq!(described, expected);
    }

    #[test]
    fn unknown_flags_are_refused() {
        let refused = Cli::try_parse_from(["quorate", "--data-dri", "x"])
            .unwrap_err()
            .to_string();
        assert!(refused.contains("--data-dri"), "{refused}");
        assert!(
            Cli::try_parse_from(["quorate", "--name", "a", "server"]).is_err(),
            "flags before"
        );
    }
}
