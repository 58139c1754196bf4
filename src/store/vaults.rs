//! What is kept of vaults beside their entries: snapshots, uploads, and what is due to go.
//!
//! An upload is a row and its chunks. Its control entry makes it a snapshot in the commit of that
//! entry ([`super::commit`]); what goes is only marked there, and its chunks are deleted a few at a
//! time.
//!
//! Holds always: chunks of an upload lie end to end from 0 to `received`; nothing is added to an
//! upload, and nothing made of it, once it is marked to go.

use async_trait::async_trait;
use sealwire_actors::ports::{
    COMPACT_BYTES_MAX, COMPACT_ENTRIES_MAX, ChunkResult, CompactStep, LogKey, NewChunk, Position,
    SnapshotRecord, StoreError, Upload, VaultChange, VaultCounts, VaultStore,
};
use sealwire_protocol::limits::{SNAPSHOT_CHUNK_BYTES_MAX, SNAPSHOTS_MAX};
use sealwire_protocol::{Digest, Head};
use sqlx::Executor;

use super::dialect::Kind::{Bytes, Int};
use super::dialect::{Columns, Dialect, Step, Table, Value};
use super::lanes::{Lanes, Lease, Verdict};
use super::reads::{bound, seq};
use super::sql_store::{Count, SqlStore};

/// Chunks of one vault come one after the other, whatever the number of its devices.
static LOCK_VAULT: Step = Step::new(
    &[("log", Int), ("device", Bytes)],
    "select v.log from given g cross join vaults v cross join members m \
     where v.log = g.log and m.log = v.log and m.device = g.device and m.state = 2 \
     {for no key update of v}",
);

pub(super) static LOAD_VAULTS: Step = Step::new(
    &[("key", Int)],
    "select v.log, v.entries, v.bytes from given g cross join vaults v where v.log = g.key",
);

pub(super) static LOAD_SNAPSHOTS: Step = Step::new(
    &[("key", Int)],
    "select s.log, s.digest, s.head_incarnation, s.head_seq, s.head_chain, s.size, s.author, s.seq, \
        s.made_at, s.confirmed \
     from given g cross join snapshots s where s.log = g.key and s.seq >= 0 and s.seq > 0",
);

pub(super) static UPSERT_VAULTS: Step = Step::new(
    &[("log", Int), ("entries", Int), ("bytes", Int)],
    "insert into vaults (log, entries, bytes) select log, entries, bytes from given where true \
     on conflict (log) do update set entries = excluded.entries, bytes = excluded.bytes",
);

/// An upsert on SQLite, as in [`super::changes`]. The row is there: it was claimed.
static MAKE_SNAPSHOTS: Step = Step::twofold(
    &[
        ("log", Int),
        ("digest", Bytes),
        ("seq", Int),
        ("head_incarnation", Int),
        ("head_seq", Int),
        ("head_chain", Bytes),
        ("author", Bytes),
        ("made_at", Int),
        ("confirmed", Int),
    ],
    "insert into snapshots (key, log, digest, size, received, chunks, verified, touched_at, seq, \
        head_incarnation, head_seq, head_chain, author, made_at, confirmed) \
     select s.key, s.log, s.digest, s.size, s.received, s.chunks, s.verified, s.touched_at, g.seq, \
        g.head_incarnation, g.head_seq, g.head_chain, g.author, g.made_at, g.confirmed \
     from given g cross join snapshots s \
     where s.log = g.log and s.digest = g.digest and s.seq >= 0 \
     on conflict (key) do update set seq = excluded.seq, \
        head_incarnation = excluded.head_incarnation, head_seq = excluded.head_seq, \
        head_chain = excluded.head_chain, author = excluded.author, \
        made_at = excluded.made_at, confirmed = excluded.confirmed",
    "update snapshots set seq = g.seq, head_incarnation = g.head_incarnation, \
        head_seq = g.head_seq, head_chain = g.head_chain, author = g.author, \
        made_at = g.made_at, confirmed = g.confirmed \
     from given g where snapshots.log = g.log and snapshots.digest = g.digest \
        and snapshots.seq >= 0",
);

static DROP_SNAPSHOTS: Step = Step::new(
    &[("log", Int), ("digest", Bytes)],
    "update snapshots set seq = -1, touched_at = 0 \
     where (log, digest) in (select log, digest from given) and seq >= 0",
);

static DROP_ALL_SNAPSHOTS: Step = Step::new(
    &[("log", Int)],
    "update snapshots set seq = -1, touched_at = 0 \
     where log in (select log from given) and seq >= 0",
);

/// For the test that looks at their plans.
#[cfg(test)]
pub(super) const STEPS: &[&Step] = &[
    &LOCK_VAULT,
    &LOAD_VAULTS,
    &LOAD_SNAPSHOTS,
    &UPSERT_VAULTS,
    &MAKE_SNAPSHOTS,
    &DROP_SNAPSHOTS,
    &DROP_ALL_SNAPSHOTS,
];

/// What a batch of commits changes of vaults, as rows for statements.
pub(super) struct VaultTables<'a> {
    pub(super) counts: Table<'a>,
    pub(super) made: Table<'a>,
    pub(super) dropped: Table<'a>,
    pub(super) ended: Table<'a>,
}

impl<'a> VaultTables<'a> {
    pub(super) fn new() -> Self {
        Self {
            counts: Table::new(&UPSERT_VAULTS),
            made: Table::new(&MAKE_SNAPSHOTS),
            dropped: Table::new(&DROP_SNAPSHOTS),
            ended: Table::new(&DROP_ALL_SNAPSHOTS),
        }
    }

    pub(super) fn push(&mut self, key: LogKey, change: &'a VaultChange) -> Result<(), StoreError> {
        let log = || Value::Int(key.0);
        let VaultCounts { entries, bytes } = change.counts;
        self.counts.push([log(), Value::number(entries)?, Value::number(bytes)?]);
        for snapshot in &change.snapshots {
            self.made.push([
                log(),
                Value::bytes(&snapshot.digest.0),
                Value::number(snapshot.seq)?,
                Value::Int(snapshot.head.incarnation.cast_signed()),
                Value::number(snapshot.head.seq)?,
                Value::bytes(&snapshot.head.chain.0),
                Value::bytes(&snapshot.author.0),
                Value::number(snapshot.at)?,
                Value::Int(snapshot.confirmed.into()),
            ]);
        }
        for digest in &change.dropped {
            self.dropped.push([log(), Value::bytes(&digest.0)]);
        }
        Ok(())
    }

    /// The log ends: its snapshots go with it.
    pub(super) fn push_ended(&mut self, key: LogKey) {
        self.ended.push([Value::Int(key.0)]);
    }
}

const COUNT_SNAPSHOTS: &str = "select count(*), cast(coalesce(sum(size), 0) as bigint) \
     from snapshots where log = $1 and seq >= 0";

const FIND_UPLOAD: &str = "select size, received, chunks, verified, key from snapshots \
     where log = $1 and digest = $2 and seq >= 0";

const INSERT_UPLOAD: &str = "insert into snapshots (log, digest, size, received, chunks, verified, \
        touched_at, seq, head_incarnation, head_seq, head_chain, author, made_at, confirmed) \
     values ($1, $2, $3, 0, 0, 0, $4, 0, 0, 0, $5, $5, 0, 0) returning key";

const INSERT_CHUNK: &str =
    "insert into snapshot_chunks (snapshot, start, bytes) values ($1, $2, $3)";

const EXTEND_UPLOAD: &str = "update snapshots set received = $2, chunks = chunks + 1, \
        touched_at = $3 where key = $1";

const VERIFY_UPLOAD: &str =
    "update snapshots set verified = 1 where log = $1 and digest = $2 and seq >= 0";

const FORGET_UPLOAD: &str = "update snapshots set seq = -1, touched_at = 0 \
     where log = $1 and digest = $2 and seq = 0";

const CLAIM_UPLOAD: &str = "update snapshots set touched_at = $3 \
     where log = $1 and digest = $2 and seq >= 0 and verified = 1 \
     returning size, received, chunks, verified";

const READ_CHUNKS: &str = "select c.start, c.bytes from snapshots s \
     join snapshot_chunks c on c.snapshot = s.key \
     where s.log = $1 and s.digest = $2 and s.seq >= 0 \
        and c.start > $3 - $5 and c.start < $3 + $4 and c.start + length(c.bytes) > $3 \
     order by c.start";

const COUNTS: &str = "select entries, bytes from vaults where log = $1";

const SNAPSHOTS: &str = "select log, digest, head_incarnation, head_seq, head_chain, size, author, \
        seq, made_at, confirmed \
     from snapshots where log = $1 and seq >= 0 and seq > 0 order by seq desc limit $2 + 0";

/// Vaults in turn, each with its floor and with the newest head that a confirmed snapshot has. The guard
/// is at or above the newest entry by which a device went.
const COVERED: &str = "with looked as (select log from vaults where log > $1 order by log limit $3 + 0) \
     select v.log, l.floor_seq, (select max(s.head_seq) from snapshots s \
        where s.log = v.log and s.seq >= 0 and s.seq > 0 and (s.confirmed = 1 or (s.made_at < $2 and \
            s.seq > l.guard_seq and \
            (select count(*) from members m where m.log = v.log and m.state = 2) = 1 and \
            exists (select 1 from members m where m.log = v.log and m.device = s.author \
                and m.state = 2)))) \
     from looked v join logs l on l.key = v.log order by v.log";

/// How much of what lies above the floor `$2` and up to `$3` goes with one step: how far, how many
/// entries, and their bytes.
const STRETCH: &str = "select max(p.seq), \
        cast(coalesce(sum(p.goes), 0) as bigint), cast(coalesce(sum(p.bytes), 0) as bigint) from ( \
        select e.seq, coalesce(length(b.body), 0) as bytes, \
            case when e.control_body is null then 1 else 0 end as goes, \
            sum(coalesce(length(b.body), 0)) over (order by e.seq rows unbounded preceding) as run, \
            row_number() over (order by e.seq rows unbounded preceding) as place \
        from entries e left join bodies b on b.log = e.log and b.seq = e.seq \
        where e.log = $1 and e.seq > $2 and e.seq <= $3 order by e.seq limit $4 + 0) p \
     where p.run <= $5 or p.place = 1";

/// The condition stands outside as well: a row that changed while it was waited for is looked at
/// again there.
const ABANDON_UPLOADS: &str = "update snapshots set seq = -1, touched_at = 0 \
     where seq = 0 and touched_at < $1 and key in ( \
        select key from snapshots where seq = 0 and touched_at < $1 limit $2 + 0)";

const GOING: &str = "select key from snapshots where seq < 0 order by key limit $1 + 0";

const DELETE_CHUNKS: &str = "delete from snapshot_chunks where snapshot = $1 and start in ( \
        select start from snapshot_chunks where snapshot = $1 order by start limit $2 + 0) \
     returning start";

const DELETE_UPLOAD: &str = "delete from snapshots where key = $1 and seq < 0 returning key";

/// A snapshot from its ten columns.
pub(super) fn snapshot(row: &impl Columns) -> Result<SnapshotRecord, StoreError> {
    Ok(SnapshotRecord {
        digest: row.digest(1)?,
        head: Head {
            incarnation: row.int(2)?.cast_unsigned(),
            seq: row.number(3)?,
            chain: row.digest(4)?,
        },
        size: row.number(5)?,
        author: row.device(6)?,
        seq: row.number(7)?,
        at: row.number(8)?,
        confirmed: row.int(9)? == 1,
    })
}

fn upload(row: &impl Columns) -> Result<Upload, StoreError> {
    Ok(Upload {
        size: row.number(0)?,
        received: row.number(1)?,
        chunks: u32::try_from(row.number(2)?).map_err(|_| StoreError::Corrupt)?,
        verified: row.int(3)? == 1,
    })
}

#[async_trait]
impl<D: Count> VaultStore for SqlStore<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    async fn put_chunk(
        &self,
        key: LogKey,
        chunk: &NewChunk<'_>,
    ) -> Result<ChunkResult, StoreError> {
        self.may_write()?;
        let mut lease = self.lanes.write().await?;
        lease.begin(D::BEGIN).await?;
        let outcome = put(&mut lease, key, chunk).await;
        lease.end(outcome).await
    }

    async fn end_upload(
        &self,
        key: LogKey,
        digest: Digest,
        verified: bool,
    ) -> Result<(), StoreError> {
        self.may_write()?;
        let sql = if verified { VERIFY_UPLOAD } else { FORGET_UPLOAD };
        let values = [Value::Int(key.0), Value::bytes(&digest.0)];
        self.lanes.write().await?.rows(sql, &values).await.map(|_| ())
    }

    async fn claim_upload(
        &self,
        key: LogKey,
        digest: Digest,
        now: u64,
    ) -> Result<Option<Upload>, StoreError> {
        self.may_write()?;
        let values = [Value::Int(key.0), Value::bytes(&digest.0), Value::number(now)?];
        let rows = self.lanes.write().await?.rows(CLAIM_UPLOAD, &values).await?;
        rows.first().map(upload).transpose()
    }

    async fn read_chunk(
        &self,
        key: LogKey,
        digest: Digest,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, StoreError> {
        let values = [
            Value::Int(key.0),
            Value::bytes(&digest.0),
            Value::number(offset)?,
            bound(length),
            bound(SNAPSHOT_CHUNK_BYTES_MAX),
        ];
        let rows = self.lanes.query(READ_CHUNKS, &values).await?;
        let mut bytes = Vec::new();
        for row in &rows {
            let (start, chunk) = (row.number(0)?, row.bytes(1)?);
            let skip = (offset + bytes.len() as u64).checked_sub(start);
            let skip = skip.and_then(|skip| usize::try_from(skip).ok());
            let Some(rest) = skip.and_then(|skip| chunk.get(skip..)) else { break };
            let wanted = length - bytes.len();
            bytes.extend_from_slice(&rest[..wanted.min(rest.len())]);
        }
        Ok(bytes)
    }

    async fn vault_counts(&self, key: LogKey) -> Result<VaultCounts, StoreError> {
        let rows = self.lanes.query(COUNTS, &[Value::Int(key.0)]).await?;
        let Some(row) = rows.first() else { return Ok(VaultCounts::default()) };
        Ok(VaultCounts { entries: row.number(0)?, bytes: row.number(1)? })
    }

    async fn snapshots(&self, key: LogKey) -> Result<Vec<SnapshotRecord>, StoreError> {
        let values = [Value::Int(key.0), bound(SNAPSHOTS_MAX)];
        self.lanes.query(SNAPSHOTS, &values).await?.iter().map(snapshot).collect()
    }

    async fn due_for_compaction(
        &self,
        after: LogKey,
        alone_before: u64,
        limit: usize,
    ) -> Result<(Vec<CompactStep>, Option<LogKey>), StoreError> {
        let values = [Value::Int(after.0), seq(alone_before), bound(limit)];
        let rows = self.lanes.query(COVERED, &values).await?;
        let mut due = Vec::new();
        for row in &rows {
            let (key, floor) = (LogKey(row.int(0)?), row.number(1)?);
            let covered = row.maybe_int(2)?.map_or(0, i64::cast_unsigned);
            if covered > floor {
                due.extend(self.lanes.stretch(key, floor, covered).await?);
            }
        }
        let last = rows.last().filter(|_| rows.len() == limit);
        Ok((due, last.map(|row| row.int(0).map(LogKey)).transpose()?))
    }

    async fn sweep_snapshots(&self, before: u64, limit: usize) -> Result<u64, StoreError> {
        self.may_write()?;
        let mut lease = self.lanes.write().await?;
        lease.rows(ABANDON_UPLOADS, &[seq(before), bound(limit)]).await?;
        let mut left = limit;
        for row in lease.rows(GOING, &[bound(limit)]).await? {
            let key = row.int(0)?;
            let gone = lease.rows(DELETE_CHUNKS, &[Value::Int(key), bound(left)]).await?.len();
            left -= gone;
            if left == 0 {
                break;
            }
            // Fewer went than could have: it was the last of them.
            lease.rows(DELETE_UPLOAD, &[Value::Int(key)]).await?;
            left -= 1;
            if left == 0 {
                break;
            }
        }
        Ok((limit - left) as u64)
    }
}

impl<D: Dialect> Lanes<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    /// The next step of compaction above `floor`, of what `covered` covers.
    async fn stretch(
        &self,
        key: LogKey,
        floor: u64,
        covered: u64,
    ) -> Result<Option<CompactStep>, StoreError> {
        let values = [
            Value::Int(key.0),
            seq(floor),
            seq(covered),
            bound(COMPACT_ENTRIES_MAX),
            seq(COMPACT_BYTES_MAX),
        ];
        let rows = self.query(STRETCH, &values).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        if row.maybe_int(0)?.is_none() {
            return Ok(None);
        }
        let at = row.number(0)?;
        let gone = VaultCounts { entries: row.number(1)?, bytes: row.number(2)? };
        // None if the floor has risen over it meanwhile.
        let chain = self.chain_at(key, at).await?;
        Ok(chain.map(|chain| CompactStep {
            key,
            from: floor,
            up_to: Position { seq: at, chain },
            gone,
        }))
    }
}

async fn put<D: Dialect>(
    lease: &mut Lease<D>,
    key: LogKey,
    chunk: &NewChunk<'_>,
) -> Result<Verdict<ChunkResult>, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let mut lock = Table::new(&LOCK_VAULT);
    lock.push([Value::Int(key.0), Value::bytes(&chunk.device.0)]);
    if lease.each(lock).await?.is_empty() {
        return Ok(Verdict::Undo(ChunkResult::NotEnrolled));
    }
    let named = [Value::Int(key.0), Value::bytes(&chunk.digest.0)];
    let rows = lease.rows(FIND_UPLOAD, &named).await?;
    let found = match rows.first() {
        Some(row) => Some((upload(row)?, row.int(4)?)),
        None => None,
    };
    let known = found.map_or(
        Upload { size: chunk.size, received: 0, chunks: 0, verified: false },
        |(upload, _)| upload,
    );
    if known.size != chunk.size {
        return Ok(Verdict::Undo(ChunkResult::OtherSize));
    }
    if known.received != chunk.offset || chunk.bytes.is_empty() {
        return Ok(Verdict::Undo(ChunkResult::NotNext(known)));
    }
    let id = match found {
        Some((_, id)) => id,
        None => match begin_upload(lease, key, chunk).await? {
            Some(id) => id,
            None => return Ok(Verdict::Undo(ChunkResult::Full)),
        },
    };
    let received = known.received + chunk.bytes.len() as u64;
    let bytes = [Value::Int(id), Value::number(chunk.offset)?, Value::bytes(chunk.bytes)];
    lease.rows(INSERT_CHUNK, &bytes).await?;
    let extended = [Value::Int(id), Value::number(received)?, Value::number(chunk.now)?];
    lease.rows(EXTEND_UPLOAD, &extended).await?;
    Ok(Verdict::Keep(ChunkResult::Kept(Upload { received, chunks: known.chunks + 1, ..known })))
}

/// The row of a new upload, if the vault has room for it.
async fn begin_upload<D: Dialect>(
    lease: &mut Lease<D>,
    key: LogKey,
    chunk: &NewChunk<'_>,
) -> Result<Option<i64>, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let rows = lease.rows(COUNT_SNAPSHOTS, &[Value::Int(key.0)]).await?;
    let row = rows.first().ok_or(StoreError::Corrupt)?;
    let full = row.number(0)? >= chunk.snapshots_max as u64
        || row.number(1)?.saturating_add(chunk.size) > chunk.bytes_max;
    if full {
        return Ok(None);
    }
    let values = [
        Value::Int(key.0),
        Value::bytes(&chunk.digest.0),
        Value::number(chunk.size)?,
        Value::number(chunk.now)?,
        Value::bytes(&[]),
    ];
    let rows = lease.rows(INSERT_UPLOAD, &values).await?;
    rows.first().map(|row| row.int(0)).transpose()
}
