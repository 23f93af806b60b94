//! The beginning of a member that forms a cluster with others: it takes no part in consensus before enough of them have recorded,
//! durably, that it begins; and it records their beginnings.
//!
//! Until then it drops the messages of consensus, and its clock stands still: so it neither votes, nor campaigns, nor
//! acknowledges an entry. If it loses its disk later, it looks like a member that never ran, and these records tell the two apart
//! (`node::questions` asks for them). So many record it that any so many as a start has to ask have one of them among them.
//! `docs/data-directory.md` has the protocol, and what a crash between two of its steps does.

use crate::{
    actors::peer_ask::RecordedStart,
    net::Responder,
    storage::starts::{Origin, Starts},
    types::MemberId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// What a member waits for is logged after so long, and then again and again.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Of a cluster that so many members form, how many others record that a member begins: so many that every majority with this
/// member in it includes one of them.
pub fn recorders(members: usize) -> usize {
    let majority = members / 2 + 1;
    members - majority + 1
}

/// How many of the others have to say that they have no record of a member: then fewer than [`recorders`] can have one.
pub fn witnesses(members: usize) -> usize {
    members - recorders(members)
}

/// What the file of starts holds, and what a member that begins waits for.
#[derive(Debug)]
pub(super) struct Beginning {
    /// As it is on the disk.
    starts: Starts,
    /// `None` once this member takes part.
    awaited: Option<Awaited>,
    /// A write is under way.
    writing: bool,
    /// Who wants to be recorded by the next write, and by the one under way; one request each.
    wanted: BTreeMap<MemberId, Responder>,
    in_write: BTreeMap<MemberId, Responder>,
}

/// The records of others that a member waits for.
#[derive(Debug)]
struct Awaited {
    needed: usize,
    recorded_by: BTreeSet<MemberId>,
    asked: BTreeSet<MemberId>,
    report_at: Instant,
}

impl Beginning {
    /// `members` is how many form the cluster. `took_part`: this member's data show that it took part before, even if it ended
    /// before the file said so; then no other member is asked.
    pub(super) fn new(starts: Starts, took_part: bool, members: usize, now: Instant) -> Self {
        let awaited = (!starts.begun && !took_part && members > 1).then(|| Awaited {
            needed: recorders(members),
            recorded_by: BTreeSet::new(),
            asked: BTreeSet::new(),
            report_at: now + REPORT_EVERY,
        });
        Self {
            starts,
            awaited,
            writing: false,
            wanted: BTreeMap::new(),
            in_write: BTreeMap::new(),
        }
    }

    /// Whether this member takes part in consensus.
    pub(super) fn has_begun(&self) -> bool {
        self.awaited.is_none()
    }

    /// What this member says about another one's beginning.
    pub(super) fn record_of(&self, id: MemberId) -> RecordedStart {
        if self.starts.recorded.contains(&id) {
            RecordedStart::Recorded
        } else {
            match self.starts.origin {
                Origin::Formed | Origin::Earlier | Origin::Restored | Origin::RestoredAndAsked => {
                    RecordedStart::NotRecorded
                }
                // It came later than those that would have been asked to record.
                Origin::Joined => RecordedStart::WasNotThere,
            }
        }
    }

    /// Takes those of `others` that have to be asked now to record this member.
    pub(super) fn next_to_ask(&mut self, others: impl Iterator<Item = MemberId>) -> Vec<MemberId> {
        let Some(awaited) = &mut self.awaited else {
            return Vec::new();
        };
        let fresh = |id: &MemberId| !awaited.recorded_by.contains(id) && awaited.asked.insert(*id);
        others.filter(fresh).collect()
    }

    /// A member has recorded that this one begins, or it has not answered. Returns whether this member begins now.
    pub(super) fn answered(&mut self, by: MemberId, recorded: bool) -> bool {
        let Some(awaited) = &mut self.awaited else {
            return false;
        };
        awaited.asked.remove(&by);
        if recorded {
            awaited.recorded_by.insert(by);
        }
        let begins = awaited.recorded_by.len() >= awaited.needed;
        if begins {
            self.awaited = None;
        }
        begins
    }

    /// What is waited for, if that has to be logged again.
    pub(super) fn report(&mut self, now: Instant) -> Option<(usize, usize)> {
        let awaited = self.awaited.as_mut().filter(|it| it.report_at <= now)?;
        awaited.report_at = now + REPORT_EVERY;
        Some((awaited.recorded_by.len(), awaited.needed))
    }

    /// A member wants to be recorded. An earlier request of it that still waits is not answered: it asks again.
    pub(super) fn want(&mut self, of: MemberId, responder: Responder) {
        self.wanted.insert(of, responder);
    }

    /// The content of the next write, if there is one to begin.
    pub(super) fn next_write(&mut self) -> Option<Starts> {
        let begun = self.has_begun();
        let changes = !self.wanted.is_empty() || begun != self.starts.begun;
        if self.writing || !changes {
            return None;
        }
        self.writing = true;
        self.in_write = std::mem::take(&mut self.wanted);
        let mut next = self.starts.clone();
        next.begun = begun;
        next.recorded.extend(self.in_write.keys());
        Some(next)
    }

    /// A write is durable. Returns who waits for that.
    pub(super) fn written(&mut self, starts: Starts) -> BTreeMap<MemberId, Responder> {
        self.writing = false;
        self.starts = starts;
        std::mem::take(&mut self.in_write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const OTHERS: [MemberId; 4] = [MemberId(2), MemberId(3), MemberId(4), MemberId(5)];

    fn of(members: usize) -> Beginning {
        Beginning::new(
            Starts::new(Origin::Formed, false),
            false,
            members,
            clock::now(),
        )
    }

    #[test]
    fn those_asked_later_meet_those_that_recorded() {
        for members in 2..=9 {
            let (recorders, witnesses) = (recorders(members), witnesses(members));
            assert!(recorders + witnesses > members - 1, "{members}: they meet");
            assert!(recorders < members, "{members}: so many others there are");
            assert!(witnesses > 0, "{members}: somebody is asked");
        }
    }

    #[test]
    fn a_member_begins_once_enough_others_have_recorded_it_and_then_writes_that() {
        let mut beginning = of(5);
        assert!(!beginning.has_begun());
        assert_eq!(beginning.next_to_ask(OTHERS.into_iter()), OTHERS);
        assert!(beginning.next_to_ask(OTHERS.into_iter()).is_empty(), "once");
        assert!(!beginning.answered(OTHERS[0], true));
        assert!(!beginning.answered(OTHERS[1], false));
        let again = beginning.next_to_ask(OTHERS.into_iter());
        assert_eq!(again, [OTHERS[1]], "it gave no answer");
        assert!(!beginning.answered(OTHERS[2], true));
        assert_eq!(beginning.next_write(), None, "nothing is new yet");
        assert!(beginning.answered(OTHERS[1], true));
        assert!(beginning.has_begun());
        assert!(!beginning.answered(OTHERS[3], true), "it began before");
        let written = beginning.next_write().unwrap();
        assert!(written.begun);
        assert_eq!(beginning.next_write(), None, "one at a time");
        drop(beginning.written(written));
        assert_eq!(beginning.next_write(), None);
    }

    #[test]
    fn a_start_counts_as_recorded_once_it_is_durable() {
        let mut beginning = of(3);
        let (first, second) = (Responder::detached(), Responder::detached());
        beginning.want(OTHERS[0], first.0);
        let write = beginning.next_write().unwrap();
        beginning.want(OTHERS[1], second.0);
        assert_eq!(beginning.record_of(OTHERS[0]), RecordedStart::NotRecorded);
        let recorded = beginning.written(write);
        assert_eq!(recorded.into_keys().collect::<Vec<_>>(), [OTHERS[0]]);
        assert_eq!(beginning.record_of(OTHERS[0]), RecordedStart::Recorded);
        let next = beginning.next_write().unwrap();
        assert_eq!(next.recorded, [OTHERS[0], OTHERS[1]].into());
        assert!(!next.begun);
    }

    #[test]
    fn a_member_that_ended_before_the_file_said_so_goes_on_with_its_data() {
        let formed = Starts::new(Origin::Formed, false);
        let mut beginning = Beginning::new(formed, true, 3, clock::now());
        assert!(beginning.has_begun());
        assert!(beginning.next_write().unwrap().begun, "now it says so");
    }

    #[test]
    fn a_member_alone_or_of_an_earlier_version_begins_at_once() {
        assert!(of(1).has_begun());
        let earlier = Starts::new(Origin::Earlier, true);
        assert!(Beginning::new(earlier, false, 3, clock::now()).has_begun());
        let joined = Beginning::new(Starts::new(Origin::Joined, true), false, 3, clock::now());
        assert!(joined.has_begun());
        assert_eq!(joined.record_of(OTHERS[0]), RecordedStart::WasNotThere);
    }
}
