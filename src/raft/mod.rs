//! Consensus: the members agree on one log, and no committed entry of it ever changes.
//!
//! This module is **pure**: no clock, no disk, no network, no threads. Input goes in by method calls on a
//! [`RaftCore`] (a message arrived, a tick passed, a client proposes, the disk finished); what must be done about it
//! comes out as a [`Ready`]. So a whole cluster runs in one thread from one seed, which is how it is tested.
//! It does not read commands, keeps no list of waiting clients, and has members by id only: names and
//! addresses are a context that it stores beside the id.
//!
//! It follows the Raft paper and Ongaro's thesis, and etcd where they leave a choice.
//!
//! # The caller's loop
//!
//! A cluster of one voter, whose disk is a vector. In the program, `actors::raft_node` runs this loop, and the writes, reads
//! and messages go to other threads: each report comes back later, as an input.
//!
//! ```
//! # use quorate::internals::raft::{Config, InitialState, Membership, RaftCore, Ready};
//! # use quorate::internals::types::{Entry, EntryKind, LogIndex, MemberId};
//! # use bytes::Bytes;
//! /// What the caller owns besides consensus.
//! #[derive(Default)]
//! struct Host {
//!     wal: Vec<Entry>,
//!     state_machine: Vec<Bytes>,
//!     applied: LogIndex,
//!     reads: Vec<(u64, LogIndex)>, // wait until their index is applied
//! }
//!
//! impl Host {
//!     fn carry_out(&mut self, core: &mut RaftCore) {
//!         while let Some(ready) = core.ready() {
//!             // Every field is named here, so that a new effect cannot be forgotten.
//!             let Ready { persist, messages, committed, reads, snapshots, log_reads, status } = ready;
//!             if let Some(persist) = persist {
//!                 let from = persist.entries.first().map_or(LogIndex(u64::MAX), |first| first.index);
//!                 self.wal.retain(|entry| entry.index < from);
//!                 self.wal.extend(persist.entries); // with the hard state; then sync
//!                 core.persisted(persist.seq); // only when the sync is over
//!             }
//!             for envelope in messages {
//!                 panic!("{} is the only member", envelope.to); // send it; the receiver calls `step`
//!             }
//!             for entry in committed {
//!                 if entry.kind == EntryKind::Command {
//!                     self.state_machine.push(entry.data); // and answer the client that proposed it
//!                 }
//!                 self.applied = entry.index;
//!                 core.applied(entry.index);
//!             }
//!             for read in reads {
//!                 self.reads.push((read.context, read.outcome.expect("there is a leader")));
//!             }
//!             assert!(snapshots.is_empty(), "send each; then `snapshot_sent` or `snapshot_failed`");
//!             assert!(log_reads.is_empty(), "read each on another thread; then `log_read`");
//!             if let Some(status) = status {
//!                 println!("{:?} in term {}", status.role, status.term.0);
//!             }
//!         }
//!     }
//! }
//!
//! let membership = Membership::of_voters([(MemberId(1), Bytes::new())])?;
//! let initial = InitialState { membership, ..InitialState::default() };
//! let mut core = RaftCore::new(Config::new(MemberId(1), 42), initial)?;
//! let mut host = Host::default();
//! host.carry_out(&mut core); // the only voter elects itself
//! assert!(core.is_leader());
//!
//! core.tick(); // every 100 ms; with other members, heartbeats and elections follow
//! let id = core.propose(Bytes::from_static(b"color=blue"))?;
//! core.read_index(7)?;
//! host.carry_out(&mut core);
//! assert_eq!(host.state_machine, ["color=blue"]);
//! assert_eq!(host.applied, id.index);
//! assert!(host.reads[0].1 <= host.applied, "read 7 may be served");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # One write, step by step
//!
//! Member 1 leads term 4 with followers 2 and 3; its log ends at index 7, all committed.
//!
//! 1. A client's command arrives. `propose(data)` appends entry 8 of term 4 and returns its id, `8@t4`. The
//!    caller keeps that to find the client again. More proposals may follow before the next step; they are sent together.
//! 2. `ready()` returns two effects at once: `persist` with entry 8, for member 1's own disk, and `messages` with
//!    an `Append` after `7@t4` for members 2 and 3. The leader's fsync and the network overlap.
//! 3. Member 2 receives the append: its log has `7@t4`, so it appends entry 8. Its `ready()` contains only `persist`.
//!    When its disk reports (`persisted(seq)`), the next `ready()` contains the `AppendReply { matched: 8 }`: an
//!    acknowledgement is a promise, and is sent only when the entry is durable.
//! 4. Member 1 receives it. If its own disk has reported too, 1 and 2 are a majority of three: 8 is committed.
//!    (If member 3 has answered as well, it is committed without member 1's disk.) `ready()` contains
//!    `committed: [8]` and a `Commit` for the members that acknowledged it.
//! 5. The caller applies entry 8, answers the client whose id is `8@t4`, and calls `applied(8)`. Members 2 and 3
//!    apply it when the `Commit` arrives.
//!
//! If member 1 dies after step 3, a new leader may have entry 8 or not, depending on who votes; the client
//! has no answer and must ask. If it dies after step 4, every possible leader has entry 8: a candidate needs
//! a majority of 1, 2 and 3, and 2 refuses every candidate whose log is shorter.
//!
//! # What is durable before what is sent
//!
//! | sent | once this is durable |
//! |---|---|
//! | by a leader: appends, heartbeats, commit indexes | its term and vote (they are, or it would not lead); *not* the entries |
//! | by a candidate: requests for votes; by any member: a vote | the term and the vote |
//! | by a follower: an acknowledgement | the term, and the entries it acknowledges |
//! | by a follower: a heartbeat reply | the term; no write at all while the term stays |
//! | a pre-vote and its reply | nothing: they promise nothing |
//! | an entry, to the state machine | that entry, here: the state machine's disk is never ahead of the own log |
//!
//! Callers need not follow this table: consensus holds back what must wait, and `persisted` releases it. The leader's own disk
//! counts towards a quorum like that of any other voter, when it has reported.
//!
//! # Choices
//!
//! - **Membership** changes one member at a time, in force when appended: [`membership`] says why that is safe.
//! - **Pre-vote and check-quorum**: a member asks whether it could win before it enters a new term; a leader steps down when no
//!   quorum replies to it for an election timeout; members with a recent leader refuse votes. So a member that is cut off and
//!   returns causes no election. A transfer of leadership is exempt: the leader asked for it.
//! - **Reads** ([`read_index`](RaftCore::read_index)) are confirmed by a heartbeat round, never by a clock.
//! - **Replication** to a follower is in one of three states: probing where the logs match, replicating ahead of replies
//!   within a bound in bytes, and waiting for a snapshot. A rejection contains the last entry that can match, so that
//!   one round trip skips a whole term of conflicts.
//! - **Memory is bounded in bytes.** Entries that are durable and committed are evicted from memory, oldest first, when
//!   there are too many. Followers that lag, and a slow state machine, get them from the WAL: [`Ready::log_reads`] requests,
//!   [`log_read`](RaftCore::log_read) answers later, and nothing waits. Terms stay in memory as runs, so that comparing logs
//!   never reads the WAL. When the WAL has dropped what a follower needs, [`Ready::snapshots`] requests a snapshot for it.
//! - **A stalled disk** ([`yield_leadership`](RaftCore::yield_leadership)) transfers leadership to the most up-to-date
//!   active follower; heartbeats go on meanwhile, since they need no disk.
//! - The rolling hash of the state machine is not part of consensus: members exchange it by requests of their own.
//!
//! # Map
//!
//! `raft_core` is the public face, `step` takes peers' messages, `reports` what disk and state machine report; `interface` has
//! the values that go in and out. `follower`, `candidate` and `leader` have what only that role has and does; `election` and
//! `transitions` change roles. `state` is what every role has: `log`, `membership`, `read_index`, `applying` and `durability`
//! (what must be durable before a message is sent) with one task each. `progress` and `quorum` help the leader, `startup`
//! builds the log from the disk.
//! `role_table.md` is what every role does with every message, printed by a test. `testscripts/` shows the behaviour one
//! situation a file; `simulation` runs random schedules.

#![warn(clippy::wildcard_enum_match_arm)]

mod applying;
mod candidate;
mod durability;
mod election;
mod follower;
mod interface;
mod leader;
mod log;
pub mod membership;
mod message;
mod progress;
mod quorum;
mod raft_core;
mod read_index;
mod reports;
#[cfg(test)]
mod role_table;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod simulation;
mod startup;
mod state;
mod step;
#[cfg(test)]
mod testing;
mod transitions;

pub use interface::{
    ChangeError, Config, HeldEntries, InitialState, InitialStateError, LogReadError, LogWrite,
    PeerStatus, ProposeError, ReadError, ReadLog, ReadLost, ReadState, Reader, Ready, Released,
    RoleName, SendSnapshot, SnapshotRefused, Status, StepError, TransferError,
};
pub use log::entry_bytes;
pub use membership::{Membership, MembershipChange, MembershipError};
pub use message::{Envelope, Message, MessageBody};
pub use raft_core::RaftCore;
