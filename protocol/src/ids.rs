//! Names on the wire: device keys, log ids, digests, instances, heads.
//!
//! All are fixed-width byte strings in MessagePack (`bin`), lower-case hex for people. None prints
//! whole in a log: `Debug` gives the first eight hex digits, and there is no `Display`.

use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Defines a newtype over `[u8; N]` that travels as a MessagePack `bin` of exactly N bytes.
macro_rules! byte_name {
    ($(#[$doc:meta])* $name:ident, $len:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Width in bytes.
            pub const LEN: usize = $len;

            /// All bytes zero: "none", where a field says so.
            pub const ZERO: Self = Self([0; $len]);

            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Reads exactly `LEN` bytes; `None` for any other length.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// Reads lower- or upper-case hex of exactly `2 * LEN` digits.
            #[must_use]
            pub fn from_hex(text: &str) -> Option<Self> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                Some(Self(bytes))
            }

            /// Lower-case hex.
            #[must_use]
            pub fn to_hex(&self) -> String {
                hex::encode(self.0)
            }

            /// Whether all bytes are zero.
            #[must_use]
            pub fn is_zero(&self) -> bool {
                self.0 == [0; $len]
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for byte in &self.0[..4] {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Bytes;
                impl Visitor<'_> for Bytes {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} bytes", $len)
                    }
                    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<$name, E> {
                        $name::from_slice(bytes)
                            .ok_or_else(|| E::invalid_value(Unexpected::Bytes(bytes), &self))
                    }
                }
                deserializer.deserialize_bytes(Bytes)
            }
        }
    };
}

byte_name!(
    /// An Ed25519 public key (RFC 8032, 32 bytes): the only name of a device.
    ///
    /// A value of this type is just bytes; [`crate::signing::admissible`] decides whether it is a
    /// key that may speak.
    DeviceKey,
    32
);
byte_name!(
    /// A SHA-256 value: an entry digest, a chain value or a body hash.
    Digest,
    32
);
byte_name!(
    /// A log's name: a UUID. Version 8 is a native log, version 4 a `totals` group.
    LogId,
    16
);
byte_name!(
    /// One running process of a device, random at its start.
    Instance,
    16
);
byte_name!(
    /// The name of a content key's scope within a log, random when the scope is made.
    Scope,
    16
);
byte_name!(
    /// An Ed25519 signature (RFC 8032).
    Signature,
    64
);

impl LogId {
    /// The UUID version: 8 for native logs, 4 for `totals` groups.
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.0[6] >> 4
    }

    /// Whether this names a native log (group or vault).
    #[must_use]
    pub const fn is_native(&self) -> bool {
        self.version() == 8 && self.0[8] >> 6 == 0b10
    }

    /// Whether this names a `totals` group.
    #[must_use]
    pub const fn is_totals(&self) -> bool {
        self.version() == 4 && self.0[8] >> 6 == 0b10
    }

    /// The name of a new `totals` group: a UUID of version 4 of these random bytes.
    #[must_use]
    pub const fn totals(random: [u8; 16]) -> Self {
        let mut bytes = random;
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// The usual text form of a UUID, lower case.
    #[must_use]
    pub fn to_uuid_text(&self) -> String {
        let h = self.to_hex();
        format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
    }

    /// Reads the text form of a UUID, in either case, with or without dashes.
    #[must_use]
    pub fn from_uuid_text(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        Self::from_hex(&digits)
    }
}

/// Which retention policy a log has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogType {
    /// Payloads to members, kept until every addressee has acked.
    Group,
    /// Changesets for enrolled devices, kept until a confirmed snapshot covers them.
    Vault,
}

impl LogType {
    /// The number in a `found` control entry.
    #[must_use]
    pub const fn to_u8(self) -> u8 {
        match self {
            Self::Group => 1,
            Self::Vault => 2,
        }
    }

    /// Reads the number in a `found` control entry.
    #[must_use]
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Group),
            2 => Some(Self::Vault),
            _ => None,
        }
    }
}

/// Where a log ends, or up to where a device has read it.
///
/// In MessagePack an array of three: incarnation, seq, chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "(u64, u64, Digest)", into = "(u64, u64, Digest)")]
pub struct Head {
    /// One random number per store; another one means that history may have been lost.
    pub incarnation: u64,
    /// Position of the last entry; 0 before the first.
    pub seq: u64,
    /// The running SHA-256 over the log's entry digests up to and with `seq`.
    pub chain: Digest,
}

impl Head {
    /// No head at all: what `seen` holds in a first entry.
    pub const NONE: Self = Self { incarnation: 0, seq: 0, chain: Digest::ZERO };
}

impl From<(u64, u64, Digest)> for Head {
    fn from((incarnation, seq, chain): (u64, u64, Digest)) -> Self {
        Self { incarnation, seq, chain }
    }
}

impl From<Head> for (u64, u64, Digest) {
    fn from(head: Head) -> Self {
        (head.incarnation, head.seq, head.chain)
    }
}
