//! Filling the key space before a workload that reads it.

use super::{
    BenchError,
    args::Settings,
    channel::{CallError, Channel, Method},
    grant::grant,
    random::Random,
    wire,
};
use bytes::BytesMut;
use std::{cell::Cell, rc::Rc, time::Duration};
use tokio::task::spawn_local;

/// Requests in flight while the key space is filled.
const FILL_IN_FLIGHT: usize = 256;
/// Connections used to fill it.
const FILL_CONNECTIONS: usize = 8;
/// The gRPC status of a call that the server does not have.
const UNIMPLEMENTED: &str = "12";

/// Lease grants that follow the fill, each in a commit of its own.
const SETTLE_COMMITS: u32 = 3;
/// Longer than a server delays a commit (etcd: 100 ms).
const SETTLE_TIME: Duration = Duration::from_millis(250);

/// Writes every key of the key space once; stops at the first failure.
pub(super) async fn fill(settings: &Settings) -> Result<(), BenchError> {
    let mut channels = Vec::new();
    for connection in 0..FILL_CONNECTIONS {
        channels.push(Channel::connect(settings, connection).await?);
    }
    let next = Rc::new(Cell::new(0));
    let mut fillers = Vec::new();
    for filler in 0..FILL_IN_FLIGHT {
        let mut channel = channels[filler % FILL_CONNECTIONS].clone();
        let (settings, next) = (settings.clone(), Rc::clone(&next));
        fillers.push(spawn_local(async move {
            let value = Random::new(settings.args.seed).bytes(settings.args.value_bytes);
            let (mut out, mut key) = (BytesMut::new(), Vec::new());
            while next.get() < settings.args.keys {
                settings.key(next.replace(next.get() + 1), &mut key);
                let request = wire::message(&mut out, |b| wire::put(b, &key, &value, 0));
                channel.unary_length(Method::Put, request).await?;
            }
            Ok::<_, CallError>(())
        }));
    }
    for filler in fillers {
        filler.await.map_err(|_| BenchError::ThreadLost)??;
    }
    settle(&mut channels[0]).await
}

/// Waits until the server has committed the keys, and then has it make commits without any key.
///
/// etcd 3.4 copies the buffer of its largest recent batch of keys for every read, and drops it only in a commit
/// without a key: right after a fill its reads cost four times as much as in an idle store.
/// Measured then, etcd would look slower than it is.
async fn settle(channel: &mut Channel) -> Result<(), BenchError> {
    let mut out = BytesMut::new();
    for _ in 0..SETTLE_COMMITS {
        tokio::time::sleep(SETTLE_TIME).await;
        match grant(&mut out, channel).await {
            Ok(_) => {}
            // A server without leases does not have this cost.
            Err(CallError::Status { code, .. }) if code == UNIMPLEMENTED => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    tokio::time::sleep(SETTLE_TIME).await;
    Ok(())
}
