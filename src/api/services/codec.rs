//! The codec of tonic's servers: `prost`'s, except that a malformed message gets the same error as in the spliced services.

use crate::api::message_reader::decode;
use bytes::Buf;
use prost::Message;
use std::marker::PhantomData;
use tonic::codec::{BufferSettings, DecodeBuf};
use tonic_prost::ProstEncoder;

/// Encodes `T`, decodes `U`. `build.rs` has the generated servers use it.
#[derive(Debug)]
pub(crate) struct Codec<T, U>(PhantomData<(T, U)>);

#[derive(Debug)]
pub(crate) struct Decoder<U>(PhantomData<U>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Decoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoder(PhantomData)
    }
}

impl<U: Message + Default + 'static> tonic::codec::Decoder for Decoder<U> {
    type Item = U;
    type Error = tonic::Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, tonic::Status> {
        let message = message.copy_to_bytes(message.remaining());
        Ok(Some(decode(message)?))
    }
}
