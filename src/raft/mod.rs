//! Consensus: the members agree on one log, and never go back on it.
//!
//! This module is **pure**: no clock, no disk, no network, no threads. Input goes in by method calls on a
//! [`Node`] (a message arrived, a tick passed, a client proposes, the disk finished); what must be done about it
//! comes out as a [`Ready`]. So a whole cluster runs in one thread from one seed, which is how it is tested.
//! It never looks into commands, never keeps a client waiting list, and knows members by id only: names and
//! addresses are a context that it stores beside the id.
//!
//! It follows the Raft paper and Ongaro's thesis, and etcd where they leave a choice.
//!
//! # One write, step by step
//!
//! Member 1 leads term 4 with followers 2 and 3; its log ends at index 7, all committed.
//!
//! 1. A client's command arrives. `propose(data)` appends entry 8 of term 4 and returns its id, `8@t4`. The
//!    caller keeps that to find the client again. More may follow before the next step; they share it.
//! 2. `ready()` returns two effects at once: `persist` with entry 8, for member 1's own disk, and `messages` with
//!    an `Append` after `7@t4` for members 2 and 3. The leader's fsync and the network overlap.
//! 3. Member 2 gets the append: its log has `7@t4`, so it appends entry 8. Its `ready()` holds only `persist`.
//!    When its disk reports (`persisted(seq)`), the next `ready()` holds the `AppendReply { matched: 8 }`: an
//!    acknowledgement is a promise, and leaves only when it is durable.
//! 4. Member 1 hears it. If its own disk has reported too, 1 and 2 are a majority of three: 8 is committed.
//!    (Had member 3 answered as well, it would be committed without member 1's disk.) `ready()` holds
//!    `committed: [8]` and a `Commit` for those who acknowledged it.
//! 5. The caller applies entry 8, answers the client whose id is `8@t4`, and calls `applied(8)`. Members 2 and 3
//!    apply it when the `Commit` arrives.
//!
//! Had member 1 died after step 3, a new leader would have entry 8 or not, depending on who votes; the client
//! has no answer and must ask. Had it died after step 4, every possible leader has entry 8: whoever wins needs
//! a vote from 1, 2 or 3's majority, and 2 refuses anybody whose log is shorter.
//!
//! # What is durable before what is sent
//!
//! | leaves | once this is durable |
//! |---|---|
//! | leader: appends, heartbeats, commit news | its term and vote (they are, or it would not lead); *not* the entries |
//! | candidate: request for votes; anybody: a vote | the term and the vote |
//! | follower: acknowledgement | the term, and the entries it acknowledges |
//! | follower: heartbeat reply | the term; no write at all while the term stays |
//! | pre-vote and its reply | nothing: they promise nothing |
//! | an entry, to be applied | that entry, here: the state machine's disk is never ahead of the own log |
//!
//! The caller need not know this table: consensus holds back what must wait, and `persisted` releases it. The
//! leader's own disk counts towards a quorum like anybody else's, when it has reported.
//!
//! # Choices
//!
//! - **Membership** changes one member at a time, in force when appended: [`membership`] says why that is safe.
//! - **Pre-vote and check-quorum**: a member asks whether it could win before it enters a new term; a leader that
//!   hears no quorum for an election timeout steps down; while a leader is fresh, nobody helps to depose it.
//!   So a member that is cut off and returns disturbs nobody. A transfer is exempt: the leader wants it.
//! - **Reads** ([`read_index`](Node::read_index)) are confirmed by a heartbeat round, never by a clock.
//! - **Replication** knows three paces a follower: probing where logs match, replicating ahead of replies within
//!   a window of bytes, and waiting for a snapshot. A rejection carries the last place that can match, so that
//!   one round trip skips a whole term of conflicts.
//! - **Memory is bounded in bytes.** Entries that are durable and committed leave memory, oldest first, when
//!   there are too many. Laggards, and a slow state machine, are served from the WAL: [`Ready::log_reads`] asks,
//!   [`log_read`](Node::log_read) answers, nobody waits. Terms stay in memory as runs, so that comparing logs
//!   never needs the WAL. When the WAL has dropped what a follower needs, [`Ready::snapshots`] asks for one.
//! - **A stalled disk** ([`report_disk_stall`](Node::report_disk_stall)) hands leadership to the follower that is
//!   closest to it; heartbeats go on meanwhile, since they need no disk.
//! - The rolling hash of the state machine is not consensus' business: it travels beside these messages, in the
//!   frame of whoever sends them.
//!
//! # Map
//!
//! `node` is the public face, with the rules common to all roles; `interface` the values that cross the border;
//! `follower`, `candidate` and `leader` hold what only that role has and does; `common` what every role has, and
//! the gate in the table above. `log`, `progress`, `quorum`, `membership`, `read_index` and `recovery` know
//! one thing each.
//! `testscripts/` tells the behaviour one situation a file; `simulation` looks for what nobody thought of.

#![warn(clippy::wildcard_enum_match_arm)]

mod candidate;
mod common;
mod follower;
mod interface;
mod leader;
mod log;
pub mod membership;
mod message;
mod node;
mod progress;
mod quorum;
mod read_index;
mod recovery;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;

pub use interface::{
    ChangeError, Config, InitialState, InitialStateError, LogReadError, PeerStatus, Persist,
    ProposeError, ReadError, ReadLog, ReadLost, ReadState, Reader, Ready, Released, RoleName,
    SendSnapshot, SnapshotRefused, Status, StepError, TransferError,
};
pub use log::entry_bytes;
pub use membership::{Change, Membership, MembershipError};
pub use message::{Body, Envelope, Message};
pub use node::Node;
