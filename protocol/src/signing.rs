//! What is signed, and how a key or signature is judged.
//!
//! Every signed message begins with a label of its own and is longer than 32 bytes: a signature made
//! for one purpose is worthless for another, and none can be had from a Totals app, which signs
//! whatever 32 bytes an HTTP challenge gives it.
//!
//! Verification is `verify_strict` everywhere, with the key checked first: a key that is weak, of
//! mixed order or written in a second way would let one person hold several names.

use curve25519_dalek::edwards::CompressedEdwardsY;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use thiserror::Error;

use crate::ids::{DeviceKey, Digest, LogId, Signature};

const ENTRY_LABEL: &[u8] = b"sealwire entry signature v1\0";
const AUTH_LABEL: &[u8] = b"sealwire auth v1\0";
const RELAY_LABEL: &[u8] = b"sealwire relay v1\0";
const JOIN_LABEL: &[u8] = b"sealwire join v1\0";
const ENROL_LABEL: &[u8] = b"sealwire enrol v1\0";
const SUCCESSION_LABEL: &[u8] = b"sealwire succession v1\0";

/// Why a key or a signature is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// Not a point, not written canonically, of small order, or with a small-order part.
    #[error("key is not admissible")]
    Key,
    /// The signature does not fit message and key under `verify_strict`.
    #[error("signature does not verify")]
    Signature,
}

/// Whether a key may speak at all: canonical, on the curve, in the prime-order subgroup.
///
/// Costs about 100 µs: once per authentication or admission, not per entry.
///
/// # Errors
/// [`SignatureError::Key`] if it may not.
pub fn admissible(key: DeviceKey) -> Result<(), SignatureError> {
    let point = CompressedEdwardsY(key.0).decompress().ok_or(SignatureError::Key)?;
    // ed25519-dalek decodes as ZIP-215 does and compares bytes: the same point written in another
    // way would be a second identity.
    if point.compress().0 != key.0 || point.is_small_order() || !point.is_torsion_free() {
        return Err(SignatureError::Key);
    }
    Ok(())
}

/// Checks `signature` by `key` over `message`, strictly.
///
/// # Errors
/// Says whether the key or the signature was wrong.
pub fn verify(key: DeviceKey, message: &[u8], signature: &Signature) -> Result<(), SignatureError> {
    let verifying = VerifyingKey::from_bytes(&key.0).map_err(|_| SignatureError::Key)?;
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    verifying.verify_strict(message, &signature).map_err(|_| SignatureError::Signature)
}

/// Signs `message`.
#[must_use]
pub fn sign(key: &SigningKey, message: &[u8]) -> Signature {
    Signature(key.sign(message).to_bytes())
}

/// The device key of a signing key.
#[must_use]
pub fn device_key(key: &SigningKey) -> DeviceKey {
    DeviceKey(key.verifying_key().to_bytes())
}

/// What the author of an entry signs.
#[must_use]
pub fn entry_message(entry: Digest) -> Vec<u8> {
    [ENTRY_LABEL, &entry.0].concat()
}

/// What a device signs to authenticate: the SHA-256 of the greeting's bytes as it received them,
/// which hold the challenge and the relay's key, and its own key. A greeting of another relay, or
/// of another connection, makes another message.
#[must_use]
pub fn auth_message(greeting: Digest, device: DeviceKey) -> Vec<u8> {
    [AUTH_LABEL, &greeting.0, &device.0].concat()
}

/// What the relay signs in its welcome, so that a pinned relay key means something. `challenge` is
/// the device's own: without it a recorded greeting and welcome could be played to it again.
#[must_use]
pub fn relay_message(greeting: Digest, device: DeviceKey, challenge: Digest) -> Vec<u8> {
    [RELAY_LABEL, &greeting.0, &device.0, &challenge.0].concat()
}

/// What a join key signs to admit `joiner` to `log`.
#[must_use]
pub fn join_message(log: LogId, joiner: DeviceKey) -> Vec<u8> {
    [JOIN_LABEL, &log.0, &joiner.0].concat()
}

/// What a new device signs to be enrolled in a vault by `author`.
#[must_use]
pub fn enrol_message(log: LogId, device: DeviceKey, author: DeviceKey) -> Vec<u8> {
    [ENROL_LABEL, &log.0, &device.0, &author.0].concat()
}

/// What a lost device and the one that takes its place in `log` both sign.
#[must_use]
pub fn succession_message(log: LogId, old: DeviceKey, new: DeviceKey) -> Vec<u8> {
    [SUCCESSION_LABEL, &log.0, &old.0, &new.0].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    #[test]
    fn a_signature_for_one_purpose_is_worthless_for_every_other() {
        let signer = key(7);
        let device = device_key(&signer);
        let digest = Digest([9; 32]);
        let log = LogId([9; 16]);
        let messages = [
            entry_message(digest),
            auth_message(digest, device),
            relay_message(digest, device, digest),
            join_message(log, device),
            enrol_message(log, device, device),
            succession_message(log, device, device),
        ];
        for (i, signed) in messages.iter().enumerate() {
            assert!(signed.len() > 32, "a Totals app signs any 32 bytes");
            let signature = sign(&signer, signed);
            for (j, presented) in messages.iter().enumerate() {
                assert_eq!(verify(device, presented, &signature).is_ok(), i == j);
            }
        }
    }

    #[test]
    fn weak_mixed_and_non_canonical_keys_are_refused() {
        // The identity, the point of order two, and y = p + 1 (a second way to write y = 1).
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut order_two = [0xff; 32];
        order_two[0] = 0xec;
        order_two[31] = 0x7f;
        let mut non_canonical = [0xff; 32];
        non_canonical[0] = 0xee;
        non_canonical[31] = 0x7f;
        for bytes in [[0; 32], identity, order_two, non_canonical] {
            assert_eq!(admissible(DeviceKey(bytes)), Err(SignatureError::Key));
        }
        // A good key plus the point of order two is of mixed order.
        let good = device_key(&key(1));
        let torsion = CompressedEdwardsY(order_two).decompress().expect("a point");
        let mixed = CompressedEdwardsY(good.0).decompress().expect("a point") + torsion;
        assert_eq!(admissible(DeviceKey(mixed.compress().0)), Err(SignatureError::Key));
        assert_eq!(admissible(good), Ok(()));
    }
}
