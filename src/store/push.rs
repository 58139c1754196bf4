//! What doorbells ask of a store: where devices' doorbells are, and who has not seen what came lately.

use std::collections::HashMap;

use async_trait::async_trait;
use sealwire_actors::ports::{LogKey, MemberRecord, PushStore, RecentEntry, RecentLog, StoreError};
use sealwire_protocol::frame::Member;
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::{AckSet, DeviceKey};
use sqlx::Executor;

use super::dialect::Kind::Bytes;
use super::dialect::{Columns, Dialect, Step, Table, Value};
use super::failure::corrupt;
use super::lanes::Lanes;
use super::reads::{bound, log_id, log_type, recipients, seq};
use super::sql_store::{Count, SqlStore};

static PUSH_TOKENS: Step = Step::new(
    &[("device", Bytes)],
    "select d.key, d.push_platform, d.push_token from given g cross join devices d \
     where d.key = g.device and d.push_token is not null",
);

const FORGET_PUSH_TOKEN: &str = "update devices set push_platform = null, push_token = null \
     where key = $1 and push_platform = $2 and push_token = $3 returning key";

/// Looks at logs in the order of their keys: no index holds when a log was written to last, because
/// every commit would change it.
const RECENT_LOGS: &str =
    "select key, id, log_type, last_entry_at from logs where key > $1 order by key limit $2 + 0";

const RECENT_ENTRIES: &str = "select e.seq, e.at, e.header, e.recipients, b.totals_kind \
     from bodies b join entries e on e.log = b.log and e.seq = b.seq \
     where b.log = $1 and b.seq < $2 order by b.seq desc limit $3 + 0";

const MEMBERS_WITH_DOORBELLS: &str = "select m.device, m.joined_seq, m.joined_at, m.ack_floor, \
        m.ack_ranges \
     from members m join devices d on d.key = m.device and d.push_token is not null \
     where m.log = $1 and m.state = 2";

fn recent_entry(row: &impl Columns) -> Result<RecentEntry, StoreError> {
    let header = HeaderBytes::from_slice(row.bytes(2)?).map_err(|_| corrupt("a header"))?;
    let header = header.decode().map_err(|_| corrupt("a header"))?;
    Ok(RecentEntry {
        seq: row.number(0)?,
        at: row.number(1)?,
        sender: header.sender,
        kind: header.kind,
        totals_kind: row.maybe_text(4)?.map(str::to_owned),
        recipients: row.maybe_bytes(3)?.map_or(Ok(Vec::new()), recipients)?,
    })
}

impl<D: Dialect> Lanes<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    async fn push_tokens(
        &self,
        devices: &[DeviceKey],
    ) -> Result<Vec<Option<(String, String)>>, StoreError> {
        let mut table = Table::new(&PUSH_TOKENS);
        for device in devices {
            table.push([Value::bytes(&device.0)]);
        }
        let mut places = HashMap::with_capacity(devices.len());
        for row in self.read().await?.each(table).await? {
            let (platform, token) = (row.maybe_text(1)?, row.maybe_text(2)?);
            if let (Some(platform), Some(token)) = (platform, token) {
                places.insert(row.device(0)?, (platform.to_owned(), token.to_owned()));
            }
        }
        Ok(devices.iter().map(|device| places.remove(device)).collect())
    }

    async fn recent_logs(
        &self,
        after: LogKey,
        since: u64,
        limit: usize,
    ) -> Result<(Vec<RecentLog>, Option<LogKey>), StoreError> {
        let rows = self.query(RECENT_LOGS, &[Value::Int(after.0), bound(limit)]).await?;
        let mut recent = Vec::new();
        for row in &rows {
            if row.number(3)? >= since {
                let key = LogKey(row.int(0)?);
                recent.push(RecentLog { key, id: log_id(row, 1)?, log_type: log_type(row, 2)? });
            }
        }
        let last = rows.last().filter(|_| rows.len() == limit);
        Ok((recent, last.map(|row| row.int(0).map(LogKey)).transpose()?))
    }

    async fn members_with_doorbells(&self, key: LogKey) -> Result<Vec<MemberRecord>, StoreError> {
        let rows = self.query(MEMBERS_WITH_DOORBELLS, &[Value::Int(key.0)]).await?;
        let record = |row: &D::Row| {
            let (joined_seq, joined_at) = (row.number(1)?, row.number(2)?);
            let member = Member { device: row.device(0)?, joined_seq, joined_at };
            let acked = AckSet::from_stored(row.number(3)?, row.bytes(4)?);
            Ok(MemberRecord { member, acked })
        };
        rows.iter().map(record).collect()
    }
}

#[async_trait]
impl<D: Count> PushStore for SqlStore<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    async fn push_tokens(
        &self,
        devices: &[DeviceKey],
    ) -> Result<Vec<Option<(String, String)>>, StoreError> {
        self.lanes.push_tokens(devices).await
    }

    async fn forget_push_token(
        &self,
        device: DeviceKey,
        platform: &str,
        token: &str,
    ) -> Result<bool, StoreError> {
        self.may_write()?;
        let values = [Value::bytes(&device.0), Value::Text(platform), Value::Text(token)];
        let mut lease = self.lanes.write().await?;
        Ok(!lease.rows(FORGET_PUSH_TOKEN, &values).await?.is_empty())
    }

    async fn recent_logs(
        &self,
        after: LogKey,
        since: u64,
        limit: usize,
    ) -> Result<(Vec<RecentLog>, Option<LogKey>), StoreError> {
        self.lanes.recent_logs(after, since, limit).await
    }

    async fn recent_entries(
        &self,
        key: LogKey,
        before: u64,
        limit: usize,
    ) -> Result<Vec<RecentEntry>, StoreError> {
        let values = [Value::Int(key.0), seq(before), bound(limit)];
        self.lanes.query(RECENT_ENTRIES, &values).await?.iter().map(recent_entry).collect()
    }

    async fn members_with_doorbells(&self, key: LogKey) -> Result<Vec<MemberRecord>, StoreError> {
        self.lanes.members_with_doorbells(key).await
    }
}
