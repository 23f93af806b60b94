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
//! ```
//!
//! The checks are a tenth of the time to live apart. No clock decides about the state: an entry names a token with
//! its last renewal, and has no effect if it was renewed since.

use super::{consensus::Consensus, latest, published::Published, raft_status::RaftStatus};
use crate::{
    auth::{AuthState, Change, change::TokenMark},
    clock,
    kv::command::Command,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// Tokens in one entry.
const ENTRY_TOKENS_MAX: usize = 4_096;

/// When this member applied the issue or last renewal of each token.
#[derive(Debug, Default)]
struct Ages(BTreeMap<u64, (u64, Instant)>);

/// What a check found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    renew: Vec<u64>,
    expire: Vec<TokenMark>,
}

impl Ages {
    fn look(&mut self, auth: &AuthState, ttl: Duration, now: Instant) -> Due {
        let mut due = Due::default();
        let mut ages = BTreeMap::new();
        for token in auth.tokens().iter() {
            let known = self.0.get(&token.number);
            let since = match known {
                Some((renewed, since)) if *renewed == token.renewed => *since,
                Some(_) | None => now,
            };
            ages.insert(token.number, (token.renewed, since));
            let age = now.saturating_duration_since(since);
            if token.is_used() && age >= ttl / 3 {
                due.renew.push(token.number);
            } else if age > ttl + look_every(ttl) * 3 {
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

/// Keeps the time of all tokens until the node stops.
pub async fn keep(
    ttl: Duration,
    views: latest::Receiver<Arc<Published>>,
    status: latest::Receiver<RaftStatus>,
    consensus: Consensus,
) {
    let mut ages = Ages::default();
    let mut gone = status.clone();
    loop {
        tokio::select! {
            () = sleep(look_every(ttl)) => {}
            // An error means that the Raft node is gone.
            _ = gone.wait_for(|_| false) => return,
        }
        let auth = views.borrow().auth.clone();
        let due = ages.look(&auth, ttl, clock::now());
        let (leads, may_propose) = {
            let status = status.borrow();
            (status.leads, status.leader.is_some() && !status.learner)
        };
        for change in due.changes(leads).take_while(|_| may_propose) {
            // What fails is found due again at the next check, and so is what comes after it.
            if consensus.propose(&Command::Auth(change)).await.is_err() {
                break;
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
            let now = self.start + Duration::from_secs(secs);
            self.ages.look(&self.auth, TTL, now)
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
