//! Reads keys by their kind, and refuses what they may not be.

use super::{
    error::ConfigError,
    layers::{Layers, Value, bad},
};
use std::{ops::RangeInclusive, time::Duration};

/// The error for a key's value as it was set.
pub(super) fn refuse(layers: &Layers, key: &str, allowed: &str) -> ConfigError {
    let setting = layers.get(key);
    bad(
        setting.origin.clone(),
        key,
        setting.value.to_string(),
        allowed,
    )
}

/// Whether `key` was set in a higher layer than each of `others`. False if the same layer sets both, as a copy of
/// config/node.toml does.
pub(super) fn is_set_without(layers: &Layers, key: &str, others: &[&str]) -> bool {
    let rank = |key: &str| layers.get(key).origin.rank();
    others.iter().all(|other| rank(key) > rank(other))
}

pub(super) fn text<'l>(layers: &'l Layers, key: &str) -> &'l str {
    match &layers.get(key).value {
        Value::Text(text) => text,
        other => unreachable!("the default of {key} is a string, so {other} cannot be its value"),
    }
}

pub(super) fn list<'l>(layers: &'l Layers, key: &str) -> &'l [String] {
    match &layers.get(key).value {
        Value::List(items) => items,
        other => unreachable!("the default of {key} is a list, so {other} cannot be its value"),
    }
}

pub(super) fn switch(layers: &Layers, key: &str) -> bool {
    match &layers.get(key).value {
        Value::Switch(on) => *on,
        other => unreachable!("the default of {key} is a switch, so {other} cannot be its value"),
    }
}

pub(super) fn integer(layers: &Layers, key: &str) -> i64 {
    match &layers.get(key).value {
        Value::Integer(number) => *number,
        other => unreachable!("the default of {key} is a number, so {other} cannot be its value"),
    }
}

pub(super) fn filled<'l>(layers: &'l Layers, key: &str) -> Result<&'l str, ConfigError> {
    match text(layers, key) {
        "" => Err(refuse(layers, key, "a string that is not empty")),
        text => Ok(text),
    }
}

pub(super) fn choice<T: Copy>(
    layers: &Layers,
    key: &str,
    choices: &[(&str, T)],
) -> Result<T, ConfigError> {
    let written = text(layers, key);
    let found = choices.iter().find(|(name, _)| *name == written);
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        refuse(layers, key, &format!("one of {}", names.join(", ")))
    })
}

/// A number in a range of its own type.
pub(super) fn number<T>(
    layers: &Layers,
    key: &str,
    range: RangeInclusive<T>,
) -> Result<T, ConfigError>
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

pub(super) fn millis(
    layers: &Layers,
    key: &str,
    range: RangeInclusive<u64>,
) -> Result<Duration, ConfigError> {
    number(layers, key, range).map(Duration::from_millis)
}
