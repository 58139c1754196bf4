//! Why a database could not be attached or synced.

use thiserror::Error;

use super::changeset::ChangesetError;
use super::schema::SchemaError;
use crate::error::StoreError;
use crate::vault::{SnapshotError, VaultError};
use crate::wire::WireError;

/// Why something could not be done. Unless it says otherwise nothing has changed, and what the app has
/// written stays where it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The database cannot be read or written.
    #[error("the app's database {}", of_database(*.0))]
    Store(StoreError),
    /// A table cannot be shared.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The vault could not be read or written.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A changeset is too large or malformed.
    #[error(transparent)]
    Changeset(#[from] ChangesetError),
    /// The database belongs to another device.
    #[error("the database is attached by another device")]
    OtherDevice,
    /// The database belongs to another vault already.
    #[error("the database belongs to another vault already")]
    OtherVault,
    /// The new device has taken another offer than this one: it is of another device, was changed on its
    /// way, or says of another person whose the new device is. Nothing was sent.
    #[error("the new device has consented to another offer than this device makes")]
    OtherOffer,
    /// The offer names another private scope than the one under which this device writes. Nothing was
    /// changed: what is private stays sealed under the device's own.
    #[error("the offer is of another private scope than this device's own")]
    OtherScope,
    /// The database belongs to no vault yet: found one, or attach with an offer.
    #[error("the database belongs to no vault yet; create one, or attach it with an offer")]
    NoVault,
    /// The database was never attached.
    #[error("the database was never attached")]
    NotAttached,
    /// An offer or a consent cannot be read.
    #[error("the code cannot be read; it was cut off, or is another one")]
    Code,
    /// Another process syncs this database.
    #[error("another process syncs this database")]
    Running,
    /// The relay has entries of this device that this database does not know: the device's key is used
    /// somewhere else, or the database was restored from a backup while it had unsent changes. Nothing
    /// more is sent; enrol a new device.
    #[error(
        "this device's key is used elsewhere, or its database was set back; enrol a new device"
    )]
    Cloned,
    /// The device is enrolled no more. What it has not sent stays.
    #[error("this device is not enrolled in the vault, or not any more")]
    NotEnrolled,
    /// A transaction was ended by a trigger of the app.
    #[error("a trigger of the app has ended the transaction")]
    RolledBack,
    /// The work was stopped.
    #[error("the work was stopped")]
    Stopped,
}

/// What has happened to the app's database: the error's own text speaks of the device's file.
fn of_database(error: StoreError) -> &'static str {
    match error {
        StoreError::Busy => "is in use for too long",
        StoreError::Full => "cannot grow: the disk is full",
        StoreError::Damaged => "is damaged, or holds what it must not",
        StoreError::Newer => "was attached by a newer version",
        StoreError::OtherDevice => "belongs to another device",
        StoreError::Io => "is not there, or cannot be read or written",
    }
}

impl From<StoreError> for SyncError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<rusqlite::Error> for SyncError {
    fn from(error: rusqlite::Error) -> Self {
        StoreError::from(error).into()
    }
}

impl From<WireError> for SyncError {
    fn from(error: WireError) -> Self {
        VaultError::from(error).into()
    }
}

impl From<SnapshotError> for SyncError {
    fn from(error: SnapshotError) -> Self {
        VaultError::from(error).into()
    }
}
