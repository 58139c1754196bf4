//! People with the real SDK found, invite, join, talk, leave and remove each other.

use sealwire_client::device::{Outgoing, Phase};
use sealwire_client::error::Error;
use sealwire_client::event::Event;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::{DeviceKey, ErrorCode, Head, Kind, LogId};

use crate::support::backup::Backup;
use crate::support::device::{Device, Group};
use crate::support::on_both_databases;
use crate::support::person::Person;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::view::Item;
use crate::support::world::World;
use crate::support::{DEADLINE, eventually};

on_both_databases!(
    two_people_found_invite_join_and_talk,
    a_newcomer_hears_what_is_said_from_then_on,
    what_is_said_while_somebody_is_away_is_there_on_return,
    words_for_one_are_heard_by_nobody_else,
    who_leaves_hears_nothing_more,
    a_removed_device_is_told_and_is_given_no_key_for_what_comes_after,
    an_old_invitation_lets_nobody_in_after_a_removal,
    words_are_heard_once_and_in_order_though_the_relay_is_killed,
    people_heal_a_relay_that_was_put_back,
);

async fn two_people_found_invite_join_and_talk(database: Database) {
    let world = World::start(database).await;
    let [mut alice, mut bob] = people(&world).await;
    let log = alice.found(&world.url()).await;
    bob.join(&alice, log).await;
    for number in 0..20 {
        alice.say(log, &format!("alice {number}")).await;
        bob.say(log, &format!("bob {number}")).await;
    }
    alice.hears(log, "bob 19").await;
    bob.hears(log, "alice 19").await;
    assert_eq!(bob.heard(log), words("alice", 20));
    assert_eq!(alice.heard(log), words("bob", 20));
    let mut members = Vec::new();
    for person in [&alice, &bob] {
        let known = person.device.members(log).await.expect("a group");
        members.push(known.iter().map(|it| (it.device, it.joined_seq)).collect::<Vec<_>>());
    }
    assert_eq!(members[0], members[1]);
    assert_eq!(members[0].len(), 2);
    // What both have taken and acked is not kept.
    world.until_bodies(log, &[]).await;
}

async fn a_newcomer_hears_what_is_said_from_then_on(database: Database) {
    let world = World::start(database).await;
    let [alice, mut bob, mut carol] = people(&world).await;
    let log = alice.found(&world.url()).await;
    bob.join(&alice, log).await;
    alice.say(log, "before").await;
    // It is enough to be invited by somebody who was invited.
    bob.hears(log, "before").await;
    carol.join(&bob, log).await;
    let seq = alice.say(log, "after").await;
    carol.hears(log, "after").await;
    bob.hears(log, "after").await;
    carol.reads_to(log, seq).await;
    assert_eq!(carol.heard(log), ["after"]);
    assert_eq!(bob.heard(log), ["before", "after"]);
    assert_eq!(carol.device.members(log).await.expect("a group").len(), 3);
    assert!(!carol.told.iter().any(|event| matches!(event, Event::Unreadable { .. })));
}

async fn what_is_said_while_somebody_is_away_is_there_on_return(database: Database) {
    let world = World::start(database).await;
    let [mut alice, mut bob] = people(&world).await;
    let log = alice.found(&world.url()).await;
    bob.join(&alice, log).await;
    bob.disconnect().await;
    for number in 0..30 {
        alice.say(log, &format!("alice {number}")).await;
    }
    for number in 0..30 {
        let outgoing = Outgoing::to_all(format!("bob {number}"));
        bob.device.send(log, outgoing).await.expect("in the outbox");
    }
    bob.connect(&world.url()).await;
    bob.hears(log, "alice 29").await;
    alice.hears(log, "bob 29").await;
    assert_eq!(bob.heard(log), words("alice", 30));
    assert_eq!(alice.heard(log), words("bob", 30));
}

async fn words_for_one_are_heard_by_nobody_else(database: Database) {
    let world = World::start(database).await;
    let [alice, mut bob, mut carol] = people(&world).await;
    let log = alice.found(&world.url()).await;
    bob.join(&alice, log).await;
    carol.join(&alice, log).await;
    alice.reads_to(log, 3).await;
    let outgoing = Outgoing::to([bob.key()], "for bob");
    let id = alice.device.send(log, outgoing).await.expect("in the outbox");
    alice.device.wait_appended(id, DEADLINE).await.expect("appended");
    alice.say(log, "for all").await;
    bob.hears(log, "for all").await;
    carol.hears(log, "for all").await;
    assert_eq!(bob.heard(log), ["for bob", "for all"]);
    assert_eq!(carol.heard(log), ["for all"]);
}

async fn who_leaves_hears_nothing_more(database: Database) {
    let world = World::start(database).await;
    let [alice, mut bob, mut carol] = people(&world).await;
    let log = alice.found(&world.url()).await;
    bob.join(&alice, log).await;
    carol.join(&alice, log).await;
    let id = carol.device.leave(log).await.expect("in the outbox");
    let left = carol.device.wait_appended(id, DEADLINE).await.expect("appended");
    let me = carol.key();
    carol.until("it has left", |carol| departed(&carol.told, me)).await;
    bob.until("the others are told", |bob| departed(&bob.told, me)).await;
    alice.reads_to(log, left).await;
    alice.say(log, "among ourselves").await;
    bob.hears(log, "among ourselves").await;
    assert!(carol.heard(log).is_empty());
    let phase = carol.device.log(log).await.expect("known").phase;
    assert!(matches!(phase, Phase::Left), "{phase:?}");
    assert_eq!(alice.device.members(log).await.expect("a group").len(), 2);
}

async fn a_removed_device_is_told_and_is_given_no_key_for_what_comes_after(database: Database) {
    let world = World::start(database).await;
    let [mut alice, mut bob, mut carol] = people(&world).await;
    let log = alice.found(&world.url()).await;
    bob.join(&alice, log).await;
    carol.join(&alice, log).await;
    let mut observer = observe(&world, &alice, log).await;
    alice.say(log, "with carol").await;
    carol.hears(log, "with carol").await;
    let before = alice.device.log(log).await.expect("a group").epoch;

    let id = alice.device.revoke(log, carol.key()).await.expect("in the outbox");
    let revoked = alice.device.wait_appended(id, DEADLINE).await.expect("appended");
    let me = carol.key();
    carol.until("it is told", |carol| departed(&carol.told, me)).await;
    bob.until("the others are told", |bob| departed(&bob.told, me)).await;
    let after = alice.say(log, "without carol").await;
    bob.hears(log, "without carol").await;
    let answer = bob.say(log, "without carol as well").await;
    alice.hears(log, "without carol as well").await;

    // She is told nothing more, and what she writes goes nowhere.
    assert_eq!(carol.heard(log), ["with carol"]);
    let refused = carol.device.send(log, Outgoing::to_all("still here")).await;
    assert!(matches!(refused, Err(Error::Revoked)), "{refused:?}");
    assert!(carol.device.log(log).await.expect("known").epoch <= before);

    // And if she got the sealed bytes from elsewhere, she would have no key for them: the one that
    // seals them is newer than the removal, and none of its copies is hers.
    observer.read_to(log, answer).await;
    let mut newest = before;
    for seq in revoked + 1..=answer {
        let Some(Item::Entry { kind, body }) = observer.view(log).item(seq) else { continue };
        if *kind == Kind::Key {
            let keys = KeyBody::decode(body).expect("keys");
            newest = newest.max(keys.epoch);
            assert!(keys.keys.iter().all(|key| key.recipient != me), "a key for who was removed");
        }
    }
    assert!(newest > before, "the key was not changed");
    for seq in [after, answer] {
        let Some(Item::Entry { body, .. }) = observer.view(log).item(seq) else { panic!("{seq}") };
        assert_eq!(epoch_of(body), newest);
    }
}

async fn an_old_invitation_lets_nobody_in_after_a_removal(database: Database) {
    let world = World::start(database).await;
    let [mut alice, bob, mut dora] = people(&world).await;
    let log = alice.found(&world.url()).await;
    let invite = alice.device.invite(log).await.expect("an invite");
    bob.join(&alice, log).await;
    let id = alice.device.revoke(log, bob.key()).await.expect("in the outbox");
    let revoked = alice.device.wait_appended(id, DEADLINE).await.expect("appended");
    dora.device.join(&invite).await.expect("she tries");
    let refused = dora.device.wait_ready(log, DEADLINE).await;
    assert_eq!(refused, Err(Error::Refused(ErrorCode::InviteInvalid)));
    alice.reads_to(log, revoked).await;
    assert_eq!(alice.device.members(log).await.expect("a group").len(), 1);
    // A new one does.
    dora.join(&alice, log).await;
    alice.say(log, "welcome").await;
    dora.hears(log, "welcome").await;
    dora.say(log, "thanks").await;
    alice.hears(log, "thanks").await;
}

async fn words_are_heard_once_and_in_order_though_the_relay_is_killed(database: Database) {
    const EACH: usize = 60;
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let (mut alice, mut bob) = (Person::new().await, Person::new().await);
    alice.connect(&relay.url()).await;
    bob.connect(&relay.url()).await;
    let log = alice.found(&relay.url()).await;
    bob.join(&alice, log).await;
    for number in 0..EACH {
        for (person, name) in [(&alice, "alice"), (&bob, "bob")] {
            let outgoing = Outgoing::to_all(format!("{name} {number}"));
            person.device.send(log, outgoing).await.expect("in the outbox");
        }
        if number % 20 == 10 {
            relay.kill();
            relay.run().await;
        }
    }
    alice.hears(log, &format!("bob {}", EACH - 1)).await;
    bob.hears(log, &format!("alice {}", EACH - 1)).await;
    assert_eq!(alice.heard(log), words("bob", EACH));
    assert_eq!(bob.heard(log), words("alice", EACH));
    both_have_read_the_same(&alice, &bob, log).await;
}

async fn people_heal_a_relay_that_was_put_back(database: Database) {
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let (mut alice, mut bob) = (Person::new().await, Person::new().await);
    alice.connect(&relay.url()).await;
    bob.connect(&relay.url()).await;
    let log = alice.found(&relay.url()).await;
    bob.join(&alice, log).await;
    alice.say(log, "kept").await;
    bob.hears(log, "kept").await;
    let backup = Backup::of(relay.place()).await;
    let lost = alice.say(log, "lost").await;
    bob.hears(log, "lost").await;
    assert!(relay.stop().await.status.success());
    backup.put_back(relay.place()).await;
    relay.command("restored").await;
    relay.run().await;

    let changed = |person: &Person| {
        person.told.iter().any(|event| matches!(event, Event::HistoryChanged { .. }))
    };
    alice.until("she is told", changed).await;
    bob.until("he is told", changed).await;
    alice.say(log, "afterwards").await;
    bob.hears(log, "afterwards").await;
    bob.say(log, "all there?").await;
    alice.hears(log, "all there?").await;
    // What bob had heard he does not hear again, and the relay has what it had lost.
    assert_eq!(bob.heard(log), ["kept", "lost", "afterwards"]);
    let end = both_have_read_the_same(&alice, &bob, log).await;
    assert!(end.seq >= lost + 2, "{end:?}");
}

/// Connected people.
async fn people<const N: usize>(world: &World) -> [Person; N] {
    let mut people = Vec::new();
    for _ in 0..N {
        let mut person = Person::new().await;
        person.connect(&world.url()).await;
        people.push(person);
    }
    people.try_into().map_err(|_| "as many as asked for").expect("so many")
}

/// Waits until both have read a group to the same head, and gives it.
async fn both_have_read_the_same(first: &Person, second: &Person, log: LogId) -> Head {
    let mut end = Head::NONE;
    eventually("both have read the same", async || {
        let mut heads = Vec::new();
        for person in [first, second] {
            heads.push(person.device.log(log).await.expect("a group").head);
        }
        end = heads[0].unwrap_or(Head::NONE);
        end != Head::NONE && heads[0] == heads[1]
    })
    .await;
    end
}

/// A member that reads sealed bytes, never acks, and so keeps them at the relay.
async fn observe(world: &World, host: &Person, log: LogId) -> Device {
    let invite = host.device.invite(log).await.expect("an invite");
    let mut observer = world.device(77).await;
    observer.join(&Group { log, seed: invite.seed }).await;
    observer.follow(log).await;
    observer
}

/// Whether a device was told that another one, or itself, is a member no more.
fn departed(told: &[Event], who: DeviceKey) -> bool {
    told.iter().any(|event| match event {
        Event::Left { device, .. } | Event::Revoked { device, .. } => *device == who,
        _ => false,
    })
}

fn words(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name} {number}")).collect()
}

/// The generation of the key that seals a body: it stands behind the suite and the scope.
fn epoch_of(body: &[u8]) -> u32 {
    let bytes = body[17..21].try_into().expect("four bytes");
    u32::from_be_bytes(bytes)
}
