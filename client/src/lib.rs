//! The Sealwire device SDK.

pub mod address;
pub mod identity;
pub mod keybox;
pub mod limits;
pub mod padding;
pub mod seal;
#[cfg(test)]
mod vectors;
pub mod wire;
