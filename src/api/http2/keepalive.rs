//! Detects that a client is gone although its connection was never closed.

use super::silence::Place;
use crate::{api::serving::ListenLimits, clock};
use h2::{Ping, PingPong};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep_until};

/// Pings a client that has been silent for too long (see [`silence`](super::silence)).
pub(super) struct KeepAlive {
    place: Place,
    /// Created for the first ping: few connections need one.
    pings: Option<PingPong>,
    timeout: Duration,
    reads_seen: u64,
    /// When the client must have answered a ping; `None` if it need not.
    pinged: Option<Pin<Box<Sleep>>>,
}

impl KeepAlive {
    pub(super) fn new(place: Place, limits: &ListenLimits) -> Self {
        Self {
            place,
            pings: None,
            timeout: limits.keepalive_timeout,
            reads_seen: 0,
            pinged: None,
        }
    }

    /// Ready when the client is gone. `reads` changes whenever bytes arrive; `scarce` tells whether connections are scarce;
    /// `make_pings` takes the connection's handle for pings, which exists once.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        reads: u64,
        scarce: impl Fn() -> bool,
        make_pings: impl FnOnce() -> Option<PingPong>,
    ) -> Poll<()> {
        self.place.register(context);
        if reads != self.reads_seen {
            self.reads_seen = reads;
            self.place.bytes_arrived();
        }
        if let (Some(timer), Some(pings)) = (&mut self.pinged, &mut self.pings) {
            if pings.poll_pong(context).is_pending() {
                return timer.as_mut().poll(context);
            }
            self.pinged = None;
            self.place.bytes_arrived();
        }
        if !self.place.is_silent(scarce) {
            return Poll::Pending;
        }
        if self.pings.is_none() {
            self.pings = make_pings();
        }
        let Some(pings) = &mut self.pings else {
            return Poll::Ready(());
        };
        if pings.send_ping(Ping::opaque()).is_err() {
            return Poll::Ready(());
        }
        let timer = Box::pin(sleep_until(clock::now() + self.timeout));
        let timer = self.pinged.insert(timer);
        // Both wake the task.
        ready!(timer.as_mut().poll(context));
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::silence::Silence, *};
    use bytes::Bytes;
    use std::future::poll_fn;
    use tokio::{
        io::duplex,
        time::{Instant, timeout},
    };

    const LIMITS: ListenLimits = ListenLimits {
        connections_max: 1,
        streams_max: 1,
        keepalive_interval: Duration::from_secs(10),
        keepalive_scarce: Duration::from_secs(3),
        keepalive_timeout: Duration::from_secs(2),
        stop_timeout: Duration::ZERO,
    };

    /// Waits until the server detects that its client is gone; `reads` counts the client's other frames.
    async fn gone(client_lives: bool, scarce: bool, reads: impl Fn() -> u64) {
        let (client, server) = duplex(1_000);
        let (client, server) =
            tokio::join!(h2::client::handshake(client), h2::server::handshake(server));
        let ((_calls, mut client), mut server) = (client.unwrap(), server.unwrap());
        let silence = Silence::new(&LIMITS);
        let mut keepalive = KeepAlive::new(silence.enter(), &LIMITS);
        let gone = poll_fn(|context| {
            let gone = keepalive.poll(context, reads(), || scarce, || server.ping_pong());
            let accepted = server.poll_accept(context);
            assert!(accepted.is_pending(), "the client makes no calls");
            gone
        });
        let live = async {
            if client_lives {
                drop((&mut client).await);
            }
            std::future::pending::<Bytes>().await
        };
        let ticks = async {
            // As long as a tick of these limits.
            let mut ticks = tokio::time::interval(Duration::from_millis(750));
            ticks.tick().await;
            loop {
                ticks.tick().await;
                silence.advance(scarce);
            }
        };
        tokio::select! {
            () = gone => {}
            _ = live => {}
            () = ticks => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_answer_is_gone() {
        let began = Instant::now();
        gone(false, false, || 0).await;
        let ended = began.elapsed().as_secs();
        assert!((12..=14).contains(&ended), "after interval and timeout");
        let began = Instant::now();
        gone(false, true, || 0).await;
        let ended = began.elapsed().as_secs();
        assert!(
            (5..=6).contains(&ended),
            "sooner when connections are scarce"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_stays() {
        let hour = Duration::from_hours(1);
        for scarce in [false, true] {
            assert!(timeout(hour, gone(true, scarce, || 0)).await.is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_is_not_pinged() {
        let began = Instant::now();
        let reads = move || began.elapsed().as_secs().min(100);
        gone(false, true, reads).await;
        let ended = began.elapsed().as_secs();
        assert!(
            (105..=108).contains(&ended),
            "pinged once it was silent: {ended}"
        );
    }
}
