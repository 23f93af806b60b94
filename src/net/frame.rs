//! Frames of the lasting streams: a bincode header and, behind it, the payloads whose lengths the header names.
//!
//! Large payloads are sent without a copy; received ones share the buffer that they were read into. Lengths are checked before
//! memory is allocated for them.

use crate::codec;
use bincode::Encode;
use bytes::{Buf, Bytes, BytesMut};

/// The longest frame, in bytes after its length: more than the largest entry.
pub const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest header: that of an append of a quarter million entries.
pub(super) const HEADER_BYTES_MAX: usize = 1024 * 1024;
/// The frame's length and the header's.
const PREFIX_BYTES: usize = 8;
/// Payloads of at least this size go to QUIC without a copy; copying a smaller one is cheaper than writing it separately.
const OWN_CHUNK_BYTES: usize = 4_096;

/// Why a peer's bytes are not a frame. The connection is closed with this reason.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// It would be longer than any frame.
    #[error("a frame of {bytes} bytes, at most {FRAME_BYTES_MAX} are allowed")]
    Oversized {
        /// Its stated length.
        bytes: usize,
    },
    /// The header does not fit the frame.
    #[error("a header of {header} bytes in a frame of {frame}")]
    Header {
        /// The header's stated length.
        header: usize,
        /// The frame's.
        frame: usize,
    },
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
    /// The payloads named in the header are not what follows it.
    #[error("{stated} payload bytes are stated, {found} follow")]
    Payload {
        /// What the header says.
        stated: usize,
        found: usize,
    },
    /// A message came over a stream that is not its own.
    #[error("a {what} came over stream {lane}")]
    WrongLane {
        what: &'static str,
        lane: &'static str,
    },
}

/// A frame as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) header: Bytes,
    pub(super) payload: Bytes,
}

/// Encoded frames to send, in as few pieces as possible.
#[derive(Debug, Default)]
pub(super) struct FrameBatch {
    chunks: Vec<Bytes>,
    tail: Vec<u8>,
}

impl FrameBatch {
    /// Appends a frame: a header, and the payloads whose lengths it contains.
    pub(super) fn push<'p>(
        &mut self,
        header: &impl Encode,
        payloads: impl Iterator<Item = &'p Bytes> + Clone,
    ) {
        let start = self.tail.len();
        self.tail.extend_from_slice(&[0; PREFIX_BYTES]);
        codec::encode_into(header, &mut self.tail);
        let header_bytes = self.tail.len() - start - PREFIX_BYTES;
        let payload_bytes: usize = payloads.clone().map(Bytes::len).sum();
        let frame_bytes = 4 + header_bytes + payload_bytes;
        assert!(
            frame_bytes <= FRAME_BYTES_MAX,
            "a frame of {frame_bytes} bytes: requests and appends are bounded below a frame's limit"
        );
        assert!(
            header_bytes <= HEADER_BYTES_MAX,
            "a header of {header_bytes} bytes: an append is bounded in bytes, and so in entries"
        );
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
        self.tail[start..start + 4].copy_from_slice(&length(frame_bytes));
        self.tail[start + 4..start + 8].copy_from_slice(&length(header_bytes));
        for payload in payloads {
            if payload.len() < OWN_CHUNK_BYTES {
                self.tail.extend_from_slice(payload);
            } else {
                self.flush();
                self.chunks.push(payload.clone());
            }
        }
    }

    fn flush(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push(std::mem::take(&mut self.tail).into());
        }
    }

    /// The bytes to write.
    pub(super) fn into_chunks(mut self) -> Vec<Bytes> {
        self.flush();
        self.chunks
    }
}

/// Received bytes that are not decoded yet.
#[derive(Debug, Default)]
pub(super) struct FrameBuffer {
    pub(super) bytes: BytesMut,
}

impl FrameBuffer {
    /// The next frame, if it is whole.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes) as usize;
        let Some(length) = self.bytes.get(..4) else {
            return Ok(None);
        };
        let frame = number(length);
        if frame > FRAME_BYTES_MAX {
            return Err(FrameError::Oversized { bytes: frame });
        }
        let Some(length) = self.bytes.get(4..PREFIX_BYTES) else {
            return Ok(None);
        };
        let header = number(length);
        if header > HEADER_BYTES_MAX || header + 4 > frame {
            return Err(FrameError::Header { header, frame });
        }
        if self.bytes.len() < 4 + frame {
            return Ok(None);
        }
        let mut whole = self.bytes.split_to(4 + frame).freeze();
        whole.advance(PREFIX_BYTES);
        let header = whole.split_to(header);
        Ok(Some(Frame {
            header,
            payload: whole,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oversized_frame_is_refused_by_its_length_alone() {
        let mut buffer = FrameBuffer::default();
        buffer.bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(buffer.next(), Err(FrameError::Oversized { .. })));
    }

    #[test]
    fn a_header_longer_than_its_frame_is_refused() {
        let mut buffer = FrameBuffer::default();
        buffer.bytes.extend_from_slice(&[20, 0, 0, 0, 17, 0, 0, 0]);
        assert!(matches!(
            buffer.next(),
            Err(FrameError::Header {
                header: 17,
                frame: 20
            })
        ));
    }

    #[test]
    fn a_large_payload_is_not_copied() {
        let data = Bytes::from(vec![7; OWN_CHUNK_BYTES]);
        let mut batch = FrameBatch::default();
        batch.push(&4_096_u32, std::iter::once(&data));
        let chunks = batch.into_chunks();
        assert!(
            chunks.iter().any(|chunk| chunk.as_ptr() == data.as_ptr()),
            "the same bytes leave"
        );
        let mut buffer = FrameBuffer {
            bytes: chunks.concat().as_slice().into(),
        };
        assert_eq!(buffer.next().unwrap().unwrap().payload, data);
    }
}
