//! The network between the members, and its faults: network namespaces ([`Hosts`]), or a relay ([`Relay`]) where these are not
//! permitted, and for faults that iptables cannot make.

use crate::{hosts::Hosts, relay::Relay, support::Place};
use std::{env, time::Duration};

/// Both kinds do the same: packets between two members pass, or do not. Members are named by position.
#[derive(Debug)]
pub(crate) enum Network {
    Hosts(Hosts),
    Relay(Relay),
}

/// Whether a fault drops packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drops {
    Some,
    None,
}

impl Network {
    /// Hosts of their own for `size` members; where this is not permitted, a relay and a warning.
    ///
    /// `QUORATE_TEST_NETWORK=relay` asks for the relay, `hosts` takes nothing else.
    #[expect(clippy::print_stderr, reason = "nobody may take a relay for hosts")]
    pub(crate) async fn new(size: usize) -> Self {
        let wanted = env::var("QUORATE_TEST_NETWORK").unwrap_or_default();
        if wanted == "relay" {
            return Self::relay(size).await;
        }
        match Hosts::new(size) {
            Ok(hosts) => Self::Hosts(hosts),
            Err(error) if wanted == "hosts" => panic!("no hosts: {error}"),
            Err(error) => {
                eprintln!(
                    "NO NETWORK NAMESPACES HERE, A UDP RELAY STANDS BETWEEN THE MEMBERS INSTEAD: {error}"
                );
                Self::relay(size).await
            }
        }
    }

    /// A relay between members on this machine.
    pub(crate) async fn relay(size: usize) -> Self {
        Self::Relay(Relay::new(size).await)
    }

    /// The name of the kind, for the test's output.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hosts(_) => "network namespaces",
            Self::Relay(_) => "a UDP relay",
        }
    }

    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Hosts(hosts) => hosts.size(),
            Self::Relay(relay) => relay.size(),
        }
    }

    pub(crate) fn place(&self, member: usize) -> Place {
        match self {
            Self::Hosts(hosts) => hosts.place(member),
            Self::Relay(relay) => relay.place(member),
        }
    }

    /// Drops everything from `from` to `to`. The other direction is not changed.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        match self {
            Self::Hosts(hosts) => hosts.cut(from, to),
            Self::Relay(relay) => relay.cut(from, to),
        }
    }

    /// Drops everything between the two groups, in both directions.
    pub(crate) fn split(&self, some: &[usize], others: &[usize]) {
        for a in some {
            for b in others {
                self.cut(*a, *b);
                self.cut(*b, *a);
            }
        }
    }

    /// Loses this share of all packets, drawn for each.
    pub(crate) fn lose(&self, percent: u8) {
        match self {
            Self::Hosts(hosts) => hosts.lose(percent),
            Self::Relay(relay) => relay.lose(percent),
        }
    }

    /// Holds each packet for a time drawn between `least` and `most`, so that they overtake each other.
    pub(crate) fn delay(&self, least: Duration, most: Duration) {
        match self {
            Self::Hosts(_) => panic!("kernels without netem cannot delay: take the relay"),
            Self::Relay(relay) => relay.delay(least, most),
        }
    }

    /// Packets that were dropped since the last fault ended.
    fn dropped(&self) -> u64 {
        match self {
            Self::Hosts(hosts) => hosts.dropped(),
            Self::Relay(relay) => relay.dropped(),
        }
    }

    /// Packets that later ones overtook since the last fault ended; only the relay delays any.
    fn overtaken(&self) -> u64 {
        match self {
            Self::Hosts(_) => 0,
            Self::Relay(relay) => relay.overtaken(),
        }
    }

    /// Ends all faults. Asserts that a fault dropped at least one packet or, if it was a delay, that packets overtook others.
    pub(crate) fn heal(&self, drops: Drops) {
        let dropped = self.dropped();
        assert_eq!(
            dropped > 0,
            drops == Drops::Some,
            "{dropped} packets were dropped"
        );
        let overtaken = self.overtaken();
        assert_eq!(
            overtaken > 0,
            drops == Drops::None,
            "{overtaken} packets were overtaken"
        );
        match self {
            Self::Hosts(hosts) => hosts.heal(),
            Self::Relay(relay) => relay.heal(),
        }
    }
}
