//! The mailbox of an actor that does not run yet.
//!
//! A node creates all mailboxes first, and with them all addresses. So every actor gets the addresses of the others through its
//! constructor, also where two actors send to each other. What is sent before an actor starts waits in its mailbox.

use actix::{
    dev::channel::{AddressReceiver, channel},
    prelude::*,
};
use std::fmt;

/// Messages that may wait before the actor starts; from then on the bound is the actor's own.
const BEFORE_START_MAX: usize = 64;

/// A mailbox without an actor.
pub struct Mailbox<A: Actor> {
    address: Addr<A>,
    receiver: AddressReceiver<A>,
}

impl<A: Actor<Context = Context<A>>> Mailbox<A> {
    /// The address of the actor that will own this mailbox.
    pub fn address(&self) -> Addr<A> {
        self.address.clone()
    }

    /// Makes the actor on `arbiter` and starts it there.
    pub fn start(self, arbiter: &ArbiterHandle, make: impl FnOnce() -> A + Send + 'static) {
        let receiver = self.receiver;
        let starting = arbiter.spawn_fn(move || {
            let context = Context::with_receiver(receiver);
            actix_rt::spawn(context.into_future(make()));
        });
        assert!(starting, "actors start before their arbiter stops");
    }
}

impl<A: Actor<Context = Context<A>>> Default for Mailbox<A> {
    fn default() -> Self {
        let (sender, receiver) = channel(BEFORE_START_MAX);
        let address = Addr::new(sender);
        Self { address, receiver }
    }
}

impl<A: Actor> fmt::Debug for Mailbox<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mailbox")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts down with another actor of its kind.
    struct Partner {
        other: Recipient<Left>,
        done: Recipient<Left>,
    }

    struct Last(Option<tokio::sync::oneshot::Sender<usize>>);

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Left(usize);

    impl Actor for Partner {
        type Context = Context<Self>;
    }

    impl Actor for Last {
        type Context = Context<Self>;
    }

    impl Handler<Left> for Partner {
        type Result = ();

        fn handle(&mut self, Left(left): Left, _: &mut Self::Context) {
            let to = if left == 0 { &self.done } else { &self.other };
            to.try_send(Left(left.saturating_sub(1))).unwrap();
        }
    }

    impl Handler<Left> for Last {
        type Result = ();

        fn handle(&mut self, Left(left): Left, _: &mut Self::Context) {
            self.0.take().unwrap().send(left).unwrap();
        }
    }

    #[test]
    fn two_actors_on_two_threads_know_each_other_from_their_constructors() {
        System::new().block_on(async {
            let arbiters = [Arbiter::new(), Arbiter::new()];
            let (left, right) = (Mailbox::<Partner>::default(), Mailbox::default());
            let last = Mailbox::<Last>::default();
            let addresses = [left.address(), right.address()];
            let (ended, outcome) = tokio::sync::oneshot::channel();
            let done = last.address();
            // Sent before anybody runs.
            addresses[0].try_send(Left(9)).unwrap();
            for (mailbox, at) in [(left, 0), (right, 1)] {
                let other = addresses[1 - at].clone().recipient();
                let done = done.clone().recipient();
                mailbox.start(&arbiters[at].handle(), move || Partner { other, done });
            }
            last.start(&Arbiter::current(), move || Last(Some(ended)));
            assert_eq!(outcome.await, Ok(0));
            for arbiter in arbiters {
                arbiter.stop();
                arbiter.join().unwrap();
            }
        });
    }
}
