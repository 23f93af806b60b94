//! Fuzzes `log_command` of `quorate::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate::fuzzing::run("log_command", data));
