//! Puts while leases end: how much the end of many leases in one second slows other requests down.
//!
//! Before the load, `--leases` leases are granted with one key each, and with such times to live that all of them end in the
//! same second, `--lease-ttl` seconds after the first grant. The report lists separately puts before that second, puts from there
//! on for as long as leases may be ending, and later puts. At the end no key of a lease may be left.

use super::{
    args::Settings,
    channel::{CallError, Channel, Method},
    load::{Lane, Operation, Workload},
    unary::Scratch,
    wire::{self, Fields, Range},
};
use bytes::BytesMut;
use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{task::spawn_local, time::Instant};

/// Requests in flight while leases are granted.
const GRANTS_IN_FLIGHT: usize = 64;
/// Leases count as ending for so long: their second, a scan, and what the server may be behind.
const ENDING_TIME: Duration = Duration::from_secs(3);

/// Puts beside leases that end.
#[derive(Clone, Debug, Default)]
pub(super) struct Expiry {
    ends: Arc<OnceLock<Instant>>,
}
pub(super) struct ExpiryClient {
    scratch: Scratch,
    ends: Arc<OnceLock<Instant>>,
}

impl Expiry {
    async fn grant_all(&self, settings: &Settings, channels: &[Channel]) -> Result<(), CallError> {
        let begin = Instant::now();
        let next = Rc::new(Cell::new(0));
        let mut granting = Vec::new();
        for at in 0..GRANTS_IN_FLIGHT {
            let channel = channels[at % channels.len()].clone();
            let (settings, next) = (settings.clone(), Rc::clone(&next));
            granting.push(spawn_local(grant_some(settings, channel, next, begin)));
        }
        for granted in granting {
            granted
                .await
                .map_err(|_| CallError::Wrong("a task of grants is lost".into()))??;
        }
        let ends = begin + Duration::from_secs(settings.args.lease_ttl);
        if Instant::now() + settings.warmup >= ends {
            let text = "the leases end before the measured time: raise --lease-ttl";
            return Err(CallError::Wrong(text.into()));
        }
        self.ends.set(ends).unwrap_or_default();
        Ok(())
    }
}

async fn grant_some(
    settings: Settings,
    mut channel: Channel,
    next: Rc<Cell<u64>>,
    begin: Instant,
) -> Result<(), CallError> {
    let mut out = BytesMut::new();
    while next.get() < settings.args.leases {
        let number = next.replace(next.get() + 1);
        let left = settings
            .args
            .lease_ttl
            .saturating_sub(begin.elapsed().as_secs());
        let request = wire::message(&mut out, |b| wire::lease_grant(b, left.cast_signed()));
        let reply = channel.unary(Method::LeaseGrant, request).await?;
        let lease = Fields(&reply).number(2)?;
        let key = leased_key(&settings, number);
        let request = wire::message(&mut out, |b| wire::put(b, &key, b"leased", lease));
        channel.unary_length(Method::Put, request).await?;
    }
    Ok(())
}

/// The keys of leases have a prefix of their own.
fn leased_prefix(settings: &Settings) -> Vec<u8> {
    [b"leased-", settings.args.prefix.as_bytes()].concat()
}

fn leased_key(settings: &Settings, number: u64) -> Vec<u8> {
    [
        &leased_prefix(settings)[..],
        format!("{number:010}").as_bytes(),
    ]
    .concat()
}

impl Workload for Expiry {
    const KINDS: &'static [&'static str] = &["quiet", "ending", "later"];
    type Client = ExpiryClient;

    async fn client(
        &self,
        settings: &Settings,
        index: usize,
        _: &mut Channel,
    ) -> Result<ExpiryClient, CallError> {
        Ok(ExpiryClient {
            scratch: Scratch::new(settings, index),
            ends: Arc::clone(&self.ends),
        })
    }

    async fn background(&self, lane: &Lane, channels: &mut [Channel]) -> Result<(), CallError> {
        if lane.thread == 0 {
            self.grant_all(&lane.settings, channels).await?;
        }
        Ok(())
    }

    /// All leases must have ended: none of their keys may be left.
    async fn drain(&self, lane: &Lane) -> Result<(), CallError> {
        if lane.thread != 0 {
            return Ok(());
        }
        let over = self.ends.get().map(|ends| *ends + ENDING_TIME);
        if over.is_some_and(|over| Instant::now() < over) {
            let text = "the run ended before the leases did: raise --duration";
            return Err(CallError::Wrong(text.into()));
        }
        let prefix = leased_prefix(&lane.settings);
        let range = Range {
            key: &prefix,
            end: &wire::prefix_end(&prefix),
            count_only: true,
            ..Range::default()
        };
        let mut channel = match Channel::connect(&lane.settings, 0).await {
            Ok(channel) => channel,
            Err(error) => return Err(CallError::Wrong(error.to_string())),
        };
        let mut out = BytesMut::new();
        let request = wire::message(&mut out, |b| range.encode(b));
        let reply = channel.unary(Method::Range, request).await?;
        match Fields(&reply).number(4)? {
            0 => Ok(()),
            left => Err(CallError::Wrong(format!(
                "{left} keys outlive their leases"
            ))),
        }
    }
}

impl Operation for ExpiryClient {
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError> {
        let start = Instant::now();
        self.scratch.any_key();
        self.scratch.put(channel).await?;
        Ok(match self.ends.get() {
            Some(ends) if start >= *ends + ENDING_TIME => 2,
            Some(ends) if Instant::now() >= *ends => 1,
            Some(_) | None => 0,
        })
    }
}
