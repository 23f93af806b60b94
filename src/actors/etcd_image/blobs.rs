//! Cuts an image into the blobs that a client receives.
//!
//! etcd: blobs of 32 KiB, the last one shorter, and then the image's SHA-256 as a blob of its own.

use super::error::ImageError;
use bytes::{Bytes, BytesMut};
use std::io::{self, ErrorKind, Write};
use tokio::sync::mpsc;

/// The length of a blob, and how many may wait for their client.
const BLOB_BYTES: usize = 32 * 1024;
pub(super) const BLOBS_MAX: usize = 4;

/// A piece of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub bytes: Bytes,
    /// Bytes of the image, without its hash, that come after this.
    pub left: u64,
    /// Whether this is the hash, which ends the image.
    pub is_hash: bool,
}

/// Takes the bytes of an image. It blocks while enough blobs wait.
pub(super) struct BlobWriter {
    out: mpsc::Sender<Result<Blob, ImageError>>,
    buffer: BytesMut,
    /// Bytes of the image that are still to be written.
    left: u64,
}

impl BlobWriter {
    /// Takes an image of so many bytes, and then its hash.
    pub(super) fn new(out: mpsc::Sender<Result<Blob, ImageError>>, image_bytes: u64) -> Self {
        Self {
            out,
            buffer: BytesMut::with_capacity(BLOB_BYTES),
            left: image_bytes,
        }
    }

    fn send(&mut self, is_hash: bool) -> io::Result<()> {
        let blob = Blob {
            bytes: self.buffer.split().freeze(),
            left: self.left,
            is_hash,
        };
        self.buffer.reserve(BLOB_BYTES);
        let sent = self.out.blocking_send(Ok(blob));
        sent.map_err(|_| io::Error::from(ErrorKind::BrokenPipe))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = BLOB_BYTES - self.buffer.len();
        if self.left == 0 {
            let taken = room.min(bytes.len());
            self.buffer.extend_from_slice(&bytes[..taken]);
            return Ok(taken);
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let taken = room.min(left).min(bytes.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        self.left -= taken as u64;
        if self.buffer.len() == BLOB_BYTES || self.left == 0 {
            self.send(false)?;
        }
        Ok(taken)
    }

    /// Sends the hash. The image itself is sent as it is written.
    fn flush(&mut self) -> io::Result<()> {
        if self.left > 0 || self.buffer.is_empty() {
            return Ok(());
        }
        self.send(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_count_down_and_the_hash_is_one_of_its_own() {
        const PAGE: usize = 4_096;
        for pages in [1, 8, 9, 17] {
            let (out, mut blobs) = mpsc::channel(BLOBS_MAX);
            let written = std::thread::spawn(move || {
                let image_bytes = (pages * PAGE) as u64;
                let mut writer = BlobWriter::new(out, image_bytes);
                for page in 0..pages {
                    let fill = u8::try_from(page).expect("there are few");
                    writer.write_all(&[fill; PAGE]).expect("it is taken");
                }
                writer.write_all(&[255; 32]).expect("it is taken");
                writer.flush().expect("it is taken");
            });
            let (mut image, mut hash) = (Vec::new(), None);
            let mut left = (pages * PAGE) as u64;
            while let Some(blob) = blobs.blocking_recv() {
                let blob = blob.expect("a blob");
                assert!(hash.is_none(), "nothing follows the hash");
                if blob.is_hash {
                    hash = Some(blob.bytes);
                    continue;
                }
                left -= blob.bytes.len() as u64;
                assert_eq!(blob.left, left);
                assert!(
                    blob.bytes.len() == BLOB_BYTES || left == 0,
                    "blobs are full"
                );
                image.extend_from_slice(&blob.bytes);
            }
            written.join().expect("it has no cause to panic");
            let expected: Vec<u8> = (0..pages)
                .flat_map(|page| [u8::try_from(page).expect("there are few"); PAGE])
                .collect();
            assert_eq!(image, expected, "{pages} pages");
            assert_eq!(hash.as_deref(), Some(&[255; 32][..]));
        }
    }

    #[test]
    fn an_image_that_nobody_takes_ends() {
        let (out, blobs) = mpsc::channel(BLOBS_MAX);
        drop(blobs);
        let mut writer = BlobWriter::new(out, BLOB_BYTES as u64);
        let error = writer.write_all(&vec![0; BLOB_BYTES]);
        assert_eq!(
            error.map_err(|error| error.kind()),
            Err(ErrorKind::BrokenPipe)
        );
    }
}
