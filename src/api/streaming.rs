//! Runs a call that answers with a stream of messages.

use super::status::Status;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

/// Messages of one stream that wait for a slow client before the call stops producing more.
const UNSENT_MESSAGES_MAX: usize = 2;

/// Runs `call` in a task of its own, until it ends, the returned receiver is dropped, or the deadline passes. An error is the
/// last item.
pub(super) fn run<T, F>(
    deadline: Option<Instant>,
    call: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
) -> mpsc::Receiver<Result<T, Status>>
where
    T: 'static,
    F: Future<Output = Result<(), Status>> + 'static,
{
    let (out, messages) = mpsc::channel(UNSENT_MESSAGES_MAX);
    let calling = call(out.clone());
    tokio::task::spawn_local(async move {
        let run = async {
            tokio::select! {
                biased;
                ended = calling => ended,
                () = out.closed() => Ok(()),
            }
        };
        let ended = match deadline {
            Some(deadline) => timeout_at(deadline, run)
                .await
                .unwrap_or(Err(Status::deadline_exceeded())),
            None => run.await,
        };
        if let Err(status) = ended {
            // It fails only if the client has gone, who then needs no status.
            drop(out.send(Err(status)).await);
        }
    });
    messages
}
