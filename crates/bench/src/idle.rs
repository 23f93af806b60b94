//! Measures the memory that idle connections cost a server, and waits until a server answers.

use super::{
    BenchError,
    args::Settings,
    channel::{CallError, Channel, Method},
    load::block_on,
    process,
    stats::Report,
    wire::{self, Range},
};
use bytes::BytesMut;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Pause before the server's memory is read, so that it can free what it no longer needs.
const SETTLE_TIME: Duration = Duration::from_secs(2);
/// Between two attempts to reach the server.
const RETRY_TIME: Duration = Duration::from_millis(2);
/// How long one attempt may take.
const ATTEMPT_TIME: Duration = Duration::from_secs(10);

/// Opens `--connections`, uses each once, and reports the server's memory per connection.
pub(super) fn connections(settings: &Settings) -> Result<Report, BenchError> {
    block_on(async {
        let pids = &settings.args.server_pid;
        let mut first = Channel::connect(settings, 0).await?;
        read(settings, &mut first).await?;
        let before = process::usage(pids)?;
        let started = Instant::now();
        let mut open = Vec::with_capacity(settings.connections);
        for number in 0..settings.connections {
            let mut channel = Channel::connect(settings, number).await?;
            read(settings, &mut channel).await?;
            open.push(channel);
        }
        let mut report = Report::new("idle-connections");
        report.figure("operations", open.len() as f64);
        report.figure("seconds", started.elapsed().as_secs_f64());
        sleep(SETTLE_TIME).await;
        let after = process::usage(pids)?;
        if !pids.is_empty() {
            let grown = after.resident_bytes as f64 - before.resident_bytes as f64;
            report.figure(
                "server_kib_per_connection",
                grown / 1024.0 / open.len() as f64,
            );
            report.memory(&after);
        }
        // A connection that the server closed in the meantime would lower the average.
        for channel in &mut open {
            if let Err(error) = read(settings, channel).await {
                report.fail(1, error.to_string());
            }
        }
        Ok(report)
    })
}

/// Waits until the server answers a linearizable read.
pub(super) fn wait(settings: &Settings) -> Result<Report, BenchError> {
    block_on(async {
        let started = Instant::now();
        loop {
            let last = match timeout(ATTEMPT_TIME, attempt(settings)).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer in {ATTEMPT_TIME:?}"),
            };
            if started.elapsed() > settings.duration {
                return Err(BenchError::NoAnswer {
                    secs: settings.duration.as_secs_f64(),
                    last,
                });
            }
            sleep(RETRY_TIME).await;
        }
        let mut report = Report::new("wait");
        report.figure("seconds", started.elapsed().as_secs_f64());
        Ok(report)
    })
}

async fn attempt(settings: &Settings) -> Result<(), BenchError> {
    for number in 0..settings.endpoints.len() {
        let mut channel = Channel::connect(settings, number).await?;
        read(settings, &mut channel).await?;
    }
    Ok(())
}

async fn read(settings: &Settings, channel: &mut Channel) -> Result<(), CallError> {
    let key = settings.args.prefix.as_bytes();
    let range = Range {
        key,
        limit: 1,
        ..Range::default()
    };
    let request = wire::message(&mut BytesMut::new(), |b| range.encode(b));
    channel.unary_length(Method::Range, request).await?;
    Ok(())
}
