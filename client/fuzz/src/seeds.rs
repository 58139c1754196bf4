//! True bytes for each check, so that fuzzing begins with messages and not with noise.

use std::path::Path;

use sealwire_client::address::RelayUrl;
use sealwire_client::content::Content;
use sealwire_client::identity::{Identity, JoinSeed};
use sealwire_client::invite::Invite;
use sealwire_client::ledger::Succession;
use sealwire_client::recovery::{Contents, SavedGroup, SavedKey, SavedSeed};
use sealwire_client::sync::Value as Column;
use sealwire_client::sync::changeset::{Cell, Changes, RowChange, TableChanges, What};
use sealwire_client::sync::clock::Reading;
use sealwire_client::totals::payload::Payload;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::{DeviceKey, LogId};
use serde_json::Value;

use super::checks;

/// A check by the name of its target.
pub type Check = fn(&[u8]);

/// Every target.
pub const CHECKS: [(&str, Check); 11] = [
    ("payload", checks::payload),
    ("ledger", checks::ledger),
    ("content", checks::content),
    ("grant", checks::grant),
    ("invite", checks::invite),
    ("typed", checks::typed),
    ("recovery", checks::recovery),
    ("sealed", checks::sealed),
    ("changeset", checks::changeset),
    ("boxes", checks::boxes),
    ("snapshot", checks::snapshot),
];

/// The true bytes of a target. `vectors` is the directory of the protocol's vectors.
///
/// # Panics
/// If a vector file is not there, or not what it was.
#[must_use]
pub fn of(target: &str, vectors: &Path) -> Vec<Vec<u8>> {
    let text = |file: &str, name: &str| -> Vec<Vec<u8>> {
        let texts = cases(vectors, file, name).into_iter();
        texts.filter_map(|it| it.as_str().map(|text| text.as_bytes().to_vec())).collect()
    };
    let bytes = |file: &str, name: &str| -> Vec<Vec<u8>> {
        let texts = text(file, name).into_iter();
        texts.map(|text| hex::decode(text).expect("hex digits")).collect()
    };
    match target {
        "payload" => [text("totals_blobs.json", "plaintext"), messages()].concat(),
        "ledger" => {
            vec![messages().join(&b'\n'), text("totals_blobs.json", "plaintext").join(&b'\n')]
        }
        "content" => {
            let ledger = messages().pop();
            let said = Content { payload: Some(b"hello".to_vec()), ledger, ..Content::default() };
            vec![said.encode().expect("encoded"), Content::default().encode().expect("encoded")]
        }
        "grant" => {
            let nothing = [&[0x93, 0xc4, 32][..], &[7; 32], &[0xc0, 0xc0]].concat();
            let all = [
                &[0x93, 0xc4, 32][..],
                &[7; 32],
                &[0xc4, 32],
                &[8; 32],
                &[0x93, 5, 6, 0xc4, 32],
                &[9; 32],
            ];
            vec![nothing, all.concat()]
        }
        "invite" => vec![invite().link().as_bytes().to_vec()],
        "typed" => [
            text("recovery.json", "code"),
            ["wss://relay.example:8443/a/", "12.34", "ETB"].map(|it| it.as_bytes().to_vec()).into(),
        ]
        .concat(),
        "recovery" => [
            bytes("recovery.json", "contents"),
            vec![contents().encode().expect("encoded").to_vec()],
            text("totals_recovery.json", "plaintext"),
            cases(vectors, "totals_recovery.json", "vault")
                .into_iter()
                .map(|vault| vault.to_string().into_bytes())
                .collect(),
        ]
        .concat(),
        "sealed" => [bytes("bodies.json", "body"), bytes("totals_blobs.json", "blob")].concat(),
        "changeset" => vec![changes().encode().expect("encoded")],
        "boxes" => {
            let one = changes().encode().expect("encoded");
            let mut body = vec![0x92, 0xc4, 2, 1, 2, 0xc4, one.len() as u8];
            body.extend(one);
            vec![body]
        }
        "snapshot" => vec![state(), packed(&state())],
        other => panic!("there is no target {other}"),
    }
}

fn cases(vectors: &Path, file: &str, name: &str) -> Vec<Value> {
    let file = std::fs::read(vectors.join(file)).expect("a vector file");
    let file: Value = serde_json::from_slice(&file).expect("JSON");
    file["cases"].as_array().into_iter().flatten().map(|case| case[name].clone()).collect()
}

fn messages() -> Vec<Vec<u8>> {
    let log = LogId([0x44; 16]);
    let (old, new) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
    let succession = Payload::Succession(Succession::new(log, &old, &new));
    let mut all = vec![succession.encode().expect("encoded").to_vec()];
    let group = log.to_uuid_text();
    for message in [
        r#"{"type":"group_snapshot","snapshotId":"s","timestamp":1,"groupId":"GROUP","part":"meta",
            "displayNames":{"a":"Anna"},"memberMetaUpdatedAt":{"a":3},"approvedMemberKeys":["a"],
            "paymentAddresses":{"a":{"bankId":1,"accountNumber":"2"}},
            "members":[{"devicePublicKey":"a","joinedAt":null}],
            "expenses":[{"id":"e","amount":12.34,"currency":"ETB","reason":"Taxi","paidBy":"a",
            "splitAmong":["a","b"],"timestamp":1,"revisedAt":2,"kind":"settlement"}],
            "activity":[{"id":"x","timestamp":5,"actor":"a","kind":"member_left","data":{}}]}"#,
        r#"{"type":"expense","id":"e","amount":0.1,"currency":"JPY","reason":"","paidBy":"b",
            "splitAmong":["a","b","a"],"timestamp":1,"kind":"expense","deleted":false}"#,
        r#"{"type":"nudge","id":"n","timestamp":1,"actor":"a","amount":5.0,"debtorPks":["b"],
            "amountByDebtorPk":{"b":5.0}}"#,
        r#"{"type":"group_meta","name":"Trip","backfillNewMembers":true,"timestamp":2}"#,
        r#"{"type":"member_left","publicKey":"a","leftAt":1}"#,
    ] {
        // One message stands on one line.
        all.push(message.replace('\n', "").replace("GROUP", &group).into_bytes());
    }
    all
}

fn invite() -> Invite {
    let mut log = LogId([5; 16]);
    (log.0[6], log.0[8]) = (0x85, 0x85);
    Invite {
        relay: RelayUrl::parse("wss://relay.example:8443").expect("an address"),
        relay_key: DeviceKey([1; 32]),
        log,
        inviter: DeviceKey([2; 32]),
        seed: JoinSeed::from_bytes([3; 32]),
    }
}

fn contents() -> Contents {
    let key = SavedKey { scope: Scope([5; 16]), epoch: 7, key: SavedSeed([6; 32]) };
    let group = SavedGroup {
        log: LogId([2; 16]),
        relay: "wss://relay.example".to_owned(),
        relay_key: Some(DeviceKey([3; 32])),
        join_seed: Some(SavedSeed([4; 32])),
        key: Some(key),
    };
    Contents { seed: [1; 32], name: Some("Anna".to_owned()), groups: vec![group] }
}

/// A state of one row, as frames of MessagePack.
#[must_use]
pub fn state() -> Vec<u8> {
    let start = [&b"\x81\xa5Start\x93\x01\x03\x91\xc4\x20"[..], &[9; 32]].concat();
    let rows = b"\x81\xa4Rows\x94\xa1t\x91\xa2id\x91\xa1a\x91\x93\x91\xa1k\x93\x05\x00\xc3\x91\x94\x00\x05\x00\xa1v";
    let frame = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    [frame(&start), frame(rows)].concat()
}

/// The same as a Zstandard frame (RFC 8878) of one block that is stored as it is.
#[must_use]
pub fn packed(bytes: &[u8]) -> Vec<u8> {
    let last_and_raw = (bytes.len() as u32) << 3 | 1;
    let header = [0x28, 0xb5, 0x2f, 0xfd, 0x20, bytes.len() as u8];
    [&header[..], &last_and_raw.to_le_bytes()[..3], bytes].concat()
}

fn changes() -> Changes {
    let cell = |column, text: &str| Cell {
        column,
        after: Some(Column::Text(text.as_bytes().to_vec())),
        before: Some(Column::Null),
    };
    Changes {
        schema_version: 3,
        reading: Reading(1_767_225_600_000 << 16),
        tables: vec![TableChanges {
            table: "items".to_owned(),
            key_columns: vec!["id".to_owned()],
            columns: vec!["name".to_owned(), "note".to_owned()],
            rows: vec![RowChange {
                key: vec![Column::Integer(7)],
                what: What::Written,
                cells: vec![cell(0, "milk"), cell(1, "two")],
            }],
        }],
    }
}
