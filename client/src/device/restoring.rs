//! Making a device out of a recovery vault: the vault is fetched and opened, and what it has brought back
//! is written down.
//!
//! Holds always: the new device's file is whole before its key is kept, and without a key there is no
//! device. So a restore that is interrupted is begun anew if there is no key yet, and else the device is
//! there, with all that the recovery vault had ([`finish`]).

use std::path::Path;

use sealwire_protocol::{Kind, LogId};
use zeroize::Zeroizing;

use super::recovery::{from_totals, on_thread};
use super::{Device, KEY_FILE, KeyKeeping, Options, STORE_FILE, make_private};
use crate::address::RelayUrl;
use crate::engine::GROUP_KEY;
use crate::error::{Error, StoreError};
use crate::identity::file::KeyFileError;
use crate::identity::{Identity, JoinSeed};
use crate::ledger::{Said, Succession};
use crate::recovery::calls::{self, RecoveryError};
use crate::recovery::sealed::{Locator, check_pin};
use crate::recovery::{
    Contents, Format, RecoveryCode, SavedGroup, SavedKey, SavedSeed, VaultError,
};
use crate::seal::{EpochKey, KeyName};
use crate::store::logs::Phase;
use crate::store::outbox::Draft;
use crate::store::recovery::Kept;
use crate::store::{self, Store, keys, logs, outbox};
use crate::totals::payload::Payload;
use crate::totals::recovery as totals;

/// The device's file before its key is kept.
const RESTORING_FILE: &str = "restoring.db";

impl Device {
    /// Makes a device in a directory out of a recovery vault, and keeps its key where `keeping` says. A
    /// wrong PIN is reported to the relay, which locks the vault after a few.
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
        let directory = directory.as_ref().to_owned();
        let place = directory.clone();
        on_thread(move || must_be_free(&place)).await??;
        // What can be none is not asked for: the relay counts each question.
        let (text, locator) = match code.format() {
            Format::Totals => {
                totals::check_pin(pin).map_err(|error| RecoveryError::from(from_totals(error)))?;
                (code.text(), None)
            }
            Format::Native => {
                check_pin(pin).map_err(RecoveryError::from)?;
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
        Self::on_thread(directory, options, move |directory| {
            write_down(directory, &restored, |key, file| keeping.keep(key, file))?;
            Ok(restored.identity)
        })
        .await
    }
}

/// Makes the device: its file, its key, and then the file's name.
fn write_down(
    directory: &Path,
    restored: &Restored,
    keep: impl FnOnce(&Identity, &Path) -> Result<(), KeyFileError>,
) -> Result<(), Error> {
    make_private(directory).map_err(|_| Error::Directory)?;
    must_be_free(directory)?;
    write_file(directory, restored)?;
    let file = directory.join(KEY_FILE);
    let kept = keep(&restored.identity, &file);
    // It may fail when the key is there already, and not sure to stay: that is a device.
    if kept.is_err() && !file.exists() {
        discard(directory)?;
    }
    kept?;
    finish(directory)
}

/// Whether a device may be made there.
pub(super) fn must_be_free(directory: &Path) -> Result<(), Error> {
    if directory.join(KEY_FILE).exists() {
        return Err(KeyFileError::Exists.into());
    }
    // Its key is somewhere else, or lost: it is not this one's to write over.
    if directory.join(STORE_FILE).exists() { Err(StoreError::OtherDevice.into()) } else { Ok(()) }
}

/// Gives the file of a device whose key is kept its name, if it is still under the other one.
pub(super) fn finish(directory: &Path) -> Result<(), Error> {
    let (made, store) = (directory.join(RESTORING_FILE), directory.join(STORE_FILE));
    if store.exists() || !made.exists() {
        return Ok(());
    }
    std::fs::rename(made, store).map_err(|_| Error::Directory)
}

/// Removes what a restore has left that was interrupted before its key was kept.
pub(super) fn discard(directory: &Path) -> Result<(), Error> {
    for ending in ["", "-wal", "-shm"] {
        let leftover = directory.join(format!("{RESTORING_FILE}{ending}"));
        if leftover.exists() {
            std::fs::remove_file(leftover).map_err(|_| Error::Directory)?;
        }
    }
    Ok(())
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

/// Makes the device's file whole, under the name that it has until the key is kept.
fn write_file(directory: &Path, restored: &Restored) -> Result<(), Error> {
    discard(directory)?;
    let store = Store::open(&directory.join(RESTORING_FILE), restored.identity.key())?;
    // Closing it takes everything out of its side files.
    store.write(|db| write_restored(db, restored))
}

/// Writes down what a recovery vault has brought back.
fn write_restored(db: &rusqlite::Connection, restored: &Restored) -> Result<(), Error> {
    let Restored { identity, contents, kept } = restored;
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

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::stretch::Cost;

    const GROUP: LogId = LogId([0x45; 16]);

    fn restored() -> Restored {
        let groups = vec![SavedGroup {
            log: GROUP,
            relay: "wss://relay.example".to_owned(),
            relay_key: None,
            join_seed: None,
            key: None,
        }];
        let contents = Contents { seed: [7; 32], name: Some("Alice".to_owned()), groups };
        let kept = Kept {
            relay: RelayUrl::parse("wss://relay.example").expect("an address"),
            format: Format::Native,
            code: Zeroizing::new("0123456789ABCDE9".to_owned()),
            code_key: Some(Zeroizing::new([1; 32])),
            key: Zeroizing::new([2; 32]),
            salt: vec![3; 16],
            cost: Cost::USUAL,
            uploaded: None,
            old_seed: Some(Zeroizing::new([7; 32])),
        };
        Restored { identity: Identity::generate().expect("randomness"), contents, kept }
    }

    fn unsealed(identity: &Identity, file: &Path) -> Result<(), KeyFileError> {
        identity.save(file, None)
    }

    async fn groups(device: &Device) -> Vec<LogId> {
        device.logs().await.expect("read").into_iter().map(|info| info.log).collect()
    }

    async fn opened(place: &TempDir) -> Device {
        Device::open(place.path(), None, Options::default()).await.expect("a device")
    }

    #[tokio::test]
    async fn a_restore_that_was_killed_before_its_key_was_kept_is_in_nobodys_way() {
        let place = tempfile::tempdir().expect("a directory");
        write_file(place.path(), &restored()).expect("written");
        let again = restored();
        write_down(place.path(), &again, unsealed).expect("another try");
        let device = opened(&place).await;
        assert_eq!((device.key(), groups(&device).await), (again.identity.key(), vec![GROUP]));
        let taken = write_down(place.path(), &restored(), unsealed);
        assert_eq!(taken, Err(KeyFileError::Exists.into()));
        // Nor in the way of a device that has nothing to do with it.
        let place = tempfile::tempdir().expect("a directory");
        write_file(place.path(), &restored()).expect("written");
        Device::create(place.path(), KeyKeeping::Unsealed, Options::default()).await.expect("made");
        assert!(groups(&opened(&place).await).await.is_empty());
    }

    #[tokio::test]
    async fn a_restore_that_was_killed_after_its_key_was_kept_is_done() {
        let (place, restored) = (tempfile::tempdir().expect("a directory"), restored());
        write_file(place.path(), &restored).expect("written");
        unsealed(&restored.identity, &place.path().join(KEY_FILE)).expect("kept");
        let device = opened(&place).await;
        assert_eq!((device.key(), groups(&device).await), (restored.identity.key(), vec![GROUP]));
        assert_eq!(device.is_restoring().await, Ok(true));
    }

    #[tokio::test]
    async fn a_key_that_is_kept_and_not_sure_to_stay_has_its_device() {
        let (place, restored) = (tempfile::tempdir().expect("a directory"), restored());
        let failed = KeyFileError::Io(std::io::ErrorKind::Unsupported);
        let made = write_down(place.path(), &restored, |identity, file| {
            unsealed(identity, file)?;
            // As a file system does that cannot make a name durable.
            Err(failed)
        });
        assert_eq!(made, Err(failed.into()));
        let device = opened(&place).await;
        assert_eq!((device.key(), groups(&device).await), (restored.identity.key(), vec![GROUP]));
        // And where there is no key, nothing is left.
        let place = tempfile::tempdir().expect("a directory");
        let made = write_down(place.path(), &restored, |_, _| Err(KeyFileError::NoKeychain));
        assert_eq!(made, Err(KeyFileError::NoKeychain.into()));
        assert!(!place.path().join(RESTORING_FILE).exists());
    }

    #[tokio::test]
    async fn a_file_without_its_key_is_not_made_the_file_of_another_device() {
        let place = tempfile::tempdir().expect("a directory");
        let file = place.path().join(STORE_FILE);
        Store::open(&file, Identity::from_seed(&[9; 32]).key()).map(drop).expect("a store");
        let other = Some(Error::from(StoreError::OtherDevice));
        let made = Device::create(place.path(), KeyKeeping::Unsealed, Options::default()).await;
        assert_eq!(made.err(), other);
        assert!(!place.path().join(KEY_FILE).exists(), "nothing was begun");
        let again = write_down(place.path(), &restored(), unsealed);
        assert_eq!(again.err(), other);
    }

    #[tokio::test]
    async fn a_pin_that_cannot_be_one_is_not_asked_for() {
        let place = tempfile::tempdir().expect("a directory");
        // Nothing listens there.
        let relay = RelayUrl::parse("ws://127.0.0.1:1").expect("an address");
        for (code, why) in
            [("0123456789ABCDE9", VaultError::Digits), ("0123456789ABCDES", VaultError::Pin)]
        {
            let code = RecoveryCode::parse(code).expect("a code");
            let pin = if why == VaultError::Digits { "24681O" } else { "12345" };
            let keeping = KeyKeeping::Unsealed;
            let options = Options::default();
            let made = Device::restore(place.path(), keeping, &relay, &code, pin, options).await;
            assert_eq!(made.err(), Some(RecoveryError::from(why).into()));
        }
    }
}
