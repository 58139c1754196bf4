//! The Sealwire device SDK.

pub mod address;
pub mod chain;
pub mod content;
pub mod entry;
pub mod identity;
pub mod invite;
pub mod keybox;
pub mod limits;
pub mod membership;
pub mod numbering;
pub mod padding;
pub mod seal;
#[cfg(test)]
mod vectors;
pub mod wire;
