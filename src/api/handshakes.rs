//! The TLS handshakes of the client port: on a thread of their own, so that no call waits for a signature; bounded in number and
//! in time.
//!
//! A connection comes here when it is accepted, with its slot, and goes to its arbiter when its handshake is done. A client that
//! sends no handshake, mostly one that speaks plain HTTP, is refused, and that is logged.

use super::{
    access::CertificateName,
    connection_shares::Slots,
    sockets::{ClientPeer, DetachedStream},
    tls_stream::TlsStream,
};
use crate::{
    log_gate::{self, LogGate},
    tls::{self, ClientTls},
};
use actix_rt::{Arbiter, ArbiterHandle};
use std::{future::poll_fn, io, net::TcpStream as StdTcpStream, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Concurrent handshakes. Each has at most 64 KiB of received bytes that are not decoded yet.
const HANDSHAKES_MAX: usize = 1_024;

/// etcd: how long a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How the first record of a TLS connection begins.
const TLS_HANDSHAKE: u8 = 0x16;

/// The first bytes that are read.
const FIRST_BYTES: usize = 4 * 1024;

/// The answer to a client that speaks plain HTTP; the text is Go's.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n\
    Client sent an HTTP request to an HTTPS server.\n";

static FAILURES: LogGate = LogGate::new();

/// A connection whose handshake is done.
pub(super) struct Secured {
    pub(super) stream: DetachedStream,
    /// `None` if the client has shown none.
    pub(super) certificate: Option<Arc<CertificateName>>,
}

/// The thread of the handshakes. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Handshakes {
    thread: Arbiter,
    slots: Arc<Slots>,
    tls: ClientTls,
}

impl Handshakes {
    /// Starts the thread. Must be called inside an actix system.
    pub(super) fn start(tls: ClientTls) -> Self {
        Self::with_room(tls, HANDSHAKES_MAX)
    }

    fn with_room(tls: ClientTls, handshakes_max: usize) -> Self {
        Self {
            thread: Arbiter::new(),
            slots: Slots::of("TLS handshakes", handshakes_max),
            tls,
        }
    }

    /// A handle that begins handshakes on this thread.
    pub(super) fn handle(&self) -> HandshakesHandle {
        HandshakesHandle {
            thread: self.thread.handle(),
            slots: self.slots.clone(),
            tls: self.tls.clone(),
        }
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        self.thread.stop();
    }
}

#[derive(Clone, Debug)]
pub(super) struct HandshakesHandle {
    thread: ArbiterHandle,
    slots: Arc<Slots>,
    tls: ClientTls,
}

impl HandshakesHandle {
    /// Begins the handshake of a connection, and calls `done` when it succeeded. Otherwise the connection is closed. So it is if
    /// there is no room, and then this returns false.
    pub(super) fn begin<D, F>(&self, stream: StdTcpStream, peer: ClientPeer, done: D) -> bool
    where
        D: FnOnce(Secured) -> F + Send + 'static,
        F: Future<Output = ()>,
    {
        let Some(slot) = self.slots.admit(peer.origin()) else {
            return false;
        };
        let tls = self.tls.clone();
        // If the thread has stopped, the connection is dropped, which closes it.
        self.thread.spawn_fn(move || {
            drop(actix_rt::spawn(async move {
                let secured = timeout(HANDSHAKE_MAX, handshake(stream, &tls)).await;
                drop(slot);
                match secured {
                    Ok(Ok(secured)) => done(secured).await,
                    Ok(Err(failure)) => failure.report(peer),
                    Err(_) => Failure::Late.report(peer),
                }
            }));
        });
        true
    }
}

/// Why a handshake did not begin or did not succeed.
enum Failure {
    /// The client has left before it sent anything, as probes of ports do.
    Silent,
    PlainHttp,
    /// It speaks something else.
    Foreign,
    /// It was not done in time.
    Late,
    /// The client has left in the middle.
    Cut,
    /// Either side refused the other, or the network failed.
    Failed(io::Error),
}

impl Failure {
    fn report(&self, peer: ClientPeer) {
        // Without the port, which differs for each connection: equal texts are logged once a minute only.
        let whose = peer.origin();
        let what = match self {
            Self::Silent => return tracing::debug!(%peer, "a client left before its handshake"),
            Self::PlainHttp => "it speaks plain HTTP to a TLS port: use https://".to_owned(),
            Self::Foreign => "what it sends is no TLS".to_owned(),
            Self::Late => format!(
                "its TLS handshake was not over in {} s",
                HANDSHAKE_MAX.as_secs()
            ),
            Self::Cut => "it left in the middle of its TLS handshake".to_owned(),
            Self::Failed(error) => failed(error),
        };
        log_gate::warn!(FAILURES, "a client at {whose} is refused: {what}");
    }
}

fn failed(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(inner) => tls::reason(inner),
        None => format!("its TLS handshake failed: {error}"),
    }
}

async fn handshake(stream: StdTcpStream, tls: &ClientTls) -> Result<Secured, Failure> {
    let mut socket = TcpStream::from_std(stream).map_err(Failure::Failed)?;
    let mut received = vec![0; FIRST_BYTES];
    let read = socket
        .read(&mut received)
        .await
        .map_err(|_| Failure::Silent)?;
    received.truncate(read);
    match received.first() {
        None => return Err(Failure::Silent),
        Some(&TLS_HANDSHAKE) => {}
        Some(first) => return Err(refuse(socket, *first).await),
    }
    let mut stream = TlsStream::new(socket, tls.newest()).map_err(Failure::Failed)?;
    let done = poll_fn(|context| stream.poll_handshake(context, &mut received));
    done.await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Failure::Cut,
        _ => Failure::Failed(error),
    })?;
    let shown = stream.session().peer_certificates().and_then(<[_]>::first);
    let certificate = shown.map(|certificate| {
        Arc::new(CertificateName {
            name: tls::common_name(certificate).unwrap_or_default().into(),
            is_user: tls.names_are_users,
        })
    });
    let stream = stream.detach().map_err(Failure::Failed)?;
    Ok(Secured {
        stream: DetachedStream::Tls(stream),
        certificate,
    })
}

/// Sends the error to a client that speaks plain HTTP. An HTTP/2 client (`PRI`) gets the same answer, since it shows the text
/// too.
async fn refuse(mut socket: TcpStream, first: u8) -> Failure {
    if !first.is_ascii_uppercase() {
        return Failure::Foreign;
    }
    // It may be gone.
    if socket.write_all(PLAIN_HTTP).await.is_ok() && socket.shutdown().await.is_ok() {
        let mut rest = [0; 256];
        // Reads the rest of what the client sends: closing a socket with unread bytes would reset the connection, and the answer
        // could be lost.
        while matches!(socket.read(&mut rest).await, Ok(1..)) {}
    }
    Failure::PlainHttp
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{ClientTlsKeeper, ClientTlsSettings, self_signed};
    use std::{io::Read as _, net::TcpListener, path::Path};

    const ROOM: usize = 16;

    fn tls(dir: &Path) -> (ClientTls, ClientTlsKeeper) {
        let hosts = ["localhost".to_owned()];
        let day = Duration::from_hours(24);
        let (cert, key) = self_signed(dir, &hosts, day).expect("a certificate");
        let settings = ClientTlsSettings {
            cert,
            key,
            clients: None,
            tls12: true,
            tls13: true,
            suites: crate::config::SUITES.to_vec(),
            refuse_readable_keys: false,
        };
        ClientTls::open(settings).expect("it can be used")
    }

    struct Port {
        listener: TcpListener,
        handshakes: Handshakes,
    }

    impl Port {
        /// A client that says nothing; `None` if there was no room for it.
        fn silent(&self, address: [u8; 4]) -> Option<StdTcpStream> {
            let port = self.listener.local_addr().expect("it is bound");
            let mut client = StdTcpStream::connect(port).expect("it listens");
            let (accepted, _) = self.listener.accept().expect("it has connected");
            accepted.set_nonblocking(true).expect("a socket");
            let peer = ClientPeer::Tcp((address, 1).into());
            let handle = self.handshakes.handle();
            if handle.begin(accepted, peer, async |_| {}) {
                return Some(client);
            }
            let read = client.read(&mut [0]).expect("the end");
            assert_eq!(read, 0, "it is closed, and nothing was sent");
            None
        }

        /// As many as get in.
        fn greedy(&self, address: [u8; 4]) -> Vec<StdTcpStream> {
            std::iter::from_fn(|| self.silent(address)).collect()
        }
    }

    #[test]
    fn handshakes_are_bounded_and_no_address_takes_them_all() {
        let dir = tempfile::tempdir().unwrap();
        actix_rt::System::new().block_on(async {
            let (tls, _keeper) = tls(dir.path());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let handshakes = Handshakes::with_room(tls, ROOM);
            let port = Port {
                listener,
                handshakes,
            };
            let mut open = [1, 2, 3, 4].map(|last| port.greedy([10, 0, 0, last]));
            let counts = open.each_ref().map(Vec::len);
            assert_eq!(
                counts,
                [12, 3, 1, 0],
                "three quarters of what is free, each"
            );
            // Those that leave make room for others, once that is noticed.
            open[0].clear();
            while port.silent([10, 0, 0, 4]).is_none() {
                tokio::task::yield_now().await;
            }
            open[1].clear();
        });
    }
}
