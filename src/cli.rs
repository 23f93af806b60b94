//! The command line: which command, and which configuration keys its flags set.
//!
//! A flag's text is not looked at here: it lies over the file and the environment and is checked with them, so that a
//! bad value is reported in one way wherever it was set.

use crate::config::{Config, ConfigError, Sources};
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
    Server(ServerArgs),
    /// Put load on a server of the etcd v3 API and measure it
    #[cfg(feature = "bench")]
    Bench(quorate_bench::BenchArgs),
    /// Run several members on this machine, to try things out
    Cluster(crate::local_cluster::ClusterArgs),
    /// Make certificates for the connections between members
    Cert(crate::net::cert::CertArgs),
    /// A majority is lost for good: make one stopped member's data a new cluster of its own
    Recover(RecoverArgs),
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
    /// Where clients connect
    #[arg(long, value_name = "HOST:PORT")]
    client_listen: Option<String>,
    /// The address that clients are told to use
    #[arg(long, value_name = "HOST:PORT")]
    client_advertise: Option<String>,
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
    /// Members do not prove who they are to each other
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    peer_insecure: Option<String>,
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
}

impl Cli {
    /// The command asked for; running a member if none is named.
    pub fn asked(self) -> Command {
        self.command.unwrap_or(Command::Server(self.server))
    }
}

impl ServerArgs {
    /// Reads file and environment, lays the flags over them, and checks the result.
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
            ("--peer-listen", "peer.listen", self.peer_listen),
            ("--peer-advertise", "peer.advertise", self.peer_advertise),
            ("--peer-cert", "peer.cert", self.peer_cert),
            ("--peer-key", "peer.key", self.peer_key),
            ("--peer-ca", "peer.ca", self.peer_ca),
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
        let given = all.into_iter();
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
    fn every_flag_sets_a_key() {
        let mut command = Cli::command();
        command.build();
        let server = command.find_subcommand("server").unwrap();
        for flag in server.get_arguments().filter_map(clap::Arg::get_long) {
            if matches!(flag, "config" | "help") {
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
