//! Random numbers for the choice of keys and operations.

use super::args::Settings;
use fastrand::Rng;

/// Repeatable: one seed gives one load.
#[derive(Clone, Debug)]
pub(super) struct Random(Rng);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    /// The generator of one client; each client's numbers differ.
    pub(super) fn of_client(settings: &Settings, index: usize) -> Self {
        let seeds = [settings.args.seed, index as u64].map(|seed| Rng::with_seed(seed).u64(..));
        Self::new(seeds[0] ^ seeds[1])
    }

    /// A number below `bound`, which must not be zero.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0.u64(..bound)
    }

    /// A position in something of this length, which must not be zero.
    pub(super) fn position(&mut self, length: usize) -> usize {
        self.0.usize(..length)
    }

    /// Bytes that do not compress.
    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.fill(&mut bytes);
        bytes
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
