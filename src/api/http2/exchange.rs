//! One call on its HTTP/2 stream: the request as it is received, the response as it is sent.

use super::request_stream::{Prefetched, StreamBody};
use crate::{
    api::{
        answer_budget::{Budget, Demand, Rate, SMALL_ANSWER_BYTES},
        frames::Encoded,
        front::Front,
        grpc::{self, Admission},
        http, lines,
        message_reader::MessageReader,
        payload::Payload,
        response_body::ResponseBody,
        shares::Held,
        status::Status,
        trailers,
    },
    audit::Line,
};
use ::http::{HeaderMap, HeaderValue, Method, Response, Uri, header::CONTENT_TYPE};
use bytes::Buf;
use h2::{Reason, SendStream, server::SendResponse};
use http_body::Body;
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, timeout, timeout_at};

/// How often a long answer whose client takes nothing is checked against its [`Demand`].
const STALL_CHECK: Duration = Duration::from_secs(1);

/// A hot call in flight.
pub(super) struct Call {
    pub(super) respond: SendResponse<Payload>,
    pub(super) deadline: Option<Instant>,
    /// Whether it has proposed a command, whose outcome comes through the inbox.
    pub(super) proposed: bool,
    /// Its line in the audit log.
    pub(super) line: Option<Arc<Line>>,
}

impl Call {
    pub(super) fn answer(self, answered: Result<Encoded, Status>, budget: &Arc<Budget>) {
        self.close_line(answered.as_ref().err());
        answer(self.respond, answered, budget);
    }

    /// Sends an error in place of an answer.
    pub(super) fn refuse(self, status: &Status) {
        self.close_line(Some(status));
        refuse(self.respond, status);
    }

    fn close_line(&self, error: Option<&Status>) {
        if let Some(line) = &self.line {
            lines::close(line, error);
        }
    }
}

impl Call {
    /// The number of its stream, under which its result comes.
    pub(super) fn number(&self) -> u64 {
        self.respond.stream_id().as_u32().into()
    }
}

/// Answers a call in a task of its own, which ends when the client cancels the call. It counts as a call of its connection until
/// then.
pub(super) async fn answer_call(
    front: Rc<Front>,
    uri: Uri,
    admission: Admission,
    messages: MessageReader<StreamBody>,
    mut respond: SendResponse<Payload>,
    budget: Arc<Budget>,
    held: Held,
) {
    let mut prefetched = None;
    let messages = messages.map_body(|body| {
        let (body, buffer) = body.prefetched();
        prefetched = Some(buffer);
        body
    });
    let response = {
        let mut answering = pin!(grpc::answer(front, uri.path(), admission, messages, budget));
        poll_fn(|context| {
            if respond.poll_reset(context).is_ready() {
                return Poll::Ready(None);
            }
            if let Some(prefetched) = &prefetched {
                prefetched.poll_fill(context);
            }
            let answered = answering.as_mut().poll(context);
            if let Some(prefetched) = &prefetched {
                prefetched.settle();
            }
            answered.map(Some)
        })
        .await
    };
    if let Some(response) = response {
        send(respond, response, prefetched).await;
    }
    drop(held);
}

/// Takes what has arrived for a call that runs in another task.
fn fill(prefetched: Option<&Prefetched>, context: &mut Context<'_>) {
    if let Some(prefetched) = prefetched {
        prefetched.poll_fill(context);
        prefetched.settle();
    }
}

/// Answers a plain HTTP request in a task of its own.
pub(super) async fn answer_plain(
    front: Rc<Front>,
    method: Method,
    uri: Uri,
    respond: SendResponse<Payload>,
    held: Held,
) {
    let response = http::answer(&front.api, &method, &uri).await;
    send(respond, response, None).await;
    drop(held);
}

/// Answers a hot call in a task of its own, because other calls of the connection should not wait for it.
pub(super) fn answer_in_task(
    call: Call,
    answering: impl Future<Output = Result<ResponseBody, Status>> + 'static,
) {
    tokio::task::spawn_local(async move {
        let Call {
            mut respond,
            deadline,
            line,
            ..
        } = call;
        let mut answering = pin!(async move {
            match deadline {
                Some(deadline) => timeout_at(deadline, answering)
                    .await
                    .unwrap_or(Err(Status::deadline_exceeded())),
                None => answering.await,
            }
        });
        let answered = poll_fn(|context| {
            if respond.poll_reset(context).is_ready() {
                return Poll::Ready(None);
            }
            answering.as_mut().poll(context).map(Some)
        });
        let Some(answered) = answered.await else {
            return;
        };
        if let Some(line) = &line {
            lines::close(line, answered.as_ref().err());
        }
        let body = match answered {
            Ok(body) => body,
            Err(status) => return refuse(respond, &status),
        };
        let sending = respond.send_response(head(HeaderMap::with_capacity(1)), false);
        if let Ok(stream) = sending {
            send_body(stream, body, None).await;
        }
    });
}

/// Sends an error in place of an answer.
pub(super) fn refuse(mut respond: SendResponse<Payload>, status: &Status) {
    drop(respond.send_response(head(trailers::failure(status)), true));
}

/// Sends the answer of a hot call. Sending fails only if the client has gone, so errors are ignored.
fn answer(
    mut respond: SendResponse<Payload>,
    answered: Result<Encoded, Status>,
    budget: &Arc<Budget>,
) {
    let encoded = match answered {
        Ok(encoded) => encoded.counted(budget).into_frame(),
        Err(status) => return refuse(respond, &status),
    };
    let Ok(mut stream) = respond.send_response(head(HeaderMap::with_capacity(1)), false) else {
        return;
    };
    if encoded.remaining() <= SMALL_ANSWER_BYTES {
        drop(stream.send_data(encoded, false));
        drop(stream.send_trailers(trailers::success()));
    } else {
        let body = ResponseBody::Message(Encoded::from_frame(encoded));
        tokio::task::spawn_local(send_body(stream, body, None));
    }
}

fn head(mut headers: HeaderMap) -> Response<()> {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response
}

async fn send(
    mut respond: SendResponse<Payload>,
    response: Response<ResponseBody>,
    prefetched: Option<Prefetched>,
) {
    let (head, body) = response.into_parts();
    let whole = body.is_end_stream();
    if let Ok(stream) = respond.send_response(Response::from_parts(head, ()), whole)
        && !whole
    {
        send_body(stream, body, prefetched).await;
    }
}

/// Sends a body as the client's flow control allows, until it ends or the client cancels the call.
///
/// It fills `prefetched` meanwhile: the call may still read messages.
async fn send_body(
    mut stream: SendStream<Payload>,
    mut body: ResponseBody,
    prefetched: Option<Prefetched>,
) {
    loop {
        let frame = poll_fn(|context| {
            if stream.poll_reset(context).is_ready() {
                return Poll::Ready(None);
            }
            fill(prefetched.as_ref(), context);
            let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(context) else {
                return Poll::Pending;
            };
            Poll::Ready(Some(frame))
        });
        let sent = match frame.await {
            None => return,
            Some(None) => {
                drop(stream.send_data(Payload::default(), true));
                return;
            }
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    send_data(&mut stream, data, body.is_end_stream(), prefetched.as_ref()).await
                }
                Err(trailers) => {
                    drop(stream.send_trailers(trailers.into_trailers().unwrap_or_default()));
                    return;
                }
            },
        };
        if sent.is_err() || body.is_end_stream() {
            return;
        }
    }
}

/// Sends bytes in pieces that fit the client's flow control window. If a client takes too little of a long answer for too long,
/// the stream is reset with a reason that gRPC maps to `ResourceExhausted`.
async fn send_data(
    stream: &mut SendStream<Payload>,
    mut data: Payload,
    last: bool,
    prefetched: Option<&Prefetched>,
) -> Result<(), h2::Error> {
    if !data.has_remaining() && last {
        return stream.send_data(data, true);
    }
    let mut pace = Pace::default();
    while data.has_remaining() {
        stream.reserve_capacity(data.remaining());
        let room = match stream.capacity() {
            0 => {
                let wait = poll_fn(|context| {
                    fill(prefetched, context);
                    stream.poll_capacity(context)
                });
                match pace.wait(wait, || data.demand()).await {
                    Ok(Some(room)) => room?,
                    Ok(None) => return Err(Reason::CANCEL.into()),
                    Err(Stalled) => {
                        tracing::debug!("a client does not take its answer");
                        stream.send_reset(Reason::ENHANCE_YOUR_CALM);
                        return Err(Reason::ENHANCE_YOUR_CALM.into());
                    }
                }
            }
            room => room,
        };
        pace.took(room, data.demand());
        let piece = data.split_to(room.min(data.remaining()));
        stream.send_data(piece, last && !data.has_remaining())?;
    }
    Ok(())
}

/// The client takes too little for too long.
struct Stalled;

/// How fast a client takes an answer. Each of the two rules of a [`Demand`] has a clock, and neither begins again when others
/// begin or cease to wait: a client can cause that as often as it likes.
#[derive(Default)]
struct Pace {
    /// When the current part, as long as the [`Demand`] says, first waited for the client's window; `None` if it has not.
    since: Option<Instant>,
    /// Bytes of this part that the client has taken.
    bytes: usize,
    /// The part that it takes since others first waited; `None` if they have not.
    scarce: Option<ScarcePart>,
}

/// What a client takes while others wait. What was slow enough before is not held against it.
#[derive(Default)]
struct ScarcePart {
    /// Bytes that it has taken, also while nobody waited.
    bytes: usize,
    /// For how long others have waited, as far as the checks can tell.
    waited: Duration,
    /// The last check, if others waited then.
    checked: Option<Instant>,
}

impl Pace {
    /// Waits until the client's window has room. Fails if the client has taken less than `demand` says, which is called again at
    /// each check, since it may change.
    async fn wait<T>(
        &mut self,
        room: impl Future<Output = T>,
        demand: impl Fn() -> Option<Demand>,
    ) -> Result<T, Stalled> {
        if demand().is_none() {
            return Ok(room.await);
        }
        let mut room = pin!(room);
        loop {
            // Also before the first wait: the client's window may open every moment by very little.
            if demand().is_some_and(|demand| self.is_late(demand)) {
                return Err(Stalled);
            }
            if let Ok(room) = timeout(STALL_CHECK, &mut room).await {
                return Ok(room);
            }
        }
    }

    /// Whether the time of either part is over.
    fn is_late(&mut self, demand: Demand) -> bool {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let is_late_while_scarce = self.note_scarcity(demand.is_scarce, now, demand.scarce);
        is_late_while_scarce || demand.always.is_missed(self.bytes, now - since)
    }

    /// Counts the scarce time, and says whether it is over.
    fn note_scarcity(&mut self, is_scarce: bool, now: Instant, rate: Rate) -> bool {
        if is_scarce && self.scarce.is_none() {
            self.scarce = Some(ScarcePart::default());
        }
        let Some(part) = &mut self.scarce else {
            return false;
        };
        if let Some(checked) = part.checked {
            // Between two checks, what the first has found is taken to hold, but not for longer than checks are apart.
            part.waited += (now - checked).min(STALL_CHECK);
        }
        part.checked = is_scarce.then_some(now);
        is_scarce && rate.is_missed(part.bytes, part.waited)
    }

    fn took(&mut self, bytes: usize, demand: Option<Demand>) {
        let Some(demand) = demand else {
            *self = Self::default();
            return;
        };
        self.bytes += bytes;
        if self.bytes >= demand.always.bytes {
            (self.since, self.bytes) = (None, 0);
        }
        if let Some(part) = &mut self.scarce {
            part.bytes += bytes;
            if part.bytes >= demand.scarce.bytes {
                self.scarce = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::answer_budget::{ArbiterBudget, Charge};
    use bytes::Bytes;
    use std::future::pending;
    use tokio::{join, select, time::sleep};

    const MIB: usize = 1024 * 1024;
    /// More than an arbiter's whole budget.
    const LONG: usize = 200 * MIB;

    /// A connection with an answer of so many bytes, and another connection of the arbiter.
    fn with_answer(bytes: usize) -> (Payload, Arc<Budget>) {
        let arbiter = Arc::<ArbiterBudget>::default();
        let [slow, other] = [(); 2].map(|()| Arc::new(Budget::new(arbiter.clone())));
        let held = slow.try_hold(bytes).expect("nothing else is held");
        (
            Payload::from(Bytes::from(vec![0; bytes])).charged(held.into()),
            other,
        )
    }

    /// A client whose window opens every `pause` by what `taken` says of what is left. Returns whether it gets all.
    async fn read(mut data: Payload, pause: Duration, taken: impl Fn(usize) -> usize) -> bool {
        let mut pace = Pace::default();
        while data.has_remaining() {
            if pace.wait(sleep(pause), || data.demand()).await.is_err() {
                return false;
            }
            let room = taken(data.remaining());
            pace.took(room, data.demand());
            drop(data.split_to(room.min(data.remaining())));
        }
        true
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_keeps_nobody_from_theirs_however_much_it_holds() {
        let (answer, other) = with_answer(LONG);
        let slow = read(answer, Duration::from_millis(2_500), |_| MIB);
        let (complete, held) = join!(slow, other.hold(MIB));
        assert!(held.is_ok(), "others find room");
        assert!(!complete);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_makes_room_in_time_keeps_its_answer() {
        let (answer, other) = with_answer(LONG);
        let brisk = read(answer, Duration::from_millis(2_500), |left| {
            MIB.max(left / 8)
        });
        let others = async {
            let mut got = 0;
            while other.hold(MIB).await.is_ok() && got < 50 {
                got += 1;
            }
            got
        };
        assert_eq!(join!(brisk, others), (true, 50));
    }

    /// A steady reader's answer was ended as soon as anybody waited.
    #[tokio::test(start_paused = true)]
    async fn a_reader_is_not_late_at_once_when_others_begin_to_wait() {
        let (answer, other) = with_answer(LONG);
        let mut pace = Pace::default();
        let opens = pace.wait(sleep(Duration::from_secs(20)), || answer.demand());
        assert!(opens.await.is_ok(), "nobody waits");
        let waits = async {
            let opens = sleep(Duration::from_secs(2));
            pace.wait(opens, || answer.demand()).await.is_ok()
        };
        let (in_time, _) = join!(waits, other.hold(MIB));
        assert!(in_time, "what was slow enough before does not count");
        let waits = async {
            let opens = sleep(Duration::from_secs(5));
            pace.wait(opens, || answer.demand()).await.is_ok()
        };
        let (in_time, _) = join!(waits, other.hold(MIB));
        assert!(!in_time, "and then it counts");
    }

    /// A client can make others wait, and stop: the time began again each time.
    #[tokio::test(start_paused = true)]
    async fn time_is_counted_however_often_others_begin_and_cease_to_wait() {
        for (waits_ms, pause_ms, within_secs) in [(2_000, 1_500, 10), (900, 19_100, 65)] {
            let (answer, other) = with_answer(LONG);
            let mut pace = Pace::default();
            let others = async {
                for _ in 0..1_000 {
                    drop(timeout(Duration::from_millis(waits_ms), other.hold(MIB)).await);
                    sleep(Duration::from_millis(pause_ms)).await;
                }
            };
            let never = pace.wait(pending::<()>(), || answer.demand());
            let late = select! {
                biased;
                () = others => false,
                late = timeout(Duration::from_secs(within_secs), never) => {
                    late.is_ok_and(|waited| waited.is_err())
                }
            };
            assert!(late, "others wait for {waits_ms} ms each time");
        }
    }

    /// What is taken while nobody waits counts, and a part that is complete is over.
    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_its_part_in_the_scarce_time_is_not_late() {
        let (answer, other) = with_answer(LONG);
        let mut pace = Pace::default();
        for _ in 0..20 {
            let waits = async {
                let opens = sleep(Duration::from_millis(2_500));
                pace.wait(opens, || answer.demand()).await.is_ok()
            };
            let scarce = timeout(Duration::from_millis(2_400), other.hold(MIB));
            let (in_time, _) = join!(waits, scarce);
            assert!(in_time, "it has taken enough");
            assert!(answer.demand().is_some_and(|demand| !demand.is_scarce));
            pace.took(16 * MIB, answer.demand());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_that_opens_often_and_little_is_no_progress() {
        let (answer, _) = with_answer(MIB);
        assert!(!read(answer, STALL_CHECK / 2, |_| 100).await);
        let (answer, _) = with_answer(MIB);
        assert!(read(answer, STALL_CHECK / 2, |_| 10_000).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_parts_is_taken_in_time_or_lost() {
        let budget = Arc::new(Budget::new(Arc::default()));
        for (minutes, complete) in [(1, false), (3, true)] {
            let held = budget.try_hold(MIB).expect("room");
            let until = Instant::now() + Duration::from_mins(minutes);
            let part = Payload::from(Bytes::from(vec![0; 8 * MIB]));
            let part = part.charged(Charge::of_parts(held, until));
            // 8 MiB in two minutes.
            let read = read(part, Duration::from_secs(15), |_| MIB).await;
            assert_eq!(read, complete, "in {minutes} min");
        }
    }
}
