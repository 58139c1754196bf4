//! Changes of other devices are written into the app's tables, cell by cell.
//!
//! The record decides what is true ([`super::record`]); the app's table is made to show it. A row that a
//! constraint of the table forbids is withheld: it is kept whole and tried again with its next change.
//! Whether it is depends on its cells alone, so it is so on every device.

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};

use rusqlite::{ErrorCode, OptionalExtension, params_from_iter};
use sealwire_protocol::DeviceKey;

use super::capture::key_bytes;
use super::changeset::{Changes, RowChange, TableChanges, What};
use super::clock::Stamp;
use super::error::SyncError;
use super::record::{NameId, Record};
use super::schema::{KeyScope, quote};
use super::value::Value;
use super::writer::{Registered, Writer};

/// What was done with changes of other devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// Changesets that were opened.
    pub changesets: usize,
    /// Rows that they speak of.
    pub rows: usize,
    /// Cells that were newer than what was here, and were taken.
    pub cells: usize,
    /// Cells that were older than what was here, and were passed over.
    pub superseded: usize,
    /// Cells that were taken although their author had not seen what they took the place of: two
    /// devices wrote at once, and the later one has it.
    pub conflicts: usize,
    /// Rows that a constraint forbids; they are kept.
    pub withheld: usize,
    /// The app's tables that have changed: what is on the screen is read again.
    pub tables: BTreeSet<String>,
}

impl Replayed {
    pub(crate) fn add(&mut self, other: Self) {
        self.changesets += other.changesets;
        self.rows += other.rows;
        self.cells += other.cells;
        self.superseded += other.superseded;
        self.conflicts += other.conflicts;
        self.withheld += other.withheld;
        self.tables.extend(other.tables);
    }
}

/// What became of a row that was written into the app's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fits {
    Yes,
    /// A constraint forbids it as it is, or its key is none, here and on every device.
    Never,
    /// The table cannot take it here: a trigger or an index needs what only the app's connections have.
    NotHere,
}

/// A row as it is to be shown.
struct Row<'a> {
    table: &'a Registered,
    key: &'a [Value],
}

impl Writer<'_> {
    /// Writes what one box says. What the app has written itself must have been drained before.
    pub(crate) fn replay(
        &mut self,
        author: DeviceKey,
        scope: KeyScope,
        changes: &Changes,
        done: &mut Replayed,
    ) -> Result<(), SyncError> {
        let mut clock = self.clock()?;
        if clock.observe(changes.reading, self.now) {
            self.keep_clock(clock)?;
        }
        let stamp = Stamp { reading: changes.reading, device: author };
        for table in &changes.tables {
            let number = self.names.table(self.db, &table.table, &table.key_columns)?;
            let columns = table
                .columns
                .iter()
                .map(|name| self.names.column(self.db, name))
                .collect::<Result<Vec<_>, _>>()?;
            self.replay_table(number, &columns, scope, stamp, table, done)?;
        }
        Ok(())
    }

    fn replay_table(
        &mut self,
        number: NameId,
        columns: &[NameId],
        scope: KeyScope,
        stamp: Stamp,
        table: &TableChanges,
        done: &mut Replayed,
    ) -> Result<(), SyncError> {
        for row in &table.rows {
            let bytes = key_bytes(&row.key);
            let mut record = self.record(number, &bytes)?.unwrap_or_default();
            done.rows += 1;
            done.conflicts += self.conflicts(number, columns, scope, stamp, row, &record)?;
            let (shown, held) = (record.shown, Held::default());
            let mut news = match row.what {
                What::Cells => false,
                What::Written => record.live(scope, stamp, true),
                What::Deleted => record.live(scope, stamp, false),
            };
            for cell in &row.cells {
                let Some(after) = &cell.after else { continue };
                let column = columns[cell.column];
                let held = || held.get(self, number, &row.key, shown, (column, scope));
                if record.write(column, scope, stamp, after.clone(), held)? {
                    done.cells += 1;
                    news = true;
                } else {
                    done.superseded += 1;
                }
            }
            if news {
                self.show(number, &row.key, &bytes, &mut record, done)?;
                self.keep_record(number, &bytes, &record)?;
            }
        }
        Ok(())
    }

    /// Makes the app's table show what the record says.
    pub(crate) fn show(
        &mut self,
        number: NameId,
        key: &[Value],
        bytes: &[u8],
        record: &mut Record,
        done: &mut Replayed,
    ) -> Result<(), SyncError> {
        let tables = self.tables;
        let Some(table) = tables.0.get(&number) else { return Ok(()) };
        let row = Row { table, key };
        let alive = record.is_alive(table.shape.rows);
        if !alive && !record.shown {
            return self.unwithhold(number, bytes);
        }
        let pending = pending(table, record);
        if alive && record.shown && pending.is_empty() {
            return Ok(());
        }
        if !done.tables.contains(&table.shape.name) {
            done.tables.insert(table.shape.name.clone());
        }
        if !alive {
            return self.take_out(&row, record);
        }
        let fits = if !table.shape.keeps_apart(key) {
            // It would be shown as the row of another key, and that one's values would be overwritten.
            Fits::Never
        } else if record.shown {
            self.update(&row, record, &pending)?
        } else {
            self.insert(&row, record, &pending)?
        };
        if fits == Fits::Yes {
            record.shown = true;
            for at in pending {
                let shape = &table.shape.columns[at];
                let column = (table.columns[at], shape.scope);
                if let Some(register) = record.cells.get_mut(&column) {
                    // What the table has made another value of is still what was written.
                    register.kept.take_if(|value| shape.affinity.holds(value));
                }
            }
            return self.unwithhold(number, bytes);
        }
        done.withheld += 1;
        if record.shown && fits == Fits::Never {
            self.take_out(&row, record)?;
        }
        self.db
            .prepare_cached("insert or ignore into sealwire_withheld (tbl, key) values (?1, ?2)")?
            .execute((number, bytes))?;
        Ok(())
    }

    /// A row is not withheld, or not any more.
    pub(crate) fn unwithhold(&mut self, number: NameId, key: &[u8]) -> Result<(), SyncError> {
        self.db
            .prepare_cached("delete from sealwire_withheld where tbl = ?1 and key = ?2")?
            .execute((number, key))?;
        Ok(())
    }

    /// Writes the pending cells into a row of the table. Says whether its constraints allow it.
    fn update(&self, row: &Row<'_>, record: &Record, pending: &[usize]) -> Result<Fits, SyncError> {
        let shape = &row.table.shape;
        let sets: Vec<String> =
            pending.iter().map(|at| format!("{} = ?", quote(&shape.columns[*at].name))).collect();
        let sql = format!(
            "update or abort {} set {} where {}",
            quote(&shape.name),
            sets.join(", "),
            row.is_it()
        );
        let values = pending.iter().map(|at| kept(row.table, record, *at)).chain(row.key.iter());
        self.run(&sql, values)
    }

    /// Inserts a row of what is known of it; the rest is as the table has it by itself.
    fn insert(&self, row: &Row<'_>, record: &Record, pending: &[usize]) -> Result<Fits, SyncError> {
        let shape = &row.table.shape;
        let mut names: Vec<String> = shape.key.iter().map(|name| quote(name)).collect();
        let mut values: Vec<&Value> = row.key.iter().collect();
        let mut sets = Vec::new();
        for (at, column) in shape.columns.iter().enumerate() {
            // A default that differs from device to device is none.
            if pending.contains(&at) || column.volatile_default {
                let name = quote(&column.name);
                sets.push(format!("{name} = excluded.{name}"));
                names.push(name);
                values.push(kept(row.table, record, at));
            }
        }
        let keys: Vec<String> = shape.key.iter().map(|name| quote(name)).collect();
        let conflict = if sets.is_empty() {
            "nothing".to_owned()
        } else {
            format!("update set {}", sets.join(", "))
        };
        let sql = format!(
            "insert or abort into {} ({}) values ({}) on conflict ({}) do {conflict}",
            quote(&shape.name),
            names.join(", "),
            vec!["?"; names.len()].join(", "),
            keys.join(", "),
        );
        self.run(&sql, values)
    }

    /// Writes one row. What is wrong with this row alone is no error: it must not stop what comes after
    /// it. What is wrong with the disk or the file is one.
    fn run<'v>(
        &self,
        sql: &str,
        values: impl IntoIterator<Item = &'v Value>,
    ) -> Result<Fits, SyncError> {
        let written = self
            .db
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params_from_iter(values)));
        let error = match written {
            Ok(_) => return Ok(Fits::Yes),
            Err(_) if self.db.is_autocommit() => return Err(SyncError::RolledBack),
            Err(error) => error,
        };
        match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => {
                Ok(Fits::Never)
            }
            // SQLite's plain error: no such function, collation, table or column.
            Some(ErrorCode::Unknown) => Ok(Fits::NotHere),
            _ => Err(error.into()),
        }
    }

    /// Takes a row out of the table and keeps its values. A trigger of the app may forbid it: then it
    /// stays where it is.
    fn take_out(&self, row: &Row<'_>, record: &mut Record) -> Result<(), SyncError> {
        let shape = &row.table.shape;
        let values = self.current(row)?;
        let sql = format!("delete from {} where {}", quote(&shape.name), row.is_it());
        if self.run(&sql, row.key)? != Fits::Yes {
            return Ok(());
        }
        for ((at, column), value) in
            shape.columns.iter().enumerate().zip(values.unwrap_or_default())
        {
            let number = row.table.columns[at];
            if let Some(register) = record.cells.get_mut(&(number, column.scope)) {
                register.kept.get_or_insert(value);
            }
        }
        record.shown = false;
        Ok(())
    }

    /// What the app's table has of a row, besides its key.
    pub(crate) fn current_values(
        &self,
        table: &Registered,
        key: &[Value],
    ) -> Result<Option<Vec<Value>>, SyncError> {
        self.current(&Row { table, key })
    }

    fn current(&self, row: &Row<'_>) -> Result<Option<Vec<Value>>, SyncError> {
        let shape = &row.table.shape;
        let names: Vec<String> = shape.columns.iter().map(|column| quote(&column.name)).collect();
        let names = if names.is_empty() { "1".to_owned() } else { names.join(", ") };
        let sql = format!("select {names} from {} where {}", quote(&shape.name), row.is_it());
        let mut statement = self.db.prepare_cached(&sql)?;
        let read = statement.query_row(params_from_iter(row.key), |found| {
            (0..shape.columns.len()).map(|at| Ok(found.get_ref(at)?.into())).collect()
        });
        Ok(read.optional()?)
    }

    /// How many cells were written by somebody who had not seen what they take the place of.
    fn conflicts(
        &self,
        number: NameId,
        columns: &[NameId],
        scope: KeyScope,
        stamp: Stamp,
        change: &RowChange,
        record: &Record,
    ) -> Result<usize, SyncError> {
        let Some(table) = self.tables.0.get(&number) else { return Ok(0) };
        let wins = |column: usize| {
            let register = record.cells.get(&(columns[column], scope));
            register.is_some_and(|register| stamp > register.stamp)
        };
        let seen = change.cells.iter().filter(|it| it.after.is_some() && it.before.is_some());
        let taken: Vec<_> = seen.filter(|cell| wins(cell.column)).collect();
        if taken.is_empty() || !record.shown {
            return Ok(0);
        }
        let Some(current) = self.current(&Row { table, key: &change.key })? else {
            return Ok(0);
        };
        let differs = taken.iter().filter(|cell| {
            let at = table.place(columns[cell.column], scope);
            let here = at.and_then(|at| current.get(at));
            here.is_some() && here != cell.before.as_ref() && here != cell.after.as_ref()
        });
        Ok(differs.count())
    }
}

/// What the app's table has of one row, read when it is asked for the first time.
#[derive(Default)]
pub(crate) struct Held(OnceCell<HashMap<(NameId, KeyScope), Value>>);

impl Held {
    /// What the table holds of a cell, if the row is `shown` and the table has the column.
    pub(crate) fn get(
        &self,
        writer: &Writer<'_>,
        table: NameId,
        key: &[Value],
        shown: bool,
        cell: (NameId, KeyScope),
    ) -> Result<Option<Value>, SyncError> {
        if self.0.get().is_none() {
            // Nobody else sets it: it is this function's alone, and it does not call itself.
            let _ = self.0.set(writer.shown_values(table, key, shown)?);
        }
        Ok(self.0.get().and_then(|values| values.get(&cell).cloned()))
    }
}

impl Row<'_> {
    fn is_it(&self) -> String {
        let keys = self.table.shape.key.iter().map(|name| format!("{} = ?", quote(name)));
        keys.collect::<Vec<_>>().join(" and ")
    }
}

/// The places of the columns whose values are kept and could be shown.
fn pending(table: &Registered, record: &Record) -> Vec<usize> {
    (0..table.columns.len())
        .filter(|at| {
            let column = (table.columns[*at], table.shape.columns[*at].scope);
            record.cells.get(&column).is_some_and(|register| register.kept.is_some())
        })
        .collect()
}

fn kept<'a>(table: &Registered, record: &'a Record, at: usize) -> &'a Value {
    let column = (table.columns[at], table.shape.columns[at].scope);
    record.cells.get(&column).and_then(|register| register.kept.as_ref()).unwrap_or(&Value::Null)
}
