//! A client's TLS connection: a socket whose bytes pass through the TLS library.
//!
//! Unlike tokio's adapter, it can move from the event loop of its handshake to the one that serves it, and it reads from the
//! socket in pieces as large as the reader's buffer. All connections of a thread share the buffer for the ciphertext of one read,
//! so an idle connection has none.
//!
//! Bounds, for each connection: 64 KiB and one record of ciphertext that the socket does not take; then the writer waits. One
//! record that has not arrived completely, one that was not read with what came behind it in the same piece, and 4 KiB of
//! ciphertext behind those; then the socket is not read either. The TLS library takes ciphertext only while none of its plaintext
//! waits: with too much of that it fails instead of waiting.

use rustls::ServerConnection;
use std::{
    cell::RefCell,
    fmt,
    io::{self, Read as _, Write as _},
    net::TcpStream as StdTcpStream,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The most ciphertext of one read.
const READ_BYTES: usize = 48 * 1024;
/// The most plaintext that a record gives.
const RECORD_BYTES_MAX: usize = 16 * 1024 + 2 * 1024;
/// The least that one read accepts, so that an incomplete record gets its remaining bytes.
const READ_BYTES_MIN: usize = 4 * 1024;
/// Ciphertext that waits for the socket.
const UNSENT_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// The ciphertext of a read, which is decrypted before another connection of this thread reads.
    static CIPHERTEXT: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// A TLS connection on its way from one event loop to another.
pub(super) struct DetachedTls {
    socket: StdTcpStream,
    session: Box<ServerConnection>,
    rest: Vec<u8>,
}

pub struct TlsStream {
    socket: TcpStream,
    session: Box<ServerConnection>,
    /// Received, and not taken by the session yet, because plaintext waits there. Nothing more is received meanwhile.
    rest: Vec<u8>,
    /// The client, or the network, has ended it.
    ended: bool,
    closing: bool,
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").finish_non_exhaustive()
    }
}

impl fmt::Debug for DetachedTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DetachedTls").finish_non_exhaustive()
    }
}

impl DetachedTls {
    /// Registers the connection with the current event loop.
    pub(super) fn attach(self) -> io::Result<TlsStream> {
        Ok(TlsStream {
            socket: TcpStream::from_std(self.socket)?,
            session: self.session,
            rest: self.rest,
            ended: false,
            closing: false,
        })
    }
}

impl TlsStream {
    /// A connection whose handshake has not begun.
    pub(super) fn new(socket: TcpStream, config: Arc<rustls::ServerConfig>) -> io::Result<Self> {
        let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(UNSENT_BYTES_MAX));
        Ok(Self {
            socket,
            session: Box::new(session),
            rest: Vec::new(),
            ended: false,
            closing: false,
        })
    }

    /// Takes the connection from the current event loop.
    pub(super) fn detach(self) -> io::Result<DetachedTls> {
        Ok(DetachedTls {
            socket: self.socket.into_std()?,
            session: self.session,
            rest: self.rest,
        })
    }

    pub(super) fn session(&self) -> &ServerConnection {
        &self.session
    }

    /// Advances the handshake. Ready once it is done and all its bytes were sent. `received` has the first bytes, which were read
    /// from the socket already. If the client has sent something invalid, it gets an alert before the error is returned.
    pub(super) fn poll_handshake(
        &mut self,
        context: &mut Context<'_>,
        received: &mut Vec<u8>,
    ) -> Poll<io::Result<()>> {
        loop {
            let none = &mut ReadBuf::new(&mut []);
            let fed = if received.is_empty() {
                ready!(self.poll_drain(context))?;
                if !self.session.is_handshaking() {
                    return Poll::Ready(Ok(()));
                }
                if self.ended {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                ready!(self.poll_feed(context, none))
            } else {
                let first = std::mem::take(received);
                self.decrypt(&first, none)
            };
            if let Err(error) = fed {
                // Sends the alert, which has the reason.
                drop(self.poll_drain(context));
                return Poll::Ready(Err(error));
            }
        }
    }

    /// Sends ciphertext until none waits.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let socket = &mut self.socket;
            let mut writer = Writer { socket, context };
            match self.session.write_tls(&mut writer) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads from the socket once, unless ciphertext is left over, and decrypts into `out` what fits.
    fn poll_feed(
        &mut self,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(self.decrypt(&rest, out));
        }
        // No more than `out` takes, a record that has begun included, so that nothing is left over.
        let room = out.remaining().saturating_sub(RECORD_BYTES_MAX);
        let bytes_max = room.clamp(READ_BYTES_MIN, READ_BYTES);
        CIPHERTEXT.with_borrow_mut(|ciphertext| {
            let mut read = ReadBuf::new(&mut ciphertext[..bytes_max]);
            ready!(Pin::new(&mut self.socket).poll_read(context, &mut read))?;
            self.ended = read.filled().is_empty();
            Poll::Ready(self.decrypt(read.filled(), out))
        })
    }

    /// Decrypts into `out` what fits, and keeps the ciphertext behind that.
    fn decrypt(&mut self, mut ciphertext: &[u8], out: &mut ReadBuf<'_>) -> io::Result<()> {
        while !ciphertext.is_empty() {
            if self.session.read_tls(&mut ciphertext)? == 0 {
                // The client has closed its side; bytes that follow are ignored (RFC 8446, 6.1).
                self.ended = true;
                break;
            }
            let processed = self.session.process_new_packets();
            let state =
                processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let before = out.filled().len();
            self.take_plaintext(out)?;
            if state.plaintext_bytes_to_read() > out.filled().len() - before {
                self.rest = ciphertext.to_vec();
                break;
            }
        }
        Ok(())
    }

    /// Moves decrypted bytes to `out`. Returns whether the client has ended the connection.
    fn take_plaintext(&mut self, out: &mut ReadBuf<'_>) -> io::Result<bool> {
        while out.remaining() > 0 {
            match self.session.reader().read(out.initialize_unfilled()) {
                Ok(0) => return Ok(true),
                Ok(read) => out.advance(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        loop {
            let over = this.take_plaintext(out)?;
            if out.filled().len() > before || over || this.ended || out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let fed = ready!(this.poll_feed(context, out));
            if let Err(error) = fed {
                // Sends the alert, which has the reason.
                drop(this.poll_drain(context));
                return Poll::Ready(Err(error));
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let taken = this.session.writer().write(bytes)?;
            let drained = this.poll_drain(context)?;
            if taken > 0 || bytes.is_empty() {
                return Poll::Ready(Ok(taken));
            }
            ready!(drained);
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_drain(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            this.closing = true;
            this.session.send_close_notify();
        }
        ready!(this.poll_drain(context))?;
        Pin::new(&mut this.socket).poll_shutdown(context)
    }
}

/// The socket as the TLS library writes to it.
struct Writer<'a, 'b> {
    socket: &'a mut TcpStream,
    context: &'a mut Context<'b>,
}

fn now<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(done) => done,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl io::Write for Writer<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        now(Pin::new(&mut *self.socket).poll_write(self.context, bytes))
    }

    fn write_vectored(&mut self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
        now(Pin::new(&mut *self.socket).poll_write_vectored(self.context, pieces))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls;
    use rustls::{
        ClientConfig, ClientConnection, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    };
    use std::{future::poll_fn, net::Shutdown, thread};
    use tokio::net::TcpListener;

    fn configs() -> (Arc<rustls::ServerConfig>, Arc<ClientConfig>) {
        let pair = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = CertificateDer::from(params.self_signed(&pair).unwrap().der().to_vec());
        let key = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let server = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let client = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (Arc::new(server), Arc::new(client))
    }

    /// A long record, then short ones, each with other bytes, over and over.
    fn messages() -> Vec<Vec<u8>> {
        let lens = [vec![16_384], vec![50; 100], vec![1; 50], vec![3_000; 3]].concat();
        let all = lens.iter().cycle().take(lens.len() * 2).enumerate();
        all.map(|(n, len)| vec![u8::try_from(n % 251).unwrap(); *len])
            .collect()
    }

    /// Connects, sends the messages as ciphertext in pieces, and closes its side. What it has not read stays in the socket.
    fn client(
        mut socket: StdTcpStream,
        config: Arc<ClientConfig>,
        piece: usize,
    ) -> thread::JoinHandle<StdTcpStream> {
        thread::spawn(move || {
            let name = ServerName::try_from("localhost").unwrap();
            let mut session = ClientConnection::new(config, name).unwrap();
            session.set_buffer_limit(None);
            while session.is_handshaking() {
                session.complete_io(&mut socket).unwrap();
            }
            for message in messages() {
                session.writer().write_all(&message).unwrap();
            }
            let mut ciphertext = Vec::new();
            while session.wants_write() {
                session.write_tls(&mut ciphertext).unwrap();
            }
            for piece in ciphertext.chunks(piece) {
                socket.write_all(piece).unwrap();
            }
            socket.shutdown(Shutdown::Write).unwrap();
            socket
        })
    }

    /// What a reader gets whose buffer has `room` bytes, from a client that sends in pieces of `piece`.
    async fn read(room: usize, piece: usize) -> io::Result<Vec<u8>> {
        let (server, config) = configs();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let socket = StdTcpStream::connect(listener.local_addr()?)?;
        socket.set_nodelay(true)?;
        let client = client(socket, config, piece);
        let mut stream = TlsStream::new(listener.accept().await?.0, server)?;
        poll_fn(|context| stream.poll_handshake(context, &mut Vec::new())).await?;
        let mut stream = stream.detach()?.attach()?;
        let (mut all, mut buffer) = (Vec::new(), vec![0; room]);
        loop {
            let mut out = ReadBuf::new(&mut buffer);
            poll_fn(|context| Pin::new(&mut stream).poll_read(context, &mut out)).await?;
            if out.filled().is_empty() {
                break;
            }
            all.extend_from_slice(out.filled());
        }
        drop(client.join().unwrap());
        Ok(all)
    }

    #[tokio::test]
    async fn a_reader_with_little_room_gets_every_byte() {
        let sent = messages().concat();
        for room in [1, 100, 1_500, 5_000, 17_000, 23_000, 70_000] {
            for piece in [777, 4_096, 60_000] {
                let got = read(room, piece).await;
                let got = got.unwrap_or_else(|error| panic!("room {room}, piece {piece}: {error}"));
                assert!(
                    got == sent,
                    "room {room}, piece {piece}: {} bytes",
                    got.len()
                );
            }
        }
    }
}
