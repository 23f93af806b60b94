//! Random steps over few leases, keys and names, so that they conflict often.

use fastrand::Rng;

/// The ids of the leases that the test chooses; further ones get theirs from the servers.
pub(super) const FIXED: [i64; 8] = [1, 2, 3, 0xabc, -1, i64::MIN, i64::MAX, 404];
/// Keys that belong to no queue.
const KEYS: [&str; 4] = ["a", "b", "c", "d"];
/// Names of locks and elections. Keys of the last two are in no other queue.
const NAMES: [&str; 4] = ["", "L", "E", "L/x"];

/// A request to either server. Leases are numbers in the test's list; a key that has one in it is given for each server.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Grant {
        lease: Option<usize>,
        ttl: i64,
    },
    /// Granted with a time so short that it is revoked at once.
    Brief {
        lease: usize,
        ttl: i64,
    },
    Revoke {
        lease: usize,
    },
    TimeToLive {
        lease: usize,
        keys: bool,
    },
    Renew {
        lease: usize,
    },
    List,
    Put {
        key: &'static str,
        lease: Option<usize>,
        ignore_lease: bool,
    },
    Txn {
        puts: Vec<(&'static str, Option<usize>)>,
    },
    Delete {
        key: &'static str,
    },
    Lock {
        name: &'static str,
        lease: usize,
    },
    /// With a lease that the server grants, which is revoked at once.
    LockAlone {
        name: &'static str,
    },
    Unlock {
        key: [String; 2],
    },
    Campaign {
        name: &'static str,
        lease: usize,
        value: &'static str,
    },
    Proclaim {
        leader: Option<Leadership>,
        value: &'static str,
    },
    Resign {
        leader: Option<Leadership>,
    },
    Leader {
        name: &'static str,
    },
    Observe {
        name: &'static str,
    },
}

/// A proclamation by a leader, or by a client that claims to lead.
#[derive(Clone, Debug)]
pub(super) struct Leadership {
    pub(super) name: String,
    pub(super) key: [String; 2],
    pub(super) rev: i64,
    pub(super) lease: usize,
}

/// A candidate in a queue, as both servers have it.
#[derive(Clone, Debug)]
pub(super) struct InLine {
    pub(super) name: &'static str,
    pub(super) key: [String; 2],
    pub(super) created: i64,
    pub(super) lease: usize,
}

#[derive(Debug)]
pub(super) struct Generator {
    random: Rng,
}

impl Generator {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
        }
    }

    pub(super) fn names() -> [&'static str; 4] {
        NAMES
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.random.usize(..all.len())]
    }

    fn lease(&mut self, known: usize) -> usize {
        self.random.usize(..known)
    }

    fn some_lease(&mut self, known: usize) -> Option<usize> {
        (self.random.u8(..4) > 0).then(|| self.lease(known))
    }

    /// The next step; `known` is the number of leases, `line` has the candidates of each queue.
    pub(super) fn next(&mut self, known: usize, line: &[InLine]) -> Step {
        let lease = self.lease(known);
        match self.random.u8(..100) {
            0..14 => self.grant(known),
            14..20 => Step::Revoke { lease },
            20..28 => Step::TimeToLive {
                lease,
                keys: self.random.bool(),
            },
            28..34 => Step::Renew { lease },
            34..37 => Step::List,
            37..48 => Step::Put {
                key: self.one_of(&KEYS),
                lease: self.some_lease(known),
                ignore_lease: self.random.u8(..6) == 0,
            },
            48..53 => Step::Txn {
                puts: vec![("a", self.some_lease(known)), ("b", self.some_lease(known))],
            },
            53..55 => Step::Delete {
                key: self.one_of(&KEYS),
            },
            55..67 => Step::Lock {
                name: self.one_of(&NAMES),
                lease,
            },
            67..69 => Step::LockAlone {
                name: self.one_of(&NAMES),
            },
            69..75 => Step::Unlock {
                key: self.key_in(line),
            },
            75..85 => Step::Campaign {
                name: self.one_of(&NAMES),
                lease,
                value: self.one_of(&["", "v", "w"]),
            },
            85..90 => Step::Proclaim {
                leader: self.leadership(known, line),
                value: self.one_of(&["", "x", "y"]),
            },
            90..93 => Step::Resign {
                leader: self.leadership(known, line),
            },
            93..97 => Step::Leader {
                name: self.one_of(&NAMES),
            },
            _ => Step::Observe {
                name: self.one_of(&NAMES),
            },
        }
    }

    fn grant(&mut self, known: usize) -> Step {
        let lease = self.lease(known);
        match self.random.u8(..12) {
            0 => Step::Brief {
                lease,
                ttl: self.one_of(&[i64::MIN, -5, -1, 0, 1, 2, 3]),
            },
            1 => Step::Grant {
                lease: Some(lease),
                ttl: self.one_of(&[9_000_000_001, i64::MAX]),
            },
            2 => Step::Grant {
                lease: Some(lease),
                ttl: 9_000_000_000,
            },
            3 if known < FIXED.len() + 6 => Step::Grant {
                lease: None,
                ttl: 700,
            },
            _ => Step::Grant {
                lease: Some(lease),
                ttl: self.random.i64(600..2_000),
            },
        }
    }

    /// Mostly the key of a candidate; sometimes one that does not exist, or none.
    fn key_in(&mut self, line: &[InLine]) -> [String; 2] {
        match self.random.u8(..10) {
            0 => [String::new(), String::new()],
            1 => ["nobody".to_owned(), "nobody".to_owned()],
            _ if line.is_empty() => ["L/1".to_owned(), "L/1".to_owned()],
            _ => line[self.random.usize(..line.len())].key.clone(),
        }
    }

    /// As [`Generator::key_in`]; also one whose time is over, by its number, and one with another's lease.
    fn leadership(&mut self, known: usize, line: &[InLine]) -> Option<Leadership> {
        let wild = self.random.u8(..10);
        if wild == 0 {
            return None;
        }
        let some = (!line.is_empty()).then(|| line[self.random.usize(..line.len())].clone());
        let key = self.key_in(line);
        let other = self.lease(known);
        Some(match some {
            Some(one) if wild > 2 => Leadership {
                name: one.name.to_owned(),
                key: one.key,
                rev: one.created,
                lease: one.lease,
            },
            Some(one) if wild == 2 => Leadership {
                name: one.name.to_owned(),
                key: one.key,
                rev: one.created - 1,
                lease: other,
            },
            _ => Leadership {
                name: "E".to_owned(),
                // A key that does not exist, with revision 0, would be put and stay, where a candidate's key may come.
                rev: i64::from(!key[0].is_empty()),
                key,
                lease: other,
            },
        })
    }
}
