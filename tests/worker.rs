//! Retention beside a relay takes nothing from anybody who is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sealwire::store::{Lock, StoreOptions, open_resting};
use sealwire_actors::ports::SystemClock;
use sealwire_actors::worker::Worker;
use tokio::sync::watch;

use crate::support::databases::CLOSE_DEADLINE;
use crate::support::person::Person;
use crate::support::place::Database;
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
