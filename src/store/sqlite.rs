//! SQLite: the embedded store.
//!
//! One connection writes and a few read. Writing is WAL with `synchronous = full`, so a commit is
//! fsynced when it is answered. The writer never checkpoints, because a checkpoint inside a commit
//! makes that commit wait for the disk many times over: a connection of its own does, passively.
//!
//! A lock on a file beside the database keeps a second relay out. The database file itself cannot
//! serve: SQLite's own locks on it would be lost when any handle on it is closed.
//!
//! Holds always: WAL, full synchronisation and overwriting of deleted content on every connection.

use std::convert::Infallible;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use metrics::histogram;
use sealwire_actors::metrics::CHECKPOINT_TIME;
use sealwire_actors::ports::{StoreError, StoreStats};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{
    Arguments, AssertSqlSafe, ConnectOptions, Connection, Row, SqlSafeStr, Sqlite,
    SqliteConnection, SqlitePool,
};
use tokio::time::{sleep, timeout};

use super::dialect::{Bound, Columns, Dialect, ROWS_MAX, Table, Value};
use super::failure::Judge;
use super::housekeeping::Aside;
use super::lanes::{Lanes, pool};
use super::sql_store::{Count, SqlStore};
use super::{Lock, OpenError, STANDBY_PAUSE};

/// How long SQLite waits for a lock that another process holds (a backup, a shell).
const BUSY_DEADLINE: Duration = Duration::from_secs(5);

/// Connections that read. More than the machine's cores would only contend for the page cache.
const READERS: u32 = 4;

/// Statements kept prepared for each connection: about a dozen over row lists in ten sizes each, and
/// some fifty others.
const STATEMENTS_MAX: usize = 256;

/// Most rows of a step that is sent together with others. In larger batches waking the connection's
/// thread for each step is a small part of the whole, and the prepared statements are large.
const ROWS_JOINED_MAX: usize = 64;

/// Rows that a connection's thread may be ahead of their reader: as many as most loads have, so that
/// the thread never waits in the middle of a read and holds its snapshot.
const ROWS_AHEAD: usize = 1024;

/// Page cache of the connection that writes, in KiB (SQLite counts them as negative pages): the pages
/// of a whole batch, so that none goes to the disk before its commit.
const CACHE_KIB: i32 = 8 * 1024;

/// Page cache of each other connection, in KiB. Every commit empties it, and the pages are in the
/// system's cache besides.
const READER_CACHE_KIB: i32 = 512;

/// How often a checkpoint is tried while commits go on.
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause between tries while nothing happens.
const CHECKPOINT_PAUSE_MAX: Duration = Duration::from_secs(8);

/// Above so many frames (pages of 4 KiB: 64 MiB) a checkpoint is made while no commit runs: under
/// steady commits the log would otherwise never start again from its beginning.
const WAL_FRAMES_MAX: i64 = 16 * 1024;

/// Above this length the log's file is cut when it starts again from its beginning, in bytes: not at
/// every turn, since a file that grows anew makes its commits wait for the file system.
const WAL_BYTES_KEPT: i64 = 4 * WAL_FRAMES_MAX * 4096;

/// How often the log is truncated: what was deleted is then gone from it as well.
const TRUNCATE_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a checkpoint may take.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(60);

const COUNT: &str = "select \
    (select count(*) from logs where log_type = 1), \
    (select count(*) from logs where log_type = 2), \
    (select count(*) from members where state = 2), \
    (select count(*) from entries), \
    (select count(*) from bodies b join logs l on l.key = b.log where l.log_type = 1)";

impl Dialect for Sqlite {
    const BEGIN: &'static str = "begin immediate";
    const BEGIN_SNAPSHOT: &'static str = "begin";
    // Longer than SQLite waits for a lock by itself.
    const DEADLINE: Duration = Duration::from_secs(10);
    const ONE_WRITER: bool = true;
    const RETENTION_HELD: Option<&'static str> = None;
    const ROWS_ARE_DEAR: bool = true;
    const TEXTS_JOIN: bool = true;

    fn bind(values: &[Value<'_>]) -> Result<SqliteArguments, StoreError> {
        let mut arguments = SqliteArguments::default();
        arguments.reserve(values.len(), 0);
        for value in values {
            add(&mut arguments, value)?;
        }
        Ok(arguments)
    }

    fn bind_rows(groups: &[Vec<Table<'_>>]) -> Result<Vec<Bound<Self>>, StoreError> {
        let tables = || groups.iter().flatten();
        let rows_most = tables().map(Table::rows).max().unwrap_or_default();
        if rows_most <= ROWS_JOINED_MAX {
            return Ok(vec![bind_joined(tables(), rows_most)?]);
        }
        let mut bounds = Vec::new();
        for table in tables() {
            let width = table.width();
            for cells in table.cells().chunks(width * ROWS_MAX) {
                let text = table.step.sqlite_text(cells.len() / width);
                bounds.push((text, Self::bind(cells)?));
            }
        }
        Ok(bounds)
    }

    async fn fetch(
        connection: &mut SqliteConnection,
        (sql, arguments): Bound<Self>,
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        sqlx::query_with::<Sqlite, _>(sql, arguments).fetch_all(connection).await
    }
}

/// One text for several steps: their connection's thread is woken once for all. They are made for the
/// same number of rows, whatever each has, so that there are few texts to be kept prepared.
fn bind_joined<'a>(
    tables: impl Iterator<Item = &'a Table<'a>>,
    rows: usize,
) -> Result<Bound<Sqlite>, StoreError> {
    let padded = rows.next_power_of_two();
    let mut text = String::new();
    let mut arguments = SqliteArguments::default();
    for table in tables {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(table.step.sqlite_text_of(padded));
        for value in table.cells() {
            add(&mut arguments, value)?;
        }
        // The next step takes what follows.
        for _ in table.cells().len()..padded * table.width() {
            add(&mut arguments, &Value::Null)?;
        }
    }
    Ok((AssertSqlSafe(text).into_sql_str(), arguments))
}

fn add(arguments: &mut SqliteArguments, value: &Value<'_>) -> Result<(), StoreError> {
    match value {
        Value::Null => arguments.add(None::<i64>),
        Value::Int(number) => arguments.add(*number),
        Value::Bytes(bytes) => arguments.add(&bytes[..]),
        Value::Text(text) => arguments.add(*text),
    }
    .map_err(|_| StoreError::Refused)
}

#[async_trait]
impl Count for Sqlite {
    async fn count(lanes: &Lanes<Self>) -> Result<StoreStats, StoreError> {
        let rows = lanes.read().await?.rows(COUNT, &[]).await?;
        let row = rows.first().ok_or(StoreError::Corrupt)?;
        Ok(StoreStats {
            groups: row.number(0)?,
            vaults: row.number(1)?,
            memberships: row.number(2)?,
            entries: row.number(3)?,
            undelivered: row.number(4)?,
        })
    }
}

/// Whether commits wait for the disk. They always do, but in a debug build that is told not to: so it
/// can be shown that whoever measures such a relay sees it. A release build has no such switch.
pub(super) fn is_durable() -> bool {
    !cfg!(debug_assertions) || std::env::var_os("SEALWIRE_DEBUG_NO_FSYNC").is_none()
}

/// The file behind a URL, and how every connection to it is made.
pub(super) fn options(url: &str) -> Result<SqliteConnectOptions, OpenError> {
    let path = url.strip_prefix("sqlite:").ok_or(OpenError::Url)?;
    let path = path.strip_prefix("//").unwrap_or(path).split('?').next().unwrap_or_default();
    if path.is_empty() || path == ":memory:" || url.contains("mode=memory") {
        // SQLite would keep it in memory, and nothing would outlive the relay.
        return Err(OpenError::Url);
    }
    let options = SqliteConnectOptions::from_str(url).map_err(|_| OpenError::Url)?;
    let durable = if is_durable() { SqliteSynchronous::Full } else { SqliteSynchronous::Off };
    Ok(options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(durable)
        .foreign_keys(true)
        .busy_timeout(BUSY_DEADLINE)
        .pragma("secure_delete", "fast")
        .pragma("wal_autocheckpoint", "0")
        .pragma("journal_size_limit", WAL_BYTES_KEPT.to_string())
        .pragma("cache_size", (-CACHE_KIB).to_string())
        .pragma("temp_store", "memory")
        .statement_cache_capacity(STATEMENTS_MAX)
        .row_buffer_size(ROWS_AHEAD)
        .thread_name(|number| format!("sqlite-{number}"))
        .disable_statement_logging())
}

/// Holds the relay's lock for as long as it lives.
pub(super) struct FileLock(#[expect(dead_code, reason = "held, never read")] File);

/// Takes the lock beside `database`.
pub(super) async fn lock(database: &Path, how: Lock) -> Result<FileLock, OpenError> {
    // By its real name: two links to one database are one database.
    let real = database.canonicalize().unwrap_or_else(|_| database.to_owned());
    let mut name = real.into_os_string();
    name.push(".lock");
    let failed = |error: std::io::Error| OpenError::LockFile(error.kind());
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(PathBuf::from(name))
        .map_err(failed)?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(FileLock(file)),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) => match how {
                Lock::Try => return Err(OpenError::Locked),
                Lock::Wait => super::tell_waiting(&mut told, false),
            },
        }
        sleep(STANDBY_PAUSE).await;
    }
}

/// Makes the tables.
pub(super) async fn migrate(
    options: &SqliteConnectOptions,
    judge: &Judge,
) -> Result<(), OpenError> {
    let pool: SqlitePool = pool(1).connect_lazy_with(options.clone());
    let migrated = sqlx::migrate!("migrations/sqlite").run(&pool).await;
    pool.close().await;
    super::migrated(judge, migrated)
}

/// The connections for serving.
pub(super) fn lanes(options: &SqliteConnectOptions, judge: &Judge) -> Lanes<Sqlite> {
    let reading = options
        .clone()
        .pragma("query_only", "true")
        .pragma("cache_size", (-READER_CACHE_KIB).to_string());
    Lanes::new(
        pool(READERS).idle_timeout(None).max_lifetime(None).connect_lazy_with(reading),
        pool(1).idle_timeout(None).max_lifetime(None).connect_lazy_with(options.clone()),
        1,
        judge.clone(),
    )
}

/// Moves committed pages from the log into the database, beside the commits.
pub(super) struct Checkpointer {
    connection: SqliteConnection,
    /// The database's file, to be flushed. It is never closed: that would take every lock of this
    /// process on the file, SQLite's among them.
    database: &'static File,
    judge: Judge,
    truncated: Instant,
    _lock: FileLock,
}

/// What a checkpoint found: frames in the log, and how many of them it has moved.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Progress {
    frames: i64,
    moved: i64,
}

impl Checkpointer {
    pub(super) async fn new(
        options: &SqliteConnectOptions,
        judge: Judge,
        lock: FileLock,
    ) -> Result<Self, OpenError> {
        let options = options.clone().pragma("cache_size", (-READER_CACHE_KIB).to_string());
        let connection = options.connect().await.map_err(|failure| judge.of(&failure))?;
        let file = File::open(options.get_filename()).map_err(|_| StoreError::Unavailable)?;
        let database = Box::leak(Box::new(file));
        Ok(Self { connection, database, judge, truncated: Instant::now(), _lock: lock })
    }

    async fn passive(&mut self) -> Result<Progress, StoreError> {
        self.checkpoint("pragma wal_checkpoint(passive)").await
    }

    async fn truncate(&mut self) -> Result<Progress, StoreError> {
        self.truncated = Instant::now();
        self.checkpoint("pragma wal_checkpoint(truncate)").await
    }

    async fn checkpoint(&mut self, sql: &'static str) -> Result<Progress, StoreError> {
        let row = timeout(CHECKPOINT_DEADLINE, sqlx::query(sql).fetch_one(&mut self.connection))
            .await
            .map_err(|_| self.judge.late())?
            .map_err(|failure| self.judge.of(&failure))?;
        let number = |place| row.try_get(place).map_err(|failure| self.judge.of(&failure));
        Ok(Progress { frames: number(1)?, moved: number(2)? })
    }

    /// One checkpoint, and one more without commits if the log has grown too long or its day is
    /// over.
    async fn step(&mut self, store: &SqlStore<Sqlite>) -> Result<Progress, StoreError> {
        let progress = timed("passive", self.passive()).await?;
        if progress.moved > 0 {
            // While commits go on, and little at a time: SQLite would flush all of it in the time in
            // which nobody commits.
            timed("flush", self.flush()).await?;
        }
        if self.truncated.elapsed() >= TRUNCATE_INTERVAL {
            let _nobody_commits = store.lanes.commit().await?;
            return self.truncate().await;
        }
        if progress.frames > WAL_FRAMES_MAX {
            // What commits have added meanwhile: only the last little is left for the time in which
            // nobody commits.
            self.passive().await?;
            let _nobody_commits = store.lanes.commit().await?;
            return timed("alone", self.passive()).await;
        }
        Ok(progress)
    }

    /// Has the disk write what was moved into the database.
    async fn flush(&self) -> Result<(), StoreError> {
        let database = self.database;
        let flushed = tokio::task::spawn_blocking(|| database.sync_data());
        match timeout(CHECKPOINT_DEADLINE, flushed).await {
            // Whatever came of it: the checkpoint flushes as well, and fails if the disk does.
            Ok(_) => Ok(()),
            Err(_) => Err(self.judge.late()),
        }
    }

    /// Gives the page caches and the prepared statements back: after a rush they would stay for ever.
    async fn shrink(store: &SqlStore<Sqlite>) -> Result<(), StoreError> {
        let mut resting = store.lanes.resting_readers();
        resting.push(store.lanes.commit().await?);
        for lease in &mut resting {
            lease.forget_statements().await?;
            lease.rows("pragma shrink_memory", &[]).await?;
        }
        Ok(())
    }
}

/// Counts how long a step took.
async fn timed<T>(step: &'static str, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.await;
    histogram!(CHECKPOINT_TIME, "step" => step).record(began.elapsed().as_secs_f64());
    done
}

#[async_trait]
impl Aside<Sqlite> for Checkpointer {
    async fn run(&mut self, store: &SqlStore<Sqlite>) -> Infallible {
        let mut pause = CHECKPOINT_PAUSE;
        let mut before = None;
        loop {
            sleep(pause).await;
            // An error has been said where it was judged, and the next try is the remedy.
            let now = self.step(store).await.ok();
            let longer = if now == before { pause * 2 } else { CHECKPOINT_PAUSE };
            if pause < CHECKPOINT_PAUSE_MAX && longer >= CHECKPOINT_PAUSE_MAX {
                // It costs nothing to try again after the next rush.
                let _ = Self::shrink(store).await;
            }
            pause = longer.min(CHECKPOINT_PAUSE_MAX);
            before = now;
        }
    }

    async fn end(mut self: Box<Self>) {
        // Nothing is lost without it: the next opening reads the log.
        let _ = self.truncate().await;
        let _ = self.connection.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_connection_is_durable_and_overwrites_what_it_deletes() {
        const FULL: i64 = 2;
        const FAST: i64 = 2;
        const SETTINGS: [(&str, i64); 4] = [
            ("pragma synchronous", FULL),
            ("pragma secure_delete", FAST),
            ("pragma foreign_keys", 1),
            ("pragma wal_autocheckpoint", 0),
        ];

        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        let lanes = lanes(&options(&url).expect("a path"), &Judge::new());
        let mut leases =
            [lanes.commit().await.expect("a writer"), lanes.read().await.expect("one")];
        for lease in &mut leases {
            for (pragma, expected) in SETTINGS {
                let rows = lease.rows(pragma, &[]).await.expect("read");
                assert_eq!(rows[0].int(0), Ok(expected), "{pragma}");
            }
            let rows = lease.rows("pragma journal_mode", &[]).await.expect("read");
            assert_eq!(rows[0].maybe_text(0), Ok(Some("wal")));
        }
    }

    #[tokio::test]
    async fn a_reading_connection_cannot_write() {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        let options = options(&url).expect("a path");
        migrate(&options, &Judge::new()).await.expect("migrated");
        let lanes = lanes(&options, &Judge::new());
        const DELETE: &str = "delete from meta";
        assert!(lanes.read().await.expect("one").rows(DELETE, &[]).await.is_err());
        assert!(lanes.commit().await.expect("one").rows(DELETE, &[]).await.is_ok());
    }

    /// Without statistics SQLite plans for all sizes alike, so what it plans for empty tables holds.
    #[tokio::test]
    async fn no_statement_over_a_list_reads_a_whole_table() {
        use super::super::{changes, commit, load, tenure, vaults, writes};

        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        let options = options(&url).expect("a path");
        migrate(&options, &Judge::new()).await.expect("migrated");
        let mut connection = options.connect().await.expect("open");
        for step in [
            changes::STEPS,
            commit::STEPS,
            load::STEPS,
            tenure::STEPS,
            vaults::STEPS,
            writes::STEPS,
        ]
        .concat()
        {
            for rows in [1, ROWS_MAX] {
                let text = step.sqlite_text(rows).as_str().to_owned();
                let plan = sqlx::query(AssertSqlSafe(format!("explain query plan {text}")))
                    .fetch_all(&mut connection)
                    .await
                    .expect("planned");
                for line in &plan {
                    let line = line.maybe_text(3).expect("a text").expect("no null");
                    let list = ["SCAN padded", "SCAN given", "SCAN g", "SCAN h"].contains(&line);
                    let sound =
                        list || line.ends_with("CONSTANT ROW") || line.ends_with("CONSTANT ROWS");
                    assert!(sound || !line.starts_with("SCAN"), "{line} in {text}");
                    assert!(!line.contains("AUTOMATIC"), "{line} in {text}");
                }
            }
        }
    }
}
