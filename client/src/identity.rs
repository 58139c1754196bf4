//! Who this device is: an Ed25519 key pair, whose secret half nothing outside this crate sees.
//!
//! The seed is wiped from memory when the last holder lets go, has no `Debug`, and leaves the type
//! in two ways only: into the device's key file ([`mod@file`]), which may keep it in the system's
//! keychain, and sealed into its recovery vault ([`crate::recovery`]). Everything that needs the secret asks
//! this type to do it: sign, prove, open.

pub mod file;
mod keychain;

use ed25519_dalek::SigningKey;
use hkdf::Hkdf;
use sealwire_protocol::digest::sha256;
use sealwire_protocol::ids::Signature;
use sealwire_protocol::{DeviceKey, Digest, LogId, handshake, signing};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

/// The system has no randomness to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

/// Fills an array with random bytes.
///
/// # Errors
/// [`NoRandomness`].
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// What a device signs that has taken an offer with this digest.
pub(crate) fn offer_message(offer: Digest) -> Vec<u8> {
    [&b"sealwire offer v1\0"[..], &offer.0].concat()
}

/// What two people compare, aloud or on paper, to be sure that they mean the same device: six groups
/// of five digits, from SHA-256(`"sealwire fingerprint v1" ‖ 0x00 ‖ key`), each five of its bytes as
/// a big-endian number modulo 100,000. About a hundred bits: nobody makes a key with the same one.
#[must_use]
pub fn fingerprint(device: DeviceKey) -> String {
    let digest = sha256(&[&b"sealwire fingerprint v1\0"[..], &device.0].concat());
    let groups: Vec<String> = digest
        .0
        .chunks_exact(5)
        .map(|bytes| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte)))
        .map(|number| format!("{:05}", number % 100_000))
        .collect();
    groups.join(" ")
}

/// Whether the system has a keychain that a new device's key can be kept in, now and in this session.
///
/// It may ask its person to unlock it, and does not return before: not for a thread that others wait
/// for. Always `false` in a build without the feature `keychain`.
#[must_use]
pub fn keychain_answers() -> bool {
    keychain::answers()
}

/// A device's key pair.
pub struct Identity {
    signing: SigningKey,
}

impl Identity {
    /// Makes a new device.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate() -> Result<Self, NoRandomness> {
        let seed = Zeroizing::new(random::<32>()?);
        Ok(Self::from_seed(&seed))
    }

    /// The device with this seed (RFC 8032): from a backup, or a fixed one in a test.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self { signing: SigningKey::from_bytes(seed) }
    }

    /// The device's name.
    #[must_use]
    pub fn key(&self) -> DeviceKey {
        signing::device_key(&self.signing)
    }

    /// The signature under an entry with this digest.
    #[must_use]
    pub fn sign_entry(&self, entry: Digest) -> Signature {
        signing::sign(&self.signing, &signing::entry_message(entry))
    }

    /// What this device signs so that `author` may enrol it in a vault.
    #[must_use]
    pub fn consent(&self, vault: LogId, author: DeviceKey) -> Signature {
        signing::sign(&self.signing, &signing::enrol_message(vault, self.key(), author))
    }

    /// Signs that this device has taken an offer with this digest.
    pub(crate) fn sign_offer(&self, offer: Digest) -> Signature {
        signing::sign(&self.signing, &offer_message(offer))
    }

    /// Signs that `new` takes the place of `old`, one of which this is, in `log`.
    pub(crate) fn sign_succession(&self, log: LogId, old: DeviceKey, new: DeviceKey) -> Signature {
        signing::sign(&self.signing, &signing::succession_message(log, old, new))
    }

    /// The proof that a relay's greeting asks for.
    #[must_use]
    pub fn prove(&self, greeting_frame: &[u8]) -> Signature {
        handshake::prove_device(&self.signing, greeting_frame)
    }

    /// The proof that a relay's HTTP API asks for: a signature over the bare challenge, as the Totals
    /// app makes it. Nothing else that a device signs has 32 bytes.
    pub(crate) fn sign_challenge(&self, challenge: &[u8; 32]) -> Signature {
        signing::sign(&self.signing, challenge)
    }

    /// The secret half of the X25519 image of this key, to which content keys are sealed: the
    /// first half of SHA-512(seed). Whoever uses it clamps it.
    pub(crate) fn agreement_secret(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.signing.to_scalar_bytes())
    }

    /// A key that nobody has who has not this one: for what stands in the device's own files.
    pub(crate) fn file_key(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        let label = [&b"sealwire device file v1\0"[..], label].concat();
        Hkdf::<Sha256>::new(None, &*self.seed())
            .expand(&label, &mut *key)
            .expect("32 bytes are fewer than 255 blocks of SHA-256");
        key
    }

    pub(crate) fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.signing.to_bytes())
    }
}

/// A group's join key: whoever has its seed may admit itself.
///
/// It is made by a founder or a revoker and travels in invites and, sealed, in rotations. Like an
/// [`Identity`], it has no `Debug` and is wiped.
#[derive(Clone)]
pub struct JoinSeed(Zeroizing<[u8; 32]>);

impl JoinSeed {
    /// Makes a new one.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate() -> Result<Self, NoRandomness> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// Reads a seed.
    #[must_use]
    pub fn from_bytes(seed: [u8; 32]) -> Self {
        Self(Zeroizing::new(seed))
    }

    /// The public half: what `found`, `revoke` and `join_key` entries name.
    #[must_use]
    pub fn public(&self) -> DeviceKey {
        signing::device_key(&SigningKey::from_bytes(&self.0))
    }

    /// The signature that admits `joiner` to `log`.
    #[must_use]
    pub fn admit(&self, log: LogId, joiner: DeviceKey) -> Signature {
        signing::sign(&SigningKey::from_bytes(&self.0), &signing::join_message(log, joiner))
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve25519_dalek::montgomery::MontgomeryPoint;

    #[test]
    fn the_agreement_secret_belongs_to_the_image_of_the_public_key() {
        let device = Identity::from_seed(&[7; 32]);
        let image = MontgomeryPoint::mul_base_clamped(*device.agreement_secret());
        let public = ed25519_dalek::VerifyingKey::from_bytes(&device.key().0).expect("a key");
        assert_eq!(image, public.to_montgomery());
    }

    #[test]
    fn a_fingerprint_can_be_read_aloud_and_belongs_to_one_key() {
        let key = Identity::from_seed(&std::array::from_fn(|at| at as u8)).key();
        let print = fingerprint(key);
        assert_eq!(print, "92427 64069 46822 97709 73961 71284");
        assert_ne!(print, fingerprint(Identity::from_seed(&[1; 32]).key()));
    }

    #[test]
    fn a_join_seed_admits_one_device_to_one_log() {
        let seed = JoinSeed::from_bytes([3; 32]);
        let (log, joiner) = (LogId([1; 16]), DeviceKey([2; 32]));
        let signature = seed.admit(log, joiner);
        let check = |log, joiner| {
            signing::verify(seed.public(), &signing::join_message(log, joiner), &signature)
        };
        assert!(check(log, joiner).is_ok());
        assert!(check(LogId([9; 16]), joiner).is_err());
        assert!(check(log, DeviceKey([9; 32])).is_err());
    }
}
