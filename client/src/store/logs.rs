//! The rows of logs: what is known of each, and how far it was read.

use rusqlite::{Connection, OptionalExtension, Row};
use sealwire_protocol::{AckSet, DeviceKey, Digest, Head, LogId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{StoreError, decode, encode, from_sql, to_sql};
use crate::address::RelayUrl;
use crate::chain::Track;
use crate::engine::Spoiled;
use crate::holders::Holders;
use crate::identity::JoinSeed;
use crate::membership::Membership;
use crate::numbering::Mark;

/// What a log is to this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It was founded or is to be joined, and the relay has not said so yet.
    Joining,
    /// This device is a member.
    Member,
    /// It has left.
    Left,
    /// It was revoked.
    Revoked,
    /// The relay refused to found it or to let this device in.
    Refused,
}

impl Phase {
    fn to_sql(self) -> i64 {
        match self {
            Self::Joining => 0,
            Self::Member => 1,
            Self::Left => 2,
            Self::Revoked => 3,
            Self::Refused => 4,
        }
    }

    pub(crate) fn from_sql(value: i64) -> Result<Self, StoreError> {
        match value {
            0 => Ok(Self::Joining),
            1 => Ok(Self::Member),
            2 => Ok(Self::Left),
            3 => Ok(Self::Revoked),
            4 => Ok(Self::Refused),
            _ => Err(StoreError::Damaged),
        }
    }

    /// Whether this device is a member, or about to be one.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Joining | Self::Member)
    }
}

/// A log as it is stored.
pub(crate) struct LogRow {
    pub(crate) id: i64,
    pub(crate) log: LogId,
    pub(crate) relay: RelayUrl,
    pub(crate) phase: Phase,
    pub(crate) blocked: bool,
    pub(crate) track: Track,
    pub(crate) membership: Membership,
    pub(crate) holders: Holders,
    pub(crate) join_seed: Option<JoinSeed>,
    pub(crate) invited: bool,
    pub(crate) acked_incarnation: u64,
    pub(crate) acked: AckSet,
    pub(crate) appended: Mark,
    pub(crate) pruned_seq: u64,
    /// Entries up to here were read before the relay's history changed.
    pub(crate) read_before: u64,
    /// The seq of the newest own entry that made this device a member.
    pub(crate) joined_seq: u64,
}

const COLUMNS: &str = "id, log, relay, phase, blocked, incarnation, seq, chain, membership, holders, \
                       join_seed, invited, acked_incarnation, acked_floor, acked_ranges, \
                       appended_count, appended_digest, pruned_seq, read_before, joined_seq";

/// Adds a log that nothing was read of.
pub(crate) fn insert(
    db: &Connection,
    log: LogId,
    relay: &RelayUrl,
    join_seed: Option<&JoinSeed>,
) -> Result<i64, StoreError> {
    let position = Track::new(log).position();
    db.prepare_cached(
        "insert into logs (log, relay, phase, chain, membership, holders, join_seed, appended_digest)
         values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute((
        &log.0[..],
        relay.as_str(),
        Phase::Joining.to_sql(),
        &position.chain.0[..],
        encode(&Membership::new())?,
        encode(&Holders::default())?,
        join_seed.map(|seed| seed.bytes().to_vec()),
        &Digest::ZERO.0[..],
    ))?;
    Ok(db.last_insert_rowid())
}

/// The log of this name.
pub(crate) fn find(db: &Connection, log: LogId) -> Result<Option<LogRow>, StoreError> {
    let sql = format!("select {COLUMNS} from logs where log = ?1");
    db.prepare_cached(&sql)?.query_row([&log.0[..]], |row| Ok(read(row))).optional()?.transpose()
}

/// All logs, in the order in which they came.
pub(crate) fn list(db: &Connection) -> Result<Vec<LogRow>, StoreError> {
    let sql = format!("select {COLUMNS} from logs order by id");
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query([])?;
    let mut logs = Vec::new();
    while let Some(row) = rows.next()? {
        logs.push(read(row)?);
    }
    Ok(logs)
}

/// What may have been changed by another process while one talks to the relay.
pub(crate) struct Outer {
    pub(crate) log: LogId,
    pub(crate) phase: Phase,
    pub(crate) blocked: bool,
    pub(crate) invited: bool,
}

/// The logs of a relay, briefly.
pub(crate) fn outer(db: &Connection, relay: &RelayUrl) -> Result<Vec<Outer>, StoreError> {
    let mut statement = db.prepare_cached(
        "select log, phase, blocked, invited from logs where relay = ?1 order by id",
    )?;
    let mut rows = statement.query([relay.as_str()])?;
    let mut logs = Vec::new();
    while let Some(row) = rows.next()? {
        logs.push(Outer {
            log: LogId::from_slice(&row.get::<_, Vec<u8>>(0)?).ok_or(StoreError::Damaged)?,
            phase: Phase::from_sql(row.get(1)?)?,
            blocked: row.get(2)?,
            invited: row.get(3)?,
        });
    }
    Ok(logs)
}

/// Keeps how far a log was read, and what was acked.
pub(crate) fn save_progress(
    db: &Connection,
    id: i64,
    track: &Track,
    read_before: u64,
    acked_incarnation: u64,
    acked: &AckSet,
) -> Result<(), StoreError> {
    let position = track.position();
    db.prepare_cached(
        "update logs set incarnation = ?2, seq = ?3, chain = ?4, acked_incarnation = ?5,
             acked_floor = ?6, acked_ranges = ?7, read_before = ?8 where id = ?1",
    )?
    .execute((
        id,
        track.incarnation().cast_signed(),
        to_sql(position.seq)?,
        &position.chain.0[..],
        acked_incarnation.cast_signed(),
        to_sql(acked.floor())?,
        acked.stored_ranges(),
        to_sql(read_before)?,
    ))?;
    Ok(())
}

/// Keeps who is a member and who holds which key.
pub(crate) fn save_members(
    db: &Connection,
    id: i64,
    membership: &Membership,
    holders: &Holders,
) -> Result<(), StoreError> {
    db.prepare_cached("update logs set membership = ?2, holders = ?3 where id = ?1")?.execute((
        id,
        encode(membership)?,
        encode(holders)?,
    ))?;
    Ok(())
}

/// Keeps the newest own entry that was appended.
pub(crate) fn save_appended(db: &Connection, id: i64, mark: Mark) -> Result<(), StoreError> {
    db.prepare_cached("update logs set appended_count = ?2, appended_digest = ?3 where id = ?1")?
        .execute((id, to_sql(mark.count)?, &mark.digest.0[..]))?;
    Ok(())
}

/// Keeps what the log is to this device.
pub(crate) fn set_phase(db: &Connection, id: i64, phase: Phase) -> Result<(), StoreError> {
    db.prepare_cached("update logs set phase = ?2 where id = ?1")?.execute((id, phase.to_sql()))?;
    Ok(())
}

/// Keeps that this device is a member since `seq`.
pub(crate) fn set_joined(db: &Connection, id: i64, seq: u64) -> Result<(), StoreError> {
    db.prepare_cached("update logs set joined_seq = ?2 where id = ?1")?
        .execute((id, to_sql(seq)?))?;
    Ok(())
}

/// Keeps that this device takes the place of another one in a log.
pub(crate) fn set_replaces(
    db: &Connection,
    id: i64,
    old: Option<DeviceKey>,
) -> Result<(), StoreError> {
    db.prepare_cached("update logs set replaces = ?2 where id = ?1")?
        .execute((id, old.map(|old| old.0.to_vec())))?;
    Ok(())
}

/// The device whose place this one takes in a log.
pub(crate) fn replaces(db: &Connection, id: i64) -> Result<Option<DeviceKey>, StoreError> {
    let old: Option<Vec<u8>> = db
        .prepare_cached("select replaces from logs where id = ?1")?
        .query_row([id], |row| row.get(0))?;
    old.map(|old| DeviceKey::from_slice(&old).ok_or(StoreError::Damaged)).transpose()
}

/// Keeps whether the members are to be asked for what was said before.
pub(crate) fn set_wants_history(db: &Connection, id: i64, wants: bool) -> Result<(), StoreError> {
    db.prepare_cached("update logs set wants_history = ?2 where id = ?1")?.execute((id, wants))?;
    Ok(())
}

/// Whether the members are to be asked for what was said before.
pub(crate) fn wants_history(db: &Connection, id: i64) -> Result<bool, StoreError> {
    Ok(db
        .prepare_cached("select wants_history from logs where id = ?1")?
        .query_row([id], |row| row.get(0))?)
}

/// Keeps whether anything is sent.
pub(crate) fn set_blocked(db: &Connection, id: i64, blocked: bool) -> Result<(), StoreError> {
    db.prepare_cached("update logs set blocked = ?2 where id = ?1")?.execute((id, blocked))?;
    Ok(())
}

/// A log's questions for the history: what outlives a connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Asking {
    /// Who was asked.
    pub(crate) asked: Vec<DeviceKey>,
    /// When the next one is asked, in milliseconds since the epoch.
    pub(crate) next_ms: u64,
    /// Who has asked this device before it could answer.
    pub(crate) owed: Vec<DeviceKey>,
}

/// Keeps the questions for the history.
pub(crate) fn set_asking(db: &Connection, id: i64, asking: &Asking) -> Result<(), StoreError> {
    let kept = if asking.asked.is_empty() && asking.owed.is_empty() {
        None
    } else {
        Some(encode(asking)?)
    };
    db.prepare_cached("update logs set asking = ?2 where id = ?1")?.execute((id, kept))?;
    Ok(())
}

/// The questions for the history.
pub(crate) fn asking(db: &Connection, id: i64) -> Result<Asking, StoreError> {
    let kept: Option<Vec<u8>> = db
        .prepare_cached("select asking from logs where id = ?1")?
        .query_row([id], |row| row.get(0))?;
    kept.map_or(Ok(Asking::default()), |kept| decode(&kept))
}

/// Keeps whose invite this device joins by. `met` says that there is no telling any more whether that one
/// was a member before.
pub(crate) fn set_inviter(
    db: &Connection,
    id: i64,
    inviter: DeviceKey,
    met: bool,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "update logs set inviter = ?2, inviter_met = ?3, stranger = 0 where id = ?1",
    )?
    .execute((id, &inviter.0[..], met))?;
    Ok(())
}

/// Whose invite this device joins by, and whether that one was met among the members.
pub(crate) fn inviter(db: &Connection, id: i64) -> Result<Option<(DeviceKey, bool)>, StoreError> {
    let (inviter, met): (Option<Vec<u8>>, bool) = db
        .prepare_cached("select inviter, inviter_met from logs where id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let Some(inviter) = inviter else { return Ok(None) };
    Ok(Some((DeviceKey::from_slice(&inviter).ok_or(StoreError::Damaged)?, met)))
}

/// Keeps that the inviter was met among the members.
pub(crate) fn set_inviter_met(db: &Connection, id: i64) -> Result<(), StoreError> {
    db.prepare_cached("update logs set inviter_met = 1 where id = ?1")?.execute([id])?;
    Ok(())
}

/// Keeps that the inviter was never a member.
pub(crate) fn set_stranger(db: &Connection, id: i64) -> Result<(), StoreError> {
    db.prepare_cached("update logs set stranger = 1 where id = ?1")?.execute([id])?;
    Ok(())
}

/// Whether the inviter was never a member.
pub(crate) fn is_stranger(db: &Connection, id: i64) -> Result<bool, StoreError> {
    Ok(db
        .prepare_cached("select stranger from logs where id = ?1")?
        .query_row([id], |row| row.get(0))?)
}

/// Keeps which entries came spoiled.
pub(crate) fn set_spoiled(db: &Connection, id: i64, spoiled: &Spoiled) -> Result<(), StoreError> {
    let kept = if spoiled.is_empty() { None } else { Some(encode(spoiled)?) };
    db.prepare_cached("update logs set spoiled = ?2 where id = ?1")?.execute((id, kept))?;
    Ok(())
}

/// Which entries came spoiled.
pub(crate) fn spoiled(db: &Connection, id: i64) -> Result<Spoiled, StoreError> {
    let kept: Option<Vec<u8>> = db
        .prepare_cached("select spoiled from logs where id = ?1")?
        .query_row([id], |row| row.get(0))?;
    kept.map_or(Ok(Spoiled::default()), |kept| decode(&kept))
}

/// Keeps that this device has made an invite.
pub(crate) fn set_invited(db: &Connection, id: i64) -> Result<(), StoreError> {
    db.prepare_cached("update logs set invited = 1 where id = ?1")?.execute([id])?;
    Ok(())
}

/// Keeps the seed of the join key.
pub(crate) fn set_join_seed(db: &Connection, id: i64, seed: &JoinSeed) -> Result<(), StoreError> {
    db.prepare_cached("update logs set join_seed = ?2 where id = ?1")?
        .execute((id, &seed.bytes()[..]))?;
    Ok(())
}

/// The seed of the join key.
pub(crate) fn join_seed(db: &Connection, id: i64) -> Result<Option<JoinSeed>, StoreError> {
    let seed: Option<Vec<u8>> = db
        .prepare_cached("select join_seed from logs where id = ?1")?
        .query_row([id], |row| row.get(0))?;
    seed.map(seed_from).transpose()
}

/// Keeps the seed that belongs to an own `revoke` until that stands.
pub(crate) fn set_next_seed(db: &Connection, id: i64, seed: &JoinSeed) -> Result<(), StoreError> {
    db.prepare_cached("update logs set next_seed = ?2 where id = ?1")?
        .execute((id, &seed.bytes()[..]))?;
    Ok(())
}

/// The seed that belongs to an own `revoke`.
pub(crate) fn next_seed(db: &Connection, id: i64) -> Result<Option<JoinSeed>, StoreError> {
    let seed: Option<Vec<u8>> = db
        .prepare_cached("select next_seed from logs where id = ?1")?
        .query_row([id], |row| row.get(0))?;
    seed.map(seed_from).transpose()
}

fn read(row: &Row<'_>) -> Result<LogRow, StoreError> {
    let log = LogId::from_slice(&row.get::<_, Vec<u8>>(1)?).ok_or(StoreError::Damaged)?;
    let head = Head {
        incarnation: row.get::<_, i64>(5)?.cast_unsigned(),
        seq: from_sql(row.get(6)?)?,
        chain: digest(&row.get::<_, Vec<u8>>(7)?)?,
    };
    Ok(LogRow {
        id: row.get(0)?,
        log,
        relay: RelayUrl::parse(&row.get::<_, String>(2)?).map_err(|_| StoreError::Damaged)?,
        phase: Phase::from_sql(row.get(3)?)?,
        blocked: row.get(4)?,
        track: Track::at(head),
        membership: decode(&row.get::<_, Vec<u8>>(8)?)?,
        holders: decode(&row.get::<_, Vec<u8>>(9)?)?,
        join_seed: row.get::<_, Option<Vec<u8>>>(10)?.map(seed_from).transpose()?,
        invited: row.get(11)?,
        acked_incarnation: row.get::<_, i64>(12)?.cast_unsigned(),
        acked: AckSet::from_stored(from_sql(row.get(13)?)?, &row.get::<_, Vec<u8>>(14)?),
        appended: Mark {
            count: from_sql(row.get(15)?)?,
            digest: digest(&row.get::<_, Vec<u8>>(16)?)?,
        },
        pruned_seq: from_sql(row.get(17)?)?,
        read_before: from_sql(row.get(18)?)?,
        joined_seq: from_sql(row.get(19)?)?,
    })
}

fn digest(bytes: &[u8]) -> Result<Digest, StoreError> {
    Digest::from_slice(bytes).ok_or(StoreError::Damaged)
}

fn seed_from(bytes: Vec<u8>) -> Result<JoinSeed, StoreError> {
    let bytes = Zeroizing::new(bytes);
    bytes.as_slice().try_into().map(JoinSeed::from_bytes).map_err(|_| StoreError::Damaged)
}
