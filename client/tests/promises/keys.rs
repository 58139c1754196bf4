//! Who is given which content key, and when another one is made.

use sealwire_client::event::{Event, Unreadable};
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::{Kind, LogId};

use crate::relay::{Relay, Stored};
use crate::world::{Person, SOON, World, until};

/// The rotations that stand in a log.
fn rotations(relay: &Relay, log: LogId) -> Vec<KeyBody> {
    keys(relay, log, |stored| stored.entry.recipients.is_empty())
}

/// The deliveries and questions that stand in a log.
fn deliveries(relay: &Relay, log: LogId) -> Vec<KeyBody> {
    keys(relay, log, |stored| !stored.entry.recipients.is_empty())
}

fn keys(relay: &Relay, log: LogId, which: impl Fn(&Stored) -> bool) -> Vec<KeyBody> {
    relay
        .entries(log)
        .iter()
        .filter(|stored| stored.header.kind == Kind::Key && which(stored))
        .map(|stored| KeyBody::decode(stored.entry.body.as_ref()).expect("a key body"))
        .collect()
}

async fn epoch(person: &Person, log: LogId) -> u32 {
    person.device.log(log).await.expect("a log").epoch
}

#[tokio::test]
async fn the_founders_first_rotation_is_sealed_to_itself() {
    let world = World::start().await;
    let mut anna = world.online("anna").await;
    let log = world.group(&mut [&mut anna]).await;
    let entries = world.relay.entries(log);
    assert_eq!((entries[0].header.kind, entries[1].header.kind), (Kind::Control, Kind::Key));
    assert_eq!(entries[1].header.count, 2);
    let first = &rotations(&world.relay, log)[0];
    assert_eq!(first.epoch, 1);
    let recipients: Vec<_> = first.keys.iter().map(|sealed| sealed.recipient).collect();
    assert_eq!(recipients, [anna.key()]);
}

#[tokio::test]
async fn whoever_writes_first_after_a_removal_makes_another_key() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let mut cleo = world.online("cleo").await;
    let log = world.group(&mut [&mut anna, &mut ben, &mut cleo]).await;
    let left = ben.device.leave(log).await.expect("leaving");
    ben.appended(left).await;
    cleo.sees_members(log, &[anna.key(), cleo.key()]).await;
    assert_eq!(rotations(&world.relay, log).len(), 1, "not before somebody writes");
    cleo.say(log, "among us").await;
    assert_eq!(anna.hears().await, "among us");
    let all = rotations(&world.relay, log);
    assert_eq!(all.len(), 2);
    assert_eq!(all[1].epoch, 2);
    let mut recipients: Vec<_> = all[1].keys.iter().map(|sealed| sealed.recipient).collect();
    recipients.sort_unstable();
    let mut expected = vec![anna.key(), cleo.key()];
    expected.sort_unstable();
    assert_eq!(recipients, expected, "all who are left, the author included, and nobody else");
    anna.say(log, "indeed").await;
    assert_eq!(cleo.hears().await, "indeed");
    assert_eq!(rotations(&world.relay, log).len(), 2, "once is enough");
}

#[tokio::test]
async fn a_newcomer_after_a_removal_gets_another_key_and_makes_none_itself() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let mut cleo = world.online("cleo").await;
    let log = world.group(&mut [&mut anna, &mut ben, &mut cleo]).await;
    let left = ben.device.leave(log).await.expect("leaving");
    ben.appended(left).await;
    anna.sees_members(log, &[anna.key(), cleo.key()]).await;
    let before = deliveries(&world.relay, log).len();

    let mut dora = world.online("dora").await;
    let invite = anna.device.invite(log).await.expect("an invite");
    dora.join(&invite).await;
    assert_eq!(deliveries(&world.relay, log).len(), before, "not the key that ben holds");
    let epochs = |relay: &Relay| -> Vec<u32> {
        rotations(relay, log).iter().map(|body| body.epoch).collect()
    };
    assert_eq!(epochs(&world.relay), [1, 2]);
    dora.say(log, "with a key that ben has not").await;
    assert_eq!(anna.hears().await, "with a key that ben has not");

    // Emil is given that key, and cannot see that it is newer than ben's leaving.
    let mut emil = world.online("emil").await;
    emil.join(&invite).await;
    emil.say(log, "with the same key").await;
    assert_eq!(anna.hears().await, "with the same key");
    assert_eq!(epochs(&world.relay), [1, 2]);
}

#[tokio::test]
async fn two_who_rotate_at_once_end_with_one_newest_key() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let first = anna.device.rotate(log).await.expect("rotating");
    let second = ben.device.rotate(log).await.expect("rotating");
    anna.appended(first).await;
    ben.appended(second).await;
    let epochs: Vec<u32> = rotations(&world.relay, log).iter().map(|body| body.epoch).collect();
    assert_eq!(epochs, [1, 2, 3], "one of them had to look again");
    until("one epoch", async || epoch(&anna, log).await == 3 && epoch(&ben, log).await == 3).await;
    anna.say(log, "with the newest key").await;
    assert_eq!(ben.hears().await, "with the newest key");
}

#[tokio::test]
async fn a_newcomer_is_given_the_key_even_if_the_inviter_is_away() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let invite = anna.device.invite(log).await.expect("an invite");
    anna.disconnect().await;
    let mut cleo = world.online("cleo").await;
    cleo.join(&invite).await;
    cleo.say(log, "anybody here?").await;
    assert_eq!(ben.hears().await, "anybody here?");
}

#[tokio::test]
async fn a_newcomer_is_given_the_key_once_and_not_by_everybody() {
    let world = World::start().await;
    let mut anna = world.online("anna").await;
    let (mut ben, mut cleo) = (world.online("ben").await, world.online("cleo").await);
    let (mut dora, mut emil) = (world.online("dora").await, world.online("emil").await);
    let mut people = [&mut anna, &mut ben, &mut cleo, &mut dora];
    let log = world.group(&mut people).await;
    let before = deliveries(&world.relay, log).len();
    let invite = anna.device.invite(log).await.expect("an invite");
    emil.join(&invite).await;
    // He shows that he holds it; whoever has read that does not try when its turn comes, which is
    // tested where turns are, with the time in hand.
    let receipt = Kind::Quiet;
    let shown = async || {
        let entries = world.relay.entries(log).into_iter();
        let own = entries.filter(|it| it.header.sender == emil.key());
        own.filter(|it| it.header.kind == receipt).count() == 1
    };
    until("emil's receipt", shown).await;
    for person in [&anna, &ben, &cleo, &dora] {
        person.catches_up(&world.relay, log).await;
    }
    let given = &deliveries(&world.relay, log)[before..];
    assert_eq!(given.len(), 1, "the others saw that it holds the key");
    assert_eq!(given[0].keys[0].recipient, emil.key());
}

#[tokio::test]
async fn who_was_overlooked_by_a_rotation_is_given_the_key() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let invite = anna.device.invite(log).await.expect("an invite");
    let mut cleo = world.offline("cleo").await;
    cleo.device.join(&invite).await.expect("joining");
    // The rotation is refused once, and is on its way again while the join overtakes it.
    ben.device.rotate(log).await.expect("rotating");
    cleo.connect().await;
    cleo.device.wait_ready(log, SOON).await.expect("ready");
    until("the newest key", async || {
        let info = cleo.device.log(log).await.expect("a log");
        info.epoch == 2 && info.holds_key
    })
    .await;
    ben.say(log, "for all of us").await;
    assert_eq!(cleo.hears().await, "for all of us");
}

#[tokio::test]
async fn a_key_that_never_came_is_asked_for_and_what_waited_is_opened() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    ben.disconnect().await;
    let rotated = anna.device.rotate(log).await.expect("rotating");
    let seq = anna.appended(rotated).await;
    anna.say_for_good(log, "under a key that ben will not get").await;
    world.relay.withhold(ben.key(), log, seq);
    ben.connect().await;
    let reason = ben
        .event("an unreadable entry", |event| {
            if let Event::Unreadable { reason, .. } = event { Some(*reason) } else { None }
        })
        .await;
    assert_eq!(reason, Unreadable::NoKey);
    assert_eq!(ben.hears().await, "under a key that ben will not get");
    let questions =
        deliveries(&world.relay, log).iter().filter(|body| body.keys.is_empty()).count();
    assert_eq!(questions, 1, "ben had to ask");
}

#[tokio::test]
async fn nobody_is_given_a_key_that_was_in_force_only_before_it_joined() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna]).await;
    anna.say_for_good(log, "before ben").await;
    let rotated = anna.device.rotate(log).await.expect("rotating");
    anna.appended(rotated).await;
    let invite = anna.device.invite(log).await.expect("an invite");
    ben.join(&invite).await;
    anna.say(log, "with ben").await;
    assert_eq!(ben.hears().await, "with ben");
    let given: Vec<u32> = deliveries(&world.relay, log).iter().map(|body| body.epoch).collect();
    assert_eq!(given, [2]);
}

#[tokio::test]
async fn content_waits_in_the_outbox_until_there_is_a_key_to_seal_it() {
    let world = World::start().await;
    let mut anna = world.online("anna").await;
    let log = world.group(&mut [&mut anna]).await;
    let invite = anna.device.invite(log).await.expect("an invite");
    anna.disconnect().await;
    let mut ben = world.online("ben").await;
    ben.device.join(&invite).await.expect("joining");
    let said = ben.say(log, "written before the key came").await;
    ben.event("joining", |event| matches!(event, Event::Joined { .. }).then_some(())).await;
    ben.catches_up(&world.relay, log).await;
    assert_eq!(ben.device.unsent(log, 100).await.expect("unsent").len(), 1);
    anna.connect().await;
    ben.appended(said).await;
    assert_eq!(anna.hears().await, "written before the key came");
}
