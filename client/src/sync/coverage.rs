//! Whether a snapshot of another device has everything that this one has: only then it is confirmed, and
//! the relay may let go of what it covers.
//!
//! What is newer than the snapshot is not asked for: changesets behind its head, and those that are not
//! in the vault yet.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use sealwire_protocol::DeviceKey;
use sealwire_protocol::frame::SnapshotSummary;

use super::capture::key_bytes;
use super::changeset::{Changes, What};
use super::clock::{Reading, Stamp};
use super::error::SyncError;
use super::intake::{Kept, Keyring};
use super::record::NameId;
use super::schema::KeyScope;
use super::state::{self, StateBox, StateRows, StateSealed, Visit};
use super::writer::Writer;
use crate::vault::SnapshotError;

/// What a snapshot holds, as far as this device can see: for each register its newest stamp.
pub(super) struct Coverage<'a> {
    keys: Keyring<'a>,
    hasher: RandomState,
    /// By a hash of what the register is of: the whole names would take the memory of the state.
    newest: HashMap<u64, Stamp>,
}

/// What a register is of; no column for the row's being there.
type Of<'a> = (NameId, &'a [u8], Option<NameId>, KeyScope);

impl<'a> Coverage<'a> {
    pub(super) fn of(keys: Keyring<'a>) -> Self {
        Self { keys, hasher: RandomState::new(), newest: HashMap::new() }
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

    fn changes(
        &mut self,
        writer: &mut Writer<'_>,
        author: DeviceKey,
        changes: &Changes,
    ) -> Result<(), SyncError> {
        let stamp = Stamp { reading: changes.reading, device: author };
        let scope = KeyScope::UserPrivate;
        for table in &changes.tables {
            let number = writer.names.table(writer.db, &table.table, &table.key_columns)?;
            let columns = writer.column_numbers(&table.columns)?;
            for row in &table.rows {
                let key = key_bytes(&row.key);
                let Some(here) = writer.record(number, &key)? else { continue };
                if row.what != What::Cells {
                    self.note((number, &key, None, scope), stamp);
                }
                let known = |at: usize| here.cells.contains_key(&(columns[at], scope));
                let written = row.cells.iter().filter(|cell| cell.after.is_some());
                for cell in written.filter(|cell| known(cell.column)) {
                    self.note((number, &key, Some(columns[cell.column]), scope), stamp);
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
            let key = key_bytes(&key);
            // Only what is here is asked for: what a snapshot has besides takes no memory.
            let Some(here) = writer.record(table, &key)? else { continue };
            if let Some((reading, device, _)) = life {
                let stamp = state::stamp(devices, reading, device)?;
                self.note((table, &key, None, scope), stamp);
            }
            for (column, reading, device, _) in cells {
                let stamp = state::stamp(devices, reading, device)?;
                let column = columns.get(usize::from(column)).copied();
                let column = column.ok_or(SnapshotError::Damaged)?;
                if here.cells.contains_key(&(column, scope)) {
                    self.note((table, &key, Some(column), scope), stamp);
                }
            }
        }
        Ok(())
    }

    fn state(&mut self, _: &mut Writer<'_>, _: StateBox) -> Result<(), SyncError> {
        Ok(())
    }

    fn sealed(&mut self, writer: &mut Writer<'_>, sealed: StateSealed) -> Result<(), SyncError> {
        if !self.keys.is_mine(sealed.scope) {
            return Ok(());
        }
        let opened = self.keys.vault.open_box(sealed.author, &sealed.aad, &sealed.sealed);
        match opened.ok().and_then(|bytes| Changes::decode(&bytes).ok()) {
            Some(changes) => self.changes(writer, sealed.author, &changes),
            None => Ok(()),
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
    /// Whether a snapshot at `seq` has everything that is here and is not newer than it.
    pub(super) fn is_covered(
        &mut self,
        coverage: &Coverage<'_>,
        seq: u64,
    ) -> Result<bool, SyncError> {
        let newer = self.newer_than(seq)?;
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
                if !newer.contains(&stamp) && !coverage.has(of, stamp) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
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
