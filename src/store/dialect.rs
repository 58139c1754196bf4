//! What SQLite and PostgreSQL do differently, as small as it can be.
//!
//! Every query of the relay is written once. It can be, because both number their parameters `$1`,
//! both have upserts and `returning`, and every integer column is 64 bits wide. What differs is how
//! a list of rows is handed to a statement ([`Step`]), how a transaction begins and what a row lock
//! is called; and a few statements over lists have two forms, because one database does well what
//! takes the other a time that grows with the square of the list, or of the table.
//!
//! Nothing here decides, and nothing here holds a connection.

use std::borrow::Cow;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sealwire_actors::ports::{LogCommit, StoreError};
use sealwire_protocol::{DeviceKey, Digest};
use sqlx::{AssertSqlSafe, ColumnIndex, Database, Decode, Row, SqlSafeStr, SqlStr, Type};

use super::failure::corrupt;

/// One parameter of a statement.
pub(super) enum Value<'a> {
    Null,
    Int(i64),
    Bytes(Cow<'a, [u8]>),
    Text(&'a str),
}

impl<'a> Value<'a> {
    /// An unsigned number, if the database's signed one holds it.
    pub(super) fn number(value: u64) -> Result<Self, StoreError> {
        i64::try_from(value).map(Self::Int).map_err(|_| StoreError::Refused)
    }

    pub(super) fn bytes(bytes: &'a [u8]) -> Self {
        Self::Bytes(Cow::Borrowed(bytes))
    }

    pub(super) fn maybe(bytes: Option<&'a [u8]>) -> Self {
        bytes.map_or(Self::Null, Self::bytes)
    }

    pub(super) fn as_int(&self) -> Option<i64> {
        if let Self::Int(number) = self { Some(*number) } else { None }
    }

    pub(super) fn as_bytes(&self) -> Option<&[u8]> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

/// The type of one column of the rows that are handed to a [`Step`].
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Int,
    Bytes,
    Text,
}

impl Kind {
    /// PostgreSQL's type of an array of it.
    pub(super) fn postgres_array(self) -> &'static str {
        match self {
            Self::Int => "bigint[]",
            Self::Bytes => "bytea[]",
            Self::Text => "text[]",
        }
    }
}

/// How many sizes of row list SQLite has a statement for: 1, 2, 4 … 512. sqlx caches statements by
/// their text, so a text for every length would be prepared anew almost every time.
const SIZES: usize = 10;

/// Most rows that one SQLite statement takes.
pub(super) const ROWS_MAX: usize = 1 << (SIZES - 1);

/// A statement over a list of rows, which it sees as a table named `given`. Joins with it are written
/// `cross join … where`: both databases then begin with the list and look up the rest. Left to itself,
/// SQLite may read a whole table and look up the list.
pub(super) struct Step {
    /// Names and types. The first is never null: SQLite pads the list with rows of nulls.
    columns: &'static [(&'static str, Kind)],
    /// SQLite's statement after `with given`. What stands between braces is not for it: row locks,
    /// which its only writer has anyway.
    sqlite: &'static str,
    /// PostgreSQL's, but for the braces.
    postgres: &'static str,
    sqlite_texts: [OnceLock<Arc<str>>; SIZES],
}

impl Step {
    /// A statement that both understand and do well.
    pub(super) const fn new(columns: &'static [(&'static str, Kind)], sql: &'static str) -> Self {
        Self::twofold(columns, sql, sql)
    }

    /// Two statements that do the same: one for SQLite, one for PostgreSQL.
    pub(super) const fn twofold(
        columns: &'static [(&'static str, Kind)],
        sqlite: &'static str,
        postgres: &'static str,
    ) -> Self {
        Self { columns, sqlite, postgres, sqlite_texts: [const { OnceLock::new() }; SIZES] }
    }

    pub(super) fn columns(&self) -> &'static [(&'static str, Kind)] {
        self.columns
    }

    /// The text for up to [`ROWS_MAX`] rows. Rows beyond `rows` are nulls, which is what a parameter
    /// is that nobody binds.
    pub(super) fn sqlite_text(&self, rows: usize) -> SqlStr {
        AssertSqlSafe(Arc::clone(self.sqlite_text_of(rows))).into_sql_str()
    }

    /// [`Step::sqlite_text`], to be joined with others.
    pub(super) fn sqlite_text_of(&self, rows: usize) -> &Arc<str> {
        let size = rows.next_power_of_two().trailing_zeros() as usize;
        self.sqlite_texts[size].get_or_init(|| {
            let names = self.names();
            let row = format!("({})", vec!["?"; self.columns.len()].join(", "));
            let padded = vec![row; 1 << size].join(", ");
            let first = self.columns[0].0;
            let (before, braced) = self.sqlite.split_once('{').unwrap_or((self.sqlite, ""));
            let after = braced.split_once('}').map_or("", |(_, after)| after);
            format!(
                "with padded({names}) as (values {padded}), \
                 given as (select * from padded where {first} is not null) {before}{after}"
            )
            .into()
        })
    }

    /// The text for any number of rows, as one array for each column, the first of which is parameter
    /// `first`.
    pub(super) fn postgres_text(&self, first: usize) -> String {
        let arrays: Vec<String> = self
            .columns
            .iter()
            .zip(first..)
            .map(|((_, kind), place)| format!("${place}::{}", kind.postgres_array()))
            .collect();
        let (names, arrays) = (self.names(), arrays.join(", "));
        let sql = self.postgres.replace(['{', '}'], "");
        format!("with given({names}) as (select * from unnest({arrays})) {sql}")
    }

    fn names(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

/// The rows for a [`Step`], cell by cell.
pub(super) struct Table<'a> {
    pub(super) step: &'static Step,
    cells: Vec<Value<'a>>,
}

impl<'a> Table<'a> {
    pub(super) fn new(step: &'static Step) -> Self {
        Self { step, cells: Vec::new() }
    }

    /// Adds a row; as many cells as the step has columns.
    pub(super) fn push<const WIDTH: usize>(&mut self, row: [Value<'a>; WIDTH]) {
        debug_assert_eq!(WIDTH, self.width());
        self.cells.extend(row);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    pub(super) fn width(&self) -> usize {
        self.step.columns.len()
    }

    /// How many rows it has.
    pub(super) fn rows(&self) -> usize {
        self.cells.len() / self.width()
    }

    /// The cells, row after row.
    pub(super) fn cells(&self) -> &[Value<'a>] {
        &self.cells
    }
}

/// A statement with its parameters.
pub(super) type Bound<D> = (SqlStr, <D as Database>::Arguments);

/// A database that the relay can be kept in.
pub(super) trait Dialect: Database<Row: Columns> {
    /// Begins a transaction that writes.
    const BEGIN: &'static str;

    /// Begins a transaction that reads one state of the database throughout.
    const BEGIN_SNAPSHOT: &'static str;

    /// How long one statement may take, waiting for locks included, before the connection is thrown
    /// away.
    const DEADLINE: Duration;

    /// Whether founding, reserving and sweeping go through the committers' connections: so it is
    /// where there can be only one writer.
    const ONE_WRITER: bool;

    /// Tells whether another process holds the lock for retention, if one could: a statement that takes
    /// the two halves of the lock's number.
    const RETENTION_HELD: Option<&'static str>;

    /// Whether a row costs much, whatever is in it.
    const ROWS_ARE_DEAR: bool;

    /// Binds parameters.
    fn bind(values: &[Value<'_>]) -> Result<Self::Arguments, StoreError>;

    /// Whether several statements can be sent as one text, to be run one after the other.
    const TEXTS_JOIN: bool;

    /// Binds rows for steps, those of one group after those of the group before it; within a group they
    /// do not depend on each other. As many statements as are needed. Their rows are wanted of a step
    /// that is alone.
    fn bind_rows(groups: &[Vec<Table<'_>>]) -> Result<Vec<Bound<Self>>, StoreError>;

    /// Binds a whole commit as one statement, if the database has one for what it changes. It gives 1 if
    /// all heads were as expected and everything is written; else nothing was.
    fn bind_at_once(_batch: &[LogCommit]) -> Result<Option<Bound<Self>>, StoreError> {
        Ok(None)
    }

    /// Runs a statement and gives all of its rows.
    fn fetch(
        connection: &mut Self::Connection,
        bound: Bound<Self>,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;
}

/// Cells of a row, by place. What is null or of another type where it must not be is corrupt.
pub(super) trait Columns: Send + Sync + Unpin {
    /// A signed number.
    fn int(&self, place: usize) -> Result<i64, StoreError>;

    /// A signed number or null.
    fn maybe_int(&self, place: usize) -> Result<Option<i64>, StoreError>;

    /// Bytes or null.
    fn maybe_bytes(&self, place: usize) -> Result<Option<&[u8]>, StoreError>;

    /// Text or null.
    fn maybe_text(&self, place: usize) -> Result<Option<&str>, StoreError>;

    /// Bytes.
    fn bytes(&self, place: usize) -> Result<&[u8], StoreError> {
        self.maybe_bytes(place)?.ok_or_else(|| corrupt("a null"))
    }

    /// An unsigned number.
    fn number(&self, place: usize) -> Result<u64, StoreError> {
        u64::try_from(self.int(place)?).map_err(|_| corrupt("a negative number"))
    }

    /// 32 bytes that are a digest.
    fn digest(&self, place: usize) -> Result<Digest, StoreError> {
        Digest::from_slice(self.bytes(place)?).ok_or_else(|| corrupt("a digest's length"))
    }

    /// 32 bytes that are a device key.
    fn device(&self, place: usize) -> Result<DeviceKey, StoreError> {
        DeviceKey::from_slice(self.bytes(place)?).ok_or_else(|| corrupt("a key's length"))
    }
}

impl<R> Columns for R
where
    R: Row + Send + Sync + Unpin,
    usize: ColumnIndex<R>,
    i64: Type<R::Database> + for<'r> Decode<'r, R::Database>,
    for<'r> &'r [u8]: Type<R::Database> + Decode<'r, R::Database>,
    for<'r> &'r str: Type<R::Database> + Decode<'r, R::Database>,
{
    fn int(&self, place: usize) -> Result<i64, StoreError> {
        self.try_get(place).map_err(|_| corrupt("a number"))
    }

    fn maybe_int(&self, place: usize) -> Result<Option<i64>, StoreError> {
        self.try_get(place).map_err(|_| corrupt("a number"))
    }

    fn maybe_bytes(&self, place: usize) -> Result<Option<&[u8]>, StoreError> {
        self.try_get(place).map_err(|_| corrupt("bytes"))
    }

    fn maybe_text(&self, place: usize) -> Result<Option<&str>, StoreError> {
        self.try_get(place).map_err(|_| corrupt("a text"))
    }
}
