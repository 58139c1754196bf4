//! An entry of a `totals` group as a phone sees it: a payload with an id of its own.
//!
//! The id is computed, not stored: a UUID of version 8 that holds where the entry stands, so that an
//! ack by id finds its log without an index.
//!
//! ```text
//! bits  what
//!   48  the log's number
//!    4  version (8)
//!   12  seq, the upper bits
//!    2  variant
//!   36  seq, the lower bits
//!   26  incarnation, the lower bits: an id from before a restore names nothing any more
//! ```

use std::sync::OnceLock;

use bytes::Bytes;
use sealwire_protocol::{Body, DeviceKey, LogId};

use crate::ports::{LogKey, StoredEntry};
use crate::totals::kinds::DEFAULT_KIND;

const KEY_BITS: u32 = 48;
const SEQ_BITS: u32 = 48;
const SEQ_LOW_BITS: u32 = 36;
const INCARNATION_BITS: u32 = 26;

const fn low(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// Where a payload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadId {
    pub(crate) key: LogKey,
    pub(crate) seq: u64,
    incarnation: u64,
}

impl PayloadId {
    /// The id of an entry. Numbers beyond 48 bits are not reached: a million entries a second would
    /// take nine years.
    #[must_use]
    pub const fn new(key: LogKey, seq: u64, incarnation: u64) -> Self {
        Self { key, seq, incarnation: incarnation & low(INCARNATION_BITS) }
    }

    /// Whether it is of this incarnation, as far as it says.
    pub(crate) const fn is_of(&self, incarnation: u64) -> bool {
        self.incarnation == incarnation & low(INCARNATION_BITS)
    }

    /// The UUID in its usual text form, lower case.
    #[must_use]
    pub fn to_text(&self) -> String {
        let key = self.key.0.cast_unsigned() & low(KEY_BITS);
        let seq = self.seq & low(SEQ_BITS);
        let upper = (key << 16) | (8 << 12) | (seq >> SEQ_LOW_BITS);
        let lower =
            (0b10 << 62) | ((seq & low(SEQ_LOW_BITS)) << INCARNATION_BITS) | self.incarnation;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&upper.to_be_bytes());
        bytes[8..].copy_from_slice(&lower.to_be_bytes());
        LogId(bytes).to_uuid_text()
    }

    /// Reads a UUID's text form; `None` for anything that is no payload's id.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = LogId::from_uuid_text(text).filter(LogId::is_native)?.0;
        let (upper, lower) = bytes.split_at(8);
        let upper = u64::from_be_bytes(upper.try_into().ok()?);
        let lower = u64::from_be_bytes(lower.try_into().ok()?);
        let seq =
            ((upper & low(12)) << SEQ_LOW_BITS) | ((lower >> INCARNATION_BITS) & low(SEQ_LOW_BITS));
        let key = LogKey((upper >> 16).cast_signed());
        Some(Self::new(key, seq, lower & low(INCARNATION_BITS)))
    }
}

/// A payload. It has no `Debug`: its body is nobody's to print.
pub struct Payload {
    /// Its id.
    pub id: PayloadId,
    /// Its group.
    pub group: LogId,
    /// Who sent it: the key that was proved.
    pub sender: DeviceKey,
    /// The app's blob, as bytes.
    pub body: Body,
    /// What the app calls it.
    pub kind: String,
    /// When the relay ordered it, in milliseconds since the epoch.
    pub at: u64,
    rendered: OnceLock<Bytes>,
}

impl Payload {
    pub(crate) fn new(
        id: PayloadId,
        group: LogId,
        sender: DeviceKey,
        body: Body,
        kind: Option<String>,
        at: u64,
    ) -> Self {
        let kind = kind.unwrap_or_else(|| DEFAULT_KIND.to_owned());
        Self { id, group, sender, body, kind, at, rendered: OnceLock::new() }
    }

    /// A payload that was read from the store, if its body is there and its header is one.
    pub(crate) fn stored(
        key: LogKey,
        group: LogId,
        incarnation: u64,
        entry: StoredEntry,
    ) -> Option<Self> {
        let header = entry.header.decode().ok()?;
        let id = PayloadId::new(key, entry.seq, incarnation);
        Some(Self::new(id, group, header.sender, entry.body?, entry.totals_kind, entry.at))
    }

    /// The payload as `render` writes it. It holds nothing of its receiver, so it is written once and
    /// shared by every stream.
    pub fn rendered(&self, render: impl FnOnce(&Self) -> Bytes) -> Bytes {
        self.rendered.get_or_init(|| render(self)).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_holds_log_seq_and_incarnation_and_is_a_uuid_of_version_eight() {
        let highest = (1 << 48) - 1;
        for (key, seq) in [(1, 1), (77, 1 << 36), (highest, highest), (highest, 1), (1, highest)] {
            for incarnation in [0, u64::MAX, 0x1234_5678_9abc_def0] {
                let id = PayloadId::new(LogKey(key), seq.cast_unsigned(), incarnation);
                let text = id.to_text();
                assert_eq!((text.len(), &text[14..15]), (36, "8"), "{text}");
                assert_eq!(PayloadId::from_text(&text), Some(id));
                assert!(id.is_of(incarnation) && !id.is_of(incarnation ^ 1));
            }
        }
        assert_eq!(PayloadId::from_text(&LogId::totals([7; 16]).to_uuid_text()), None);
        assert_eq!(PayloadId::from_text("nonsense"), None);
    }
}
