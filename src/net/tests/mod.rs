//! Members over real QUIC on the loopback: what they exchange, whom they refuse, what they survive.

mod exchange;
mod hostile;
mod members;
mod refusals;
mod reload;
