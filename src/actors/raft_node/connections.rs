//! Which other members are connected, since when, and which of them say that this member does not belong to the cluster.

use crate::types::MemberId;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// A member counts as stably connected after this time, as in etcd.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// The connections, as the peer hub reports them.
#[derive(Debug, Default)]
pub(super) struct Connections {
    connected: BTreeMap<MemberId, Instant>,
    /// The version of the peer protocol that each member spoke when it was last connected.
    spoken: BTreeMap<MemberId, u16>,
    /// Members that refused a connection because this member is not in their membership. One that is connected again is taken
    /// out.
    unknown_at: BTreeSet<MemberId>,
}

impl Connections {
    pub(super) fn connected(&mut self, id: MemberId, version: u16, now: Instant) {
        self.unknown_at.remove(&id);
        self.spoken.insert(id, version);
        self.connected.insert(id, now);
    }

    pub(super) fn disconnected(&mut self, id: MemberId) {
        self.connected.remove(&id);
    }

    /// All members that are connected.
    pub(super) fn ids(&self) -> impl Iterator<Item = MemberId> {
        self.connected.keys().copied()
    }

    /// Members that have been connected for so long that the connection counts as stable.
    pub(super) fn stable(&self, now: Instant) -> BTreeSet<MemberId> {
        let stable = |since: &Instant| now.duration_since(*since) >= STABLE_AFTER;
        let connected = self.connected.iter();
        connected
            .filter(|(_, since)| stable(since))
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn is_connected_since(&self, id: MemberId, then: Instant) -> bool {
        self.connected.get(&id).is_some_and(|since| *since <= then)
    }

    /// Whether all `members`, of which this one is `own`, are known to speak this version of the peer protocol: they did when
    /// they were last connected.
    pub(super) fn all_speak(
        &self,
        version: u16,
        own: MemberId,
        members: impl Iterator<Item = MemberId>,
    ) -> bool {
        let mut is_member = false;
        for id in members {
            let spoken = self.spoken.get(&id);
            if id == own {
                is_member = true;
            } else if spoken.is_none_or(|spoken| *spoken < version) {
                return false;
            }
        }
        // A member that has no membership yet does not know of whom to say so.
        is_member
    }

    /// Whether a majority of `voters`, among them `own`, has been connected since `then`.
    pub(super) fn has_quorum_since(
        &self,
        own: MemberId,
        voters: impl Iterator<Item = MemberId>,
        then: Instant,
    ) -> bool {
        let reached = |id: MemberId| id == own || self.is_connected_since(id, then);
        is_majority(voters, reached)
    }

    /// `by` refuses this member as unknown or removed. True if a majority of `voters` says so: one member
    /// may be behind, a majority is not.
    pub(super) fn unknown_at(
        &mut self,
        by: MemberId,
        voters: impl Iterator<Item = MemberId>,
    ) -> bool {
        self.unknown_at.insert(by);
        is_majority(voters, |id| self.unknown_at.contains(&id))
    }
}

fn is_majority(voters: impl Iterator<Item = MemberId>, counts: impl Fn(MemberId) -> bool) -> bool {
    let (mut all, mut counted) = (0, 0);
    for id in voters {
        all += 1;
        counted += usize::from(counts(id));
    }
    counted > all / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::fmt::Write as _;

    const TABLE: &str = "src/actors/raft_node/connection_table.md";

    const HEAD: &str = "\
# States of a connection

What a member knows of its connection to member 2 of the voters 1, 2 and 3, and what each event makes of it. A state is shown as
`link/unknown`: whether the link is down, new (for less than five seconds) or stable, and whether member 2 has said that it does
not know this member. Member 3 says so too, so a majority says so when member 2 does: then this member stops. `connections.rs`
prints this file and fails when it differs.
";

    const PEER: MemberId = MemberId(2);

    #[derive(Clone, Copy)]
    enum Event {
        Connected,
        Disconnected,
        Refused,
        FiveSecondsPass,
    }

    fn voters() -> impl Iterator<Item = MemberId> {
        (1..=3).map(MemberId)
    }

    fn state(connections: &Connections, now: Instant) -> String {
        let link = match connections.connected.get(&PEER) {
            None => "down",
            Some(_) if connections.stable(now).contains(&PEER) => "stable",
            Some(_) => "new",
        };
        let unknown = if connections.unknown_at.contains(&PEER) {
            "unknown"
        } else {
            "–"
        };
        format!("{link}/{unknown}")
    }

    /// The state after `events`, and whether the last of them stops the member.
    fn after(events: &[Event]) -> (String, bool) {
        let (mut now, mut connections) = (clock::now(), Connections::default());
        let mut stops = connections.unknown_at(MemberId(3), voters());
        for event in events {
            stops = false;
            match event {
                Event::Connected => connections.connected(PEER, 1, now),
                Event::Disconnected => connections.disconnected(PEER),
                Event::Refused => stops = connections.unknown_at(PEER, voters()),
                Event::FiveSecondsPass => now += STABLE_AFTER,
            }
        }
        (state(&connections, now), stops)
    }

    fn table() -> String {
        use Event::{Connected, Disconnected, FiveSecondsPass, Refused};
        let ways: [&[Event]; 6] = [
            &[],
            &[Connected],
            &[Connected, FiveSecondsPass],
            &[Refused],
            &[Connected, Refused],
            &[Connected, FiveSecondsPass, Refused],
        ];
        let events = [
            (Connected, "connected"),
            (Disconnected, "disconnected"),
            (Refused, "refused as unknown"),
            (FiveSecondsPass, "five seconds pass"),
        ];
        let mut out = format!("{HEAD}\n| state |");
        for (_, name) in events {
            write!(out, " {name} |").unwrap();
        }
        out.push_str("\n|---|---|---|---|---|\n");
        for way in ways {
            write!(out, "| {} |", after(way).0).unwrap();
            for (event, _) in events {
                let (state, stops) = after(&[way, &[event]].concat());
                let stops = if stops { ", stops" } else { "" };
                write!(out, " {state}{stops} |").unwrap();
            }
            out.push('\n');
        }
        out
    }

    /// `UPDATE_GOLDENFILES=1` writes the file anew; commit only what you can explain.
    #[test]
    fn the_table_of_connection_states_is_up_to_date() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE);
        let printed = table();
        if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
            std::fs::write(&path, &printed).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(printed, kept, "{TABLE} differs from what the code does");
    }

    #[test]
    fn all_members_speak_a_version_once_each_was_connected_with_it() {
        let (own, third) = (MemberId(1), MemberId(3));
        let mut connections = Connections::default();
        let all = |connections: &Connections| connections.all_speak(3, own, voters());
        assert!(connections.all_speak(3, own, [own].into_iter()), "alone");
        assert!(
            !connections.all_speak(3, own, std::iter::empty()),
            "without a membership"
        );
        connections.connected(PEER, 3, clock::now());
        assert!(!all(&connections), "one was never connected");
        connections.connected(third, 2, clock::now());
        assert!(!all(&connections), "one is of an earlier version");
        connections.disconnected(third);
        connections.connected(third, 3, clock::now());
        assert!(all(&connections));
        connections.disconnected(PEER);
        assert!(all(&connections), "what it spoke is remembered");
        connections.connected(PEER, 2, clock::now());
        assert!(!all(&connections), "it came back as an earlier version");
    }

    #[test]
    fn a_quorum_must_have_been_connected_all_the_time() {
        let start = clock::now();
        let mut connections = Connections::default();
        let has = |connections: &Connections, then| {
            connections.has_quorum_since(MemberId(1), voters(), then)
        };
        assert!(!has(&connections, start), "one of three");
        connections.connected(PEER, 1, start + STABLE_AFTER);
        assert!(!has(&connections, start), "it came later");
        assert!(has(&connections, start + STABLE_AFTER));
        assert_eq!(connections.ids().collect::<Vec<_>>(), [PEER]);
        connections.disconnected(PEER);
        assert!(!has(&connections, start + STABLE_AFTER));
    }
}
