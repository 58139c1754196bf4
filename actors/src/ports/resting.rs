//! What retention asks of a store when it runs beside the relay, in a process of its own.

use async_trait::async_trait;

use super::{DueLog, LogCommit, LogKey, LogRecord, StoreError};

/// Makes a commit of what a log is now; none to leave it alone.
pub type Alter = Box<dyn FnOnce(LogRecord) -> Option<LogCommit> + Send>;

/// The logs of a store that another process serves. Nothing can be appended through it.
#[async_trait]
pub trait RestingLogs: Send + Sync + 'static {
    /// As [`super::Store::due_for_expiry`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn due_for_expiry(
        &self,
        after: LogKey,
        before: u64,
        limit: usize,
    ) -> Result<(Vec<DueLog>, Option<LogKey>), StoreError>;

    /// As [`super::Store::idle_groups`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn idle_groups(&self, before: u64, limit: usize) -> Result<Vec<LogKey>, StoreError>;

    /// As [`super::Store::load`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], or [`StoreError::Corrupt`].
    async fn load(&self, keys: &[LogKey]) -> Result<Vec<Option<LogRecord>>, StoreError>;

    /// Locks the head of a log, reads the log, has it altered, and raises its version, in one
    /// transaction: whoever serves it finds its own memory stale with its next commit. Tells whether
    /// anything was altered.
    ///
    /// # Errors
    /// As [`super::Store::commit`].
    async fn alter(&self, key: LogKey, alter: Alter) -> Result<bool, StoreError>;

    /// As [`super::Store::sweep`] and [`super::RecoveryStore::forget_recovery_counts`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn sweep(
        &self,
        reservations_before: u64,
        devices_before: u64,
        now: u64,
        limit: usize,
    ) -> Result<u64, StoreError>;
}
