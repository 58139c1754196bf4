//! Recovery vaults: one for each device, found by a code's name, granted a limited number of times.

use std::sync::Arc;

use sealwire_actors::ports::{
    Counted, NewRecovery, RecoveryId, RecoveryIds, RecoveryPut, RecoveryRecord, Store, StoreError,
};
use sealwire_actors::recovery::counters::{FAILURES_MAX, FETCH_WINDOW_MS, FETCHES_MAX, LOCK_MS};
use sealwire_actors::recovery::{Counters, Locked};
use sealwire_protocol::DeviceKey;
use tokio::task::JoinSet;

use super::on_every_store;
use super::scribe::{NOON, device};
use crate::support::databases::Database;

on_every_store! {
    a_recovery_vault_comes_back_as_it_was_stored
    a_device_has_one_recovery_vault
    a_code_that_another_device_uses_is_taken
    what_the_secret_before_has_named_is_found_and_renamed
    a_thousand_fetches_at_once_are_granted_ten_times
    a_thousand_reports_at_once_are_counted_five_times
    an_owner_who_stores_anew_clears_everything
    an_unknown_code_writes_nothing
    what_was_counted_is_there_after_a_restart
    counts_that_matter_no_more_are_forgotten
}

fn id(number: u8) -> RecoveryId {
    RecoveryId([number; 32])
}

fn ids(number: u8) -> RecoveryIds {
    RecoveryIds { current: id(number), previous: None }
}

fn vault(owner: DeviceKey, ids: RecoveryIds) -> NewRecovery {
    // A key id that needs all of its bits.
    NewRecovery { ids, key_id: u64::MAX - 3, owner, sealed: vec![owner.0[0]; 300], day: 20_000 }
}

async fn put(store: &dyn Store, owner: DeviceKey, ids: RecoveryIds) -> RecoveryPut {
    store.put_recovery(&vault(owner, ids)).await.expect("answered")
}

fn granted(owner: DeviceKey) -> Result<Counted<RecoveryRecord>, StoreError> {
    Ok(Counted::Granted(RecoveryRecord { owner, sealed: vec![owner.0[0]; 300] }))
}

fn locked<T>(until: u64) -> Result<Counted<T>, StoreError> {
    Ok(Counted::Locked(Locked { until }))
}

async fn a_recovery_vault_comes_back_as_it_was_stored(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    assert_eq!(put(store, device(1), ids(1)).await, RecoveryPut::Stored);
    assert_eq!(put(store, device(2), ids(2)).await, RecoveryPut::Stored);
    assert!(store.count_recovery_fetch(ids(1), NOON).await == granted(device(1)));
    assert!(store.count_recovery_fetch(ids(2), NOON).await == granted(device(2)));
    assert_eq!(store.recovery_key_ids().await, Ok(vec![(u64::MAX - 3, 2)]));
    assert_eq!(store.delete_recovery(device(1)).await, Ok(true));
    assert_eq!(store.delete_recovery(device(1)).await, Ok(false));
    assert!(store.count_recovery_fetch(ids(1), NOON).await == Ok(Counted::Unknown));
    opened.close().await;
}

async fn a_device_has_one_recovery_vault(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    put(store, device(1), ids(1)).await;
    assert_eq!(put(store, device(1), ids(2)).await, RecoveryPut::Stored);
    assert_eq!(store.recovery_counters(ids(1)).await, Ok(None), "the old code finds nothing");
    assert!(store.count_recovery_fetch(ids(2), NOON).await == granted(device(1)));
    assert_eq!(put(store, device(2), ids(1)).await, RecoveryPut::Stored, "the code is free");
    opened.close().await;
}

async fn a_code_that_another_device_uses_is_taken(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    put(store, device(1), ids(1)).await;
    put(store, device(2), ids(2)).await;
    assert_eq!(put(store, device(2), ids(1)).await, RecoveryPut::Taken);
    assert!(store.count_recovery_fetch(ids(1), NOON).await == granted(device(1)));
    assert!(
        store.count_recovery_fetch(ids(2), NOON).await == granted(device(2)),
        "it keeps its own"
    );

    // All at the same moment: one has it.
    let mut puts = JoinSet::new();
    for number in 10..30 {
        let store = Arc::clone(&opened.store);
        puts.spawn(async move { put(&*store, device(number), ids(9)).await });
    }
    let stored = puts.join_all().await.into_iter().filter(|put| *put == RecoveryPut::Stored);
    assert_eq!(stored.count(), 1);
    opened.close().await;
}

async fn what_the_secret_before_has_named_is_found_and_renamed(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    put(store, device(1), ids(1)).await;
    let rotated = RecoveryIds { current: id(2), previous: Some(id(1)) };
    assert!(store.count_recovery_fetch(rotated, NOON).await == granted(device(1)));
    assert_eq!(put(store, device(2), rotated).await, RecoveryPut::Taken);
    assert_eq!(put(store, device(1), rotated).await, RecoveryPut::Stored);
    assert!(store.count_recovery_fetch(ids(2), NOON).await == granted(device(1)));
    assert_eq!(store.recovery_counters(ids(1)).await, Ok(None));
    opened.close().await;
}

async fn a_thousand_fetches_at_once_are_granted_ten_times(database: &Database) {
    let opened = database.open().await;
    put(&*opened.store, device(1), ids(1)).await;
    let mut fetches = JoinSet::new();
    for _ in 0..1000 {
        let store = Arc::clone(&opened.store);
        fetches.spawn(async move { store.count_recovery_fetch(ids(1), NOON).await });
    }
    let (mut granted_times, mut failed) = (0, 0);
    for answer in fetches.join_all().await {
        match answer {
            Ok(Counted::Granted(_)) => granted_times += 1,
            Ok(Counted::Locked(lock)) => assert_eq!(lock.until, NOON + FETCH_WINDOW_MS),
            // Too many at once wait too long for a connection: that is no grant.
            Err(StoreError::Unavailable) => failed += 1,
            Ok(Counted::Unknown) | Err(_) => panic!("another answer"),
        }
    }
    assert!(granted_times <= FETCHES_MAX, "{granted_times} were granted");
    assert!(granted_times == FETCHES_MAX || failed > 0, "{granted_times} were granted");
    opened.close().await;
}

async fn a_thousand_reports_at_once_are_counted_five_times(database: &Database) {
    let opened = database.open().await;
    put(&*opened.store, device(1), ids(1)).await;
    let mut reports = JoinSet::new();
    for _ in 0..1000 {
        let store = Arc::clone(&opened.store);
        reports.spawn(async move { store.count_recovery_failure(ids(1), NOON).await });
    }
    let answers = reports.join_all().await;
    let counted = answers.iter().filter(|answer| **answer == Ok(Counted::Granted(()))).count();
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    assert!(counted <= FAILURES_MAX as usize, "{counted} were counted");
    if failed == 0 {
        assert_eq!(counted, FAILURES_MAX as usize);
        assert!(opened.store.count_recovery_fetch(ids(1), NOON).await == locked(NOON + LOCK_MS));
    }
    opened.close().await;
}

async fn an_owner_who_stores_anew_clears_everything(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    put(store, device(1), ids(1)).await;
    for _ in 0..FAILURES_MAX {
        assert!(store.count_recovery_failure(ids(1), NOON).await == Ok(Counted::Granted(())));
    }
    assert!(store.count_recovery_failure(ids(1), NOON).await == locked(NOON + LOCK_MS));
    put(store, device(1), ids(1)).await;
    assert_eq!(store.recovery_counters(ids(1)).await, Ok(Some(Counters::default())));
    for _ in 0..FETCHES_MAX {
        assert!(store.count_recovery_fetch(ids(1), NOON).await == granted(device(1)));
    }
    assert!(store.count_recovery_fetch(ids(1), NOON).await == locked(NOON + FETCH_WINDOW_MS));
    put(store, device(1), ids(2)).await;
    assert!(store.count_recovery_fetch(ids(2), NOON).await == granted(device(1)));
    opened.close().await;
}

async fn an_unknown_code_writes_nothing(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    put(store, device(1), ids(1)).await;
    assert!(store.count_recovery_fetch(ids(7), NOON).await == Ok(Counted::Unknown));
    assert!(store.count_recovery_failure(ids(7), NOON).await == Ok(Counted::Unknown));
    assert_eq!(store.recovery_counters(ids(7)).await, Ok(None));
    assert_eq!(store.recovery_key_ids().await, Ok(vec![(u64::MAX - 3, 1)]));
    opened.close().await;
}

async fn what_was_counted_is_there_after_a_restart(database: &Database) {
    let opened = database.open().await;
    put(&*opened.store, device(1), ids(1)).await;
    for _ in 0..FETCHES_MAX {
        assert!(opened.store.count_recovery_fetch(ids(1), NOON).await == granted(device(1)));
    }
    assert!(opened.store.count_recovery_failure(ids(1), NOON + 5).await.is_ok());
    let before = opened.store.recovery_counters(ids(1)).await.expect("read");
    opened.close().await;
    let opened = database.open().await;
    assert_eq!(opened.store.recovery_counters(ids(1)).await, Ok(before));
    let late = opened.store.count_recovery_fetch(ids(1), NOON + FETCH_WINDOW_MS - 1).await;
    assert!(late == locked(NOON + FETCH_WINDOW_MS));
    opened.close().await;
}

async fn counts_that_matter_no_more_are_forgotten(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    for number in 1..=4 {
        put(store, device(number), ids(number)).await;
    }
    for number in 1..=3 {
        store.count_recovery_fetch(ids(number), NOON).await.expect("granted");
    }
    store.count_recovery_failure(ids(3), NOON).await.expect("counted");
    let end = NOON + FETCH_WINDOW_MS;
    assert_eq!(store.forget_recovery_counts(end - 1, 10).await, Ok(0));
    assert_eq!(store.forget_recovery_counts(end, 1).await, Ok(1), "a step is bounded");
    assert_eq!(store.forget_recovery_counts(end, 10).await, Ok(1));
    for number in [1, 2, 4] {
        let counters = store.recovery_counters(ids(number)).await;
        assert_eq!(counters, Ok(Some(Counters::default())));
    }
    let third = store.recovery_counters(ids(3)).await.expect("read").expect("there");
    assert_eq!((third.failures, third.fetches), (1, 1), "a failure counts for a day");
    opened.close().await;
}
