//! Snapshots over a connection: making one, beginning with one, and comparing one with what is here.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use sealwire_protocol::frame::{SnapshotSummary, SubscribeFrom};
use sealwire_protocol::ids::Scope;
use sealwire_protocol::{DeviceKey, Digest};

use super::capture::key_bytes;
use super::changeset::{Changes, What};
use super::clock::Stamp;
use super::error::SyncError;
use super::intake::{At, Kept, Keyring};
use super::record::NameId;
use super::replay::Replayed;
use super::report::{Phase, Progress};
use super::schema::KeyScope;
use super::state::{self, Frame, StateBox};
use super::turn::{Turn, ended};
use super::writer::{Writer, meta, set_meta};
use crate::vault::{Packer, STATE_BYTES_MAX, SnapshotError, Unpacked, Vault};

/// The digest of the snapshot that is still to be opened.
const PENDING: &str = "pending_snapshot";

/// The digest of the newest snapshot that was compared and found to lack something.
const REFUSED: &str = "refused_snapshot";

/// Rows between two reports of how far it is.
const TOLD_ROWS: u64 = 1000;

impl Turn {
    /// Makes a snapshot of what is here at the head that was read.
    pub(crate) async fn snapshot(&mut self) -> Result<SnapshotSummary, SyncError> {
        let head = self.vault.head().ok_or(SyncError::NotEnrolled)?;
        let private = self.private.map(|(scope, _)| scope);
        let shared = self.shared.clone();
        let sealed = self
            .look(move |writer, vault| {
                let mut rows = 0;
                let mut told = || {
                    rows += 1;
                    if rows % TOLD_ROWS == 0 {
                        shared.progress(Progress::of(Phase::Packing, rows));
                    }
                };
                let mut packer = Packer::new()?;
                writer.write_state(KeyScope::Group, &mut packer, &mut told)?;
                if let Some(scope) = private.filter(|scope| vault.holds_key(*scope)) {
                    let mut own = Packer::new()?;
                    writer.write_state(KeyScope::UserPrivate, &mut own, &mut told)?;
                    let sealed = vault.seal_state(scope, &head, &own.finish()?)?;
                    let author = writer.me;
                    state::put(&mut packer, &Frame::Box(StateBox { scope, author, head, sealed }))?;
                }
                writer.write_carried(&mut packer)?;
                Ok(vault.seal_state(vault.scope(), &head, &packer.finish()?)?)
            })
            .await?;
        let (shared, total) = (self.shared.clone(), sealed.len() as u64);
        let mut sent =
            move |bytes| shared.progress(Progress::of(Phase::Uploading, bytes).until(total));
        let made = self.vault.put_snapshot(&mut self.wire, &sealed, head, &mut sent).await;
        let made = made.map_err(ended)?;
        self.settle().await?;
        Ok(made)
    }

    /// Begins a database that has read nothing with the newest snapshot that is confirmed, or else with
    /// the newest. Says whether there was one.
    pub(super) async fn bootstrap(&mut self) -> Result<bool, SyncError> {
        let Some(snapshot) = self.newest_snapshot(None).await? else { return Ok(false) };
        let digest = snapshot.digest;
        self.shared.write(move |writer| set_meta(writer.db, PENDING, &digest.0[..])).await?;
        // Entries behind it may be replayed before it is: the order makes no difference.
        let frame = SubscribeFrom { log: self.vault.log(), snapshot: digest };
        self.read(frame.into()).await?;
        self.finish_bootstrap().await?;
        Ok(true)
    }

    /// Opens the snapshot that is still to be opened, if there is one.
    pub(super) async fn finish_bootstrap(&mut self) -> Result<(), SyncError> {
        let pending: Option<Vec<u8>> = self.shared.read(|db| meta(db, PENDING)).await?;
        let Some(wanted) = pending.and_then(|digest| Digest::from_slice(&digest)) else {
            return Ok(());
        };
        // If it is gone there is a newer one, which holds as much.
        let snapshot = self.newest_snapshot(Some(wanted)).await?.ok_or(SnapshotError::Damaged)?;
        let packed = self.open_snapshot(&snapshot).await?;
        let private = self.private.map(|(scope, _)| scope);
        let shared = self.shared.clone();
        let replayed = self.write(move |writer, vault| {
            let keys = Keyring { vault, private };
            let mut done = Replayed::default();
            writer.drain()?;
            writer.silently(|writer| {
                let mut merge = Merge { keys, done: &mut done, told: 0, shared: &shared };
                merge.state(writer, KeyScope::Group, &packed)
            })?;
            writer.db.execute("delete from sealwire_meta where name = ?1", [PENDING])?;
            Ok(done)
        });
        let replayed = replayed.await?;
        self.report.take(replayed, 0, 0);
        Ok(())
    }

    /// Compares the newest snapshot of another device with what is here, and confirms it if nothing is
    /// missing.
    pub(crate) async fn confirm(&mut self) -> Result<(), SyncError> {
        let snapshots = self.vault.snapshots(&mut self.wire).await.map_err(ended)?;
        let newest = snapshots.into_iter().max_by_key(|snapshot| snapshot.head.seq);
        let Some(snapshot) = newest.filter(|snapshot| !snapshot.confirmed) else { return Ok(()) };
        let me = self.shared.identity.key();
        let read = self.vault.head().map_or(0, |head| head.seq);
        let foreign = self.author_of(snapshot.digest).is_some_and(|author| author != me);
        let refused: Option<Vec<u8>> = self.shared.read(|db| meta(db, REFUSED)).await?;
        let known = refused.is_some_and(|digest| digest == snapshot.digest.0);
        if !foreign || known || snapshot.head.seq > read {
            return Ok(());
        }
        let packed = self.open_snapshot(&snapshot).await?;
        let private = self.private.map(|(scope, _)| scope);
        let whole = self.write(move |writer, vault| {
            let keys = Keyring { vault, private };
            let mut coverage = Coverage::of(keys);
            coverage.state(writer, KeyScope::Group, &packed)?;
            if writer.is_covered(&coverage, snapshot.head.seq)? {
                writer.take_carried(keys, snapshot, &packed)?;
                return Ok(true);
            }
            set_meta(writer.db, REFUSED, &snapshot.digest.0[..])?;
            Ok(false)
        });
        if whole.await? {
            self.vault.confirm(&mut self.wire, snapshot.digest).await.map_err(ended)?;
            self.report.confirmed = true;
            self.settle().await
        } else {
            self.report.refused_snapshot = true;
            Ok(())
        }
    }

    /// The wanted snapshot if it is there, else the one to begin with.
    async fn newest_snapshot(
        &mut self,
        wanted: Option<Digest>,
    ) -> Result<Option<SnapshotSummary>, SyncError> {
        let snapshots = self.vault.snapshots(&mut self.wire).await.map_err(ended)?;
        let found = snapshots.iter().find(|it| Some(it.digest) == wanted);
        let newest = snapshots.iter().max_by_key(|it| (it.confirmed, it.head.seq));
        Ok(found.or(newest).copied())
    }

    /// Downloads and opens a snapshot; it is still compressed.
    async fn open_snapshot(
        &mut self,
        snapshot: &SnapshotSummary,
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, SyncError> {
        let author = self.author_of(snapshot.digest).ok_or(SnapshotError::Damaged)?;
        let (shared, total) = (self.shared.clone(), snapshot.size);
        let mut got =
            move |bytes| shared.progress(Progress::of(Phase::Downloading, bytes).until(total));
        let sealed = self.vault.download_with(&mut self.wire, snapshot, &mut got).await;
        let sealed = sealed.map_err(ended)?;
        Ok(self.vault.open_state(author, &snapshot.head, &sealed)?)
    }
}

/// A state that is being merged.
struct Merge<'a> {
    keys: Keyring<'a>,
    done: &'a mut Replayed,
    told: u64,
    shared: &'a super::attached::Shared,
}

impl Merge<'_> {
    fn state(
        &mut self,
        writer: &mut Writer<'_>,
        scope: KeyScope,
        packed: &[u8],
    ) -> Result<(), SyncError> {
        let mut unpacked = Unpacked::new(packed, STATE_BYTES_MAX)?;
        let devices = state::start(state::next(&mut unpacked)?)?;
        while let Some(frame) = state::next(&mut unpacked)? {
            match frame {
                Frame::Start(..) => return Err(SnapshotError::Damaged.into()),
                Frame::Rows(rows) => {
                    self.told += rows.rows.len() as u64;
                    writer.merge_rows(scope, &devices, rows, self.done)?;
                    self.shared.progress(Progress::of(Phase::Opening, self.told));
                }
                Frame::Box(own) if is_mine(self.keys, own.scope) => {
                    let packed = open(self.keys.vault, &own)?;
                    self.state(writer, KeyScope::UserPrivate, &packed)?;
                }
                Frame::Box(state) => writer.carry(&state)?,
                Frame::Sealed(sealed) => {
                    let at = At {
                        seq: sealed.seq,
                        place: sealed.place as usize,
                        author: sealed.author,
                        aad: &sealed.aad,
                    };
                    let kept = writer.take_box(self.keys, &at, &sealed.sealed, self.done)?;
                    if let Err(kept) = kept {
                        writer.keep_box(&at, sealed.scope, sealed.epoch, kept, &sealed.sealed)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn is_mine(keys: Keyring<'_>, scope: Scope) -> bool {
    keys.kind(scope) == Some(KeyScope::UserPrivate) && keys.vault.holds_key(scope)
}

fn open(vault: &Vault, state: &StateBox) -> Result<zeroize::Zeroizing<Vec<u8>>, SyncError> {
    Ok(vault.open_state(state.author, &state.head, &state.sealed)?)
}

/// What a snapshot holds, as far as this device can see: for each register its newest stamp.
struct Coverage<'a> {
    keys: Keyring<'a>,
    hasher: RandomState,
    /// By a hash of what the register is of: the whole names would take the memory of the state.
    newest: HashMap<u64, Stamp>,
}

/// What a register is of; no column for the row's being there.
type Of<'a> = (NameId, &'a [u8], Option<NameId>, KeyScope);

impl<'a> Coverage<'a> {
    fn of(keys: Keyring<'a>) -> Self {
        Self { keys, hasher: RandomState::new(), newest: HashMap::new() }
    }

    fn note(&mut self, of: Of<'_>, stamp: Stamp) {
        let newest = self.newest.entry(self.hasher.hash_one(of)).or_insert(stamp);
        *newest = stamp.max(*newest);
    }

    fn has(&self, of: Of<'_>, stamp: Stamp) -> bool {
        self.newest.get(&self.hasher.hash_one(of)).is_some_and(|newest| *newest >= stamp)
    }

    fn state(
        &mut self,
        writer: &mut Writer<'_>,
        scope: KeyScope,
        packed: &[u8],
    ) -> Result<(), SyncError> {
        let mut unpacked = Unpacked::new(packed, STATE_BYTES_MAX)?;
        let devices = state::start(state::next(&mut unpacked)?)?;
        while let Some(frame) = state::next(&mut unpacked)? {
            match frame {
                Frame::Start(..) => return Err(SnapshotError::Damaged.into()),
                Frame::Rows(rows) => {
                    let table = writer.names.table(writer.db, &rows.table, &rows.key_columns)?;
                    let columns = writer.column_numbers(&rows.columns)?;
                    for state::StateRow(key, life, cells) in rows.rows {
                        let key = key_bytes(&key);
                        if let Some((reading, device, _)) = life {
                            let stamp = state::stamp(&devices, reading, device)?;
                            self.note((table, &key, None, scope), stamp);
                        }
                        for (column, reading, device, _) in cells {
                            let stamp = state::stamp(&devices, reading, device)?;
                            let column = columns.get(usize::from(column)).copied();
                            let column = column.ok_or(SnapshotError::Damaged)?;
                            self.note((table, &key, Some(column), scope), stamp);
                        }
                    }
                }
                Frame::Box(own) if is_mine(self.keys, own.scope) => {
                    let packed = open(self.keys.vault, &own)?;
                    self.state(writer, KeyScope::UserPrivate, &packed)?;
                }
                Frame::Box(_) => {}
                Frame::Sealed(sealed) if is_mine(self.keys, sealed.scope) => {
                    let opened =
                        self.keys.vault.open_box(sealed.author, &sealed.aad, &sealed.sealed);
                    if let Ok(changes) = opened
                        .map_err(|_| ())
                        .and_then(|bytes| Changes::decode(&bytes).map_err(|_| ()))
                    {
                        self.changes(writer, sealed.author, &changes)?;
                    }
                }
                Frame::Sealed(_) => {}
            }
        }
        Ok(())
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
                if row.what != What::Cells {
                    self.note((number, &key, None, scope), stamp);
                }
                for cell in row.cells.iter().filter(|cell| cell.after.is_some()) {
                    self.note((number, &key, Some(columns[cell.column]), scope), stamp);
                }
            }
        }
        Ok(())
    }
}

impl Writer<'_> {
    /// Whether a snapshot at `seq` has everything that is here and is not newer than it.
    fn is_covered(&mut self, coverage: &Coverage<'_>, seq: u64) -> Result<bool, SyncError> {
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
            let cells = record.cells.iter().map(|((column, scope), register)| {
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
            let reading = super::clock::Reading(row.get::<_, i64>(1)?.cast_unsigned());
            newer.insert(Stamp { reading, device });
        }
        let mut statement = db.prepare_cached(
            "select reading from sealwire_outbox where state < 2 and reading is not null",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let reading = super::clock::Reading(row.get::<_, i64>(0)?.cast_unsigned());
            newer.insert(Stamp { reading, device: self.me });
        }
        Ok(newer)
    }

    /// Keeps the sealed states of others that a snapshot has, in place of the boxes that they are made
    /// of; and forgets the history that nothing will be compared with any more.
    fn take_carried(
        &mut self,
        keys: Keyring<'_>,
        snapshot: SnapshotSummary,
        packed: &[u8],
    ) -> Result<(), SyncError> {
        let author = keys.vault.devices().author(snapshot.digest);
        let mut unpacked = Unpacked::new(packed, STATE_BYTES_MAX)?;
        while let Some(frame) = state::next(&mut unpacked)? {
            let Frame::Box(state) = frame else { continue };
            // Only somebody who holds a scope can say that its state is whole.
            let holds = Some(state.author) == author
                && keys.vault.is_holder(state.scope, state.author)
                && state.head == snapshot.head;
            if keys.kind(state.scope).is_none() && holds {
                self.carry(&state)?;
                self.db
                    .prepare_cached(
                        "delete from sealwire_sealed where scope = ?1 and seq <= ?2 and reason = ?3",
                    )?
                    .execute((
                        &state.scope.0[..],
                        state.head.seq.cast_signed(),
                        Kept::NoKey as i64,
                    ))?;
            }
        }
        let seq = snapshot.head.seq.cast_signed();
        self.db.execute("delete from sealwire_history where seq <= ?1", [seq])?;
        Ok(())
    }

    /// The values of a row that stand in the app's table, by their registers.
    pub(crate) fn shown_values(
        &self,
        table: NameId,
        key: &[super::value::Value],
        record: &super::record::Record,
    ) -> Result<HashMap<(NameId, KeyScope), super::value::Value>, SyncError> {
        let Some(table) = self.tables.0.get(&table).filter(|_| record.shown) else {
            return Ok(HashMap::new());
        };
        let values = self.current_values(table, key)?;
        let columns = table.columns.iter().zip(&table.shape.columns);
        let names = columns.map(|(number, column)| (*number, column.scope));
        Ok(names.zip(values.unwrap_or_default()).collect())
    }
}
