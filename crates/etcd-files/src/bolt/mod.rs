//! The database file of bbolt.
