//! One transaction on the attached database, and what it reads and writes besides the app's tables.

use std::collections::HashMap;

use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension, ToSql};
use sealwire_protocol::DeviceKey;

use super::clock::{Clock, Reading};
use super::error::SyncError;
use super::names::Names;
use super::record::{NameId, Record};
use super::schema::{KeyScope, Shape};
use crate::error::StoreError;

/// The newest reading of the clock.
const CLOCK: &str = "clock";

/// A registered table.
pub(crate) struct Registered {
    pub(crate) number: NameId,
    pub(crate) shape: Shape,
    /// The numbers of the shape's columns, in its order.
    pub(crate) columns: Vec<NameId>,
}

impl Registered {
    /// The place of a cell among the shape's columns, if the table shows it.
    pub(crate) fn place(&self, column: NameId, scope: KeyScope) -> Option<usize> {
        let at = self.columns.iter().position(|number| *number == column)?;
        (self.shape.columns[at].scope == scope).then_some(at)
    }
}

/// The registered tables.
#[derive(Default)]
pub(crate) struct Tables(pub(crate) HashMap<NameId, Registered>);

/// A transaction that is under way.
pub(crate) struct Writer<'a> {
    pub(crate) db: &'a Connection,
    pub(crate) names: &'a mut Names,
    pub(crate) tables: &'a Tables,
    pub(crate) me: DeviceKey,
    /// Milliseconds since the epoch.
    pub(crate) now: u64,
    /// The app's version of its schema.
    pub(crate) schema_version: u32,
}

/// A single value; none if it was never set.
pub(crate) fn meta<T: FromSql>(db: &Connection, name: &str) -> Result<Option<T>, SyncError> {
    let mut statement = db.prepare_cached("select value from sealwire_meta where name = ?1")?;
    Ok(statement.query_row([name], |row| row.get(0)).optional()?)
}

/// Sets a single value.
pub(crate) fn set_meta(db: &Connection, name: &str, value: impl ToSql) -> Result<(), SyncError> {
    db.prepare_cached(
        "insert into sealwire_meta (name, value) values (?1, ?2)
         on conflict (name) do update set value = excluded.value",
    )?
    .execute((name, value))?;
    Ok(())
}

impl Writer<'_> {
    pub(crate) fn clock(&self) -> Result<Clock, SyncError> {
        let last: Option<i64> = meta(self.db, CLOCK)?;
        Ok(Clock::after(Reading(last.unwrap_or(0).cast_unsigned())))
    }

    pub(crate) fn keep_clock(&self, clock: Clock) -> Result<(), SyncError> {
        set_meta(self.db, CLOCK, clock.last().0.cast_signed())
    }

    /// What is known of a row; none if nothing is.
    pub(crate) fn record(
        &mut self,
        table: NameId,
        key: &[u8],
    ) -> Result<Option<Record>, SyncError> {
        let bytes: Option<Vec<u8>> = self
            .db
            .prepare_cached("select record from sealwire_rows where tbl = ?1 and key = ?2")?
            .query_row((table, key), |row| row.get(0))
            .optional()?;
        bytes.map(|bytes| self.decode_record(&bytes)).transpose()
    }

    pub(crate) fn decode_record(&mut self, bytes: &[u8]) -> Result<Record, SyncError> {
        let record = Record::decode(bytes, |number| self.names.device_key(self.db, number))?;
        Ok(record.ok_or(StoreError::Damaged)?)
    }

    pub(crate) fn keep_record(
        &mut self,
        table: NameId,
        key: &[u8],
        record: &Record,
    ) -> Result<(), SyncError> {
        let bytes = record.encode(|stamp| self.names.device(self.db, stamp.device))?;
        self.db
            .prepare_cached(
                "insert into sealwire_rows (tbl, key, record) values (?1, ?2, ?3)
                 on conflict (tbl, key) do update set record = excluded.record",
            )?
            .execute((table, key, bytes))?;
        if record.is_or_was_alone() {
            self.forget_oversized(table, key)?;
            for column in record.alone() {
                self.note_oversized(table, key, column)?;
            }
        }
        Ok(())
    }

    /// Notes a cell (or with 0 a whole row) that stays on this device.
    pub(crate) fn note_oversized(
        &self,
        table: NameId,
        key: &[u8],
        column: NameId,
    ) -> Result<(), SyncError> {
        self.db
            .prepare_cached("insert or ignore into sealwire_oversized values (?1, ?2, ?3)")?
            .execute((table, key, column))?;
        Ok(())
    }

    /// Nothing of a row stays on this device any more.
    pub(crate) fn forget_oversized(&self, table: NameId, key: &[u8]) -> Result<(), SyncError> {
        self.db
            .prepare_cached("delete from sealwire_oversized where tbl = ?1 and key = ?2")?
            .execute((table, key))?;
        Ok(())
    }

    /// Does `work` while the triggers write nothing down.
    pub(crate) fn silently<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, SyncError>,
    ) -> Result<T, SyncError> {
        self.db.execute_batch("insert into sealwire_replaying (marker) values (1)")?;
        let done = work(self)?;
        self.db.execute_batch("delete from sealwire_replaying")?;
        Ok(done)
    }
}
