//! Which tokens are good: a persistent table, so that readers share it with the state that is being changed.
//!
//! A token is `SECRET.NUMBER`. The number is the index of the log entry that issued it, the secret is known to its client alone:
//! the table has its SHA-256. Entries are issued in log order, so the table is ordered by appending. It is kept in pieces; a
//! change copies one piece and the list of pieces.

use super::change::TokenMark;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Tokens of all users. Past it the oldest ends.
pub const TOKENS_MAX: usize = 65_536;

/// Tokens of one user. Past it the user's oldest ends: somebody who logs in without end disturbs nobody else.
pub const USER_TOKENS_MAX: usize = 8_192;

/// Tokens in one piece.
const PIECE_MAX: usize = 256;

/// A good token.
#[derive(Debug)]
pub struct Token {
    /// The index of the log entry that issued it.
    pub number: u64,
    pub user: Arc<str>,
    /// SHA-256 of its secret part.
    pub digest: [u8; 32],
    /// The log index of its issue or last renewal.
    pub renewed: u64,
    /// Whether this member has seen it in use since that index: a note for who renews it, and no part of the state.
    used: AtomicBool,
    /// Whether its time is over on this member, which has seen no later renewal: a note for who identifies callers, and no part
    /// of the state either. What a command in the log may do must not depend on it.
    ended_here: AtomicBool,
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        (self.number, &self.user, self.digest, self.renewed)
            == (other.number, &other.user, other.digest, other.renewed)
    }
}

impl Eq for Token {}

impl Token {
    /// A token that was not used yet.
    pub fn new(number: u64, user: Arc<str>, digest: [u8; 32], renewed: u64) -> Self {
        Self {
            number,
            user,
            digest,
            renewed,
            used: AtomicBool::new(false),
            ended_here: AtomicBool::new(false),
        }
    }

    /// Notes that it is in use.
    pub fn note_use(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Whether its use was noted.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Ends it on this member, until a renewal is applied.
    pub fn end_here(&self) {
        self.ended_here.store(true, Ordering::Relaxed);
    }

    /// Whether it has ended on this member.
    pub fn has_ended_here(&self) -> bool {
        self.ended_here.load(Ordering::Relaxed)
    }

    /// The token as of its last renewal.
    pub fn mark(&self) -> TokenMark {
        TokenMark {
            token: self.number,
            renewed: self.renewed,
        }
    }
}

/// All good tokens, ascending by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// None is empty.
    pieces: Vec<Arc<Vec<Arc<Token>>>>,
    count: usize,
}

impl Tokens {
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Token>> {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// The token with this number.
    pub fn get(&self, number: u64) -> Option<&Arc<Token>> {
        let (piece, at) = self.find(number)?;
        Some(&self.pieces[piece][at])
    }

    /// Adds a token with a greater number than all others.
    pub fn push(&mut self, token: Token) {
        let newest = self.pieces.last().and_then(|piece| piece.last());
        assert!(
            newest.is_none_or(|newest| newest.number < token.number),
            "tokens have the indexes of the entries that issue them"
        );
        self.count += 1;
        match self.pieces.last_mut() {
            Some(piece) if piece.len() < PIECE_MAX => Arc::make_mut(piece).push(Arc::new(token)),
            Some(_) | None => self.pieces.push(Arc::new(vec![Arc::new(token)])),
        }
    }

    /// Ends a token; returns whether there was one.
    pub fn remove(&mut self, number: u64) -> bool {
        let Some((piece, at)) = self.find(number) else {
            return false;
        };
        if self.pieces[piece].len() == 1 {
            self.pieces.remove(piece);
        } else {
            Arc::make_mut(&mut self.pieces[piece]).remove(at);
        }
        self.count -= 1;
        true
    }

    /// Notes a renewal; returns the token after it.
    pub fn renew(&mut self, number: u64, renewed: u64) -> Option<Arc<Token>> {
        let (piece, at) = self.find(number)?;
        let before = &self.pieces[piece][at];
        let token = Token::new(number, before.user.clone(), before.digest, renewed);
        let token = Arc::new(token);
        Arc::make_mut(&mut self.pieces[piece])[at] = token.clone();
        Some(token)
    }

    /// The numbers of a user's tokens, ascending.
    pub fn of_user(&self, user: &str) -> Vec<u64> {
        let own = self.iter().filter(|token| *token.user == *user);
        own.map(|token| token.number).collect()
    }

    fn find(&self, number: u64) -> Option<(usize, usize)> {
        let starts_after = |piece: &Arc<Vec<Arc<Token>>>| {
            piece.first().is_some_and(|first| first.number <= number)
        };
        let piece = self.pieces.partition_point(starts_after).checked_sub(1)?;
        let tokens = &self.pieces[piece];
        let at = tokens.binary_search_by_key(&number, |token| token.number);
        Some((piece, at.ok()?))
    }
}

/// The parts of a token's text: its secret and its number.
pub fn parse(text: &[u8]) -> Option<(&[u8], u64)> {
    let dot = text.iter().rposition(|byte| *byte == b'.')?;
    let (secret, number) = (&text[..dot], &text[dot + 1..]);
    let digits = (1..=20).contains(&number.len()) && number.iter().all(u8::is_ascii_digit);
    if secret.is_empty() || !digits {
        return None;
    }
    Some((secret, std::str::from_utf8(number).ok()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn token(number: u64, user: &str) -> Token {
        Token::new(number, user.into(), [7; 32], number)
    }

    proptest! {
        #[test]
        fn the_table_is_an_ordered_map(steps in prop::collection::vec((0..3_u8, 0..900_u64), 0..1500)) {
            let (mut tokens, mut model) = (Tokens::default(), BTreeMap::new());
            let mut next = 0;
            for (step, number) in steps {
                let before = tokens.clone();
                match step {
                    0 => {
                        next += 1 + number % 3;
                        tokens.push(token(next, "u"));
                        model.insert(next, next);
                    }
                    1 => prop_assert_eq!(tokens.remove(number), model.remove(&number).is_some()),
                    _ => {
                        let renewed = tokens.renew(number, number + 5).is_some();
                        prop_assert_eq!(renewed, model.contains_key(&number));
                        model.entry(number).and_modify(|at| *at = number + 5);
                    }
                }
                prop_assert_eq!(tokens.len(), model.len());
                prop_assert!(before.len().abs_diff(tokens.len()) <= 1, "a clone keeps what it had");
            }
            let found: Vec<_> = tokens.iter().map(|token| (token.number, token.renewed)).collect();
            prop_assert_eq!(found, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn tokens_are_found_by_number_and_by_user() {
        let mut tokens = Tokens::default();
        for number in 1..1000 {
            tokens.push(token(number * 2, if number % 3 == 0 { "b" } else { "a" }));
        }
        assert_eq!(tokens.get(600).map(|token| &*token.user), Some("b"));
        assert!(tokens.get(601).is_none() && tokens.get(0).is_none() && tokens.get(5000).is_none());
        assert_eq!(tokens.of_user("b").len(), 333);
        let used = tokens.get(600).unwrap();
        used.note_use();
        used.end_here();
        let shared = tokens.clone();
        let shared = shared.get(600).unwrap();
        assert!(shared.is_used() && shared.has_ended_here(), "with clones");
        let renewed = tokens.renew(600, 5000).unwrap();
        assert!(!renewed.is_used() && !renewed.has_ended_here(), "anew");
    }

    #[test]
    fn a_token_has_a_secret_and_a_number() {
        assert_eq!(parse(b"abc.17"), Some((&b"abc"[..], 17)));
        assert_eq!(parse(b"a.b.18446744073709551615").unwrap().1, u64::MAX);
        for bad in [
            &b""[..],
            b".",
            b"abc",
            b"abc.",
            b".17",
            b"abc.x",
            b"abc.-1",
            b"abc.+1",
            b"abc.18446744073709551616",
            b"abc.000000000000000000017",
            b"abc. 1",
            b"\xff",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
