//! Limits how often a warning is logged that a client or another member can cause again and again.
//!
//! A place that logs such a warning has a gate. It lets the same text pass once a minute. Different texts within a minute are
//! bounded too, so that a text with a varying part cannot fill a disk either.

use crate::clock;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How long a text that was logged is not logged again.
const QUIET: Duration = Duration::from_mins(1);

/// Different texts within that time.
const TEXTS_MAX: usize = 64;

/// Lets a text pass that it has not let pass within the last minute.
#[derive(Debug, Default)]
pub(crate) struct LogGate {
    passed: Mutex<BTreeMap<String, Instant>>,
}

impl LogGate {
    pub(crate) const fn new() -> Self {
        Self {
            passed: Mutex::new(BTreeMap::new()),
        }
    }

    /// Whether to log this now; [`warn!`] and [`error!`] ask.
    pub(crate) fn passes(&self, text: &str) -> bool {
        let now = clock::now();
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.retain(|_, at| now.saturating_duration_since(*at) < QUIET);
        if passed.len() >= TEXTS_MAX || passed.contains_key(text) {
            return false;
        }
        passed.insert(text.to_owned(), now);
        true
    }

    /// Lets texts that begin with `prefix` pass again at once.
    pub(crate) fn forget(&self, prefix: &str) {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.retain(|text, _| !text.starts_with(prefix));
    }

    /// The texts that passed within the last minute.
    #[cfg(test)]
    pub(crate) fn texts(&self) -> Vec<String> {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.keys().cloned().collect()
    }
}

/// Logs a warning if its text passes the gate, and at level debug otherwise: `log_gate::warn!(GATE, "{peer} is gone")`. A macro,
/// because an event's target is the module in which it is written: that of the caller, by which operators filter.
macro_rules! gated_warn {
    ($gate:expr, $($text:tt)+) => {{
        let text = format!($($text)+);
        if $gate.passes(&text) {
            tracing::warn!("{text}");
        } else {
            tracing::debug!("{text}");
        }
    }};
}

/// As [`warn!`], for an error.
macro_rules! gated_error {
    ($gate:expr, $($text:tt)+) => {{
        let text = format!($($text)+);
        if $gate.passes(&text) {
            tracing::error!("{text}");
        } else {
            tracing::debug!("{text}");
        }
    }};
}

pub(crate) use {gated_error as error, gated_warn as warn};

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tracing::{Level, Subscriber};
    use tracing_subscriber::{
        Layer,
        layer::{Context, SubscriberExt},
    };

    #[tokio::test(start_paused = true)]
    async fn the_same_text_passes_once_a_minute() {
        let gate = LogGate::new();
        assert!(gate.passes("n1: refused"));
        assert!(!gate.passes("n1: refused"));
        assert!(gate.passes("n2: refused"), "another text is news");
        gate.forget("n1");
        assert!(gate.passes("n1: refused"), "what happens anew is news");
        assert_eq!(gate.texts(), ["n1: refused", "n2: refused"]);
        tokio::time::advance(QUIET).await;
        assert!(gate.passes("n2: refused"), "once more after a minute");
    }

    /// Level and target of each event.
    #[derive(Clone, Default)]
    struct Events(Arc<Mutex<Vec<(Level, String)>>>);

    impl<S: Subscriber> Layer<S> for Events {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            let metadata = event.metadata();
            let seen = (*metadata.level(), metadata.target().to_owned());
            self.0.lock().unwrap().push(seen);
        }
    }

    mod caller {
        use super::super::LogGate;

        pub(super) fn warn_and_fail(gate: &LogGate) {
            let what = "text";
            crate::log_gate::warn!(gate, "a {what}");
            crate::log_gate::error!(gate, "another {what}");
            crate::log_gate::error!(gate, "another {what}");
        }
    }

    #[test]
    fn an_event_is_logged_under_its_callers_module() {
        let events = Events::default();
        let subscriber = tracing_subscriber::registry().with(events.clone());
        let gate = LogGate::new();
        tracing::subscriber::with_default(subscriber, || caller::warn_and_fail(&gate));
        let target = concat!(module_path!(), "::caller").to_owned();
        let levels = [Level::WARN, Level::ERROR, Level::DEBUG];
        assert_eq!(
            *events.0.lock().unwrap(),
            levels.map(|level| (level, target.clone()))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_text_that_varies_passes_a_bounded_number_of_times() {
        let gate = LogGate::new();
        let passed = (0..10 * TEXTS_MAX).filter(|n| gate.passes(&n.to_string()));
        assert_eq!(passed.count(), TEXTS_MAX);
        assert_eq!(gate.texts().len(), TEXTS_MAX, "and so is its memory");
        tokio::time::advance(QUIET).await;
        assert!(gate.passes("later"));
    }
}
