//! The attached database: registered tables, and transactions on it. No socket.
//!
//! Everything of this module's own stands in the app's file, in tables that begin with `sealwire_`. So
//! a change of another device, its place in the vault and the cursor behind it are one transaction,
//! and so are a write of the app and what is remembered of it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use sealwire_protocol::DeviceKey;

use super::capture::{self, Net, WRITES_MAX, key_bytes};
use super::changeset;
use super::clock::now_ms;
use super::error::SyncError;
use super::names::Names;
use super::record::NameId;
use super::replay::Replayed;
use super::schema::{Schema, Shape, inspect, quote};
use super::value::Value;
use super::writer::{Registered, Tables, Writer, meta, set_meta};
use crate::error::StoreError;

/// How long a transaction of the app is waited for.
const BUSY_DEADLINE: Duration = Duration::from_secs(10);

/// The version of this module's tables.
const FORMAT: i64 = 1;

/// When the registered tables changed last. None before there were any.
const REGISTERED: &str = "registered";

/// Statements that are kept prepared: a few for each table and for each set of columns.
const STATEMENTS: usize = 256;

/// The attached database.
pub(crate) struct Engine {
    db: Connection,
    names: Names,
    tables: Tables,
    me: DeviceKey,
    schema_version: u32,
    /// As of when the tables are known; none before they were read.
    registered: Option<i64>,
    /// Whether a transaction has begun and did not come to its end.
    broken_off: bool,
    now: fn() -> u64,
}

impl Engine {
    /// Attaches a database, or attaches it again after its tables have changed.
    pub(crate) fn attach(path: &Path, me: DeviceKey, schema: &Schema) -> Result<Self, SyncError> {
        let mut engine = Self::connect(path, me)?;
        engine.write(|writer| {
            make_tables(writer.db)?;
            check_owner(writer.db, me)
        })?;
        engine.load()?;
        engine.register(schema)?;
        Ok(engine)
    }

    /// Opens a database that was attached before, with the tables of that time.
    pub(crate) fn open(path: &Path, me: DeviceKey) -> Result<Self, SyncError> {
        let mut engine = Self::connect(path, me)?;
        if !has_tables(&engine.db)? {
            return Err(SyncError::NotAttached);
        }
        check_owner(&engine.db, me)?;
        engine.load()?;
        Ok(engine)
    }

    fn connect(path: &Path, me: DeviceKey) -> Result<Self, SyncError> {
        if !path.exists() {
            return Err(StoreError::Io.into());
        }
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY_DEADLINE)?;
        db.set_prepared_statement_cache_capacity(STATEMENTS);
        db.pragma_update(None, "synchronous", "full")?;
        // Rows come in the order of the vault, not of their references; and nothing is to follow from
        // a replayed row that its author did not send.
        db.pragma_update(None, "foreign_keys", false)?;
        db.pragma_update(None, "recursive_triggers", false)?;
        let (names, tables) = (Names::default(), Tables::default());
        let (schema_version, registered, broken_off) = (0, None, false);
        let now = now_ms;
        Ok(Self { db, names, tables, me, schema_version, registered, broken_off, now })
    }

    /// Does all of `work` or nothing of it.
    pub(crate) fn write<T>(
        &mut self,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, SyncError>,
    ) -> Result<T, SyncError> {
        self.begin();
        let transaction = Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate)?;
        Self::follow(&transaction, &mut self.names, &mut self.registered, &mut self.tables)?;
        let mut writer = Writer {
            db: &transaction,
            names: &mut self.names,
            tables: &self.tables,
            me: self.me,
            now: (self.now)(),
            schema_version: self.schema_version,
        };
        let value = work(&mut writer)?;
        transaction.commit()?;
        self.broken_off = false;
        Ok(value)
    }

    /// As [`Engine::write`], but nothing is written in the end: for long readings, which hold up
    /// nobody.
    pub(crate) fn look<T>(
        &mut self,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, SyncError>,
    ) -> Result<T, SyncError> {
        self.begin();
        let transaction = Transaction::new_unchecked(&self.db, TransactionBehavior::Deferred)?;
        Self::follow(&transaction, &mut self.names, &mut self.registered, &mut self.tables)?;
        work(&mut Writer {
            db: &transaction,
            names: &mut self.names,
            tables: &self.tables,
            me: self.me,
            now: (self.now)(),
            schema_version: self.schema_version,
        })
    }

    /// Before a transaction. Numbers that were given in one which was not committed are nobody's, however
    /// it ended.
    fn begin(&mut self) {
        if std::mem::replace(&mut self.broken_off, true) {
            self.names.forget();
        }
    }

    /// Takes the registered tables anew if somebody else has registered others: what the triggers write
    /// down is of those.
    fn follow(
        db: &Connection,
        names: &mut Names,
        registered: &mut Option<i64>,
        tables: &mut Tables,
    ) -> Result<(), SyncError> {
        if registered.is_some() {
            let newest = Some(meta(db, REGISTERED)?.unwrap_or(0));
            if newest != *registered {
                names.forget();
                *tables = load_tables(db, names)?;
                *registered = newest;
            }
        }
        Ok(())
    }

    /// Reads one state of the database.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, SyncError>,
    ) -> Result<T, SyncError> {
        let transaction = self.db.unchecked_transaction()?;
        work(&transaction)
    }

    /// A number that changes when another connection has written.
    pub(crate) fn others(&self) -> Result<i64, SyncError> {
        Ok(self.db.pragma_query_value(None, "data_version", |row| row.get(0))?)
    }

    /// The registered tables.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = &Shape> {
        self.tables.0.values().map(|table| &table.shape)
    }

    #[cfg(test)]
    pub(crate) fn set_now(&mut self, now: fn() -> u64) {
        self.now = now;
    }

    /// Files of a test need not survive the machine.
    #[cfg(test)]
    pub(crate) fn without_fsync(self) -> Self {
        self.db.pragma_update(None, "synchronous", "off").expect("a mode");
        self
    }

    /// Takes the registered tables as they were kept.
    fn load(&mut self) -> Result<(), SyncError> {
        let version: Option<i64> = meta(&self.db, "schema_version")?;
        self.schema_version = u32::try_from(version.unwrap_or(0)).unwrap_or(0);
        self.registered = Some(meta(&self.db, REGISTERED)?.unwrap_or(0));
        self.tables = load_tables(&self.db, &mut self.names)?;
        Ok(())
    }

    /// Makes these the registered tables.
    fn register(&mut self, schema: &Schema) -> Result<(), SyncError> {
        let known: HashMap<NameId, Shape> =
            self.tables.0.iter().map(|(number, it)| (*number, it.shape.clone())).collect();
        let changed = self.write(|writer| {
            let shapes = inspect(writer.db, schema)??;
            let mut whole = shapes.len() == known.len();
            let mut numbered = Vec::new();
            for shape in shapes {
                let number = writer.names.table(writer.db, &shape.name, &shape.key)?;
                if let Some(before) = known.values().find(|before| before.name == shape.name) {
                    shape.follows(before)?;
                }
                whole &= known.get(&number) == Some(&shape)
                    && capture::has_triggers(writer.db, number, &shape)?;
                numbered.push((number, shape));
            }
            set_meta(writer.db, "schema_version", schema.version)?;
            if whole {
                return Ok(false);
            }
            // What was written down until now is of the old tables' shape.
            writer.drain()?;
            let before: Option<i64> = meta(writer.db, REGISTERED)?;
            let now = writer.now.cast_signed().max(before.unwrap_or(0).wrapping_add(1));
            set_meta(writer.db, REGISTERED, now)?;
            capture::remove_triggers(writer.db)?;
            writer.db.execute_batch("delete from sealwire_tables")?;
            for (number, shape) in &numbered {
                capture::make_triggers(writer.db, *number, shape)?;
                let bytes = rmp_serde::to_vec(shape).map_err(|_| StoreError::Damaged)?;
                writer
                    .db
                    .prepare_cached("insert into sealwire_tables (id, shape) values (?1, ?2)")?
                    .execute((number, bytes))?;
                for column in &shape.columns {
                    writer.names.column(writer.db, &column.name)?;
                }
            }
            set_meta(writer.db, "unfinished", true)?;
            Ok(true)
        })?;
        self.load()?;
        let unfinished: Option<bool> = meta(&self.db, "unfinished")?;
        if changed || unfinished == Some(true) {
            // In their own order: what was there before is stamped alike whenever it is adopted.
            let mut numbers: Vec<NameId> = self.tables.0.keys().copied().collect();
            numbers.sort_unstable();
            self.write(|writer| {
                for number in numbers {
                    writer.adopt(number)?;
                    writer.materialise(number)?;
                }
                set_meta(writer.db, "unfinished", false)
            })?;
        }
        self.write(try_withheld)
    }
}

fn load_tables(db: &Connection, names: &mut Names) -> Result<Tables, SyncError> {
    let mut statement = db.prepare("select id, shape from sealwire_tables")?;
    let shapes: Vec<(NameId, Vec<u8>)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    drop(statement);
    let mut tables = HashMap::new();
    for (number, shape) in shapes {
        let shape: Shape = rmp_serde::from_slice(&shape).map_err(|_| StoreError::Damaged)?;
        let columns = shape
            .columns
            .iter()
            .map(|column| names.column(db, &column.name))
            .collect::<Result<_, _>>()?;
        tables.insert(number, Registered { number, shape, columns });
    }
    Ok(Tables(tables))
}

fn has_tables(db: &Connection) -> Result<bool, SyncError> {
    let sql = "select exists (select 1 from sqlite_schema where name = 'sealwire_meta')";
    Ok(db.query_row(sql, [], |row| row.get(0))?)
}

fn make_tables(db: &Connection) -> Result<(), SyncError> {
    if !has_tables(db)? {
        db.execute_batch(include_str!("tables.sql"))?;
        set_meta(db, "format", FORMAT)?;
    }
    // What an older version could not read may be read now.
    let read: Option<u8> = meta(db, "changeset_version")?;
    if read.is_some_and(|read| read < changeset::VERSION) {
        db.execute("update sealwire_sealed set reason = 0 where reason = 1", [])?;
    }
    set_meta(db, "changeset_version", changeset::VERSION)
}

/// Removes everything of this module from a database.
pub(crate) fn detach(db: &Connection) -> Result<(), SyncError> {
    capture::remove_triggers(db)?;
    let mut statement = db.prepare(
        "select name from sqlite_schema where type = 'table' and name like 'sealwire\\_%' escape '\\'
         order by name = 'sealwire_names'",
    )?;
    let names: Vec<String> =
        statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    drop(statement);
    for name in names {
        db.execute_batch(&format!("drop table {}", quote(&name)))?;
    }
    Ok(())
}

/// Checks that the database was written by this version or an older one, for this device.
fn check_owner(db: &Connection, me: DeviceKey) -> Result<(), SyncError> {
    let format: Option<i64> = meta(db, "format")?;
    if format.is_none_or(|format| format > FORMAT) {
        return Err(StoreError::Newer.into());
    }
    let owner: Option<Vec<u8>> = meta(db, "device")?;
    match owner {
        None => set_meta(db, "device", &me.0[..]),
        Some(owner) if owner == me.0 => Ok(()),
        Some(_) => Err(SyncError::OtherDevice),
    }
}

/// Tries again what could not be shown: another version of the app may have other constraints.
fn try_withheld(writer: &mut Writer<'_>) -> Result<(), SyncError> {
    let mut statement = writer.db.prepare("select tbl, key from sealwire_withheld")?;
    let withheld: Vec<(NameId, Vec<u8>)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    writer.silently(|writer| {
        for (number, key) in withheld {
            let Some(mut record) = writer.record(number, &key)? else { continue };
            let before = record.clone();
            let values: Vec<Value> =
                rmp_serde::from_slice(&key).map_err(|_| StoreError::Damaged)?;
            writer.show(number, &values, &key, &mut record, &mut Replayed::default())?;
            if record != before {
                writer.keep_record(number, &key, &record)?;
            }
        }
        Ok(())
    })
}

impl Writer<'_> {
    /// Takes over rows that were written before anything was captured.
    fn adopt(&mut self, number: NameId) -> Result<(), SyncError> {
        let tables = self.tables;
        let Some(table) = tables.0.get(&number) else { return Ok(()) };
        let names: Vec<String> = table.shape.names().map(quote).collect();
        let sql = format!("select {} from {}", names.join(", "), quote(&table.shape.name));
        let db = self.db;
        let mut statement = db.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let (mut old, mut new) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next()? {
            let image = (0..table.shape.width())
                .map(|at| Ok(row.get_ref(at)?.into()))
                .collect::<rusqlite::Result<Vec<Value>>>()?;
            let keys = table.shape.key.len();
            if image[..keys].contains(&Value::Null) {
                continue;
            }
            let last = image.clone();
            match self.record(number, &key_bytes(&image[..keys]))? {
                // Written while nothing was captured, over something that was known.
                Some(record) if !record.shown => {
                    new.push(Net { table: number, before: None, after: Some(image), last });
                }
                Some(record) => {
                    let missing = table
                        .shape
                        .columns
                        .iter()
                        .zip(&table.columns)
                        .any(|(it, number)| !record.cells.contains_key(&(*number, it.scope)));
                    if missing {
                        let before = Some(image.clone());
                        old.push(Net { table: number, before, after: Some(image), last });
                    }
                }
                None => {
                    let before = Some(image.clone());
                    old.push(Net { table: number, before, after: Some(image), last });
                }
            }
            if old.len() == WRITES_MAX {
                self.emit(std::mem::take(&mut old), None)?;
            }
        }
        self.emit(old, None)?;
        if !new.is_empty() {
            self.emit(new, Some(self.now))?;
        }
        Ok(())
    }

    /// Shows what was kept until this version of the app knew the table or its columns.
    fn materialise(&mut self, number: NameId) -> Result<(), SyncError> {
        let db = self.db;
        let mut after = Vec::new();
        self.silently(|writer| {
            let sql = "select key, record from sealwire_rows where tbl = ?1 and key > ?2
                       order by key limit 1";
            loop {
                let next: Option<(Vec<u8>, Vec<u8>)> = db
                    .prepare_cached(sql)?
                    .query_row((number, &after), |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                let Some((key, bytes)) = next else { return Ok(()) };
                let mut record = writer.decode_record(&bytes)?;
                let before = record.clone();
                let values: Vec<Value> =
                    rmp_serde::from_slice(&key).map_err(|_| StoreError::Damaged)?;
                writer.show(number, &values, &key, &mut record, &mut Replayed::default())?;
                if record != before {
                    writer.keep_record(number, &key, &record)?;
                }
                after = key;
            }
        })
    }
}
