//! The load generator `quorate bench`: puts load on any server of the etcd v3 API, and reports throughput and latencies.
//!
//! It shares the machine with the server it measures, so its own CPU per operation decides how much of a fast
//! server it can show. Hence: gRPC straight on `h2` (`channel`), messages written and read by hand
//! (`wire`), threads that share nothing but counters (`load`), each with one current-thread runtime.
//!
//! A run goes through fixed stages: fill what the workload reads, connect, set up every client, warm up,
//! measure, drain. Only what ended inside the measured time is counted, and the servers' CPU time is sampled at
//! its two ends. The load is closed-loop: a client sends its next request when the last one is answered. With
//! `--rate` each request has a due time, and the latency of one that had to wait for its client counts from then, so that
//! the report shows a stall of the server in full.
//!
//! Answers are checked, not only counted: a status other than OK, a missing key, a compare-and-swap that should have
//! succeeded, and an event that did not arrive are errors, and any error makes the run fail.

#![expect(
    clippy::cast_precision_loss,
    reason = "figures are for people: 52 bits of a count are more than anyone reads"
)]

mod args;
mod channel;
mod fill;
mod grant;
mod idle;
mod k8s;
mod lease;
mod lease_expiry;
mod load;
mod machine;
mod process;
mod random;
mod stats;
mod tls;
mod unary;
mod users;
mod watch;
mod wire;

pub use args::{BenchArgs, Output, Workload};
pub use channel::CallError;
pub use wire::WireError;

use args::Settings;
use stats::Report;
use std::net::SocketAddr;

/// Why a run failed. Only after [`BenchError::Errors`] is there a report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A flag has a value it cannot have.
    #[error("{0}")]
    Argument(String),
    /// No connection to a server; retrying helps once it listens. After "too many open files", raise `ulimit -n` of this
    /// program or of the server.
    #[error("cannot connect to {address}: {cause}")]
    Connect {
        address: SocketAddr,
        cause: std::io::Error,
    },
    /// A call failed before the measured time.
    #[error("before measuring: {0}")]
    Prepare(#[from] CallError),
    /// The server did not answer in the time given.
    #[error("no answer within {secs} s, last: {last}")]
    NoAnswer { secs: f64, last: String },
    /// The server's process cannot be read in `/proc`.
    #[error("cannot read {path}: {cause}")]
    Process { path: String, cause: std::io::Error },
    /// The machine's disk or loopback cannot be measured.
    #[error("cannot measure {what}: {cause}")]
    Machine { what: String, cause: std::io::Error },
    /// This program cannot start a thread or an event loop.
    #[error("cannot start a load thread: {0}")]
    Thread(std::io::Error),
    /// A load thread ended without a result: a bug of this program.
    #[error("a load thread ended without a result")]
    ThreadLost,
    /// The result cannot be written.
    #[error("cannot write the result: {0}")]
    Output(std::io::Error),
    /// The report was written and counts errors.
    #[error("{0} errors, see the report")]
    Errors(u64),
}

/// Runs the load and writes its report to standard output.
///
/// # Errors
/// [`BenchError::Errors`] after a report that counts errors; everything else comes without a report.
pub fn run(args: BenchArgs) -> Result<(), BenchError> {
    let mut settings = Settings::check(args)?;
    if settings.args.workload != Workload::EnableAuth {
        settings.token = users::log_in(&settings)?;
    }
    let report = measure(&settings)?;
    report.print(settings.args.output)?;
    match report.errors() {
        0 => Ok(()),
        errors => Err(BenchError::Errors(errors)),
    }
}

fn measure(settings: &Settings) -> Result<Report, BenchError> {
    match settings.args.workload {
        Workload::Put => load::run(settings, unary::Put),
        Workload::Get => load::run(settings, unary::Get),
        Workload::Scan => load::run(settings, unary::Scan),
        Workload::Count => load::run(settings, unary::Count),
        Workload::Cas => load::run(settings, unary::Cas),
        Workload::Fill => load::run(settings, unary::Fill::default()),
        Workload::K8s => load::run(settings, k8s::Kubernetes::new()),
        Workload::WatchFanout => load::run(settings, watch::FanOut::new()),
        Workload::WatchHistory => watch::history(settings),
        Workload::LeaseGrant => load::run(settings, lease::Grant),
        Workload::LeaseKeepalive => load::run(settings, lease::KeepAlive),
        Workload::LeaseExpiry => load::run(settings, lease_expiry::Expiry::default()),
        Workload::IdleConnections => idle::connections(settings),
        Workload::EnableAuth => users::enable(settings),
        Workload::Login => load::run(settings, users::Logins),
        Workload::Wait => idle::wait(settings),
        Workload::Machine => machine::measure(&settings.args.dir),
    }
}
