//! The layers a configuration is made of: defaults, file, environment, flags, each over the one before.
//!
//! The defaults are the text of `config/node.toml`, so the keys there are the keys there are, and the kind of
//! each default is the kind its key takes. This file has keys, kinds and where a value came from; what a
//! value may be is checked by `config`.

use super::error::{ConfigError, Origin};
use std::{collections::BTreeMap, ffi::OsString, fmt, path::Path};
use toml::de::{DeTable, DeValue};

/// The commented file that is both the documentation and the defaults.
pub(super) const DEFAULTS: &str = include_str!("../../config/node.toml");

/// What all our environment variables begin with.
const PREFIX: &str = "QUORATE_";
/// What the variables begin with that only the tests read.
const TEST_PREFIX: &str = "QUORATE_TEST_";

/// A value as written, before its meaning is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Switch(bool),
    List(Vec<String>),
}

impl Value {
    /// What a value of this kind is called in an error.
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer of at most 64 bits",
            Self::Switch(_) => "true or false",
            Self::List(_) => "a string or a list of strings",
        }
    }

    /// A value from TOML, if it is of a kind that any key takes.
    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        match value {
            DeValue::String(text) => Some(Self::Text(text.to_string())),
            DeValue::Integer(digits) => {
                let number = i64::from_str_radix(digits.as_str(), digits.radix());
                number.ok().map(Self::Integer)
            }
            DeValue::Boolean(on) => Some(Self::Switch(*on)),
            DeValue::Array(items) => {
                let texts = items.iter().map(|item| item.get_ref().as_str());
                let texts: Option<Vec<_>> = texts.map(|text| text.map(str::to_owned)).collect();
                texts.map(Self::List)
            }
            DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => None,
        }
    }

    /// A list's items, from text in which commas separate them.
    fn items(text: &str) -> Vec<String> {
        let items = text.split(',').map(str::trim);
        items
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// This value as the kind that `key` takes: a list may be written as one string.
    fn into_kind_of(self, key: &Self) -> Option<Self> {
        match (self, key) {
            (Self::Text(text), Self::List(_)) => Some(Self::List(Self::items(&text))),
            (value, key) => (value.kind() == key.kind()).then_some(value),
        }
    }

    /// A value of this one's kind, from a flag or the environment.
    fn same_kind(&self, text: &str) -> Option<Self> {
        match self {
            Self::Text(_) => Some(Self::Text(text.to_owned())),
            Self::Integer(_) => text.parse().ok().map(Self::Integer),
            Self::Switch(_) => text.parse().ok().map(Self::Switch),
            Self::List(_) => Some(Self::List(Self::items(text))),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(number) => number.fmt(f),
            Self::Switch(on) => on.fmt(f),
            Self::List(items) => write!(f, "{items:?}"),
        }
    }
}

/// One key's value, and where it was set.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// All keys, written with their section (`raft.election_ms`), with the topmost layer's values.
#[derive(Clone, Debug)]
pub(super) struct Layers(BTreeMap<String, Setting>);

impl Layers {
    /// The bottom layer.
    pub(super) fn defaults() -> Self {
        let parsed = DeTable::parse(DEFAULTS);
        let table = parsed.expect("config/node.toml is part of the program, and a test parses it");
        let mut found = Vec::new();
        flatten("", table.get_ref(), &mut found);
        let settings = found.into_iter().map(|(key, _, value)| {
            let value = Value::from_toml(value);
            let value = value.expect("config/node.toml uses only the kinds there are");
            (
                key,
                Setting {
                    value,
                    origin: Origin::Default,
                },
            )
        });
        Self(settings.collect())
    }

    /// Lays a file over what is there. `path` names it in errors.
    pub(super) fn lay_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let table = DeTable::parse(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            line: source.span().map_or(1, |span| line_of(text, span.start)),
            message: source.message().replace('\n', ", "),
        })?;
        let mut found = Vec::new();
        flatten("", table.get_ref(), &mut found);
        for (key, at, value) in found {
            let origin = Origin::File {
                path: path.to_owned(),
                line: line_of(text, at),
            };
            self.set_toml(&key, value, origin)?;
        }
        Ok(())
    }

    /// Applies the environment; variables without our prefix are ignored. Returns the names of those that Kubernetes sets for a
    /// service whose name begins with `quorate`, which are skipped.
    pub(super) fn lay_variables(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Vec<String>, ConfigError> {
        let by_variable: BTreeMap<String, String> = self
            .0
            .keys()
            .map(|key| (variable(key), key.clone()))
            .collect();
        let mut skipped = Vec::new();
        for (name, text) in variables {
            let name = name.to_string_lossy();
            if !name.starts_with(PREFIX) || name.starts_with(TEST_PREFIX) {
                continue;
            }
            let Some(key) = by_variable.get(name.as_ref()) else {
                if is_service_link(&name) {
                    skipped.push(name.into_owned());
                    continue;
                }
                return Err(ConfigError::UnknownVariable {
                    value: text.to_string_lossy().into_owned(),
                    suggestion: suggestion(&name, by_variable.keys()),
                    name: name.into_owned(),
                });
            };
            let origin = Origin::Variable(name.into_owned());
            let Some(text) = text.to_str() else {
                let value = text.to_string_lossy().into_owned();
                return Err(bad(origin, key, value, "valid UTF-8"));
            };
            self.set_text(key, text, origin)?;
        }
        skipped.sort_unstable();
        Ok(skipped)
    }

    /// Sets one key from the flag called `flag`.
    pub(super) fn lay_flag(
        &mut self,
        flag: &'static str,
        key: &str,
        text: &str,
    ) -> Result<(), ConfigError> {
        self.set_text(key, text, Origin::Flag(flag))
    }

    /// The setting of a key.
    pub(super) fn get(&self, key: &str) -> &Setting {
        let setting = self.0.get(key);
        assert!(
            setting.is_some(),
            "{key} is read by the program, so config/node.toml must have it"
        );
        setting.expect("asserted above")
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    fn set_toml(
        &mut self,
        key: &str,
        value: &DeValue<'_>,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let Some(setting) = self.0.get_mut(key) else {
            return match (self.in_section(key).is_empty(), value) {
                (false, DeValue::Table(_)) => Ok(()),
                (false, _) => Err(bad(
                    origin,
                    key,
                    shown(value),
                    &format!("a section, [{key}]"),
                )),
                (true, _) => Err(self.unknown(key, shown(value), origin)),
            };
        };
        match Value::from_toml(value).and_then(|value| value.into_kind_of(&setting.value)) {
            Some(value) => {
                *setting = Setting { value, origin };
                Ok(())
            }
            None => Err(bad(origin, key, shown(value), setting.value.kind())),
        }
    }

    fn set_text(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let setting = self.0.get_mut(key);
        let setting = setting.expect("flags and variables are matched with the keys there are");
        match setting.value.same_kind(text) {
            Some(value) => {
                *setting = Setting { value, origin };
                Ok(())
            }
            None => Err(bad(origin, key, format!("{text:?}"), setting.value.kind())),
        }
    }

    /// The keys of a section, without its name; none if there is no such section.
    fn in_section(&self, section: &str) -> Vec<&str> {
        let names = self.0.keys();
        names
            .filter_map(|key| key.strip_prefix(section)?.strip_prefix('.'))
            .collect()
    }

    fn unknown(&self, key: &str, value: String, origin: Origin) -> ConfigError {
        let section = key.split_once('.').map(|(section, _)| section);
        let (place, allowed) = match section.map(|name| (name, self.in_section(name))) {
            Some((name, keys)) if !keys.is_empty() => (format!("[{name}]"), keys),
            _ => ("the file".to_owned(), self.top_level()),
        };
        let hint = format!(
            "{}{place} takes {}",
            suggestion(key, self.0.keys()),
            allowed.join(", ")
        );
        ConfigError::UnknownKey {
            origin,
            key: key.to_owned(),
            value,
            hint,
        }
    }

    /// Keys outside sections, and the sections.
    fn top_level(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .0
            .keys()
            .map(|key| key.split('.').next().unwrap_or(key))
            .collect();
        names.dedup();
        names
    }
}

/// The environment variable of a key.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "_"))
}

/// An error about a value.
pub(super) fn bad(origin: Origin, key: &str, value: String, allowed: &str) -> ConfigError {
    ConfigError::BadValue {
        origin,
        key: key.to_owned(),
        value,
        allowed: allowed.to_owned(),
    }
}

/// Lists a table's keys with their sections, and where they stand in the text. An empty table counts as a key,
/// so that an unknown section does not pass for being empty.
fn flatten<'t, 'i>(
    section: &str,
    table: &'t DeTable<'i>,
    found: &mut Vec<(String, usize, &'t DeValue<'i>)>,
) {
    for (name, value) in table {
        let at = name.span().start;
        let name = name.get_ref();
        let key = if section.is_empty() {
            name.to_string()
        } else {
            format!("{section}.{name}")
        };
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => flatten(&key, inner, found),
            other => found.push((key, at, other)),
        }
    }
}

/// A value from a file as an error shows it.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Table(_) => "a table".to_owned(),
        DeValue::Float(float) => float.as_str().to_owned(),
        DeValue::Integer(digits) => digits.to_string(),
        DeValue::Datetime(date) => date.to_string(),
        other => Value::from_toml(other).map_or("a list".to_owned(), |value| value.to_string()),
    }
}

/// The line, counted from 1, of a byte of the text.
fn line_of(text: &str, at: usize) -> usize {
    let lines = text
        .char_indices()
        .take_while(|(position, _)| *position < at);
    1 + lines.filter(|(_, letter)| *letter == '\n').count()
}

/// A question about the candidate that is spelled most like `name`; empty if none is spelled alike.
fn suggestion<'a>(name: &str, candidates: impl Iterator<Item = &'a String>) -> String {
    let found = candidates.min_by_key(|candidate| edits(name, candidate));
    let alike = found.filter(|found| edits(name, found) <= name.len().min(found.len()) / 4 + 1);
    alike.map_or_else(String::new, |found| format!("did you mean {found}? "))
}

/// Whether Kubernetes gives a variable of this name to every container beside a service, here one whose name begins with
/// `quorate`: `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`, `NAME_SERVICE_PORT_HTTP`, `NAME_PORT`, `NAME_PORT_80_TCP`,
/// `NAME_PORT_80_TCP_ADDR`, ….
fn is_service_link(name: &str) -> bool {
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_PORT") {
        return true;
    }
    if name.contains("_SERVICE_PORT_") {
        return true;
    }
    let Some((_, port)) = name.split_once("_PORT_") else {
        return false;
    };
    let mut words = port.split('_');
    let digits = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    words.next().is_some_and(digits)
        && words
            .next()
            .is_some_and(|word| matches!(word, "TCP" | "UDP" | "SCTP"))
        && words
            .next()
            .is_none_or(|word| matches!(word, "PROTO" | "PORT" | "ADDR"))
        && words.next().is_none()
}

/// How many bytes to insert, remove or replace to get from one string to the other (Levenshtein's distance).
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (done, left) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = done + 1;
        for (at, right) in to.bytes().enumerate() {
            let replace = diagonal + usize::from(left != right);
            diagonal = row[at + 1];
            row[at + 1] = replace.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(edits("", "abc"), 3, "three insertions");
        assert_eq!(edits("kitten", "sitting"), 3, "the textbook example");
        assert_eq!(edits("same", "same"), 0, "nothing to do");
    }

    #[test]
    fn each_key_has_its_own_variable() {
        let layers = Layers::defaults();
        let variables: BTreeSet<String> = layers.keys().map(variable).collect();
        assert_eq!(
            variables.len(),
            layers.keys().count(),
            "two keys share a variable"
        );
        assert!(
            variables.iter().all(|name| !name.starts_with(TEST_PREFIX)),
            "the tests' prefix hides a key"
        );
    }

    #[test]
    fn every_key_is_commented() {
        let mut before = "";
        for line in DEFAULTS.lines() {
            let key = line.contains('=') && !line.starts_with('#');
            assert!(!key || before.starts_with('#'), "no comment above {line:?}");
            before = line;
        }
    }
}
