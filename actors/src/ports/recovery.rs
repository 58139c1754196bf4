//! What the recovery vaults ask of a store.

use async_trait::async_trait;
use sealwire_protocol::DeviceKey;

use super::StoreError;
use crate::recovery::{Counters, Locked};

/// Names a row: an HMAC of a recovery code. It has no `Debug`: with the relay's secret it tests codes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecoveryId(pub [u8; 32]);

/// The names that one code has: under the secret of today and under the one before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RecoveryIds {
    /// Names a new row.
    pub current: RecoveryId,
    /// May name an older one.
    pub previous: Option<RecoveryId>,
}

impl RecoveryIds {
    /// Both, the current one first.
    pub fn iter(&self) -> impl Iterator<Item = &RecoveryId> {
        std::iter::once(&self.current).chain(&self.previous)
    }
}

/// A recovery vault to be stored.
#[derive(Clone)]
pub struct NewRecovery {
    /// It gets the current name; under either, another device's vault is in the way.
    pub ids: RecoveryIds,
    /// Which secret made the current name.
    pub key_id: u64,
    /// Whose it is: a device has one.
    pub owner: DeviceKey,
    /// Sealed under the code.
    pub sealed: Vec<u8>,
    /// Today, in days since the epoch.
    pub day: u64,
}

/// What became of a [`NewRecovery`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryPut {
    /// It is durable, in place of the device's old one, with nothing counted.
    Stored,
    /// Another device's vault is under this code; nothing happened.
    Taken,
}

/// A recovery vault as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryRecord {
    /// Whose it is.
    pub owner: DeviceKey,
    /// Sealed under the code.
    pub sealed: Vec<u8>,
}

/// What became of something that is granted a limited number of times.
#[derive(Clone, PartialEq, Eq)]
pub enum Counted<T> {
    /// There is no such row; nothing was written.
    Unknown,
    /// Not granted; nothing was written.
    Locked(Locked),
    /// Counted, and durable.
    Granted(T),
}

/// The part of a store that keeps recovery vaults. Times are milliseconds since the epoch.
#[async_trait]
pub trait RecoveryStore: Send + Sync + 'static {
    /// Stores a vault in place of the device's own one.
    ///
    /// # Errors
    /// As [`super::Store::commit`].
    async fn put_recovery(&self, new: &NewRecovery) -> Result<RecoveryPut, StoreError>;

    /// What has been counted of the vault under one of these names.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], or [`StoreError::Corrupt`].
    async fn recovery_counters(&self, ids: RecoveryIds) -> Result<Option<Counters>, StoreError>;

    /// Has [`Counters::fetch`] decide and makes its decision durable; gives the vault if it granted.
    ///
    /// # Errors
    /// As [`super::Store::commit`].
    async fn count_recovery_fetch(
        &self,
        ids: RecoveryIds,
        now: u64,
    ) -> Result<Counted<RecoveryRecord>, StoreError>;

    /// Has [`Counters::fail`] decide and makes its decision durable.
    ///
    /// # Errors
    /// As [`super::Store::commit`].
    async fn count_recovery_failure(
        &self,
        ids: RecoveryIds,
        now: u64,
    ) -> Result<Counted<()>, StoreError>;

    /// Deletes a device's vault; tells whether it had one.
    ///
    /// # Errors
    /// As [`super::Store::commit`].
    async fn delete_recovery(&self, owner: DeviceKey) -> Result<bool, StoreError>;

    /// Which secrets have named the vaults that are stored, and how many each.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn recovery_key_ids(&self) -> Result<Vec<(u64, u64)>, StoreError>;

    /// Sets the counters of at most `limit` vaults to zero where nothing counts any more at `now`, so
    /// that no times stay stored. Gives how many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn forget_recovery_counts(&self, now: u64, limit: usize) -> Result<u64, StoreError>;
}
