//! Recovery vaults: the PIN-sealed backups of devices' identities, found by a code.
//!
//! A person who has lost a device types a code and a PIN into a new one. The relay finds the vault by the
//! code, slows down whoever tries too often, and tells the owner's live sessions. It is no oracle: what
//! it stores is sealed once more under the code ([`seal`]), which it keeps nowhere.
//!
//! ```text
//! asked ── look (no write) ──┬── no such vault: Unknown
//!                            ├── locked: Locked{until}
//!                            └── count in the committer's queue ── committed ── Granted
//! ```
//!
//! Holds always: what is granted has been counted and committed before it is answered, so that no crash
//! gives anything away; an unknown code writes nothing.

mod code;
pub mod counters;
mod seal;
pub mod vault;

use std::sync::Arc;

use metrics::counter;
use sealwire_protocol::DeviceKey;

pub use code::{CODE_CHARACTERS, RecoveryCode};
pub use counters::{Counters, Locked};
pub use seal::{RecoveryKey, RecoveryKeys};
pub use vault::{KdfParams, RecoveryVault, Unfit};

use crate::metrics::RECOVERY;
use crate::ports::{Counted, NewRecovery, RecoveryIds, RecoveryPut, StoreError};
use crate::session::ask;
use crate::system::{Shared, System};

const DAY_MS: u64 = 86_400_000;

/// What becomes of a fetch or a report.
#[derive(Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// There is no vault under this code.
    Unknown,
    /// Not now.
    Locked(Locked),
    /// It was counted; here it is.
    Granted(T),
}

/// The recovery vaults of one relay.
#[derive(Clone)]
pub struct Recovery {
    shared: Arc<Shared>,
    keys: Arc<RecoveryKeys>,
}

impl Recovery {
    /// Recovery vaults in the store of this system, under these keys.
    #[must_use]
    pub fn new(system: &System, keys: RecoveryKeys) -> Self {
        Self { shared: system.shared.clone(), keys: Arc::new(keys) }
    }

    /// Stores a vault that has been checked, in place of the device's own one; clears its counters.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is known to have happened.
    pub async fn put(
        &self,
        owner: DeviceKey,
        code: &RecoveryCode,
        vault: &RecoveryVault,
    ) -> Result<RecoveryPut, StoreError> {
        let shared = &self.shared;
        let new = NewRecovery {
            ids: self.keys.rows(code),
            key_id: self.keys.current.id(),
            owner,
            sealed: seal::seal(code, owner, vault)?,
            day: shared.clock.now_ms() / DAY_MS,
        };
        let put = shared
            .run_job(move |store| Box::pin(async move { ask(store.put_recovery(&new)).await }));
        let put = put.await?;
        count(match put {
            RecoveryPut::Stored => "stored",
            RecoveryPut::Taken => "taken",
        });
        Ok(put)
    }

    /// Fetches a vault by its code, and tells its owner's sessions.
    ///
    /// # Errors
    /// [`StoreError`]; it may have been counted.
    pub async fn fetch(
        &self,
        code: &RecoveryCode,
    ) -> Result<Answer<(DeviceKey, RecoveryVault)>, StoreError> {
        let shared = &self.shared;
        let ids = self.keys.rows(code);
        let now = shared.clock.now_ms();
        if let Some(refused) = self.refused(ids, |counters| counters.fetch(now)).await? {
            return Ok(refused);
        }
        let counted = shared.run_job(move |store| {
            Box::pin(async move { ask(store.count_recovery_fetch(ids, now)).await })
        });
        let record = match counted.await? {
            Counted::Unknown => return Ok(unknown()),
            Counted::Locked(lock) => return Ok(locked(lock)),
            Counted::Granted(record) => record,
        };
        count("fetched");
        let vault = seal::open(code, record.owner, &record.sealed).inspect_err(|_| {
            tracing::error!("a recovery vault does not open under the code that found it");
        })?;
        shared.registry.recovery_fetched(record.owner, now);
        Ok(Answer::Granted((record.owner, vault)))
    }

    /// Counts a failure that a device reports.
    ///
    /// # Errors
    /// [`StoreError`]; it may have been counted.
    pub async fn report_failure(&self, code: &RecoveryCode) -> Result<Answer<()>, StoreError> {
        let shared = &self.shared;
        let ids = self.keys.rows(code);
        let now = shared.clock.now_ms();
        if let Some(refused) = self.refused(ids, |counters| counters.fail(now)).await? {
            return Ok(refused);
        }
        let counted = shared.run_job(move |store| {
            Box::pin(async move { ask(store.count_recovery_failure(ids, now)).await })
        });
        Ok(match counted.await? {
            Counted::Unknown => unknown(),
            Counted::Locked(lock) => locked(lock),
            Counted::Granted(()) => {
                count("failure_reported");
                Answer::Granted(())
            }
        })
    }

    /// Deletes a device's vault, if it has one.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is known to have happened.
    pub async fn delete(&self, owner: DeviceKey) -> Result<(), StoreError> {
        let deleted = self
            .shared
            .run_job(move |store| Box::pin(async move { ask(store.delete_recovery(owner)).await }));
        if deleted.await? {
            count("deleted");
        }
        Ok(())
    }

    /// How long a lock still lasts, in seconds, rounded up.
    #[must_use]
    pub fn seconds_until(&self, lock: Locked) -> u64 {
        lock.until.saturating_sub(self.shared.clock.now_ms()).div_ceil(1000)
    }

    /// The time that it is in so many seconds, in milliseconds since the epoch.
    #[must_use]
    pub fn in_seconds(&self, seconds: u64) -> u64 {
        self.shared.clock.now_ms().saturating_add(seconds.saturating_mul(1000))
    }

    /// Recovery vaults that only the previous secret finds, and those that none of the secrets finds.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn under_other_secrets(&self) -> Result<(u64, u64), StoreError> {
        let previous = self.keys.previous.as_ref().map(RecoveryKey::id);
        let (mut older, mut lost) = (0, 0);
        for (key_id, vaults) in ask(self.shared.store.recovery_key_ids()).await? {
            if Some(key_id) == previous {
                older += vaults;
            } else if key_id != self.keys.current.id() {
                lost += vaults;
            }
        }
        Ok((older, lost))
    }

    /// Looks without writing: most of what strangers send ends here.
    async fn refused<T>(
        &self,
        ids: RecoveryIds,
        decide: impl FnOnce(Counters) -> Result<Counters, Locked>,
    ) -> Result<Option<Answer<T>>, StoreError> {
        Ok(match ask(self.shared.store.recovery_counters(ids)).await? {
            None => Some(unknown()),
            Some(counters) => decide(counters).err().map(locked),
        })
    }
}

fn unknown<T>() -> Answer<T> {
    count("unknown");
    Answer::Unknown
}

fn locked<T>(lock: Locked) -> Answer<T> {
    count("locked");
    Answer::Locked(lock)
}

fn count(what: &'static str) {
    counter!(RECOVERY, "what" => what).increment(1);
}
