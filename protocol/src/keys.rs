//! The body of a `key` entry: a content key, sealed to each recipient.
//!
//! With audience all it is a *rotation*: the new epoch key of a scope, sealed to every member that
//! holds the scope, the author included. With a named audience it is a *delivery*. In MessagePack:
//!
//! ```text
//! [scope 16, epoch, [[recipient 32, enc 32, ciphertext], …]]
//! ```
//!
//! Scope and epoch are clear because a recipient must name them to open its box: they are bound
//! into the HPKE `info`. What is inside the ciphertext is the devices' affair
//! (`docs/PROTOCOL.md`, "Keys").

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bounded::{Bounded, BoundedBytes};
use crate::ids::{DeviceKey, Scope};
use crate::limits::{BODY_BYTES_MAX, KEY_CIPHERTEXT_BYTES_MAX, NATIVE_MEMBERS_MAX};

/// One recipient's copy of the key (HPKE, RFC 9180).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire", into = "Wire")]
pub struct SealedKey {
    /// For whom.
    pub recipient: DeviceKey,
    /// HPKE's encapsulated key.
    pub enc: [u8; 32],
    /// HPKE's ciphertext.
    pub ciphertext: BoundedBytes<KEY_CIPHERTEXT_BYTES_MAX>,
}

type Wire = (DeviceKey, crate::ids::Digest, BoundedBytes<KEY_CIPHERTEXT_BYTES_MAX>);

impl From<Wire> for SealedKey {
    fn from((recipient, enc, ciphertext): Wire) -> Self {
        Self { recipient, enc: enc.0, ciphertext }
    }
}

impl From<SealedKey> for Wire {
    fn from(key: SealedKey) -> Self {
        (key.recipient, crate::ids::Digest(key.enc), key.ciphertext)
    }
}

/// The body of a rotation or a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyBody {
    /// Which content key.
    pub scope: Scope,
    /// Which generation of it, from 1.
    pub epoch: u32,
    /// One sealed copy for each recipient.
    pub keys: Bounded<SealedKey, NATIVE_MEMBERS_MAX>,
}

/// Bytes are not a key body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("key body is malformed")]
pub struct KeyBodyError;

impl KeyBody {
    /// The bytes of the body.
    ///
    /// # Errors
    /// [`KeyBodyError`] if they would exceed [`BODY_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, KeyBodyError> {
        let bytes =
            rmp_serde::to_vec(&(self.scope, self.epoch, &self.keys)).map_err(|_| KeyBodyError)?;
        if bytes.len() > BODY_BYTES_MAX { Err(KeyBodyError) } else { Ok(bytes) }
    }

    /// Reads a key body.
    ///
    /// # Errors
    /// [`KeyBodyError`] for anything else, and for more recipients than a group has members.
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyBodyError> {
        if bytes.len() > BODY_BYTES_MAX {
            return Err(KeyBodyError);
        }
        let (scope, epoch, keys) = crate::strict::decode(bytes).map_err(|_| KeyBodyError)?;
        Ok(Self { scope, epoch, keys })
    }
}
