//! The write-ahead log and the files beside it.
