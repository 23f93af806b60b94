//! A gRPC status as HTTP/2 trailers, or as headers where a call fails before its first message.

use super::status::Status;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt::Write;

/// The code of a gRPC status, in decimal.
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// The text of a gRPC error, percent-encoded.
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The trailers of a call that succeeded.
pub(super) fn success() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// The status of a call that failed.
pub(super) fn failure(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert(GRPC_STATUS, HeaderValue::from(status.code as u16));
    // Percent-encoding leaves printable ASCII only, which every header value may contain.
    if let Ok(text) = HeaderValue::from_str(&percent_encoded(&status.message)) {
        headers.insert(GRPC_MESSAGE, text);
    }
    headers
}

/// gRPC's encoding of a status text: printable ASCII except `%` stays as it is.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            write!(out, "%{byte:02X}").unwrap_or_default();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_percent_encoded() {
        assert_eq!(
            percent_encoded("etcdserver: key \"a\""),
            "etcdserver: key \"a\""
        );
        assert_eq!(percent_encoded("100%\n\u{fc}"), "100%25%0A%C3%BC");
    }
}
