//! Random numbers for the choice of keys and operations.

use super::args::Settings;

/// `SplitMix64`: fast and repeatable, which is all that the choice of keys needs.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The generator of one client; each client's numbers differ.
    pub(super) fn of_client(settings: &Settings, index: usize) -> Self {
        let mut seed = Self(settings.args.seed);
        Self(seed.next() ^ Self(index as u64).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be zero.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below zero");
        let scaled = (u128::from(self.next()) * u128::from(bound)) >> 64;
        u64::try_from(scaled).expect("a 64-bit number times another one, over 2^64, has 64 bits")
    }

    /// A position in something of this length, which must not be zero.
    pub(super) fn position(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("a position is below the length")
    }

    /// Bytes that do not compress.
    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_repeat_stay_below_their_bound_and_reach_it() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..1_000).map(|_| random.below(10)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7), "the same seed");
        assert_ne!(draw(7), draw(8), "another seed");
        let mut seen = draw(7);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(
            seen,
            (0..10).collect::<Vec<_>>(),
            "every number, none beyond"
        );
    }
}
