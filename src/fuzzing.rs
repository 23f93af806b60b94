//! The functions that the fuzzers in `fuzz/` call, one for each target. Compiled for them and for the tests alone.
//!
//! The tests at the foot feed every target with the kept inputs of `fuzz/seeds` and with random bytes: an input that once found
//! something goes there and is tried ever after.

use crate::{
    api::{convert, proto::etcdserverpb as pb},
    codec, config,
    kv::{check, command::Command, encoded_txn, machine_model},
    net, storage,
};
use bytes::Bytes;
use prost::Message;

/// A fuzz target: its name, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 8] = [
    ("peer_frames", net::fuzz::frames),
    ("wal_batch", storage::wal::fuzz::batch),
    ("wal_segment", storage::wal::fuzz::segment),
    ("requests", requests),
    ("log_command", log_command),
    ("config", config::fuzz),
    ("index_model", crate::kv::index::model::fuzz),
    ("machine_model", machine_model::fuzz),
];

/// Runs the target called `name`.
pub fn run(name: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let Some((_, target)) = found else {
        unreachable!("{name} is no target");
    };
    target(data);
}

/// Requests of clients: the first byte chooses which, the rest is its protobuf. What decodes and passes the checks becomes a
/// command that survives the log.
pub fn requests(data: &[u8]) {
    let [which, bytes @ ..] = data else { return };
    match which % 6 {
        0 => {
            if let Ok(request) = pb::RangeRequest::decode(bytes) {
                drop(check::range(&convert::range(request)));
            }
        }
        1 => {
            if let Ok(request) = pb::PutRequest::decode(bytes) {
                let put = convert::put(request);
                if check::put(&put).is_ok() {
                    survives(&Command::Put(put));
                }
            }
        }
        2 => {
            if let Ok(request) = pb::DeleteRangeRequest::decode(bytes) {
                let delete = convert::delete_range(request);
                if check::delete_range(&delete).is_ok() {
                    survives(&Command::DeleteRange(delete));
                }
            }
        }
        3 => {
            let admitted = encoded_txn::check(bytes, 128).is_ok();
            if let Ok(request) = pb::TxnRequest::decode(bytes) {
                let txn = convert::txn(request);
                if check::txn(&txn, 128).is_ok() {
                    assert!(admitted, "what passes in the end passes before decoding");
                    survives(&Command::Txn(txn));
                }
            }
        }
        4 => {
            if let Ok(request) = pb::WatchCreateRequest::decode(bytes) {
                drop(convert::watch(&request));
            }
        }
        _ => drop(pb::WatchRequest::decode(bytes)),
    }
}

/// An entry of the log, as another member sends it: what decodes means the same when it is encoded again.
pub fn log_command(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(command) = codec::decode_shared::<Command>("log command", &bytes) {
        survives(&command);
    }
}

fn survives(command: &Command) {
    let bytes = Bytes::from(codec::encode(command));
    let again = codec::decode_shared::<Command>("log command", &bytes);
    assert_eq!(
        again.ok().as_ref(),
        Some(command),
        "a command survives the log"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, path::Path};

    #[test]
    fn every_kept_input_passes() {
        for (name, target) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("fuzz/seeds")
                .join(name);
            let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
            let mut inputs = 0;
            for file in files {
                target(&fs::read(file.unwrap().path()).unwrap());
                inputs += 1;
            }
            assert!(inputs > 0, "{folder:?} holds inputs to start from");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn random_bytes_pass(data in prop::collection::vec(any::<u8>(), 0..600)) {
            for (_, target) in TARGETS {
                target(&data);
            }
        }
    }
}
