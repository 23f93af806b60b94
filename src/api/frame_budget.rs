//! Bounds how many frames a client sends that carry no call.
//!
//! Settings, pings, priorities and window updates cost the server time and carry no request, so a client that sends them without
//! end takes time from others. So do empty DATA frames, and resets of streams that have ended. Honest clients send a few of them
//! for each frame of a call that they send, and for each frame of
//! an answer that they receive. So the frames of calls and the bytes of answers earn credit, and the other frames cost it. Time
//! earns some credit too, and a burst is free.

use crate::clock;
use tokio::time::Instant;

/// The most credit that a client can have, and what it begins with: 20,000 frames that need no answer.
const BURST: u32 = 320_000;

/// What each millisecond earns: 2,000 frames a second.
const EARNED_BY_MILLISECOND: u32 = 32;

/// What a frame of a call earns: the cost of two frames without a call.
const EARNED_BY_CALL_FRAME: u32 = 32;

/// What a frame without a call costs. If the server answers it, the answer's length is added, since sent bytes earn as much.
const FRAME_COST: u32 = 16;
const SETTINGS_ANSWER_BYTES: u32 = 9;
const PING_ANSWER_BYTES: u32 = 17;

/// New settings may concern every stream of the connection.
const NEW_SETTINGS_COST: u32 = 1_000;

/// How many bytes of a turn each unit of cost takes, so that a turn receives some thousand of these frames at most.
const TURN_BYTES_BY_COST: usize = 8;

/// How many bytes of a turn a call takes besides its own: it costs some microseconds, however short it is.
const TURN_BYTES_BY_CALL: usize = 512;

/// How many bytes of a turn a cancelled call takes besides its own: it costs the time of a call, some microseconds, and waits for
/// no answer. So a turn has room for some dozens of them.
const TURN_BYTES_BY_RESET: usize = 8 * 1024;

/// The same of a DATA frame with less than [`SMALL_FRAME_BYTES`]: the time that it costs does not depend on its length.
const TURN_BYTES_BY_SMALL_FRAME: usize = 128;
const SMALL_FRAME_BYTES: usize = 32;

/// The longest trailers of a call, in bytes of their only frame. No client of gRPC sends any. The HTTP/2 library keeps them for
/// as long as the call runs, outside of flow control, and a field of one byte takes some 70 bytes there.
const TRAILERS_BYTES_MAX: usize = 64;

/// Length, type, flags and stream of a frame.
pub(super) const FRAME_HEADER_BYTES: usize = 9;

/// What the header of a frame says of it.
#[derive(Clone, Copy)]
pub(super) struct FrameHeader {
    pub(super) len: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHeader {
    pub(super) const DATA: u8 = 0;
    /// Opens a stream. Pseudo-headers come first, so `:authority` is not expected in CONTINUATION.
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const CONTINUATION: u8 = 9;

    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    const PADDED: u8 = 8;

    /// Whether it is a DATA frame that says nothing.
    pub(super) fn is_empty_data(self) -> bool {
        let says_more = self.flags & (Self::END_STREAM | Self::PADDED) != 0;
        self.kind == Self::DATA && self.len == 0 && !says_more
    }

    /// Whether HEADERS can be all of a call's trailers.
    pub(super) fn is_short_trailers(self) -> bool {
        self.len <= TRAILERS_BYTES_MAX && self.flags & Self::END_HEADERS != 0
    }

    /// Whether a SETTINGS or PING frame acknowledges one of the server's.
    fn is_ack(self) -> bool {
        self.flags & 1 != 0
    }

    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let &[high, middle, low, kind, flags, ref stream @ ..] = bytes.first_chunk::<9>()?;
        let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        Some(Self {
            len,
            kind,
            flags,
            // The first bit is reserved.
            stream: u32::from_be_bytes(*stream) & (u32::MAX >> 1),
        })
    }
}

/// What the frames in some received bytes cost and earned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    cost: u32,
    earned: u32,
    calls: u32,
    resets: u32,
    small_frames: u32,
}

impl Tally {
    pub(super) fn count(&mut self, frame: FrameHeader) {
        match frame.kind {
            FrameHeader::DATA if frame.is_empty_data() => self.spend(FRAME_COST),
            FrameHeader::DATA | FrameHeader::HEADERS => {
                self.earned = self.earned.saturating_add(EARNED_BY_CALL_FRAME);
                let count = if frame.kind == FrameHeader::HEADERS {
                    &mut self.calls
                } else {
                    &mut self.small_frames
                };
                let counts = frame.kind == FrameHeader::HEADERS || frame.len < SMALL_FRAME_BYTES;
                *count = count.saturating_add(counts.into());
            }
            // It belongs to HEADERS.
            FrameHeader::CONTINUATION => {}
            // The budget tells those of calls from those that cancel nothing.
            FrameHeader::RST_STREAM => self.resets = self.resets.saturating_add(1),
            FrameHeader::SETTINGS if !frame.is_ack() => {
                let news = if frame.len == 0 { 0 } else { NEW_SETTINGS_COST };
                self.spend(FRAME_COST + SETTINGS_ANSWER_BYTES + news);
            }
            FrameHeader::PING if !frame.is_ack() => self.spend(FRAME_COST + PING_ANSWER_BYTES),
            _ => self.spend(FRAME_COST),
        }
    }

    fn spend(&mut self, cost: u32) {
        self.cost = self.cost.saturating_add(cost);
    }

    /// Counts a frame that no budget allows.
    pub(super) fn refuse(&mut self) {
        self.cost = u32::MAX;
    }

    /// The bytes of a turn that these frames take besides their own.
    pub(super) fn turn_bytes(self) -> usize {
        self.cost as usize * TURN_BYTES_BY_COST
            + self.calls as usize * TURN_BYTES_BY_CALL
            + self.resets as usize * TURN_BYTES_BY_RESET
            + self.small_frames as usize * TURN_BYTES_BY_SMALL_FRAME
    }
}

/// What a client may still spend.
#[derive(Debug)]
pub(super) struct FrameBudget {
    left: u32,
    /// How many resets cost nothing: one for each call so far. Cancelled calls have a budget of their own.
    resets: u32,
    /// The time up to which credit was earned.
    since: Instant,
}

/// The budget is exhausted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exhausted;

impl Default for FrameBudget {
    fn default() -> Self {
        Self {
            left: BURST,
            resets: 0,
            since: clock::now(),
        }
    }
}

impl FrameBudget {
    /// Earns credit for bytes that were sent to the client.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.earn(u32::try_from(bytes).unwrap_or(BURST));
    }

    pub(super) fn received(&mut self, tally: Tally) -> Result<(), Exhausted> {
        self.earn(tally.earned);
        let resets = self.resets.saturating_add(tally.calls);
        let beyond = tally.resets.saturating_sub(resets);
        self.resets = resets.saturating_sub(tally.resets);
        let cost = beyond.saturating_mul(FRAME_COST).saturating_add(tally.cost);
        if cost > self.left {
            let now = clock::now();
            let millis = now.saturating_duration_since(self.since).as_millis();
            let millis = u32::try_from(millis).unwrap_or(u32::MAX);
            if millis > 0 {
                self.earn(millis.saturating_mul(EARNED_BY_MILLISECOND));
                self.since = now;
            }
        }
        self.left = self.left.checked_sub(cost).ok_or(Exhausted)?;
        Ok(())
    }

    fn earn(&mut self, amount: u32) {
        self.left = self.left.saturating_add(amount).min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::TURN_BYTES_MAX;
    use std::time::Duration;

    const ACK: u8 = 1;

    fn frame(kind: u8, flags: u8, len: usize) -> Tally {
        let mut tally = Tally::default();
        let stream = 1;
        tally.count(FrameHeader {
            len,
            kind,
            flags,
            stream,
        });
        tally
    }

    /// How many of the frames are taken, each of which is answered with `answer` bytes; a million stands for all.
    fn taken(budget: &mut FrameBudget, tally: Tally, answer: usize) -> usize {
        (0..1_000_000)
            .take_while(|_| {
                let taken = budget.received(tally).is_ok();
                budget.sent(answer);
                taken
            })
            .count()
    }

    #[tokio::test(start_paused = true)]
    async fn floods_end_and_their_own_answers_do_not_feed_them() {
        let table = [
            ("SETTINGS", frame(FrameHeader::SETTINGS, 0, 0), 9),
            ("new SETTINGS", frame(FrameHeader::SETTINGS, 0, 6), 9),
            ("SETTINGS ACK", frame(FrameHeader::SETTINGS, ACK, 0), 0),
            ("PING", frame(FrameHeader::PING, 0, 8), 17),
            ("PING ACK", frame(FrameHeader::PING, ACK, 8), 0),
            ("PRIORITY", frame(2, 0, 5), 0),
            ("WINDOW_UPDATE", frame(8, 0, 4), 0),
            ("RST_STREAM", frame(FrameHeader::RST_STREAM, 0, 4), 0),
            ("empty DATA", frame(FrameHeader::DATA, 0, 0), 0),
            ("unknown", frame(200, 0, 0), 0),
        ];
        for (name, tally, answer) in table {
            let taken = taken(&mut FrameBudget::default(), tally, answer);
            assert!((300..=20_001).contains(&taken), "{name}: {taken}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_beside_calls_never_end() {
        let call = [
            frame(FrameHeader::HEADERS, 0, 50),
            frame(FrameHeader::DATA, 0, 20),
            frame(8, 0, 4),
            frame(8, 0, 4),
            frame(FrameHeader::PING, 0, 8),
            frame(FrameHeader::RST_STREAM, 0, 4),
        ];
        let mut budget = FrameBudget::default();
        for n in 0..100_000 {
            for tally in call {
                assert_eq!(budget.received(tally), Ok(()), "call {n}");
            }
            budget.sent(80);
        }
        // Events of a watch: the client sends no frame of a call.
        for n in 0..100_000 {
            budget.sent(70);
            for tally in &call[2..5] {
                assert_eq!(budget.received(*tally), Ok(()), "event {n}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_calls_may_be_cancelled_at_once() {
        let mut budget = FrameBudget::default();
        for kind in [FrameHeader::HEADERS, FrameHeader::RST_STREAM] {
            for n in 0..100_000 {
                assert_eq!(budget.received(frame(kind, 0, 4)), Ok(()), "{n}");
            }
        }
        let more = taken(&mut budget, frame(FrameHeader::RST_STREAM, 0, 4), 0);
        assert_eq!(more, 20_000, "those of no call");
    }

    #[tokio::test(start_paused = true)]
    async fn no_budget_allows_what_is_refused() {
        let mut tally = Tally::default();
        tally.refuse();
        assert_eq!(FrameBudget::default().received(tally), Err(Exhausted));
    }

    #[tokio::test(start_paused = true)]
    async fn time_refills_the_budget() {
        let tally = frame(8, 0, 4);
        let mut budget = FrameBudget::default();
        let burst = taken(&mut budget, tally, 0);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(taken(&mut budget, tally, 0), 2_000, "by its rate");
        tokio::time::advance(Duration::from_hours(1)).await;
        assert_eq!(taken(&mut budget, tally, 0), burst, "never above a burst");
    }

    #[test]
    fn a_turn_has_room_for_a_bounded_number_of_each_kind() {
        let header = FRAME_HEADER_BYTES;
        let call = frame(FrameHeader::HEADERS, 0, 100);
        let table = [
            (
                "SETTINGS",
                frame(FrameHeader::SETTINGS, 0, 0),
                0,
                500..=2_000,
            ),
            ("PING", frame(FrameHeader::PING, 0, 8), 8, 500..=2_000),
            ("calls", call, 100, 300..=600),
            (
                "cancelled calls",
                frame(FrameHeader::RST_STREAM, 0, 4),
                4,
                16..=64,
            ),
            (
                "small messages",
                frame(FrameHeader::DATA, 0, 1),
                1,
                1_000..=2_000,
            ),
            (
                "a long message",
                frame(FrameHeader::DATA, 0, 16_384),
                16_384,
                15..=16,
            ),
            // They cost little each: the library joins them.
            (
                "CONTINUATION",
                frame(FrameHeader::CONTINUATION, 0, 20),
                20,
                5_000..=10_000,
            ),
        ];
        for (name, tally, len, expected) in table {
            let turn = TURN_BYTES_MAX / (header + len + tally.turn_bytes());
            assert!(expected.contains(&turn), "{name}: {turn}");
        }
    }
}
