//! Entry digests, the chain and log ids: SHA-256 (FIPS 180-4) with a label for each use.

use sha2::{Digest as _, Sha256};

use crate::header::HeaderBytes;
use crate::ids::{DeviceKey, Digest, LogId};

const ENTRY_LABEL: &[u8] = b"sealwire entry v1\0";
const LOG_LABEL: &[u8] = b"sealwire log v1\0";
const CHAIN_LABEL: &[u8] = b"sealwire chain v1\0";

/// SHA-256 of `bytes`, without a label: body hashes only.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// SHA-256 of bytes that come in pieces: snapshots.
#[derive(Clone, Default)]
pub struct Sha256Stream(Sha256);

impl Sha256Stream {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all of them.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// The digest that names an entry: SHA-256("sealwire entry v1" ‖ 0x00 ‖ header).
#[must_use]
pub fn entry_digest(header: &HeaderBytes) -> Digest {
    labelled(ENTRY_LABEL, &[&header.0])
}

/// The chain before the first entry: SHA-256("sealwire log v1" ‖ 0x00 ‖ log id).
#[must_use]
pub fn chain_start(log: LogId) -> Digest {
    labelled(LOG_LABEL, &[&log.0])
}

/// The chain after entry `seq`: SHA-256("sealwire chain v1" ‖ 0x00 ‖ chain before ‖ seq ‖ digest).
#[must_use]
pub fn chain_next(before: Digest, seq: u64, entry: Digest) -> Digest {
    labelled(CHAIN_LABEL, &[&before.0, &seq.to_be_bytes(), &entry.0])
}

/// The id of the native log that begins with this header: the first 16 bytes of SHA-256(header)
/// with version 8 and the RFC 9562 variant set. Nobody can be shown another founder.
#[must_use]
pub fn native_log_id(first_header: &HeaderBytes) -> LogId {
    let hash: [u8; 32] = Sha256::digest(first_header.0).into();
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    id[6] = (id[6] & 0x0f) | 0x80;
    id[8] = (id[8] & 0x3f) | 0x80;
    LogId(id)
}

/// SHA-256 of the sorted, distinct keys: what a named audience holds.
#[must_use]
pub fn audience_digest(recipients: &[DeviceKey]) -> Digest {
    let mut keys = recipients.to_vec();
    keys.sort_unstable();
    keys.dedup();
    let mut hasher = Sha256::new();
    for key in &keys {
        hasher.update(key.0);
    }
    Digest(hasher.finalize().into())
}

fn labelled(label: &[u8], parts: &[&[u8]]) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update(label);
    for part in parts {
        hasher.update(part);
    }
    Digest(hasher.finalize().into())
}
