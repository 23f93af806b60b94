//! Arguments, configuration, run.

use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// A strongly consistent, multi-version key-value store that speaks the etcd v3 API.
#[derive(Parser)]
#[command(name = "quorate", version)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put load on a server of the etcd v3 API and measure it
    Bench(quorate::bench::BenchArgs),
}

fn main() -> ExitCode {
    let Command::Bench(args) = Line::parse().command;
    match quorate::bench::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr(), "quorate: {error}").ok(); // there is nowhere else to say it
            ExitCode::FAILURE
        }
    }
}
