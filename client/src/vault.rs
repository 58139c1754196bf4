//! A vault: one encrypted database on every device of a person or household.
//!
//! A [`Vault`] is what one device knows of one vault: how far it has read, who is enrolled, the
//! content keys, and where its own entries stand. It has no file and no socket; it is told to do
//! things over a [`Wire`], one after the other, and gives what it has read. What must outlive the
//! process it gives as bytes ([`Vault::save`]). [`crate::sync`] keeps a whole database on it.
//!
//! What the relay says is checked: every entry is signed by a device that was enrolled when it was
//! ordered, its count and digest follow its author's before, and the chain is computed, never
//! believed. What is wrong by itself is kept apart ([`Pulled::rejected`]) and stops nothing, and what came
//! otherwise than it was written is read again; what makes two histories ends the work with an error.
//!
//! ```no_run
//! # async fn example(mut wire: sealwire_client::wire::Wire)
//! # -> Result<(), sealwire_client::vault::VaultError> {
//! use std::sync::Arc;
//! use sealwire_client::identity::Identity;
//! use sealwire_client::vault::Vault;
//!
//! let laptop = Arc::new(Identity::generate()?);
//! let mut vault = Vault::create(laptop, &mut wire).await?;
//! vault.push(&mut wire, &[b"a changeset".to_vec()]).await?;
//! for changeset in vault.pull(&mut wire).await?.changesets {
//!     println!("{} bytes at {}", changeset.payload.len(), changeset.seq);
//! }
//! # Ok(())
//! # }
//! ```

mod chains;
mod devices;
mod keys;
mod reading;
mod saved;
mod scopes;
mod snapshot;
mod spoiled;
mod waiting;
mod writing;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sealwire_protocol::digest::native_log_id;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::ids::{Scope, Signature};
use sealwire_protocol::{Control, DeviceKey, Failure, Head, LogId, LogType, RelayFrame};
use thiserror::Error;

pub use devices::{Devices, Refusal};
pub(crate) use reading::{Arrived, Reading};
pub use reading::{Changeset, Pulled};
pub(crate) use snapshot::{Packer, Unpacked, unpacking};
pub use snapshot::{STATE_BYTES_MAX, SnapshotError};
pub(crate) use writing::Journal;

use crate::chain::Track;
use crate::entry::Outline;
use crate::identity::{Identity, NoRandomness, random};
use crate::numbering::Mark;
use crate::spoiled::Unproven;
use crate::wire::{Wire, WireError};
use chains::Chains;
use keys::Keys;
use saved::Saved;
use scopes::Scopes;
pub(crate) use scopes::new_scope;
use spoiled::{Healing, Spoiled};
use waiting::{Rereading, Waiting};

/// Why something could not be done. Unless it says otherwise, nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The connection failed, or the relay has refused: [`VaultError::refusal`] says how.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The relay answered something that is no answer to what it was asked.
    #[error("the relay's answer is not one")]
    Answer,
    /// The relay left out an entry, repeated one, or named a head on another chain: what it shows is
    /// not one history. Tell a person.
    #[error("the relay shows another history than the one that was read")]
    Forked,
    /// The relay has let go of entries that this device has not read, and names no snapshot that holds
    /// them. Nothing was passed over: the next attempt asks again from the same place. Tell a person.
    #[error("the relay withholds entries and names no snapshot that holds them")]
    Withheld,
    /// An entry came otherwise than it was written ([`Rejection::is_spoiled`]), and has not come whole
    /// since: what this device has may lack it. It is read again by later pulls.
    ///
    /// [`Rejection::is_spoiled`]: crate::entry::Rejection::is_spoiled
    #[error("an entry of the vault came spoiled and has not come whole yet")]
    Spoiled,
    /// This device does not hold the content key that it needs.
    #[error("this device does not hold the content key")]
    NoKey,
    /// This device has written under a private scope whose name does not say whose it is, as versions
    /// before the first release made them: no key of it is believed any more, and this device's own key is
    /// all that opens it. Nothing was handed over.
    #[error(
        "what is private in the vault is of an older version, and only the lost device opens it"
    )]
    OldScope,
    /// Longer than a body may be.
    #[error("the payload is too long")]
    TooLong,
    /// Another device kept making rotations; this one was made anew as often as is sensible.
    #[error("others keep changing the keys")]
    Contended,
    /// A device was removed, or a key made, since a snapshot was sealed: whoever is gone could open it.
    /// It was not made real; make it anew.
    #[error("the snapshot is sealed under a key that is not the newest any more")]
    Outdated,
    /// A snapshot could not be made or opened.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// What was to be sent could not be kept before.
    #[error("what is to be sent cannot be kept")]
    Store,
    /// See [`NoRandomness`].
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl VaultError {
    /// What the relay said, if it has refused.
    #[must_use]
    pub fn refusal(&self) -> Option<Failure> {
        let Self::Wire(WireError::Refused(failure)) = self else { return None };
        Some(**failure)
    }

    /// The relay's code, if it has refused.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        self.refusal().map(|failure| failure.code)
    }
}

/// One vault as one device knows it.
pub struct Vault {
    device: Arc<Identity>,
    log: LogId,
    track: Track,
    devices: Devices,
    /// The newest entry of each device that was read.
    senders: BTreeMap<DeviceKey, Mark>,
    /// Those of them whose newest known entry lies below a floor: the next one may skip some.
    loose: BTreeSet<DeviceKey>,
    /// Entries that were not believed, for the next one of their author to name.
    unproven: Unproven,
    /// What came otherwise than it was written, and is to be read again.
    spoiled: Option<Spoiled>,
    /// That reading, while it is under way.
    healing: Option<Healing>,
    /// The newest entry of this device that was appended.
    own: Mark,
    keys: Keys,
    scopes: Scopes,
    /// The newest epoch of each scope that a rotation has made.
    epochs: BTreeMap<Scope, u32>,
    /// Who has enrolled this device; none if it has founded the vault, or is not enrolled.
    enroller: Option<DeviceKey>,
    /// The newest chains that were read.
    chains: Chains,
    /// Of which snapshot the relay has said that it holds what is gone: its head must turn out to lie on
    /// the chain.
    expected: Option<Head>,
    /// Changesets as they came, for whoever opens them itself; none if this vault does.
    arrived: Option<Vec<Arrived>>,
    /// Told of entries before they are sent, so that they can be sent again.
    journal: Option<Journal>,
    /// The scopes, besides the first, under which this device has written or which it has rotated, believed
    /// or not; none if nobody asks ([`Vault::note_own_scopes`]).
    noted: Option<BTreeSet<Scope>>,
    /// As what the log was founded, by its first entry, whose hash is its name.
    founded_as: Option<LogType>,
    /// Changesets whose key has not come yet.
    waiting: Waiting,
    /// Longest state that a snapshot may open to, in bytes.
    state_bytes_max: u64,
    /// Whether this one reads what was read before.
    rereading: Option<Rereading>,
    /// What was read and not yet given: whoever pulls gets it, whatever has failed before.
    unread: Pulled,
    /// What was known before the first of it.
    settled: Option<Saved>,
}

impl Vault {
    /// Founds a vault: this device is its first, and makes its first content key.
    ///
    /// # Errors
    /// A [`VaultError`].
    pub async fn create(device: Arc<Identity>, wire: &mut Wire) -> Result<Self, VaultError> {
        let found = Control::Found { log_type: LogType::Vault, random: random()?, join_key: None };
        let signed =
            Outline::first().sign(&device, &found.encode()).map_err(|_| VaultError::TooLong)?;
        let mut vault = Self::new(device, native_log_id(&signed.entry.header));
        vault.append(wire, vec![signed]).await?;
        vault.read_on(wire).await?;
        vault.rotate(wire).await?;
        Ok(vault)
    }

    /// A vault that this device is, or is about to be, enrolled in, and of which it has read nothing.
    #[must_use]
    pub fn new(device: Arc<Identity>, log: LogId) -> Self {
        Self {
            device,
            log,
            track: Track::new(log),
            devices: Devices::new(),
            senders: BTreeMap::new(),
            loose: BTreeSet::new(),
            unproven: Unproven::default(),
            spoiled: None,
            healing: None,
            own: Mark::NONE,
            keys: Keys::default(),
            scopes: Scopes::default(),
            epochs: BTreeMap::new(),
            enroller: None,
            chains: Chains::default(),
            expected: None,
            arrived: None,
            journal: None,
            noted: None,
            founded_as: None,
            waiting: Waiting::default(),
            state_bytes_max: STATE_BYTES_MAX,
            rereading: None,
            unread: Pulled::default(),
            settled: None,
        }
    }

    /// What a new device signs so that `author`, which is enrolled, may enrol it.
    #[must_use]
    pub fn consent(device: &Identity, log: LogId, author: DeviceKey) -> Signature {
        device.consent(log, author)
    }

    /// The vault's name.
    #[must_use]
    pub fn log(&self) -> LogId {
        self.log
    }

    /// Who is enrolled, as of what was read.
    #[must_use]
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// How far it was read; none if nothing was.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        self.track.head()
    }

    /// The newest generation of the content key that this device holds; 0 for none.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.keys.epoch(self.scope())
    }

    pub(crate) fn scope(&self) -> Scope {
        self.devices.scope().unwrap_or(Scope::ZERO)
    }

    async fn request(
        wire: &mut Wire,
        frame: impl Into<sealwire_protocol::ClientFrame>,
    ) -> Result<RelayFrame, VaultError> {
        Ok(wire.request(&frame.into()).await?)
    }
}
