//! What holds when an answer is lost at the worst moment, and for devices that ask more than they
//! should.

use super::*;
use crate::entry::Weight;
use crate::limits::{ANSWER_BYTES_MAX, IN_FLIGHT_WHOLE_MAX, OUTBOX_BYTES_MAX};
use bytes::Bytes;
use sealwire_protocol::ClientFrame;
use sealwire_protocol::bounded::{BoundedBytes, BoundedText};
use sealwire_protocol::codec::{decode_relay, encode_client};
use sealwire_protocol::limits::{BATCH_ENTRIES_MAX, IN_FLIGHT_REQUESTS_MAX};

fn queued(device: &Device) -> Vec<RelayFrame> {
    let mut frames: Vec<Bytes> = Vec::new();
    device.session().outbox().take(usize::MAX, usize::MAX, &mut frames);
    frames.iter().map(|b| decode_relay(b).expect("frame").frame.expect("known")).collect()
}

fn bodies(device: &Device) -> usize {
    queued(device)
        .iter()
        .filter(|f| matches!(f, RelayFrame::Entry(e) if e.body.as_ref() == b"without bob"))
        .count()
}

#[tokio::test]
async fn a_superseded_session_hears_nothing_after_its_device_was_revoked() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    bob.drain(&mut Reading::new(group.id)).await;
    // The older socket is stuck, so its session cannot end yet.
    let _newer = Device::connected(2, &world).await;
    let revoke = Control::Revoke { device: bob.id(), join_key: None };
    let entry = alice.control(group.id, &revoke, Head::NONE);
    alice.append(entry).await.expect("revoked");
    alice.say(group.id, b"without bob").await;
    assert_eq!(bodies(&bob), 0);
}

#[tokio::test]
async fn a_revocation_whose_answer_was_lost_cuts_off_all_the_same() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    bob.drain(&mut Reading::new(group.id)).await;
    let revoke = Control::Revoke { device: bob.id(), join_key: None };
    let entry = alice.control(group.id, &revoke, Head::NONE);
    world.store.next_commits(1, Mishap::AnswerLost);
    assert_eq!(code(alice.append(entry.clone()).await), ErrorCode::Unavailable);
    assert!(alice.append(entry).await.expect("revoked").duplicate);
    alice.say(group.id, b"without bob").await;
    loop {
        match bob.next().await {
            RelayFrame::Membership(membership) if membership.state == MembershipState::Revoked => {
                break;
            }
            RelayFrame::Entry(entry) => assert_ne!(entry.body.as_ref(), b"without bob"),
            _ => {}
        }
    }
    assert_eq!(bodies(&bob), 0);
}

#[tokio::test]
async fn a_join_whose_answer_was_lost_can_be_used_after_the_resend() {
    let world = World::new().await;
    let mut alice = Device::connected(1, &world).await;
    let group = alice.found().await;
    let mut bob = Device::connected(2, &world).await;
    let entry = bob.join_entry(&group);
    world.store.next_commits(1, Mishap::AnswerLost);
    assert_eq!(code(bob.append(entry.clone()).await), ErrorCode::Unavailable);
    assert!(bob.append(entry).await.expect("joined").duplicate);
    bob.subscribe(group.id, None).await.expect("subscribed");
}

#[tokio::test]
async fn a_leave_whose_answer_was_lost_does_not_keep_its_device_from_joining_again() {
    let world = World::new().await;
    let (_alice, mut bob, group) = two_in_a_group(&world).await;
    // Nobody tells a session of a loss that does not listen to the log.
    let leave = bob.control(group.id, &Control::Leave, Head::NONE);
    world.store.next_commits(1, Mishap::AnswerLost);
    assert_eq!(code(bob.append(leave.clone()).await), ErrorCode::Unavailable);
    assert_eq!(code(bob.append(leave).await), ErrorCode::NoSuchLog);
    let rejoin = bob.join_entry(&group);
    assert_eq!(bob.append(rejoin).await.expect("joined").seq, 4);

    // Also without sending the leave again.
    let leave = bob.control(group.id, &Control::Leave, Head::NONE);
    world.store.next_commits(1, Mishap::AnswerLost);
    assert_eq!(code(bob.append(leave).await), ErrorCode::Unavailable);
    let rejoin = bob.join_entry(&group);
    assert_eq!(code(bob.append(rejoin.clone()).await), ErrorCode::Unavailable);
    assert_eq!(bob.append(rejoin).await.expect("joined").seq, 6);
    bob.subscribe(group.id, None).await.expect("subscribed");
}

#[tokio::test]
async fn a_founding_whose_answer_was_lost_can_be_used_after_the_resend() {
    let world = World::new().await;
    let mut alice = Device::connected(1, &world).await;
    let control = Control::Found {
        log_type: sealwire_protocol::LogType::Group,
        random: [3; 32],
        join_key: Some(device_key(&ed25519_dalek::SigningKey::from_bytes(&[200; 32]))),
    };
    let entry = alice.control(LogId::ZERO, &control, Head::NONE);
    let id = sealwire_protocol::digest::native_log_id(&entry.header);
    world.store.next_commits(1, Mishap::AnswerLost);
    assert_eq!(code(alice.append(entry.clone()).await), ErrorCode::Unavailable);
    assert!(alice.append(entry).await.expect("founded").duplicate);
    alice.subscribe(id, None).await.expect("subscribed");
}

#[tokio::test]
async fn empty_bodies_count_towards_the_quota() {
    let world = World::new().await;
    let (mut alice, _bob, group) = two_in_a_group(&world).await;
    let body = vec![7; 256 * 1024];
    loop {
        let (count, prev) = (alice.count, alice.prev);
        let entry = alice.entry(group.id, Kind::Bulk, &body, &[], Head::NONE);
        if let Err(failure) = alice.append(entry).await {
            assert_eq!(failure.code, ErrorCode::Quota);
            (alice.count, alice.prev) = (count, prev);
            break;
        }
    }
    // 8,192 of them are 2 MiB at 256 bytes each: more than was left, reserve included.
    for _ in 0..32 {
        let entries = (0..256)
            .map(|_| alice.entry(group.id, Kind::Ring, b"", &[], Head::NONE))
            .collect::<Vec<_>>();
        let batch = frame::AppendBatch {
            entries: sealwire_protocol::bounded::Bounded::new(entries).expect("few"),
        };
        let request = alice.send(batch).await;
        if let Err(failure) = alice.appended(request).await {
            assert_eq!(failure.code, ErrorCode::Quota);
            return;
        }
    }
    panic!("8,192 more entries were taken by a full group");
}

#[tokio::test]
async fn a_reader_whose_missing_entries_have_all_gone_is_told_of_the_floor() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    let cursor = alice.say(group.id, b"read").await.head;
    alice.say(group.id, b"missed").await;
    let key = world.store.find_log(group.id).await.expect("a store").expect("a log").key;
    // Bob's page is wanted, but not read before retention has been there.
    bob.send(frame::Subscribe { log: group.id, cursor: Some(cursor), acked: None }).await;
    world.clock.turn(31 * 24 * 3600 * 1000);
    world.until_async(|| async { world.bodies(key).await.is_empty() }).await;
    loop {
        if let RelayFrame::Drained(drained) = bob.next_content().await {
            assert_eq!(drained.head.seq, 4);
            return;
        }
    }
}

#[tokio::test]
async fn a_device_that_reads_no_answers_is_soon_heard_no_further() {
    let world = World::new().await;
    let alice = Device::connected(1, &world).await;
    let ping = encode_client(7, &frame::Ping {}.into());
    let mut heard = 0;
    while !alice.session().outbox().answers_are_full() {
        assert!(matches!(alice.session().receive(&ping), crate::Step::Done));
        heard += 1;
        assert!(heard < 100_000, "answers wait without bound");
    }
    let waiting = alice.session().outbox().queued_bytes();
    assert!(waiting < ANSWER_BYTES_MAX + 1024, "{waiting} bytes wait");
    queued(&alice);
    assert!(!alice.session().outbox().answers_are_full());
}

#[tokio::test]
async fn what_is_beside_the_bodies_counts_while_it_is_unanswered() {
    let world = World::new().await;
    let mut alice = Device::connected(1, &world).await;
    let log = alice.found().await.id;
    world.store.hold_commits();
    let mut batches = Vec::new();
    for _ in 0..IN_FLIGHT_REQUESTS_MAX {
        let entries = (0..BATCH_ENTRIES_MAX)
            .map(|_| alice.entry(log, Kind::Quiet, b"", &[], Head::NONE))
            .collect();
        let batch = frame::AppendBatch { entries: Bounded::new(entries).expect("few") };
        batches.push(alice.send(batch).await);
    }
    // Headers and signatures alone are four megabytes: half of them are too much at once.
    let taken = IN_FLIGHT_WHOLE_MAX / (BATCH_ENTRIES_MAX * (203 + 64));
    let failure = alice.appended(batches[taken]).await.expect_err("refused");
    assert_eq!(failure.code, ErrorCode::TooManyInFlight);
    world.store.release_commits();
    for batch in &batches[..taken] {
        alice.appended(*batch).await.expect("appended");
    }
    world.until(|| world.system.shared.budget.bytes() == 0).await;
}

#[tokio::test]
async fn an_entry_weighs_what_it_carries() {
    let mut alice = Device::new(1);
    let named = [DeviceKey([7; 32]), DeviceKey([8; 32])];
    let entry = alice.entry(LogId::ZERO, Kind::Ring, b"body", &named, Head::NONE);
    let beside = 203 + 64;
    let weight = Weight { bodies: 4, whole: beside + 2 * 32 + 4 };
    assert_eq!(Weight::of(std::slice::from_ref(&entry)), weight);
    assert_eq!(Weight::of(&[entry.clone(), entry]).whole, 2 * weight.whole);
    assert_eq!(Weight::of_payload(4, 2, 5).whole, weight.whole + 5);
}

#[tokio::test]
async fn what_comes_without_a_session_takes_its_share_with_everything_it_carries() {
    let world = World::new().await;
    let mut alice = Device::connected(1, &world).await;
    let (alice_id, bob_id) = (alice.id(), Device::new(2).id());
    let system = &world.system;
    let group = system.create_totals(alice_id).await.expect("created").group;
    system.join_totals(bob_id, group).await.expect("joined");
    let vault = alice.found_vault().await;
    let pushed = alice.entry(vault, Kind::Quiet, b"", &[], Head::NONE);
    world.store.hold_commits();
    let outgoing = crate::totals::Outgoing {
        body: Vec::new(),
        kind: "expense".to_owned(),
        named: Some(vec![bob_id]),
    };
    let budget = &system.shared.budget;
    let requests = async {
        let sent = system.send_totals(alice_id, group, outgoing);
        let pushed = system.push_to_vault(alice_id, Some(vault), vec![pushed]);
        let (sent, pushed) = tokio::join!(sent, pushed);
        (sent.expect("sent").is_some(), pushed.expect("pushed").seq)
    };
    let looking = async {
        world.until(|| budget.bytes() == (203 + 64 + 32 + 7) + (203 + 64)).await;
        world.store.release_commits();
    };
    assert_eq!(tokio::join!(requests, looking).0, (true, 2));
    assert_eq!(budget.bytes(), 0);
}

/// Asks the same again and again and takes nothing, until the device would be heard no further.
async fn is_heard_no_further(world: &World, device: &mut Device, request: ClientFrame) {
    let name = request.name();
    device.connect(world).await;
    let mut heard = 0;
    while !device.session().outbox().answers_are_full() {
        device.send(request.clone()).await;
        device.session().catch_up();
        tokio::task::yield_now().await;
        heard += 1;
        assert!(heard < 8192, "answers to {name} wait without bound");
    }
    let waiting = device.session().outbox().queued_bytes();
    assert!(waiting < ANSWER_BYTES_MAX + OUTBOX_BYTES_MAX, "{waiting} bytes wait after {name}");
}

#[tokio::test]
async fn whatever_a_device_asks_it_is_soon_heard_no_further_if_it_takes_no_answer() {
    let world = World::new().await;
    let (_alice, mut bob, Group { id: log, .. }) = two_in_a_group(&world).await;
    let head = bob.say(log, b"something").await.head;
    let said = bob.entry(log, Kind::Ring, b"again and again", &[], Head::NONE);
    let entries = Bounded::new(vec![said.clone()]).expect("few");
    let nowhere = LogId::totals([1; 16]);
    let past = Head { seq: 999, ..head };
    let acked = AckWire { floor: 999, ranges: Bounded::default() };
    let state = frame::AckState { incarnation: head.incarnation, acked };
    let requests: [ClientFrame; 15] = [
        frame::Subscribe { log, cursor: None, acked: None }.into(),
        frame::Subscribe { log, cursor: Some(head), acked: None }.into(),
        frame::Subscribe { log, cursor: Some(past), acked: None }.into(),
        frame::Unsubscribe { log }.into(),
        frame::ListMembers { log }.into(),
        frame::ListLogs { after: None }.into(),
        frame::Ping {}.into(),
        frame::Append { entry: said }.into(),
        frame::AppendBatch { entries }.into(),
        frame::Ack { log, state: state.clone() }.into(),
        frame::Ack { log: nowhere, state }.into(),
        frame::CreateTotals {}.into(),
        frame::JoinTotals { log: nowhere }.into(),
        frame::LeaveTotals { log: nowhere }.into(),
        frame::SetPushToken { platform: BoundedText::default(), token: None }.into(),
    ];
    for request in requests {
        is_heard_no_further(&world, &mut bob, request).await;
    }

    let mut carol = Device::connected(3, &world).await;
    let log = carol.found_vault().await;
    let digest = Digest::ZERO;
    let bytes = BoundedBytes::default();
    let requests: [ClientFrame; 5] = [
        frame::GetVaultToken { log }.into(),
        frame::ListSnapshots { log }.into(),
        frame::SubscribeFrom { log, snapshot: digest }.into(),
        frame::PutSnapshotChunk { log, digest, size: 1, offset: 1, bytes }.into(),
        frame::GetSnapshotChunk { log, digest, offset: 0, length: 9 }.into(),
    ];
    for request in requests {
        is_heard_no_further(&world, &mut carol, request).await;
    }
}

#[tokio::test]
async fn a_part_that_fails_before_an_earlier_one_is_done_is_answered() {
    let world = World::new().await;
    let (mut alice, _bob, group) = two_in_a_group(&world).await;
    alice.say(group.id, b"warm").await;
    world.store.hold_commits();
    let one = alice.entry(group.id, Kind::Ring, b"1", &[], Head::NONE);
    let one = alice.send(frame::Append { entry: one }).await;
    world.store.commits_held(1).await;
    // The committer goes, while its transaction is still under way.
    let old = world.system.shared.committers.read()[0].clone();
    old.cell().kill();
    world.until(|| old.cell().get_status() == ractor::ActorStatus::Stopped).await;
    let two = alice.entry(group.id, Kind::Ring, b"2", &[], Head::NONE);
    let two = alice.send(frame::Append { entry: two }).await;
    world.store.release_commits();
    // Whether it was appended depends on who came first; that it is answered does not.
    for request in [one, two] {
        if let Err(failure) = alice.appended(request).await {
            assert_eq!(failure.code, ErrorCode::Unavailable);
        }
    }
    alice.connect(&world).await;
    alice.subscribe(group.id, None).await.expect("the log is alive");
}

#[tokio::test]
async fn a_revoked_founder_learns_nothing_by_founding_again() {
    let world = World::new().await;
    let mut alice = Device::connected(1, &world).await;
    let join = ed25519_dalek::SigningKey::from_bytes(&[200; 32]);
    let control = Control::Found {
        log_type: sealwire_protocol::LogType::Group,
        random: [3; 32],
        join_key: Some(device_key(&join)),
    };
    let first = alice.control(LogId::ZERO, &control, Head::NONE);
    let id = sealwire_protocol::digest::native_log_id(&first.header);
    alice.append(first.clone()).await.expect("founded");
    let group = Group { id, join };
    let mut bob = Device::connected(2, &world).await;
    bob.join(&group).await;
    let revoke = Control::Revoke { device: alice.id(), join_key: None };
    let entry = bob.control(id, &revoke, Head::NONE);
    bob.append(entry).await.expect("revoked");
    bob.say(id, b"private activity").await;
    if let Ok(appended) = alice.append(first).await {
        panic!("told the head: seq {}", appended.head.seq);
    }
}

#[tokio::test]
async fn who_writes_one_control_entry_after_the_other_is_told_to_wait() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    let mut written = 0;
    let failure = loop {
        let key = ed25519_dalek::SigningKey::from_bytes(&[written as u8; 32]);
        let head = alice.say(group.id, b"seen").await.head;
        let control = Control::JoinKey { join_key: device_key(&key) };
        let (count, prev) = (alice.count, alice.prev);
        let entry = alice.control(group.id, &control, head);
        match alice.append(entry).await {
            Ok(_) => written += 1,
            Err(failure) => {
                (alice.count, alice.prev) = (count, prev);
                break failure;
            }
        }
        assert!(written <= crate::limits::CONTROL_BURST, "never told to wait");
    };
    assert_eq!(written, crate::limits::CONTROL_BURST);
    assert_eq!(failure.code, ErrorCode::RateLimited);
    assert!(failure.retry_after_ms.is_some());
    // Content goes on, and so does everybody else.
    alice.say(group.id, b"all the same").await;
    let leave = bob.control(group.id, &Control::Leave, Head::NONE);
    bob.append(leave).await.expect("left");
}

#[tokio::test]
async fn who_must_wait_before_joining_again_holds_no_place_meanwhile() {
    let world = World::new().await;
    let mut bob = Device::connected(2, &world).await;
    let mut groups = Vec::new();
    for seed in 10..17 {
        let mut founder = Device::connected(seed, &world).await;
        groups.push(founder.found().await);
    }
    for group in &groups[..5] {
        (bob.count, bob.prev) = (1, Digest::ZERO);
        bob.join(group).await;
    }
    let restless = &groups[5];
    (bob.count, bob.prev) = (1, Digest::ZERO);
    let failure = loop {
        let entry = bob.join_entry(restless);
        if let Err(failure) = bob.append(entry).await {
            break failure;
        }
        let leave = bob.control(restless.id, &Control::Leave, Head::NONE);
        bob.append(leave).await.expect("left");
    };
    assert_eq!(failure.code, ErrorCode::RateLimited);
    assert!(failure.retry_after_ms.is_some());
    (bob.count, bob.prev) = (1, Digest::ZERO);
    bob.join(&groups[6]).await;
}

#[tokio::test]
async fn a_long_log_goes_in_steps_and_nobody_joins_it_meanwhile() {
    let world = World::new().await;
    let mut alice = Device::connected(1, &world).await;
    let group = alice.found().await;
    for _ in 0..33 {
        let entries =
            (0..256).map(|_| alice.entry(group.id, Kind::Quiet, b"", &[], Head::NONE)).collect();
        let batch = frame::AppendBatch { entries: Bounded::new(entries).expect("few") };
        let request = alice.send(batch).await;
        alice.appended(request).await.expect("appended");
    }
    let key = world.store.find_log(group.id).await.expect("a store").expect("a log").key;
    let commits = world.store.commits();
    world.store.fail_reads(true);
    let leave = alice.control(group.id, &Control::Leave, Head::NONE);
    alice.append(leave).await.expect("left");
    // The end waits for the store, and the door is shut.
    world.store.fail_reads(false);
    let mut bob = Device::connected(2, &world).await;
    let entry = bob.join_entry(&group);
    assert_eq!(code(bob.append(entry).await), ErrorCode::InviteInvalid);
    let gone = || async { world.store.load(&[key]).await.expect("a store")[0].is_none() };
    world.until_async(gone).await;
    // The leaving, two floors, and the end of what is left.
    assert!(world.store.commits() - commits >= 4);
}
