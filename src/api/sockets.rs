//! The kinds of sockets that clients use (TCP, TLS and Unix), as one type each for listeners, accepted sockets and connections.

use super::tls_stream::{DetachedTls, TlsStream};
use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream},
    os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};

/// A socket that clients connect to, before it belongs to an event loop.
#[derive(Debug)]
pub enum ClientListener {
    Tcp(StdTcpListener),
    Tls(StdTcpListener),
    Unix(StdUnixListener),
}

impl ClientListener {
    /// The listener of a port without TLS.
    pub fn plain_port(&self) -> Option<&StdTcpListener> {
        match self {
            Self::Tcp(listener) => Some(listener),
            Self::Tls(_) | Self::Unix(_) => None,
        }
    }
}

/// Who a client is, as far as the system knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientPeer {
    /// It came from this address.
    Tcp(SocketAddr),
    /// It runs on this machine.
    Unix,
}

impl ClientPeer {
    /// The address and port, if it has one.
    pub(super) fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(address),
            Self::Unix => None,
        }
    }

    /// The address whose share of the connections it counts against; a client of the Unix socket has the loopback address.
    pub(super) fn origin(self) -> IpAddr {
        match self {
            Self::Tcp(address) => address.ip(),
            Self::Unix => Ipv4Addr::LOCALHOST.into(),
        }
    }
}

impl fmt::Display for ClientPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// The listeners of one event loop.
#[derive(Debug)]
pub(super) struct Listeners {
    all: Vec<Listener>,
    /// The listener that is polled first. It changes with each poll, so that a busy listener does not starve the others.
    first: usize,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener),
    Unix(UnixListener),
}

impl Listeners {
    /// Registers the listeners with the current event loop.
    pub(super) fn new(listeners: Vec<ClientListener>) -> io::Result<Self> {
        let register = |listener| match listener {
            ClientListener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Listener::Tcp)
            }
            ClientListener::Tls(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Listener::Tls)
            }
            ClientListener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener).map(Listener::Unix)
            }
        };
        let all: io::Result<Vec<_>> = listeners.into_iter().map(register).collect();
        Ok(Self {
            all: all?,
            first: 0,
        })
    }

    /// The next connection of any listener.
    pub(super) fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(Accepted, ClientPeer)>> {
        for _ in 0..self.all.len() {
            let asked = self.first;
            self.first = (asked + 1) % self.all.len();
            if let Poll::Ready(accepted) = self.all[asked].poll_accept(context) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }
}

impl Listener {
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<(Accepted, ClientPeer)>> {
        let accepted = match self {
            Self::Tcp(listener) => {
                let (stream, peer) = ready!(listener.poll_accept(context))?;
                (Accepted::Tcp(stream), ClientPeer::Tcp(peer))
            }
            Self::Tls(listener) => {
                let (stream, peer) = ready!(listener.poll_accept(context))?;
                (Accepted::Tls(stream), ClientPeer::Tcp(peer))
            }
            Self::Unix(listener) => {
                let (stream, _) = ready!(listener.poll_accept(context))?;
                (Accepted::Unix(stream), ClientPeer::Unix)
            }
        };
        Poll::Ready(Ok(accepted))
    }
}

/// A connection as it was accepted.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(TcpStream),
    /// Its handshake has not begun.
    Tls(TcpStream),
    Unix(UnixStream),
}

/// An accepted connection, taken from the event loop that accepted it, and set to send small packets at once.
#[derive(Debug)]
pub(super) enum Detached {
    /// It can be served.
    Plain(DetachedStream),
    /// Its handshake comes first.
    Tls(StdTcpStream),
}

impl Accepted {
    pub(super) fn detach(self) -> io::Result<Detached> {
        let packets_at_once = |stream: TcpStream| {
            stream.set_nodelay(true)?;
            stream.into_std()
        };
        Ok(match self {
            Self::Tcp(stream) => Detached::Plain(DetachedStream::Tcp(packets_at_once(stream)?)),
            Self::Tls(stream) => Detached::Tls(packets_at_once(stream)?),
            Self::Unix(stream) => Detached::Plain(DetachedStream::Unix(stream.into_std()?)),
        })
    }
}

/// A connection on its way from one event loop to another.
#[derive(Debug)]
pub(super) enum DetachedStream {
    Tcp(StdTcpStream),
    Tls(DetachedTls),
    Unix(StdUnixStream),
}

impl DetachedStream {
    /// Registers the connection with the current event loop.
    pub(super) fn attach(self) -> io::Result<ClientStream> {
        match self {
            Self::Tcp(stream) => TcpStream::from_std(stream).map(ClientStream::Tcp),
            Self::Tls(stream) => stream.attach().map(|it| ClientStream::Tls(Box::new(it))),
            Self::Unix(stream) => UnixStream::from_std(stream).map(ClientStream::Unix),
        }
    }
}

#[derive(Debug)]
pub enum ClientStream {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
    /// By a Unix domain socket.
    Unix(UnixStream),
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, out),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, out),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, out),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::poll_fn, net::Ipv4Addr};

    #[tokio::test]
    async fn a_busy_listener_does_not_hold_back_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let port = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = port.local_addr().unwrap();
        let unix = StdUnixListener::bind(&path).unwrap();
        let listeners = vec![ClientListener::Tcp(port), ClientListener::Unix(unix)];
        let mut listeners = Listeners::new(listeners).unwrap();
        let busy: Vec<_> = (0..8)
            .map(|_| StdTcpStream::connect(address).unwrap())
            .collect();
        let _unix = StdUnixStream::connect(&path).unwrap();
        let mut peers = Vec::new();
        while peers.len() < busy.len() + 1 {
            let accepted = poll_fn(|context| listeners.poll_accept(context)).await;
            peers.push(accepted.unwrap().1);
        }
        let turn = peers.iter().position(|peer| *peer == ClientPeer::Unix);
        assert!(
            turn.unwrap() < 4,
            "its connection was accepted as number {turn:?}"
        );
    }
}
