//! A host for each member: a network namespace with a link to the other members and another one to the clients.
//!
//! | link | from | to | addresses |
//! |---|---|---|---|
//! | `peer` | each member's namespace | a bridge in a namespace of its own, the switch | 10.77.0.N |
//! | `client` | each member's namespace | this machine | 198.18.S.0/30 and up: S is free on this machine |
//!
//! Faults are iptables rules on `peer`, so clients reach a member whatever happens between members. Everything is removed when
//! this is dropped. Names of namespaces contain the id of the process that made them: the next run removes what a killed one
//! left.

use crate::support::Place;
use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::{self, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

const PREFIX: &str = "quorate-test-";
const PEER_PORT: u16 = 2380;
const CLIENT_PORT: u16 = 2379;
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The machine does not permit it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostsError {
    #[error("`{command}` cannot be run: {cause}")]
    Run { command: String, cause: io::Error },
    #[error("`{command}` says: {said}")]
    Refused { command: String, said: String },
    #[error("the lock {0}: {1}")]
    Lock(String, io::Error),
    #[error("no subnet of 198.18.0.0/16 is free")]
    NoSubnet,
}

/// The namespaces of one cluster.
#[derive(Debug)]
pub(crate) struct Hosts {
    /// The prefix of the switch's and the members' names.
    stem: String,
    /// The prefix of the names of the clients' links, which must be short.
    link: String,
    subnet: u8,
    size: usize,
}

/// Runs a command, and returns its output.
fn run(line: &str) -> Result<String, HostsError> {
    let mut words = line.split(' ');
    let program = words.next().expect("a program");
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|cause| HostsError::Run {
        command: line.to_owned(),
        cause,
    })?;
    if !output.status.success() {
        return Err(HostsError::Refused {
            command: line.to_owned(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One process at a time looks for a subnet and removes leftovers.
fn lock() -> Result<File, HostsError> {
    let path = std::env::temp_dir().join("quorate-test-hosts.lock");
    let failed = |error| HostsError::Lock(path.display().to_string(), error);
    let file = File::create(&path).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

impl Hosts {
    pub(crate) fn new(size: usize) -> Result<Self, HostsError> {
        let _one_at_a_time = lock()?;
        clear_left_behind()?;
        let (id, n) = (process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let hosts = Self {
            stem: format!("{PREFIX}{id}-{n}-"),
            link: format!("q{id}x{n}c"),
            subnet: free_subnet()?,
            size,
        };
        // From here on its drop removes everything after a failure.
        hosts.make_switch()?;
        for member in 0..size {
            hosts.make(member)?;
        }
        // Whether rules can be made should show now, not in the middle of a test.
        run(&format!("ip netns exec {} iptables -w -L", hosts.host(0)))?;
        Ok(hosts)
    }

    fn make_switch(&self) -> Result<(), HostsError> {
        let switch = self.switch();
        run(&format!("ip netns add {switch}"))?;
        run(&format!("ip -n {switch} link add bridge type bridge"))?;
        run(&format!("ip -n {switch} link set bridge up"))?;
        Ok(())
    }

    fn make(&self, member: usize) -> Result<(), HostsError> {
        let (host, switch, link) = (self.host(member), self.switch(), self.link(member));
        let (ours, theirs) = self.client_addresses(member);
        let peer = peer_address(member);
        for line in [
            format!("ip netns add {host}"),
            format!("ip -n {host} link set lo up"),
            format!("ip -n {switch} link add m{member} type veth peer name peer netns {host}"),
            format!("ip -n {switch} link set m{member} master bridge up"),
            format!("ip -n {host} addr add {peer}/24 dev peer"),
            format!("ip -n {host} link set peer up"),
            format!("ip link add {link} type veth peer name client netns {host}"),
            format!("ip addr add {ours}/30 dev {link}"),
            format!("ip link set {link} up"),
            format!("ip -n {host} addr add {theirs}/30 dev client"),
            format!("ip -n {host} link set client up"),
        ] {
            run(&line)?;
        }
        Ok(())
    }

    fn switch(&self) -> String {
        format!("{}switch", self.stem)
    }

    fn host(&self, member: usize) -> String {
        format!("{}n{}", self.stem, member + 1)
    }

    fn link(&self, member: usize) -> String {
        format!("{}{member}", self.link)
    }

    /// This machine's and the member's end.
    fn client_addresses(&self, member: usize) -> (Ipv4Addr, Ipv4Addr) {
        let base = u8::try_from(4 * member).expect("a few members");
        let at = |last| Ipv4Addr::new(198, 18, self.subnet, base + last);
        (at(1), at(2))
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn place(&self, member: usize) -> Place {
        let (_, client) = self.client_addresses(member);
        let peer = SocketAddrV4::new(peer_address(member), PEER_PORT);
        Place {
            client: SocketAddrV4::new(client, CLIENT_PORT),
            peer,
            peer_advertise: peer,
            host: Some(self.host(member)),
        }
    }

    pub(crate) fn cut(&self, from: usize, to: usize) {
        let source = peer_address(from);
        self.rule(to, &format!("-A INPUT -i peer -s {source} -j DROP"));
    }

    pub(crate) fn lose(&self, percent: u8) {
        let rule = format!(
            "-A INPUT -i peer -m statistic --mode random --probability 0.{percent:02} -j DROP"
        );
        for member in 0..self.size {
            self.rule(member, &rule);
        }
    }

    /// Packets that the rules now in force have dropped.
    pub(crate) fn dropped(&self) -> u64 {
        let of = |member| {
            let host = self.host(member);
            let list = run(&format!("ip netns exec {host} iptables -w -nvxL INPUT"));
            let list = list.expect("iptables lists the rules");
            let first = |line: &str| line.split_whitespace().next()?.parse::<u64>().ok();
            list.lines()
                .filter(|line| line.contains(" DROP "))
                .filter_map(first)
                .sum::<u64>()
        };
        (0..self.size).map(of).sum()
    }

    pub(crate) fn heal(&self) {
        for member in 0..self.size {
            self.rule(member, "-F INPUT");
        }
    }

    fn rule(&self, member: usize, rule: &str) {
        let host = self.host(member);
        run(&format!("ip netns exec {host} iptables -w {rule}")).expect("iptables takes the rule");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // Errors are ignored: what cannot be removed may not exist, and the next run tries again.
        for member in 0..self.size {
            drop(run(&format!("ip link del {}", self.link(member))));
            drop(run(&format!("ip netns del {}", self.host(member))));
        }
        drop(run(&format!("ip netns del {}", self.switch())));
    }
}

fn peer_address(member: usize) -> Ipv4Addr {
    let last = u8::try_from(member + 1).expect("a few members");
    Ipv4Addr::new(10, 77, 0, last)
}

fn free_subnet() -> Result<u8, HostsError> {
    let taken = run("ip -4 -o addr show")?;
    let free = (0..=u8::MAX).find(|n| !taken.contains(&format!(" 198.18.{n}.")));
    free.ok_or(HostsError::NoSubnet)
}

/// Removes namespaces of processes that have ended, and kills what still runs in them.
fn clear_left_behind() -> Result<(), HostsError> {
    for line in run("ip netns list")?.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let maker = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let Some(maker) = maker.filter(|id| id.parse::<u32>().is_ok()) else {
            continue;
        };
        if Path::new("/proc").join(maker).exists() {
            continue;
        }
        for id in run(&format!("ip netns pids {name}"))?.split_whitespace() {
            // It may have ended in the meantime.
            drop(run(&format!("kill -9 {id}")));
        }
        run(&format!("ip netns del {name}"))?;
    }
    Ok(())
}
