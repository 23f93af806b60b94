//! How the generated servers decode and encode messages: as `prost` does. If a message cannot be decoded, the
//! [`tonic::Status`] has the [`prost::DecodeError`] as its source, so that the server can choose code and text.

use crate::wire_types;
use bytes::Buf;
use prost::Message;
use std::{marker::PhantomData, sync::Arc};
use tonic::{
    Status,
    codec::{BufferSettings, DecodeBuf},
};
use tonic_prost::ProstEncoder;

/// Encodes answers of type `T` and decodes requests of type `U`.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

/// Decodes requests of type `U`.
#[derive(Debug)]
pub struct Decoder<U>(PhantomData<U>);

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
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = message.copy_to_bytes(message.remaining());
        match wire_types::decode::<U>(message) {
            Ok(message) => Ok(Some(message)),
            Err(error) => {
                let mut status = Status::internal(error.to_string());
                status.set_source(Arc::new(error));
                Err(status)
            }
        }
    }
}
