//! Control entries: the closed set of clear bodies that relay and devices both act on.
//!
//! A body is one canonical MessagePack array, the name first. "Canonical" means that decoding and
//! encoding again gives the same bytes: shortest forms, nothing after the array. Whoever decodes
//! checks that, so one membership change has exactly one spelling.
//!
//! ```text
//! ["found", type, random 32, join key 32 | nil]      first entry; type 1 group, 2 vault
//! ["join", signature 64]                             by the join key, over the joiner's key
//! ["enrol", device 32, signature 64]                 vaults; the new device's own signature
//! ["leave"]
//! ["revoke", device 32, join key 32 | nil]           with the join key that is good from now on
//! ["join_key", join key 32]
//! ["snapshot", [incarnation, seq, chain], digest 32, size, chunks]
//! ["snapshot_opened", digest 32]
//! ["totals_found", creator 32, at]                   the relay's own, in totals groups; at in ms
//! ["totals_join", device 32, at]
//! ["totals_leave", device 32]
//! ```

use rmp::decode::{self as read, RmpRead};
use rmp::encode as write;
use thiserror::Error;

use crate::ids::{DeviceKey, Digest, Head, LogType, Signature};

/// Longest control body, in bytes.
pub const CONTROL_BYTES_MAX: usize = 256;

/// What a control entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// The first entry of a native log. Its author is the first member.
    Found {
        /// Group or vault.
        log_type: LogType,
        /// Random bytes, so that no two logs have one id.
        random: [u8; 32],
        /// Groups: the public half of the join key. Vaults: none.
        join_key: Option<DeviceKey>,
    },
    /// The author becomes a member of the group.
    Join {
        /// The join key's signature over [`crate::signing::join_message`].
        signature: Signature,
    },
    /// The author enrols another device in the vault.
    Enrol {
        /// The new device.
        device: DeviceKey,
        /// The new device's signature over [`crate::signing::enrol_message`].
        signature: Signature,
    },
    /// The author leaves.
    Leave,
    /// The author removes a member for good.
    Revoke {
        /// Who is removed. A revoked key is never admitted to this log again.
        device: DeviceKey,
        /// Groups: the join key that is good from now on; its seed travels sealed in the next
        /// rotation. None ends joining until a `join_key` entry.
        join_key: Option<DeviceKey>,
    },
    /// Another join key is good from now on.
    JoinKey {
        /// Its public half.
        join_key: DeviceKey,
    },
    /// A snapshot is real from now on.
    Snapshot {
        /// The head whose state it holds.
        head: Head,
        /// SHA-256 of the sealed snapshot.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The number of chunks that it was uploaded in.
        chunks: u32,
    },
    /// The author has downloaded and opened a snapshot of another device.
    SnapshotOpened {
        /// Which one.
        digest: Digest,
    },
    /// The relay's first entry of a `totals` group.
    TotalsFound {
        /// Who called create.
        creator: DeviceKey,
        /// When, in milliseconds since the epoch: `createdAt`, and the creator's `joinedAt`.
        at: u64,
    },
    /// The relay's word that a device has joined a `totals` group.
    TotalsJoin {
        /// Who.
        device: DeviceKey,
        /// When, in milliseconds since the epoch: its `joinedAt`.
        at: u64,
    },
    /// The relay's word that a device has left a `totals` group.
    TotalsLeave {
        /// Who.
        device: DeviceKey,
    },
}

/// Why bytes are not a control body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ControlError {
    /// Longer than [`CONTROL_BYTES_MAX`].
    #[error("control body is too long")]
    TooLong,
    /// Not one MessagePack array of a known name and its fields.
    #[error("control body is malformed")]
    Malformed,
    /// Readable, but not in its one canonical spelling.
    #[error("control body is not canonical")]
    NotCanonical,
}

impl Control {
    /// The name that stands first in the array; also the value of a metric label.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Found { .. } => "found",
            Self::Join { .. } => "join",
            Self::Enrol { .. } => "enrol",
            Self::Leave => "leave",
            Self::Revoke { .. } => "revoke",
            Self::JoinKey { .. } => "join_key",
            Self::Snapshot { .. } => "snapshot",
            Self::SnapshotOpened { .. } => "snapshot_opened",
            Self::TotalsFound { .. } => "totals_found",
            Self::TotalsJoin { .. } => "totals_join",
            Self::TotalsLeave { .. } => "totals_leave",
        }
    }

    /// Whether the relay refuses it as `stale` when its author had not seen the newest change of
    /// membership or key.
    #[must_use]
    pub const fn is_conditional(&self) -> bool {
        matches!(self, Self::JoinKey { .. } | Self::Snapshot { .. })
    }

    /// Whether it takes a device away and adds nothing.
    #[must_use]
    pub const fn removes(&self) -> bool {
        matches!(self, Self::Leave | Self::Revoke { .. })
    }

    /// The canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        // Writing to a Vec cannot fail; the results only say that an allocation did.
        let name = self.name();
        match self {
            Self::Found { log_type, random, join_key } => {
                begin(&mut out, 4, name);
                uint(&mut out, u64::from(log_type.to_u8()));
                bin(&mut out, random);
                optional_key(&mut out, *join_key);
            }
            Self::Join { signature } => {
                begin(&mut out, 2, name);
                bin(&mut out, &signature.0);
            }
            Self::Enrol { device, signature } => {
                begin(&mut out, 3, name);
                bin(&mut out, &device.0);
                bin(&mut out, &signature.0);
            }
            Self::Leave => begin(&mut out, 1, name),
            Self::Revoke { device, join_key } => {
                begin(&mut out, 3, name);
                bin(&mut out, &device.0);
                optional_key(&mut out, *join_key);
            }
            Self::JoinKey { join_key } => {
                begin(&mut out, 2, name);
                bin(&mut out, &join_key.0);
            }
            Self::Snapshot { head, digest, size, chunks } => {
                begin(&mut out, 5, name);
                array(&mut out, 3);
                uint(&mut out, head.incarnation);
                uint(&mut out, head.seq);
                bin(&mut out, &head.chain.0);
                bin(&mut out, &digest.0);
                uint(&mut out, *size);
                uint(&mut out, u64::from(*chunks));
            }
            Self::SnapshotOpened { digest } => {
                begin(&mut out, 2, name);
                bin(&mut out, &digest.0);
            }
            Self::TotalsFound { creator, at } => {
                begin(&mut out, 3, name);
                bin(&mut out, &creator.0);
                uint(&mut out, *at);
            }
            Self::TotalsJoin { device, at } => {
                begin(&mut out, 3, name);
                bin(&mut out, &device.0);
                uint(&mut out, *at);
            }
            Self::TotalsLeave { device } => {
                begin(&mut out, 2, name);
                bin(&mut out, &device.0);
            }
        }
        out
    }

    /// Reads a control body and checks that it is canonical.
    ///
    /// # Errors
    /// A [`ControlError`]; nothing is allocated for a length that the bytes only claim.
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        if bytes.len() > CONTROL_BYTES_MAX {
            return Err(ControlError::TooLong);
        }
        let control = Self::read(&mut &*bytes).ok_or(ControlError::Malformed)?;
        // This also refuses anything that follows the array.
        if control.encode() == bytes { Ok(control) } else { Err(ControlError::NotCanonical) }
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        let fields = read::read_array_len(from).ok()?;
        let mut name = [0; 16];
        let name = read::read_str(from, &mut name).ok()?;
        let control = match (name, fields) {
            ("found", 4) => Self::Found {
                log_type: LogType::from_u8(read::read_int(from).ok()?)?,
                random: take_bin(from)?,
                join_key: take_optional_key(from)?,
            },
            ("join", 2) => Self::Join { signature: Signature(take_bin(from)?) },
            ("enrol", 3) => Self::Enrol {
                device: DeviceKey(take_bin(from)?),
                signature: Signature(take_bin(from)?),
            },
            ("leave", 1) => Self::Leave,
            ("revoke", 3) => Self::Revoke {
                device: DeviceKey(take_bin(from)?),
                join_key: take_optional_key(from)?,
            },
            ("join_key", 2) => Self::JoinKey { join_key: DeviceKey(take_bin(from)?) },
            ("snapshot", 5) => {
                if read::read_array_len(from).ok()? != 3 {
                    return None;
                }
                Self::Snapshot {
                    head: Head {
                        incarnation: read::read_int(from).ok()?,
                        seq: read::read_int(from).ok()?,
                        chain: Digest(take_bin(from)?),
                    },
                    digest: Digest(take_bin(from)?),
                    size: read::read_int(from).ok()?,
                    chunks: read::read_int(from).ok()?,
                }
            }
            ("snapshot_opened", 2) => Self::SnapshotOpened { digest: Digest(take_bin(from)?) },
            ("totals_found", 3) => Self::TotalsFound {
                creator: DeviceKey(take_bin(from)?),
                at: read::read_int(from).ok()?,
            },
            ("totals_join", 3) => Self::TotalsJoin {
                device: DeviceKey(take_bin(from)?),
                at: read::read_int(from).ok()?,
            },
            ("totals_leave", 2) => Self::TotalsLeave { device: DeviceKey(take_bin(from)?) },
            _ => return None,
        };
        Some(control)
    }
}

fn begin(out: &mut Vec<u8>, fields: u32, name: &str) {
    array(out, fields);
    let _ = write::write_str(out, name);
}

fn array(out: &mut Vec<u8>, fields: u32) {
    let _ = write::write_array_len(out, fields);
}

fn uint(out: &mut Vec<u8>, value: u64) {
    let _ = write::write_uint(out, value);
}

fn bin(out: &mut Vec<u8>, bytes: &[u8]) {
    let _ = write::write_bin(out, bytes);
}

fn optional_key(out: &mut Vec<u8>, key: Option<DeviceKey>) {
    match key {
        Some(key) => bin(out, &key.0),
        None => {
            let _ = write::write_nil(out);
        }
    }
}

/// Reads a `bin` of exactly `N` bytes into the stack.
fn take_bin<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    if read::read_bin_len(from).ok()? as usize != N {
        return None;
    }
    let mut bytes = [0; N];
    from.read_exact_buf(&mut bytes).ok()?;
    Some(bytes)
}

fn take_optional_key(from: &mut &[u8]) -> Option<Option<DeviceKey>> {
    if from.first() == Some(&0xc0) {
        read::read_nil(from).ok()?;
        return Some(None);
    }
    Some(Some(DeviceKey(take_bin(from)?)))
}
