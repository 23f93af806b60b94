//! What the client port and its connections share: limits, the server's phase, and how a connection fails.

use std::time::Duration;

/// How long a new connection may stay silent.
pub(super) const SILENCE_MAX: Duration = Duration::from_mins(2);

/// Why a connection ended early.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Limits on client connections.
#[derive(Clone, Copy, Debug)]
pub struct ListenLimits {
    /// Open connections; further ones are closed when they are accepted.
    pub connections_max: usize,
    /// Concurrent calls on one connection.
    pub streams_max: u32,
    /// How long a connection may be idle before it is pinged.
    pub keepalive_interval: Duration,
    /// The same while client connections are scarce.
    pub keepalive_scarce: Duration,
    /// How long the client may take to answer a ping.
    pub keepalive_timeout: Duration,
    /// How long calls in flight may take to end when the server stops.
    pub stop_timeout: Duration,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            streams_max: 16_384,
            keepalive_interval: Duration::from_hours(2),
            keepalive_scarce: Duration::from_mins(1),
            keepalive_timeout: Duration::from_secs(20),
            stop_timeout: Duration::from_secs(5),
        }
    }
}

/// How far the shutdown of the client port has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServingPhase {
    /// Connections and calls are accepted.
    #[default]
    Serving,
    /// No new connections and calls are accepted; calls in flight may end.
    Draining,
    /// All connections are closed.
    Closed,
}

impl ServingPhase {
    /// Whether the shutdown has begun.
    pub fn is_stopping(self) -> bool {
        self != Self::Serving
    }
}
