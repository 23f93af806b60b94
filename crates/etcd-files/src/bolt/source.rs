//! Where the bytes of a database file come from. A source is only read.

use super::error::BoltError;
use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
};

/// Bytes that can be read at any offset.
pub trait Source {
    /// How many bytes there are.
    fn length(&self) -> io::Result<u64>;

    /// Fills the buffer with the bytes at `offset`. It is an error if there are fewer.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl Source for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buffer.len()));
        let bytes = found.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl Source for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        self.as_slice().length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buffer)
    }
}

impl<S: Source + ?Sized> Source for &S {
    fn length(&self) -> io::Result<u64> {
        (**self).length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }
}

/// A source of which the page size and the number of pages are known.
#[derive(Debug)]
pub(super) struct PageFile<S> {
    pub(super) source: S,
    pub(super) page_bytes: u64,
    pub(super) pages: u64,
}

impl<S: Source> PageFile<S> {
    /// Reads bytes that the caller knows to be within the file.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BoltError> {
        let read = self.source.read_at(offset, buffer);
        read.map_err(|cause| BoltError::Read {
            offset,
            bytes: buffer.len(),
            cause,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn files_and_slices_read_alike() {
        let bytes: Vec<u8> = (0..100).collect();
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&bytes).expect("writes");
        for source in [&file as &dyn Source, &bytes] {
            assert_eq!(source.length().expect("a length"), 100);
            let mut found = [0; 3];
            source.read_at(97, &mut found).expect("the last bytes");
            assert_eq!(found, [97, 98, 99]);
            for offset in [98, 100, 101, u64::MAX >> 1] {
                assert!(source.read_at(offset, &mut found).is_err(), "{offset}");
            }
        }
        assert!(bytes.read_at(u64::MAX, &mut [0]).is_err());
    }
}
