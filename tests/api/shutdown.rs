//! SIGTERM and Ctrl-C: a clean end, and an answer for every request that was accepted.

use crate::support::{Client, Kind, Server, get_range};
use rustix::process::Signal;
use std::collections::BTreeMap;
use tokio::{sync::mpsc, task::JoinSet};

/// Ends the server under load. Returns how many of each writer's puts were answered.
async fn stop_under_load(server: &mut Server, signal: Signal) -> Vec<u64> {
    let (acknowledged, mut acknowledgements) = mpsc::unbounded_channel();
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let client = server.client().await;
        let acknowledged = acknowledged.clone();
        writers.spawn(async move {
            let mut answered = 0_u64;
            loop {
                match client
                    .put(crate::support::put(
                        format!("w{writer}"),
                        answered.to_string(),
                    ))
                    .await
                {
                    Ok(_) => answered += 1,
                    Err(status) => return (writer, answered, status),
                }
                acknowledged.send(()).expect("the test still listens");
            }
        });
    }
    for _ in 0..200 {
        acknowledgements.recv().await.expect("writers are at work");
    }
    server.signal(signal);
    let status = server.stopped().await;
    if server.kind() == Kind::Quorate {
        assert!(
            status.success(),
            "a clean stop is a success: {status}; log:\n{}",
            server.log()
        );
    }
    let mut ends = writers.join_all().await;
    ends.sort_by_key(|(writer, ..)| *writer);
    ends.into_iter()
        .map(|(_, answered, status)| {
            // A writer ends because the connection is closed or the server says that it stops, never by a time-out.
            let code = status.code();
            assert!(
                matches!(
                    code,
                    tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled
                ),
                "{status:?}"
            );
            answered
        })
        .collect()
}

/// After a clean stop every put that ran was answered, so the stored value is the last answered one. (etcd closes
/// connections before it has sent all answers.)
async fn nothing_was_lost(server: &Server, client: &Client, answered: &[u64]) {
    let values: BTreeMap<_, _> = client
        .pairs(get_range("w", "x"))
        .await
        .into_iter()
        .collect();
    for (writer, &answered) in answered.iter().enumerate() {
        // The values of a writer count its puts from 0.
        let applied = values
            .get(&format!("w{writer}"))
            .map_or(0, |value| value.parse::<u64>().unwrap() + 1);
        let unanswered = applied
            .checked_sub(answered)
            .expect("an answered put was lost");
        if server.kind() == Kind::Quorate {
            assert_eq!(
                unanswered, 0,
                "writer {writer}: a put took effect without an answer"
            );
        } else {
            assert!(
                unanswered <= 1,
                "writer {writer}: {applied} puts, {answered} answered"
            );
        }
    }
}

#[tokio::test]
async fn sigterm_answers_what_it_accepted() {
    let mut server = Server::start().await;
    let answered = stop_under_load(&mut server, Signal::TERM).await;
    server.restart().await;
    nothing_was_lost(&server, &server.client().await, &answered).await;
}

#[tokio::test]
async fn ctrl_c_does_the_same() {
    let mut server = Server::start().await;
    let answered = stop_under_load(&mut server, Signal::INT).await;
    server.restart().await;
    nothing_was_lost(&server, &server.client().await, &answered).await;
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_stop() {
    let mut server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", "v").await;
    server.signal(Signal::TERM);
    server.stopped().await;
    drop(client);
    server.restart().await;
    assert_eq!(server.client().await.revision().await, 2);
}
