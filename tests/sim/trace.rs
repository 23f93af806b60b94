//! The trace of a run: every event goes into a hash, by which two runs are compared, and a replay prints it.

use std::{
    fmt::{self, Write as _},
    hash::{DefaultHasher, Hasher},
};

/// The events of a run, in order.
#[derive(Debug)]
pub(crate) struct Trace {
    hasher: DefaultHasher,
    shown: bool,
    /// The latest faults, which a failure prints.
    newest: std::collections::VecDeque<String>,
}

/// How many of the latest events a failure prints.
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

    /// Adds an event. The numbers go into the hash; the text is made only if it is printed.
    pub(crate) fn event(&mut self, at: u64, numbers: &[u64], text: impl FnOnce() -> String) {
        self.hasher.write_u64(at);
        for number in numbers {
            self.hasher.write_u64(*number);
        }
        if self.shown {
            self.print(at, &text());
        }
    }

    /// Adds a rare event that helps to understand a failure, which prints it.
    pub(crate) fn log_event(&mut self, at: u64, text: impl fmt::Display) {
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

    /// Equal for two runs of one seed.
    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// The latest faults and starts, a line each.
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
