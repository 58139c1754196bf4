//! What a Sealwire relay decides: sessions, registry, logs, persistence, retention.
//!
//! Nothing here opens a socket, speaks SQL or knows HTTP: the actors ask the world through the
//! traits of [`ports`], which the relay crate implements and tests replace.

#[cfg(any(test, feature = "fakes"))]
pub mod fakes;
pub mod ports;
