//! Lets the tests of the log and of the database run on an encrypted disk as well: their helpers call [`share`], and
//! [`encrypted`] runs a test body so that it encrypts.

use super::{
    EncryptedDisk, EncryptionError, TurnedOn, WrappingKeys,
    disk::wrap_for_tests,
    sealer::{Algorithm, DataKey, KEY_BYTES, Sealer, SecretKey},
};
use crate::storage::disk::Disk;
use std::{cell::Cell, sync::Arc};

thread_local! {
    static ENCRYPTS: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with encryption in all that [`share`] returns on this thread.
pub(crate) fn encrypted(body: impl FnOnce()) {
    struct Off;
    impl Drop for Off {
        fn drop(&mut self) {
            ENCRYPTS.set(false);
        }
    }
    ENCRYPTS.set(true);
    let _off = Off;
    body();
}

/// `disk`, encrypted if the test asks for it: with a fixed data key, and as every start with a salt of its own.
pub(crate) fn share(disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
    if !ENCRYPTS.get() {
        return disk;
    }
    wrap_for_tests(disk, sealer(Algorithm::Aes256Gcm), wrapping(&[9]))
}

/// Whether the test encrypts.
pub(crate) fn is_on() -> bool {
    ENCRYPTS.get()
}

/// A sealer with a fixed data key.
pub(crate) fn sealer(algorithm: Algorithm) -> Arc<Sealer> {
    let key = DataKey {
        id: 1,
        algorithm,
        secret: SecretKey([5; KEY_BYTES]),
    };
    Arc::new(Sealer::new(vec![key]).unwrap())
}

/// Wrapping keys, each made of one byte.
pub(crate) fn wrapping(fills: &[u8]) -> WrappingKeys {
    let lines: Vec<String> = fills
        .iter()
        .map(|fill| format!("{fill:02x}").repeat(32))
        .collect();
    WrappingKeys::parse(lines.join("\n").as_bytes()).unwrap()
}

/// A directory with encryption under [`wrapping`] keys.
pub(crate) fn open(disk: Arc<dyn Disk>, fills: &[u8]) -> Arc<EncryptedDisk> {
    try_open(disk, wrapping(fills), Algorithm::Aes256Gcm)
        .unwrap()
        .0
}

/// As [`EncryptedDisk::open`], without anybody who watches.
pub(crate) fn try_open(
    disk: Arc<dyn Disk>,
    wrapping: WrappingKeys,
    algorithm: Algorithm,
) -> Result<(Arc<EncryptedDisk>, TurnedOn), EncryptionError> {
    EncryptedDisk::open(disk, wrapping, algorithm, &|_, _| true)
}
