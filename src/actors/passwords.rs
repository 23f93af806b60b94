//! Hashing and comparing passwords with bcrypt: slow on purpose, so a few at a time on threads that may block.
//!
//! A login delays no other request: no arbiter waits for a hash, at most [`Passwords::new`]'s `workers` threads are busy with
//! them, and past `WAITING_MAX` calls further ones are refused. Hashes are etcd's (`$2a$`, at most 72 bytes of password), so
//! users can move in and out.

use super::{background::in_background, request_error::RequestError};
use crate::{
    auth::{AuthError, change::PasswordHash},
    clock,
};
use bcrypt::Version;
use std::sync::Arc;
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
    places: Semaphore,
    turns: Semaphore,
}

impl Passwords {
    /// Hashes with this bcrypt cost, 4 to 31, and at most so many at once.
    pub fn new(cost: u32, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            cost,
            places: Semaphore::new(WAITING_MAX),
            turns: Semaphore::new(workers),
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

    /// Whether a password is the one with this hash. Without a hash it takes as long, and it is not.
    pub(super) async fn matches(
        &self,
        password: String,
        hash: Option<Vec<u8>>,
    ) -> Result<bool, RequestError> {
        let cost = self.cost;
        self.run(move || {
            let hash = hash.and_then(|hash| String::from_utf8(hash).ok());
            if let Some(hash) = hash.filter(|hash| !hash.is_empty()) {
                bcrypt::verify(password, &hash).unwrap_or(false)
            } else {
                drop(bcrypt::hash_with_salt(password, cost, OF_NOBODY));
                false
            }
        })
        .await
    }

    /// Does slow work as one of the calls that the bounds are for.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        let place = self.places.try_acquire().map_err(|error| match error {
            TryAcquireError::NoPermits => RequestError::TooManyRequests,
            TryAcquireError::Closed => RequestError::Stopped,
        })?;
        let turn = self.turns.acquire().await;
        let turn = turn.map_err(|_| RequestError::Stopped)?;
        let done = in_background(work).await;
        drop((turn, place));
        done.map_err(|_| RequestError::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let found = passwords.matches(password.into(), hash.clone()).await;
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
        let matches = |password: String| passwords.matches(password, hash.clone());
        assert!(matches(longest.clone()).await.unwrap());
        assert!(matches(longest.clone() + "more").await.unwrap(), "as etcd");
        assert!(!matches("p".repeat(71)).await.unwrap());
    }

    #[tokio::test]
    async fn past_a_bound_logins_are_refused() {
        let passwords = Passwords::new(4, 1);
        let turn = passwords.turns.acquire().await.unwrap();
        let mut waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| Box::pin(passwords.matches("p".into(), None)))
            .collect();
        for call in &mut waiting {
            assert!(
                futures_poll(call.as_mut()).is_none(),
                "it waits for its turn"
            );
        }
        let refused = passwords.matches("p".into(), None).await.unwrap_err();
        assert!(
            matches!(refused, RequestError::TooManyRequests),
            "{refused}"
        );
        drop(turn);
        for call in waiting {
            assert!(!call.await.unwrap());
        }
    }

    fn futures_poll<T>(call: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        use std::task::{Context, Poll, Waker};
        match call.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }
}
