//! What a device asks a relay about recovery vaults.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealwire_protocol::bounded::BoundedText;
use serde_json::{Value, json};
use thiserror::Error;

use super::code::CodeError;
use super::sealed::{SealedVault, VaultError};
use crate::address::RelayUrl;
use crate::http::{self, Answer, Proof, Request};
use crate::identity::Identity;
use crate::stretch::Cost;
use crate::totals::recovery::{KdfParams, SealedVault as Stored};
use crate::wire::WireError;

/// Why a recovery vault was not stored or not brought back.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// The code.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The PIN, or what is in the vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The relay was not reached.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// There is no recovery vault under this code, or none yet.
    #[error("there is no such recovery vault")]
    Missing,
    /// Too many wrong PINs, or too many tries: not before this time (ISO 8601), if the relay said
    /// one.
    #[error("the recovery vault is locked{}", .0.as_ref().map(|until| format!(" until {until}")).unwrap_or_default())]
    Locked(Option<String>),
    /// Another device uses this code.
    #[error("another device uses this recovery code")]
    Taken,
    /// The lost device, whose place this one takes, is not ended yet, and its key is needed until then.
    #[error(
        "the lost device is not out of everything that it was in, and its key is needed until then"
    )]
    Unfinished,
    /// Another process of this device has changed the recovery vault meanwhile: that counts, and this does
    /// not.
    #[error("another program has changed this device's recovery vault meanwhile")]
    Changed,
    /// A relay was asked to store a recovery vault and its answer was lost; it has not been reached since,
    /// and may still have it. The one that was to be deleted is deleted.
    #[error(
        "another recovery vault of this device may be at {0}, whose answer was lost when it was made, and \
         which was not reached now"
    )]
    Elsewhere(RelayUrl),
    /// The old device's place in a vault could not be taken; it is tried again.
    #[error("a vault of the lost device could not be taken over: {0}")]
    Handover(crate::vault::VaultError),
    /// The relay refuses, with this code.
    #[error("the relay has refused it: {0}")]
    Refused(String),
}

/// Says to a relay who asks, before it is asked to change something.
pub(crate) async fn prove(relay: &RelayUrl, device: &Identity) -> Result<Proof, RecoveryError> {
    Ok(http::prove(relay, device).await?)
}

/// Stores a recovery vault, in place of an earlier one of the device that has made the proof.
pub(crate) async fn put(
    relay: &RelayUrl,
    proof: &Proof,
    code: &str,
    vault: &Stored,
) -> Result<(), RecoveryError> {
    let body = json!({
        "recoveryCode": code,
        "version": vault.version,
        "salt": vault.salt,
        "kdfParams": vault.kdf_params,
        "encryptedBlob": vault.encrypted_blob,
    });
    let request = Request { method: "PUT", path: "/identity/vault", body: Some(&body) };
    expect(http::ask_as(relay, proof, &request).await?).map(|_| ())
}

/// Deletes the recovery vault of the device that has made the proof; also if it had none.
pub(crate) async fn delete(relay: &RelayUrl, proof: &Proof) -> Result<(), RecoveryError> {
    let request = Request { method: "DELETE", path: "/identity/vault", body: None };
    expect(http::ask_as(relay, proof, &request).await?).map(|_| ())
}

/// Fetches a recovery vault. The relay counts it, and tells the owner's other devices.
pub(crate) async fn fetch(relay: &RelayUrl, code: &str) -> Result<Stored, RecoveryError> {
    let body = json!({ "recoveryCode": code });
    let request = Request { method: "POST", path: "/identity/vault/fetch", body: Some(&body) };
    let json = expect(http::ask(relay, &request).await?)?;
    serde_json::from_value(json).map_err(|_| VaultError::Damaged.into())
}

/// Says that a PIN was wrong. The relay counts it; whether it was heard makes no difference here.
pub(crate) async fn report(relay: &RelayUrl, code: &str) {
    let body = json!({ "recoveryCode": code });
    let request =
        Request { method: "POST", path: "/identity/vault/report-failure", body: Some(&body) };
    if let Err(error) = http::ask(relay, &request).await {
        tracing::debug!(%relay, %error, "a wrong PIN was not reported");
    }
}

/// A native vault as it travels.
pub(crate) fn to_stored(vault: &SealedVault) -> Stored {
    Stored {
        version: 1,
        salt: STANDARD.encode(&vault.salt),
        kdf_params: to_params(vault.cost),
        encrypted_blob: STANDARD.encode(&vault.blob),
    }
}

/// A native vault as it came.
pub(crate) fn from_stored(stored: &Stored) -> Result<SealedVault, VaultError> {
    let read = |text: &str| STANDARD.decode(text).map_err(|_| VaultError::Damaged);
    let KdfParams { memory_kb, iterations, parallelism } = stored.kdf_params;
    Ok(SealedVault {
        salt: read(&stored.salt)?,
        cost: Cost { memory_kib: memory_kb, passes: iterations, lanes: parallelism },
        blob: read(&stored.encrypted_blob)?,
    })
}

/// The cost of a guess, as it travels.
pub(crate) fn to_params(cost: Cost) -> KdfParams {
    KdfParams { memory_kb: cost.memory_kib, iterations: cost.passes, parallelism: cost.lanes }
}

fn expect(answer: Answer) -> Result<Value, RecoveryError> {
    if (200..300).contains(&answer.status) {
        return Ok(answer.json);
    }
    let code: BoundedText<64> = answer.code();
    Err(match (answer.status, &*code) {
        (404, "no_such_vault") => RecoveryError::Missing,
        (409, "recovery_code_taken") => RecoveryError::Taken,
        (429, _) => {
            let until = answer.json["lockedUntil"].as_str().filter(|text| text.len() <= 64);
            RecoveryError::Locked(until.map(str::to_owned))
        }
        (_, "") => WireError::NotARelay.into(),
        (_, code) => RecoveryError::Refused(code.to_owned()),
    })
}
