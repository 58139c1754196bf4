//! The app's recovery vault: a device's seed and group keys, sealed under a PIN.
//!
//! `KEK = Argon2id(PIN, salt)`, and the blob is sealed like a message ([`super::seal`]) with a JSON
//! object inside. The code by which the relay finds it is no input to the key: *whoever has the code
//! gets the blob and can try every PIN.* This is for people who use the app as well; the SDK's own
//! format mixes the code in.

use std::collections::BTreeMap;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealwire_protocol::LogId;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::seal::{GroupKey, SealError, open_with, seal_with};
use crate::identity::{Identity, NoRandomness, random};

/// The only version that there is.
const VERSION: u32 = 1;

const SALT_BYTES: usize = 16;

/// Fewest digits of a PIN.
pub const PIN_DIGITS_MIN: usize = 6;

/// Most digits of a PIN: no person types more.
pub const PIN_DIGITS_MAX: usize = 64;

/// Longest sealed blob that is read, in base64 characters: the relay keeps no longer one.
const BLOB_CHARACTERS_MAX: usize = 64 * 1024;

/// Most memory that a vault may ask for, in KiB: it must not be able to take the machine down.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;

/// Most passes that a vault may ask for.
const PASSES_MAX: u32 = 16;

/// Most lanes that a vault may ask for.
const LANES_MAX: u32 = 64;

/// Why a recovery vault was not sealed or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecoveryError {
    /// Not digits alone, or too few of them.
    #[error("a PIN has at least {PIN_DIGITS_MIN} digits and nothing else")]
    Pin,
    /// The PIN does not open it, or it is damaged: report the failure to the relay.
    #[error("the PIN is wrong, or the recovery vault is damaged")]
    WrongPin,
    /// Of another version.
    #[error("the recovery vault was made by a newer version")]
    Version,
    /// It is not a recovery vault, or asks for an absurd amount of work.
    #[error("this is not a recovery vault")]
    Malformed,
    /// What is to be kept is too long.
    #[error("too much for a recovery vault")]
    TooLong,
    /// See [`NoRandomness`].
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// How dear one guess at a PIN is. Travels in clear, beside the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KdfParams {
    /// Memory, in KiB.
    pub memory_kb: u32,
    /// Passes over that memory.
    pub iterations: u32,
    /// Lanes of that memory.
    pub parallelism: u32,
}

impl Default for KdfParams {
    /// What the app writes.
    fn default() -> Self {
        Self { memory_kb: 64 * 1024, iterations: 3, parallelism: 4 }
    }
}

/// A recovery vault as the relay keeps it: the JSON of `PUT /identity/vault` without the code, and
/// of the answer to a fetch.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SealedVault {
    /// 1.
    pub version: u32,
    /// 16 bytes, in base64.
    pub salt: String,
    /// How the PIN becomes a key.
    #[serde(default)]
    pub kdf_params: KdfParams,
    /// The blob, in base64.
    pub encrypted_blob: String,
}

/// What a recovery vault keeps. It has no `Debug`, and its keys are wiped.
pub struct Contents {
    /// The device itself.
    pub device: Identity,
    /// The keys of its groups.
    pub group_keys: BTreeMap<LogId, GroupKey>,
    /// What its person is called.
    pub display_name: Option<String>,
}

impl Contents {
    /// Reads the JSON that was sealed. A group key that is not one is passed over.
    ///
    /// # Errors
    /// [`RecoveryError::Version`] or [`RecoveryError::Malformed`].
    pub fn from_json(plaintext: &[u8]) -> Result<Self, RecoveryError> {
        let plain: Plain =
            serde_json::from_slice(plaintext).map_err(|_| RecoveryError::Malformed)?;
        if plain.version != VERSION {
            return Err(RecoveryError::Version);
        }
        let mut seed = Zeroizing::new([0; 32]);
        hex::decode_to_slice(plain.seed_hex.as_bytes(), &mut *seed)
            .map_err(|_| RecoveryError::Malformed)?;
        let keys = plain.group_keys.iter();
        Ok(Self {
            device: Identity::from_seed(&seed),
            group_keys: keys
                .filter_map(|(group, key)| {
                    Some((LogId::from_uuid_text(group)?, GroupKey::from_hex(key).ok()?))
                })
                .collect(),
            display_name: plain.display_name,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Plain {
    version: u32,
    seed_hex: Zeroizing<String>,
    #[serde(default)]
    group_keys: BTreeMap<String, Zeroizing<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    display_name: Option<String>,
}

/// Seals a recovery vault under a PIN. Takes a tenth of a second and 64 MiB: not on a thread that
/// must not block.
///
/// # Errors
/// [`RecoveryError::Pin`], [`RecoveryError::TooLong`] or [`RecoveryError::NoRandomness`].
pub fn seal(contents: &Contents, pin: &str) -> Result<SealedVault, RecoveryError> {
    seal_drawn(contents, pin, KdfParams::default(), &random()?, random()?)
}

/// The key that a PIN gives. Whoever keeps it can seal anew without asking for the PIN.
///
/// # Errors
/// [`RecoveryError::Pin`], or [`RecoveryError::Malformed`] for parameters out of bounds.
pub(crate) fn kek(
    pin: &str,
    salt: &[u8],
    params: KdfParams,
) -> Result<Zeroizing<[u8; 32]>, RecoveryError> {
    check_pin(pin)?;
    stretch(pin, salt, params)
}

/// Seals a recovery vault under a key that a PIN has given.
///
/// # Errors
/// [`RecoveryError::TooLong`] or [`RecoveryError::NoRandomness`].
pub(crate) fn seal_again(
    contents: &Contents,
    kek: &[u8; 32],
    salt: &[u8],
    kdf_params: KdfParams,
) -> Result<SealedVault, RecoveryError> {
    seal_under(contents, kek, salt, kdf_params, random()?)
}

fn seal_drawn(
    contents: &Contents,
    pin: &str,
    kdf_params: KdfParams,
    salt: &[u8; SALT_BYTES],
    nonce: [u8; 12],
) -> Result<SealedVault, RecoveryError> {
    let kek = kek(pin, salt, kdf_params)?;
    seal_under(contents, &kek, salt, kdf_params, nonce)
}

fn seal_under(
    contents: &Contents,
    kek: &[u8; 32],
    salt: &[u8],
    kdf_params: KdfParams,
    nonce: [u8; 12],
) -> Result<SealedVault, RecoveryError> {
    let keys = contents.group_keys.iter();
    let plain = Plain {
        version: VERSION,
        seed_hex: Zeroizing::new(hex::encode(*contents.device.seed())),
        group_keys: keys.map(|(group, key)| (group.to_uuid_text(), key.to_hex())).collect(),
        display_name: contents.display_name.clone(),
    };
    let plaintext = Zeroizing::new(serde_json::to_vec(&plain).map_err(|_| RecoveryError::TooLong)?);
    let blob = seal_with(kek, nonce, &plaintext).map_err(|_| RecoveryError::TooLong)?;
    let encrypted_blob = STANDARD.encode(blob);
    if encrypted_blob.len() > BLOB_CHARACTERS_MAX {
        return Err(RecoveryError::TooLong);
    }
    Ok(SealedVault { version: VERSION, salt: STANDARD.encode(salt), kdf_params, encrypted_blob })
}

/// Opens a recovery vault. Takes as long as sealing it. A group key that is not one is passed over.
///
/// # Errors
/// [`RecoveryError::WrongPin`], [`RecoveryError::Version`] or [`RecoveryError::Malformed`].
pub fn open(sealed: &SealedVault, pin: &str) -> Result<Contents, RecoveryError> {
    if sealed.version != VERSION {
        return Err(RecoveryError::Version);
    }
    if sealed.encrypted_blob.len() > BLOB_CHARACTERS_MAX || sealed.salt.len() > 1024 {
        return Err(RecoveryError::Malformed);
    }
    let salt = STANDARD.decode(&sealed.salt).map_err(|_| RecoveryError::Malformed)?;
    let blob = STANDARD.decode(&sealed.encrypted_blob).map_err(|_| RecoveryError::Malformed)?;
    check_pin(pin)?;
    let kek = stretch(pin, &salt, sealed.kdf_params)?;
    let plaintext = open_with(&kek, &blob).map_err(|error| match error {
        SealError::Closed => RecoveryError::WrongPin,
        SealError::Length
        | SealError::Malformed
        | SealError::Peer
        | SealError::Key
        | SealError::NoRandomness(_) => RecoveryError::Malformed,
    })?;
    Contents::from_json(&plaintext)
}

/// Whether a PIN may be one of the app.
pub(crate) fn check_pin(pin: &str) -> Result<(), RecoveryError> {
    let digits = pin.bytes().all(|byte| byte.is_ascii_digit());
    if digits && (PIN_DIGITS_MIN..=PIN_DIGITS_MAX).contains(&pin.len()) {
        Ok(())
    } else {
        Err(RecoveryError::Pin)
    }
}

fn stretch(
    pin: &str,
    salt: &[u8],
    params: KdfParams,
) -> Result<Zeroizing<[u8; 32]>, RecoveryError> {
    let bounded = params.memory_kb <= MEMORY_KIB_MAX
        && params.iterations <= PASSES_MAX
        && params.parallelism <= LANES_MAX;
    if !bounded {
        return Err(RecoveryError::Malformed);
    }
    let KdfParams { memory_kb, iterations, parallelism } = params;
    let params = Params::new(memory_kb, iterations, parallelism, Some(32))
        .map_err(|_| RecoveryError::Malformed)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(pin.as_bytes(), salt, &mut *key)
        .map_err(|_| RecoveryError::Malformed)?;
    Ok(key)
}

#[cfg(test)]
mod tests;
