//! The files that are handed out for running a cluster work as they are.

use crate::{
    ctl::{etcdctl, leader, same_history},
    support::quorate,
};
use quorate::internals::cli::{Cli, Command};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config")
        .join(name)
}

/// The processes of a Procfile, as goreman and foreman read it: a name, a colon, a command line.
fn processes() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(config("Procfile")).expect("the file");
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, command) = line.split_once(':').expect("a name and a command");
            let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            assert_eq!(words[0], "quorate", "{line}");
            (name.to_owned(), words[1..].to_vec())
        })
        .collect()
}

/// Starts each line of the Procfile in an empty folder. Its ports are etcd's own, so other ones are put in their place: who
/// runs the
/// tests may run an etcd.
#[tokio::test]
async fn every_line_of_the_procfile_runs_a_member_and_they_form_a_cluster() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let all = processes();
    assert_eq!(all.len(), 3, "a cluster of three");
    let free = crate::support::Cluster::new(3).await;
    let mut pairs = Vec::new();
    for (n, member) in free.members.iter().enumerate() {
        pairs.push((
            format!(":{}", 2_379 + 10 * n),
            format!(":{}", member.client),
        ));
        pairs.push((format!(":{}", 2_380 + 10 * n), format!(":{}", member.peer)));
    }
    let ports = free.ports();
    let mut children = Vec::new();
    for (name, words) in all {
        let log = fs::File::create(folder.path().join(format!("{name}.log"))).expect("a log");
        let words = words.iter().map(|word| {
            let mut word = word.clone();
            for (from, to) in &pairs {
                word = word.replace(from, to);
            }
            word
        });
        let mut command = quorate();
        command
            .args(words)
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(log);
        children.push(command.spawn().expect("the program starts"));
    }
    leader(&ports).await;
    for port in &ports {
        etcdctl(&[*port], &["put", &format!("k{port}"), "v"])
            .await
            .ok();
    }
    same_history(&ports).await;
    for child in &mut children {
        child.kill().await.expect("it can be stopped");
    }
}

/// The files for real machines name addresses and files of those machines, so they are checked, not run.
#[test]
fn the_files_for_real_machines_are_good_and_agree() {
    use clap::Parser;
    let mut initial = Vec::new();
    for name in ["n1", "n2", "n3"] {
        let file = config(&format!("cluster/{name}.toml"));
        let args = ["quorate", "--config", &file.display().to_string()].map(str::to_owned);
        let Command::Server(args) = Cli::parse_from(args).asked() else {
            panic!("it runs a member")
        };
        let config = args.config().expect("a good configuration");
        assert_eq!(config.name, name);
        let own = config
            .cluster
            .initial
            .iter()
            .find(|member| member.name == name);
        let own = own.expect("it is one of the members").peer.clone();
        assert_eq!(
            own,
            *config.peer_advertise(),
            "{name} is where the others look"
        );
        assert_eq!(
            config.peer.tls.scheme(),
            "https",
            "members prove who they are"
        );
        initial.push(config.cluster.initial.clone());
    }
    assert!(
        initial.iter().all(|list| *list == initial[0]),
        "{initial:?}"
    );
}
