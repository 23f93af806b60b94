//! The checker of histories, checked: good histories pass, and each kind of violation is found in one written by hand.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/history/mod.rs"]
mod history;

mod bad;
mod generated;
mod good;
mod script;
