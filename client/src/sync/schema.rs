//! Which tables are shared, and under which key each of their columns travels.
//!
//! The app names its tables and the columns that are its user's alone; the rest is read from the
//! database. What cannot be merged without a person is refused here, at once and with its reason, not
//! when two devices have already written it.
//!
//! A column keeps its scope for life: what was sealed for some cannot be taken back from them, and what
//! was sealed for one cannot be read by the others.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::changeset::{COLUMNS_MAX, KEY_COLUMNS_MAX, NAME_BYTES_MAX};
use super::value::Value;

/// Most tables that may be registered.
pub const TABLES_MAX: usize = 256;

/// Beginning of the names of this module's own tables and triggers.
pub(crate) const PREFIX: &str = "sealwire_";

/// Whose key seals something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum KeyScope {
    /// Every device that is enrolled in the vault.
    Group,
    /// The devices of one person alone, within a vault of several people.
    UserPrivate,
}

/// A table that is to be shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub(crate) name: String,
    pub(crate) rows: KeyScope,
    pub(crate) private: BTreeSet<String>,
    pub(crate) integer_key: bool,
}

impl Table {
    /// A table whose rows every device of the vault has.
    #[must_use]
    pub fn group(name: impl Into<String>) -> Self {
        Self::new(name.into(), KeyScope::Group)
    }

    /// A table that is its user's alone: the others do not learn that it has rows.
    #[must_use]
    pub fn user_private(name: impl Into<String>) -> Self {
        Self::new(name.into(), KeyScope::UserPrivate)
    }

    fn new(name: String, rows: KeyScope) -> Self {
        Self { name, rows, private: BTreeSet::new(), integer_key: false }
    }

    /// One column of a shared row that is its user's alone.
    #[must_use]
    pub fn user_private_column(mut self, column: impl Into<String>) -> Self {
        self.private.insert(column.into());
        self
    }

    /// Takes a table whose primary key is SQLite's own number for the row. Two devices give the same
    /// number to different rows, which then become one: only for tables whose numbers the app gives
    /// and means, such as one row of settings.
    #[must_use]
    pub fn with_integer_key(mut self) -> Self {
        self.integer_key = true;
        self
    }
}

/// All that is shared, and the app's version of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schema {
    pub(crate) version: u32,
    pub(crate) tables: Vec<Table>,
}

impl Schema {
    /// Nothing yet, of this version: a number of the app's, which rises when its tables change.
    #[must_use]
    pub fn version(version: u32) -> Self {
        Self { version, tables: Vec::new() }
    }

    /// And this table.
    #[must_use]
    pub fn table(mut self, table: Table) -> Self {
        self.tables.push(table);
        self
    }
}

/// Why a table cannot be shared. Each names the table.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// There is no such table, or it is a view or virtual.
    #[error("there is no table {0}")]
    NoTable(String),
    /// It is named twice, or there are too many tables or columns, or too long names.
    #[error("the table {0} is named twice, or it or its names are too large")]
    TooLarge(String),
    /// Rows of two devices cannot be told apart.
    #[error("the table {0} has no primary key of its own; give its rows random ids")]
    NoKey(String),
    /// SQLite numbers its rows: see [`Table::with_integer_key`].
    #[error("the table {0} is numbered by SQLite, on each device alike; give its rows random ids")]
    IntegerKey(String),
    /// The key compares text in another way than byte by byte.
    #[error("the primary key of {0} has a collation")]
    Collation(String),
    /// Something besides the primary key is unique: two devices can each write a row, and only one of
    /// them could stay.
    #[error("the table {0} has a unique index besides its primary key")]
    Unique(String),
    /// A private column that does not exist, or is part of the key.
    #[error("the table {0} has no column {1} that could be private")]
    NoColumn(String, String),
    /// Whoever does not have the column's key must be able to hold the row: it must be nullable, or
    /// have a constant default.
    #[error("the private column {1} of {0} must be nullable or have a constant default")]
    PrivateNeedsDefault(String, String),
    /// A column or table was registered with another scope before.
    #[error("the scope of {0} was another one before; make a new column or table")]
    ScopeChanged(String),
}

/// A registered table as it stands in the database: what the triggers write down, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) rows: KeyScope,
    /// Of the primary key, in its order.
    pub(crate) key: Vec<String>,
    pub(crate) columns: Vec<Column>,
    /// What the key's columns make of values of other types.
    #[serde(default)]
    pub(crate) key_affinities: Vec<Affinity>,
}

/// A column that is not of the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) scope: KeyScope,
    /// Whether its default differs from device to device.
    pub(crate) volatile_default: bool,
    /// Whether it is null until something is written to it.
    pub(crate) null_default: bool,
    /// What it makes of values of other types.
    #[serde(default)]
    pub(crate) affinity: Affinity,
}

/// What a column makes of values, as SQLite's rules say of its declared type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Affinity {
    /// Numbers become text.
    Text,
    /// Text that is a number becomes one, and whole numbers become integers. Nothing stays as it is
    /// that does not under another affinity, so it does for a column of which nothing is known.
    #[default]
    Number,
    /// Text that is a number becomes one, and integers become floats.
    Real,
    /// Nothing changes.
    None,
}

impl Affinity {
    /// The rules of <https://sqlite.org/datatype3.html#determination_of_column_affinity>.
    fn of(declared: &str) -> Self {
        let declared = declared.to_ascii_uppercase();
        let has = |word: &str| declared.contains(word);
        if has("INT") {
            Self::Number
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Self::Text
        } else if has("BLOB") || declared.is_empty() {
            Self::None
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Self::Real
        } else {
            Self::Number
        }
    }

    /// Whether such a column of a key keeps a value apart from all others. It does not if it stores another
    /// one in its place, or takes it for the same as another one: a whole float for its integer.
    fn keeps_apart(self, value: &Value) -> bool {
        match value {
            Value::Null | Value::Blob(_) => true,
            Value::Integer(_) => matches!(self, Self::Number | Self::None),
            Value::Real(number) => match self {
                Self::Text => false,
                Self::Number | Self::None => number.fract() != 0.0,
                Self::Real => *number != 0.0 || number.is_sign_positive(),
            },
            Value::Text(bytes) => matches!(self, Self::Text | Self::None) || !is_number(bytes),
        }
    }

    /// Whether such a column certainly holds a value to the last bit.
    pub(crate) fn holds(self, value: &Value) -> bool {
        match value {
            Value::Null | Value::Blob(_) => true,
            Value::Integer(_) => matches!(self, Self::Number | Self::None),
            Value::Real(number) => match self {
                Self::Text => false,
                Self::Number => number.fract() != 0.0,
                // A zero is stored without its sign.
                Self::Real | Self::None => *number != 0.0,
            },
            Value::Text(bytes) => str::from_utf8(bytes).is_ok_and(|text| {
                let number = || text.trim().parse::<f64>().is_ok();
                matches!(self, Self::Text | Self::None) || !number()
            }),
        }
    }
}

/// Whether SQLite takes a text for a number.
fn is_number(text: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(text) else { return false };
    let text = text.trim_matches(|it: char| it.is_ascii_whitespace() || it == '\x0b');
    // "nan", "inf" and "infinity" are none to it.
    !text.contains(['n', 'N']) && text.parse::<f64>().is_ok()
}

impl Shape {
    /// Whether the table keeps a row with this key apart from all others. What the app writes has a key
    /// that it does; another device may send any.
    pub(crate) fn keeps_apart(&self, key: &[Value]) -> bool {
        self.key_affinities.iter().zip(key).all(|(affinity, value)| affinity.keeps_apart(value))
    }

    /// The key's columns, then the others.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let columns = self.columns.iter().map(|column| column.name.as_str());
        self.key.iter().map(String::as_str).chain(columns)
    }

    /// How many values an image of a row has.
    pub(crate) fn width(&self) -> usize {
        self.key.len() + self.columns.len()
    }

    /// Whether nothing that was shared before would change its scope.
    pub(crate) fn follows(&self, before: &Self) -> Result<(), SchemaError> {
        if self.rows != before.rows || self.key != before.key {
            return Err(SchemaError::ScopeChanged(self.name.clone()));
        }
        for column in &self.columns {
            let old = before.columns.iter().find(|old| old.name == column.name);
            if old.is_some_and(|old| old.scope != column.scope) {
                return Err(SchemaError::ScopeChanged(format!("{}.{}", self.name, column.name)));
            }
        }
        Ok(())
    }
}

/// A name as SQL.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Reads the tables of a schema from the database.
///
/// # Errors
/// The outer one if it cannot be read, the inner one if a table cannot be shared.
pub(crate) fn inspect(
    db: &Connection,
    schema: &Schema,
) -> rusqlite::Result<Result<Vec<Shape>, SchemaError>> {
    let mut shapes: Vec<Shape> = Vec::new();
    for table in &schema.tables {
        let shape = match inspect_table(db, table)? {
            Ok(shape) => shape,
            Err(error) => return Ok(Err(error)),
        };
        let twice = shapes.iter().any(|other| other.name == shape.name);
        if twice || shapes.len() == TABLES_MAX {
            return Ok(Err(SchemaError::TooLarge(table.name.clone())));
        }
        shapes.push(shape);
    }
    Ok(Ok(shapes))
}

/// One column as SQLite describes it.
struct Described {
    name: String,
    declared: String,
    not_null: bool,
    default: Option<String>,
    /// Its place in the primary key, from 1; 0 for none.
    key: u32,
}

fn inspect_table(db: &Connection, table: &Table) -> rusqlite::Result<Result<Shape, SchemaError>> {
    let missing = || Err(SchemaError::NoTable(table.name.clone()));
    let found: Option<(String, String, bool)> = db
        .prepare(
            "select name, type, strict from pragma_table_list
             where schema = 'main' and name = ?1 collate nocase",
        )?
        .query_row([&table.name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((name, kind, strict)) = found else { return Ok(missing()) };
    if kind != "table" || name.starts_with(PREFIX) || name.starts_with("sqlite_") {
        return Ok(missing());
    }
    let mut described = describe(db, &name)?;
    for column in
        described.iter_mut().filter(|it| strict && it.declared.eq_ignore_ascii_case("any"))
    {
        // There it means what no type means elsewhere.
        column.declared.clear();
    }
    if let Err(error) = check_keys(db, table, &name, &described)? {
        return Ok(Err(error));
    }
    Ok(shape_of(table, name, &described))
}

fn describe(db: &Connection, table: &str) -> rusqlite::Result<Vec<Described>> {
    // Generated columns follow from the others.
    let mut statement = db.prepare(
        "select name, type, \"notnull\", dflt_value, pk from pragma_table_xinfo(?1)
         where hidden = 0 order by cid",
    )?;
    let rows = statement.query_map([table], |row| {
        Ok(Described {
            name: row.get(0)?,
            declared: row.get(1)?,
            not_null: row.get(2)?,
            default: row.get(3)?,
            key: row.get(4)?,
        })
    })?;
    rows.collect()
}

fn check_keys(
    db: &Connection,
    table: &Table,
    name: &str,
    described: &[Described],
) -> rusqlite::Result<Result<(), SchemaError>> {
    let key: Vec<&Described> = described.iter().filter(|column| column.key > 0).collect();
    if key.is_empty() {
        return Ok(Err(SchemaError::NoKey(table.name.clone())));
    }
    let mut indexes =
        db.prepare("select name, origin from pragma_index_list(?1) where \"unique\"")?;
    let indexes: Vec<(String, String)> = indexes
        .query_map([name], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut own_index = false;
    for (index, origin) in indexes {
        if origin != "pk" {
            return Ok(Err(SchemaError::Unique(table.name.clone())));
        }
        own_index = true;
        let collated: bool = db.query_row(
            "select exists (select 1 from pragma_index_xinfo(?1) where key = 1 and coll <> 'BINARY')",
            [index],
            |row| row.get(0),
        )?;
        if collated {
            return Ok(Err(SchemaError::Collation(table.name.clone())));
        }
    }
    let numbered = !own_index && key.len() == 1 && key[0].declared.eq_ignore_ascii_case("integer");
    if numbered && !table.integer_key {
        return Ok(Err(SchemaError::IntegerKey(table.name.clone())));
    }
    Ok(Ok(()))
}

fn shape_of(table: &Table, name: String, described: &[Described]) -> Result<Shape, SchemaError> {
    let mut key: Vec<&Described> = described.iter().filter(|column| column.key > 0).collect();
    key.sort_by_key(|column| column.key);
    let key_affinities = key.iter().map(|column| Affinity::of(&column.declared)).collect();
    let key: Vec<String> = key.into_iter().map(|column| column.name.clone()).collect();
    let mut columns = Vec::new();
    for column in described.iter().filter(|column| column.key == 0) {
        let named = table.private.iter().any(|it| it.eq_ignore_ascii_case(&column.name));
        let scope = if named { KeyScope::UserPrivate } else { table.rows };
        let default = column.default.as_deref().unwrap_or("");
        let volatile_default =
            default.starts_with('(') || default.to_ascii_lowercase().starts_with("current_");
        let absent = default.is_empty() || default.eq_ignore_ascii_case("null");
        if scope != table.rows && (volatile_default || (column.not_null && absent)) {
            return Err(SchemaError::PrivateNeedsDefault(name, column.name.clone()));
        }
        let (name, null_default) = (column.name.clone(), absent);
        let affinity = Affinity::of(&column.declared);
        columns.push(Column { name, scope, volatile_default, null_default, affinity });
    }
    for private in &table.private {
        if !columns.iter().any(|column| column.name.eq_ignore_ascii_case(private)) {
            return Err(SchemaError::NoColumn(name, private.clone()));
        }
    }
    let shape = Shape { name, rows: table.rows, key, columns, key_affinities };
    let fits = shape.key.len() <= KEY_COLUMNS_MAX
        && shape.columns.len() <= COLUMNS_MAX
        && shape.name.len() <= NAME_BYTES_MAX
        && shape.names().all(|name| name.len() <= NAME_BYTES_MAX);
    if fits { Ok(shape) } else { Err(SchemaError::TooLarge(shape.name)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(sql: &str, table: Table) -> Result<Shape, SchemaError> {
        let db = Connection::open_in_memory().expect("a database");
        db.execute_batch(sql).expect("tables");
        let schema = Schema::version(1).table(table);
        inspect(&db, &schema).expect("read").map(|mut shapes| shapes.remove(0))
    }

    #[test]
    fn a_table_is_read_from_the_database() {
        let sql = "create table things (b text, id text primary key, a integer not null default 0,
                   card text, twice as (a * 2))";
        let shape = shape(sql, Table::group("Things").user_private_column("card")).expect("shared");
        assert_eq!(shape.names().collect::<Vec<_>>(), ["id", "b", "a", "card"]);
        assert_eq!((shape.name.as_str(), shape.width()), ("things", 4));
        let scopes: Vec<KeyScope> = shape.columns.iter().map(|column| column.scope).collect();
        assert_eq!(scopes, [KeyScope::Group, KeyScope::Group, KeyScope::UserPrivate]);
    }

    proptest::proptest! {
        #[test]
        fn what_a_column_is_said_to_hold_it_holds(
            value in crate::sync::value::any_value(), number in -5i64..5, kind in 0usize..4,
            of in 0usize..6,
        ) {
            let value = match kind {
                0 => value,
                1 => Value::Integer(number),
                2 => Value::Real(number as f64),
                _ => Value::text(&format!(" {number}.0 ")),
            };
            let declared = ["text", "integer", "real", "", "datetime", "varchar(9)"][of];
            let db = Connection::open_in_memory().expect("a database");
            db.execute_batch(&format!("create table t (a {declared})")).expect("a table");
            db.execute("insert into t values (?1)", [&value]).expect("inserted");
            let read = |row: &rusqlite::Row<'_>| Ok(Value::from(row.get_ref(0)?));
            let back = db.query_row("select a from t", [], read).expect("read");
            proptest::prop_assert!(!Affinity::of(declared).holds(&value) || back == value);
        }
    }

    fn likely_key() -> impl Strategy<Value = Value> {
        prop_oneof![
            4 => "[ \t\x0b+0-9.eExna_-]{0,6}".prop_map(|text| Value::text(&text)),
            1 => prop_oneof!["inf", "NaN", "-Infinity", "0x10", "1e400", "123456789012345678901"]
                .prop_map(|text| Value::text(&text)),
            1 => (-5i64..5).prop_map(Value::Integer),
            1 => (-9i64..9).prop_map(|it| Value::Real(it as f64 / 2.0)),
            1 => prop_oneof![Just(-0.0), Just(f64::INFINITY), Just(0.1)].prop_map(Value::Real),
            1 => crate::sync::value::any_value(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_key_is_kept_apart_where_it_is_stored_as_it_is_and_equals_no_other(
            key in likely_key(), other in likely_key(), of in 0usize..6, strict: bool,
        ) {
            let declared = ["text", "integer", "real", "blob", "any", "numeric"][of];
            let strict = strict && declared != "numeric";
            let ending = if strict { "strict, without rowid" } else { "without rowid" };
            let sql = format!("create table t (id {declared} primary key not null) {ending}");
            let shape = shape(&sql, Table::group("t")).expect("shared");
            let db = Connection::open_in_memory().expect("a database");
            db.execute_batch(&sql).expect("a table");
            let apart = |key: &Value| shape.keeps_apart(std::slice::from_ref(key));
            let read = |row: &rusqlite::Row<'_>| Ok(Value::from(row.get_ref(0)?));
            // A strict table takes nothing of another type.
            if db.execute("insert into t values (?1)", [&key]).is_ok() {
                let stored = db.query_row("select id from t", [], read).expect("read");
                prop_assert!(!apart(&key) || stored == key, "{declared} makes another one of it");
                let whole = matches!(stored, Value::Real(it) if it.fract() == 0.0);
                prop_assert!(apart(&stored) || whole, "{declared}: what the app writes is kept");
                let two = key != other && other != Value::Null;
                if two && apart(&key) && apart(&other) {
                    let both = db.execute("insert or ignore into t values (?1)", [&other]);
                    prop_assert!(!matches!(both, Ok(0)), "{declared} takes it for another");
                }
            }
        }
    }

    #[test]
    fn what_is_usual_in_a_column_it_holds() {
        let (number, real) = (Affinity::of("numeric"), Affinity::of("double precision"));
        assert!(Affinity::of("datetime").holds(&Value::text("2026-11-22 10:00:00")));
        assert!(number.holds(&Value::Real(12.5)) && number.holds(&Value::Integer(12)));
        assert!(real.holds(&Value::Real(3.0)) && Affinity::of("Text").holds(&Value::text("12")));
        assert!(!number.holds(&Value::text("12")) && !real.holds(&Value::Integer(3)));
    }

    #[test]
    fn what_cannot_be_merged_is_refused_with_its_reason() {
        let t = || "t".to_owned();
        let refused = |sql| shape(sql, Table::group("t")).expect_err("refused");
        assert_eq!(refused("create view t as select 1 as id"), SchemaError::NoTable(t()));
        assert_eq!(refused("create table t (a)"), SchemaError::NoKey(t()));
        let numbered = "create table t (id integer primary key, a)";
        assert_eq!(refused(numbered), SchemaError::IntegerKey(t()));
        assert!(shape(numbered, Table::group("t").with_integer_key()).is_ok());
        let collated = "create table t (id text primary key collate nocase)";
        assert_eq!(refused(collated), SchemaError::Collation(t()));
        let unique = "create table t (id text primary key, a unique)";
        assert_eq!(refused(unique), SchemaError::Unique(t()));
        let private =
            |sql| shape(sql, Table::group("t").user_private_column("a")).expect_err("refused");
        let needs = SchemaError::PrivateNeedsDefault(t(), "a".into());
        assert_eq!(private("create table t (id text primary key, a not null)"), needs);
        let now = "create table t (id text primary key, a default current_timestamp)";
        assert_eq!(private(now), needs);
        let missing = SchemaError::NoColumn(t(), "a".into());
        assert_eq!(private("create table t (id text primary key, b)"), missing);
    }
}
