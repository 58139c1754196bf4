//! One entry: written and signed, or received and judged by itself.
//!
//! What is judged here needs no other entry: that the header is one, of this log, with this body and
//! audience, and signed by its sender. Whether the sender was a member, and whether the entry fits
//! the ones before it, is for [`crate::membership`] and [`crate::chain`].

use sealwire_protocol::bounded::BoundedText;
use sealwire_protocol::digest::{entry_digest, native_log_id, sha256};
use sealwire_protocol::frame::{Entry, EntryIn, Recipients};
use sealwire_protocol::header::{AAD_BYTES, HeaderBytes};
use sealwire_protocol::ids::Signature;
use sealwire_protocol::limits::{BODY_BYTES_MAX, RECIPIENTS_MAX};
use sealwire_protocol::{Audience, Body, DeviceKey, Digest, Head, Header, Kind, LogId, signing};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::identity::Identity;

/// All of an entry but its body: what must be known before a body is sealed.
#[derive(Clone, Debug)]
pub struct Outline {
    /// The log; [`LogId::ZERO`] in the first entry of a native log.
    pub log: LogId,
    /// Number among this device's entries in this log, from 1.
    pub count: u64,
    /// Digest of this device's entry before; zeros for its first.
    pub prev: Digest,
    /// What the relay may know of its kind.
    pub kind: Kind,
    /// The named addressees, sorted and distinct; empty for all.
    pub recipients: Vec<DeviceKey>,
    /// The newest head that this device had verified.
    pub seen: Head,
}

/// An entry that is ready to be sent.
#[derive(Clone, Debug)]
pub struct Signed {
    /// As it travels.
    pub entry: EntryIn,
    /// Its digest.
    pub digest: Digest,
}

/// An entry cannot be written: its body or its list of addressees is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the body or the list of recipients is too long")]
pub struct TooLong;

impl Outline {
    /// The first entry of a new native log.
    #[must_use]
    pub fn first() -> Self {
        Self {
            log: LogId::ZERO,
            count: 1,
            prev: Digest::ZERO,
            kind: Kind::Control,
            recipients: Vec::new(),
            seen: Head::NONE,
        }
    }

    /// The additional data of the body.
    #[must_use]
    pub fn aad(&self, sender: DeviceKey) -> [u8; AAD_BYTES] {
        let mut aad = [0; AAD_BYTES];
        aad.copy_from_slice(self.header(sender, Digest::ZERO).encode().aad());
        aad
    }

    /// Names the body and signs.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn sign(self, device: &Identity, body: &[u8]) -> Result<Signed, TooLong> {
        if body.len() > BODY_BYTES_MAX || self.recipients.len() > RECIPIENTS_MAX {
            return Err(TooLong);
        }
        let header = self.header(device.key(), sha256(body)).encode();
        let digest = entry_digest(&header);
        let entry = EntryIn {
            header,
            body: Body::copy_from(body),
            signature: Some(device.sign_entry(digest)),
            recipients: Recipients::new(self.recipients).ok_or(TooLong)?,
            totals_kind: None,
        };
        Ok(Signed { entry, digest })
    }

    /// Names the body of an entry of a `totals` group, where nothing is signed.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn finish_totals(
        self,
        sender: DeviceKey,
        body: &[u8],
        totals_kind: &str,
    ) -> Result<Signed, TooLong> {
        if body.len() > BODY_BYTES_MAX || self.recipients.len() > RECIPIENTS_MAX {
            return Err(TooLong);
        }
        let header = self.header(sender, sha256(body)).encode();
        let digest = entry_digest(&header);
        let entry = EntryIn {
            header,
            body: Body::copy_from(body),
            signature: None,
            recipients: Recipients::new(self.recipients).ok_or(TooLong)?,
            totals_kind: Some(BoundedText::new(totals_kind).ok_or(TooLong)?),
        };
        Ok(Signed { entry, digest })
    }

    fn header(&self, sender: DeviceKey, body: Digest) -> Header {
        Header {
            log: self.log,
            sender,
            count: self.count,
            prev: self.prev,
            kind: self.kind,
            audience: Audience::of(&self.recipients),
            seen: self.seen,
            body,
        }
    }
}

/// Why a received entry is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Rejection {
    /// The header cannot be read, or is of a kind that this log has not.
    #[error("its header cannot be read")]
    Header,
    /// It belongs to another log.
    #[error("it belongs to another log")]
    Log,
    /// The body is not the one that the header names.
    #[error("its body is another one")]
    Body,
    /// The list of addressees is not the one that the header names.
    #[error("its addressees are others")]
    Audience,
    /// The signature is missing or does not verify.
    #[error("its signature does not verify")]
    Signature,
    /// The sender was not a member then.
    #[error("its sender was not a member")]
    NotAMember,
    /// It does not follow its sender's entry before.
    #[error("it does not follow its sender's entry before")]
    OutOfOrder,
    /// Its author had not seen a change that it had to have seen.
    #[error("its author had not seen a newer change")]
    Stale,
    /// The control body is not one, or the membership does not allow it.
    #[error("what it says about members is not allowed")]
    Control,
    /// The key body is not one, or names a key that cannot be.
    #[error("its keys are not acceptable")]
    Keys,
    /// A message of a `totals` group that does not fit its sender or the group.
    #[error("what it says does not fit its sender")]
    Message,
    /// This sender has used this count for another entry.
    #[error("its sender has used its count before")]
    Reused,
}

impl Rejection {
    /// Whether the entry may come whole another time: its header stands in the chain, and what came with
    /// it is not its own. In a vault, whose relay checks every entry, that is never its author's doing; in
    /// a group, whose relay checks bodies and addressees, a signature may be.
    #[must_use]
    pub fn is_spoiled(self) -> bool {
        matches!(self, Self::Body | Self::Audience | Self::Signature)
    }
}

/// What a received entry says, once it has been found to be whole.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The header.
    pub header: Header,
    /// Its digest.
    pub digest: Digest,
}

/// The digest of a received entry: it is in the chain whatever else is wrong with it.
#[must_use]
pub fn digest_of(header: &HeaderBytes) -> Digest {
    entry_digest(header)
}

/// Judges a received entry by itself.
///
/// # Errors
/// The first [`Rejection`] that holds.
pub fn judge(log: LogId, entry: &Entry) -> Result<Judged, Rejection> {
    let header = entry.header.decode().map_err(|_| Rejection::Header)?;
    if header.kind == Kind::Totals || header.count == 0 {
        return Err(Rejection::Header);
    }
    if entry.seq == 1 {
        // The log's name is the hash of this entry: there is no other founder.
        let first = header.log.is_zero()
            && header.kind == Kind::Control
            && header.count == 1
            && header.prev.is_zero()
            && header.seen == Head::NONE;
        if !first || native_log_id(&entry.header) != log {
            return Err(Rejection::Log);
        }
    } else if header.log != log {
        return Err(Rejection::Log);
    }
    if !header.holds(entry.body.as_ref()) {
        return Err(Rejection::Body);
    }
    if Audience::of(&entry.recipients) != header.audience {
        return Err(Rejection::Audience);
    }
    let digest = entry_digest(&entry.header);
    let signature: &Signature = entry.signature.as_ref().ok_or(Rejection::Signature)?;
    signing::verify(header.sender, &signing::entry_message(digest), signature)
        .map_err(|_| Rejection::Signature)?;
    Ok(Judged { header, digest })
}

/// Judges a received entry of a `totals` group by itself. Its sender is the relay's word.
///
/// # Errors
/// The first [`Rejection`] that holds.
pub fn judge_totals(log: LogId, entry: &Entry) -> Result<Judged, Rejection> {
    let header = entry.header.decode().map_err(|_| Rejection::Header)?;
    match header.kind {
        Kind::Totals if entry.seq > 1 => {}
        // Control entries are the relay's own.
        Kind::Control if header.sender.is_zero() && header.count == 0 => {}
        Kind::Totals | Kind::Control | Kind::Key | Kind::Ring | Kind::Quiet | Kind::Bulk => {
            return Err(Rejection::Header);
        }
    }
    if header.log != log {
        return Err(Rejection::Log);
    }
    if !header.holds(entry.body.as_ref()) {
        return Err(Rejection::Body);
    }
    if Audience::of(&entry.recipients) != header.audience {
        return Err(Rejection::Audience);
    }
    Ok(Judged { header, digest: entry_digest(&entry.header) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Identity {
        Identity::from_seed(&[1; 32])
    }

    fn outline() -> Outline {
        Outline {
            log: LogId([9; 16]),
            count: 3,
            prev: Digest([8; 32]),
            kind: Kind::Ring,
            recipients: vec![DeviceKey([5; 32])],
            seen: Head::NONE,
        }
    }

    fn received(seq: u64, signed: Signed) -> Entry {
        Entry {
            log: LogId::ZERO,
            seq,
            at: 0,
            header: signed.entry.header,
            body: signed.entry.body,
            signature: signed.entry.signature,
            recipients: signed.entry.recipients,
            totals_kind: None,
        }
    }

    fn verdict(entry: &Entry) -> Option<Rejection> {
        judge(LogId([9; 16]), entry).err()
    }

    #[test]
    fn what_is_changed_on_the_way_is_rejected() {
        let whole = received(7, outline().sign(&device(), b"body").expect("short"));
        assert_eq!(verdict(&whole), None);

        let body = Entry { body: Body::copy_from(b"Body"), ..whole.clone() };
        assert_eq!(verdict(&body), Some(Rejection::Body));
        let audience = Entry { recipients: Recipients::default(), ..whole.clone() };
        assert_eq!(verdict(&audience), Some(Rejection::Audience));
        let unsigned = Entry { signature: None, ..whole.clone() };
        assert_eq!(verdict(&unsigned), Some(Rejection::Signature));
        let mut forged = whole.clone();
        forged.header.0[49 + 7] ^= 1;
        assert_eq!(verdict(&forged), Some(Rejection::Signature));
        forged.header.0[0] = 9;
        assert_eq!(verdict(&forged), Some(Rejection::Header));
        assert_eq!(judge(LogId([8; 16]), &whole).err(), Some(Rejection::Log));
        let first = Entry { seq: 1, ..whole };
        assert_eq!(verdict(&first), Some(Rejection::Log));
    }

    #[test]
    fn a_log_has_one_first_entry() {
        let signed = Outline::first().sign(&device(), b"found").expect("short");
        let log = native_log_id(&signed.entry.header);
        let entry = received(1, signed);
        assert!(judge(log, &entry).is_ok());
        let other = Outline::first().sign(&Identity::from_seed(&[2; 32]), b"found");
        let other = received(1, other.expect("short"));
        assert_eq!(judge(log, &other).err(), Some(Rejection::Log));
        let later = Entry { seq: 2, ..entry };
        assert_eq!(judge(log, &later).err(), Some(Rejection::Log));
    }

    #[test]
    fn the_additional_data_is_known_before_the_body() {
        let aad = outline().aad(device().key());
        let signed = outline().sign(&device(), b"whatever").expect("short");
        assert_eq!(signed.entry.header.aad(), aad);
    }

    #[test]
    fn an_entry_that_no_relay_takes_is_not_written() {
        let long = vec![0; BODY_BYTES_MAX + 1];
        assert_eq!(outline().sign(&device(), &long).err(), Some(TooLong));
        let crowded = Outline {
            recipients: (0..=RECIPIENTS_MAX).map(|n| DeviceKey([n as u8; 32])).collect(),
            ..outline()
        };
        assert_eq!(crowded.sign(&device(), b"").err(), Some(TooLong));
    }
}
