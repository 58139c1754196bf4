//! Loading whole logs: what an actor keeps in memory, for many logs at once.
//!
//! A restart with many returning devices loads many logs, so this costs a fixed number of statements
//! whatever the number of logs. All of them see one snapshot: head, members and queue belong
//! together.

use std::collections::{BTreeSet, HashMap};

use sealwire_actors::ports::{
    LiveRecord, LogKey, LogRecord, MemberRecord, SenderRecord, StoreError, VaultCounts, VaultRecord,
};
use sealwire_protocol::AckSet;
use sealwire_protocol::frame::Member;
use sqlx::Executor;

use super::dialect::Kind::Int;
use super::dialect::{Columns, Dialect, Step, Table, Value};
use super::failure::corrupt;
use super::lanes::{Lanes, Lease, Verdict};
use super::reads::{join_key, log_id, log_type, position, recipients, slot};
use super::vaults::{LOAD_SNAPSHOTS, LOAD_VAULTS, snapshot};

static LOAD_LOGS: Step = Step::new(
    &[("key", Int)],
    "select l.key, l.id, l.log_type, l.seq, l.chain, l.version, l.floor_seq, l.floor_chain, \
        l.join_key, l.guard_seq, l.last_entry_at \
     from given g cross join logs l where l.key = g.key",
);

static LOAD_MEMBERS: Step = Step::new(
    &[("key", Int)],
    "select m.log, m.device, m.joined_seq, m.joined_at, m.ack_floor, m.ack_ranges \
     from given g cross join members m where m.log = g.key and m.state = 2",
);

static LOAD_REVOKED: Step = Step::new(
    &[("key", Int)],
    "select r.log, r.device, r.seq from given g cross join revoked r where r.log = g.key",
);

static LOAD_SENDERS: Step = Step::new(
    &[("key", Int)],
    "select s.log, s.slot, s.device, s.last_count, s.last_digest \
     from given g cross join senders s where s.log = g.key",
);

/// PostgreSQL cannot know how few bodies of a log are left: `offset 0` keeps it from beginning with all
/// of its entries.
static LOAD_LIVE: Step = Step::twofold(
    &[("key", Int)],
    "select b.log, b.seq, e.sender_slot, length(b.body), e.at, e.recipients \
     from given g cross join logs l cross join bodies b cross join entries e \
     where l.key = g.key and l.log_type = 1 and b.log = l.key and b.seq > l.floor_seq \
        and e.log = b.log and e.seq = b.seq",
    "select b.log, b.seq, e.sender_slot, b.bytes, e.at, e.recipients \
     from given g join logs l on l.key = g.key and l.log_type = 1 \
     cross join lateral ( \
        select b.log, b.seq, length(b.body)::bigint as bytes from bodies b \
        where b.log = l.key and b.seq > l.floor_seq offset 0) b \
     cross join lateral ( \
        select e.sender_slot, e.at, e.recipients from entries e \
        where e.log = b.log and e.seq = b.seq offset 0) e",
);

/// For the test that looks at their plans.
#[cfg(test)]
pub(super) const STEPS: &[&Step] =
    &[&LOAD_LOGS, &LOAD_MEMBERS, &LOAD_REVOKED, &LOAD_SENDERS, &LOAD_LIVE];

impl<D: Dialect> Lanes<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    /// Loads logs, in the order of `keys`.
    pub(super) async fn load(&self, keys: &[LogKey]) -> Result<Vec<Option<LogRecord>>, StoreError> {
        let distinct: BTreeSet<LogKey> = keys.iter().copied().collect();
        let mut lease = self.read().await?;
        lease.begin(D::BEGIN_SNAPSHOT).await?;
        let loaded = records(&mut lease, &distinct).await.map(Verdict::Undo);
        let mut records = lease.end(loaded).await?;
        if distinct.len() == keys.len() {
            Ok(keys.iter().map(|key| records.remove(key)).collect())
        } else {
            Ok(keys.iter().map(|key| records.get(key).cloned()).collect())
        }
    }
}

/// Reads logs within the transaction that `lease` has begun.
pub(super) async fn records<D: Dialect>(
    lease: &mut Lease<D>,
    keys: &BTreeSet<LogKey>,
) -> Result<HashMap<LogKey, LogRecord>, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let given = |step: &'static Step| {
        let mut table = Table::new(step);
        for key in keys {
            table.push([Value::Int(key.0)]);
        }
        table
    };
    let mut records = HashMap::with_capacity(keys.len());
    for row in lease.each(given(&LOAD_LOGS)).await? {
        let record = log_record(&row)?;
        records.insert(record.key, record);
    }
    for row in lease.each(given(&LOAD_MEMBERS)).await? {
        if let Some(record) = records.get_mut(&LogKey(row.int(0)?)) {
            let (joined_seq, joined_at) = (row.number(2)?, row.number(3)?);
            let member = Member { device: row.device(1)?, joined_seq, joined_at };
            let acked = AckSet::from_stored(row.number(4)?, row.bytes(5)?);
            record.members.push(MemberRecord { member, acked });
        }
    }
    for row in lease.each(given(&LOAD_REVOKED)).await? {
        if let Some(record) = records.get_mut(&LogKey(row.int(0)?)) {
            record.revoked.push((row.device(1)?, row.number(2)?));
        }
    }
    for row in lease.each(given(&LOAD_SENDERS)).await? {
        if let Some(record) = records.get_mut(&LogKey(row.int(0)?)) {
            record.senders.push(SenderRecord {
                slot: slot(&row, 1)?,
                device: row.device(2)?,
                last_count: row.number(3)?,
                last_digest: row.digest(4)?,
            });
        }
    }
    for row in lease.each(given(&LOAD_LIVE)).await? {
        if let Some(record) = records.get_mut(&LogKey(row.int(0)?)) {
            record.live.push(LiveRecord {
                seq: row.number(1)?,
                sender_slot: slot(&row, 2)?,
                bytes: u32::try_from(row.int(3)?).map_err(|_| corrupt("a body's length"))?,
                at: row.number(4)?,
                recipients: recipients(row.maybe_bytes(5)?.unwrap_or_default())?,
            });
        }
    }
    for row in lease.each(given(&LOAD_VAULTS)).await? {
        if let Some(record) = records.get_mut(&LogKey(row.int(0)?)) {
            record.vault.counts = VaultCounts { entries: row.number(1)?, bytes: row.number(2)? };
        }
    }
    for row in lease.each(given(&LOAD_SNAPSHOTS)).await? {
        if let Some(record) = records.get_mut(&LogKey(row.int(0)?)) {
            record.vault.snapshots.push(snapshot(&row)?);
        }
    }
    for record in records.values_mut() {
        record.vault.snapshots.sort_unstable_by_key(|snapshot| snapshot.seq);
        record.members.sort_unstable_by_key(|known| (known.member.joined_seq, known.member.device));
        record.revoked.sort_unstable_by_key(|(device, seq)| (*seq, *device));
        record.senders.sort_unstable_by_key(|sender| sender.slot);
        record.live.sort_unstable_by_key(|live| live.seq);
    }
    Ok(records)
}

fn log_record(row: &impl Columns) -> Result<LogRecord, StoreError> {
    Ok(LogRecord {
        key: LogKey(row.int(0)?),
        id: log_id(row, 1)?,
        log_type: log_type(row, 2)?,
        head: position(row, 3, 4)?,
        version: row.number(5)?,
        floor: position(row, 6, 7)?,
        join_key: join_key(row, 8)?,
        guard_seq: row.number(9)?,
        last_entry_at: row.number(10)?,
        members: Vec::new(),
        revoked: Vec::new(),
        senders: Vec::new(),
        live: Vec::new(),
        vault: VaultRecord::default(),
    })
}
