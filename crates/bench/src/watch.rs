//! Watch workloads: fan-out of fresh events to many watchers, and catching up from history.
//!
//! Each value begins with the time it was sent, from which a watcher computes the event's latency: writers and watchers run
//! in this process and share its clock.

use super::{
    BenchError,
    args::Settings,
    channel::{CallError, Channel, Method, Stream},
    fill::fill,
    load::{Lane, Operation, Workload, block_on},
    process,
    stats::Report,
    unary::Scratch,
    wire::{self, Watch, WatchReply},
};
use bytes::BytesMut;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    task::spawn_local,
    time::{Instant, timeout},
};

/// Bytes of the send time at the start of a value.
pub(super) const STAMP_BYTES: usize = 8;
/// If no watcher gets a new event for this long, the missing events count as lost.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Pause between two checks for missing events after the load.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// Stamps values with their send time, relative to the start of the run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamps(Instant);

impl Stamps {
    /// Times count from now.
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    /// Writes the time over the start of the value.
    pub(super) fn stamp(self, value: &mut Vec<u8>) {
        value.resize(value.len().max(STAMP_BYTES), 0);
        let nanos = u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX);
        value[..STAMP_BYTES].copy_from_slice(&nanos.to_be_bytes());
    }

    /// When the value was sent; `None` for one that carries no time of this run.
    pub(super) fn sent(self, value: &[u8], now: Instant) -> Option<Instant> {
        let nanos = u64::from_be_bytes(*value.first_chunk::<STAMP_BYTES>()?);
        let sent = self.0.checked_add(Duration::from_nanos(nanos))?;
        (sent <= now).then_some(sent)
    }
}

/// Many watchers of one prefix, and writers there.
#[derive(Clone, Debug)]
pub(super) struct FanOut {
    stamps: Stamps,
    /// Writes that were acknowledged, by all threads.
    written: Arc<AtomicU64>,
    /// Events that arrived, at all threads.
    delivered: Arc<AtomicU64>,
}

impl FanOut {
    const PUT: usize = 0;
    const DELIVERY: usize = 1;

    pub(super) fn new() -> Self {
        let (written, delivered) = (Arc::default(), Arc::default());
        Self {
            stamps: Stamps::new(),
            written,
            delivered,
        }
    }

    /// Reads one watch stream until the run ends.
    async fn read(self, lane: Lane, mut stream: Stream) {
        loop {
            let reply = match stream.next().await {
                Ok(reply) => reply,
                Err(error) => return lane.error(&error),
            };
            if let Err(error) = self.take(&lane, &reply) {
                return lane.error(&error);
            }
        }
    }

    fn take(&self, lane: &Lane, reply: &[u8]) -> Result<(), CallError> {
        let reply = WatchReply::decode(reply)?;
        if reply.canceled {
            return Err(CallError::Wrong(format!(
                "canceled: {}",
                reply.cancel_reason()?
            )));
        }
        let now = Instant::now();
        let events = reply.values(|value| {
            if let Some(sent) = self.stamps.sent(value, now) {
                lane.record(Self::DELIVERY, sent, now);
            }
        })?;
        self.delivered.fetch_add(events, Relaxed);
        Ok(())
    }
}

impl Workload for FanOut {
    const KINDS: &'static [&'static str] = &["put", "delivery"];
    const HEADLINE: &'static [usize] = &[Self::DELIVERY];
    type Client = FanOutClient;

    async fn client(
        &self,
        settings: &Settings,
        index: usize,
        _: &mut Channel,
    ) -> Result<FanOutClient, CallError> {
        Ok(FanOutClient {
            scratch: Scratch::new(settings, index),
            shared: self.clone(),
        })
    }

    async fn background(&self, lane: &Lane, channels: &mut [Channel]) -> Result<(), CallError> {
        let args = &lane.settings.args;
        for _ in (lane.thread..args.stalled).step_by(args.threads) {
            drop(spawn_local(stall(lane.clone())));
        }
        let connections = channels.len();
        for (turn, number) in (lane.thread..args.streams)
            .step_by(args.threads)
            .enumerate()
        {
            // Stream i has the watchers i, i + streams, and so on.
            let watchers = (args.watchers + args.streams - 1).saturating_sub(number) / args.streams;
            let mut stream = channels[turn % connections].stream(Method::Watch).await?;
            for turn in 0..watchers {
                let (key, end) = if args.distinct {
                    let watcher = number + turn * args.streams;
                    let parts = args.watchers as u64;
                    lane.settings.part_of_keys(watcher as u64, parts)
                } else {
                    lane.settings.all_keys()
                };
                create(&mut stream, Watch::from_now_on(&key, &end)).await?;
            }
            drop(spawn_local(self.clone().read(lane.clone(), stream)));
        }
        Ok(())
    }

    async fn drain(&self, lane: &Lane) -> Result<(), CallError> {
        let watchers = if lane.settings.args.distinct {
            1
        } else {
            lane.settings.args.watchers as u64
        };
        let mut last = (self.delivered.load(Relaxed), Instant::now());
        loop {
            let now = (self.delivered.load(Relaxed), Instant::now());
            let owed = self.written.load(Relaxed) * watchers;
            if now.0 >= owed {
                return Ok(());
            }
            if now.0 > last.0 {
                last = now;
            } else if now.1 - last.1 > SILENCE_MAX {
                let missing = owed - now.0;
                return Err(CallError::Wrong(format!(
                    "{missing} of {owed} events never came"
                )));
            }
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    }
}

/// Watches all keys and reads nothing, until the run ends.
async fn stall(lane: Lane) {
    let stalled = async {
        let mut channel = Channel::connect(&lane.settings, 0).await?;
        let mut stream = channel.stream(Method::Watch).await?;
        let (key, end) = lane.settings.all_keys();
        create(&mut stream, Watch::from_now_on(&key, &end)).await?;
        std::future::pending::<()>().await;
        Ok::<(), BenchError>(())
    };
    if let Err(error) = stalled.await {
        lane.error(&CallError::Wrong(format!("a stalled watcher: {error}")));
    }
}

/// Creates a watcher and waits until the server confirms it. No key may be written meanwhile.
pub(super) async fn create(stream: &mut Stream, watch: Watch<'_>) -> Result<(), CallError> {
    stream.send(wire::message(&mut BytesMut::new(), |b| watch.encode(b)))?;
    let reply = stream.next().await?;
    let reply = WatchReply::decode(&reply)?;
    if reply.canceled || !reply.created {
        let why = reply.cancel_reason()?;
        return Err(CallError::Wrong(format!(
            "the watcher was not created: {why}"
        )));
    }
    Ok(())
}

/// A writer whose values carry their send time.
pub(super) struct FanOutClient {
    scratch: Scratch,
    shared: FanOut,
}

impl Operation for FanOutClient {
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError> {
        self.scratch.any_key();
        self.shared.stamps.stamp(&mut self.scratch.value);
        self.scratch.put(channel).await?;
        self.shared.written.fetch_add(1, Relaxed);
        Ok(FanOut::PUT)
    }
}

/// Writes `--keys` events, then times one watcher from revision 1 until it has as many.
pub(super) fn history(settings: &Settings) -> Result<Report, BenchError> {
    block_on(async {
        if !settings.args.no_fill {
            fill(settings).await?;
        }
        let before = process::usage(&settings.args.server_pid)?;
        let mut channel = Channel::connect(settings, 0).await?;
        let replay = replay(settings, &mut channel).await?;
        let after = process::usage(&settings.args.server_pid)?;
        let mut report = Report::new("watch-history");
        let secs = replay.total.as_secs_f64();
        report.figure("operations", replay.events as f64);
        report.figure("seconds", secs);
        report.figure("per_second", replay.events as f64 / secs);
        report.figure("first_event_us", replay.first.as_secs_f64() * 1e6);
        report.figure("replies", replay.replies as f64);
        if !settings.args.server_pid.is_empty() {
            let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
            report.figure(
                "server_cpu_ms_per_1000_ops",
                cpu * 1e6 / replay.events as f64,
            );
            report.memory(&after);
        }
        Ok(report)
    })
}

struct Replay {
    events: u64,
    replies: u64,
    first: Duration,
    total: Duration,
}

async fn replay(settings: &Settings, channel: &mut Channel) -> Result<Replay, CallError> {
    let (key, end) = settings.all_keys();
    let started = Instant::now();
    let mut stream = channel.stream(Method::Watch).await?;
    let watch = Watch {
        key: &key,
        end: &end,
        start_revision: 1,
        progress_notify: false,
        previous: false,
    };
    create(&mut stream, watch).await?;
    let mut seen = Replay {
        events: 0,
        replies: 0,
        first: Duration::ZERO,
        total: Duration::ZERO,
    };
    while seen.events < settings.args.keys {
        let Ok(reply) = timeout(settings.duration.max(SILENCE_MAX), stream.next()).await else {
            let text = format!("silence after {} of {}", seen.events, settings.args.keys);
            return Err(CallError::Wrong(text));
        };
        let reply = reply?;
        let reply = WatchReply::decode(&reply)?;
        if reply.canceled {
            return Err(CallError::Wrong(format!(
                "canceled: {}",
                reply.cancel_reason()?
            )));
        }
        if seen.events == 0 {
            seen.first = started.elapsed();
        }
        seen.events += reply.values(|_| {})?;
        seen.replies += 1;
    }
    seen.total = started.elapsed();
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stamp_tells_when_its_value_was_sent() {
        let stamps = Stamps::new();
        tokio::time::advance(Duration::from_millis(5)).await;
        let (mut value, sent) = (vec![7; 20], Instant::now());
        stamps.stamp(&mut value);
        assert_eq!(value.len(), 20, "the length stays");
        tokio::time::advance(Duration::from_millis(3)).await;
        assert_eq!(
            stamps.sent(&value, Instant::now()),
            Some(sent),
            "the send time"
        );
        assert_eq!(stamps.sent(b"short", Instant::now()), None, "no stamp");
        assert_eq!(
            stamps.sent(&[0xff; 8], Instant::now()),
            None,
            "not a time of this run"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_value_grows_to_hold_its_stamp() {
        let mut value = vec![1];
        Stamps::new().stamp(&mut value);
        assert_eq!(value.len(), STAMP_BYTES, "just the stamp");
    }
}
