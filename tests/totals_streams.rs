//! A phone that listens is given what waits, then what comes, and hears when its groups change.

use std::time::Duration;

use tokio::time::timeout;

use crate::support::on_both_databases;
use crate::support::phone::{Listening, Phone};
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::world::World;

on_both_databases!(
    a_stream_begins_with_what_waits_and_goes_on_with_what_comes,
    the_stream_of_all_groups_is_open_to_a_device_without_any,
    changes_of_ones_groups_are_told_and_nothing_else_is,
    what_changed_while_the_relay_was_away_is_told_when_it_is_back,
    many_streams_of_one_device_all_hear,
    a_stream_outlives_leaving_and_joining_again,
    a_relay_that_comes_back_gives_everything_anew,
    a_relay_that_stops_ends_the_streams_and_answers_the_rest,
);

/// How long nothing must come for it to be nothing. Nothing waits for it but the proof that.
const QUIET: Duration = Duration::from_millis(700);

async fn is_quiet(stream: &mut Listening) {
    let event = timeout(QUIET, stream.next()).await;
    assert!(event.is_err(), "unexpected: {event:?}");
}

async fn a_stream_begins_with_what_waits_and_goes_on_with_what_comes(database: Database) {
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let group = alice.create().await;
    bob.join(&group).await.ok();
    for blob in ["01", "02", "03"] {
        alice.send_all(&group, "expense", blob).await.ok();
    }
    let pending = bob.pending(&group).await;
    bob.ack(pending[1]["id"].as_str().expect("it is there")).await.ok();
    let mut one = bob.listen(&format!("/groups/{group}/pending/stream")).await;
    let mut all = bob.listen("/groups/pending/stream").await;
    for stream in [&mut one, &mut all] {
        assert_eq!(stream.payload().await, pending[0], "as in a page, group and all");
        assert_eq!(stream.payload().await, pending[2]);
        assert!(stream.comments > 0, "a sign of life at once");
    }
    alice.send_all(&group, "expense", "04").await.ok();
    alice.send_to(&group, "key_exchange", &[&bob], "05").await.ok();
    // One's own, and what names others, is not for oneself.
    bob.send_all(&group, "expense", "ff").await.ok();
    for stream in [&mut one, &mut all] {
        assert_eq!(stream.blobs(2).await, ["04", "05"]);
    }
    is_quiet(&mut all).await;
    let mut alices = alice.listen("/groups/pending/stream").await;
    assert_eq!(alices.blobs(1).await, ["ff"]);
    // Connecting again gives all of it anew, but for what was acked.
    drop(one);
    let mut again = bob.listen(&format!("/groups/{group}/pending/stream")).await;
    assert_eq!(again.blobs(4).await, ["01", "03", "04", "05"]);
}

async fn the_stream_of_all_groups_is_open_to_a_device_without_any(database: Database) {
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let mut all = bob.listen("/groups/pending/stream").await;
    let mut changes = bob.listen("/groups/stream").await;
    let mut groups = Vec::new();
    for _ in 0..2 {
        let group = alice.create().await;
        bob.join(&group).await.ok();
        groups.push(group);
    }
    changes.change().await;
    alice.send_all(&groups[0], "expense", "01").await.ok();
    assert_eq!(all.blobs(1).await, ["01"]);
    alice.send_all(&groups[1], "expense", "02").await.ok();
    assert_eq!(all.blobs(1).await, ["02"]);
    bob.leave(&groups[0]).await.ok();
    alice.send_all(&groups[0], "expense", "03").await.ok();
    alice.send_all(&groups[1], "expense", "04").await.ok();
    assert_eq!(all.blobs(1).await, ["04"]);
}

async fn changes_of_ones_groups_are_told_and_nothing_else_is(database: Database) {
    let world = World::start(database).await;
    let phones: Vec<Phone> = (1..=4).map(|seed| Phone::new(world.address(), seed)).collect();
    let mut streams = Vec::new();
    for phone in &phones {
        streams.push(phone.listen("/groups/stream").await);
    }
    let [alice, bob, carol, eve] = &mut streams[..] else { unreachable!("four") };
    let group = phones[0].create().await;
    alice.change().await;
    phones[1].join(&group).await.ok();
    alice.change().await;
    bob.change().await;
    phones[1].join(&group).await.ok();
    for number in 0..20 {
        phones[0].send_all(&group, "expense", &format!("{number:02x}")).await.ok();
    }
    is_quiet(alice).await;
    is_quiet(bob).await;
    // What happens at once is told at once.
    phones[2].join(&group).await.ok();
    phones[2].leave(&group).await.ok();
    phones[2].join(&group).await.ok();
    alice.change().await;
    bob.change().await;
    carol.change().await;
    is_quiet(eve).await;
    phones[1].leave(&group).await.ok();
    alice.change().await;
    bob.change().await;
    // What changed while the app was connecting again is told when it is back.
    let mut bobs = phones[1].listen("/groups/stream").await;
    is_quiet(&mut bobs).await;
    drop(streams);
    phones[2].leave(&group).await.ok();
    phones[0].listen("/groups/stream").await.change().await;
}

async fn what_changed_while_the_relay_was_away_is_told_when_it_is_back(database: Database) {
    let mut world = World::start(database).await;
    let phones: Vec<Phone> = (1..=4).map(|seed| Phone::new(world.address(), seed)).collect();
    let group = phones[0].create().await;
    phones[1].join(&group).await.ok();
    let mut stream = phones[0].listen("/groups/stream").await;
    world.stop().await;
    stream.until_ended().await;
    world.run().await;
    // Each of the app's streams, once, although the relay cannot know whether there is news.
    for _ in 0..2 {
        let mut again = phones[0].listen("/groups/stream").await;
        again.change().await;
        is_quiet(&mut again).await;
    }
    // A change before the phone is back is not lost either; who made it knows.
    let other = phones[2].create().await;
    phones[3].join(&other).await.ok();
    phones[2].listen("/groups/stream").await.change().await;
    is_quiet(&mut phones[3].listen("/groups/stream").await).await;
    let stranger = Phone::new(world.address(), 9);
    is_quiet(&mut stranger.listen("/groups/stream").await).await;
}

async fn many_streams_of_one_device_all_hear(database: Database) {
    const STREAMS: usize = 20;
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let group = alice.create().await;
    bob.join(&group).await.ok();
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let path = match number % 2 {
            0 => format!("/groups/{group}/pending/stream"),
            _ => "/groups/pending/stream".to_owned(),
        };
        streams.push(bob.beside().listen(&path).await);
    }
    alice.send_all(&group, "expense", "01").await.ok();
    for stream in &mut streams {
        assert_eq!(stream.blobs(1).await, ["01"]);
    }
    // Far more than that end the oldest, never the newest.
    for _ in 0..20 {
        streams.push(bob.beside().listen("/groups/pending/stream").await);
    }
    let last = streams.last_mut().expect("it is there");
    assert_eq!(last.blobs(1).await, ["01"]);
    alice.send_all(&group, "expense", "02").await.ok();
    assert_eq!(last.blobs(1).await, ["02"]);
    streams[0].until_ended().await;
}

async fn a_stream_outlives_leaving_and_joining_again(database: Database) {
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let group = alice.create().await;
    bob.join(&group).await.ok();
    // The app would never ask again for a stream that was refused once.
    let mut stream = bob.listen(&format!("/groups/{group}/pending/stream")).await;
    bob.leave(&group).await.ok();
    alice.send_all(&group, "expense", "01").await.ok();
    bob.join(&group).await.ok();
    alice.send_all(&group, "expense", "02").await.ok();
    assert_eq!(stream.blobs(1).await, ["02"]);
}

async fn a_relay_that_comes_back_gives_everything_anew(database: Database) {
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let (alice, bob) = (Phone::new(relay.public(), 1), Phone::new(relay.public(), 2));
    let group = alice.create().await;
    bob.join(&group).await.ok();
    alice.send_all(&group, "expense", "01").await.ok();
    let mut stream = bob.listen("/groups/pending/stream").await;
    assert_eq!(stream.blobs(1).await, ["01"]);
    alice.send_all(&group, "expense", "02").await.ok();
    relay.kill();
    stream.until_ended().await;
    relay.run().await;
    let mut stream = bob.listen("/groups/pending/stream").await;
    assert_eq!(stream.blobs(2).await, ["01", "02"]);
    alice.send_all(&group, "expense", "03").await.ok();
    assert_eq!(stream.blobs(1).await, ["03"]);
}

async fn a_relay_that_stops_ends_the_streams_and_answers_the_rest(database: Database) {
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let (alice, bob) = (Phone::new(relay.public(), 1), Phone::new(relay.public(), 2));
    let group = alice.create().await;
    bob.join(&group).await.ok();
    let mut stream = bob.listen("/groups/pending/stream").await;
    let path = format!("/groups/{group}/payloads");
    let proof = alice.proof().await.expect("it is there");
    let sending = (0..40).map(|number| {
        let body = format!("{{\"encryptedBlob\":\"{number:02x}\"}}").into_bytes();
        alice.send("POST", &path, &proof, Some(body))
    });
    let all = futures_util::future::join_all(sending);
    let (answers, ()) = tokio::join!(all, async { relay.ask_to_stop() });
    stream.until_ended().await;
    let stopped = relay.until_stopped().await;
    assert!(stopped.status.success(), "{:?}", stopped.status);
    relay.run().await;
    // Whoever was answered was answered in truth.
    let kept = bob.blobs(&group).await;
    for (number, answer) in answers.into_iter().enumerate() {
        if let Ok(answer) = answer {
            let blob = format!("{number:02x}");
            assert_eq!(answer.is_success(), kept.contains(&blob), "{blob}: {}", answer.status);
        }
    }
}
