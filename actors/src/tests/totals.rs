//! What holds in `totals` groups when answers are lost, and of acks that leave gaps.

use std::time::Duration;

use sealwire_protocol::limits::CHALLENGE_LIFETIME;
use sealwire_protocol::signing::sign;

use super::*;
use crate::limits::{CONTROL_BURST, FAREWELL, ORPHAN_PAUSE};
use crate::passes::NotProved;
use crate::totals::Outgoing;
use crate::totals::payload::PayloadId;
use crate::totals::stream::{PayloadStream, StreamEvent};

const SILENCE: Duration = Duration::from_secs(20);

fn key(seed: u8) -> DeviceKey {
    device_key(&ed25519_dalek::SigningKey::from_bytes(&[seed; 32]))
}

fn payload(kind: &str, body: &[u8], named: Option<Vec<DeviceKey>>) -> Outgoing {
    Outgoing { body: body.to_vec(), kind: kind.to_owned(), named }
}

/// A group of these devices.
async fn group_of(world: &World, members: &[DeviceKey]) -> LogId {
    let system = &world.system;
    let group = system.create_totals(members[0]).await.expect("created").group;
    for member in &members[1..] {
        system.join_totals(*member, group).await.expect("joined");
    }
    group
}

async fn say(world: &World, sender: DeviceKey, group: LogId, body: &[u8]) -> PayloadId {
    let sent = world.system.send_totals(sender, group, payload("expense", body, None)).await;
    sent.expect("sent").expect("kept").id
}

async fn pending(world: &World, device: DeviceKey, group: LogId) -> Vec<Vec<u8>> {
    let page = world.system.pending(device, group).await.expect("read").expect("a member");
    page.iter().map(|payload| payload.body.as_ref().to_vec()).collect()
}

async fn heard(stream: &mut PayloadStream) -> Vec<Vec<u8>> {
    match stream.next(SILENCE).await {
        Some(StreamEvent::Payloads(payloads)) => {
            payloads.iter().map(|payload| payload.body.as_ref().to_vec()).collect()
        }
        Some(
            StreamEvent::GroupsChanged | StreamEvent::RecoveryFetched(_) | StreamEvent::Silence,
        )
        | None => Vec::new(),
    }
}

#[tokio::test]
async fn a_phone_that_leaves_a_group_and_joins_it_at_once_is_told_to_come_back() {
    let world = World::new().await;
    let group = group_of(&world, &[key(1), key(2)]).await;
    world.store.hold_commits();
    let leaving = world.system.leave_totals(key(2), group);
    let joining = async {
        world.store.commits_held(1).await;
        // It is a member still, as far as the store knows: no place is reserved for it.
        let joining = world.system.join_totals(key(2), group);
        let refused = tokio::time::timeout(Duration::from_secs(5), joining).await;
        world.store.release_commits();
        refused.expect("told at once")
    };
    let (left, refused) = tokio::join!(leaving, joining);
    left.expect("left");
    assert_eq!(refused.expect_err("refused").code, ErrorCode::Unavailable);
    world.system.join_totals(key(2), group).await.expect("joined");
}

#[tokio::test(start_paused = true)]
async fn a_group_that_nobody_was_told_of_goes_again() {
    let world = World::new().await;
    world.store.next_commits(1, Mishap::AnswerLost);
    let lost = world.system.create_totals(key(1)).await.expect_err("the answer was lost");
    assert_eq!(lost.code, ErrorCode::Unavailable);
    assert_eq!(world.system.totals_groups(key(1)).await.expect("read").len(), 1);
    tokio::time::sleep(ORPHAN_PAUSE * 3).await;
    assert_eq!(world.system.totals_groups(key(1)).await.expect("read"), []);
}

#[tokio::test]
async fn a_join_whose_answer_was_lost_is_the_same_when_it_is_repeated() {
    let world = World::new().await;
    let group = group_of(&world, &[key(1)]).await;
    let mut changes = world.system.follow_changes(key(1)).await;
    world.store.next_commits(1, Mishap::AnswerLost);
    let lost = world.system.join_totals(key(2), group).await.expect_err("the answer was lost");
    assert_eq!(lost.code, ErrorCode::Unavailable);
    let first = world.system.join_totals(key(2), group).await.expect("joined");
    assert_eq!(world.system.join_totals(key(2), group).await.expect("joined").at, first.at);
    let members =
        world.system.totals_members(key(1), group).await.expect("read").expect("a member");
    assert_eq!(members.len(), 2);
    assert_eq!((members[1].device, members[1].joined_at), (key(2), first.at));
    // Whoever listens has heard of it all the same.
    assert!(matches!(changes.next(SILENCE).await, Some(StreamEvent::GroupsChanged)));
}

#[tokio::test]
async fn who_leaves_and_joins_within_one_millisecond_has_a_new_time_of_joining() {
    let world = World::new().await;
    let group = group_of(&world, &[key(1), key(2)]).await;
    let first = world.system.join_totals(key(2), group).await.expect("a member").at;
    world.system.leave_totals(key(2), group).await.expect("left");
    let second = world.system.join_totals(key(2), group).await.expect("joined").at;
    assert!(second > first, "the clock stands still");
}

#[tokio::test]
async fn a_farewell_is_heard_for_half_a_minute() {
    let world = World::new().await;
    let group = group_of(&world, &[key(1), key(2)]).await;
    world.system.leave_totals(key(2), group).await.expect("left");
    world.clock.turn(FAREWELL.as_millis() as u64 - 1);
    let farewell = || payload("member_left", b"bye", None);
    world.system.send_totals(key(2), group, farewell()).await.expect("heard");
    let other = world.system.send_totals(key(2), group, payload("expense", b"x", None)).await;
    assert_eq!(other.expect_err("refused").code, ErrorCode::NoSuchLog);
    // Entries follow each other by a millisecond at least, so the time of leaving may be a little later.
    world.clock.turn(10);
    let late = world.system.send_totals(key(2), group, farewell()).await;
    assert_eq!(late.expect_err("refused").code, ErrorCode::NoSuchLog);
    assert_eq!(pending(&world, key(1), group).await, [b"bye"]);
}

#[tokio::test]
async fn what_does_not_wait_for_a_member_holds_up_no_floor() {
    let world = World::new().await;
    let group = group_of(&world, &[key(1), key(2), key(3)]).await;
    let log = world.store.find_log(group).await.expect("read").expect("there").key;
    let mut ids = Vec::new();
    for number in 0..40_u8 {
        ids.push(say(&world, key(1), group, &[number]).await);
        say(&world, key(2), group, b"its own").await;
        let to_another = payload("nudge", b"for three", Some(vec![key(3)]));
        world.system.send_totals(key(1), group, to_another).await.expect("sent");
    }
    // All but two, last first.
    let acked: Vec<PayloadId> =
        ids.iter().rev().copied().filter(|id| ![ids[3], ids[7]].contains(id)).collect();
    for ids in acked.chunks(5) {
        assert_eq!(world.system.ack_totals(key(2), ids).await, Ok(ids.len() as u64));
    }
    assert_eq!(pending(&world, key(2), group).await, [[3], [7]]);
    let ranges = async || {
        let records = world.store.load(&[log]).await.expect("read");
        let record = records[0].as_ref().expect("there");
        let member = record.members.iter().find(|it| it.member.device == key(2)).expect("a member");
        member.acked.ranges().len()
    };
    assert_eq!(ranges().await, 2, "one after each payload that stays");
    world.system.ack_totals(key(2), &[ids[3], ids[7]]).await.expect("acked");
    assert_eq!(ranges().await, 0);
    assert_eq!(pending(&world, key(3), group).await.len(), 120);
}

#[tokio::test]
async fn a_stream_that_is_behind_reads_on_from_the_store() {
    let world = World::new().await;
    let group = group_of(&world, &[key(1), key(2)]).await;
    for number in 0..300_u16 {
        say(&world, key(1), group, &number.to_be_bytes()).await;
    }
    let mut stream =
        world.system.follow_group(key(2), group).await.expect("read").expect("a member");
    let mut bodies = Vec::new();
    while bodies.len() < 200 {
        bodies.extend(heard(&mut stream).await);
    }
    // What comes while it is behind, and while the store cannot be read, comes after.
    for number in 300..320_u16 {
        say(&world, key(1), group, &number.to_be_bytes()).await;
    }
    world.store.fail_reads(true);
    let reading = async {
        while bodies.len() < 320 {
            bodies.extend(heard(&mut stream).await);
        }
    };
    let healing = async {
        world.store.read_failed().await;
        world.store.fail_reads(false);
    };
    // In this order: who waits for the failure has to be there before it happens.
    tokio::join!(healing, reading);
    let expected: Vec<Vec<u8>> = (0..320_u16).map(|number| number.to_be_bytes().to_vec()).collect();
    assert_eq!(bodies, expected);
}

#[tokio::test]
async fn a_challenge_is_good_once_and_for_a_minute() {
    let world = World::new().await;
    let signing = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
    let prove = async |challenge: [u8; 32]| {
        let signature = sign(&signing, &challenge);
        world.system.prove(key(1), &challenge, &signature).await
    };
    let challenge = world.system.challenge().expect("randomness");
    assert_eq!(prove(challenge).await, Ok(()));
    assert_eq!(prove(challenge).await, Err(NotProved::Refused));
    // While the store cannot say whether it was used, nothing is said.
    world.store.next_commits(1, Mishap::Fails(StoreError::Unavailable));
    let challenge = world.system.challenge().expect("randomness");
    assert_eq!(prove(challenge).await, Err(NotProved::Unavailable));
    assert_eq!(prove(challenge).await, Ok(()));
    let challenge = world.system.challenge().expect("randomness");
    world.clock.turn(CHALLENGE_LIFETIME.as_millis() as u64);
    assert_eq!(prove(challenge).await, Err(NotProved::Refused));
}

#[tokio::test]
async fn half_way_through_its_life_a_token_is_to_be_renewed() {
    let world = World::new().await;
    let session = world.system.open_http(key(1)).expect("a token");
    assert_eq!(world.system.check_http(key(1), &session.token), Some(100));
    assert_eq!(world.system.check_http(key(2), &session.token), None);
    world.clock.turn(301_000);
    assert_eq!(world.system.check_http(key(1), &session.token), Some(49));
    world.clock.turn(299_000);
    assert_eq!(world.system.check_http(key(1), &session.token), None);
}

#[tokio::test(start_paused = true)]
async fn who_joins_and_leaves_all_the_time_is_held_back_and_may_always_leave() {
    let world = World::new().await;
    let group = group_of(&world, &[key(1)]).await;
    let mut cycles = 0;
    let failure = loop {
        match world.system.join_totals(key(2), group).await {
            Ok(_) => world.system.leave_totals(key(2), group).await.expect("left"),
            Err(failure) => break failure,
        }
        cycles += 1;
        assert!(cycles <= CONTROL_BURST, "nobody holds it back");
    };
    assert_eq!((cycles, failure.code), (CONTROL_BURST / 2, ErrorCode::RateLimited));
    let wait = failure.retry_after_ms.expect("it is told when to come back");
    world.system.join_totals(key(3), group).await.expect("others are not held back");
    tokio::time::advance(Duration::from_millis(wait)).await;
    world.system.join_totals(key(2), group).await.expect("one was earned");
    world.system.leave_totals(key(2), group).await.expect("and leaving is free");
}
