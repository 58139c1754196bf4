//! Vaults in which this device has taken the place of a lost one: what a database needs to go on there.

use rusqlite::Connection;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::{DeviceKey, LogId};

use super::StoreError;
use crate::address::RelayUrl;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) log: LogId,
    pub(crate) relay: RelayUrl,
    pub(crate) relay_key: DeviceKey,
    /// The scope that is the person's own; none if there was none, or it cannot be told.
    pub(crate) private: Option<Scope>,
}

/// Keeps one, in place of what was known of it.
pub(crate) fn save(db: &Connection, vault: &Recovered) -> Result<(), StoreError> {
    let Recovered { log, relay, relay_key, private } = vault;
    let private = private.as_ref().map(|scope| &scope.0[..]);
    db.prepare_cached(
        "insert or replace into recovered_vaults (log, relay, relay_key, private_scope)
         values (?1, ?2, ?3, ?4)",
    )?
    .execute((&log.0[..], relay.as_str(), &relay_key.0[..], private))?;
    Ok(())
}

/// All of them.
pub(crate) fn list(db: &Connection) -> Result<Vec<Recovered>, StoreError> {
    let mut statement = db.prepare_cached(
        "select log, relay, relay_key, private_scope from recovered_vaults order by log",
    )?;
    let rows = statement.query_map([], |row| {
        let (log, relay): (Vec<u8>, String) = (row.get(0)?, row.get(1)?);
        let (key, private): (Vec<u8>, Option<Vec<u8>>) = (row.get(2)?, row.get(3)?);
        Ok((log, relay, key, private))
    })?;
    rows.map(|row| {
        let (log, relay, key, private) = row?;
        let private = private.map(|it| Scope::from_slice(&it).ok_or(StoreError::Damaged));
        Ok(Recovered {
            log: LogId::from_slice(&log).ok_or(StoreError::Damaged)?,
            relay: RelayUrl::parse(&relay).map_err(|_| StoreError::Damaged)?,
            relay_key: DeviceKey::from_slice(&key).ok_or(StoreError::Damaged)?,
            private: private.transpose()?,
        })
    })
    .collect()
}
