//! Figures on the loopback. Run by hand: `cargo test --release net::tests::bench -- --ignored --nocapture`.

#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use super::members::{append, heartbeat, pair, run};
use crate::clock;

#[test]
#[ignore = "measures, does not check"]
fn messages_a_second_and_round_trips() {
    run(async {
        let (one, two) = pair().await;
        for burst in [1_u64, 10, 100] {
            let (began, before) = (clock::now(), two.post.bodies_from(one.id).len());
            let cpu = cpu_micros();
            let total = 100_000 / 100 * burst;
            for _ in 0..total / burst {
                for _ in 0..burst {
                    one.say(two.id, append(256));
                }
                tokio::task::yield_now().await;
                while one.hub.stats()[0].waiting_bytes > 500_000 {
                    tokio::task::yield_now().await;
                }
            }
            two.post
                .until(|post| post.messages.borrow().len() as u64 >= before as u64 + total)
                .await;
            let spent = clock::now().duration_since(began);
            let cpu = cpu_micros() - cpu;
            println!(
                "bursts of {burst}: {:.0} messages/s, {:.2} us CPU each on both sides",
                total as f64 / spent.as_secs_f64(),
                cpu as f64 / total as f64
            );
            two.post.messages.borrow_mut().clear();
        }
        let mut trips = Vec::new();
        for round in 0..2_000 {
            let began = clock::now();
            one.post.messages.borrow_mut().clear();
            two.post.messages.borrow_mut().clear();
            one.say(two.id, heartbeat(round));
            two.post
                .until(|post| !post.messages.borrow().is_empty())
                .await;
            two.say(one.id, heartbeat(round));
            one.post
                .until(|post| !post.messages.borrow().is_empty())
                .await;
            trips.push(clock::micros(clock::now().duration_since(began)));
        }
        trips.sort_unstable();
        println!(
            "round trip p50 {} us, p99 {} us",
            trips[1_000], trips[1_980]
        );
    });
}

/// CPU time of this process so far.
fn cpu_micros() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    (ticks(11) + ticks(12)) * 10_000
}
