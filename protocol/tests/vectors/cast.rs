//! Who and what the vectors speak of. Everything that would be random is the SHA-256 of a sentence.

use ed25519_dalek::SigningKey;
use sealwire_protocol::digest::{chain_next, chain_start, entry_digest, native_log_id, sha256};
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::ids::Signature;
use sealwire_protocol::signing::{self, device_key, entry_message};
use sealwire_protocol::{Audience, Control, DeviceKey, Digest, Head, Header, Kind, LogId, LogType};

/// 32 bytes that stand for random ones.
pub(crate) fn bytes32(what: &str) -> [u8; 32] {
    sha256(format!("sealwire vectors: {what}").as_bytes()).0
}

/// 16 bytes that stand for random ones.
pub(crate) fn bytes16(what: &str) -> [u8; 16] {
    bytes32(what)[..16].try_into().expect("16 of 32")
}

/// The seed of somebody's Ed25519 key.
pub(crate) fn seed(name: &str) -> [u8; 32] {
    bytes32(&format!("seed of {name}"))
}

/// Somebody's signing key.
pub(crate) fn signing_key(name: &str) -> SigningKey {
    SigningKey::from_bytes(&seed(name))
}

/// Somebody's public key.
pub(crate) fn key(name: &str) -> DeviceKey {
    device_key(&signing_key(name))
}

/// The incarnation of every store in the vectors: above 2^53, so that a reader that keeps integers
/// in floating point is found out.
pub(crate) const INCARNATION: u64 = 0xfedc_ba98_7654_3210;

/// The relay's clock, in milliseconds since the epoch.
pub(crate) const NOW: u64 = 1_795_000_000_123;

/// Somebody's signature over an entry.
pub(crate) fn sign_entry(name: &str, header: &HeaderBytes) -> Signature {
    signing::sign(&signing_key(name), &entry_message(entry_digest(header)))
}

/// A native log that `founder` has founded.
pub(crate) struct Founded {
    /// Header of the first entry.
    pub(crate) header: HeaderBytes,
    /// The log's id.
    pub(crate) log: LogId,
    /// Its head after the first entry.
    pub(crate) head: Head,
}

/// A log of this type by this founder; a group's join key is that of `"join key"`.
pub(crate) fn found(log_type: LogType, founder: &str) -> Founded {
    let join_key = match log_type {
        LogType::Group => Some(key("join key")),
        LogType::Vault => None,
    };
    let random = bytes32(&format!("random of {founder}'s log"));
    let body = Control::Found { log_type, random, join_key }.encode();
    let header = Header {
        log: LogId::ZERO,
        sender: key(founder),
        count: 1,
        prev: Digest::ZERO,
        kind: Kind::Control,
        audience: Audience::All,
        seen: Head::NONE,
        body: sha256(&body),
    }
    .encode();
    let log = native_log_id(&header);
    let chain = chain_next(chain_start(log), 1, entry_digest(&header));
    Founded { header, log, head: Head { incarnation: INCARNATION, seq: 1, chain } }
}
