//! What a starting member asks the other members: whether it has run before, its id in a running cluster, and the membership.
//!
//! One member alone may be behind, so its word decides nothing. An answer counts if the answering member confirmed it with a read
//! index, that is, with a quorum. Without a confirmed answer
//!
//! - a member of a new cluster begins once enough others have said that they hold no entry of this cluster: so many that every
//!   majority with this member in it includes one of them;
//! - a member that joins a running cluster waits;
//! - a member that is to be refilled takes the membership in its own database; if that is unreadable, the newest one that the
//!   other members answered, once a majority of the voters, this member included, has been asked.
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
};
use crate::{
    actors::{members::Members, peer_ask::GuestInfo, restore::RestoreError},
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
/// What a start waits for is logged after so long, and then again and again.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// What a member that joins a running cluster was told.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) cluster: ClusterId,
    pub(super) id: MemberId,
    /// The membership, encoded.
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
        ClusterState::New => may_form(config, answers),
        ClusterState::Existing => may_join(config, answers),
    };
    let decided = rounds(config, &questions, &others, verdict).await;
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
) -> Result<Option<Bytes>, StartError> {
    let others = others(config);
    let (Some(questions), false) = (Questions::of(config, network), others.is_empty()) else {
        return Ok(own);
    };
    let verdict = |answers: &[Answer<'_>]| newest_members(owner, own.clone(), answers);
    rounds(config, &questions, &others, verdict).await.map(Some)
}

/// Asks in rounds until there is a verdict.
async fn rounds<T>(
    config: &Config,
    questions: &Questions<'_>,
    others: &[&InitialMember],
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
        answers.push(Answer { from, outcome });
    }
    answers
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

/// Whether a member of a new cluster may begin.
fn may_form(config: &Config, answers: &[Answer<'_>]) -> Result<Verdict<Beginning>, StartError> {
    let formed = formed_member(config).identity.cluster;
    let mut without_entries = 0;
    let mut missing = Vec::new();
    for Answer { from, outcome } in answers {
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
    let needed = others_that_meet_every_quorum(members);
    if without_entries >= needed {
        return Ok(Verdict::Decided(Beginning::Forms));
    }
    Ok(Verdict::Wait(format!(
        "the other members have to say whether this one has run before, {needed} of them or a quorum: {}",
        missing.join("; ")
    )))
}

/// Of a cluster with so many members, how many others intersect every majority that contains this member.
fn others_that_meet_every_quorum(members: usize) -> usize {
    let majority = members / 2 + 1;
    members - majority + 1
}

/// Where a member that joins a running cluster belongs.
fn may_join(config: &Config, answers: &[Answer<'_>]) -> Result<Verdict<Beginning>, StartError> {
    let mut missing = Vec::new();
    for Answer { from, outcome } in answers {
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
    Members::decode(&membership).map_err(RestoreError::from)?;
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
    for Answer { from, outcome } in answers {
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
        let members = Members::decode(&bytes).map_err(RestoreError::from)?;
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
            .map(|(from, outcome)| Answer { from, outcome })
            .collect()
    }

    fn forms(config: &Config, outcomes: Vec<Outcome>) -> Result<Verdict<Beginning>, StartError> {
        may_form(config, &answers(config, outcomes))
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
            let asked = others_that_meet_every_quorum(members);
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
        // n2 never heard that this member had started; n3, with which it acknowledged entries, is down.
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
