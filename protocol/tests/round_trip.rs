//! Every frame survives encoding and decoding, and no bytes make a decoder panic.

use proptest::collection::vec;
use proptest::prelude::*;
use sealwire_protocol::ack::AckWire;
use sealwire_protocol::bounded::{Bounded, BoundedBytes, BoundedText};
use sealwire_protocol::codec::{
    DecodeError, decode_client, decode_relay, encode_client, encode_relay,
};
use sealwire_protocol::frame::{self, AckState, Stub, StubReason};
use sealwire_protocol::header::{HEADER_BYTES, HeaderBytes};
use sealwire_protocol::ids::{Scope, Signature};
use sealwire_protocol::keys::{KeyBody, SealedKey};
use sealwire_protocol::limits::SEQ_MAX;
use sealwire_protocol::{
    AckSet, Audience, Body, ClientFrame, Control, DeviceKey, Digest, EntryIn, ErrorCode, Failure,
    Head, Header, Instance, Kind, LogId, LogType, RelayFrame,
};

fn key() -> impl Strategy<Value = DeviceKey> {
    any::<[u8; 32]>().prop_map(DeviceKey)
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn log() -> impl Strategy<Value = LogId> {
    any::<[u8; 16]>().prop_map(LogId)
}

fn signature() -> impl Strategy<Value = Signature> {
    vec(any::<u8>(), 64).prop_map(|bytes| Signature::from_slice(&bytes).expect("64 bytes"))
}

fn head() -> impl Strategy<Value = Head> {
    (any::<u64>(), any::<u64>(), digest()).prop_map(|(incarnation, seq, chain)| Head {
        incarnation,
        seq,
        chain,
    })
}

fn header() -> impl Strategy<Value = Header> {
    let kind = prop::sample::select(vec![
        Kind::Control,
        Kind::Key,
        Kind::Ring,
        Kind::Quiet,
        Kind::Bulk,
        Kind::Totals,
    ]);
    let audience = prop_oneof![Just(Audience::All), digest().prop_map(Audience::Named)];
    (log(), key(), any::<u64>(), digest(), kind, audience, head(), digest()).prop_map(
        |(log, sender, count, prev, kind, audience, seen, body)| Header {
            log,
            sender,
            count,
            prev,
            kind,
            audience,
            seen,
            body,
        },
    )
}

fn control() -> impl Strategy<Value = Control> {
    prop_oneof![
        (any::<bool>(), any::<[u8; 32]>(), proptest::option::of(key())).prop_map(
            |(vault, random, join_key)| Control::Found {
                log_type: if vault { LogType::Vault } else { LogType::Group },
                random,
                join_key,
            }
        ),
        signature().prop_map(|signature| Control::Join { signature }),
        (key(), signature()).prop_map(|(device, signature)| Control::Enrol { device, signature }),
        Just(Control::Leave),
        (key(), proptest::option::of(key()))
            .prop_map(|(device, join_key)| Control::Revoke { device, join_key }),
        key().prop_map(|join_key| Control::JoinKey { join_key }),
        (head(), digest(), any::<u64>(), any::<u32>()).prop_map(|(head, digest, size, chunks)| {
            Control::Snapshot { head, digest, size, chunks }
        }),
        digest().prop_map(|digest| Control::SnapshotOpened { digest }),
        (key(), any::<u64>()).prop_map(|(creator, at)| Control::TotalsFound { creator, at }),
        (key(), any::<u64>()).prop_map(|(device, at)| Control::TotalsJoin { device, at }),
        key().prop_map(|device| Control::TotalsLeave { device }),
    ]
}

fn entry() -> impl Strategy<Value = EntryIn> {
    (
        header(),
        vec(any::<u8>(), 0..300),
        proptest::option::of(signature()),
        vec(key(), 0..5),
        proptest::option::of("[a-z_]{1,20}"),
    )
        .prop_map(|(header, body, signature, recipients, kind)| EntryIn {
            header: header.encode(),
            body: Body::copy_from(&body),
            signature,
            recipients: Bounded::new(recipients).expect("few"),
            totals_kind: kind.and_then(BoundedText::new),
        })
}

fn ack_state() -> impl Strategy<Value = AckState> {
    (any::<u64>(), any::<u64>(), vec((any::<u64>(), any::<u64>()), 0..6)).prop_map(
        |(incarnation, floor, ranges)| AckState {
            incarnation,
            acked: AckWire { floor, ranges: Bounded::new(ranges).expect("few") },
        },
    )
}

fn client_frame() -> impl Strategy<Value = ClientFrame> {
    prop_oneof![
        (key(), any::<[u8; 16]>(), digest(), proptest::option::of(signature()), any::<u16>())
            .prop_map(|(device, instance, challenge, signature, heartbeat_s)| {
                frame::Authenticate {
                    version: 1,
                    device,
                    instance: Instance(instance),
                    challenge,
                    signature,
                    token: BoundedBytes::new(vec![1, 2, 3]),
                    heartbeat_s,
                    window: Some(u64::from(heartbeat_s)),
                    capabilities: Bounded::new(vec![BoundedText::new("x").expect("short")])
                        .expect("few"),
                }
                .into()
            }),
        (log(), proptest::option::of(head()), proptest::option::of(ack_state()))
            .prop_map(|(log, cursor, acked)| frame::Subscribe { log, cursor, acked }.into()),
        log().prop_map(|log| frame::Unsubscribe { log }.into()),
        entry().prop_map(|entry| frame::Append { entry }.into()),
        vec(entry(), 0..4).prop_map(|entries| {
            frame::AppendBatch { entries: Bounded::new(entries).expect("few") }.into()
        }),
        (log(), ack_state()).prop_map(|(log, state)| frame::Ack { log, state }.into()),
        log().prop_map(|log| frame::ListMembers { log }.into()),
        proptest::option::of(log()).prop_map(|after| frame::ListLogs { after }.into()),
        Just(frame::Ping {}.into()),
        any::<u64>().prop_map(|bytes| frame::Grant { bytes }.into()),
        Just(frame::CreateTotals {}.into()),
        log().prop_map(|log| frame::JoinTotals { log }.into()),
        log().prop_map(|log| frame::LeaveTotals { log }.into()),
        log().prop_map(|log| frame::GetVaultToken { log }.into()),
        proptest::option::of("[a-zA-Z0-9:_-]{1,200}").prop_map(|token| {
            frame::SetPushToken {
                platform: BoundedText::new("fcm").expect("short"),
                token: token.and_then(BoundedText::new),
            }
            .into()
        }),
        log().prop_map(|log| frame::ListSnapshots { log }.into()),
        (log(), digest(), any::<u64>(), any::<u64>(), vec(any::<u8>(), 0..100)).prop_map(
            |(log, digest, size, offset, bytes)| {
                frame::PutSnapshotChunk {
                    log,
                    digest,
                    size,
                    offset,
                    bytes: BoundedBytes::new(bytes).expect("few"),
                }
                .into()
            }
        ),
        (log(), digest(), any::<u64>(), any::<u32>()).prop_map(|(log, digest, offset, length)| {
            frame::GetSnapshotChunk { log, digest, offset, length }.into()
        }),
        (log(), digest()).prop_map(|(log, snapshot)| frame::SubscribeFrom { log, snapshot }.into()),
    ]
}

fn relay_frame() -> impl Strategy<Value = RelayFrame> {
    let reason = prop::sample::select(vec![
        StubReason::Own,
        StubReason::NotAddressed,
        StubReason::Acked,
        StubReason::Expired,
    ]);
    let stub = (digest(), reason).prop_map(|(digest, reason)| Stub { digest, reason });
    prop_oneof![
        (digest(), key(), any::<u64>()).prop_map(|(challenge, relay, now)| {
            frame::Greeting {
                challenge,
                relay,
                versions: (1, 1),
                capabilities: Bounded::default(),
                now,
            }
            .into()
        }),
        (prop::sample::select(ErrorCode::ALL), proptest::option::of(head()), any::<u64>())
            .prop_map(|(code, head, n)| {
                let failure =
                    Failure { head, retry_after_ms: Some(n), count: Some(n), ..Failure::new(code) };
                frame::Error::from(failure).into()
            }),
        (log(), any::<u64>(), any::<bool>(), head()).prop_map(|(log, seq, duplicate, head)| {
            frame::Appended { log, seq, duplicate, head }.into()
        }),
        (log(), any::<u64>(), any::<u64>(), entry()).prop_map(|(log, seq, at, entry)| {
            frame::Entry {
                log,
                seq,
                at,
                header: entry.header,
                body: entry.body,
                signature: entry.signature,
                recipients: entry.recipients,
                totals_kind: entry.totals_kind,
            }
            .into()
        }),
        (log(), any::<u64>(), vec(stub, 0..20)).prop_map(|(log, seq, stubs)| {
            frame::Stubs { log, seq, stubs: Bounded::new(stubs).expect("few") }.into()
        }),
        (log(), head()).prop_map(|(log, head)| frame::Drained { log, head }.into()),
        Just(frame::Superseded {}.into()),
    ]
}

proptest! {
    #[test]
    fn a_header_survives(header in header()) {
        prop_assert_eq!(header.encode().decode(), Ok(header));
    }

    #[test]
    fn a_control_body_survives_and_has_one_spelling(control in control()) {
        let bytes = control.encode();
        prop_assert_eq!(Control::decode(&bytes), Ok(control));
        let mut longer = bytes.clone();
        longer.push(0xc0);
        prop_assert!(Control::decode(&longer).is_err());
    }

    #[test]
    fn a_device_frame_survives(request in any::<u32>(), frame in client_frame()) {
        let decoded = decode_client(&encode_client(request, &frame)).expect("an envelope");
        prop_assert_eq!(decoded.request, request);
        prop_assert_eq!(decoded.frame, Ok(frame));
    }

    #[test]
    fn a_relay_frame_survives(request in any::<u32>(), frame in relay_frame()) {
        let decoded = decode_relay(&encode_relay(request, &frame)).expect("an envelope");
        prop_assert_eq!(decoded.request, request);
        prop_assert_eq!(decoded.frame, Ok(frame));
    }

    #[test]
    fn a_cut_frame_is_refused(frame in client_frame(), cut in any::<prop::sample::Index>()) {
        let bytes = encode_client(7, &frame);
        let cut = &bytes[..cut.index(bytes.len())];
        let refused = match decode_client(cut) {
            Ok(envelope) => envelope.frame.is_err(),
            Err(_) => true,
        };
        prop_assert!(refused);
    }

    #[test]
    fn random_bytes_make_no_decoder_panic(bytes in vec(any::<u8>(), 0..600)) {
        let _ = decode_client(&bytes);
        let _ = decode_relay(&bytes);
        let _ = Control::decode(&bytes);
        let _ = KeyBody::decode(&bytes);
        let _ = HeaderBytes::from_slice(&bytes).map(|header| header.decode());
    }

    #[test]
    fn a_key_body_survives(
        scope in any::<[u8; 16]>(),
        epoch in any::<u32>(),
        keys in vec((key(), any::<[u8; 32]>(), vec(any::<u8>(), 0..160)), 0..9),
    ) {
        let keys = keys
            .into_iter()
            .map(|(recipient, enc, ciphertext)| SealedKey {
                recipient,
                enc,
                ciphertext: BoundedBytes::new(ciphertext).expect("short"),
            })
            .collect();
        let body = KeyBody { scope: Scope(scope), epoch, keys: Bounded::new(keys).expect("few") };
        let bytes = body.encode().expect("small");
        prop_assert_eq!(KeyBody::decode(&bytes), Ok(body));
    }

    #[test]
    fn an_ack_set_agrees_with_a_plain_set(
        inserts in vec((1_u64..200, 0_u64..12), 0..60),
    ) {
        let mut set = AckSet::new();
        let mut plain = std::collections::BTreeSet::new();
        for (first, more) in inserts {
            let last = first + more;
            let new: Vec<u64> =
                set.insert(first, last).into_iter().flat_map(|(a, b)| a..=b).collect();
            let expected: Vec<u64> =
                (first..=last).filter(|seq| plain.insert(*seq)).collect();
            prop_assert_eq!(new, expected);
            for (a, b) in set.ranges().windows(2).map(|w| (w[0], w[1])) {
                prop_assert!(a.1 + 1 < b.0, "ranges touch");
            }
            prop_assert!(set.ranges().first().is_none_or(|r| r.0 > set.floor() + 1));
        }
        for seq in 1..250 {
            prop_assert_eq!(set.contains(seq), plain.contains(&seq));
        }
        prop_assert_eq!(AckSet::from_stored(set.floor(), &set.stored_ranges()), set.clone());
        let mut copy = AckSet::new();
        copy.merge(&set.to_wire());
        prop_assert_eq!(copy, set);
    }
}

#[test]
fn extreme_ack_ranges_do_not_overflow() {
    let mut set = AckSet::new();
    assert_eq!(set.insert(0, 0), vec![]);
    assert_eq!(set.insert(5, 4), vec![]);
    assert_eq!(set.insert(SEQ_MAX - 1, u64::MAX), vec![(SEQ_MAX - 1, SEQ_MAX)]);
    assert_eq!(set.insert(0, u64::MAX), vec![(1, SEQ_MAX - 2)]);
    assert_eq!(set.floor(), SEQ_MAX);
    assert_eq!(AckSet::up_to(u64::MAX).floor(), SEQ_MAX);
    assert_eq!(set.insert(1, u64::MAX), vec![]);
}

#[test]
fn an_unknown_field_is_ignored_and_an_unknown_type_keeps_its_request_id() {
    // [9, 5, {"later": [1, {"x": nil}]}]
    let later = [&[0x93, 9, 5, 0x81, 0xa5][..], b"later", &[0x92, 1, 0x81, 0xa1, b'x', 0xc0]];
    let envelope = decode_client(&later.concat()).expect("an envelope");
    assert_eq!(envelope.frame, Ok(frame::Ping {}.into()));

    let unknown = decode_client(&[0x93, 100, 6, 0x80]).expect("an envelope");
    assert_eq!((unknown.request, unknown.frame), (6, Err(DecodeError::UnknownFrame)));
}

#[test]
fn a_claimed_length_is_not_believed() {
    // A batch that claims four thousand million entries, and one that claims 257.
    for claim in [&[0xdd, 0xff, 0xff, 0xff, 0xff][..], &[0xdc, 0x01, 0x01]] {
        let bytes = [&[0x93, 5, 1, 0x81, 0xa7][..], b"entries", claim].concat();
        let envelope = decode_client(&bytes).expect("an envelope");
        assert_eq!(envelope.frame, Err(DecodeError::TooLong));
    }
}

#[test]
fn an_unknown_field_may_nest_without_end_and_costs_no_stack() {
    let mut bytes = [&[0x93, 9, 5, 0x81, 0xa1][..], b"x"].concat();
    bytes.extend(std::iter::repeat_n(0x91, 100_000));
    assert_eq!(decode_client(&bytes).expect("an envelope").frame, Err(DecodeError::Malformed));
    bytes.push(0xc0);
    assert_eq!(decode_client(&bytes).expect("an envelope").frame, Ok(frame::Ping {}.into()));
}

#[test]
fn a_header_has_the_length_that_the_document_says() {
    assert_eq!(HEADER_BYTES, 1 + 16 + 32 + 8 + 32 + 1 + 33 + 8 + 8 + 32 + 32);
}

#[test]
fn a_printed_frame_shows_no_body_token_or_text() {
    let text = || BoundedText::new("planted");
    let frames: [ClientFrame; 2] = [
        frame::SetPushToken {
            platform: text().expect("short"),
            token: text().and_then(|t| BoundedText::new(&*t)),
        }
        .into(),
        frame::PutSnapshotChunk {
            log: LogId::ZERO,
            digest: Digest::ZERO,
            size: 7,
            offset: 0,
            bytes: BoundedBytes::new(b"planted".to_vec()).expect("few"),
        }
        .into(),
    ];
    let entry = frame::Entry {
        log: LogId::ZERO,
        seq: 1,
        at: 1,
        header: HeaderBytes([0; HEADER_BYTES]),
        body: Body::copy_from(b"planted"),
        signature: None,
        recipients: Bounded::default(),
        totals_kind: text(),
    };
    for printed in [format!("{frames:?}"), format!("{entry:?}")] {
        assert!(!printed.contains("planted"), "{printed}");
        assert!(!printed.contains("112, 108, 97"), "{printed}");
    }
}
