//! Arguments, configuration, run.

use clap::Parser;
use quorate::cli::{Cli, Command, ServerArgs};
use std::error::Error;
use std::process::ExitCode;

/// The system's allocator took a sixth of the server's time under load.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let done = match Cli::parse().asked() {
        Command::Server(args) => serve(args),
        Command::Bench(args) => quorate::bench::run(args).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&*error),
    }
}

fn serve(args: ServerArgs) -> Result<(), Box<dyn Error>> {
    let config = args.config()?;
    quorate::log::start(&config.log);
    Ok(quorate::node::run(&config)?)
}

/// Says why the program ends. The log may not have started yet, so this does not go through it.
#[expect(
    clippy::print_stderr,
    reason = "the last word of the program, for whoever started it"
)]
fn complain(error: &dyn Error) -> ExitCode {
    eprintln!("quorate: {error}");
    ExitCode::FAILURE
}
