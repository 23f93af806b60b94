//! Clients of leases: they attach keys, renew for a while, and then revoke the lease or let it expire. No lease may end before
//! the time that its last acknowledged renewal gave it, and each one must end.

use super::{ClientContext, PATIENCE_MILLIS};
use crate::{
    clients::Client,
    faults::DRIFT_PPM_MAX,
    history::{Event, Put, Replay, Request},
};
use quorate::internals::types::LeaseId;
use std::collections::BTreeMap;

/// TTLs, in seconds: from about an election timeout to a few.
const TTL_SECS: std::ops::Range<u64> = 2..7;
const MICROS: u64 = 1_000_000;

/// What is known of a lease.
#[derive(Debug, Default)]
struct LeaseRecord {
    /// It must not end before this time, in the cluster's microseconds.
    lives_until: u64,
    /// A client has sent a revocation, so it may end at any time.
    revoked: bool,
    /// When its end was seen.
    ended: Option<u64>,
}

/// All leases that were acknowledged, or have keys.
#[derive(Debug, Default)]
pub(crate) struct LeaseRecords {
    records: BTreeMap<i64, LeaseRecord>,
    attached: BTreeMap<i64, bool>,
    early: Vec<String>,
}

impl LeaseRecords {
    /// Renewed by a request that was called at `called`: the clock that counts it down may be fast.
    fn renewed(&mut self, lease: i64, called: u64, ttl_secs: i64) {
        let ttl = u64::try_from(ttl_secs).unwrap() * MICROS;
        let sure = ttl - ttl / 1_000_000 * DRIFT_PPM_MAX * 2;
        let record = self.records.entry(lease).or_default();
        if record.ended.is_none() {
            record.lives_until = record.lives_until.max(called + sure);
        }
    }

    fn revoked(&mut self, lease: i64) {
        self.records.entry(lease).or_default().revoked = true;
    }

    /// Takes a revision that the historian saw, and notes which leases' keys it deletes.
    pub(crate) fn saw(&mut self, now: u64, truth: &Replay, events: &[Event]) {
        for event in events {
            let before = truth.get(event.key(), truth.newest());
            let old = before.map_or(0, |kv| kv.lease);
            if let Event::Put(kv) = event
                && kv.lease != 0
            {
                self.attached.insert(kv.lease, true);
            }
            let keeps = matches!(event, Event::Put(kv) if kv.lease == old);
            if old != 0 && !keeps {
                self.left(now, old, event);
            }
        }
    }

    /// A key of a lease was deleted: no client deletes such keys, so the lease has ended.
    fn left(&mut self, now: u64, lease: i64, event: &Event) {
        self.attached.insert(lease, false);
        let record = self.records.entry(lease).or_default();
        record.ended.get_or_insert(now);
        if now < record.lives_until && !record.revoked {
            self.early.push(format!(
                "lease {lease} ended at {now} by {event:?}, its renewal held until {}",
                record.lives_until
            ));
        }
    }

    /// A renewal was answered that the lease does not exist.
    fn missed(&mut self, lease: i64, now: u64) {
        let record = self.records.entry(lease).or_default();
        if now < record.lives_until && !record.revoked {
            self.early.push(format!(
                "lease {lease} was not there at {now}, its renewal held until {}",
                record.lives_until
            ));
        }
    }

    /// Leases whose keys are still there.
    pub(crate) fn alive(&self) -> Vec<i64> {
        let alive = self.attached.iter().filter(|(_, there)| **there);
        alive.map(|(lease, _)| *lease).collect()
    }

    pub(crate) fn all_ended(&self) -> bool {
        self.alive().is_empty()
    }

    pub(crate) fn check(&self) {
        assert!(self.early.is_empty(), "{:#?}", self.early);
    }
}

/// A client that holds one lease at a time.
pub(crate) async fn work(client: Client, context: ClientContext) {
    for number in 1.. {
        client.pause(client.below(500)).await;
        if context.ended() {
            return;
        }
        let lease = i64::try_from(context.number * 10_000 + number).unwrap();
        hold(&client, &context, lease).await;
    }
}

async fn hold(client: &Client, context: &ClientContext, lease: i64) {
    let ttl = TTL_SECS.start + client.below(TTL_SECS.end - TTL_SECS.start);
    let ttl = i64::try_from(ttl).unwrap();
    let (slot, called) = (context.any(client), client.now());
    let granted = client.call(slot, PATIENCE_MILLIS, move |requests| async move {
        requests.grant_lease(Some(LeaseId(lease)), ttl).await
    });
    let Some(Ok(granted)) = granted.await else {
        return;
    };
    context
        .shared
        .borrow_mut()
        .leases
        .renewed(lease, called, granted.ttl_secs);
    for key in 0..=client.below(3) {
        let put = Request::Put(Put {
            key: format!("lease-{lease}-{key}").into(),
            value: context.value(),
            lease,
            ..Put::default()
        });
        context.request(client, put).await;
    }
    for _ in 0..client.below(8) {
        client.pause(client.below(1_500)).await;
        if !renew(client, context, lease).await {
            return;
        }
    }
    if client.below(3) == 0 {
        context.shared.borrow_mut().leases.revoked(lease);
        context.request(client, Request::RevokeLease(lease)).await;
    }
}

/// Renews a lease; returns whether it may still exist.
async fn renew(client: &Client, context: &ClientContext, lease: i64) -> bool {
    let (slot, called) = (context.any(client), client.now());
    let renewed = client.call(slot, PATIENCE_MILLIS, move |requests| async move {
        requests.keep_alive(LeaseId(lease)).await
    });
    match renewed.await {
        Some(Ok(Some(ttl))) => {
            context
                .shared
                .borrow_mut()
                .leases
                .renewed(lease, called, ttl);
            true
        }
        Some(Ok(None)) => {
            context
                .shared
                .borrow_mut()
                .leases
                .missed(lease, client.now());
            false
        }
        Some(Err(_)) | None => true,
    }
}
