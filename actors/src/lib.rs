//! What a Sealwire relay decides: sessions, registry, logs, persistence, retention, doorbells.
//!
//! Nothing here opens a socket, speaks SQL or knows HTTP: the actors ask the world through the
//! traits of [`ports`], which the relay crate implements and tests replace.

//!
//! A frame of a device comes in through [`session`], which checks what needs no log and hands
//! entries to the one actor of their log ([`registry`] knows it, and starts it when it is first
//! needed). The log orders, the committer makes durable, and only then the log publishes to the
//! [`outbox`] of every subscriber. [`system`] draws who supervises whom.

mod catch_up;
mod committer;
mod entry;
#[cfg(any(test, feature = "fakes"))]
pub mod fakes;
mod heartbeat;
pub mod limits;
mod listener;
mod log;
mod look;
mod mailbox;
mod meters;
pub mod metrics;
pub mod outbox;
mod pace;
pub mod passes;
pub mod ports;
pub mod push;
mod push_token;
pub mod recovery;
pub mod registry;
mod reply;
mod retention;
pub mod session;
mod supervisor;
pub mod system;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "any frame but the expected one fails a test")]
mod tests;
pub mod totals;
mod turns;
mod unheard;
pub mod vaults;
pub mod worker;

pub use outbox::Outbox;
pub use registry::Registry;
pub use session::{Greeter, Rejected, Session, Step};
pub use system::{Options, StartError, System};
