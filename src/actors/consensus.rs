//! What the rest of a member requests of consensus: to append commands to the log, to confirm that a read is linearizable, and to
//! change the membership or the leader.
//!
//! [`Consensus`] is the handle for the first two. Within one turn of its event loop it collects all proposals, and all reads,
//! into one message each to the Raft node: a message per request would cost more, across threads, than the request.

use super::{
    held::{self, HeldBytes, HeldPart},
    latest,
    membership_change::{ChangeRefusal, MemberChange},
    published::Published,
    replies::{Answer, Reply},
    request_error::RequestError,
};
use crate::{
    clock, codec,
    kv::command::{AlarmKind, Command, Outcome, SetAlarm},
    types::{LogIndex, MemberId},
};
use actix::prelude::*;
use bytes::{BufMut, Bytes};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, oneshot};

/// Proposals and reads that may wait in one handle for the next turn; past it callers get `TooManyRequests`.
const WAITING_MAX: usize = 16_384;

/// Bytes of proposals that may wait in one handle for the next turn, besides the first; past it callers get the same error.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The log's own encoding of a request may be a little larger than etcd's, by which the API judges the size.
const ENVELOPE_SLACK_BYTES: usize = 4_096;

/// An entry of a command begins with its proposer and the proposal's number; the command follows after so many bytes.
pub const PROPOSAL_HEADER_BYTES: usize = 16;

/// A command on its way into the log.
#[derive(Debug)]
pub struct Proposal {
    /// Its number, unique at this member.
    pub id: u64,
    /// Proposer and number, then the encoded command.
    pub data: Bytes,
    /// Who waits for the outcome.
    pub reply: Reply,
}

/// Proposes commands, in this order.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Propose {
    pub proposals: Vec<Proposal>,
}

/// Asks for an index that, once applied, makes a read see every write acknowledged before now. All who ask together share
/// one answer.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AskReadIndex {
    pub waiting: Vec<ReadReply>,
}

/// Who waits for a read index.
pub type ReadReply = oneshot::Sender<Result<LogIndex, RequestError>>;

/// Changes the membership. The reply comes when the change is committed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ChangeMembership {
    pub change: MemberChange,
    pub reply: ChangeReply,
}

/// Who waits for a change: gets the membership after it.
pub type ChangeReply = oneshot::Sender<Result<Bytes, ChangeRefusal>>;

/// Hands leadership to a voter; only the leader can. The reply comes when the other leads.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct MoveLeader {
    pub to: MemberId,
    pub reply: oneshot::Sender<Result<(), RequestError>>,
}

/// This member is about to stop: if it leads, it hands leadership to another voter, and it never leads again. The reply comes
/// once another member leads, or when probably none can take over; at once in a member that does not lead.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct HandOver {
    pub done: oneshot::Sender<()>,
}

/// The proposer of an entry's command, and the proposal's number there.
pub fn proposal_of(data: &Bytes) -> Option<(MemberId, u64)> {
    let header = data.get(..PROPOSAL_HEADER_BYTES)?;
    let (member, id) = header.split_at(PROPOSAL_HEADER_BYTES / 2);
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
    Some((MemberId(number(member)?), number(id)?))
}

/// Where a [`Consensus`] sends what it collects.
#[derive(Clone, Debug)]
pub struct ConsensusPeers {
    pub propose: Recipient<Propose>,
    /// Answers with read indices.
    pub reads: Recipient<AskReadIndex>,
    /// Counts what waits.
    pub held: HeldBytes,
}

/// Bounds on what goes through a [`Consensus`].
#[derive(Clone, Copy, Debug)]
pub struct ConsensusLimits {
    /// Size of a replicated request, in bytes.
    pub request_bytes_max: usize,
    /// How long a read may wait for its view.
    pub timeout: Duration,
}

/// A handle to consensus. Cheap to clone, and usable from any thread.
#[derive(Clone, Debug)]
pub struct Consensus {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    member: MemberId,
    limits: ConsensusLimits,
    queue: Mutex<Queue>,
    wake: Notify,
    bytes_max: usize,
    held: Arc<HeldPart>,
    all_held: HeldBytes,
}

/// The proposals and reads that this turn has collected.
#[derive(Debug, Default)]
struct Queue {
    next_id: u64,
    proposals: Vec<Proposal>,
    proposal_bytes: usize,
    reads: Vec<ReadReply>,
    closed: bool,
}

impl Consensus {
    /// A handle for `member`, with a task on `arbiter` that sends what each of its turns has collected.
    ///
    /// Proposals are numbered from a random start: entries of an earlier run of this member, or of another handle, must not
    /// answer callers of this one.
    pub fn start(
        arbiter: &ArbiterHandle,
        member: MemberId,
        limits: ConsensusLimits,
        peers: ConsensusPeers,
    ) -> Self {
        let bytes_max = held::bound(WAITING_BYTES_MAX);
        let entry_bytes_max = limits
            .request_bytes_max
            .saturating_add(ENVELOPE_SLACK_BYTES);
        let name = "proposals that wait for the Raft node";
        let shared = Arc::new(Shared {
            bytes_max,
            held: peers.held.part(name, bytes_max.max(entry_bytes_max)),
            all_held: peers.held.clone(),
            member,
            limits,
            queue: Mutex::new(Queue {
                next_id: clock::entropy(),
                ..Queue::default()
            }),
            wake: Notify::new(),
        });
        let sending = arbiter.spawn(send_turns(shared.clone(), peers));
        assert!(
            sending,
            "handles to consensus exist before their arbiter stops"
        );
        Self { shared }
    }

    /// The member that proposes.
    pub fn member(&self) -> MemberId {
        self.shared.member
    }

    /// Size of a replicated request, in bytes.
    pub fn request_bytes_max(&self) -> usize {
        self.shared.limits.request_bytes_max
    }

    /// What the member holds.
    pub(super) fn held(&self) -> &HeldBytes {
        &self.shared.all_held
    }

    /// The largest entry of the log, in bytes.
    pub(super) fn entry_bytes_max(&self) -> usize {
        let max = self.shared.limits.request_bytes_max;
        max.saturating_add(ENVELOPE_SLACK_BYTES)
    }

    /// Proposes a command and waits for its outcome.
    pub async fn propose(&self, command: &Command) -> Result<Outcome, RequestError> {
        let answered = self.propose_unread(command).await?;
        answered.complete(self.shared.limits.timeout).await
    }

    /// As [`Consensus::propose`], with what is missing of a long outcome left to the caller.
    pub async fn propose_unread(&self, command: &Command) -> Answer {
        let outcome = self.submit(command)?;
        outcome.await.unwrap_or(Err(RequestError::Stopped))
    }

    /// Hands a proposal over: proposals of one caller enter the log in the order of these calls, if they enter it.
    pub fn submit(&self, command: &Command) -> Result<oneshot::Receiver<Answer>, RequestError> {
        let (reply, outcome) = oneshot::channel();
        self.submit_to(command, || reply.into())?;
        Ok(outcome)
    }

    /// As [`Consensus::submit`], with the outcome going where `reply` says, which is called only if the proposal is taken.
    pub fn submit_to(
        &self,
        command: &Command,
        reply: impl FnOnce() -> Reply,
    ) -> Result<(), RequestError> {
        let mut data = Vec::with_capacity(encoded_size_hint(command));
        data.put_bytes(0, PROPOSAL_HEADER_BYTES);
        codec::encode_into(command, &mut data);
        let max = self.shared.limits.request_bytes_max;
        if data.len() > max.saturating_add(ENVELOPE_SLACK_BYTES) {
            return Err(RequestError::TooLarge {
                bytes: data.len(),
                max,
            });
        }
        let member = self.shared.member;
        self.enqueue(data.len(), |queue| {
            let id = queue.next_id;
            queue.next_id = id.wrapping_add(1);
            data[..8].copy_from_slice(&member.0.to_le_bytes());
            data[8..16].copy_from_slice(&id.to_le_bytes());
            queue.proposals.push(Proposal {
                id,
                data: Bytes::from(data),
                reply: reply(),
            });
        })
    }

    /// Raises an alarm for a member. A member without a vote, and one whose state differs, can do this too.
    pub async fn raise_alarm(&self, member: MemberId, kind: AlarmKind) -> Result<(), RequestError> {
        let alarm = SetAlarm {
            member,
            kind,
            raised: true,
        };
        self.propose(&Command::SetAlarm(alarm)).await.map(drop)
    }

    /// An index that, once applied, makes a read see every write acknowledged before now. The leader has confirmed since then
    /// that it leads.
    pub async fn read_index(&self) -> Result<LogIndex, RequestError> {
        let (reply, index) = oneshot::channel();
        self.enqueue(0, |queue| queue.reads.push(reply))?;
        index.await.unwrap_or(Err(RequestError::Stopped))
    }

    /// A view that holds every write acknowledged before now, anywhere.
    pub async fn linearizable_view(
        &self,
        views: &latest::Receiver<Arc<Published>>,
    ) -> Result<Arc<Published>, RequestError> {
        let deadline = clock::now() + self.shared.limits.timeout;
        let index = self.read_index().await?;
        let newest = views.borrow().clone();
        if newest.applied.index >= index {
            return Ok(newest);
        }
        let mut views = views.clone();
        let reached = views.wait_for(|published| published.applied.index >= index);
        // A member that lost its connections in the meantime may not get so far.
        let reached = tokio::time::timeout_at(deadline, reached).await;
        reached
            .map_err(|_| RequestError::TimedOut)?
            .map_err(|_| RequestError::Stopped)
    }

    /// Refuses everything from now on; what was collected is still sent.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
    }

    /// Adds a proposal of so many bytes, or a read, which has none.
    fn enqueue(&self, bytes: usize, add: impl FnOnce(&mut Queue)) -> Result<(), RequestError> {
        let mut queue = self.shared.lock();
        if queue.closed {
            return Err(RequestError::Stopped);
        }
        let waiting = queue.proposals.len() + queue.reads.len();
        let held = queue.proposal_bytes.saturating_add(bytes);
        let too_long = held > self.shared.bytes_max && queue.proposal_bytes > 0 && bytes > 0;
        if waiting >= WAITING_MAX || too_long {
            return Err(RequestError::TooManyRequests);
        }
        queue.proposal_bytes = held;
        self.shared.held.set(held);
        add(&mut queue);
        drop(queue);
        if waiting == 0 {
            self.shared.wake.notify_one();
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what each turn of the event loop has collected. It waits until the Raft node has taken one turn before it sends the
/// next, so a busy node gets fewer and larger messages, and its mailbox always has room.
async fn send_turns(shared: Arc<Shared>, peers: ConsensusPeers) {
    loop {
        shared.wake.notified().await;
        let (proposals, reads, closed) = {
            let mut queue = shared.lock();
            let queue = &mut *queue;
            let proposals = std::mem::take(&mut queue.proposals);
            let reads = std::mem::take(&mut queue.reads);
            queue.proposal_bytes = 0;
            shared.held.set(0);
            (proposals, reads, queue.closed)
        };
        // A Raft node that is gone has dropped the callers' replies, so each caller gets `Stopped`.
        if !proposals.is_empty() {
            let propose = Propose { proposals };
            peers.propose.send(propose).await.unwrap_or_default();
        }
        if !reads.is_empty() {
            let ask = AskReadIndex { waiting: reads };
            peers.reads.send(ask).await.unwrap_or_default();
        }
        if closed {
            return;
        }
    }
}

fn encoded_size_hint(command: &Command) -> usize {
    const FIXED: usize = 64;
    match command {
        Command::Put(put) => put.key.len() + put.value.len() + FIXED,
        Command::DeleteRange(delete) => delete.key.len() + delete.range_end.len() + FIXED,
        Command::Txn(_) => 512,
        Command::Compact(_)
        | Command::GrantLease(_)
        | Command::RevokeLease(_)
        | Command::SetAlarm(_)
        | Command::Auth(_) => FIXED,
        Command::Checked(checked) => encoded_size_hint(&checked.command) + FIXED,
        Command::ExpireLeases(_) | Command::CheckpointLeases(_) | Command::RenewLeases(_) => 4_096,
    }
}
