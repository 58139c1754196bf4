//! Recovery vaults in memory: the model of what the two databases must do.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sealwire_protocol::DeviceKey;

use super::MemoryStore;
use crate::ports::{
    Counted, NewRecovery, RecoveryId, RecoveryIds, RecoveryPut, RecoveryRecord, RecoveryStore,
    StoreError,
};
use crate::recovery::{Counters, Locked};

/// Every vault by its owner.
#[derive(Default)]
pub(super) struct Vaults(BTreeMap<DeviceKey, Vault>);

struct Vault {
    id: RecoveryId,
    key_id: u64,
    sealed: Vec<u8>,
    counters: Counters,
}

impl Vaults {
    fn find(&mut self, ids: RecoveryIds) -> Option<(&DeviceKey, &mut Vault)> {
        self.0.iter_mut().find(|(_, vault)| ids.iter().any(|id| *id == vault.id))
    }

    fn put(&mut self, new: &NewRecovery) -> RecoveryPut {
        if self.find(new.ids).is_some_and(|(owner, _)| *owner != new.owner) {
            return RecoveryPut::Taken;
        }
        let vault = Vault {
            id: new.ids.current,
            key_id: new.key_id,
            sealed: new.sealed.clone(),
            counters: Counters::default(),
        };
        self.0.insert(new.owner, vault);
        RecoveryPut::Stored
    }

    fn count(
        &mut self,
        ids: RecoveryIds,
        decide: impl FnOnce(Counters) -> Result<Counters, Locked>,
    ) -> Counted<RecoveryRecord> {
        let Some((owner, vault)) = self.find(ids) else { return Counted::Unknown };
        match decide(vault.counters) {
            Err(locked) => Counted::Locked(locked),
            Ok(counters) => {
                vault.counters = counters;
                Counted::Granted(RecoveryRecord { owner: *owner, sealed: vault.sealed.clone() })
            }
        }
    }
}

#[async_trait]
impl RecoveryStore for MemoryStore {
    async fn put_recovery(&self, new: &NewRecovery) -> Result<RecoveryPut, StoreError> {
        Ok(self.vaults.lock().put(new))
    }

    async fn recovery_counters(&self, ids: RecoveryIds) -> Result<Option<Counters>, StoreError> {
        self.read(|_| self.vaults.lock().find(ids).map(|(_, vault)| vault.counters))
    }

    async fn count_recovery_fetch(
        &self,
        ids: RecoveryIds,
        now: u64,
    ) -> Result<Counted<RecoveryRecord>, StoreError> {
        Ok(self.vaults.lock().count(ids, |counters| counters.fetch(now)))
    }

    async fn count_recovery_failure(
        &self,
        ids: RecoveryIds,
        now: u64,
    ) -> Result<Counted<()>, StoreError> {
        Ok(match self.vaults.lock().count(ids, |counters| counters.fail(now)) {
            Counted::Unknown => Counted::Unknown,
            Counted::Locked(locked) => Counted::Locked(locked),
            Counted::Granted(_) => Counted::Granted(()),
        })
    }

    async fn delete_recovery(&self, owner: DeviceKey) -> Result<bool, StoreError> {
        Ok(self.vaults.lock().0.remove(&owner).is_some())
    }

    async fn recovery_key_ids(&self) -> Result<Vec<(u64, u64)>, StoreError> {
        self.read(|_| {
            let mut counts = BTreeMap::new();
            for vault in self.vaults.lock().0.values() {
                *counts.entry(vault.key_id).or_default() += 1;
            }
            counts.into_iter().collect()
        })
    }

    async fn forget_recovery_counts(&self, now: u64, limit: usize) -> Result<u64, StoreError> {
        let mut gone = 0;
        for vault in self.vaults.lock().0.values_mut() {
            let at = vault.counters.forgotten_at();
            if at > 0 && at <= now && gone < limit as u64 {
                vault.counters = Counters::default();
                gone += 1;
            }
        }
        Ok(gone)
    }
}
