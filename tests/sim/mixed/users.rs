//! Clients that log in, and an administrator who changes users, roles and permissions meanwhile.
//!
//! Users write, read and watch the keys `u0` to `u7`, within what they may and beyond. Every write has a value of its own, by
//! which its entry is found in the log. What they did is judged after the run (`rights`).

use super::{
    ClientContext, PATIENCE_MILLIS,
    convert::{process, response, run},
};
use crate::{
    clients::Client,
    history::{
        Compare, DeleteRange, Key, Operand, Outcome, Put, Range, Relation, Request, Revision, Txn,
        TxnOp, Value,
    },
    network::Slot,
};
use quorate::internals::{
    Inspect,
    actors::requests::{RequestError, Requests},
    auth::{AuthError, Caller, Change, change::Permission},
    kv::{
        KeyRange, KvError,
        command::{Command, Outcome as CommandOutcome},
        watch::WatchSpec,
    },
    types::Revision as KvRevision,
};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::mpsc;

/// The users besides root, each with one client.
pub(crate) const USERS: [&str; 2] = ["ann", "bob"];
const ROOT: &str = "root";
const ROLES: [&str; 2] = ["r0", "r1"];
const PASSWORD: &str = "secret";
/// The keys are `u0` and so on, up to this number.
const KEYS: u64 = 8;
/// What is granted and taken away: few ranges, so that grants overlap and are often taken away.
const GRANTS: [(&str, &[u8]); 5] = [
    ("u0", b"u4"),
    ("u2", b"u6"),
    ("u4", b"\0"),
    ("u1", b""),
    ("u5", b""),
];
/// In one run of so many nobody turns authentication on.
const RUNS_WITHOUT: u64 = 4;
/// The longest pause between two requests of a user, in milliseconds.
const PAUSE_MILLIS_MAX: u64 = 240;
/// The longest pause between two changes, in milliseconds.
const CHANGE_MILLIS_MAX: u64 = 500;
/// How long a user's watch lasts at most, in milliseconds.
const WATCH_MILLIS_MAX: u64 = 2_500;

/// What users did, as far as it can be judged.
#[derive(Debug, Default)]
pub(crate) struct Acts {
    /// On whose behalf a member took each write, by the value that it writes.
    pub(crate) writes: BTreeMap<Value, Caller>,
    pub(crate) reads: Vec<Read>,
    pub(crate) watches: Vec<Watched>,
    /// The watches that were created or got events since the last call of [`Acts::applied`].
    fresh: Vec<usize>,
    /// The log index of the newest acknowledged change.
    acknowledged: u64,
    /// Users and roles change many times a second, in every run.
    changes_often: bool,
    /// The newest entry that any member has applied.
    applied: u64,
}

/// A read that was answered, or refused for want of a permission.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) caller: Caller,
    pub(crate) range: Range,
    /// The revision of the answer; `None` if it was refused.
    pub(crate) revision: Option<Revision>,
    /// A change that was acknowledged before the call, at this log index.
    pub(crate) after: u64,
    /// No member had applied more than this entry when the answer came; zero is not known yet.
    pub(crate) through: u64,
}

/// A watch that was created.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) caller: Caller,
    pub(crate) key: Key,
    pub(crate) range_end: Key,
    /// The member's revision when it was created.
    pub(crate) created_at: Revision,
    /// As [`Read::through`], of the creation.
    pub(crate) through: u64,
    /// The revisions of its events, each with the newest entry that any member had applied when it came.
    pub(crate) events: Vec<(Revision, u64)>,
}

impl Acts {
    #[cfg(feature = "mutations")]
    pub(crate) fn change_often(&mut self) {
        self.changes_often = true;
    }

    /// No member has applied more than this entry, nor had any when an event since the last call happened.
    pub(crate) fn applied(&mut self, index: u64) {
        self.applied = self.applied.max(index);
        let now = self.applied;
        let settle = |through: &mut u64| {
            if *through == 0 {
                *through = now;
            }
        };
        // What is not settled yet is at the end.
        for read in self.reads.iter_mut().rev().take_while(|it| it.through == 0) {
            settle(&mut read.through);
        }
        for at in self.fresh.drain(..) {
            let watch = &mut self.watches[at];
            settle(&mut watch.through);
            let events = watch.events.iter_mut().rev();
            for (_, through) in events.take_while(|(_, through)| *through == 0) {
                settle(through);
            }
        }
    }

    fn change_acknowledged(&mut self, index: u64) {
        self.acknowledged = self.acknowledged.max(index);
    }
}

/// A user's client.
pub(crate) async fn work(client: Client, context: ClientContext, name: &'static str) {
    let mut token = None;
    loop {
        client.pause(client.below(PAUSE_MILLIS_MAX)).await;
        if context.ended() {
            return;
        }
        let slot = context.any(&client);
        if token.is_none() {
            token = log_in(&client, slot, name).await;
            continue;
        }
        if client.below(12) == 0 {
            watch_a_while(&client, &context, slot, token.clone());
            continue;
        }
        let request = draw(&client, &context);
        let refused = request_as(&client, &context, slot, token.clone(), request).await;
        // A token that was ended is used for a while yet: it must not be good again.
        if refused == Some(AuthError::InvalidToken) && client.below(3) == 0
            || refused == Some(AuthError::UserEmpty)
        {
            token = None;
        }
    }
}

async fn log_in(client: &Client, slot: Slot, name: &'static str) -> Option<String> {
    let issued = client.call(slot, PATIENCE_MILLIS, move |requests| async move {
        let nobody = requests.on_behalf(Caller::Nobody);
        let issued = Inspect::log_in(&nobody, name.to_owned(), PASSWORD.to_owned()).await;
        issued.map(|(token, _)| token)
    });
    let issued = issued.await;
    client.note(issued.as_ref().map(|it| it.as_ref().map(drop)), drop);
    issued.and_then(Result::ok)
}

/// Whom a token proves at a member, as its front end finds out.
fn identify(requests: &Requests, token: Option<&String>) -> Caller {
    let auth = requests.published().auth.clone();
    match token {
        Some(token) if auth.is_enabled() => auth.identify(token.as_bytes()),
        Some(_) | None => Caller::Nobody,
    }
}

/// Sends a request with a token to a member, records it, and returns why it was refused.
async fn request_as(
    client: &Client,
    context: &ClientContext,
    slot: Slot,
    token: Option<String>,
    request: Request,
) -> Option<AuthError> {
    let id = context.called(client, request.clone());
    let after = context.shared.borrow().users.acknowledged;
    let (shared, asked) = (context.shared.clone(), request.clone());
    let answer = client.call(slot, PATIENCE_MILLIS, move |requests| async move {
        let caller = identify(&requests, token.as_ref());
        if let Some(value) = value_of(&asked) {
            let writes = &mut shared.borrow_mut().users.writes;
            writes.insert(value, caller.clone());
        }
        let done = run(&requests.on_behalf(caller.clone()), asked).await;
        (caller, (process(), done))
    });
    let (caller, answer) = answer.await.unzip();
    let refused = match &answer {
        Some((_, Err(RequestError::Kv(KvError::Auth(error))))) => Some(*error),
        _ => None,
    };
    let outcome = context.returned(client, id, response(slot, answer));
    let revision = match outcome {
        Outcome::Done { revision, .. } => Some(revision),
        Outcome::Failed(_) | Outcome::Unknown => None,
    };
    let denied = refused == Some(AuthError::PermissionDenied);
    if let (Some(caller), Request::Range(range)) = (caller, request)
        && (revision.is_some() || denied)
    {
        context.shared.borrow_mut().users.reads.push(Read {
            caller,
            range,
            revision,
            after,
            through: 0,
        });
    }
    refused
}

/// The value that every branch of a user's write puts.
fn value_of(request: &Request) -> Option<Value> {
    match request {
        Request::Put(put) => Some(put.value.clone()),
        Request::Txn(txn) => txn.success.iter().find_map(|op| match op {
            TxnOp::Put(put) => Some(put.value.clone()),
            TxnOp::Range(_) | TxnOp::DeleteRange(_) | TxnOp::Txn(_) => None,
        }),
        Request::Range(_)
        | Request::DeleteRange(_)
        | Request::Compact(_)
        | Request::RevokeLease(_) => None,
    }
}

fn key(number: u64) -> Key {
    format!("u{number}").into()
}

fn any_key(client: &Client) -> Key {
    key(client.below(KEYS))
}

/// A key and the end of a range, which may be that key alone.
fn any_range(client: &Client) -> (Key, Key) {
    let first = client.below(KEYS);
    let end = match client.below(6) {
        0 => key((first + 1 + client.below(3)).min(KEYS + 1)),
        1 => b"\0".as_slice().into(),
        _ => Key::new(),
    };
    (key(first), end)
}

fn draw(client: &Client, context: &ClientContext) -> Request {
    match client.below(10) {
        0..4 => Request::Put(put(client, context)),
        4..7 => Request::Txn(txn(client, context)),
        _ => {
            let (key, range_end) = any_range(client);
            Request::Range(Range {
                key,
                range_end,
                serializable: client.below(3) == 0,
                ..Range::default()
            })
        }
    }
}

fn put(client: &Client, context: &ClientContext) -> Put {
    Put {
        key: any_key(client),
        value: context.value(),
        prev_kv: client.below(4) == 0,
        ..Put::default()
    }
}

/// Writes in both branches, and deletes or reads in one of them.
fn txn(client: &Client, context: &ClientContext) -> Txn {
    let put = put(client, context);
    let (key, range_end) = any_range(client);
    let other = if client.below(2) == 0 {
        TxnOp::DeleteRange(DeleteRange {
            key,
            range_end,
            prev_kv: client.below(4) == 0,
        })
    } else {
        TxnOp::Range(Range {
            key,
            range_end,
            ..Range::default()
        })
    };
    let compares = match client.below(3) {
        0 => vec![Compare {
            key: any_key(client),
            relation: Relation::Greater,
            operand: Operand::Version(2),
        }],
        _ => Vec::new(),
    };
    // A transaction must not write a key twice.
    let alone = TxnOp::Put(put.clone());
    let success = match &other {
        TxnOp::DeleteRange(delete) if covers(delete, &put.key) => vec![alone.clone()],
        _ => vec![other, alone.clone()],
    };
    Txn {
        compares,
        success,
        failure: vec![alone],
    }
}

fn covers(delete: &DeleteRange, key: &Key) -> bool {
    let end = &delete.range_end;
    match end.as_ref() {
        b"" => delete.key == *key,
        b"\0" => delete.key <= *key,
        _ => delete.key <= *key && *key < *end,
    }
}

/// Watches a range beside the client's other requests.
fn watch_a_while(client: &Client, context: &ClientContext, slot: Slot, token: Option<String>) {
    let (key, range_end) = any_range(client);
    let spec = WatchSpec {
        start: KvRevision((context.newest() - 2).max(1)),
        ..WatchSpec::of(KeyRange::from_wire(&key, &range_end))
    };
    let millis = client.below(WATCH_MILLIS_MAX);
    let mut news = client.follow(slot, 16, move |requests, news| async move {
        let caller = identify(&requests, token.as_ref());
        tokio::select! {
            biased;
            () = news.closed() => {}
            () = forward(&requests, caller, spec, &news) => {}
        }
    });
    let (client, context) = (client.clone(), context.clone());
    tokio::task::spawn_local(async move {
        let until = client.now() + 1_000 * millis;
        let mut known = None;
        while let Ok(Some(next)) = {
            let left = Duration::from_micros(until.saturating_sub(client.now()));
            tokio::time::timeout(left, news.recv()).await
        } {
            let acts = &mut context.shared.borrow_mut().users;
            let watches = &mut acts.watches;
            match next {
                WatchNews::Created(caller, created_at) => {
                    known = Some(watches.len());
                    watches.push(Watched {
                        caller,
                        key: key.clone(),
                        range_end: range_end.clone(),
                        created_at,
                        through: 0,
                        events: Vec::new(),
                    });
                }
                WatchNews::Event(revision) => {
                    if let Some(at) = known {
                        watches[at].events.push((revision, 0));
                    }
                }
            }
            acts.fresh.extend(known);
        }
    });
}

/// What a user's watch delivers.
enum WatchNews {
    Created(Caller, Revision),
    Event(Revision),
}

async fn forward(
    requests: &Requests,
    caller: Caller,
    spec: WatchSpec,
    news: &mpsc::Sender<WatchNews>,
) {
    let Ok(mut watch) = requests.on_behalf(caller.clone()).watch(spec).await else {
        return;
    };
    let created = WatchNews::Created(caller, watch.created_at().0);
    if news.send(created).await.is_err() {
        return;
    }
    while let Ok(batch) = watch.next().await {
        for event in batch.events {
            let event = WatchNews::Event(event.rev.major.0);
            if news.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// The administrator: turns authentication on, and changes users, roles and permissions from then on.
pub(crate) async fn administer(client: Client, context: ClientContext) {
    let often = context.shared.borrow().users.changes_often;
    if !often && client.below(RUNS_WITHOUT) == 0 {
        return;
    }
    client.pause(client.below(4_000)).await;
    for change in beginning() {
        while !context.ended() && !settle(&client, &context, None, &change).await {
            client.pause(100).await;
        }
    }
    let mut token = None;
    let mut off = false;
    while !context.ended() {
        let pause = if often { 60 } else { CHANGE_MILLIS_MAX };
        client.pause(20 + client.below(pause)).await;
        if token.is_none() && client.below(2) == 0 {
            token = log_in(&client, context.any(&client), ROOT).await;
        }
        let change = if off && client.below(2) == 0 {
            Change::Enable
        } else {
            any_change(&client)
        };
        let done = settle(&client, &context, token.clone(), &change).await;
        match change {
            Change::Disable => off = true,
            Change::Enable => off &= !done,
            _ => {}
        }
        // The root user's token ends when authentication is turned off.
        if !done {
            token = None;
        }
    }
}

fn beginning() -> Vec<Change> {
    let add_user = |name: &str| Change::AddUser {
        name: name.to_owned(),
        password: None,
    };
    let mut changes = vec![
        add_user(ROOT),
        Change::GrantRole {
            user: ROOT.to_owned(),
            role: ROOT.to_owned(),
        },
    ];
    changes.extend(USERS.map(add_user));
    for (role, user) in ROLES.into_iter().zip(USERS) {
        let name = role.to_owned();
        changes.push(Change::AddRole { name });
        changes.push(grant(role, Permission::READ_WRITE, GRANTS[0]));
        changes.push(Change::GrantRole {
            user: user.to_owned(),
            role: role.to_owned(),
        });
    }
    changes.push(Change::Enable);
    changes
}

fn grant(role: &str, kind: i32, (key, range_end): (&str, &[u8])) -> Change {
    Change::GrantPermission {
        role: role.to_owned(),
        permission: Some(Permission {
            kind,
            key: key.into(),
            range_end: range_end.into(),
        }),
    }
}

fn any_change(client: &Client) -> Change {
    let one = |count: usize| usize::try_from(client.below(count as u64)).unwrap();
    let (user, role) = (USERS[one(USERS.len())], ROLES[one(ROLES.len())]);
    let range = GRANTS[one(GRANTS.len())];
    let (user, name) = (user.to_owned(), role.to_owned());
    match client.below(32) {
        0..10 => grant(role, [0, 1, 2, 2][one(4)], range),
        10..16 => Change::RevokePermission {
            role: name,
            key: range.0.into(),
            range_end: range.1.into(),
        },
        16..22 => Change::GrantRole { user, role: name },
        22..25 => Change::RevokeRole { user, role: name },
        25 => Change::DeleteUser { name: user },
        26 | 27 => Change::AddUser {
            name: user,
            password: None,
        },
        28 => Change::ChangePassword {
            name: user,
            password: quorate::internals::auth::change::PasswordHash::default(),
        },
        29 => Change::DeleteRole { name },
        30 => Change::AddRole { name },
        _ => Change::Disable,
    }
}

/// Asks for a change once, as root or, without a token, as the program that the member is part of. Returns whether it is known
/// that it happened or was refused for what it is.
async fn settle(
    client: &Client,
    context: &ClientContext,
    token: Option<String>,
    change: &Change,
) -> bool {
    let change = change.clone();
    let slot = context.any(client);
    let done = client.call(slot, PATIENCE_MILLIS, move |requests| async move {
        let caller = match &token {
            Some(_) => identify(&requests, token.as_ref()),
            None => Caller::Node,
        };
        let requests = requests.on_behalf(caller);
        let change = with_password(&requests, change).await?;
        match Inspect::propose(&requests, &Command::Auth(change)).await? {
            CommandOutcome::Auth { index, .. } => Ok(index.0),
            other => unreachable!("the answer to a change is {other:?}"),
        }
    });
    let done: Option<Result<u64, RequestError>> = done.await;
    let known = match &done {
        Some(Ok(index)) => {
            context
                .shared
                .borrow_mut()
                .users
                .change_acknowledged(*index);
            true
        }
        Some(Err(RequestError::Kv(KvError::Auth(error)))) => {
            !matches!(error, AuthError::InvalidToken | AuthError::UserEmpty)
        }
        Some(Err(_)) | None => false,
    };
    client.note(done, drop);
    known
}

async fn with_password(requests: &Requests, change: Change) -> Result<Change, RequestError> {
    let hash = || Inspect::hash_password(requests, PASSWORD.to_owned());
    Ok(match change {
        Change::AddUser { name, .. } => Change::AddUser {
            name,
            password: Some(hash().await?),
        },
        Change::ChangePassword { name, .. } => Change::ChangePassword {
            name,
            password: hash().await?,
        },
        other => other,
    })
}
