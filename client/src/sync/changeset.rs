//! What one sealed box of a changeset holds: rows that were written, with what was there before.
//!
//! ```text
//! [version = 1, schema version u32, reading u64, [table, …]]
//! table = [name, [key column, …], [column, …], [row, …]]
//! row   = [[key value, …], what, [cell, …]]
//! what  = 0: cells only, 1: the row is there, 2: the row is deleted
//! cell  = [index of its column, after] or [index of its column, after, before];
//!         of a deleted row [index of its column, before]
//! ```
//!
//! MessagePack in its one canonical spelling: whoever reads it writes it again and compares, so that
//! one changeset has one sequence of bytes and nothing travels beside it. The author is not in it: it
//! is the signer of the entry. A cell that says nothing of before was not there, or is unknown.
//!
//! Names are those of the app. Tables and columns that a reader does not know are no error: they are
//! kept until it does.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::clock::Reading;
use super::value::Value;

/// The version of this encoding.
pub const VERSION: u8 = 1;

/// Longest name of a table or column, in bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// Most columns of a table. SQLite's own bound is 2000; no table that people write to has so many.
pub const COLUMNS_MAX: usize = 512;

/// Most columns of a primary key.
pub const KEY_COLUMNS_MAX: usize = 16;

/// Why bytes are not a changeset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChangesetError {
    /// They were written by a newer version of this program. They are kept and read after an update.
    #[error("the changeset was written by a newer version")]
    Newer,
    /// They are something else, or spelled in another way than the canonical one.
    #[error("the changeset is malformed")]
    Malformed,
}

/// What was done to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Cells of it were written; whether it is there is not said here.
    Cells,
    /// It was written, and is there.
    Written,
    /// It was deleted.
    Deleted,
}

/// One column of a row that was written, or deleted with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its place among [`TableChanges::columns`].
    pub column: usize,
    /// What it is now; in a deleted row none.
    pub after: Option<Value>,
    /// What it was before, if that is known.
    pub before: Option<Value>,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    /// Its primary key.
    pub key: Vec<Value>,
    /// What was done to it.
    pub what: What,
    /// Its columns that are spoken of, each once.
    pub cells: Vec<Cell>,
}

/// The rows of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChanges {
    /// Its name.
    pub table: String,
    /// The columns of its primary key.
    pub key_columns: Vec<String>,
    /// The columns that cells name.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<RowChange>,
}

/// The contents of one box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The app's version of its schema, for the app.
    pub schema_version: u32,
    /// When, by the author's clock.
    pub reading: Reading,
    /// What was written.
    pub tables: Vec<TableChanges>,
}

type RowWire = (Vec<Value>, u8, Vec<CellWire>);
type TableWire = (String, Vec<String>, Vec<String>, Vec<RowWire>);
type Wire = (u8, u32, u64, Vec<TableWire>);

/// Two elements, or three.
struct CellWire(u16, Value, Option<Value>);

impl Serialize for CellWire {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(2 + usize::from(self.2.is_some()))?;
        tuple.serialize_element(&self.0)?;
        tuple.serialize_element(&self.1)?;
        if let Some(before) = &self.2 {
            tuple.serialize_element(before)?;
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for CellWire {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(CellReader)
    }
}

struct CellReader;

impl<'de> Visitor<'de> for CellReader {
    type Value = CellWire;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a cell")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<CellWire, A::Error> {
        let missing = || de::Error::custom("a cell is too short");
        let column = seq.next_element()?.ok_or_else(missing)?;
        let value = seq.next_element()?.ok_or_else(missing)?;
        Ok(CellWire(column, value, seq.next_element()?))
    }
}

impl Changes {
    /// The canonical bytes.
    ///
    /// # Errors
    /// [`ChangesetError::Malformed`] if it is over a bound.
    pub fn encode(&self) -> Result<Vec<u8>, ChangesetError> {
        self.check()?;
        let tables = self.tables.iter().map(table_wire).collect::<Result<Vec<_>, _>>()?;
        let wire: Wire = (VERSION, self.schema_version, self.reading.0, tables);
        rmp_serde::to_vec(&wire).map_err(|_| ChangesetError::Malformed)
    }

    /// Reads the contents of a box.
    ///
    /// # Errors
    /// A [`ChangesetError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ChangesetError> {
        // An array of four whose first element is a small integer: whatever comes later, this stays.
        match bytes {
            [0x94, VERSION, ..] => {}
            [0x90..=0x9f, version, ..] if (VERSION + 1..0x80).contains(version) => {
                return Err(ChangesetError::Newer);
            }
            _ => return Err(ChangesetError::Malformed),
        }
        let (_, schema_version, reading, tables): Wire =
            rmp_serde::from_slice(bytes).map_err(|_| ChangesetError::Malformed)?;
        let tables = tables.into_iter().map(table_from).collect::<Result<_, _>>()?;
        let changes = Self { schema_version, reading: Reading(reading), tables };
        if changes.encode()? != bytes {
            return Err(ChangesetError::Malformed);
        }
        Ok(changes)
    }

    /// How many rows it speaks of.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tables.iter().map(|table| table.rows.len()).sum()
    }

    fn check(&self) -> Result<(), ChangesetError> {
        let name_fits = |name: &String| (1..=NAME_BYTES_MAX).contains(&name.len());
        let sound = self.reading.is_sound()
            && self.tables.iter().all(|table| {
                let keys = (1..=KEY_COLUMNS_MAX).contains(&table.key_columns.len());
                keys && table.columns.len() <= COLUMNS_MAX
                    && name_fits(&table.table)
                    && table.columns.iter().chain(&table.key_columns).all(name_fits)
                    && table.rows.iter().all(|row| row.is_sound(table))
            });
        if sound { Ok(()) } else { Err(ChangesetError::Malformed) }
    }
}

impl RowChange {
    fn is_sound(&self, table: &TableChanges) -> bool {
        let rising = self.cells.windows(2).all(|pair| pair[0].column < pair[1].column);
        let deleted = self.what == What::Deleted;
        rising
            && self.key.len() == table.key_columns.len()
            && !self.key.contains(&Value::Null)
            && self.cells.iter().all(|cell| {
                cell.column < table.columns.len()
                    && cell.after.is_none() == deleted
                    && (!deleted || cell.before.is_some())
            })
    }
}

fn table_wire(table: &TableChanges) -> Result<TableWire, ChangesetError> {
    let rows = table
        .rows
        .iter()
        .map(|row| {
            let cells = row.cells.iter().map(cell_wire).collect::<Result<Vec<_>, _>>()?;
            let what = match row.what {
                What::Cells => 0,
                What::Written => 1,
                What::Deleted => 2,
            };
            Ok((row.key.clone(), what, cells))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok((table.table.clone(), table.key_columns.clone(), table.columns.clone(), rows))
}

fn cell_wire(cell: &Cell) -> Result<CellWire, ChangesetError> {
    let column = u16::try_from(cell.column).map_err(|_| ChangesetError::Malformed)?;
    match (cell.after.clone(), cell.before.clone()) {
        (Some(value), None) | (None, Some(value)) => Ok(CellWire(column, value, None)),
        (Some(after), before) => Ok(CellWire(column, after, before)),
        (None, None) => Err(ChangesetError::Malformed),
    }
}

fn table_from(
    (table, key_columns, columns, rows): TableWire,
) -> Result<TableChanges, ChangesetError> {
    let rows = rows
        .into_iter()
        .map(|(key, what, cells)| {
            let what = match what {
                0 => What::Cells,
                1 => What::Written,
                2 => What::Deleted,
                _ => return Err(ChangesetError::Malformed),
            };
            let cells = cells.into_iter().map(|cell| cell_from(cell, what)).collect();
            Ok(RowChange { key, what, cells })
        })
        .collect::<Result<_, _>>()?;
    Ok(TableChanges { table, key_columns, columns, rows })
}

fn cell_from(CellWire(column, value, before): CellWire, what: What) -> Cell {
    let column = column.into();
    match what {
        // A third element is one too many: what is written again differs.
        What::Deleted => Cell { column, after: None, before: Some(value) },
        What::Cells | What::Written => Cell { column, after: Some(value), before },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sync::value::any_value;

    fn any_row() -> impl Strategy<Value = RowChange> {
        let cell = (any_value(), proptest::option::of(any_value()));
        (any_value(), 0u8..3, proptest::collection::vec(cell, 0..3)).prop_map(
            |(key, what, cells)| {
                let key = if key == Value::Null { Value::Integer(0) } else { key };
                let what = [What::Cells, What::Written, What::Deleted][usize::from(what)];
                let cells =
                    cells.into_iter().enumerate().map(|(column, (value, before))| match what {
                        What::Deleted => Cell { column, after: None, before: Some(value) },
                        What::Cells | What::Written => Cell { column, after: Some(value), before },
                    });
                RowChange { key: vec![key], what, cells: cells.collect() }
            },
        )
    }

    fn any_changes() -> impl Strategy<Value = Changes> {
        let rows = proptest::collection::vec(any_row(), 0..4);
        (any::<u32>(), 1u64..1 << 60, proptest::collection::vec(rows, 0..3)).prop_map(
            |(schema_version, reading, tables)| Changes {
                schema_version,
                reading: Reading(reading),
                tables: tables
                    .into_iter()
                    .map(|rows| TableChanges {
                        table: "things".into(),
                        key_columns: vec!["id".into()],
                        columns: vec!["a".into(), "b".into(), "c".into()],
                        rows,
                    })
                    .collect(),
            },
        )
    }

    proptest! {
        #[test]
        fn a_changeset_is_read_as_it_was_written(changes in any_changes()) {
            let bytes = changes.encode().expect("within bounds");
            prop_assert_eq!(Changes::decode(&bytes), Ok(changes));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic_and_in_one_spelling(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80),
            changes in any_changes(), at in any::<prop::sample::Index>(), byte: u8,
        ) {
            let _ = Changes::decode(&bytes);
            bytes = changes.encode().expect("within bounds");
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(read) = Changes::decode(&bytes) {
                prop_assert_eq!(read.encode().expect("within bounds"), bytes);
            }
        }
    }

    fn one(row: RowChange) -> Changes {
        Changes {
            schema_version: 1,
            reading: Reading(9),
            tables: vec![TableChanges {
                table: "t".into(),
                key_columns: vec!["id".into()],
                columns: vec!["a".into()],
                rows: vec![row],
            }],
        }
    }

    #[test]
    fn other_spellings_and_what_makes_no_sense_are_refused() {
        let cell = Cell { column: 0, after: Some(Value::Integer(5)), before: None };
        let row =
            RowChange { key: vec![Value::Integer(1)], what: What::Written, cells: vec![cell] };
        let bytes = one(row.clone()).encode().expect("sound");
        assert!(Changes::decode(&bytes).is_ok());
        let mut longer = bytes.clone();
        longer.push(0xc0);
        assert_eq!(Changes::decode(&longer), Err(ChangesetError::Malformed));
        // The same integer in two bytes.
        let mut wide = bytes.clone();
        assert_eq!(wide.pop(), Some(5));
        wide.extend([0xcc, 5]);
        assert_eq!(Changes::decode(&wide), Err(ChangesetError::Malformed));
        let mut newer = bytes;
        newer[1] = VERSION + 1;
        assert_eq!(Changes::decode(&newer), Err(ChangesetError::Newer));
        let twice =
            RowChange { cells: vec![row.cells[0].clone(), row.cells[0].clone()], ..row.clone() };
        let keyless = RowChange { key: vec![Value::Null], ..row.clone() };
        let beyond = RowChange {
            cells: vec![Cell { column: 1, after: Some(Value::Null), before: None }],
            ..row.clone()
        };
        for wrong in [twice, keyless, beyond, RowChange { what: What::Deleted, ..row }] {
            assert_eq!(one(wrong).encode(), Err(ChangesetError::Malformed));
        }
    }
}
