//! Prints what a member does with every message in every role, and compares that with `role_table.md`.
//!
//! `UPDATE_GOLDENFILES=1 cargo test raft::role_table` writes the file again; commit only what you can explain.

use super::testing::{entry, index, voters};
use super::*;
use crate::types::{HardState, LogPosition, MemberId, Term};
use std::{collections::BTreeMap, fmt::Write as _};

const TABLE: &str = "src/raft/role_table.md";

const HEAD: &str = "\
# Raft roles and messages

What member 1 of the voters 1, 2 and 3 does in term 5 when a message from member 2 arrives. Its log ends at `1@t1`, which is
committed; as a leader it has appended `2@t5`. A follower's leader is member 2. A cell has the messages that are sent once
all writes are durable. An empty cell changes nothing but the time of the last contact. `role_table.rs` prints this file and
fails when it differs.
";

/// The term of the member under test.
const TERM: u64 = 5;

#[derive(Clone, Copy)]
enum Start {
    NoLeader,
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

const STARTS: [(Start, &str); 5] = [
    (Start::NoLeader, "follower without leader"),
    (Start::Follower, "follower of 2"),
    (Start::PreCandidate, "pre-candidate"),
    (Start::Candidate, "candidate"),
    (Start::Leader, "leader"),
];

fn message(term: u64, body: MessageBody) -> Message {
    let term = Term(term);
    Message { term, body }
}

/// Everything that comes out until there is no more output; all writes are durable at once.
fn drain(core: &mut RaftCore) -> Vec<Envelope> {
    let mut sent = Vec::new();
    while let Some(ready) = core.ready() {
        sent.extend(ready.messages);
        if let Some(persist) = ready.persist {
            core.persisted(persist.seq);
        }
    }
    core.check();
    sent
}

fn receive(core: &mut RaftCore, from: u64, term: u64, body: MessageBody) {
    drain(core);
    core.step(MemberId(from), message(term, body)).unwrap();
}

fn member(start: Start) -> RaftCore {
    let term = match start {
        Start::NoLeader | Start::Follower | Start::PreCandidate => TERM,
        Start::Candidate | Start::Leader => TERM - 1,
    };
    let initial = InitialState {
        hard_state: HardState {
            term: Term(term),
            vote: None,
            commit: index(1),
        },
        applied: index(1),
        membership: voters(1..=3),
        entries: vec![entry(1, 1)],
        ..InitialState::default()
    };
    let mut core = RaftCore::new(Config::new(MemberId(1), 1), initial).unwrap();
    match start {
        Start::NoLeader => {}
        Start::Follower => {
            let (commit, round) = (index(1), 0);
            receive(&mut core, 2, TERM, MessageBody::Heartbeat { commit, round });
        }
        Start::PreCandidate => core.campaign(),
        Start::Candidate | Start::Leader => {
            core.campaign();
            let (asked, granted) = (Term(TERM), true);
            let reply = MessageBody::PreVoteReply { asked, granted };
            receive(&mut core, 3, TERM - 1, reply);
            if matches!(start, Start::Leader) {
                receive(&mut core, 3, TERM, MessageBody::Vote { granted });
            }
        }
    }
    drain(&mut core);
    assert_eq!(core.status().term, Term(TERM));
    core
}

/// Every kind of message, with the contents that matter.
#[expect(clippy::too_many_lines, reason = "one row a message")]
fn rows() -> Vec<(&'static str, MessageBody)> {
    let id = |term, at| LogPosition::new(Term(term), index(at));
    let (newer, older) = (id(5, 2), id(0, 0));
    let append = |prev, at: u64| MessageBody::Append {
        prev,
        commit: index(1),
        entries: vec![entry(at, 4)],
    };
    let asked = Term(TERM + 1);
    let (granted, refused) = (true, false);
    vec![
        ("PreVote", MessageBody::PreVote { last: newer }),
        ("PreVote, shorter log", MessageBody::PreVote { last: older }),
        (
            "PreVoteReply, granted",
            MessageBody::PreVoteReply { asked, granted },
        ),
        (
            "PreVoteReply, refused",
            MessageBody::PreVoteReply {
                asked,
                granted: refused,
            },
        ),
        (
            "RequestVote",
            MessageBody::RequestVote {
                last: newer,
                transfer: false,
            },
        ),
        (
            "RequestVote, shorter log",
            MessageBody::RequestVote {
                last: older,
                transfer: false,
            },
        ),
        (
            "RequestVote, transfer",
            MessageBody::RequestVote {
                last: newer,
                transfer: true,
            },
        ),
        ("Vote, granted", MessageBody::Vote { granted }),
        ("Vote, refused", MessageBody::Vote { granted: refused }),
        ("Append after `1@t1`", append(id(1, 1), 2)),
        ("Append after `8@t4`", append(id(4, 8), 9)),
        (
            "AppendReply to 2",
            MessageBody::AppendReply { matched: index(2) },
        ),
        (
            "AppendRejected",
            MessageBody::AppendRejected {
                rejected: index(1),
                hint: older,
            },
        ),
        ("Commit 1", MessageBody::Commit { commit: index(1) }),
        ("Commit 7", MessageBody::Commit { commit: index(7) }),
        (
            "Heartbeat",
            MessageBody::Heartbeat {
                commit: index(1),
                round: 3,
            },
        ),
        ("HeartbeatReply", MessageBody::HeartbeatReply { round: 0 }),
        ("ReadIndex", MessageBody::ReadIndex { round: 9 }),
        (
            "ReadIndexReply",
            MessageBody::ReadIndexReply {
                round: 9,
                index: index(1),
            },
        ),
        ("TimeoutNow", MessageBody::TimeoutNow),
        ("StaleTerm", MessageBody::StaleTerm),
    ]
}

/// What the member does: its new role and term, commit index and log end where they change, and what it sends.
fn effect(start: Start, message: Message) -> String {
    let mut core = member(start);
    let before = (core.status(), core.commit(), core.last());
    let result = core.step(MemberId(2), message);
    let sent = drain(&mut core);
    let mut parts = Vec::new();
    if let Err(error) = result {
        parts.push(format!("**error**: {error}"));
    }
    if core.status() != before.0 {
        parts.push(format!("→ **{}**", describe(core.status())));
    }
    if core.last() != before.2 {
        parts.push(format!("log ends at `{}`", core.last()));
    }
    if core.commit() != before.1 {
        parts.push(format!("commits {}", core.commit()));
    }
    let mut receivers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Envelope { to, message } in sent {
        let to = to.0.to_string();
        receivers.entry(name(&message.body)).or_default().push(to);
    }
    for (name, to) in receivers {
        parts.push(format!("{name} to {}", to.join(", ")));
    }
    parts.join("; ")
}

fn describe(status: Status) -> String {
    let role = match status.role {
        RoleName::Follower => "follower",
        RoleName::PreCandidate => "pre-candidate",
        RoleName::Candidate => "candidate",
        RoleName::Leader => "leader",
    };
    let leader = match status.leader {
        Some(leader) if status.role != RoleName::Leader => format!(" of {}", leader.0),
        Some(_) | None => String::new(),
    };
    format!("{role}{leader} in term {}", status.term)
}

fn name(body: &MessageBody) -> String {
    let answer = |granted: &bool| if *granted { ", granted" } else { ", refused" };
    let detail = match body {
        MessageBody::Vote { granted } | MessageBody::PreVoteReply { granted, .. } => {
            answer(granted)
        }
        MessageBody::RequestVote { transfer: true, .. } => ", transfer",
        MessageBody::PreVote { .. }
        | MessageBody::RequestVote { .. }
        | MessageBody::Append { .. }
        | MessageBody::AppendReply { .. }
        | MessageBody::AppendRejected { .. }
        | MessageBody::Commit { .. }
        | MessageBody::Heartbeat { .. }
        | MessageBody::HeartbeatReply { .. }
        | MessageBody::ReadIndex { .. }
        | MessageBody::ReadIndexReply { .. }
        | MessageBody::TimeoutNow
        | MessageBody::StaleTerm => "",
    };
    format!("{}{detail}", body.name())
}

fn table() -> String {
    let mut out = HEAD.to_owned();
    for (title, term) in [
        ("A message of the current term", TERM),
        ("A message of an older term (4)", TERM - 1),
        ("A message of a newer term (6)", TERM + 1),
    ] {
        write!(out, "\n## {title}\n\n| message |").unwrap();
        for (_, role) in STARTS {
            write!(out, " {role} |").unwrap();
        }
        out.push_str("\n|---|---|---|---|---|---|\n");
        for (name, body) in rows() {
            write!(out, "| {name} |").unwrap();
            for (start, _) in STARTS {
                let effect = effect(start, message(term, body.clone()));
                let space = if effect.is_empty() { "" } else { " " };
                write!(out, " {effect}{space}|").unwrap();
            }
            out.push('\n');
        }
    }
    out
}

#[test]
fn the_table_of_roles_and_messages_is_up_to_date() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE);
    let printed = table();
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(&path, &printed).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(printed, kept, "{TABLE} differs from what members do");
}

#[test]
fn every_kind_of_message_has_a_row() {
    let names: std::collections::BTreeSet<_> = rows().iter().map(|(_, body)| body.name()).collect();
    assert_eq!(names.len(), 14, "{names:?}");
}
