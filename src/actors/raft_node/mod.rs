//! Raft node: owns consensus, the proposals that wait for their outcome, and the reads that wait for an index.
//!
//! It feeds messages, ticks and reports into the pure core (`crate::raft`) and carries out the core's output: entries go to
//! the WAL writer, committed ones to the applier, answers to the front ends. It decodes no command and waits for no disk.
//!
//! A proposal that finds no leader is parked until there is one. A proposal in the log waits for its entry to be
//! applied. If its time is up first, its caller gets a time-out; the write may still happen.
//!
//! # Map
//!
//! `node` is the actor, with the loop that carries out the core's output. The rules are in values of their own, each with
//! its tests: `pending_proposals`, `pending_reads` and `pending_changes` (who waits for what), `settling` (proposals whose answer
//! was lost), `leadership` (why a request timed out), `beginning` (when this member takes part), `connections` and `addresses`
//! (the other members), `log_writes`, `log_reads` and `retention` (the log), `deliveries` (to the applier), `snapshot_transfers`
//! and `guard_state`. Beside them are the message handlers, which use these values and the core: `clients`, `forwards`,
//! `changes`, `hand_over`, `links`, `log`, `snapshots`, `start_records` and `guard`. `connection_table.md` is the table of a
//! connection's states, printed by a test.

mod addresses;
mod beginning;
mod changes;
mod clients;
mod connections;
mod deliveries;
mod forwards;
mod guard;
mod guard_state;
mod hand_over;
mod leadership;
mod links;
mod log;
mod log_reads;
mod log_writes;
mod node;
mod own_messages;
mod pending_changes;
mod pending_proposals;
mod pending_reads;
mod retention;
mod settling;
mod snapshot_transfers;
mod snapshots;
mod start_records;

pub use beginning::{recorders, witnesses};
pub use node::{PeerLinks, RaftNode, RaftPacing, RaftPeers, SelfInfo};
pub use own_messages::{ForwardAnswered, HashReceived, LogReadEnded, StartsWritten};
pub use retention::LogBound;
