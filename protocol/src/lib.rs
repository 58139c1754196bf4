//! What both ends of Sealwire's wire must agree on.
//!
//! A device and a relay speak MessagePack frames over one WebSocket:
//!
//! ```text
//! device                                relay
//!   | <------------------- Greeting -- |   challenge, relay key, version range
//!   | -- Authenticate ---------------> |   signature over the greeting as received
//!   | <-------------------- Welcome -- |   the relay's own proof, its limits, the device's logs
//!   | -- Subscribe {log, cursor} ----> |
//!   | <----------------- Subscribed -- |   then Entry and Stubs from the cursor on, then Drained
//!   | -- Append {header, body, …} ---> |
//!   | <------------------- Appended -- |   fsynced; only now others see it
//!   | -- Ack {log, floor, ranges} ---> |   the relay may delete what every addressee has acked
//! ```
//!
//! This crate has no runtime, no socket and no clock: a client on another runtime, or in wasm, can
//! use it. Everything in it that arrives from outside is decoded by code that checks a length
//! before it allocates for it. `docs/PROTOCOL.md` says the same for people who write a client in
//! another language; the JSON files in `vectors/` let them check it.
//!
//! | module | holds |
//! |---|---|
//! | [`ids`] | names: device keys, log ids, digests, heads |
//! | [`header`] | the canonical, signed bytes that say what an entry is |
//! | [`digest`] | entry digests, the chain, log ids |
//! | [`control`], [`keys`] | the two kinds of body that the relay can read |
//! | [`handshake`], [`signing`], [`token`], [`challenge`] | who is there, and how it is proved |
//! | [`frame`], [`codec`] | every message, and its bytes |
//! | [`ack`] | the permission to delete, as a floor and ranges |
//! | [`error`], [`close`], [`limits`] | what can go wrong, and what is too much |

pub mod ack;
pub mod body;
pub mod bounded;
pub mod challenge;
pub mod close;
pub mod codec;
pub mod control;
pub mod digest;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod header;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod signing;
mod strict;
pub mod token;

pub use ack::AckSet;
pub use body::Body;
pub use control::Control;
pub use error::{ErrorCode, Failure};
pub use frame::{ClientFrame, EntryIn, RelayFrame};
pub use header::{Audience, Header, Kind};
pub use ids::{DeviceKey, Digest, Head, Instance, LogId, LogType};
