//! The two codes by which a device is enrolled: an offer from one that is in the vault, and the new
//! device's consent to it.
//!
//! Neither is a secret. Whoever changes one on its way achieves nothing but a refusal: the consent is a
//! signature over the vault, the new device and the one that made the offer, and another one over all of
//! the offer as it came. What people have to make sure of is that the offer that they show to their new
//! device is their own, and that the consent that they enrol came from that device: its key is shown.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealwire_protocol::digest::sha256;
use sealwire_protocol::ids::{Scope, Signature};
use sealwire_protocol::{DeviceKey, Digest, LogId, signing};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::SyncError;
use crate::address::{ADDRESS_BYTES_MAX, RelayUrl};
use crate::identity::offer_message;

/// The version of both codes.
const VERSION: u8 = 1;

/// Bytes of SHA-256 that show that a code was copied whole.
const CHECK_BYTES: usize = 4;

/// Longest code, in characters.
const CODE_MAX: usize = 2048;

/// Whose a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Of the same person: it gets the key of what is private to that person, too.
    Mine,
    /// Of another person of the household.
    AnotherPersons,
}

/// Where a vault is, and who enrols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The relay.
    pub relay: RelayUrl,
    /// Its key.
    pub relay_key: DeviceKey,
    /// The vault.
    pub vault: LogId,
    /// The device that will enrol.
    pub by: DeviceKey,
    /// The private scope that the new device is to share; none if it is another person's.
    pub(crate) private: Option<Scope>,
}

/// A new device's signatures that it wants to be enrolled, and by which offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    /// The new device.
    pub device: DeviceKey,
    /// The vault.
    pub vault: LogId,
    pub(crate) signature: Signature,
    /// Over the offer.
    pub(crate) to: Signature,
}

/// A vault in which this device has taken the place of a lost one: enrolled by its key, which is
/// revoked, and given all that it could open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredVault {
    /// The relay.
    pub relay: RelayUrl,
    /// Its key.
    pub relay_key: DeviceKey,
    /// The vault.
    pub vault: LogId,
    /// The scope that is the person's own; none if there was none, or it cannot be told which it is.
    pub(crate) private: Option<Scope>,
}

impl RecoveredVault {
    /// Whether it is known which key is private to the person: the lost device has written under one,
    /// or made one, and only one. If not, take an offer of another device of this person
    /// ([`Attached::accept`]), which names it, before anything private is written; otherwise a new one is
    /// made when it is needed, and stays.
    ///
    /// [`Attached::accept`]: super::Attached::accept
    #[must_use]
    pub fn knows_private_key(&self) -> bool {
        self.private.is_some()
    }
}

#[derive(Serialize, Deserialize)]
struct OfferWire(u8, String, DeviceKey, LogId, DeviceKey, Option<Scope>);

#[derive(Serialize, Deserialize)]
struct ConsentWire(u8, DeviceKey, LogId, Signature, Signature);

const OFFER: &str = "sealwire-offer:";
const CONSENT: &str = "sealwire-consent:";

impl Offer {
    /// As text, to be shown or copied.
    #[must_use]
    pub fn code(&self) -> String {
        write(OFFER, &self.wire())
    }

    fn wire(&self) -> OfferWire {
        let relay = self.relay.as_str().to_owned();
        OfferWire(VERSION, relay, self.relay_key, self.vault, self.by, self.private)
    }

    /// What a device signs that takes it.
    pub(crate) fn digest(&self) -> Digest {
        sha256(&bytes_of(&self.wire()))
    }

    /// Reads an offer.
    ///
    /// # Errors
    /// [`SyncError::Code`].
    pub fn parse(code: &str) -> Result<Self, SyncError> {
        let OfferWire(version, relay, relay_key, vault, by, private) = read(OFFER, code)?;
        if version != VERSION || relay.len() > ADDRESS_BYTES_MAX {
            return Err(SyncError::Code);
        }
        let relay = RelayUrl::parse(&relay).map_err(|_| SyncError::Code)?;
        Ok(Self { relay, relay_key, vault, by, private })
    }
}

impl Consent {
    /// As text, to be shown or copied.
    #[must_use]
    pub fn code(&self) -> String {
        write(CONSENT, &ConsentWire(VERSION, self.device, self.vault, self.signature, self.to))
    }

    /// Whether it was given to this offer, and not to one that somebody has changed.
    pub(crate) fn is_to(&self, offer: &Offer) -> bool {
        let message = offer_message(offer.digest());
        signing::verify(self.device, &message, &self.to).is_ok()
    }

    /// Reads a consent.
    ///
    /// # Errors
    /// [`SyncError::Code`].
    pub fn parse(code: &str) -> Result<Self, SyncError> {
        let ConsentWire(version, device, vault, signature, to) = read(CONSENT, code)?;
        if version != VERSION {
            return Err(SyncError::Code);
        }
        Ok(Self { device, vault, signature, to })
    }
}

fn bytes_of(wire: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(wire).expect("keys and text can be written to memory")
}

fn write(prefix: &str, wire: &impl Serialize) -> String {
    let mut bytes = bytes_of(wire);
    let check = sha256(&bytes);
    bytes.extend_from_slice(&check.0[..CHECK_BYTES]);
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes))
}

fn read<T: DeserializeOwned>(prefix: &str, code: &str) -> Result<T, SyncError> {
    let code = code.trim();
    let text = code.strip_prefix(prefix).filter(|_| code.len() <= CODE_MAX);
    let bytes = text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).ok_or(SyncError::Code)?;
    let (wire, check) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(SyncError::Code)?;
    if sha256(wire).0[..CHECK_BYTES] != check[..] {
        return Err(SyncError::Code);
    }
    rmp_serde::from_slice(wire).map_err(|_| SyncError::Code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn offer() -> Offer {
        Offer {
            relay: RelayUrl::parse("wss://relay.example").expect("an address"),
            relay_key: DeviceKey([1; 32]),
            vault: LogId([2; 16]),
            by: DeviceKey([3; 32]),
            private: Some(Scope([4; 16])),
        }
    }

    #[test]
    fn a_consent_is_to_the_offer_as_it_was_taken_and_to_no_other() {
        let (mine, device) = (offer(), Identity::from_seed(&[5; 32]));
        let consent = |to: &Offer| Consent {
            device: device.key(),
            vault: to.vault,
            signature: device.consent(to.vault, to.by),
            to: device.sign_offer(to.digest()),
        };
        assert!(consent(&mine).is_to(&mine));
        // Somebody has put a scope of his own in its place, or a relay.
        let scope = Offer { private: Some(Scope([6; 16])), ..offer() };
        let relay = RelayUrl::parse("wss://other.example").expect("an address");
        for changed in [scope, Offer { private: None, ..offer() }, Offer { relay, ..offer() }] {
            assert!(!consent(&changed).is_to(&mine));
        }
    }

    #[test]
    fn codes_are_read_as_they_were_written_and_damage_shows() {
        let offer = offer();
        let code = offer.code();
        assert_eq!(Offer::parse(&format!(" {code}\n")), Ok(offer));
        assert_eq!(Offer::parse(&code[..code.len() - 1]), Err(SyncError::Code));
        assert_eq!(Consent::parse(&code), Err(SyncError::Code));
        let consent = Consent {
            device: DeviceKey([1; 32]),
            vault: LogId([2; 16]),
            signature: Signature([5; 64]),
            to: Signature([6; 64]),
        };
        assert_eq!(Consent::parse(&consent.code()), Ok(consent));
    }
}
