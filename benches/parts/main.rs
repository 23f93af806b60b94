//! Micro-benchmarks of the parts that requests pass through: `cargo bench --bench parts`, with a part's name as filter.
//!
//! They show which part a change made slower or faster. `quorate bench` and `benches/compare` measure the whole.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot run must say so and end"
)]

mod actors;
mod peers;
mod state;
mod storage;
mod watches;

fn main() {
    divan::main();
}

/// Bytes of a value, as in the comparison with etcd.
const VALUE_BYTES: usize = 256;

/// Key number `number`: 32 bytes, as in the comparison with etcd.
fn key(number: u64) -> String {
    format!("bench/key-{number:022}")
}

/// Numbers below `bound` in no order, the same in every run.
fn scattered(bound: u64) -> impl Iterator<Item = u64> {
    let mut state = 1_u64;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % bound
    })
}
