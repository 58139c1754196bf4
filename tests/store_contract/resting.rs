//! Retention beside a relay: what a worker takes, what it leaves, and that the relay notices.

use std::sync::Arc;
use std::time::Duration;

use sealwire::store::{Lock, OpenError, OpenResting, open_resting};
use sealwire_actors::fakes::HandClock;
use sealwire_actors::ports::{CommitResult, LogCommit, LogKey, MemberChange, Store};
use sealwire_actors::worker::{Stepped, Worker};
use sealwire_protocol::{AckSet, LogType};
use tokio::time::timeout;

use super::scribe::{Draft, NOON, Scribe, commit, device, found, reserve};
use crate::support::databases::{CLOSE_DEADLINE, Database};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// How long the logs of these tests keep what nobody has acked.
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

async fn opened(database: &Database) -> OpenResting {
    open_resting(&database.options(Lock::Try)).await.expect("the lock for retention is free")
}

fn worker(resting: &OpenResting, now: u64) -> (Worker, Arc<HandClock>) {
    let clock = Arc::new(HandClock::at(now));
    (Worker::new(resting.logs(), clock.clone(), LIFETIME), clock)
}

async fn step(worker: &mut Worker) -> u64 {
    let Stepped { logs, .. } = worker.step().await.expect("a step");
    logs
}

/// A group of two with an entry of one that the other has not acked: seq 3, from `NOON`.
async fn old_log(store: &dyn Store, seed: u64) -> Scribe {
    let mut log = found(store, seed, LogType::Group, device(1)).await;
    let mut part =
        log.write(&[Draft::of(device(2), b"join").control(), Draft::of(device(1), b"old")]);
    reserve(store, log.key, &[2]).await;
    part.members.push(MemberChange::Joined { device: device(2), seq: 2, at: NOON });
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    log
}

async fn bodies(store: &dyn Store, key: LogKey) -> Vec<u64> {
    let records = store.load(&[key]).await.expect("a store");
    let record = records.into_iter().next().flatten().expect("a log");
    record.live.iter().map(|live| live.seq).collect()
}

#[tokio::test]
async fn a_worker_needs_postgres() {
    let database = Database::sqlite();
    database.open().await.close().await;
    let refused = open_resting(&database.options(Lock::Try)).await.map(|_| ());
    assert_eq!(refused, Err(OpenError::NeedsPostgres));
}

#[tokio::test]
async fn a_worker_waits_for_tables_that_it_knows() {
    let database = Database::postgres().await;
    let refused = open_resting(&database.options(Lock::Try)).await.map(|_| ());
    assert_eq!(refused, Err(OpenError::Older));
    database.open().await.close().await;
    opened(&database).await.close(CLOSE_DEADLINE).await.expect("closed");
}

#[tokio::test]
async fn a_relay_knows_that_a_worker_does_retention() {
    let database = Database::postgres().await;
    let relay = database.open().await;
    assert_eq!(relay.store.retention_is_elsewhere().await, Ok(false));
    let resting = opened(&database).await;
    assert_eq!(relay.store.retention_is_elsewhere().await, Ok(true));
    let second = open_resting(&database.options(Lock::Try)).await.map(|_| ());
    assert_eq!(second, Err(OpenError::Locked), "one worker serves a store");
    resting.close(CLOSE_DEADLINE).await.expect("closed");
    assert_eq!(relay.store.retention_is_elsewhere().await, Ok(false));
    relay.close().await;
}

#[tokio::test]
async fn a_worker_expires_what_is_old_in_logs_that_rest() {
    let database = Database::postgres().await;
    let relay = database.open().await;
    let store = &*relay.store;
    let log = old_log(store, 1).await;
    let resting = opened(&database).await;
    let (mut worker, clock) = worker(&resting, NOON + 31 * DAY);
    assert_eq!(step(&mut worker).await, 0, "it has only been seen");
    clock.turn(HOUR - 1);
    assert_eq!(step(&mut worker).await, 0);
    assert_eq!(bodies(store, log.key).await, [3]);
    clock.turn(1);
    assert_eq!(step(&mut worker).await, 1);
    assert_eq!(bodies(store, log.key).await, [] as [u64; 0]);
    let record = log.load(store).await;
    assert_eq!((record.floor.seq, record.version), (3, 1));

    // What the relay's log remembers is stale now, and nothing of its batch is lost elsewhere.
    let mut late = log.clone();
    let part = late.write(&[Draft::of(device(1), b"late")]);
    assert_eq!(commit(store, part).await, Ok(CommitResult::Stale));
    resting.close(CLOSE_DEADLINE).await.expect("closed");
    relay.close().await;
}

#[tokio::test]
async fn a_worker_leaves_logs_alone_that_do_not_rest() {
    let database = Database::postgres().await;
    let relay = database.open().await;
    let store = &*relay.store;
    let (mut written, acked) = (old_log(store, 1).await, old_log(store, 2).await);
    let resting = opened(&database).await;
    let now = NOON + 31 * DAY;
    let (mut worker, clock) = worker(&resting, now);
    assert_eq!(step(&mut worker).await, 0);
    clock.turn(HOUR);
    written.commit(store, &[Draft::of(device(1), b"new").at(now + HOUR)]).await;
    let mut ack = LogCommit::new(acked.key, 3, 0);
    ack.acks = vec![(device(2), AckSet::up_to(2))];
    assert_eq!(commit(store, ack).await, Ok(CommitResult::Committed));
    assert_eq!(step(&mut worker).await, 0, "one was written to, the other acked");
    clock.turn(HOUR);
    assert_eq!(step(&mut worker).await, 1, "the one that was acked has rested since");
    clock.turn(HOUR);
    assert_eq!(step(&mut worker).await, 1);
    assert_eq!(bodies(store, written.key).await, [4], "what is young stays");
    resting.close(CLOSE_DEADLINE).await.expect("closed");
    relay.close().await;
}

#[tokio::test]
async fn a_worker_ends_groups_that_are_idle_for_a_year_and_sweeps() {
    let database = Database::postgres().await;
    let relay = database.open().await;
    let store = &*relay.store;
    let log = old_log(store, 1).await;
    let vault = found(store, 2, LogType::Vault, device(2)).await;
    let (mine, other) = (device(3), found(store, 3, LogType::Group, device(4)).await);
    store.reserve(other.key, mine, 6, NOON, NOON).await.expect("reserved");
    let resting = opened(&database).await;
    let (mut worker, clock) = worker(&resting, NOON + 366 * DAY);
    let first = worker.step().await.expect("a step");
    assert!(first.logs == 0 && first.rows > 0, "the reservation and idle devices go: {first:?}");
    clock.turn(HOUR);
    assert_eq!(step(&mut worker).await, 2);
    assert_eq!(store.find_log(log.id).await, Ok(None));
    assert_eq!(store.find_log(other.id).await, Ok(None));
    assert!(store.find_log(vault.id).await.expect("a store").is_some(), "vaults never end so");
    resting.close(CLOSE_DEADLINE).await.expect("closed");
    relay.close().await;
}

#[tokio::test]
async fn a_second_worker_waits_and_takes_over() {
    let database = Database::postgres().await;
    database.open().await.close().await;
    let first = opened(&database).await;
    let options = database.options(Lock::Wait);
    let second = tokio::spawn(async move { open_resting(&options).await });
    first.close(CLOSE_DEADLINE).await.expect("closed");
    let second = timeout(CLOSE_DEADLINE, second).await.expect("in time").expect("no panic");
    let second = second.expect("it holds the lock");
    assert!(*second.holding().borrow());
    second.close(CLOSE_DEADLINE).await.expect("closed");
}
