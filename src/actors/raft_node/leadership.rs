//! The leaders that this member has followed, from which follows why a request timed out; and a member that must not lead any
//! more.

use crate::{
    actors::request_error::RequestError,
    types::{MemberId, Term},
};
use std::time::Duration;
use tokio::{sync::oneshot, time::Instant};

/// The newest leader that this member has known, if any.
#[derive(Debug, Default)]
pub(super) struct Leadership(Option<KnownLeader>);

#[derive(Clone, Copy, Debug)]
struct KnownLeader {
    leader: MemberId,
    term: Term,
    since: Instant,
    /// Another leadership that this member knew came before it.
    replaced_another: bool,
}

/// This member's relation to the leader when a request times out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaderContact {
    NoLeader,
    /// This member leads or follows, and has been connected to the quorum or the leader since the request began.
    Connected,
    /// As above, but the connection is newer than the request, or lost.
    ConnectionLost,
}

impl Leadership {
    pub(super) fn led_by(&mut self, leader: MemberId, term: Term, now: Instant) {
        let before = self.0;
        if before.is_none_or(|before| (before.leader, before.term) != (leader, term)) {
            self.0 = Some(KnownLeader {
                leader,
                term,
                since: now,
                replaced_another: before.is_some(),
            });
        }
    }

    /// Why a request that began `began` timed out, with etcd's distinctions. `election` is the election timeout.
    pub(super) fn late(
        &self,
        began: Instant,
        election: Duration,
        contact: LeaderContact,
    ) -> RequestError {
        let Some(known) = self.0 else {
            return RequestError::TimedOut;
        };
        // The former leader was lost at most so long before there was a new one.
        let lost = known.since.checked_sub(election * 2).unwrap_or(known.since);
        if began > lost && began < known.since && known.replaced_another {
            return RequestError::TimedOutLeaderFailed;
        }
        match contact {
            LeaderContact::ConnectionLost => RequestError::TimedOutConnectionLost,
            LeaderContact::NoLeader | LeaderContact::Connected => RequestError::TimedOut,
        }
    }
}

/// A member that is about to stop.
#[derive(Debug)]
pub(super) struct Stopping {
    pub(super) until: Instant,
    /// Callers that wait until another member leads.
    pub(super) done: Option<oneshot::Sender<()>>,
}

impl Stopping {
    /// Answers all that wait.
    pub(super) fn end(&mut self) {
        if let Some(done) = self.done.take() {
            // A caller may have canceled its wait at the same moment.
            done.send(()).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const ELECTION: Duration = Duration::from_secs(1);

    fn late(leadership: &Leadership, began: Instant, contact: LeaderContact) -> RequestError {
        leadership.late(began, ELECTION, contact)
    }

    #[test]
    fn a_request_from_just_before_a_change_of_leader_failed_with_the_old_one() {
        let start = clock::now() + ELECTION * 10;
        let mut leadership = Leadership::default();
        let (one, two) = (MemberId(1), MemberId(2));
        leadership.led_by(one, Term(1), start);
        let connected = LeaderContact::Connected;
        let before = start - ELECTION;
        assert!(matches!(
            late(&leadership, before, connected),
            RequestError::TimedOut
        ));
        let change = start + ELECTION * 5;
        leadership.led_by(two, Term(2), change);
        leadership.led_by(two, Term(2), change + ELECTION);
        let failed = late(&leadership, change - ELECTION, connected);
        assert!(matches!(failed, RequestError::TimedOutLeaderFailed));
        let earlier = late(&leadership, change - ELECTION * 3, connected);
        assert!(
            matches!(earlier, RequestError::TimedOut),
            "the old leader had time"
        );
        let later = late(&leadership, change + ELECTION, connected);
        assert!(matches!(later, RequestError::TimedOut));
    }

    #[test]
    fn a_lost_connection_is_told_apart() {
        let start = clock::now();
        let mut leadership = Leadership::default();
        let lost = LeaderContact::ConnectionLost;
        assert!(matches!(
            late(&leadership, start, lost),
            RequestError::TimedOut
        ));
        leadership.led_by(MemberId(1), Term(1), start);
        let error = late(&leadership, start, lost);
        assert!(matches!(error, RequestError::TimedOutConnectionLost));
        let error = late(&leadership, start, LeaderContact::NoLeader);
        assert!(matches!(error, RequestError::TimedOut));
    }
}
