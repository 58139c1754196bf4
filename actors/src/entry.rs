//! An entry on its way through the relay: checked by its session, ordered by its log, published.
//!
//! The session checks what needs no log: that the header is one, that it names this device, this
//! body and these recipients, and that control entries and rotations are signed. The log decides
//! what depends on order. Neither looks into a sealed body, and neither could.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use sealwire_protocol::bounded::{Bounded, BoundedText};
use sealwire_protocol::codec::encode_relay;
use sealwire_protocol::digest::entry_digest;
use sealwire_protocol::frame::{self, Stub, StubReason};
use sealwire_protocol::header::{HEADER_BYTES, HeaderBytes};
use sealwire_protocol::ids::Signature;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::limits::{NAME_BYTES_MAX, RECIPIENTS_MAX, SEQ_MAX};
use sealwire_protocol::signing::{admissible, enrol_message, entry_message, verify};
use sealwire_protocol::{
    Audience, Body, Control, DeviceKey, Digest, EntryIn, ErrorCode, Failure, Header, Kind, LogId,
    LogType, RelayFrame,
};

use crate::ports::{StoredEntry, Urgency};
use crate::totals::kinds::{DEFAULT_KIND, rule_of};
use crate::totals::payload::Payload;

/// What entries cost while they are under way, in bytes: a body is not all that a request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weight {
    /// Of their bodies.
    pub(crate) bodies: usize,
    /// Of everything: also headers, signatures, and the keys that they name.
    pub(crate) whole: usize,
}

impl Weight {
    /// Of entries as they came.
    pub(crate) fn of(entries: &[EntryIn]) -> Self {
        let bodies = entries.iter().map(|entry| entry.body.len()).sum();
        let beside = |entry: &EntryIn| {
            let kind = entry.totals_kind.as_deref().map_or(0, str::len);
            Self::beside_body(entry.recipients.len(), kind)
        };
        Self { bodies, whole: bodies + entries.iter().map(beside).sum::<usize>() }
    }

    /// Of a payload that the relay makes an entry of.
    pub(crate) fn of_payload(body: usize, named: usize, kind: usize) -> Self {
        Self { bodies: body, whole: body + Self::beside_body(named, kind) }
    }

    /// Of bytes that are no entry.
    pub(crate) fn of_bytes(bytes: usize) -> Self {
        Self { bodies: bytes, whole: bytes }
    }

    fn beside_body(named: usize, kind: usize) -> usize {
        HEADER_BYTES + Signature::LEN + named * DeviceKey::LEN + kind
    }
}

/// What an entry asks of the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A change of membership, or of what else the relay acts on.
    Control(Control),
    /// A new epoch key for everyone: conditional on what its author had seen.
    Rotation,
    /// Anything else: ordered and delivered.
    Plain,
}

/// An entry that its session has checked.
#[derive(Clone, Debug)]
pub(crate) struct CheckedEntry {
    pub(crate) header: Header,
    pub(crate) bytes: HeaderBytes,
    pub(crate) digest: Digest,
    pub(crate) body: Body,
    /// None in `totals` groups.
    pub(crate) signature: Option<Signature>,
    /// Totals' own kind string.
    pub(crate) totals_kind: Option<String>,
    /// Sorted and distinct; empty for all.
    pub(crate) recipients: Vec<DeviceKey>,
    pub(crate) content: Content,
}

impl CheckedEntry {
    /// Checks an entry that `device` sent.
    pub(crate) fn check(entry: EntryIn, device: DeviceKey) -> Result<Self, Failure> {
        let refuse = |code| Err(Failure::new(code));
        let Ok(header) = entry.header.decode() else {
            return refuse(ErrorCode::BadHeader);
        };
        if header.sender != device || header.count == 0 || header.count > SEQ_MAX {
            return refuse(ErrorCode::BadHeader);
        }
        let first = header.log.is_zero();
        let totals = header.log.is_totals();
        if totals != (header.kind == Kind::Totals) || !(first || totals || header.log.is_native()) {
            return refuse(ErrorCode::Unsupported);
        }
        if !header.holds(entry.body.as_ref()) {
            return refuse(ErrorCode::BadBody);
        }
        let mut recipients = entry.recipients.into_vec();
        recipients.sort_unstable();
        recipients.dedup();
        if header.audience != Audience::of(&recipients) {
            return refuse(ErrorCode::BadAudience);
        }
        // In totals groups nothing is signed, and only there is a kind string.
        if entry.signature.is_some() == totals {
            return refuse(ErrorCode::BadSignature);
        }
        let totals_kind = entry.totals_kind.filter(|_| totals).map(|kind| kind.to_string());
        // A database's text cannot hold a zero.
        if totals_kind.as_ref().is_some_and(|kind| kind.contains('\0')) {
            return refuse(ErrorCode::Malformed);
        }
        let content = read_content(&header, entry.body.as_ref(), &recipients)?;
        let found = matches!(content, Content::Control(Control::Found { .. }));
        if found != first {
            return refuse(ErrorCode::BadHeader);
        }
        let digest = entry_digest(&entry.header);
        let checked = Self {
            header,
            bytes: entry.header,
            digest,
            body: entry.body,
            signature: entry.signature,
            totals_kind,
            recipients,
            content,
        };
        // For everything else the authenticated session vouches, or its log asks for more.
        if checked.content != Content::Plain {
            checked.verify()?;
        }
        Ok(checked)
    }

    /// What only a vault asks: every device reads everything, so only keys name whom they are for; and
    /// a new device has signed to be enrolled by this author.
    pub(crate) fn check_for_vault(&self) -> Result<(), Failure> {
        if self.header.kind != Kind::Key && self.header.audience != Audience::All {
            return Err(Failure::new(ErrorCode::BadAudience));
        }
        if let Content::Control(Control::Enrol { device, signature }) = &self.content {
            let wrong = Failure::new(ErrorCode::BadSignature);
            admissible(*device).map_err(|_| wrong)?;
            let message = enrol_message(self.header.log, *device, self.header.sender);
            verify(*device, &message, signature).map_err(|_| wrong)?;
        }
        Ok(())
    }

    /// Verifies the author's signature.
    pub(crate) fn verify(&self) -> Result<(), Failure> {
        let wrong = Failure::new(ErrorCode::BadSignature);
        let signature = self.signature.as_ref().ok_or(wrong)?;
        verify(self.header.sender, &entry_message(self.digest), signature).map_err(|_| wrong)
    }
}

/// Reads the bodies that the relay acts on, and checks that they fit their audience.
fn read_content(
    header: &Header,
    body: &[u8],
    recipients: &[DeviceKey],
) -> Result<Content, Failure> {
    match header.kind {
        Kind::Control => {
            let control = Control::decode(body).map_err(|_| Failure::new(ErrorCode::BadControl))?;
            if header.audience != Audience::All {
                return Err(Failure::new(ErrorCode::BadAudience));
            }
            Ok(Content::Control(control))
        }
        Kind::Key => {
            let key_body =
                KeyBody::decode(body).map_err(|_| Failure::new(ErrorCode::BadControl))?;
            if header.audience == Audience::All {
                return Ok(Content::Rotation);
            }
            let mut named: Vec<DeviceKey> = key_body.keys.iter().map(|key| key.recipient).collect();
            named.sort_unstable();
            named.dedup();
            // A delivery is for whom it is sealed to; without any key it asks its recipients for one.
            if !named.is_empty() && named != recipients {
                return Err(Failure::new(ErrorCode::BadAudience));
            }
            Ok(Content::Plain)
        }
        Kind::Ring | Kind::Quiet | Kind::Bulk | Kind::Totals => Ok(Content::Plain),
    }
}

/// Whether a doorbell is rung for an entry of this kind, and how soon its devices should wake.
/// docs/PROTOCOL.md shows it for the native kinds; of Totals' kinds docs/HTTP.md has a table.
pub(crate) fn rings(log_type: LogType, kind: Kind, totals_kind: Option<&str>) -> Option<Urgency> {
    match (kind, log_type) {
        (Kind::Ring, LogType::Group) => Some(Urgency::High),
        // A changeset of one's own other device: nobody looks at it at once.
        (Kind::Ring, LogType::Vault) => Some(Urgency::Normal),
        (Kind::Totals, _) => rule_of(totals_kind.unwrap_or(DEFAULT_KIND)).rings,
        (Kind::Control | Kind::Key | Kind::Quiet | Kind::Bulk, _) => None,
    }
}

/// For whom an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Addressed {
    /// Every member, newcomers and the author too: control entries, and all of a vault.
    Everybody,
    /// Every member but the sender.
    All,
    /// These members, sorted.
    Named(Box<[DeviceKey]>),
}

/// The frame of an entry, encoded when its first reader wants it: most entries have none connected,
/// because phones sleep. Then every outbox shares the bytes.
pub(crate) struct EntryFrame(Mutex<Encoding>);

enum Encoding {
    Wanted(Box<RelayFrame>),
    Done(Bytes),
}

impl EntryFrame {
    pub(crate) fn new(log: LogId, seq: u64, at: u64, parts: &EntryParts<'_>) -> Self {
        Self(Mutex::new(Encoding::Wanted(Box::new(frame_of(log, seq, at, parts)))))
    }

    pub(crate) fn bytes(&self) -> Bytes {
        let mut encoding = self.0.lock();
        let bytes = match &*encoding {
            Encoding::Done(bytes) => return bytes.clone(),
            Encoding::Wanted(frame) => Bytes::from(encode_relay(0, frame)),
        };
        *encoding = Encoding::Done(bytes.clone());
        bytes
    }
}

/// An entry that is durable and may be seen.
pub(crate) struct Published {
    pub(crate) seq: u64,
    pub(crate) digest: Digest,
    pub(crate) sender: DeviceKey,
    pub(crate) addressed: Addressed,
    pub(crate) frame: EntryFrame,
    /// What it counts for where entries are kept in memory.
    pub(crate) bytes: usize,
    /// Whether a doorbell is rung for it.
    pub(crate) rings: Option<Urgency>,
    /// What a phone sees of it: none but of what is sent to `totals` groups.
    pub(crate) payload: Option<Arc<Payload>>,
}

impl Published {
    /// What `reader`, a member since `joined_seq`, gets of it: nothing in place of the whole entry.
    pub(crate) fn stub_for(&self, reader: DeviceKey, joined_seq: u64) -> Option<StubReason> {
        let for_reader = match &self.addressed {
            Addressed::Everybody => return None,
            Addressed::All => self.seq > joined_seq,
            Addressed::Named(keys) => self.seq > joined_seq && keys.binary_search(&reader).is_ok(),
        };
        if self.sender == reader {
            Some(StubReason::Own)
        } else if for_reader {
            None
        } else {
            Some(StubReason::NotAddressed)
        }
    }
}

/// What travels of an entry, apart from its position.
pub(crate) struct EntryParts<'a> {
    pub(crate) header: HeaderBytes,
    pub(crate) body: &'a Body,
    pub(crate) signature: Option<Signature>,
    pub(crate) recipients: &'a [DeviceKey],
    pub(crate) totals_kind: Option<&'a str>,
}

impl EntryParts<'_> {
    /// Bytes that the entry takes in memory once it is published, as a frame and as a phone's payload.
    pub(crate) fn bytes(&self) -> usize {
        let copies = if self.totals_kind.is_some() { 2 } else { 1 };
        let named = self.recipients.len() * DeviceKey::LEN;
        HEADER_BYTES + Signature::LEN + copies * self.body.len() + named
    }
}

/// The frame of an entry, encoded.
pub(crate) fn encode_entry(log: LogId, seq: u64, at: u64, parts: &EntryParts<'_>) -> Bytes {
    Bytes::from(encode_relay(0, &frame_of(log, seq, at, parts)))
}

/// The frame of an entry: it holds nothing of its receiver.
fn frame_of(log: LogId, seq: u64, at: u64, parts: &EntryParts<'_>) -> RelayFrame {
    debug_assert!(parts.recipients.len() <= RECIPIENTS_MAX, "checked when it came in");
    let entry = frame::Entry {
        log,
        seq,
        at,
        header: parts.header,
        body: parts.body.clone(),
        signature: parts.signature,
        recipients: Bounded::new(parts.recipients.to_vec()).unwrap_or_default(),
        totals_kind: parts.totals_kind.and_then(BoundedText::<NAME_BYTES_MAX>::new),
    };
    entry.into()
}

/// What a reader gets of an entry that was read from the store.
pub(crate) enum Read {
    /// The entry's frame.
    Entry(Bytes),
    /// A stub.
    Stub(Stub),
}

/// Decides between the entry and a stub, as live delivery does ([`Published::stub_for`]): the first
/// reason that holds.
pub(crate) fn read_stored(
    log: LogId,
    entry: &StoredEntry,
    reader: DeviceKey,
    joined_seq: u64,
    acked: impl Fn(u64) -> bool,
) -> Read {
    let digest = entry_digest(&entry.header);
    // The store gives those bodies that are for this reader.
    if let Some(body) = &entry.body {
        let parts = EntryParts {
            header: entry.header,
            body,
            signature: entry.signature,
            recipients: &entry.recipients,
            totals_kind: entry.totals_kind.as_deref(),
        };
        return Read::Entry(encode_entry(log, entry.seq, entry.at, &parts));
    }
    let sender_is_reader = entry.header.decode().is_ok_and(|header| header.sender == reader);
    let named_others = !entry.recipients.is_empty() && !entry.recipients.contains(&reader);
    let reason = if sender_is_reader {
        StubReason::Own
    } else if entry.seq <= joined_seq || named_others {
        StubReason::NotAddressed
    } else if acked(entry.seq) {
        StubReason::Acked
    } else {
        StubReason::Expired
    };
    Read::Stub(Stub { digest, reason })
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use sealwire_protocol::Head;
    use sealwire_protocol::bounded::BoundedBytes;
    use sealwire_protocol::digest::sha256;
    use sealwire_protocol::ids::Scope;
    use sealwire_protocol::keys::SealedKey;
    use sealwire_protocol::signing::{device_key, sign};

    use super::*;
    use crate::totals::kinds::KINDS;

    /// A `key` entry to `recipients` whose body has a key for each of `sealed_to`.
    fn check_keys(recipients: &[DeviceKey], sealed_to: &[DeviceKey]) -> Result<Content, ErrorCode> {
        let signing = SigningKey::from_bytes(&[1; 32]);
        let device = device_key(&signing);
        let sealed = |recipient: &DeviceKey| SealedKey {
            recipient: *recipient,
            enc: [0; 32],
            ciphertext: BoundedBytes::default(),
        };
        let keys = Bounded::new(sealed_to.iter().map(sealed).collect()).expect("few");
        let body = KeyBody { scope: Scope([2; 16]), epoch: 1, keys }.encode().expect("small");
        let mut log = LogId([3; 16]);
        log.0[6] = 0x83;
        log.0[8] = 0x83;
        let header = Header {
            log,
            sender: device,
            count: 1,
            prev: Digest::ZERO,
            kind: Kind::Key,
            audience: Audience::of(recipients),
            seen: Head::NONE,
            body: sha256(&body),
        }
        .encode();
        let entry = EntryIn {
            header,
            body: Body::copy_from(&body),
            signature: Some(sign(&signing, &entry_message(entry_digest(&header)))),
            recipients: Bounded::new(recipients.to_vec()).expect("few"),
            totals_kind: None,
        };
        CheckedEntry::check(entry, device).map(|entry| entry.content).map_err(|f| f.code)
    }

    #[test]
    fn a_delivery_names_those_that_it_is_sealed_to_and_a_question_has_no_keys() {
        let (a, b) = (DeviceKey([7; 32]), DeviceKey([8; 32]));
        assert_eq!(check_keys(&[b, a], &[a, b]), Ok(Content::Plain));
        assert_eq!(check_keys(&[a, b], &[]), Ok(Content::Plain));
        assert_eq!(check_keys(&[a, b], &[a]), Err(ErrorCode::BadAudience));
        assert_eq!(check_keys(&[a], &[a, b]), Err(ErrorCode::BadAudience));
        assert_eq!(check_keys(&[], &[a, b]), Ok(Content::Rotation));
    }

    /// A document of the project.
    fn document(name: &str) -> String {
        let path = format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).expect("a document")
    }

    fn how_soon(rings: Option<Urgency>) -> &'static str {
        match rings {
            Some(Urgency::High) => "at once",
            Some(Urgency::Normal) => "when it suits the device",
            None => "",
        }
    }

    /// A row of a table.
    fn row(cells: &[&str]) -> String {
        let mut row = "|".to_owned();
        for cell in cells {
            row += " ";
            row += cell;
            row += if cell.is_empty() { "|" } else { " |" };
        }
        row + "\n"
    }

    #[test]
    fn the_documents_say_which_kinds_ring() {
        let mut table = "| kind | in a group | in a vault |\n|---|---|---|\n".to_owned();
        for (name, kind) in [
            ("control", Kind::Control),
            ("key", Kind::Key),
            ("ring", Kind::Ring),
            ("quiet", Kind::Quiet),
            ("bulk", Kind::Bulk),
        ] {
            let [group, vault] = [LogType::Group, LogType::Vault]
                .map(|log_type| rings(log_type, kind, None))
                .map(how_soon);
            table += &row(&[&format!("`{name}`"), group, vault]);
        }
        let protocol = document("PROTOCOL.md");
        let (begin, end) = ("<!-- ringing kinds: begin -->\n", "<!-- ringing kinds: end -->");
        let (_, rest) = protocol.split_once(begin).expect("a table");
        let (written, _) = rest.split_once(end).expect("its end");
        assert_eq!(written, table);

        let mut table = "| kind | rings a doorbell | once | after leaving |\n".to_owned();
        table += "|---|---|---|---|\n";
        let other = rule_of("a kind that is nobody's");
        for rule in KINDS.iter().chain([other]) {
            let yes = |is: bool| if is { "yes" } else { "" };
            let name = match rule.name == other.name {
                true => "any other".to_owned(),
                false => format!("`{}`", rule.name),
            };
            let (once, farewell) = (yes(rule.sent_once), yes(rule.farewell));
            table += &row(&[&name, how_soon(rule.rings), once, farewell]);
        }
        let written = document("HTTP.md");
        assert!(written.contains(&table), "docs/HTTP.md must hold:\n{table}");
    }
}
