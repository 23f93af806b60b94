//! The cost of a message to an actor and its answer, on the same arbiter and across two.

use actix::prelude::*;
use divan::{Bencher, counter::ItemsCount};
use futures_of::all;

/// Messages in flight at a time.
const BURST: u64 = 64;

#[derive(Default)]
struct Counter(u64);

#[derive(Message)]
#[rtype(result = "u64")]
struct Add(u64);

impl Actor for Counter {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(1_024);
    }
}

impl Handler<Add> for Counter {
    type Result = u64;

    fn handle(&mut self, add: Add, _: &mut Self::Context) -> u64 {
        self.0 += add.0;
        self.0
    }
}

#[divan::bench(args = [1, BURST])]
fn hop_on_the_same_arbiter(bencher: Bencher<'_, '_>, burst: u64) {
    let system = System::new();
    let counter = system.block_on(async { Counter::default().start() });
    ask(bencher, &system, &counter, burst);
}

#[divan::bench(args = [1, BURST])]
fn hop_across_arbiters(bencher: Bencher<'_, '_>, burst: u64) {
    let system = System::new();
    let arbiter = system.block_on(async { Arbiter::new() });
    let counter = Counter::start_in_arbiter(&arbiter.handle(), |_| Counter::default());
    ask(bencher, &system, &counter, burst);
    arbiter.stop();
    arbiter.join().unwrap();
}

fn ask(bencher: Bencher<'_, '_>, system: &SystemRunner, counter: &Addr<Counter>, burst: u64) {
    bencher
        .counter(ItemsCount::new(burst))
        .bench_local(|| system.block_on(all((0..burst).map(|_| counter.send(Add(1))))));
}

mod futures_of {
    //! Waiting for several answers, without a library for it.

    use std::{future::poll_fn, pin::Pin, task::Poll};

    /// Polls all of them until each is ready.
    pub(super) async fn all<F: Future>(futures: impl Iterator<Item = F>) {
        let mut left: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
        poll_fn(|context| {
            left.retain_mut(|future| future.as_mut().poll(context).is_pending());
            if left.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}
