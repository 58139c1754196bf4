//! Whether a snapshot of another device has everything that this one has, and as it was written: only then
//! it is confirmed, and the relay may let go of what it covers.
//!
//! What is newer than the snapshot is not asked for: changesets behind its head, and those that are not
//! in the vault yet. What the snapshot has besides can only be its author's own, who may not have sent it
//! yet when it was made: this device has read everything else that was there. So nobody is made by a
//! snapshot to have written what he has not.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use sealwire_protocol::DeviceKey;
use sealwire_protocol::frame::SnapshotSummary;

use super::capture::key_bytes;
use super::changeset::{Changes, What};
use super::clock::{Reading, Stamp};
use super::error::SyncError;
use super::intake::{Kept, Keyring};
use super::record::{NameId, Record, Register};
use super::replay::Held;
use super::schema::KeyScope;
use super::state::{self, StateBox, StateRows, StateSealed, Visit};
use super::value::Value;
use super::writer::Writer;
use crate::error::StoreError;
use crate::vault::SnapshotError;

/// What a snapshot holds, as far as this device can see: for each register its newest stamp.
pub(super) struct Coverage<'a> {
    keys: Keyring<'a>,
    /// Whose writes it may hold that this device does not know: its author's, and theirs of whom this device
    /// has boxes that it cannot open.
    unknown: HashSet<DeviceKey>,
    /// The stamps of what is newer than the snapshot, or not in the vault: it may lack them.
    newer: HashSet<Stamp>,
    /// Whether it holds what was not written so.
    is_false: bool,
    hasher: RandomState,
    /// By a hash of what the register is of: the whole names would take the memory of the state.
    newest: HashMap<u64, Stamp>,
}

/// What a register is of; no column for the row's being there.
type Of<'a> = (NameId, &'a [u8], Option<NameId>, KeyScope);

/// What stands in a register of a snapshot.
#[derive(Clone, Copy)]
enum Said<'a> {
    Life(bool),
    Cell(NameId, &'a Value),
}

impl<'a> Coverage<'a> {
    /// Of a snapshot by `author` at `seq`.
    pub(super) fn of(
        keys: Keyring<'a>,
        author: DeviceKey,
        seq: u64,
        writer: &mut Writer<'_>,
    ) -> Result<Self, SyncError> {
        let mut unknown = writer.authors_of_sealed(keys)?;
        unknown.insert(author);
        let (newer, hasher) = (writer.newer_than(seq)?, RandomState::new());
        Ok(Self { keys, unknown, newer, is_false: false, hasher, newest: HashMap::new() })
    }

    fn note(&mut self, of: Of<'_>, stamp: Stamp) {
        let newest = self.newest.entry(self.hasher.hash_one(of)).or_insert(stamp);
        *newest = stamp.max(*newest);
    }

    fn has(&self, of: Of<'_>, stamp: Stamp) -> bool {
        self.newest.get(&self.hasher.hash_one(of)).is_some_and(|newest| *newest >= stamp)
    }

    /// Takes a state that is still compressed.
    pub(super) fn take(&mut self, writer: &mut Writer<'_>, packed: &[u8]) -> Result<(), SyncError> {
        state::read(writer, self.keys, KeyScope::Group, packed, self)
    }

    /// Takes one register of a row. `held` gives what the app's table has of a cell.
    fn register(
        &mut self,
        (table, key, scope): (NameId, &[u8], KeyScope),
        here: &Record,
        stamp: Stamp,
        said: Said<'_>,
        held: impl FnOnce((NameId, KeyScope)) -> Result<Option<Value>, SyncError>,
    ) -> Result<(), SyncError> {
        let column = if let Said::Cell(column, _) = said { Some(column) } else { None };
        // Only what is here is asked for: what a snapshot has besides takes no memory.
        let known = match column {
            None => here.life(scope).map(|life| life.stamp),
            Some(column) => here.cells.get(&(column, scope)).map(|register| register.stamp),
        };
        if known.is_some() {
            self.note((table, key, column, scope), stamp);
        }
        // What is a person's own only that person's devices can write into one.
        let older = known.is_some_and(|known| stamp < known);
        if scope == KeyScope::UserPrivate || older {
            return Ok(());
        }
        // What is newer than the snapshot is judged all the same: whoever begins with it and then reads
        // what is newer would keep the greater one of two values under that stamp.
        let so = match said {
            _ if known != Some(stamp) => self.unknown.contains(&stamp.device),
            Said::Life(alive) => here.is_alive(scope) == alive,
            Said::Cell(column, value) => match here.cells.get(&(column, scope)) {
                Some(register) if register.alone => true,
                Some(Register { kept: Some(kept), .. }) => kept == value,
                // If it is nowhere, the table has lost its column since.
                _ => held((column, scope))?.is_none_or(|held| held == *value),
            },
        };
        self.is_false |= !so;
        Ok(())
    }

    fn changes(
        &mut self,
        writer: &mut Writer<'_>,
        scope: KeyScope,
        author: DeviceKey,
        changes: &Changes,
    ) -> Result<(), SyncError> {
        let stamp = Stamp { reading: changes.reading, device: author };
        for table in &changes.tables {
            let number = writer.names.table(writer.db, &table.table, &table.key_columns)?;
            let columns = writer.column_numbers(&table.columns)?;
            for row in &table.rows {
                let key = key_bytes(&row.key);
                let here = writer.record(number, &key)?.unwrap_or_default();
                let (of, held) = ((number, key.as_slice(), scope), Held::default());
                let held = |cell| held.get(writer, number, &row.key, here.shown, cell);
                match row.what {
                    What::Cells => {}
                    What::Written => self.register(of, &here, stamp, Said::Life(true), held)?,
                    What::Deleted => self.register(of, &here, stamp, Said::Life(false), held)?,
                }
                for cell in &row.cells {
                    let Some(value) = &cell.after else { continue };
                    let said = Said::Cell(columns[cell.column], value);
                    self.register(of, &here, stamp, said, held)?;
                }
            }
        }
        Ok(())
    }
}

impl Visit for Coverage<'_> {
    fn rows(
        &mut self,
        writer: &mut Writer<'_>,
        scope: KeyScope,
        devices: &[DeviceKey],
        rows: StateRows,
    ) -> Result<(), SyncError> {
        let table = writer.names.table(writer.db, &rows.table, &rows.key_columns)?;
        let columns = writer.column_numbers(&rows.columns)?;
        for state::StateRow(key, life, cells) in rows.rows {
            let bytes = key_bytes(&key);
            let here = writer.record(table, &bytes)?.unwrap_or_default();
            let (of, held) = ((table, bytes.as_slice(), scope), Held::default());
            let held = |cell| held.get(writer, table, &key, here.shown, cell);
            if let Some((reading, device, alive)) = life {
                let stamp = state::stamp(devices, reading, device)?;
                self.register(of, &here, stamp, Said::Life(alive), held)?;
            }
            for (column, reading, device, value) in cells {
                let stamp = state::stamp(devices, reading, device)?;
                let column = columns.get(usize::from(column)).copied();
                let column = column.ok_or(SnapshotError::Damaged)?;
                self.register(of, &here, stamp, Said::Cell(column, &value), held)?;
            }
        }
        Ok(())
    }

    fn state(&mut self, _: &mut Writer<'_>, _: StateBox) -> Result<(), SyncError> {
        Ok(())
    }

    fn sealed(&mut self, writer: &mut Writer<'_>, sealed: StateSealed) -> Result<(), SyncError> {
        let Some(scope) = self.keys.kind(sealed.scope) else { return Ok(()) };
        let opened = self.keys.vault.open_box(sealed.author, &sealed.aad, &sealed.sealed);
        match opened.ok().and_then(|bytes| Changes::decode(&bytes).ok()) {
            Some(changes) => self.changes(writer, scope, sealed.author, &changes),
            None => {
                // What this device cannot judge it has itself, as it came.
                self.is_false |= scope == KeyScope::Group && !writer.has_box(&sealed)?;
                Ok(())
            }
        }
    }
}

/// The sealed states of others that a snapshot has.
struct Carried<'a> {
    keys: Keyring<'a>,
    author: Option<DeviceKey>,
    snapshot: SnapshotSummary,
}

impl Visit for Carried<'_> {
    fn rows(
        &mut self,
        _: &mut Writer<'_>,
        _: KeyScope,
        _: &[DeviceKey],
        _: StateRows,
    ) -> Result<(), SyncError> {
        Ok(())
    }

    fn state(&mut self, writer: &mut Writer<'_>, state: StateBox) -> Result<(), SyncError> {
        // Only somebody who holds a scope can say that its state is whole.
        let holds = Some(state.author) == self.author
            && self.keys.vault.is_holder(state.scope, state.author)
            && state.head == self.snapshot.head;
        if self.keys.kind(state.scope).is_none() && holds {
            writer.carry(&state)?;
            writer
                .db
                .prepare_cached(
                    "delete from sealwire_sealed where scope = ?1 and seq <= ?2 and reason = ?3",
                )?
                .execute((&state.scope.0[..], state.head.seq.cast_signed(), Kept::NoKey as i64))?;
        }
        Ok(())
    }

    fn sealed(&mut self, _: &mut Writer<'_>, _: StateSealed) -> Result<(), SyncError> {
        Ok(())
    }
}

impl Writer<'_> {
    /// Whether a snapshot has everything that is here and is not newer than it, and nothing false.
    pub(super) fn is_covered(&mut self, coverage: &Coverage<'_>) -> Result<bool, SyncError> {
        if coverage.is_false {
            return Ok(false);
        }
        let db = self.db;
        let mut statement = db.prepare("select tbl, key, record from sealwire_rows")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (table, key, record): (NameId, Vec<u8>, Vec<u8>) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            let record = self.decode_record(&record)?;
            let lives = [KeyScope::Group, KeyScope::UserPrivate].into_iter().filter_map(|scope| {
                record.life(scope).map(|life| ((table, key.as_slice(), None, scope), life.stamp))
            });
            let sent = record.cells.iter().filter(|(_, register)| !register.alone);
            let cells = sent.map(|((column, scope), register)| {
                ((table, key.as_slice(), Some(*column), *scope), register.stamp)
            });
            for (of, stamp) in lives.chain(cells) {
                if !coverage.newer.contains(&stamp) && !coverage.has(of, stamp) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Of whom there are boxes of the vault's own scope that do not open, or of nobody knows which.
    fn authors_of_sealed(&self, keys: Keyring<'_>) -> Result<HashSet<DeviceKey>, SyncError> {
        let mut statement = self.db.prepare_cached(
            "select distinct author from sealwire_sealed where scope in (?1, zeroblob(16))",
        )?;
        let rows = statement.query_map([&keys.vault.scope().0[..]], |row| row.get(0))?;
        let authors: Vec<Vec<u8>> = rows.collect::<rusqlite::Result<_>>()?;
        let key = |author: &Vec<u8>| DeviceKey::from_slice(author).ok_or(StoreError::Damaged);
        Ok(authors.iter().map(key).collect::<Result<_, _>>()?)
    }

    /// Whether a box is kept here, just so.
    fn has_box(&self, sealed: &StateSealed) -> Result<bool, SyncError> {
        let mut statement = self.db.prepare_cached(
            "select 1 from sealwire_sealed
             where seq = ?1 and place = ?2 and author = ?3 and aad = ?4 and box = ?5",
        )?;
        let StateSealed { seq, place, author, aad, sealed, .. } = sealed;
        Ok(statement.exists((seq.cast_signed(), place, &author.0[..], aad, sealed))?)
    }

    /// The stamps of changesets behind `seq`, and of those that are not in the vault.
    fn newer_than(&mut self, seq: u64) -> Result<HashSet<Stamp>, SyncError> {
        let db = self.db;
        let mut newer = HashSet::new();
        let mut statement =
            db.prepare_cached("select author, reading from sealwire_history where seq > ?1")?;
        let mut rows = statement.query([seq.cast_signed()])?;
        while let Some(row) = rows.next()? {
            let device = self.names.device_key(db, row.get(0)?)?;
            let reading = Reading(row.get::<_, i64>(1)?.cast_unsigned());
            newer.insert(Stamp { reading, device });
        }
        let mut statement = db.prepare_cached(
            "select reading from sealwire_outbox where state < 2 and reading is not null",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let reading = Reading(row.get::<_, i64>(0)?.cast_unsigned());
            newer.insert(Stamp { reading, device: self.me });
        }
        Ok(newer)
    }

    /// Keeps the sealed states of others that a snapshot has, in place of the boxes that they are made
    /// of; and forgets the history that nothing will be compared with any more.
    pub(super) fn take_carried(
        &mut self,
        keys: Keyring<'_>,
        snapshot: SnapshotSummary,
        packed: &[u8],
    ) -> Result<(), SyncError> {
        let author = keys.vault.devices().author(snapshot.digest);
        let mut carried = Carried { keys, author, snapshot };
        state::read(self, keys, KeyScope::Group, packed, &mut carried)?;
        let seq = snapshot.head.seq.cast_signed();
        self.db.execute("delete from sealwire_history where seq <= ?1", [seq])?;
        Ok(())
    }
}
