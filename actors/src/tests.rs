//! Promises of the actors, kept over a store in memory: no socket, no database, no waiting for time.

mod bounds;
mod device;
mod doorbells;
mod recovery;
mod retention;
mod totals;
mod unlucky;
mod vaults;

use std::sync::Arc;

use sealwire_protocol::ack::AckWire;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::frame::{self, MembershipState, StubReason};
use sealwire_protocol::signing::device_key;
use sealwire_protocol::{Control, DeviceKey, Digest, ErrorCode, Head, Kind, LogId, RelayFrame};

use crate::fakes::{MemoryStore, Mishap};
use crate::log::{AckRequest, LogMessage};
use crate::ports::{Store, StoreError};
use device::{Device, Group, Item, Reading, World, code};

async fn two_in_a_group(world: &World) -> (Device, Device, Group) {
    let mut alice = Device::connected(1, world).await;
    let group = alice.found().await;
    let mut bob = Device::connected(2, world).await;
    bob.join(&group).await;
    (alice, bob, group)
}

#[tokio::test]
async fn an_entry_reaches_every_other_member_once_and_in_order() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    bob.drain(&mut reading).await;
    for n in 0..50_u8 {
        alice.say(group.id, &[n]).await;
    }
    while reading.seq < 52 {
        reading.take(&bob.next_content().await);
    }
    let mut expected = vec![Item::Control("found"), Item::Control("join")];
    expected.extend((0..50_u8).map(|n| Item::Body(vec![n])));
    assert_eq!(reading.items, expected);
}

#[tokio::test]
async fn a_late_reader_catches_up_to_exactly_what_a_live_one_saw() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    for n in 0..600_u16 {
        alice.say(group.id, &n.to_be_bytes()).await;
    }
    bob.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    let head = bob.drain(&mut reading).await;
    assert_eq!(head.seq, 602);
    let bodies = reading.items.iter().filter(|item| matches!(item, Item::Body(_))).count();
    assert_eq!(bodies, 600);
    // And from a cursor on, only what is after it.
    alice.say(group.id, b"later").await;
    bob.connect(&world).await;
    bob.subscribe(group.id, Some(head)).await.expect("subscribed");
    bob.drain(&mut reading).await;
    assert_eq!(reading.items.last(), Some(&Item::Body(b"later".to_vec())));
}

#[tokio::test]
async fn the_author_gets_a_stub_and_others_get_what_is_addressed_to_them() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    let mut carol = Device::connected(3, &world).await;
    carol.join(&group).await;
    for device in [&mut alice, &mut bob, &mut carol] {
        device.subscribe(group.id, None).await.expect("subscribed");
    }
    let named = alice.entry(group.id, Kind::Ring, b"for bob", &[bob.id()], Head::NONE);
    alice.append(named).await.expect("appended");
    bob.say(group.id, b"for all").await;
    let expected = [
        (&mut alice, [Item::Stub(StubReason::Own), Item::Body(b"for all".to_vec())]),
        (&mut bob, [Item::Body(b"for bob".to_vec()), Item::Stub(StubReason::Own)]),
        (&mut carol, [Item::Stub(StubReason::NotAddressed), Item::Body(b"for all".to_vec())]),
    ];
    for (device, items) in expected {
        let mut reading = Reading::new(group.id);
        device.send(frame::Ping {}).await;
        while reading.seq < 5 {
            match device.next_content().await {
                RelayFrame::Drained(_) | RelayFrame::Heartbeat(_) => {}
                other => reading.take(&other),
            }
        }
        assert_eq!(reading.items[3..], items);
        // Whoever begins anew is told the same.
        let mut again = Reading::new(group.id);
        device.connect(&world).await;
        device.subscribe(group.id, None).await.expect("subscribed");
        device.drain(&mut again).await;
        assert_eq!(again.items, reading.items);
    }
}

#[tokio::test]
async fn the_same_entry_sent_twice_is_appended_once() {
    let world = World::new().await;
    let (mut alice, _, group) = two_in_a_group(&world).await;
    let entry = alice.entry(group.id, Kind::Ring, b"once", &[], Head::NONE);
    let first = alice.append(entry.clone()).await.expect("appended");
    let second = alice.append(entry.clone()).await.expect("a duplicate is a success");
    assert_eq!((first.seq, first.duplicate), (3, false));
    assert_eq!((second.seq, second.duplicate), (3, true));
    // Also while the first is still on its way to the disk.
    world.store.hold_commits();
    let entry = alice.entry(group.id, Kind::Ring, b"held", &[], Head::NONE);
    let one = alice.send(frame::Append { entry: entry.clone() }).await;
    let two = alice.send(frame::Append { entry }).await;
    world.store.release_commits();
    let one = alice.appended(one).await.expect("appended");
    let two = alice.appended(two).await.expect("appended");
    assert_eq!((one.seq, one.duplicate, two.seq, two.duplicate), (4, false, 4, true));
}

#[tokio::test]
async fn counts_that_lie_are_told_what_is_expected() {
    let world = World::new().await;
    let (mut alice, _, group) = two_in_a_group(&world).await;
    alice.say(group.id, b"two").await;
    let (count, prev) = (alice.count, alice.prev);

    alice.count = count + 5;
    let ahead = alice.entry(group.id, Kind::Ring, b"ahead", &[], Head::NONE);
    let failure = alice.append(ahead).await.expect_err("refused");
    assert_eq!((failure.code, failure.expected), (ErrorCode::OutOfOrder, Some(count)));

    (alice.count, alice.prev) = (count, Digest([9; 32]));
    let forked = alice.entry(group.id, Kind::Ring, b"forked", &[], Head::NONE);
    let failure = alice.append(forked).await.expect_err("refused");
    assert_eq!((failure.code, failure.count), (ErrorCode::Conflict, Some(count - 1)));
    assert_eq!(failure.digest, Some(prev));

    (alice.count, alice.prev) = (count - 1, Digest([9; 32]));
    let other = alice.entry(group.id, Kind::Ring, b"another second", &[], Head::NONE);
    assert_eq!(code(alice.append(other).await), ErrorCode::Conflict);

    (alice.count, alice.prev) = (count, prev);
    alice.say(group.id, b"three").await;
}

#[tokio::test]
async fn nothing_is_answered_or_seen_before_its_commit() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    bob.drain(&mut Reading::new(group.id)).await;
    world.store.hold_commits();
    let entry = alice.entry(group.id, Kind::Ring, b"held", &[], Head::NONE);
    let request = alice.send(frame::Append { entry }).await;
    world.store.commits_held(1).await;
    assert!(alice.nothing_waits() || matches!(alice.next().await, RelayFrame::Membership(_)));
    assert!(bob.nothing_waits());
    world.store.release_commits();
    alice.appended(request).await.expect("appended");
    assert!(matches!(bob.next().await, RelayFrame::Entry(_)));
}

#[tokio::test]
async fn a_failed_commit_is_unavailable_and_the_resend_is_appended_once() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    bob.drain(&mut reading).await;
    let mishaps = [Mishap::Fails(StoreError::Unavailable), Mishap::AnswerLost, Mishap::Panics];
    for (n, mishap) in mishaps.into_iter().enumerate() {
        world.store.next_commits(1, mishap);
        let entry = alice.entry(group.id, Kind::Ring, &[n as u8], &[], Head::NONE);
        let failure = alice.append(entry.clone()).await.expect_err("not answered as appended");
        assert_eq!(failure.code, ErrorCode::Unavailable);
        assert!(failure.retry_after_ms.is_some());
        let appended = alice.append(entry).await.expect("appended at the second try");
        assert_eq!(appended.seq, 3 + n as u64);
        assert_eq!(appended.duplicate, mishap == Mishap::AnswerLost);
    }
    while reading.seq < 5 {
        match bob.next_content().await {
            RelayFrame::Drained(_) => {}
            other => reading.take(&other),
        }
    }
    assert_eq!(reading.items[2..], [0, 1, 2].map(|n| Item::Body(vec![n])));
}

#[tokio::test]
async fn one_poisoned_log_does_not_stop_the_others() {
    let world = World::new().await;
    let (mut alice, _, poisoned) = two_in_a_group(&world).await;
    let mut dave = Device::connected(4, &world).await;
    let healthy = dave.found().await;
    let key = world.store.find_log(poisoned.id).await.expect("a store").expect("a log").key;
    world.store.poison(key);
    world.store.hold_commits();
    let first = alice.entry(poisoned.id, Kind::Ring, b"poison", &[], Head::NONE);
    let second = dave.entry(healthy.id, Kind::Ring, b"fine", &[], Head::NONE);
    let first = alice.send(frame::Append { entry: first }).await;
    let second = dave.send(frame::Append { entry: second }).await;
    world.store.release_commits();
    assert_eq!(code(alice.appended(first).await), ErrorCode::Internal);
    dave.appended(second).await.expect("appended");
}

#[tokio::test]
async fn a_log_that_panics_is_replaced_and_its_readers_notice_only_a_pause() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    bob.drain(&mut reading).await;
    let key = world.store.find_log(group.id).await.expect("a store").expect("a log").key;
    // An entry is on its way to the disk when its log panics: its author is told to come back, and
    // its readers see it all the same.
    world.store.hold_commits();
    let entry = alice.entry(group.id, Kind::Ring, b"in flight", &[], Head::NONE);
    let request = alice.send(frame::Append { entry: entry.clone() }).await;
    world.store.commits_held(1).await;
    world.system.shared.cast_log(key, LogMessage::Panic);
    assert_eq!(code(alice.appended(request).await), ErrorCode::Unavailable);
    world.store.release_commits();
    let appended = alice.append(entry).await.expect("known by now");
    assert_eq!((appended.seq, appended.duplicate), (3, true));
    alice.say(group.id, b"after").await;
    while reading.seq < 4 {
        match bob.next_content().await {
            RelayFrame::Drained(_) => {}
            other => reading.take(&other),
        }
    }
    assert_eq!(
        reading.items[2..],
        [Item::Body(b"in flight".to_vec()), Item::Body(b"after".to_vec())]
    );
}

#[tokio::test]
async fn an_outsider_is_told_what_is_told_of_a_log_that_does_not_exist() {
    let world = World::new().await;
    let (_alice, _, group) = two_in_a_group(&world).await;
    let mut mallory = Device::connected(66, &world).await;
    let absent = LogId([0x80; 16]);
    for log in [group.id, absent] {
        mallory.count = 1;
        mallory.prev = Digest::ZERO;
        let entry = mallory.entry(log, Kind::Ring, b"hello", &[], Head::NONE);
        assert_eq!(code(mallory.append(entry).await), ErrorCode::NoSuchLog);
        assert_eq!(code(mallory.subscribe(log, None).await), ErrorCode::NoSuchLog);
        for request in [
            mallory.send(frame::ListMembers { log }).await,
            mallory.send(frame::Unsubscribe { log }).await,
        ] {
            match mallory.answer_to(request).await {
                RelayFrame::Error(error) => assert_eq!(error.code, ErrorCode::NoSuchLog),
                other => panic!("expected a refusal, not {other:?}"),
            }
        }
        mallory.count = 1;
        mallory.prev = Digest::ZERO;
        let forged = Group { id: log, join: ed25519_dalek::SigningKey::from_bytes(&[7; 32]) };
        let entry = mallory.join_entry(&forged);
        assert_eq!(code(mallory.append(entry).await), ErrorCode::InviteInvalid);
    }
}

#[tokio::test]
async fn a_revoked_device_is_cut_off_told_so_and_never_admitted_again() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    bob.drain(&mut Reading::new(group.id)).await;
    let next = ed25519_dalek::SigningKey::from_bytes(&[201; 32]);
    let revoke = Control::Revoke { device: bob.id(), join_key: Some(device_key(&next)) };
    let entry = alice.control(group.id, &revoke, Head::NONE);
    alice.append(entry).await.expect("revoked");
    loop {
        if let RelayFrame::Membership(membership) = bob.next().await
            && membership.state == MembershipState::Revoked
        {
            assert_eq!(membership.seq, 3);
            break;
        }
    }
    alice.say(group.id, b"without bob").await;
    let entry = bob.entry(group.id, Kind::Ring, b"too late", &[], Head::NONE);
    let failure = bob.append(entry).await.expect_err("refused");
    assert_eq!((failure.code, failure.seq), (ErrorCode::Revoked, Some(3)));
    assert!(bob.nothing_waits());
    let failure = bob.subscribe(group.id, None).await.expect_err("refused");
    assert_eq!((failure.code, failure.seq), (ErrorCode::Revoked, Some(3)));
    let rejoined = Group { id: group.id, join: next };
    let entry = bob.join_entry(&rejoined);
    assert_eq!(code(bob.append(entry).await), ErrorCode::Revoked);
    // The old invitation is dead for everybody.
    let mut carol = Device::connected(3, &world).await;
    let entry = carol.join_entry(&group);
    assert_eq!(code(carol.append(entry).await), ErrorCode::InviteInvalid);
    (carol.count, carol.prev) = (1, Digest::ZERO);
    carol.join(&rejoined).await;
}

#[tokio::test]
async fn a_rotation_must_have_seen_the_newest_removal() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    let before = alice.say(group.id, b"hello").await.head;
    let leave = bob.control(group.id, &Control::Leave, Head::NONE);
    let left = bob.append(leave).await.expect("left");
    let (count, prev) = (alice.count, alice.prev);
    let blind = alice.rotation(group.id, before);
    let failure = alice.append(blind).await.expect_err("refused");
    assert_eq!((failure.code, failure.head), (ErrorCode::Stale, Some(left.head)));
    (alice.count, alice.prev) = (count, prev);
    let rebased = alice.rotation(group.id, left.head);
    let rotated = alice.append(rebased).await.expect("rotated");
    // Another incarnation's head has seen nothing of this one.
    let foreign = Head { incarnation: rotated.head.incarnation + 1, ..rotated.head };
    let (count, prev) = (alice.count, alice.prev);
    let blind = alice.rotation(group.id, foreign);
    assert_eq!(code(alice.append(blind).await), ErrorCode::Stale);
    (alice.count, alice.prev) = (count, prev);
    // Ordinary traffic never makes one fail.
    alice.say(group.id, b"traffic").await;
    let next = alice.rotation(group.id, rotated.head);
    alice.append(next).await.expect("rotated again");
}

#[tokio::test]
async fn a_body_goes_when_its_last_addressee_has_acked() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    let mut carol = Device::connected(3, &world).await;
    carol.join(&group).await;
    let head = alice.say(group.id, b"for both").await.head;
    let key = world.store.find_log(group.id).await.expect("a store").expect("a log").key;
    assert_eq!(world.bodies(key).await, vec![4]);
    for device in [&mut bob, &mut carol] {
        device.subscribe(group.id, None).await.expect("subscribed");
        device.drain(&mut Reading::new(group.id)).await;
    }
    bob.ack(group.id, head.incarnation, head.seq).await;
    // Bob's ack is durable, and Carol's copy still waits.
    world.flush(key).await;
    assert_eq!(world.bodies(key).await, vec![4]);
    carol.ack(group.id, head.incarnation + 1, head.seq).await;
    world.flush(key).await;
    assert_eq!(world.bodies(key).await, vec![4], "an ack of another incarnation frees nothing");
    carol.ack(group.id, head.incarnation, head.seq).await;
    world.flush(key).await;
    assert_eq!(world.bodies(key).await, Vec::<u64>::new());
    bob.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    bob.drain(&mut reading).await;
    assert_eq!(reading.items.last(), Some(&Item::Stub(StubReason::Acked)));
}

#[tokio::test]
async fn an_ack_past_the_head_is_refused_and_frees_nothing() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    let head = alice.say(group.id, b"hello").await.head;
    let key = world.store.find_log(group.id).await.expect("a store").expect("a log").key;
    bob.subscribe(group.id, None).await.expect("subscribed");
    bob.drain(&mut Reading::new(group.id)).await;
    bob.ack(group.id, head.incarnation, head.seq + 1).await;
    assert_eq!(refused_ack(&mut bob, group.id).await, ErrorCode::AckPastHead);
    world.flush(key).await;
    assert_eq!(world.bodies(key).await, vec![3]);
}

async fn refused_ack(device: &mut Device, log: LogId) -> ErrorCode {
    loop {
        if let RelayFrame::Error(error) = device.next().await {
            assert_eq!(error.log, Some(log));
            return error.code;
        }
    }
}

#[tokio::test]
async fn an_ack_frees_nothing_but_what_its_session_has_compared_or_shown() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    let first = alice.say(group.id, b"first").await.head;
    let second = alice.say(group.id, b"second").await.head;
    let key = world.store.find_log(group.id).await.expect("a store").expect("a log").key;
    let acked = AckWire { floor: second.seq, ranges: Bounded::default() };
    let state = frame::AckState { incarnation: second.incarnation, acked };

    // Nothing was compared: the numbers may be those of another history.
    bob.ack(group.id, second.incarnation, second.seq).await;
    assert_eq!(refused_ack(&mut bob, group.id).await, ErrorCode::NotSubscribed);
    for cursor in [None, Some(Head { chain: Digest([1; 32]), ..second })] {
        let acked = Some(state.clone());
        bob.send(frame::Subscribe { log: group.id, cursor, acked }).await;
        world.flush(key).await;
        assert_eq!(world.bodies(key).await, vec![3, 4]);
    }
    // What was compared when history was lost is not taken any more.
    let stale = AckRequest {
        device: bob.id(),
        incarnation: second.incarnation,
        acked: state.acked.clone(),
        losses: Some(1),
    };
    world.system.shared.cast_log(key, LogMessage::Ack(Box::new(stale)));
    world.flush(key).await;
    assert_eq!(world.bodies(key).await, vec![3, 4]);

    // The cursor stands for what is before it.
    let acked = Some(state.clone());
    bob.send(frame::Subscribe { log: group.id, cursor: Some(first), acked }).await;
    world.flush(key).await;
    assert_eq!(world.bodies(key).await, vec![4]);
    // And what has been shown since is the device's to ack.
    bob.connect(&world).await;
    bob.subscribe(group.id, Some(first)).await.expect("subscribed");
    let mut reading = Reading { seq: first.seq, chain: first.chain, items: Vec::new() };
    bob.drain(&mut reading).await;
    bob.ack(group.id, second.incarnation, second.seq).await;
    world.flush(key).await;
    assert_eq!(world.bodies(key).await, Vec::<u64>::new());
}

#[tokio::test]
async fn the_logs_of_a_device_are_listed_to_the_last() {
    let world = World::new().await;
    let mut alice = Device::connected(1, &world).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        (alice.count, alice.prev) = (1, Digest::ZERO);
        let body = Control::Found {
            log_type: sealwire_protocol::LogType::Group,
            random: [ids.len() as u8; 32],
            join_key: Some(device_key(&ed25519_dalek::SigningKey::from_bytes(&[200; 32]))),
        };
        let entry = alice.control(LogId::ZERO, &body, Head::NONE);
        ids.push(alice.append(entry).await.expect("founded").log);
    }
    ids.sort_unstable();
    let listed = |frame| match frame {
        RelayFrame::Logs(frame) => frame.logs.iter().map(|log| log.log).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    for after in 0..=3 {
        let from = (after > 0).then(|| ids[after - 1]);
        let request = alice.send(frame::ListLogs { after: from }).await;
        assert_eq!(listed(alice.answer_to(request).await), ids[after..]);
    }
}

#[tokio::test]
async fn the_same_instance_supersedes_and_a_fifth_instance_is_refused() {
    let world = World::new().await;
    let mut older = Device::connected(1, &world).await;
    let newer = Device::connected(1, &world).await;
    assert!(matches!(older.next().await, RelayFrame::Superseded(_)));
    assert_eq!(older.session().outbox().closing(), Some(CloseReason::Superseded));
    older.disconnect();
    let mut others = Vec::new();
    for instance in 2..=4 {
        let mut device = Device::new(1).instance(instance);
        device.connect(&world).await;
        others.push(device);
    }
    let fifth = Device::new(1).instance(5);
    let greeter = crate::Greeter::new(&world.system).expect("randomness");
    let hello = fifth.hello(&greeter.greeting());
    let rejected = greeter.authenticate(&hello).await.err().expect("refused");
    assert_eq!(rejected.reason, CloseReason::TooManyInstances);
    drop(newer);
    let mut fifth = Device::new(1).instance(5);
    fifth.connect(&world).await;
}

#[tokio::test]
async fn a_replayed_proof_is_worth_nothing_on_another_connection() {
    let world = World::new().await;
    let device = Device::new(1);
    let first = crate::Greeter::new(&world.system).expect("randomness");
    let hello = device.hello(&first.greeting());
    assert!(first.authenticate(&hello).await.is_ok());
    let second = crate::Greeter::new(&world.system).expect("randomness");
    let rejected = second.authenticate(&hello).await.err().expect("refused");
    assert_eq!(rejected.reason, CloseReason::AuthenticationFailed);
}

#[tokio::test]
async fn a_cursor_on_another_chain_or_past_the_head_is_told_that_history_changed() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    let head = alice.say(group.id, b"hello").await.head;
    alice.say(group.id, b"again").await;
    let other = Head { chain: Digest([1; 32]), ..head };
    let past = Head { seq: 99, ..head };
    for cursor in [other, past] {
        let failure = bob.subscribe(group.id, Some(cursor)).await.expect_err("refused");
        assert_eq!(failure.code, ErrorCode::HistoryChanged);
        assert_eq!(failure.head.expect("the relay's head").seq, 4);
    }
    bob.subscribe(group.id, Some(head)).await.expect("subscribed");
}

#[tokio::test]
async fn a_subscription_stands_when_it_cannot_be_begun_anew() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    let head = bob.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    bob.drain(&mut reading).await;
    world.store.fail_reads(true);
    assert_eq!(code(bob.subscribe(group.id, Some(head)).await), ErrorCode::Unavailable);
    world.store.fail_reads(false);
    let snapshot = frame::SubscribeFrom { log: group.id, snapshot: Digest([4; 32]) };
    let request = bob.send(snapshot).await;
    assert!(matches!(
        bob.answer_to(request).await,
        RelayFrame::Error(error) if error.code == ErrorCode::NoSuchSnapshot
    ));
    alice.say(group.id, b"still heard").await;
    reading.take(&bob.next_content().await);
    assert_eq!(reading.items.last(), Some(&Item::Body(b"still heard".to_vec())));

    // A cursor that is not of this history ends it.
    let past = Head { seq: 99, ..head };
    assert_eq!(code(bob.subscribe(group.id, Some(past)).await), ErrorCode::HistoryChanged);
    alice.say(group.id, b"not heard").await;
    assert!(bob.nothing_waits());
}

#[tokio::test]
async fn a_subscription_is_not_disturbed_by_what_happens_in_another_log() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    let mut carol = Device::connected(3, &world).await;
    let other = carol.found().await;
    (bob.count, bob.prev) = (1, Digest::ZERO);
    bob.join(&other).await;
    // While the store is being asked where one log stands, bob is revoked in the other.
    let held = world.store.hold_next_subscription();
    let (request, work) = bob.begin(frame::Subscribe { log: group.id, cursor: None, acked: None });
    let work = tokio::spawn(work);
    held.wait().await;
    let revoke = Control::Revoke { device: bob.id(), join_key: None };
    let entry = carol.control(other.id, &revoke, Head::NONE);
    carol.append(entry).await.expect("revoked");
    held.wait().await;
    work.await.expect("no panic");
    assert!(matches!(bob.answer_to(request).await, RelayFrame::Subscribed(_)));
    // In this one it would be begun on old ground.
    let held = world.store.hold_next_subscription();
    let (request, work) = bob.begin(frame::Subscribe { log: group.id, cursor: None, acked: None });
    let work = tokio::spawn(work);
    held.wait().await;
    let entry = alice.control(group.id, &revoke, Head::NONE);
    alice.append(entry).await.expect("revoked");
    held.wait().await;
    work.await.expect("no panic");
    assert_eq!(code(bob.appended(request).await), ErrorCode::Unavailable);
}

#[tokio::test]
async fn a_device_joins_only_so_many_groups() {
    let world = World::new().await;
    let mut alice = Device::connected(1, &world).await;
    let mut groups = Vec::new();
    for seed in 10..17 {
        let mut founder = Device::connected(seed, &world).await;
        groups.push(founder.found().await);
    }
    for group in &groups[..6] {
        (alice.count, alice.prev) = (1, Digest::ZERO);
        alice.join(group).await;
    }
    (alice.count, alice.prev) = (1, Digest::ZERO);
    let entry = alice.join_entry(&groups[6]);
    let failure = alice.append(entry).await.expect_err("refused");
    assert_eq!((failure.code, failure.limit), (ErrorCode::GroupLimitReached, Some(6)));
    (alice.count, alice.prev) = (2, Digest::ZERO);
}

#[tokio::test]
async fn a_device_that_leaves_and_joins_again_at_once_is_in_no_more_groups() {
    let world = World::new().await;
    let mut bob = Device::connected(2, &world).await;
    let mut groups = Vec::new();
    for seed in 10..17 {
        let mut founder = Device::connected(seed, &world).await;
        groups.push(founder.found().await);
    }
    for group in &groups[1..7] {
        (bob.count, bob.prev) = (1, Digest::ZERO);
        bob.join(group).await;
    }
    let own = &groups[6];
    // Its leave is on its way to the disk when it joins again.
    world.store.hold_commits();
    let leave = bob.control(own.id, &Control::Leave, Head::NONE);
    let left = bob.send(frame::Append { entry: leave }).await;
    world.store.commits_held(1).await;
    let rejoin = bob.join_entry(own);
    let rejoined = bob.send(frame::Append { entry: rejoin.clone() }).await;
    world.store.release_commits();
    bob.appended(left).await.expect("left");
    assert_eq!(code(bob.appended(rejoined).await), ErrorCode::Unavailable);
    // There is one place, and another group has it.
    (bob.count, bob.prev) = (1, Digest::ZERO);
    bob.join(&groups[0]).await;
    // Sent again it is asked like any other join.
    assert_eq!(code(bob.append(rejoin).await), ErrorCode::GroupLimitReached);
    let logs = world.store.memberships(bob.id()).await.expect("a store");
    assert_eq!(logs.len(), 6);
}

#[tokio::test]
async fn a_join_whose_place_was_used_and_given_up_meanwhile_is_told_to_come_back() {
    // A store with several writers: places are kept beside the commits.
    let world = World::over(Arc::new(MemoryStore::with(1, 2))).await;
    let mut phone = Device::connected(2, &world).await;
    let mut tablet = Device::new(2).instance(7);
    tablet.connect(&world).await;
    let mut groups = Vec::new();
    for seed in 10..17 {
        let mut founder = Device::connected(seed, &world).await;
        groups.push(founder.found().await);
    }
    let (sixth, seventh) = (&groups[5], &groups[6]);
    for group in &groups[..5] {
        (phone.count, phone.prev) = (1, Digest::ZERO);
        phone.join(group).await;
    }
    // They are one device: the tablet's entry follows the phone's two.
    (phone.count, phone.prev) = (1, Digest::ZERO);
    let join = phone.join_entry(sixth);
    let leave = phone.control(sixth.id, &Control::Leave, Head::NONE);
    (tablet.count, tablet.prev) = (phone.count, phone.prev);
    let rejoin = tablet.join_entry(sixth);
    // The phone's join is on its way to the disk when a place is kept for the tablet's, which then rests
    // on the way to its log.
    world.store.hold_commits();
    let joined = phone.send(frame::Append { entry: join }).await;
    world.store.commits_held(1).await;
    let kept = world.store.hold_next_reservation();
    let (rejoined, work) = tablet.begin(frame::Append { entry: rejoin.clone() });
    let work = tokio::spawn(work);
    kept.wait().await;
    world.store.release_commits();
    phone.appended(joined).await.expect("joined");
    phone.append(leave).await.expect("left");
    // The place that is free now goes to another group.
    (phone.count, phone.prev) = (1, Digest::ZERO);
    phone.join(seventh).await;
    kept.wait().await;
    work.await.expect("no panic");
    let failure = tablet.appended(rejoined).await.expect_err("refused");
    assert_eq!(failure.code, ErrorCode::Unavailable);
    assert!(failure.retry_after_ms.is_some());
    let logs = world.store.memberships(phone.id()).await.expect("a store");
    assert_eq!(logs.len(), 6);
    // Sent again it is asked like any other join, and a member once there is room.
    assert_eq!(code(tablet.append(rejoin.clone()).await), ErrorCode::GroupLimitReached);
    let leave = phone.control(seventh.id, &Control::Leave, Head::NONE);
    phone.append(leave).await.expect("left");
    assert_eq!(tablet.append(rejoin).await.expect("joined").seq, 4);
}

#[tokio::test]
async fn a_device_that_leaves_a_group_and_joins_it_again_is_a_member_after_a_resend() {
    let world = World::new().await;
    let (_alice, mut bob, group) = two_in_a_group(&world).await;
    world.store.hold_commits();
    let leave = bob.control(group.id, &Control::Leave, Head::NONE);
    let left = bob.send(frame::Append { entry: leave }).await;
    let rejoin = bob.join_entry(&group);
    let rejoined = bob.send(frame::Append { entry: rejoin.clone() }).await;
    world.store.release_commits();
    bob.appended(left).await.expect("left");
    let failure = bob.appended(rejoined).await.expect_err("refused");
    assert_eq!(failure.code, ErrorCode::Unavailable);
    assert!(failure.retry_after_ms.is_some());
    assert_eq!(bob.append(rejoin.clone()).await.expect("joined").seq, 4);
    assert!(bob.append(rejoin).await.expect("known").duplicate);
    bob.subscribe(group.id, None).await.expect("subscribed");
}

#[tokio::test]
async fn bodies_expire_after_thirty_days_and_the_floor_rises_over_them() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    alice.say(group.id, b"old").await;
    let key = world.store.find_log(group.id).await.expect("a store").expect("a log").key;
    world.clock.turn(31 * 24 * 3600 * 1000);
    world.until_async(|| async { world.bodies(key).await.is_empty() }).await;
    let young = alice.say(group.id, b"young").await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    match bob.next_content().await {
        RelayFrame::Floor(floor) => assert_eq!(floor.head.seq, 3),
        other => panic!("expected the floor, not {other:?}"),
    }
    let mut seqs = Vec::new();
    loop {
        match bob.next_content().await {
            RelayFrame::Entry(entry) => seqs.push(entry.seq),
            RelayFrame::Drained(drained) => {
                assert_eq!(drained.head, young.head);
                break;
            }
            other => panic!("expected entries, not {other:?}"),
        }
    }
    assert_eq!(seqs, vec![1, 2, 4], "the control entries below the floor, and what is above it");
}

#[tokio::test]
async fn a_group_ends_when_its_last_member_leaves() {
    let world = World::new().await;
    let mut alice = Device::connected(1, &world).await;
    let group = alice.found().await;
    let leave = alice.control(group.id, &Control::Leave, Head::NONE);
    alice.append(leave).await.expect("left");
    let store: Arc<MemoryStore> = world.store.clone();
    world.until_async(|| async { store.find_log(group.id).await == Ok(None) }).await;
    let entry = alice.entry(group.id, Kind::Ring, b"hello?", &[], Head::NONE);
    assert_eq!(code(alice.append(entry).await), ErrorCode::NoSuchLog);
}

#[tokio::test]
async fn a_named_recipient_must_be_a_member() {
    let world = World::new().await;
    let (mut alice, _, group) = two_in_a_group(&world).await;
    let entry = alice.entry(group.id, Kind::Ring, b"psst", &[DeviceKey([7; 32])], Head::NONE);
    assert_eq!(code(alice.append(entry).await), ErrorCode::BadAudience);
}

#[tokio::test]
async fn a_log_without_work_has_no_actor_and_comes_back_when_it_is_needed() {
    tokio::time::pause();
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    bob.drain(&mut reading).await;
    world.until(|| world.system.registry().active_log_count() == 0).await;
    alice.say(group.id, b"good morning").await;
    reading.take(&bob.next_content().await);
    assert_eq!(reading.items.last(), Some(&Item::Body(b"good morning".to_vec())));
}

#[tokio::test]
async fn a_relay_that_shuts_down_answers_what_is_under_way_and_begins_nothing_new() {
    let world = World::new().await;
    let (mut alice, bob, group) = two_in_a_group(&world).await;
    world.store.hold_commits();
    let entry = alice.entry(group.id, Kind::Ring, b"in time", &[], Head::NONE);
    let first = alice.send(frame::Append { entry }).await;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    let devices = async {
        assert!(matches!(alice.next_content().await, RelayFrame::Draining(_)));
        let entry = alice.entry(group.id, Kind::Ring, b"too late", &[], Head::NONE);
        let late = alice.send(frame::Append { entry }).await;
        let RelayFrame::Error(error) = alice.answer_to(late).await else {
            panic!("nothing new begins");
        };
        let failure = error.failure();
        assert_eq!(failure.code, ErrorCode::Unavailable);
        assert!(failure.retry_after_ms.is_some());
        world.store.release_commits();
        assert!(matches!(alice.answer_to(first).await, RelayFrame::Appended(_)));
        drop((alice, bob));
    };
    tokio::join!(devices, world.system.drain_sessions(deadline));
}

#[tokio::test]
async fn a_group_that_holds_too_much_refuses_its_sender_and_tells_its_readers() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    let mut carol = Device::connected(3, &world).await;
    carol.join(&group).await;
    let body = vec![7; 256 * 1024];
    let mut reading = Reading::new(group.id);
    let refused = loop {
        let (count, prev) = (alice.count, alice.prev);
        let entry = alice.entry(group.id, Kind::Bulk, &body, &[], Head::NONE);
        match alice.append(entry).await {
            Ok(_) => assert!(alice.count < 300, "64 MiB are 256 such bodies"),
            Err(failure) => {
                (alice.count, alice.prev) = (count, prev);
                break failure;
            }
        }
        // Bob reads along and acks nothing.
        while reading.seq < alice.count {
            match bob.next_content().await {
                RelayFrame::Drained(_) => {}
                other => reading.take(&other),
            }
        }
    };
    assert_eq!(refused.code, ErrorCode::Quota);
    assert!(refused.retry_after_ms.is_some());
    loop {
        if let RelayFrame::QuotaReached(marker) = bob.next_content().await {
            assert_eq!(marker.log, group.id);
            break;
        }
    }
    // What must get through still does: a member can leave, and keys can be changed.
    let leave = carol.control(group.id, &Control::Leave, Head::NONE);
    let left = carol.append(leave).await.expect("left");
    let rotation = alice.rotation(group.id, left.head);
    alice.append(rotation).await.expect("rotated");
}

#[tokio::test]
async fn a_batch_is_appended_whole_or_not_at_all() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    bob.drain(&mut reading).await;
    let batch = |entries: Vec<_>| frame::AppendBatch {
        entries: sealwire_protocol::bounded::Bounded::new(entries).expect("few"),
    };
    let good: Vec<_> =
        (0..3_u8).map(|n| alice.entry(group.id, Kind::Ring, &[n], &[], Head::NONE)).collect();
    let request = alice.send(batch(good.clone())).await;
    let first = alice.appended(request).await.expect("appended");
    assert_eq!((first.seq, first.head.seq), (3, 5));
    let request = alice.send(batch(good)).await;
    let again = alice.appended(request).await.expect("a duplicate");
    assert_eq!((again.seq, again.duplicate), (3, true));

    let (count, prev) = (alice.count, alice.prev);
    let fine = alice.entry(group.id, Kind::Ring, b"fine", &[], Head::NONE);
    let stranger = DeviceKey([7; 32]);
    let wrong = alice.entry(group.id, Kind::Ring, b"wrong", &[stranger], Head::NONE);
    let request = alice.send(batch(vec![fine, wrong])).await;
    assert_eq!(code(alice.appended(request).await), ErrorCode::BadAudience);
    (alice.count, alice.prev) = (count, prev);
    alice.say(group.id, b"next").await;
    while reading.seq < 6 {
        reading.take(&bob.next_content().await);
    }
    assert_eq!(reading.items.last(), Some(&Item::Body(b"next".to_vec())));
}

#[tokio::test]
async fn a_session_that_ends_leaves_no_trace() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    bob.disconnect();
    // Also one that ends while its subscription is being begun.
    let mut bob = Device::connected(2, &world).await;
    let subscribe = frame::Subscribe { log: group.id, cursor: None, acked: None };
    let bytes = sealwire_protocol::codec::encode_client(9, &subscribe.into());
    match bob.session().receive(&bytes) {
        crate::Step::Later(work) => drop(work),
        _ => panic!("a subscription asks the store"),
    }
    bob.disconnect();
    alice.disconnect();
    assert_eq!(world.system.registry().session_count(), 0);
    let key = world.store.find_log(group.id).await.expect("a store").expect("a log").key;
    assert!(!world.system.shared.registry.presence(key).is_wanted());
}

#[tokio::test]
async fn a_session_that_panics_leaves_no_trace() {
    let world = World::new().await;
    let (alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    let key = world.store.find_log(group.id).await.expect("a store").expect("a log").key;
    let beating = world.system.shared.heartbeats.sessions();
    world.store.panic_on_reads(key);
    let (_, work) = bob.begin(frame::ListMembers { log: group.id });
    // As its task does: what the session is goes when its work panics.
    let ended = tokio::spawn(async move {
        let bob = bob;
        work.await;
        drop(bob);
    });
    assert!(ended.await.expect_err("no end but this").is_panic());
    assert_eq!(world.system.registry().session_count(), 1);
    assert_eq!(world.system.shared.heartbeats.sessions(), beating - 1);
    assert!(!world.system.shared.registry.presence(key).is_wanted());
    assert!(alice.session().outbox().closing().is_none());
}

#[tokio::test]
async fn a_page_whose_reading_panics_ends_its_session_and_no_other() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    alice.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    alice.drain(&mut reading).await;
    let key = world.store.find_log(group.id).await.expect("a store").expect("a log").key;
    world.store.panic_on_reads(key);
    bob.subscribe(group.id, None).await.expect("subscribed");
    bob.nothing_waits();
    let outbox = bob.session().outbox().clone();
    world.until(|| outbox.closing() == Some(CloseReason::Internal)).await;
    world.store.heal(key);
    assert_eq!(alice.session().outbox().closing(), None);
    let mut bob = Device::connected(2, &world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    bob.drain(&mut reading).await;
}

#[tokio::test]
async fn a_group_ends_a_year_after_its_last_entry_and_its_members_are_told() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    alice.say(group.id, b"see you next year").await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    bob.drain(&mut Reading::new(group.id)).await;
    world.clock.turn(364 * 24 * 3600 * 1000);
    let key = world.store.find_log(group.id).await.expect("a store").expect("a log").key;
    world.until_async(|| async { world.bodies(key).await.is_empty() }).await;
    assert!(world.store.find_log(group.id).await.expect("a store").is_some(), "not yet");
    world.clock.turn(2 * 24 * 3600 * 1000);
    for device in [&mut alice, &mut bob] {
        loop {
            if let RelayFrame::Membership(membership) = device.next().await
                && membership.state == MembershipState::Left
            {
                break;
            }
        }
    }
    assert_eq!(world.store.find_log(group.id).await, Ok(None));
    assert_eq!(code(bob.subscribe(group.id, None).await), ErrorCode::NoSuchLog);
}

#[tokio::test]
async fn a_store_that_cannot_be_read_is_unavailable_until_it_can() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    bob.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    bob.drain(&mut reading).await;
    // The commit is durable, but its answer is lost, and the log cannot be loaded either.
    world.store.next_commits(1, Mishap::AnswerLost);
    world.store.fail_reads(true);
    let entry = alice.entry(group.id, Kind::Ring, b"durable", &[], Head::NONE);
    assert_eq!(code(alice.append(entry.clone()).await), ErrorCode::Unavailable);
    assert_eq!(code(alice.append(entry.clone()).await), ErrorCode::Unavailable);
    assert_eq!(code(alice.subscribe(group.id, None).await), ErrorCode::Unavailable);
    world.store.fail_reads(false);
    // Nobody asks again: the log loads by itself, because somebody listens.
    loop {
        match bob.next_content().await {
            RelayFrame::Drained(drained) => {
                assert_eq!(drained.head.seq, reading.seq);
                break;
            }
            other => reading.take(&other),
        }
    }
    assert_eq!(reading.items.last(), Some(&Item::Body(b"durable".to_vec())));
    let again = alice.append(entry).await.expect("known");
    assert!(again.duplicate);
}

#[tokio::test]
async fn a_device_that_takes_nothing_costs_its_outbox_and_delays_nobody() {
    let world = World::new().await;
    let (mut alice, mut bob, group) = two_in_a_group(&world).await;
    let mut carol = Device::connected(3, &world).await;
    carol.join(&group).await;
    for device in [&mut bob, &mut carol] {
        device.subscribe(group.id, None).await.expect("subscribed");
    }
    let mut reading = Reading::new(group.id);
    bob.drain(&mut reading).await;
    let body = vec![1; 64 * 1024];
    // Carol takes nothing while sixteen times what her outbox holds goes by.
    for n in 0..200_u64 {
        let entry = alice.entry(group.id, Kind::Bulk, &body, &[], Head::NONE);
        alice.append(entry).await.expect("appended");
        while reading.seq < 4 + n {
            match bob.next_content().await {
                RelayFrame::Drained(_) => {}
                other => reading.take(&other),
            }
        }
        assert!(carol.session().outbox().queued_bytes() <= crate::limits::OUTBOX_BYTES_MAX);
    }
    let mut late = Reading::new(group.id);
    while late.seq < 203 {
        match carol.next_content().await {
            RelayFrame::Drained(_) => {}
            other => late.take(&other),
        }
    }
    assert_eq!((late.chain, late.items.len()), (reading.chain, reading.items.len()));
}

#[tokio::test]
async fn a_window_holds_entries_back_until_it_is_granted() {
    let world = World::new().await;
    let (mut alice, _, group) = two_in_a_group(&world).await;
    let mut carol = Device::new(3).window(10_000);
    carol.connect(&world).await;
    carol.join(&group).await;
    carol.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    carol.drain(&mut reading).await;
    for _ in 0..20 {
        alice.say(group.id, &[9; 5_000]).await;
    }
    let mut granted = 0;
    while reading.seq < 23 {
        if carol.nothing_waits() {
            carol.send(frame::Grant { bytes: 6_000 }).await;
            granted += 1;
        }
        match carol.next_content().await {
            RelayFrame::Drained(_) => {}
            other => reading.take(&other),
        }
    }
    assert!(granted > 5, "100 kB do not fit a window of 10 kB");
}
