//! Clients of leases: they attach keys, renew for a while, and then revoke or let go. No lease ends before the time its last
//! acknowledged renewal gave it, and each one ends.

use super::{Crew, PATIENCE_MILLIS};
use crate::{
    clients::Client,
    faults::DRIFT_PPM_MAX,
    history::{Event, Put, Replay, Request},
};
use quorate::internals::types::LeaseId;
use std::collections::BTreeMap;

/// Lives of leases, in seconds: around an election and a few.
const TTL_SECS: std::ops::Range<u64> = 2..7;
const MICROS: u64 = 1_000_000;

/// What is known of a lease.
#[derive(Debug, Default)]
struct Account {
    /// Not before, in the cluster's microseconds.
    lives_until: u64,
    /// Somebody asked for its end: then it may come at any time.
    revoked: bool,
    /// When its end was seen.
    ended: Option<u64>,
}

/// All leases that were acknowledged, or have keys.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accounts: BTreeMap<i64, Account>,
    attached: BTreeMap<i64, bool>,
    early: Vec<String>,
}

impl Ledger {
    /// Renewed by a request that was called at `called`: the clock that counts it down may be fast.
    fn renewed(&mut self, lease: i64, called: u64, ttl_secs: i64) {
        let ttl = u64::try_from(ttl_secs).unwrap() * MICROS;
        let sure = ttl - ttl / 1_000_000 * DRIFT_PPM_MAX * 2;
        let account = self.accounts.entry(lease).or_default();
        if account.ended.is_none() {
            account.lives_until = account.lives_until.max(called + sure);
        }
    }

    fn revoked(&mut self, lease: i64) {
        self.accounts.entry(lease).or_default().revoked = true;
    }

    /// The historian saw a revision: whose keys went all at once?
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

    /// A key of a lease went: keys of leases are deleted by nothing but its end.
    fn left(&mut self, now: u64, lease: i64, event: &Event) {
        self.attached.insert(lease, false);
        let account = self.accounts.entry(lease).or_default();
        account.ended.get_or_insert(now);
        if now < account.lives_until && !account.revoked {
            self.early.push(format!(
                "lease {lease} ended at {now} by {event:?}, its renewal held until {}",
                account.lives_until
            ));
        }
    }

    /// A renewal was told that the lease is not there.
    fn missed(&mut self, lease: i64, now: u64) {
        let account = self.accounts.entry(lease).or_default();
        if now < account.lives_until && !account.revoked {
            self.early.push(format!(
                "lease {lease} was not there at {now}, its renewal held until {}",
                account.lives_until
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

/// A client that holds one lease after the other.
pub(crate) async fn work(client: Client, crew: Crew) {
    for number in 1.. {
        client.pause(client.below(500)).await;
        if crew.ended() {
            return;
        }
        let lease = i64::try_from(crew.number * 10_000 + number).unwrap();
        hold(&client, &crew, lease).await;
    }
}

async fn hold(client: &Client, crew: &Crew, lease: i64) {
    let ttl = TTL_SECS.start + client.below(TTL_SECS.end - TTL_SECS.start);
    let ttl = i64::try_from(ttl).unwrap();
    let (slot, called) = (crew.any(client), client.now());
    let granted = client.call(slot, PATIENCE_MILLIS, move |requests| async move {
        requests.grant_lease(Some(LeaseId(lease)), ttl).await
    });
    let Some(Ok(granted)) = granted.await else {
        return;
    };
    crew.board
        .borrow_mut()
        .leases
        .renewed(lease, called, granted.ttl_secs);
    for key in 0..=client.below(3) {
        let put = Request::Put(Put {
            key: format!("lease-{lease}-{key}").into(),
            value: crew.value(),
            lease,
            ..Put::default()
        });
        crew.request(client, put).await;
    }
    for _ in 0..client.below(8) {
        client.pause(client.below(1_500)).await;
        if !renew(client, crew, lease).await {
            return;
        }
    }
    if client.below(3) == 0 {
        crew.board.borrow_mut().leases.revoked(lease);
        crew.request(client, Request::RevokeLease(lease)).await;
    }
}

/// Renews a lease; tells whether it may still be there.
async fn renew(client: &Client, crew: &Crew, lease: i64) -> bool {
    let (slot, called) = (crew.any(client), client.now());
    let renewed = client.call(slot, PATIENCE_MILLIS, move |requests| async move {
        requests.keep_alive(LeaseId(lease)).await
    });
    match renewed.await {
        Some(Ok(Some(ttl))) => {
            crew.board.borrow_mut().leases.renewed(lease, called, ttl);
            true
        }
        Some(Ok(None)) => {
            crew.board.borrow_mut().leases.missed(lease, client.now());
            false
        }
        Some(Err(_)) | None => true,
    }
}
