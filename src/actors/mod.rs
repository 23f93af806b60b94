//! The concurrent parts of a node. Each actor owns its state alone; actors exchange typed messages.
//!
//! | actor | owns |
//! |---|---|
//! | [`raft_node::RaftNode`] | consensus, waiting proposals and reads |
//! | [`wal_writer::WalWriter`] | the write-ahead log's segments |
//! | [`applier::Applier`] | the replicated state, the tail of records not yet in the database |
//! | [`index::Index`] | the B-tree from key to metadata and history |
//! | [`committer::Committer`] | the database's write transaction |
//! | [`compactor::Compactor`] | the progress of compactions |
//! | [`watch_hub::WatchHub`] | watchers, and the queues of their streams |
//! | [`lease_manager::LeaseManager`] | the countdown of leases |
//! | [`peer_hub::PeerHub`] | the connections to the other members |
//! | [`snapshots::Snapshots`] | snapshots that are being sent or received |
//!
//! [`requests::Requests`] is the interface for front ends, and [`store::Store`] offers the same in messages. [`consensus`],
//! [`apply_messages`], [`snapshot_messages`], [`lease_messages`], [`watch_calls`], [`state_check`] and [`raft_status`] hold what
//! several actors send or read; they import no actor. [`published::Published`] is the view that reads use, and
//! [`request_error::RequestError`] the reasons for which a request fails. [`etcd_image`] makes images of the database for
//! clients. [`latest`] publishes the newest value of something to many readers, [`mailbox`] gives an actor its address before it
//! starts, and [`fail_stop`] ends a member that cannot go on, and [`held`] counts the bytes that a member holds.

#[cfg(test)]
mod alone;
pub mod answered;
pub mod applier;
pub mod apply_messages;
pub mod auth_requests;
mod background;
pub mod committer;
pub mod compaction_hashes;
pub mod compactor;
pub mod consensus;
pub mod etcd_image;
mod expiry_pace;
pub mod fail_stop;
pub mod held;
pub mod index;
mod installation;
pub mod jwt_desk;
pub mod jwt_keys;
pub mod latest;
pub mod lease_desk;
pub mod lease_manager;
pub mod lease_messages;
pub mod leases;
pub mod load;
pub mod login_bounds;
pub mod mailbox;
pub mod members;
pub mod membership_change;
pub mod passwords;
pub mod peer_ask;
pub mod peer_hub;
pub mod published;
pub mod quota;
pub mod raft_node;
pub mod raft_status;
pub mod range_chunks;
pub mod replies;
pub mod request_error;
pub mod requests;
mod short_reads;
pub mod snapshot_messages;
pub mod snapshots;
pub mod state_check;
pub mod store;
pub mod token_keeper;
pub mod wal_writer;
pub mod watch_calls;
mod watch_clock;
#[cfg(test)]
mod watch_gaps;
pub mod watch_hub;
pub mod watch_messages;
mod watch_outbox;
pub mod watch_stream;
