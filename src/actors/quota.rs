//! The quota of a member's database: when it is reached, and when there is room again.
//!
//! What counts is [`Published::quota_bytes`]. A write that finds the quota reached raises the alarm NOSPACE for its member
//! (`requests`), and while it is raised no member takes writes that need space. The member ends it by itself ([`keep`]) once
//! what counts is below nine tenths of the quota, with an entry of the log such as `alarm disarm` writes. Between the two marks
//! nothing changes, so that the alarm does not come and go with every write. The leader ends that of a member that was removed.
//!
//! An alarm that a client has raised is of another kind ([`AlarmKind::NoSpace`]) and stays until a client ends it. etcd: so does
//! that of the quota. A member of an earlier version cannot read the quota's own kind, and stops at an entry that has it: unless
//! all members are known to read it, the quota raises that of a client ([`RaftStatus::quota_alarm`]).

use super::{consensus::Consensus, latest, published::Published, raft_status::RaftStatus};
use crate::{
    kv::command::{AlarmKind, Command, Outcome, SetAlarm},
    log_gate::{self, LogGate},
    types::MemberId,
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// How often a member looks whether its alarm is over.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Alarms that could not be ended yet.
static FAILED: LogGate = LogGate::new();

/// Whether so many bytes reach the quota, of which `None` is no quota.
pub(super) fn is_reached(quota: Option<u64>, bytes: u64) -> bool {
    quota.is_some_and(|quota| bytes >= quota)
}

/// Whether so many bytes are so far below the quota that the alarm ends.
fn has_room_again(quota: Option<u64>, bytes: u64) -> bool {
    quota.is_none_or(|quota| bytes < quota - quota / 10)
}

/// Whose alarm this member ends now: its own, and, if it leads, that of members which are not there any more.
fn over(published: &Published, quota: Option<u64>, own: MemberId, leads: bool) -> Vec<MemberId> {
    let is_over = |member: MemberId| {
        if member == own {
            has_room_again(quota, published.quota_bytes())
        } else {
            leads && published.members.get(member).is_none()
        }
    };
    let alarms = published.alarms.iter();
    let raised = alarms.filter(|(_, kind)| *kind == AlarmKind::QuotaReached);
    let members = raised.map(|(member, _)| *member);
    members.filter(|member| is_over(*member)).collect()
}

/// Ends alarms that are over, until the node stops.
pub async fn keep(
    quota: Option<u64>,
    views: latest::Receiver<Arc<Published>>,
    status: latest::Receiver<RaftStatus>,
    consensus: Consensus,
) {
    let mut gone = status.clone();
    loop {
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            // An error means that the Raft node is gone.
            _ = gone.wait_for(|_| false) => return,
        }
        let raft = *status.borrow();
        if raft.leader.is_none() {
            continue;
        }
        let published = views.borrow().clone();
        for member in over(&published, quota, consensus.member(), raft.leads) {
            end(&consensus, member).await;
        }
    }
}

/// What fails is found over again at the next look.
async fn end(consensus: &Consensus, member: MemberId) {
    let end = Command::SetAlarm(SetAlarm {
        member,
        kind: AlarmKind::QuotaReached,
        raised: false,
    });
    let id = member.hex();
    match consensus.propose(&end).await {
        Ok(outcome) => {
            // Somebody else may have ended it meanwhile.
            if matches!(outcome, Outcome::Alarm { found: true, .. }) {
                tracing::info!("the alarm NOSPACE of member {id} is over: there is room again");
            }
        }
        Err(error) => {
            log_gate::warn!(
                FAILED,
                "the alarm NOSPACE of member {id} could not be ended yet: {error}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_nine_tenths_of_the_quota_to_all_of_it_an_alarm_stays_as_it_is() {
        let quota = Some(1_000);
        for (bytes, reached, room) in [
            (0, false, true),
            (899, false, true),
            (900, false, false),
            (999, false, false),
            (1_000, true, false),
            (u64::MAX, true, false),
        ] {
            let found = (is_reached(quota, bytes), has_room_again(quota, bytes));
            assert_eq!(found, (reached, room), "{bytes} bytes");
        }
        for quota in 0..100 {
            for bytes in 0..=quota + 1 {
                let both = is_reached(Some(quota), bytes) && has_room_again(Some(quota), bytes);
                assert!(!both, "{bytes} bytes of {quota}");
            }
        }
    }

    #[test]
    fn a_member_without_a_quota_never_reaches_it_and_always_has_room() {
        assert!(!is_reached(None, u64::MAX) && has_room_again(None, u64::MAX));
    }
}
