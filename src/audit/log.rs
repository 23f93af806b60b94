//! The log as front ends see it, and the line of a call that is under way.

use super::{
    entry::{Call, Ended, Entry, Kind, Subject},
    queue::{AuditCounts, Queue},
    writer::{self, AuditError, OpenOutput},
};
use crate::clock;
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// What is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Logins, changes of users and roles, refusals.
    Auth,
    /// All other changes too.
    Writes,
    All,
}

impl Level {
    fn has(self, kind: Kind, refused: bool) -> bool {
        match (self, kind) {
            _ if refused => true,
            (Self::All, Kind::Read | Kind::Change | Kind::Auth)
            | (Self::Writes, Kind::Change | Kind::Auth)
            | (Self::Auth, Kind::Auth) => true,
            (Self::Writes, Kind::Read) | (Self::Auth, Kind::Read | Kind::Change) => false,
        }
    }
}

/// The audit log of a member, for its front ends. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Audit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    level: Level,
    next_id: AtomicU64,
    queue: Arc<Queue>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Audit {
    /// Starts the thread that writes.
    pub fn start(level: Level, to: OpenOutput, member: u64) -> Result<Self, AuditError> {
        let queue = Arc::new(Queue::default());
        writer::start(to, queue.clone(), format!("{member:x}"))?;
        Ok(Self(Arc::new(Shared {
            level,
            next_id: AtomicU64::new(1),
            queue,
        })))
    }

    /// A log whose lines stay in the queue, for tests.
    #[cfg(test)]
    pub fn unwritten(level: Level) -> Self {
        Self(Arc::new(Shared {
            level,
            next_id: AtomicU64::new(1),
            queue: Arc::default(),
        }))
    }

    /// The texts of the lines in the queue, which it takes.
    #[cfg(test)]
    pub fn take_texts(&self) -> Vec<String> {
        let taken = self.0.queue.take();
        taken
            .lines
            .iter()
            .map(|line| super::text::of(line, "1"))
            .collect()
    }

    /// Begins the line of a call.
    pub fn line(&self, call: Call) -> Line {
        Line {
            audit: self.clone(),
            id: self.0.next_id.fetch_add(1, Ordering::Relaxed),
            began: clock::now(),
            call,
            subject: OnceLock::new(),
            is_read: AtomicBool::new(false),
            revision: AtomicI64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Lines that were dropped, and written.
    pub fn counts(&self) -> &AuditCounts {
        self.0.queue.counts()
    }

    /// Makes the writing thread reopen the file if it was moved or deleted.
    pub fn look_at_file(&self) {
        self.0.queue.look();
    }

    /// Returns once what was logged before is written, or `time_max` has passed. Blocks.
    pub fn flush(&self, time_max: Duration) {
        self.0.queue.flush(time_max);
    }
}

/// The line of a call that is under way.
#[derive(Debug)]
pub struct Line {
    audit: Audit,
    id: u64,
    began: Instant,
    call: Call,
    subject: OnceLock<Subject>,
    /// Whether a call that may change something only reads.
    is_read: AtomicBool,
    revision: AtomicI64,
    closed: AtomicBool,
}

impl Line {
    /// Sets what the call is about. Only the first call has an effect.
    pub fn about(&self, subject: impl FnOnce() -> Subject) {
        self.subject.get_or_init(subject);
    }

    /// Marks the call as a read.
    pub fn reads(&self) {
        self.is_read.store(true, Ordering::Relaxed);
    }

    /// Says which revision the answer has.
    pub fn at(&self, revision: i64) {
        self.revision.store(revision, Ordering::Relaxed);
    }

    /// Closes the line; what comes later is ignored.
    pub fn close(&self, ended: &Ended) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let kind = match self.call.kind {
            Kind::Change if self.is_read.load(Ordering::Relaxed) => Kind::Read,
            kind => kind,
        };
        self.log(kind, self.subject.get().cloned().unwrap_or_default(), ended);
    }

    /// Logs a part of the call that has a line of its own: one watch of a stream.
    pub fn part(&self, subject: Subject, ended: &Ended) {
        self.log(Kind::Read, subject, ended);
    }

    fn log(&self, kind: Kind, subject: Subject, ended: &Ended) {
        let shared = &self.audit.0;
        if !shared.level.has(kind, ended.refused.is_some()) {
            return;
        }
        shared.queue.push(Entry {
            at: clock::unix_time(),
            id: self.id,
            duration: self.began.elapsed(),
            call: self.call.clone(),
            subject,
            ended: ended.clone(),
            revision: self.revision.load(Ordering::Relaxed),
        });
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.close(&Ended::CANCELED);
    }
}
