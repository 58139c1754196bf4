//! Opening and closing: one relay at a time, and no lost past that goes unnoticed.

use std::fs;
use std::time::Duration;

use sealwire::store::{Lock, OpenError, Standing, StoreOptions, Warning, migrate, open, restored};
use sealwire_protocol::LogType;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::time::timeout;

use super::on_every_database;
use super::scribe::{Draft, device, found};
use crate::support::databases::{CLOSE_DEADLINE, Database};

on_every_database! {
    a_second_relay_is_kept_out_and_waits_as_a_standby
    the_incarnation_stays_over_restarts
    saying_restored_gives_another_incarnation
    a_store_whose_counter_is_below_the_witness_has_lost_history
    a_store_that_lacks_what_it_had_committed_has_lost_history
    a_floor_at_the_head_and_a_log_that_has_ended_are_no_loss
    another_stores_witness_says_nothing
    a_lost_witness_is_written_again
    migrating_alone_leaves_a_store_that_opens
    a_store_that_is_dropped_gives_up_its_lock
    a_database_of_a_newer_relay_is_refused
}

const PATIENCE: Duration = Duration::from_secs(20);

async fn a_second_relay_is_kept_out_and_waits_as_a_standby(database: &Database) {
    let first = database.open().await;
    let refused = database.try_open(Lock::Try).await.map(|_| ());
    assert_eq!(refused, Err(OpenError::Locked));
    let mut log = found(&*first.store, 1, LogType::Group, device(1)).await;
    let options = database.options(Lock::Wait);
    let standby = tokio::spawn(async move { open(&options).await });
    log.commit(&*first.store, &[Draft::of(device(1), b"still the only one")]).await;
    assert!(!standby.is_finished());
    first.close().await;
    let second = timeout(PATIENCE, standby).await.expect("in time").expect("no panic");
    let second = second.expect("it takes over");
    assert_eq!(*second.standing().borrow(), Standing::Serving);
    assert_eq!(log.load(&*second.store()).await.head, log.head);
    second.close(CLOSE_DEADLINE).await.expect("closed");
}

async fn the_incarnation_stays_over_restarts(database: &Database) {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let opened = database.open().await;
        seen.push(opened.store.incarnation());
        assert!(opened.open().is_some_and(|open| open.warnings().is_empty()));
        opened.close().await;
    }
    seen.dedup();
    assert_eq!(seen.len(), 1);
    assert_ne!(seen[0], 0);
}

async fn saying_restored_gives_another_incarnation(database: &Database) {
    let opened = database.open().await;
    let before = opened.store.incarnation();
    let refused = restored(&database.options(Lock::Try)).await;
    assert_eq!(refused, Err(OpenError::Locked), "not under a relay that serves");
    opened.close().await;
    let after = restored(&database.options(Lock::Try)).await.expect("said");
    assert_ne!(after, before);
    let opened = database.open().await;
    assert_eq!(opened.store.incarnation(), after);
    opened.close().await;
}

/// Puts back what the store was, leaving the witness.
async fn put_back(database: &Database, copy: &[u8]) {
    if database.is_postgres() {
        let mut beside = database.beside().await;
        let undo = "update meta set value = value - 2 where name = 'start_counter'";
        beside.execute(undo).await.expect("undone");
    } else {
        fs::write(database.file(), copy).expect("put back");
    }
}

fn copy(database: &Database) -> Vec<u8> {
    if database.is_postgres() { Vec::new() } else { fs::read(database.file()).expect("copied") }
}

async fn a_store_whose_counter_is_below_the_witness_has_lost_history(database: &Database) {
    let opened = database.open().await;
    let log = found(&*opened.store, 1, LogType::Group, device(1)).await;
    let before = opened.store.incarnation();
    opened.close().await;
    let older = copy(database);
    let opened = database.open().await;
    log.clone().commit(&*opened.store, &[Draft::of(device(1), b"to be lost")]).await;
    opened.close().await;
    put_back(database, &older).await;

    let opened = database.open().await;
    let after = opened.store.incarnation();
    assert_ne!(after, before);
    opened.close().await;
    let opened = database.open().await;
    assert_eq!(opened.store.incarnation(), after, "it changes once");
    opened.close().await;
}

/// Runs a statement beside a store that is closed.
async fn execute(database: &Database, statement: &'static str) {
    if database.is_postgres() {
        database.beside().await.execute(statement).await.expect("executed");
    } else {
        let file = SqliteConnectOptions::new().filename(database.file());
        let mut beside = file.connect().await.expect("opened");
        beside.execute(statement).await.expect("executed");
        beside.close().await.expect("closed");
    }
}

async fn incarnation(database: &Database) -> u64 {
    let opened = database.open().await;
    let incarnation = opened.store.incarnation();
    opened.close().await;
    incarnation
}

async fn a_store_that_lacks_what_it_had_committed_has_lost_history(database: &Database) {
    let opened = database.open().await;
    let mut log = found(&*opened.store, 1, LogType::Group, device(1)).await;
    log.commit(&*opened.store, &[Draft::of(device(1), b"to be lost")]).await;
    let before = opened.store.incarnation();
    opened.close().await;
    assert_eq!(incarnation(database).await, before);
    // The counter stays as it was.
    execute(database, "update logs set seq = seq - 1").await;
    let after = incarnation(database).await;
    assert_ne!(after, before);
    assert_eq!(incarnation(database).await, after, "it changes once");
}

async fn a_floor_at_the_head_and_a_log_that_has_ended_are_no_loss(database: &Database) {
    let opened = database.open().await;
    let before = opened.store.incarnation();
    let mut log = found(&*opened.store, 1, LogType::Group, device(1)).await;
    log.commit(&*opened.store, &[Draft::of(device(1), b"old")]).await;
    let mut part = log.part();
    part.floor = Some(log.head);
    opened.store.commit(&[part]).await.expect("committed");
    opened.close().await;
    let opened = database.open().await;
    assert_eq!(opened.store.incarnation(), before);
    let mut part = log.part();
    part.ended = true;
    opened.store.commit(&[part]).await.expect("committed");
    opened.close().await;
    assert_eq!(incarnation(database).await, before);
}

async fn another_stores_witness_says_nothing(database: &Database) {
    let opened = database.open().await;
    let before = opened.store.incarnation();
    opened.close().await;
    let witness = database.directory().join("witness");
    let foreign = "sealwire witness v1\nstore 0000000000000001\ncounter 999\n";
    fs::write(&witness, foreign).expect("written");
    let opened = database.open().await;
    assert_eq!(opened.store.incarnation(), before);
    opened.close().await;
    assert_ne!(fs::read_to_string(&witness).expect("read"), foreign, "it is this store's again");
}

async fn a_lost_witness_is_written_again(database: &Database) {
    let opened = database.open().await;
    let before = opened.store.incarnation();
    opened.close().await;
    let witness = database.directory().join("witness");
    fs::remove_file(&witness).expect("removed");
    let opened = database.open().await;
    assert_eq!(opened.store.incarnation(), before);
    assert!(witness.exists());
    opened.close().await;
    fs::write(&witness, "nonsense").expect("written");
    let refused = database.try_open(Lock::Try).await.map(|_| ());
    assert_eq!(refused, Err(OpenError::Witness(std::io::ErrorKind::InvalidData)));
}

async fn migrating_alone_leaves_a_store_that_opens(database: &Database) {
    for _ in 0..2 {
        migrate(&database.options(Lock::Try)).await.expect("migrated");
    }
    let opened = database.open().await;
    found(&*opened.store, 1, LogType::Group, device(1)).await;
    assert_eq!(migrate(&database.options(Lock::Try)).await, Err(OpenError::Locked));
    opened.close().await;
}

async fn a_store_that_is_dropped_gives_up_its_lock(database: &Database) {
    drop(database.open().await);
    let opened = timeout(PATIENCE, database.try_open(Lock::Wait)).await.expect("in time");
    opened.expect("it opens").close().await;
}

async fn a_database_of_a_newer_relay_is_refused(database: &Database) {
    const NEWER: &str = "insert into _sqlx_migrations \
            (version, description, success, checksum, execution_time) \
         select 9999, description, success, checksum, execution_time from _sqlx_migrations \
         where version = 1";
    database.open().await.close().await;
    execute(database, NEWER).await;
    let refused = database.try_open(Lock::Try).await.map(|_| ());
    assert_eq!(refused, Err(OpenError::Newer(9999)));
}

#[tokio::test]
async fn a_closed_sqlite_store_is_one_file_and_its_witness() {
    let database = Database::sqlite();
    let opened = database.open().await;
    let mut log = found(&*opened.store, 1, LogType::Group, device(1)).await;
    log.commit(&*opened.store, &[Draft::of(device(1), &[1; 5000])]).await;
    opened.close().await;
    let mut names: Vec<String> = fs::read_dir(database.directory())
        .expect("listed")
        .map(|file| file.expect("a file").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["sealwire.db", "sealwire.db.lock", "witness", "witness.head"]);
}

#[tokio::test]
async fn a_server_that_commits_without_waiting_for_the_disk_is_warned_of() {
    let database = Database::postgres().await;
    let mut beside = database.beside().await;
    let name: String = sqlx::query_scalar("select current_database()::text")
        .fetch_one(&mut beside)
        .await
        .expect("a name");
    let off = format!("alter database {name} set synchronous_commit = off");
    beside.execute(AssertSqlSafe(off)).await.expect("set");
    let opened = database.open().await;
    let warnings = opened.open().expect("a database").warnings().to_vec();
    assert_eq!(warnings, [Warning::AsynchronousCommit]);
    opened.close().await;
}

#[tokio::test]
async fn another_postgres_timeline_or_system_has_lost_history() {
    let database = Database::postgres().await;
    let opened = database.open().await;
    let mut seen = vec![opened.store.incarnation()];
    opened.close().await;
    for fact in ["timeline", "system_identifier"] {
        let mut beside = database.beside().await;
        sqlx::query("update meta set value = value - 1 where name = $1")
            .bind(fact)
            .execute(&mut beside)
            .await
            .expect("as if it had been elsewhere");
        beside.close().await.expect("closed");
        let opened = database.open().await;
        seen.push(opened.store.incarnation());
        opened.close().await;
    }
    let opened = database.open().await;
    assert_eq!(Some(&opened.store.incarnation()), seen.last(), "it changes once");
    opened.close().await;
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 3);
}

#[tokio::test]
async fn a_url_that_names_no_database_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let urls =
        ["", "mysql://x", "postgres", "sqlite::memory:", "sqlite://", "sqlite://a?mode=memory"];
    for url in urls {
        let (url, data_dir) = (url.to_owned(), directory.path().to_owned());
        let refused = open(&StoreOptions { url, data_dir, lock: Lock::Try }).await.map(|_| ());
        assert_eq!(refused, Err(OpenError::Url));
    }
}
