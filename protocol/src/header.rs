//! The canonical header: the bytes that are hashed, signed and bound to the body.
//!
//! One encoding serves digest, signature and additional data, so there is nothing to re-encode and
//! nothing to disagree about. Fixed widths, big-endian:
//!
//! ```text
//! offset  width  field
//!      0      1  version (1)
//!      1     16  log id (zero in the first entry of a native log)
//!     17     32  sender
//!     49      8  count
//!     57     32  prev: digest of the sender's entry before, or zeros
//!     89      1  kind
//!     90     33  audience: 0x00 ‖ 0³²  or  0x01 ‖ SHA-256(sorted distinct keys)
//!    123      8  seen incarnation
//!    131      8  seen seq
//!    139     32  seen chain
//!    171     32  SHA-256(body)
//!    203
//! ```

use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::digest::{audience_digest, sha256};
use crate::ids::{DeviceKey, Digest, Head, LogId};

/// Length of an encoded header, in bytes.
pub const HEADER_BYTES: usize = 203;

/// How many leading bytes of the header are the additional data of a sealed body: all that is known
/// before the body is sealed.
pub const AAD_BYTES: usize = 123;

/// The version byte that this crate writes and accepts.
pub const HEADER_VERSION: u8 = 1;

/// What the relay may know of an entry's kind, and no more. What an entry *is* stands in its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Membership, and whatever else the relay acts on; the body is clear.
    Control,
    /// A rotation (to all) or a delivery (to named members) of a content key.
    Key,
    /// Content that rings a doorbell.
    Ring,
    /// Content that does not ring.
    Quiet,
    /// Large content that does not ring and may be delivered after everything else.
    Bulk,
    /// A payload of a `totals` group.
    Totals,
}

impl Kind {
    /// The byte in the header.
    #[must_use]
    pub const fn to_u8(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Key => 2,
            Self::Ring => 3,
            Self::Quiet => 4,
            Self::Bulk => 5,
            Self::Totals => 16,
        }
    }

    /// Reads the byte in the header; `None` for a byte outside the closed set.
    #[must_use]
    pub const fn from_u8(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Control),
            2 => Some(Self::Key),
            3 => Some(Self::Ring),
            4 => Some(Self::Quiet),
            5 => Some(Self::Bulk),
            16 => Some(Self::Totals),
            _ => None,
        }
    }
}

/// For whom the sender said that the entry is: never what the relay made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Every member but the sender.
    All,
    /// The members whose sorted, distinct keys hash to this value; the list travels in the frame.
    Named(Digest),
}

impl Audience {
    /// The audience of a list of keys: [`Audience::All`] for an empty one. Order and repetition do
    /// not matter.
    #[must_use]
    pub fn of(recipients: &[DeviceKey]) -> Self {
        if recipients.is_empty() { Self::All } else { Self::Named(audience_digest(recipients)) }
    }
}

/// What an entry is, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The log; zero in the first entry of a native log, whose id is the hash of that entry.
    pub log: LogId,
    /// The author's device key; zero in entries that the relay writes itself (`totals` groups).
    pub sender: DeviceKey,
    /// Number of this entry among its sender's entries in this log, from 1. 0 in entries that have
    /// no idempotency (Totals over HTTP, the relay's own).
    pub count: u64,
    /// Entry digest of the sender's entry before; zeros for its first.
    pub prev: Digest,
    /// What the relay may know of its kind.
    pub kind: Kind,
    /// For whom.
    pub audience: Audience,
    /// The newest head that the author had verified; [`Head::NONE`] for none.
    pub seen: Head,
    /// SHA-256 of the body.
    pub body: Digest,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Not [`HEADER_BYTES`] long.
    #[error("header has the wrong length")]
    Length,
    /// A version that this crate does not know.
    #[error("header version is not known")]
    Version,
    /// A kind outside the closed set.
    #[error("header kind is not known")]
    Kind,
    /// An audience that is neither all nor named, or all with a digest.
    #[error("header audience is not canonical")]
    Audience,
}

impl Header {
    /// The canonical bytes.
    #[must_use]
    pub fn encode(&self) -> HeaderBytes {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.push(HEADER_VERSION);
        out.extend_from_slice(&self.log.0);
        out.extend_from_slice(&self.sender.0);
        out.extend_from_slice(&self.count.to_be_bytes());
        out.extend_from_slice(&self.prev.0);
        out.push(self.kind.to_u8());
        match &self.audience {
            Audience::All => out.extend_from_slice(&[0; 33]),
            Audience::Named(digest) => {
                out.push(1);
                out.extend_from_slice(&digest.0);
            }
        }
        out.extend_from_slice(&self.seen.incarnation.to_be_bytes());
        out.extend_from_slice(&self.seen.seq.to_be_bytes());
        out.extend_from_slice(&self.seen.chain.0);
        out.extend_from_slice(&self.body.0);
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&out);
        HeaderBytes(bytes)
    }

    /// Whether `body` is the body that this header names.
    #[must_use]
    pub fn holds(&self, body: &[u8]) -> bool {
        sha256(body) == self.body
    }
}

/// A header as it travels, is hashed and is signed. Nobody re-encodes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeaderBytes(pub [u8; HEADER_BYTES]);

impl HeaderBytes {
    /// Reads exactly [`HEADER_BYTES`]; their content is not looked at.
    ///
    /// # Errors
    /// [`HeaderError::Length`] for any other length.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, HeaderError> {
        bytes.try_into().map(Self).map_err(|_| HeaderError::Length)
    }

    /// Reads the fields.
    ///
    /// # Errors
    /// A [`HeaderError`] that names the field that is wrong.
    pub fn decode(&self) -> Result<Header, HeaderError> {
        let bytes = &self.0;
        if bytes[0] != HEADER_VERSION {
            return Err(HeaderError::Version);
        }
        let audience_bytes: [u8; 32] = field(bytes, 91);
        let audience = match bytes[90] {
            0 if audience_bytes == [0; 32] => Audience::All,
            1 => Audience::Named(Digest(audience_bytes)),
            _ => return Err(HeaderError::Audience),
        };
        Ok(Header {
            log: LogId(field(bytes, 1)),
            sender: DeviceKey(field(bytes, 17)),
            count: u64::from_be_bytes(field(bytes, 49)),
            prev: Digest(field(bytes, 57)),
            kind: Kind::from_u8(bytes[89]).ok_or(HeaderError::Kind)?,
            audience,
            seen: Head {
                incarnation: u64::from_be_bytes(field(bytes, 123)),
                seq: u64::from_be_bytes(field(bytes, 131)),
                chain: Digest(field(bytes, 139)),
            },
            body: Digest(field(bytes, 171)),
        })
    }

    /// The additional data of the sealed body: the header up to and with the audience.
    #[must_use]
    pub fn aad(&self) -> &[u8] {
        &self.0[..AAD_BYTES]
    }
}

/// The `N` bytes at `offset`; the caller's constants keep it inside the header.
fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[offset..offset + N]);
    out
}

impl fmt::Debug for HeaderBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeaderBytes({HEADER_BYTES} bytes)")
    }
}

impl Serialize for HeaderBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for HeaderBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = HeaderBytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{HEADER_BYTES} bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<HeaderBytes, E> {
                HeaderBytes::from_slice(bytes)
                    .map_err(|_| E::invalid_value(Unexpected::Bytes(bytes), &self))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_of_all_with_a_digest_is_refused() {
        let header = Header {
            log: LogId([1; 16]),
            sender: DeviceKey([2; 32]),
            count: 3,
            prev: Digest([4; 32]),
            kind: Kind::Ring,
            audience: Audience::All,
            seen: Head::NONE,
            body: Digest([5; 32]),
        };
        let mut bytes = header.encode();
        assert_eq!(bytes.decode(), Ok(header));
        bytes.0[91] = 1;
        assert_eq!(bytes.decode(), Err(HeaderError::Audience));
        bytes.0[90] = 2;
        assert_eq!(bytes.decode(), Err(HeaderError::Audience));
        bytes.0[89] = 9;
        bytes.0[90] = 1;
        assert_eq!(bytes.decode(), Err(HeaderError::Kind));
        bytes.0[0] = 2;
        assert_eq!(bytes.decode(), Err(HeaderError::Version));
    }
}
