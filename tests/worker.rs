//! Retention beside a relay takes nothing from anybody who is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sealwire::store::{Lock, StoreOptions, open_resting};
use sealwire_actors::Options;
use sealwire_actors::ports::SystemClock;
use sealwire_actors::worker::Worker;
use sealwire_protocol::{Control, Kind};
use tokio::sync::watch;

use crate::support::databases::CLOSE_DEADLINE;
use crate::support::eventually;
use crate::support::person::Person;
use crate::support::place::Database;
use crate::support::vault_client::Client;
use crate::support::world::World;

/// How many messages each person sends.
const MESSAGES: usize = 12;

/// The worker is told that bodies live for no time and that every log rests at once: it takes what it can
/// get, under the hands of those who write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_writes_while_a_worker_alters_the_log_loses_nothing() {
    let world = World::start(Database::Postgres).await;
    let url = world.url();
    let (mut alice, mut bob) = (Person::new().await, Person::new().await);
    for person in [&mut alice, &mut bob] {
        person.connect(&url).await;
    }
    let log = alice.found(&url).await;
    bob.join(&alice, log).await;

    let options = StoreOptions {
        url: world.place().url().to_owned(),
        data_dir: world.place().data().to_owned(),
        lock: Lock::Try,
    };
    let resting = open_resting(&options).await.expect("the lock is free");
    let (stop, stopped) = watch::channel(false);
    let altered = Arc::new(AtomicU64::new(0));
    let working = tokio::spawn({
        let (logs, altered) = (resting.logs(), altered.clone());
        async move {
            let mut worker = Worker::new(logs, Arc::new(SystemClock), Duration::ZERO)
                .resting_for(Duration::ZERO);
            while !*stopped.borrow() {
                let stepped = worker.step().await.expect("a step");
                altered.fetch_add(stepped.logs, Ordering::Relaxed);
            }
        }
    });

    // Each says something and the other hears it, though the worker expires bodies at once: what was
    // offered live has been heard, and what was not, is told as expired and never as missing.
    for number in 0..MESSAGES {
        alice.say(log, &format!("alice {number}")).await;
        bob.say(log, &format!("bob {number}")).await;
    }
    stop.send_replace(true);
    working.await.expect("no panic");
    assert!(altered.load(Ordering::Relaxed) > 0, "the worker has found nothing to do");
    resting.close(CLOSE_DEADLINE).await.expect("closed");

    // Both writers' entries are all there, in one chain that both have checked to the same head.
    alice.say(log, "the last").await;
    bob.hears(log, "the last").await;
    let seq = world.stored(log).await.head.seq;
    assert!(seq > 2 * MESSAGES as u64, "{seq}");
    for person in [&alice, &bob] {
        person.reads_to(log, seq).await;
    }
}

fn often(options: &mut Options) {
    options.retention_pause = Duration::from_millis(20);
}

/// A worker knows nothing of vaults: what snapshots cover stays the relay's to let go, whoever has the
/// lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_is_compacted_while_a_worker_has_the_lock() {
    let world = World::start_with(Database::Postgres, often).await;
    let options = StoreOptions {
        url: world.place().url().to_owned(),
        data_dir: world.place().data().to_owned(),
        lock: Lock::Try,
    };
    let resting = open_resting(&options).await.expect("the lock is free");
    assert_eq!(world.store().retention_is_elsewhere().await, Ok(true));
    let mut worker = Worker::new(resting.logs(), Arc::new(SystemClock), Duration::ZERO)
        .resting_for(Duration::ZERO);

    let mut laptop = Client::found(&world).await;
    let mut tablet = laptop.enrol(&world, 2).await;
    let old: Vec<_> = (0..20_u8).map(|number| laptop.sign(Kind::Quiet, &[number])).collect();
    laptop.push(&old).await.ok();
    let (digest, head) = laptop.snapshot(b"a sealed state").await;
    for _ in 0..3 {
        worker.step().await.expect("a step");
    }
    assert_eq!(world.stored(laptop.log).await.floor.seq, 0, "nobody has opened it");
    let opened = tablet.sign(Kind::Control, &Control::SnapshotOpened { digest }.encode());
    tablet.push(&[opened]).await.ok();
    eventually("the floor has risen", async || {
        world.stored(laptop.log).await.floor.seq == head.seq
    })
    .await;
    worker.step().await.expect("a step");
    let pulled = tablet.pull(0).await;
    assert_eq!(pulled["floor"]["head"]["sequence"], head.seq);
    let kept = |pulled: &serde_json::Value| -> Vec<u64> {
        let changesets = pulled["changesets"].as_array().expect("a list");
        changesets.iter().filter_map(|it| it["sequence"].as_u64()).collect()
    };
    assert_eq!(kept(&pulled), [1, 2], "founding and enrolling");
    assert_eq!(kept(&tablet.pull(head.seq).await), [23, 24]);
    resting.close(CLOSE_DEADLINE).await.expect("closed");
}
