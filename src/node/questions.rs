//! What a starting member asks the other members: whether it has run before, its id in a running cluster, and the membership.
//!
//! One member alone may be behind, so its answer alone does not decide. An answer counts if the answering member confirmed it
//! with a read index, that is, with a quorum. Without a confirmed answer
//!
//! - a member of a new cluster begins once enough others have said that they hold no entry of this cluster: so many that every
//!   majority with this member in it includes one of them;
//! - a member that joins a running cluster waits;
//! - a member that is to be refilled takes the membership in its own database; if that is unreadable, the newest one that the
//!   other members answered, once a majority of the voters, this member included, has been asked.
//!
//! And it begins only if enough others have not recorded that it begins (see `actors::raft_node`, `beginning`): so many that
//! those which recorded it before it took part would be among them.
//!
//! Until then the start waits, a first start writes nothing, and the log says what it waits for.
//!
//! Why a new cluster needs that many: a voter whose disk was lost looks like one that never ran. If it began again under its old
//! id, with an empty log, it could elect a leader that lacks entries which it had acknowledged. Members that start at the same
//! time answer each other's questions before they begin ([`Questions::announce`]).

use super::{
    error::StartError,
    identity::{formed_id, formed_member},
    network::{PeerNetwork, Questions},
    progress::Progress,
};
use crate::{
    actors::{
        load::LoadStateError,
        members::Members,
        peer_ask::{GuestInfo, RecordedStart},
        raft_node::{recorders, witnesses},
    },
    clock, codec,
    config::{ClusterState, Config, InitialMember},
    mutation::{Mutation, mutated},
    net::{GuestAnswer, NetError, PeerAddress},
    storage::member::Owner,
    types::{ClusterId, LogIndex, MemberId},
};
use bytes::Bytes;
use std::time::Duration;
use tokio::time::Instant;

/// The pause between two rounds of questions.
const ROUND_PAUSE: Duration = Duration::from_millis(200);
/// The time after which a start logs what it waits for, and the interval at which it repeats that.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// The answer that a member which joins a running cluster got.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) cluster: ClusterId,
    pub(super) id: MemberId,
    pub(super) membership: Bytes,
}

/// How a member without data begins.
#[derive(Debug)]
pub(super) enum Beginning {
    /// It forms the cluster of its configuration.
    Forms,
    /// It joins a running cluster.
    Joins(Joined),
}

/// What one member answered.
#[derive(Debug)]
struct Answer<'a> {
    from: &'a InitialMember,
    outcome: Result<(ClusterId, GuestInfo), NetError>,
    /// Whether it has recorded that this member begins; `None` if it did not say.
    start: Option<RecordedStart>,
}

/// What follows from a round of answers.
#[derive(Debug)]
enum Verdict<T> {
    Decided(T),
    /// Another round is needed. The text says what is waited for.
    Wait(String),
}

/// Finds out how a member without data begins. Returns once that is certain, which may take for ever.
pub(super) async fn first_start(
    config: &Config,
    network: Option<&dyn PeerNetwork>,
    progress: &Progress,
) -> Result<Beginning, StartError> {
    let others = others(config);
    let (Some(questions), false) = (Questions::of(config, network), others.is_empty()) else {
        return match config.cluster.state {
            ClusterState::New => Ok(Beginning::Forms),
            ClusterState::Existing => Err(StartError::NobodyToAsk),
        };
    };
    let announcement = match config.cluster.state {
        ClusterState::Existing => None,
        ClusterState::New => {
            let member = formed_member(config);
            let answer = codec::encode(&GuestInfo::without_data());
            Some(questions.announce(config, &member, formed_addresses(config), answer.into())?)
        }
    };
    let verdict = |answers: &[Answer<'_>]| match config.cluster.state {
        ClusterState::New => may_begin(config, answers),
        ClusterState::Existing => may_join(config, answers),
    };
    let decided = rounds(config, &questions, &others, progress, verdict).await;
    if let Some(announcement) = announcement {
        announcement.end().await;
    }
    decided
}

/// Who the members are, for a member that is to be refilled. `own` is what its database says, if that can be read.
pub(super) async fn members_for_refill(
    config: &Config,
    network: Option<&dyn PeerNetwork>,
    owner: &Owner,
    own: Option<Bytes>,
    progress: &Progress,
) -> Result<Option<Bytes>, StartError> {
    let others = others(config);
    let (Some(questions), false) = (Questions::of(config, network), others.is_empty()) else {
        return Ok(own);
    };
    let verdict = |answers: &[Answer<'_>]| newest_members(owner, own.clone(), answers);
    let decided = rounds(config, &questions, &others, progress, verdict);
    decided.await.map(Some)
}

/// Asks in rounds until there is a verdict.
async fn rounds<T>(
    config: &Config,
    questions: &Questions<'_>,
    others: &[&InitialMember],
    progress: &Progress,
    verdict: impl Fn(&[Answer<'_>]) -> Result<Verdict<T>, StartError>,
) -> Result<T, StartError> {
    let began = clock::now();
    let mut report_at: Instant = began + REPORT_EVERY;
    loop {
        let answers = ask_all(config, questions, others).await;
        let waits_for = match verdict(&answers)? {
            Verdict::Decided(decided) => return Ok(decided),
            Verdict::Wait(what) => what,
        };
        progress.waits_for(&waits_for);
        if clock::now() >= report_at {
            report_at = clock::now() + REPORT_EVERY;
            let waited_secs = began.elapsed().as_secs();
            tracing::warn!(waited_secs, "not started yet: {waits_for}");
        } else {
            tracing::debug!("not started yet: {waits_for}");
        }
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

/// Asks all of them at the same time.
async fn ask_all<'a>(
    config: &Config,
    questions: &Questions<'_>,
    others: &[&'a InitialMember],
) -> Vec<Answer<'a>> {
    let question = Bytes::from(config.peer_advertise().to_string());
    let ask = |from: &InitialMember| {
        let asked = questions.ask(&config.name, from.peer.to_string(), question.clone());
        actix::spawn(asked)
    };
    let asked: Vec<_> = others.iter().map(|from| (*from, ask(from))).collect();
    let mut answers = Vec::new();
    for (from, asked) in asked {
        let outcome = match asked.await {
            Ok(answered) => answered.and_then(|answered| read(&answered)),
            Err(_) => Err(NetError::StreamEnded("without an answer")),
        };
        answers.push(Answer {
            from,
            outcome,
            start: None,
        });
    }
    if config.cluster.state == ClusterState::New {
        ask_for_starts(config, questions, &mut answers).await;
    }
    answers
}

/// Asks those that have data whether they have recorded that this member begins. A process without data has no records.
async fn ask_for_starts(config: &Config, questions: &Questions<'_>, answers: &mut [Answer<'_>]) {
    let own = formed_member(config).identity;
    let mut asked = Vec::new();
    for answer in answers {
        match &answer.outcome {
            Ok((cluster, _)) if *cluster != own.cluster => {}
            Ok((_, info)) if info.membership.is_empty() => {
                answer.start = Some(RecordedStart::NotRecorded);
            }
            Ok(_) => {
                let question = RecordedStart::question(own.member);
                let to = answer.from.peer.to_string();
                let asking = actix::spawn(questions.ask(&config.name, to, question));
                asked.push((answer, asking));
            }
            Err(_) => {}
        }
    }
    for (answer, asking) in asked {
        let said = asking.await.ok().and_then(Result::ok);
        answer.start = said
            .filter(|said| said.cluster == own.cluster)
            .and_then(|said| RecordedStart::decode(&said.answer));
    }
}

fn read(answered: &GuestAnswer) -> Result<(ClusterId, GuestInfo), NetError> {
    let mut info: GuestInfo = codec::decode("answer to a starting member", &answered.answer)
        .map_err(|_| NetError::StreamEnded("with an answer that this version cannot read"))?;
    if mutated(Mutation::TrustFirstAnswer) && !info.membership.is_empty() {
        info.confirmed = true;
    }
    Ok((answered.cluster, info))
}

fn others(config: &Config) -> Vec<&InitialMember> {
    let initial = config.cluster.initial.iter();
    initial
        .filter(|member| member.name != config.name)
        .collect()
}

fn formed_addresses(config: &Config) -> Vec<PeerAddress> {
    let initial = config.cluster.initial.iter();
    let address = |member: &InitialMember| {
        Some(PeerAddress {
            id: formed_id(config, &member.name)?,
            name: member.name.clone(),
            addresses: vec![member.peer.to_string()],
        })
    };
    initial.filter_map(address).collect()
}

/// Whether a member of a new cluster may begin: what the others know of the cluster allows it, and what they have recorded shows
/// that it has never begun. Only so many can have recorded it as do not say that they have not.
fn may_begin(config: &Config, answers: &[Answer<'_>]) -> Result<Verdict<Beginning>, StartError> {
    let members = config.cluster.initial.len();
    let said = |wanted| answers.iter().filter(|it| it.start == Some(wanted)).count();
    if said(RecordedStart::Recorded) >= recorders(members) {
        return Err(StartError::HasRun {
            name: config.name.clone(),
        });
    }
    let verdict = may_form(config, answers)?;
    let needed = witnesses(members);
    if matches!(verdict, Verdict::Decided(_)) && said(RecordedStart::NotRecorded) < needed {
        let missing = answers.iter().filter_map(|answer| {
            let name = &answer.from.name;
            match answer.start {
                Some(RecordedStart::NotRecorded) => None,
                Some(RecordedStart::Recorded) => {
                    Some(format!("{name} has recorded that it begins"))
                }
                Some(RecordedStart::WasNotThere) => Some(format!("{name} was added later")),
                None => Some(format!("{name} does not answer")),
            }
        });
        let missing: Vec<String> = missing.collect();
        return Ok(Verdict::Wait(format!(
            "{needed} of the other members have to say that they have not seen this one begin: {}",
            missing.join("; ")
        )));
    }
    Ok(verdict)
}

/// Whether what the others know of the cluster allows a member of a new one to begin.
fn may_form(config: &Config, answers: &[Answer<'_>]) -> Result<Verdict<Beginning>, StartError> {
    let formed = formed_member(config).identity.cluster;
    let mut without_entries = 0;
    let mut missing = Vec::new();
    for Answer { from, outcome, .. } in answers {
        match outcome {
            Ok((cluster, info)) if *cluster == formed && info.confirmed => {
                return if info.started {
                    Err(StartError::HasRun {
                        name: config.name.clone(),
                    })
                } else if info.id.is_some() {
                    Ok(Verdict::Decided(Beginning::Forms))
                } else {
                    Err(not_added(config))
                };
            }
            // Its configuration differs, or this member's was changed: what it says is no proof about this cluster.
            Ok((cluster, _)) if *cluster != formed => missing.push(format!(
                "{} belongs to another cluster, {:x} instead of {:x}: `cluster.initial` and `cluster.token` must be the same on \
                 all members",
                from.name, cluster.0, formed.0
            )),
            Ok((_, info)) if info.last == LogIndex(0) => without_entries += 1,
            Ok(_) => missing.push(format!(
                "{} has data, but no quorum of the cluster",
                from.name
            )),
            Err(error) => missing.push(unanswered(from, error)),
        }
    }
    let members = config.cluster.initial.len();
    let needed = recorders(members);
    if without_entries >= needed {
        return Ok(Verdict::Decided(Beginning::Forms));
    }
    Ok(Verdict::Wait(format!(
        "the other members have to say whether this one has run before, {needed} of them or a quorum: {}",
        missing.join("; ")
    )))
}

/// Where a member that joins a running cluster belongs.
fn may_join(config: &Config, answers: &[Answer<'_>]) -> Result<Verdict<Beginning>, StartError> {
    let mut missing = Vec::new();
    for Answer { from, outcome, .. } in answers {
        match outcome {
            Ok((cluster, info)) if info.confirmed => {
                return placed(config, *cluster, info).map(Verdict::Decided);
            }
            Ok(_) => missing.push(format!("{} has no quorum of the cluster", from.name)),
            Err(error) => missing.push(unanswered(from, error)),
        }
    }
    Ok(Verdict::Wait(format!(
        "a member with a quorum has to say which member of the cluster this one is: {}",
        missing.join("; ")
    )))
}

fn placed(config: &Config, cluster: ClusterId, info: &GuestInfo) -> Result<Beginning, StartError> {
    if info.started {
        return Err(StartError::HasRun {
            name: config.name.clone(),
        });
    }
    let id = info.id.ok_or_else(|| not_added(config))?;
    let membership = Bytes::from(info.membership.clone());
    let members = Members::decode(&membership).map_err(LoadStateError::from)?;
    // A member is added as a learner, and becomes a voter only once the log says that it has started. So a voter that has not
    // started is one of those that formed the cluster, and only the records of the others say whether it took part.
    if members.get(id).is_some_and(|member| !member.learner) {
        return Err(StartError::FormsCluster {
            name: config.name.clone(),
        });
    }
    tracing::info!(id = id.hex(), "joins a running cluster");
    Ok(Beginning::Joins(Joined {
        cluster,
        id,
        membership,
    }))
}

/// The membership of a member that waits for a snapshot.
fn newest_members(
    owner: &Owner,
    own: Option<Bytes>,
    answers: &[Answer<'_>],
) -> Result<Verdict<Bytes>, StartError> {
    let mut missing = Vec::new();
    let mut newest: Option<&GuestInfo> = None;
    let mut asked = Vec::new();
    for Answer { from, outcome, .. } in answers {
        match outcome {
            Ok((cluster, info)) if *cluster == owner.identity.cluster => {
                if info.confirmed {
                    return Ok(Verdict::Decided(info.membership.clone().into()));
                }
                asked.push(from.peer.to_string());
                if newest.is_none_or(|newest| newest.last < info.last) {
                    newest = Some(info);
                }
            }
            Ok(_) => missing.push(format!("{} belongs to another cluster", from.name)),
            Err(error) => missing.push(unanswered(from, error)),
        }
    }
    if let Some(own) = own {
        return Ok(Verdict::Decided(own));
    }
    if let Some(newest) = newest.filter(|newest| !newest.membership.is_empty()) {
        let bytes = Bytes::from(newest.membership.clone());
        let members = Members::decode(&bytes).map_err(LoadStateError::from)?;
        let voters = members.iter().filter(|other| !other.learner).count();
        // This member's own log is one of those that a majority has.
        if asked.len() + 1 > voters / 2 {
            return Ok(Verdict::Decided(bytes));
        }
    }
    Ok(Verdict::Wait(format!(
        "the database cannot be read, so a majority of the members has to say who the members are: {}",
        missing.join("; ")
    )))
}

fn unanswered(from: &InitialMember, error: &NetError) -> String {
    format!("{} at {} does not answer ({error})", from.name, from.peer)
}

fn not_added(config: &Config) -> StartError {
    StartError::NotAdded {
        name: config.name.clone(),
        address: config.peer_advertise().to_string(),
        scheme: config.peer.tls.scheme(),
    }
}

#[cfg(test)]
mod tests {
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
}
