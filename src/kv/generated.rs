//! Turns a fuzzer's bytes into the values that the model tests draw at random.

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// Draws a value of `strategy` for every four bytes of `data`, which are its seed. So a fuzzer that changes, moves or repeats
/// bytes changes, moves or repeats single steps of a test.
pub(super) fn generate<S: Strategy>(strategy: &S, data: &[u8], most: usize) -> Vec<S::Value> {
    let values = data.chunks(4).take(most).map(|chunk| {
        let mut seed = [0; 32];
        seed[..chunk.len()].copy_from_slice(chunk);
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        strategy.new_tree(&mut runner).map(|tree| tree.current())
    });
    values.flatten().collect()
}
