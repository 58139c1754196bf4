//! The device's key file: one small text file that only its owner may read.
//!
//! ```text
//! sealwire device key v1
//! clear <seed in hex>
//! ```
//!
//! or, with a passphrase,
//!
//! ```text
//! sealwire device key v1
//! argon2id <memory KiB> <passes> <lanes> <salt in hex> <nonce in hex> <sealed seed in hex>
//! ```
//!
//! or, with the seed in the system's keychain,
//!
//! ```text
//! sealwire device key v1
//! keychain <public key in hex>
//! ```
//!
//! The seal is XChaCha20-Poly1305 under the Argon2id hash of the passphrase, with the first line and
//! the parameters as additional data. The file is made with mode 0600, whole or not at all, and is
//! never written over: a second identity in its place would be a lost one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sealwire_protocol::DeviceKey;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{Identity, NoRandomness, keychain, random};
use crate::stretch::{Cost, stretch};

const FIRST_LINE: &str = "sealwire device key v1";

/// Longest key file that is read, in bytes; a sealed one is about 250.
const FILE_BYTES_MAX: u64 = 1024;

/// Why a key file could not be read or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyFileError {
    /// There is none.
    #[error("there is no key file")]
    Missing,
    /// There is one already, and it is not written over.
    #[error("there is a key file already")]
    Exists,
    /// Others than its owner may read it.
    #[error("the key file can be read by others: its mode must be 0600")]
    Exposed,
    /// It is not a key file of a known form.
    #[error("the key file is damaged")]
    Damaged,
    /// It is sealed, and no passphrase was given.
    #[error("the key file needs a passphrase")]
    PassphraseNeeded,
    /// The passphrase does not open it.
    #[error("the passphrase is wrong, or the key file is damaged")]
    PassphraseWrong,
    /// The system has no keychain that could be used, or it stays locked.
    #[error(
        "the system's keychain cannot be used: this session has none, or it is locked; a passphrase \
         is the other way"
    )]
    NoKeychain,
    /// This build cannot use a keychain.
    #[error(
        "this program was built without the system's keychain (feature `keychain`); a passphrase is \
         the other way"
    )]
    KeychainLeftOut,
    /// The system's keychain does not have this device's key.
    #[error("the system's keychain does not have this device's key")]
    NotInKeychain,
    /// The system failed.
    #[error("the key file cannot be used: {0}")]
    Io(io::ErrorKind),
    /// See [`NoRandomness`].
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl Identity {
    /// Reads a key file.
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn load(path: &Path, passphrase: Option<&str>) -> Result<Self, KeyFileError> {
        let file = File::open(path).map_err(|error| from_io(&error))?;
        check_mode(&file)?;
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| from_io(&error))?;
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return Err(KeyFileError::Damaged);
        }
        let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let seed = match words[..] {
            ["clear", text] => {
                let mut seed = Zeroizing::new([0; 32]);
                hex::decode_to_slice(text, &mut *seed).map_err(|_| KeyFileError::Damaged)?;
                seed
            }
            ["keychain", key] => {
                let key = DeviceKey(unhex(key)?);
                let device = Self::from_seed(&*keychain::get(key)?);
                // Another one under this name would be another device.
                return if device.key() == key { Ok(device) } else { Err(KeyFileError::Damaged) };
            }
            ["argon2id", ..] => open(&words, passphrase.ok_or(KeyFileError::PassphraseNeeded)?)?,
            _ => return Err(KeyFileError::Damaged),
        };
        Ok(Self::from_seed(&seed))
    }

    /// Keeps the key in the system's keychain, and makes a key file that says so. May ask the person
    /// to unlock the keychain.
    ///
    /// # Errors
    /// [`KeyFileError::NoKeychain`], [`KeyFileError::KeychainLeftOut`]; [`KeyFileError::Exists`] if
    /// there is a key file.
    pub fn save_in_keychain(&self, path: &Path) -> Result<(), KeyFileError> {
        if path.exists() {
            return Err(KeyFileError::Exists);
        }
        keychain::put(self.key(), &self.seed())?;
        let text = format!("{FIRST_LINE}\nkeychain {}\n", self.key().to_hex());
        write_new(path, text.as_bytes()).map_err(|error| from_io(&error))
    }

    /// Makes a key file.
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn save(&self, path: &Path, passphrase: Option<&str>) -> Result<(), KeyFileError> {
        // Room for all, so that no copy is left behind by growing.
        let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
        text.push_str(FIRST_LINE);
        match passphrase {
            None => {
                text.push_str("\nclear ");
                text.push_str(&Zeroizing::new(hex::encode(&self.seed()[..])));
            }
            Some(passphrase) => {
                text.push('\n');
                text.push_str(&seal(&self.seed(), passphrase)?);
            }
        }
        text.push('\n');
        write_new(path, text.as_bytes()).map_err(|error| from_io(&error))
    }
}

fn seal(seed: &[u8; 32], passphrase: &str) -> Result<String, KeyFileError> {
    let salt = random::<16>()?;
    let nonce = random::<24>()?;
    let cost = Cost::USUAL;
    let Cost { memory_kib, passes, lanes } = cost;
    let head = format!("argon2id {memory_kib} {passes} {lanes} {}", hex::encode(salt));
    let key = key_of(passphrase, &salt, cost)?;
    let aad = format!("{FIRST_LINE}\n{head}");
    let sealed = XChaCha20Poly1305::new(&(*key).into())
        .encrypt(&XNonce::from(nonce), Payload { msg: seed, aad: aad.as_bytes() })
        .map_err(|_| KeyFileError::Damaged)?;
    Ok(format!("{head} {} {}", hex::encode(nonce), hex::encode(sealed)))
}

fn open(words: &[&str], passphrase: &str) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    let [_, memory, passes, lanes, salt_text, nonce, sealed] = words else {
        return Err(KeyFileError::Damaged);
    };
    let number = |text: &str| text.parse().map_err(|_| KeyFileError::Damaged);
    let cost = Cost { memory_kib: number(memory)?, passes: number(passes)?, lanes: number(lanes)? };
    let salt = unhex::<16>(salt_text)?;
    let nonce = unhex::<24>(nonce)?;
    let sealed = unhex::<48>(sealed)?;
    let key = key_of(passphrase, &salt, cost)?;
    let aad = format!("{FIRST_LINE}\nargon2id {memory} {passes} {lanes} {salt_text}");
    let seed = XChaCha20Poly1305::new(&(*key).into())
        .decrypt(&XNonce::from(nonce), Payload { msg: &sealed, aad: aad.as_bytes() })
        .map(Zeroizing::new)
        .map_err(|_| KeyFileError::PassphraseWrong)?;
    seed.as_slice().try_into().map(Zeroizing::new).map_err(|_| KeyFileError::Damaged)
}

fn key_of(
    passphrase: &str,
    salt: &[u8; 16],
    cost: Cost,
) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    stretch(passphrase.as_bytes(), salt, cost).map_err(|_| KeyFileError::Damaged)
}

fn unhex<const N: usize>(text: &str) -> Result<[u8; N], KeyFileError> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| KeyFileError::Damaged)?;
    Ok(bytes)
}

/// Writes a file that was not there, whole and durably or not at all.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // A hard link, unlike a rename, does not replace what is there.
    let linked = std::fs::hard_link(&partial, path);
    std::fs::remove_file(&partial)?;
    linked?;
    sync_directory(path)
}

/// Makes the name of a new file durable.
#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(not(unix))]
fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn check_mode(file: &File) -> Result<(), KeyFileError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = file.metadata().map_err(|error| from_io(&error))?.permissions().mode();
    if mode & 0o077 == 0 { Ok(()) } else { Err(KeyFileError::Exposed) }
}

#[cfg(not(unix))]
fn check_mode(_file: &File) -> Result<(), KeyFileError> {
    Ok(())
}

fn from_io(error: &io::Error) -> KeyFileError {
    // A file that is not even text is as damaged as one that makes no sense.
    if error.kind() == io::ErrorKind::NotFound {
        KeyFileError::Missing
    } else if error.kind() == io::ErrorKind::AlreadyExists {
        KeyFileError::Exists
    } else if error.kind() == io::ErrorKind::InvalidData {
        KeyFileError::Damaged
    } else {
        KeyFileError::Io(error.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_gives_back_the_same_device_and_is_never_written_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("device.key");
        let device = Identity::generate().expect("randomness");
        device.save(&path, None).expect("saved");
        assert_eq!(Identity::load(&path, None).map(|read| read.key()), Ok(device.key()));
        let other = Identity::generate().expect("randomness");
        assert_eq!(other.save(&path, None), Err(KeyFileError::Exists));
        assert_eq!(Identity::load(&path, None).map(|read| read.key()), Ok(device.key()));
        assert_eq!(
            Identity::load(&directory.path().join("none"), None).map(|_| ()),
            Err(KeyFileError::Missing)
        );
    }

    #[test]
    fn a_sealed_key_file_opens_with_its_passphrase_only_and_does_not_hold_the_seed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("device.key");
        let device = Identity::generate().expect("randomness");
        device.save(&path, Some("correct horse")).expect("saved");
        let text = std::fs::read_to_string(&path).expect("text");
        assert!(!text.contains(&hex::encode(*device.seed())));
        let load = |passphrase| Identity::load(&path, passphrase).map(|read| read.key());
        assert_eq!(load(Some("correct horse")), Ok(device.key()));
        assert_eq!(load(Some("wrong horse")), Err(KeyFileError::PassphraseWrong));
        assert_eq!(load(None), Err(KeyFileError::PassphraseNeeded));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_file_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("device.key");
        Identity::generate().expect("randomness").save(&path, None).expect("saved");
        let mode = std::fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("mode");
        assert_eq!(Identity::load(&path, None).map(|_| ()), Err(KeyFileError::Exposed));
    }

    #[test]
    fn a_key_that_a_missing_keychain_has_is_not_taken_for_another_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("device.key");
        let device = Identity::generate().expect("randomness");
        // Where there is a keychain, its person is not to find keys of tests in it.
        if !cfg!(feature = "keychain") {
            assert_eq!(device.save_in_keychain(&path), Err(KeyFileError::KeychainLeftOut));
            assert!(!path.exists());
        }
        let text = format!("{FIRST_LINE}\nkeychain {}\n", device.key().to_hex());
        write_new(&path, text.as_bytes()).expect("written");
        let read = Identity::load(&path, None).map(|read| read.key());
        if cfg!(feature = "keychain") {
            assert!(matches!(read, Err(KeyFileError::NoKeychain | KeyFileError::NotInKeychain)));
        } else {
            assert_eq!(read, Err(KeyFileError::KeychainLeftOut));
        }
    }
}
