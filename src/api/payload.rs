//! The bytes of a response as a list of pieces, so that long stored values and shared events are sent without a copy.

use super::answer_budget::{Charge, Demand};
use bytes::{Buf, Bytes};
use std::collections::VecDeque;

/// Bytes in pieces. Nearly every response is short and has one.
///
/// Invariants: `front` is empty only if the payload is; no piece in `rest` is empty.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    front: Bytes,
    rest: Option<Box<Rest>>,
    /// The budget that its bytes count against until they are sent.
    charge: Option<Charge>,
}

#[derive(Clone, Debug, Default)]
struct Rest {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Payload {
    /// Adds a piece at the end.
    pub fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        if self.front.is_empty() {
            self.front = piece;
            return;
        }
        let rest = self.rest.get_or_insert_default();
        rest.bytes += piece.len();
        rest.pieces.push_back(piece);
    }

    /// Counts the bytes against a budget until they are sent or dropped.
    #[must_use]
    pub(super) fn charged(mut self, charge: Charge) -> Self {
        self.charge = Some(charge);
        self
    }

    /// Whether its bytes count against a budget.
    pub(super) fn is_charged(&self) -> bool {
        self.charge.is_some()
    }

    /// What the client must take of it; `None` if it may take its time.
    pub(super) fn demand(&self) -> Option<Demand> {
        self.charge.as_ref().and_then(Charge::demand)
    }

    /// Removes the first `len` bytes, which must exist.
    #[must_use]
    pub fn split_to(&mut self, mut len: usize) -> Self {
        assert!(
            len <= self.remaining(),
            "a payload of {} bytes has no {len}",
            self.remaining()
        );
        let charge = self.charge.as_mut();
        let mut taken = Self {
            charge: charge.map(|charge| charge.split(len)),
            ..Self::default()
        };
        while len > 0 {
            let piece = self.front.split_to(len.min(self.front.len()));
            len -= piece.len();
            taken.push(piece);
            self.refill();
        }
        taken
    }

    /// All bytes in one piece.
    pub fn into_bytes(mut self) -> Bytes {
        let len = self.remaining();
        self.copy_to_bytes(len)
    }

    /// Makes the invariant of `front` hold again.
    fn refill(&mut self) {
        let Some(rest) = self.rest.as_mut().filter(|_| self.front.is_empty()) else {
            return;
        };
        if let Some(piece) = rest.pieces.pop_front() {
            rest.bytes -= piece.len();
            self.front = piece;
        }
    }
}

impl From<Bytes> for Payload {
    fn from(front: Bytes) -> Self {
        Self {
            front,
            rest: None,
            charge: None,
        }
    }
}

impl Buf for Payload {
    fn remaining(&self) -> usize {
        self.front.len() + self.rest.as_ref().map_or(0, |rest| rest.bytes)
    }

    fn chunk(&self) -> &[u8] {
        &self.front
    }

    fn advance(&mut self, mut count: usize) {
        loop {
            let here = count.min(self.front.len());
            self.front.advance(here);
            self.refill();
            count -= here;
            if count == 0 {
                return;
            }
            assert!(
                !self.front.is_empty(),
                "a payload cannot advance past its end"
            );
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        if len <= self.front.len() {
            let taken = self.front.split_to(len);
            self.refill();
            return taken;
        }
        let mut taken = self.split_to(len);
        let mut whole = Vec::with_capacity(len);
        while taken.has_remaining() {
            whole.extend_from_slice(taken.chunk());
            taken.advance(taken.chunk().len());
        }
        whole.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn payload(pieces: &[Vec<u8>]) -> (Payload, Vec<u8>) {
        let mut payload = Payload::default();
        for piece in pieces {
            payload.push(Bytes::copy_from_slice(piece));
        }
        (payload, pieces.concat())
    }

    fn assert_is(payload: &Payload, expected: &[u8]) {
        assert_eq!(payload.remaining(), expected.len());
        assert_eq!(payload.chunk().is_empty(), expected.is_empty());
        assert_eq!(payload.clone().into_bytes(), expected);
    }

    proptest! {
        #[test]
        fn pieces_behave_like_one_piece(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), 0..6),
            steps in prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8), 0..6),
        ) {
            let (mut payload, mut expected) = payload(&pieces);
            assert_is(&payload, &expected);
            for (at, step) in steps {
                let at = at.index(expected.len() + 1);
                let later = expected.split_off(at);
                match step {
                    0 => assert_is(&payload.split_to(at), &expected),
                    1 => payload.advance(at),
                    _ => assert_eq!(payload.copy_to_bytes(at), expected),
                }
                expected = later;
                assert_is(&payload, &expected);
            }
        }
    }

    #[test]
    fn a_piece_is_returned_without_a_copy() {
        let stored = Bytes::from(vec![7; 2_000]);
        let mut payload = Payload::from(Bytes::from_static(b"head"));
        payload.push(stored.clone());
        payload.advance(4);
        assert_eq!(payload.chunk().as_ptr(), stored.as_ptr());
        let taken = payload.split_to(1_500).into_bytes();
        assert_eq!(taken.as_ptr(), stored.as_ptr());
    }

    #[test]
    #[should_panic(expected = "a payload cannot advance past its end")]
    fn advancing_past_the_end_panics() {
        Payload::from(Bytes::from_static(b"abc")).advance(4);
    }
}
