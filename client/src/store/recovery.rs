//! What the device keeps of its recovery vault, so that it can seal it anew when a group is added.
//!
//! Holds always: what opens the recovery vault stands in the file sealed to the device's own key. In the
//! vault is that key; whoever has the file and not the key must not get at it by this way round.

pub(crate) mod asking;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rusqlite::{Connection, OptionalExtension};
use sealwire_protocol::Digest;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::StoreError;
use crate::address::RelayUrl;
use crate::identity::{Identity, random};
use crate::recovery::{Format, SavedSeed};
use crate::stretch::Cost;

/// What the key that seals them is derived for.
const LABEL: &[u8] = b"recovery";

/// Bytes of the nonce before them.
const NONCE_BYTES: usize = 24;

/// Room for the secrets as they are encoded, in bytes; they take about 130.
const SECRETS_BYTES_MAX: usize = 512;

/// The device's recovery vault. It has no `Debug`, and its keys are wiped.
pub(crate) struct Kept {
    pub(crate) relay: RelayUrl,
    pub(crate) format: Format,
    /// What the relay is given in the place of a code.
    pub(crate) code: Zeroizing<String>,
    /// Native: the half of the key that comes from the code.
    pub(crate) code_key: Option<Zeroizing<[u8; 32]>>,
    /// What the PIN gives.
    pub(crate) key: Zeroizing<[u8; 32]>,
    pub(crate) salt: Vec<u8>,
    pub(crate) cost: Cost,
    /// The digest of what the relay has; none if it must be given something.
    pub(crate) uploaded: Option<Digest>,
    /// The seed of the device whose place this one has taken.
    pub(crate) old_seed: Option<Zeroizing<[u8; 32]>>,
}

impl Kept {
    /// The same, with another digest of what the relay was given.
    pub(crate) fn again(&self, uploaded: Option<Digest>) -> Self {
        Self {
            relay: self.relay.clone(),
            format: self.format,
            code: self.code.clone(),
            code_key: self.code_key.clone(),
            key: self.key.clone(),
            salt: self.salt.clone(),
            cost: self.cost,
            uploaded,
            old_seed: self.old_seed.clone(),
        }
    }
}

/// What of it must not be read by whoever has the file and not the device's key: with it the recovery
/// vault opens, and in that is the key.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Secrets {
    code: String,
    code_key: Option<SavedSeed>,
    key: SavedSeed,
    old_seed: Option<SavedSeed>,
}

/// Keeps it, in place of an earlier one, sealed to the device.
pub(crate) fn save(db: &Connection, me: &Identity, kept: &Kept) -> Result<(), StoreError> {
    let seed = |bytes: &Zeroizing<[u8; 32]>| SavedSeed(**bytes);
    let secrets = Secrets {
        code: kept.code.as_str().to_owned(),
        code_key: kept.code_key.as_ref().map(seed),
        key: seed(&kept.key),
        old_seed: kept.old_seed.as_ref().map(seed),
    };
    db.execute("delete from recovery", [])?;
    db.execute(
        "insert into recovery (relay, format, secrets, salt, memory_kib, passes, lanes, uploaded)
         values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        (
            kept.relay.as_str(),
            i64::from(kept.format == Format::Native),
            seal(me, &secrets)?,
            &kept.salt,
            kept.cost.memory_kib,
            kept.cost.passes,
            kept.cost.lanes,
            kept.uploaded.map(|digest| digest.0.to_vec()),
        ),
    )?;
    Ok(())
}

/// The device's recovery vault, if it has one.
pub(crate) fn find(db: &Connection, me: &Identity) -> Result<Option<Kept>, StoreError> {
    let row = db
        .query_row(
            "select relay, format, secrets, salt, memory_kib, passes, lanes, uploaded from recovery",
            [],
            |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, i64>(1)?,
                    row.get::<_, Vec<u8>>(2)?,
                    row.get::<_, Vec<u8>>(3)?,
                    Cost { memory_kib: row.get(4)?, passes: row.get(5)?, lanes: row.get(6)? },
                    row.get::<_, Option<Vec<u8>>>(7)?,
                ))
            },
        )
        .optional()?;
    let Some((relay, format, secrets, salt, cost, uploaded)) = row else { return Ok(None) };
    let secrets = open(me, &secrets)?;
    let seed = |seed: &SavedSeed| Zeroizing::new(seed.0);
    Ok(Some(Kept {
        relay: RelayUrl::parse(&relay).map_err(|_| StoreError::Damaged)?,
        format: if format == 1 { Format::Native } else { Format::Totals },
        code: Zeroizing::new(secrets.code.clone()),
        code_key: secrets.code_key.as_ref().map(seed),
        key: seed(&secrets.key),
        salt,
        cost,
        uploaded: uploaded
            .map(|digest| Digest::from_slice(&digest).ok_or(StoreError::Damaged))
            .transpose()?,
        old_seed: secrets.old_seed.as_ref().map(seed),
    }))
}

/// The old device's vault is gone, and so is that device.
pub(crate) fn forget_old(db: &Connection, me: &Identity) -> Result<(), StoreError> {
    let Some(kept) = find(db, me)? else { return Ok(()) };
    save(db, me, &Kept { old_seed: None, ..kept })
}

/// A fresh nonce, and the secrets under a key that comes from the device's own.
fn seal(me: &Identity, secrets: &Secrets) -> Result<Vec<u8>, StoreError> {
    // Room for all, so that no copy is left behind by growing.
    let mut plaintext = Zeroizing::new(Vec::with_capacity(SECRETS_BYTES_MAX));
    rmp_serde::encode::write(&mut *plaintext, secrets).map_err(|_| StoreError::Damaged)?;
    let nonce = random::<NONCE_BYTES>().map_err(|_| StoreError::Io)?;
    let sealed = XChaCha20Poly1305::new(&(*me.file_key(LABEL)).into())
        .encrypt(&XNonce::from(nonce), Payload { msg: &plaintext, aad: &me.key().0 })
        .map_err(|_| StoreError::Damaged)?;
    Ok([&nonce[..], &sealed].concat())
}

fn open(me: &Identity, sealed: &[u8]) -> Result<Secrets, StoreError> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(StoreError::Damaged)?;
    let plaintext = XChaCha20Poly1305::new(&(*me.file_key(LABEL)).into())
        .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &me.key().0 })
        .map(Zeroizing::new)
        .map_err(|_| StoreError::Damaged)?;
    rmp_serde::from_slice(&plaintext).map_err(|_| StoreError::Damaged)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

    use super::*;
    use crate::recovery::RecoveryCode;
    use crate::store::Store;

    const CODE: &str = "0123456789ABCDE9";
    const SEED: [u8; 32] = *b"the seed that must not be there.";
    const CODE_KEY: [u8; 32] = *b"the half of the key of the code.";
    const KEY: [u8; 32] = *b"the key that the PIN has given..";
    const OLD: [u8; 32] = *b"the seed of the lost old device.";

    fn kept() -> Kept {
        Kept {
            relay: RelayUrl::parse("wss://relay.example").expect("an address"),
            format: Format::Native,
            code: Zeroizing::new(CODE.to_owned()),
            code_key: Some(Zeroizing::new(CODE_KEY)),
            key: Zeroizing::new(KEY),
            salt: vec![1; 16],
            cost: Cost::USUAL,
            uploaded: Some(Digest([2; 32])),
            old_seed: Some(Zeroizing::new(OLD)),
        }
    }

    /// How a secret might stand in a file.
    fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
        let mut spellings = vec![secret.to_vec()];
        let hex = hex::encode(secret);
        spellings.extend([hex.to_uppercase().into_bytes(), hex.into_bytes()]);
        for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            spellings.push(engine.encode(secret).into_bytes());
        }
        spellings
    }

    #[test]
    fn nothing_in_the_devices_file_leads_to_its_key_without_it() {
        let me = Identity::from_seed(&SEED);
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("device.db"), me.key()).expect("a store");
        store.write(|db| save(db, &me, &kept())).expect("kept");
        store.write(|db| save(db, &me, &kept().again(None))).expect("kept again");
        let mut needles = spellings(CODE.as_bytes());
        // As the person reads it, and as bits.
        let code = RecoveryCode::parse(CODE).expect("a code");
        needles.push(code.shown().as_bytes().to_vec());
        needles.push(CODE.to_lowercase().into_bytes());
        for secret in [&SEED, &CODE_KEY, &KEY, &OLD] {
            needles.extend(spellings(secret));
        }
        let mut bytes = 0;
        for file in std::fs::read_dir(directory.path()).expect("files") {
            let content = std::fs::read(file.expect("a file").path()).expect("read");
            bytes += content.len();
            for needle in &needles {
                let found = content.windows(needle.len()).any(|window| window == needle);
                assert!(!found, "{}", String::from_utf8_lossy(needle));
            }
        }
        assert!(bytes > 10_000, "there is a file");
    }

    #[test]
    fn what_is_kept_of_the_recovery_vault_is_for_this_device_alone() {
        let me = Identity::from_seed(&SEED);
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("device.db"), me.key()).expect("a store");
        store.write(|db| save(db, &me, &kept())).expect("kept");
        let found = store.read(|db| find(db, &me)).expect("read").expect("some");
        assert_eq!(found.code.as_str(), CODE);
        assert!(*found.key == KEY && found.old_seed.as_deref() == Some(&OLD));
        assert!(found.code_key.as_deref() == Some(&CODE_KEY) && found.salt == [1; 16]);
        let other = Identity::from_seed(&OLD);
        assert_eq!(store.read(|db| find(db, &other)).err(), Some(StoreError::Damaged));
        store.write(|db| forget_old(db, &me)).expect("forgotten");
        let found = store.read(|db| find(db, &me)).expect("read").expect("some");
        assert!(found.old_seed.is_none() && *found.key == KEY);
        assert_eq!(found.uploaded, Some(Digest([2; 32])));
    }
}
