//! Watches, pure: changes in; responses to streams out. No clock, no I/O, no async.
//!
//! A watcher is a cursor into history: the first revision it has not been sent. One whose cursor is past the newest revision
//! is *synced*: a change finds it through [`intervals`], and its event goes out at once. One whose cursor lies behind is in
//! turn *queued*, *reading* (a bounded pass over recent events or over stored history, see [`catch_up`]) and, while its
//! stream has no room, *starved*. Nothing is kept for it meanwhile but the cursor. `docs/watch.md` has the table of
//! states, the invariants and all bounds.
//!
//! # A worked example
//!
//! The newest revision is 10. Watcher A of `a/` starts at 0: its cursor is 11, and it is synced. Watcher B of `a/` starts
//! at 3: its cursor is 3, it is queued, and a pass over [3, 10] is made for it. Meanwhile revision 11 changes `a/x`: A is
//! sent the event; B is not in the intervals, so 11 waits for it in history. The pass ends: B is sent what it found, its
//! cursor is 11, and it is queued again. The next pass, over the recent events, sends it revision 11; its cursor is 12, and
//! it joins the intervals.
//!
//! Now A's client stops reading, and its stream is full when revision 12 comes: A leaves the intervals with its cursor at 12.
//! When the stream has room again, A is queued and catches up as B did.
//!
//! An event can carry the previous value. Publishing a change never reads a disk for it: either the value is in memory (among the
//! recent events, or among records that the database does not hold yet), or the watchers that need it are queued and read it
//! from the database, without delaying any other watcher.

pub mod catch_up;
mod event;
mod events;
pub mod intervals;
#[cfg(test)]
mod model;
mod recent;
mod spec;
mod watches;

pub use catch_up::{CatchUp, History, Memory, ReadTask, Visit};
pub use event::Event;
pub use events::Events;
pub use spec::{
    Body, Filters, HolderId, Outlet, Refusal, Response, StreamId, WatchId, WatchSpec, WatcherKey,
};
pub use watches::{Bounds, Watches};
