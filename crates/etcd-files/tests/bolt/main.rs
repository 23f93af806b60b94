//! Reads and writes bbolt's files through the crate's public names: what is written is read again, what is hostile is refused,
//! and real ones are exchanged with etcd.

#![expect(
    clippy::missing_assert_message,
    reason = "here an assertion is a test's result, and the test's name says what it means"
)]

mod fuzzing;
mod hostile;
mod memory;
mod real;
mod round_trip;
mod support;
