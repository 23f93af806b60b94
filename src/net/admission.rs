//! Decides which handshakes begin when peers send more first packets than there are slots.
//!
//! The sender of a first packet may have forged its address. So senders that have not proven theirs share a few slots; when those
//! are taken, QUIC's Retry asks further ones to prove their address, which costs this member no memory and which a forger cannot
//! do. Each proven address has a share of the slots, and each address at which a member is known to listen has slots of its own:
//! no other sender can take those of a member that was restarted.
//!
//! A handshake that fails in TLS keeps its slot until the handshake timeout, unless it is counted for a member. So the shares
//! also bound the work of handshakes that fail at once: each costs its sender one packet, and this member a signature.
//!
//! | the sender | slots | past them |
//! |---|---|---|
//! | has not proven its address | `UNPROVEN_MAX` for all | must prove it |
//! | is where a known member listens, proven | `PER_MEMBER_MAX` for each member | counts as any other |
//! | any other, proven | `PER_ADDRESS_MAX` for each address, `HANDSHAKES_MAX` with the unproven | refused |

use crate::types::MemberId;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

/// Handshakes at once of all senders but those at the addresses of known members.
const HANDSHAKES_MAX: usize = 64;
/// Of these, the handshakes of senders that have not proven their address.
pub(super) const UNPROVEN_MAX: usize = 16;
/// Handshakes at once from one proven address. Several members may share one behind a translator of addresses.
pub(super) const PER_ADDRESS_MAX: usize = 8;
/// Handshakes at once from the address of a known member: one that it has given up, and the next.
const PER_MEMBER_MAX: usize = 2;

/// Which slots a handshake is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Share {
    /// The senders with unproven addresses.
    Unproven,
    /// An address; of IPv6 the first half, since one host has all of the second.
    Address(IpAddr),
    Member(MemberId),
}

/// The decision about a first packet.
#[derive(Debug)]
pub(super) enum Verdict {
    Begin(Slot),
    /// The sender must prove its address.
    Prove,
    /// There is no slot.
    Refuse,
}

/// The handshakes under way. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Admission(Rc<RefCell<BTreeMap<Share, usize>>>);

/// A slot of a handshake, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    admission: Admission,
    share: Share,
}

impl Admission {
    /// Decides on a first packet from `from`. `member` listens at that address; it counts only if the address is proven.
    pub(super) fn decide(&self, from: IpAddr, proven: bool, member: Option<MemberId>) -> Verdict {
        let room = self.strangers() < HANDSHAKES_MAX;
        if !proven {
            return if room && self.count(Share::Unproven) < UNPROVEN_MAX {
                self.begin(Share::Unproven)
            } else {
                Verdict::Prove
            };
        }
        let member = member.map(Share::Member);
        if let Some(member) = member.filter(|share| self.count(*share) < PER_MEMBER_MAX) {
            return self.begin(member);
        }
        let address = Share::Address(network(from));
        if room && self.count(address) < PER_ADDRESS_MAX {
            self.begin(address)
        } else {
            Verdict::Refuse
        }
    }

    fn begin(&self, share: Share) -> Verdict {
        *self.0.borrow_mut().entry(share).or_default() += 1;
        Verdict::Begin(Slot {
            admission: self.clone(),
            share,
        })
    }

    fn count(&self, share: Share) -> usize {
        self.0.borrow().get(&share).copied().unwrap_or_default()
    }

    /// Handshakes that are not counted for a member.
    fn strangers(&self) -> usize {
        let shares = self.0.borrow();
        let strangers = shares
            .iter()
            .filter(|(share, _)| !matches!(share, Share::Member(_)));
        strangers.map(|(_, count)| count).sum()
    }
}

impl Slot {
    /// Which slots the handshake is counted for.
    pub(super) fn share(&self) -> Share {
        self.share
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut shares = self.admission.0.borrow_mut();
        let left = shares.get(&self.share).map_or(0, |count| count - 1);
        if left == 0 {
            shares.remove(&self.share);
        } else {
            shares.insert(self.share, left);
        }
    }
}

/// The address, as it is written without IPv6's mapping of IPv4: a socket for both sees the mapped form.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let half = address.to_bits() >> 64 << 64;
            IpAddr::V6(half.into())
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: MemberId = MemberId(1);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Takes slots until there are no more.
    fn take_all(mut decide: impl FnMut() -> Verdict) -> (Vec<Slot>, Verdict) {
        let mut slots = Vec::new();
        loop {
            match decide() {
                Verdict::Begin(slot) => slots.push(slot),
                refused => return (slots, refused),
            }
            assert!(slots.len() < 1_000, "the slots have no bound");
        }
    }

    #[test]
    fn unproven_senders_share_a_few_slots_and_then_prove_their_address() {
        let admission = Admission::default();
        let mut host = 0;
        let (slots, then) = take_all(|| {
            host += 1;
            // Also one that claims to be a member's: that, too, is unproven.
            admission.decide(IpAddr::from([10, 0, 0, host]), false, Some(MEMBER))
        });
        assert_eq!(slots.len(), UNPROVEN_MAX);
        assert!(matches!(then, Verdict::Prove), "{then:?}");
        let proven = admission.decide(ip("10.0.0.1"), true, None);
        assert!(matches!(proven, Verdict::Begin(_)), "{proven:?}");
        drop(slots);
        let again = admission.decide(ip("10.0.0.1"), false, None);
        assert!(matches!(again, Verdict::Begin(_)), "{again:?}");
    }

    #[test]
    fn an_address_has_a_share() {
        let admission = Admission::default();
        let mut kept = Vec::new();
        for (one, same, other) in [
            ("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"),
            ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"),
        ] {
            let (slots, then) = take_all(|| admission.decide(ip(one), true, None));
            assert_eq!(slots.len(), PER_ADDRESS_MAX);
            assert!(matches!(then, Verdict::Refuse), "{then:?}");
            let same = admission.decide(ip(same), true, None);
            assert!(matches!(same, Verdict::Refuse), "{same:?}");
            let other = admission.decide(ip(other), true, None);
            assert!(matches!(other, Verdict::Begin(_)), "{other:?}");
            kept.extend(slots);
        }
    }

    #[test]
    fn a_member_has_slots_when_all_others_are_taken() {
        let admission = Admission::default();
        let mut host = 0_u32;
        let (strangers, then) = take_all(|| {
            host += 1;
            admission.decide(IpAddr::from(host.to_be_bytes()), true, None)
        });
        assert_eq!(strangers.len(), HANDSHAKES_MAX);
        assert!(matches!(then, Verdict::Refuse), "{then:?}");
        let forged = admission.decide(ip("10.0.0.1"), false, Some(MEMBER));
        assert!(matches!(forged, Verdict::Prove), "{forged:?}");
        let decide = || admission.decide(ip("10.0.0.1"), true, Some(MEMBER));
        let (members, then) = take_all(decide);
        assert_eq!(members.len(), PER_MEMBER_MAX);
        assert!(matches!(then, Verdict::Refuse), "{then:?}");
        let another = admission.decide(ip("10.0.0.1"), true, Some(MemberId(2)));
        assert!(matches!(another, Verdict::Begin(_)), "{another:?}");
        drop(strangers);
        let (also, _) = take_all(decide);
        assert_eq!(also.len(), PER_ADDRESS_MAX, "the address has its own share");
    }

    #[test]
    fn what_ended_is_forgotten() {
        let admission = Admission::default();
        for host in 0..1_000_u32 {
            let from = IpAddr::from(host.to_be_bytes());
            drop(admission.decide(from, host % 2 == 0, Some(MemberId(host.into()))));
        }
        assert!(
            admission.0.borrow().is_empty(),
            "an address stays in memory"
        );
    }
}
