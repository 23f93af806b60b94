//! Arguments, configuration, run.

use clap::Parser;
use quorate::internals::{
    actors::fail_stop::EXIT_REFUSED,
    cli::{Cli, Command, ImportArgs, NewMemberArgs, RecoverArgs, RestoreArgs, ServerArgs},
    config::ConfigError,
    import::{Choices, NestedPuts, Uncommitted},
    net::cert::CertArgs,
    node::{ImportRequest, RestoreId, RestoreRequest, StartError},
    snapshot_command::SnapshotArgs,
};
use std::{
    error::Error,
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

/// The system's allocator took a sixth of the server's time under load. Huge pages are off: with them a buffer of which little
/// is used counts whole, which made a member half as large again, and saved no time that could be measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let done = match Cli::parse().asked() {
        Command::Server(args) => serve(*args),
        Command::Cluster(args) => quorate::internals::local_cluster::run(&args).map_err(Into::into),
        Command::Cert(args) => make_certificates(&args),
        Command::Snapshot(args) => snapshot(&args),
        Command::Recover(args) => recover(&args),
        Command::Restore(args) => restore(*args),
        Command::Import(args) => import(*args),
        #[cfg(feature = "bench")]
        Command::Bench(args) => quorate_bench::run(*args).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&*error),
    }
}

fn serve(args: ServerArgs) -> Result<(), Box<dyn Error>> {
    if let Some(parent) = args.parent {
        quorate::internals::local_cluster::end_with(parent)?;
    }
    let config = args.config()?;
    quorate::internals::log::start(&config.log);
    #[cfg(feature = "failpoints")]
    let _armed = quorate::internals::failpoint::arm();
    Ok(quorate::internals::node::run(&config)?)
}

#[expect(clippy::print_stderr, reason = "a note beside the result")]
fn make_certificates(args: &CertArgs) -> Result<(), Box<dyn Error>> {
    let made = args.run()?;
    for file in made.files {
        print(file.display())?;
    }
    if let Some(note) = made.note {
        eprintln!("{note}");
    }
    Ok(())
}

fn snapshot(args: &SnapshotArgs) -> Result<(), Box<dyn Error>> {
    print(args.run()?)
}

fn recover(args: &RecoverArgs) -> Result<(), Box<dyn Error>> {
    #[cfg(feature = "failpoints")]
    let _armed = quorate::internals::failpoint::arm();
    let key = args.key()?;
    let done = quorate::internals::node::recover_quorum(&args.data_dir, &args.into, key.as_ref())?;
    print(done)
}

fn restore(args: RestoreArgs) -> Result<(), Box<dyn Error>> {
    #[cfg(feature = "failpoints")]
    let _armed = quorate::internals::failpoint::arm();
    let config = args.member.config()?;
    let request = RestoreRequest {
        file: args.file,
        import: None,
        skip_hash_check: args.skip_hash_check,
        bump_revision: args.bump_revision,
        mark_compacted: args.mark_compacted,
        ignore_corrupt_alarm: args.ignore_corrupt_alarm,
        restore_id: restore_id(&args.member)?,
        config_file: args.member.config,
    };
    let done = quorate::internals::node::restore_snapshot(&request, &config)?;
    print(done)
}

fn import(args: ImportArgs) -> Result<(), Box<dyn Error>> {
    #[cfg(feature = "failpoints")]
    let _armed = quorate::internals::failpoint::arm();
    let config = args.member.config()?;
    let kept = args.keep_uncommitted.then_some(Uncommitted::Keep);
    let dropped = args.drop_uncommitted.then_some(Uncommitted::Drop);
    let passed = args.nested_puts_passed.then_some(NestedPuts::Passed);
    let refused = args.nested_puts_refused.then_some(NestedPuts::Refused);
    let request = ImportRequest {
        directory: args.directory,
        wal: args.wal_dir,
        choices: Choices {
            uncommitted: kept.or(dropped),
            nested_puts: passed.or(refused),
            lease_ttl_min: args.lease_ttl_min,
        },
        ignore_corrupt_alarm: args.ignore_corrupt_alarm,
        restore_id: restore_id(&args.member)?,
        config_file: args.member.config,
    };
    let done = quorate::internals::node::import_etcd(&request, &config)?;
    print(done)
}

fn restore_id(args: &NewMemberArgs) -> Result<Option<RestoreId>, String> {
    let given = args.restore_id.as_deref();
    let read = given.map(|text| {
        let id = text.parse::<RestoreId>();
        id.map_err(|error| format!("--restore-id {text:?}: {error}"))
    });
    read.transpose()
}

/// Writes a line of the command's result. Whoever reads it may have had enough, as `head` has: the command is done all the same.
fn print(line: impl Display) -> Result<(), Box<dyn Error>> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Says why the program ends. The log may not have started yet, so this does not go through it.
#[expect(
    clippy::print_stderr,
    reason = "the last word of the program, for whoever started it"
)]
fn complain(error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("quorate: {error}");
    let needs_operator = match error.downcast_ref::<StartError>() {
        Some(error) => error.needs_operator(),
        None => error.is::<ConfigError>(),
    };
    if needs_operator {
        ExitCode::from(EXIT_REFUSED)
    } else {
        ExitCode::FAILURE
    }
}
