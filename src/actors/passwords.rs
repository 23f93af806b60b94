//! Hashing and comparing passwords with bcrypt: slow on purpose, so a few at a time on threads that may block.
//!
//! A login delays no other request: no arbiter waits for a hash, at most [`Passwords::new`]'s `workers` threads are busy with
//! them, and past `WAITING_MAX` calls further ones are refused. Work that has begun keeps its thread and its place until it ends,
//! even if its caller no longer waits, and a login counts all the same. Hashes are etcd's (`$2a$`, at most 72 bytes of password),
//! so users can move in and out.

use super::{background::in_turn, login_bounds::LoginBounds, request_error::RequestError};
use crate::{
    auth::{AuthError, change::PasswordHash},
    clock,
};
use bcrypt::Version;
use std::{net::IpAddr, sync::Arc};
use tokio::sync::{Semaphore, TryAcquireError};

/// Calls that wait for a thread or have one.
const WAITING_MAX: usize = 64;

/// The longest password in bytes that can be set. etcd: bcrypt ignores what follows, so Go's refuses to hash it.
const PASSWORD_BYTES_MAX: usize = 72;

/// A hash that no password matches, for the time that it takes to find that out.
const OF_NOBODY: [u8; 16] = [0; 16];

/// Hashes and compares passwords. All front ends of a node share one.
#[derive(Debug)]
pub struct Passwords {
    cost: u32,
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

/// A password that somebody gives as a user's.
#[derive(Debug)]
pub struct Login {
    pub user: String,
    /// Where the client is.
    pub origin: IpAddr,
    pub password: String,
    /// The hash of the user's password; without one it takes as long, and no password is right.
    pub hash: Option<Vec<u8>>,
    pub bounds: Arc<LoginBounds>,
}

impl Passwords {
    /// Hashes with this bcrypt cost, 4 to 31, and at most so many at once.
    pub fn new(cost: u32, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            cost,
            places: Arc::new(Semaphore::new(WAITING_MAX)),
            turns: Arc::new(Semaphore::new(workers)),
        })
    }

    /// The hash of a new password.
    pub(super) async fn hash(&self, password: String) -> Result<PasswordHash, RequestError> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(AuthError::PasswordTooLong.into());
        }
        let (cost, salt) = (self.cost, clock::secret());
        let hash = self.run(move || {
            let parts = bcrypt::hash_with_salt(password, cost, salt);
            parts.map(|parts| parts.format_for_version(Version::TwoA))
        });
        let hash = hash.await?;
        // The configuration has checked the cost, which is all that can be wrong.
        let hash = hash.map_err(|_| RequestError::from(AuthError::InvalidManagement))?;
        Ok(PasswordHash(hash.into_bytes().into()))
    }

    /// Whether a login's password is right. The login counts where it is compared, so a caller who leaves does not evade the
    /// bounds; and it is judged there, by all that failed while it waited.
    pub(super) async fn matches(&self, login: Login) -> Result<bool, RequestError> {
        let cost = self.cost;
        let compared = self.run(move || {
            let (bounds, user, origin) = (login.bounds, login.user, login.origin);
            bounds.admit(&user, origin)?;
            let right = is_right(cost, login.password, login.hash);
            if right {
                bounds.succeeded(&user, origin);
            } else {
                bounds.failed(&user, origin);
            }
            Ok::<_, AuthError>(right)
        });
        Ok(compared.await??)
    }

    /// Does slow work as one of the calls that the bounds are for. If its caller is gone before it begins, it is not done.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|error| match error {
            TryAcquireError::NoPermits => RequestError::TooManyRequests,
            TryAcquireError::Closed => RequestError::Stopped,
        })?;
        let done = in_turn(self.turns.clone(), move || {
            let done = work();
            drop(place);
            done
        });
        done.await.ok_or(RequestError::Stopped)
    }
}

fn is_right(cost: u32, password: String, hash: Option<Vec<u8>>) -> bool {
    let hash = hash.and_then(|hash| String::from_utf8(hash).ok());
    if let Some(hash) = hash.filter(|hash| !hash.is_empty()) {
        bcrypt::verify(password, &hash).unwrap_or(false)
    } else {
        drop(bcrypt::hash_with_salt(password, cost, OF_NOBODY));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// A login without bounds.
    fn login(password: impl Into<String>, hash: Option<Vec<u8>>) -> Login {
        Login {
            user: "u".into(),
            origin: HOME,
            password: password.into(),
            hash,
            bounds: Arc::new(LoginBounds::new(None)),
        }
    }

    fn too_long(error: &RequestError) -> bool {
        error.to_string().contains("72 bytes")
    }

    #[tokio::test]
    async fn hashes_are_etcds() {
        let passwords = Passwords::new(4, 2);
        let hash = passwords.hash("right".into()).await.unwrap();
        let text = std::str::from_utf8(&hash.0).unwrap();
        assert!(text.starts_with("$2a$04$") && text.len() == 60, "{text}");
        let other = passwords.hash("right".into()).await.unwrap();
        assert_ne!(hash, other, "each has a salt of its own");
        // Made by Go's x/crypto/bcrypt, which etcd uses.
        let of_go = "$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga";
        for (password, hash, expected) in [
            ("right", Some(hash.0.to_vec()), true),
            ("wrong", Some(hash.0.to_vec()), false),
            ("", Some(hash.0.to_vec()), false),
            ("allmine", Some(of_go.into()), true),
            ("allmin", Some(of_go.into()), false),
            ("", Some(Vec::new()), false),
            ("right", Some(b"no hash".to_vec()), false),
            ("right", None, false),
        ] {
            let found = passwords.matches(login(password, hash.clone())).await;
            assert_eq!(found.unwrap(), expected, "{password} {hash:?}");
        }
    }

    #[tokio::test]
    async fn bcrypt_looks_at_72_bytes() {
        let passwords = Passwords::new(4, 1);
        let longest = "p".repeat(72);
        let hash = passwords.hash(longest.clone()).await.unwrap();
        let refused = passwords.hash(longest.clone() + "p").await.unwrap_err();
        assert!(too_long(&refused), "{refused}");
        let hash = Some(hash.0.to_vec());
        let matches = |password: String| passwords.matches(login(password, hash.clone()));
        assert!(matches(longest.clone()).await.unwrap());
        assert!(matches(longest.clone() + "more").await.unwrap(), "as etcd");
        assert!(!matches("p".repeat(71)).await.unwrap());
    }

    #[tokio::test]
    async fn past_a_bound_logins_are_refused() {
        let passwords = Passwords::new(4, 1);
        let turn = passwords.turns.acquire().await.unwrap();
        let mut waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| Box::pin(passwords.matches(login("p", None))))
            .collect();
        for call in &mut waiting {
            assert!(
                futures_poll(call.as_mut()).is_none(),
                "it waits for its turn"
            );
        }
        let refused = passwords.matches(login("p", None)).await.unwrap_err();
        assert!(
            matches!(refused, RequestError::TooManyRequests),
            "{refused}"
        );
        drop(turn);
        for call in waiting {
            assert!(!call.await.unwrap());
        }
    }

    #[tokio::test]
    async fn work_keeps_its_place_and_its_turn_without_its_caller() {
        let passwords = Passwords::new(4, 1);
        let (begun, begins) = tokio::sync::oneshot::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let caller = passwords.clone();
        let caller = tokio::spawn(async move {
            let work = move || {
                begun.send(()).unwrap();
                ends.recv().unwrap();
            };
            caller.run(work).await
        });
        begins.await.unwrap();
        caller.abort();
        assert!(caller.await.is_err(), "the caller is gone");
        let left = || {
            (
                passwords.places.available_permits(),
                passwords.turns.available_permits(),
            )
        };
        assert_eq!(left(), (WAITING_MAX - 1, 0), "its thread still runs");
        end.send(()).unwrap();
        passwords.run(|| ()).await.unwrap();
        assert_eq!(left(), (WAITING_MAX, 1));
    }

    #[tokio::test]
    async fn a_login_counts_without_its_caller_and_is_judged_when_its_turn_comes() {
        let passwords = Passwords::new(4, 1);
        let bounds = Arc::new(LoginBounds::new(Some(1)));
        let wrong = || Login {
            bounds: bounds.clone(),
            ..login("wrong", None)
        };
        let mut calls = [wrong(), wrong()].map(|login| Box::pin(passwords.matches(login)));
        for call in &mut calls {
            assert!(futures_poll(call.as_mut()).is_none(), "it was admitted");
        }
        let [gone, late] = calls;
        // Nobody asks for the outcome of the first call.
        let counted = async {
            while bounds.totals().failed() == 0 {
                tokio::task::yield_now().await;
            }
        };
        let counted = tokio::time::timeout(std::time::Duration::from_mins(1), counted).await;
        assert!(counted.is_ok(), "it does not count");
        drop(gone);
        let refused = late.await.unwrap_err().to_string();
        assert!(refused.contains("too many failed"), "{refused}");
        assert_eq!(
            (bounds.totals().failed(), bounds.totals().refused()),
            (1, 1)
        );
    }

    fn futures_poll<T>(call: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        use std::task::{Context, Poll, Waker};
        match call.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }
}
