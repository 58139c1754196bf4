//! The way back after losing a device.
//!
//! [`Device::set_up_recovery`] makes a recovery vault and gives the code that the person writes down.
//! What is in it changes when the device's groups do: [`Device::keep_recovery`] brings it up to date,
//! and costs nothing if it is. [`Device::restore`] makes a device out of code and PIN.
//!
//! A recovery vault as the Totals app makes it brings the same key back. A native one makes a new
//! device, which joins the old one's groups, is enrolled by the old key in its vaults, removes it
//! there ([`Device::recovered_vaults`]), and then deletes the old recovery vault: it is done by the
//! connection and by [`Device::keep_recovery`], each step when the relay is reached, and each goes on
//! where it was if it is interrupted.

use std::path::Path;

use sealwire_protocol::digest::sha256;
use sealwire_protocol::{Digest, Kind, LogId};
use zeroize::Zeroizing;

use super::{Device, KeyKeeping, Options, make_private};
use crate::address::RelayUrl;
use crate::engine::GROUP_KEY;
use crate::error::Error;
use crate::identity::file::KeyFileError;
use crate::identity::{Identity, JoinSeed, random};
use crate::ledger::{Said, Succession};
use crate::recovery::calls::{self, RecoveryError};
use crate::recovery::sealed::{self, Locator, SALT_BYTES, check_pin};
use crate::recovery::{
    Contents, Format, RecoveryCode, SavedGroup, SavedKey, SavedSeed, VaultError,
};
use crate::seal::{EpochKey, KeyName};
use crate::store::logs::{LogRow, Phase};
use crate::store::outbox::Draft;
use crate::store::recovery::Kept;
use crate::store::{self, Store, keys, logs, outbox};
use crate::stretch::Cost;
use crate::totals::payload::Payload;
use crate::totals::recovery as totals;
use crate::totals::seal::GroupKey;

impl Device {
    /// Makes a recovery vault under a new code and this PIN, and stores it at a relay, in place of an
    /// earlier one. The code is shown to the person, who writes it down: it is not kept.
    ///
    /// # Errors
    /// [`Error::Recovery`]: the PIN is too short, or the relay was not reached. Nothing has changed
    /// then.
    pub async fn set_up_recovery(
        &self,
        relay: &RelayUrl,
        format: Format,
        pin: &str,
    ) -> Result<RecoveryCode, Error> {
        let code = RecoveryCode::generate(format)?;
        let secret = Secret::of(&code, pin).await?;
        let before = self.kept().await?;
        let old_seed = before.and_then(|before| before.old_seed);
        self.store_vault(secret.keep(relay.clone(), old_seed)).await?;
        Ok(code)
    }

    /// Changes the PIN. The code stays.
    ///
    /// # Errors
    /// [`Error::Recovery`]: [`VaultError::WrongPin`] if `current` is not the PIN,
    /// [`RecoveryError::Missing`] if there is no recovery vault, or the relay was not reached; the
    /// PIN is the old one then.
    pub async fn change_pin(&self, current: &str, new: &str) -> Result<(), Error> {
        let kept = self.kept().await?;
        let mut kept = kept.ok_or(RecoveryError::Missing)?;
        let given = stretched(&kept, current, &kept.salt.clone()).await?;
        if !bool::from(subtle::ConstantTimeEq::ct_eq(&given[..], &kept.key[..])) {
            return Err(RecoveryError::from(VaultError::WrongPin).into());
        }
        kept.salt = random::<SALT_BYTES>()?.to_vec();
        kept.cost = Cost::USUAL;
        kept.key = stretched(&kept, new, &kept.salt.clone()).await?;
        self.store_vault(kept).await
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

    /// Brings the recovery vault up to date, if there is one and something has changed; says whether
    /// it did. After a native restore it first ends what is left of the old device.
    ///
    /// # Errors
    /// [`Error::Recovery`], if the relay was not reached; it can be called again at any time.
    pub async fn keep_recovery(&self) -> Result<bool, Error> {
        let Some(kept) = self.kept().await? else { return Ok(false) };
        let mut kept = kept;
        if let Some(seed) = &kept.old_seed {
            if !self.end_old(&kept.relay, Identity::from_seed(seed)).await? {
                return Ok(false);
            }
            kept.old_seed = None;
        }
        let (_, digest) = self.contents(kept.format).await?;
        if kept.uploaded == Some(digest) {
            return Ok(false);
        }
        self.store_vault(kept).await?;
        Ok(true)
    }

    /// Deletes the recovery vault, at the relay and here.
    ///
    /// # Errors
    /// [`Error::Recovery`], if the relay was not reached; nothing has changed then.
    pub async fn delete_recovery(&self) -> Result<(), Error> {
        let Some(kept) = self.kept().await? else { return Ok(()) };
        calls::delete(&kept.relay, &self.shared.identity).await.map_err(Error::from)?;
        self.shared.write(store::recovery::remove).await
    }

    /// Makes a device in a directory out of a recovery vault, and keeps its key where `keeping` says. A wrong PIN is reported to the relay,
    /// which locks the vault after a few.
    ///
    /// A Totals vault needs no more than a connection to its relay then: the members are asked for
    /// what was said before. After a native one, connect until the new device is in its groups, and
    /// call [`Device::keep_recovery`] to end the old one.
    ///
    /// # Errors
    /// [`Error::Recovery`]; [`Error::KeyFile`] if there is a device in the directory.
    pub async fn restore(
        directory: impl AsRef<Path>,
        keeping: KeyKeeping<'_>,
        relay: &RelayUrl,
        code: &RecoveryCode,
        pin: &str,
        options: Options,
    ) -> Result<Self, Error> {
        check_pin(pin).map_err(RecoveryError::from)?;
        let (text, locator) = match code.format() {
            Format::Totals => (code.text(), None),
            Format::Native => {
                let code = code.clone();
                let locator =
                    on_thread(move || Locator::of(&code)).await?.map_err(RecoveryError::from)?;
                (Zeroizing::new(locator.text().to_owned()), Some(locator))
            }
        };
        let vault = calls::fetch(relay, &text).await?;
        let (relay, keeping) = (relay.clone(), keeping.owned());
        let pin = Zeroizing::new(pin.to_owned());
        let at = relay.clone();
        let sent = text.clone();
        let opened = on_thread(move || open(locator, &vault, &pin, at, sent)).await?;
        let restored = match opened {
            Ok(restored) => restored,
            Err(RecoveryError::Vault(VaultError::WrongPin)) => {
                calls::report(&relay, &text).await;
                return Err(RecoveryError::from(VaultError::WrongPin).into());
            }
            Err(error) => return Err(error.into()),
        };
        Self::on_thread(directory.as_ref().to_owned(), options, move |directory| {
            make_private(directory).map_err(|_| Error::Directory)?;
            let Restored { identity, contents, kept } = restored;
            let store = directory.join(super::STORE_FILE);
            if directory.join(super::KEY_FILE).exists() || store.exists() {
                return Err(KeyFileError::Exists.into());
            }
            write_store(directory, &store, &identity, |db| {
                write_restored(db, &identity, &contents, &kept)
            })?;
            // The key last: without it there is no device. What was to be its file would be in the
            // way of the next restore.
            let kept = keeping.keep(&identity, &directory.join(super::KEY_FILE));
            if kept.is_err() {
                std::fs::remove_file(&store).map_err(|_| Error::Directory)?;
            }
            kept?;
            Ok(identity)
        })
        .await
    }

    /// Seals what this device has now, stores it, and keeps what it is sealed with: all of it, even
    /// if nobody waits for it any more.
    async fn store_vault(&self, kept: Kept) -> Result<(), Error> {
        let device = self.clone();
        self.shared.whole(async move { device.store(&kept).await }).await
    }

    async fn store(&self, kept: &Kept) -> Result<(), Error> {
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
        calls::put(&kept.relay, &self.shared.identity, &kept.code, &vault).await?;
        let row = kept.again(Some(digest));
        let me = self.shared.identity.clone();
        self.shared.write(move |db| store::recovery::save(db, &me, &row)).await
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

    fn keep(self, relay: RelayUrl, old_seed: Option<Zeroizing<[u8; 32]>>) -> Kept {
        let Self { format, code, code_key, key, salt } = self;
        let cost = Cost::USUAL;
        Kept { relay, format, code, code_key, key, salt, cost, uploaded: None, old_seed }
    }
}

/// A device that comes out of a recovery vault, before it is written down.
struct Restored {
    identity: Identity,
    contents: Contents,
    kept: Kept,
}

fn open(
    locator: Option<Locator>,
    vault: &totals::SealedVault,
    pin: &str,
    relay: RelayUrl,
    code: Zeroizing<String>,
) -> Result<Restored, RecoveryError> {
    let sealed = calls::from_stored(vault)?;
    let (salt, cost) = (sealed.salt.clone(), sealed.cost);
    let Some(locator) = locator else {
        let opened = totals::open(vault, pin).map_err(from_totals)?;
        let groups = opened.group_keys.iter().map(|(log, key)| SavedGroup {
            log: *log,
            relay: relay.as_str().to_owned(),
            relay_key: None,
            join_seed: None,
            key: Some(SavedKey {
                scope: GROUP_KEY.scope,
                epoch: GROUP_KEY.epoch,
                key: SavedSeed(*key.bytes()),
            }),
        });
        let contents = Contents {
            seed: *opened.device.seed(),
            name: opened.display_name.clone(),
            groups: groups.collect(),
        };
        let key = totals::kek(pin, &salt, vault.kdf_params).map_err(from_totals)?;
        let identity = Identity::from_seed(&contents.seed);
        let format = Format::Totals;
        let (code_key, uploaded, old_seed) = (None, None, None);
        let kept = Kept { relay, format, code, code_key, key, salt, cost, uploaded, old_seed };
        return Ok(Restored { identity, contents, kept });
    };
    let contents = locator.open(pin, &sealed)?;
    let key = locator.key(pin, &salt, cost)?;
    let kept = Kept {
        relay,
        format: Format::Native,
        code,
        code_key: Some(locator.code_key().clone()),
        key,
        salt,
        cost,
        uploaded: None,
        old_seed: Some(Zeroizing::new(contents.seed)),
    };
    let identity = Identity::generate().map_err(VaultError::from)?;
    Ok(Restored { identity, contents, kept })
}

/// Makes the device's file whole, under another name until it is.
fn write_store(
    directory: &Path,
    path: &Path,
    identity: &Identity,
    fill: impl FnOnce(&rusqlite::Connection) -> Result<(), Error>,
) -> Result<(), Error> {
    let partial = directory.join("restoring.db");
    for ending in ["", "-wal", "-shm"] {
        let leftover = directory.join(format!("restoring.db{ending}"));
        if leftover.exists() {
            std::fs::remove_file(leftover).map_err(|_| Error::Directory)?;
        }
    }
    let store = Store::open(&partial, identity.key())?;
    store.write(fill)?;
    // Closing it takes everything out of its side files.
    drop(store);
    std::fs::rename(&partial, path).map_err(|_| Error::Directory)
}

/// Writes down what a recovery vault has brought back.
fn write_restored(
    db: &rusqlite::Connection,
    identity: &Identity,
    contents: &Contents,
    kept: &Kept,
) -> Result<(), Error> {
    store::recovery::save(db, identity, kept)?;
    if let Some(name) = &contents.name {
        store::set_name(db, name, crate::engine::Now::read().ms)?;
    }
    let old = Identity::from_seed(&contents.seed).key();
    for group in &contents.groups {
        // A relay that may not be used brings nothing back; the others do.
        let Ok(relay) = RelayUrl::parse(&group.relay) else { continue };
        if let Some(key) = group.relay_key {
            store::pin_relay(db, &relay, key)?;
        }
        let seed = group.join_seed.as_ref().map(|seed| JoinSeed::from_bytes(seed.0));
        let id = logs::insert(db, group.log, &relay, seed.as_ref())?;
        if let Some(saved) = &group.key {
            let name = KeyName { scope: saved.scope, epoch: saved.epoch };
            keys::insert(db, id, name, &EpochKey::from_bytes(saved.key.0), None)?;
        }
        logs::set_wants_history(db, id, true)?;
        if identity.key() == old {
            // The same key is a member as before.
            logs::set_phase(db, id, Phase::Member)?;
        } else {
            logs::set_replaces(db, id, Some(old))?;
            outbox::insert(db, id, &Draft::Join)?;
            if !group.log.is_totals() {
                succeed(db, id, group.log, contents, identity)?;
            }
        }
    }
    Ok(())
}

/// Has this device take the lost one's place in the ledger of a native group. It is signed now, for
/// the lost key does not stay.
fn succeed(
    db: &rusqlite::Connection,
    id: i64,
    log: LogId,
    contents: &Contents,
    new: &Identity,
) -> Result<(), Error> {
    let succession = Succession::new(log, &Identity::from_seed(&contents.seed), new);
    let payload = Payload::Succession(succession);
    let message = payload.encode().map_err(|_| Error::TooLong)?;
    let said = Said { log, sender: new.key(), at: 0, approvals: false, message: &message };
    store::ledger::take(db, id, said)?;
    outbox::insert_ledger(db, id, log, &payload, Kind::Quiet, Vec::new())?;
    Ok(())
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

/// What a PIN gives, for a vault that is kept.
async fn stretched(kept: &Kept, pin: &str, salt: &[u8]) -> Result<Zeroizing<[u8; 32]>, Error> {
    let (code_key, cost) = (kept.code_key.clone(), kept.cost);
    let (pin, salt) = (Zeroizing::new(pin.to_owned()), salt.to_vec());
    on_thread(move || key_of(code_key.as_ref(), &pin, &salt, cost))
        .await?
        .map_err(|error| RecoveryError::from(error).into())
}

fn key_of(
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

fn from_totals(error: totals::RecoveryError) -> VaultError {
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
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopped)
}
