//! The data of a stopped etcd: its database, and the entries that its log has beyond it. `quorate import` brings them over.
//!
//! ```text
//! member/snap/db   ──▶ loaded as an image, as a restore does it ──▶ a database of ours, after its entry 1
//! member/wal       ──▶ translate ──▶ judge ──▶ the state machine ──▶ the same database, in batches
//! ```
//!
//! - `source`: which database counts, and which entries of the log.
//! - `translate`: an entry as a command. Nothing of a request is dropped silently.
//! - `judge`: what the state machine cannot know of an etcd: who asked, and which version decided.
//! - `replay`: the commands applied to the database.
//!
//! **Nothing is guessed.** A request that is judged otherwise than the etcd judged it would shift every revision after it. So
//! where versions of etcd differ, or where the data do not say what happened, the import stops, names the entry, and says what
//! to do.
//!
//! **Everybody gets the same.** Each member of the new cluster imports the same directory by itself. Nothing here reads a clock
//! or a random number; the salt of a password that the log has in plain is made from its entry.
//!
//! Left out: the directory of the new member, its marks and renames, and the loading of an image.

mod error;
mod judge;
mod password;
mod replay;
mod requests;
mod source;
mod translate;

pub use {
    error::{EntryFault, ImportError},
    judge::NestedPuts,
    replay::Replayed,
    source::{Choices, Source, Uncommitted},
};
