//! What must hold of everything in the SDK that reads bytes of others, whatever the bytes.
//!
//! Each function is one decoder with its promises. The fuzz targets call them with what the fuzzer
//! makes up, and the SDK's own tests with random and with damaged true bytes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealwire_client::address::{ADDRESS_BYTES_MAX, RelayUrl};
use sealwire_client::content::Content;
use sealwire_client::identity::Identity;
use sealwire_client::invite::Invite;
use sealwire_client::keybox::Grant;
use sealwire_client::ledger::money::{Currency, Money};
use sealwire_client::ledger::{Ledger, PART_UNITS_MAX, Said};
use sealwire_client::membership::Membership;
use sealwire_client::padding;
use sealwire_client::recovery::{Contents, RecoveryCode};
use sealwire_client::seal::{self, EpochKey, Place};
use sealwire_client::sync::changeset::Changes;
use sealwire_client::sync::snapshot;
use sealwire_client::sync::{Consent, Offer};
use sealwire_client::totals::payload::Payload;
use sealwire_client::totals::recovery::{self as totals, KdfParams, SealedVault};
use sealwire_client::totals::seal::{self as blobs, GroupKey};
use sealwire_protocol::digest::sha256;
use sealwire_protocol::{DeviceKey, LogId};

const LOG: LogId = LogId([0x44; 16]);

/// A message that is read is one that can be written, and is read the same then.
pub fn payload(bytes: &[u8]) {
    let Ok(payload) = Payload::decode(bytes) else { return };
    // Escapes may make it longer than a message may be.
    let Ok(written) = payload.encode() else { return };
    let again = Payload::decode(&written).expect("what was written can be read");
    assert!(again == payload && again.kind() == payload.kind());
}

/// Whatever members say, line by line: saying it twice changes nothing, balances sum to zero, both
/// plans can be made, and the history is one that others read.
pub fn ledger(bytes: &[u8]) {
    let (app, native) = (taken(bytes, true), taken(bytes, false));
    for ledger in [app, native] {
        for balances in ledger.balances().values() {
            assert_eq!(balances.values().map(|minor| i128::from(*minor)).sum::<i128>(), 0);
        }
        let _ = (ledger.pairwise(), ledger.simplified(), ledger.debtors(&sender().into()));
        for part in ledger.snapshot(LOG, "s", &[], &[sender()], 5) {
            let one = part.expenses.len() + part.activity.len() <= 1 || part.part == "meta";
            let Ok(json) = Payload::GroupSnapshot(part).encode() else { continue };
            let units = String::from_utf8_lossy(&json).encode_utf16().count();
            assert!(one || units <= PART_UNITS_MAX);
            assert!(Payload::decode(&json).is_ok());
        }
        assert!(ledger.clone().of_members(&Membership::new()) == ledger);
    }
}

fn sender() -> DeviceKey {
    DeviceKey([1; 32])
}

fn taken(bytes: &[u8], approvals: bool) -> Ledger {
    let mut ledger = Ledger::default();
    for message in bytes.split(|byte| *byte == b'\n') {
        let said = Said { log: LOG, sender: sender(), at: 5, approvals, message };
        ledger.take(said);
        let before = ledger.clone();
        ledger.take(said);
        assert!(ledger == before, "a message that comes twice changes nothing the second time");
    }
    ledger
}

/// What is inside an opened body.
pub fn content(bytes: &[u8]) {
    let Ok(content) = Content::decode(bytes) else { return };
    let written = content.encode().expect("it can be written");
    assert!(Content::decode(&written) == Ok(content));
}

/// What is inside an opened box of a key.
pub fn grant(bytes: &[u8]) {
    let _ = Grant::decode(bytes);
}

/// A link, as text and as the bytes in one whose check fits.
pub fn invite(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut whole = bytes.to_vec();
    whole.extend_from_slice(&sha256(bytes).0[..4]);
    let made = format!("sealwire://join#{}", URL_SAFE_NO_PAD.encode(whole));
    for link in [text.as_ref(), &made] {
        let Ok(invite) = Invite::parse(link) else { continue };
        let again = Invite::parse(&invite.link()).expect("its own link is one");
        assert!(again.relay == invite.relay && again.relay_key == invite.relay_key);
        assert!(again.log == invite.log && again.inviter == invite.inviter);
        assert!(again.seed.public() == invite.seed.public());
    }
}

/// What people type or copy: codes, offers, consents, addresses, amounts. What is read is shown in a
/// way that is read alike.
pub fn typed(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(code) = RecoveryCode::parse(&text) {
        let again = RecoveryCode::parse(&code.shown()).expect("a code");
        assert!(again.format() == code.format() && *again.shown() == *code.shown());
    }
    if let Ok(relay) = RelayUrl::parse(&text) {
        assert!(relay.as_str().len() <= ADDRESS_BYTES_MAX, "{relay:?}");
        assert_eq!(RelayUrl::parse(relay.as_str()).as_ref(), Ok(&relay), "one spelling");
    }
    for currency in ["ETB", "JPY", "BHD"] {
        let currency = Currency::parse(currency).expect("a currency");
        let Ok(amount) = Money::parse(&text, &currency) else { continue };
        let shown = amount.to_string();
        let digits = shown.split(' ').next().unwrap_or_default();
        assert_eq!(Money::parse(digits, &currency).as_ref(), Ok(&amount));
    }
    let _ = Currency::parse(&text);
    let mut whole = bytes.to_vec();
    whole.extend_from_slice(&sha256(bytes).0[..4]);
    let whole = URL_SAFE_NO_PAD.encode(whole);
    for code in [text.into_owned(), format!("sealwire-offer:{whole}")] {
        if let Ok(offer) = Offer::parse(&code) {
            assert_eq!(Offer::parse(&offer.code()), Ok(offer));
        }
    }
    if let Ok(consent) = Consent::parse(&format!("sealwire-consent:{whole}")) {
        assert_eq!(Consent::parse(&consent.code()), Ok(consent));
    }
}

/// What recovery vaults hold, and a vault of the app as a relay gives it.
pub fn recovery(bytes: &[u8]) {
    if let Ok(contents) = Contents::decode(bytes)
        && let Ok(written) = contents.encode()
    {
        assert!(Contents::decode(&written).is_ok_and(|again| again == contents));
    }
    let _ = totals::Contents::from_json(bytes);
    if let Ok(mut vault) = serde_json::from_slice::<SealedVault>(bytes) {
        // What a guess costs is bounded elsewhere; here it would cost the time for other inputs.
        vault.kdf_params = KdfParams { memory_kb: 8, iterations: 1, parallelism: 1 };
        assert!(totals::open(&vault, "246810").is_err(), "nobody has sealed it");
    }
}

/// Sealed bytes: they do not open, and padding is taken off only where it was put on.
pub fn sealed(bytes: &[u8]) {
    let key = EpochKey::from_bytes([7; 32]);
    let place = Place { log: LOG, sender: sender(), aad: &[] };
    assert!(seal::open(&key, &place, bytes).is_err(), "nobody has sealed it");
    let _ = seal::key_name(bytes);
    let device = Identity::from_seed(&[9; 32]);
    let group = GroupKey::from_bytes([8; 32]);
    assert!(blobs::open(Some(&group), &device, sender(), bytes).is_err());
    if let Ok(blob) = blobs::from_hex(&String::from_utf8_lossy(bytes)) {
        assert_eq!(blobs::from_hex(&blobs::to_hex(&blob)), Ok(blob));
    }
    if let Ok(content) = padding::unpad(bytes) {
        assert_eq!(padding::pad(content).as_deref(), Ok(bytes));
    }
}

/// A snapshot's state, as it comes and as it is inside: it ends within the bound, and says how many rows.
pub fn snapshot(bytes: &[u8]) {
    const BYTES_MAX: u64 = 4 * 1024 * 1024;
    if let Ok(rows) = snapshot::check(bytes, BYTES_MAX) {
        assert!((rows as u64) < BYTES_MAX, "a row takes bytes");
    }
    if let Ok(rows) = snapshot::check_unpacked(bytes) {
        assert!(rows < bytes.len(), "a row takes bytes");
    }
}

/// The body of a vault's entry.
pub fn boxes(bytes: &[u8]) {
    let Some(boxes) = snapshot::boxes(bytes) else { return };
    assert!(!boxes.is_empty() && boxes.iter().map(Vec::len).sum::<usize>() <= bytes.len());
}

/// The changes in a box of a changeset: they have one spelling.
pub fn changeset(bytes: &[u8]) {
    let Ok(changes) = Changes::decode(bytes) else { return };
    assert_eq!(changes.encode().as_deref(), Ok(bytes));
}
