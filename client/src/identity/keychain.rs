//! The system's keychain: where a key is kept that no file should hold.
//!
//! On macOS the Keychain, on Windows the Credential Manager, elsewhere the Secret Service that a
//! desktop session has. It may ask its person to unlock it, so it is spoken to only where waiting is
//! allowed. The device's key file then holds the public key alone, which is the name under which the
//! seed is found.

use sealwire_protocol::DeviceKey;
use zeroize::Zeroizing;

use super::file::KeyFileError;

/// The name of this program's entries.
#[cfg(feature = "keychain")]
const SERVICE: &str = "sealwire-device";

/// Keeps the seed of a device.
#[cfg(feature = "keychain")]
pub(super) fn put(device: DeviceKey, seed: &[u8; 32]) -> Result<(), KeyFileError> {
    let entry = keyring::Entry::new(SERVICE, &device.to_hex());
    entry.and_then(|entry| entry.set_secret(seed)).map_err(|error| meaning(&error))
}

/// The seed of a device.
#[cfg(feature = "keychain")]
pub(super) fn get(device: DeviceKey) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    let entry = keyring::Entry::new(SERVICE, &device.to_hex());
    let secret = entry.and_then(|entry| entry.get_secret()).map(Zeroizing::new);
    let secret = secret.map_err(|error| meaning(&error))?;
    secret.as_slice().try_into().map(Zeroizing::new).map_err(|_| KeyFileError::Damaged)
}

/// Whether there is a keychain here that keeps what it is given: it is tried with something that is no
/// secret, and taken out again.
#[cfg(feature = "keychain")]
pub(super) fn answers() -> bool {
    // A name of its own: two that are tried at once do not take out each other's.
    let Ok(name) = super::random::<16>() else { return false };
    let entry = keyring::Entry::new(SERVICE, &format!("trial {}", hex::encode(name)));
    entry.is_ok_and(|entry| {
        let kept = entry.set_secret(b"trial").is_ok();
        kept && entry.delete_credential().is_ok()
    })
}

/// What an error of the keychain means. Its text may name other entries, and is dropped.
#[cfg(feature = "keychain")]
fn meaning(error: &keyring::Error) -> KeyFileError {
    if matches!(error, keyring::Error::NoEntry) {
        KeyFileError::NotInKeychain
    } else {
        KeyFileError::NoKeychain
    }
}

/// There is no keychain in this build.
#[cfg(not(feature = "keychain"))]
pub(super) fn put(_device: DeviceKey, _seed: &[u8; 32]) -> Result<(), KeyFileError> {
    Err(KeyFileError::KeychainLeftOut)
}

/// There is no keychain in this build.
#[cfg(not(feature = "keychain"))]
pub(super) fn get(_device: DeviceKey) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    Err(KeyFileError::KeychainLeftOut)
}

/// There is no keychain in this build.
#[cfg(not(feature = "keychain"))]
pub(super) fn answers() -> bool {
    false
}
