//! The Sealwire device SDK.

pub mod address;
pub mod backoff;
pub mod chain;
pub mod content;
pub mod device;
mod engine;
pub mod entry;
pub mod error;
pub mod event;
pub mod holders;
pub mod identity;
pub mod invite;
pub mod keybox;
pub mod limits;
pub mod membership;
pub mod numbering;
pub mod padding;
pub mod seal;
pub mod session;
mod store;
#[cfg(test)]
mod vectors;
pub mod wire;
