//! What devices do that this crate does not: sealing bodies and content keys.
//!
//! It stands here for the conversation, whose boxes would otherwise be noise, and says no more than
//! docs/PROTOCOL.md does. Everything that would be random is given.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use ed25519_dalek::VerifyingKey;
use hkdf::Hkdf;
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use sealwire_protocol::bounded::BoundedBytes;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::keys::SealedKey;
use sealwire_protocol::{DeviceKey, Digest, Head, LogId};
use sha2::Sha256;

use crate::cast::{bytes32, key, signing_key};

/// Where something is sealed.
pub(crate) struct Place<'a> {
    pub(crate) log: LogId,
    pub(crate) scope: Scope,
    pub(crate) epoch: u32,
    pub(crate) sender: &'a str,
    pub(crate) aad: &'a [u8],
}

/// The length that PADMÉ gives to `length` bytes.
fn padme(length: usize) -> usize {
    let exponent = length.ilog2();
    let kept = exponent.ilog2() + 1;
    length.next_multiple_of(1 << (exponent - kept))
}

/// Length, content, zeros.
pub(crate) fn pad(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("short").to_be_bytes();
    let mut padded = [&length[..], content].concat();
    padded.resize(padme(padded.len()), 0);
    padded
}

/// A native body.
pub(crate) fn seal_body(
    epoch_key: [u8; 32],
    place: &Place<'_>,
    nonce: [u8; 24],
    content: &[u8],
) -> Vec<u8> {
    let epoch = place.epoch.to_be_bytes();
    let label = b"sealwire body v1".as_slice();
    let info = [label, &place.log.0, &place.scope.0, &epoch, &key(place.sender).0].concat();
    let mut derived = [0; 64];
    let hkdf = Hkdf::<Sha256>::new(Some(&nonce), &epoch_key);
    hkdf.expand(&info, &mut derived).expect("64 bytes are few");
    let (body_key, commitment) = derived.split_at(32);
    let cipher = XChaCha20Poly1305::new_from_slice(body_key).expect("32 bytes");
    let padded = pad(content);
    let payload = Payload { msg: &padded, aad: place.aad };
    let ciphertext = cipher.encrypt(&XNonce::from(nonce), payload).expect("short");
    [&[1], &place.scope.0[..], &epoch, &nonce, commitment, &ciphertext].concat()
}

/// What is sealed of a content key: `[key, join seed, head]`.
pub(crate) fn key_plaintext(
    epoch_key: [u8; 32],
    join_seed: Option<[u8; 32]>,
    head: Option<Head>,
) -> Vec<u8> {
    rmp_serde::to_vec(&(Digest(epoch_key), join_seed.map(Digest), head)).expect("bytes")
}

/// A content key for one recipient.
pub(crate) fn seal_key(plaintext: &[u8], place: &Place<'_>, recipient: &str) -> SealedKey {
    let point = VerifyingKey::from_bytes(&key(recipient).0).expect("a point").to_montgomery();
    let public = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(point.as_bytes());
    let info = info(place, key(recipient));
    let ephemeral = bytes32(&format!("ephemeral to {recipient} in epoch {}", place.epoch));
    let (enc, ciphertext) =
        hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &public.expect("a public key"),
            &info,
            plaintext,
            place.aad,
            &mut Given(ephemeral),
        )
        .expect("sealed");
    let sealed = SealedKey {
        recipient: key(recipient),
        enc: enc.to_bytes().into(),
        ciphertext: BoundedBytes::new(ciphertext).expect("short"),
    };
    assert_eq!(open_key(&sealed, place, recipient), plaintext);
    sealed
}

fn open_key(sealed: &SealedKey, place: &Place<'_>, recipient: &str) -> Vec<u8> {
    let secret = signing_key(recipient).to_scalar_bytes();
    hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &<X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&secret).expect("a secret key"),
        &<X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(&sealed.enc).expect("a public key"),
        &info(place, key(recipient)),
        &sealed.ciphertext,
        place.aad,
    )
    .expect("opened")
}

fn info(place: &Place<'_>, recipient: DeviceKey) -> Vec<u8> {
    let epoch = place.epoch.to_be_bytes();
    [&place.log.0[..], &place.scope.0, &epoch, &key(place.sender).0, &recipient.0].concat()
}

/// The 32 bytes from which HPKE derives the ephemeral key, in place of randomness.
struct Given([u8; 32]);

impl TryRng for Given {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        unreachable!("HPKE asks for bytes")
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        unreachable!("HPKE asks for bytes")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        out.copy_from_slice(&self.0);
        Ok(())
    }
}

impl TryCryptoRng for Given {}
