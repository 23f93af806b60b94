//! Snapshots: sends this member's database to members that the log cannot help any more, and takes in what others send.
//!
//! It owns the transfers under way and the file beside the database that a snapshot is received into; it blocks on that file, and
//! on reading the database, so it has an arbiter to itself. It decides neither who needs a snapshot (the Raft node does) nor when
//! one takes the place of the state: once a received file is verified, and the state in it rebuilt, it hands both to the Raft
//! node and waits for the outcome. `docs/snapshots.md` goes through every step and what a crash after it leaves.

mod receive;
mod send;

pub use receive::Received;

use super::{
    fail_stop::Lifeline,
    latest,
    peer_hub::{OpenSnapshot, ReceiveSnapshot},
    raft_node::{InstallSnapshot, TransferEnded},
    requests::Published,
};
use crate::{net::SnapshotError, storage::db::DbError, storage::db::DbSite, types::MemberId};
use actix::prelude::*;
use std::{sync::Arc, time::Duration};

/// Messages that may wait.
const MAILBOX_MAX: usize = 64;

/// Snapshots that are sent at once. Further members wait for their turn: the Raft node asks again.
const SENDING_MAX: usize = 2;

/// Bytes in one chunk: what the arbiter that encrypts it does in one go.
const CHUNK_BYTES: usize = 64 * 1024;

/// How long the other side may take for one chunk.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a receiver may take to verify a whole snapshot and put it in place.
const INSTALL_TIMEOUT: Duration = Duration::from_mins(10);

/// Owns the transfers of snapshots.
#[derive(Debug)]
pub struct Snapshots {
    site: DbSite,
    pacing: SnapshotPacing,
    sending: usize,
    receiving: Option<MemberId>,
    peers: SnapshotPeers,
    _life: Lifeline,
}

/// How fast snapshots are sent.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotPacing {
    /// Bytes a second, to each member.
    pub bytes_per_sec: u64,
}

/// Whom it talks to.
#[derive(Clone, Debug)]
pub struct SnapshotPeers {
    /// Opens a stream to a member; nothing in a member that is alone.
    pub open: Option<Recipient<OpenSnapshot>>,
    /// Learns what became of a snapshot that was sent.
    pub ended: Recipient<TransferEnded>,
    /// Puts a received one in place.
    pub install: Recipient<InstallSnapshot>,
    /// The newest view, and with it a reader of the newest commit.
    pub views: latest::Receiver<Arc<Published>>,
}

impl SnapshotPacing {
    /// How long so many bytes take.
    fn time_of(self, bytes: u64) -> Duration {
        Duration::from_micros(bytes.saturating_mul(1_000_000) / self.bytes_per_sec.max(1))
    }
}

impl Snapshots {
    /// Without transfers.
    pub fn new(site: DbSite, pacing: SnapshotPacing, peers: SnapshotPeers, life: Lifeline) -> Self {
        Self {
            site,
            pacing,
            sending: 0,
            receiving: None,
            peers,
            _life: life,
        }
    }
}

/// Sends a snapshot of the newest commit to a member. Answered by [`TransferEnded`], always.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct SendSnapshotTo {
    /// The member.
    pub to: MemberId,
}

/// Why a snapshot did not get through.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The stream ended, or the receiver does not want it.
    #[error(transparent)]
    Stream(#[from] SnapshotError),
    /// This member's database cannot be read.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The other side took or gave nothing for too long.
    #[error("the other side was silent for {}s", .0.as_secs())]
    Silent(Duration),
    /// As many as may be sent at once are.
    #[error("{0} snapshots are on their way already")]
    Busy(usize),
    /// There is nobody to send to, or the node is stopping.
    #[error("this member has no connections")]
    NoPeers,
}

impl Actor for Snapshots {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
    }
}

impl Handler<SendSnapshotTo> for Snapshots {
    type Result = ();

    fn handle(&mut self, SendSnapshotTo { to }: SendSnapshotTo, ctx: &mut Self::Context) {
        let ended = self.peers.ended.clone();
        let reader = self.peers.views.borrow().stored.clone();
        let open = self.peers.open.clone();
        let (busy, pacing) = (self.sending >= SENDING_MAX, self.pacing);
        self.sending += 1;
        let work = async move {
            let outcome = match open {
                _ if busy => Err(TransferError::Busy(SENDING_MAX)),
                None => Err(TransferError::NoPeers),
                Some(open) => send::send(to, reader, open, pacing).await,
            };
            // A Raft node that is gone needs no answer.
            ended
                .send(TransferEnded { to, outcome })
                .await
                .unwrap_or_default();
        };
        ctx.spawn(work.into_actor(self).map(|(), snapshots, _| {
            snapshots.sending -= 1;
        }));
    }
}

impl Handler<ReceiveSnapshot> for Snapshots {
    type Result = ();

    fn handle(&mut self, receive: ReceiveSnapshot, ctx: &mut Self::Context) {
        let incoming = receive.incoming;
        if let Some(from) = self.receiving {
            let busy = format!("a snapshot of member {} is being received", from.hex());
            incoming.answer(Err(busy));
            return;
        }
        self.receiving = Some(incoming.from);
        let (site, peers) = (self.site.clone(), self.peers.clone());
        let work = receive::receive(incoming, site, peers);
        ctx.spawn(work.into_actor(self).map(|(), snapshots, _| {
            snapshots.receiving = None;
        }));
    }
}
