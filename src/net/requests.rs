//! Forwarded requests of one connection, in both directions.

use super::{codec::WireRequest, error::ForwardError, send_queues::SendQueues};
use crate::types::MemberId;
use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{mpsc, oneshot};

/// Requests that may be in flight to a peer; as many may be in flight from it.
pub const UNDER_WAY_MAX: usize = 4_096;
/// The largest request, and the largest answer.
pub const REQUEST_BYTES_MAX: usize = super::frame::FRAME_BYTES_MAX - 1_024;

/// The id of a responder that has answered; no request has it.
const ANSWERED: u64 = u64::MAX;

/// Takes the answer to a forwarded request. Dropping the receiver cancels the request.
pub type ForwardReply = oneshot::Sender<Result<Bytes, ForwardError>>;

#[derive(Debug)]
pub struct PeerRequest {
    pub from: MemberId,
    pub body: Bytes,
    pub responder: Responder,
}

/// Takes the answer to one request from a peer. If it is dropped without one, the peer gets [`ForwardError::Abandoned`].
#[derive(Debug)]
pub struct Responder {
    id: u64,
    answers: mpsc::Sender<(u64, Option<Bytes>)>,
    cancelled: Arc<AtomicBool>,
}

impl Responder {
    /// Sends the answer, if the peer is still connected.
    pub fn answer(mut self, answer: Bytes) {
        self.send(Some(answer));
    }

    /// Whether the peer cancelled the request or is no longer connected.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.answers.is_closed()
    }

    /// A responder without a peer, for transports that are not QUIC; the answer, or none, arrives at the receiver.
    pub fn detached() -> (Self, mpsc::Receiver<(u64, Option<Bytes>)>) {
        let (answers, taken) = mpsc::channel(1);
        (
            Self {
                id: 0,
                answers,
                cancelled: Arc::default(),
            },
            taken,
        )
    }

    /// Afterwards the id is [`ANSWERED`].
    fn send(&mut self, answer: Option<Bytes>) {
        // The channel has room for every request in flight. It is closed once the connection is.
        self.answers.try_send((self.id, answer)).unwrap_or_default();
        self.id = ANSWERED;
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.id != ANSWERED {
            self.send(None);
        }
    }
}

#[derive(Debug)]
pub(super) struct Requests {
    peer: MemberId,
    next: Cell<u64>,
    asked: RefCell<BTreeMap<u64, ForwardReply>>,
    serving: RefCell<BTreeMap<u64, Arc<AtomicBool>>>,
    answers: mpsc::Sender<(u64, Option<Bytes>)>,
    queues: Rc<SendQueues>,
}

impl Requests {
    /// The answers that the receiver gets must be passed to [`Requests::answered`].
    pub(super) fn new(
        peer: MemberId,
        queues: Rc<SendQueues>,
    ) -> (Self, mpsc::Receiver<(u64, Option<Bytes>)>) {
        let (answers, taken) = mpsc::channel(UNDER_WAY_MAX);
        let requests = Self {
            peer,
            next: Cell::new(1),
            asked: RefCell::default(),
            serving: RefCell::default(),
            answers,
            queues,
        };
        (requests, taken)
    }

    /// Sends a request; `reply` gets its answer or an error.
    pub(super) fn forward(&self, request: Bytes, reply: ForwardReply) {
        let refused = if request.len() > REQUEST_BYTES_MAX {
            Some(ForwardError::TooLarge(request.len()))
        } else {
            self.ask(request).err()
        };
        if let Some(error) = refused {
            // The caller may have dropped its receiver.
            drop(reply.send(Err(error)));
        } else {
            self.asked.borrow_mut().insert(self.next.get(), reply);
            self.next.set(self.next.get() + 1);
        }
    }

    fn ask(&self, request: Bytes) -> Result<(), ForwardError> {
        let bytes = u32::try_from(request.len()).unwrap_or(u32::MAX);
        let ask = WireRequest::Ask {
            id: self.next.get(),
            bytes,
        };
        let room = self.asked.borrow().len() < UNDER_WAY_MAX && self.queues.request(ask, request);
        if room {
            Ok(())
        } else {
            Err(ForwardError::Overloaded(self.peer))
        }
    }

    /// Handles a frame from the peer. Returns the request in it, if it is one to serve.
    pub(super) fn received(&self, frame: WireRequest, payload: Bytes) -> Option<PeerRequest> {
        match frame {
            WireRequest::Ask { id, .. } => return self.begin(id, payload),
            WireRequest::Answer { id, .. } => self.settle(id, Ok(payload)),
            WireRequest::Overloaded { id } => self.settle(id, Err(ForwardError::PeerOverloaded)),
            WireRequest::Abandoned { id } => self.settle(id, Err(ForwardError::Abandoned)),
            WireRequest::Cancel { id } => {
                if let Some(cancelled) = self.serving.borrow().get(&id) {
                    cancelled.store(true, Ordering::Relaxed);
                }
            }
            WireRequest::Ping => {}
        }
        None
    }

    fn begin(&self, id: u64, body: Bytes) -> Option<PeerRequest> {
        let mut serving = self.serving.borrow_mut();
        if serving.len() >= UNDER_WAY_MAX || id == ANSWERED || serving.contains_key(&id) {
            self.queues.notice(WireRequest::Overloaded { id });
            return None;
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        serving.insert(id, Arc::clone(&cancelled));
        let responder = Responder {
            id,
            answers: self.answers.clone(),
            cancelled,
        };
        Some(PeerRequest {
            from: self.peer,
            body,
            responder,
        })
    }

    fn settle(&self, id: u64, outcome: Result<Bytes, ForwardError>) {
        // If the request was cancelled meanwhile, the answer is dropped.
        if let Some(reply) = self.asked.borrow_mut().remove(&id) {
            drop(reply.send(outcome));
        }
    }

    /// Sends the answer to the peer's request `id`; `None` ends it without one.
    pub(super) fn answered(&self, id: u64, answer: Option<Bytes>) {
        self.serving.borrow_mut().remove(&id);
        let sent = answer
            .filter(|answer| answer.len() <= REQUEST_BYTES_MAX)
            .is_some_and(|answer| {
                let bytes = u32::try_from(answer.len()).unwrap_or(u32::MAX);
                self.queues
                    .request(WireRequest::Answer { id, bytes }, answer)
            });
        if !sent {
            self.queues.notice(WireRequest::Abandoned { id });
        }
    }

    /// Cancels the requests whose callers dropped their receivers.
    pub(super) fn sweep(&self) {
        self.asked.borrow_mut().retain(|id, reply| {
            if reply.is_closed() {
                self.queues.notice(WireRequest::Cancel { id: *id });
            }
            !reply.is_closed()
        });
    }

    /// The connection ended: all requests in flight fail.
    pub(super) fn lost(&self) {
        for (_, reply) in std::mem::take(&mut *self.asked.borrow_mut()) {
            drop(reply.send(Err(ForwardError::Lost)));
        }
        for cancelled in self.serving.borrow().values() {
            cancelled.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> (Requests, mpsc::Receiver<(u64, Option<Bytes>)>) {
        Requests::new(MemberId(2), Rc::new(SendQueues::new(1_000_000)))
    }

    #[tokio::test]
    async fn an_answer_finds_its_request_and_a_lost_connection_all_others() {
        let (requests, _answers) = requests();
        let ((reply, first), (other, second)) = (oneshot::channel(), oneshot::channel());
        requests.forward(Bytes::from_static(b"a"), reply);
        requests.forward(Bytes::from_static(b"b"), other);
        let answer = Bytes::from_static(b"A");
        assert!(
            requests
                .received(WireRequest::Answer { id: 1, bytes: 1 }, answer.clone())
                .is_none()
        );
        assert_eq!(first.await.unwrap(), Ok(answer));
        requests.lost();
        assert_eq!(second.await.unwrap(), Err(ForwardError::Lost));
    }

    #[tokio::test]
    async fn requests_past_the_bound_are_refused_on_both_sides() {
        let (requests, _answers) = requests();
        let mut replies = Vec::new();
        for _ in 0..=UNDER_WAY_MAX {
            let (reply, taken) = oneshot::channel();
            requests.forward(Bytes::new(), reply);
            replies.push(taken);
        }
        let last = replies.pop().unwrap().await.unwrap();
        assert_eq!(last, Err(ForwardError::Overloaded(MemberId(2))));
        let ask = |id| requests.received(WireRequest::Ask { id, bytes: 0 }, Bytes::new());
        let served: Vec<_> = (0..UNDER_WAY_MAX as u64).filter_map(ask).collect();
        assert_eq!(served.len(), UNDER_WAY_MAX);
        assert!(ask(u64::MAX - 1).is_none(), "one more is not begun");
    }

    #[tokio::test]
    async fn a_dropped_responder_and_a_dropped_caller_are_told() {
        let (requests, mut answers) = requests();
        let asked = requests
            .received(WireRequest::Ask { id: 9, bytes: 0 }, Bytes::new())
            .unwrap();
        assert!(!asked.responder.is_cancelled(), "somebody waits");
        requests.received(WireRequest::Cancel { id: 9 }, Bytes::new());
        assert!(asked.responder.is_cancelled(), "nobody waits");
        drop(asked);
        assert_eq!(answers.recv().await, Some((9, None)));
        let (reply, waiting) = oneshot::channel();
        requests.forward(Bytes::new(), reply);
        drop(waiting);
        requests.sweep();
        assert!(
            requests.asked.borrow().is_empty(),
            "a cancelled request is forgotten"
        );
    }

    #[test]
    fn a_request_too_long_for_a_frame_is_refused() {
        let (requests, _answers) = requests();
        let (reply, mut waiting) = oneshot::channel();
        requests.forward(vec![0; REQUEST_BYTES_MAX + 1].into(), reply);
        let outcome = waiting.try_recv().unwrap();
        assert_eq!(outcome, Err(ForwardError::TooLarge(REQUEST_BYTES_MAX + 1)));
    }
}
