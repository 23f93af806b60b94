//! Fuzzes `config` of `quorate::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate::fuzzing::run("config", data));
