//! Compressed messages of clients.
//!
//! A client that says so in `grpc-encoding` may compress its messages with gzip. The limit on a message's length counts after
//! decompression too. Responses are never compressed.

use super::status::Status;
use bytes::Bytes;
use flate2::bufread::GzDecoder;
use http::{HeaderMap, HeaderValue};
use std::io::{self, Read};

/// The most gzip members in a compressed message. Implementations of gRPC send one; gzip's tools concatenate a few. Each costs
/// some microseconds, however short it is.
const GZIP_MEMBERS_MAX: usize = 16;
const GZIP_MEMBER_BYTES: usize = 16 * 1024;

/// How a client encodes the messages that it marks as compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Compressed messages are an error.
    #[default]
    Identity,
    /// RFC 1952.
    Gzip,
}

impl Encoding {
    /// The encoding that a request's headers declare.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Status> {
        match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
            None | Some(b"identity") => Ok(Self::Identity),
            Some(b"gzip") => Ok(Self::Gzip),
            Some(other) => Err(Status::unknown_encoding(&String::from_utf8_lossy(other))),
        }
    }

    /// The message that `compressed` contains, of at most `bytes_max` bytes.
    pub(super) fn decompress(self, compressed: &[u8], bytes_max: usize) -> Result<Bytes, Status> {
        match self {
            Self::Identity => Err(Status::unexpected_compression()),
            Self::Gzip => gunzip(compressed, bytes_max),
        }
    }
}

/// Decompresses the members of a gzip file, one after the other.
fn gunzip(compressed: &[u8], bytes_max: usize) -> Result<Bytes, Status> {
    let (mut message, mut left) = (Vec::new(), compressed);
    let members_max = GZIP_MEMBERS_MAX + compressed.len() / GZIP_MEMBER_BYTES;
    for _ in 0..members_max {
        let mut member = GzDecoder::new(left);
        // One byte more shows that the message is too large.
        let room = bytes_max + 1 - message.len();
        (&mut member)
            .take(room as u64)
            .read_to_end(&mut message)
            .map_err(|error| Status::malformed_compression(&error))?;
        if message.len() > bytes_max {
            return Err(Status::decompressed_too_large(bytes_max));
        }
        left = member.into_inner();
        if left.is_empty() {
            return Ok(message.into());
        }
    }
    let error = io::Error::other(format!("gzip: more than {members_max} members"));
    Err(Status::malformed_compression(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::Code;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_members_are_bounded_by_the_bytes_of_the_message() {
        let some = [gzip(b"joined "), gzip(b""), gzip(b"members")].concat();
        let joined = Encoding::Gzip.decompress(&some, 100).unwrap();
        assert_eq!(joined, "joined members");
        let empty = vec![gzip(b""); GZIP_MEMBERS_MAX + 1].concat();
        let refused = Encoding::Gzip.decompress(&empty, 100).unwrap_err();
        assert_eq!(refused.code, Code::Internal, "{refused}");
    }
}
