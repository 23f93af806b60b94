//! The files of an etcd, read and written: its database (`bolt`), which snapshots are images of, what it holds (`store`), its
//! write-ahead log (`wal`), which is only read, and the messages in both (`messages`). Nothing here knows what Quorate stores.
//!
//! Every byte read is input that may be hostile: lengths, positions and checksums are verified before they are used, memory is
//! bounded whatever a file says, and errors name the place. A file that is read is never changed.

pub mod bolt;
pub mod messages;
pub mod store;
pub mod wal;
