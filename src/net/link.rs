//! One open connection to a peer: a task for each lane and direction. When one of them ends, all do.

use super::{
    codec::{Lane, decode_message, decode_request},
    error::{NetError, Refusal},
    frame::{FrameBuffer, FrameError},
    hello,
    inbox::Inbox,
    requests::Requests,
    send_queues::SendQueues,
    snapshot,
};
use crate::{
    clock,
    log_gate::{self, LogGate},
    types::MemberId,
};
use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream, VarInt};
use std::{cell::Cell, future::pending, rc::Rc, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

/// Room for the next read, so that many frames are read at once.
const READ_BYTES: usize = 64 * 1024;
/// How often requests whose callers are gone are cancelled.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The second byte of a lasting stream, after its kind.
const STREAM_VERSION: u8 = 1;

/// Streams that no version of this program opens.
static UNKNOWN: LogGate = LogGate::new();

/// A connection whose handshake is done.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: MemberId,
    pub(super) dialled_by: MemberId,
    pub(super) boot: u64,
    /// The version of the peer protocol that both sides speak.
    pub(super) version: u16,
    pub(super) connection: Connection,
    pub(super) queues: Rc<SendQueues>,
    pub(super) requests: Rc<Requests>,
    pub(super) since: Instant,
    /// The lanes that the peer has opened, a bit each: it may open each once.
    opened: Cell<u8>,
}

/// Answers to the peer's requests, for the link's own task.
pub(super) type Answers = mpsc::Receiver<(u64, Option<Bytes>)>;

impl Link {
    /// A link over `connection`. Nothing is sent or received before [`run`].
    pub(super) fn new(
        peer: MemberId,
        dialled_by: MemberId,
        (boot, version): (u64, u16),
        connection: Connection,
        queue_bytes_max: usize,
    ) -> (Rc<Self>, Answers) {
        let queues = Rc::new(SendQueues::new(queue_bytes_max));
        let (requests, answers) = Requests::new(peer, Rc::clone(&queues));
        let link = Self {
            peer,
            dialled_by,
            boot,
            version,
            connection,
            queues,
            requests: Rc::new(requests),
            since: clock::now(),
            opened: Cell::new(0),
        };
        (Rc::new(link), answers)
    }

    /// Closes the connection with this reason, which the peer receives.
    pub(super) fn close(&self, refusal: &Refusal) {
        self.connection
            .close(refusal.code().into(), refusal.to_string().as_bytes());
    }

    pub(super) fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }
}

/// Runs the link until it ends, and returns the reason.
pub(super) async fn run(link: Rc<Link>, answers: Answers, inbox: Rc<dyn Inbox>) -> NetError {
    let mut tasks = JoinSet::new();
    for lane in Lane::ALL {
        tasks.spawn_local(write_lane(Rc::clone(&link), lane));
        tasks.spawn_local(read_lane(Rc::clone(&link), Rc::clone(&inbox)));
    }
    tasks.spawn_local(accept_snapshots(Rc::clone(&link), inbox));
    tasks.spawn_local(send_answers(Rc::clone(&link), answers));
    tasks.spawn_local(sweep(Rc::clone(&link)));
    let ended = match tasks.join_next().await {
        Some(Ok(Err(error))) => error,
        Some(Err(panicked)) if panicked.is_panic() => {
            std::panic::resume_unwind(panicked.into_panic())
        }
        Some(Ok(Ok(())) | Err(_)) | None => NetError::StreamEnded("of it"),
    };
    link.requests.lost();
    match ended {
        NetError::Refused(refusal) => hello::refuse(&link.connection, refusal),
        other => {
            // The reason for which the connection ended says more than the error of the stream that noticed it first.
            let reason = link.connection.close_reason();
            let malformed = Refusal::Malformed(other.to_string());
            link.close(&malformed);
            reason.map_or(other, NetError::from)
        }
    }
}

async fn write_lane(link: Rc<Link>, lane: Lane) -> Result<(), NetError> {
    let mut stream = link.connection.open_uni().await?;
    // It fails only once the connection has ended; then the first write fails with the reason.
    stream.set_priority(lane.priority()).unwrap_or_default();
    stream.write_all(&[lane.kind(), STREAM_VERSION]).await?;
    loop {
        let mut chunks = link.queues.batch(lane).await;
        stream.write_all_chunks(&mut chunks).await?;
    }
}

/// Reads the next stream that the peer opens; its first byte says which lane it is.
async fn read_lane(link: Rc<Link>, inbox: Rc<dyn Inbox>) -> Result<(), NetError> {
    let mut stream = link.connection.accept_uni().await?;
    let mut start = [0; 2];
    stream.read_exact(&mut start).await?;
    let malformed = |what: String| NetError::Refused(Refusal::Malformed(what));
    let lane = match (Lane::of_kind(start[0]), start[1]) {
        (Some(lane), STREAM_VERSION) => lane,
        (_, version) => {
            let kind = start[0];
            return Err(malformed(format!(
                "a stream of kind {kind}, version {version}"
            )));
        }
    };
    let bit = 1 << lane.index();
    if link.opened.get() & bit != 0 {
        return Err(malformed(format!("a second stream {}", lane.name())));
    }
    link.opened.set(link.opened.get() | bit);
    let mut frames = FrameBuffer::default();
    loop {
        if !fill(&mut stream, &mut frames.bytes).await? {
            return Err(NetError::StreamEnded(lane.name()));
        }
        let delivered = match lane {
            Lane::Votes | Lane::Log => deliver_messages(&link, lane, &mut frames, &inbox).await,
            Lane::Requests => deliver_requests(&link, &mut frames, &inbox).await,
        };
        delivered.map_err(|error| malformed(error.to_string()))?;
    }
}

/// Waits for bytes and reads all that have arrived, up to about [`READ_BYTES`]. False at the stream's end.
async fn fill(stream: &mut RecvStream, bytes: &mut BytesMut) -> Result<bool, NetError> {
    let used = bytes.len();
    let Some(chunk) = stream.read_chunk(READ_BYTES, true).await? else {
        return Ok(false);
    };
    bytes.extend_from_slice(&chunk.bytes);
    // More that has arrived is read too, without waiting.
    while bytes.len() - used < READ_BYTES {
        let more = tokio::select! {
            biased;
            more = stream.read_chunk(READ_BYTES, true) => more?,
            () = std::future::ready(()) => None,
        };
        let Some(chunk) = more else { break };
        bytes.extend_from_slice(&chunk.bytes);
    }
    Ok(true)
}

/// Passes on all messages that arrived whole, and waits until the inbox has taken them. Meanwhile the stream is not read, so flow
/// control holds the peer back.
async fn deliver_messages(
    link: &Link,
    lane: Lane,
    frames: &mut FrameBuffer,
    inbox: &Rc<dyn Inbox>,
) -> Result<(), FrameError> {
    let mut messages = Vec::new();
    while let Some(frame) = frames.next()? {
        messages.push(decode_message(lane, frame)?);
    }
    if !messages.is_empty() {
        inbox.messages(link.peer, messages).await;
    }
    Ok(())
}

async fn deliver_requests(
    link: &Link,
    frames: &mut FrameBuffer,
    inbox: &Rc<dyn Inbox>,
) -> Result<(), FrameError> {
    let mut requests = Vec::new();
    while let Some(frame) = frames.next()? {
        let (header, payload) = decode_request(frame)?;
        requests.extend(link.requests.received(header, payload));
    }
    if !requests.is_empty() {
        inbox.requests(requests).await;
    }
    Ok(())
}

/// Receives snapshots; QUIC bounds how many streams the peer may have open.
async fn accept_snapshots(link: Rc<Link>, inbox: Rc<dyn Inbox>) -> Result<(), NetError> {
    loop {
        let (answer, mut stream) = link.connection.accept_bi().await?;
        let (peer, inbox) = (link.peer, Rc::clone(&inbox));
        tokio::task::spawn_local(async move {
            let mut kind = [0];
            match stream.read_exact(&mut kind).await {
                Ok(()) if kind == [snapshot::STREAM_KIND] => {
                    let deliver = async move |incoming| inbox.snapshot(incoming).await;
                    snapshot::receive(peer, answer, stream, deliver).await;
                }
                // Dropping both directions resets the stream, which the peer notices.
                Ok(()) => log_gate::warn!(
                    UNKNOWN,
                    "a stream of unknown kind {} from {}",
                    kind[0],
                    peer.hex()
                ),
                Err(_) => {}
            }
        });
    }
}

async fn send_answers(link: Rc<Link>, mut answers: Answers) -> Result<(), NetError> {
    while let Some((id, answer)) = answers.recv().await {
        link.requests.answered(id, answer);
    }
    // The link holds a sender, so the loop does not end.
    pending().await
}

async fn sweep(link: Rc<Link>) -> Result<(), NetError> {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        link.requests.sweep();
    }
}

/// The streams a peer may have open at once.
pub(super) const LASTING_STREAMS_MAX: VarInt = VarInt::from_u32(3);
