//! The body of a `key` entry: a content key, sealed to each recipient.
//!
//! With audience all it is a *rotation*: the new epoch key of a scope, sealed to every member that
//! holds the scope, the author included. With a named audience it is a *delivery*, or, without any
//! sealed copy, a *question* for the key of this epoch (0 for the current one). In MessagePack:
//!
//! ```text
//! [scope 16, epoch, [[recipient 32, enc 32, ciphertext], …]]
//! ```
//!
//! No recipient stands there twice: two boxes for one device could hold two keys, and its clients
//! would have to agree which one counts.
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

/// The body of a rotation, a delivery or a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyBody {
    /// Which content key.
    pub scope: Scope,
    /// Which generation of it, from 1; in a question 0 for the current one.
    pub epoch: u32,
    /// One sealed copy for each recipient; none in a question.
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
    /// [`KeyBodyError`] if they would exceed [`BODY_BYTES_MAX`], or a recipient is named twice.
    pub fn encode(&self) -> Result<Vec<u8>, KeyBodyError> {
        self.recipients_are_distinct()?;
        let bytes =
            rmp_serde::to_vec(&(self.scope, self.epoch, &self.keys)).map_err(|_| KeyBodyError)?;
        if bytes.len() > BODY_BYTES_MAX { Err(KeyBodyError) } else { Ok(bytes) }
    }

    /// Reads a key body.
    ///
    /// # Errors
    /// [`KeyBodyError`] for anything else, for more recipients than a group has members, and for one
    /// that is named twice.
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyBodyError> {
        if bytes.len() > BODY_BYTES_MAX {
            return Err(KeyBodyError);
        }
        let (scope, epoch, keys) = crate::strict::decode(bytes).map_err(|_| KeyBodyError)?;
        let body = Self { scope, epoch, keys };
        body.recipients_are_distinct()?;
        Ok(body)
    }

    fn recipients_are_distinct(&self) -> Result<(), KeyBodyError> {
        let mut seen: Vec<&DeviceKey> = self.keys.iter().map(|key| &key.recipient).collect();
        seen.sort_unstable();
        if seen.windows(2).any(|pair| pair[0] == pair[1]) { Err(KeyBodyError) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipient_that_is_named_twice_is_refused_in_both_directions() {
        let copy = |recipient: u8, enc: u8| SealedKey {
            recipient: DeviceKey([recipient; 32]),
            enc: [enc; 32],
            ciphertext: BoundedBytes::default(),
        };
        let body = |keys| KeyBody {
            scope: Scope([1; 16]),
            epoch: 1,
            keys: Bounded::new(keys).unwrap_or_default(),
        };
        let twice = body(vec![copy(1, 1), copy(2, 2), copy(1, 3)]);
        assert_eq!(twice.encode(), Err(KeyBodyError));
        let bytes = rmp_serde::to_vec(&(twice.scope, twice.epoch, &twice.keys)).expect("bytes");
        assert_eq!(KeyBody::decode(&bytes), Err(KeyBodyError));

        let once = body(vec![copy(2, 2), copy(1, 1)]);
        assert_eq!(KeyBody::decode(&once.encode().expect("small")), Ok(once));
    }
}
