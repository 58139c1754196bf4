//! The whole state of a database: what a snapshot holds.
//!
//! ```text
//! frame = length u32 ‖ MessagePack
//! frames: [0, version, schema version, [device, …]]                        first
//!         [1, table, [key column, …], [column, …], [row, …]]               rows
//!         [2, scope, author, head, sealed]          the state of one person's own scope
//!         [3, seq, place, author, aad, scope, epoch, box]  a box of somebody else
//! row   = [[key value, …], nil | [reading, device, alive], [[column, reading, device, value], …]]
//! ```
//!
//! It is written into the compressor and read out of the decompressor frame by frame, so a large one
//! needs no memory for the whole. Merging it is the same as replaying everything that it came from.
//!
//! A device cannot write what is private to others into its snapshot, and yet new devices of theirs
//! begin with it: so it hands on, sealed as they came, the boxes that it cannot open, and the sealed
//! states of other people that it has met. What a person's own device writes is one sealed state, and
//! takes the place of all boxes below it.

use std::collections::HashMap;
use std::fmt;
use std::io::{Read, Write};

use sealwire_protocol::ids::Scope;
use sealwire_protocol::{DeviceKey, Head};
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::capture::key_bytes;
use super::changeset::{COLUMNS_MAX, KEY_COLUMNS_MAX, NAME_BYTES_MAX};
use super::clock::{Reading, Stamp};
use super::error::SyncError;
use super::intake::Keyring;
use super::pack::CELL_BYTES_MAX;
use super::record::{NameId, Record};
use super::replay::{Held, Replayed};
use super::schema::KeyScope;
use super::value::Value;
use super::writer::Writer;
use crate::error::StoreError;
use crate::seal::{self, KeyName};
use crate::vault::{Packer, SnapshotError, Unpacked, VaultError, unpacking};

/// The version of this encoding.
const VERSION: u8 = 1;

/// Bytes of rows in a frame; one row may be longer.
const FRAME_BYTES: usize = 64 * 1024;

/// Longest frame that is read, in bytes, but for sealed states: a row with as many columns as a table has,
/// each as long as a cell that is sent, and what else is in its frame.
const FRAME_BYTES_MAX: usize = COLUMNS_MAX * CELL_BYTES_MAX + 2 * FRAME_BYTES;

/// Most values in a frame, lists among them. A frame of [`FRAME_BYTES`] has a quarter of them; each takes
/// tens of bytes in memory, and may be a single one here.
const FRAME_VALUES_MAX: usize = 256 * 1024;

/// How a frame with a sealed state begins: a map of one, and the name of [`Frame::Box`]. It is as long as
/// the state, which does not compress: so never longer than what it was decompressed from.
const BOX_BEGINS: [u8; 5] = [0x81, 0xa3, b'B', b'o', b'x'];

/// A row's registers of one scope.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StateRow(
    pub(crate) Vec<Value>,
    pub(crate) Option<(u64, u32, bool)>,
    pub(crate) Vec<(u16, u64, u32, Value)>,
);

/// Rows of one table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StateRows {
    pub(crate) table: String,
    pub(crate) key_columns: Vec<String>,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<StateRow>,
}

/// The sealed state of one person's own scope.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StateBox {
    pub(crate) scope: Scope,
    pub(crate) author: DeviceKey,
    pub(crate) head: Head,
    #[serde(with = "serde_bytes")]
    pub(crate) sealed: Vec<u8>,
}

/// A box that the snapshot's author could not open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StateSealed {
    pub(crate) seq: u64,
    pub(crate) place: u32,
    pub(crate) author: DeviceKey,
    #[serde(with = "serde_bytes")]
    pub(crate) aad: Vec<u8>,
    pub(crate) scope: Scope,
    pub(crate) epoch: u32,
    #[serde(with = "serde_bytes")]
    pub(crate) sealed: Vec<u8>,
}

/// What stands in a state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Frame {
    /// Version of this encoding, the app's version of its schema, and the devices that stamps name.
    Start(u8, u32, Vec<DeviceKey>),
    /// Rows.
    Rows(StateRows),
    /// Somebody's own state.
    Box(StateBox),
    /// Somebody's box.
    Sealed(StateSealed),
}

/// Writes a frame.
pub(crate) fn put(packer: &mut Packer, frame: &Frame) -> Result<(), SyncError> {
    let bytes = rmp_serde::to_vec(frame).map_err(|_| SnapshotError::TooLong)?;
    let length = u32::try_from(bytes.len()).map_err(|_| SnapshotError::TooLong)?;
    let write = packer.write_all(&length.to_be_bytes()).and_then(|()| packer.write_all(&bytes));
    Ok(write.map_err(|_| SnapshotError::TooLong)?)
}

/// Reads the next frame; none at the end.
fn next(unpacked: &mut impl Read, packed_bytes: usize) -> Result<Option<Frame>, SyncError> {
    let mut length = [0; 4];
    let read = unpacked.read(&mut length[..1]).map_err(|error| unpacking(&error))?;
    if read == 0 {
        return Ok(None);
    }
    unpacked.read_exact(&mut length[1..]).map_err(|error| unpacking(&error))?;
    let length = u64::from(u32::from_be_bytes(length));
    // Not reserved before it is there: the length is only what somebody says.
    let mut bytes = Vec::new();
    let begins = length.min(BOX_BEGINS.len() as u64);
    let read = unpacked.by_ref().take(begins).read_to_end(&mut bytes);
    read.map_err(|error| unpacking(&error))?;
    let longest = if bytes == BOX_BEGINS { packed_bytes + FRAME_BYTES } else { FRAME_BYTES_MAX };
    if length > longest as u64 {
        return Err(SnapshotError::TooLong.into());
    }
    let read = unpacked.take(length - begins).read_to_end(&mut bytes);
    read.map_err(|error| unpacking(&error))?;
    count_values(&bytes)?;
    let frame = rmp_serde::from_slice(&bytes).map_err(|_| SnapshotError::Damaged)?;
    Ok(Some(frame))
}

/// Counts the values of a frame before any memory is taken for them.
fn count_values(bytes: &[u8]) -> Result<(), SnapshotError> {
    let mut left = FRAME_VALUES_MAX;
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    Values(&mut left).deserialize(&mut reader).map_err(|_| SnapshotError::Damaged)
}

/// Reads one value and what is in it, and forgets it.
struct Values<'a>(&'a mut usize);

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        *self.0 = self.0.checked_sub(1).ok_or_else(|| de::Error::custom("too many values"))?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bytes<E: de::Error>(self, _: &[u8]) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Values(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Values(self.0))?.is_some() {
            map.next_value_seed(Values(self.0))?;
        }
        Ok(())
    }
}

impl StateRows {
    /// Whether its names and keys can be those of a table.
    fn is_sound(&self) -> bool {
        let name_fits = |name: &String| (1..=NAME_BYTES_MAX).contains(&name.len());
        let keys = self.key_columns.len();
        (1..=KEY_COLUMNS_MAX).contains(&keys)
            && name_fits(&self.table)
            && self.columns.iter().chain(&self.key_columns).all(name_fits)
            && self.rows.iter().all(|row| row.0.len() == keys && !row.0.contains(&Value::Null))
    }
}

impl StateSealed {
    /// Whether it is sealed under a key of the scope that it says. Only what is damaged has none, and that
    /// is handed on to nobody: whoever kept it would hold its author, who may be made up, for one who may
    /// have written anything.
    fn is_sound(&self) -> bool {
        let named = KeyName { scope: self.scope, epoch: self.epoch };
        self.scope != Scope::ZERO && seal::key_name(&self.sealed) == Ok(named)
    }
}

/// What is done with a state that is read.
pub(crate) trait Visit {
    fn rows(
        &mut self,
        writer: &mut Writer<'_>,
        scope: KeyScope,
        devices: &[DeviceKey],
        rows: StateRows,
    ) -> Result<(), SyncError>;

    /// Somebody else's own state.
    fn state(&mut self, writer: &mut Writer<'_>, state: StateBox) -> Result<(), SyncError>;

    /// This person's own state, whose key is still to come.
    fn awaited(&mut self, _: &mut Writer<'_>, _: StateBox) -> Result<(), SyncError> {
        Err(VaultError::NoKey.into())
    }

    fn sealed(&mut self, writer: &mut Writer<'_>, sealed: StateSealed) -> Result<(), SyncError>;
}

/// Reads a state that is still compressed, and this person's own one inside it.
pub(crate) fn read(
    writer: &mut Writer<'_>,
    keys: Keyring<'_>,
    scope: KeyScope,
    packed: &[u8],
    visit: &mut impl Visit,
) -> Result<(), SyncError> {
    let mut unpacked = keys.vault.unpacked(packed)?;
    let devices = start(next(&mut unpacked, packed.len())?)?;
    while let Some(frame) = next(&mut unpacked, packed.len())? {
        match frame {
            Frame::Rows(rows) if !rows.is_sound() => return Err(SnapshotError::Damaged.into()),
            Frame::Rows(rows) => visit.rows(writer, scope, &devices, rows)?,
            Frame::Box(own) if keys.is_mine(own.scope) && scope == KeyScope::Group => {
                match keys.vault.open_state(own.author, &own.head, &own.sealed) {
                    Ok(packed) => read(writer, keys, KeyScope::UserPrivate, &packed, visit)?,
                    Err(VaultError::NoKey) => visit.awaited(writer, own)?,
                    Err(error) => return Err(error.into()),
                }
            }
            // Nobody writes one into another one; and whoever does, does not make this one go deeper.
            Frame::Start(..) => return Err(SnapshotError::Damaged.into()),
            Frame::Box(own) if keys.is_mine(own.scope) => return Err(SnapshotError::Damaged.into()),
            Frame::Box(state) => visit.state(writer, state)?,
            Frame::Sealed(sealed) if !sealed.is_sound() => {
                return Err(SnapshotError::Damaged.into());
            }
            Frame::Sealed(sealed) => visit.sealed(writer, sealed)?,
        }
    }
    Ok(())
}

/// The devices of a state, once its first frame was read.
fn start(frame: Option<Frame>) -> Result<Vec<DeviceKey>, SyncError> {
    match frame {
        Some(Frame::Start(VERSION, _, devices)) => Ok(devices),
        Some(Frame::Start(..)) => Err(StoreError::Newer.into()),
        _ => Err(SnapshotError::Damaged.into()),
    }
}

/// Reads a state that is still compressed, and keeps nothing of it. Gives how many rows it holds.
pub(crate) fn check(packed: &[u8], bytes_max: u64) -> Result<usize, SyncError> {
    check_frames(&mut Unpacked::new(packed, bytes_max)?, packed.len())
}

/// As [`check`], out of whatever gives its bytes.
pub(crate) fn check_frames(
    unpacked: &mut impl Read,
    packed_bytes: usize,
) -> Result<usize, SyncError> {
    let devices = start(next(unpacked, packed_bytes)?)?;
    let mut count = 0;
    while let Some(frame) = next(unpacked, packed_bytes)? {
        match frame {
            Frame::Rows(rows) if rows.is_sound() => {
                count += rows.rows.len();
                for StateRow(_, life, cells) in rows.rows {
                    let lives = life.into_iter().map(|(reading, device, _)| (reading, device));
                    let cells = cells.into_iter().map(|(_, reading, device, _)| (reading, device));
                    for (reading, device) in lives.chain(cells) {
                        stamp(&devices, reading, device)?;
                    }
                }
            }
            Frame::Sealed(sealed) if sealed.is_sound() => {}
            Frame::Rows(_) | Frame::Start(..) | Frame::Sealed(_) => {
                return Err(SnapshotError::Damaged.into());
            }
            Frame::Box(_) => {}
        }
    }
    Ok(count)
}

impl Writer<'_> {
    /// Writes the registers of one scope. `told` is told of every row.
    pub(crate) fn write_state(
        &mut self,
        scope: KeyScope,
        packer: &mut Packer,
        told: &mut dyn FnMut(),
    ) -> Result<(), SyncError> {
        let db = self.db;
        let numbers: HashMap<NameId, u32> = self.devices()?.into_iter().zip(0..).collect();
        let devices = self.devices()?;
        let devices = devices
            .into_iter()
            .map(|it| self.names.device_key(db, it))
            .collect::<Result<_, _>>()?;
        put(packer, &Frame::Start(VERSION, self.schema_version, devices))?;
        let mut statement =
            db.prepare("select tbl, key, record from sealwire_rows order by tbl, key")?;
        let mut found = statement.query([])?;
        let mut open: Option<(NameId, Open)> = None;
        while let Some(row) = found.next()? {
            let (table, key, record): (NameId, Vec<u8>, Vec<u8>) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            let record = self.decode_record(&record)?;
            if open.as_ref().is_some_and(|(of, it)| *of != table || it.bytes > FRAME_BYTES)
                && let Some((_, full)) = open.take()
            {
                full.close(packer)?;
            }
            if open.is_none() {
                let (name, key_columns) = self.names.table_name(db, table)?;
                open = Some((table, Open::new(name, key_columns)));
            }
            if let Some((_, open)) = &mut open {
                self.write_row(scope, table, &key, &record, &numbers, open)?;
                told();
            }
        }
        open.map_or(Ok(()), |(_, last)| last.close(packer))
    }

    fn write_row(
        &mut self,
        scope: KeyScope,
        table: NameId,
        key: &[u8],
        record: &Record,
        numbers: &HashMap<NameId, u32>,
        open: &mut Open,
    ) -> Result<(), SyncError> {
        let db = self.db;
        let values: Vec<Value> = rmp_serde::from_slice(key).map_err(|_| StoreError::Damaged)?;
        let number = |names: &mut super::names::Names, stamp: Stamp| -> Result<u32, SyncError> {
            let id = names.device(db, stamp.device)?;
            Ok(*numbers.get(&id).ok_or(StoreError::Damaged)?)
        };
        let life = match record.life(scope) {
            None => None,
            Some(life) => {
                let device = number(self.names, life.stamp)?;
                Some((life.stamp.reading.0, device, life.alive))
            }
        };
        let shown = self.shown_values(table, &values, record.shown)?;
        let mut cells = Vec::new();
        for ((column, of), register) in &record.cells {
            if *of != scope || register.alone {
                continue;
            }
            let value = register.kept.clone().or_else(|| shown.get(&(*column, *of)).cloned());
            let Some(value) = value else { continue };
            let place = match open.places.get(column) {
                Some(place) => *place,
                None => {
                    let place = u16::try_from(open.rows.columns.len())
                        .map_err(|_| SnapshotError::TooLong)?;
                    open.rows.columns.push(self.names.column_name(db, *column)?);
                    open.places.insert(*column, place);
                    place
                }
            };
            open.bytes += value.bytes() + 16;
            let device = number(self.names, register.stamp)?;
            cells.push((place, register.stamp.reading.0, device, value));
        }
        if life.is_some() || !cells.is_empty() {
            open.bytes += key.len() + 16;
            open.rows.rows.push(StateRow(values, life, cells));
        }
        Ok(())
    }

    /// The numbers of all devices that stamps may name.
    fn devices(&self) -> Result<Vec<NameId>, SyncError> {
        let mut statement =
            self.db.prepare_cached("select id from sealwire_names where kind = 2 order by id")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Writes what is kept of others: their sealed states, and boxes.
    pub(crate) fn write_carried(&self, packer: &mut Packer) -> Result<(), SyncError> {
        let damaged = || StoreError::Damaged;
        let mut statement =
            self.db.prepare("select scope, author, head, box from sealwire_carried")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let head: Vec<u8> = row.get(2)?;
            let frame = Frame::Box(StateBox {
                scope: Scope::from_slice(&row.get::<_, Vec<u8>>(0)?).ok_or_else(damaged)?,
                author: DeviceKey::from_slice(&row.get::<_, Vec<u8>>(1)?).ok_or_else(damaged)?,
                head: rmp_serde::from_slice(&head).map_err(|_| damaged())?,
                sealed: row.get(3)?,
            });
            put(packer, &frame)?;
        }
        let mut statement = self.db.prepare(
            "select seq, place, author, aad, scope, epoch, box from sealwire_sealed
             where reason < 2 order by seq, place",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let sealed = StateSealed {
                seq: row.get::<_, i64>(0)?.cast_unsigned(),
                place: row.get(1)?,
                author: DeviceKey::from_slice(&row.get::<_, Vec<u8>>(2)?).ok_or_else(damaged)?,
                aad: row.get(3)?,
                scope: Scope::from_slice(&row.get::<_, Vec<u8>>(4)?).ok_or_else(damaged)?,
                epoch: row.get(5)?,
                sealed: row.get(6)?,
            };
            // A snapshot of before may have brought one; with it nobody would take this one.
            if sealed.is_sound() {
                put(packer, &Frame::Sealed(sealed))?;
            }
        }
        Ok(())
    }

    /// Takes rows of a state, as if all changes that made them were replayed.
    pub(crate) fn merge_rows(
        &mut self,
        scope: KeyScope,
        devices: &[DeviceKey],
        rows: StateRows,
        done: &mut Replayed,
    ) -> Result<(), SyncError> {
        let number = self.names.table(self.db, &rows.table, &rows.key_columns)?;
        let columns = self.column_numbers(&rows.columns)?;
        let mut clock = self.clock()?;
        for StateRow(key, life, cells) in rows.rows {
            let bytes = key_bytes(&key);
            let mut record = self.record(number, &bytes)?.unwrap_or_default();
            let (shown, held) = (record.shown, Held::default());
            let mut news = false;
            if let Some((reading, device, alive)) = life {
                let stamp = stamp(devices, reading, device)?;
                clock.observe(stamp.reading, self.now);
                news |= record.live(scope, stamp, alive);
            }
            for (column, reading, device, value) in cells {
                let stamp = stamp(devices, reading, device)?;
                clock.observe(stamp.reading, self.now);
                let column = *columns.get(usize::from(column)).ok_or(SnapshotError::Damaged)?;
                let held = || held.get(self, number, &key, shown, (column, scope));
                if record.write(column, scope, stamp, value, held)? {
                    done.cells += 1;
                    news = true;
                }
            }
            done.rows += 1;
            if news {
                self.show(number, &key, &bytes, &mut record, done)?;
                self.keep_record(number, &bytes, &record)?;
            }
        }
        self.keep_clock(clock)
    }

    /// The values of a row that stand in the app's table, by their registers, if it is `shown` there.
    pub(crate) fn shown_values(
        &self,
        table: NameId,
        key: &[Value],
        shown: bool,
    ) -> Result<HashMap<(NameId, KeyScope), Value>, SyncError> {
        let Some(table) = self.tables.0.get(&table).filter(|_| shown) else {
            return Ok(HashMap::new());
        };
        let values = self.current_values(table, key)?;
        let columns = table.columns.iter().zip(&table.shape.columns);
        let names = columns.map(|(number, column)| (*number, column.scope));
        Ok(names.zip(values.unwrap_or_default()).collect())
    }

    pub(crate) fn column_numbers(&mut self, names: &[String]) -> Result<Vec<NameId>, SyncError> {
        names.iter().map(|name| self.names.column(self.db, name)).collect()
    }
}

/// The state of what is shared, with its rows as `edit` leaves them.
#[cfg(test)]
pub(crate) fn edited(
    writer: &mut Writer<'_>,
    edit: impl Fn(&mut StateRows),
) -> Result<Vec<u8>, SyncError> {
    let mut packer = Packer::new()?;
    writer.write_state(KeyScope::Group, &mut packer, &mut || {})?;
    let packed = packer.finish()?;
    let mut unpacked = Unpacked::new(&packed, crate::vault::STATE_BYTES_MAX)?;
    let mut packer = Packer::new()?;
    while let Some(mut frame) = next(&mut unpacked, packed.len())? {
        if let Frame::Rows(rows) = &mut frame {
            edit(rows);
        }
        put(&mut packer, &frame)?;
    }
    Ok(packer.finish()?)
}

/// The state of what is shared, and one more frame.
#[cfg(test)]
pub(crate) fn with_frame(writer: &mut Writer<'_>, frame: &Frame) -> Result<Vec<u8>, SyncError> {
    let mut packer = Packer::new()?;
    writer.write_state(KeyScope::Group, &mut packer, &mut || {})?;
    put(&mut packer, frame)?;
    Ok(packer.finish()?)
}

/// The rows of what is shared, as they stand in a state, but for who was met in which order.
#[cfg(test)]
pub(crate) fn shared_rows(writer: &mut Writer<'_>) -> Result<Vec<u8>, SyncError> {
    let mut packer = Packer::new()?;
    writer.write_state(KeyScope::Group, &mut packer, &mut || {})?;
    let packed = packer.finish()?;
    let mut unpacked = Unpacked::new(&packed, crate::vault::STATE_BYTES_MAX)?;
    let mut rows = Vec::new();
    while let Some(frame) = next(&mut unpacked, packed.len())? {
        let Frame::Rows(frame) = frame else { continue };
        for StateRow(key, life, cells) in &frame.rows {
            let mut cells: Vec<_> = cells
                .iter()
                .map(|(column, at, _, value)| (&frame.columns[usize::from(*column)], at, value))
                .collect();
            cells.sort_by(|a, b| a.0.cmp(b.0));
            let life = life.map(|(at, _, alive)| (at, alive));
            rows.extend(rmp_serde::to_vec(&(key, life, cells)).expect("encoded"));
        }
    }
    Ok(rows)
}

/// A stamp of a state.
pub(crate) fn stamp(devices: &[DeviceKey], reading: u64, device: u32) -> Result<Stamp, SyncError> {
    let device = devices.get(device as usize).ok_or(SnapshotError::Damaged)?;
    let reading = Reading(reading);
    if !reading.is_sound() {
        return Err(SnapshotError::Damaged.into());
    }
    Ok(Stamp { reading, device: *device })
}

/// Rows that are being gathered.
struct Open {
    rows: StateRows,
    places: HashMap<NameId, u16>,
    bytes: usize,
}

impl Open {
    fn new(table: String, key_columns: Vec<String>) -> Self {
        let rows = StateRows { table, key_columns, columns: Vec::new(), rows: Vec::new() };
        Self { rows, places: HashMap::new(), bytes: 0 }
    }

    /// Writes them. Of a table that has none in this scope not even the name is written: it may be as
    /// private as its rows.
    fn close(self, packer: &mut Packer) -> Result<(), SyncError> {
        if self.rows.rows.is_empty() { Ok(()) } else { put(packer, &Frame::Rows(self.rows)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut packer = Packer::new().expect("memory");
        for frame in frames {
            let length = u32::try_from(frame.len()).expect("short");
            packer.write_all(&length.to_be_bytes()).expect("memory");
            packer.write_all(frame).expect("memory");
        }
        packer.finish().expect("memory")
    }

    fn read_one(packed: &[u8]) -> Result<Option<Frame>, SyncError> {
        next(&mut Unpacked::new(packed, 1 << 30).expect("compressed"), packed.len())
    }

    fn rows(key: Vec<Value>) -> StateRows {
        StateRows {
            table: "t".into(),
            key_columns: vec!["id".into()],
            columns: vec!["a".into()],
            rows: vec![StateRow(key, Some((5, 0, true)), vec![(0, 5, 0, Value::Integer(1))])],
        }
    }

    #[test]
    fn a_few_bytes_do_not_become_gigabytes_of_values() {
        let encode = |frame: &Frame| rmp_serde::to_vec(frame).expect("encoded");
        let key = vec![Value::Null; FRAME_VALUES_MAX];
        let bomb = packed(&[encode(&Frame::Rows(rows(key)))]);
        assert!(bomb.len() < 10_000);
        assert!(read_one(&bomb).is_err_and(|it| it == SnapshotError::Damaged.into()));
        let long = Value::Blob(vec![0; FRAME_BYTES_MAX]);
        let bomb = packed(&[encode(&Frame::Rows(rows(vec![long])))]);
        assert!(read_one(&bomb).is_err_and(|it| it == SnapshotError::TooLong.into()));
        let head = Head::NONE;
        let sealed =
            |sealed| StateBox { scope: Scope::ZERO, author: DeviceKey([1; 32]), head, sealed };
        let bomb = packed(&[encode(&Frame::Box(sealed(vec![0; 4 * FRAME_BYTES])))]);
        assert!(read_one(&bomb).is_err_and(|it| it == SnapshotError::TooLong.into()));
        let noise: Vec<u8> = (0..4 * FRAME_BYTES as u64)
            .map(|at| sealwire_protocol::digest::sha256(&at.to_be_bytes()).0[0])
            .collect();
        let honest = packed(&[encode(&Frame::Box(sealed(noise)))]);
        assert!(matches!(read_one(&honest), Ok(Some(Frame::Box(_)))));
    }

    #[test]
    fn rows_whose_keys_are_those_of_no_table_are_refused() {
        assert!(rows(vec![Value::Integer(1)]).is_sound());
        for key in [vec![], vec![Value::Null], vec![Value::Integer(1), Value::Integer(2)]] {
            assert!(!rows(key).is_sound());
        }
        assert!(stamp(&[DeviceKey([1; 32])], u64::MAX, 0).is_err(), "nothing could be later");
        assert!(stamp(&[DeviceKey([1; 32])], 5, 0).is_ok());
    }
}
