//! A client's socket as its HTTP connection uses it: it reads and writes in large pieces.
//!
//! The HTTP/2 library reads only as much as its buffer has room for, and flushes whenever it has a payload of more than a few
//! hundred bytes to send. Each answer would then be a system call, which costs more than the rest of a get. So this socket reads
//! everything that has arrived at once, and after [`Wire::hold`] it keeps what is written until [`Wire::poll_send`], which
//! the connection's task calls at the end of its turn. The buffers belong to the arbiter: a connection has some only while bytes
//! wait.
//!
//! What frames cost besides their bytes is counted here (see `frame_budget`): a turn has room for some thousand of them, or some
//! dozens of cancelled calls, and a client that sends frames without calls and without end is reported by [`Wire::take_flood`]. A
//! connection that has used up its turn goes on once the event loop has looked at all sockets, so clients that ask for little go
//! first.
//!
//! Header blocks are repaired as they are received; see [`authority`](super::authority).

use super::{
    authority::Repair,
    frame_budget::{Exhausted, FrameBudget},
};
use bytes::{Buf, BytesMut};
use std::{
    cell::{Cell, RefCell},
    io, mem,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// About the most that one turn of a connection receives. The rest waits until other connections had their turn.
pub const TURN_BYTES_MAX: usize = 4 * READ_BYTES;

/// Unsent bytes; a writer with more waits for the client to read.
const UNSENT_BYTES_MAX: usize = 64 * 1024;

/// How a TLS handshake begins: with the type of its record, and the major version, which is 3 in the records of TLS 1.x.
const TLS_HANDSHAKE: [u8; 2] = [0x16, 0x03];

/// A buffer with more capacity than this is not kept.
const KEPT_BYTES_MAX: usize = 2 * UNSENT_BYTES_MAX;

/// The buffers that the connections of an arbiter share: only one of them runs at a time.
#[derive(Debug)]
pub struct Buffers {
    read: RefCell<Box<[u8]>>,
    /// Empty, kept for its capacity.
    write: RefCell<Vec<u8>>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            read: RefCell::new(vec![0; READ_BYTES].into()),
            write: RefCell::new(Vec::new()),
        }
    }
}

/// A handle to a socket; its clones share it.
#[derive(Debug)]
pub struct Wire<S> {
    end: Rc<End<S>>,
}

#[derive(Debug)]
struct End<S> {
    socket: RefCell<Socket<S>>,
    held: Cell<bool>,
    reads: Cell<u64>,
    turn_bytes: Cell<usize>,
    flood: Cell<Flood>,
}

/// Whether the client sends frames that carry no call, without end. Then nothing more is read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    No,
    Found,
    Reported,
}

#[derive(Debug)]
struct Socket<S> {
    stream: S,
    repair: Repair,
    buffers: Rc<Buffers>,
    /// Received and not read yet.
    ready: BytesMut,
    ended: bool,
    budget: FrameBudget,
    /// How many bytes of a turn the frames in `ready` take besides their own.
    weight: usize,
    /// Written bytes, of which the first `sent` were sent.
    unsent: Vec<u8>,
    sent: usize,
}

impl<S> Clone for Wire<S> {
    fn clone(&self) -> Self {
        let end = self.end.clone();
        Self { end }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A socket from which no bytes were read yet. It sends at once.
    pub fn new(stream: S, buffers: Rc<Buffers>) -> Self {
        let socket = Socket {
            stream,
            repair: Repair::default(),
            buffers,
            ready: BytesMut::new(),
            ended: false,
            budget: FrameBudget::default(),
            weight: 0,
            unsent: Vec::new(),
            sent: 0,
        };
        let end = End {
            socket: RefCell::new(socket),
            held: Cell::new(false),
            reads: Cell::new(0),
            turn_bytes: Cell::new(0),
            flood: Cell::new(Flood::No),
        };
        Self { end: Rc::new(end) }
    }

    /// Waits until it is known whether the client uses HTTP/2. All bytes can still be read afterwards.
    pub fn poll_is_http2(&self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut socket = self.end.socket.borrow_mut();
        loop {
            if let Some(http2) = socket.repair.is_http2() {
                return Poll::Ready(Ok(http2));
            }
            let received = socket.poll_receive(context, &mut ReadBuf::new(&mut []));
            if let Err(Exhausted) = ready!(received)? {
                return Poll::Ready(Err(io::Error::other("the client begins with a flood")));
            }
        }
    }

    /// Whether what was received first, after [`Wire::poll_is_http2`], is the beginning of a TLS handshake.
    pub fn begins_with_tls(&self) -> bool {
        self.end.socket.borrow().ready.starts_with(&TLS_HANDSHAKE)
    }

    /// From now on only [`Wire::poll_send`] sends, unless more than `UNSENT_BYTES_MAX` wait.
    pub fn hold(&self) {
        self.end.held.set(true);
    }

    /// After [`Wire::hold`], a turn begins here: it may receive [`TURN_BYTES_MAX`] again.
    pub fn begin_turn(&self) {
        self.end.turn_bytes.set(0);
    }

    /// Sends all unsent bytes. While the client's window is full the task waits to be woken.
    pub fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end.socket.borrow_mut().poll_send(context)
    }

    /// Whether the client has exceeded its budget of frames without calls, so that the connection must be closed. True only once.
    pub fn take_flood(&self) -> bool {
        let found = self.end.flood.get() == Flood::Found;
        if found {
            self.end.flood.set(Flood::Reported);
        }
        found
    }

    /// The streams that the client has reset. Empty while received bytes are unread, so that the library has read these resets
    /// too.
    pub fn take_resets(&self) -> Vec<u32> {
        let socket = &mut *self.end.socket.borrow_mut();
        if socket.ready.is_empty() {
            socket.repair.take_resets()
        } else {
            Vec::new()
        }
    }

    /// Counts the reads that returned bytes.
    pub fn reads(&self) -> u64 {
        self.end.reads.get()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Reads once from the socket, into `out`; what does not fit there goes into `ready`. Returns [`Exhausted`] if the client has
    /// sent too many frames that carry no call.
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Result<(), Exhausted>>> {
        let Self {
            stream,
            repair,
            buffers,
            ready,
            ended,
            budget,
            weight,
            ..
        } = self;
        let mut scratch = buffers.read.borrow_mut();
        let mut read = ReadBuf::new(&mut scratch);
        ready!(Pin::new(stream).poll_read(context, &mut read))?;
        let received = read.filled();
        *ended = received.is_empty();
        repair.pass(received, &mut |bytes| {
            // What fits goes straight to the caller.
            let fits = if ready.is_empty() {
                bytes.len().min(out.remaining())
            } else {
                0
            };
            out.put_slice(&bytes[..fits]);
            ready.extend_from_slice(&bytes[fits..]);
        });
        let tally = repair.take_tally();
        *weight += tally.turn_bytes();
        Poll::Ready(Ok(budget.received(tally)))
    }

    /// Moves bytes from `ready` to the caller.
    fn give(&mut self, out: &mut ReadBuf<'_>) {
        let len = out.remaining().min(self.ready.len());
        out.put_slice(&self.ready[..len]);
        self.ready.advance(len);
        if self.ready.is_empty() {
            self.ready = BytesMut::new();
        }
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Result<(), Exhausted>>> {
        let before = out.filled().len();
        while self.ready.is_empty() && !self.ended && out.filled().len() == before {
            if let Err(flood) = ready!(self.poll_receive(context, out))? {
                return Poll::Ready(Ok(Err(flood)));
            }
        }
        self.give(out);
        Poll::Ready(Ok(Ok(())))
    }

    /// The part of `weight` that falls to `given` bytes, which were just read.
    fn take_weight(&mut self, given: usize) -> usize {
        if self.weight == 0 {
            return 0;
        }
        let all = given + self.ready.len();
        let part = (self.weight * given).checked_div(all).unwrap_or_default();
        self.weight -= part;
        part
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.waiting() + bytes.len() > UNSENT_BYTES_MAX {
            ready!(self.poll_send(context))?;
        }
        if self.unsent.is_empty() {
            if bytes.len() > UNSENT_BYTES_MAX {
                let sent = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
                self.budget.sent(sent);
                return Poll::Ready(Ok(sent));
            }
            self.unsent = mem::take(&mut *self.buffers.write.borrow_mut());
        }
        self.unsent.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn waiting(&self) -> usize {
        self.unsent.len() - self.sent
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.waiting() > 0 {
            let left = &self.unsent[self.sent..];
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, left))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
            self.budget.sent(sent);
        }
        if self.sent > 0 {
            self.sent = 0;
            let mut used = mem::take(&mut self.unsent);
            used.clear();
            if used.capacity() <= KEPT_BYTES_MAX {
                *self.buffers.write.borrow_mut() = used;
            }
        }
        // TLS may hold bytes that the socket did not take; other streams have none.
        Pin::new(&mut self.stream).poll_flush(context)
    }
}

/// Ends a turn whose client has sent more: its task goes on once the event loop has looked at all sockets. If the task were woken
/// at once, the loop would look only after some sixty turns, and a client that was idle would wait for all of them.
fn end_turn<T>(context: &mut Context<'_>) -> Poll<T> {
    // The first poll hands the waker to the event loop.
    let later = pin!(tokio::task::yield_now()).poll(context);
    if later.is_ready() {
        context.waker().wake_by_ref();
    }
    Poll::Pending
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.flood.get() != Flood::No {
            return Poll::Pending;
        }
        let turn_bytes = self.end.turn_bytes.get();
        if turn_bytes >= TURN_BYTES_MAX && self.end.held.get() {
            return end_turn(context);
        }
        let before = out.filled().len();
        let mut socket = self.end.socket.borrow_mut();
        if ready!(socket.poll_read(context, out))?.is_err() {
            self.end.flood.set(Flood::Found);
            return Poll::Pending;
        }
        let given = out.filled().len() - before;
        let turn_bytes = turn_bytes + given + socket.take_weight(given);
        self.end.turn_bytes.set(turn_bytes);
        self.end.reads.set(self.end.reads.get().wrapping_add(1));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.end.socket.borrow_mut().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.end.held.get() {
            return Poll::Ready(Ok(()));
        }
        self.poll_send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        let mut socket = self.end.socket.borrow_mut();
        Pin::new(&mut socket.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// A socket with `room` bytes between its ends.
    fn wire(room: usize) -> (Wire<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (here, there) = duplex(room);
        (Wire::new(here, Rc::default()), there)
    }

    async fn sent(wire: &Wire<tokio::io::DuplexStream>) -> io::Result<()> {
        poll_fn(|context| wire.poll_send(context)).await
    }

    #[tokio::test]
    async fn held_bytes_are_sent_together() {
        let (mut wire, mut client) = wire(1 << 20);
        wire.write_all(b"before ").await.unwrap();
        wire.flush().await.unwrap();
        let mut read = [0; 7];
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"before ", "a new socket sends at once");
        wire.hold();
        for part in [b"one ", b"two "] {
            wire.write_all(part).await.unwrap();
            wire.flush().await.unwrap();
        }
        let nothing = poll_fn(|context| {
            let mut read = ReadBuf::new(&mut read);
            Poll::Ready(Pin::new(&mut client).poll_read(context, &mut read))
        });
        assert!(
            nothing.await.is_pending(),
            "a flush sends no bytes after `hold`"
        );
        sent(&wire).await.unwrap();
        let mut read = [0; 8];
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"one two ");
        assert!(
            wire.end.socket.borrow().unsent.capacity() == 0,
            "the buffer was returned"
        );
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_stops_the_writer() {
        let (mut wire, mut client) = wire(1_000);
        wire.hold();
        let written = poll_fn(|context| {
            let mut written = 0;
            while let Poll::Ready(taken) = Pin::new(&mut wire).poll_write(context, &[7; 1_000]) {
                written += taken.unwrap();
                assert!(written < 1 << 20, "the writer is never stopped");
            }
            Poll::Ready(written)
        });
        let written = written.await;
        assert!(written <= UNSENT_BYTES_MAX + 1_000, "{written} bytes wait");
        let reading = async {
            let mut read = vec![0; written];
            client.read_exact(&mut read).await.unwrap();
            assert!(read.iter().all(|byte| *byte == 7), "all of it arrives");
        };
        tokio::join!(async { sent(&wire).await.unwrap() }, reading);
    }

    #[tokio::test]
    async fn pieces_of_any_size_are_read_and_written_whole() {
        let text: Vec<u8> = (0..300_000_u32).map(|byte| (byte % 251) as u8).collect();
        for piece in [1_000, 60_000, 300_000] {
            let (mut wire, client) = wire(100_000);
            let (mut from, mut to) = tokio::io::split(client);
            let pieces: Vec<_> = text.chunks(piece).collect();
            let echo = async {
                let mut small = [0; 777];
                let mut left = text.len();
                while left > 0 {
                    let len = wire.read(&mut small).await.unwrap();
                    wire.write_all(&small[..len]).await.unwrap();
                    left -= len;
                }
                wire.shutdown().await.unwrap();
            };
            let send = async {
                for piece in pieces {
                    to.write_all(piece).await.unwrap();
                }
            };
            let mut read = Vec::new();
            let receive = from.read_to_end(&mut read);
            let ((), (), received) = tokio::join!(echo, send, receive);
            received.unwrap();
            assert!(read == text, "in pieces of {piece}");
        }
    }

    /// A connection whose client sends without end; counts its turns.
    async fn busy(wire: Wire<tokio::net::TcpStream>, turns: Rc<Cell<usize>>) {
        let mut wire = wire;
        wire.hold();
        let mut room = vec![0; READ_BYTES];
        poll_fn(|context| {
            wire.begin_turn();
            turns.set(turns.get() + 1);
            loop {
                let mut read = ReadBuf::new(&mut room);
                let read = Pin::new(&mut wire).poll_read(context, &mut read);
                if ready!(read).is_err() {
                    return Poll::Ready(());
                }
            }
        })
        .await;
    }

    /// A connection of this machine: the end of a server, and that of a client.
    async fn connection() -> (tokio::net::TcpStream, std::net::TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().await.unwrap().0, client)
    }

    /// How many turns the connections of busy clients have while a client that was idle waits for its own.
    #[tokio::test]
    async fn busy_connections_have_a_turn_each_before_an_idle_one_has_its_own() {
        const BUSY: usize = 3;
        const ROUNDS: usize = 20;
        let local = tokio::task::LocalSet::new();
        let buffers = Rc::<Buffers>::default();
        let turns = Rc::<Cell<usize>>::default();
        let mut floods = Vec::new();
        for _ in 0..BUSY {
            use std::io::Write as _;
            let (server, mut client) = connection().await;
            let wire = Wire::new(server, buffers.clone());
            local.spawn_local(busy(wire, turns.clone()));
            floods.push(std::thread::spawn(move || {
                let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
                client.write_all(preface).unwrap();
                // DATA of one byte.
                let frames = b"\0\0\x01\0\0\0\0\0\x01x".repeat(10_000);
                while client.write_all(&frames).is_ok() {}
            }));
        }
        let (mut server, client) = connection().await;
        let mut client = tokio::net::TcpStream::from_std({
            client.set_nonblocking(true).unwrap();
            client
        })
        .unwrap();
        let waited = local
            .run_until(async move {
                let echo = tokio::task::spawn_local(async move {
                    let mut byte = [0];
                    while server.read_exact(&mut byte).await.is_ok() {
                        server.write_all(&byte).await.unwrap();
                    }
                });
                let mut byte = [7];
                let before = turns.get();
                for _ in 0..ROUNDS {
                    client.write_all(&byte).await.unwrap();
                    client.read_exact(&mut byte).await.unwrap();
                }
                echo.abort();
                turns.get() - before
            })
            .await;
        drop(local);
        for flood in floods {
            flood.join().unwrap();
        }
        // The request and its answer are noticed by one look at the sockets each.
        let most = ROUNDS * BUSY * 4;
        assert!(
            waited <= most,
            "{waited} turns of others for {ROUNDS} calls"
        );
    }

    #[tokio::test]
    async fn a_flood_that_comes_with_the_preface_ends_the_connection() {
        let preface = &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..];
        // HEADERS of a stream, and trailers that go on.
        let call = b"\0\0\x01\x01\x04\0\0\0\x01\x82";
        let trailers = b"\0\0\x01\x01\x01\0\0\0\x01\x90";
        for (sent, is_flood) in [
            ([preface, call].concat(), false),
            ([preface, call, trailers].concat(), true),
        ] {
            let (wire, mut client) = wire(100);
            client.write_all(&sent).await.unwrap();
            let detected = poll_fn(|context| wire.poll_is_http2(context)).await;
            assert_eq!(detected.is_err(), is_flood);
        }
    }

    #[tokio::test]
    async fn the_preface_tells_http2() {
        let table: [(&[u8], bool); 4] = [
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true),
            (b"PRI * HTTP/1.1\r\n\r\n", false),
            (b"GET / HTTP/1.1\r\n\r\n", false),
            (b"PRI", false),
        ];
        for (bytes, expected) in table {
            let (mut wire, mut client) = wire(100);
            client.write_all(bytes).await.unwrap();
            drop(client);
            let detected = poll_fn(|context| wire.poll_is_http2(context)).await;
            assert_eq!(detected.unwrap(), expected, "{bytes:?}");
            let mut read = Vec::new();
            wire.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, bytes, "and all bytes can still be read");
        }
    }
}
