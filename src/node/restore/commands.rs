//! The commands that a restore prints: those of the other members, and the next start.

use super::request::{RestoreId, RestoreRequest};
use crate::config::{Config, PeerTls};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

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
        add("--config", shown(&of_other(file, &config.name, name)));
    }
    add("--name", quoted(name));
    let data_dir = of_other(&config.data_dir, &config.name, name);
    add("--data-dir", shown(&data_dir));
    let initial = &config.cluster.initial;
    if !initial.is_empty() {
        let members = initial.iter();
        let members = members.map(|member| format!("{}={}", member.name, member.peer));
        let members = members.collect::<Vec<_>>().join(",");
        add("--initial-cluster", quoted(&members));
    }
    add("--initial-cluster-token", quoted(&config.cluster.token));
    if matches!(config.peer.tls, PeerTls::Insecure) {
        words.push("--peer-insecure".to_owned());
    }
}

/// What another member most likely calls its file: `n2.toml`, if that of n1 is `n1.toml`. Only a whole word of the last part of
/// the path is taken for a name.
fn of_other(path: &Path, own: &str, other: &str) -> PathBuf {
    let Some(file) = path.file_name().and_then(OsStr::to_str) else {
        return path.to_owned();
    };
    let is_word = |at: usize| {
        let before = file[..at].chars().next_back();
        let after = file[at + own.len()..].chars().next();
        [before, after]
            .into_iter()
            .flatten()
            .all(|letter| !letter.is_alphanumeric())
    };
    match file.match_indices(own).find(|(at, _)| is_word(*at)) {
        Some((at, _)) if !own.is_empty() => {
            let end = &file[at + own.len()..];
            path.with_file_name(format!("{}{other}{end}", &file[..at]))
        }
        _ => path.to_owned(),
    }
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
    fn the_files_of_another_member_are_called_as_it_is() {
        for (path, expected) in [
            ("/etc/quorate/n1.toml", "/etc/quorate/n2.toml"),
            ("data-n1", "data-n2"),
            ("/n1/data", "/n1/data"),
            ("n10.toml", "n10.toml"),
            ("xn1-n1", "xn1-n2"),
            ("node.toml", "node.toml"),
        ] {
            let found = of_other(Path::new(path), "n1", "n2");
            assert_eq!(found, Path::new(expected));
        }
        let same = Path::new("config.toml");
        assert_eq!(of_other(same, "n", "m"), same);
    }

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
