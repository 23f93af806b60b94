//! The one module that calls bincode: sized, fixed-configuration encoding of log commands, peer messages and metadata.
//!
//! Every decode has a limit, so that a length in hostile or damaged bytes cannot cause a large allocation.

use bincode::{
    BorrowDecode, Decode, Encode, config,
    de::BorrowDecoder,
    enc::Encoder,
    error::{DecodeError, EncodeError},
};
use bytes::Bytes;
use std::fmt;

/// The largest encoded value this module decodes, in bytes. Larger than any request the API admits.
pub const DECODE_BYTES_MAX: usize = 64 * 1024 * 1024;

type Config =
    config::Configuration<config::LittleEndian, config::Varint, config::Limit<DECODE_BYTES_MAX>>;

const CONFIG: Config = config::standard().with_limit::<DECODE_BYTES_MAX>();

/// Why bytes cannot be decoded. Retrying does not help.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not an encoding of the value.
    #[error("cannot decode {what}: {source}")]
    Malformed {
        /// Which value was expected.
        what: &'static str,
        source: Box<DecodeError>,
    },
    /// The value ended before the bytes did.
    #[error("{extra} bytes follow the encoded {what}")]
    Trailing {
        /// Which value was expected.
        what: &'static str,
        /// How many bytes were left.
        extra: usize,
    },
}

/// Appends the encoding of `value` to `out`.
pub fn encode_into<T: Encode>(value: &T, out: &mut Vec<u8>) {
    let written = bincode::encode_into_std_write(value, out, CONFIG);
    assert!(
        written.is_ok(),
        "our own types encode into memory without fail: {written:?}"
    );
}

/// The encoding of `value`.
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(value, &mut out);
    out
}

/// Decodes a value that fills all of `bytes`; `what` names it in errors.
pub fn decode<T: Decode<()>>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = decode_prefix(what, bytes)?;
    match bytes.len() - used {
        0 => Ok(value),
        extra => Err(CodecError::Trailing { what, extra }),
    }
}

/// Decodes a value at the start of `bytes`; also returns its encoded length.
pub fn decode_prefix<T: Decode<()>>(
    what: &'static str,
    bytes: &[u8],
) -> Result<(T, usize), CodecError> {
    bincode::decode_from_slice(bytes, CONFIG).map_err(|source| CodecError::Malformed {
        what,
        source: Box::new(source),
    })
}

/// A byte string inside an encoded value. Decoding does not copy it: it shares the buffer it was decoded from.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(pub Bytes);

/// The buffer that the [`Blob`]s of a value under decoding share.
#[derive(Clone, Debug)]
#[cfg_attr(
    face,
    expect(unnameable_types, reason = "only a parameter of bincode's trait")
)]
pub struct Shared(Bytes);

/// Decodes a value that fills all of `bytes`, and whose [`Blob`]s share that buffer; `what` names it in errors.
pub fn decode_shared<T>(what: &'static str, bytes: &Bytes) -> Result<T, CodecError>
where
    T: for<'de> BorrowDecode<'de, Shared>,
{
    let decoded =
        bincode::borrow_decode_from_slice_with_context(bytes, CONFIG, Shared(bytes.clone()));
    let (value, used) = decoded.map_err(|source| CodecError::Malformed {
        what,
        source: Box::new(source),
    })?;
    match bytes.len() - used {
        0 => Ok(value),
        extra => Err(CodecError::Trailing { what, extra }),
    }
}

impl Encode for Blob {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.as_ref().encode(encoder)
    }
}

impl<'de> BorrowDecode<'de, Shared> for Blob {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Shared>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        let slice = <&'de [u8]>::borrow_decode(decoder)?;
        Ok(Self(decoder.context().0.slice_ref(slice)))
    }
}

impl std::ops::Deref for Blob {
    type Target = Bytes;
    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<&'static str> for Blob {
    fn from(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<String> for Blob {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
