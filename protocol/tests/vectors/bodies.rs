//! The bodies that the relay can read: control bodies and key bodies.

use sealwire_protocol::bounded::{Bounded, BoundedBytes};
use sealwire_protocol::ids::Scope;
use sealwire_protocol::keys::{KeyBody, SealedKey};
use sealwire_protocol::limits::KEY_CIPHERTEXT_BYTES_MAX;
use sealwire_protocol::signing::{enrol_message, join_message, sign};
use sealwire_protocol::{Control, Digest, Head, LogType};
use serde_json::{Value, json};

use crate::cast::{INCARNATION, NOW, bytes16, bytes32, found, key, signing_key};
use crate::check;
use crate::json::{describe, hex, int};

fn fields(control: &Control) -> Value {
    match control {
        Control::Found { log_type, random, join_key } => json!({
            "log_type": log_type.to_u8(), "random": hex(random), "join_key": describe(join_key),
        }),
        Control::Join { signature } => json!({ "signature": describe(signature) }),
        Control::Enrol { device, signature } => {
            json!({ "device": describe(device), "signature": describe(signature) })
        }
        Control::Leave => json!({}),
        Control::Revoke { device, join_key } => {
            json!({ "device": describe(device), "join_key": describe(join_key) })
        }
        Control::JoinKey { join_key } => json!({ "join_key": describe(join_key) }),
        Control::Snapshot { head, digest, size, chunks } => json!({
            "head": describe(head), "digest": describe(digest), "size": int(*size), "chunks": chunks,
        }),
        Control::SnapshotOpened { digest } => json!({ "digest": describe(digest) }),
        Control::TotalsFound { creator, at } => {
            json!({ "creator": describe(creator), "at": int(*at) })
        }
        Control::TotalsJoin { device, at } => json!({ "device": describe(device), "at": int(*at) }),
        Control::TotalsLeave { device } => json!({ "device": describe(device) }),
    }
}

#[test]
fn control_bodies() {
    let (group, vault) = (found(LogType::Group, "ada").log, found(LogType::Vault, "ada").log);
    let head = Head { incarnation: INCARNATION, seq: 1000, chain: Digest(bytes32("a chain")) };
    let group_join_key = Some(key("join key"));
    let controls = [
        Control::Found {
            log_type: LogType::Group,
            random: bytes32("random of ada's log"),
            join_key: group_join_key,
        },
        Control::Found {
            log_type: LogType::Vault,
            random: bytes32("random of ada's log"),
            join_key: None,
        },
        Control::Join {
            signature: sign(&signing_key("join key"), &join_message(group, key("ben"))),
        },
        Control::Enrol {
            device: key("ben"),
            signature: sign(&signing_key("ben"), &enrol_message(vault, key("ben"), key("ada"))),
        },
        Control::Leave,
        Control::Revoke { device: key("ben"), join_key: Some(key("second join key")) },
        Control::Revoke { device: key("ben"), join_key: None },
        Control::JoinKey { join_key: key("second join key") },
        Control::Snapshot {
            head,
            digest: Digest(bytes32("a snapshot")),
            size: 5_000_000_000,
            chunks: 9_537,
        },
        Control::Snapshot { head: Head::NONE, digest: Digest::ZERO, size: 0, chunks: 0 },
        Control::SnapshotOpened { digest: Digest(bytes32("a snapshot")) },
        Control::TotalsFound { creator: key("ada"), at: NOW },
        Control::TotalsJoin { device: key("ben"), at: NOW },
        Control::TotalsLeave { device: key("ben") },
    ];
    let mut cases: Vec<Value> = controls
        .iter()
        .map(|control| {
            let bytes = control.encode();
            assert_eq!(Control::decode(&bytes).as_ref(), Ok(control));
            json!({ "name": control.name(), "fields": fields(control), "body": hex(bytes) })
        })
        .collect();

    let mut refuse = |reason: &str, bytes: &[u8]| {
        assert!(Control::decode(bytes).is_err(), "{reason}");
        cases.push(json!({ "refused": reason, "body": hex(bytes) }));
    };
    let long = |pieces: &[&[u8]]| pieces.concat();
    refuse("no bytes", &[]);
    refuse("an unknown name", &long(&[&[0x91, 0xa5], b"guess"]));
    refuse("a byte after the array", &long(&[&[0x91, 0xa5], b"leave", &[0xc0]]));
    refuse("a field too many", &long(&[&[0x92, 0xa5], b"leave", &[0xc0]]));
    refuse("a field too few", &long(&[&[0x91, 0xa4], b"join"]));
    refuse("a longer form of the array's length", &long(&[&[0xdc, 0, 1, 0xa5], b"leave"]));
    refuse("a longer form of the name's length", &long(&[&[0x91, 0xd9, 5], b"leave"]));
    refuse("a name of bytes", &long(&[&[0x91, 0xc4, 5], b"leave"]));
    let key32 = key("ben").0;
    refuse(
        "a longer form of a byte string's length",
        &long(&[&[0x92, 0xa8], b"join_key", &[0xc5, 0, 32], &key32]),
    );
    refuse("a key of 31 bytes", &long(&[&[0x92, 0xa8], b"join_key", &[0xc4, 31], &key32[..31]]));
    refuse("a key as a string", &long(&[&[0x92, 0xa8], b"join_key", &[0xd9, 32], &[b'a'; 32]]));
    let totals_join = [&[0x93, 0xab][..], b"totals_join", &[0xc4, 32], &key32].concat();
    refuse("a longer form of a number", &long(&[&totals_join, &[0xcc, 5]]));
    refuse("a signed form of a number", &long(&[&totals_join, &[0xd0, 5]]));
    refuse("a number of floating point", &long(&[&totals_join, &[0xca, 0x40, 0xa0, 0, 0]]));
    refuse("log type 3", &long(&[&[0x94, 0xa5], b"found", &[3, 0xc4, 32], &key32, &[0xc0]]));
    check(
        "controls.json",
        "Control bodies: one MessagePack array in its shortest form, the name first, then the fields \
         in the order given here. A case with \"refused\" is not a control body.",
        &cases,
    );
}

#[test]
fn key_bodies() {
    let copy = |name: &str, len: usize| SealedKey {
        recipient: key(name),
        enc: bytes32(&format!("enc for {name}")),
        ciphertext: BoundedBytes::new((0..len).map(|n| n as u8).collect()).expect("short"),
    };
    let body = |epoch, keys| KeyBody {
        scope: Scope(bytes16("a scope")),
        epoch,
        keys: Bounded::new(keys).expect("few"),
    };
    let mut cases: Vec<Value> = [
        ("sealed to one", body(1, vec![copy("ada", 52)])),
        (
            "sealed to three",
            body(u32::MAX, vec![copy("ben", 86), copy("ada", 86), copy("cam", 86)]),
        ),
        ("the longest ciphertext", body(2, vec![copy("ben", KEY_CIPHERTEXT_BYTES_MAX)])),
        ("sealed to nobody", body(3, vec![])),
    ]
    .iter()
    .map(|(name, body)| {
        let bytes = body.encode().expect("small");
        assert_eq!(KeyBody::decode(&bytes).as_ref(), Ok(body));
        let keys: Vec<Value> = body
            .keys
            .iter()
            .map(|key| {
                json!({
                    "recipient": hex(key.recipient.0),
                    "enc": hex(key.enc),
                    "ciphertext": describe(&key.ciphertext),
                })
            })
            .collect();
        json!({
            "name": name,
            "fields": { "scope": hex(body.scope.0), "epoch": body.epoch, "keys": keys },
            "body": hex(bytes),
        })
    })
    .collect();

    let box_of = |len: u8| {
        [
            &[0x93, 0xc4, 32][..],
            &key("ben").0,
            &[0xc4, 32],
            &bytes32("enc"),
            &[0xc4, len],
            &vec![0; usize::from(len)],
        ]
        .concat()
    };
    let start = [&[0x93, 0xc4, 16][..], &bytes16("a scope"), &[1]].concat();
    let mut refuse = |reason: &str, pieces: &[&[u8]]| {
        let bytes = pieces.concat();
        assert!(KeyBody::decode(&bytes).is_err(), "{reason}");
        cases.push(json!({ "refused": reason, "body": hex(bytes) }));
    };
    refuse("one recipient twice", &[&start, &[0x92], &box_of(52), &box_of(53)]);
    refuse("a ciphertext of 161 bytes", &[&start, &[0x91], &box_of(161)]);
    refuse("a byte after the array", &[&start, &[0x90, 0xc0]]);
    refuse("1001 recipients claimed", &[&start, &[0xdc, 0x03, 0xe9]]);
    check(
        "key_bodies.json",
        "Key bodies: [scope 16, epoch, [[recipient 32, enc 32, ciphertext], ...]]. The boxes here are \
         not sealed to anybody; keys.json has real ones. A case with \"refused\" is not a key body.",
        &cases,
    );
}
