//! PostgreSQL: the store for production.
//!
//! Every connection has deadlines on the server, a little shorter than ours, so that a statement that
//! waits too long is ended there as well. The planner is kept to indexes and to the order in which a
//! statement names its tables, and plans each time anew: it plans for the table that it sees, and a
//! plan for an empty one, kept while the table grows, reads all of it for every row.
//!
//! Nothing here notifies, and nothing counts in a hot row. The relay's lock stands in
//! [`super::advisory`].

use std::cmp::Ordering;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use sealwire_actors::ports::{LogCommit, StoreError, StoreStats};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, PgConnection, PgPool, Postgres, SqlSafeStr};

use super::dialect::{Bound, Columns, Dialect, Kind, Table, Value};
use super::failure::{Judge, corrupt};
use super::lanes::{Lanes, pool};
use super::sql_store::Count;
use super::tenure::Origin;
use super::{OpenError, Warning};
use super::{advisory, at_once};

/// Committers: at two, one batch is written while the other waits for the disk; more only contend.
const COMMITTERS: u32 = 2;

/// Connections for everything else.
const READERS: u32 = 8;

/// What the server ends by itself. Shorter than [`Dialect::DEADLINE`], so that its answer comes
/// first unless it hangs.
const STATEMENT_TIMEOUT: &str = "4000";

/// How long the server waits for a row lock: commits are milliseconds, so longer is a fault.
const LOCK_TIMEOUT: &str = "2000";

/// How long the server lets a transaction rest whose relay has gone silent.
const IDLE_TRANSACTION_TIMEOUT: &str = "10000";

/// Bytes of each table that are read to estimate how many rows it has. Smaller tables are counted.
const SAMPLE_BYTES: u64 = 16 * 1024 * 1024;

/// A whole, in the parts in which a sample is given.
const PARTS: u64 = 1_000_000;

const SIZES: &str = "select pg_relation_size('logs'), pg_relation_size('members'), \
    pg_relation_size('entries'), pg_relation_size('bodies')";

const COUNT: &str = "select \
    (select count(*) from logs tablesample system ($1::bigint / 10000.0) where log_type = 1), \
    (select count(*) from logs tablesample system ($1::bigint / 10000.0) where log_type = 2), \
    (select count(*) from members tablesample system ($2::bigint / 10000.0) where state = 2), \
    (select count(*) from entries tablesample system ($3::bigint / 10000.0)), \
    (select count(*) from bodies b tablesample system ($4::bigint / 10000.0) \
        join logs l on l.key = b.log where l.log_type = 1)";

/// The timeline stands in the name of the file that is being written: the control file learns of a
/// new one only with its next checkpoint.
const ORIGIN: &str = "select (select system_identifier from pg_control_system()), \
    substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";

const SETTINGS: &str = "select name, setting from pg_settings \
    where name in ('fsync', 'full_page_writes', 'synchronous_commit')";

impl Dialect for Postgres {
    const BEGIN: &'static str = "begin";
    const BEGIN_SNAPSHOT: &'static str = "begin isolation level repeatable read read only";
    const DEADLINE: Duration = Duration::from_secs(5);
    const ONE_WRITER: bool = false;
    const RETENTION_HELD: Option<&'static str> = Some(advisory::IS_HELD);
    const ROWS_ARE_DEAR: bool = false;
    const TEXTS_JOIN: bool = false;

    fn bind(values: &[Value<'_>]) -> Result<PgArguments, StoreError> {
        let mut arguments = PgArguments::default();
        for value in values {
            match value {
                // Statements that take single values never take nulls; a list's nulls have a type.
                Value::Null => return Err(StoreError::Refused),
                Value::Int(number) => arguments.add(*number),
                Value::Bytes(bytes) => arguments.add(&bytes[..]),
                Value::Text(text) => arguments.add(*text),
            }
            .map_err(|_| StoreError::Refused)?;
        }
        Ok(arguments)
    }

    fn bind_rows(groups: &[Vec<Table<'_>>]) -> Result<Vec<Bound<Self>>, StoreError> {
        groups.iter().map(|group| bind_group(group)).collect()
    }

    fn bind_at_once(batch: &[LogCommit]) -> Result<Option<Bound<Self>>, StoreError> {
        at_once::call(batch)
    }

    async fn fetch(
        connection: &mut PgConnection,
        (sql, arguments): Bound<Self>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        sqlx::query_with::<Postgres, _>(sql, arguments).fetch_all(connection).await
    }
}

/// One statement for all of a group: what is not sent is not waited for.
fn bind_group(tables: &[Table<'_>]) -> Result<Bound<Postgres>, StoreError> {
    let mut arguments = PgArguments::default();
    let mut texts = Vec::with_capacity(tables.len());
    let mut next = 1;
    for table in tables {
        texts.push(table.step.postgres_text(next));
        next += table.width();
        add_columns(&mut arguments, table)?;
    }
    let text = if texts.len() == 1 {
        texts.remove(0)
    } else {
        let steps = texts.iter().zip(1..).map(|(text, place)| format!("s{place} as ({text})"));
        format!("with {} select 1", steps.collect::<Vec<_>>().join(", "))
    };
    Ok((AssertSqlSafe(text).into_sql_str(), arguments))
}

/// Adds each column of `table` as an array.
pub(super) fn add_columns(
    arguments: &mut PgArguments,
    table: &Table<'_>,
) -> Result<(), StoreError> {
    for (place, (_, kind)) in table.step.columns().iter().enumerate() {
        let column = table.cells().iter().skip(place).step_by(table.width());
        match kind {
            Kind::Int => arguments.add(column.map(Value::as_int).collect::<Vec<_>>()),
            Kind::Bytes => arguments.add(column.map(Value::as_bytes).collect::<Vec<_>>()),
            Kind::Text => arguments.add(column.map(Value::as_text).collect::<Vec<_>>()),
        }
        .map_err(|_| StoreError::Refused)?;
    }
    Ok(())
}

#[async_trait]
impl Count for Postgres {
    async fn count(lanes: &Lanes<Self>) -> Result<StoreStats, StoreError> {
        let mut lease = lanes.read().await?;
        let sizes = lease.rows(SIZES, &[]).await?;
        let sizes = sizes.first().ok_or_else(|| corrupt("no sizes"))?;
        let mut parts = [PARTS; 4];
        for (place, parts) in parts.iter_mut().enumerate() {
            *parts = (PARTS * SAMPLE_BYTES / sizes.number(place)?.max(1)).clamp(1, PARTS);
        }
        let values: Vec<Value<'_>> =
            parts.iter().map(|parts| Value::number(*parts)).collect::<Result<_, _>>()?;
        let rows = lease.rows(COUNT, &values).await?;
        let row = rows.first().ok_or_else(|| corrupt("no counts"))?;
        let whole = |place, parts| Ok(row.number(place)?.saturating_mul(PARTS) / parts);
        Ok(StoreStats {
            groups: whole(0, parts[0])?,
            vaults: whole(1, parts[0])?,
            memberships: whole(2, parts[1])?,
            entries: whole(3, parts[2])?,
            undelivered: whole(4, parts[3])?,
        })
    }
}

/// How every connection for serving is made.
pub(super) fn options(url: &str) -> Result<PgConnectOptions, OpenError> {
    let options = plain_options(url)?;
    Ok(options.options([
        ("statement_timeout", STATEMENT_TIMEOUT),
        ("lock_timeout", LOCK_TIMEOUT),
        ("idle_in_transaction_session_timeout", IDLE_TRANSACTION_TIMEOUT),
        ("default_transaction_isolation", "read committed"),
        ("plan_cache_mode", "force_custom_plan"),
        ("join_collapse_limit", "1"),
        ("enable_seqscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
    ]))
}

/// The same without deadlines on statements: migrations take as long as they take.
pub(super) fn plain_options(url: &str) -> Result<PgConnectOptions, OpenError> {
    let options = PgConnectOptions::from_str(url).map_err(|_| OpenError::Url)?;
    Ok(options.application_name("sealwire").disable_statement_logging())
}

/// The migrations that this program knows.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

const MIGRATED: &str = "select max(version) from _sqlx_migrations where success";

/// Whether the tables are those that this program knows, without making any.
pub(super) async fn check_migrated(
    options: &PgConnectOptions,
    judge: &Judge,
) -> Result<(), OpenError> {
    let mut connection = options.connect().await.map_err(|failure| judge.of(&failure))?;
    let found = sqlx::query(MIGRATED).fetch_one(&mut connection).await;
    let found = match found {
        Ok(row) => row.maybe_int(0)?.unwrap_or(0),
        Err(failure) if is_undefined_table(&failure) => 0,
        Err(failure) => return Err(judge.of(&failure).into()),
    };
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    match found.cmp(&known) {
        Ordering::Less => Err(OpenError::Older),
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(OpenError::Newer(found)),
    }
}

fn is_undefined_table(failure: &sqlx::Error) -> bool {
    const UNDEFINED_TABLE: &str = "42P01";
    let code = failure.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code == UNDEFINED_TABLE)
}

/// Makes the tables.
pub(super) async fn migrate(url: &str, judge: &Judge) -> Result<(), OpenError> {
    let pool: PgPool = pool(1).connect_lazy_with(plain_options(url)?);
    let migrated = MIGRATIONS.run(&pool).await;
    pool.close().await;
    super::migrated(judge, migrated)
}

/// The connections for serving.
pub(super) fn lanes(options: &PgConnectOptions, judge: &Judge) -> Lanes<Postgres> {
    Lanes::new(
        pool(READERS).connect_lazy_with(options.clone()),
        pool(COMMITTERS)
            .after_connect(|connection, _| Box::pin(at_once::prepare(connection)))
            .connect_lazy_with(options.clone()),
        COMMITTERS as usize,
        judge.clone(),
    )
}

/// Which server this is, and on which timeline.
pub(super) async fn origin(
    connection: &mut PgConnection,
    judge: &Judge,
) -> Result<Origin, StoreError> {
    let row =
        sqlx::query(ORIGIN).fetch_one(connection).await.map_err(|failure| judge.of(&failure))?;
    let timeline = row.maybe_text(1)?.and_then(|hex| i64::from_str_radix(hex, 16).ok());
    let timeline = timeline.ok_or_else(|| corrupt("a timeline"))?;
    Ok(Origin { system: row.int(0)?, timeline })
}

/// What in the server's settings makes `Appended` mean less than fsynced.
pub(super) async fn warnings(
    connection: &mut PgConnection,
    judge: &Judge,
) -> Result<Vec<Warning>, StoreError> {
    let rows =
        sqlx::query(SETTINGS).fetch_all(connection).await.map_err(|failure| judge.of(&failure))?;
    let mut warnings = Vec::new();
    for row in &rows {
        let warning = match (row.maybe_text(0)?, row.maybe_text(1)?) {
            (Some("fsync"), Some("off")) => Warning::NoFsync,
            (Some("full_page_writes"), Some("off")) => Warning::NoFullPageWrites,
            (Some("synchronous_commit"), Some("off")) => Warning::AsynchronousCommit,
            _ => continue,
        };
        warnings.push(warning);
    }
    Ok(warnings)
}
