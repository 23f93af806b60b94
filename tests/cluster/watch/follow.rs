//! A client that follows a range through everything: it writes down what it is told, and goes on elsewhere when its stream ends.

use super::members::{Members, revision};
use bytes::Bytes;
use quorate::internals::api::proto::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_request::RequestUnion,
};
use quorate::internals::api::proto::mvccpb::Event;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// How long an answer to the first request of a stream is waited for.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// Silence for so long means that something is lost: generous, for a loaded machine and a debug build.
const SILENCE_MAX: Duration = Duration::from_mins(2);
const PAUSE: Duration = Duration::from_millis(50);

/// The value of the very last write, which every follower sees.
pub(crate) const END: &[u8] = b"the end";

/// How a follower goes about it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) range: (Bytes, Bytes),
    /// As in the API: zero means from now on.
    pub(crate) start: i64,
    pub(crate) prev_kv: bool,
    /// Breaks off by itself after so many responses of a stream, and goes on at the next member.
    pub(crate) reconnect_after: Option<usize>,
    /// Asks for progress after so many responses; zero for never.
    pub(crate) ask_every: usize,
    /// Goes on from where a bookmark stands, not from the last event, whenever it gets one.
    pub(crate) resume_at_bookmarks: bool,
    /// Reads nothing until it is told to.
    pub(crate) asleep: bool,
}

impl Plan {
    pub(crate) fn of(key: &'static str, end: &'static str) -> Self {
        Self {
            range: (Bytes::from(key), Bytes::from(end)),
            start: 2,
            prev_kv: false,
            reconnect_after: None,
            ask_every: 0,
            resume_at_bookmarks: false,
            asleep: false,
        }
    }
}

/// Something that happened to a follower.
#[derive(Clone, Debug)]
pub(crate) enum Note {
    /// A stream from `from` on, at the member named by position.
    Opened { from: i64, at: usize },
    /// One response with events; fragments are put together.
    Events { header: i64, events: Vec<Event> },
    /// Everything up to here was told.
    Progress(i64),
    /// What should come next is compacted: it goes on from here.
    Compacted(i64),
    /// The stream ended, not by its own doing.
    Broken,
}

/// What happened to a follower, in order.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) plan: Plan,
    /// What it watches from: its plan's start, or the revision after the one it began at.
    pub(crate) from: i64,
    pub(crate) notes: Vec<Note>,
}

impl Journal {
    pub(crate) fn opened(&self) -> impl Iterator<Item = (i64, usize)> {
        self.notes.iter().filter_map(|note| match note {
            Note::Opened { from, at } => Some((*from, *at)),
            _ => None,
        })
    }

    pub(crate) fn broken(&self) -> usize {
        let broken = |note: &&Note| matches!(note, Note::Broken);
        self.notes.iter().filter(broken).count()
    }

    pub(crate) fn bookmarks(&self) -> usize {
        let progress = |note: &&Note| matches!(note, Note::Progress(_));
        self.notes.iter().filter(progress).count()
    }
}

pub(crate) struct Stream {
    asking: mpsc::Sender<WatchRequest>,
    told: Streaming<WatchResponse>,
    pub(crate) created: WatchResponse,
}

impl Stream {
    /// Opens a stream with one watch, at the member that is asked first.
    pub(crate) async fn open(
        members: &Members,
        create: WatchCreateRequest,
    ) -> Result<Self, Status> {
        Self::open_with(members, create, |_| {}).await
    }

    /// The same, after a look at the call's metadata.
    pub(crate) async fn open_with(
        members: &Members,
        create: WatchCreateRequest,
        adorn: impl FnOnce(&mut tonic::metadata::MetadataMap),
    ) -> Result<Self, Status> {
        let (asking, requests) = mpsc::channel(16);
        let create = RequestUnion::CreateRequest(create);
        let sent = asking
            .send(WatchRequest {
                request_union: Some(create),
            })
            .await;
        sent.expect("the stream's own end is open");
        let opening = async {
            let mut request = tonic::Request::new(ReceiverStream::new(requests));
            adorn(request.metadata_mut());
            let mut told = members.watch().watch(request).await?.into_inner();
            let created = told.message().await?;
            let created = created.ok_or_else(|| Status::unavailable("closed at once"))?;
            Ok::<_, Status>((told, created))
        };
        let opened = timeout(OPEN_MAX, opening).await;
        let (told, created) = opened.map_err(|_| Status::unavailable("no answer"))??;
        assert!(created.created && !created.canceled, "{created:?}");
        Ok(Self {
            asking,
            told,
            created,
        })
    }

    /// Asks how far it has come. What comes of it, if the stream goes on, is told.
    pub(crate) async fn ask_progress(&self) {
        let ask = RequestUnion::ProgressRequest(WatchProgressRequest {});
        // Who does not take it has ended the stream, which is seen at its other end.
        drop(
            self.asking
                .send(WatchRequest {
                    request_union: Some(ask),
                })
                .await,
        );
    }

    /// The next response; what ends the stream is a status.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, Status> {
        let told = timeout(SILENCE_MAX, self.told.message()).await;
        let told = told.expect("a watch that is owed events is told of them");
        told?.ok_or_else(|| Status::ok("the stream ended without an error"))
    }
}

/// Follows a range from its plan's start until the last write; first at the member that is asked first.
pub(crate) async fn follow(
    mut members: Members,
    plan: Plan,
    mut awake: watch::Receiver<bool>,
) -> Journal {
    let mut follower = Follower {
        next: plan.start,
        notes: Vec::new(),
    };
    let mut from = None;
    loop {
        let create = WatchCreateRequest {
            key: plan.range.0.clone(),
            range_end: plan.range.1.clone(),
            start_revision: follower.next,
            prev_kv: plan.prev_kv,
            fragment: true,
            ..WatchCreateRequest::default()
        };
        let Ok(stream) = Stream::open(&members, create).await else {
            members.move_on();
            sleep(PAUSE).await;
            continue;
        };
        if follower.next == 0 {
            follower.next = revision(stream.created.header.as_ref()) + 1;
        }
        from.get_or_insert(follower.next);
        let (from, at) = (follower.next, members.first);
        follower.notes.push(Note::Opened { from, at });
        if plan.asleep {
            drop(awake.wait_for(|awake| *awake).await);
        }
        match follower.read(stream, &plan).await {
            Ended::All => break,
            Ended::Left => members.move_on(),
            Ended::Compacted => {}
            Ended::Broken(status) => {
                // A member that stops says the first; the others are what a client calls a connection that breaks.
                let resumes = matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Internal
                );
                assert!(resumes, "a stream ended with {status:?}");
                follower.notes.push(Note::Broken);
                members.move_on();
            }
        }
    }
    let from = from.expect("a stream was opened");
    let notes = follower.notes;
    Journal { plan, from, notes }
}

struct Follower {
    next: i64,
    notes: Vec<Note>,
}

enum Ended {
    /// The last write was seen.
    All,
    /// It left, as planned.
    Left,
    Compacted,
    Broken(Status),
}

impl Follower {
    async fn read(&mut self, mut stream: Stream, plan: &Plan) -> Ended {
        let mut fragments: Vec<Event> = Vec::new();
        let mut responses = 0;
        loop {
            let response = match stream.next().await {
                Ok(response) => response,
                Err(status) => return Ended::Broken(status),
            };
            responses += 1;
            if response.canceled {
                assert!(response.compact_revision > self.next, "{response:?}");
                self.next = response.compact_revision;
                self.notes.push(Note::Compacted(self.next));
                return Ended::Compacted;
            }
            let header = revision(response.header.as_ref());
            if response.events.is_empty() {
                assert!(
                    header + 1 >= self.next,
                    "told {header} before {}",
                    self.next
                );
                self.notes.push(Note::Progress(header));
                if plan.resume_at_bookmarks {
                    self.next = header + 1;
                    return Ended::Left;
                }
                continue;
            }
            fragments.extend(response.events);
            if response.fragment {
                continue;
            }
            let events = std::mem::take(&mut fragments);
            self.next = modified(events.last().expect("at least one")) + 1;
            let last = events.iter().any(is_last);
            self.notes.push(Note::Events { header, events });
            if last {
                return Ended::All;
            }
            if plan.reconnect_after.is_some_and(|most| responses >= most) {
                return Ended::Left;
            }
            if plan.ask_every > 0 && responses % plan.ask_every == 0 {
                stream.ask_progress().await;
            }
        }
    }
}

/// The revision of an event.
pub(crate) fn modified(event: &Event) -> i64 {
    event
        .kv
        .as_ref()
        .expect("an event has its key")
        .mod_revision
}

fn is_last(event: &Event) -> bool {
    event.kv.as_ref().is_some_and(|kv| kv.value == END)
}
