//! Storing and deleting the recovery vault at its relay: one change, until it is known what the relay has.
//!
//! Holds always: what is kept is what the person was told, whichever process has told it; and a relay that
//! may have something else is asked again, now or by the next [`Device::keep_recovery`].

use sealwire_protocol::{Digest, LogId};

use super::super::Device;
use super::from_totals;
use crate::address::RelayUrl;
use crate::error::Error;
use crate::identity::Identity;
use crate::recovery::calls::{self, RecoveryError};
use crate::recovery::{Contents, Format, SavedGroup, sealed};
use crate::store::recovery::Kept;
use crate::store::recovery::asking::{self, Asked, Ended, Which};
use crate::totals::recovery as totals;
use crate::totals::seal::GroupKey;

/// How often a change is made that another process, or one whose answer was lost, may have overtaken.
/// Beyond it the next [`Device::keep_recovery`] goes on.
pub(super) const TRIES_MAX: usize = 3;

impl Device {
    /// See [`Device::keep_recovery`].
    pub(super) async fn keep(&self) -> Result<bool, Error> {
        if let Some(kept) = self.kept().await?
            && !self.has_ended_old(&kept).await?
        {
            return Ok(false);
        }
        // This first: it may be the same relay by another name.
        let deleted = match self.delete_elsewhere().await {
            Err(Error::Recovery(RecoveryError::Elsewhere(relay))) => {
                tracing::debug!(%relay, "what this relay may have of the device is not deleted yet");
                false
            }
            deleted => deleted?,
        };
        let Some(kept) = self.kept().await? else { return Ok(deleted) };
        let (_, digest) = self.contents(kept.format).await?;
        if kept.uploaded == Some(digest) {
            return Ok(deleted);
        }
        self.store(Some(kept.which()), &kept).await?;
        Ok(true)
    }

    /// Seals what this device has now, stores it, and keeps what it is sealed with, in place of what was read.
    pub(super) async fn store(&self, read: Option<Which>, kept: &Kept) -> Result<(), Error> {
        let (contents, digest) = self.contents(kept.format).await?;
        let vault = match kept.format {
            Format::Totals => {
                let params = calls::to_params(kept.cost);
                totals::seal_again(&to_totals(&contents), &kept.key, &kept.salt, params)
                    .map_err(|error| RecoveryError::from(from_totals(error)))?
            }
            Format::Native => {
                let sealed =
                    sealed::seal_again(&kept.key, &kept.code, &kept.salt, kept.cost, &contents);
                calls::to_stored(&sealed.map_err(RecoveryError::from)?)
            }
        };
        let mut ended = self.put_vault(read, kept, &vault, digest).await?;
        for _ in 1..TRIES_MAX {
            if ended != Ended::Met {
                break;
            }
            ended = match self.put_vault(Some(kept.which()), kept, &vault, digest).await {
                // It is kept, and was taken once: the next `keep_recovery` goes on.
                Err(Error::Recovery(error)) if error != RecoveryError::Changed => return Ok(()),
                ended => ended?,
            };
        }
        if ended == Ended::Other { Err(RecoveryError::Changed.into()) } else { Ok(()) }
    }

    /// Has the relay take a recovery vault, in place of what was read.
    async fn put_vault(
        &self,
        read: Option<Which>,
        kept: &Kept,
        vault: &totals::SealedVault,
        digest: Digest,
    ) -> Result<Ended, Error> {
        let proof = calls::prove(&kept.relay, &self.shared.identity).await?;
        let asked = self.begin(&kept.relay, read).await?;
        calls::put(&kept.relay, &proof, &kept.code, vault).await?;
        let (row, me) = (kept.again(None), self.shared.identity.clone());
        self.shared.write(move |db| asking::end_put(db, &me, &asked, &row, digest)).await
    }

    /// Deletes what a relay has of this device; what is kept there is kept no more.
    pub(super) async fn delete_at(
        &self,
        relay: &RelayUrl,
        read: Option<Which>,
    ) -> Result<(), Error> {
        for _ in 0..TRIES_MAX {
            let proof = calls::prove(relay, &self.shared.identity).await?;
            let asked = self.begin(relay, read.clone()).await?;
            calls::delete(relay, &proof).await?;
            match self.shared.write(move |db| asking::end_delete(db, &asked)).await? {
                Ended::Alone => return Ok(()),
                Ended::Met => {}
                Ended::Other => break,
            }
        }
        Err(RecoveryError::Changed.into())
    }

    /// Deletes what other relays may have than the one of the kept vault; says whether there were any.
    pub(super) async fn delete_elsewhere(&self) -> Result<bool, Error> {
        let (relays, read) = self
            .shared
            .read(|db| {
                let relays = asking::asked_elsewhere(db)?;
                Ok::<_, Error>((relays, asking::which(db)?))
            })
            .await?;
        let mut left = None;
        for relay in &relays {
            match self.delete_at(relay, read.clone()).await {
                Ok(()) => {}
                Err(Error::Recovery(error)) if error != RecoveryError::Changed => {
                    left = Some(relay.clone());
                }
                Err(error) => return Err(error),
            }
        }
        match left {
            Some(relay) => Err(RecoveryError::Elsewhere(relay).into()),
            None => Ok(!relays.is_empty()),
        }
    }

    /// From here on the relay may have been asked, also if its answer is lost or this process ends.
    async fn begin(&self, relay: &RelayUrl, read: Option<Which>) -> Result<Asked, Error> {
        let relay = relay.clone();
        let asked = self.shared.write(move |db| asking::begin(db, relay, read)).await?;
        asked.ok_or_else(|| RecoveryError::Changed.into())
    }
}

fn to_totals(contents: &Contents) -> totals::Contents {
    let key = |group: &SavedGroup| -> Option<(LogId, GroupKey)> {
        Some((group.log, GroupKey::from_bytes(group.key.as_ref()?.key.0)))
    };
    totals::Contents {
        device: Identity::from_seed(&contents.seed),
        group_keys: contents.groups.iter().filter_map(key).collect(),
        display_name: contents.name.clone(),
    }
}
