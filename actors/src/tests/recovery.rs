//! Recovery as the routes see it, over a store in memory.

use std::sync::Arc;

use sealwire_protocol::{DeviceKey, RelayFrame};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use super::device::{Device, World};
use crate::ports::{Clock, RecoveryPut, RecoveryStore, StoreError};
use crate::recovery::counters::{FAILURES_MAX, FETCH_WINDOW_MS, FETCHES_MAX, LOCK_MS};
use crate::recovery::{
    Answer, Counters, KdfParams, Locked, Recovery, RecoveryCode, RecoveryKey, RecoveryKeys,
    RecoveryVault,
};

const ALICE: DeviceKey = DeviceKey([1; 32]);
const BOB: DeviceKey = DeviceKey([2; 32]);

fn keys(current: &[u8], previous: Option<&[u8]>) -> RecoveryKeys {
    let previous = previous.map(RecoveryKey::derive);
    RecoveryKeys { current: RecoveryKey::derive(current), previous }
}

fn recovery(world: &World) -> Recovery {
    Recovery::new(&world.system, keys(b"secret", None))
}

fn code(text: &str) -> RecoveryCode {
    RecoveryCode::parse(text).expect("a code")
}

fn first() -> RecoveryCode {
    code("0123456789ABCDE9")
}

fn vault(byte: u8) -> RecoveryVault {
    let kdf = KdfParams { memory_kib: 65_536, iterations: 3, parallelism: 4 };
    RecoveryVault { salt: vec![byte; 16], kdf, blob: Zeroizing::new(vec![byte; 300]) }
}

async fn fetched(recovery: &Recovery, code: &RecoveryCode) -> Option<(DeviceKey, RecoveryVault)> {
    match recovery.fetch(code).await.expect("answered") {
        Answer::Granted(found) => Some(found),
        Answer::Unknown | Answer::Locked(_) => None,
    }
}

#[tokio::test]
async fn what_was_stored_is_fetched_with_its_code_and_no_other() {
    let world = World::new().await;
    let recovery = recovery(&world);
    let stored = recovery.put(ALICE, &first(), &vault(1)).await;
    assert_eq!(stored, Ok(RecoveryPut::Stored));
    assert!(fetched(&recovery, &first()).await == Some((ALICE, vault(1))));
    assert!(recovery.fetch(&code("0000000000000000")).await == Ok(Answer::Unknown));
    let taken = recovery.put(BOB, &first(), &vault(2)).await;
    assert_eq!(taken, Ok(RecoveryPut::Taken));
    recovery.delete(ALICE).await.expect("deleted");
    assert!(recovery.fetch(&first()).await == Ok(Answer::Unknown));
    recovery.delete(ALICE).await.expect("deleted again");
}

#[tokio::test]
async fn a_thousand_fetches_in_parallel_are_granted_ten_times() {
    let world = World::new().await;
    let recovery = recovery(&world);
    recovery.put(ALICE, &first(), &vault(1)).await.expect("stored");
    let mut fetches = JoinSet::new();
    for _ in 0..1000 {
        let recovery = recovery.clone();
        fetches.spawn(async move { recovery.fetch(&first()).await });
    }
    let until = world.clock.now_ms() + FETCH_WINDOW_MS;
    let mut granted = 0;
    for answer in fetches.join_all().await {
        match answer.expect("answered") {
            Answer::Granted(_) => granted += 1,
            Answer::Locked(lock) => assert_eq!(lock, Locked { until }),
            Answer::Unknown => panic!("it is there"),
        }
    }
    assert_eq!(granted, FETCHES_MAX);
    world.clock.turn(FETCH_WINDOW_MS);
    assert!(fetched(&recovery, &first()).await.is_some());
}

#[tokio::test]
async fn a_thousand_reports_in_parallel_are_one_lock_of_an_hour() {
    let world = World::new().await;
    let recovery = recovery(&world);
    recovery.put(ALICE, &first(), &vault(1)).await.expect("stored");
    let mut reports = JoinSet::new();
    for _ in 0..1000 {
        let recovery = recovery.clone();
        reports.spawn(async move { recovery.report_failure(&first()).await });
    }
    let answers = reports.join_all().await;
    let counted = answers.iter().filter(|answer| **answer == Ok(Answer::Granted(()))).count();
    assert_eq!(counted, FAILURES_MAX as usize);
    let until = world.clock.now_ms() + LOCK_MS;
    assert!(recovery.fetch(&first()).await == Ok(Answer::Locked(Locked { until })));
    recovery.put(ALICE, &first(), &vault(1)).await.expect("stored");
    assert!(fetched(&recovery, &first()).await.is_some(), "the owner has cleared it");
}

#[tokio::test]
async fn the_owner_s_sessions_are_told_of_a_fetch_and_nobody_else_s() {
    let world = World::new().await;
    let mut alice = Device::connected(1, &world).await;
    let mut bob = Device::connected(2, &world).await;
    let recovery = recovery(&world);
    recovery.put(alice.id(), &first(), &vault(1)).await.expect("stored");
    assert!(fetched(&recovery, &first()).await.is_some());
    let told = alice.next().await;
    assert!(matches!(told, RelayFrame::RecoveryFetched(frame) if frame.at == world.clock.now_ms()));
    assert!(bob.nothing_waits());
}

#[tokio::test]
async fn a_vault_of_the_secret_before_is_found_until_it_is_stored_anew() {
    let world = World::new().await;
    recovery(&world).put(ALICE, &first(), &vault(1)).await.expect("stored");
    let rotated = Recovery::new(&world.system, keys(b"new secret", Some(b"secret")));
    assert!(fetched(&rotated, &first()).await.is_some());
    assert_eq!(rotated.under_other_secrets().await, Ok((1, 0)));
    let forgetful = Recovery::new(&world.system, keys(b"new secret", None));
    assert!(forgetful.fetch(&first()).await == Ok(Answer::Unknown));
    assert_eq!(forgetful.under_other_secrets().await, Ok((0, 1)));
    rotated.put(ALICE, &first(), &vault(2)).await.expect("stored");
    assert_eq!(forgetful.under_other_secrets().await, Ok((0, 0)));
    assert!(fetched(&forgetful, &first()).await == Some((ALICE, vault(2))));
}

#[tokio::test]
async fn a_store_that_is_away_is_said_and_not_taken_for_an_unknown_code() {
    let world = World::new().await;
    let recovery = recovery(&world);
    recovery.put(ALICE, &first(), &vault(1)).await.expect("stored");
    world.store.fail_reads(true);
    assert!(recovery.fetch(&first()).await == Err(StoreError::Unavailable));
    assert!(recovery.report_failure(&first()).await == Err(StoreError::Unavailable));
}

#[tokio::test]
async fn retention_forgets_counts_that_matter_no_more() {
    let world = World::new().await;
    let recovery = recovery(&world);
    recovery.put(ALICE, &first(), &vault(1)).await.expect("stored");
    assert!(fetched(&recovery, &first()).await.is_some());
    world.clock.turn(FETCH_WINDOW_MS);
    let rows = keys(b"secret", None).rows(&first());
    let store: Arc<_> = world.store.clone();
    world
        .until_async(|| {
            let store = store.clone();
            async move { store.recovery_counters(rows).await == Ok(Some(Counters::default())) }
        })
        .await;
}
