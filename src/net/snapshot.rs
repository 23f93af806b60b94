//! Snapshots between members: one byte stream a transfer, in checksummed chunks. Flow control slows the faster side down.
//!
//! A transfer that fails for any reason starts again from its beginning: this is rare, and by then the sender has a newer
//! snapshot. The transfer ends with the receiver's answer, which says that the snapshot is installed.

use super::error::{NetError, SnapshotError};
use crate::types::MemberId;
use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot};

/// The first byte of a snapshot's stream.
pub(super) const STREAM_KIND: u8 = 4;
pub const CHUNK_BYTES_MAX: usize = 1024 * 1024;
pub const SNAPSHOT_HEADER_BYTES_MAX: usize = 64 * 1024;
/// The longest reason in a refusal.
const REASON_BYTES_MAX: usize = 1_024;
/// Chunks that wait between a stream and the task that reads or writes the file.
const CHUNKS_WAITING_MAX: usize = 2;

#[derive(Debug)]
enum Part {
    Chunk(Bytes),
    End,
}

/// Sends one snapshot. Dropping it before [`finish`](Self::finish) aborts the transfer.
#[derive(Debug)]
pub struct SnapshotSender {
    parts: mpsc::Sender<Part>,
    outcome: oneshot::Receiver<Result<(), SnapshotError>>,
}

impl SnapshotSender {
    /// Sends the next chunk, once there is room for it.
    pub async fn send(&mut self, chunk: Bytes) -> Result<(), SnapshotError> {
        if chunk.is_empty() || chunk.len() > CHUNK_BYTES_MAX {
            return Err(SnapshotError::PartSize(chunk.len()));
        }
        match self.parts.send(Part::Chunk(chunk)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    /// Ends the snapshot and waits until the receiver has installed it.
    pub async fn finish(mut self) -> Result<(), SnapshotError> {
        if self.parts.send(Part::End).await.is_err() {
            return Err(self.failure().await);
        }
        (&mut self.outcome).await.unwrap_or_else(|_| Err(gone()))
    }

    async fn failure(&mut self) -> SnapshotError {
        match (&mut self.outcome).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => gone(),
        }
    }

    /// A sender and a receiver without a network between them, for transports that are not QUIC.
    pub fn pair(from: MemberId, header: Bytes) -> (Self, IncomingSnapshot) {
        let (parts, taken) = mpsc::channel(CHUNKS_WAITING_MAX);
        let (answer, outcome) = oneshot::channel();
        (
            Self { parts, outcome },
            IncomingSnapshot {
                from,
                header,
                parts: taken,
                answer,
            },
        )
    }
}

/// A snapshot that a peer sends. Dropping it before [`answer`](Self::answer) refuses the transfer.
#[derive(Debug)]
pub struct IncomingSnapshot {
    pub from: MemberId,
    /// Its header, which `net` does not decode.
    pub header: Bytes,
    parts: mpsc::Receiver<Part>,
    answer: oneshot::Sender<Result<(), SnapshotError>>,
}

impl IncomingSnapshot {
    /// The next chunk, whose checksum was right; none after the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        match self.parts.recv().await {
            Some(Part::Chunk(chunk)) => Ok(Some(chunk)),
            Some(Part::End) => Ok(None),
            None => Err(gone()),
        }
    }

    /// Answers the sender: the snapshot is installed, or why it is not.
    pub fn answer(self, outcome: Result<(), String>) {
        // The sender may have given up in the meantime.
        drop(self.answer.send(outcome.map_err(SnapshotError::Refused)));
    }
}

fn gone() -> SnapshotError {
    SnapshotError::Interrupted("the other side is gone".to_owned())
}

impl From<NetError> for SnapshotError {
    fn from(error: NetError) -> Self {
        Self::Interrupted(error.to_string())
    }
}

/// The CRC32C of a chunk's offset and bytes.
fn checksum(offset: u64, chunk: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&offset.to_le_bytes()), chunk)
}

/// Starts a transfer over `connection`; its task ends with it.
pub(super) fn open(
    connection: quinn::Connection,
    header: Bytes,
) -> Result<SnapshotSender, SnapshotError> {
    if header.len() > SNAPSHOT_HEADER_BYTES_MAX {
        return Err(SnapshotError::PartSize(header.len()));
    }
    let (parts, taken) = mpsc::channel(CHUNKS_WAITING_MAX);
    let (answer, outcome) = oneshot::channel();
    tokio::task::spawn_local(async move {
        // The caller may have dropped its receiver.
        drop(answer.send(send(&connection, header, taken).await));
    });
    Ok(SnapshotSender { parts, outcome })
}

async fn send(
    connection: &quinn::Connection,
    header: Bytes,
    mut parts: mpsc::Receiver<Part>,
) -> Result<(), SnapshotError> {
    let (mut stream, mut answer) = connection.open_bi().await.map_err(NetError::from)?;
    let sent = tokio::select! {
        sent = send_parts(&mut stream, header, &mut parts) => sent,
        // Before the end, the only possible answer is a refusal.
        early = receive_answer(&mut answer) => return early.and(Err(gone())),
    };
    match (sent, receive_answer(&mut answer).await) {
        (Ok(()), answer) => answer,
        // The write failed because the receiver refused: return its reason.
        (Err(_), Err(refused @ SnapshotError::Refused(_))) => Err(refused),
        (Err(error), _) => Err(error),
    }
}

async fn send_parts(
    stream: &mut SendStream,
    header: Bytes,
    parts: &mut mpsc::Receiver<Part>,
) -> Result<(), SnapshotError> {
    let length = u32::try_from(header.len()).unwrap_or(u32::MAX);
    let mut start = vec![STREAM_KIND];
    start.extend_from_slice(&length.to_le_bytes());
    write(stream, [start.into(), header]).await?;
    let mut offset = 0_u64;
    loop {
        match parts.recv().await {
            Some(Part::Chunk(chunk)) => {
                let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
                let mut prefix = length.to_le_bytes().to_vec();
                prefix.extend_from_slice(&checksum(offset, &chunk).to_le_bytes());
                offset += chunk.len() as u64;
                write(stream, [prefix.into(), chunk]).await?;
            }
            Some(Part::End) => {
                let mut end = 0_u32.to_le_bytes().to_vec();
                end.extend_from_slice(&offset.to_le_bytes());
                write(stream, [end.into(), Bytes::new()]).await?;
                // If the stream is closed, reading the answer fails.
                stream.finish().unwrap_or_default();
                return Ok(());
            }
            None => {
                stream.reset(0_u8.into()).unwrap_or_default();
                return Err(SnapshotError::Interrupted("the sender gave up".to_owned()));
            }
        }
    }
}

async fn write(stream: &mut SendStream, mut chunks: [Bytes; 2]) -> Result<(), SnapshotError> {
    let written = stream.write_all_chunks(&mut chunks).await;
    written.map_err(|error| NetError::from(error).into())
}

async fn receive_answer(stream: &mut RecvStream) -> Result<(), SnapshotError> {
    let answer = stream.read_to_end(1 + REASON_BYTES_MAX).await;
    let answer = answer.map_err(|error| SnapshotError::Interrupted(error.to_string()))?;
    match answer.split_first() {
        Some((0, [])) => Ok(()),
        Some((1, reason)) => Err(SnapshotError::Refused(
            String::from_utf8_lossy(reason).into_owned(),
        )),
        _ => Err(SnapshotError::Interrupted(
            "the answer makes no sense".to_owned(),
        )),
    }
}

/// Receives one snapshot over a stream that the peer opened, whose first byte was read. `deliver` passes it on.
pub(super) async fn receive(
    from: MemberId,
    mut answer: SendStream,
    mut stream: RecvStream,
    deliver: impl AsyncFnOnce(IncomingSnapshot),
) {
    let received = receive_parts(from, &mut stream, deliver).await;
    let mut bytes = vec![0];
    if let Err(error) = received {
        tracing::info!(from = from.hex(), "snapshot not received: {error}");
        let reason = match error {
            SnapshotError::Refused(reason) => reason,
            other => other.to_string(),
        };
        bytes[0] = 1;
        // The reader accepts a text that is cut inside a character.
        bytes.extend_from_slice(&reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)]);
        stream.stop(0_u8.into()).unwrap_or_default();
    }
    // The sender may be gone.
    if answer.write_all(&bytes).await.is_ok() {
        answer.finish().unwrap_or_default();
        // Dropping the stream would be fine with QUIC; waiting keeps the transfer within its task.
        drop(answer.stopped().await);
    }
}

async fn receive_parts(
    from: MemberId,
    stream: &mut RecvStream,
    deliver: impl AsyncFnOnce(IncomingSnapshot),
) -> Result<(), SnapshotError> {
    let length = read_u32(stream).await? as usize;
    if length > SNAPSHOT_HEADER_BYTES_MAX {
        return Err(SnapshotError::PartSize(length));
    }
    let header = read_bytes(stream, length).await?;
    let (parts, taken) = mpsc::channel(CHUNKS_WAITING_MAX);
    let (answer, mut outcome) = oneshot::channel();
    deliver(IncomingSnapshot {
        from,
        header,
        parts: taken,
        answer,
    })
    .await;
    let mut offset = 0_u64;
    loop {
        let length = read_u32(stream).await? as usize;
        if length > CHUNK_BYTES_MAX {
            return Err(SnapshotError::PartSize(length));
        }
        let part = if length == 0 {
            let total = read_bytes(stream, 8).await?;
            if total[..] != offset.to_le_bytes() {
                return Err(SnapshotError::Damaged { offset });
            }
            Part::End
        } else {
            let expected = read_u32(stream).await?;
            let chunk = read_bytes(stream, length).await?;
            if checksum(offset, &chunk) != expected {
                return Err(SnapshotError::Damaged { offset });
            }
            offset += length as u64;
            Part::Chunk(chunk)
        };
        let ends = matches!(part, Part::End);
        if parts.send(part).await.is_err() {
            return outcome.try_recv().unwrap_or_else(|_| Err(unwanted()));
        }
        if ends {
            return outcome.await.unwrap_or_else(|_| Err(unwanted()));
        }
    }
}

fn unwanted() -> SnapshotError {
    SnapshotError::Refused("the receiver dropped the transfer".to_owned())
}

async fn read_u32(stream: &mut RecvStream) -> Result<u32, SnapshotError> {
    let mut bytes = [0; 4];
    stream
        .read_exact(&mut bytes)
        .await
        .map_err(NetError::from)?;
    Ok(u32::from_le_bytes(bytes))
}

/// `length` is bounded by the caller.
async fn read_bytes(stream: &mut RecvStream, length: usize) -> Result<Bytes, SnapshotError> {
    let mut bytes = vec![0; length];
    stream
        .read_exact(&mut bytes)
        .await
        .map_err(NetError::from)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pair_carries_chunks_and_the_answer() {
        let (mut sender, mut incoming) =
            SnapshotSender::pair(MemberId(1), Bytes::from_static(b"h"));
        let receiving = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = incoming.next().await.unwrap() {
                bytes.extend_from_slice(&chunk);
            }
            incoming.answer(Err("no space".to_owned()));
            bytes
        };
        let sending = async {
            for _ in 0..10 {
                sender.send(Bytes::from_static(b"ab")).await.unwrap();
            }
            sender.finish().await
        };
        let (bytes, outcome) = tokio::join!(receiving, sending);
        assert_eq!(bytes, b"ab".repeat(10));
        assert_eq!(outcome, Err(SnapshotError::Refused("no space".to_owned())));
    }

    #[tokio::test]
    async fn parts_of_a_wrong_size_are_refused() {
        let (mut sender, _incoming) = SnapshotSender::pair(MemberId(1), Bytes::new());
        assert_eq!(
            sender.send(Bytes::new()).await,
            Err(SnapshotError::PartSize(0))
        );
        let long = vec![0; CHUNK_BYTES_MAX + 1].into();
        assert_eq!(
            sender.send(long).await,
            Err(SnapshotError::PartSize(CHUNK_BYTES_MAX + 1))
        );
    }

    #[test]
    fn a_checksum_covers_the_place_too() {
        assert_ne!(checksum(0, b"a"), checksum(1, b"a"));
    }
}
