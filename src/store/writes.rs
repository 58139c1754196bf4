//! The small writes that are no commit: founding, reserving, sweeping, the days of devices.
//!
//! Each is a short transaction of its own. They lock a device's row first and then a log's, and
//! commits never touch a device's row, so the two cannot wait for each other in a circle.
//!
//! Holds always: two devices' requests never wait for each other; two requests of one device that
//! could both take its last place do. A device's places are its rows in `members`, reserved or taken
//! up, and all of them count: new ones come to be under the lock on the device and nowhere else.

use std::collections::{BTreeMap, BTreeSet};

use sealwire_actors::ports::{
    Doorbell, FoundResult, LogCommit, LogKey, MemberChange, NewLog, ReserveResult, SenderRecord,
    StoreError,
};
use sealwire_protocol::challenge::CHALLENGE_BYTES;
use sealwire_protocol::digest::chain_start;
use sealwire_protocol::{DeviceKey, LogType};
use sqlx::Executor;

use super::commit;
use super::dialect::Kind::{Bytes, Int};
use super::dialect::{Columns, Dialect, Step, Table, Value};
use super::lanes::{Lanes, Lease, Verdict};
use super::reads::bound;

const DAY_MS: u64 = 86_400_000;

const LOG_BY_ID: &str = "select key from logs where id = $1";

/// Makes the device's row, if need be, and locks it until the transaction ends.
const LOCK_DEVICE: &str = "insert into devices (key, seen_day) values ($1, $2) \
     on conflict (key) do update set seen_day = case \
        when devices.seen_day < excluded.seen_day then excluded.seen_day \
        else devices.seen_day end";

/// Reservations count however old they are: a commit may still make them real.
const COUNT_PLACES: &str = "select count(*) from members m join logs l on l.key = m.log \
     where m.device = $1 and l.log_type = 1";

const INSERT_LOG: &str = "insert into logs (id, log_type, seq, chain, version, floor_seq, \
        floor_chain, join_key, guard_seq, created_at, last_entry_at) \
     values ($1, $2, 0, $3, 0, 0, $3, null, 0, $4, $4) on conflict (id) do nothing returning key";

/// What stands in the way of a reservation. The lock keeps the log from ending meanwhile, and lets
/// commits pass.
static LOOK_BEFORE_RESERVING: Step = Step::new(
    &[("log", Int), ("device", Bytes)],
    "select l.log_type, \
        (select r.seq from revoked r where r.log = l.key and r.device = g.device), \
        (select m.state from members m where m.log = l.key and m.device = g.device) \
     from given g cross join logs l where l.key = g.log {for key share of l}",
);

const INSERT_RESERVATION: &str = "insert into members (log, device, state, joined_seq, joined_at, \
        reserved_at, ack_floor, ack_ranges) values ($1, $2, 1, 0, 0, $3, 0, $4) \
     on conflict (log, device) do update set reserved_at = excluded.reserved_at";

/// Places of a device that nobody has come to take up. One that a commit has locked is about to be
/// taken up, and stays: waiting for it here could be waiting in a circle.
static LET_OLD_PLACES_GO: Step = Step::new(
    &[("device", Bytes), ("since", Int)],
    "delete from members where (log, device) in ( \
        select m.log, m.device from given g cross join members m \
        where m.device = g.device and m.state = 1 and m.reserved_at < g.since \
        {for update of m skip locked})",
);

/// The conditions stand outside as well: a row that changed while it was waited for is looked at
/// again there.
const SWEEP_RESERVATIONS: &str = "delete from members where state = 1 and reserved_at < $1 \
        and (log, device) in (select log, device from members \
            where state = 1 and reserved_at < $1 order by log, device limit $2 + 0) \
     returning log";

const SWEEP_IDLE_DEVICES: &str = "delete from devices where seen_day < $1 \
        and key in (select key from devices where seen_day < $1 order by key limit $2 + 0) \
     returning key";

const SWEEP_CHALLENGES: &str = "delete from challenges where expires_at < $1 \
        and challenge in (select challenge from challenges where expires_at < $1 limit $2 + 0) \
     returning expires_at";

const CLEAR_PUSH_TOKEN: &str =
    "update devices set push_platform = null, push_token = null where key = $1";

const TAKE_PUSH_TOKEN: &str = "update devices set push_platform = null, push_token = null \
     where push_token = $1 and push_platform = $2 and key <> $3";

const SET_PUSH_TOKEN: &str =
    "update devices set push_platform = $2, push_token = $3 where key = $1";

static CLAIM_CHALLENGES: Step = Step::new(
    &[("challenge", Bytes), ("expires_at", Int)],
    "insert into challenges (challenge, expires_at) select challenge, expires_at from given \
     where true on conflict (challenge) do nothing returning challenge",
);

const NEXT_DEVICES: &str = "select d.key, cast(case when d.push_token is not null \
        or exists (select 1 from members m where m.device = d.key) then 1 else 0 end as bigint) \
     from devices d where d.key > $1 order by d.key limit $2 + 0";

static DELETE_EMPTY_DEVICES: Step = Step::new(
    &[("key", Bytes)],
    "delete from devices where key in (select key from given) and push_token is null \
        and not exists (select 1 from members m where m.device = devices.key) \
     returning key",
);

/// An upsert, because SQLite's `update … from` cannot be told to begin with the list.
static TOUCH_DEVICES: Step = Step::twofold(
    &[("key", Bytes), ("day", Int)],
    "insert into devices (key, seen_day) \
     select d.key, g.day from given g cross join devices d \
     where d.key = g.key and d.seen_day < g.day on conflict (key) do update set seen_day = excluded.seen_day",
    "update devices set seen_day = g.day from given g \
     where devices.key = g.key and devices.seen_day < g.day",
);

/// For the test that looks at their plans.
#[cfg(test)]
pub(super) const STEPS: &[&Step] =
    &[&LOOK_BEFORE_RESERVING, &LET_OLD_PLACES_GO, &DELETE_EMPTY_DEVICES, &TOUCH_DEVICES];

/// A write that changes nothing, to see whether one could.
const WRITE_NOTHING: &str = "update meta set value = value where name = 'store_id'";

/// The day of a time, in days since the epoch.
pub(super) fn day(at: u64) -> u64 {
    at / DAY_MS
}

impl<D: Dialect> Lanes<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    pub(super) async fn found(
        &self,
        new: &NewLog,
        groups_max: u32,
    ) -> Result<FoundResult, StoreError> {
        let mut lease = self.write().await?;
        lease.begin(D::BEGIN).await?;
        let outcome = found(&mut lease, new, groups_max).await;
        lease.end(outcome).await
    }

    pub(super) async fn reserve(
        &self,
        key: LogKey,
        device: DeviceKey,
        groups_max: u32,
        now: u64,
        since: u64,
    ) -> Result<ReserveResult, StoreError> {
        let mut lease = self.write().await?;
        lease.begin(D::BEGIN).await?;
        let outcome = reserve(&mut lease, key, device, groups_max, now, since).await;
        lease.end(outcome).await
    }

    pub(super) async fn sweep(
        &self,
        reservations_before: u64,
        devices_before: u64,
        now: u64,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let mut lease = self.write().await?;
        let mut gone = 0;
        for (sql, before) in [
            (SWEEP_RESERVATIONS, reservations_before),
            (SWEEP_IDLE_DEVICES, day(devices_before)),
            (SWEEP_CHALLENGES, now),
        ] {
            gone += lease.rows(sql, &[Value::number(before)?, bound(limit)]).await?.len() as u64;
        }
        Ok(gone)
    }

    pub(super) async fn set_push_tokens(
        &self,
        doorbells: &[Doorbell],
        now: u64,
    ) -> Result<(), StoreError> {
        let mut lease = self.write().await?;
        lease.begin(D::BEGIN).await?;
        let outcome = set_push_tokens(&mut lease, doorbells, now).await;
        lease.end(outcome.map(Verdict::Keep)).await
    }

    pub(super) async fn claim_challenges(
        &self,
        challenges: &[([u8; CHALLENGE_BYTES], u64)],
    ) -> Result<Vec<bool>, StoreError> {
        // One row for each challenge, in one order: transactions that meet wait and do not lock up.
        let distinct: BTreeMap<&[u8; CHALLENGE_BYTES], u64> =
            challenges.iter().map(|(challenge, expires_at)| (challenge, *expires_at)).collect();
        let mut table = Table::new(&CLAIM_CHALLENGES);
        for (challenge, expires_at) in distinct {
            table.push([Value::bytes(challenge), Value::number(expires_at)?]);
        }
        let mut claimed = BTreeSet::new();
        let mut lease = self.write().await?;
        lease.begin(D::BEGIN).await?;
        let rows = lease.each(table).await;
        let rows = lease.end(rows.map(Verdict::Keep)).await?;
        for row in &rows {
            claimed.insert(row.bytes(0)?.to_vec());
        }
        Ok(challenges.iter().map(|(challenge, _)| claimed.remove(&challenge[..])).collect())
    }

    /// Looks at the `limit` devices after `after` for those on which nothing hangs, and deletes
    /// them. Gives how many, and the last one that it looked at if there may be more.
    pub(super) async fn sweep_empty_devices(
        &self,
        after: Option<DeviceKey>,
        limit: usize,
    ) -> Result<(u64, Option<DeviceKey>), StoreError> {
        let after = after.as_ref().map_or(Value::bytes(&[]), |device| Value::bytes(&device.0));
        let looked = self.read().await?.rows(NEXT_DEVICES, &[after, bound(limit)]).await?;
        let mut empty = Table::new(&DELETE_EMPTY_DEVICES);
        for row in &looked {
            if row.int(1)? == 0 {
                empty.push([Value::bytes(row.bytes(0)?)]);
            }
        }
        let gone = self.write().await?.each(empty).await?.len() as u64;
        let last = looked.last().filter(|_| looked.len() == limit);
        Ok((gone, last.map(|row| row.device(0)).transpose()?))
    }

    /// Notes the days on which devices were here, for those that have a row.
    pub(super) async fn touch_devices(&self, days: &[(DeviceKey, u64)]) -> Result<(), StoreError> {
        let mut table = Table::new(&TOUCH_DEVICES);
        for (device, day) in days {
            table.push([Value::bytes(&device.0), Value::number(*day)?]);
        }
        self.write().await?.each(table).await.map(|_| ())
    }

    /// Whether the database can be written to now; with `durably`, by a commit.
    pub(super) async fn ready(&self, durably: bool) -> Result<(), StoreError> {
        let mut lease = self.write().await?;
        lease.begin(D::BEGIN).await?;
        let written = lease.rows(WRITE_NOTHING, &[]).await;
        let verdict = if durably { Verdict::Keep(()) } else { Verdict::Undo(()) };
        lease.end(written.map(|_| verdict)).await
    }
}

async fn set_push_tokens<D: Dialect>(
    lease: &mut Lease<D>,
    doorbells: &[Doorbell],
    now: u64,
) -> Result<(), StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    for Doorbell { device, place } in doorbells {
        let key = || Value::bytes(&device.0);
        let Some((platform, token)) = place else {
            lease.rows(CLEAR_PUSH_TOKEN, &[key()]).await?;
            continue;
        };
        lease.rows(TAKE_PUSH_TOKEN, &[Value::Text(token), Value::Text(platform), key()]).await?;
        lock_device(lease, *device, now).await?;
        lease.rows(SET_PUSH_TOKEN, &[key(), Value::Text(platform), Value::Text(token)]).await?;
    }
    Ok(())
}

async fn found<D: Dialect>(
    lease: &mut Lease<D>,
    new: &NewLog,
    groups_max: u32,
) -> Result<Verdict<FoundResult>, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    if let Some(row) = lease.rows(LOG_BY_ID, &[Value::bytes(&new.id.0)]).await?.first() {
        return Ok(Verdict::Undo(FoundResult::Exists(LogKey(row.int(0)?))));
    }
    if new.log_type == LogType::Group {
        lock_device(lease, new.founder, new.entry.at).await?;
        if places(lease, new.founder).await? >= groups_max.into() {
            return Ok(Verdict::Undo(FoundResult::LimitReached));
        }
    }
    let chain = chain_start(new.id);
    let values = [
        Value::bytes(&new.id.0),
        Value::Int(new.log_type.to_u8().into()),
        Value::bytes(&chain.0),
        Value::number(new.entry.at)?,
    ];
    let Some(key) = lease.rows(INSERT_LOG, &values).await?.first().map(|row| row.int(0)) else {
        // Another founder of the same log was quicker, and has committed.
        let rows = lease.rows(LOG_BY_ID, &[Value::bytes(&new.id.0)]).await?;
        let key = rows.first().ok_or(StoreError::Unavailable)?.int(0)?;
        return Ok(Verdict::Undo(FoundResult::Exists(LogKey(key))));
    };
    let key = LogKey(key?);
    commit::write(lease, &[&first_commit(key, new)]).await?;
    Ok(Verdict::Keep(FoundResult::Created(key)))
}

/// The first entry and all that follows from it.
fn first_commit(key: LogKey, new: &NewLog) -> LogCommit {
    let mut part = LogCommit::new(key, 0, 0);
    part.entries.push(new.entry.clone());
    // The relay's own first entries, in totals groups, have no sender.
    if new.entry.sender_slot > 0 {
        part.senders.push(SenderRecord {
            slot: new.entry.sender_slot,
            device: new.founder,
            last_count: new.entry.count,
            last_digest: new.digest,
        });
    }
    let (seq, at) = (new.entry.seq, new.entry.at);
    part.members.push(MemberChange::Joined { device: new.founder, seq, at });
    part.join_key = Some(new.join_key);
    part.vault = new.vault_change();
    part
}

async fn reserve<D: Dialect>(
    lease: &mut Lease<D>,
    key: LogKey,
    device: DeviceKey,
    groups_max: u32,
    now: u64,
    since: u64,
) -> Result<Verdict<ReserveResult>, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    const GROUP: i64 = 1;
    const ACTIVE: i64 = 2;

    lock_device(lease, device, now).await?;
    let mut look = Table::new(&LOOK_BEFORE_RESERVING);
    look.push([Value::Int(key.0), Value::bytes(&device.0)]);
    let rows = lease.each(look).await?;
    let Some(row) = rows.first() else { return Ok(Verdict::Undo(ReserveResult::NoSuchLog)) };
    let refusal = if row.int(0)? != GROUP {
        Some(ReserveResult::NoSuchLog)
    } else if row.maybe_int(1)?.is_some() {
        Some(ReserveResult::Revoked(row.number(1)?))
    } else if row.maybe_int(2)? == Some(ACTIVE) {
        Some(ReserveResult::AlreadyMember)
    } else {
        None
    };
    if let Some(refusal) = refusal {
        return Ok(Verdict::Undo(refusal));
    }
    let values =
        [Value::Int(key.0), Value::bytes(&device.0), Value::number(now)?, Value::bytes(&[])];
    // The only statement here that can wait for a commit: before others hold what that may want.
    lease.rows(INSERT_RESERVATION, &values).await?;
    let mut old = Table::new(&LET_OLD_PLACES_GO);
    old.push([Value::bytes(&device.0), Value::number(since)?]);
    lease.each(old).await?;
    if places(lease, device).await? > groups_max.into() {
        return Ok(Verdict::Undo(ReserveResult::LimitReached));
    }
    Ok(Verdict::Keep(ReserveResult::Reserved))
}

/// In how many groups a device has a place, reserved or taken up.
async fn places<D: Dialect>(lease: &mut Lease<D>, device: DeviceKey) -> Result<u64, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let rows = lease.rows(COUNT_PLACES, &[Value::bytes(&device.0)]).await?;
    rows.first().map_or(Ok(0), |row| row.number(0))
}

async fn lock_device<D: Dialect>(
    lease: &mut Lease<D>,
    device: DeviceKey,
    now: u64,
) -> Result<(), StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let values = [Value::bytes(&device.0), Value::number(day(now))?];
    lease.rows(LOCK_DEVICE, &values).await.map(|_| ())
}
