//! Clients of keys: random reads, writes, deletions, transactions and compactions, on any member.

use super::ClientContext;
use crate::{
    clients::Client,
    history::{Compare, DeleteRange, Key, Operand, Put, Range, Relation, Request, Txn, TxnOp},
};

/// How many keys they share: few, so that requests conflict.
const KEYS: u64 = 24;
/// The longest pause between two requests of a client, in milliseconds.
const PAUSE_MILLIS_MAX: u64 = 60;
/// The longest pause between two compactions, in milliseconds.
const COMPACT_MILLIS_MAX: u64 = 3_000;
/// Old reads go back by so many revisions at most, and compactions leave so many.
const BACK_MAX: u64 = 60;

/// A client that sends one request after the other.
pub(crate) async fn work(client: Client, context: ClientContext) {
    loop {
        client.pause(client.below(PAUSE_MILLIS_MAX)).await;
        if context.ended() {
            return;
        }
        let request = draw(&client, &context);
        context.request(&client, request).await;
    }
}

/// A client that compacts old history, never past what the historian has seen.
pub(crate) async fn compact(client: Client, context: ClientContext) {
    loop {
        let often = context.shared.borrow().compacts_often;
        let pause = if often { 300 } else { COMPACT_MILLIS_MAX };
        client.pause(100 + client.below(pause)).await;
        if context.ended() {
            return;
        }
        let at = context.newest() - back(&client);
        if at <= 1 {
            continue;
        }
        context.request(&client, Request::Compact(at)).await;
        // The compacted revision itself stays readable, also after the removal of the records before it.
        client.pause(client.below(1_000)).await;
        let all = Range {
            key: "k".into(),
            range_end: "l".into(),
            revision: at,
            ..Range::default()
        };
        context.request(&client, Request::Range(all)).await;
    }
}

fn back(client: &Client) -> i64 {
    i64::try_from(client.below(BACK_MAX)).unwrap()
}

fn key(client: &Client) -> Key {
    format!("k{:02}", client.below(KEYS)).into()
}

fn draw(client: &Client, context: &ClientContext) -> Request {
    match client.below(20) {
        0..5 => Request::Put(put(client, context)),
        5..7 => Request::DeleteRange(delete(client)),
        7..11 => Request::Range(range(client)),
        11..13 => Request::Range(Range {
            serializable: true,
            ..range(client)
        }),
        13 => Request::Range(Range {
            revision: (context.newest() - back(client)).max(1),
            serializable: client.below(2) == 0,
            ..range(client)
        }),
        14..16 => Request::Txn(swap(client, context)),
        16..18 => Request::Txn(several(client, context)),
        18 => Request::Txn(old_and_new(client, context)),
        _ => Request::Txn(Txn {
            compares: vec![exists(key(client))],
            success: vec![TxnOp::Range(range(client)), TxnOp::Range(range(client))],
            failure: vec![TxnOp::Range(range(client))],
        }),
    }
}

fn put(client: &Client, context: &ClientContext) -> Put {
    Put {
        key: key(client),
        value: context.value(),
        prev_kv: client.below(3) == 0,
        ..Put::default()
    }
}

fn delete(client: &Client) -> DeleteRange {
    let first = client.below(KEYS);
    let several = client.below(4) == 0;
    let end = if several {
        format!("k{:02}", first + 1 + client.below(3))
    } else {
        String::new()
    };
    DeleteRange {
        key: format!("k{first:02}").into(),
        range_end: end.into(),
        prev_kv: client.below(3) == 0,
    }
}

fn range(client: &Client) -> Range {
    let (first, all) = (client.below(KEYS), client.below(4) == 0);
    Range {
        key: format!("k{first:02}").into(),
        range_end: if all { "l" } else { "" }.into(),
        limit: usize::try_from(client.below(3) * 4).unwrap(),
        count_only: client.below(8) == 0,
        ..Range::default()
    }
}

fn exists(key: Key) -> Compare {
    Compare {
        key,
        relation: Relation::Greater,
        operand: Operand::Version(0),
    }
}

/// Writes a key if it has not changed since a recent revision; else reads it.
fn swap(client: &Client, context: &ClientContext) -> Txn {
    let key = key(client);
    let operand = match client.below(3) {
        0 => Operand::Mod(context.newest() - back(client) / 4),
        1 => Operand::Version(i64::try_from(client.below(6)).unwrap()),
        _ => Operand::Create(0),
    };
    let relation = [Relation::Equal, Relation::Less, Relation::Greater];
    Txn {
        compares: vec![Compare {
            key: key.clone(),
            relation: relation[usize::try_from(client.below(3)).unwrap()],
            operand,
        }],
        success: vec![
            TxnOp::Put(Put {
                key: key.clone(),
                ..put(client, context)
            }),
            TxnOp::Range(Range {
                key: key.clone(),
                ..Range::default()
            }),
        ],
        failure: vec![TxnOp::Range(Range {
            key,
            ..Range::default()
        })],
    }
}

/// Writes two keys and deletes others, all in one revision.
fn several(client: &Client, context: &ClientContext) -> Txn {
    let first = client.below(KEYS - 4);
    let key = |n: u64| -> Key { format!("k{:02}", first + n).into() };
    let write = |n: u64| {
        TxnOp::Put(Put {
            key: key(n),
            ..put(client, context)
        })
    };
    let writes = vec![
        write(0),
        write(1),
        TxnOp::DeleteRange(DeleteRange {
            key: key(2),
            range_end: key(4),
            prev_kv: true,
        }),
    ];
    Txn {
        compares: Vec::new(),
        success: writes,
        failure: Vec::new(),
    }
}

/// Reads an old revision, which may be compacted by then, and writes: either both or nothing, on all members alike.
fn old_and_new(client: &Client, context: &ClientContext) -> Txn {
    let revision = (context.newest() - back(client)).max(1);
    let old = Range {
        revision,
        ..range(client)
    };
    let nested = Txn {
        compares: vec![exists(key(client))],
        success: vec![TxnOp::Put(put(client, context))],
        failure: vec![TxnOp::Range(range(client))],
    };
    Txn {
        compares: Vec::new(),
        success: vec![TxnOp::Range(old), TxnOp::Txn(nested)],
        failure: Vec::new(),
    }
}
