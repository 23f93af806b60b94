//! Copies of the records of a long answer.
//!
//! A record in memory is part of a batch of records, and a reference to one keeps the whole batch in memory. An answer may wait
//! long for its client. So a long answer gets copies. They are made in pieces of 64 KiB, because an allocation for each
//! record, freed on another thread, costs more than the copy.

use super::{
    command::EncodedKv,
    records::{ReadError, Records},
};
use crate::types::Rev;
use bytes::BytesMut;

/// Bytes allocated at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Memory that records are copied into, piece by piece.
#[derive(Debug, Default)]
pub(super) struct CopyBuffer {
    open: BytesMut,
}

impl CopyBuffer {
    /// A copy of the record of a put, unless it is longer than `bytes_max`.
    pub(super) fn read(
        &mut self,
        records: &dyn Records,
        rev: Rev,
        bytes_max: usize,
    ) -> Result<Option<EncodedKv>, ReadError> {
        let mut fits = false;
        records.visit(rev, &mut |kv| {
            fits = kv.len() <= bytes_max;
            if fits {
                self.add(kv);
            }
        })?;
        Ok(fits.then(|| self.open.split().freeze()))
    }

    fn add(&mut self, kv: &[u8]) {
        if self.open.capacity() - self.open.len() < kv.len() {
            self.open = BytesMut::with_capacity(PIECE_BYTES.max(kv.len()));
        }
        self.open.extend_from_slice(kv);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;
    use bytes::Bytes;

    /// Every record is of the length that its revision says.
    struct Sized;

    impl Records for Sized {
        fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
            let len = usize::try_from(rev.major.0).expect("a length");
            Ok(Bytes::from(vec![
                u8::try_from(len % 251).expect("a byte");
                len
            ]))
        }
    }

    #[test]
    fn copies_of_any_size_are_whole_and_lie_together() {
        let lens = [1_000, 0, 30_000, 33_000, 34_000, 200_000, 5, 70_000, 1];
        let (records, mut buffer) = (Sized, CopyBuffer::default());
        let rev = |len: i64| Rev::new(Revision(len), 0);
        let copies: Vec<Bytes> = lens
            .iter()
            .map(|&len| {
                buffer
                    .read(&records, rev(len), usize::MAX)
                    .unwrap()
                    .unwrap()
            })
            .collect();
        for (len, copy) in lens.into_iter().zip(&copies) {
            assert_eq!(copy, &records.get(rev(len)).unwrap());
        }
        let end = copies[0].as_ptr().wrapping_add(copies[0].len());
        assert_eq!(end, copies[2].as_ptr(), "one piece holds several");
    }
}
