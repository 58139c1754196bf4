//! Founding, joining, sending, reading, leaving and removing.

use std::time::Duration;

use sealwire_client::device::{Outgoing, Phase};
use sealwire_client::error::Error;
use sealwire_client::event::Event;
use sealwire_client::invite::Invite;
use sealwire_protocol::Kind;
use sealwire_protocol::error::ErrorCode;

use crate::relay;
use crate::world::{SOON, World, until};

#[tokio::test]
async fn two_devices_meet_in_a_group_and_hear_each_other() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = anna.device.found_group(&world.relay.url).await.expect("founded");
    anna.device.wait_ready(log, SOON).await.expect("ready");
    // The link is all that passes between them.
    let link = anna.device.invite(log).await.expect("an invite").link();
    ben.join(&Invite::parse(&link).expect("an invite")).await;

    anna.say(log, "hello").await;
    let received = ben.entry().await;
    assert_eq!(received.payload, b"hello");
    assert_eq!(received.sender, anna.key());
    assert_eq!(received.kind, Kind::Ring);
    ben.say(log, "hello yourself").await;
    assert_eq!(anna.hears().await, "hello yourself");

    let both = [anna.key(), ben.key()];
    anna.sees_members(log, &both).await;
    ben.sees_members(log, &both).await;
    // Since when, is the relay's to say, of oneself as of others.
    for person in [&anna, &ben] {
        for member in person.device.members(log).await.expect("members") {
            assert_eq!(member.joined_at, relay::ordered_at(member.joined_seq));
        }
    }
}

#[tokio::test]
async fn the_relay_never_sees_what_is_said() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    anna.say(log, "a word that is planted").await;
    assert_eq!(ben.hears().await, "a word that is planted");
    for stored in world.relay.entries(log) {
        let body = stored.entry.body.as_ref();
        assert!(!body.windows(7).any(|window| window == b"planted"), "seq {}", stored.seq);
    }
}

#[tokio::test]
async fn everything_works_offline_and_is_sent_when_the_relay_is_reached() {
    let world = World::start().await;
    let mut anna = world.offline("anna").await;
    let log = anna.device.found_group(&world.relay.url).await.expect("founded");
    let said = anna.say(log, "said in a tunnel").await;
    let info = anna.device.log(log).await.expect("a log");
    assert_eq!(info.phase, Phase::Joining);
    assert!(world.relay.entries(log).is_empty());

    anna.connect().await;
    anna.appended(said).await;
    let mut ben = world.online("ben").await;
    let invite = anna.device.invite(log).await.expect("an invite");
    ben.join(&invite).await;
    ben.disconnect().await;
    ben.say(log, "said on a mountain").await;
    assert_eq!(ben.device.unsent(log, 100).await.expect("unsent").len(), 1);
    ben.connect().await;
    assert_eq!(anna.hears().await, "said on a mountain");
    assert!(ben.device.unsent(log, 100).await.expect("unsent").is_empty());
}

#[tokio::test]
async fn what_was_said_while_a_device_was_away_is_there_when_it_comes_back() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    ben.disconnect().await;
    for n in 0..300 {
        anna.say(log, &format!("entry {n}")).await;
    }
    let last = anna.say(log, "the last one").await;
    anna.appended(last).await;
    ben.connect().await;
    for n in 0..300 {
        assert_eq!(ben.hears().await, format!("entry {n}"), "in order, each once");
    }
    assert_eq!(ben.hears().await, "the last one");
}

#[tokio::test]
async fn an_entry_is_kept_until_the_app_takes_it() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    anna.say(log, "one").await;
    anna.say(log, "two").await;
    let first = ben.entry().await;
    ben.entry().await;
    assert_eq!(ben.inbox(log).await, ["one", "two"]);
    ben.device.take(&first).await.expect("taken");
    assert_eq!(ben.inbox(log).await, ["two"]);
    ben.disconnect().await;
    let again = world.process_of(&ben).await;
    assert_eq!(again.inbox(log).await, ["two"], "across restarts, too");
}

#[tokio::test]
async fn an_addressed_entry_reaches_those_it_names_and_nobody_else() {
    let world = World::start().await;
    let mut anna = world.online("anna").await;
    let (mut ben, mut cleo) = (world.online("ben").await, world.online("cleo").await);
    let log = world.group(&mut [&mut anna, &mut ben, &mut cleo]).await;
    anna.say_to(log, &[&ben], "for ben").await;
    anna.say(log, "for all").await;
    assert_eq!(ben.hears().await, "for ben");
    assert_eq!(ben.hears().await, "for all");
    assert_eq!(cleo.hears().await, "for all");
    cleo.catches_up(&world.relay, log).await;
    assert_eq!(cleo.inbox(log).await, ["for all"]);
}

#[tokio::test]
async fn a_device_acks_what_it_has_committed_and_holds_nothing_up() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let mut cleo = world.online("cleo").await;
    let log = world.group(&mut [&mut anna, &mut ben, &mut cleo]).await;
    anna.say_to(log, &[&cleo], "not for ben").await;
    anna.say(log, "for all").await;
    ben.hears().await;
    let seq = world.relay.head(log).seq;
    until("an ack of everything", async || world.relay.acked(log, ben.key()).floor() >= seq).await;
}

#[tokio::test]
async fn who_leaves_hears_no_more_and_may_come_back() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let invite = anna.device.invite(log).await.expect("an invite");
    ben.say(log, "goodbye").await;
    let left = ben.device.leave(log).await.expect("leaving");
    ben.appended(left).await;
    assert_eq!(anna.hears().await, "goodbye", "what was said before comes first");
    anna.sees_members(log, &[anna.key()]).await;
    until("having left", async || ben.device.log(log).await.expect("a log").phase == Phase::Left)
        .await;
    assert_eq!(ben.device.send(log, Outgoing::to_all("late")).await, Err(Error::NotAMember));
    anna.say_for_good(log, "while ben was gone").await;

    ben.join(&invite).await;
    anna.sees_members(log, &[anna.key(), ben.key()]).await;
    anna.say(log, "welcome back").await;
    assert_eq!(ben.hears().await, "welcome back");
    ben.say(log, "thank you").await;
    assert_eq!(anna.hears().await, "thank you");
    assert_eq!(ben.inbox(log).await, ["welcome back"], "nothing from between");
}

#[tokio::test]
async fn a_revoked_device_is_out_for_good_and_old_invites_are_void() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let mut cleo = world.online("cleo").await;
    let log = world.group(&mut [&mut anna, &mut ben, &mut cleo]).await;
    let old = anna.device.invite(log).await.expect("an invite");
    let revoked = anna.device.revoke(log, ben.key()).await.expect("revoking");
    anna.appended(revoked).await;

    let by = ben
        .event("the news of being revoked", |event| {
            if let Event::Revoked { device, .. } = event { Some(*device) } else { None }
        })
        .await;
    assert_eq!(by, ben.key());
    assert_eq!(ben.device.join(&old).await, Err(Error::Revoked));
    assert_eq!(ben.device.send(log, Outgoing::to_all("hm")).await, Err(Error::Revoked));
    cleo.sees_members(log, &[anna.key(), cleo.key()]).await;

    let mut dora = world.online("dora").await;
    dora.device.join(&old).await.expect("tried");
    let refused = dora.device.wait_ready(log, SOON).await;
    assert_eq!(refused, Err(Error::Refused(ErrorCode::InviteInvalid)));
    // The new join key travels in the rotation: whoever holds it may invite.
    until("another join key", async || cleo.device.invite(log).await.is_ok()).await;
    let invite = cleo.device.invite(log).await.expect("an invite");
    dora.join(&invite).await;
    dora.say(log, "here I am").await;
    assert_eq!(cleo.hears().await, "here I am");
    assert_eq!(anna.hears().await, "here I am");
}

#[tokio::test]
async fn a_device_that_was_revoked_while_it_was_away_learns_of_it() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    ben.disconnect().await;
    let late = ben.say(log, "said on the way out").await;
    let revoked = anna.device.revoke(log, ben.key()).await.expect("revoking");
    anna.appended(revoked).await;
    ben.connect().await;
    assert_eq!(ben.device.wait_appended(late, SOON).await, Err(Error::Revoked));
    let told = ben
        .event("the news of being revoked", |event| {
            if let Event::Revoked { seq, .. } = event { Some(*seq) } else { None }
        })
        .await;
    let entry = &world.relay.entries(log)[told as usize - 1];
    assert_eq!((entry.header.kind, entry.header.sender), (Kind::Control, anna.key()));
    let unsent = ben.device.unsent(log, 10).await.expect("unsent");
    assert_eq!(unsent[0].payload, b"said on the way out", "it stays visible");
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_before_it_is_kept() {
    let world = World::start().await;
    let anna = world.online("anna").await;
    let log = anna.device.found_group(&world.relay.url).await.expect("founded");
    let long = vec![0; sealwire_client::content::PAYLOAD_BYTES_MAX + 1];
    assert_eq!(anna.device.send(log, Outgoing::to_all(long)).await, Err(Error::TooLong));
    let oneself = Outgoing::to(vec![anna.key()], "hello me");
    assert_eq!(anna.device.send(log, oneself).await, Err(Error::Recipients));
    let stranger = sealwire_protocol::LogId([9; 16]);
    assert_eq!(anna.device.send(stranger, Outgoing::to_all("x")).await, Err(Error::NoSuchLog));
    assert!(anna.device.unsent(log, 100).await.expect("unsent").is_empty());
}

#[tokio::test]
async fn the_longest_payload_goes_through() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let payload = vec![0x5a; sealwire_client::content::PAYLOAD_BYTES_MAX];
    for _ in 0..6 {
        anna.device.send(log, Outgoing::to_all(payload.clone()).bulk()).await.expect("sent");
    }
    for _ in 0..6 {
        let received = ben.entry().await;
        assert_eq!(received.kind, Kind::Bulk);
        assert!(received.payload == payload);
    }
}

#[tokio::test]
async fn whoever_waits_for_ever_is_told_at_once_what_is_so() {
    let world = World::start().await;
    let anna = world.offline("anna").await;
    let log = anna.device.found_group(&world.relay.url).await.expect("founded");
    assert_eq!(anna.device.wait_read(log, 0, Duration::MAX).await, Ok(()));
}
