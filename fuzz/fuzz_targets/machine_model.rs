//! Fuzzes `machine_model` of `quorate::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate::fuzzing::run("machine_model", data));
