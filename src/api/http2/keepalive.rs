//! Detects that a client is gone although its connection was never closed.

use crate::{api::serving::ListenLimits, clock};
use h2::{Ping, PingPong};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep_until};

/// Pings a client that has been silent for `interval`.
pub(super) struct KeepAlive {
    /// Created for the first ping: few connections need one.
    pings: Option<PingPong>,
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    reads_seen: u64,
    pinged: bool,
}

impl KeepAlive {
    pub(super) fn new(limits: &ListenLimits) -> Self {
        let interval = limits.keepalive_interval;
        Self {
            pings: None,
            interval,
            timeout: limits.keepalive_timeout,
            timer: Box::pin(sleep_until(clock::now() + interval)),
            reads_seen: 0,
            pinged: false,
        }
    }

    /// Ready when the client is gone. `reads` changes whenever bytes arrive; `make_pings` takes the connection's handle for
    /// pings, which exists once.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        reads: u64,
        mut make_pings: impl FnMut() -> Option<PingPong>,
    ) -> Poll<()> {
        if self.pinged
            && let Some(pings) = &mut self.pings
            && pings.poll_pong(context).is_ready()
        {
            self.wait(self.interval);
            self.pinged = false;
        }
        loop {
            ready!(self.timer.as_mut().poll(context));
            if self.pinged {
                return Poll::Ready(());
            }
            if reads != self.reads_seen {
                self.reads_seen = reads;
                self.wait(self.interval);
                continue;
            }
            if self.pings.is_none() {
                self.pings = make_pings();
            }
            let sent = self
                .pings
                .as_mut()
                .map(|pings| pings.send_ping(Ping::opaque()));
            if !matches!(sent, Some(Ok(()))) {
                return Poll::Ready(());
            }
            self.pinged = true;
            self.wait(self.timeout);
        }
    }

    fn wait(&mut self, span: Duration) {
        self.timer.as_mut().reset(clock::now() + span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        keepalive_timeout: Duration::from_secs(2),
        stop_timeout: Duration::ZERO,
    };

    /// Waits until the server detects that its client is gone; `reads` counts what else the client has sent.
    async fn gone(client_lives: bool, reads: impl Fn() -> u64) {
        let (client, server) = duplex(1_000);
        let (client, server) =
            tokio::join!(h2::client::handshake(client), h2::server::handshake(server));
        let ((_calls, mut client), mut server) = (client.unwrap(), server.unwrap());
        let mut keepalive = KeepAlive::new(&LIMITS);
        let gone = poll_fn(|context| {
            let gone = keepalive.poll(context, reads(), || server.ping_pong());
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
        tokio::select! {
            () = gone => {}
            _ = live => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_answer_is_gone() {
        let began = Instant::now();
        gone(false, || 0).await;
        assert_eq!(began.elapsed().as_secs(), 12, "after interval and timeout");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_stays() {
        let hour = Duration::from_hours(1);
        assert!(timeout(hour, gone(true, || 0)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_is_not_pinged() {
        let began = Instant::now();
        let reads = move || began.elapsed().as_secs().min(100);
        gone(false, reads).await;
        let ended = began.elapsed().as_secs();
        assert!(
            (112..=132).contains(&ended),
            "pinged once it was silent: {ended}"
        );
    }
}
