//! Being let into `totals` groups: who asks, whom this device has asked, and keys that are offered for a
//! group that has another one.

use rusqlite::Connection;
use sealwire_protocol::DeviceKey;
use zeroize::Zeroizing;

use super::{StoreError, from_sql, to_sql};
use crate::seal::EpochKey;

/// Most members of one group whose requests or offers are kept: as many as there can be.
const REQUESTS_MAX: i64 = sealwire_protocol::limits::TOTALS_MEMBERS_MAX as i64;

/// A member of a `totals` group who asks to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// Who.
    pub device: DeviceKey,
    /// What the person calls itself. Anybody can claim any name.
    pub name: Option<String>,
    /// When, in milliseconds since the epoch, by that device's clock.
    pub asked_at: u64,
}

/// Keeps a request. Says whether it is news: a newer one than before.
pub(crate) fn insert(db: &Connection, log: i64, request: &JoinRequest) -> Result<bool, StoreError> {
    let count: i64 = db
        .prepare_cached("select count(*) from requests where log = ?1")?
        .query_row([log], |row| row.get(0))?;
    if count >= REQUESTS_MAX {
        return Ok(false);
    }
    let changed = db
        .prepare_cached(
            "insert into requests (log, device, name, asked_at) values (?1, ?2, ?3, ?4)
             on conflict (log, device) do update set name = excluded.name, asked_at = excluded.asked_at
                 where excluded.asked_at > requests.asked_at",
        )?
        .execute((log, &request.device.0[..], &request.name, to_sql(request.asked_at)?))?;
    Ok(changed == 1)
}

/// A device is gone: it asks for nothing and offers nothing any more.
pub(crate) fn forget(db: &Connection, log: i64, device: DeviceKey) -> Result<(), StoreError> {
    remove(db, log, device)?;
    db.prepare_cached("delete from offers where log = ?1 and sender = ?2")?
        .execute((log, &device.0[..]))?;
    Ok(())
}

/// A device asks no more.
pub(crate) fn remove(db: &Connection, log: i64, device: DeviceKey) -> Result<(), StoreError> {
    db.prepare_cached("delete from requests where log = ?1 and device = ?2")?
        .execute((log, &device.0[..]))?;
    Ok(())
}

/// Who asks, the first one first.
pub(crate) fn list(db: &Connection, log: i64) -> Result<Vec<JoinRequest>, StoreError> {
    let mut statement = db.prepare_cached(
        "select device, name, asked_at from requests where log = ?1 order by asked_at, device",
    )?;
    let mut rows = statement.query([log])?;
    let mut requests = Vec::new();
    while let Some(row) = rows.next()? {
        requests.push(JoinRequest {
            device: DeviceKey::from_slice(&row.get::<_, Vec<u8>>(0)?).ok_or(StoreError::Damaged)?,
            name: row.get(1)?,
            asked_at: from_sql(row.get(2)?)?,
        });
    }
    Ok(requests)
}

/// This device has asked a member. Says whether it had not before.
pub(crate) fn ask(db: &Connection, log: i64, member: DeviceKey) -> Result<bool, StoreError> {
    let changed = db
        .prepare_cached("insert or ignore into asked (log, device) values (?1, ?2)")?
        .execute((log, &member.0[..]))?;
    Ok(changed == 1)
}

/// Whom this device has asked.
pub(crate) fn asked(db: &Connection, log: i64) -> Result<Vec<DeviceKey>, StoreError> {
    let mut statement = db.prepare_cached("select device from asked where log = ?1")?;
    let mut rows = statement.query([log])?;
    let mut asked = Vec::new();
    while let Some(row) = rows.next()? {
        asked.push(DeviceKey::from_slice(&row.get::<_, Vec<u8>>(0)?).ok_or(StoreError::Damaged)?);
    }
    Ok(asked)
}

/// This device asks nobody any more, or anew.
pub(crate) fn forget_asked(db: &Connection, log: i64) -> Result<(), StoreError> {
    db.prepare_cached("delete from asked where log = ?1")?.execute([log])?;
    Ok(())
}

/// Keeps a key that a member offers, in place of an earlier one of the same member.
pub(crate) fn offer(
    db: &Connection,
    log: i64,
    sender: DeviceKey,
    key: &EpochKey,
) -> Result<(), StoreError> {
    let others: i64 = db
        .prepare_cached("select count(*) from offers where log = ?1 and sender <> ?2")?
        .query_row((log, &sender.0[..]), |row| row.get(0))?;
    if others >= REQUESTS_MAX {
        return Ok(());
    }
    db.prepare_cached("insert or replace into offers (log, sender, key) values (?1, ?2, ?3)")?
        .execute((log, &sender.0[..], &key.bytes()[..]))?;
    Ok(())
}

/// Who offers another key.
pub(crate) fn offering(db: &Connection, log: i64) -> Result<Vec<DeviceKey>, StoreError> {
    let mut statement = db.prepare_cached("select sender from offers where log = ?1")?;
    let mut rows = statement.query([log])?;
    let mut senders = Vec::new();
    while let Some(row) = rows.next()? {
        senders.push(DeviceKey::from_slice(&row.get::<_, Vec<u8>>(0)?).ok_or(StoreError::Damaged)?);
    }
    Ok(senders)
}

/// The key that a member offers; it is not offered any more then.
pub(crate) fn take_offer(
    db: &Connection,
    log: i64,
    sender: DeviceKey,
) -> Result<Option<EpochKey>, StoreError> {
    let mut statement =
        db.prepare_cached("delete from offers where log = ?1 and sender = ?2 returning key")?;
    let mut rows = statement.query((log, &sender.0[..]))?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let bytes = Zeroizing::new(row.get::<_, Vec<u8>>(0)?);
    let bytes = bytes.as_slice().try_into().map_err(|_| StoreError::Damaged)?;
    Ok(Some(EpochKey::from_bytes(bytes)))
}
