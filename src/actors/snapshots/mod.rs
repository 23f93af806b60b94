//! Snapshots: sends this member's database to members that need entries which the log has released, and receives databases.
//!
//! It owns the transfers in flight and the file beside the database that a snapshot is received into. It blocks on that file and
//! on reading the database, so it has an arbiter to itself. It decides neither which member needs a snapshot (the Raft node does)
//! nor when one is installed: it verifies a received file, loads the state from it, hands both to the Raft node and waits for the
//! outcome. `docs/snapshots.md` describes every step and what a crash after it leaves.

mod receive;
mod send;

pub use send::SnapshotPacing;

use super::{
    fail_stop::Lifeline,
    latest,
    peer_hub::{OpenSnapshot, ReceiveSnapshot},
    published::Published,
    snapshot_messages::{InstallSnapshot, SendSnapshotTo, TransferEnded, TransferError},
};
use crate::{storage::db::DbSite, types::MemberId};
use actix::prelude::*;
use std::sync::Arc;

/// Messages that may wait.
const MAILBOX_MAX: usize = 64;

/// Snapshots that are sent at once. For further members the Raft node asks again later.
const SENDING_MAX: usize = 2;

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

/// The actors that it sends to, and what it reads.
#[derive(Clone, Debug)]
pub struct SnapshotPeers {
    /// Opens a stream to a member; `None` in a member without peers.
    pub open: Option<Recipient<OpenSnapshot>>,
    /// Receives how a transfer ended.
    pub ended: Recipient<TransferEnded>,
    /// Installs a received snapshot.
    pub install: Recipient<InstallSnapshot>,
    /// The newest view, and with it a reader of the newest commit.
    pub views: latest::Receiver<Arc<Published>>,
}

impl Snapshots {
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
        let (site, views) = (self.site.clone(), self.peers.views.clone());
        let work = receive::receive(incoming, site, views, self.peers.install.clone());
        ctx.spawn(work.into_actor(self).map(|(), snapshots, _| {
            snapshots.receiving = None;
        }));
    }
}
