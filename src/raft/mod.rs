//! Consensus, pure.

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
pub use message::{Body, Envelope, LogId, Message};
pub use node::Node;
