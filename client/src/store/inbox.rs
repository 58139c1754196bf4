//! What the app is to be told, and what could not be opened.

use rusqlite::{Connection, Row};
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::{DeviceKey, LogId};

use super::{StoreError, decode, encode, from_sql, to_sql};
use crate::event::Event;

/// How long an event is kept after the app has taken it, so that another listener of the same device
/// sees it too; and how long one that is no entry is kept at all. In milliseconds.
const TAKEN_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// How long what could not be opened is kept: as long as the relay keeps what nobody acks. In
/// milliseconds.
const SEALED_KEPT_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// Most entries of one log that are kept sealed; beyond it the oldest go.
const SEALED_MAX: i64 = 10_000;

/// Keeps an event for the app.
pub(crate) fn tell(db: &Connection, log: i64, event: &Event, now: u64) -> Result<(), StoreError> {
    let seq = if let Event::Entry(received) = event { Some(to_sql(received.seq)?) } else { None };
    db.prepare_cached("insert into events (log, seq, event, at) values (?1, ?2, ?3, ?4)")?
        .execute((log, seq, encode(event)?, to_sql(now)?))?;
    Ok(())
}

/// An event, and its place among the others.
pub(crate) struct Told {
    pub(crate) id: i64,
    pub(crate) event: Event,
}

/// Events after `after`, whether taken or not, at most `limit`.
pub(crate) fn events_after(
    db: &Connection,
    after: i64,
    limit: usize,
) -> Result<Vec<Told>, StoreError> {
    collect(
        db.prepare_cached("select id, event from events where id > ?1 order by id limit ?2")?
            .query((after, i64::try_from(limit).unwrap_or(i64::MAX)))?,
    )
}

/// The place of the newest event; 0 for none.
pub(crate) fn newest_event(db: &Connection) -> Result<i64, StoreError> {
    Ok(db.query_row("select coalesce(max(id), 0) from events", [], |row| row.get(0))?)
}

/// Opened entries that the app has not taken, of one log or of all, oldest first, at most `limit`.
pub(crate) fn untaken(
    db: &Connection,
    log: Option<LogId>,
    limit: usize,
) -> Result<Vec<Told>, StoreError> {
    collect(
        db.prepare_cached(
            "select events.id, event from events join logs on logs.id = events.log
             where taken = 0 and events.seq is not null and (?1 is null or logs.log = ?1)
             order by events.id limit ?2",
        )?
        .query((log.map(|log| log.0.to_vec()), i64::try_from(limit).unwrap_or(i64::MAX)))?,
    )
}

/// The app has taken an entry.
pub(crate) fn take(db: &Connection, log: LogId, seq: u64) -> Result<(), StoreError> {
    db.prepare_cached(
        "update events set taken = 1
         where log = (select id from logs where log = ?1) and seq = ?2",
    )?
    .execute((&log.0[..], to_sql(seq)?))?;
    Ok(())
}

fn collect(mut rows: rusqlite::Rows<'_>) -> Result<Vec<Told>, StoreError> {
    let mut told = Vec::new();
    while let Some(row) = rows.next()? {
        told.push(Told { id: row.get(0)?, event: decode(&row.get::<_, Vec<u8>>(1)?)? });
    }
    Ok(told)
}

/// An entry that is kept as it came.
pub(crate) struct Sealed {
    pub(crate) sender: DeviceKey,
    pub(crate) count: u64,
    pub(crate) seq: u64,
    pub(crate) at: u64,
    pub(crate) header: HeaderBytes,
    pub(crate) body: Vec<u8>,
    pub(crate) recipients: Vec<DeviceKey>,
    /// The key that opens it; none if no key will.
    pub(crate) epoch: Option<u32>,
    /// The newest count of its sender that named this device when it came.
    pub(crate) before: u64,
}

/// Keeps an entry as it came.
pub(crate) fn keep_sealed(
    db: &Connection,
    log: i64,
    sealed: &Sealed,
    now: u64,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "insert or replace into sealed
             (log, sender, count, seq, at, header, body, recipients, epoch, before, kept_at)
         values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?
    .execute((
        log,
        &sealed.sender.0[..],
        to_sql(sealed.count)?,
        to_sql(sealed.seq)?,
        to_sql(sealed.at)?,
        &sealed.header.0[..],
        &sealed.body,
        super::outbox::join_keys(&sealed.recipients),
        sealed.epoch,
        to_sql(sealed.before)?,
        to_sql(now)?,
    ))?;
    Ok(())
}

/// Entries that the key of `epoch` may open, in order, after `after`, at most `limit`.
pub(crate) fn sealed_of(
    db: &Connection,
    log: i64,
    epoch: u32,
    after: u64,
    limit: usize,
) -> Result<Vec<Sealed>, StoreError> {
    let mut statement = db.prepare_cached(
        "select sender, count, seq, at, header, body, recipients, epoch, before from sealed
         where log = ?1 and epoch = ?2 and seq > ?3 order by seq limit ?4",
    )?;
    let mut rows =
        statement.query((log, epoch, to_sql(after)?, i64::try_from(limit).unwrap_or(i64::MAX)))?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(read_sealed(row)?);
    }
    Ok(entries)
}

/// The epochs whose keys would open something, the newest first, at most `limit`.
pub(crate) fn wanted_epochs(
    db: &Connection,
    log: i64,
    limit: usize,
) -> Result<Vec<u32>, StoreError> {
    let mut statement = db.prepare_cached(
        "select distinct epoch from sealed where log = ?1 and epoch is not null
         order by epoch desc limit ?2",
    )?;
    let epochs = statement
        .query_map((log, i64::try_from(limit).unwrap_or(i64::MAX)), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(epochs)
}

/// An entry was opened, or no key will ever open it.
pub(crate) fn settle_sealed(
    db: &Connection,
    log: i64,
    sealed: &Sealed,
    opened: bool,
) -> Result<(), StoreError> {
    let sql = if opened {
        "delete from sealed where log = ?1 and sender = ?2 and count = ?3 and seq = ?4"
    } else {
        "update sealed set epoch = null
         where log = ?1 and sender = ?2 and count = ?3 and seq = ?4"
    };
    db.prepare_cached(sql)?.execute((
        log,
        &sealed.sender.0[..],
        to_sql(sealed.count)?,
        to_sql(sealed.seq)?,
    ))?;
    Ok(())
}

/// Forgets what was kept of an entry that was not believed.
pub(crate) fn forget_rejected(db: &Connection, log: i64, seq: u64) -> Result<(), StoreError> {
    db.prepare_cached("delete from sealed where log = ?1 and seq = ?2 and epoch is null")?
        .execute((log, to_sql(seq)?))?;
    Ok(())
}

/// Forgets what was kept for long enough.
pub(crate) fn prune(db: &Connection, now: u64) -> Result<(), StoreError> {
    let taken_before = to_sql(now.saturating_sub(TAKEN_KEPT_MS))?;
    db.execute("delete from events where at < ?1 and (taken = 1 or seq is null)", [taken_before])?;
    db.execute(
        "delete from sealed where kept_at < ?1",
        [to_sql(now.saturating_sub(SEALED_KEPT_MS))?],
    )?;
    let mut statement = db.prepare("select log from sealed group by log having count(*) > ?1")?;
    let crowded: Vec<i64> =
        statement.query_map([SEALED_MAX], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for log in crowded {
        db.execute(
            "delete from sealed where log = ?1 and seq <= (select seq from sealed where log = ?1
                 order by seq desc limit 1 offset ?2)",
            (log, SEALED_MAX),
        )?;
    }
    Ok(())
}

fn read_sealed(row: &Row<'_>) -> Result<Sealed, StoreError> {
    Ok(Sealed {
        sender: DeviceKey::from_slice(&row.get::<_, Vec<u8>>(0)?).ok_or(StoreError::Damaged)?,
        count: from_sql(row.get(1)?)?,
        seq: from_sql(row.get(2)?)?,
        at: from_sql(row.get(3)?)?,
        header: HeaderBytes::from_slice(&row.get::<_, Vec<u8>>(4)?)
            .map_err(|_| StoreError::Damaged)?,
        body: row.get(5)?,
        recipients: super::outbox::split_keys(&row.get::<_, Vec<u8>>(6)?)?,
        epoch: row.get(7)?,
        before: from_sql(row.get(8)?)?,
    })
}
