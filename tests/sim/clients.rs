//! The clients' machine, and how a client reaches a node.
//!
//! All clients are tasks on one machine, whose clock is the cluster's clock. [`Client::call`] runs a request on a node's event
//! loop, below gRPC, and returns its result. If no result comes, since the node died or the network is cut, it returns `None`:
//! the request may have happened, or may still happen.

use crate::{
    network::{CLIENTS, Event, InFlight, Job, STEP_MILLIS, SharedNetwork, Slot},
    trace::digest,
};
use quorate::internals::actors::requests::Requests;
use std::{cell::Cell, fmt::Debug, rc::Rc, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// A client's access to the nodes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) number: u64,
    network: SharedNetwork,
    done: Rc<Cell<u64>>,
    began: tokio::time::Instant,
}

impl Client {
    /// On the clients' machine, which began at `began`.
    pub(crate) fn new(
        number: u64,
        network: SharedNetwork,
        done: Rc<Cell<u64>>,
        began: tokio::time::Instant,
    ) -> Self {
        Self {
            number,
            network,
            done,
            began,
        }
    }

    /// The cluster's time, in microseconds.
    pub(crate) fn now(&self) -> u64 {
        quorate::internals::clock::micros(quorate::internals::clock::now() - self.began)
    }

    /// A random number below `bound`, from the seed.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.network.borrow_mut().rng.u64(0..bound.max(1))
    }

    pub(crate) async fn pause(&self, millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// Counts a finished request, adds its result to the trace, and passes an acknowledged result to `acknowledged`.
    pub(crate) fn note<T: Debug, E: Debug>(
        &self,
        result: Option<Result<T, E>>,
        acknowledged: impl FnOnce(T),
    ) {
        self.done.set(self.done.get() + 1);
        let now = self.now();
        {
            let mut net = self.network.borrow_mut();
            let text = format!("{result:?}");
            let numbers = [self.number, digest(text.as_bytes())];
            net.trace.event(now / 1_000, &numbers, || {
                format!("c{} receives: {text}", self.number)
            });
        }
        if let Some(Ok(done)) = result {
            acknowledged(done);
        }
    }

    /// Runs `ask` on node `slot` and returns its result, or `None` if no answer came within `patience_millis`.
    pub(crate) async fn call<T, F, Asking>(
        &self,
        slot: Slot,
        patience_millis: u64,
        ask: F,
    ) -> Option<T>
    where
        T: 'static,
        F: FnOnce(Requests) -> Asking + 'static,
        Asking: Future<Output = T> + 'static,
    {
        let (give, answer) = oneshot::channel();
        self.send(slot, move |requests| async move {
            let answer = ask(requests).await;
            // The client may have given up.
            drop(give.send(answer));
        });
        let patience = Duration::from_millis(patience_millis);
        let answer = tokio::time::timeout(patience, answer).await;
        let back = 1 + self.below(3);
        self.pause(back).await;
        if self.network.borrow().is_cut(slot, CLIENTS) {
            return None;
        }
        answer.ok().and_then(Result::ok)
    }

    /// Starts a task on node `slot` that sends what it receives, such as a watch. The channel closes when the task or the node
    /// ends.
    pub(crate) fn follow<T, F, Following>(
        &self,
        slot: Slot,
        room: usize,
        follow: F,
    ) -> mpsc::Receiver<T>
    where
        T: 'static,
        F: FnOnce(Requests, mpsc::Sender<T>) -> Following + 'static,
        Following: Future<Output = ()> + 'static,
    {
        let (give, taken) = mpsc::channel(room);
        self.send(slot, move |requests| follow(requests, give));
        taken
    }

    fn send<F, Asking>(&self, slot: Slot, ask: F)
    where
        F: FnOnce(Requests) -> Asking + 'static,
        Asking: Future<Output = ()> + 'static,
    {
        let job: Job = Box::new(move |requests| Box::pin(ask(requests)));
        let mut net = self.network.borrow_mut();
        if net.is_cut(CLIENTS, slot) {
            return;
        }
        let delay = STEP_MILLIS + net.rng.u64(0..4);
        let life = net.endpoint(slot).map(|endpoint| endpoint.life.clone());
        if life.is_none() {
            return;
        }
        let event = Event::Job(self.number, job);
        let to = slot;
        net.schedule(delay, InFlight { to, life, event });
    }
}
