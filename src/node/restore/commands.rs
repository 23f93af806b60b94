//! The commands that a restore prints: those of the other members, and the next start.

use super::request::{RestoreId, RestoreRequest};
use crate::config::Config;
use std::path::Path;

/// The command that restores the same data for the member called `name` of the same cluster.
pub(super) fn of_member(
    request: &RestoreRequest,
    config: &Config,
    id: RestoreId,
    name: &str,
) -> String {
    let mut words = vec![source(request)];
    words.extend(request.import.iter().flatten().map(|flag| quoted(flag)));
    add_settings(&mut words, request, config, name);
    if request.skip_hash_check {
        words.push("--skip-hash-check".to_owned());
    }
    if let Some(by) = request.bump_revision {
        words.push("--bump-revision".to_owned());
        words.push(by.to_string());
    }
    if request.mark_compacted {
        words.push("--mark-compacted".to_owned());
    }
    if request.ignore_corrupt_alarm {
        words.push("--ignore-corrupt-alarm".to_owned());
    }
    words.push("--restore-id".to_owned());
    words.push(id.to_string());
    words.join(" ")
}

/// The command and its source.
pub(super) fn source(request: &RestoreRequest) -> String {
    let command = match &request.import {
        None => "restore",
        Some(_) => "import",
    };
    format!("quorate {command} {}", shown(&request.file))
}

/// The command that starts the member.
pub(super) fn start(request: &RestoreRequest, config: &Config) -> String {
    let mut words = vec!["quorate".to_owned(), "server".to_owned()];
    add_settings(&mut words, request, config, &config.name);
    words.join(" ")
}

fn add_settings(words: &mut Vec<String>, request: &RestoreRequest, config: &Config, name: &str) {
    let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    if let Some(file) = &request.config_file {
        add("--config", shown(file));
    }
    add("--name", quoted(name));
    add("--data-dir", shown(&config.data_dir));
    let initial = &config.cluster.initial;
    if !initial.is_empty() {
        let members = initial.iter();
        let members = members.map(|member| format!("{}={}", member.name, member.peer));
        let members = members.collect::<Vec<_>>().join(",");
        add("--initial-cluster", quoted(&members));
    }
    add("--initial-cluster-token", quoted(&config.cluster.token));
}

fn shown(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "-_./:=,@%+".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_a_shell_would_change_are_quoted() {
        for (word, expected) in [
            ("n1=10.0.0.1:2380,n2=b:1", "n1=10.0.0.1:2380,n2=b:1"),
            ("", "''"),
            ("a b", "'a b'"),
            ("n1=[::1]:1", "'n1=[::1]:1'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
