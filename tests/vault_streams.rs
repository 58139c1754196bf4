//! A client that listens to its vault over HTTP is given what stands after its cursor, then what comes.

use std::time::Duration;

use sealwire_actors::Options;
use sealwire_protocol::{Control, Kind};
use serde_json::Value;
use tokio::time::timeout;

use crate::support::phone::{Listening, Proof};
use crate::support::place::Database;
use crate::support::vault_client::Client;
use crate::support::world::World;
use crate::support::{DEADLINE, eventually, on_both_databases};

on_both_databases!(
    a_stream_gives_what_stands_after_a_cursor_and_what_comes,
    a_stream_goes_on_where_it_was_broken_off,
    a_stream_ends_when_its_device_is_revoked,
    a_stream_from_below_the_floor_says_where_to_start,
    whoever_listens_hears_that_the_vault_is_full,
);

/// The next event, its name and its data.
async fn event(stream: &mut Listening) -> (String, Value) {
    let event = timeout(DEADLINE, stream.next_raw()).await.expect("in time");
    let (name, data) = event.expect("the stream goes on");
    (name, serde_json::from_str(&data).expect("JSON"))
}

/// What comes until the end is reached: the sequences, and the head there.
async fn until_drained(stream: &mut Listening) -> (Vec<Value>, Value) {
    let mut changesets = Vec::new();
    loop {
        match event(stream).await {
            (name, changeset) if name == "changeset" => changesets.push(changeset),
            (name, head) if name == "drained" => return (changesets, head),
            (name, _) => panic!("{name} before the end"),
        }
    }
}

async fn say(client: &mut Client, body: &[u8]) {
    let signed = client.sign(Kind::Quiet, body);
    client.push(&[signed]).await.ok();
}

async fn a_stream_gives_what_stands_after_a_cursor_and_what_comes(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Client::found(&world).await;
    let tablet = laptop.enrol(&world, 2).await;
    // More than one page.
    for number in 0..3_u8 {
        let batch: Vec<_> = (0..150).map(|_| laptop.sign(Kind::Quiet, &[number; 100])).collect();
        laptop.push(&batch).await.ok();
    }
    let path = tablet.path("/changesets/stream");
    let mut whole = tablet.phone.listen(&path).await;
    let (read, head) = until_drained(&mut whole).await;
    let sequences: Vec<u64> = read.iter().filter_map(|it| it["sequence"].as_u64()).collect();
    assert!(sequences.iter().copied().eq(1..=452), "each once, in order");
    assert_eq!(tablet.pull(451).await["changesets"][0], read[451], "as they are pulled");
    assert_eq!(tablet.pull(451).await["head"], head);
    let mut late = laptop.phone.listen(&laptop.path("/changesets/stream?after=450")).await;
    assert_eq!(until_drained(&mut late).await.0.len(), 2);
    // Each that comes, once, to everybody, the author too.
    for number in 453..460_u64 {
        say(&mut laptop, &number.to_be_bytes()).await;
        for stream in [&mut whole, &mut late] {
            let (name, changeset) = event(stream).await;
            assert_eq!((name.as_str(), &changeset["sequence"]), ("changeset", &number.into()));
        }
    }
}

async fn a_stream_goes_on_where_it_was_broken_off(database: Database) {
    let mut world = World::start(database).await;
    let mut laptop = Client::found(&world).await;
    say(&mut laptop, b"one").await;
    let mut stream = laptop.phone.listen(&laptop.path("/changesets/stream")).await;
    let (read, head) = until_drained(&mut stream).await;
    assert_eq!(read.len(), 2);
    world.stop().await;
    stream.until_ended().await;
    world.run().await;
    say(&mut laptop, b"two").await;
    let (after, chain) = (&head["sequence"], head["chain"].as_str().expect("a chain"));
    let cursor = laptop.path(&format!("/changesets/stream?after={after}&chain={chain}"));
    let proof = Proof::Vault(laptop.vault_token().await);
    let mut stream = laptop.phone.listen_with(&cursor, proof).await.expect("a stream");
    let (read, _) = until_drained(&mut stream).await;
    assert_eq!(read.len(), 1);
    assert_eq!(read[0]["sequence"], 3);
    // A cursor on another chain, or in the future, is not taken.
    let other = "00".repeat(32);
    for cursor in [format!("after=2&chain={other}"), "after=9".to_owned()] {
        let refused =
            laptop.phone.try_listen(&laptop.path(&format!("/changesets/stream?{cursor}"))).await;
        refused.err().expect("refused").refused(409, "history_changed");
    }
    let refused = laptop.phone.try_listen(&laptop.path("/changesets/stream?after=x")).await;
    refused.err().expect("refused").refused(400, "bad_request");
}

async fn a_stream_ends_when_its_device_is_revoked(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Client::found(&world).await;
    let tablet = laptop.enrol(&world, 2).await;
    let mut lost = tablet.phone.listen(&tablet.path("/changesets/stream")).await;
    let mut kept = laptop.phone.listen(&laptop.path("/changesets/stream")).await;
    until_drained(&mut lost).await;
    until_drained(&mut kept).await;
    let revoke = Control::Revoke { device: tablet.identity.key(), join_key: None };
    let signed = laptop.sign(Kind::Control, &revoke.encode());
    laptop.push(&[signed]).await.ok();
    say(&mut laptop, b"not for the lost one").await;
    let heard = async {
        let mut heard = Vec::new();
        while let Some((_, data)) = lost.next_raw().await {
            heard.push(serde_json::from_str::<Value>(&data).expect("JSON"));
        }
        heard
    };
    let heard = timeout(DEADLINE, heard).await.expect("it ends");
    assert!(heard.iter().all(|it| it["sequence"].as_u64() <= Some(3)), "{heard:?}");
    assert_eq!(event(&mut kept).await.1["sequence"], 3);
    assert_eq!(event(&mut kept).await.1["sequence"], 4);
    let again = tablet.phone.try_listen(&tablet.path("/changesets/stream")).await;
    again.err().expect("refused").refused(403, "revoked");
    let stranger = Client::new(&world, 9, laptop.log);
    let refused = stranger.phone.try_listen(&stranger.path("/changesets/stream")).await;
    refused.err().expect("refused").refused(404, "no_such_log");
}

fn often(options: &mut Options) {
    options.retention_pause = Duration::from_millis(20);
}

async fn a_stream_from_below_the_floor_says_where_to_start(database: Database) {
    let world = World::start_with(database, often).await;
    let mut laptop = Client::found(&world).await;
    let mut tablet = laptop.enrol(&world, 2).await;
    for body in [b"old", b"was", b"all"] {
        say(&mut laptop, body).await;
    }
    let mut live = laptop.phone.listen(&laptop.path("/changesets/stream")).await;
    assert_eq!(until_drained(&mut live).await.0.len(), 5);
    let (digest, head) = laptop.snapshot(b"a sealed state").await;
    let opened = tablet.sign(Kind::Control, &Control::SnapshotOpened { digest }.encode());
    tablet.push(&[opened]).await.ok();
    eventually("the floor has risen", async || {
        world.stored(laptop.log).await.floor.seq == head.seq
    })
    .await;
    say(&mut laptop, b"after").await;
    let mut stream = tablet.phone.listen(&tablet.path("/changesets/stream?after=1")).await;
    let (name, floor) = event(&mut stream).await;
    assert_eq!((name.as_str(), &floor["head"]["sequence"]), ("floor", &head.seq.into()));
    assert_eq!(floor["snapshot"]["digest"], hex::encode(digest.0));
    let (read, _) = until_drained(&mut stream).await;
    let sequences: Vec<u64> = read.iter().filter_map(|it| it["sequence"].as_u64()).collect();
    assert_eq!(sequences, [2, 6, 7, 8], "what is kept from below, and everything above");
    // Whoever was live has lost nothing and is told of no floor.
    for seq in 6..=8_u64 {
        let (name, changeset) = event(&mut live).await;
        assert_eq!((name.as_str(), &changeset["sequence"]), ("changeset", &seq.into()));
    }
}

fn small(options: &mut Options) {
    options.vaults.entries_max = 4;
    options.vaults.entries_reserve = 1;
}

async fn whoever_listens_hears_that_the_vault_is_full(database: Database) {
    let world = World::start_with(database, small).await;
    let mut laptop = Client::found(&world).await;
    let mut stream = laptop.phone.listen(&laptop.path("/changesets/stream")).await;
    until_drained(&mut stream).await;
    for body in [b"two", b"and"] {
        say(&mut laptop, body).await;
        assert_eq!(event(&mut stream).await.0, "changeset");
    }
    let signed = laptop.sign(Kind::Quiet, b"one too many");
    let refused = laptop.push(&[signed]).await.refused(403, "entries_limit_reached");
    assert_eq!(refused["limit"], 4);
    assert_eq!(event(&mut stream).await.0, "full");
}
