//! The Sealwire device SDK: sealed groups over a relay that cannot open them.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use sealwire_client::address::RelayUrl;
//! use sealwire_client::device::{Device, KeyKeeping, Options, Outgoing};
//! use sealwire_client::event::Event;
//!
//! let relay = RelayUrl::parse("wss://relay.example")?;
//! let place = "/home/anna/.local/share/app";
//! let device = Device::create(place, KeyKeeping::Keychain, Options::default()).await?;
//! let mut events = device.events().await?;
//!
//! // Works without a relay in reach; what is to be sent waits in the outbox.
//! let group = device.found_group(&relay).await?;
//! let entry = device.send(group, Outgoing::to_all("hello")).await?;
//!
//! // For as long as the connection lives, what waits is sent, and what is there is received.
//! let connection = device.connect(&relay);
//! device.wait_appended(entry, Duration::from_secs(30)).await?;
//! println!("{}", device.invite(group).await?.link().as_str());
//!
//! while let Ok(event) = events.next().await {
//!     if let Event::Entry(received) = event {
//!         println!("{} bytes from {:?}", received.payload.len(), received.sender);
//!         device.take(&received).await?;
//!     }
//! }
//! connection.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What the relay sees
//!
//! Device keys, who shares a group with whom, who names whom and when, and lengths, rounded up. It
//! sees no content, no content key and no join key, and can add nobody to a group. What it says is
//! checked: every entry is signed and stands in a chain, and whoever is shown another history than
//! the others finds out ([`event::Event::Forked`]), as does whoever is kept from an entry
//! ([`event::Event::Missing`]).
//!
//! # The life of one entry
//!
//! 1. [`device::Device::send`] commits the payload to the outbox. From here on it is not lost.
//! 2. The [`session::Connection`] of the process that talks to the relay sees it. If somebody was
//!    removed since the newest content key was made, another key is made first.
//! 3. The entry gets its number ([`numbering`]), its body is sealed ([`content`], [`padding`],
//!    [`seal`]), the header is signed ([`entry`]), and all of it is committed before a byte is sent
//!    ([`wire`]).
//! 4. The relay answers that it is on its disk, or why it is not; a lost answer is made good by
//!    sending the same bytes again.
//! 5. Another device checks it: the signature, the membership of its author ([`membership`]), its
//!    place in the chain ([`chain`]). It opens it, commits it, tells the app ([`event`]), and only
//!    then permits the relay to delete it.
//!
//! # Where things are
//!
//! | module | holds |
//! |---|---|
//! | [`device`], [`event`], [`error`], [`session`] | the paved path: all that an app needs |
//! | [`advice`] | what a person does next after an error |
//! | [`identity`], [`address`], [`invite`] | who and where |
//! | [`wire`], [`backoff`] | one connection, and when to try another |
//! | [`entry`], [`chain`], [`membership`], [`holders`], [`numbering`] | the rules, as plain values without a socket or a file |
//! | [`content`], [`padding`], [`seal`], [`keybox`] | what is inside, and how it is closed |
//! | [`ledger`] | shared expenses: who has paid what, who owes whom |
//! | [`recovery`], [`stretch`] | a way back after losing a device |
//! | [`totals`] | what the Totals app seals, and how |
//! | [`vault`] | vaults: devices, changesets, snapshots, over one connection |
//! | [`sync`] | an app's own database, the same on all devices of a vault |
//! | [`limits`] | the bounds of a connection |
//!
//! # Two formats of groups
//!
//! A group is `native` or `totals` from its making, for life, and its id says which. A native group
//! is what the paragraphs above speak of. A `totals` group is what the Totals app makes
//! ([`device::Device::create_totals_group`], [`device::Device::join_totals`]): phones are members of
//! it, nothing is signed, members and authors are the relay's word, and whoever asks to be let in is
//! let in by a person ([`device::Device::approve`], [`identity::fingerprint`]).
//!
//! # After losing a device
//!
//! [`device::Device::set_up_recovery`] stores a recovery vault and gives a code for a piece of paper;
//! [`device::Device::restore`] makes a device out of code and PIN ([`recovery`]).

pub mod address;
pub mod advice;
pub mod backoff;
pub mod chain;
pub mod content;
pub mod device;
mod engine;
pub mod entry;
pub mod error;
pub mod event;
pub mod holders;
mod http;
pub mod identity;
pub mod invite;
pub mod keybox;
pub mod ledger;
pub mod limits;
pub mod membership;
pub mod numbering;
pub mod padding;
pub mod recovery;
pub mod seal;
pub mod session;
mod spoiled;
mod store;
pub mod stretch;
pub mod sync;
pub mod totals;
pub mod vault;
#[cfg(test)]
mod vectors;
pub mod wire;
