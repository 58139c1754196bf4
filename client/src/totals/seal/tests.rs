//! The contract's vectors, and what must not open.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::vectors;

const A_PUBLIC: &str = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8";
const A_AGREES: &str = "4701d08488451f545a409fb58ae3e58581ca40ac3f7f114698cd71deac73ca01";
const B_PUBLIC: &str = "29acbae141bccaf0b22e1a94d34d0bc7361e526d0bfe12c89794bc9322966dd7";
const B_AGREES: &str = "5730800ab340fcb18ce5111eda9d705f91388b41e4544cbd103ba5942db2233e";
const PAIR_KEY: &str = "f6f92efb32945aff683324a1c984c5001f46aaea513f3453138d740b3a604b7d";
const CHALLENGE_SIGNED: &str = "bdb6936166026556298a4b3af065fb16dc4b9835f8457d877b59f04bd6d28f08\
                                7a94078806de5f5ef14f59236069dfec54fdf0240f0c52e89aced8bb0f5f1f0f";
pub(crate) const JOIN_REQUEST: &str = "{\"type\":\"join_request\",\"publicKey\":\
     \"03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8\",\
     \"displayName\":\"Abebe\",\"memberMetaUpdatedAt\":1767225600000,\"timestamp\":1767225600000}";
const JOIN_REQUEST_BLOB: &str = "000102030405060708090a0bd4a1e344f859dcd1053bebedc8c7a80d40e7d98b\
    49e9744dc49dcca4815d4452dd7c7332c30a5204fe2e918c9d860a4d444170f88f6febab1a80aa6e4b9b654f0f60\
    9ef479cc84d7a60f7efcb489b6ba8fbe43bbf5d85d63ddc3debbc9e67342c7f345fbb0a0e7a1e681477d0bfe7813\
    cbaa2a2dfbf76e440593425bd4a9fce42babd32f2b78cce1d0caeb3550431f6690c321a2ca71a7cbc5658e8d1651\
    fb9a48f890fadd66428c3fc00221f5d67f9930ec3bcb147c2dd918051b27474e4e3e5e699a9ae7aa787803d4";
pub(crate) const EXPENSE: &str = "{\"type\":\"expense\",\
    \"id\":\"00000000-0000-4000-8000-000000000001\",\"amount\":3000.0,\"currency\":\"ETB\",\
    \"reason\":\"Lunch\",\"paidBy\":\"a\",\"splitAmong\":[\"b\"],\"timestamp\":1767225600000,\
    \"kind\":\"expense\",\"status\":\"pending\"}";
const EXPENSE_BLOB: &str = "000102030405060708090a0b68c1c26a0bc617ce36ddabefa1c18443eb8d22017157\
    680d99d08f4fcd70531e5a8279847c2842e746bf3bc3b4733e8f4fe1484489b63edb43da3ce65560133aae5f18fb\
    30931d8fc3ad04c4ceed92988525e615116c3f0054bb4343af5e3a91c9914a0d835f7648cadfb95ad82481973b45\
    433af43089921896bc4f3142ea7719da30647db3ab86d84e6021cbb72c98e8da55fbda561b348c0473ce59ef612e\
    33f2cc5e3afb91603cbcb3a3f7b0865fee4265095d263b2e9ae90deda4e5ce6a0fce2aab253ba4c9395c8e741180\
    597ac27985edcbd4f873c8173a4706a6";

fn nonce() -> [u8; NONCE_BYTES] {
    std::array::from_fn(|i| i as u8)
}

fn anna() -> Identity {
    Identity::from_seed(&std::array::from_fn(|i| i as u8))
}

fn ben() -> Identity {
    Identity::from_seed(&std::array::from_fn(|i| 0x20 + i as u8))
}

fn agrees(device: &Identity) -> String {
    hex::encode(PublicKey::from(&StaticSecret::from(*device.agreement_secret())).as_bytes())
}

#[test]
fn messages_are_sealed_as_the_vectors_say() {
    let challenge = {
        use ed25519_dalek::Signer;
        let signing = ed25519_dalek::SigningKey::from_bytes(&anna().seed());
        hex::encode(signing.sign(&[0xab; 32]).to_bytes())
    };
    let pair = PairKey::between(&anna(), ben().key()).expect("a good key");
    let join = seal_with(&pair.0, nonce(), JOIN_REQUEST.as_bytes()).expect("sealed");
    let expense = seal_with(&[0x11; 32], nonce(), EXPENSE.as_bytes()).expect("sealed");
    // What the contract says stands above; the published file must say the same.
    assert_eq!((anna().key().to_hex(), agrees(&anna())), (A_PUBLIC.into(), A_AGREES.into()));
    assert_eq!((ben().key().to_hex(), agrees(&ben())), (B_PUBLIC.into(), B_AGREES.into()));
    assert_eq!(hex::encode(*pair.0), PAIR_KEY);
    assert_eq!(challenge, CHALLENGE_SIGNED);
    assert_eq!(to_hex(&join), JOIN_REQUEST_BLOB);
    assert_eq!(to_hex(&expense), EXPENSE_BLOB);
    vectors::check(
        "totals_blobs.json",
        &json!({
            "about": "What the Totals app puts into groups: AES-256-GCM without additional data, nonce \
                      first; the pair key is the plain X25519 output of the Ed25519 keys' images; \
                      the group key is 32 bytes; a challenge is signed as it is",
            "cases": [
                {
                    "seal": "pair",
                    "sender_seed": hex::encode(*anna().seed()),
                    "sender": A_PUBLIC,
                    "sender_agrees": A_AGREES,
                    "recipient_seed": hex::encode(*ben().seed()),
                    "recipient": B_PUBLIC,
                    "recipient_agrees": B_AGREES,
                    "challenge": hex::encode([0xab; 32]),
                    "challenge_signed_by_sender": challenge,
                    "key": PAIR_KEY,
                    "nonce": hex::encode(nonce()),
                    "plaintext": JOIN_REQUEST,
                    "blob": to_hex(&join),
                },
                {
                    "seal": "group",
                    "key": hex::encode([0x11; 32]),
                    "nonce": hex::encode(nonce()),
                    "plaintext": EXPENSE,
                    "blob": to_hex(&expense),
                },
            ],
        }),
    );
}

#[test]
fn both_of_a_pair_open_what_either_sealed_and_nobody_else_does() {
    let eve = Identity::from_seed(&[9; 32]);
    let blob = PairKey::between(&anna(), ben().key()).and_then(|key| key.seal(b"{}"));
    let blob = blob.expect("sealed");
    for (device, peer) in [(ben(), anna().key()), (anna(), ben().key())] {
        let opened = open(None, &device, peer, &blob).expect("opened");
        assert!(opened.sealed == Sealed::Pair && *opened.plaintext == b"{}");
    }
    assert!(open(None, &eve, anna().key(), &blob).err() == Some(SealError::Closed));
    assert!(open(None, &ben(), eve.key(), &blob).err() == Some(SealError::Closed));
}

#[test]
fn the_group_key_is_tried_first_and_the_pair_key_then() {
    let key = GroupKey::from_bytes([0x11; 32]);
    let to_all = key.seal(b"{}").expect("sealed");
    let opened = open(Some(&key), &ben(), anna().key(), &to_all).expect("opened");
    assert!(opened.sealed == Sealed::Group);
    let other = GroupKey::from_bytes([0x12; 32]);
    assert!(open(Some(&other), &ben(), anna().key(), &to_all).err() == Some(SealError::Closed));
    let to_one = PairKey::between(&anna(), ben().key()).and_then(|pair| pair.seal(b"{}"));
    let opened = open(Some(&key), &ben(), anna().key(), &to_one.expect("sealed"));
    assert!(opened.expect("opened").sealed == Sealed::Pair);
}

#[test]
fn a_key_with_which_the_secret_is_known_to_all_is_refused() {
    let mut one = [0; 32];
    one[0] = 1;
    for weak in [DeviceKey::ZERO, DeviceKey(one)] {
        assert!(PairKey::between(&anna(), weak).err() == Some(SealError::Peer), "{weak:?}");
    }
}

#[test]
fn hex_is_read_in_either_case_and_a_key_is_64_digits() {
    assert!(from_hex(&EXPENSE_BLOB.to_uppercase()) == from_hex(EXPENSE_BLOB));
    assert_eq!(from_hex("00"), Err(SealError::Malformed));
    assert_eq!(from_hex("zz"), Err(SealError::Malformed));
    assert!(GroupKey::from_hex(&"11".repeat(32)).ok() == Some(GroupKey::from_bytes([0x11; 32])));
    assert!(GroupKey::from_hex("11").err() == Some(SealError::Key));
}

#[test]
fn lengths_are_those_of_the_body_of_an_entry() {
    let key = GroupKey::from_bytes([1; 32]);
    assert_eq!(key.seal(b""), Err(SealError::Length));
    assert_eq!(key.seal(&vec![0; PLAINTEXT_BYTES_MAX + 1]), Err(SealError::Length));
    let longest = key.seal(&vec![7; PLAINTEXT_BYTES_MAX]).expect("sealed");
    assert_eq!(longest.len(), BODY_BYTES_MAX);
    assert_eq!(key.open(&longest).expect("opened").len(), PLAINTEXT_BYTES_MAX);
    assert!(key.open(&longest[..BLOB_BYTES_MIN - 1]).err() == Some(SealError::Malformed));
}

proptest! {
    #[test]
    fn a_changed_blob_does_not_open(place in 0usize..40, flip in 1u8..) {
        let key = GroupKey::from_bytes([1; 32]);
        let mut blob = key.seal(b"twelve bytes").expect("sealed");
        blob[place] ^= flip;
        prop_assert!(key.open(&blob).err() == Some(SealError::Closed));
    }

    #[test]
    fn any_bytes_can_be_opened_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        sender: [u8; 32],
    ) {
        let key = GroupKey::from_bytes([1; 32]);
        prop_assert!(open(Some(&key), &anna(), DeviceKey(sender), &bytes).is_err());
    }
}
