//! Refusals, lost answers and reconnects: each entry is appended once, in order, or refused.

use sealwire_client::error::Error;
use sealwire_client::event::Event;
use sealwire_client::session::Status;
use sealwire_client::wire::WireError;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::{DeviceKey, Digest, Failure, LogId};

use crate::relay::{Fault, Relay};
use crate::world::{Person, SOON, World, until};

/// Says five things of which the third meets a fault, and gives what the other one hears.
async fn five_things(fault: Fault, heard: usize) -> (World, Person, LogId, Vec<String>) {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    anna.say_for_good(log, "0").await;
    anna.say_for_good(log, "1").await;
    world.relay.fault(fault);
    for n in 2..5 {
        anna.say(log, &n.to_string()).await;
    }
    let mut texts = Vec::new();
    for _ in 0..heard {
        texts.push(ben.hears().await);
    }
    (world, anna, log, texts)
}

/// No (sender, count) stands for two entries, in what was sent or in what was appended.
fn assert_counted_once(relay: &Relay, log: LogId, person: &Person) {
    let counts: Vec<u64> = relay
        .entries(log)
        .iter()
        .filter(|stored| stored.header.sender == person.key())
        .map(|stored| stored.header.count)
        .collect();
    let expected: Vec<u64> = (1..=counts.len() as u64).collect();
    assert_eq!(counts, expected);
}

#[tokio::test]
async fn an_answer_that_is_lost_with_the_connection_costs_nothing() {
    let (world, anna, log, texts) = five_things(Fault::AppendAndBreak, 5).await;
    assert_eq!(texts, ["0", "1", "2", "3", "4"]);
    assert_counted_once(&world.relay, log, &anna);
    let appends = &world.relay.shared.state.lock().appends;
    let tries = |of: &(DeviceKey, u64, Digest)| {
        appends.iter().filter(|append| (append.0, append.1) == (of.0, of.1)).collect::<Vec<_>>()
    };
    assert!(appends.iter().any(|append| tries(append).len() > 1), "one was sent again");
    for append in appends {
        assert!(tries(append).iter().all(|other| **other == *append), "as the same bytes");
    }
}

#[tokio::test]
async fn what_the_relay_never_got_is_sent_again() {
    let (world, anna, log, texts) = five_things(Fault::Break, 5).await;
    assert_eq!(texts, ["0", "1", "2", "3", "4"]);
    assert_counted_once(&world.relay, log, &anna);
}

#[tokio::test]
async fn the_same_bytes_are_sent_again_when_the_relay_asks_for_patience() {
    let fault = Fault::Refuse(Failure::after_ms(ErrorCode::Unavailable, 50));
    let (world, anna, log, texts) = five_things(fault, 5).await;
    assert_eq!(texts, ["0", "1", "2", "3", "4"]);
    assert_counted_once(&world.relay, log, &anna);
}

#[tokio::test]
async fn an_unknown_outcome_that_was_an_append_is_no_second_one() {
    let fault = Fault::AppendAndRefuse(Failure::after_ms(ErrorCode::Unavailable, 50));
    let (world, anna, log, texts) = five_things(fault, 5).await;
    assert_eq!(texts, ["0", "1", "2", "3", "4"]);
    assert_counted_once(&world.relay, log, &anna);
}

#[tokio::test]
async fn a_refused_entry_holds_up_none_behind_it_and_stays_visible() {
    let fault = Fault::Refuse(Failure::new(ErrorCode::BadAudience));
    let (world, mut anna, log, texts) = five_things(fault, 4).await;
    assert_eq!(texts, ["0", "1", "3", "4"]);
    assert_counted_once(&world.relay, log, &anna);
    let id = anna
        .event("a refusal", |event| {
            if let Event::Refused { id, code: ErrorCode::BadAudience, .. } = event {
                Some(*id)
            } else {
                None
            }
        })
        .await;
    let refused = anna.device.wait_appended(id, SOON).await;
    assert_eq!(refused, Err(Error::Refused(ErrorCode::BadAudience)));
    // The answer to the last one may come after the other one has heard it.
    until("one unsent", async || anna.device.unsent(log, 100).await.expect("unsent").len() == 1)
        .await;
    let unsent = anna.device.unsent(log, 100).await.expect("unsent");
    assert_eq!(unsent[0].payload, b"2");
    assert!(anna.device.discard(id).await.expect("discarded"));
    assert!(anna.device.unsent(log, 100).await.expect("unsent").is_empty());
}

#[tokio::test]
async fn an_entry_to_somebody_who_is_gone_is_refused() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    anna.disconnect().await;
    let left = ben.device.leave(log).await.expect("leaving");
    ben.appended(left).await;
    let late = anna.say_to(log, &[&ben], "are you there?").await;
    anna.connect().await;
    let refused = anna.device.wait_appended(late, SOON).await;
    assert_eq!(refused, Err(Error::Refused(ErrorCode::BadAudience)));
}

#[tokio::test]
async fn a_leave_whose_answer_is_lost_is_a_leave_and_coming_back_works() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let invite = anna.device.invite(log).await.expect("an invite");
    ben.catches_up(&world.relay, log).await;
    world.relay.fault(Fault::AppendAndBreak);
    let left = ben.device.leave(log).await.expect("leaving");
    assert_eq!(ben.device.leave(log).await, Ok(left), "once is enough");
    ben.appended(left).await;
    anna.sees_members(log, &[anna.key()]).await;
    ben.join(&invite).await;
    ben.say(log, "back again").await;
    assert_eq!(anna.hears().await, "back again");
    assert_counted_once(&world.relay, log, &ben);
}

#[tokio::test]
async fn a_crowd_of_faults_loses_and_doubles_nothing() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let unavailable = || Failure::after_ms(ErrorCode::Unavailable, 5);
    for turn in 0..30 {
        world.relay.fault(match turn % 5 {
            0 => Fault::AppendAndBreak,
            1 => Fault::Refuse(unavailable()),
            2 => Fault::Break,
            3 => Fault::AppendAndRefuse(unavailable()),
            _ => Fault::Refuse(Failure::after_ms(ErrorCode::Quota, 5)),
        });
        anna.say(log, &turn.to_string()).await;
        ben.say(log, &format!("ben {turn}")).await;
    }
    for turn in 0..30 {
        assert_eq!(ben.hears().await, turn.to_string());
        assert_eq!(anna.hears().await, format!("ben {turn}"));
    }
    assert_counted_once(&world.relay, log, &anna);
    assert_counted_once(&world.relay, log, &ben);
}

#[tokio::test]
async fn what_was_in_the_outbox_survives_the_process() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    for _ in 0..3 {
        world.relay.fault(Fault::AppendAndBreak);
    }
    anna.say(log, "one").await;
    anna.say(log, "two").await;
    // The process ends at some point of sending: nothing is said goodbye to.
    let mut again = world.process_of(&anna).await;
    drop(anna);
    again.connect().await;
    assert_eq!(ben.hears().await, "one");
    assert_eq!(ben.hears().await, "two");
    assert_counted_once(&world.relay, log, &again);
}

#[tokio::test]
async fn a_broken_connection_comes_back_with_a_token() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let signatures = world.relay.shared.state.lock().by_signature;
    world.relay.kick();
    anna.event("the break", |event| {
        matches!(event, Event::Disconnected { retry_in: Some(_), .. }).then_some(())
    })
    .await;
    anna.say(log, "still here").await;
    assert_eq!(ben.hears().await, "still here");
    let state = world.relay.shared.state.lock();
    assert_eq!(state.by_token, 2);
    assert_eq!(state.by_signature, signatures, "no new signature was needed");
}

#[tokio::test]
async fn a_draining_relay_is_left_for_as_long_as_it_says() {
    let world = World::start().await;
    let mut anna = world.online("anna").await;
    world.relay.switch(|switches| &switches.drain, true);
    let reason = anna
        .event("the goodbye", |event| {
            if let Event::Disconnected { reason, .. } = event { Some(reason.clone()) } else { None }
        })
        .await;
    assert_eq!(reason, WireError::Closed(Some(CloseReason::GoingAway)));
    world.relay.switch(|switches| &switches.drain, false);
    anna.connection().wait_connected(SOON).await.expect("back");
}

#[tokio::test]
async fn a_superseded_connection_does_not_come_back() {
    let world = World::start().await;
    let mut anna = world.online("anna").await;
    world.relay.switch(|switches| &switches.supersede, true);
    anna.event("the end", |event| {
        matches!(event, Event::Disconnected { retry_in: None, .. }).then_some(())
    })
    .await;
    let over = Status::Over(WireError::Closed(Some(CloseReason::Superseded)));
    until("the end", async || anna.connection().status() == over).await;
}

#[tokio::test]
async fn a_silent_relay_is_noticed_within_two_heartbeats() {
    let world = World::start().await;
    let mut anna = world.online("anna").await;
    world.relay.switch(|switches| &switches.mute_after_welcome, true);
    let reason = anna
        .event("the silence", |event| {
            if let Event::Disconnected { reason, .. } = event { Some(reason.clone()) } else { None }
        })
        .await;
    assert_eq!(reason, WireError::Silent);
}

#[tokio::test]
async fn what_a_relay_has_let_go_of_before_its_answer_came_is_no_sign_of_a_clone() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    anna.say_for_good(log, "0").await;
    world.relay.fault(Fault::AppendAndBreak);
    // It does not come back in time to read it.
    world.relay.switch(|switches| &switches.mute, true);
    let unanswered = anna.say(log, "1").await;
    assert_eq!((ben.hears().await, ben.hears().await), ("0".to_owned(), "1".to_owned()));
    anna.disconnect().await;
    // A month passes.
    world.relay.switch(|switches| &switches.mute, false);
    world.relay.raise_floor(log, world.relay.head(log).seq);
    let next = anna.say(log, "2").await;
    anna.connect().await;
    anna.appended(unanswered).await;
    anna.appended(next).await;
    assert_eq!(ben.hears().await, "2");
    assert!(!anna.device.log(log).await.expect("a log").cloned);
    assert_counted_once(&world.relay, log, &anna);
}
