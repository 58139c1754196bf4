//! What the app writes is written down in the transaction that writes it, by triggers.
//!
//! So nothing is lost in a crash, nothing is written down that was rolled back, and it makes no
//! difference which connection, process or library the app writes with
//! ([decision 10](../../../docs/decisions/0010-writes-are-captured-by-triggers.md)).
//!
//! While changes of other devices are replayed, a row stands in `sealwire_replaying`, in the same
//! transaction: the triggers see it and write nothing. Nobody else can write meanwhile, and after a
//! crash the row was never there.

use std::collections::HashMap;

use rusqlite::{Connection, Row};

use super::error::SyncError;
use super::record::NameId;
use super::schema::{PREFIX, Shape, quote};
use super::value::Value;
use crate::error::StoreError;

const INSERTED: i64 = 1;
const UPDATED: i64 = 2;
const DELETED: i64 = 3;
const REPLACED: i64 = 4;

/// Most writes that are folded at once. More of one transaction become several changesets.
pub(crate) const WRITES_MAX: usize = 20_000;

/// Writes further apart than this are not of one transaction: each keeps its own time.
const GAP_MS: u64 = 60_000;

/// Milliseconds since the epoch, in any version of SQLite.
const NOW: &str = "cast((julianday('now') - 2440587.5) * 86400000 as integer)";

/// Where the triggers of a table begin their names.
fn trigger(what: &str, number: NameId) -> String {
    quote(&format!("{PREFIX}{what}_{number}"))
}

/// Removes all triggers of this module.
pub(crate) fn remove_triggers(db: &Connection) -> Result<(), SyncError> {
    let mut statement = db.prepare(
        "select name from sqlite_schema where type = 'trigger' and name like 'sealwire\\_%' escape '\\'",
    )?;
    let names: Vec<String> =
        statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for name in names {
        db.execute_batch(&format!("drop trigger {}", quote(&name)))?;
    }
    Ok(())
}

/// Whether a table has all its triggers. A table that was made anew and renamed has lost them.
pub(crate) fn has_triggers(
    db: &Connection,
    number: NameId,
    shape: &Shape,
) -> Result<bool, SyncError> {
    let names =
        ["insert", "update", "delete", "replace"].map(|what| format!("{PREFIX}{what}_{number}"));
    let found: i64 = db
        .prepare_cached(
            "select count(*) from sqlite_schema where type = 'trigger' and tbl_name = ?1
             and name in (?2, ?3, ?4, ?5)",
        )?
        .query_row((&shape.name, &names[0], &names[1], &names[2], &names[3]), |row| row.get(0))?;
    Ok(found == 4)
}

/// Makes the triggers of a table.
pub(crate) fn make_triggers(
    db: &Connection,
    number: NameId,
    shape: &Shape,
) -> Result<(), SyncError> {
    widen(db, shape.width() * 2)?;
    let table = quote(&shape.name);
    let images = |of: &[&str]| -> String {
        let all =
            of.iter().flat_map(|of| shape.names().map(move |it| format!(", {of}.{}", quote(it))));
        all.collect()
    };
    let places = |count: usize| -> String { (0..count).map(|at| format!(", c{at}")).collect() };
    let row = |op: i64, of: &[&str], from: &str| {
        let places = places(shape.width() * of.len());
        let images = images(of);
        format!(
            "insert into sealwire_capture (tbl, op, at{places})
             select {number}, {op}, {NOW}{images}{from};"
        )
    };
    let idle = "not exists (select 1 from sealwire_replaying)";
    let same: Vec<String> =
        shape.key.iter().map(|it| format!("was.{0} = new.{0}", quote(it))).collect();
    // Before an insert, the row that it would replace is the one with the new key.
    let same = same.join(" and ");
    let replaced = row(REPLACED, &["was"], &format!(" from {table} as was where {same}"));
    let sql = [
        (trigger("replace", number), "before insert", replaced),
        (trigger("insert", number), "after insert", row(INSERTED, &["new"], "")),
        (trigger("update", number), "after update", row(UPDATED, &["old", "new"], "")),
        (trigger("delete", number), "after delete", row(DELETED, &["old"], "")),
    ];
    for (name, when, body) in sql {
        db.execute_batch(&format!(
            "create trigger {name} {when} on {table} when {idle} begin {body} end"
        ))?;
    }
    Ok(())
}

/// Gives the capture table as many columns as the widest image needs.
fn widen(db: &Connection, width: usize) -> Result<(), SyncError> {
    for at in columns(db)?..width {
        db.execute_batch(&format!("alter table sealwire_capture add column c{at}"))?;
    }
    Ok(())
}

fn columns(db: &Connection) -> Result<usize, SyncError> {
    let sql =
        "select count(*) from pragma_table_info('sealwire_capture') where name glob 'c[0-9]*'";
    let count: u32 = db.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// What became of one row: as it was before all these writes, and as it is after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Net {
    /// Which table.
    pub(crate) table: NameId,
    /// As it was; none if it was not there, or not known.
    pub(crate) before: Option<Vec<Value>>,
    /// As it is; none if it is not there.
    pub(crate) after: Option<Vec<Value>>,
    /// The newest image of it.
    pub(crate) last: Vec<Value>,
}

/// Writes that belong together, and what became of each row.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// When the last of them was, in milliseconds since the epoch.
    pub(crate) at: u64,
    /// The id of the last of them.
    pub(crate) last: i64,
    pub(crate) rows: Vec<Net>,
    index: HashMap<(NameId, Vec<u8>), usize>,
    /// Rows that would be replaced by an insert, if it happens.
    replaced: HashMap<(NameId, Vec<u8>), Vec<Value>>,
}

/// Reads the oldest writes that belong together. None if there are none.
pub(crate) fn oldest(
    db: &Connection,
    shapes: &HashMap<NameId, Shape>,
) -> Result<Option<Group>, SyncError> {
    let columns = columns(db)?;
    let names: String = (0..columns).map(|at| format!(", c{at}")).collect();
    let mut statement = db.prepare_cached(&format!(
        "select id, tbl, op, at{names} from sealwire_capture order by id limit {WRITES_MAX}"
    ))?;
    let mut rows = statement.query([])?;
    let mut group: Option<Group> = None;
    while let Some(row) = rows.next()? {
        let at = u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0);
        if group.as_ref().is_some_and(|group| at.abs_diff(group.at) > GAP_MS) {
            break;
        }
        let group = group.get_or_insert_with(Group::default);
        group.at = at;
        group.last = row.get(0)?;
        let table = row.get(1)?;
        let shape = shapes.get(&table).ok_or(StoreError::Damaged)?;
        group.take(table, shape, row.get(2)?, row)?;
    }
    Ok(group)
}

/// Whether anything was written down.
pub(crate) fn has_any(db: &Connection) -> Result<bool, SyncError> {
    let sql = "select exists (select 1 from sealwire_capture)";
    Ok(db.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// Forgets what was read.
pub(crate) fn forget(db: &Connection, up_to: i64) -> Result<(), SyncError> {
    db.prepare_cached("delete from sealwire_capture where id <= ?1")?.execute([up_to])?;
    Ok(())
}

/// The key of a row as it is stored: of the key's values, or of a whole image of `width` values.
pub(crate) fn key_bytes(key: &[Value]) -> Vec<u8> {
    rmp_serde::to_vec(key).expect("values can be written to memory")
}

impl Group {
    fn take(
        &mut self,
        table: NameId,
        shape: &Shape,
        op: i64,
        row: &Row<'_>,
    ) -> Result<(), SyncError> {
        let image = |from: usize| -> rusqlite::Result<Vec<Value>> {
            (0..shape.width()).map(|at| Ok(row.get_ref(4 + from + at)?.into())).collect()
        };
        let keys = shape.key.len();
        match op {
            INSERTED => self.written(table, keys, None, image(0)?),
            UPDATED => {
                let (old, new) = (image(0)?, image(shape.width())?);
                if old[..keys] == new[..keys] {
                    self.written(table, keys, Some(old), new);
                } else {
                    self.deleted(table, keys, old);
                    self.written(table, keys, None, new);
                }
            }
            DELETED => self.deleted(table, keys, image(0)?),
            REPLACED => {
                let old = image(0)?;
                self.replaced.insert((table, key_bytes(&old[..keys])), old);
            }
            _ => return Err(StoreError::Damaged.into()),
        }
        Ok(())
    }

    /// The row's place, and whether it is new. A row whose key is nothing is nobody else's.
    fn place(&mut self, table: NameId, keys: usize, image: &[Value]) -> Option<(usize, bool)> {
        if image[..keys].contains(&Value::Null) {
            return None;
        }
        let next = self.rows.len();
        let at = *self.index.entry((table, key_bytes(&image[..keys]))).or_insert(next);
        Some((at, at == next))
    }

    fn written(&mut self, table: NameId, keys: usize, old: Option<Vec<Value>>, new: Vec<Value>) {
        let Some((at, first)) = self.place(table, keys, &new) else { return };
        let replaced = self.replaced.remove(&(table, key_bytes(&new[..keys])));
        if first {
            let before = old.or(replaced);
            self.rows.push(Net { table, before, after: Some(new.clone()), last: new });
        } else {
            let net = &mut self.rows[at];
            net.after = Some(new.clone());
            net.last = new;
        }
    }

    fn deleted(&mut self, table: NameId, keys: usize, old: Vec<Value>) {
        let Some((at, first)) = self.place(table, keys, &old) else { return };
        if first {
            self.rows.push(Net { table, before: Some(old.clone()), after: None, last: old });
        } else {
            self.rows[at].after = None;
            self.rows[at].last = old;
        }
    }
}
