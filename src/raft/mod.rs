//! Consensus, pure.
