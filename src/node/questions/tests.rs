//! Which answers let a member begin, join, or be refilled.

use super::*;
use crate::{
    actors::members::MemberInfo,
    config::{HostPort, PeerTls},
    raft::Membership,
};
use std::collections::BTreeSet;

/// The configuration of member `own` of `size` that form a cluster.
fn config(own: usize, size: usize) -> Config {
    let mut config = Config {
        name: format!("n{own}"),
        ..Config::default()
    };
    let host = |n| HostPort {
        host: format!("n{n}"),
        port: 2380,
    };
    config.peer.tls = PeerTls::Insecure;
    config.peer.advertise = Some(host(own));
    config.cluster.initial = (1..=size)
        .map(|n| InitialMember {
            name: format!("n{n}"),
            peer: host(n),
        })
        .collect();
    config
}

fn membership(config: &Config) -> Vec<u8> {
    let voters = config.cluster.initial.iter().map(|member| {
        let info = MemberInfo {
            name: member.name.clone(),
            peer_urls: vec![format!("http://{}", member.peer)],
            ..MemberInfo::default()
        };
        (formed_id(config, &member.name).unwrap(), info.encode())
    });
    Membership::of_voters(voters).unwrap().encode().to_vec()
}

/// What a running member says of the asking one.
fn says(config: &Config, started: bool, confirmed: bool) -> GuestInfo {
    GuestInfo {
        id: formed_id(config, &config.name),
        started,
        membership: membership(config),
        confirmed,
        last: LogIndex(7),
    }
}

type Outcome = Result<(ClusterId, GuestInfo), NetError>;

fn silent() -> Outcome {
    Err(NetError::HandshakeTimeout)
}

/// An answer of a member of the cluster that the configuration forms.
fn here(config: &Config, info: GuestInfo) -> (ClusterId, GuestInfo) {
    (formed_member(config).identity.cluster, info)
}

fn answers(config: &Config, outcomes: Vec<Outcome>) -> Vec<Answer<'_>> {
    let pairs = others(config).into_iter().zip(outcomes);
    pairs
        .map(|(from, outcome)| {
            let start = outcome.is_ok().then_some(RecordedStart::NotRecorded);
            Answer {
                from,
                outcome,
                start,
            }
        })
        .collect()
}

fn forms(config: &Config, outcomes: Vec<Outcome>) -> Result<Verdict<Beginning>, StartError> {
    may_begin(config, &answers(config, outcomes))
}

#[track_caller]
fn waits<T: std::fmt::Debug>(verdict: Result<Verdict<T>, StartError>, words: &str) {
    match verdict.unwrap() {
        Verdict::Wait(text) => assert!(text.contains(words), "{words} in {text}"),
        Verdict::Decided(decided) => panic!("it begins: {decided:?}"),
    }
}

#[test]
fn every_majority_with_a_member_meets_so_many_others() {
    for members in 2..=9 {
        let (majority, others) = (members / 2 + 1, members - 1);
        let asked = recorders(members);
        assert!(asked <= others, "so many others there are");
        // The others outside of those asked, and this member, are no majority.
        assert!(others - asked + 1 < majority, "{members}: it may be missed");
        assert!(others - asked + 2 >= majority, "{members}: fewer would do");
    }
}

#[test]
fn a_new_cluster_begins_when_its_members_have_seen_each_other() {
    let three = config(1, 3);
    let fresh = || Ok(here(&three, GuestInfo::without_data()));
    let begins = forms(&three, vec![fresh(), fresh()]).unwrap();
    assert!(matches!(begins, Verdict::Decided(Beginning::Forms)));
    waits(forms(&three, vec![fresh(), silent()]), "n3 at n3:2380");
    waits(forms(&three, vec![silent(), silent()]), "n2 at n2:2380");
    let five = config(1, 5);
    let fresh = || Ok(here(&five, GuestInfo::without_data()));
    let begins = forms(&five, vec![fresh(), fresh(), silent(), fresh()]).unwrap();
    assert!(matches!(begins, Verdict::Decided(Beginning::Forms)));
    let two = vec![fresh(), fresh(), silent(), silent()];
    waits(forms(&five, two), "3 of them or a quorum");
}

#[test]
fn a_stale_member_s_word_does_not_start_a_voter_that_lost_its_disk() {
    let three = config(1, 3);
    // n2 does not know that this member had started; n3, with which it acknowledged entries, is down.
    let stale = GuestInfo {
        last: LogIndex(1),
        ..says(&three, false, false)
    };
    let verdict = forms(&three, vec![Ok(here(&three, stale)), silent()]);
    waits(verdict, "n2 has data, but no quorum");
}

#[test]
fn a_stale_member_s_word_stops_nobody() {
    let mut fourth = config(4, 5);
    fourth.cluster.state = ClusterState::Existing;
    let stale = Ok((ClusterId(7), says(&fourth, true, false)));
    let outcomes = vec![silent(), silent(), silent(), stale];
    waits(
        may_join(&fourth, &answers(&fourth, outcomes)),
        "n5 has no quorum",
    );
    let first = config(1, 3);
    let stale = Ok(here(&first, says(&first, true, false)));
    waits(forms(&first, vec![stale, silent()]), "n2 has data");
}

#[test]
fn a_quorum_s_word_stops_and_starts() {
    let three = config(1, 3);
    let confirmed = |started| Ok(here(&three, says(&three, started, true)));
    let begins = forms(&three, vec![silent(), confirmed(false)]).unwrap();
    assert!(matches!(begins, Verdict::Decided(Beginning::Forms)));
    let stops = forms(&three, vec![silent(), confirmed(true)]);
    assert!(matches!(stops, Err(StartError::HasRun { .. })), "{stops:?}");
    let removed = GuestInfo {
        id: None,
        ..says(&three, false, true)
    };
    let stops = forms(&three, vec![Ok(here(&three, removed)), silent()]);
    assert!(
        matches!(stops, Err(StartError::NotAdded { .. })),
        "{stops:?}"
    );
}

#[test]
fn a_voter_that_has_not_started_does_not_join() {
    let mut first = config(1, 3);
    first.cluster.state = ClusterState::Existing;
    let confirmed = Ok(here(&first, says(&first, false, true)));
    let stops = may_join(&first, &answers(&first, vec![confirmed, silent()]));
    assert!(
        matches!(stops, Err(StartError::FormsCluster { .. })),
        "{stops:?}"
    );
}

/// Member 1 of some, which may lose its disk at any time; the others do not. Of these, some have recorded that it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    life: Life,
    /// A bit for each of the others.
    recorded: u8,
    /// It has taken part in consensus: it may have voted, and acknowledged entries.
    took_part: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    WithoutData,
    /// It has data and asks the others; a bit for each that has answered.
    Asking {
        answered: u8,
    },
    TakesPart,
}

/// Whether it may begin when the others of `silent` do not answer. The rest say that it is a member, and has not started:
/// that is what a quorum says until this member has published itself.
fn begins(config: &Config, recorded: u8, silent: u8) -> bool {
    let others = config.cluster.initial.len() - 1;
    let says = || Ok(here(config, says(config, false, true)));
    let outcomes = (0..others).map(|at| {
        if silent & 1 << at == 0 {
            says()
        } else {
            self::silent()
        }
    });
    let mut answers = answers(config, outcomes.collect());
    for (at, answer) in answers.iter_mut().enumerate() {
        if answer.start.is_some() && recorded & 1 << at != 0 {
            answer.start = Some(RecordedStart::Recorded);
        }
    }
    matches!(may_begin(config, &answers), Ok(Verdict::Decided(_)))
}

/// All states that `size` members reach, where `needed` others have to record a member before it takes part. Gives one in
/// which a member that took part begins again without data.
fn explore(size: usize, needed: u32) -> Option<World> {
    let config = config(1, size);
    let others = size - 1;
    let start = World {
        life: Life::WithoutData,
        recorded: 0,
        took_part: false,
    };
    let (mut open, mut seen) = (vec![start], BTreeSet::from([start]));
    while let Some(world) = open.pop() {
        let mut next = Vec::new();
        match world.life {
            Life::WithoutData => {
                for silent in 0..1 << others {
                    if begins(&config, world.recorded, silent) {
                        if world.took_part {
                            return Some(world);
                        }
                        let life = Life::Asking { answered: 0 };
                        next.push(World { life, ..world });
                    }
                }
            }
            Life::Asking { answered } => {
                for at in 0..others {
                    // It is durable, and the answer is on its way or lost.
                    let recorded = world.recorded | 1 << at;
                    next.push(World { recorded, ..world });
                    let life = Life::Asking {
                        answered: answered | 1 << at,
                    };
                    next.push(World {
                        life,
                        recorded,
                        ..world
                    });
                }
                // It restarts, and asks anew.
                let life = Life::Asking { answered: 0 };
                next.push(World { life, ..world });
                if answered.count_ones() >= needed {
                    next.push(World {
                        life: Life::TakesPart,
                        took_part: true,
                        ..world
                    });
                }
            }
            Life::TakesPart => {}
        }
        let life = Life::WithoutData;
        next.push(World { life, ..world });
        for world in next {
            if seen.insert(world) {
                open.push(world);
            }
        }
    }
    assert!(seen.iter().any(|it| it.took_part), "{size}: it takes part");
    None
}

#[test]
fn a_member_that_took_part_never_begins_again_without_its_data() {
    for size in 2..=6 {
        let needed = u32::try_from(recorders(size)).unwrap();
        assert_eq!(explore(size, needed), None, "of {size}");
        let found = explore(size, needed - 1);
        assert!(found.is_some(), "of {size}: fewer records would do");
    }
}

#[test]
fn a_member_that_never_took_part_begins_however_late() {
    for size in 2..=6 {
        let config = config(1, size);
        let members = witnesses(size);
        // The fewest that have to answer, and all of them.
        let silent = (1_u8 << (size - 1 - members)) - 1;
        assert!(begins(&config, 0, silent), "of {size}");
        assert!(begins(&config, 0, 0), "of {size}");
        // It asked one to record it, and lost its data before it took part.
        let once = recorders(size) > 1;
        assert_eq!(begins(&config, 1, 0), once, "of {size}");
    }
}

#[test]
fn a_record_stops_a_member_whose_start_no_quorum_knows_yet() {
    let three = config(1, 3);
    let mut replies = answers(
        &three,
        vec![
            Ok(here(&three, says(&three, false, true))),
            Ok(here(&three, says(&three, false, true))),
        ],
    );
    replies[1].start = Some(RecordedStart::Recorded);
    let one = may_begin(&three, &replies).unwrap();
    assert!(matches!(one, Verdict::Decided(_)), "{one:?}");
    replies[0].start = None;
    waits(
        may_begin(&three, &replies),
        "n3 has recorded that it begins",
    );
    replies[0].start = Some(RecordedStart::WasNotThere);
    waits(may_begin(&three, &replies), "n2 was added later");
    replies[0].start = Some(RecordedStart::Recorded);
    let both = may_begin(&three, &replies);
    assert!(matches!(both, Err(StartError::HasRun { .. })), "{both:?}");
}

#[test]
fn a_refill_takes_its_own_membership_or_a_majority_s() {
    let three = config(1, 3);
    let own = formed_member(&three);
    let unconfirmed = |last| {
        let info = GuestInfo {
            last: LogIndex(last),
            ..says(&three, true, false)
        };
        Ok(here(&three, info))
    };
    let known = Bytes::from(membership(&three));
    let alone = answers(&three, vec![silent(), silent()]);
    waits(newest_members(&own, None, &alone), "n2 at n2:2380");
    let decided = newest_members(&own, Some(known.clone()), &alone).unwrap();
    assert!(matches!(decided, Verdict::Decided(bytes) if bytes == known));
    let majority = answers(&three, vec![unconfirmed(3), silent()]);
    let decided = newest_members(&own, None, &majority).unwrap();
    assert!(matches!(decided, Verdict::Decided(bytes) if bytes == known));
    let five = config(1, 5);
    let stale = Ok(here(&five, says(&five, true, false)));
    let one = answers(&five, vec![stale, silent(), silent(), silent()]);
    waits(
        newest_members(&formed_member(&five), None, &one),
        "a majority of the members",
    );
}

/// What the others say of a restored member: the end of their log, whether a quorum confirms that, and what they have recorded.
/// `None` is no answer.
type Said = Option<(u64, bool, RecordedStart)>;

fn begins_restored(said: [Said; 2]) -> Result<Verdict<()>, StartError> {
    let three = config(1, 3);
    let outcome = |said: &Said| match said {
        None => silent(),
        Some((last, confirmed, _)) => Ok(here(
            &three,
            GuestInfo {
                last: LogIndex(*last),
                ..says(&three, false, *confirmed)
            },
        )),
    };
    let mut answers = answers(&three, said.iter().map(outcome).collect());
    for (answer, said) in answers.iter_mut().zip(said) {
        answer.start = said.map(|(.., start)| start);
    }
    may_begin_restored(&three, formed_member(&three).identity.cluster, &answers)
}

#[test]
fn a_restored_member_begins_unless_the_others_may_have_seen_it_begin() {
    let (recorded, not) = (RecordedStart::Recorded, RecordedStart::NotRecorded);
    for said in [
        // Nobody has begun: the logs of the others end where its own does, or they have none.
        [Some((1, false, not)), Some((0, false, not))],
        // A quorum says that it has not started.
        [Some((9, true, not)), None],
        [Some((9, true, not)), Some((9, false, recorded))],
    ] {
        let begins = begins_restored(said);
        assert!(matches!(begins, Ok(Verdict::Decided(()))), "{said:?}");
    }
    let silent = [Some((1, false, not)), None];
    waits(begins_restored(silent), "n3 at n3:2380 does not answer");
    let seen = [Some((1, false, recorded)), Some((1, false, not))];
    assert!(matches!(begins_restored(seen), Ok(Verdict::Decided(()))));
    let seen = [Some((9, true, recorded)), None];
    waits(begins_restored(seen), "n2 has recorded that it begins");
    let both = [Some((9, false, recorded)), Some((9, false, recorded))];
    let has_run = begins_restored(both);
    assert!(
        matches!(has_run, Err(StartError::HasRun { .. })),
        "{has_run:?}"
    );
}

/// Two of three lost their disks: together they would be a majority that lacks what they had acknowledged. Of the records only
/// those of the third are left, and each of the two says that it has none.
#[test]
fn restored_members_do_not_begin_on_the_word_of_each_other() {
    let (recorded, not) = (RecordedStart::Recorded, RecordedStart::NotRecorded);
    for start in [recorded, not] {
        let said = [Some((9, false, start)), Some((0, false, not))];
        waits(
            begins_restored(said),
            "n2 has data, but no quorum of the cluster",
        );
    }
}

/// So many others without entries that they would suffice: they may have lost theirs together, so one that has its own is heard.
#[test]
fn members_without_entries_do_not_outvote_one_that_has_its_own() {
    for size in [4, 5, 7] {
        let config = config(1, size);
        let own = formed_member(&config).identity.cluster;
        let without = || Ok(here(&config, GuestInfo::without_data()));
        let survivor = || Ok(here(&config, says(&config, false, false)));
        let others = size - 1;
        let mut outcomes: Vec<Outcome> = (1..others).map(|_| without()).collect();
        outcomes.push(survivor());
        let said = answers(&config, outcomes);
        let waits_for = "has data, but no quorum of the cluster";
        waits(may_begin_restored(&config, own, &said), waits_for);
        let said = not_new(&config, own, LogIndex(0), &said).unwrap();
        assert!(
            said.is_some_and(|said| said.contains(waits_for)),
            "of {size}"
        );
        let nobody = answers(&config, (0..others).map(|_| without()).collect());
        let said = not_new(&config, own, LogIndex(0), &nobody).unwrap();
        assert_eq!(said, None, "of {size}");
    }
}

#[test]
fn a_restored_member_waits_for_those_of_another_cluster_and_stops_if_a_quorum_knows_it() {
    let three = config(1, 3);
    let own = formed_member(&three).identity.cluster;
    let elsewhere = Ok((ClusterId(own.0 ^ 1), GuestInfo::without_data()));
    let mut foreign = answers(&three, vec![elsewhere, silent()]);
    for answer in &mut foreign {
        answer.start = None;
    }
    let waits_for = "n2 belongs to another cluster";
    waits(may_begin_restored(&three, own, &foreign), waits_for);
    let restore_id = "and --restore-id";
    waits(may_begin_restored(&three, own, &foreign), restore_id);
    let unseen = not_seen(&three, own, &foreign).unwrap().unwrap();
    assert!(unseen.contains(waits_for), "{unseen}");
    let started = Ok(here(&three, says(&three, true, true)));
    let stops = may_begin_restored(&three, own, &answers(&three, vec![silent(), started]));
    assert!(matches!(stops, Err(StartError::HasRun { .. })), "{stops:?}");
}
