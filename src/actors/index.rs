//! Index: owns the in-memory B-tree from key to metadata and history, and publishes immutable snapshots of it.
//!
//! The applier sends it changes, in order, and the compactor compactions. It never reads a record, and no other actor changes the
//! tree: readers and the applier hold snapshots.

use super::fail_stop::Lifeline;
use crate::{
    failpoint::{FailPoint, hit},
    kv::{
        index::{Index as Tree, Snapshot},
        keys::KeyChange,
    },
    types::{RecordKind, Revision},
};
use actix::prelude::*;

/// Messages that may wait: the applier's batches, which the Raft node bounds, and one prune step.
const MAILBOX_MAX: usize = 256;

#[derive(Debug)]
pub struct Index {
    tree: Tree,
    applier: Recipient<IndexPublished>,
    life: Lifeline,
}

impl Index {
    /// An index that goes on with `tree` and publishes to `applier`.
    pub fn new(tree: Tree, applier: Recipient<IndexPublished>, life: Lifeline) -> Self {
        Self {
            tree,
            applier,
            life,
        }
    }
}

/// Takes the changes of one applied batch. Answered by [`IndexPublished`].
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct UpdateIndex {
    /// The changes, ascending by revision.
    pub changes: Vec<KeyChange>,
    /// The store's revision after them.
    pub through: Revision,
}

/// Every change up to a revision is in this snapshot.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct IndexPublished {
    pub snapshot: Snapshot,
    /// The newest revision in it.
    pub through: Revision,
}

/// Drops history before a compaction at `at`, a bounded amount of it.
#[derive(Debug, Message)]
#[rtype(result = "PruneProgress")]
pub struct PruneIndex {
    pub at: Revision,
    /// Keys to visit at most.
    pub keys_max: usize,
}

/// The outcome of a prune.
#[derive(Debug, MessageResponse)]
pub enum PruneProgress {
    /// There is more to drop.
    More,
    /// All is dropped; the snapshot says which records a compaction must keep.
    Done(Snapshot),
}

/// Takes another tree in place of the present one: a snapshot replaced the state. No changes of the old state follow.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReplaceTree {
    pub tree: Tree,
}

impl Actor for Index {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
    }
}

impl Handler<UpdateIndex> for Index {
    type Result = ();

    fn handle(&mut self, update: UpdateIndex, _: &mut Self::Context) {
        for change in &update.changes {
            match change.kind {
                RecordKind::Put => {
                    self.tree.put(&change.key, change.rev, change.lease);
                }
                RecordKind::Tombstone => {
                    let before = self.tree.delete(&change.key, change.rev);
                    assert!(before.is_some(), "the applier deletes only live keys");
                }
            }
        }
        let published = IndexPublished {
            snapshot: self.tree.snapshot(),
            through: update.through,
        };
        self.life.deliver(&self.applier, published);
    }
}

impl Handler<PruneIndex> for Index {
    type Result = PruneProgress;

    fn handle(&mut self, prune: PruneIndex, _: &mut Self::Context) -> Self::Result {
        hit(FailPoint::BeforeIndexPrune);
        if self.tree.prune_step(prune.at, prune.keys_max) {
            PruneProgress::Done(self.tree.snapshot())
        } else {
            PruneProgress::More
        }
    }
}

impl Handler<ReplaceTree> for Index {
    type Result = ();

    fn handle(&mut self, replace: ReplaceTree, _: &mut Self::Context) {
        self.tree = replace.tree;
    }
}
