//! Says how long certificates are still valid: when they are taken up, and once a day in their last thirty days.

use super::{error::TlsError, facts::Facts, pem};
use rustls::pki_types::CertificateDer;
use std::path::{Path, PathBuf};

const DAY_SECS: i64 = 86_400;
/// From so many days on, it is said every day.
const DAYS_LEFT_SAID: i64 = 30;

/// The whole days that a certificate is still valid at `now`, in seconds since 1970; negative once it has ended.
fn days_between(now: i64, not_after: i64) -> i64 {
    (not_after - now).div_euclid(DAY_SECS)
}

/// The whole days at `now`, in seconds since 1970, that the certificates in a file are still valid, the shortest counts.
pub fn days_left(path: &Path, now: u64) -> Result<i64, TlsError> {
    let ends = ends(&pem::certificates(path)?);
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let earliest = ends.into_iter().min();
    earliest
        .map(|end| days_between(now, end))
        .ok_or_else(|| TlsError::Pem {
            path: path.to_owned(),
            problem: "the dates in it cannot be read".to_owned(),
        })
}

/// When each certificate ends; none if one of them cannot be read.
fn ends(chain: &[CertificateDer<'_>]) -> Vec<i64> {
    let ends = chain
        .iter()
        .map(|cert| Facts::of(cert).map(|facts| facts.not_after));
    ends.collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// What is to be said of one certificate, and when it was last said.
#[derive(Debug)]
pub struct ExpiryLog {
    /// Whose certificate it is.
    whose: &'static str,
    path: PathBuf,
    /// When the certificates of the chain end, its own first.
    ends: Vec<i64>,
    said_on_day: Option<i64>,
}

impl ExpiryLog {
    /// For the certificate of `path`.
    pub fn new(whose: &'static str, path: &Path) -> Self {
        Self {
            whose,
            path: path.to_owned(),
            ends: Vec::new(),
            said_on_day: None,
        }
    }

    /// A chain was taken up: that is said at the next look.
    pub fn took(&mut self, chain: &[CertificateDer<'_>]) {
        self.ends = ends(chain);
        self.said_on_day = None;
    }

    /// Logs what is due at `now`, in seconds since 1970.
    pub fn look(&mut self, now: u64) {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let Some(days) = self.due(now) else {
            return;
        };
        let (whose, path) = (self.whose, self.path.display());
        if days < 0 {
            tracing::error!(
                "{whose}, {path}, has ended: nobody who checks it connects; replace it"
            );
        } else if days < DAYS_LEFT_SAID {
            tracing::warn!(
                "{whose}, {path}, ends in {days} days: replace it; no restart is needed"
            );
        } else {
            tracing::info!("{whose}, {path}, is valid for {days} days");
        }
        if days >= 0 && self.some_ended(now) {
            tracing::warn!(
                "{whose}, {path}: another certificate of the file has ended, and who finds no other way to an authority does not \
                 connect; leave it out, or replace it"
            );
        }
    }

    fn some_ended(&self, now: i64) -> bool {
        self.ends.iter().any(|end| *end < now)
    }

    /// The end that counts: its own, or an earlier one of another certificate until that has passed. It may not be needed.
    fn end(&self, now: i64) -> Option<i64> {
        let own = *self.ends.first()?;
        let others = self.ends.iter().filter(|end| **end >= now);
        Some(others.fold(own, |earliest, end| earliest.min(*end)))
    }

    /// The days left, if they are to be said now.
    fn due(&mut self, now: i64) -> Option<i64> {
        let days = days_between(now, self.end(now)?);
        let today = now.div_euclid(DAY_SECS);
        let due = match self.said_on_day {
            None => true,
            Some(day) => (days < DAYS_LEFT_SAID || self.some_ended(now)) && day != today,
        };
        due.then(|| {
            self.said_on_day = Some(today);
            days
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_first_and_daily_near_the_end() {
        let mut log = ExpiryLog::new("the certificate", Path::new("x"));
        log.ends = vec![40 * DAY_SECS];
        let said: Vec<(i64, i64)> = (0..=42 * 24)
            .filter_map(|hour| Some((hour / 24, log.due(hour * 3_600)?)))
            .collect();
        assert_eq!(said[0], (0, 40));
        assert_eq!(
            said[1],
            (10, 29),
            "the first day with fewer than thirty left"
        );
        let daily: Vec<i64> = said[1..].iter().map(|(day, _)| *day).collect();
        assert_eq!(daily, (10..=42).collect::<Vec<_>>());
        assert_eq!(said.last(), Some(&(42, -2)), "also after the end");
        assert_eq!(log.due(42 * DAY_SECS + 1), None, "once a day");
        log.said_on_day = None;
        assert!(
            log.due(42 * DAY_SECS).is_some(),
            "a new one is said at once"
        );
    }

    #[test]
    fn another_certificate_of_the_chain_counts_until_it_has_ended() {
        let mut log = ExpiryLog::new("the certificate", Path::new("x"));
        log.ends = vec![400 * DAY_SECS, 40 * DAY_SECS];
        let at = |log: &mut ExpiryLog, day: i64| log.due(day * DAY_SECS + 1);
        assert_eq!(at(&mut log, 0), Some(39));
        assert_eq!(at(&mut log, 1), None);
        assert_eq!(at(&mut log, 39), Some(0));
        assert_eq!(at(&mut log, 50), Some(349), "its own days are left");
        assert_eq!(at(&mut log, 51), Some(348), "every day, as one has ended");
        assert_eq!(at(&mut log, 401), Some(-2), "its own end counts");
    }
}
