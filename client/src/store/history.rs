//! The recent history of each log, and what was read of each sender.

use rusqlite::{Connection, OptionalExtension};
use sealwire_protocol::{DeviceKey, Digest};

use super::{StoreError, from_sql, to_sql};
use crate::chain::Position;

/// How many positions of a log's history are remembered: enough for every head that a member may
/// name that was not away for long.
pub(crate) const HISTORY_MAX: u64 = 4096;

/// What was read of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    /// Its newest entry that was read; count 0 for none.
    pub(crate) count: u64,
    /// That entry's digest.
    pub(crate) digest: Digest,
    /// Where it stands.
    pub(crate) seq: u64,
    /// The newest count that was given to the app or kept sealed.
    pub(crate) delivered: u64,
    /// The newest count of an entry that names this device.
    pub(crate) addressed: u64,
}

impl Sender {
    pub(crate) const NEW: Self =
        Self { count: 0, digest: Digest::ZERO, seq: 0, delivered: 0, addressed: 0 };
}

/// Remembers a position.
pub(crate) fn remember(
    db: &Connection,
    log: i64,
    position: Position,
    digest: Digest,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "insert or replace into chain (log, seq, digest, chain) values (?1, ?2, ?3, ?4)",
    )?
    .execute((log, to_sql(position.seq)?, &digest.0[..], &position.chain.0[..]))?;
    Ok(())
}

/// The chain at `seq`, if it is remembered.
pub(crate) fn chain_at(db: &Connection, log: i64, seq: u64) -> Result<Option<Digest>, StoreError> {
    let Ok(seq) = to_sql(seq) else { return Ok(None) };
    let chain: Option<Vec<u8>> = db
        .prepare_cached("select chain from chain where log = ?1 and seq = ?2")?
        .query_row((log, seq), |row| row.get(0))
        .optional()?;
    chain.map(|chain| Digest::from_slice(&chain).ok_or(StoreError::Damaged)).transpose()
}

/// Whether `digest` stands at a seq above `after` and up to `last`. `None` if not all of these are
/// remembered.
pub(crate) fn stands_between(
    db: &Connection,
    log: i64,
    after: u64,
    last: u64,
    digest: Digest,
) -> Result<Option<bool>, StoreError> {
    let oldest: Option<i64> = db
        .prepare_cached("select min(seq) from chain where log = ?1")?
        .query_row([log], |row| row.get(0))?;
    let Some(oldest) = oldest else { return Ok(None) };
    if from_sql(oldest)? > after + 1 {
        return Ok(None);
    }
    let found = db
        .prepare_cached(
            "select 1 from chain where log = ?1 and seq > ?2 and seq <= ?3 and digest = ?4",
        )?
        .exists((log, to_sql(after)?, to_sql(last)?, &digest.0[..]))?;
    Ok(Some(found))
}

/// Forgets what is further back than [`HISTORY_MAX`].
pub(crate) fn prune(db: &Connection, log: i64, seq: u64) -> Result<(), StoreError> {
    forget_up_to(db, log, seq.saturating_sub(HISTORY_MAX))
}

/// What was read of a sender.
pub(crate) fn sender(db: &Connection, log: i64, device: DeviceKey) -> Result<Sender, StoreError> {
    let row = db
        .prepare_cached(
            "select count, digest, seq, delivered, addressed from senders
             where log = ?1 and sender = ?2",
        )?
        .query_row((log, &device.0[..]), |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, Vec<u8>>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, i64>(3)?,
                row.get::<_, i64>(4)?,
            ))
        })
        .optional()?;
    let Some((count, digest, seq, delivered, addressed)) = row else { return Ok(Sender::NEW) };
    Ok(Sender {
        count: from_sql(count)?,
        digest: Digest::from_slice(&digest).ok_or(StoreError::Damaged)?,
        seq: from_sql(seq)?,
        delivered: from_sql(delivered)?,
        addressed: from_sql(addressed)?,
    })
}

/// Keeps what was read of a sender.
pub(crate) fn save_sender(
    db: &Connection,
    log: i64,
    device: DeviceKey,
    sender: &Sender,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "insert or replace into senders (log, sender, count, digest, seq, delivered, addressed)
         values (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute((
        log,
        &device.0[..],
        to_sql(sender.count)?,
        &sender.digest.0[..],
        to_sql(sender.seq)?,
        to_sql(sender.delivered)?,
        to_sql(sender.addressed)?,
    ))?;
    Ok(())
}

/// The digest of the entry at `seq`, if it is remembered.
pub(crate) fn digest_at(db: &Connection, log: i64, seq: u64) -> Result<Option<Digest>, StoreError> {
    let digest: Option<Vec<u8>> = db
        .prepare_cached("select digest from chain where log = ?1 and seq = ?2")?
        .query_row((log, to_sql(seq)?), |row| row.get(0))
        .optional()?;
    digest.map(|digest| Digest::from_slice(&digest).ok_or(StoreError::Damaged)).transpose()
}

/// Forgets the history from `seq` on.
pub(crate) fn forget_from(db: &Connection, log: i64, seq: u64) -> Result<(), StoreError> {
    db.prepare_cached("delete from chain where log = ?1 and seq >= ?2")?
        .execute((log, to_sql(seq)?))?;
    Ok(())
}

/// Forgets the history up to `seq`.
pub(crate) fn forget_up_to(db: &Connection, log: i64, seq: u64) -> Result<(), StoreError> {
    db.prepare_cached("delete from chain where log = ?1 and seq <= ?2")?
        .execute((log, to_sql(seq)?))?;
    Ok(())
}

/// Forgets what was read of senders, to read the log anew; what was given to the app stays known.
pub(crate) fn reset(db: &Connection, log: i64) -> Result<(), StoreError> {
    db.execute(
        "update senders set count = 0, digest = ?2, seq = 0 where log = ?1",
        (log, &Digest::ZERO.0[..]),
    )?;
    Ok(())
}
