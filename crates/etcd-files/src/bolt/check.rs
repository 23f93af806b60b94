//! Checks a whole file: every page that is in use, and the list of those that are not.

use super::{
    error::{BoltError, MetaFault},
    header::{HEADER_BYTES, Header, META},
    image::{Bucket, Image},
    source::Source,
};

/// What a file holds in which [`Image::check`] found no fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    pub buckets: u64,
    pub items: u64,
    /// The pages that the freelist has. Files of etcd have no freelist since etcd 3.4.
    pub free_pages: u64,
}

impl<S: Source> Image<S> {
    /// Checks all pages that are reachable: each is in the file, used once, of the right kind and with its own number; its
    /// elements lie within it, and keys ascend. Values are not read, and pages that nothing leads to are no fault. The memory
    /// this takes is that of [`Bucket::items`].
    pub fn check(&self) -> Result<Checked, BoltError> {
        self.check_meta_header()?;
        let mut visited = self.visited();
        let mut checked = Checked::default();
        if let Some(freelist) = self.freelist() {
            freelist.mark(self.file(), &mut visited)?;
        }
        let mut root = self.root_walk();
        while let Some(element) = root.next(&mut visited)? {
            let bucket = Bucket::read(self, &root, &element)?;
            checked.buckets += 1;
            let mut walk = bucket.walk();
            while walk.next(&mut visited)?.is_some() {
                checked.items += 1;
            }
        }
        if let Some(freelist) = self.freelist() {
            freelist.check(self.file(), &mut visited)?;
            checked.free_pages = freelist.count();
        }
        Ok(checked)
    }

    /// bbolt does not verify the header of a meta page, so this is no condition for reading the file.
    fn check_meta_header(&self) -> Result<(), BoltError> {
        let meta = self.meta();
        let mut bytes = [0; HEADER_BYTES];
        self.file()
            .read(meta.page * self.page_bytes(), &mut bytes)?;
        let Header { id, flags, .. } = Header::parse(&bytes);
        if id != meta.page || flags != META {
            return Err(meta.error(MetaFault::Header { id, flags }));
        }
        Ok(())
    }
}
