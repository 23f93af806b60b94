//! Fuzzes `index_model` of `quorate::internals::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate::internals::fuzzing::run("index_model", data));
