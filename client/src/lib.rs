//! The Sealwire device SDK.

pub mod address;
pub mod identity;
pub mod limits;
pub mod wire;
