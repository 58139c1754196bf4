//! Numbers for names that stand in many rows.
//!
//! What is remembered here is forgotten when a transaction is rolled back ([`Names::forget`]): a number
//! that was given in it may be given again to another name.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension};
use sealwire_protocol::DeviceKey;

use super::error::SyncError;
use super::record::NameId;
use crate::error::StoreError;

/// Of what something is the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Table = 0,
    Column = 1,
    Device = 2,
}

/// The names that were needed so far.
#[derive(Default)]
pub(crate) struct Names {
    numbers: HashMap<(Kind, Vec<u8>), NameId>,
    names: HashMap<NameId, Vec<u8>>,
}

impl Names {
    pub(crate) fn forget(&mut self) {
        self.numbers.clear();
        self.names.clear();
    }

    /// The number of a table, which is what it is by its name and the columns of its key.
    pub(crate) fn table(
        &mut self,
        db: &Connection,
        name: &str,
        key: &[String],
    ) -> Result<NameId, SyncError> {
        let name = rmp_serde::to_vec(&(name, key)).map_err(|_| StoreError::Damaged)?;
        self.number(db, Kind::Table, &name)
    }

    pub(crate) fn column(&mut self, db: &Connection, name: &str) -> Result<NameId, SyncError> {
        self.number(db, Kind::Column, name.as_bytes())
    }

    pub(crate) fn device(&mut self, db: &Connection, key: DeviceKey) -> Result<NameId, SyncError> {
        self.number(db, Kind::Device, &key.0)
    }

    pub(crate) fn table_name(
        &mut self,
        db: &Connection,
        number: NameId,
    ) -> Result<(String, Vec<String>), SyncError> {
        let name = self.name(db, number)?;
        Ok(rmp_serde::from_slice(&name).map_err(|_| StoreError::Damaged)?)
    }

    pub(crate) fn column_name(
        &mut self,
        db: &Connection,
        number: NameId,
    ) -> Result<String, SyncError> {
        let name = self.name(db, number)?;
        Ok(String::from_utf8(name).map_err(|_| StoreError::Damaged)?)
    }

    pub(crate) fn device_key(
        &mut self,
        db: &Connection,
        number: NameId,
    ) -> Result<DeviceKey, SyncError> {
        let name = self.name(db, number)?;
        Ok(DeviceKey::from_slice(&name).ok_or(StoreError::Damaged)?)
    }

    fn number(&mut self, db: &Connection, kind: Kind, name: &[u8]) -> Result<NameId, SyncError> {
        let wanted = (kind, name.to_vec());
        if let Some(number) = self.numbers.get(&wanted) {
            return Ok(*number);
        }
        let known = db
            .prepare_cached("select id from sealwire_names where kind = ?1 and name = ?2")?
            .query_row((kind as i64, name), |row| row.get(0))
            .optional()?;
        let number = match known {
            Some(number) => number,
            None => {
                db.prepare_cached("insert into sealwire_names (kind, name) values (?1, ?2)")?
                    .execute((kind as i64, name))?;
                db.last_insert_rowid()
            }
        };
        self.numbers.insert(wanted, number);
        Ok(number)
    }

    fn name(&mut self, db: &Connection, number: NameId) -> Result<Vec<u8>, SyncError> {
        if let Some(name) = self.names.get(&number) {
            return Ok(name.clone());
        }
        let name: Vec<u8> = db
            .prepare_cached("select name from sealwire_names where id = ?1")?
            .query_row([number], |row| row.get(0))?;
        self.names.insert(number, name.clone());
        Ok(name)
    }
}
