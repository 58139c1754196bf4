//! Everything that is read, once for both databases.
//!
//! Each read is one short statement on its own. Pages of entries stand in [`super::pages`], loading
//! whole logs in [`super::load`]. Nothing here writes, and nothing that was read is kept in memory.

use sealwire_actors::ports::{
    DUE_ENTRIES_MAX, DueLog, GroupRecord, LogBrief, LogKey, Position, StoreError,
    SubscriptionRecord,
};
use sealwire_protocol::digest::entry_digest;
use sealwire_protocol::frame::Member;
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::{AckSet, DeviceKey, Digest, LogId, LogType};
use sqlx::Executor;

use super::dialect::{Columns, Dialect, Value};
use super::failure::corrupt;
use super::lanes::Lanes;

const FIND_LOG: &str = "select key, id, log_type, join_key, seq, chain from logs where id = $1";

const REVOKED_AT: &str = "select r.seq from logs l join revoked r on r.log = l.key \
     where l.id = $1 and r.device = $2";

const MEMBERSHIPS: &str = "select l.key, l.id, l.log_type, l.join_key, l.seq, l.chain \
     from members m join logs l on l.key = m.log \
     where m.device = $1 and m.state = 2 order by l.key";

/// Of those with a UUID of version 4: between these bytes stands what tells them from native groups.
const TOTALS_GROUPS: &str = "select l.key, l.id, l.created_at, o.device, o.joined_seq, o.joined_at \
     from members m join logs l on l.key = m.log and l.log_type = 1 \
        and substr(l.id, 7, 1) >= $2 and substr(l.id, 7, 1) < $3 \
     join members o on o.log = l.key and o.state = 2 \
     where m.device = $1 and m.state = 2 order by l.key, o.joined_seq, o.device";

const SUBSCRIPTION: &str = "select l.seq, l.chain, l.floor_seq, l.floor_chain, m.joined_seq, \
     m.ack_floor, m.ack_ranges \
     from logs l join members m on m.log = l.key and m.device = $2 and m.state = 2 \
     where l.key = $1";

const MEMBERS: &str = "select l.seq, l.chain, m.device, m.joined_seq, m.joined_at \
     from logs l left join members m on m.log = l.key and m.state = 2 where l.key = $1";

const PUSH_TOKEN: &str = "select push_platform, push_token from devices where key = $1";

const CHAIN_AT: &str = "select chain from entries where log = $1 and seq = $2";

const FIND_ENTRY: &str = "select e.seq, e.header from senders s \
     join entries e on e.log = s.log and e.sender_slot = s.slot and e.count = $3 and e.count > 0 \
     where s.log = $1 and s.device = $2";

/// Up to the entry before the first that is too young, or to the head, and not farther than `$4`
/// above the floor.
const DUE_FOR_EXPIRY: &str = "with looked as ( \
        select key, floor_seq, \
            case when seq < floor_seq + $4 then seq else floor_seq + $4 end as reach \
        from logs where key > $1 and log_type = 1 order by key limit $3 + 0) \
     select l.key, e.seq, e.chain from looked l left join entries e \
        on e.log = l.key and e.seq > l.floor_seq and e.seq = coalesce( \
            (select n.seq from entries n \
             where n.log = l.key and n.seq > l.floor_seq and n.seq <= l.reach and n.at >= $2 \
             order by n.seq limit 1) - 1, \
            l.reach) \
     order by l.key";

const IDLE_GROUPS: &str =
    "select key from logs where log_type = 1 and last_entry_at < $1 order by key limit $2 + 0";

/// A number of rows as a parameter: more than the database counts is no limit. Statements add 0 to
/// it, because SQLite prepares a statement anew for every value of a bare `limit $1`.
pub(super) fn bound(value: usize) -> Value<'static> {
    Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A seq as an upper or lower bound: more than the database counts is its highest.
pub(super) fn seq(value: u64) -> Value<'static> {
    Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

pub(super) fn position(
    row: &impl Columns,
    seq: usize,
    chain: usize,
) -> Result<Position, StoreError> {
    Ok(Position { seq: row.number(seq)?, chain: row.digest(chain)? })
}

pub(super) fn log_type(row: &impl Columns, place: usize) -> Result<LogType, StoreError> {
    u8::try_from(row.int(place)?)
        .ok()
        .and_then(LogType::from_u8)
        .ok_or_else(|| corrupt("a log type"))
}

pub(super) fn log_id(row: &impl Columns, place: usize) -> Result<LogId, StoreError> {
    LogId::from_slice(row.bytes(place)?).ok_or_else(|| corrupt("a log id's length"))
}

pub(super) fn join_key(row: &impl Columns, place: usize) -> Result<Option<DeviceKey>, StoreError> {
    row.maybe_bytes(place)?.map(|_| row.device(place)).transpose()
}

pub(super) fn slot(row: &impl Columns, place: usize) -> Result<i32, StoreError> {
    i32::try_from(row.int(place)?).map_err(|_| corrupt("a slot"))
}

pub(super) fn recipients(bytes: &[u8]) -> Result<Vec<DeviceKey>, StoreError> {
    let keys = bytes.chunks_exact(DeviceKey::LEN);
    if !keys.remainder().is_empty() {
        return Err(corrupt("a list of keys"));
    }
    Ok(keys.filter_map(DeviceKey::from_slice).collect())
}

fn brief(row: &impl Columns) -> Result<LogBrief, StoreError> {
    Ok(LogBrief {
        key: LogKey(row.int(0)?),
        id: log_id(row, 1)?,
        log_type: log_type(row, 2)?,
        join_key: join_key(row, 3)?,
        head: position(row, 4, 5)?,
    })
}

impl<D: Dialect> Lanes<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    /// The rows of one statement on its own.
    pub(super) async fn query(
        &self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Result<Vec<D::Row>, StoreError> {
        self.read().await?.rows(sql, values).await
    }

    pub(super) async fn find_log(&self, id: LogId) -> Result<Option<LogBrief>, StoreError> {
        self.query(FIND_LOG, &[Value::bytes(&id.0)]).await?.first().map(brief).transpose()
    }

    pub(super) async fn revoked_at(
        &self,
        id: LogId,
        device: DeviceKey,
    ) -> Result<Option<u64>, StoreError> {
        let values = [Value::bytes(&id.0), Value::bytes(&device.0)];
        self.query(REVOKED_AT, &values).await?.first().map(|row| row.number(0)).transpose()
    }

    pub(super) async fn memberships(&self, device: DeviceKey) -> Result<Vec<LogBrief>, StoreError> {
        self.query(MEMBERSHIPS, &[Value::bytes(&device.0)]).await?.iter().map(brief).collect()
    }

    pub(super) async fn totals_groups(
        &self,
        device: DeviceKey,
    ) -> Result<Vec<GroupRecord>, StoreError> {
        let values = [Value::bytes(&device.0), Value::bytes(&[0x40]), Value::bytes(&[0x50])];
        let mut groups: Vec<GroupRecord> = Vec::new();
        for row in self.query(TOTALS_GROUPS, &values).await? {
            let id = log_id(&row, 1)?;
            let (joined_seq, joined_at) = (row.number(4)?, row.number(5)?);
            let member = Member { device: row.device(3)?, joined_seq, joined_at };
            match groups.last_mut() {
                Some(group) if group.id == id => group.members.push(member),
                _ => {
                    let created_at = row.number(2)?;
                    groups.push(GroupRecord { id, created_at, members: vec![member] });
                }
            }
        }
        Ok(groups)
    }

    pub(super) async fn subscription(
        &self,
        key: LogKey,
        device: DeviceKey,
    ) -> Result<Option<SubscriptionRecord>, StoreError> {
        let rows = self.query(SUBSCRIPTION, &[Value::Int(key.0), Value::bytes(&device.0)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (head, floor) = (position(row, 0, 1)?, position(row, 2, 3)?);
        let acked = AckSet::from_stored(row.number(5)?, row.bytes(6)?);
        Ok(Some(SubscriptionRecord { head, floor, joined_seq: row.number(4)?, acked }))
    }

    pub(super) async fn members(
        &self,
        key: LogKey,
    ) -> Result<Option<(Position, Vec<Member>)>, StoreError> {
        let rows = self.query(MEMBERS, &[Value::Int(key.0)]).await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let head = position(first, 0, 1)?;
        let mut members = Vec::with_capacity(rows.len());
        for row in &rows {
            // A log without members is one row without a member.
            if row.maybe_bytes(2)?.is_some() {
                let (joined_seq, joined_at) = (row.number(3)?, row.number(4)?);
                members.push(Member { device: row.device(2)?, joined_seq, joined_at });
            }
        }
        members.sort_unstable_by_key(|member| (member.joined_seq, member.device));
        Ok(Some((head, members)))
    }

    pub(super) async fn push_token(
        &self,
        device: DeviceKey,
    ) -> Result<Option<(String, String)>, StoreError> {
        let rows = self.query(PUSH_TOKEN, &[Value::bytes(&device.0)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (platform, token) = (row.maybe_text(0)?, row.maybe_text(1)?);
        Ok(platform.zip(token).map(|(platform, token)| (platform.to_owned(), token.to_owned())))
    }

    pub(super) async fn chain_at(
        &self,
        key: LogKey,
        at: u64,
    ) -> Result<Option<Digest>, StoreError> {
        let rows = self.query(CHAIN_AT, &[Value::Int(key.0), seq(at)]).await?;
        rows.first().map(|row| row.digest(0)).transpose()
    }

    pub(super) async fn find_entry(
        &self,
        key: LogKey,
        sender: DeviceKey,
        count: u64,
    ) -> Result<Option<(u64, Digest)>, StoreError> {
        let values = [Value::Int(key.0), Value::bytes(&sender.0), seq(count)];
        let rows = self.query(FIND_ENTRY, &values).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let header = HeaderBytes::from_slice(row.bytes(1)?).map_err(|_| corrupt("a header"))?;
        Ok(Some((row.number(0)?, entry_digest(&header))))
    }

    pub(super) async fn due_for_expiry(
        &self,
        after: LogKey,
        before: u64,
        limit: usize,
    ) -> Result<(Vec<DueLog>, Option<LogKey>), StoreError> {
        let values = [Value::Int(after.0), seq(before), bound(limit), seq(DUE_ENTRIES_MAX)];
        let rows = self.query(DUE_FOR_EXPIRY, &values).await?;
        let mut due = Vec::new();
        for row in &rows {
            if row.maybe_int(1)?.is_some() {
                due.push(DueLog { key: LogKey(row.int(0)?), up_to: position(row, 1, 2)? });
            }
        }
        let last = rows.last().filter(|_| rows.len() == limit);
        Ok((due, last.map(|row| row.int(0).map(LogKey)).transpose()?))
    }

    pub(super) async fn idle_groups(
        &self,
        before: u64,
        limit: usize,
    ) -> Result<Vec<LogKey>, StoreError> {
        let rows = self.query(IDLE_GROUPS, &[seq(before), bound(limit)]).await?;
        rows.iter().map(|row| row.int(0).map(LogKey)).collect()
    }
}
