//! Fuzzes `wal_segment` of `quorate::internals::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate::internals::fuzzing::run("wal_segment", data));
