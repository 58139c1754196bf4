//! The two codes by which a device is enrolled: an offer from one that is in the vault, and the new
//! device's consent to it.
//!
//! Neither is a secret. Whoever changes one on its way achieves nothing but a refusal: the consent is a
//! signature over the vault, the new device and the one that made the offer. What people have to make
//! sure of is that the consent that they enrol came from their own new device: its key is shown.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealwire_protocol::digest::sha256;
use sealwire_protocol::ids::{Scope, Signature};
use sealwire_protocol::{DeviceKey, LogId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::SyncError;
use crate::address::{ADDRESS_BYTES_MAX, RelayUrl};

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

/// A new device's signature that it wants to be enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    /// The new device.
    pub device: DeviceKey,
    /// The vault.
    pub vault: LogId,
    pub(crate) signature: Signature,
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
    /// ([`Attached::accept`]), which names it; otherwise a new one is made when it is needed.
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
struct ConsentWire(u8, DeviceKey, LogId, Signature);

const OFFER: &str = "sealwire-offer:";
const CONSENT: &str = "sealwire-consent:";

impl Offer {
    /// As text, to be shown or copied.
    #[must_use]
    pub fn code(&self) -> String {
        let relay = self.relay.as_str().to_owned();
        let wire = OfferWire(VERSION, relay, self.relay_key, self.vault, self.by, self.private);
        write(OFFER, &wire)
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
        write(CONSENT, &ConsentWire(VERSION, self.device, self.vault, self.signature))
    }

    /// Reads a consent.
    ///
    /// # Errors
    /// [`SyncError::Code`].
    pub fn parse(code: &str) -> Result<Self, SyncError> {
        let ConsentWire(version, device, vault, signature) = read(CONSENT, code)?;
        if version != VERSION {
            return Err(SyncError::Code);
        }
        Ok(Self { device, vault, signature })
    }
}

fn write(prefix: &str, wire: &impl Serialize) -> String {
    let mut bytes = rmp_serde::to_vec(wire).expect("keys and text can be written to memory");
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

    #[test]
    fn codes_are_read_as_they_were_written_and_damage_shows() {
        let offer = Offer {
            relay: RelayUrl::parse("wss://relay.example").expect("an address"),
            relay_key: DeviceKey([1; 32]),
            vault: LogId([2; 16]),
            by: DeviceKey([3; 32]),
            private: Some(Scope([4; 16])),
        };
        let code = offer.code();
        assert_eq!(Offer::parse(&format!(" {code}\n")), Ok(offer));
        assert_eq!(Offer::parse(&code[..code.len() - 1]), Err(SyncError::Code));
        assert_eq!(Consent::parse(&code), Err(SyncError::Code));
        let consent = Consent {
            device: DeviceKey([1; 32]),
            vault: LogId([2; 16]),
            signature: Signature([5; 64]),
        };
        assert_eq!(Consent::parse(&consent.code()), Ok(consent));
    }
}
