//! The contract's vector, and vaults that are not to be opened.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::vectors;

const PIN: &str = "123456";
const DEFAULT_KEK: &str = "f3d65df8ca135f936c3005aa8adec6d002e3bf2cf01e98052ae00385630b94af";
const WEAK_KEK: &str = "c5699c2168c8ef5beb4bff2b4c2fabe501a3daab342444465901eee93ac805e3";
const SALT: &str = "AAECAwQFBgcICQoLDA0ODw==";
const BLOB: &str = "AAECAwQFBgcICQoLvz/7flrOoeFYXy9o3RTZhdlVIoN3XB4yDRmBtW7x6KxSEEaD+3s/JQmQGA+h7\
    GpReTFiQtvuul17VvDoyccWeQHYgTREztmw84n9EbgmYZKXjZKTNfHJBRKeJUecVp4QmgB9S/zgyzGuQcNVdJanbBA\
    gRKI3v3OiYfxoPCJGXt7Dc+pDYMkEQvZE/LJVKJxCOOr2aJ6YEkpBg+1aZFfm6C9AXNgFOVR3wLsNgTxLk1jMJr17r\
    pbG5jYPaEAqEzP3qJS1fz1DIjqc53hBlBIS9XVLFM+um3L/CAuoUoPFD51T+g==";

const WEAK: KdfParams = KdfParams { memory_kb: 1024, iterations: 1, parallelism: 1 };

fn salt() -> [u8; SALT_BYTES] {
    std::array::from_fn(|i| i as u8)
}

fn nonce() -> [u8; 12] {
    std::array::from_fn(|i| i as u8)
}

fn group() -> LogId {
    LogId::from_uuid_text("00000000-0000-4000-8000-0000000000aa").expect("a group")
}

fn contents() -> Contents {
    Contents {
        device: Identity::from_seed(&std::array::from_fn(|i| i as u8)),
        group_keys: [(group(), GroupKey::from_bytes([0x11; 32]))].into(),
        display_name: None,
    }
}

fn weak() -> SealedVault {
    seal_drawn(&contents(), PIN, WEAK, &salt(), nonce()).expect("sealed")
}

#[test]
fn a_vault_is_sealed_as_the_vectors_say() {
    let params = KdfParams::default();
    let kek = stretch(PIN, &salt(), params).expect("a key");
    let weak_kek = stretch(PIN, &salt(), WEAK).expect("a key");
    let sealed = seal_drawn(&contents(), PIN, params, &salt(), nonce()).expect("sealed");
    let plaintext = format!(
        "{{\"version\":1,\"seedHex\":\"{}\",\"groupKeys\":{{\"{}\":\"{}\"}}}}",
        hex::encode(*contents().device.seed()),
        group().to_uuid_text(),
        "11".repeat(32),
    );
    // What the contract says stands above; the published file must say the same.
    assert_eq!((hex::encode(*kek), hex::encode(*weak_kek)), (DEFAULT_KEK.into(), WEAK_KEK.into()));
    assert_eq!((sealed.salt.as_str(), sealed.encrypted_blob.as_str()), (SALT, BLOB));
    vectors::check(
        "totals_recovery.json",
        &json!({
            "about": "The Totals app's recovery vault: Argon2id (0x13, 32 bytes) over the PIN, then \
                      AES-256-GCM without additional data, nonce first; base64 with padding",
            "cases": [
                {
                    "pin": PIN,
                    "kek": DEFAULT_KEK,
                    "nonce": hex::encode(nonce()),
                    "plaintext": plaintext,
                    "vault": sealed,
                },
                { "pin": PIN, "salt": SALT, "kdfParams": WEAK, "kek": WEAK_KEK },
            ],
        }),
    );
}

#[test]
fn a_vault_brings_back_the_device_and_its_keys() {
    let named = Contents { display_name: Some("Abebe".into()), ..contents() };
    let sealed = seal_drawn(&named, "0987654321", WEAK, &salt(), nonce()).expect("sealed");
    let opened = open(&sealed, "0987654321").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(opened.device.key(), named.device.key());
    assert!(opened.group_keys == named.group_keys);
    assert_eq!(opened.display_name.as_deref(), Some("Abebe"));
    let text = serde_json::to_string(&sealed).expect("JSON");
    assert!(text.starts_with("{\"version\":1,\"salt\":"), "{text}");
    assert!(text.contains("\"kdfParams\":{\"memoryKb\":1024,\"iterations\":1,\"parallelism\":1}"));
}

#[test]
fn a_wrong_pin_is_told_from_what_is_no_vault() {
    let refused = |sealed: &SealedVault, pin| open(sealed, pin).err();
    assert_eq!(refused(&weak(), "123457"), Some(RecoveryError::WrongPin));
    assert_eq!(refused(&weak(), "12345"), Some(RecoveryError::Pin));
    assert_eq!(refused(&weak(), "12345a"), Some(RecoveryError::Pin));
    let newer = SealedVault { version: 2, ..weak() };
    assert_eq!(refused(&newer, PIN), Some(RecoveryError::Version));
    let cut = SealedVault { encrypted_blob: "AAAA".into(), ..weak() };
    assert_eq!(refused(&cut, PIN), Some(RecoveryError::Malformed));
    let unreadable = SealedVault { salt: "no base64!".into(), ..weak() };
    assert_eq!(refused(&unreadable, PIN), Some(RecoveryError::Malformed));
    for params in [
        KdfParams { memory_kb: MEMORY_KIB_MAX + 1, ..WEAK },
        KdfParams { iterations: PASSES_MAX + 1, ..WEAK },
        KdfParams { parallelism: 0, ..WEAK },
        KdfParams { parallelism: LANES_MAX + 1, ..WEAK },
    ] {
        let greedy = SealedVault { kdf_params: params, ..weak() };
        assert_eq!(refused(&greedy, PIN), Some(RecoveryError::Malformed), "{params:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_vault_can_be_tried_without_a_panic(salt in ".{0,40}", encrypted_blob in ".{0,80}") {
        let vault = SealedVault { version: 1, salt, kdf_params: WEAK, encrypted_blob };
        prop_assert!(open(&vault, PIN).is_err());
    }
}
