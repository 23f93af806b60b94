//! Clients of keys: random reads, writes, deletions, transactions and compactions, on any member.

use super::Crew;
use crate::{
    clients::Client,
    history::{Compare, DeleteRange, Key, Operand, Put, Range, Relation, Request, Txn, TxnOp},
};

/// Keys they share: few, so that they meet.
const KEYS: u64 = 24;
/// The longest pause between two requests of a client, in milliseconds.
const PAUSE_MILLIS_MAX: u64 = 60;
/// The longest pause between two compactions, in milliseconds.
const COMPACT_MILLIS_MAX: u64 = 3_000;
/// Reads look so many revisions back at most; compactions leave so many at most.
const BACK_MAX: u64 = 60;

/// A client that asks for one thing after the other.
pub(crate) async fn work(client: Client, crew: Crew) {
    loop {
        client.pause(client.below(PAUSE_MILLIS_MAX)).await;
        if crew.ended() {
            return;
        }
        let request = draw(&client, &crew);
        crew.request(&client, request).await;
    }
}

/// A client that gives up old history, never more than the historian has seen.
pub(crate) async fn compact(client: Client, crew: Crew) {
    loop {
        let often = crew.board.borrow().compacts_often;
        let pause = if often { 300 } else { COMPACT_MILLIS_MAX };
        client.pause(100 + client.below(pause)).await;
        if crew.ended() {
            return;
        }
        let at = crew.newest() - back(&client);
        if at <= 1 {
            continue;
        }
        crew.request(&client, Request::Compact(at)).await;
        // What is at the compacted revision stays readable, also once what came before is removed.
        client.pause(client.below(1_000)).await;
        let all = Range {
            key: "k".into(),
            range_end: "l".into(),
            revision: at,
            ..Range::default()
        };
        crew.request(&client, Request::Range(all)).await;
    }
}

fn back(client: &Client) -> i64 {
    i64::try_from(client.below(BACK_MAX)).unwrap()
}

fn key(client: &Client) -> Key {
    format!("k{:02}", client.below(KEYS)).into()
}

fn draw(client: &Client, crew: &Crew) -> Request {
    match client.below(20) {
        0..5 => Request::Put(put(client, crew)),
        5..7 => Request::DeleteRange(delete(client)),
        7..11 => Request::Range(range(client)),
        11..13 => Request::Range(Range {
            serializable: true,
            ..range(client)
        }),
        13 => Request::Range(Range {
            revision: (crew.newest() - back(client)).max(1),
            serializable: client.below(2) == 0,
            ..range(client)
        }),
        14..16 => Request::Txn(swap(client, crew)),
        16..18 => Request::Txn(several(client, crew)),
        18 => Request::Txn(old_and_new(client, crew)),
        _ => Request::Txn(Txn {
            compares: vec![exists(key(client))],
            success: vec![TxnOp::Range(range(client)), TxnOp::Range(range(client))],
            failure: vec![TxnOp::Range(range(client))],
        }),
    }
}

fn put(client: &Client, crew: &Crew) -> Put {
    Put {
        key: key(client),
        value: crew.value(),
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

/// Writes a key if it is as it was at a revision not long ago; else tells what it is.
fn swap(client: &Client, crew: &Crew) -> Txn {
    let key = key(client);
    let operand = match client.below(3) {
        0 => Operand::Mod(crew.newest() - back(client) / 4),
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
                ..put(client, crew)
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
fn several(client: &Client, crew: &Crew) -> Txn {
    let first = client.below(KEYS - 4);
    let key = |n: u64| -> Key { format!("k{:02}", first + n).into() };
    let write = |n: u64| {
        TxnOp::Put(Put {
            key: key(n),
            ..put(client, crew)
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
fn old_and_new(client: &Client, crew: &Crew) -> Txn {
    let revision = (crew.newest() - back(client)).max(1);
    let old = Range {
        revision,
        ..range(client)
    };
    let nested = Txn {
        compares: vec![exists(key(client))],
        success: vec![TxnOp::Put(put(client, crew))],
        failure: vec![TxnOp::Range(range(client))],
    };
    Txn {
        compares: Vec::new(),
        success: vec![TxnOp::Range(old), TxnOp::Txn(nested)],
        failure: Vec::new(),
    }
}
