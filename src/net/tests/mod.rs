//! Members over real QUIC on the loopback: what they exchange, which connections they refuse, which faults they survive.

mod exchange;
mod floods;
mod foreign;
mod hostile;
mod members;
mod refusals;
mod reload;
