//! Logging of the program: formats `tracing` events on standard error. Programs that embed a node install a subscriber of their
//! own.

use crate::config::{LogConfig, LogFormat};
use std::io::{IsTerminal, stderr};
use tracing::Level;
use tracing_subscriber::{filter::Targets, fmt::layer, prelude::*};

/// Sends events to standard error from now on. Call it once, at the start of the program.
pub fn start(config: &LogConfig) {
    let registry = tracing_subscriber::registry().with(filter(config.level));
    match config.format {
        LogFormat::Auto => {
            registry
                .with(
                    layer()
                        .with_writer(stderr)
                        .with_ansi(stderr().is_terminal()),
                )
                .init();
        }
        LogFormat::Text => registry
            .with(layer().with_writer(stderr).with_ansi(false))
            .init(),
        LogFormat::Json => {
            registry
                .with(layer().json().flatten_event(true).with_writer(stderr))
                .init();
        }
    }
}

/// Our own events from `level` up; those of libraries from `warn` up at most.
fn filter(level: Level) -> Targets {
    Targets::new()
        .with_default(level.min(Level::WARN))
        .with_target("quorate", level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quieter_than_we_are() {
        let debug = filter(Level::DEBUG);
        assert!(debug.would_enable("quorate::node", &Level::DEBUG), "ours");
        assert!(
            !debug.would_enable("h2::codec", &Level::INFO),
            "a library's details"
        );
        assert!(
            debug.would_enable("h2::codec", &Level::WARN),
            "a library's trouble"
        );
        assert!(
            !filter(Level::ERROR).would_enable("h2::codec", &Level::WARN),
            "not asked for"
        );
    }
}
