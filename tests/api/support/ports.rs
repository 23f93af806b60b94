//! Free ports below the range the kernel hands out, so that no outgoing connection takes one while its server is down.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// Ports handed out by this process so far; the process id keeps parallel test runs apart.
static TAKEN: AtomicU16 = AtomicU16::new(0);

/// A port that nothing on this machine listens on, for TCP nor for UDP.
pub(crate) fn free_port() -> u16 {
    let start = u16::try_from(process::id() % 200 * 100).expect("below the count");
    for _ in 0..COUNT {
        let offset = TAKEN.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + offset) % COUNT;
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if free {
            return port;
        }
    }
    panic!("no free port from {FIRST} on, {COUNT} tried")
}
