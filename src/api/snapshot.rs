//! `Maintenance.Snapshot`: an image of the database in etcd's file format, as a stream.
//!
//! etcd: the messages have no header, each has 32 KiB of the image at most and says how many bytes of it are left, and one more
//! has the image's SHA-256 and nothing left.

use super::{Api, proto::etcdserverpb as pb, status::Status};
use crate::actors::etcd_image::{Blob, ImageStream};
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

/// A client that takes less than so many bytes in this time loses its snapshot: the database cannot use pages again that it still
/// needs, so its file grows by every write meanwhile.
const STALL_MAX: Duration = Duration::from_mins(1);
const STALL_BYTES: usize = 256 * 1024;

type Out = mpsc::Sender<Result<pb::SnapshotResponse, Status>>;

impl Api {
    pub async fn snapshot(&self, out: &Out) -> Result<(), Status> {
        let sending = async {
            let mut image = self.requests.image().await.map_err(Status::no_snapshot)?;
            let mut taken = Taken::default();
            while let Some(blob) = image.next().await {
                let message = message(blob.map_err(Status::no_snapshot)?);
                if !taken.send(out, message).await? {
                    break;
                }
            }
            Ok(())
        };
        self.unless_stopping(sending).await
    }
}

fn message(blob: Blob) -> pb::SnapshotResponse {
    pb::SnapshotResponse {
        header: None,
        remaining_bytes: blob.left,
        blob: blob.bytes,
        version: ImageStream::VERSION.to_owned(),
    }
}

/// What the client has taken lately. Only the time counts in which something waited for the client.
#[derive(Debug, Default)]
struct Taken {
    bytes: usize,
    waited: Duration,
}

impl Taken {
    /// Waits until there is room for the message. Returns whether somebody takes it.
    async fn send(&mut self, out: &Out, message: pb::SnapshotResponse) -> Result<bool, Status> {
        let (bytes, since) = (message.blob.len(), Instant::now());
        let sent = timeout(STALL_MAX.saturating_sub(self.waited), out.send(Ok(message)));
        let sent = sent.await.map_err(|_| Status::snapshot_not_taken())?;
        self.waited += since.elapsed();
        self.bytes += bytes;
        if self.bytes >= STALL_BYTES {
            *self = Self::default();
        }
        Ok(sent.is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::time::sleep;

    fn blob(bytes: usize) -> pb::SnapshotResponse {
        message(Blob {
            bytes: Bytes::from(vec![0; bytes]),
            left: 1,
            is_hash: false,
        })
    }

    /// Sends blobs of this size to a client that takes one every `pause`; returns how many it got until it lost the snapshot, at
    /// most 1,000.
    async fn sent(bytes: usize, pause: Duration) -> usize {
        let (out, mut messages) = mpsc::channel(1);
        let sending = async move {
            let mut taken = Taken::default();
            for _ in 0..1_000 {
                if taken.send(&out, blob(bytes)).await.is_err() {
                    break;
                }
            }
        };
        let receiving = async {
            let mut received = 0;
            loop {
                sleep(pause).await;
                if messages.recv().await.is_none() {
                    return received;
                }
                received += 1;
            }
        };
        tokio::join!(sending, receiving).1
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_little_loses_its_snapshot() {
        const BLOB: usize = 32 * 1024;
        let enough = sent(BLOB, Duration::from_secs(7)).await;
        assert_eq!(enough, 1_000, "8 blobs in 56 s suffice");
        let little = sent(BLOB, Duration::from_secs(9)).await;
        assert!(little < 10, "{little} blobs, one every 9 s");
        let tiny = sent(100, Duration::from_millis(100)).await;
        assert!(tiny < 1_000, "many tiny ones are no progress: {tiny}");
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_waits_for_the_client_does_not_count() {
        let (out, mut messages) = mpsc::channel(1);
        let mut taken = Taken::default();
        for _ in 0..5 {
            sleep(STALL_MAX).await;
            assert_eq!(taken.send(&out, blob(1)).await, Ok(true));
            assert!(messages.recv().await.is_some(), "it was sent");
        }
        drop(messages);
        assert_eq!(
            taken.send(&out, blob(1)).await,
            Ok(false),
            "nobody is there"
        );
    }
}
