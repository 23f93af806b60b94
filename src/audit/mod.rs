//! The audit log: who did what, and who was refused, as one JSON object a line. `docs/audit.md` describes the lines.
//!
//! A front end opens a [`Line`] when a call begins (`log`), says what it is about (`entry`), and closes it when the call
//! ends. It goes into a queue (`queue`) that never makes a call wait; one thread (`writer`) turns what is there into text
//! (`text`) and writes it. A line that is dropped without being closed belongs to a call that was cancelled.
//!
//! A line has no field that could hold a password, a token or a value.

mod entry;
mod file;
mod log;
mod queue;
mod text;
mod writer;

pub use entry::{Call, Ended, Kind, Shown, Subject, Target, TxnSubject};
pub use file::FileLimits;
pub use log::{Audit, Level, Line};
pub use queue::AuditCounts;
pub use writer::{AuditError, OpenOutput, Output};

#[cfg(test)]
mod tests;
