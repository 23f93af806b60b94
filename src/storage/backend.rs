//! redb over the disk seam: the database's storage backend is one [`DiskFile`].
//!
//! So a simulated disk injects the same faults into redb as into the WAL. It does not lock the file: the data directory is locked
//! as a whole.

use super::disk::DiskFile;
use std::{io, sync::Arc, thread};

/// A file that redb reads and writes.
#[derive(Debug)]
pub struct DiskBackend {
    file: Arc<dyn DiskFile>,
}

impl DiskBackend {
    /// Wraps `file`, which must have been opened without direct I/O: redb's buffers are not aligned.
    pub fn new(file: Arc<dyn DiskFile>) -> Self {
        assert!(
            !file.is_direct(),
            "redb writes unaligned buffers, which direct I/O refuses"
        );
        Self { file }
    }
}

impl redb::StorageBackend for DiskBackend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // A commit writes hundreds of pages, and no request waits for it: other threads that need this core run first.
        thread::yield_now();
        self.file.write_at(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        disk::{Disk, OpenMode},
        real_disk::RealDisk,
    };
    use redb::{Database, ReadableDatabase, TableDefinition};

    const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("numbers");
    const MODE: OpenMode = OpenMode {
        create: true,
        direct: false,
    };

    fn open(disk: &dyn Disk) -> Database {
        let backend = DiskBackend::new(disk.open("db/data.redb", MODE).unwrap());
        Database::builder().create_with_backend(backend).unwrap()
    }

    fn put(database: &Database, key: u64, value: &[u8]) {
        let transaction = database.begin_write().unwrap();
        let mut table = transaction.open_table(TABLE).unwrap();
        table.insert(key, value).unwrap();
        drop(table);
        transaction.commit().unwrap();
    }

    fn get(database: &Database, key: u64) -> Option<Vec<u8>> {
        let table = database.begin_read().unwrap().open_table(TABLE).unwrap();
        table.get(key).unwrap().map(|value| value.value().to_vec())
    }

    #[test]
    fn redb_keeps_what_it_committed_to_a_real_file() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        put(&open(&disk), 7, b"seven");
        let database = open(&disk);
        put(&database, 8, b"eight");
        assert_eq!(get(&database, 7).as_deref(), Some(&b"seven"[..]));
        assert_eq!(get(&database, 8).as_deref(), Some(&b"eight"[..]));
    }
}
