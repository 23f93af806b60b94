//! Fuzzes `wal_batch` of `quorate::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate::fuzzing::run("wal_batch", data));
