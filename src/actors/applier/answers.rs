//! Answers to callers whose entries are visible.
//!
//! Most answers are complete when their entry is applied. One that also has previous values or ranges needs records, which may
//! be on disk. A short one is completed here, on a thread that may block unless all is in memory, from the view that was
//! published with its entry. A longer one goes to its caller as it is, with that view: the caller reads the records when it has
//! room for them. So what this sends is short, whatever a command asks for.

use super::{
    super::{
        answered::{Answered, Unread},
        background::in_background,
        published::Published,
        replies::{Deadlines, Reply},
        request_error::RequestError,
    },
    noted::NotedBytes,
};
use crate::kv::{
    answer_reads::AnswerReads,
    command::Verdict,
    records::{ReadError, Records},
};
use std::sync::Arc;
use tokio::time::Instant;

/// An answer with more records than this is long.
const SHORT_READS_MAX: usize = 64;

/// An answer with longer records, in bytes together, is long.
const SHORT_BYTES_MAX: usize = 8 * 1024;

/// A short answer that reads no more records than this, all of them in memory, is completed at once.
const INLINE_READS_MAX: usize = 4;

/// The outcome of an entry, for the caller that waits for it here.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    /// When the caller gets an error instead of the answer.
    pub(super) deadline: Instant,
    pub(super) verdict: Verdict,
    /// What the outcome lacks.
    pub(super) reads: AnswerReads,
    /// Counts what `reads` holds.
    pub(super) noted: Option<NotedBytes>,
}

#[derive(Debug, Default)]
pub(super) struct Answers {
    /// The callers of those that wait for records.
    deadlines: Deadlines,
}

impl Answers {
    /// Sends the answers of the batch that was published as `published`. Inside an arbiter.
    pub(super) fn send(&mut self, answers: Vec<Answer>, published: &Arc<Published>) {
        let mut short = Vec::new();
        for answer in answers {
            match Effort::of(&answer.reads, published) {
                Effort::None => answer.complete(published),
                Effort::Short => short.push(self.with_deadline(answer)),
                Effort::Long => answer.leave_unread(published),
            }
        }
        if !short.is_empty() {
            let published = published.clone();
            // The answers go to their callers from there.
            drop(in_background(move || {
                for answer in short {
                    match is_short(&answer.reads, &published) {
                        Ok(true) => answer.complete(&published),
                        Ok(false) => answer.leave_unread(&published),
                        Err(error) => answer.reply.send(Err(error.into())),
                    }
                }
            }));
        }
    }

    /// Tells the callers whose deadline is not after `now`, and whose answers still wait for records, that their time is up.
    pub(super) fn expire(&mut self, now: Instant) {
        self.deadlines.expire(now);
    }

    fn with_deadline(&mut self, answer: Answer) -> Answer {
        let reply = self.deadlines.add(answer.deadline, answer.reply);
        Answer { reply, ..answer }
    }
}

/// How much work is left for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    /// None, or a few records that are in memory.
    None,
    /// A few records that may be on disk.
    Short,
    /// Many records, or long ones.
    Long,
}

impl Effort {
    fn of(reads: &AnswerReads, published: &Published) -> Self {
        let count = reads.count_up_to(SHORT_READS_MAX + 1);
        if count == 0 {
            return Self::None;
        }
        if count > SHORT_READS_MAX {
            return Self::Long;
        }
        let (tail, mut bytes) = (&published.view.tail, 0);
        for rev in reads.revs() {
            match tail.get(rev) {
                Some(record) => bytes += record.kv.len(),
                None => return Self::Short,
            }
        }
        match bytes {
            0..=SHORT_BYTES_MAX if count <= INLINE_READS_MAX => Self::None,
            0..=SHORT_BYTES_MAX => Self::Short,
            _ => Self::Long,
        }
    }
}

/// Whether the records of an answer with few of them are short. May wait for the disk.
fn is_short(reads: &AnswerReads, published: &Published) -> Result<bool, ReadError> {
    let mut bytes = 0;
    for rev in reads.revs() {
        published.view.visit(rev, &mut |kv| bytes += kv.len())?;
    }
    Ok(bytes <= SHORT_BYTES_MAX)
}

impl Answer {
    fn complete(self, published: &Arc<Published>) {
        if self.reply.is_expired() {
            return;
        }
        let (reads, noted, published) = (self.reads, self.noted, published.clone());
        let complete = |outcome| {
            let outcome = Unread::new(outcome, reads, published, noted).read()?;
            Ok(Answered::Complete(outcome))
        };
        let answer = self.verdict.map_err(RequestError::Kv).and_then(complete);
        self.reply.send(answer);
    }

    fn leave_unread(self, published: &Arc<Published>) {
        let (reads, noted, published) = (self.reads, self.noted, published.clone());
        let unread = |outcome| {
            let unread = Unread::new(outcome, reads, published, noted);
            Answered::Unread(Box::new(unread))
        };
        self.reply
            .send(self.verdict.map(unread).map_err(RequestError::Kv));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{at, database, rev},
        *,
    };
    use crate::{
        actors::members::Members,
        clock,
        kv::{
            KvError,
            command::{Command, DeleteRange, Outcome},
            index::Index,
            machine::{LoadedState, Machine},
            range::RevisionWindow,
            tail::Tail,
            view::View,
        },
        storage::db::Db,
        types::{LeaseId, LogIndex, Record, RecordKind, Revision},
    };
    use std::{sync::mpsc, time::Duration};
    use tokio::sync::oneshot;

    type Waits = oneshot::Receiver<Result<Answered, RequestError>>;

    #[derive(Clone, Copy, Debug)]
    enum Place {
        Memory,
        Database,
    }

    /// The deletion of so many keys, whose answer has what was deleted: the records at the revisions from 2 on.
    fn deletion(keys: usize) -> (Answer, Waits) {
        let (mut index, mut loaded) = (Index::new(), LoadedState::default());
        for (n, major) in (0..keys).zip(2..) {
            index.put(format!("k{n:03}").as_bytes(), rev(major), LeaseId(0));
            loaded.revision = Revision(major);
        }
        let delete = Command::DeleteRange(DeleteRange {
            key: "k".into(),
            range_end: "l".into(),
            prev_kv: true,
        });
        let (_db, none) = database(&[]);
        let mut reads = AnswerReads::default();
        let verdict = Machine::new(loaded, index.snapshot())
            .apply(&delete, at(2), &none.reader, Some(&mut reads))
            .expect("nothing is read while an entry is applied");
        assert_eq!(reads.revs().count(), keys);
        let (reply, waits) = oneshot::channel();
        let answer = Answer {
            reply: reply.into(),
            deadline: clock::now() + Duration::from_mins(1),
            verdict,
            reads,
            noted: None,
        };
        (answer, waits)
    }

    /// What is published with it: records of these lengths, from revision 2 on, and the database that may have to read them.
    fn published(lens: &[usize], place: Place) -> (Db, Arc<Published>) {
        let records: Vec<Record> = (2..)
            .zip(lens)
            .map(|(major, len)| Record {
                rev: rev(major),
                kind: RecordKind::Put,
                kv: vec![0_u8; *len].into(),
            })
            .collect();
        let mut tail = Tail::default();
        let (db, database) = match place {
            Place::Memory => {
                tail.push(records.into());
                database(&[])
            }
            Place::Database => database(&records),
        };
        let published = Published {
            view: View {
                window: RevisionWindow {
                    newest: Revision::FIRST,
                    compacted: Revision::NEVER_COMPACTED,
                },
                keys: Index::new().snapshot(),
                tail,
                stored: Arc::new(database.reader.clone()),
            },
            applied: at(2),
            alarms: Arc::default(),
            members: Arc::new(Members::default()),
            auth: Arc::default(),
            hash: None,
            stored: database.reader,
            stored_through: Revision::FIRST,
            stored_applied: LogIndex(1),
            file_bytes: 0,
            used_bytes: 0,
            unstored_bytes: 0,
        };
        (db, Arc::new(published))
    }

    fn short(count: usize) -> Vec<usize> {
        vec![10; count]
    }

    #[track_caller]
    fn deleted(outcome: Outcome) -> usize {
        let Outcome::DeleteRange(done) = outcome else {
            panic!("it is the outcome of a deletion")
        };
        done.prevs.len()
    }

    #[track_caller]
    fn is_complete(answer: Result<Answered, RequestError>, records: usize) {
        match answer.expect("it can be read") {
            Answered::Complete(outcome) => assert_eq!(deleted(outcome), records),
            Answered::Unread(unread) => panic!("it is short: {unread:?}"),
        }
    }

    #[track_caller]
    fn is_unread(answer: Result<Answered, RequestError>, records: usize) {
        match answer.expect("it can be read") {
            Answered::Complete(outcome) => panic!("it is long: {outcome:?}"),
            Answered::Unread(unread) => {
                let read = unread.read().expect("it can be read");
                assert_eq!(
                    deleted(read),
                    records,
                    "its caller reads it when it has room"
                );
            }
        }
    }

    #[test]
    fn the_place_the_number_and_the_length_of_the_records_decide() {
        let (few, some) = (short(INLINE_READS_MAX), short(INLINE_READS_MAX + 1));
        let (most, many) = (short(SHORT_READS_MAX), short(SHORT_READS_MAX + 1));
        let (full, long) = ([SHORT_BYTES_MAX], [SHORT_BYTES_MAX, 1]);
        let cases: [(&[usize], Place, Effort); 11] = [
            (&[], Place::Database, Effort::None),
            (&few, Place::Memory, Effort::None),
            (&few, Place::Database, Effort::Short),
            (&some, Place::Memory, Effort::Short),
            (&most, Place::Memory, Effort::Short),
            (&most, Place::Database, Effort::Short),
            (&many, Place::Memory, Effort::Long),
            (&many, Place::Database, Effort::Long),
            (&full, Place::Memory, Effort::None),
            (&long, Place::Memory, Effort::Long),
            // Nobody knows its length before it is read.
            (&long, Place::Database, Effort::Short),
        ];
        for (lens, place, effort) in cases {
            let (_db, published) = published(lens, place);
            let (answer, _waits) = deletion(lens.len());
            let found = Effort::of(&answer.reads, &published);
            assert_eq!(found, effort, "{} records in {place:?}", lens.len());
        }
    }

    /// Without a runtime: no other thread is asked.
    #[test]
    fn who_needs_no_disk_and_who_reads_alone_does_not_wait() {
        let mut answers = Answers::default();
        for count in [0, INLINE_READS_MAX] {
            let (_db, published) = published(&short(count), Place::Memory);
            let (answer, mut waits) = deletion(count);
            answers.send(vec![answer], &published);
            is_complete(waits.try_recv().expect("an answer"), count);
        }
        let many = SHORT_READS_MAX + 1;
        let (_db, published) = published(&short(many), Place::Database);
        let ((answer, mut waits), (other, mut refused)) = (deletion(many), deletion(0));
        let verdict = Err(KvError::NoSpace);
        answers.send(vec![answer, Answer { verdict, ..other }], &published);
        is_unread(waits.try_recv().expect("an answer"), many);
        let refused = refused.try_recv().expect("an answer");
        assert!(matches!(refused, Err(RequestError::Kv(KvError::NoSpace))));
    }

    #[actix::test]
    async fn who_needs_the_disk_gets_the_answer_or_the_error_of_another_thread() {
        let mut answers = Answers::default();
        for (lens, is_short) in [([10, 20], true), ([10, SHORT_BYTES_MAX], false)] {
            let (_db, published) = published(&lens, Place::Database);
            let (answer, waits) = deletion(lens.len());
            answers.send(vec![answer], &published);
            let answer = waits.await.expect("an answer");
            if is_short {
                is_complete(answer, lens.len());
            } else {
                is_unread(answer, lens.len());
            }
        }
        let (_db, published) = published(&[10], Place::Database);
        let (answer, waits) = deletion(2);
        answers.send(vec![answer], &published);
        let answer = waits.await.expect("an answer");
        assert!(
            matches!(answer, Err(RequestError::Unreadable(_))),
            "nothing holds the second record: {answer:?}"
        );
    }

    #[test]
    fn who_waits_for_the_disk_until_the_deadline_gets_an_error_and_the_others_their_answers() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).build().expect("a runtime");
        runtime.block_on(async {
            let (end, ends) = mpsc::channel::<()>();
            let busy = in_background(move || ends.recv());
            let (_db, published) = published(&short(2), Place::Database);
            let ((early, mut gone), (late, mut waits)) = (deletion(2), deletion(2));
            let before = clock::now();
            let deadline = before + Duration::from_secs(1);
            let mut answers = Answers::default();
            let early = Answer { deadline, ..early };
            answers.send(vec![early, late], &published);
            answers.expire(before);
            assert!(gone.try_recv().is_err(), "its time is not up");
            answers.expire(deadline);
            let answer = gone.try_recv().expect("an answer");
            assert!(matches!(answer, Err(RequestError::TimedOut)), "{answer:?}");
            assert!(waits.try_recv().is_err(), "the other one has time left");
            end.send(()).expect("it waits");
            busy.await.expect("no panic").expect("the thread is free");
            is_complete(waits.await.expect("an answer"), 2);
        });
    }
}
