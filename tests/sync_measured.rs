//! How long an app's database of 50,000 rows takes to a second device: measured, and run only when it
//! is asked for.
//!
//! ```sh
//! ./scripts/test --release --run-ignored only --no-capture -E 'test(/^sync_measured/)'
//! ```
//!
//! `SEALWIRE_TEST_ROWS` sets how many rows there are (50,000).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use sealwire_client::identity::Identity;
use sealwire_client::sync::{Attached, Schema, Table, Whose};
use sealwire_client::vault::Vault;
use sealwire_client::wire;
use sealwire_protocol::LogId;
use sealwire_protocol::frame::SnapshotSummary;
use tempfile::TempDir;

use crate::support::place::Database;
use crate::support::world::World;

/// Rows of a household's finances of ten years.
const ROWS: u64 = 50_000;

const TABLES: &str = "
    pragma journal_mode = wal;
    create table transactions (
        id text primary key, booked_on text not null, amount integer not null, category text,
        description text, payee text, card text, account text
    );
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of a minute"]
async fn on_sqlite() {
    Box::pin(a_database_reaches_a_second_device(Database::Sqlite)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of a minute"]
async fn on_postgres() {
    Box::pin(a_database_reaches_a_second_device(Database::Postgres)).await;
}

struct Phone {
    directory: TempDir,
    database: Attached,
}

impl Phone {
    async fn new(number: u8, rows: u64) -> (Self, Duration) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("app.db");
        let db = Connection::open(&path).expect("a database");
        db.execute_batch(TABLES).expect("tables");
        db.execute(FILL, [rows.cast_signed(), 0]).expect("filled");
        drop(db);
        let schema = Schema::version(1).table(
            Table::group("transactions").user_private_column("card").user_private_column("account"),
        );
        let identity = Arc::new(Identity::from_seed(&[number; 32]));
        let begun = Instant::now();
        let database = Attached::attach(&path, identity, &schema).await.expect("attached");
        (Self { directory, database }, begun.elapsed())
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("app.db")
    }

    fn app(&self) -> Connection {
        Connection::open(self.path()).expect("a database")
    }

    fn count(&self) -> u64 {
        let sql = "select count(*) from transactions where card is not null";
        let count: i64 = self.app().query_row(sql, [], |row| row.get(0)).expect("a count");
        count.cast_unsigned()
    }
}

/// So many rows from a number on. What is in them is as varied as in life, so that it compresses as it
/// does there.
const FILL: &str = "
    with recursive n(i) as (select ?2 union all select i + 1 from n where i + 1 < ?2 + ?1)
    insert into transactions
    select lower(hex(randomblob(16))), date('2016-01-01', '+' || (i % 3650) || ' days'),
           abs(random() % 100000), 'category ' || (i * i % 23),
           'payment ' || abs(random() % 5000) || ' for ' || (i % 97), 'shop ' || (i * 7 % 400),
           printf('%04d', i * 31 % 10), printf('DE%020d', i * 13 % 17)
    from n where ?1 > 0";

fn rows() -> u64 {
    std::env::var("SEALWIRE_TEST_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(ROWS)
}

/// A row that was written or read is one change.
fn say(what: &str, rows: u64, took: Duration) {
    let per_second = rows as f64 / took.as_secs_f64();
    println!("{what:<58} {:>8.2} s {per_second:>10.0} changes/s", took.as_secs_f64());
}

async fn a_database_reaches_a_second_device(database: Database) {
    let rows = rows();
    let world = World::start(database).await;
    let (laptop, took) = Phone::new(1, rows).await;
    println!("{rows} rows, {database:?}");
    say("attach: triggers, and what is there is taken over", rows, took);
    let log = laptop.database.found(&world.url()).await.expect("founded");
    let (phone, _) = Phone::new(2, 0).await;
    enrol(&laptop, &phone).await;
    let begun = Instant::now();
    let report = laptop.database.sync().await.expect("synced");
    if report.sent_rows > 0 {
        say("what is left is sent", report.sent_rows, begun.elapsed());
    }
    let begun = Instant::now();
    let report = phone.database.sync().await.expect("synced");
    assert_eq!(phone.count(), rows);
    say("pull, verify, open, replay", rows, begun.elapsed());
    println!("{:<58} {:>8}", "entries", report.replayed.changesets);

    // The app goes on writing: captured by the triggers, one row to a statement.
    let app = laptop.app();
    let begun = Instant::now();
    app.execute(FILL, [rows.cast_signed(), rows.cast_signed()]).expect("filled");
    say("the app inserts as many again, captured", rows, begun.elapsed());
    let begun = Instant::now();
    let report = laptop.database.sync().await.expect("synced");
    assert_eq!(report.sent_rows, rows);
    say("capture read, stamped, sealed, signed, pushed", rows, begun.elapsed());
    let begun = Instant::now();
    phone.database.sync().await.expect("synced");
    assert_eq!(phone.count(), rows * 2);
    say("pull, verify, open, replay", rows, begun.elapsed());
    let begun = Instant::now();
    app.execute("update transactions set amount = amount + 1", []).expect("updated");
    say("the app updates a cell of every row, captured", rows * 2, begun.elapsed());
    let begun = Instant::now();
    laptop.database.sync().await.expect("synced");
    say("capture read, stamped, sealed, signed, pushed", rows * 2, begun.elapsed());
    let begun = Instant::now();
    phone.database.sync().await.expect("synced");
    say("pull, verify, open, replay", rows * 2, begun.elapsed());

    let begun = Instant::now();
    let made = laptop.database.snapshot().await.expect("made");
    say("snapshot: serialised, compressed, sealed, uploaded", rows * 2, begun.elapsed());
    println!("{:<58} {:>8} KiB", "its size", made.size / 1024);
    compare_levels(&world, log, &made).await;
    let file = std::fs::metadata(laptop.path()).expect("a file").len();
    println!("{:<58} {:>8} KiB", "the database's file, sync's tables included", file / 1024);
    let begun = Instant::now();
    assert!(phone.database.sync().await.expect("synced").confirmed);
    say("another device compares and confirms it", rows * 2, begun.elapsed());
    let (tablet, _) = Phone::new(3, 0).await;
    enrol(&laptop, &tablet).await;
    let begun = Instant::now();
    tablet.database.sync().await.expect("synced");
    assert_eq!(tablet.count(), rows * 2);
    say("a new device is ready from the snapshot", rows * 2, begun.elapsed());
}

/// What each level of compression makes of the snapshot's state, and how long it takes.
async fn compare_levels(world: &World, log: LogId, made: &SnapshotSummary) {
    let identity = Arc::new(Identity::from_seed(&[1; 32]));
    let options = wire::Options::default();
    let mut wire = wire::connect(&world.url(), &identity, &options).await.expect("a session").0;
    let mut vault = Vault::new(identity, log);
    vault.pull(&mut wire).await.expect("pulled");
    let state = vault.open_snapshot(&mut wire, made).await.expect("opened");
    println!("{:<58} {:>8} KiB", "the state in it, one's own sealed inside", state.len() / 1024);
    for level in [1, 3, 6, 9, 12, 15, 19] {
        let begun = Instant::now();
        let packed = zstd::bulk::compress(&state, level).expect("compressed");
        let took = begun.elapsed().as_secs_f64();
        let text = format!("zstd level {level}: {} KiB", packed.len() / 1024);
        println!("{text:<58} {took:>8.2} s");
    }
}

async fn enrol(laptop: &Phone, other: &Phone) {
    let offer = laptop.database.offer(Whose::Mine).await.expect("an offer");
    let consent = other.database.accept(&offer).await.expect("a consent");
    let begun = Instant::now();
    let report = laptop.database.enrol(&consent, Whose::Mine).await.expect("enrolled");
    if report.sent_rows > 0 {
        say("sealed, signed, pushed, and a device enrolled", report.sent_rows, begun.elapsed());
    }
}
