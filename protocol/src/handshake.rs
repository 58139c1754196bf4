//! How a device proves its key, and the relay its own.
//!
//! 1. The relay sends a [`Greeting`](crate::frame::Greeting) with 32 random bytes, its key and its
//!    version range. *Without the challenge a recorded proof could be sent again.*
//! 2. The device signs the SHA-256 of the greeting frame **as received**, and its own key. *Signing
//!    the bare challenge would let a second relay pass the first one's challenge on and log in as the
//!    device there; here the relay's key is part of what is signed.*
//! 3. The relay checks the proof against the greeting that it sent on this connection, once. *No
//!    store holds challenges, so a flood stores nothing, and a proof is good on one socket only.*
//! 4. The relay answers with its own signature over the same greeting and the device's key. *A
//!    pinned relay key that is never proved would be decoration.*

use ed25519_dalek::SigningKey;

use crate::digest::sha256;
use crate::ids::{DeviceKey, Signature};
use crate::signing::{self, SignatureError, auth_message, relay_message};

/// The device's proof over the greeting's bytes as received.
#[must_use]
pub fn prove_device(key: &SigningKey, greeting_frame: &[u8]) -> Signature {
    let device = signing::device_key(key);
    signing::sign(key, &auth_message(sha256(greeting_frame), device))
}

/// Checks a device's proof, and that its key may speak at all.
///
/// # Errors
/// Says whether the key or the signature was wrong; the peer is told neither.
pub fn check_device(
    device: DeviceKey,
    greeting_frame: &[u8],
    proof: &Signature,
) -> Result<(), SignatureError> {
    signing::admissible(device)?;
    signing::verify(device, &auth_message(sha256(greeting_frame), device), proof)
}

/// The relay's proof to one device over the greeting that it sent.
#[must_use]
pub fn prove_relay(key: &SigningKey, greeting_frame: &[u8], device: DeviceKey) -> Signature {
    signing::sign(key, &relay_message(sha256(greeting_frame), device))
}

/// Checks the relay's proof against its pinned key.
///
/// # Errors
/// Says whether the key or the signature was wrong.
pub fn check_relay(
    relay: DeviceKey,
    greeting_frame: &[u8],
    device: DeviceKey,
    proof: &Signature,
) -> Result<(), SignatureError> {
    signing::verify(relay, &relay_message(sha256(greeting_frame), device), proof)
}
