//! What the triggers wrote down becomes changesets: stamped, split by scope, and put into the outbox.
//!
//! This happens before anything of another device is replayed, in the same transaction. So whatever the
//! app has written is stamped by what it could have seen, and a replay never overwrites a write that
//! nobody has heard of.

use std::collections::HashMap;

use super::capture::{self, Group, Net, key_bytes};
use super::changeset::{Cell, RowChange, What};
use super::clock::{Reading, Stamp};
use super::error::SyncError;
use super::pack::{CELL_BYTES_MAX, KEY_BYTES_MAX, Packer, Part, written};
use super::record::{NameId, Record};
use super::schema::{KeyScope, Shape};
use super::value::Value;
use super::writer::{Registered, Writer, meta, set_meta};

/// How many changesets of rows were made that were there before anything was captured. Each has a reading
/// of its own, so that what a snapshot lacks can be told apart from what came after it.
const ADOPTIONS: &str = "adoptions";

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drained {
    /// Rows that were changed.
    pub(crate) rows: usize,
    /// Entries that they take.
    pub(crate) parts: usize,
}

/// A row that is about to be sent.
struct Change<'a> {
    table: &'a Registered,
    key: Vec<u8>,
    record: Record,
    net: Net,
}

impl Writer<'_> {
    /// Makes changesets of everything that the app has written.
    pub(crate) fn drain(&mut self) -> Result<Drained, SyncError> {
        let mut all = Drained::default();
        let shapes: HashMap<NameId, Shape> =
            self.tables.0.iter().map(|(number, it)| (*number, it.shape.clone())).collect();
        while let Some(group) = capture::oldest(self.db, &shapes)? {
            let Group { at, last, rows, .. } = group;
            let drained = self.emit(rows, Some(at))?;
            all.rows += drained.rows;
            all.parts += drained.parts;
            capture::forget(self.db, last)?;
        }
        Ok(all)
    }

    /// Stamps rows and puts them into the outbox. `at` is when they were written; none for rows that
    /// were there before anything was captured, which every other write goes before.
    pub(crate) fn emit(&mut self, rows: Vec<Net>, at: Option<u64>) -> Result<Drained, SyncError> {
        let tables = self.tables;
        let mut changes = Vec::with_capacity(rows.len());
        for net in rows {
            let Some(table) = tables.0.get(&net.table) else { continue };
            let key = key_bytes(&net.last[..table.shape.key.len()]);
            let record = self.record(net.table, &key)?.unwrap_or_default();
            changes.push(Change { table, key, record, net });
        }
        let reading = match at {
            None => {
                let before: Option<u32> = meta(self.db, ADOPTIONS)?;
                let number = before.unwrap_or(0).saturating_add(1);
                set_meta(self.db, ADOPTIONS, number)?;
                Reading::adopted(number)
            }
            Some(at) => {
                let reach = Reading::reach(self.now);
                let over = changes.iter().filter_map(|change| change.record.newest(reach)).max();
                let mut clock = self.clock()?;
                let reading = clock.stamp(at, self.now, over);
                self.keep_clock(clock)?;
                reading
            }
        };
        let stamp = Stamp { reading, device: self.me };
        let mut packer = Packer::new(reading, self.schema_version);
        let mut drained = Drained::default();
        for change in changes {
            drained.rows += usize::from(self.take(change, stamp, &mut packer)?);
        }
        let parts = packer.finish()?;
        drained.parts = parts.len();
        for part in parts {
            self.enqueue(&part)?;
        }
        Ok(drained)
    }

    fn enqueue(&self, part: &Part) -> Result<(), SyncError> {
        self.db
            .prepare_cached(
                "insert into sealwire_outbox (group_part, private_part, rows, reading)
                 values (?1, ?2, ?3, ?4)",
            )?
            .execute((
                &part.group,
                &part.private,
                i64::try_from(part.rows).unwrap_or(i64::MAX),
                part.reading.cast_signed(),
            ))?;
        Ok(())
    }

    /// Takes one row. Says whether anything about it has changed.
    fn take(
        &mut self,
        change: Change<'_>,
        stamp: Stamp,
        packer: &mut Packer,
    ) -> Result<bool, SyncError> {
        let Change { table, key, mut record, net } = change;
        let apart = table.shape.keeps_apart(&net.last[..table.shape.key.len()]);
        if key.len() > KEY_BYTES_MAX || !apart {
            // As a whole, for as long as it is there.
            match net.after {
                Some(_) => self.note_oversized(table.number, &key, 0)?,
                None => self.forget_oversized(table.number, &key)?,
            }
            return Ok(false);
        }
        let Net { before, after, last, .. } = net;
        let sent = match after {
            Some(after) => {
                let mut row = Written { table, key: &key, record: &mut record, stamp };
                let rows = row.take(before.as_deref(), &after);
                if rows.sent.is_empty() && rows.alone {
                    self.keep_record(table.number, &key, &record)?;
                }
                rows.sent
            }
            None if before.is_none() && !record.shown => return Ok(false),
            None => {
                let sent = deleted(table, &mut record, stamp, before.as_ref().unwrap_or(&last));
                vec![(table.shape.rows, sent)]
            }
        };
        if sent.is_empty() {
            return Ok(false);
        }
        for (place, (scope, row)) in sent.into_iter().enumerate() {
            packer.push(table.number, &table.shape, scope, row, place == 0)?;
        }
        self.unwithhold(table.number, &key)?;
        self.keep_record(table.number, &key, &record)?;
        Ok(true)
    }
}

/// A row that stands in the app's table.
struct Written<'a> {
    table: &'a Registered,
    key: &'a [u8],
    record: &'a mut Record,
    stamp: Stamp,
}

#[derive(Default)]
struct Sent {
    sent: Vec<(KeyScope, RowChange)>,
    /// Whether some values stay on this device.
    alone: bool,
}

impl Written<'_> {
    fn take(&mut self, before: Option<&[Value]>, after: &[Value]) -> Sent {
        let shape = &self.table.shape;
        let keys = shape.key.len();
        let mut found = Sent::default();
        let (mut group, mut private) = (Vec::new(), Vec::new());
        let adopted = self.stamp.reading.is_adopted();
        let known = !self.record.cells.is_empty();
        let mut own_alone = false;
        for (at, column) in shape.columns.iter().enumerate() {
            let number = self.table.columns[at];
            let (old, new) = (before.map(|it| &it[keys + at]), &after[keys + at]);
            let unknown = !self.record.cells.contains_key(&(number, column.scope));
            // A column that was added to a row that others know is theirs to fill, too.
            let missing = unknown && !(adopted && known && *new == Value::Null);
            // What is private and was never written is not worth a box.
            let silent = column.scope != shape.rows && column.null_default && *new == Value::Null;
            if (old == Some(new) && !missing) || (unknown && silent) {
                continue;
            }
            // One from beyond reach, which no clock has, cannot be exceeded.
            let register = self.record.cells.get(&(number, column.scope));
            let beyond = register.is_some_and(|register| register.stamp >= self.stamp);
            if new.bytes() > CELL_BYTES_MAX || beyond {
                self.record.wrote_alone(number, column.scope, self.stamp);
                own_alone |= column.scope == shape.rows;
                found.alone = true;
                continue;
            }
            let cell = written(at, new.clone(), old.filter(|_| !unknown).cloned());
            match column.scope {
                KeyScope::Group => group.push(cell),
                KeyScope::UserPrivate => private.push(cell),
            }
            self.record.wrote(number, column.scope, self.stamp);
        }
        let own = match shape.rows {
            KeyScope::Group => &group,
            KeyScope::UserPrivate => &private,
        };
        let lives = !own.is_empty() || own_alone || !self.record.is_alive(shape.rows);
        if lives {
            self.record.live(shape.rows, self.stamp, true);
        }
        self.record.shown = true;
        for (scope, cells) in [(KeyScope::Group, group), (KeyScope::UserPrivate, private)] {
            let here = lives && scope == shape.rows;
            if here || !cells.is_empty() {
                let what = if here { What::Written } else { What::Cells };
                found.sent.push((scope, RowChange { key: self.key_values(after), what, cells }));
            }
        }
        found
    }

    fn key_values(&self, image: &[Value]) -> Vec<Value> {
        debug_assert_eq!(self.key, key_bytes(&image[..self.table.shape.key.len()]));
        image[..self.table.shape.key.len()].to_vec()
    }
}

/// A row that was deleted: its values are kept, for a later write of another device brings it back.
/// Those that are kept already are newer than the table's, or what the table has made others of.
fn deleted(table: &Registered, record: &mut Record, stamp: Stamp, image: &[Value]) -> RowChange {
    let shape = &table.shape;
    let keys = shape.key.len();
    let mut cells = Vec::new();
    for (at, column) in shape.columns.iter().enumerate() {
        let value = &image[keys + at];
        if let Some(register) = record.cells.get_mut(&(table.columns[at], column.scope)) {
            register.kept.get_or_insert_with(|| value.clone());
        }
        if column.scope == shape.rows {
            cells.push(Cell { column: at, after: None, before: Some(value.clone()) });
        }
    }
    record.live(shape.rows, stamp, false);
    record.shown = false;
    RowChange { key: image[..keys].to_vec(), what: What::Deleted, cells }
}
