//! Sealing a content key to one recipient, inside the signed body of a rotation or delivery.
//!
//! HPKE (RFC 9180) in base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305
//! (0x0020, 0x0001, 0x0003), to the X25519 image of the recipient's Ed25519 key.
//! `info = log id ‖ scope ‖ epoch u32 ‖ sender ‖ recipient`; the additional data is the entry's
//! header up to and with the audience. The sender is authenticated by the signature of the entry
//! that carries the box, not by HPKE: *so one key pair never takes part in two kinds of
//! Diffie-Hellman, and a box cut out of its entry is worth nothing.*
//!
//! Inside is the MessagePack array `[key bin32, join seed bin32 | nil, head | nil]`.

use ed25519_dalek::VerifyingKey;
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use sealwire_protocol::bounded::BoundedBytes;
use sealwire_protocol::keys::SealedKey;
use sealwire_protocol::{DeviceKey, Digest, Head};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::identity::{Identity, JoinSeed, NoRandomness, random};
use crate::seal::{EpochKey, KeyName, Place};

type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
type EncappedKey = <X25519HkdfSha256 as Kem>::EncappedKey;

/// Room for a grant as it is encoded, in bytes; it takes about 130.
const GRANT_BYTES_MAX: usize = 256;

/// Why a key was not sealed or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyBoxError {
    /// The recipient's key is not one that a box can be sealed to.
    #[error("the recipient's key cannot be sealed to")]
    Recipient,
    /// The box is not for this device, or not for this entry, or damaged.
    #[error("the sealed key does not open")]
    Closed,
    /// It opens, and what is inside is not a key.
    #[error("the sealed key is malformed")]
    Malformed,
    /// See [`NoRandomness`].
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// What a recipient is given. It has no `Debug`.
#[derive(Clone)]
pub struct Grant {
    /// The content key.
    pub key: EpochKey,
    /// The seed of the group's join key, so that the recipient may invite others.
    pub join_seed: Option<JoinSeed>,
    /// The newest head that the author had verified: a recipient who was shown another history
    /// sees it here.
    pub head: Option<Head>,
}

impl Grant {
    /// Reads what was in a box.
    ///
    /// # Errors
    /// [`KeyBoxError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyBoxError> {
        let wire: Wire = rmp_serde::from_slice(bytes).map_err(|_| KeyBoxError::Malformed)?;
        Ok(Self {
            key: EpochKey::from_bytes(wire.0),
            join_seed: wire.1.map(|seed| JoinSeed::from_bytes(seed.0)),
            head: wire.2,
        })
    }
}

/// The grant as it is encoded. It is wiped.
#[derive(Serialize, Deserialize)]
struct Wire(#[serde(with = "serde_bytes")] [u8; 32], Option<Digest>, Option<Head>);

impl Drop for Wire {
    fn drop(&mut self) {
        self.0.zeroize();
        if let Some(seed) = &mut self.1 {
            seed.0.zeroize();
        }
    }
}

/// Seals a grant to a recipient.
///
/// # Errors
/// [`KeyBoxError::Recipient`] or [`KeyBoxError::NoRandomness`].
pub fn seal(
    grant: &Grant,
    name: KeyName,
    place: &Place<'_>,
    recipient: DeviceKey,
) -> Result<SealedKey, KeyBoxError> {
    seal_with(grant, name, place, recipient, Zeroizing::new(random()?))
}

fn seal_with(
    grant: &Grant,
    name: KeyName,
    place: &Place<'_>,
    recipient: DeviceKey,
    ephemeral: Zeroizing<[u8; 32]>,
) -> Result<SealedKey, KeyBoxError> {
    let image =
        VerifyingKey::from_bytes(&recipient.0).map_err(|_| KeyBoxError::Recipient)?.to_montgomery();
    let public = PublicKey::from_bytes(image.as_bytes()).map_err(|_| KeyBoxError::Recipient)?;
    let wire = Wire(
        *grant.key.bytes(),
        grant.join_seed.as_ref().map(|seed| Digest(*seed.bytes())),
        grant.head,
    );
    // Room for all, so that no copy is left behind by growing.
    let mut plaintext = Zeroizing::new(Vec::with_capacity(GRANT_BYTES_MAX));
    rmp_serde::encode::write(&mut *plaintext, &wire).map_err(|_| KeyBoxError::Malformed)?;
    let (enc, ciphertext) =
        hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &public,
            &info(name, place, recipient),
            &plaintext,
            place.aad,
            &mut Drawn(ephemeral),
        )
        .map_err(|_| KeyBoxError::Recipient)?;
    Ok(SealedKey {
        recipient,
        enc: enc.to_bytes().into(),
        ciphertext: BoundedBytes::new(ciphertext).ok_or(KeyBoxError::Malformed)?,
    })
}

/// Opens the box that is for `device`.
///
/// # Errors
/// [`KeyBoxError::Closed`] or [`KeyBoxError::Malformed`].
pub fn open(
    device: &Identity,
    name: KeyName,
    place: &Place<'_>,
    sealed: &SealedKey,
) -> Result<Grant, KeyBoxError> {
    let secret = device.agreement_secret();
    let secret = PrivateKey::from_bytes(&*secret).map_err(|_| KeyBoxError::Closed)?;
    let enc = EncappedKey::from_bytes(&sealed.enc).map_err(|_| KeyBoxError::Closed)?;
    // A point of small order, whose shared secret anybody knows, is refused inside.
    let plaintext = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &secret,
        &enc,
        &info(name, place, device.key()),
        &sealed.ciphertext,
        place.aad,
    )
    .map(Zeroizing::new)
    .map_err(|_| KeyBoxError::Closed)?;
    Grant::decode(&plaintext)
}

fn info(name: KeyName, place: &Place<'_>, recipient: DeviceKey) -> Vec<u8> {
    [&place.log.0[..], &name.scope.0, &name.epoch.to_be_bytes(), &place.sender.0, &recipient.0]
        .concat()
}

/// Randomness that was drawn before: the crate's own source panics when the system has none.
/// HPKE asks once, for the 32 bytes from which it derives the ephemeral key.
struct Drawn(Zeroizing<[u8; 32]>);

impl TryRng for Drawn {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        debug_assert_eq!(out.len(), self.0.len(), "HPKE draws the ephemeral key and no more");
        for (out, drawn) in out.iter_mut().zip(self.0.iter()) {
            *out = *drawn;
        }
        Ok(())
    }
}

impl TryCryptoRng for Drawn {}

#[cfg(test)]
mod tests {
    use sealwire_protocol::ids::Scope;
    use sealwire_protocol::limits::KEY_CIPHERTEXT_BYTES_MAX;
    use sealwire_protocol::{LogId, keys::KeyBody};
    use serde_json::json;

    use super::*;
    use crate::vectors;

    const NAME: KeyName = KeyName { scope: Scope([0x33; 16]), epoch: 7 };

    fn recipient() -> Identity {
        Identity::from_seed(&[0x55; 32])
    }

    fn place(aad: &[u8]) -> Place<'_> {
        Place { log: LogId([0x11; 16]), sender: DeviceKey([0x22; 32]), aad }
    }

    fn full_grant() -> Grant {
        Grant {
            key: EpochKey::from_bytes([0x44; 32]),
            join_seed: Some(JoinSeed::from_bytes([0x66; 32])),
            head: Some(Head { incarnation: u64::MAX, seq: 1 << 62, chain: Digest([0x77; 32]) }),
        }
    }

    #[test]
    fn the_fullest_grant_fits_its_bound_and_comes_back() {
        let sealed = seal(&full_grant(), NAME, &place(b"aad"), recipient().key()).expect("sealed");
        assert!(sealed.ciphertext.len() <= KEY_CIPHERTEXT_BYTES_MAX);
        let opened = open(&recipient(), NAME, &place(b"aad"), &sealed).expect("opened");
        assert!(opened.key == full_grant().key);
        assert_eq!(opened.head, full_grant().head);
        assert_eq!(
            opened.join_seed.map(|seed| seed.public()),
            full_grant().join_seed.map(|seed| seed.public())
        );
    }

    #[test]
    fn a_key_opens_only_for_its_recipient_in_its_entry() {
        let sealed = seal(&full_grant(), NAME, &place(b"aad"), recipient().key()).expect("sealed");
        let closed = |device: &Identity, name, place: &Place<'_>| {
            open(device, name, place, &sealed).err() == Some(KeyBoxError::Closed)
        };
        assert!(closed(&Identity::from_seed(&[1; 32]), NAME, &place(b"aad")));
        assert!(closed(&recipient(), KeyName { epoch: 8, ..NAME }, &place(b"aad")));
        assert!(closed(&recipient(), KeyName { scope: Scope([0; 16]), ..NAME }, &place(b"aad")));
        assert!(closed(&recipient(), NAME, &place(b"other")));
        let elsewhere = Place { log: LogId([0; 16]), ..place(b"aad") };
        assert!(closed(&recipient(), NAME, &elsewhere));
        let by_another = Place { sender: DeviceKey([0; 32]), ..place(b"aad") };
        assert!(closed(&recipient(), NAME, &by_another));
    }

    #[test]
    fn a_point_of_small_order_is_refused() {
        let mut sealed =
            seal(&full_grant(), NAME, &place(b"aad"), recipient().key()).expect("sealed");
        for enc in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            sealed.enc = enc;
            let opened = open(&recipient(), NAME, &place(b"aad"), &sealed);
            assert_eq!(opened.err(), Some(KeyBoxError::Closed));
        }
        let nobody = seal(&full_grant(), NAME, &place(b"aad"), DeviceKey::ZERO);
        assert_eq!(nobody.err(), Some(KeyBoxError::Recipient));
    }

    #[test]
    fn keys_are_sealed_as_the_vectors_say() {
        let aad: Vec<u8> = (0..123).map(|i| i as u8 ^ 0x5a).collect();
        let place = place(&aad);
        let bare = Grant { join_seed: None, head: None, ..full_grant() };
        let cases: Vec<_> = [(bare, 0x01u8), (full_grant(), 0x02)]
            .into_iter()
            .map(|(grant, draw)| {
                let drawn = Zeroizing::new([draw; 32]);
                let sealed =
                    seal_with(&grant, NAME, &place, recipient().key(), drawn).expect("sealed");
                let body = KeyBody {
                    scope: NAME.scope,
                    epoch: NAME.epoch,
                    keys: sealwire_protocol::bounded::Bounded::new(vec![sealed.clone()])
                        .expect("one"),
                };
                json!({
                    "log": place.log.to_hex(),
                    "scope": NAME.scope.to_hex(),
                    "epoch": NAME.epoch,
                    "sender": place.sender.to_hex(),
                    "recipient_seed": hex::encode([0x55; 32]),
                    "recipient": recipient().key().to_hex(),
                    "aad": hex::encode(&aad),
                    "ephemeral_ikm": hex::encode([draw; 32]),
                    "key": hex::encode(grant.key.bytes()),
                    "join_seed": grant.join_seed.as_ref().map(|seed| hex::encode(seed.bytes())),
                    "head": grant.head.map(|head| json!([
                        head.incarnation.to_string(),
                        head.seq.to_string(),
                        head.chain.to_hex(),
                    ])),
                    "enc": hex::encode(sealed.enc),
                    "ciphertext": hex::encode(&*sealed.ciphertext),
                    "body": hex::encode(body.encode().expect("a body")),
                })
            })
            .collect();
        vectors::check(
            "keys.json",
            &json!({
                "about": "Sealed keys: HPKE base mode, suites 0x0020, 0x0001, 0x0003; the ephemeral key \
                          is DeriveKeyPair(ephemeral_ikm), RFC 9180 section 7.1.3; info = log || scope \
                          || epoch u32 || sender || recipient; the plaintext is the MessagePack array \
                          [key, join_seed or nil, [incarnation, seq, chain] or nil]; body is a delivery \
                          with this one key",
                "cases": cases,
            }),
        );
    }
}
