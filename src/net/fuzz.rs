//! Fuzz target for peers' bytes: a lane, then arbitrary bytes, in pieces of an arbitrary size.

use super::{
    codec::{Lane, decode_message, decode_request, push_message, push_request},
    frame::{Frame, FrameBatch, FrameBuffer},
};

/// Reads `data` as a peer's stream: byte 0 chooses the lane, byte 1 the size of the pieces. Every frame is refused with an
/// error, or means the same when it is written and read once more.
pub fn frames(data: &[u8]) {
    let [lane, piece, bytes @ ..] = data else {
        return;
    };
    let lane = Lane::ALL[usize::from(*lane) % Lane::ALL.len()];
    let mut buffer = FrameBuffer::default();
    for part in bytes.chunks(usize::from(*piece) + 1) {
        buffer.bytes.extend_from_slice(part);
        while let Ok(Some(frame)) = buffer.next() {
            if lane == Lane::Requests {
                request(frame);
            } else {
                message(lane, frame);
            }
        }
    }
    // The same bytes where a frame's body is expected, so that the search need not find the lengths first.
    let (header, payload) = bytes.split_at(bytes.len().min(usize::from(*piece)));
    let frame = Frame {
        header: header.to_vec().into(),
        payload: payload.to_vec().into(),
    };
    request(frame.clone());
    message(lane, frame);
}

fn message(lane: Lane, frame: Frame) {
    let Ok(message) = decode_message(lane, frame) else {
        return;
    };
    let mut batch = FrameBatch::default();
    push_message(&mut batch, &message);
    let again = decode_message(lane, whole(batch));
    assert_eq!(again.ok(), Some(message), "a message survives its encoding");
}

fn request(frame: Frame) {
    let Ok((header, payload)) = decode_request(frame) else {
        return;
    };
    let mut batch = FrameBatch::default();
    push_request(&mut batch, &header, &payload);
    let again = decode_request(whole(batch));
    assert_eq!(
        again.ok(),
        Some((header, payload)),
        "a request survives its encoding"
    );
}

/// The one frame in `batch`.
fn whole(batch: FrameBatch) -> Frame {
    let mut buffer = FrameBuffer::default();
    buffer
        .bytes
        .extend_from_slice(&batch.into_chunks().concat());
    let frame = buffer.next().ok().flatten();
    assert!(frame.is_some(), "what was written is one whole frame");
    frame.unwrap_or_else(|| unreachable!())
}
