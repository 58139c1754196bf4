//! Every frame of both directions, and bytes that are not frames.

use sealwire_protocol::ack::AckWire;
use sealwire_protocol::bounded::{Bounded, BoundedBytes, BoundedText};
use sealwire_protocol::codec::{decode_client, decode_relay, encode_client, encode_relay};
use sealwire_protocol::digest::sha256;
use sealwire_protocol::frame::{self, AckState, Member, MembershipState, Stub, StubReason};
use sealwire_protocol::token::{Claims, Purpose, TOKEN_BYTES, TokenKey};
use sealwire_protocol::{
    Audience, Body, ClientFrame, DeviceKey, Digest, EntryIn, ErrorCode, Failure, Head, Header,
    Instance, Kind, LogId, LogType, RelayFrame,
};
use serde_json::{Value, json};

use crate::cast::{INCARNATION, NOW, bytes16, bytes32, found, key, sign_entry};
use crate::check;
use crate::json::{describe, hex};
use crate::proofs::greeting;

fn log() -> LogId {
    found(LogType::Group, "ada").log
}

fn head(seq: u64) -> Head {
    Head { incarnation: INCARNATION, seq, chain: Digest(bytes32(&format!("chain {seq}"))) }
}

fn snapshot() -> frame::SnapshotSummary {
    frame::SnapshotSummary {
        head: head(40),
        digest: Digest(bytes32("a snapshot")),
        size: 1 << 27,
        confirmed: true,
    }
}

fn name<const MAX: usize>(text: &str) -> BoundedText<MAX> {
    BoundedText::new(text).expect("short")
}

fn some_bytes<const MAX: usize>(len: usize) -> BoundedBytes<MAX> {
    BoundedBytes::new((0..len).map(|n| n as u8).collect()).expect("few")
}

fn token() -> BoundedBytes<TOKEN_BYTES> {
    let issued = NOW / 1000;
    let claims = Claims {
        purpose: Purpose::Resume,
        device: key("ada"),
        log: LogId::ZERO,
        issued,
        expires: issued + 600,
    };
    let token = TokenKey::derive(b"a secret of the operator").issue(&claims);
    BoundedBytes::new(token.to_vec()).expect("102 bytes")
}

fn entry(count: u64, recipients: &[DeviceKey]) -> EntryIn {
    let body = format!("sealed body {count}");
    let header = Header {
        log: log(),
        sender: key("ada"),
        count,
        prev: Digest(bytes32("the entry before")),
        kind: Kind::Ring,
        audience: Audience::of(recipients),
        seen: head(40),
        body: sha256(body.as_bytes()),
    }
    .encode();
    EntryIn {
        header,
        body: Body::copy_from(body.as_bytes()),
        signature: Some(sign_entry("ada", &header)),
        recipients: Bounded::new(recipients.to_vec()).expect("few"),
        totals_kind: None,
    }
}

fn totals_entry() -> EntryIn {
    let mut entry = entry(3, &[]);
    entry.signature = None;
    entry.totals_kind = Some(name("expense"));
    entry
}

/// A frame's name, its fields as the vectors describe them, and its bytes.
macro_rules! case {
    ($encode:ident, $decode:ident, $about:expr, $request:expr, $frame:expr) => {{
        let fields = $frame;
        let described = describe(&fields);
        let frame = fields.into();
        let about: &str = $about;
        let bytes = $encode($request, &frame);
        let envelope = $decode(&bytes).expect("an envelope");
        assert_eq!((envelope.request, envelope.frame.as_ref()), ($request, Ok(&frame)));
        json!({
            "name": if about.is_empty() { frame.name() } else { about },
            "frame": frame.name(),
            "type": frame.number(),
            "request": $request,
            "fields": described,
            "bytes": hex(&bytes),
        })
    }};
}

macro_rules! client {
    ($about:expr, $request:expr, $frame:expr) => {
        case!(encode_client, decode_client, $about, $request, $frame)
    };
}

macro_rules! relay {
    ($about:expr, $request:expr, $frame:expr) => {
        case!(encode_relay, decode_relay, $about, $request, $frame)
    };
}

/// Panics unless every frame of a direction's table has a case.
fn all_are_there(table: &[(u8, &str)], cases: &[Value]) {
    for (_, name) in table {
        assert!(cases.iter().any(|case| case["frame"] == *name), "{name} has no vector");
    }
}

#[test]
fn client_frames() {
    let ack = AckState {
        incarnation: INCARNATION,
        acked: AckWire { floor: 17, ranges: Bounded::new(vec![(19, 19), (23, 40)]).expect("few") },
    };
    let bare = AckState {
        incarnation: INCARNATION,
        acked: AckWire { floor: 40, ranges: Bounded::default() },
    };
    let signature = sign_entry("ada", &entry(1, &[]).header);
    let authenticate = frame::Authenticate {
        version: 1,
        device: key("ada"),
        instance: Instance(bytes16("an instance")),
        challenge: Digest(bytes32("a challenge")),
        signature: Some(signature),
        token: None,
        heartbeat_s: 60,
        window: None,
        capabilities: frame::Names::default(),
    };
    let resume = frame::Authenticate {
        signature: None,
        token: Some(token()),
        window: Some(1 << 20),
        capabilities: Bounded::new(vec![name("example")]).expect("few"),
        ..authenticate.clone()
    };
    let cases = [
        client!("by signature", 1, authenticate),
        client!("by resume token, with a window and a capability", 1, resume),
        client!(
            "from the first entry",
            2,
            frame::Subscribe { log: log(), cursor: None, acked: None }
        ),
        client!(
            "from a cursor, with the ack state",
            3,
            frame::Subscribe { log: log(), cursor: Some(head(40)), acked: Some(ack.clone()) }
        ),
        client!("", 4, frame::Unsubscribe { log: log() }),
        client!("to all", 5, frame::Append { entry: entry(1, &[]) }),
        client!("to two", 6, frame::Append { entry: entry(2, &[key("ben"), key("cam")]) }),
        client!("in a totals group", 7, frame::Append { entry: totals_entry() }),
        client!(
            "two entries",
            8,
            frame::AppendBatch {
                entries: Bounded::new(vec![entry(1, &[]), entry(2, &[])]).expect("few")
            }
        ),
        client!("a floor alone", 0, frame::Ack { log: log(), state: bare }),
        client!("a floor and ranges", 9, frame::Ack { log: log(), state: ack }),
        client!("", 10, frame::ListMembers { log: log() }),
        client!("from the beginning", 11, frame::ListLogs { after: None }),
        client!("those after one", 12, frame::ListLogs { after: Some(log()) }),
        client!("the highest request id", u32::MAX, frame::Ping {}),
        client!("", 0, frame::Grant { bytes: 1 << 40 }),
        client!("", 12, frame::CreateTotals {}),
        client!("", 13, frame::JoinTotals { log: log() }),
        client!("", 14, frame::LeaveTotals { log: log() }),
        client!("", 15, frame::GetVaultToken { log: log() }),
        client!(
            "",
            16,
            frame::SetPushToken { platform: name("fcm"), token: Some(name("a push token")) }
        ),
        client!("nowhere", 17, frame::SetPushToken { platform: name("fcm"), token: None }),
        client!("", 18, frame::ListSnapshots { log: log() }),
        client!(
            "",
            19,
            frame::PutSnapshotChunk {
                log: log(),
                digest: Digest(bytes32("a snapshot")),
                size: 1 << 33,
                offset: 1 << 32,
                bytes: some_bytes(300),
            }
        ),
        client!(
            "",
            20,
            frame::GetSnapshotChunk {
                log: log(),
                digest: Digest(bytes32("a snapshot")),
                offset: 1 << 32,
                length: 1 << 19,
            }
        ),
        client!(
            "",
            21,
            frame::SubscribeFrom { log: log(), snapshot: Digest(bytes32("a snapshot")) }
        ),
    ];
    all_are_there(ClientFrame::TABLE, &cases);
    check(
        "client_frames.json",
        "Every frame that a device sends: its fields, and its bytes as this crate writes them.",
        &cases,
    );
}

#[test]
fn relay_frames() {
    let error = |failure: Failure| frame::Error::from(failure);
    let EntryIn { header, body, signature, .. } = entry(1, &[]);
    let to_all = frame::Entry {
        log: log(),
        seq: 41,
        at: NOW,
        header,
        body,
        signature,
        recipients: Bounded::default(),
        totals_kind: None,
    };
    let EntryIn { header, body, signature, recipients, .. } = entry(2, &[key("ben"), key("cam")]);
    let to_two = frame::Entry { header, body, signature, recipients, ..to_all.clone() };
    let EntryIn { header, body, totals_kind, .. } = totals_entry();
    let totals = frame::Entry { header, body, signature: None, totals_kind, ..to_all.clone() };
    let stubs = [StubReason::Own, StubReason::NotAddressed, StubReason::Acked, StubReason::Expired]
        .map(|reason| Stub { digest: Digest(bytes32(&format!("entry {reason:?}"))), reason });
    let summary = |seq| frame::LogSummary { log: log(), head: head(seq) };
    let state = |state, seq| frame::Membership { log: log(), state, seq };
    let cases = vec![
        relay!("", 0, greeting("ada")),
        relay!(
            "",
            1,
            frame::Welcome {
                proof: sign_entry("relay", &header),
                incarnation: INCARNATION,
                heartbeat_s: 60,
                resume_token: token(),
                logs: Bounded::new(vec![summary(40)]).expect("few"),
            }
        ),
        relay!("without values", 5, error(Failure::new(ErrorCode::NoSuchLog))),
        relay!("wait", 5, error(Failure::after_ms(ErrorCode::Unavailable, 250))),
        relay!("out of order", 5, error(Failure::out_of_order(7))),
        relay!("a conflict", 5, error(Failure::conflict(9, Digest(bytes32("entry 9"))))),
        relay!("stale", 5, error(Failure::at_head(ErrorCode::Stale, head(44)))),
        relay!("revoked", 5, error(Failure::revoked(43))),
        relay!("a limit", 5, error(Failure::limit(ErrorCode::GroupFull, 1000))),
        relay!(
            "an ack without request id, past the head",
            0,
            frame::Error { log: Some(log()), ..error(Failure::new(ErrorCode::AckPastHead)) }
        ),
        relay!(
            "an ack of a log that is not subscribed",
            7,
            frame::Error { log: Some(log()), ..error(Failure::new(ErrorCode::NotSubscribed)) }
        ),
        relay!("", 5, frame::Appended { log: log(), seq: 41, duplicate: false, head: head(41) }),
        relay!(
            "a duplicate",
            5,
            frame::Appended { log: log(), seq: 12, duplicate: true, head: head(41) }
        ),
        relay!("", 2, frame::Subscribed { log: log(), head: head(41) }),
        relay!("to all", 0, to_all),
        relay!("to two", 0, to_two),
        relay!("in a totals group", 0, totals),
        relay!(
            "one of each reason",
            0,
            frame::Stubs { log: log(), seq: 30, stubs: Bounded::new(stubs.to_vec()).expect("few") }
        ),
        relay!("", 0, frame::Drained { log: log(), head: head(41) }),
        relay!("of a group", 0, frame::Floor { log: log(), head: head(20), snapshot: None }),
        relay!(
            "of a vault",
            0,
            frame::Floor { log: log(), head: head(20), snapshot: Some(snapshot()) }
        ),
        relay!("nothing changed", 0, frame::Heartbeat { now: NOW, heads: Bounded::default() }),
        relay!(
            "in answer to Ping, a head changed",
            21,
            frame::Heartbeat { now: NOW, heads: Bounded::new(vec![summary(42)]).expect("few") }
        ),
        relay!(
            "",
            10,
            frame::Members {
                log: log(),
                head: head(41),
                members: Bounded::new(vec![
                    Member { device: key("ada"), joined_seq: 1, joined_at: NOW },
                    Member { device: key("ben"), joined_seq: 3, joined_at: NOW + 5_000 },
                ])
                .expect("few"),
            }
        ),
        relay!("", 11, frame::Logs { logs: Bounded::new(vec![summary(41)]).expect("few") }),
        relay!("joined", 0, state(MembershipState::Joined, 3)),
        relay!("left", 0, state(MembershipState::Left, 50)),
        relay!("revoked", 0, state(MembershipState::Revoked, 51)),
        relay!("", 0, frame::Superseded {}),
        relay!("", 0, frame::Draining { reconnect_after_ms: 1_234, resume_token: token() }),
        relay!("", 4, frame::Done {}),
        relay!("", 12, frame::Joined { log: log(), at: NOW, head: head(2) }),
        relay!("", 15, frame::Token { token: token(), expires: NOW / 1000 + 600 }),
        relay!(
            "",
            18,
            frame::Snapshots { snapshots: Bounded::new(vec![snapshot()]).expect("few") }
        ),
        relay!("", 20, frame::SnapshotChunk { offset: 1 << 32, bytes: some_bytes(300) }),
        relay!("", 0, frame::QuotaReached { log: log() }),
        relay!("", 0, frame::RecoveryFetched { at: NOW }),
    ];
    all_are_there(RelayFrame::TABLE, &cases);
    check(
        "relay_frames.json",
        "Every frame that the relay sends: its fields, and its bytes as this crate writes them.",
        &cases,
    );
}
