//! What must not be read by anybody else: the relay's key, the secret behind the tokens, and the one
//! that finds recovery vaults.
//!
//! All are given by the operator or made once, in the data directory. A file is complete and on the
//! disk before its name appears, so two relays that start together agree, and a crash leaves either
//! no file or a whole one.
//!
//! Nothing in here has a `Debug` or a `Display`: what must not be logged cannot be.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use sealwire_actors::recovery::{RecoveryKey, RecoveryKeys};
use sealwire_protocol::token::TokenKey;
use thiserror::Error;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::config::Config;

/// Length of what is made at random, in bytes.
const RANDOM_BYTES: usize = 32;

/// Name of the file that holds the seed of the relay's key.
const RELAY_KEY_FILE: &str = "relay.key";

/// Name of the file that holds the secret behind the tokens.
const SESSION_SECRET_FILE: &str = "device-session.secret";

/// Name of the file that holds the secret that finds recovery vaults.
const RECOVERY_SECRET_FILE: &str = "recovery.secret";

/// Text that must not be seen. It is wiped when it is dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for whoever has to use it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Why there are no secrets.
#[derive(Debug, Error)]
pub enum SecretError {
    /// A file or directory could not be read or made.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what the relay wrote into it.
    #[error("{}: holds no 64 hexadecimal digits; restore it from a backup, or remove it to have a new one made", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
    },
    /// The system has no randomness to give.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

/// The relay's key, and the keys that make and check tokens.
pub struct Secrets {
    /// What the relay proves itself with.
    pub relay_key: SigningKey,
    /// The first makes tokens; all of them check.
    pub token_keys: Vec<TokenKey>,
    /// What names the rows of recovery vaults.
    pub recovery_keys: RecoveryKeys,
}

impl Secrets {
    /// Takes what the operator gave, and reads or makes the rest in the data directory, which must
    /// be there.
    ///
    /// # Errors
    /// [`SecretError`] if a file cannot be made, read or understood.
    pub fn open(config: &Config) -> Result<Self, SecretError> {
        let relay_key = match &config.relay_key {
            Some(seed) => SigningKey::from_bytes(seed),
            None => SigningKey::from_bytes(&*kept(&config.data_dir.join(RELAY_KEY_FILE))?),
        };
        let session = given_or_kept(
            config.device_session_secret.as_ref(),
            &config.data_dir.join(SESSION_SECRET_FILE),
            "DEVICE_SESSION_SECRET",
        )?;
        let previous = config.device_session_secret_previous.as_ref();
        let token_keys = std::iter::once(&session)
            .chain(previous)
            .map(|secret| TokenKey::derive(secret.expose().as_bytes()))
            .collect();
        let recovery = given_or_kept(
            config.recovery_secret.as_ref(),
            &config.data_dir.join(RECOVERY_SECRET_FILE),
            "SEALWIRE_RECOVERY_SECRET",
        )?;
        let previous = config.recovery_secret_previous.as_ref();
        let derive = |secret: &Secret| RecoveryKey::derive(secret.expose().as_bytes());
        let recovery_keys =
            RecoveryKeys { current: derive(&recovery), previous: previous.map(derive) };
        Ok(Self { relay_key, token_keys, recovery_keys })
    }
}

/// The secret that the operator gave, or the one in a file, which is made if it is not there.
fn given_or_kept(
    given: Option<&Secret>,
    path: &Path,
    variable: &'static str,
) -> Result<Secret, SecretError> {
    if let Some(secret) = given {
        return Ok(secret.clone());
    }
    let secret = Secret::new(hex::encode(*kept(path)?));
    warn!(
        file = %path.display(),
        variable,
        "this secret is not set; using the one that was made in the data directory"
    );
    Ok(secret)
}

/// Creates a directory for the relay alone, if it is not there.
///
/// # Errors
/// [`SecretError::File`] if it cannot be made.
pub fn create_directory(path: &Path) -> Result<(), SecretError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(SecretError::File { path: path.to_owned(), source }),
    }
}

/// The random bytes in a file, which is made if it is not there.
fn kept(path: &Path) -> Result<Zeroizing<[u8; RANDOM_BYTES]>, SecretError> {
    if let Some(bytes) = read(path)? {
        return Ok(bytes);
    }
    let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
    getrandom::fill(&mut bytes[..])?;
    let made = write_once(path, &Zeroizing::new(hex::encode(*bytes) + "\n"));
    match made {
        Ok(()) => {
            info!(file = %path.display(), "made; keep a copy of it with your backups");
            Ok(bytes)
        }
        // Another relay was faster; its file is whole.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            read(path)?.ok_or(SecretError::File { path: path.to_owned(), source: error })
        }
        Err(source) => Err(SecretError::File { path: path.to_owned(), source }),
    }
}

fn read(path: &Path) -> Result<Option<Zeroizing<[u8; RANDOM_BYTES]>>, SecretError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SecretError::File { path: path.to_owned(), source }),
    };
    warn_if_open_to_others(path);
    let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
    hex::decode_to_slice(text.trim(), &mut bytes[..])
        .map_err(|_| SecretError::Malformed { path: path.to_owned() })?;
    Ok(Some(bytes))
}

/// Writes a file that nobody else can read, whole and durable before its name appears.
fn write_once(path: &Path, text: &str) -> io::Result<()> {
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(io::Error::other)?;
    let draft = path.with_extension(format!("{}.draft", hex::encode(suffix)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    // A hard link, unlike a rename, refuses to replace a file that is there already.
    let linked = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&draft, path));
    let removed = fs::remove_file(&draft);
    linked.and(removed)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn warn_if_open_to_others(path: &Path) {
    let open = fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0);
    if open {
        warn!(file = %path.display(), "others on this machine can read this secret: chmod 600");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_once_and_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(RELAY_KEY_FILE);
        let first = kept(&path).unwrap();
        assert_eq!(*first, *kept(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn relays_that_start_together_agree() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(RELAY_KEY_FILE);
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || *kept(&path).unwrap())
            })
            .collect();
        let keys: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn a_damaged_file_is_an_error_and_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(RELAY_KEY_FILE);
        for damaged in ["", "abcd\n", "zz"] {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(kept(&path), Err(SecretError::Malformed { .. })));
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error_that_names_the_file() {
        let error = kept(Path::new("/proc/sealwire/relay.key")).err().unwrap();
        assert!(error.to_string().starts_with("/proc/sealwire/relay.key: "), "{error}");
    }
}
