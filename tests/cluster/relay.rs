//! A UDP relay between members on one machine: it cuts, loses and delays what they send each other.
//!
//! Each member advertises a port of the relay. What member A sends to B's port arrives there from A's own socket, and goes on to
//! B from A's port at the relay: so both sides see the addresses they know, and the relay knows both ends of each packet. A
//! process that asks before it starts its member sends from a port of its own: the relay gives each such sender a port too, by
//! which the answers come back. The rules are for members alone.

use crate::support::{Place, free_port};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::UdpSocket,
    task::{AbortHandle, spawn},
    time::sleep,
};

/// Larger than any UDP packet.
const PACKET_BYTES_MAX: usize = 65_536;
/// Packets held back at a time; more are lost, as in a router whose queue is full.
const HELD_MAX: usize = 20_000;

#[derive(Clone, Debug, Default)]
struct Rules {
    cuts: Vec<(usize, usize)>,
    lost_percent: u8,
    delay: Option<(Duration, Duration)>,
}

impl Rules {
    fn passes(&self, from: usize, to: usize) -> bool {
        let lost = self.lost_percent > 0 && fastrand::u8(..100) < self.lost_percent;
        !self.cuts.contains(&(from, to)) && !lost
    }

    fn held_for(&self) -> Option<Duration> {
        let (least, most) = self.delay?;
        Some(least + most.saturating_sub(least).mul_f64(fastrand::f64()))
    }
}

/// The ports, and what happens between them.
#[derive(Debug)]
pub(crate) struct Relay {
    fronts: Arc<Vec<UdpSocket>>,
    /// Where the members listen.
    members: Vec<SocketAddrV4>,
    clients: Vec<SocketAddrV4>,
    rules: Arc<Mutex<Rules>>,
    dropped: Arc<AtomicU64>,
    /// Packets that went on after a later one of the same sender.
    overtaken: Arc<AtomicU64>,
    tasks: Vec<AbortHandle>,
}

fn here(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

impl Relay {
    pub(crate) async fn new(size: usize) -> Self {
        let mut fronts = Vec::new();
        for _ in 0..size {
            fronts.push(UdpSocket::bind(here(0)).await.expect("a port"));
        }
        let ports = || (0..size).map(|_| here(free_port())).collect();
        let mut relay = Self {
            fronts: Arc::new(fronts),
            members: ports(),
            clients: ports(),
            rules: Arc::default(),
            dropped: Arc::default(),
            overtaken: Arc::default(),
            tasks: Vec::new(),
        };
        for to in 0..size {
            let pass = Pass {
                fronts: Arc::clone(&relay.fronts),
                members: relay.members.clone(),
                rules: Arc::clone(&relay.rules),
                dropped: Arc::clone(&relay.dropped),
                overtaken: Arc::clone(&relay.overtaken),
                to,
            };
            relay.tasks.push(spawn(pass.run()).abort_handle());
        }
        relay
    }

    pub(crate) fn size(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn place(&self, member: usize) -> Place {
        let front = self.fronts[member].local_addr().expect("it is bound");
        Place {
            client: self.clients[member],
            peer: self.members[member],
            peer_advertise: here(front.port()),
            host: None,
        }
    }

    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.change(|rules| rules.cuts.push((from, to)));
    }

    pub(crate) fn lose(&self, percent: u8) {
        self.change(|rules| rules.lost_percent = percent);
    }

    pub(crate) fn delay(&self, least: Duration, most: Duration) {
        self.change(|rules| rules.delay = Some((least, most)));
    }

    /// Packets that the rules have dropped since the last fault ended.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Packets that were overtaken since the last fault ended.
    pub(crate) fn overtaken(&self) -> u64 {
        self.overtaken.load(Ordering::Relaxed)
    }

    pub(crate) fn heal(&self) {
        self.dropped.store(0, Ordering::Relaxed);
        self.overtaken.store(0, Ordering::Relaxed);
        self.change(|rules| *rules = Rules::default());
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.rules.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Takes what is sent to one member.
struct Pass {
    fronts: Arc<Vec<UdpSocket>>,
    members: Vec<SocketAddrV4>,
    rules: Arc<Mutex<Rules>>,
    dropped: Arc<AtomicU64>,
    overtaken: Arc<AtomicU64>,
    to: usize,
}

impl Pass {
    async fn run(self) {
        let held = Arc::new(());
        // The number of the newest packet that went on, of each sender.
        let newest = || (0..self.members.len()).map(|_| AtomicU64::new(0));
        let newest: Arc<Vec<AtomicU64>> = Arc::new(newest().collect());
        let mut number = 0;
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let target = SocketAddr::from(self.members[self.to]);
        let mut askers = Askers::default();
        loop {
            // A port that nobody listens on shows as an error of the next call; the member may come back.
            let Ok((length, source)) = self.fronts[self.to].recv_from(&mut buffer).await else {
                continue;
            };
            let known = self
                .members
                .iter()
                .position(|at| SocketAddr::from(*at) == source);
            let Some(from) = known else {
                let front = (Arc::clone(&self.fronts), self.to);
                let port = askers.port_of(source, front).await;
                send(&port, &buffer[..length], target).await;
                continue;
            };
            let rules = self
                .rules
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if !rules.passes(from, self.to) {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            match rules.held_for() {
                None => send(&self.fronts[from], &buffer[..length], target).await,
                Some(_) if Arc::strong_count(&held) > HELD_MAX => {}
                Some(time) => {
                    let (fronts, packet) = (Arc::clone(&self.fronts), buffer[..length].to_vec());
                    let held = Arc::clone(&held);
                    let (newest, overtaken) = (Arc::clone(&newest), Arc::clone(&self.overtaken));
                    number += 1;
                    spawn(async move {
                        sleep(time).await;
                        if newest[from].fetch_max(number, Ordering::Relaxed) > number {
                            overtaken.fetch_add(1, Ordering::Relaxed);
                        }
                        send(&fronts[from], &packet, target).await;
                        drop(held);
                    });
                }
            }
        }
    }
}

/// Processes that ask before they start, each with a port of the relay's.
#[derive(Debug, Default)]
struct Askers {
    ports: BTreeMap<SocketAddr, Arc<UdpSocket>>,
    tasks: Vec<AbortHandle>,
}

impl Askers {
    /// The port from which the packets of `asker` go on; what arrives there goes back to it through a member's front.
    async fn port_of(
        &mut self,
        asker: SocketAddr,
        (fronts, member): (Arc<Vec<UdpSocket>>, usize),
    ) -> Arc<UdpSocket> {
        if let Some(port) = self.ports.get(&asker) {
            return Arc::clone(port);
        }
        let port = Arc::new(UdpSocket::bind(here(0)).await.expect("a port"));
        self.ports.insert(asker, Arc::clone(&port));
        let back = Arc::clone(&port);
        let answers = spawn(async move {
            let mut buffer = vec![0; PACKET_BYTES_MAX];
            loop {
                if let Ok(length) = back.recv(&mut buffer).await {
                    send(&fronts[member], &buffer[..length], asker).await;
                }
            }
        });
        self.tasks.push(answers.abort_handle());
        port
    }
}

impl Drop for Askers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn send(from: &UdpSocket, packet: &[u8], to: SocketAddr) {
    // A packet that cannot be delivered is a lost one.
    drop(from.send_to(packet, to).await);
}
