//! Shared by all tests here: servers as child processes, clients, raw connections, and checks for installed tools.
//!
//! `QUORATE_TEST_TARGET=etcd` runs the shared test bodies against a real etcd instead of Quorate, which checks the
//! tests themselves. What it does otherwise is a [`Difference`], which is not compared; that is printed.

#[path = "../../support/children.rs"]
mod children;
mod client;
mod ctl;
mod differences;
pub(crate) mod frames;
pub(crate) mod ports;
mod server;
#[path = "../../support/tools.rs"]
mod tools;
mod wire;

pub(crate) use client::{
    Client, Outcome, compare, del, del_range, get, get_range, op_del, op_get, op_put, op_txn, put,
    refused, txn,
};
pub(crate) use ctl::{CtlOutput, etcdctl, etcdctl_at, start_etcdctl, start_etcdctl_at};
pub(crate) use differences::Difference;
pub(crate) use server::{Exit, Kind, Server, Setup, run_to_exit};
pub(crate) use tools::{etcd_version, etcdutl};
pub(crate) use wire::{Wire, WireAnswer, frame, http_get};

/// Prints what a test left out, and why.
#[expect(
    clippy::print_stderr,
    reason = "a skipped check must be visible in the test's output"
)]
pub(crate) fn note(text: &str) {
    eprintln!("note: {text}");
}

/// Whether the target is etcd; then it prints that etcd does not have `what`.
pub(crate) fn only_quorate_has(what: &str) -> bool {
    let elsewhere = Kind::target() == Kind::Etcd;
    if elsewhere {
        note(&format!("skipped: {what} is Quorate's own"));
    }
    elsewhere
}
