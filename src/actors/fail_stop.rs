//! What an essential actor does when it cannot go on: the whole member stops, with a clear last log line.
//!
//! A member that goes on with one of its actors dead, or after a disk lied to it, is worse than a dead one: its peers and
//! clients would wait for it. So nothing here restarts anything; the process recovers through the one tested path, its start.

use std::{fmt, sync::Arc, thread};

/// Ends the member. Cheap to clone; every essential actor holds one.
#[derive(Clone)]
pub struct FailStop {
    end: Arc<dyn Fn(&str) + Send + Sync>,
}

impl FailStop {
    /// Ends the process.
    pub fn process() -> Self {
        Self::new(|_| {
            #[expect(clippy::disallowed_methods, reason = "this is the fail-stop path")]
            std::process::exit(1);
        })
    }

    /// Calls `end` with the reason, for programs that embed a node and for simulations.
    pub fn new(end: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { end: Arc::new(end) }
    }

    /// Stops the member because of an error.
    pub fn because(&self, what: &str, error: &dyn std::error::Error) {
        let reason = format!("{what}: {}", chain(error));
        self.now(&reason);
    }

    /// Stops the member.
    pub fn now(&self, reason: &str) {
        tracing::error!("this member stops: {reason}");
        (self.end)(reason);
    }
}

impl fmt::Debug for FailStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FailStop")
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Held by an essential actor: if a panic takes the actor down, the member stops with it.
///
/// Release builds abort on a panic; this is for programs that embed a node and unwind.
#[derive(Debug)]
pub struct Lifeline {
    actor: &'static str,
    fail_stop: FailStop,
}

impl Lifeline {
    /// Watches over `actor`.
    pub fn new(actor: &'static str, fail_stop: FailStop) -> Self {
        Self { actor, fail_stop }
    }

    /// The way out on an error.
    pub fn fail_stop(&self) -> &FailStop {
        &self.fail_stop
    }

    /// Delivers a message that must arrive. Its receiver's mailbox has room for everything the senders' own bounds allow, so a
    /// full one is a bug, and a closed one means that the receiver died.
    pub fn deliver<M>(&self, to: &actix::Recipient<M>, message: M)
    where
        M: actix::Message + Send + 'static,
        M::Result: Send,
    {
        if let Err(error) = to.try_send(message) {
            match error {
                actix::prelude::SendError::Full(_) => {
                    self.fail_stop
                        .now(&format!("{}: a peer's mailbox is full", self.actor));
                }
                // The system is stopping: the receiver went first.
                actix::prelude::SendError::Closed(_) => {}
            }
        }
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        if thread::panicking() {
            self.fail_stop.now(&format!("{} panicked", self.actor));
        }
    }
}
