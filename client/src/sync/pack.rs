//! Rows into parts, each of which fits the body of one entry.
//!
//! A part holds what is for the group and what is its user's alone, each to be sealed under its own
//! key. Rows stay in order; one that is too long is cut between its cells, which is the same to whoever
//! replays it.

use super::changeset::{Cell, Changes, RowChange, TableChanges, What};
use super::clock::Reading;
use super::error::SyncError;
use super::record::NameId;
use super::schema::{KeyScope, Shape};
use super::value::Value;
use crate::seal;

/// Most bytes of both boxes of a part: a body, less what sealing and padding add to each.
const PART_BYTES_MAX: usize = 192 * 1024;

/// Longest cell that is sent, in bytes. A longer one stays on its device.
pub(crate) const CELL_BYTES_MAX: usize = 128 * 1024;

/// Longest key that is sent, in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 4 * 1024;

/// What a row, cell or table costs besides its values, in bytes; never less.
const FRAME_BYTES: usize = 16;

/// The contents of one entry, not sealed yet: not to be printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) group: Option<Vec<u8>>,
    pub(crate) private: Option<Vec<u8>>,
    /// How many rows it speaks of.
    pub(crate) rows: usize,
    /// When it was written.
    pub(crate) reading: u64,
}

impl Part {
    /// About how many bytes its entry's body has; never fewer.
    pub(crate) fn sealed_bytes(&self) -> usize {
        let sealed = |part: &Option<Vec<u8>>| {
            part.as_ref().map_or(0, |bytes| seal::body_length(bytes.len()) + FRAME_BYTES)
        };
        FRAME_BYTES + sealed(&self.group) + sealed(&self.private)
    }
}

/// Takes rows and gives parts.
pub(crate) struct Packer {
    reading: Reading,
    schema_version: u32,
    group: Vec<(NameId, TableChanges)>,
    private: Vec<(NameId, TableChanges)>,
    bytes: usize,
    rows: usize,
    parts: Vec<Part>,
}

impl Packer {
    pub(crate) fn new(reading: Reading, schema_version: u32) -> Self {
        let (group, private) = (Vec::new(), Vec::new());
        Self { reading, schema_version, group, private, bytes: 0, rows: 0, parts: Vec::new() }
    }

    /// Takes what one row says under one key. Cells name their columns by their place in the shape. A row
    /// counts when it is taken for the first time.
    pub(crate) fn push(
        &mut self,
        number: NameId,
        shape: &Shape,
        scope: KeyScope,
        row: RowChange,
        first: bool,
    ) -> Result<(), SyncError> {
        let RowChange { key, what, cells } = row;
        let key_bytes = FRAME_BYTES + key.iter().map(Value::bytes).sum::<usize>();
        self.reserve(key_bytes)?;
        self.rows += usize::from(first);
        self.begin_row(number, shape, scope, key.clone(), what);
        for mut cell in cells {
            // What it was before is left out where it would not fit beside what it is.
            let after = cell.after.as_ref().map_or(0, Value::bytes);
            let before = cell.before.as_ref().map_or(0, Value::bytes);
            if after + before > CELL_BYTES_MAX {
                cell.before = None;
            }
            if cell.after.is_none() && cell.before.is_none() {
                continue;
            }
            let before = cell.before.as_ref().map_or(0, Value::bytes);
            if self.reserve(FRAME_BYTES + after + before)? {
                self.bytes += key_bytes;
                self.begin_row(number, shape, scope, key.clone(), what);
            }
            cell.column = column_in_box(shape, scope, cell.column);
            if let Some(row) = self.boxed(scope).last_mut().and_then(|(_, it)| it.rows.last_mut()) {
                row.cells.push(cell);
            }
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Vec<Part>, SyncError> {
        self.flush()?;
        Ok(self.parts)
    }

    /// Makes room. Says whether a part was ended for it.
    fn reserve(&mut self, bytes: usize) -> Result<bool, SyncError> {
        let full = self.bytes > 0 && self.bytes + bytes > PART_BYTES_MAX;
        if full {
            self.flush()?;
        }
        self.bytes += bytes;
        Ok(full)
    }

    fn boxed(&mut self, scope: KeyScope) -> &mut Vec<(NameId, TableChanges)> {
        match scope {
            KeyScope::Group => &mut self.group,
            KeyScope::UserPrivate => &mut self.private,
        }
    }

    fn begin_row(
        &mut self,
        number: NameId,
        shape: &Shape,
        scope: KeyScope,
        key: Vec<Value>,
        what: What,
    ) {
        let tables = self.boxed(scope);
        if tables.last().is_none_or(|(last, _)| *last != number) {
            let table = table_in_box(shape, scope);
            let names = table.columns.iter().chain(&table.key_columns);
            let bytes = names.map(|name| name.len() + 3).sum::<usize>() + shape.name.len();
            tables.push((number, table));
            self.bytes += FRAME_BYTES + bytes;
        }
        if let Some((_, table)) = self.boxed(scope).last_mut() {
            table.rows.push(RowChange { key, what, cells: Vec::new() });
        }
    }

    fn flush(&mut self) -> Result<(), SyncError> {
        let (reading, schema_version) = (self.reading, self.schema_version);
        let encode = |tables: Vec<(NameId, TableChanges)>| {
            let tables: Vec<TableChanges> = tables.into_iter().map(|(_, table)| table).collect();
            let changes = Changes { schema_version, reading, tables };
            (!changes.tables.is_empty()).then(|| changes.encode()).transpose()
        };
        let group = encode(std::mem::take(&mut self.group))?;
        let private = encode(std::mem::take(&mut self.private))?;
        if group.is_some() || private.is_some() {
            let reading = self.reading.0;
            self.parts.push(Part { group, private, rows: self.rows, reading });
        }
        self.bytes = 0;
        self.rows = 0;
        Ok(())
    }
}

/// A box names only the columns that are its own: the names of private ones are private, too.
fn table_in_box(shape: &Shape, scope: KeyScope) -> TableChanges {
    let columns = shape.columns.iter().filter(|column| column.scope == scope);
    TableChanges {
        table: shape.name.clone(),
        key_columns: shape.key.clone(),
        columns: columns.map(|column| column.name.clone()).collect(),
        rows: Vec::new(),
    }
}

fn column_in_box(shape: &Shape, scope: KeyScope, column: usize) -> usize {
    shape.columns[..column].iter().filter(|before| before.scope == scope).count()
}

/// A cell that was written.
pub(crate) fn written(column: usize, after: Value, before: Option<Value>) -> Cell {
    Cell { column, after: Some(after), before }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::schema::{Affinity, Column};

    fn shape() -> Shape {
        let column = |name: &str, scope| Column {
            name: name.into(),
            scope,
            volatile_default: false,
            null_default: true,
            affinity: Affinity::None,
        };
        Shape {
            name: "t".into(),
            rows: KeyScope::Group,
            key: vec!["id".into()],
            key_affinities: vec![Affinity::None],
            columns: vec![
                column("card", KeyScope::UserPrivate),
                column("a", KeyScope::Group),
                column("b", KeyScope::Group),
            ],
        }
    }

    #[test]
    fn a_long_changeset_becomes_parts_that_fit_and_lose_nothing() {
        let mut packer = Packer::new(Reading(5), 1);
        let long = Value::Blob(vec![7; 50_000]);
        for number in 0..20 {
            let key = vec![Value::Integer(number)];
            let cells =
                vec![written(1, long.clone(), None), written(2, long.clone(), Some(long.clone()))];
            let row = RowChange { key, what: What::Written, cells };
            packer.push(1, &shape(), KeyScope::Group, row, true).expect("taken");
        }
        let parts = packer.finish().expect("packed");
        assert!(parts.len() > 10);
        let mut cells = 0;
        for part in &parts {
            let bytes = part.group.as_ref().expect("for the group");
            assert!(bytes.len() <= PART_BYTES_MAX && part.private.is_none());
            let changes = Changes::decode(bytes).expect("sound");
            cells += changes.tables[0].rows.iter().map(|row| row.cells.len()).sum::<usize>();
        }
        assert_eq!(cells, 40);
    }

    #[test]
    fn a_box_names_no_column_of_another_scope() {
        let mut packer = Packer::new(Reading(5), 1);
        let row = |what, cells| RowChange { key: vec![Value::Integer(1)], what, cells };
        let shared = row(What::Written, vec![written(2, Value::Integer(2), None)]);
        packer.push(1, &shape(), KeyScope::Group, shared, true).expect("taken");
        let private = row(What::Cells, vec![written(0, Value::text("1234"), None)]);
        packer.push(1, &shape(), KeyScope::UserPrivate, private, false).expect("taken");
        let parts = packer.finish().expect("packed");
        let [part] = parts.as_slice() else { panic!("one part") };
        let group = Changes::decode(part.group.as_ref().expect("one")).expect("sound");
        assert_eq!(group.tables[0].columns, ["a", "b"]);
        assert_eq!(group.tables[0].rows[0].cells[0].column, 1);
        let private = Changes::decode(part.private.as_ref().expect("one")).expect("sound");
        assert_eq!(private.tables[0].columns, ["card"]);
    }
}
