//! What sealing promises, and the vectors by which other implementations check it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::vectors;

const LOG: LogId = LogId([0x11; 16]);
const SENDER: DeviceKey = DeviceKey([0x22; 32]);
const NAME: KeyName = KeyName { scope: Scope([0x33; 16]), epoch: 7 };

fn key() -> EpochKey {
    EpochKey::from_bytes([0x44; 32])
}

fn place(aad: &[u8]) -> Place<'_> {
    Place { log: LOG, sender: SENDER, aad }
}

proptest! {
    #[test]
    fn content_comes_back_and_the_length_is_the_one_that_was_foretold(
        content in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let body = seal(&key(), NAME, &place(b"header"), &content).expect("sealed");
        prop_assert_eq!(body.len(), body_length(content.len()));
        prop_assert_eq!(key_name(&body), Ok(NAME));
        let opened = open(&key(), &place(b"header"), &body).expect("opened");
        prop_assert_eq!(&*opened, &content);
    }

    #[test]
    fn no_changed_byte_goes_unnoticed(position in 0usize..200, flip in 1u8..) {
        let mut body = seal(&key(), NAME, &place(b"header"), &[9; 100]).expect("sealed");
        let position = position % body.len();
        body[position] ^= flip;
        prop_assert!(open(&key(), &place(b"header"), &body).is_err());
    }

    #[test]
    fn any_bytes_can_be_opened_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        prop_assert!(open(&key(), &place(b""), &bytes).is_err());
    }
}

#[test]
fn a_body_opens_only_where_it_was_sealed_for() {
    let body = seal(&key(), NAME, &place(b"header"), b"content").expect("sealed");
    let elsewhere = [
        Place { log: LogId([9; 16]), ..place(b"header") },
        Place { sender: DeviceKey([9; 32]), ..place(b"header") },
    ];
    for place in &elsewhere {
        assert_eq!(open(&key(), place, &body).err(), Some(SealError::WrongKey));
    }
    assert_eq!(open(&key(), &place(b"Header"), &body).err(), Some(SealError::Damaged));
    let other = EpochKey::from_bytes([0x45; 32]);
    assert_eq!(open(&other, &place(b"header"), &body).err(), Some(SealError::WrongKey));
}

#[test]
fn the_longest_content_fits_a_body_and_nothing_longer_is_taken() {
    let body = seal(&key(), NAME, &place(b""), &vec![1; CONTENT_BYTES_MAX]).expect("sealed");
    assert!(body.len() <= BODY_BYTES_MAX);
    let longer = seal(&key(), NAME, &place(b""), &vec![1; CONTENT_BYTES_MAX + 1]);
    assert_eq!(longer.err(), Some(SealError::TooLong));
}

#[test]
fn bodies_are_sealed_as_the_vectors_say() {
    let cases: Vec<Value> = [(0usize, 1u32), (5, 2), (59, 3), (60, 4), (1000, u32::MAX)]
        .into_iter()
        .map(|(length, epoch)| {
            let content: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let aad: Vec<u8> = (0..123).map(|i| i as u8 ^ 0x5a).collect();
            let name = KeyName { epoch, ..NAME };
            let nonce = [epoch as u8; NONCE_BYTES];
            let place = Place { log: LOG, sender: SENDER, aad: &aad };
            let body = seal_with(BODY, &key(), name, &place, &content, nonce).expect("sealed");
            assert_eq!(
                open(&key(), &place, &body).map(|opened| opened.to_vec()),
                Ok(content.clone())
            );
            json!({
                "epoch_key": hex::encode(key().bytes()),
                "log": LOG.to_hex(),
                "scope": name.scope.to_hex(),
                "epoch": epoch,
                "sender": SENDER.to_hex(),
                "nonce": hex::encode(nonce),
                "aad": hex::encode(&aad),
                "content": hex::encode(&content),
                "body": hex::encode(&body),
            })
        })
        .collect();
    vectors::check(
        "bodies.json",
        &json!({
            "about": "Native bodies: content, padded by PADME after its length (u32, big-endian), sealed \
                      by XChaCha20-Poly1305 under HKDF-SHA256(epoch_key, salt = nonce, info = \"sealwire \
                      body v1\" || log || scope || epoch u32 || sender)",
            "cases": cases,
        }),
    );
}
