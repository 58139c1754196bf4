//! What a device must not forget: one SQLite file in its directory.
//!
//! A write that this module reports as done is on the disk: the device permits the relay to delete
//! an entry only after that, and sends an entry only after its number is there. Several processes of
//! one device may have the file open; SQLite orders their writes, and which of them talks to the
//! relay is decided elsewhere ([`crate::session`]).
//!
//! The file holds content keys and opened entries, and is readable by its owner alone. It never
//! holds the device's own key, and nothing that leads to it: what is kept of the recovery vault, in
//! which that key is, is sealed to it.

pub(crate) mod history;
pub(crate) mod inbox;
pub(crate) mod keys;
pub(crate) mod ledger;
pub(crate) mod logs;
pub(crate) mod outbox;
pub(crate) mod recovered;
pub(crate) mod recovery;
pub(crate) mod requests;

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use sealwire_protocol::DeviceKey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::address::RelayUrl;

/// How long one process waits for another one's write. A write takes milliseconds.
const BUSY_DEADLINE: Duration = Duration::from_secs(10);

/// The version of the tables that this program writes.
const VERSION: i64 = 1;

/// The device's file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process holds it for too long.
    #[error("the device's file is in use")]
    Busy,
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// It holds what it must not, or is not such a file.
    #[error("the device's file is damaged")]
    Damaged,
    /// It was written by a newer version.
    #[error("the device's file was written by a newer version")]
    Newer,
    /// It belongs to another device.
    #[error("the device's file belongs to another device")]
    OtherDevice,
    /// The system failed.
    #[error("the device's file cannot be read or written")]
    Io,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        // The text may name rows: the kind is enough.
        let code = error.sqlite_error_code();
        if code == Some(ErrorCode::DatabaseBusy) || code == Some(ErrorCode::DatabaseLocked) {
            Self::Busy
        } else if code == Some(ErrorCode::DiskFull) {
            Self::Full
        } else if code == Some(ErrorCode::SystemIoFailure)
            || code == Some(ErrorCode::CannotOpen)
            || code == Some(ErrorCode::ReadOnly)
            || code == Some(ErrorCode::PermissionDenied)
        {
            Self::Io
        } else {
            Self::Damaged
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

/// The file. A transaction is a call; nobody holds one across an `await`.
pub(crate) struct Store {
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens or makes the file of `device`.
    pub(crate) fn open(path: &Path, device: DeviceKey) -> Result<Self, StoreError> {
        make_private(path)?;
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_DEADLINE)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "secure_delete", "fast")?;
        migrate(&mut connection, device)?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// Does all of `work` or nothing of it; when it is done, it is on the disk.
    pub(crate) fn write<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut connection = self.connection.lock();
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::from)?;
        let value = work(&transaction)?;
        transaction.commit().map_err(StoreError::from)?;
        Ok(value)
    }

    /// Reads one state of the file.
    pub(crate) fn read<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut connection = self.connection.lock();
        let transaction = connection.transaction().map_err(StoreError::from)?;
        work(&transaction)
    }

    /// Forgets what was kept for long enough.
    pub(crate) fn prune(&self, now: u64) -> Result<(), StoreError> {
        self.write(|db| {
            inbox::prune(db, now)?;
            outbox::prune(db, now)
        })
    }

    /// A number that changes when another process has written.
    pub(crate) fn others(&self) -> Result<i64, StoreError> {
        Ok(self.connection.lock().pragma_query_value(None, "data_version", |row| row.get(0))?)
    }
}

/// The key that belongs to a relay's address; none if it was never met.
pub(crate) fn relay_key(
    db: &Connection,
    relay: &RelayUrl,
) -> Result<Option<DeviceKey>, StoreError> {
    let key: Option<Vec<u8>> = db
        .prepare_cached("select key from relays where url = ?1")?
        .query_row([relay.as_str()], |row| row.get(0))
        .optional()?;
    key.map(|key| DeviceKey::from_slice(&key).ok_or(StoreError::Damaged)).transpose()
}

/// Keeps the key of a relay's address, in place of an earlier one.
pub(crate) fn pin_relay(
    db: &Connection,
    relay: &RelayUrl,
    key: DeviceKey,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "insert into relays (url, key) values (?1, ?2)
         on conflict (url) do update set key = excluded.key",
    )?
    .execute((relay.as_str(), &key.0[..]))?;
    Ok(())
}

/// What the person is called in `totals` groups, and since when, in milliseconds since the epoch.
pub(crate) fn name(db: &Connection) -> Result<(Option<String>, u64), StoreError> {
    let (name, at) =
        db.query_row("select name, name_at from device", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok((name, from_sql(at)?))
}

/// Keeps what the person is called.
pub(crate) fn set_name(db: &Connection, name: &str, at: u64) -> Result<(), StoreError> {
    db.execute("update device set name = ?1, name_at = ?2", (name, to_sql(at)?))?;
    Ok(())
}

/// Writes a value as it is stored.
fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    rmp_serde::to_vec_named(value).map_err(|_| StoreError::Damaged)
}

/// Reads a stored value.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    rmp_serde::from_slice(bytes).map_err(|_| StoreError::Damaged)
}

/// A seq or count as SQLite holds it; both ends bound them to what fits.
fn to_sql(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Damaged)
}

fn from_sql(value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| StoreError::Damaged)
}

/// SQLite makes its files with the mode that the process gives: this one is made before.
fn make_private(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(|_| ())
}

fn migrate(connection: &mut Connection, device: DeviceKey) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > VERSION {
        return Err(StoreError::Newer);
    }
    if version == 0 {
        transaction.execute_batch(include_str!("store/schema.sql"))?;
        transaction.execute("insert into device (key) values (?1)", [&device.0[..]])?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    let owner: Vec<u8> = transaction.query_row("select key from device", [], |row| row.get(0))?;
    if owner != device.0 {
        return Err(StoreError::OtherDevice);
    }
    // What an older program did not know, this one may.
    ledger::retry_unknown(&transaction)?;
    transaction.commit()?;
    Ok(())
}
