//! How a device proves its key, and the relay its own.
//!
//! 1. The relay sends a [`Greeting`](crate::frame::Greeting) with 32 random bytes, its key and its
//!    version range. *Without the challenge a recorded proof could be sent again.*
//! 2. The device signs the SHA-256 of the greeting frame **as received**, and its own key. *Signing
//!    the bare challenge would let a second relay pass the first one's challenge on and log in as the
//!    device there; here the relay's key is part of what is signed.*
//! 3. The relay checks the proof against the greeting that it sent on this connection, once. *No
//!    store holds challenges, so a flood stores nothing, and a proof is good on one socket only.*
//! 4. The relay answers with its own signature over the same greeting, the device's key and 32
//!    random bytes that came with the device's proof. *A pinned relay key that is never proved would
//!    be decoration; and without bytes of the device's own, a recorded greeting and answer could be
//!    played to it again.*

use ed25519_dalek::SigningKey;

use crate::digest::sha256;
use crate::ids::{DeviceKey, Digest, Signature};
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

/// The relay's proof to one device, over the greeting that it sent and the challenge in the
/// device's [`Authenticate`](crate::frame::Authenticate).
#[must_use]
pub fn prove_relay(
    key: &SigningKey,
    greeting_frame: &[u8],
    device: DeviceKey,
    challenge: Digest,
) -> Signature {
    signing::sign(key, &relay_message(sha256(greeting_frame), device, challenge))
}

/// Checks the relay's proof against its pinned key and the challenge that the device sent.
///
/// # Errors
/// Says whether the key or the signature was wrong.
pub fn check_relay(
    relay: DeviceKey,
    greeting_frame: &[u8],
    device: DeviceKey,
    challenge: Digest,
    proof: &Signature,
) -> Result<(), SignatureError> {
    signing::verify(relay, &relay_message(sha256(greeting_frame), device, challenge), proof)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_good_for_one_greeting_one_device_and_one_challenge() {
        let (device_signing, relay_signing) =
            (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let (device, relay) =
            (signing::device_key(&device_signing), signing::device_key(&relay_signing));
        let proof = prove_device(&device_signing, b"greeting");
        assert_eq!(check_device(device, b"greeting", &proof), Ok(()));
        assert_eq!(check_device(device, b"another", &proof), Err(SignatureError::Signature));
        assert_eq!(check_device(relay, b"greeting", &proof), Err(SignatureError::Signature));

        let (fresh, old) = (Digest([3; 32]), Digest([4; 32]));
        let proof = prove_relay(&relay_signing, b"greeting", device, fresh);
        assert_eq!(check_relay(relay, b"greeting", device, fresh, &proof), Ok(()));
        for refused in [
            check_relay(relay, b"greeting", device, old, &proof),
            check_relay(relay, b"another", device, fresh, &proof),
            check_relay(relay, b"greeting", relay, fresh, &proof),
            check_relay(device, b"greeting", device, fresh, &proof),
        ] {
            assert_eq!(refused, Err(SignatureError::Signature));
        }
    }
}
