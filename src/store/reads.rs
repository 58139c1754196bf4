//! Everything that is read, once for both databases.
//!
//! Each read is one short statement on its own; loading whole logs stands in [`super::load`].
//! Nothing here writes, and nothing that was read is kept in memory.

use bytes::Bytes;
use sealwire_actors::limits::EXPIRED_ENTRIES_MAX;
use sealwire_actors::ports::{
    DueLog, LogBrief, LogKey, PageRequest, Position, StoreError, StoredEntry, SubscriptionRecord,
};
use sealwire_protocol::digest::entry_digest;
use sealwire_protocol::frame::Member;
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::ids::Signature;
use sealwire_protocol::{AckSet, Body, DeviceKey, Digest, LogId, LogType};
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

const SUBSCRIPTION: &str = "select l.seq, l.chain, l.floor_seq, l.floor_chain, m.joined_seq, \
     m.ack_floor, m.ack_ranges \
     from logs l join members m on m.log = l.key and m.device = $2 and m.state = 2 \
     where l.key = $1";

const MEMBERS: &str = "select l.seq, l.chain, m.device, m.joined_seq, m.joined_at \
     from logs l left join members m on m.log = l.key and m.state = 2 where l.key = $1";

const CHAIN_AT: &str = "select chain from entries where log = $1 and seq = $2";

const FIND_ENTRY: &str = "select e.seq, e.header from senders s \
     join entries e on e.log = s.log and e.sender_slot = s.slot and e.count = $3 and e.count > 0 \
     where s.log = $1 and s.device = $2";

/// The inner queries see lengths only: a body that is not given is never read from the disk. The
/// header holds its sender at byte 18 (from 1). `instr` would also match across two keys, but members
/// whose keys' bytes fall so cannot be made: that is a search over 128 bits.
const READ_PAGE: &str = "with page as ( \
        select e.seq, b.seq as given, \
            coalesce(length(e.control_body), length(b.body), 0) as bytes \
        from entries e left join bodies b on b.log = e.log and b.seq = e.seq and ( \
            (select log_type from logs where key = $1) = 2 \
            or (e.seq > $4 and substr(e.header, 18, 32) <> $5 \
                and (e.recipients is null or instr(e.recipients, $5) > 0))) \
        where e.log = $1 and e.seq > $2 and e.seq <= $3 \
        order by e.seq limit $6), \
     sized as ( \
        select seq, given, sum(bytes) over (order by seq) as bytes, \
            row_number() over (order by seq) as place from page) \
     select e.seq, e.at, e.header, e.signature, e.recipients, e.chain, \
        coalesce(e.control_body, b.body), b.totals_kind \
     from sized s join entries e on e.log = $1 and e.seq = s.seq \
     left join bodies b on b.log = $1 and b.seq = s.given \
     where s.bytes <= $7 or s.place = 1";

const READ_CONTROLS: &str = "select seq, at, header, signature, recipients, chain, control_body, \
        cast(null as text) \
     from entries where log = $1 and seq > $2 and seq <= $3 and control_body is not null \
     order by seq limit $4";

/// Up to the entry before the first that is too young, or as far as is looked, or to the head.
const DUE_FOR_EXPIRY: &str = "with looked as ( \
        select key, floor_seq, \
            case when seq < floor_seq + $4 then seq else floor_seq + $4 end as last \
        from logs where key > $1 and log_type = 1 order by key limit $3) \
     select l.key, e.seq, e.chain from looked l left join entries e \
        on e.log = l.key and e.seq > l.floor_seq and e.seq = coalesce( \
            (select n.seq from entries n \
             where n.log = l.key and n.seq > l.floor_seq and n.seq <= l.last and n.at >= $2 \
             order by n.seq limit 1) - 1, \
            l.last) \
     order by l.key";

const IDLE_GROUPS: &str =
    "select key from logs where log_type = 1 and last_entry_at < $1 order by key limit $2";

/// A number of rows, entries or bytes as a parameter: more than the database counts is no limit.
pub(super) fn bound(value: usize) -> Value<'static> {
    Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A seq as an upper or lower bound: more than the database counts is its highest.
fn seq(value: u64) -> Value<'static> {
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

pub(super) fn recipients(row: &impl Columns, place: usize) -> Result<Vec<DeviceKey>, StoreError> {
    let bytes = row.maybe_bytes(place)?.unwrap_or_default();
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

fn stored_entry(row: &impl Columns) -> Result<StoredEntry, StoreError> {
    let header = HeaderBytes::from_slice(row.bytes(2)?).map_err(|_| corrupt("a header"))?;
    let signature = row
        .maybe_bytes(3)?
        .map(|bytes| Signature::from_slice(bytes).ok_or_else(|| corrupt("a signature")))
        .transpose()?;
    Ok(StoredEntry {
        seq: row.number(0)?,
        at: row.number(1)?,
        header,
        signature,
        recipients: recipients(row, 4)?,
        chain: row.digest(5)?,
        body: row.maybe_bytes(6)?.map(|bytes| Body(Bytes::copy_from_slice(bytes))),
        totals_kind: row.maybe_text(7)?.map(str::to_owned),
    })
}

impl<D: Dialect> Lanes<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    /// The rows of one statement on its own.
    async fn query(
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

    pub(super) async fn read_page(
        &self,
        request: &PageRequest,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let values = [
            Value::Int(request.key.0),
            seq(request.after),
            seq(request.up_to),
            seq(request.joined_seq),
            Value::bytes(&request.reader.0),
            bound(request.entries_max),
            bound(request.bytes_max),
        ];
        let rows = self.query(READ_PAGE, &values).await?;
        let mut page = rows.iter().map(stored_entry).collect::<Result<Vec<_>, _>>()?;
        // In order already, but no statement says so: sorting there would carry the bodies along.
        page.sort_unstable_by_key(|entry| entry.seq);
        Ok(page)
    }

    pub(super) async fn read_controls(
        &self,
        key: LogKey,
        after: u64,
        up_to: u64,
        limit: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let values = [Value::Int(key.0), seq(after), seq(up_to), bound(limit)];
        self.query(READ_CONTROLS, &values).await?.iter().map(stored_entry).collect()
    }

    pub(super) async fn due_for_expiry(
        &self,
        after: LogKey,
        before: u64,
        limit: usize,
    ) -> Result<(Vec<DueLog>, Option<LogKey>), StoreError> {
        let entries_max = Value::number(EXPIRED_ENTRIES_MAX)?;
        let values = [Value::Int(after.0), seq(before), bound(limit), entries_max];
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
