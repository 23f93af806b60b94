//! The calls of `etcdserverpb.KV`: they take generated requests and return encoded responses, whatever the transport.
//!
//! Checks that need only the request are made here, before it is proposed or read. That includes its size: the length of the
//! generated message is known here, and etcd limits that of the log entry made of it.

use super::{
    Api,
    answer_budget::{Budget, SMALL_ANSWER_BYTES},
    convert,
    frames::Encoded,
    lines,
    long_range::{self, FIRST_BYTES, ReadUpTo},
    message_reader::decode,
    message_room::{MessageRoom, SMALL_BYTES},
    proto::etcdserverpb as pb,
    reply::{self, Header},
    response_body::ResponseBody,
    status::Status,
    txn_message,
};
use crate::{
    actors::{
        answered::{Answered, Unread},
        replies::Reply,
        requests::{Published, Quick, RequestError},
    },
    audit::Subject,
    auth::Caller,
    kv::{
        KvError,
        answer_reads::ANSWER_BYTES_MAX,
        authorize, check,
        command::{Command, Outcome, RangeDone, RangeQuery, Txn},
        record::varint_len,
    },
    types::Revision,
};
use bytes::Bytes;
use prost::Message;
use std::{iter, sync::Arc};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// etcd: what a log entry contains besides the client's message, its tag and its length, in bytes.
const ENVELOPE_BYTES: usize = 14;

/// Room for a chunk of a streamed range, before its length is known.
const CHUNK_BYTES: usize = 1024 * 1024;

/// How much more room a read gets that needs more than it had.
const ROOM_FACTOR: usize = 4;

/// The calls that make up nearly all traffic. Each is begun and answered in steps that never block, so that a connection can have
/// many in flight without a task for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hot {
    Range,
    Put,
    DeleteRange,
    Txn,
}

/// What a hot call needs next.
#[derive(Debug)]
pub enum Begun {
    /// The outcome of its command, which the reply receives; [`Api::answer`] encodes it.
    Proposed,
    /// A view from [`Api::view_for`]; then [`Api::read_now`] or [`Api::read`].
    Reads(Read),
    /// [`Api::propose`], which handles a database at its quota.
    AtQuota(Command),
}

/// What a call reads.
#[derive(Debug)]
pub enum Read {
    Range(RangeQuery),
    /// A transaction that only reads.
    Txn(Txn),
    /// A read on behalf of a caller.
    As(Caller, Box<Self>),
}

impl Read {
    /// Whether this member's newest view suffices, without a read index.
    pub fn is_serializable(&self) -> bool {
        match self {
            Self::Range(query) => query.serializable,
            Self::Txn(txn) => txn.is_serializable(),
            Self::As(_, read) => read.is_serializable(),
        }
    }
}

impl Read {
    /// About how many bytes its request has.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Range(query) => query.bytes(),
            Self::As(_, read) => read.bytes(),
            Self::Txn(txn) => txn.read_bytes(),
        }
    }
}

impl Hot {
    /// The hot call with this path.
    pub fn of(path: &str) -> Option<Self> {
        match path.strip_prefix("/etcdserverpb.KV/")? {
            "Range" => Some(Self::Range),
            "Put" => Some(Self::Put),
            "DeleteRange" => Some(Self::DeleteRange),
            "Txn" => Some(Self::Txn),
            _ => None,
        }
    }

    pub fn path(self) -> &'static str {
        match self {
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Put => "/etcdserverpb.KV/Put",
            Self::DeleteRange => "/etcdserverpb.KV/DeleteRange",
            Self::Txn => "/etcdserverpb.KV/Txn",
        }
    }
}

impl Api {
    /// Begins a hot call. If it proposes a command, `reply` receives the outcome.
    pub fn begin(
        &self,
        hot: Hot,
        message: Bytes,
        reply: impl FnOnce() -> Reply,
    ) -> Result<Begun, Status> {
        let command = match hot {
            Hot::Range => {
                let query = convert::range(decode(message)?);
                self.about(|| Subject::of_range(&query.key, &query.range_end));
                check::range(&query)?;
                return Ok(Begun::Reads(self.with_caller(Read::Range(query))));
            }
            Hot::Put => {
                let request: pb::PutRequest = decode(message)?;
                let len = request.encoded_len();
                let put = convert::put(request);
                self.about(|| lines::of_leased_key(&put.key, put.lease.0));
                self.admit(len, || check::put(&put))?;
                check::put(&put)?;
                Command::Put(put)
            }
            Hot::DeleteRange => {
                let request: pb::DeleteRangeRequest = decode(message)?;
                let len = request.encoded_len();
                let delete = convert::delete_range(request);
                self.about(|| Subject::of_range(&delete.key, &delete.range_end));
                self.admit(len, || check::delete_range(&delete))?;
                check::delete_range(&delete)?;
                Command::DeleteRange(delete)
            }
            Hot::Txn => {
                let ops_max = self.requests.limits().txn_ops_max;
                let request = txn_message::decode(message, ops_max)?;
                let len = request.encoded_len();
                let txn = convert::txn(request);
                self.about(|| lines::of_txn(&txn));
                if txn.is_read_only() {
                    self.only_reads();
                    // It does not enter the log, so only the transport limits its size.
                    check::txn(&txn, ops_max)?;
                    return Ok(Begun::Reads(self.with_caller(Read::Txn(txn))));
                }
                self.admit(len, || check::txn(&txn, ops_max))?;
                check::txn(&txn, ops_max)?;
                Command::Txn(txn)
            }
        };
        if command.takes_space() && self.requests.is_at_quota() {
            let signed = self.requests.sign(&command)?.into_owned();
            return Ok(Begun::AtQuota(signed));
        }
        self.requests.propose_to(&command, reply)?;
        Ok(Begun::Proposed)
    }

    /// Performs a hot call. A read that waits keeps its message, which takes room.
    pub(super) async fn call(
        &self,
        hot: Hot,
        message: Bytes,
        budget: &Arc<Budget>,
        room: Option<Arc<MessageRoom>>,
    ) -> Result<ResponseBody, Status> {
        let (reply, outcome) = oneshot::channel();
        match self.begin(hot, message, || reply.into())? {
            Begun::Proposed => {
                let answer = outcome.await.unwrap_or(Err(RequestError::Stopped));
                self.complete(answer?, budget).await
            }
            Begun::AtQuota(command) => self.propose(&command, budget).await,
            Begun::Reads(read) => {
                let bytes = read.bytes();
                let _waiting = budget.waiting_request(bytes);
                let _held = match room {
                    Some(room) if bytes > SMALL_BYTES => {
                        Some(room.hold(bytes).ok_or(RequestError::TooManyRequests)?)
                    }
                    _ => None,
                };
                let published = self.view_for(read.is_serializable()).await?;
                match self.read_now(&published, &read)? {
                    Quick::Done(encoded) => Ok(ResponseBody::Message(encoded)),
                    Quick::NotInMemory => self.short_read(read, budget).await,
                    Quick::Long => self.read(read, budget).await,
                }
            }
        }
    }

    /// Proposes a command and waits for its outcome.
    pub async fn propose(
        &self,
        command: &Command,
        budget: &Arc<Budget>,
    ) -> Result<ResponseBody, Status> {
        let answered = self.requests.propose_unread(command).await?;
        self.complete(answered, budget).await
    }

    async fn complete(
        &self,
        answered: Answered,
        budget: &Arc<Budget>,
    ) -> Result<ResponseBody, Status> {
        match answered {
            Answered::Complete(outcome) => self.answer(&outcome).map(ResponseBody::Message),
            Answered::Unread(unread) => self.read_unread(unread, budget).await,
        }
    }

    /// The response for an outcome.
    pub fn answer(&self, outcome: &Outcome) -> Result<Encoded, Status> {
        encode(outcome, |revision| self.header(revision))
    }

    /// The response for a long outcome, once there is room for it.
    pub async fn read_unread(
        &self,
        unread: Box<Unread>,
        budget: &Arc<Budget>,
    ) -> Result<ResponseBody, Status> {
        let measure = move || Ok(Ok(unread.measure().map(|bytes| (bytes, unread))));
        let time_max = self.requests.limits().timeout;
        let late = |_| RequestError::TimedOut;
        let measuring = timeout(time_max, self.requests.read_in_background(measure));
        let (bytes, unread) = measuring.await.map_err(late)???;
        let held = budget.hold(bytes).await?;
        let header = self.headers();
        let read = move || Ok(Ok(unread.read().map(|outcome| encode(&outcome, header))));
        let reading = timeout(time_max, self.requests.read_in_background(read));
        let encoded = reading.await.map_err(late)????;
        Ok(ResponseBody::Message(encoded.charged(held.into())))
    }

    /// The view for a read; see [`Requests::view_for`](crate::actors::requests::Requests::view_for).
    pub async fn view_for(&self, serializable: bool) -> Result<Arc<Published>, Status> {
        Ok(self.requests.view_for(serializable).await?)
    }

    /// This member's newest view: enough for a serializable read.
    pub fn newest_view(&self) -> Result<Arc<Published>, Status> {
        Ok(self.requests.newest_view()?)
    }

    /// Attaches the caller, if there is one, to a read.
    fn with_caller(&self, read: Read) -> Read {
        match self.requests.caller() {
            Caller::Nobody => read,
            caller @ (Caller::Node | Caller::BadToken | Caller::User(_) | Caller::Jwt(_)) => {
                Read::As(caller.clone(), Box::new(read))
            }
        }
    }

    /// The answer to a read, unless computing it would hold up other calls.
    pub fn read_now(&self, published: &Published, read: &Read) -> Result<Quick<Encoded>, Status> {
        match permitted(published, read)? {
            Read::Range(query) => published
                .try_range(query)?
                .try_map(|done| reply::range(&self.header(done.revision), &done)),
            Read::Txn(txn) => published
                .try_read_txn(txn)?
                .try_map(|done| reply::txn(&self.header(done.revision), &done)),
            Read::As(..) => {
                unreachable!("`permitted` and `bare` return the read without its caller")
            }
        }
    }

    /// The answer to a short read of records that are not in memory, from this member's newest view. It is read and encoded on
    /// another thread.
    pub async fn short_read(
        &self,
        read: Read,
        budget: &Arc<Budget>,
    ) -> Result<ResponseBody, Status> {
        let read = Arc::new(read);
        let (requests, header, same) = (self.requests.clone(), self.headers(), read.clone());
        let encode = move || -> Result<Option<Encoded>, Status> {
            let published = requests.newest_view()?;
            match permitted(&published, &same)? {
                Read::Range(query) => {
                    let done = published.short_range(query)?;
                    done.map(|done| reply::range(&header(done.revision), &done))
                }
                Read::Txn(txn) => {
                    let done = published.short_read_txn(txn)?;
                    done.map(|done| reply::txn(&header(done.revision), &done))
                }
                Read::As(..) => {
                    unreachable!("`permitted` and `bare` return the read without its caller")
                }
            }
            .transpose()
        };
        let bytes = read.bytes();
        match self.requests.short_read(bytes, encode).await?? {
            Some(encoded) if encoded.len() <= SMALL_ANSWER_BYTES => {
                Ok(ResponseBody::Message(encoded.counted(budget)))
            }
            Some(encoded) => {
                let held = budget.hold(encoded.len()).await?;
                Ok(ResponseBody::Message(encoded.charged(held.into())))
            }
            None => self.read(read, budget).await,
        }
    }

    /// The answer to a read that is not quick, from this member's newest view. It is read and encoded on another thread, once
    /// there is room for it; the answer to a long range is sent while it is read. Any view that is not older than the call is
    /// correct, so the call keeps no view while it waits. A longer transaction, and a range whose keys must be sorted and are too
    /// many, is read again with more room.
    pub async fn read(
        &self,
        read: impl Into<Arc<Read>>,
        budget: &Arc<Budget>,
    ) -> Result<ResponseBody, Status> {
        let read = read.into();
        for bytes_max in rooms() {
            let held = budget.hold(bytes_max).await?;
            let (read, published) = (read.clone(), self.newest_view()?);
            // This view may be newer than the one in which the call was authorized.
            permitted(&published, &read)?;
            let header = self.headers();
            let reading = self.requests.read_in_background(move || match bare(&read) {
                Read::Range(query) => long_range::read(published, query, header, bytes_max),
                Read::Txn(txn) => {
                    let view = &published.view;
                    let done = view.read_txn_within(view, txn, bytes_max)?;
                    Ok(done.map(|done| match done {
                        Some(done) => ReadUpTo::Whole(reply::txn(&header(done.revision), &done)),
                        None => ReadUpTo::TooLong,
                    }))
                }
                Read::As(..) => {
                    unreachable!("`permitted` and `bare` return the read without its caller")
                }
            });
            match reading.await? {
                ReadUpTo::Whole(encoded) => {
                    let encoded = encoded?;
                    let held = held.shrunk_to(encoded.len());
                    return Ok(ResponseBody::Message(encoded.charged(held.into())));
                }
                ReadUpTo::Long(long) => {
                    let held = held.shrunk_to(long.held_bytes());
                    let sending = long.send(self.requests.clone(), held.into());
                    return Ok(ResponseBody::Stream(sending));
                }
                ReadUpTo::TooLong => {}
            }
        }
        let bytes_max = ANSWER_BYTES_MAX;
        Err(RequestError::AnswerTooLarge { bytes_max }.into())
    }

    /// A function that makes response headers, and that another thread can run.
    fn headers(&self) -> impl Fn(Revision) -> Header + Send + use<> {
        let without_revision = self.header(Revision(0));
        move |revision| Header {
            revision,
            ..without_revision
        }
    }

    pub async fn compact(&self, request: pb::CompactionRequest) -> Result<Encoded, Status> {
        self.about(|| lines::of_other("compact_revision", request.revision.to_string()));
        let revision = self
            .requests
            .compact(Revision(request.revision), request.physical)
            .await?;
        reply::header_only(&self.header(revision))
    }

    /// `KV.RangeStream`: sends each chunk as soon as it is read. Ends early if the client has gone.
    pub async fn range_stream(
        &self,
        request: pb::RangeRequest,
        out: &mpsc::Sender<Result<Encoded, Status>>,
        budget: &Arc<Budget>,
    ) -> Result<(), Status> {
        let query = convert::range(request);
        self.about(|| Subject::of_range(&query.key, &query.range_end));
        check::range(&query)?;
        let mut chunks = self.requests.range_stream(query)?;
        let mut expected = CHUNK_BYTES;
        loop {
            let held = budget.hold(expected).await?;
            let Some(chunk) = chunks.next().await else {
                break;
            };
            let chunk = chunk?;
            let message = match chunk.end {
                None => reply::stream_chunk(&chunk.kvs)?,
                Some(end) => {
                    let (more, count) = (end.more, end.count);
                    let last = RangeDone {
                        revision: end.revision,
                        kvs: chunk.kvs,
                        more,
                        count,
                    };
                    reply::stream_end(&self.header(end.revision), &last)?
                }
            };
            // The next chunk is about as long.
            expected = message.len().max(CHUNK_BYTES);
            let held = held.shrunk_to(message.len());
            if out.send(Ok(message.charged(held.into()))).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Refuses a request whose log entry would be too large.
    ///
    /// etcd: a request that is invalid as well gets the error of `check`, which runs only for requests that are too large: the
    /// caller checks all others.
    fn admit(&self, len: usize, check: impl FnOnce() -> Result<(), KvError>) -> Result<(), Status> {
        let max = self.requests.limits().request_bytes_max;
        let bytes = replicated_len(len);
        if bytes <= max {
            return Ok(());
        }
        check()?;
        Err(RequestError::TooLarge { bytes, max }.into())
    }
}

/// The room for a read whose length is not known, try by try. No read takes much more than it needs, and so keeps others waiting:
/// all tries before the last one that is needed cost a third of it.
fn rooms() -> impl Iterator<Item = usize> {
    iter::successors(Some(FIRST_BYTES), |bytes| {
        (*bytes < ANSWER_BYTES_MAX).then(|| (bytes * ROOM_FACTOR).min(ANSWER_BYTES_MAX))
    })
}

fn bare(read: &Read) -> &Read {
    match read {
        Read::As(_, read) => bare(read),
        Read::Range(_) | Read::Txn(_) => read,
    }
}

/// The read without its caller, if that caller has the rights for it in the state that is read.
fn permitted<'a>(published: &Published, read: &'a Read) -> Result<&'a Read, Status> {
    let auth = &published.auth;
    if !auth.is_enabled() {
        return Ok(bare(read));
    }
    let caller = match read {
        Read::As(caller, _) => caller,
        Read::Range(_) | Read::Txn(_) => &Caller::Nobody,
    };
    let read = bare(read);
    match read {
        Read::Range(query) => auth.rights(caller)?.read(&query.key, &query.range_end)?,
        Read::Txn(txn) => authorize::allow_reads(auth, caller, txn)?,
        Read::As(..) => unreachable!("`permitted` and `bare` return the read without its caller"),
    }
    Ok(read)
}

/// The response for an outcome of a hot call.
fn encode(outcome: &Outcome, header: impl Fn(Revision) -> Header) -> Result<Encoded, Status> {
    match outcome {
        Outcome::Put(done) => reply::put(&header(done.revision), done),
        Outcome::DeleteRange(done) => reply::delete_range(&header(done.revision), done),
        Outcome::Txn(done) => reply::txn(&header(done.revision), done),
        other => unreachable!("no hot call proposes a command with the outcome {other:?}"),
    }
}

/// The size that etcd limits: that of the log entry made of a request of `len` bytes.
fn replicated_len(len: usize) -> usize {
    len + 1 + varint_len(len as u64) + ENVELOPE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_takes_little_more_room_than_it_needs() {
        let rooms: Vec<usize> = rooms().collect();
        assert_eq!(rooms.first(), Some(&FIRST_BYTES));
        assert_eq!(rooms.last(), Some(&ANSWER_BYTES_MAX), "and then it fails");
        assert!(rooms.iter().is_sorted_by(|less, more| less < more));
        for needed in [FIRST_BYTES + 1, 5_000_000, 70_000_000, ANSWER_BYTES_MAX] {
            let room = rooms.iter().find(|room| **room >= needed).unwrap();
            assert!(*room < 4 * needed, "{room} bytes for {needed}");
        }
    }

    #[test]
    fn a_hot_call_has_the_path_by_which_it_is_known() {
        for hot in [Hot::Range, Hot::Put, Hot::DeleteRange, Hot::Txn] {
            assert_eq!(Hot::of(hot.path()), Some(hot));
        }
    }

    #[test]
    fn a_put_may_be_as_large_as_etcds() {
        let put = |len: usize| pb::PutRequest {
            key: "key".into(),
            value: vec![0; len].into(),
            ..Default::default()
        };
        let replicated = |len: usize| replicated_len(put(len).encoded_len());
        assert!(replicated(1_572_834) <= 1_572_864, "etcd takes this one");
        assert!(replicated(1_572_839) > 1_572_864, "and refuses this one");
    }
}
