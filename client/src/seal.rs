//! Sealing and opening the body of an entry.
//!
//! ```text
//! suite u8  ‖  scope 16  ‖  epoch u32  ‖  nonce 24  ‖  commitment 32  ‖  ciphertext  ‖  tag 16
//! ```
//!
//! `key ‖ commitment` are the 64 bytes of HKDF-SHA256 with the epoch key as input, the nonce as salt
//! and `"sealwire body v1" ‖ log id ‖ scope ‖ epoch ‖ sender` as info. The plaintext is padded
//! ([`crate::padding`]) and sealed by XChaCha20-Poly1305 under that key and nonce; the additional
//! data is the header up to and with the audience.
//!
//! Each of these stops something. The key is derived for one nonce and one sender: *members share
//! the epoch key, and two of them that draw one nonce must not meet.* The commitment is compared
//! first: *Poly1305 lets one who knows two keys make a body that opens under both, to show different
//! members different things.* The header as additional data: *a body copied to another place in the
//! log, or to another audience, does not open.*

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::limits::{BODY_BYTES_MAX, SNAPSHOT_BYTES_MAX};
use sealwire_protocol::{DeviceKey, LogId};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::identity::{NoRandomness, random};
use crate::padding::{LENGTH_BYTES, pad, padme, unpad};

/// The suite that this crate writes and reads.
pub const SUITE: u8 = 1;

/// What a box is for: a key that is derived for one use is worthless for another.
#[derive(Clone, Copy)]
pub struct Use {
    label: &'static [u8],
    /// Longest content, in bytes.
    content_bytes_max: usize,
}

const BODY: Use = Use { label: b"sealwire body v1", content_bytes_max: CONTENT_BYTES_MAX };

/// The sealed state of a vault.
pub const SNAPSHOT: Use = Use {
    label: b"sealwire snapshot v1",
    // PADMÉ adds less than 3 % at this length.
    content_bytes_max: (SNAPSHOT_BYTES_MAX / 100 * 96) as usize,
};

const NONCE_BYTES: usize = 24;
const COMMITMENT_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// Everything before the ciphertext, in bytes.
const HEAD_BYTES: usize = 1 + Scope::LEN + 4 + NONCE_BYTES + COMMITMENT_BYTES;

/// Longest content that fits a body once it is padded and sealed, in bytes.
pub const CONTENT_BYTES_MAX: usize = 240 * 1024;

const _: () = {
    // PADMÉ of the longest content: exponent 17, five bits kept, so rounded up to 4 KiB.
    let padded = (LENGTH_BYTES + CONTENT_BYTES_MAX).next_multiple_of(4096);
    assert!(padded + HEAD_BYTES + TAG_BYTES <= BODY_BYTES_MAX);
};

/// Why a body was not sealed or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// Longer than [`CONTENT_BYTES_MAX`].
    #[error("the content is longer than {CONTENT_BYTES_MAX} bytes")]
    TooLong,
    /// Not a sealed body, or of a suite that is not known.
    #[error("the body is not a sealed one")]
    Malformed,
    /// It was sealed under another key, or for another place.
    #[error("the key does not belong to the body")]
    WrongKey,
    /// It commits to the key and yet does not open: damaged, or made to deceive.
    #[error("the body does not open")]
    Damaged,
    /// See [`NoRandomness`].
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// One generation of a content key. It has no `Debug` and is wiped.
#[derive(Clone, PartialEq, Eq)]
pub struct EpochKey(Zeroizing<[u8; 32]>);

impl EpochKey {
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

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// For which place in the world a body is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The log.
    pub log: LogId,
    /// The author.
    pub sender: DeviceKey,
    /// The header up to and with the audience.
    pub aad: &'a [u8],
}

/// Which key a sealed body names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyName {
    /// The scope.
    pub scope: Scope,
    /// The generation.
    pub epoch: u32,
}

/// Seals content.
///
/// # Errors
/// [`SealError::TooLong`] or [`SealError::NoRandomness`].
pub fn seal(
    key: &EpochKey,
    name: KeyName,
    place: &Place<'_>,
    content: &[u8],
) -> Result<Vec<u8>, SealError> {
    seal_with(BODY, key, name, place, content, random()?)
}

/// Seals content for another use than a body.
///
/// # Errors
/// [`SealError::TooLong`] or [`SealError::NoRandomness`].
pub fn seal_for(
    what: Use,
    key: &EpochKey,
    name: KeyName,
    place: &Place<'_>,
    content: &[u8],
) -> Result<Vec<u8>, SealError> {
    seal_with(what, key, name, place, content, random()?)
}

fn seal_with(
    what: Use,
    key: &EpochKey,
    name: KeyName,
    place: &Place<'_>,
    content: &[u8],
    nonce: [u8; NONCE_BYTES],
) -> Result<Vec<u8>, SealError> {
    if content.len() > what.content_bytes_max {
        return Err(SealError::TooLong);
    }
    let padded = Zeroizing::new(pad(content).map_err(|_| SealError::TooLong)?);
    let (body_key, commitment) = derive(what, key, name, place, &nonce);
    let ciphertext = XChaCha20Poly1305::new(&(*body_key).into())
        .encrypt(&XNonce::from(nonce), Payload { msg: &padded, aad: place.aad })
        .map_err(|_| SealError::TooLong)?;
    let mut body = Vec::with_capacity(HEAD_BYTES + ciphertext.len());
    body.push(SUITE);
    body.extend_from_slice(&name.scope.0);
    body.extend_from_slice(&name.epoch.to_be_bytes());
    body.extend_from_slice(&nonce);
    body.extend_from_slice(&commitment);
    body.extend_from_slice(&ciphertext);
    Ok(body)
}

/// Which key a body was sealed under.
///
/// # Errors
/// [`SealError::Malformed`].
pub fn key_name(body: &[u8]) -> Result<KeyName, SealError> {
    Ok(split(body)?.name)
}

/// Opens a body.
///
/// # Errors
/// [`SealError::Malformed`], [`SealError::WrongKey`] or [`SealError::Damaged`].
pub fn open(
    key: &EpochKey,
    place: &Place<'_>,
    body: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    open_for(BODY, key, place, body)
}

/// Opens what was sealed for a use.
pub(crate) fn open_for(
    what: Use,
    key: &EpochKey,
    place: &Place<'_>,
    body: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let parts = split(body)?;
    let (body_key, commitment) = derive(what, key, parts.name, place, &parts.nonce);
    if !bool::from(commitment.ct_eq(&parts.commitment)) {
        return Err(SealError::WrongKey);
    }
    let padded = XChaCha20Poly1305::new(&(*body_key).into())
        .decrypt(&XNonce::from(parts.nonce), Payload { msg: parts.ciphertext, aad: place.aad })
        .map(Zeroizing::new)
        .map_err(|_| SealError::Damaged)?;
    let content = unpad(&padded).map_err(|_| SealError::Damaged)?;
    Ok(Zeroizing::new(content.to_vec()))
}

/// How long the body of `length` bytes of content is.
#[must_use]
pub fn body_length(length: usize) -> usize {
    HEAD_BYTES + padme(LENGTH_BYTES + length) + TAG_BYTES
}

struct Parts<'a> {
    name: KeyName,
    nonce: [u8; NONCE_BYTES],
    commitment: [u8; COMMITMENT_BYTES],
    ciphertext: &'a [u8],
}

fn split(body: &[u8]) -> Result<Parts<'_>, SealError> {
    let malformed = SealError::Malformed;
    let (suite, rest) = body.split_first().ok_or(malformed)?;
    if *suite != SUITE {
        return Err(malformed);
    }
    let (scope, rest) = rest.split_first_chunk().ok_or(malformed)?;
    let (epoch, rest) = rest.split_first_chunk().ok_or(malformed)?;
    let (nonce, rest) = rest.split_first_chunk().ok_or(malformed)?;
    let (commitment, ciphertext) = rest.split_first_chunk().ok_or(malformed)?;
    Ok(Parts {
        name: KeyName { scope: Scope(*scope), epoch: u32::from_be_bytes(*epoch) },
        nonce: *nonce,
        commitment: *commitment,
        ciphertext,
    })
}

fn derive(
    what: Use,
    key: &EpochKey,
    name: KeyName,
    place: &Place<'_>,
    nonce: &[u8; NONCE_BYTES],
) -> (Zeroizing<[u8; 32]>, [u8; COMMITMENT_BYTES]) {
    let info =
        [what.label, &place.log.0, &name.scope.0, &name.epoch.to_be_bytes(), &place.sender.0]
            .concat();
    let mut output = Zeroizing::new([0; 64]);
    Hkdf::<Sha256>::new(Some(nonce), key.bytes())
        .expand(&info, &mut *output)
        .expect("64 bytes are fewer than 255 blocks of SHA-256");
    let mut body_key = Zeroizing::new([0; 32]);
    let mut commitment = [0; COMMITMENT_BYTES];
    body_key.copy_from_slice(&output[..32]);
    commitment.copy_from_slice(&output[32..]);
    (body_key, commitment)
}

#[cfg(test)]
mod tests;
