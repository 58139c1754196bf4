//! The native recovery vault: what the relay keeps, and why watching the relay does not help to try
//! PINs.
//!
//! ```text
//! stretched = Argon2id(code, salt "sealwire recovery", 64 MiB, 3 passes, 4 lanes)
//! locator   = HKDF-SHA256(stretched, info "sealwire recovery locator v1")  → a code-shaped text
//! code key  = HKDF-SHA256(stretched, info "sealwire recovery code v1")     → 32 bytes
//! key       = HKDF-SHA256(Argon2id(PIN, salt, cost), salt = code key, info "sealwire recovery v1")
//! blob      = 1 u8 ‖ nonce 24 ‖ XChaCha20-Poly1305(key, nonce, padded contents) ‖ tag 16
//! ```
//!
//! The code is its sixteen characters in capitals. The locator is fifteen characters of five bits
//! each, from the first 75 bits, and the check of the Totals app: it goes where the app sends its
//! code. The additional data is `"sealwire recovery v1" ‖ 0x00 ‖ locator`. The contents are a
//! MessagePack map, padded by PADMÉ.
//!
//! Whoever runs the relay sees the locator and the blob. Without the code there is no key to try a PIN
//! with, and the code has 75 bits of which each guess costs an Argon2id.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::{DeviceKey, LogId};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::code::{CODE_CHARACTERS, Format, RecoveryCode};
use crate::identity::{NoRandomness, random};
use crate::padding::{pad, unpad};
use crate::stretch::{Cost, stretch};

/// The version of the blob that this crate writes and reads.
const VERSION: u8 = 1;

const NONCE_BYTES: usize = 24;

/// Bytes of a salt.
pub(crate) const SALT_BYTES: usize = 16;

/// Longest contents, in bytes: sealed and padded they fit the relay's 16 KiB.
const CONTENTS_BYTES_MAX: usize = 15 * 1024;

/// Fewest characters of a PIN: as in the app.
pub const PIN_CHARACTERS_MIN: usize = 6;

/// Longest PIN, in bytes.
const PIN_BYTES_MAX: usize = 256;

/// Deepest nesting that is followed in contents that a newer version has written.
const NESTING_MAX: usize = 16;

/// Why a recovery vault was not sealed or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VaultError {
    /// The PIN has fewer than six characters, or is absurdly long.
    #[error("a PIN has at least {PIN_CHARACTERS_MIN} characters")]
    Pin,
    /// A PIN of a Totals vault has digits alone.
    #[error("a PIN of the Totals app has at least {PIN_CHARACTERS_MIN} digits and nothing else")]
    Digits,
    /// The code belongs to the other format.
    #[error("the recovery code belongs to another kind of recovery vault")]
    Format,
    /// The PIN does not open it.
    #[error("the PIN is wrong")]
    WrongPin,
    /// It was written by a newer version.
    #[error("the recovery vault was written by a newer version")]
    Newer,
    /// It opens, or would, and makes no sense.
    #[error("the recovery vault is damaged")]
    Damaged,
    /// There is more to keep than a recovery vault holds.
    #[error("there are too many groups for one recovery vault")]
    TooLong,
    /// See [`NoRandomness`].
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// What a recovery vault brings back. It has no `Debug` and is wiped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The seed of the device's key.
    #[serde(with = "serde_bytes")]
    pub seed: [u8; 32],
    /// What the person is called in `totals` groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The device's groups.
    #[serde(default)]
    pub groups: Vec<SavedGroup>,
}

impl Contents {
    /// The bytes that are sealed.
    ///
    /// # Errors
    /// [`VaultError::TooLong`].
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let bytes = rmp_serde::to_vec_named(self).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| VaultError::Damaged)?;
        if bytes.len() > CONTENTS_BYTES_MAX { Err(VaultError::TooLong) } else { Ok(bytes) }
    }

    /// Reads what was sealed. Fields that are not known are passed over.
    ///
    /// # Errors
    /// [`VaultError::Damaged`].
    pub fn decode(bytes: &[u8]) -> Result<Self, VaultError> {
        let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
        reader.set_max_depth(NESTING_MAX);
        Self::deserialize(&mut reader).map_err(|_| VaultError::Damaged)
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.seed.zeroize();
    }
}

/// A group as it is saved.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedGroup {
    /// Its name.
    pub log: LogId,
    /// The address of its relay.
    pub relay: String,
    /// The key of its relay; none if it was never met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_key: Option<DeviceKey>,
    /// The seed of the join key, in native groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_seed: Option<SavedSeed>,
    /// The newest content key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SavedKey>,
}

/// Thirty-two secret bytes. They have no `Debug` and are wiped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct SavedSeed(#[serde(with = "serde_bytes")] pub [u8; 32]);

/// A content key and its name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedKey {
    /// Its scope.
    pub scope: Scope,
    /// Its generation.
    pub epoch: u32,
    /// The key.
    pub key: SavedSeed,
}

/// A sealed recovery vault, as it goes to a relay.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedVault {
    /// The salt of the PIN.
    pub salt: Vec<u8>,
    /// What one guess at the PIN costs.
    pub cost: Cost,
    /// The sealed contents.
    pub blob: Vec<u8>,
}

/// What a native code is good for, once it was stretched: where the vault is, and half of its key.
/// It has no `Debug` and is wiped.
pub struct Locator {
    text: Zeroizing<String>,
    code_key: Zeroizing<[u8; 32]>,
}

impl Locator {
    /// Stretches a code. Takes a tenth of a second and more.
    ///
    /// # Errors
    /// [`VaultError::Format`] for a code of the Totals app.
    pub fn of(code: &RecoveryCode) -> Result<Self, VaultError> {
        if code.format() != Format::Native {
            return Err(VaultError::Format);
        }
        let stretched = stretch(code.bytes(), b"sealwire recovery", Cost::USUAL)
            .map_err(|_| VaultError::Damaged)?;
        let hkdf = Hkdf::<Sha256>::new(None, &*stretched);
        let bits = expand::<10>(&hkdf, b"sealwire recovery locator v1");
        let code_key = expand::<32>(&hkdf, b"sealwire recovery code v1");
        let places = Zeroizing::new(places_of(&bits));
        Ok(Self { text: RecoveryCode::from_places(&places, Format::Totals).text(), code_key })
    }

    /// What is sent in the place of a code.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The half of the key that comes from the code.
    pub(crate) fn code_key(&self) -> &Zeroizing<[u8; 32]> {
        &self.code_key
    }

    /// The key that a PIN gives, with this code.
    pub(crate) fn key(
        &self,
        pin: &str,
        salt: &[u8],
        cost: Cost,
    ) -> Result<Zeroizing<[u8; 32]>, VaultError> {
        key(&self.code_key, pin, salt, cost)
    }

    /// Seals contents under a new salt.
    ///
    /// # Errors
    /// [`VaultError::Pin`], [`VaultError::TooLong`], [`VaultError::NoRandomness`].
    pub fn seal(&self, pin: &str, contents: &Contents) -> Result<SealedVault, VaultError> {
        let salt = random::<SALT_BYTES>()?;
        let key = self.key(pin, &salt, Cost::USUAL)?;
        seal_with(&key, &self.text, &salt, Cost::USUAL, contents, random()?)
    }

    /// Opens a recovery vault.
    ///
    /// # Errors
    /// [`VaultError::WrongPin`] and others.
    pub fn open(&self, pin: &str, vault: &SealedVault) -> Result<Contents, VaultError> {
        let (version, rest) = vault.blob.split_first().ok_or(VaultError::Damaged)?;
        if *version != VERSION {
            return Err(VaultError::Newer);
        }
        let (nonce, ciphertext) =
            rest.split_first_chunk::<NONCE_BYTES>().ok_or(VaultError::Damaged)?;
        let key = self.key(pin, &vault.salt, vault.cost)?;
        let padded = XChaCha20Poly1305::new(&(*key).into())
            .decrypt(&XNonce::from(*nonce), Payload { msg: ciphertext, aad: &aad(&self.text) })
            .map(Zeroizing::new)
            .map_err(|_| VaultError::WrongPin)?;
        let bytes = unpad(&padded).map_err(|_| VaultError::Damaged)?;
        Contents::decode(bytes)
    }
}

/// The key that a PIN gives, with the half that comes from the code.
pub(crate) fn key(
    code_key: &[u8; 32],
    pin: &str,
    salt: &[u8],
    cost: Cost,
) -> Result<Zeroizing<[u8; 32]>, VaultError> {
    check_pin(pin)?;
    let stretched = stretch(pin.as_bytes(), salt, cost).map_err(|_| VaultError::Damaged)?;
    let hkdf = Hkdf::<Sha256>::new(Some(code_key), &*stretched);
    Ok(expand::<32>(&hkdf, b"sealwire recovery v1"))
}

/// Seals contents under a key that a PIN has given before.
pub(crate) fn seal_again(
    key: &[u8; 32],
    locator: &str,
    salt: &[u8],
    cost: Cost,
    contents: &Contents,
) -> Result<SealedVault, VaultError> {
    seal_with(key, locator, salt, cost, contents, random()?)
}

fn seal_with(
    key: &[u8; 32],
    locator: &str,
    salt: &[u8],
    cost: Cost,
    contents: &Contents,
    nonce: [u8; NONCE_BYTES],
) -> Result<SealedVault, VaultError> {
    let bytes = contents.encode()?;
    let padded = Zeroizing::new(pad(&bytes).map_err(|_| VaultError::TooLong)?);
    let ciphertext = XChaCha20Poly1305::new(key.into())
        .encrypt(&XNonce::from(nonce), Payload { msg: &padded, aad: &aad(locator) })
        .map_err(|_| VaultError::TooLong)?;
    let mut blob = vec![VERSION];
    blob.extend_from_slice(&nonce);
    blob.extend_from_slice(&ciphertext);
    Ok(SealedVault { salt: salt.to_vec(), cost, blob })
}

/// Whether a PIN may be one.
pub(crate) fn check_pin(pin: &str) -> Result<(), VaultError> {
    if pin.chars().count() < PIN_CHARACTERS_MIN || pin.len() > PIN_BYTES_MAX {
        return Err(VaultError::Pin);
    }
    Ok(())
}

fn aad(locator: &str) -> Vec<u8> {
    [&b"sealwire recovery v1\0"[..], locator.as_bytes()].concat()
}

fn expand<const N: usize>(hkdf: &Hkdf<Sha256>, info: &[u8]) -> Zeroizing<[u8; N]> {
    let mut output = Zeroizing::new([0; N]);
    hkdf.expand(info, &mut *output).expect("fewer bytes than 255 blocks of SHA-256");
    output
}

/// Fifteen numbers of five bits.
fn places_of(bits: &[u8; 10]) -> [u8; CODE_CHARACTERS - 1] {
    let mut number = 0u128;
    for byte in bits {
        number = number << 8 | u128::from(*byte);
    }
    let mut places = [0; CODE_CHARACTERS - 1];
    for (at, place) in places.iter_mut().enumerate() {
        // The first five bits first; five bits fit a byte.
        *place = (number >> (75 - 5 * at)) as u8 & 31;
    }
    places
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::vectors;

    const CODE: &str = "0123456789ABCDES";

    fn contents() -> Contents {
        Contents {
            seed: [0x11; 32],
            name: None,
            groups: vec![SavedGroup {
                log: LogId([0x22; 16]),
                relay: "wss://relay.example".to_owned(),
                relay_key: Some(DeviceKey([0x33; 32])),
                join_seed: Some(SavedSeed([0x44; 32])),
                key: Some(SavedKey {
                    scope: Scope([0x55; 16]),
                    epoch: 7,
                    key: SavedSeed([0x66; 32]),
                }),
            }],
        }
    }

    fn locator() -> Locator {
        Locator::of(&RecoveryCode::parse(CODE).expect("a code")).expect("native")
    }

    #[test]
    fn what_was_sealed_opens_with_its_code_and_pin_only() {
        let sealed = locator().seal("246810", &contents()).expect("sealed");
        assert!(locator().open("246810", &sealed).is_ok_and(|opened| opened == contents()));
        assert_eq!(locator().open("246811", &sealed).err(), Some(VaultError::WrongPin));
        let other = RecoveryCode::generate(Format::Native).expect("randomness");
        let other = Locator::of(&other).expect("native");
        assert_eq!(other.open("246810", &sealed).err(), Some(VaultError::WrongPin));
        assert_ne!(other.text(), locator().text());
        let needle = [0x11; 32];
        assert!(!sealed.blob.windows(32).any(|window| window == needle));
    }

    #[test]
    fn what_is_no_vault_is_refused_without_a_panic() {
        let sealed = locator().seal("246810", &contents()).expect("sealed");
        let newer = SealedVault { blob: [&[2][..], &sealed.blob[1..]].concat(), ..sealed.clone() };
        assert_eq!(locator().open("246810", &newer).err(), Some(VaultError::Newer));
        for length in [0, 1, 24, 25, 40] {
            let cut = SealedVault { blob: sealed.blob[..length].to_vec(), ..sealed.clone() };
            assert!(locator().open("246810", &cut).is_err(), "{length}");
        }
        let greedy = Cost { memory_kib: u32::MAX, ..Cost::USUAL };
        let greedy = SealedVault { cost: greedy, ..sealed.clone() };
        assert_eq!(locator().open("246810", &greedy).err(), Some(VaultError::Damaged));
        assert_eq!(locator().seal("12345", &contents()).err(), Some(VaultError::Pin));
        let app = RecoveryCode::parse("0123456789ABCDE9").expect("a code");
        assert_eq!(Locator::of(&app).err(), Some(VaultError::Format));
    }

    #[test]
    fn a_vault_that_is_sealed_again_opens_as_the_first() {
        let first = locator().seal("246810", &contents()).expect("sealed");
        let key = locator().key("246810", &first.salt, first.cost).expect("a key");
        let mut more = contents();
        more.groups.clear();
        let again = seal_again(&key, locator().text(), &first.salt, first.cost, &more);
        let opened = locator().open("246810", &again.expect("sealed"));
        assert!(opened.is_ok_and(|opened| opened == more));
    }

    #[test]
    fn vaults_are_sealed_as_the_vectors_say() {
        let (salt, nonce) = ([0x77; SALT_BYTES], [0x88; NONCE_BYTES]);
        let locator = locator();
        let key = locator.key("246810", &salt, Cost::USUAL).expect("a key");
        let sealed = seal_with(&key, locator.text(), &salt, Cost::USUAL, &contents(), nonce)
            .expect("sealed");
        let plain = rmp_serde::to_vec_named(&contents()).expect("encoded");
        vectors::check(
            "recovery.json",
            &json!({
                "about": "The native recovery vault: stretch the code, derive locator and code key, \
                          seal the contents under PIN and code",
                "cases": [{
                    "code": CODE,
                    "pin": "246810",
                    "salt": hex::encode(salt),
                    "nonce": hex::encode(nonce),
                    "memory_kib": Cost::USUAL.memory_kib,
                    "passes": Cost::USUAL.passes,
                    "lanes": Cost::USUAL.lanes,
                    "locator": locator.text(),
                    "code_key": hex::encode(*locator.code_key),
                    "key": hex::encode(*key),
                    "contents": hex::encode(plain),
                    "blob": hex::encode(sealed.blob),
                }],
            }),
        );
    }
}
