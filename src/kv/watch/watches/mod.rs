//! All watchers of a member, and the rules by which they move from state to state.
//!
//! `table` has the watchers, their states and the transitions; `streams` what streams ask for; `publish` what a change does;
//! `turns` how watchers that are behind catch up, one bounded pass after the other; `groups` which watchers are sent the same.

mod groups;
mod publish;
#[cfg(test)]
mod states;
mod streams;
mod table;
mod turns;

pub use table::{Bounds, Watches};
