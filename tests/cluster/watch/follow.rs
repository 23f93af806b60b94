//! A client that follows a range across all faults: it writes down what it receives, and goes on elsewhere when its stream ends.

use super::members::{Members, revision};
use bytes::Bytes;
use quorate::internals::api::proto::{
    etcdserverpb::{
        WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
        watch_request::RequestUnion,
    },
    mvccpb::Event,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// How long the first response of a stream may take.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// A watch with events to come that is silent for this long has lost some: generous, for a loaded machine and a debug build.
const SILENCE_MAX: Duration = Duration::from_mins(2);
const PAUSE: Duration = Duration::from_millis(50);

/// The value of the very last write, which every follower sees.
pub(crate) const END: &[u8] = b"the end";

/// How a follower watches.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) range: (Bytes, Bytes),
    /// As in the API: zero means new changes only.
    pub(crate) start: i64,
    pub(crate) prev_kv: bool,
    /// Ends a stream by itself after this many responses, and continues at the next member.
    pub(crate) reconnect_after: Option<usize>,
    /// Requests progress after this many responses; zero for never.
    pub(crate) ask_every: usize,
    /// Continues after a bookmark, not after the last event, whenever it has one.
    pub(crate) resume_at_bookmarks: bool,
    /// Reads nothing until it is woken.
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
    /// Every change up to here was received.
    Progress(i64),
    /// The next revision is compacted: it continues from here.
    Compacted(i64),
    /// The stream ended, not by its own decision.
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

    /// All that happened but for responses, for a failure's message.
    pub(crate) fn summary(&self) -> String {
        let events = |note: &&Note| matches!(note, Note::Events { .. } | Note::Progress(_));
        let responses = self.notes.iter().filter(events).count();
        let others: Vec<&Note> = self.notes.iter().filter(|note| !events(note)).collect();
        format!("{responses} responses, {others:?}")
    }

    pub(crate) fn bookmarks(&self) -> usize {
        let progress = |note: &&Note| matches!(note, Note::Progress(_));
        self.notes.iter().filter(progress).count()
    }
}

pub(crate) struct Stream {
    asking: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
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

    /// As [`Stream::open`], with further metadata of the call.
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
            let mut responses = members.watch().watch(request).await?.into_inner();
            let created = responses.message().await?;
            let created = created.ok_or_else(|| Status::unavailable("closed at once"))?;
            Ok::<_, Status>((responses, created))
        };
        let opened = timeout(OPEN_MAX, opening).await;
        let (responses, created) = opened.map_err(|_| Status::unavailable("no answer"))??;
        assert!(created.created && !created.canceled, "{created:?}");
        Ok(Self {
            asking,
            responses,
            created,
        })
    }

    /// Asks how far it has come. The answer is among the responses, if the stream goes on.
    pub(crate) async fn ask_progress(&self) {
        let ask = RequestUnion::ProgressRequest(WatchProgressRequest {});
        // An error means that the stream has ended, which the receiving half reports.
        drop(
            self.asking
                .send(WatchRequest {
                    request_union: Some(ask),
                })
                .await,
        );
    }

    /// The next response; the end of the stream is a status.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, Status> {
        let next = timeout(SILENCE_MAX, self.responses.message()).await;
        let next = next.expect("a watch with events to come receives them");
        next?.ok_or_else(|| Status::ok("the stream ended without an error"))
    }
}

/// Follows a range from its plan's start until the last write; first at the member that is asked first. Says when its first
/// stream is open.
pub(crate) async fn follow(
    mut members: Members,
    plan: Plan,
    opened: Arc<Semaphore>,
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
        if from.is_none() {
            from = Some(follower.next);
            opened.add_permits(1);
        }
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
                // The first is the status of a member that stops; the others are those of a client whose connection breaks.
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
                assert!(header + 1 >= self.next, "got {header} before {}", self.next);
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
