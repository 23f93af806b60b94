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
//! A member that `quorate restore` made has data, but its disk may be the second one that was restored. So at its first start it
//! begins under the same two conditions. The others hold no entry of the cluster if their logs end where that of a restored
//! member begins. The records alone would not do: two members that lost their disks have lost what they had recorded, too, and
//! each would vouch for the other.
//!
//! Until then the start waits, a first start writes nothing, and the log says what it waits for.
//!
//! Why a new cluster needs that many: a voter whose disk was lost looks like one that never ran. If it began again under its old
//! id, with an empty log, it could elect a leader that lacks entries which it had acknowledged. Members that start at the same
//! time answer each other's questions before they begin ([`Questions::announce`]).

#[cfg(test)]
mod tests;

use super::{
    data_directory::RESTORED_AT,
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
    types::{ClusterId, Identity, LogIndex, MemberId},
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
    let own = formed_identity(config);
    let decided = rounds(config, &questions, &others, own, progress, verdict).await;
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
    let own = formed_identity(config);
    let decided = rounds(config, &questions, &others, own, progress, verdict);
    decided.await.map(Some)
}

/// Waits until it is certain that a restored member, one of `members` that form the cluster, has never taken part. It answers
/// the others' questions meanwhile.
pub(super) async fn restored_start(
    config: &Config,
    network: Option<&dyn PeerNetwork>,
    owner: &Owner,
    members: usize,
    progress: &Progress,
) -> Result<(), StartError> {
    let others = others(config);
    let questions = Questions::of(config, network).filter(|_| others.len() + 1 == members);
    let Some(questions) = questions else {
        return Err(StartError::RestoredAlone {
            name: config.name.clone(),
            members,
        });
    };
    let answer = codec::encode(&GuestInfo::without_data());
    let book = formed_addresses(config);
    let announcement = questions.announce(config, owner, book, answer.into())?;
    let own = owner.identity;
    let verdict = |answers: &[Answer<'_>]| may_begin_restored(config, own.cluster, answers);
    let decided = rounds(config, &questions, &others, Some(own), progress, verdict).await;
    announcement.end().await;
    decided
}

/// Who this member is in the cluster that its configuration forms, if it is to form one.
fn formed_identity(config: &Config) -> Option<Identity> {
    match config.cluster.state {
        ClusterState::New => Some(formed_member(config).identity),
        ClusterState::Existing => None,
    }
}

/// Asks in rounds until there is a verdict; also for the records of its beginning, if this member is to form a cluster as `own`.
async fn rounds<T>(
    config: &Config,
    questions: &Questions<'_>,
    others: &[&InitialMember],
    own: Option<Identity>,
    progress: &Progress,
    verdict: impl Fn(&[Answer<'_>]) -> Result<Verdict<T>, StartError>,
) -> Result<T, StartError> {
    let began = clock::now();
    let mut report_at: Instant = began + REPORT_EVERY;
    loop {
        let answers = ask_all(config, questions, others, own).await;
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
    own: Option<Identity>,
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
    if let Some(own) = own {
        ask_for_starts(config, questions, own, &mut answers).await;
    }
    answers
}

/// Asks those that have data whether they have recorded that this member begins. A process without data has no records.
async fn ask_for_starts(
    config: &Config,
    questions: &Questions<'_>,
    own: Identity,
    answers: &mut [Answer<'_>],
) {
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

/// Whether a member of a new cluster may begin.
fn may_begin(config: &Config, answers: &[Answer<'_>]) -> Result<Verdict<Beginning>, StartError> {
    let formed = formed_member(config).identity.cluster;
    let unsure = unsure(config, formed, LogIndex(0), answers)?;
    Ok(unsure.map_or(Verdict::Decided(Beginning::Forms), Verdict::Wait))
}

/// Whether a restored member of cluster `own` may begin.
fn may_begin_restored(
    config: &Config,
    own: ClusterId,
    answers: &[Answer<'_>],
) -> Result<Verdict<()>, StartError> {
    let unsure = unsure(config, own, RESTORED_AT.index, answers)?;
    Ok(unsure.map_or(Verdict::Decided(()), Verdict::Wait))
}

/// What is waited for before a member of cluster `own` begins: `None` if what the others know of the cluster allows it, and what
/// they have recorded shows that it has never begun. The log of a member that has never begun ends at `first`.
fn unsure(
    config: &Config,
    own: ClusterId,
    first: LogIndex,
    answers: &[Answer<'_>],
) -> Result<Option<String>, StartError> {
    let seen = not_seen(config, own, answers)?;
    Ok(not_new(config, own, first, answers)?.or(seen))
}

/// Whether what the others have recorded shows that this member has never begun; if it does not, what is waited for. Only so many
/// can have recorded it as do not say that they have not.
fn not_seen(
    config: &Config,
    own: ClusterId,
    answers: &[Answer<'_>],
) -> Result<Option<String>, StartError> {
    let members = config.cluster.initial.len();
    let said = |wanted| answers.iter().filter(|it| it.start == Some(wanted)).count();
    if said(RecordedStart::Recorded) >= recorders(members) {
        return Err(StartError::HasRun {
            name: config.name.clone(),
        });
    }
    let needed = witnesses(members);
    if said(RecordedStart::NotRecorded) >= needed {
        return Ok(None);
    }
    let missing = answers.iter().filter_map(|answer| {
        let name = &answer.from.name;
        match (answer.start, &answer.outcome) {
            (Some(RecordedStart::NotRecorded), _) => None,
            (Some(RecordedStart::Recorded), _) => {
                Some(format!("{name} has recorded that it begins"))
            }
            (Some(RecordedStart::WasNotThere), _) => Some(format!("{name} was added later")),
            (None, Ok((cluster, _))) if *cluster != own => Some(format!(
                "{name} belongs to another cluster, {:x} instead of {:x}",
                cluster.0, own.0
            )),
            (None, _) => Some(format!("{name} does not answer")),
        }
    });
    let missing: Vec<String> = missing.collect();
    Ok(Some(format!(
        "{needed} of the other members have to say that they have not seen this one begin: {}",
        missing.join("; ")
    )))
}

/// Whether what the others know of the cluster `own` allows one of those that form it to begin; if it does not, what is waited
/// for. `first` is where the log of a member ends that has never begun.
fn not_new(
    config: &Config,
    own: ClusterId,
    first: LogIndex,
    answers: &[Answer<'_>],
) -> Result<Option<String>, StartError> {
    let (mut without_entries, mut with_entries) = (0, 0);
    let mut missing = Vec::new();
    for Answer { from, outcome, .. } in answers {
        match outcome {
            Ok((cluster, info)) if *cluster == own && info.confirmed => {
                return if info.started {
                    Err(StartError::HasRun {
                        name: config.name.clone(),
                    })
                } else if info.id.is_some() {
                    Ok(None)
                } else {
                    Err(not_added(config))
                };
            }
            // Its configuration differs, or this member's was changed: what it says is no proof about this cluster.
            Ok((cluster, _)) if *cluster != own => missing.push(format!(
                "{} belongs to another cluster, {:x} instead of {:x}: `cluster.initial` and `cluster.token` must be the same on \
                 all members{}",
                from.name,
                cluster.0,
                own.0,
                if first == LogIndex(0) {
                    ""
                } else {
                    ", and so must be what they were restored from, all options, and --restore-id"
                }
            )),
            Ok((_, info)) if info.last <= first => without_entries += 1,
            Ok(_) => {
                with_entries += 1;
                missing.push(format!(
                    "{} has data, but no quorum of the cluster",
                    from.name
                ));
            }
            Err(error) => missing.push(unanswered(from, error)),
        }
    }
    let members = config.cluster.initial.len();
    let needed = recorders(members);
    // Others without entries may have lost theirs as this one has: together they must not outvote one that has not.
    if without_entries >= needed && with_entries == 0 {
        return Ok(None);
    }
    Ok(Some(format!(
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
