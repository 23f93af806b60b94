//! The fields of an encoded protobuf, whatever message it is.

use prost::{
    DecodeError,
    encoding::{self, DecodeContext, WireType},
};

/// One field.
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    /// Its content if it is a message, bytes or a string; else empty.
    pub(crate) body: &'a [u8],
}

/// Walks through the fields of one message, and ends after the first error.
pub(crate) struct Fields<'a> {
    left: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn of(encoded: &'a [u8]) -> Self {
        Self { left: encoded }
    }

    fn read(&mut self) -> Result<Field<'a>, DecodeError> {
        let (number, wire_type) = encoding::decode_key(&mut self.left)?;
        let mut content = self.left;
        encoding::skip_field(wire_type, number, &mut self.left, DecodeContext::default())?;
        let body = match wire_type {
            WireType::LengthDelimited => {
                encoding::decode_varint(&mut content)?;
                // `skip_field` has checked that the content is there: what it left begins where the content ends.
                content.get(..content.len().saturating_sub(self.left.len()))
            }
            WireType::Varint
            | WireType::SixtyFourBit
            | WireType::StartGroup
            | WireType::EndGroup
            | WireType::ThirtyTwoBit => None,
        };
        Ok(Field {
            number,
            body: body.unwrap_or_default(),
        })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.left = &[];
        }
        Some(read)
    }
}
