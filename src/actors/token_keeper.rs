//! The time of tokens: renews those that are in use, and ends those that are not.
//!
//! A token lives for its time to live after its last use, on whichever member that was, through restarts and changes of the
//! leader. Few of the uses reach the log: a member notes that a token was used, and once a third of its time has passed since its
//! last renewal, one entry (a few, if they are many) renews all tokens that were used at this member. The leader ends tokens that
//! were not renewed. Both count from when they applied the last renewal, so that a token may live longer than its time, and not
//! shorter:
//!
//! ```text
//! issued, renewed ──▶ +ttl/3: renewed at the next check, if used ──▶ … ──▶ +ttl: used until here
//!                                                                         +ttl + 3 checks: the leader ends it
//!                                                                         +ttl + 5 checks, twice: it ends on this member
//! ```
//!
//! The checks are a tenth of the time to live apart. No clock decides about the state: an entry names a token with
//! its last renewal, and has no effect if it was renewed since.
//!
//! A member that has lost touch gets no such entry, neither an end nor a renewal. So each member stops identifying callers by a
//! token for itself, a while after the leader would have ended it. A renewal that is applied later makes the token good again.
//! One that is merely slow must not do so: two checks in a row have to find the token late, since a member that was frozen wakes
//! up with a check; and none does while committed entries wait to be applied, since a renewal may be among them. A leader ends
//! tokens by entries alone: it steps down when it loses touch.

use super::{consensus::Consensus, latest, published::Published, raft_status::RaftStatus};
use crate::{
    auth::{AuthState, Change, change::TokenMark},
    clock,
    kv::command::Command,
};
use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// Tokens in one entry.
const ENTRY_TOKENS_MAX: usize = 4_096;

/// The age of each token.
#[derive(Debug, Default)]
struct Ages(BTreeMap<u64, Age>);

#[derive(Clone, Copy, Debug)]
struct Age {
    /// The log index of its issue or last renewal.
    renewed: u64,
    /// When this member applied that.
    since: Instant,
    /// Whether the last check found it late.
    late: bool,
}

/// What a check found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    renew: Vec<u64>,
    expire: Vec<TokenMark>,
}

impl Ages {
    /// Finds what is due and, if this member may, ends on it what is late.
    fn look(&mut self, auth: &AuthState, ttl: Duration, now: Instant, may_end: bool) -> Due {
        let mut due = Due::default();
        let mut ages = BTreeMap::new();
        for token in auth.tokens().iter() {
            let known = self.0.get(&token.number);
            let known = known.filter(|age| age.renewed == token.renewed);
            let mut age = known.copied().unwrap_or(Age {
                renewed: token.renewed,
                since: now,
                late: false,
            });
            let old = now.saturating_duration_since(age.since);
            let late = may_end && old > ttl + look_every(ttl) * 5;
            if late && age.late {
                token.end_here();
            }
            age.late = late;
            ages.insert(token.number, age);
            // The uses of one that has ended here are older than that.
            if token.is_used() && !token.has_ended_here() && old >= ttl / 3 {
                due.renew.push(token.number);
            } else if old > ttl + look_every(ttl) * 3 {
                due.expire.push(token.mark());
            }
        }
        self.0 = ages;
        due
    }
}

impl Due {
    /// The changes that renew and end all of them: one entry for each. Only the leader ends tokens.
    fn changes(&self, leads: bool) -> impl Iterator<Item = Change> {
        let renew = self.renew.chunks(ENTRY_TOKENS_MAX);
        let renew = renew.map(<[_]>::to_vec);
        let expire = self.expire.chunks(ENTRY_TOKENS_MAX).filter(move |_| leads);
        let expire = expire.map(<[_]>::to_vec);
        renew
            .map(|tokens| Change::RenewTokens { tokens })
            .chain(expire.map(|tokens| Change::ExpireTokens { tokens }))
    }
}

fn look_every(ttl: Duration) -> Duration {
    ttl / 10
}

struct Keeper {
    ttl: Duration,
    ages: Ages,
    views: latest::Receiver<Arc<Published>>,
    status: latest::Receiver<RaftStatus>,
}

impl Keeper {
    fn look(&mut self) -> Due {
        let status = *self.status.borrow();
        let published = self.views.borrow().clone();
        let has_all = published.applied.index >= status.commit;
        let may_end = has_all && !status.leads;
        self.ages
            .look(&published.auth, self.ttl, clock::now(), may_end)
    }

    /// The changes that are due; none without a leader. A member without a vote renews what is used there, too: its proposals
    /// travel to the leader as those of others do.
    fn changes(&mut self) -> Vec<Change> {
        let due = self.look();
        let status = *self.status.borrow();
        if status.leader.is_none() {
            return Vec::new();
        }
        due.changes(status.leads).collect()
    }
}

async fn propose(consensus: &Consensus, changes: Vec<Change>) {
    for change in changes {
        // What fails is found due again at the next check, and so is what comes after it.
        if consensus.propose(&Command::Auth(change)).await.is_err() {
            return;
        }
    }
}

/// Keeps the time of all tokens until the node stops.
pub async fn keep(
    ttl: Duration,
    views: latest::Receiver<Arc<Published>>,
    status: latest::Receiver<RaftStatus>,
    consensus: Consensus,
) {
    let mut gone = status.clone();
    let mut keeper = Keeper {
        ttl,
        ages: Ages::default(),
        views,
        status,
    };
    loop {
        tokio::select! {
            () = sleep(look_every(ttl)) => {}
            // An error means that the Raft node is gone.
            _ = gone.wait_for(|_| false) => return,
        }
        let changes = keeper.changes();
        let mut proposing = pin!(propose(&consensus, changes));
        // Without a quorum this takes until its time is up. The checks go on, or tokens would end later on this member.
        loop {
            tokio::select! {
                () = &mut proposing => break,
                () = sleep(look_every(ttl)) => drop(keeper.look()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::change::PasswordHash;

    const TTL: Duration = Duration::from_secs(30);

    struct Scene {
        auth: AuthState,
        ages: Ages,
        start: Instant,
        index: u64,
    }

    impl Scene {
        fn new() -> Self {
            let mut scene = Self {
                auth: AuthState::default(),
                ages: Ages::default(),
                start: clock::now(),
                index: 0,
            };
            scene.apply(&Change::AddUser {
                name: "root".into(),
                password: Some(PasswordHash::default()),
            });
            scene.apply(&Change::GrantRole {
                user: "root".into(),
                role: "root".into(),
            });
            scene.apply(&Change::Enable);
            scene
        }

        fn apply(&mut self, change: &Change) -> u64 {
            self.index += 1;
            let done = self.auth.apply(change, self.index, &mut Vec::new());
            assert_eq!(done, Ok(()), "{change:?}");
            self.index
        }

        fn log_in(&mut self) -> u64 {
            self.apply(&Change::IssueToken {
                user: "root".into(),
                password_set: 2,
                digest: [0; 32],
            })
        }

        fn look(&mut self, secs: u64) -> Due {
            self.look_with(secs, true)
        }

        fn look_with(&mut self, secs: u64, may_end: bool) -> Due {
            let now = self.start + Duration::from_secs(secs);
            self.ages.look(&self.auth, TTL, now, may_end)
        }

        fn has_ended_here(&self, token: u64) -> bool {
            self.auth.tokens().get(token).unwrap().has_ended_here()
        }

        fn renew(&mut self, token: u64) {
            let tokens = vec![token];
            self.apply(&Change::RenewTokens { tokens });
        }

        fn note_use(&self, token: u64) {
            self.auth.tokens().get(token).unwrap().note_use();
        }
    }

    #[test]
    fn a_token_in_use_is_renewed_after_a_third_of_its_time() {
        let mut scene = Scene::new();
        let token = scene.log_in();
        assert_eq!(scene.look(0), Due::default());
        scene.note_use(token);
        assert_eq!(scene.look(9), Due::default(), "not yet");
        assert_eq!(scene.look(10).renew, [token]);
        scene.apply(&Change::RenewTokens {
            tokens: vec![token],
        });
        assert_eq!(scene.look(11), Due::default(), "it counts from now on");
        assert_eq!(scene.look(29), Due::default(), "it was not used since");
        scene.note_use(token);
        assert_eq!(scene.look(40).renew, [token], "late uses count as well");
    }

    #[test]
    fn all_that_is_due_is_renewed_or_ended_in_one_check() {
        let mut scene = Scene::new();
        let tokens: Vec<u64> = (0..2 * ENTRY_TOKENS_MAX).map(|_| scene.log_in()).collect();
        scene.look(0);
        let (used, unused) = tokens.split_at(ENTRY_TOKENS_MAX + 1);
        for token in used {
            scene.note_use(*token);
        }
        let due = scene.look(40);
        assert_eq!(due.changes(false).count(), 2, "it does not lead");
        let changes: Vec<_> = due.changes(true).collect();
        let (mut renewed, mut ended) = (Vec::new(), Vec::new());
        for change in &changes {
            match change {
                Change::RenewTokens { tokens } => renewed.extend(tokens.clone()),
                Change::ExpireTokens { tokens } => ended.extend(tokens.clone()),
                other => panic!("{other:?}"),
            }
            scene.apply(change);
        }
        let ended: Vec<_> = ended.iter().map(|mark| mark.token).collect();
        assert_eq!((&renewed[..], &ended[..]), (used, unused));
        assert_eq!(changes.len(), 3);
        assert_eq!(scene.look(41), Due::default());
    }

    /// Where no entry comes it never ended.
    #[test]
    fn a_token_that_cannot_be_renewed_ends_on_its_member() {
        let mut scene = Scene::new();
        let token = scene.log_in();
        assert_eq!(scene.look(0), Due::default());
        scene.note_use(token);
        for secs in [10, 20, 30, 45] {
            assert_eq!(scene.look(secs).renew, [token], "after {secs} s");
        }
        assert_eq!(scene.look(46).renew, [token]);
        assert!(!scene.has_ended_here(token), "it was late once");
        let due = scene.look(49);
        assert!(scene.has_ended_here(token));
        assert!(due.renew.is_empty(), "its uses were before that");
        assert_eq!(due.expire.len(), 1);
        scene.renew(token);
        assert!(!scene.has_ended_here(token), "others saw it in use");
        assert_eq!(scene.look(50), Due::default());
        assert!(!scene.has_ended_here(token));
    }

    #[test]
    fn a_member_that_is_slow_ends_no_token_that_others_renew() {
        let mut scene = Scene::new();
        let token = scene.log_in();
        scene.look(0);
        // It was frozen, and gets what it has missed after the first check.
        scene.look(300);
        assert!(!scene.has_ended_here(token));
        scene.renew(token);
        scene.look(303);
        // It knows of entries that it has not applied.
        for secs in [350, 360, 370] {
            scene.look_with(secs, false);
            assert!(!scene.has_ended_here(token), "after {secs} s");
        }
        scene.renew(token);
        scene.look(373);
        scene.look(376);
        assert!(!scene.has_ended_here(token));
    }

    #[test]
    fn a_token_that_nobody_uses_ends() {
        let mut scene = Scene::new();
        let token = scene.log_in();
        assert_eq!(scene.look(0), Due::default());
        assert_eq!(
            scene.look(39),
            Due::default(),
            "others may have seen it in use"
        );
        let due = scene.look(40);
        let renewed = token;
        assert_eq!(due.expire, [TokenMark { token, renewed }]);
        scene.apply(&Change::RenewTokens {
            tokens: vec![token],
        });
        scene.apply(&Change::ExpireTokens { tokens: due.expire });
        assert!(
            scene.auth.tokens().get(token).is_some(),
            "renewed in between"
        );
        assert_eq!(scene.look(41), Due::default());
        let due = scene.look(82);
        scene.apply(&Change::ExpireTokens { tokens: due.expire });
        assert!(scene.auth.tokens().is_empty());
        assert_eq!(scene.look(90), Due::default());
        assert!(scene.ages.0.is_empty(), "nothing is kept of it");
    }
}
