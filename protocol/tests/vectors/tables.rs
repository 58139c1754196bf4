//! Ack sets, error codes, close codes and limits.

use sealwire_protocol::ack::AckWire;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::limits;
use sealwire_protocol::{AckSet, ErrorCode, control, frame, header, token};
use serde_json::{Value, json};

use crate::check;
use crate::json::{describe, int};

fn pairs(ranges: &[(u64, u64)]) -> Value {
    ranges.iter().map(|(first, last)| json!([int(*first), int(*last)])).collect()
}

#[test]
fn acks() {
    let every_second: Vec<(u64, u64)> = (1..=256).map(|n| (2 * n, 2 * n)).collect();
    let full = [&every_second[..], &[(600, 600)]].concat();
    let stories: [(&str, Vec<(u64, u64)>); 9] = [
        ("nothing", vec![]),
        ("in order", vec![(1, 1), (2, 2), (3, 3)]),
        ("a gap", vec![(1, 2), (4, 4)]),
        ("the gap closes", vec![(1, 2), (4, 6), (3, 3)]),
        ("ranges that touch become one", vec![(5, 6), (9, 9), (7, 8)]),
        ("ranges that overlap become one", vec![(3, 7), (5, 12), (3, 4)]),
        (
            "seq 0 does not exist, and a range that ends before it begins is nothing",
            vec![(0, 1), (9, 8)],
        ),
        ("more ranges than fit: the last one is not taken", full),
        ("the highest seq, and beyond", vec![(1, u64::MAX)]),
    ];
    let cases: Vec<Value> = stories
        .iter()
        .map(|(name, inserts)| {
            let mut set = AckSet::new();
            let new: Vec<Value> =
                inserts.iter().map(|(first, last)| pairs(&set.insert(*first, *last))).collect();
            let wire = AckWire {
                floor: 0,
                ranges: Bounded::new(inserts.iter().copied().take(256).collect()).expect("256"),
            };
            let mut merged = AckSet::new();
            merged.merge(&wire);
            assert_eq!(merged.floor(), set.floor());
            json!({
                "name": name,
                "acked": pairs(inserts),
                "newly_acked": new,
                "state": describe(&set.to_wire()),
            })
        })
        .collect();
    check(
        "acks.json",
        "Inclusive ranges acked one after the other, what each of them newly acks, and the state after \
         all of them: every seq up to the floor and every seq in a range. At most 256 ranges are kept; \
         the highest seq is 2^63 - 1.",
        &cases,
    );
}

#[test]
fn errors() {
    let cases: Vec<Value> = ErrorCode::ALL
        .iter()
        .map(|code| json!({ "code": code.name(), "message": code.sentence() }))
        .collect();
    check("errors.json", "Every error code, with the sentence that the relay sends.", &cases);
}

#[test]
fn close_codes() {
    let cases =
        CloseReason::ALL.map(|reason| json!({ "code": reason.code(), "reason": reason.name() }));
    check(
        "close_codes.json",
        "Every code and reason with which the relay closes a WebSocket.",
        &cases,
    );
}

#[test]
fn bounds() {
    let bytes: [(&str, usize); 14] = [
        ("header", header::HEADER_BYTES),
        ("additional data of a body", header::AAD_BYTES),
        ("body", limits::BODY_BYTES_MAX),
        ("bodies of a batch", limits::BATCH_BYTES_MAX),
        ("frame", limits::FRAME_BYTES_MAX),
        ("frame before authentication", limits::UNAUTHENTICATED_FRAME_BYTES_MAX),
        ("control body", control::CONTROL_BYTES_MAX),
        ("bodies in flight", limits::IN_FLIGHT_BYTES_MAX),
        ("name", limits::NAME_BYTES_MAX),
        ("token", token::TOKEN_BYTES),
        ("ciphertext of one key", limits::KEY_CIPHERTEXT_BYTES_MAX),
        ("chunk of a snapshot", limits::SNAPSHOT_CHUNK_BYTES_MAX),
        ("smallest chunk of a snapshot but its last", limits::SNAPSHOT_CHUNK_BYTES_MIN),
        ("sealed snapshot", limits::SNAPSHOT_BYTES_MAX as usize),
    ];
    let counts: [(&str, usize); 12] = [
        ("entries of a batch", limits::BATCH_ENTRIES_MAX),
        ("named recipients", limits::RECIPIENTS_MAX),
        ("members of a native group", limits::NATIVE_MEMBERS_MAX),
        ("members of a totals group", limits::TOTALS_MEMBERS_MAX),
        ("ranges of an ack state", limits::ACK_RANGES_MAX),
        ("requests in flight", limits::IN_FLIGHT_REQUESTS_MAX),
        ("instances of a device", limits::INSTANCES_MAX),
        ("subscriptions of a session", limits::SUBSCRIPTIONS_MAX),
        ("capabilities", limits::CAPABILITIES_MAX),
        ("stubs of a frame", frame::STUBS_MAX),
        ("snapshots and uploads of a vault", limits::SNAPSHOTS_MAX),
        ("protocol version", usize::from(limits::PROTOCOL_VERSION)),
    ];
    let seconds = [
        ("WebSocket handshake", limits::HANDSHAKE_DEADLINE),
        ("authentication", limits::AUTHENTICATION_DEADLINE),
        ("first to last fragment of a message", limits::MESSAGE_DEADLINE),
        ("shortest heartbeat", limits::HEARTBEAT_MIN),
        ("longest heartbeat", limits::HEARTBEAT_MAX),
        ("life of a token", limits::TOKEN_LIFETIME),
    ];
    let mut cases =
        vec![json!({ "name": "seq and count", "unit": "", "limit": int(limits::SEQ_MAX) })];
    let mut bound = |name: &str, unit: &str, limit: u64| {
        cases.push(json!({ "name": name, "unit": unit, "limit": int(limit) }));
    };
    for (name, limit) in bytes {
        bound(name, "bytes", limit as u64);
    }
    for (name, limit) in counts {
        bound(name, "", limit as u64);
    }
    for (name, limit) in seconds {
        bound(name, "seconds", limit.as_secs());
    }
    check("limits.json", "Every bound that both ends must know.", &cases);
}
