//! What is given to a device, and what it tells.

use std::path::Path;
use std::time::Duration;

use sealwire_protocol::{DeviceKey, Head, Kind, LogId};
use zeroize::Zeroizing;

use crate::address::RelayUrl;
use crate::backoff::Bounds;
use crate::identity::Identity;
use crate::identity::file::KeyFileError;
use crate::store::logs::Phase;

/// How a device behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The heartbeat interval that is wished for; the relay clamps it.
    pub heartbeat: Duration,
    /// The waits between attempts to reach a relay.
    pub backoff: Bounds,
    /// How often it is looked whether another process of this device has written; none for never,
    /// when there is no other.
    pub watch_others: Option<Duration>,
}

/// Where the key of a new device is kept. There is no default: a key in the clear is somebody's choice.
/// Whoever has the key is the device.
#[derive(Clone, Copy)]
pub enum KeyKeeping<'a> {
    /// In the system's keychain. [`keychain_answers`](crate::identity::keychain_answers) says whether
    /// there is one.
    Keychain,
    /// In a file, sealed under a passphrase that every opening of the device needs. An empty one seals
    /// nothing.
    Sealed(&'a str),
    /// In the clear, in a file that only its owner may read: for tests, and where the disk itself is sealed.
    Unsealed,
}

/// The same, for another thread.
pub(super) enum Keeping {
    Keychain,
    Sealed(Zeroizing<String>),
    Unsealed,
}

impl KeyKeeping<'_> {
    pub(super) fn owned(self) -> Keeping {
        match self {
            Self::Keychain => Keeping::Keychain,
            Self::Sealed(passphrase) => Keeping::Sealed(Zeroizing::new(passphrase.to_owned())),
            Self::Unsealed => Keeping::Unsealed,
        }
    }
}

impl Keeping {
    pub(super) fn keep(&self, identity: &Identity, path: &Path) -> Result<(), KeyFileError> {
        match self {
            Self::Keychain => identity.save_in_keychain(path),
            Self::Sealed(passphrase) if passphrase.is_empty() => {
                Err(KeyFileError::PassphraseNeeded)
            }
            Self::Sealed(passphrase) => identity.save(path, Some(passphrase)),
            Self::Unsealed => identity.save(path, None),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(60),
            backoff: Bounds::default(),
            watch_others: Some(Duration::from_millis(250)),
        }
    }
}

/// A payload to be sent.
#[derive(Clone)]
pub struct Outgoing {
    pub(super) payload: Vec<u8>,
    pub(super) recipients: Vec<DeviceKey>,
    pub(super) kind: Kind,
    pub(super) name: Option<String>,
}

impl Outgoing {
    /// To all members, ringing for those who are away.
    #[must_use]
    pub fn to_all(payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: payload.into(), recipients: Vec::new(), kind: Kind::Ring, name: None }
    }

    /// To these members, at most 64, ringing for those who are away.
    #[must_use]
    pub fn to(recipients: impl Into<Vec<DeviceKey>>, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            payload: payload.into(),
            recipients: recipients.into(),
            kind: Kind::Ring,
            name: None,
        }
    }

    /// As the Totals app calls such a message: the relay is told, and rings or does not. In `totals`
    /// groups the payload is a JSON object; in native ones this changes nothing.
    #[must_use]
    pub fn called(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Without ringing.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.kind = Kind::Quiet;
        self
    }

    /// Without ringing, and behind everything else.
    #[must_use]
    pub fn bulk(mut self) -> Self {
        self.kind = Kind::Bulk;
        self
    }
}

/// What is known of a log.
#[derive(Clone, Debug)]
pub struct LogInfo {
    /// Its name.
    pub log: LogId,
    /// Where it is.
    pub relay: RelayUrl,
    /// What it is to this device.
    pub phase: Phase,
    /// How far it was read; none if nothing was.
    pub head: Option<Head>,
    /// How many members it has.
    pub members: usize,
    /// The newest generation of its content key; 0 for none.
    pub epoch: u32,
    /// Whether this device holds that key.
    pub holds_key: bool,
    /// Whether what was said before this device joined is here. Never `false` for who has founded it.
    pub holds_history: bool,
    /// How many members are known to lack the key: one who holds it and is connected gives it to them.
    pub lacking: usize,
    /// How many payloads are not in the log: they wait, or were refused.
    pub unsent: u64,
    /// Whether nothing is sent any more because this device was cloned or restored.
    pub cloned: bool,
}

/// A member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub device: DeviceKey,
    /// The seq of the entry that made it one.
    pub joined_seq: u64,
    /// When, in milliseconds since the epoch, by the relay's clock.
    pub joined_at: u64,
}
