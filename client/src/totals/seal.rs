//! The app's blobs: `nonce 12 ‖ ciphertext ‖ tag 16`, AES-256-GCM without additional data.
//!
//! Two kinds of key seal them. The *group key* is 32 random bytes that the creator makes and that is
//! never changed. The *pair key* is the plain X25519 output of two devices' Ed25519 keys, without a
//! hash or a salt, the same in both directions and for ever. Neither is how one would do it today:
//! *the app does it so*, and this format is for its groups alone.

use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use ed25519_dalek::VerifyingKey;
use sealwire_protocol::DeviceKey;
use sealwire_protocol::limits::BODY_BYTES_MAX;
use thiserror::Error;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::identity::{Identity, NoRandomness, random};

const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// Shortest blob that holds anything, in bytes.
pub const BLOB_BYTES_MIN: usize = NONCE_BYTES + 1 + TAG_BYTES;

/// Longest plaintext, in bytes: sealed, it fits the body of an entry.
pub const PLAINTEXT_BYTES_MAX: usize = BODY_BYTES_MAX - NONCE_BYTES - TAG_BYTES;

/// Why a blob was not sealed or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// Empty, or longer than [`PLAINTEXT_BYTES_MAX`].
    #[error("a message has 1 to {PLAINTEXT_BYTES_MAX} bytes")]
    Length,
    /// Too short or too long for a blob, or not hex.
    #[error("this is not a sealed message")]
    Malformed,
    /// No key that was tried opens it.
    #[error("no key that is held opens the message")]
    Closed,
    /// The other device's key is not one that a secret can be shared with.
    #[error("no secret can be shared with that device key")]
    Peer,
    /// Not 64 hex digits.
    #[error("a group key is 64 hex digits")]
    Key,
    /// See [`NoRandomness`].
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// The key of a `totals` group. It has no `Debug` and is wiped.
#[derive(Clone, PartialEq, Eq)]
pub struct GroupKey(Zeroizing<[u8; 32]>);

impl GroupKey {
    /// Makes a new one.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate() -> Result<Self, NoRandomness> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// Reads a key.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads a key as a `key_exchange` or a recovery vault has it: 64 hex digits.
    ///
    /// # Errors
    /// [`SealError::Key`].
    pub fn from_hex(text: &str) -> Result<Self, SealError> {
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text, &mut *bytes).map_err(|_| SealError::Key)?;
        Ok(Self(bytes))
    }

    /// The key as a `key_exchange` or a recovery vault has it, in lower case.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.bytes()))
    }

    /// The key as the device's own file has it.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Seals a message to all who hold this key.
    ///
    /// # Errors
    /// [`SealError::Length`] or [`SealError::NoRandomness`].
    pub fn seal(&self, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        seal_with(&self.0, random()?, plaintext)
    }

    /// Opens a message that was sealed under this key.
    ///
    /// # Errors
    /// [`SealError::Malformed`] or [`SealError::Closed`].
    pub fn open(&self, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        open_with(&self.0, blob)
    }
}

/// The key that two devices share. It has no `Debug` and is wiped.
pub struct PairKey(Zeroizing<[u8; 32]>);

impl PairKey {
    /// The key that this device shares with another one.
    ///
    /// # Errors
    /// [`SealError::Peer`] if the other key is not a good one: anybody would know the secret that
    /// comes of it.
    pub fn between(device: &Identity, peer: DeviceKey) -> Result<Self, SealError> {
        let peer = VerifyingKey::from_bytes(&peer.0).map_err(|_| SealError::Peer)?;
        let peer = PublicKey::from(peer.to_montgomery().to_bytes());
        let secret = StaticSecret::from(*device.agreement_secret());
        let shared = secret.diffie_hellman(&peer);
        if !shared.was_contributory() {
            return Err(SealError::Peer);
        }
        Ok(Self(Zeroizing::new(shared.to_bytes())))
    }

    /// Seals a message to the other device.
    ///
    /// # Errors
    /// [`SealError::Length`] or [`SealError::NoRandomness`].
    pub fn seal(&self, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        seal_with(&self.0, random()?, plaintext)
    }

    /// Opens a message of the other device.
    ///
    /// # Errors
    /// [`SealError::Malformed`] or [`SealError::Closed`].
    pub fn open(&self, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        open_with(&self.0, blob)
    }
}

/// What a message was sealed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// The group's key: the sender, whoever it is, holds that key.
    Group,
    /// The key of the two: it is from the sender, or from this device itself.
    Pair,
}

/// An opened message. It has no `Debug`, and its plaintext is wiped.
pub struct Opened {
    /// The JSON object, as [`Payload::decode`](super::payload::Payload::decode) reads it.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// Which key opened it.
    pub sealed: Sealed,
}

/// Opens a message as the app does: with the group's key if there is one, else with the key that
/// `device` shares with the one that the relay names as its sender.
///
/// # Errors
/// [`SealError::Malformed`] if it can never be opened, [`SealError::Closed`] if none of these keys
/// opens it: another one may come.
pub fn open(
    group: Option<&GroupKey>,
    device: &Identity,
    sender: DeviceKey,
    blob: &[u8],
) -> Result<Opened, SealError> {
    check_length(blob)?;
    if let Some(Ok(plaintext)) = group.map(|key| key.open(blob)) {
        return Ok(Opened { plaintext, sealed: Sealed::Group });
    }
    let plaintext = PairKey::between(device, sender).map_err(|_| SealError::Closed)?.open(blob)?;
    Ok(Opened { plaintext, sealed: Sealed::Pair })
}

/// A blob as it travels over HTTP: lower-case hex.
#[must_use]
pub fn to_hex(blob: &[u8]) -> String {
    hex::encode(blob)
}

/// A blob as it travels over HTTP, in either case.
///
/// # Errors
/// [`SealError::Malformed`].
pub fn from_hex(text: &str) -> Result<Vec<u8>, SealError> {
    if text.len() > 2 * BODY_BYTES_MAX {
        return Err(SealError::Malformed);
    }
    let blob = hex::decode(text).map_err(|_| SealError::Malformed)?;
    check_length(&blob)?;
    Ok(blob)
}

pub(super) fn seal_with(
    key: &[u8; 32],
    nonce: [u8; NONCE_BYTES],
    plaintext: &[u8],
) -> Result<Vec<u8>, SealError> {
    if plaintext.is_empty() || plaintext.len() > PLAINTEXT_BYTES_MAX {
        return Err(SealError::Length);
    }
    let ciphertext = Aes256Gcm::new(&(*key).into())
        .encrypt(&Nonce::from(nonce), plaintext)
        .map_err(|_| SealError::Length)?;
    let mut blob = Vec::with_capacity(NONCE_BYTES + ciphertext.len());
    blob.extend_from_slice(&nonce);
    blob.extend_from_slice(&ciphertext);
    Ok(blob)
}

pub(super) fn open_with(key: &[u8; 32], blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    check_length(blob)?;
    let (nonce, ciphertext) =
        blob.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::Malformed)?;
    Aes256Gcm::new(&(*key).into())
        .decrypt(&Nonce::from(*nonce), ciphertext)
        .map(Zeroizing::new)
        .map_err(|_| SealError::Closed)
}

fn check_length(blob: &[u8]) -> Result<(), SealError> {
    if (BLOB_BYTES_MIN..=BODY_BYTES_MAX).contains(&blob.len()) {
        Ok(())
    } else {
        Err(SealError::Malformed)
    }
}

#[cfg(test)]
pub(crate) mod tests;
