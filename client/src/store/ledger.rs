//! The ledgers of groups: one row for each record, so that a message costs the few that it names.
//!
//! A message is applied in the transaction that takes its entry, or that puts it into the outbox: an
//! ack is said only after what the entry means is on the disk.

use rusqlite::{Connection, OptionalExtension};
use sealwire_protocol::{DeviceKey, LogId};

use super::{StoreError, decode, encode};
use crate::ledger::{Change, Key, Ledger, Record, SUCCESSIONS_MAX, Said, Shelf, apply};
use crate::membership::Membership;
use crate::totals::payload::{Party, Payload};

/// Applies an opened message to the ledger of a log.
pub(crate) fn take(db: &Connection, log: i64, said: Said<'_>) -> Result<Vec<Change>, StoreError> {
    apply(&mut Rows { db, log }, said)
}

/// The ledger of a log, as a value.
pub(crate) fn load(db: &Connection, log: i64) -> Result<Ledger, StoreError> {
    let mut statement =
        db.prepare_cached("select shelf, name, record from ledger where log = ?1")?;
    let mut rows = statement.query([log])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let key = key_of(row.get(0)?, row.get(1)?)?;
        records.push((key, decode(&row.get::<_, Vec<u8>>(2)?)?));
    }
    Ok(Ledger::from_records(records))
}

/// The successors that a device has named, before one of them is known to be it.
pub(crate) fn successors_of(
    db: &Connection,
    log: i64,
    device: DeviceKey,
) -> Result<Vec<Party>, StoreError> {
    let mut statement = db.prepare_cached(
        "select substr(name, 66) from ledger where log = ?1 and shelf = ?2 and name glob ?3",
    )?;
    let named = statement
        .query_map((log, SUCCESSION, format!("{}:*", device.to_hex())), |row| {
            Ok(Party(row.get(0)?))
        })?;
    Ok(named.collect::<Result<_, _>>()?)
}

/// Forgets successions that are of no use, if there are more than a group can have.
pub(crate) fn trim_successions(
    db: &Connection,
    log: i64,
    membership: &Membership,
) -> Result<(), StoreError> {
    if count_successions(db, log)? <= SUCCESSIONS_MAX {
        return Ok(());
    }
    let mut rows = Rows { db, log };
    for name in load(db, log)?.successions_surplus(membership) {
        rows.drop(&Key::Succession(name))?;
    }
    Ok(())
}

/// How many successions are kept of a log.
pub(crate) fn count_successions(db: &Connection, log: i64) -> Result<usize, StoreError> {
    Rows { db, log }.count(SUCCESSION)
}

/// Whether nothing was ever written into the ledger of a log.
pub(crate) fn is_empty(db: &Connection, log: i64) -> Result<bool, StoreError> {
    Ok(!db.prepare_cached("select 1 from ledger where log = ?1 limit 1")?.exists([log])?)
}

/// Tries messages anew that an older version did not know.
pub(crate) fn retry_unknown(db: &Connection) -> Result<(), StoreError> {
    let mut statement = db.prepare_cached(
        "select logs.id, logs.log, ledger.name, ledger.record from ledger
         join logs on logs.id = ledger.log where shelf = ?1",
    )?;
    let mut rows = statement.query([UNKNOWN])?;
    let mut known = Vec::new();
    while let Some(row) = rows.next()? {
        let record: Record = decode(&row.get::<_, Vec<u8>>(3)?)?;
        let Record::Unknown(unknown) = record else { return Err(StoreError::Damaged) };
        if Payload::decode(&unknown.message).is_ok() {
            let log = LogId::from_slice(&row.get::<_, Vec<u8>>(1)?).ok_or(StoreError::Damaged)?;
            known.push((row.get::<_, i64>(0)?, log, row.get::<_, String>(2)?, unknown));
        }
    }
    for (id, log, name, unknown) in known {
        let said = Said {
            log,
            sender: unknown.sender,
            at: unknown.at,
            approvals: log.is_totals(),
            message: &unknown.message,
        };
        take(db, id, said)?;
        Rows { db, log: id }.drop(&Key::Unknown(name))?;
    }
    Ok(())
}

const GROUP: i64 = 0;
const PERSON: i64 = 1;
const EXPENSE: i64 = 2;
const ACTIVITY: i64 = 3;
const UNKNOWN: i64 = 4;
const SUCCESSION: i64 = 5;

/// The place of a record: which shelf, and under which name.
fn place(key: &Key) -> (i64, &str) {
    match key {
        Key::Group => (GROUP, ""),
        Key::Person(party) => (PERSON, &party.0),
        Key::Expense(id) => (EXPENSE, id),
        Key::Activity(id) => (ACTIVITY, id),
        Key::Unknown(digest) => (UNKNOWN, digest),
        Key::Succession(name) => (SUCCESSION, name),
    }
}

fn key_of(shelf: i64, name: String) -> Result<Key, StoreError> {
    match shelf {
        GROUP => Ok(Key::Group),
        PERSON => Ok(Key::Person(Party(name))),
        EXPENSE => Ok(Key::Expense(name)),
        ACTIVITY => Ok(Key::Activity(name)),
        UNKNOWN => Ok(Key::Unknown(name)),
        SUCCESSION => Ok(Key::Succession(name)),
        _ => Err(StoreError::Damaged),
    }
}

struct Rows<'a> {
    db: &'a Connection,
    log: i64,
}

impl Rows<'_> {
    fn count(&self, shelf: i64) -> Result<usize, StoreError> {
        let count: i64 = self
            .db
            .prepare_cached("select count(*) from ledger where log = ?1 and shelf = ?2")?
            .query_row((self.log, shelf), |row| row.get(0))?;
        usize::try_from(count).map_err(|_| StoreError::Damaged)
    }
}

impl Shelf for Rows<'_> {
    type Error = StoreError;

    fn get(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        let (shelf, name) = place(key);
        self.db
            .prepare_cached(
                "select record from ledger where log = ?1 and shelf = ?2 and name = ?3",
            )?
            .query_row((self.log, shelf, name), |row| row.get::<_, Vec<u8>>(0))
            .optional()?
            .map(|record| decode(&record))
            .transpose()
    }

    fn put(&mut self, key: &Key, record: &Record) -> Result<(), StoreError> {
        let (shelf, name) = place(key);
        self.db
            .prepare_cached(
                "insert into ledger (log, shelf, name, record) values (?1, ?2, ?3, ?4)
                 on conflict (log, shelf, name) do update set record = excluded.record",
            )?
            .execute((self.log, shelf, name, encode(record)?))?;
        Ok(())
    }

    fn drop(&mut self, key: &Key) -> Result<(), StoreError> {
        let (shelf, name) = place(key);
        self.db
            .prepare_cached("delete from ledger where log = ?1 and shelf = ?2 and name = ?3")?
            .execute((self.log, shelf, name))?;
        Ok(())
    }

    fn unknown(&self) -> Result<usize, StoreError> {
        self.count(UNKNOWN)
    }
}
