//! The trace of a run: every event goes into one hash, by which two runs are compared, and, in a replay, to the terminal.

use std::{
    fmt::{self, Write as _},
    hash::{DefaultHasher, Hasher},
};

/// What happened, in order.
#[derive(Debug)]
pub(crate) struct Trace {
    hasher: DefaultHasher,
    shown: bool,
    /// The newest faults, which a failure tells.
    newest: std::collections::VecDeque<String>,
}

/// Lines that a failure shows of what came before it.
const NEWEST_MAX: usize = 40;

impl Trace {
    /// An empty trace; `shown` prints each event.
    pub(crate) fn new(shown: bool) -> Self {
        Self {
            hasher: DefaultHasher::new(),
            shown,
            newest: std::collections::VecDeque::new(),
        }
    }

    /// Notes an event: numbers that tell it from others, and how it reads. The text is made only if somebody reads it.
    pub(crate) fn event(&mut self, at: u64, numbers: &[u64], text: impl FnOnce() -> String) {
        self.hasher.write_u64(at);
        for number in numbers {
            self.hasher.write_u64(*number);
        }
        if self.shown {
            self.print(at, &text());
        }
    }

    /// Notes an event that is rare and matters: it is shown with a failure.
    pub(crate) fn story(&mut self, at: u64, text: impl fmt::Display) {
        let text = text.to_string();
        self.hasher.write_u64(at);
        self.hasher.write(text.as_bytes());
        if self.shown {
            self.print(at, &text);
        }
        if self.newest.len() == NEWEST_MAX {
            self.newest.pop_front();
        }
        self.newest.push_back(format!("{} {text}", stamp(at)));
    }

    #[expect(clippy::print_stdout, reason = "a replay is read on the terminal")]
    #[expect(clippy::unused_self, reason = "printing is what a trace does")]
    fn print(&self, at: u64, text: &str) {
        println!("{} {text}", stamp(at));
    }

    /// What tells this run from others.
    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// The newest faults and starts.
    pub(crate) fn newest(&self) -> String {
        let mut all = String::new();
        for line in &self.newest {
            writeln!(all, "  {line}").unwrap_or_default();
        }
        all
    }
}

fn stamp(at: u64) -> String {
    format!("{:>4}.{:03}", at / 1000, at % 1000)
}

/// The hash of bytes, for [`Trace::event`].
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
