//! The way back after losing a device.
//!
//! [`Device::set_up_recovery`] makes a recovery vault and gives the code that the person writes down.
//! What is in it changes when the device's groups do: [`Device::keep_recovery`] brings it up to date,
//! and costs nothing if it is. [`Device::restore`] ([`super::restoring`]) makes a device out of code and PIN.
//!
//! A recovery vault as the Totals app makes it brings the same key back. A native one makes a new
//! device, which joins the old one's groups, is enrolled by the old key in its vaults, removes it
//! there ([`Device::recovered_vaults`]), and then deletes the old recovery vault: it is done by the
//! connection and by [`Device::keep_recovery`], each step when the relay is reached, and each goes on
//! where it was if it is interrupted.
//!
//! Holds always: what the relay has is what is kept here, or is put right by the next
//! [`Device::keep_recovery`], also if an answer of the relay's is lost; another relay that may have one of
//! which nobody was shown the code deletes it then, or when it is reached; of two processes that change the
//! recovery vault, none takes back what the other one has told the person; and the lost device's key is
//! erased only when that device is ended.

mod storing;

use sealwire_protocol::Digest;
use sealwire_protocol::digest::sha256;
use zeroize::Zeroizing;

use self::storing::TRIES_MAX;
use super::Device;
use crate::address::RelayUrl;
use crate::engine::GROUP_KEY;
use crate::error::Error;
use crate::identity::{Identity, random};
use crate::recovery::calls::{self, RecoveryError};
use crate::recovery::sealed::{self, Locator, SALT_BYTES};
use crate::recovery::{
    Contents, Format, RecoveryCode, SavedGroup, SavedKey, SavedSeed, VaultError,
};
use crate::seal::KeyName;
use crate::store::logs::LogRow;
use crate::store::recovery::Kept;
use crate::store::{self, keys, logs};
use crate::stretch::Cost;
use crate::totals::recovery as totals;

impl Device {
    /// Makes a recovery vault under a new code and this PIN, and stores it at a relay, in place of an
    /// earlier one there. The code is shown to the person, who writes it down: it is not kept. One at another
    /// relay stays there as it is, and is not brought up to date any more.
    ///
    /// # Errors
    /// [`Error::Recovery`]: the PIN is too short, or the relay was not reached. The earlier one counts
    /// then: if the relay has taken the new one and its answer was lost, the next
    /// [`Device::keep_recovery`] puts that right, and deletes the new one where there was none.
    /// [`RecoveryError::Unfinished`] at another relay than the one that this device was restored from, while
    /// the lost device is not ended. [`RecoveryError::Changed`]: another process was quicker.
    pub async fn set_up_recovery(
        &self,
        relay: &RelayUrl,
        format: Format,
        pin: &str,
    ) -> Result<RecoveryCode, Error> {
        let code = RecoveryCode::generate(format)?;
        let secret = Secret::of(&code, pin).await?;
        let relay = relay.clone();
        self.in_turn(move |device: Self| async move {
            let before = device.kept().await?;
            if let Some(before) = &before
                && before.relay != relay
            {
                // Where the lost device's recovery vault is, nothing else says.
                device.must_have_ended_old(before).await?;
            }
            device.store(before.as_ref().map(Kept::which), &secret.keep(relay)).await
        })
        .await?;
        Ok(code)
    }

    /// Changes the PIN. The code stays.
    ///
    /// # Errors
    /// [`Error::Recovery`]: [`VaultError::WrongPin`] if `current` is not the PIN,
    /// [`RecoveryError::Missing`] if there is no recovery vault, or the relay was not reached; the
    /// PIN is the old one then, at the latest after the next [`Device::keep_recovery`].
    /// [`RecoveryError::Changed`]: another process was quicker, and what it has told the person counts.
    pub async fn change_pin(&self, current: &str, new: &str) -> Result<(), Error> {
        let [current, new] = [current, new].map(|pin| Zeroizing::new(pin.to_owned()));
        self.in_turn(move |device: Self| async move {
            let kept = device.kept().await?;
            let mut kept = kept.ok_or(RecoveryError::Missing)?;
            let before = kept.which();
            let given = stretched(&kept, &current, &kept.salt.clone()).await?;
            if !bool::from(subtle::ConstantTimeEq::ct_eq(&given[..], &kept.key[..])) {
                return Err(RecoveryError::from(VaultError::WrongPin).into());
            }
            kept.salt = random::<SALT_BYTES>()?.to_vec();
            kept.cost = Cost::USUAL;
            kept.key = stretched(&kept, &new, &kept.salt.clone()).await?;
            device.store(Some(before), &kept).await
        })
        .await
    }

    /// Whether this device has a recovery vault, and of which format.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn recovery(&self) -> Result<Option<(Format, RelayUrl)>, Error> {
        let kept = self.kept().await?;
        Ok(kept.map(|kept| (kept.format, kept.relay)))
    }

    /// Whether this device came out of a native recovery vault, and has not ended the old one yet.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn is_restoring(&self) -> Result<bool, Error> {
        let kept = self.kept().await?;
        Ok(kept.is_some_and(|kept| kept.old_seed.is_some()))
    }

    /// Brings the recovery vault up to date, if there is one and something has changed, and deletes what
    /// another relay may have of which nobody was shown the code; says whether it did either. After a native
    /// restore it first ends what is left of the old device.
    ///
    /// # Errors
    /// [`Error::Recovery`], if the relay of the recovery vault was not reached; it can be called again at any
    /// time.
    pub async fn keep_recovery(&self) -> Result<bool, Error> {
        self.in_turn(|device: Self| async move {
            for _ in 0..TRIES_MAX {
                match device.keep().await {
                    // Read again: what another process has kept counts.
                    Err(Error::Recovery(RecoveryError::Changed)) => {}
                    done => return done,
                }
            }
            Err(RecoveryError::Changed.into())
        })
        .await
    }

    /// Deletes the recovery vault, at the relay and here, and what another relay may have of which nobody was
    /// shown the code.
    ///
    /// # Errors
    /// [`Error::Recovery`], if the relay was not reached: it is there as before then, at the latest after
    /// the next [`Device::keep_recovery`]. [`RecoveryError::Unfinished`] after a native restore, while the
    /// lost device is not ended. [`RecoveryError::Changed`]: another process has made another one.
    /// [`RecoveryError::Elsewhere`]: it is deleted, and another relay was not reached.
    pub async fn delete_recovery(&self) -> Result<(), Error> {
        self.in_turn(|device: Self| async move {
            if let Some(kept) = device.kept().await? {
                device.must_have_ended_old(&kept).await?;
                device.delete_at(&kept.relay, Some(kept.which())).await?;
            }
            device.delete_elsewhere().await.map(|_| ())
        })
        .await
    }

    /// Changes the recovery vault, one change after the other, and each to its end, even if nobody waits
    /// for it any more.
    async fn in_turn<T: Send + 'static, F: Future<Output = Result<T, Error>> + Send + 'static>(
        &self,
        change: impl FnOnce(Self) -> F + Send + 'static,
    ) -> Result<T, Error> {
        let device = self.clone();
        self.shared
            .whole(async move {
                let shared = device.shared.clone();
                let _turn = shared.recovery.lock().await;
                change(device).await
            })
            .await
    }

    /// Whether no lost device is left to be ended; ends it if that can be done now.
    async fn has_ended_old(&self, kept: &Kept) -> Result<bool, Error> {
        match &kept.old_seed {
            Some(seed) => self.end_old(&kept.relay, Identity::from_seed(seed)).await,
            None => Ok(true),
        }
    }

    /// What would erase the lost device's key waits until that is ended: nothing else is enrolled in its
    /// vaults.
    async fn must_have_ended_old(&self, kept: &Kept) -> Result<(), Error> {
        if self.has_ended_old(kept).await? { Ok(()) } else { Err(RecoveryError::Unfinished.into()) }
    }

    /// What is kept of the recovery vault.
    async fn kept(&self) -> Result<Option<Kept>, Error> {
        let me = self.shared.identity.clone();
        self.shared.read(move |db| store::recovery::find(db, &me)).await
    }

    /// What belongs into the recovery vault now, and its digest.
    async fn contents(&self, format: Format) -> Result<(Contents, Digest), Error> {
        let me = self.shared.identity.clone();
        self.shared
            .read(move |db| {
                let mut groups = Vec::new();
                for row in logs::list(db)? {
                    // The app's vault has no room for native groups.
                    let fits = row.log.is_totals() || format == Format::Native;
                    if row.phase.is_open() && fits {
                        groups.push(saved(db, row)?);
                    }
                }
                let contents = Contents { seed: *me.seed(), name: store::name(db)?.0, groups };
                let digest = sha256(&contents.encode().map_err(RecoveryError::from)?);
                Ok::<_, Error>((contents, digest))
            })
            .await
    }
}

/// A code and a PIN, stretched.
struct Secret {
    format: Format,
    code: Zeroizing<String>,
    code_key: Option<Zeroizing<[u8; 32]>>,
    key: Zeroizing<[u8; 32]>,
    salt: Vec<u8>,
}

impl Secret {
    async fn of(code: &RecoveryCode, pin: &str) -> Result<Self, Error> {
        let (code, pin) = (code.clone(), Zeroizing::new(pin.to_owned()));
        let salt = random::<SALT_BYTES>()?.to_vec();
        on_thread(move || {
            let format = code.format();
            let (text, code_key) = match format {
                Format::Totals => (code.text(), None),
                Format::Native => {
                    let locator = Locator::of(&code)?;
                    (Zeroizing::new(locator.text().to_owned()), Some(locator.code_key().clone()))
                }
            };
            let key = key_of(code_key.as_ref(), &pin, &salt, Cost::USUAL)?;
            Ok::<_, VaultError>(Self { format, code: text, code_key, key, salt })
        })
        .await?
        .map_err(|error| RecoveryError::from(error).into())
    }

    fn keep(self, relay: RelayUrl) -> Kept {
        let Self { format, code, code_key, key, salt } = self;
        let (cost, uploaded, old_seed) = (Cost::USUAL, None, None);
        Kept { relay, format, code, code_key, key, salt, cost, uploaded, old_seed }
    }
}

fn saved(db: &rusqlite::Connection, row: LogRow) -> Result<SavedGroup, Error> {
    let name = if row.log.is_totals() {
        Some(GROUP_KEY)
    } else {
        row.membership.scope().map(|scope| KeyName { scope, epoch: row.holders.epoch() })
    };
    let mut key = None;
    if let Some(name) = name {
        key = keys::find(db, row.id, name)?.into_iter().next().map(|found| SavedKey {
            scope: name.scope,
            epoch: name.epoch,
            key: SavedSeed(*found.bytes()),
        });
    }
    Ok(SavedGroup {
        log: row.log,
        relay_key: store::relay_key(db, &row.relay)?,
        relay: row.relay.as_str().to_owned(),
        join_seed: row.join_seed.map(|seed| SavedSeed(*seed.bytes())),
        key,
    })
}

/// What a PIN gives, for a vault that is kept.
async fn stretched(kept: &Kept, pin: &str, salt: &[u8]) -> Result<Zeroizing<[u8; 32]>, Error> {
    let (code_key, cost) = (kept.code_key.clone(), kept.cost);
    let (pin, salt) = (Zeroizing::new(pin.to_owned()), salt.to_vec());
    on_thread(move || key_of(code_key.as_ref(), &pin, &salt, cost))
        .await?
        .map_err(|error| RecoveryError::from(error).into())
}

pub(super) fn key_of(
    code_key: Option<&Zeroizing<[u8; 32]>>,
    pin: &str,
    salt: &[u8],
    cost: Cost,
) -> Result<Zeroizing<[u8; 32]>, VaultError> {
    match code_key {
        Some(code_key) => sealed::key(code_key, pin, salt, cost),
        None => totals::kek(pin, salt, calls::to_params(cost)).map_err(from_totals),
    }
}

pub(super) fn from_totals(error: totals::RecoveryError) -> VaultError {
    match error {
        totals::RecoveryError::Pin => VaultError::Digits,
        totals::RecoveryError::WrongPin => VaultError::WrongPin,
        totals::RecoveryError::Version => VaultError::Newer,
        totals::RecoveryError::Malformed => VaultError::Damaged,
        totals::RecoveryError::TooLong => VaultError::TooLong,
        totals::RecoveryError::NoRandomness(error) => error.into(),
    }
}

/// Stretching takes a tenth of a second and more: not where others wait.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopped)
}
