//! Names and digests: log ids, headers, audiences, the chain.

use sealwire_protocol::digest::{chain_next, chain_start, entry_digest, native_log_id, sha256};
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::{Audience, DeviceKey, Digest, Head, Header, Kind, LogId, LogType};
use serde_json::{Value, json};

use crate::cast::{INCARNATION, bytes16, bytes32, found, key};
use crate::check;
use crate::json::{describe, hex, int};

#[test]
fn log_ids() {
    let mut cases = Vec::new();
    for (name, log_type) in [("a native group", LogType::Group), ("a vault", LogType::Vault)] {
        let founded = found(log_type, "ada");
        assert!(founded.log.is_native());
        cases.push(json!({
            "name": name,
            "first_header": hex(founded.header.0),
            "sha256": hex(sha256(&founded.header.0).0),
            "log": hex(founded.log.0),
            "uuid": founded.log.to_uuid_text(),
            "uuid_version": founded.log.version(),
            "native": true,
        }));
    }
    let totals = LogId(*b"\x3f\x2a\x90\x01\x5c\x77\x4d\x0e\xa1\xb2\xc3\xd4\xe5\xf6\x07\x18");
    assert!(!totals.is_native());
    assert_eq!(LogId::from_uuid_text(&totals.to_uuid_text()), Some(totals));
    cases.push(json!({
        "name": "a totals group: a random UUID, of no header",
        "log": hex(totals.0),
        "uuid": totals.to_uuid_text(),
        "uuid_version": totals.version(),
        "native": false,
    }));
    check(
        "log_ids.json",
        "The id of a native log is the first 16 bytes of SHA-256(its first header) with UUID \
         version 8 and the RFC 9562 variant set.",
        &cases,
    );
}

fn header_case(name: &str, header: &Header) -> Value {
    let bytes = header.encode();
    assert_eq!(bytes.decode().as_ref(), Ok(header));
    let audience = match header.audience {
        Audience::All => json!("all"),
        Audience::Named(digest) => hex(digest.0),
    };
    json!({
        "name": name,
        "fields": {
            "version": 1,
            "log": hex(header.log.0),
            "sender": hex(header.sender.0),
            "count": int(header.count),
            "prev": hex(header.prev.0),
            "kind": header.kind.to_u8(),
            "audience": audience,
            "seen": describe(&header.seen),
            "body_sha256": hex(header.body.0),
        },
        "header": hex(bytes.0),
        "aad": hex(bytes.aad()),
        "entry_digest": hex(entry_digest(&bytes).0),
    })
}

#[test]
fn headers() {
    let log = found(LogType::Group, "ada").log;
    let entry = Header {
        log,
        sender: key("ben"),
        count: 7,
        prev: Digest(bytes32("the entry before")),
        kind: Kind::Ring,
        audience: Audience::All,
        seen: Head { incarnation: INCARNATION, seq: 41, chain: Digest(bytes32("a chain")) },
        body: sha256(b"a body"),
    };
    let mut cases = vec![
        header_case(
            "the first entry of a log",
            &found(LogType::Group, "ada").header.decode().expect("a header"),
        ),
        header_case("to all", &entry),
        header_case(
            "to two named members",
            &Header { audience: Audience::of(&[key("cam"), key("ada")]), ..entry.clone() },
        ),
        header_case(
            "the highest count and seq, an empty body",
            &Header {
                count: i64::MAX as u64,
                seen: Head { incarnation: u64::MAX, seq: i64::MAX as u64, ..entry.seen },
                body: sha256(b""),
                ..entry.clone()
            },
        ),
        header_case(
            "the relay's own entry in a totals group",
            &Header {
                log: LogId(bytes16("a totals group")),
                sender: DeviceKey::ZERO,
                count: 0,
                prev: Digest::ZERO,
                kind: Kind::Control,
                seen: Head::NONE,
                ..entry.clone()
            },
        ),
    ];
    for kind in [Kind::Control, Kind::Key, Kind::Quiet, Kind::Bulk, Kind::Totals] {
        cases.push(header_case(
            &format!("kind {}", kind.to_u8()),
            &Header { kind, ..entry.clone() },
        ));
    }
    let good = entry.encode().0;
    let mut refuse = |name: &str, reason: &str, bytes: &[u8]| {
        assert!(HeaderBytes::from_slice(bytes).and_then(|header| header.decode()).is_err());
        cases.push(json!({ "name": name, "refused": reason, "header": hex(bytes) }));
    };
    let with = |offset: usize, byte: u8| {
        let mut bytes = good;
        bytes[offset] = byte;
        bytes
    };
    refuse("version 2", "version", &with(0, 2));
    refuse("kind 0", "kind", &with(89, 0));
    refuse("kind 6", "kind", &with(89, 6));
    refuse("audience byte 2", "audience", &with(90, 2));
    refuse("to all, but the audience digest is not zero", "audience", &with(91, 1));
    refuse("a byte short", "length", &good[..202]);
    refuse("a byte too long", "length", &[&good[..], &[0]].concat());
    check(
        "headers.json",
        "A header's fields, its 203 bytes, the additional data of its sealed body (the first 123) \
         and its entry digest, SHA-256(\"sealwire entry v1\" || 0x00 || header). A case with \
         \"refused\" is not a header.",
        &cases,
    );
}

#[test]
fn audiences() {
    let many: Vec<DeviceKey> = (0..64).map(|n| key(&format!("member {n}"))).collect();
    let lists: [(&str, Vec<DeviceKey>); 5] = [
        ("nobody named: all", vec![]),
        ("one", vec![key("ben")]),
        ("two, in an order that is not sorted", {
            let mut two = vec![key("ben"), key("cam")];
            two.sort_unstable_by(|a, b| b.cmp(a));
            two
        }),
        ("one of two is repeated", vec![key("ben"), key("cam"), key("ben")]),
        ("as many as may be named", many),
    ];
    let cases: Vec<Value> = lists
        .iter()
        .map(|(name, keys)| {
            let field = match Audience::of(keys) {
                Audience::All => vec![0; 33],
                Audience::Named(digest) => [&[1][..], &digest.0].concat(),
            };
            json!({ "name": name, "recipients": describe(keys), "audience": hex(field) })
        })
        .collect();
    check(
        "audiences.json",
        "The 33 bytes of a header's audience: 0x00 and 32 zeros for all, or 0x01 and the SHA-256 of \
         the named keys, sorted as bytes, each once.",
        &cases,
    );
}

#[test]
fn chain() {
    let founded = found(LogType::Group, "ada");
    let mut chain = chain_start(founded.log);
    let digests = [
        entry_digest(&founded.header),
        Digest(bytes32("entry 2")),
        Digest(bytes32("entry 3")),
        Digest(bytes32("entry 4")),
    ];
    assert_eq!(founded.log, native_log_id(&founded.header));
    let mut steps = Vec::new();
    for (seq, digest) in (1..).zip(digests) {
        chain = chain_next(chain, seq, digest);
        steps.push(json!({
            "seq": int(seq),
            "entry_digest": hex(digest.0),
            "chain": hex(chain.0),
        }));
    }
    let high = chain_next(chain, i64::MAX as u64, digests[0]);
    let cases = [
        json!({
            "name": "from the start of a log",
            "log": hex(founded.log.0),
            "chain_start": hex(chain_start(founded.log).0),
            "steps": steps,
        }),
        json!({
            "name": "one step, at the highest seq",
            "chain_start": hex(chain.0),
            "steps": [{
                "seq": int(i64::MAX as u64),
                "entry_digest": hex(digests[0].0),
                "chain": hex(high.0),
            }],
        }),
    ];
    check(
        "chain.json",
        "chain_start = SHA-256(\"sealwire log v1\" || 0x00 || log id); each step is \
         SHA-256(\"sealwire chain v1\" || 0x00 || chain before || seq as 8 bytes big-endian || entry \
         digest).",
        &cases,
    );
}
