//! Fail-stop: when an essential actor cannot go on, the whole member stops, with a clear last log line.
//!
//! A member that goes on although one of its actors ended, or its disk failed, is worse than a stopped one: peers and clients
//! would wait for it. So no actor is restarted: the process ends, and the next startup, which is tested, begins from what is on
//! disk.

use std::{fmt, sync::Arc, thread};

/// Exit code of a member that was removed from its cluster: starting it again is of no use.
pub const EXIT_REMOVED: i32 = 3;

/// Exit code of a start that an operator has to put right: starting again, with nothing changed, is refused again.
pub const EXIT_REFUSED: u8 = 4;

/// Exit code of a member that cannot go on: starting it again may help.
const EXIT_FAILED: i32 = 1;

/// Why a member ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// An error, or a bug.
    Failed,
    /// It is no longer in its cluster.
    Removed,
}

/// What ends the member.
type EndHook = dyn Fn(End, &str) + Send + Sync;

/// Ends the member. Cheap to clone; every essential actor holds one.
#[derive(Clone)]
pub struct FailStop {
    end: Arc<EndHook>,
}

impl FailStop {
    /// Ends the process.
    pub fn process() -> Self {
        let end = |why, _: &str| {
            let code = match why {
                End::Failed => EXIT_FAILED,
                End::Removed => EXIT_REMOVED,
            };
            #[expect(clippy::disallowed_methods, reason = "this is the fail-stop path")]
            std::process::exit(code);
        };
        Self { end: Arc::new(end) }
    }

    /// Calls `end` with the reason, for programs that embed a node and for simulations.
    pub fn new(end: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            end: Arc::new(move |_, reason| end(reason)),
        }
    }

    /// Stops the member because of an error.
    pub fn because(&self, what: &str, error: &dyn std::error::Error) {
        let reason = format!("{what}: {}", chain(error));
        self.now(&reason);
    }

    pub fn now(&self, reason: &str) {
        tracing::error!("this member stops: {reason}");
        (self.end)(End::Failed, reason);
    }

    /// Stops a member that was removed from its cluster, which is no failure.
    pub fn removed(&self, reason: &str) {
        tracing::warn!("this member stops: {reason}");
        (self.end)(End::Removed, reason);
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

/// Held by an essential actor: if the actor panics, the member stops.
///
/// Release builds abort on a panic; this is for programs that embed a node and unwind.
#[derive(Debug)]
pub struct Lifeline {
    actor: &'static str,
    fail_stop: FailStop,
}

impl Lifeline {
    pub fn new(actor: &'static str, fail_stop: FailStop) -> Self {
        Self { actor, fail_stop }
    }

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
                // The system is stopping, and the receiver has ended already.
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
