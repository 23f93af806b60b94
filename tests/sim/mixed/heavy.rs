//! Clients that are hard on a member: large values, answers and transactions, bursts of requests that are cancelled, and watches
//! that are not read. The other clients run beside them, and everybody's requests are checked alike.

use super::{ClientContext, watchers};
use crate::{
    clients::Client,
    history::{Key, Put, Range, Request, Txn, TxnOp, Value},
};

/// The longest pause between two requests of a client, in milliseconds.
const PAUSE_MILLIS_MAX: u64 = 2_000;
/// Keys that large values are written to.
const KEYS: u64 = 4;
/// The largest value, in bytes: more than a segment of the log has room for.
const VALUE_BYTES_MAX: u64 = 200_000;
/// Writes of a large transaction.
const TXN_PUTS: u64 = 100;
/// A huge transaction is so many nested ones, each with so many writes: a transaction of two levels has room for little more,
/// since the lengths of its lists on the way to any operation add up to 128 at most.
const HUGE_PARTS: u64 = 60;
const HUGE_PART_PUTS: u64 = 60;
/// One in so many large transactions is huge, by chance: all its events follow from one entry of the log.
const HUGE_IN: i64 = 6;
/// Requests in a burst, and after how long they are cancelled, in milliseconds.
const BURST: u64 = 16;
const CANCEL_MILLIS_MAX: u64 = 20;
/// How long a watch is left unread at most, in milliseconds.
const UNREAD_MILLIS_MAX: u64 = 4_000;

/// A client that sends one heavy request after the other.
pub(crate) async fn work(client: Client, context: ClientContext) {
    loop {
        client.pause(client.below(PAUSE_MILLIS_MAX)).await;
        if context.ended() {
            return;
        }
        match client.below(6) {
            0 | 1 => {
                let put = put(key(client.below(KEYS)), large_value(&client, &context));
                context.request(&client, Request::Put(put)).await;
            }
            2 => {
                let all = all("large");
                context.request(&client, Request::Range(all)).await;
            }
            3 => {
                let huge = context.newest() % HUGE_IN == 0;
                let txn = if huge { huge_txn } else { large_txn };
                let txn = txn(&context);
                context.request(&client, Request::Txn(txn)).await;
            }
            4 => cancelled_burst(&client, &context),
            _ => {
                let slot = context.any(&client);
                let millis = client.below(UNREAD_MILLIS_MAX);
                watchers::hold_unread(&client, slot, context.newest(), millis).await;
            }
        }
    }
}

fn key(number: u64) -> Key {
    format!("large-{number:03}").into()
}

fn huge_key(number: u64) -> Key {
    format!("huge-{number:04}").into()
}

fn put(key: Key, value: Value) -> Put {
    Put {
        key,
        value,
        ..Put::default()
    }
}

fn large_value(client: &Client, context: &ClientContext) -> Value {
    let mut value = context.value().to_vec();
    let bytes = usize::try_from(client.below(VALUE_BYTES_MAX)).unwrap();
    value.resize(value.len() + bytes, b'.');
    value.into()
}

/// All values under large or huge keys at once.
fn all(keys: &str) -> Range {
    Range {
        key: format!("{keys}-").into(),
        range_end: format!("{keys}.").into(),
        ..Range::default()
    }
}

fn large_txn(context: &ClientContext) -> Txn {
    let puts = (KEYS..KEYS + TXN_PUTS).map(|number| TxnOp::Put(put(key(number), context.value())));
    Txn {
        compares: Vec::new(),
        success: puts.chain([TxnOp::Range(all("large"))]).collect(),
        failure: Vec::new(),
    }
}

/// Thousands of writes, and a read of them all.
fn huge_txn(context: &ClientContext) -> Txn {
    let part = |part: u64| {
        let numbers = part * HUGE_PART_PUTS..(part + 1) * HUGE_PART_PUTS;
        let puts = numbers.map(|number| TxnOp::Put(put(huge_key(number), context.value())));
        TxnOp::Txn(Txn {
            compares: Vec::new(),
            success: puts.collect(),
            failure: Vec::new(),
        })
    };
    let parts = (0..HUGE_PARTS).map(part);
    Txn {
        compares: Vec::new(),
        success: parts.chain([TxnOp::Range(all("huge"))]).collect(),
        failure: Vec::new(),
    }
}

/// Starts many writes at one member, each of which is cancelled after a moment: it happens once or not at all.
fn cancelled_burst(client: &Client, context: &ClientContext) {
    let slot = context.any(client);
    for _ in 0..BURST {
        let millis = client.below(CANCEL_MILLIS_MAX);
        let request = Request::Put(put(key(client.below(KEYS)), context.value()));
        let (client, context) = (client.clone(), context.clone());
        tokio::task::spawn_local(async move {
            context.cancelled(&client, slot, millis, request).await;
        });
    }
}
