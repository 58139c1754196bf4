//! Recovery vaults in SQL.
//!
//! What is granted a limited number of times is decided with the row locked and written before the
//! lock ends, so that a thousand askers at once are decided one after the other, on what the one before
//! has left. The decision itself stands in `sealwire_actors::recovery::counters`.
//!
//! Holds always: an answer that grants is committed; one that does not has written nothing.

use async_trait::async_trait;
use sealwire_actors::ports::{
    Counted, NewRecovery, RecoveryId, RecoveryIds, RecoveryPut, RecoveryRecord, RecoveryStore,
    StoreError,
};
use sealwire_actors::recovery::{Counters, Locked};
use sealwire_protocol::DeviceKey;
use sqlx::Executor;

use super::dialect::Kind::Bytes;
use super::dialect::{Columns, Dialect, Step, Table, Value};
use super::failure::corrupt;
use super::lanes::{Lanes, Lease, Verdict};
use super::reads::bound;
use super::sql_store::{Count, SqlStore};

/// The two names of one code are never both stored: whoever stores looks for both.
static LOCK_VAULT: Step = Step::new(
    &[("id", Bytes)],
    "select r.failures, r.locks, r.failed_at, r.locked_until, r.fetches, r.fetches_since, r.device, \
        r.sealed \
     from given g join recovery_vaults r on r.id = g.id {for no key update of r}",
);

static LOOK_AT_COUNTERS: Step = Step::new(
    &[("id", Bytes)],
    "select r.failures, r.locks, r.failed_at, r.locked_until, r.fetches, r.fetches_since \
     from given g join recovery_vaults r on r.id = g.id",
);

static OWNERS: Step = Step::new(
    &[("id", Bytes)],
    "select r.device from given g join recovery_vaults r on r.id = g.id",
);

const PUT: &str = "insert into recovery_vaults (device, id, key_id, sealed, stored_day, failures, \
        locks, failed_at, locked_until, fetches, fetches_since, forgotten_at) \
     values ($1, $2, $3, $4, $5, 0, 0, 0, 0, 0, 0, 0) on conflict (device) do update set \
        id = excluded.id, key_id = excluded.key_id, sealed = excluded.sealed, \
        stored_day = excluded.stored_day, failures = 0, locks = 0, failed_at = 0, \
        locked_until = 0, fetches = 0, fetches_since = 0, forgotten_at = 0";

const COUNT: &str = "update recovery_vaults set failures = $2, locks = $3, failed_at = $4, \
     locked_until = $5, fetches = $6, fetches_since = $7, forgotten_at = $8 where device = $1";

const DELETE: &str = "delete from recovery_vaults where device = $1 returning stored_day";

const KEY_IDS: &str = "select key_id, count(*) from recovery_vaults group by key_id";

/// The condition stands outside as well: a row that changed while it was waited for is looked at again
/// there.
const FORGET: &str = "update recovery_vaults set failures = 0, locks = 0, failed_at = 0, \
        locked_until = 0, fetches = 0, fetches_since = 0, forgotten_at = 0 \
     where forgotten_at > 0 and forgotten_at <= $1 and device in ( \
        select device from recovery_vaults where forgotten_at > 0 and forgotten_at <= $1 \
        order by forgotten_at limit $2 + 0) \
     returning stored_day";

#[async_trait]
impl<D: Count> RecoveryStore for SqlStore<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    async fn put_recovery(&self, new: &NewRecovery) -> Result<RecoveryPut, StoreError> {
        self.may_write()?;
        match self.lanes.put_recovery(new).await {
            // Two devices with one code at the same moment: the name is the other's now.
            Err(StoreError::Refused) if self.lanes.taken(new).await? => Ok(RecoveryPut::Taken),
            outcome => outcome,
        }
    }

    async fn recovery_counters(&self, ids: RecoveryIds) -> Result<Option<Counters>, StoreError> {
        let rows = self.lanes.read().await?.each(named(&LOOK_AT_COUNTERS, &ids)).await?;
        rows.first().map(counters).transpose()
    }

    async fn count_recovery_fetch(
        &self,
        ids: RecoveryIds,
        now: u64,
    ) -> Result<Counted<RecoveryRecord>, StoreError> {
        self.may_write()?;
        self.lanes.count_recovery(ids, |counters| counters.fetch(now)).await
    }

    async fn count_recovery_failure(
        &self,
        ids: RecoveryIds,
        now: u64,
    ) -> Result<Counted<()>, StoreError> {
        self.may_write()?;
        Ok(match self.lanes.count_recovery(ids, |counters| counters.fail(now)).await? {
            Counted::Unknown => Counted::Unknown,
            Counted::Locked(locked) => Counted::Locked(locked),
            Counted::Granted(_) => Counted::Granted(()),
        })
    }

    async fn delete_recovery(&self, owner: DeviceKey) -> Result<bool, StoreError> {
        self.may_write()?;
        let gone = self.lanes.write().await?.rows(DELETE, &[Value::bytes(&owner.0)]).await?;
        Ok(!gone.is_empty())
    }

    async fn recovery_key_ids(&self) -> Result<Vec<(u64, u64)>, StoreError> {
        let rows = self.lanes.query(KEY_IDS, &[]).await?;
        // A key id uses all 64 bits.
        rows.iter().map(|row| Ok((row.int(0)?.cast_unsigned(), row.number(1)?))).collect()
    }

    async fn forget_recovery_counts(&self, now: u64, limit: usize) -> Result<u64, StoreError> {
        self.may_write()?;
        self.lanes.forget_recovery_counts(now, limit).await
    }
}

impl<D: Dialect> Lanes<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    async fn put_recovery(&self, new: &NewRecovery) -> Result<RecoveryPut, StoreError> {
        let mut lease = self.write().await?;
        lease.begin(D::BEGIN).await?;
        let outcome = put(&mut lease, new).await;
        lease.end(outcome).await
    }

    pub(super) async fn forget_recovery_counts(
        &self,
        now: u64,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let values = [Value::number(now)?, bound(limit)];
        Ok(self.write().await?.rows(FORGET, &values).await?.len() as u64)
    }

    /// Whether the code is another device's.
    async fn taken(&self, new: &NewRecovery) -> Result<bool, StoreError> {
        let owners = self.read().await?.each(named(&OWNERS, &new.ids)).await?;
        others(&owners, new.owner)
    }

    async fn count_recovery(
        &self,
        ids: RecoveryIds,
        decide: impl FnOnce(Counters) -> Result<Counters, Locked> + Send,
    ) -> Result<Counted<RecoveryRecord>, StoreError> {
        let mut lease = self.write().await?;
        lease.begin(D::BEGIN).await?;
        let outcome = count(&mut lease, ids, decide).await;
        lease.end(outcome).await
    }
}

async fn put<D: Dialect>(
    lease: &mut Lease<D>,
    new: &NewRecovery,
) -> Result<Verdict<RecoveryPut>, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let owners = lease.each(named(&OWNERS, &new.ids)).await?;
    if others(&owners, new.owner)? {
        return Ok(Verdict::Undo(RecoveryPut::Taken));
    }
    let RecoveryId(id) = &new.ids.current;
    let values = [
        Value::bytes(&new.owner.0),
        Value::bytes(id),
        Value::Int(new.key_id.cast_signed()),
        Value::bytes(&new.sealed),
        Value::number(new.day)?,
    ];
    lease.rows(PUT, &values).await?;
    Ok(Verdict::Keep(RecoveryPut::Stored))
}

async fn count<D: Dialect>(
    lease: &mut Lease<D>,
    ids: RecoveryIds,
    decide: impl FnOnce(Counters) -> Result<Counters, Locked> + Send,
) -> Result<Verdict<Counted<RecoveryRecord>>, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let rows = lease.each(named(&LOCK_VAULT, &ids)).await?;
    let Some(row) = rows.first() else { return Ok(Verdict::Undo(Counted::Unknown)) };
    let counted = match decide(counters(row)?) {
        Err(locked) => return Ok(Verdict::Undo(Counted::Locked(locked))),
        Ok(counted) => counted,
    };
    let record = RecoveryRecord { owner: row.device(6)?, sealed: row.bytes(7)?.to_vec() };
    let values = [
        Value::bytes(&record.owner.0),
        Value::Int(counted.failures.into()),
        Value::Int(counted.locks.into()),
        Value::number(counted.failed_at)?,
        Value::number(counted.locked_until)?,
        Value::Int(counted.fetches.into()),
        Value::number(counted.fetches_since)?,
        Value::number(counted.forgotten_at())?,
    ];
    lease.rows(COUNT, &values).await?;
    Ok(Verdict::Keep(Counted::Granted(record)))
}

fn named<'a>(step: &'static Step, ids: &'a RecoveryIds) -> Table<'a> {
    let mut table = Table::new(step);
    for RecoveryId(id) in ids.iter() {
        table.push([Value::bytes(id)]);
    }
    table
}

fn others(owners: &[impl Columns], owner: DeviceKey) -> Result<bool, StoreError> {
    for row in owners {
        if row.device(0)? != owner {
            return Ok(true);
        }
    }
    Ok(false)
}

fn counters(row: &impl Columns) -> Result<Counters, StoreError> {
    let small = |place| u32::try_from(row.int(place)?).map_err(|_| corrupt("a count"));
    Ok(Counters {
        failures: small(0)?,
        locks: small(1)?,
        failed_at: row.number(2)?,
        locked_until: row.number(3)?,
        fetches: small(4)?,
        fetches_since: row.number(5)?,
    })
}
