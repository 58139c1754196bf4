//! Requests that are well-formed and wrong, or too many: a typed answer each, and nothing appended.

use sealwire_client::entry::Signed;
use sealwire_protocol::bounded::{Bounded, BoundedBytes, BoundedText};
use sealwire_protocol::frame::{
    Ack, AckState, Append, AppendBatch, CreateTotals, GetSnapshotChunk, GetVaultToken, Grant,
    JoinTotals, LeaveTotals, ListMembers, ListSnapshots, Ping, PutSnapshotChunk, Subscribe,
    SubscribeFrom, Unsubscribe,
};
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::limits::{
    BATCH_ENTRIES_MAX, BODY_BYTES_MAX, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_REQUESTS_MAX,
};
use sealwire_protocol::{
    AckSet, Body, ClientFrame, Control, DeviceKey, Digest, EntryIn, ErrorCode, Head, Kind, LogId,
    LogType, RelayFrame,
};

use crate::support::device::{Device, together};
use crate::support::on_both_databases;
use crate::support::place::Database;
use crate::support::world::World;

/// Frames that name no log, and `ListLogs`, which tells what comes after any id.
const ABOUT_NO_LOG: [&str; 6] =
    ["Authenticate", "ListLogs", "Ping", "Grant", "CreateTotals", "SetPushToken"];

on_both_databases!(
    a_log_of_others_is_no_log_in_every_frame,
    an_entry_that_is_not_what_it_says_is_refused,
    a_control_entry_that_is_not_allowed_is_refused,
    a_cursor_that_was_never_given_out_is_refused,
    more_requests_than_may_be_unanswered_are_refused_and_the_rest_stands,
    more_bytes_than_may_be_unanswered_are_refused_and_the_rest_stands,
    what_is_too_large_is_refused,
    what_this_relay_does_not_serve_is_refused,
);

async fn a_log_of_others_is_no_log_in_every_frame(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(3).await;
    let mut stranger = devices.pop().expect("three devices");
    let group = together(&mut devices).await.log;
    let owner = &mut devices[0];
    let found = Control::Found { log_type: LogType::Vault, random: [1; 32], join_key: None };
    let vault = owner.control(LogId::ZERO, &found).await.expect("founded").log;
    let Ok(RelayFrame::Joined(totals)) = owner.request(CreateTotals {}).await else {
        panic!("no totals group was made");
    };
    let mut imagined = group;
    imagined.0[0] ^= 1;
    for log in [group, vault, totals.log, imagined] {
        for frame in frames_about(&mut stranger, log) {
            // Whoever knows the id of a totals group may join it.
            if log == totals.log && matches!(frame, ClientFrame::JoinTotals(_)) {
                continue;
            }
            let name = frame.name();
            assert_eq!(stranger.refusal(frame).await, ErrorCode::NoSuchLog, "{name} of {log:?}");
        }
    }
    stranger.request(Ping {}).await.expect("a heartbeat");
    // Nothing was appended, acked away or ended, and the members notice nothing.
    for log in [vault, totals.log] {
        assert_eq!(world.stored(log).await.head.seq, 1);
    }
    let appended = devices[0].append(group, b"undisturbed").await;
    assert_eq!(appended.seq, 3);
    devices[1].read_to(group, appended.seq).await;
    assert_eq!(devices[1].view(group).bodies(), [b"undisturbed"]);
}

/// One frame of every type that names a log.
fn frames_about(device: &mut Device, log: LogId) -> Vec<ClientFrame> {
    let kind = if log.is_totals() { Kind::Totals } else { Kind::Ring };
    let mut entry = device.sign(log, kind, &[], b"let me in").entry;
    if log.is_totals() {
        (entry.signature, entry.totals_kind) = (None, BoundedText::new("expense"));
    }
    let entries = Bounded::new(vec![entry.clone()]).expect("one");
    let state = AckState { incarnation: device.incarnation(), acked: AckSet::up_to(1).to_wire() };
    let (digest, bytes) = (Digest([4; 32]), BoundedBytes::new(b"?".to_vec()).expect("short"));
    let frames: Vec<ClientFrame> = vec![
        Subscribe { log, cursor: None, acked: Some(state.clone()) }.into(),
        Unsubscribe { log }.into(),
        Append { entry }.into(),
        AppendBatch { entries }.into(),
        Ack { log, state }.into(),
        ListMembers { log }.into(),
        JoinTotals { log }.into(),
        LeaveTotals { log }.into(),
        GetVaultToken { log }.into(),
        ListSnapshots { log }.into(),
        PutSnapshotChunk { log, digest, size: 1, offset: 0, bytes }.into(),
        GetSnapshotChunk { log, digest, offset: 0, length: 1 }.into(),
        SubscribeFrom { log, snapshot: digest }.into(),
    ];
    for (_, name) in ClientFrame::TABLE {
        let is_here = frames.iter().any(|frame| frame.name() == *name);
        assert!(is_here != ABOUT_NO_LOG.contains(name), "{name} names a log, or does not");
    }
    frames
}

async fn an_entry_that_is_not_what_it_says_is_refused(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let other = devices[1].found().await.log;
    let [device, bystander] = devices.as_mut_slice() else { panic!("two devices") };
    let stranger = DeviceKey([9; 32]);
    let addressed =
        |to: DeviceKey| move |device: &mut Device| device.sign(log, Kind::Ring, &[to], b"x");
    let plain = |device: &mut Device| device.sign(log, Kind::Ring, &[], b"x");
    let control = |device: &mut Device| device.sign(log, Kind::Control, &[], b"x");
    let key = |device: &mut Device| device.sign(log, Kind::Key, &[], b"x");
    let elsewhere = |device: &mut Device| device.sign(other, Kind::Ring, &[], b"x");
    let leave =
        |device: &mut Device| device.sign(log, Kind::Control, &[], &Control::Leave.encode());
    type Make<'a> = Box<dyn Fn(&mut Device) -> Signed + 'a>;
    type Spoil = fn(&mut EntryIn);
    let nothing: Spoil = |_| {};
    let cases: Vec<(&str, Make<'_>, Spoil, ErrorCode)> = vec![
        ("version", Box::new(plain), |e| e.header.0[0] = 2, ErrorCode::BadHeader),
        ("kind", Box::new(plain), |e| e.header.0[89] = 77, ErrorCode::BadHeader),
        ("sender", Box::new(plain), |e| e.header.0[20] ^= 1, ErrorCode::BadHeader),
        ("count 0", Box::new(plain), |e| set_count(&mut e.header, 0), ErrorCode::BadHeader),
        ("count", Box::new(plain), |e| set_count(&mut e.header, 99), ErrorCode::OutOfOrder),
        (
            "last count",
            Box::new(plain),
            |e| set_count(&mut e.header, u64::MAX),
            ErrorCode::BadHeader,
        ),
        ("prev", Box::new(plain), |e| e.header.0[60] ^= 1, ErrorCode::Conflict),
        ("first log", Box::new(plain), |e| e.header.0[1..17].fill(0), ErrorCode::BadHeader),
        ("totals", Box::new(plain), |e| e.header.0[89] = 16, ErrorCode::Unsupported),
        ("body", Box::new(plain), |e| e.body = Body::copy_from(b"y"), ErrorCode::BadBody),
        ("audience", Box::new(plain), |e| e.header.0[90] = 1, ErrorCode::BadAudience),
        (
            "recipients",
            Box::new(addressed(bystander.key())),
            |e| e.recipients = Bounded::default(),
            ErrorCode::BadAudience,
        ),
        ("no member", Box::new(addressed(stranger)), nothing, ErrorCode::BadAudience),
        ("unsigned", Box::new(plain), |e| e.signature = None, ErrorCode::BadSignature),
        ("control", Box::new(control), nothing, ErrorCode::BadControl),
        ("key", Box::new(key), nothing, ErrorCode::BadControl),
        ("forged", Box::new(leave), spoil_signature, ErrorCode::BadSignature),
        ("foreign log", Box::new(elsewhere), nothing, ErrorCode::NoSuchLog),
    ];
    for (what, make, spoil, expected) in cases {
        let before = device.view_mut(log).own;
        let mut entry = make(device).entry;
        device.view_mut(log).own = before;
        spoil(&mut entry);
        assert_eq!(device.refusal(Append { entry }).await, expected, "{what}");
    }
    // Nothing of it has left a trace.
    let next = device.append(log, b"true").await;
    assert_eq!(next.seq, 3);
    bystander.read_to(log, 3).await;
    assert_eq!(bystander.view(log).bodies(), [b"true"]);
}

async fn a_control_entry_that_is_not_allowed_is_refused(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let group = together(&mut devices).await;
    let [device, other] = devices.as_mut_slice() else { panic!("two devices") };
    device.read_to(group.log, 2).await;
    let (me, them) = (device.key(), other.key());
    let signature = group.seed.admit(group.log, me);
    let vault = Control::Found { log_type: LogType::Vault, random: [1; 32], join_key: None };
    let head = device.view(group.log).head().expect("read");
    let cases = [
        (Control::Join { signature }, ErrorCode::AlreadyMember),
        (Control::Revoke { device: me, join_key: None }, ErrorCode::BadControl),
        (vault, ErrorCode::BadHeader),
        (Control::Enrol { device: them, signature }, ErrorCode::BadControl),
        (Control::TotalsFound { creator: me, at: 1 }, ErrorCode::BadControl),
        (Control::TotalsJoin { device: me, at: 1 }, ErrorCode::BadControl),
        (Control::TotalsLeave { device: them }, ErrorCode::BadControl),
        (Control::SnapshotOpened { digest: Digest([1; 32]) }, ErrorCode::BadControl),
        (
            Control::Snapshot { head, digest: Digest([1; 32]), size: 1, chunks: 1 },
            ErrorCode::BadControl,
        ),
    ];
    for (control, expected) in cases {
        let before = device.view(group.log).own;
        let failure = device.control(group.log, &control).await.expect_err("refused");
        assert_eq!(failure.code, expected, "{}", control.name());
        device.view_mut(group.log).own = before;
    }
    assert_eq!(device.append(group.log, b"still a member").await.seq, 3);
}

async fn a_cursor_that_was_never_given_out_is_refused(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let [device, writer] = devices.as_mut_slice() else { panic!("two devices") };
    let end = writer.append(log, b"the end").await.head;
    let forked = Digest([3; 32]);
    let cursors = [
        Head { seq: end.seq + 1, ..end },
        Head { seq: u64::MAX, ..end },
        Head { chain: forked, ..end },
        Head { seq: 1, chain: forked, ..end },
    ];
    for cursor in cursors {
        let frame = Subscribe { log, cursor: Some(cursor), acked: None };
        let failure = device.request(frame).await.expect_err("refused");
        assert_eq!(failure.code, ErrorCode::HistoryChanged, "{cursor:?}");
        assert_eq!(failure.head, Some(end));
    }
    device.follow(log).await;
}

async fn more_requests_than_may_be_unanswered_are_refused_and_the_rest_stands(database: Database) {
    const SENT: usize = IN_FLIGHT_REQUESTS_MAX * 4;
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let [device, reader] = devices.as_mut_slice() else { panic!("two devices") };
    let entries: Vec<Signed> = (0..SENT)
        .map(|number| device.sign(log, Kind::Ring, &[], format!("{number}").as_bytes()))
        .collect();
    let requests: Vec<u32> = entries
        .iter()
        .map(|signed| device.wire().queue(&Append { entry: signed.entry.clone() }.into()))
        .collect();
    device.wire().flush().await.expect("sent");
    let mut refused = 0;
    for request in requests {
        match device.answer(request).await {
            Ok(RelayFrame::Appended(_)) => {}
            // Behind one that was refused, the next counts come too early.
            Err(failure) if failure.code == ErrorCode::OutOfOrder => {}
            Err(failure) => {
                assert_eq!(failure.code, ErrorCode::TooManyInFlight);
                assert!(failure.retry_after_ms.is_some());
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 0, "{SENT} requests at once were all taken");
    // What was refused is sent again, and all of it is there once and in order.
    for signed in &entries {
        device.send_signed(signed).await.expect("appended");
    }
    let end = 2 + SENT as u64;
    reader.read_to(log, end).await;
    let expected: Vec<Vec<u8>> = (0..SENT).map(|number| format!("{number}").into_bytes()).collect();
    assert_eq!(reader.view(log).bodies(), expected);
}

async fn more_bytes_than_may_be_unanswered_are_refused_and_the_rest_stands(database: Database) {
    let world = World::start(database).await;
    let mut device = world.device(1).await;
    let log = device.found().await.log;
    let body = vec![3; BODY_BYTES_MAX];
    let count = 3 * IN_FLIGHT_BYTES_MAX / BODY_BYTES_MAX;
    let entries: Vec<Signed> =
        (0..count).map(|_| device.sign(log, Kind::Ring, &[], &body)).collect();
    let requests: Vec<u32> = entries
        .iter()
        .map(|signed| device.wire().queue(&Append { entry: signed.entry.clone() }.into()))
        .collect();
    for request in requests {
        if let Err(failure) = device.answer(request).await {
            let code = failure.code;
            assert!(matches!(code, ErrorCode::TooManyInFlight | ErrorCode::OutOfOrder), "{code:?}");
        }
    }
    for signed in &entries {
        device.send_signed(signed).await.expect("appended");
    }
    assert_eq!(world.stored(log).await.head.seq, 1 + count as u64);
}

async fn what_is_too_large_is_refused(database: Database) {
    let world = World::start(database).await;
    let mut device = world.device(1).await;
    let log = device.found().await.log;
    let before = device.view(log).own;
    let large = device.sign(log, Kind::Bulk, &[], &vec![1; BODY_BYTES_MAX]).entry;
    let entries = Bounded::new(vec![large.clone(); 5]).expect("few");
    assert_eq!(device.refusal(AppendBatch { entries }).await, ErrorCode::TooLarge);
    // The types that encode a frame refuse longer ones, so these are written by hand.
    let longer = raw_entry(&large, &vec![1; BODY_BYTES_MAX + 1]);
    let one = [&[0x93, 4, 51, 0x81, 0xa5][..], b"entry", &longer].concat();
    assert_eq!(refusal_of(&mut device, 51, one).await, ErrorCode::TooLarge);
    let count = (BATCH_ENTRIES_MAX as u16 + 1).to_be_bytes();
    let entries = raw_entry(&large, b"").repeat(BATCH_ENTRIES_MAX + 1);
    let many = [&[0x93, 5, 52, 0x81, 0xa7][..], b"entries", &[0xdc], &count, &entries].concat();
    assert_eq!(refusal_of(&mut device, 52, many).await, ErrorCode::TooLarge);
    device.view_mut(log).own = before;
    device.append(log, &vec![1; BODY_BYTES_MAX]).await;
}

async fn what_this_relay_does_not_serve_is_refused(database: Database) {
    let world = World::start(database).await;
    let mut device = world.device(1).await;
    let log = device.found().await.log;
    let frames: [ClientFrame; 2] = [ListSnapshots { log }.into(), GetVaultToken { log }.into()];
    for frame in frames {
        let name = frame.name();
        assert_eq!(device.refusal(frame).await, ErrorCode::Unsupported, "{name}");
    }
    device.send(Grant { bytes: u64::MAX }).await;
    device.send(Grant { bytes: u64::MAX }).await;
    device.request(Ping {}).await.expect("a heartbeat");
}

fn set_count(header: &mut HeaderBytes, count: u64) {
    header.0[49..57].copy_from_slice(&count.to_be_bytes());
}

fn spoil_signature(entry: &mut EntryIn) {
    if let Some(signature) = &mut entry.signature {
        signature.0[0] ^= 1;
    }
}

/// An entry's MessagePack, with any body.
fn raw_entry(entry: &EntryIn, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    let header: &[u8] = &entry.header.0;
    [&[0x83, 0xa6][..], b"header", &[0xc4, 203], header, &[0xa4], b"body", &[0xc6], &length, body]
        .concat()
        .into_iter()
        .chain([&[0xa9][..], b"signature", &[0xc4, 64], &[0; 64]].concat())
        .collect()
}

/// The code with which bytes under this request id are refused.
async fn refusal_of(device: &mut Device, request: u32, bytes: Vec<u8>) -> ErrorCode {
    device.wire().queue_bytes(bytes);
    device.answer(request).await.expect_err("refused").code
}
