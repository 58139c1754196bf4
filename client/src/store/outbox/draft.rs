//! What stands in the outbox, as values.

use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::{DeviceKey, Digest};
use serde::{Deserialize, Serialize};

use crate::numbering::DraftId;
use crate::seal::EpochKey;
use crate::store::StoreError;

/// Something to be sent, before it has a number.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Draft {
    /// The first entry of a log; it is numbered when it is made.
    Found,
    /// To become a member, by the join seed of the log.
    Join,
    /// To be a member no more.
    Leave,
    /// To remove a member, with the seed of the join key that is good from then on.
    Revoke { device: DeviceKey, seed: Digest },
    /// A new content key; whether or not anybody was removed, if it is `asked` for.
    Rotate { asked: bool },
    /// The key of an epoch, to some; of the current one for 0, and then to those only that still
    /// lack it.
    Deliver { to: Vec<DeviceKey>, epoch: u32 },
    /// A request for the key of an epoch, or of the current one for 0.
    Ask { to: Vec<DeviceKey>, epoch: u32 },
    /// What the app wants to send; a receipt if there is no payload.
    Content {
        kind: u8,
        #[serde(with = "serde_bytes")]
        payload: Option<Vec<u8>>,
        to: Vec<DeviceKey>,
    },
    /// A message of the ledger of a native group.
    Ledger {
        kind: u8,
        #[serde(with = "serde_bytes")]
        message: Vec<u8>,
        to: Vec<DeviceKey>,
    },
    /// What is to be sent to a `totals` group: JSON, and what the app calls it. If it is `alone`, it
    /// is sealed for the one that it names and nobody else.
    Totals {
        name: String,
        #[serde(with = "serde_bytes")]
        payload: Vec<u8>,
        to: Vec<DeviceKey>,
        alone: bool,
    },
}

impl Draft {
    /// Whether it is the app's own.
    pub(super) fn is_payload(&self) -> bool {
        matches!(
            self,
            Self::Content { payload: Some(_), .. }
                | Self::Ledger { .. }
                | Self::Totals { alone: false, .. }
        )
    }

    /// What goes before what: joining and asking for the key before all, then what others need to
    /// read, then what must not wait behind content, then the rest in the order in which it came.
    pub(super) fn urgency(&self) -> i64 {
        match self {
            Self::Join | Self::Totals { alone: true, .. } => 3,
            Self::Deliver { .. } | Self::Ask { .. } => 2,
            Self::Revoke { .. } | Self::Rotate { .. } => 1,
            Self::Found
            | Self::Leave
            | Self::Content { .. }
            | Self::Ledger { .. }
            | Self::Totals { .. } => 0,
        }
    }
}

/// A draft that waits.
pub(crate) struct Waiting {
    pub(crate) id: DraftId,
    pub(crate) draft: Draft,
    /// Not to be numbered before the log was read up to here.
    pub(crate) after_seq: u64,
}

/// What has become of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// It is still to be sent, or was sent and is not answered yet.
    Waiting,
    /// It stands in the log.
    Appended {
        /// Where; 0 if the relay does not say any more.
        seq: u64,
    },
    /// The relay has refused it for good.
    Refused(ErrorCode),
    /// There is none, or it was appended so long ago that it is forgotten.
    Unknown,
}

/// An own entry as it is kept.
pub(crate) struct Own {
    pub(crate) id: DraftId,
    pub(crate) count: u64,
    pub(crate) header: HeaderBytes,
    pub(crate) body: Vec<u8>,
    pub(crate) recipients: Vec<DeviceKey>,
    pub(crate) secret: Option<EpochKey>,
    pub(crate) appended: bool,
}

/// A payload that is not in the log: it waits, or was refused.
#[derive(Clone)]
pub struct Unsent {
    /// Its name.
    pub id: DraftId,
    /// What was to be sent.
    pub payload: Vec<u8>,
    /// To whom; empty for all.
    pub recipients: Vec<DeviceKey>,
    /// Why it was refused; none if it still waits.
    pub refused: Option<ErrorCode>,
}

/// Own entries that were appended once.
pub(crate) struct Kept {
    /// The digest of the one before them; zeros if there is none.
    pub(crate) before: Digest,
    /// Their drafts and digests, in order.
    pub(crate) entries: Vec<(DraftId, Digest)>,
}

/// Keys one behind the other.
pub(crate) fn join_keys(keys: &[DeviceKey]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.0).collect()
}

/// The keys again.
pub(crate) fn split_keys(bytes: &[u8]) -> Result<Vec<DeviceKey>, StoreError> {
    if !bytes.len().is_multiple_of(DeviceKey::LEN) {
        return Err(StoreError::Damaged);
    }
    Ok(bytes.chunks_exact(DeviceKey::LEN).filter_map(DeviceKey::from_slice).collect())
}
