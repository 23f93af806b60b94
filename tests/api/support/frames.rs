//! HTTP/2 frame by frame, for what no client library sends.

use bytes::Bytes;
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const ANSWER_MAX: Duration = Duration::from_secs(30);

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A connection on which the test writes every frame itself.
#[derive(Debug)]
pub(crate) struct FrameConnection(TcpStream);

/// The two directions of a connection, for those who send and read at once.
#[derive(Debug)]
pub(crate) struct FrameSender(OwnedWriteHalf);

#[derive(Debug)]
pub(crate) struct FrameReceiver(OwnedReadHalf);

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Bytes,
}

impl FrameConnection {
    /// Connects and begins with the preface and empty settings.
    pub(crate) async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        let mut connection = Self(stream.expect("a connection"));
        connection.send(PREFACE).await.expect("the preface");
        let settings = encode(4, 0, 0, &[]);
        connection.send(&settings).await.expect("settings");
        connection
    }

    /// Begins on a connection that the test has made; `None` if the server closes it instead of sending its settings.
    pub(crate) async fn begin(stream: TcpStream) -> Option<Self> {
        let mut connection = Self(stream);
        let begun = [PREFACE, &encode(SETTINGS, 0, 0, &[])].concat();
        connection.send(&begun).await.ok()?;
        let answer = connection.next(0).await?;
        (answer.kind == SETTINGS).then_some(connection)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// The next frame of a stream, or a GOAWAY; `None` once the server has closed the connection.
    pub(crate) async fn next(&mut self, stream: u32) -> Option<Frame> {
        loop {
            let frame = timeout(ANSWER_MAX, self.read()).await;
            let frame = frame.expect("a frame in time")?;
            if frame.stream == stream || frame.kind == GOAWAY {
                return Some(frame);
            }
        }
    }

    /// The next frame of any stream; `None` once the server has closed the connection.
    pub(crate) async fn any(&mut self) -> Option<Frame> {
        timeout(ANSWER_MAX, self.read())
            .await
            .expect("a frame in time")
    }

    async fn read(&mut self) -> Option<Frame> {
        read(&mut self.0).await
    }

    pub(crate) fn split(self) -> (FrameSender, FrameReceiver) {
        let (receiver, sender) = self.0.into_split();
        (FrameSender(sender), FrameReceiver(receiver))
    }
}

impl FrameSender {
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await
    }
}

impl FrameReceiver {
    /// The next frame of any stream; `None` once the server has closed the connection.
    pub(crate) async fn next_of_all(&mut self) -> Option<Frame> {
        let frame = timeout(ANSWER_MAX, read(&mut self.0)).await;
        frame.expect("a frame in time")
    }
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await.ok()?;
    let [high, middle, low, kind, flags, id @ ..] = head;
    let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    let mut payload = vec![0; len];
    from.read_exact(&mut payload).await.ok()?;
    Some(Frame {
        kind,
        flags,
        stream: u32::from_be_bytes(id),
        payload: payload.into(),
    })
}

pub(crate) fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a short payload");
    let mut frame = len.to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The header block of a gRPC call. Nothing enters the header table.
pub(crate) fn call_headers(path: &str, authority: &[u8]) -> Vec<u8> {
    let literal = |block: &mut Vec<u8>, value: &[u8]| {
        // An integer with a prefix of seven bits.
        let mut more = value.len().checked_sub(0x7f);
        block.push(more.map_or(value.len(), |_| 0x7f).to_le_bytes()[0]);
        while let Some(left) = more {
            more = Some(left >> 7).filter(|_| left >= 0x80);
            let flag = if more.is_some() { 0x80 } else { 0 };
            block.push((left & 0x7f).to_le_bytes()[0] | flag);
        }
        block.extend_from_slice(value);
    };
    // POST, http, and a path.
    let mut block = vec![0x83, 0x86, 0x04];
    literal(&mut block, path.as_bytes());
    block.push(0x01);
    literal(&mut block, authority);
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        block.push(0);
        literal(&mut block, name.as_bytes());
        literal(&mut block, value.as_bytes());
    }
    block
}
