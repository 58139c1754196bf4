//! An invite: a link by which whoever holds it may join one group.
//!
//! ```text
//! sealwire://join#<base64url of  MessagePack array  ‖  first 4 bytes of its SHA-256>
//! [1, relay URL, relay key, log id, inviter's key, join seed]
//! ```
//!
//! All of it stands in the fragment, which no browser sends anywhere. It holds a secret: the type has
//! no `Debug`, and the link is wiped.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealwire_protocol::bounded::BoundedText;
use sealwire_protocol::digest::sha256;
use sealwire_protocol::{DeviceKey, Digest, LogId};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::address::{ADDRESS_BYTES_MAX, AddressError, RelayUrl};
use crate::identity::JoinSeed;

const PREFIX: &str = "sealwire://join#";
const VERSION: u8 = 1;
const CHECK_BYTES: usize = 4;

/// Longest link that is read, in bytes.
const LINK_BYTES_MAX: usize = 2048;

/// Why a text is not an invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InviteError {
    /// Not `sealwire://join#…`, or cut off, or mistyped.
    #[error("not a whole invite link")]
    Malformed,
    /// Of a newer form.
    #[error("the invite is of a newer version")]
    Version,
    /// Names a relay that may not be used.
    #[error(transparent)]
    Relay(#[from] AddressError),
    /// Names a log that is not a native group.
    #[error("the invite is not for a native group")]
    Log,
}

/// What whoever joins must know.
#[derive(Clone)]
pub struct Invite {
    /// Where the group is.
    pub relay: RelayUrl,
    /// The key of that relay.
    pub relay_key: DeviceKey,
    /// The group.
    pub log: LogId,
    /// Who invites.
    pub inviter: DeviceKey,
    /// The seed of the group's join key.
    pub seed: JoinSeed,
}

type Wire = (u8, BoundedText<ADDRESS_BYTES_MAX>, DeviceKey, LogId, DeviceKey, Digest);

impl Invite {
    /// The link. Whoever reads it can join.
    #[must_use]
    pub fn link(&self) -> Zeroizing<String> {
        let relay = BoundedText::new(self.relay.as_str()).unwrap_or_default();
        let seed = Digest(*self.seed.bytes());
        let wire: Wire = (VERSION, relay, self.relay_key, self.log, self.inviter, seed);
        // A tuple of names and numbers can always be written.
        let mut bytes = Zeroizing::new(rmp_serde::to_vec(&wire).unwrap_or_default());
        let check = sha256(&bytes);
        bytes.extend_from_slice(&check.0[..CHECK_BYTES]);
        let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes));
        Zeroizing::new(format!("{PREFIX}{}", *text))
    }

    /// Reads a link.
    ///
    /// # Errors
    /// See [`InviteError`].
    pub fn parse(link: &str) -> Result<Self, InviteError> {
        let malformed = InviteError::Malformed;
        let link = link.trim();
        if link.len() > LINK_BYTES_MAX {
            return Err(malformed);
        }
        let text = link.strip_prefix(PREFIX).ok_or(malformed)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed)?);
        let (wire, check) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(malformed)?;
        if sha256(wire).0[..CHECK_BYTES] != check[..] {
            return Err(malformed);
        }
        // The version comes first, behind the one byte that says how long the array is.
        if wire.get(1) != Some(&VERSION) {
            return Err(InviteError::Version);
        }
        let (_, relay, relay_key, log, inviter, seed): Wire =
            rmp_serde::from_slice(wire).map_err(|_| malformed)?;
        if !log.is_native() {
            return Err(InviteError::Log);
        }
        Ok(Self {
            relay: RelayUrl::parse(&relay)?,
            relay_key,
            log,
            inviter,
            seed: JoinSeed::from_bytes(seed.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite() -> Invite {
        let mut log = LogId([5; 16]);
        log.0[6] = 0x85;
        log.0[8] = 0x85;
        Invite {
            relay: RelayUrl::parse("wss://relay.example:8443").expect("an address"),
            relay_key: DeviceKey([1; 32]),
            log,
            inviter: DeviceKey([2; 32]),
            seed: JoinSeed::from_bytes([3; 32]),
        }
    }

    #[test]
    fn a_link_gives_back_the_invite() {
        let link = invite().link();
        let read = Invite::parse(&link).expect("an invite");
        assert_eq!(read.relay, invite().relay);
        assert_eq!(
            (read.relay_key, read.log, read.inviter),
            (invite().relay_key, invite().log, invite().inviter)
        );
        assert_eq!(read.seed.public(), invite().seed.public());
        let fragment = link.split_once('#').expect("a fragment").1;
        assert!(fragment.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    }

    #[test]
    fn a_mistyped_link_is_not_an_invite() {
        let link = invite().link();
        for position in PREFIX.len()..link.len() {
            let mut bytes = link.as_bytes().to_vec();
            bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
            let text = String::from_utf8(bytes).expect("text");
            if text != *link {
                assert!(Invite::parse(&text).is_err(), "position {position}");
            }
        }
        assert_eq!(Invite::parse(&link[..link.len() - 3]).err(), Some(InviteError::Malformed));
        assert_eq!(Invite::parse("https://example.org").err(), Some(InviteError::Malformed));
    }

    #[test]
    fn an_invite_to_a_relay_without_tls_is_refused() {
        let mut wire: Vec<u8> = {
            let text = BoundedText::new("ws://relay.example").expect("short");
            let wire: Wire = (
                VERSION,
                text,
                DeviceKey([1; 32]),
                invite().log,
                DeviceKey([2; 32]),
                Digest([3; 32]),
            );
            rmp_serde::to_vec(&wire).expect("encoded")
        };
        let check = sha256(&wire);
        wire.extend_from_slice(&check.0[..CHECK_BYTES]);
        let link = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&wire));
        assert_eq!(Invite::parse(&link).err(), Some(InviteError::Relay(AddressError::Plaintext)));
    }
}
