//! The sockets that clients connect to: opened before a start does anything else, since that one is taken should show at once.
//!
//! A name is listened on at one of its addresses, IPv4 first, as in Go. `[::]` takes IPv4 too, unless `0.0.0.0` has the same
//! port. A Unix socket that a process left behind is removed; one that a process still listens on is not (etcd takes it
//! away), and neither is anything else of that name. The file gets the permissions that the umask leaves, and goes when the
//! member stops. Two processes that find the same socket left behind must not both take it, and the later one the socket of the
//! first: a lock on a file beside it, named `….lock`, is held from the look at the old socket until the new one is listened on.

use super::error::StartError;
use crate::{
    api::sockets::ClientListener,
    config::{ClientAddress, HostPort},
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
        sockopt,
    },
};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs},
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

/// Connections that may wait to be accepted; the kernel has a bound of its own.
const BACKLOG: i32 = 4_096;

/// The longest path of a Unix socket.
const PATH_BYTES_MAX: usize = 107;

#[derive(Debug)]
pub(super) struct ClientSockets {
    pub(super) listeners: Vec<ClientListener>,
    /// The addresses asked for, with the ports that the system chose.
    pub(super) addresses: Vec<ClientAddress>,
    pub(super) files: Vec<SocketFile>,
}

/// The file of a Unix socket, removed when this is dropped.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: what another process has put in its place is not ours to remove.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.id)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

impl ClientSockets {
    /// Opens all, or none.
    pub(super) fn open(addresses: &[ClientAddress]) -> Result<Self, StartError> {
        let mut opened = Self {
            listeners: Vec::new(),
            addresses: Vec::new(),
            files: Vec::new(),
        };
        for address in addresses {
            opened
                .add(address, addresses)
                .map_err(|source| StartError::Listen {
                    address: address.to_string(),
                    source,
                })?;
        }
        Ok(opened)
    }

    fn add(&mut self, address: &ClientAddress, all: &[ClientAddress]) -> io::Result<()> {
        match address {
            ClientAddress::Tcp(asked) => {
                let (listener, bound) = listen_on(asked, all)?;
                self.addresses.push(ClientAddress::Tcp(bound));
                self.listeners.push(ClientListener::Tcp(listener));
            }
            ClientAddress::Tls(asked) => {
                let (listener, bound) = listen_on(asked, all)?;
                self.addresses.push(ClientAddress::Tls(bound));
                self.listeners.push(ClientListener::Tls(listener));
            }
            ClientAddress::Unix(path) => {
                let (listener, file) = listen_unix(path)?;
                self.addresses.push(address.clone());
                self.listeners.push(ClientListener::Unix(listener));
                self.files.push(file);
            }
        }
        Ok(())
    }
}

/// The listener of a port, and the port with the number that the system chose.
fn listen_on(asked: &HostPort, all: &[ClientAddress]) -> io::Result<(TcpListener, HostPort)> {
    let listener = listen_tcp(resolve(asked)?, !takes_ipv4(asked, all))?;
    let bound = HostPort {
        host: asked.host.clone(),
        port: listener.local_addr()?.port(),
    };
    Ok((listener, bound))
}

/// Whether an IPv6 socket takes IPv4 as well: not where another one does on this port.
fn takes_ipv4(asked: &HostPort, all: &[ClientAddress]) -> bool {
    let every = Ipv4Addr::UNSPECIFIED.to_string();
    let mut ports = all.iter().filter_map(ClientAddress::tcp);
    !ports.any(|other| other.host == every && other.port == asked.port)
}

/// The address of a name to listen on, with the number of its scope.
fn resolve(address: &HostPort) -> io::Result<SocketAddr> {
    let found = (address.host.as_str(), address.port).to_socket_addrs()?;
    let found: Vec<SocketAddr> = found.collect();
    let chosen = found.iter().find(|found| found.is_ipv4());
    chosen
        .or(found.first())
        .copied()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

fn listen_tcp(address: SocketAddr, ipv6_only: bool) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        // Whatever the machine's default is.
        sockopt::set_ipv6_v6only(&socket, ipv6_only)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn listen_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if path.as_os_str().len() > PATH_BYTES_MAX {
        let what = format!("the path of a Unix socket has at most {PATH_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let _taking = Taking::begin(path)?;
    remove_left_behind(path)?;
    let listener = UnixListener::bind(path)?;
    let file = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        id: (file.dev(), file.ino()),
    };
    Ok((listener, file))
}

/// The right to take a path. While it lives, no other process takes it.
struct Taking {
    lock: PathBuf,
    /// Locked.
    _file: File,
}

impl Taking {
    fn begin(path: &Path) -> io::Result<Self> {
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        loop {
            let options = OpenOptions::new().create(true).append(true).open(&lock);
            let file = options.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("cannot lock {}: {error}", lock.display()),
                )
            })?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let what = "another process is about to listen there";
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let own = file.metadata()?;
            let same = fs::metadata(&lock)
                .is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino()));
            // Otherwise whoever held it has removed it in the meantime.
            if same {
                return Ok(Self { lock, _file: file });
            }
        }
    }
}

impl Drop for Taking {
    /// Nobody else removes it: it is locked.
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.lock) {
            tracing::warn!("cannot remove {}: {error}", self.lock.display());
        }
    }
}

/// Removes a socket that nobody listens on.
fn remove_left_behind(path: &Path) -> io::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !file.file_type().is_socket() {
        let what = "there is something else than a socket, which is not removed";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        // AGAIN: so many clients wait that there is no room for another one.
        Ok(()) | Err(Errno::AGAIN) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        )),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::TcpStream,
        os::unix::net::{UnixDatagram, UnixStream},
    };

    fn address(text: &str) -> ClientAddress {
        ClientAddress::parse(text).unwrap()
    }

    fn unix(path: &Path) -> ClientAddress {
        address(&format!("unix://{}", path.display()))
    }

    fn refused(path: &Path) -> String {
        let opened = ClientSockets::open(&[unix(path)]);
        opened.unwrap_err().to_string()
    }

    #[test]
    fn a_socket_left_behind_is_removed_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "closing a socket leaves its file");
        let opened = ClientSockets::open(&[unix(&path)]).unwrap();
        let text = refused(&path);
        assert!(text.contains("another process listens there"), "{text}");
        UnixStream::connect(&path).unwrap();
        // The queue of clients is full.
        let small = dir.path().join("small");
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        );
        let socket = socket.unwrap();
        bind(&socket, &SocketAddrUnix::new(&small).unwrap()).unwrap();
        listen(&socket, 0).unwrap();
        let _waiting = UnixStream::connect(&small).unwrap();
        let text = refused(&small);
        assert!(text.contains("another process listens there"), "{text}");
        drop(opened);
        assert!(!path.exists(), "the file goes with the socket");
    }

    #[test]
    fn of_processes_that_find_a_socket_left_behind_one_takes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let first = Taking::begin(&path).unwrap();
        let text = refused(&path);
        assert!(
            text.contains("another process is about to listen"),
            "{text}"
        );
        drop(first);
        let opened = std::thread::scope(|scope| {
            let open = || scope.spawn(|| ClientSockets::open(&[unix(&path)]).ok());
            let all: Vec<_> = (0..8).map(|_| open()).collect();
            let all = all.into_iter().filter_map(|one| one.join().unwrap());
            all.collect::<Vec<_>>()
        });
        assert_eq!(opened.len(), 1, "the others are refused");
        UnixStream::connect(&path).unwrap();
        drop(opened);
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 0, "neither socket nor lock is left");
    }

    #[test]
    fn what_is_no_socket_of_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        let text = refused(&file);
        assert!(text.contains("something else than a socket"), "{text}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        let other = dir.path().join("other");
        let _datagrams = UnixDatagram::bind(&other).unwrap();
        refused(&other);
        assert!(other.exists(), "another kind of socket was removed");
        let text = refused(&dir.path().join("a".repeat(107)));
        assert!(text.contains("at most 107 bytes"), "{text}");
        let path = dir.path().join("socket");
        let opened = ClientSockets::open(&[unix(&path)]).unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(opened);
        assert!(path.exists(), "the successor's file was removed");
    }

    #[test]
    fn all_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().to_string();
        let opened = ClientSockets::open(&[unix(&path), address(&taken)]);
        let text = opened.unwrap_err().to_string();
        assert!(text.contains(&format!("on {taken}")), "{text}");
        assert!(!path.exists(), "a start that failed leaves a file");
    }

    #[test]
    fn an_unspecified_ipv6_address_takes_both_kinds_unless_there_is_one_for_ipv4() {
        let port = |opened: &ClientSockets| opened.addresses[0].tcp().unwrap().port;
        let both = ClientSockets::open(&[address("[::]:0")]).unwrap();
        for host in ["127.0.0.1", "::1"] {
            TcpStream::connect((host, port(&both))).unwrap();
        }
        let only = ClientSockets::open(&[address("0.0.0.0:0")]).unwrap();
        let free = port(&only);
        TcpStream::connect(("::1", free)).unwrap_err();
        drop(only);
        let apart = [format!("[::]:{free}"), format!("0.0.0.0:{free}")].map(|text| address(&text));
        let apart = ClientSockets::open(&apart).unwrap();
        assert_eq!(apart.listeners.len(), 2);
    }

    #[test]
    fn names_and_scopes_are_resolved() {
        let opened = ClientSockets::open(&[address("localhost:0")]).unwrap();
        let shown = opened.addresses[0].tcp().unwrap();
        assert_eq!(shown.host, "localhost");
        TcpStream::connect(("127.0.0.1", shown.port)).unwrap();
        let scoped = address("[fe80::1%lo]:2379");
        let resolved = resolve(scoped.tcp().unwrap()).unwrap();
        assert_eq!(
            resolved.to_string(),
            "[fe80::1%1]:2379",
            "the loopback is interface 1"
        );
        let unknown = ClientSockets::open(&[address("[fe80::1%nowhere]:0")]);
        assert!(unknown.is_err(), "there is no such interface");
    }
}
