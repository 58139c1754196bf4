//! Content keys by scope and epoch.

use rusqlite::Connection;
use sealwire_protocol::ids::Scope;
use zeroize::Zeroizing;

use super::{StoreError, from_sql, to_sql};
use crate::seal::{EpochKey, KeyName};

/// Most keys that are kept for one epoch. One is right; whoever delivers others is lying.
const KEYS_PER_EPOCH_MAX: i64 = 8;

/// Keeps a key; says whether it is news. `rotation` is the seq of the rotation that gave it.
pub(crate) fn insert(
    db: &Connection,
    log: i64,
    name: KeyName,
    key: &EpochKey,
    rotation: Option<u64>,
) -> Result<bool, StoreError> {
    let known: i64 = db
        .prepare_cached(
            "select count(*) from keys where log = ?1 and scope = ?2 and epoch = ?3 and key <> ?4",
        )?
        .query_row((log, &name.scope.0[..], name.epoch, &key.bytes()[..]), |row| row.get(0))?;
    if known >= KEYS_PER_EPOCH_MAX {
        return Ok(false);
    }
    let inserted = db
        .prepare_cached(
            "insert or ignore into keys (log, scope, epoch, key) values (?1, ?2, ?3, ?4)",
        )?
        .execute((log, &name.scope.0[..], name.epoch, &key.bytes()[..]))?;
    if let Some(seq) = rotation {
        db.prepare_cached(
            "update keys set rotation_seq = ?5
             where log = ?1 and scope = ?2 and epoch = ?3 and key = ?4",
        )?
        .execute((log, &name.scope.0[..], name.epoch, &key.bytes()[..], to_sql(seq)?))?;
    }
    Ok(inserted == 1)
}

/// The keys of an epoch, the most trustworthy first: one that came in a rotation, which the members
/// have agreed to, the newest first; then one that has opened something.
pub(crate) fn find(db: &Connection, log: i64, name: KeyName) -> Result<Vec<EpochKey>, StoreError> {
    let mut statement = db.prepare_cached(
        "select key from keys where log = ?1 and scope = ?2 and epoch = ?3
         order by rotation_seq is null, rotation_seq desc, proven desc, key",
    )?;
    let mut rows = statement.query((log, &name.scope.0[..], name.epoch))?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        let bytes = Zeroizing::new(row.get::<_, Vec<u8>>(0)?);
        let bytes = bytes.as_slice().try_into().map_err(|_| StoreError::Damaged)?;
        keys.push(EpochKey::from_bytes(bytes));
    }
    Ok(keys)
}

/// Whether there is a key for an epoch.
pub(crate) fn has(db: &Connection, log: i64, name: KeyName) -> Result<bool, StoreError> {
    Ok(db
        .prepare_cached("select 1 from keys where log = ?1 and scope = ?2 and epoch = ?3")?
        .exists((log, &name.scope.0[..], name.epoch))?)
}

/// Whether a rotation is known that gave the key of an epoch; else it came by deliveries alone.
pub(crate) fn came_by_rotation(
    db: &Connection,
    log: i64,
    name: KeyName,
) -> Result<bool, StoreError> {
    Ok(db
        .prepare_cached(
            "select 1 from keys where log = ?1 and scope = ?2 and epoch = ?3
             and rotation_seq is not null",
        )?
        .exists((log, &name.scope.0[..], name.epoch))?)
}

/// A key has opened something.
pub(crate) fn prove(
    db: &Connection,
    log: i64,
    name: KeyName,
    key: &EpochKey,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "update keys set proven = 1
         where log = ?1 and scope = ?2 and epoch = ?3 and key = ?4 and proven = 0",
    )?
    .execute((log, &name.scope.0[..], name.epoch, &key.bytes()[..]))?;
    Ok(())
}

/// Puts a key in the place of all others of an epoch.
pub(crate) fn replace(
    db: &Connection,
    log: i64,
    name: KeyName,
    key: &EpochKey,
) -> Result<(), StoreError> {
    db.prepare_cached("delete from keys where log = ?1 and scope = ?2 and epoch = ?3")?
        .execute((log, &name.scope.0[..], name.epoch))?;
    insert(db, log, name, key, None)?;
    Ok(())
}

/// The newest epoch of a scope that there is a key of.
pub(crate) fn newest(db: &Connection, log: i64, scope: Scope) -> Result<Option<u32>, StoreError> {
    Ok(db
        .prepare_cached("select max(epoch) from keys where log = ?1 and scope = ?2")?
        .query_row((log, &scope.0[..]), |row| row.get(0))?)
}

/// The newest epoch whose rotation stands before `seq`, as far as this device has seen.
pub(crate) fn epoch_before(
    db: &Connection,
    log: i64,
    scope: Scope,
    seq: u64,
) -> Result<Option<u32>, StoreError> {
    let epoch: Option<i64> = db
        .prepare_cached(
            "select max(epoch) from keys where log = ?1 and scope = ?2 and rotation_seq < ?3",
        )?
        .query_row((log, &scope.0[..], to_sql(seq)?), |row| row.get(0))?;
    epoch.map(|epoch| u32::try_from(from_sql(epoch)?).map_err(|_| StoreError::Damaged)).transpose()
}
