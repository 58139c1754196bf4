//! What the Totals app puts into its blobs, and how it seals them: the other half of a `totals`
//! group.
//!
//! A phone that runs the app and a device of this SDK share a group only if every byte here is as
//! the app has it. So this module decides nothing: it seals, opens, writes, reads and says whether
//! a message may be believed. What a message *does* is decided elsewhere ([`crate::ledger`], for
//! money and names; whoever runs the group, for keys and members).
//!
//! | module | holds |
//! |---|---|
//! | [`seal`] | [`GroupKey`](seal::GroupKey), [`PairKey`](seal::PairKey), [`open`](seal::open): AES-256-GCM blobs, as bytes (WebSocket) or hex (HTTP) |
//! | [`payload`] | [`Payload`](payload::Payload), every message of the app as a value, to and from its JSON |
//! | [`rules`] | which `key_exchange` and `join_request` may be believed (the app believes all) |
//! | [`recovery`] | the app's recovery vault: Argon2id over the PIN, one blob |
//!
//! # Sealing and opening
//!
//! ```
//! use sealwire_client::identity::Identity;
//! use sealwire_client::totals::payload::{Payload, SnapshotRequest};
//! use sealwire_client::totals::seal::{self, GroupKey, PairKey, Sealed};
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (anna, ben) = (Identity::generate()?, Identity::generate()?);
//! let group = GroupKey::generate()?;
//! let ask = Payload::SnapshotRequest(SnapshotRequest::new(anna.key(), 1_767_225_600_000));
//!
//! // To all: under the group's key. To one who does not hold it yet: under the key of the two.
//! let body = group.seal(&ask.encode()?)?;
//! let told = PairKey::between(&anna, ben.key())?.seal(b"{}")?;
//!
//! // A reader tries the group's key first, then the key that it shares with the sender.
//! let opened = seal::open(Some(&group), &ben, anna.key(), &body)?;
//! assert!(opened.sealed == Sealed::Group);
//! assert!(Payload::decode(&opened.plaintext)? == ask);
//! assert!(seal::open(Some(&group), &ben, anna.key(), &told)?.sealed == Sealed::Pair);
//! # Ok(())
//! # }
//! # example().expect("sealed and opened");
//! ```
//!
//! # What holds always
//!
//! - Nothing here is signed and there is no additional data: who wrote a message is what the relay
//!   says. An author is *vouched for by the relay*, never proven.
//! - Whatever bytes come, nothing panics; what cannot be read is an error and never half a message.
//! - A field of the wrong type counts as missing, and an element of the wrong type is passed over,
//!   as in the app. A type that is not known is [`PayloadError::Unknown`](payload::PayloadError):
//!   keep it, it may be known after an upgrade.
//! - Keys and plaintext have no `Debug` and are wiped where they are held.

pub mod payload;
pub mod recovery;
pub mod rules;
pub mod seal;
