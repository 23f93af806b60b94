//! Proposals whose answer was lost, because the connection to the leader broke and the leader stayed.
//!
//! The follower does not know then whether the leader appended them: they may be in its log, or still on their way in an earlier
//! connection. So it asks ([`PeerAsk::Settle`]). With its answer the leader begins a new **part** of its term for this follower:
//! from then on it refuses what comes in an earlier part, and it names the last index of its log. All that it had taken is at
//! that index or before. Once the follower has seen the entries up to there committed, a proposal of an earlier part that was
//! not among them is in no log, and never will be: it is proposed again, in the new part.
//!
//! The invariant: at any time, a proposal can still be appended in one part of one term only. It holds whatever is lost, repeated
//! or overtaken on the way, since the leader counts the parts: a request, or a question, of an earlier connection or process
//! is refused because its part has ended. If the term ends meanwhile, `pending_proposals` decides as for any other proposal. The
//! leader keeps a number for each member that has asked, until its term ends; the follower keeps what it held anyway.
//!
//! | the follower | is | and then |
//! |---|---|---|
//! | open | forwarding, in the part it knows | an answer is lost, or the leader says that the part is over: *unsure* |
//! | unsure | holding new proposals back | asks, at once, at each new connection and at each tick: *asking* |
//! | asking | holding new proposals back | the answer: *open*, in the new part; no answer: *unsure* |
//!
//! [`PeerAsk::Settle`]: crate::actors::peer_ask::PeerAsk::Settle

use crate::{
    actors::peer_ask::{Settled, TermPart},
    types::{LogIndex, MemberId, Term},
};
use std::collections::BTreeMap;

/// A follower's knowledge of its proposals at the leader of one term.
#[derive(Debug, Default)]
pub(super) struct Settling {
    part: TermPart,
    state: PartState,
    /// Entries up to here decide about the proposals of earlier parts.
    decided_at: Option<LogIndex>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PartState {
    #[default]
    Open,
    Unsure,
    Asking,
}

impl Settling {
    fn enter(&mut self, term: Term) {
        if term > self.part.term {
            *self = Self {
                part: TermPart { term, part: 0 },
                ..Self::default()
            };
        }
    }

    /// The part in which proposals may be forwarded to the leader of `term`; none if they must wait.
    pub(super) fn part_of(&mut self, term: Term) -> Option<TermPart> {
        self.enter(term);
        (self.state == PartState::Open && self.part.term == term).then_some(self.part)
    }

    /// The answer to proposals in `part` was lost, or it was that the part is over.
    pub(super) fn lost(&mut self, part: TermPart) {
        if self.part == part && self.state == PartState::Open {
            self.state = PartState::Unsure;
        }
    }

    /// Whether the leader of `term` has to be asked now; it is then.
    pub(super) fn ask(&mut self, term: Term) -> bool {
        self.enter(term);
        let asks = self.state == PartState::Unsure && self.part.term == term;
        if asks {
            self.state = PartState::Asking;
        }
        asks
    }

    /// The leader of `term` has answered, or it did not.
    pub(super) fn answered(&mut self, term: Term, answer: Option<Settled>) {
        if self.part.term != term || self.state != PartState::Asking {
            return;
        }
        // The leader counts up: each question begins a part.
        match answer.filter(|answer| answer.part > self.part.part) {
            Some(Settled { part, through }) => {
                self.part.part = part;
                self.decided_at = Some(through);
                self.state = PartState::Open;
            }
            None => self.state = PartState::Unsure,
        }
    }

    /// Entries up to `committed` are committed. If that decides about proposals of earlier parts, gives the part that they
    /// precede, once.
    pub(super) fn take_decided(&mut self, committed: LogIndex) -> Option<TermPart> {
        self.decided_at.take_if(|at| *at <= committed)?;
        Some(self.part)
    }
}

/// A leader's count of the parts of its term, for each member that has asked.
#[derive(Debug, Default)]
pub(super) struct Parts {
    term: Term,
    parts: BTreeMap<MemberId, u64>,
}

impl Parts {
    /// The present part of `term` for a member.
    pub(super) fn now(&self, term: Term, member: MemberId) -> u64 {
        let known = self.parts.get(&member).filter(|_| self.term == term);
        known.copied().unwrap_or_default()
    }

    /// Begins the next part of `term` for a member.
    pub(super) fn next(&mut self, term: Term, member: MemberId) -> u64 {
        if self.term != term {
            self.term = term;
            self.parts.clear();
        }
        let part = self.parts.entry(member).or_default();
        *part += 1;
        *part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeSet, VecDeque};

    const TERM: Term = Term(3);
    const MEMBER: MemberId = MemberId(1);

    fn settled(part: u64, through: u64) -> Settled {
        Settled {
            part,
            through: LogIndex(through),
        }
    }

    #[test]
    fn after_a_lost_answer_new_proposals_wait_until_the_leader_has_begun_another_part() {
        let mut settling = Settling::default();
        let first = settling.part_of(TERM).unwrap();
        assert_eq!(
            first,
            TermPart {
                term: TERM,
                part: 0
            }
        );
        assert!(!settling.ask(TERM), "nothing is lost");
        settling.lost(first);
        assert_eq!(settling.part_of(TERM), None);
        assert!(settling.ask(TERM));
        assert!(!settling.ask(TERM), "it is asked");
        settling.answered(TERM, None);
        assert!(settling.ask(TERM), "again");
        settling.answered(TERM, Some(settled(2, 9)));
        let second = settling.part_of(TERM).unwrap();
        assert_eq!(second.part, 2);
        assert_eq!(settling.take_decided(LogIndex(8)), None);
        assert_eq!(settling.take_decided(LogIndex(9)), Some(second));
        assert_eq!(settling.take_decided(LogIndex(10)), None, "once");
        settling.lost(first);
        assert_eq!(settling.part_of(TERM), Some(second), "that is settled");
    }

    #[test]
    fn a_new_term_needs_no_answer() {
        let mut settling = Settling::default();
        let first = settling.part_of(TERM).unwrap();
        settling.lost(first);
        assert!(settling.ask(TERM));
        let next = settling.part_of(Term(4)).unwrap();
        assert_eq!(next.part, 0);
        settling.answered(TERM, Some(settled(1, 9)));
        assert_eq!(settling.part_of(Term(4)), Some(next));
        assert_eq!(settling.take_decided(LogIndex(9)), None);
        settling.lost(first);
        assert_eq!(settling.part_of(Term(4)), Some(next));
    }

    #[test]
    fn a_leader_counts_the_parts_of_each_member_in_each_term() {
        let mut parts = Parts::default();
        assert_eq!(parts.now(TERM, MEMBER), 0);
        assert_eq!(parts.next(TERM, MEMBER), 1);
        assert_eq!(parts.next(TERM, MEMBER), 2);
        assert_eq!(parts.now(TERM, MEMBER), 2);
        assert_eq!(parts.now(TERM, MemberId(2)), 0);
        assert_eq!(parts.now(Term(4), MEMBER), 0);
        assert_eq!(parts.next(Term(4), MEMBER), 1);
    }

    /// What is on its way between a follower and its leader.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    enum Packet {
        Propose {
            part: u64,
            id: usize,
        },
        Question(u64),
        Taken {
            part: u64,
            id: usize,
            appended: bool,
        },
        Settled {
            question: u64,
            part: u64,
            through: u64,
        },
    }

    /// A follower with some proposals, the leader of its term, and the packets between them.
    #[derive(Clone, Debug)]
    struct World {
        /// Each proposal: the part in which it was forwarded, or none if it waits.
        forwarded: Vec<Option<u64>>,
        committed: usize,
        part: u64,
        state: PartState,
        decided_at: Option<LogIndex>,
        /// The number of the last question.
        question: u64,
        leader_part: u64,
        log: Vec<usize>,
        network: Vec<Packet>,
        losses: u8,
    }

    impl World {
        fn settling(&self) -> Settling {
            Settling {
                part: TermPart {
                    term: TERM,
                    part: self.part,
                },
                state: self.state,
                decided_at: self.decided_at,
            }
        }

        fn keep(&mut self, settling: &Settling) {
            self.part = settling.part.part;
            self.state = settling.state;
            self.decided_at = settling.decided_at;
        }

        fn parts(&self) -> Parts {
            Parts {
                term: TERM,
                parts: [(MEMBER, self.leader_part)].into(),
            }
        }

        fn key(&self) -> impl Ord + use<> {
            let mut network = self.network.clone();
            network.sort();
            (
                (self.forwarded.clone(), self.committed, self.part),
                (self.state as u8, self.decided_at, self.losses),
                (self.question, self.leader_part, self.log.clone(), network),
            )
        }

        /// The leader or the follower receives a packet.
        fn receive(&mut self, packet: Packet) {
            let (mut settling, mut parts) = (self.settling(), self.parts());
            match packet {
                Packet::Propose { part, id } => {
                    let appended = part == parts.now(TERM, MEMBER);
                    if appended {
                        self.log.push(id);
                    }
                    self.network.push(Packet::Taken { part, id, appended });
                }
                Packet::Question(question) => {
                    self.leader_part = parts.next(TERM, MEMBER);
                    self.network.push(Packet::Settled {
                        question,
                        part: self.leader_part,
                        through: self.log.len() as u64,
                    });
                }
                Packet::Taken { part, id, appended } => {
                    if !appended {
                        settling.lost(TermPart { term: TERM, part });
                        let forwarded = &mut self.forwarded[id];
                        if *forwarded == Some(part) {
                            *forwarded = None;
                        }
                    }
                }
                // Nobody waits for the answer to a question that counts as lost.
                Packet::Settled {
                    question,
                    part,
                    through,
                } => {
                    if question == self.question {
                        settling.answered(TERM, Some(settled(part, through)));
                    }
                }
            }
            self.keep(&settling);
        }

        /// A packet is lost; the follower notices at some time.
        fn lose(&mut self, packet: &Packet) {
            let mut settling = self.settling();
            match packet {
                Packet::Propose { part, .. } | Packet::Taken { part, .. } => {
                    settling.lost(TermPart {
                        term: TERM,
                        part: *part,
                    });
                }
                Packet::Question(question) | Packet::Settled { question, .. } => {
                    if *question == self.question {
                        settling.answered(TERM, None);
                    }
                }
            }
            self.keep(&settling);
        }

        fn forward(&mut self) {
            let mut settling = self.settling();
            for id in 0..self.forwarded.len() {
                let waits =
                    self.forwarded[id].is_none() && !self.log[..self.committed].contains(&id);
                if waits && let Some(part) = settling.part_of(TERM) {
                    self.forwarded[id] = Some(part.part);
                    let part = part.part;
                    self.network.push(Packet::Propose { part, id });
                }
            }
        }

        /// All that may happen next.
        fn next(&self) -> Vec<Self> {
            let mut all = Vec::new();
            let mut add = |change: &dyn Fn(&mut Self)| {
                let mut world = self.clone();
                change(&mut world);
                all.push(world);
            };
            add(&Self::forward);
            for at in 0..self.network.len() {
                add(&|world| {
                    let packet = world.network.remove(at);
                    world.receive(packet);
                });
                if self.losses > 0 {
                    // It is lost; or the follower believes so, and it arrives late, which nobody is waiting for.
                    add(&|world| {
                        world.losses -= 1;
                        let packet = world.network.remove(at);
                        world.lose(&packet);
                    });
                    add(&|world| {
                        world.losses -= 1;
                        let packet = world.network[at];
                        world.lose(&packet);
                    });
                }
            }
            if self.committed < self.log.len() {
                add(&|world| world.committed += 1);
            }
            add(&|world| {
                let mut settling = world.settling();
                if settling.ask(TERM) {
                    world.question += 1;
                    world.network.push(Packet::Question(world.question));
                }
                world.keep(&settling);
            });
            add(&|world| {
                let mut settling = world.settling();
                if let Some(part) = settling.take_decided(LogIndex(world.committed as u64)) {
                    for id in 0..world.forwarded.len() {
                        let open = !world.log[..world.committed].contains(&id);
                        let before = world.forwarded[id].is_some_and(|it| it < part.part);
                        if open && before {
                            world.forwarded[id] = None;
                        }
                    }
                }
                world.keep(&settling);
            });
            all
        }
    }

    /// Goes through every order of events: nothing is appended twice, and nothing is left behind.
    fn explore(proposals: usize, losses: u8) {
        let start = World {
            forwarded: vec![None; proposals],
            committed: 0,
            part: 0,
            state: PartState::Open,
            decided_at: None,
            question: 0,
            leader_part: 0,
            log: Vec::new(),
            network: Vec::new(),
            losses,
        };
        let mut seen = BTreeSet::from([start.key()]);
        let mut open = VecDeque::from([start]);
        let (mut lost, mut ends) = (0, 0);
        while let Some(world) = open.pop_front() {
            lost += usize::from(world.leader_part > 0);
            let once: BTreeSet<usize> = world.log.iter().copied().collect();
            assert_eq!(once.len(), world.log.len(), "appended twice: {world:?}");
            let own = world.key();
            let mut news = 0;
            for next in world.next() {
                let key = next.key();
                news += usize::from(key != own);
                if seen.insert(key) {
                    open.push_back(next);
                }
            }
            if news == 0 {
                ends += 1;
                assert_eq!(world.committed, proposals, "it stops too early: {world:?}");
            }
        }
        assert!(ends > 0, "it never ends");
        assert!(lost > 0, "nothing was settled");
    }

    #[test]
    fn in_every_order_of_events_a_proposal_is_appended_once() {
        explore(1, 3);
        explore(2, 2);
    }
}
