//! One transaction for parts of many logs.
//!
//! The heads are locked in the order of their keys and compared; what belongs to logs whose head
//! was as expected is then written by a handful of statements over many rows, whatever the number of
//! logs. A stale log loses its own part and nobody else's.
//!
//! Nothing here knows what an entry means. Holds always: no row of a log is written before its head
//! has been locked and compared in the same transaction.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use sealwire_actors::ports::{
    CommitResult, LogCommit, LogKey, MemberChange, NewEntry, StoreError, VaultChange, VaultCounts,
};
use sealwire_protocol::DeviceKey;
use sqlx::Executor;

use super::dialect::Kind::{Bytes, Int, Text};
use super::dialect::{Columns, Dialect, Step, Table, Value};
use super::lanes::Lease;
use super::pages::lists;

static LOCK_HEADS: Step = Step::new(
    &[("key", Int)],
    "select string_agg(h.key || ' ' || h.seq || ' ' || h.version, ',') from ( \
        select l.key, l.seq, l.version from given g join logs l on l.key = g.key \
        order by l.key {for no key update of l}) h",
);

static UPDATE_HEADS: Step = Step::new(
    &[
        ("key", Int),
        ("seq", Int),
        ("chain", Bytes),
        ("last_entry_at", Int),
        ("floor_seq", Int),
        ("floor_chain", Bytes),
        ("guard_seq", Int),
        ("set_join_key", Int),
        ("join_key", Bytes),
    ],
    "update logs set \
        seq = coalesce(g.seq, logs.seq), \
        chain = coalesce(g.chain, logs.chain), \
        last_entry_at = coalesce(g.last_entry_at, logs.last_entry_at), \
        floor_seq = coalesce(g.floor_seq, logs.floor_seq), \
        floor_chain = coalesce(g.floor_chain, logs.floor_chain), \
        guard_seq = coalesce(g.guard_seq, logs.guard_seq), \
        join_key = case when g.set_join_key = 1 then g.join_key else logs.join_key end \
     from given g where logs.key = g.key",
);

static INSERT_ENTRIES: Step = Step::new(
    &[
        ("log", Int),
        ("seq", Int),
        ("at", Int),
        ("sender_slot", Int),
        ("count", Int),
        ("header", Bytes),
        ("signature", Bytes),
        ("recipients", Bytes),
        ("chain", Bytes),
        ("control_body", Bytes),
    ],
    "insert into entries (log, seq, at, sender_slot, count, header, signature, recipients, chain, \
        control_body) \
     select log, seq, at, sender_slot, count, header, signature, recipients, chain, control_body \
     from given",
);

static INSERT_BODIES: Step = Step::new(
    &[("log", Int), ("seq", Int), ("body", Bytes), ("totals_kind", Text)],
    "insert into bodies (log, seq, body, totals_kind) select log, seq, body, totals_kind from given",
);

static UPSERT_SENDERS: Step = Step::new(
    &[("log", Int), ("slot", Int), ("device", Bytes), ("last_count", Int), ("last_digest", Bytes)],
    "insert into senders (log, slot, device, last_count, last_digest) \
     select log, slot, device, last_count, last_digest from given where true \
     on conflict (log, slot) do update set \
        last_count = excluded.last_count, last_digest = excluded.last_digest",
);

static DELETE_MEMBERS: Step = Step::new(
    &[("log", Int), ("device", Bytes)],
    "delete from members where (log, device) in (select log, device from given)",
);

static INSERT_REVOKED: Step = Step::new(
    &[("log", Int), ("device", Bytes), ("seq", Int)],
    "insert into revoked (log, device, seq) select log, device, seq from given where true \
     on conflict (log, device) do update set seq = excluded.seq",
);

static UPSERT_MEMBERS: Step = Step::new(
    &[
        ("log", Int),
        ("device", Bytes),
        ("joined_seq", Int),
        ("joined_at", Int),
        ("ack_ranges", Bytes),
    ],
    "insert into members (log, device, state, joined_seq, joined_at, reserved_at, ack_floor, \
        ack_ranges) \
     select log, device, 2, joined_seq, joined_at, 0, 0, ack_ranges from given where true \
     on conflict (log, device) do update set \
        state = excluded.state, joined_seq = excluded.joined_seq, joined_at = excluded.joined_at, \
        reserved_at = excluded.reserved_at, ack_floor = excluded.ack_floor, \
        ack_ranges = excluded.ack_ranges",
);

static UPDATE_ACKS: Step = Step::new(
    &[("log", Int), ("device", Bytes), ("ack_floor", Int), ("ack_ranges", Bytes)],
    "update members set ack_floor = g.ack_floor, ack_ranges = g.ack_ranges from given g \
     where members.log = g.log and members.device = g.device and members.state = 2",
);

static DELETE_BODIES: Step = Step::new(
    &[("log", Int), ("first", Int), ("last", Int)],
    "delete from bodies where (log, seq) in ( \
        select b.log, b.seq from given g \
        join bodies b on b.log = g.log and b.seq between g.first and g.last)",
);

static DELETE_ENTRIES: Step = Step::new(
    &[("log", Int), ("last", Int)],
    "delete from entries where control_body is null and (log, seq) in ( \
        select e.log, e.seq from given g join entries e on e.log = g.log and e.seq <= g.last)",
);

static DELETE_LOGS: Step =
    Step::new(&[("key", Int)], "delete from logs where key in (select key from given)");

static DELETE_ALL_ENTRIES: Step =
    Step::new(&[("log", Int)], "delete from entries where log in (select log from given)");

static UPSERT_VAULTS: Step = Step::new(
    &[("log", Int), ("entries", Int), ("bytes", Int)],
    "insert into vaults (log, entries, bytes) select log, entries, bytes from given where true \
     on conflict (log) do update set entries = excluded.entries, bytes = excluded.bytes",
);

static UPDATE_SNAPSHOTS: Step = Step::new(
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
    "update snapshots set seq = g.seq, head_incarnation = g.head_incarnation, \
        head_seq = g.head_seq, head_chain = g.head_chain, author = g.author, \
        made_at = g.made_at, confirmed = g.confirmed \
     from given g where snapshots.log = g.log and snapshots.digest = g.digest \
        and snapshots.seq >= 0",
);

static DROP_SNAPSHOTS: Step = Step::new(
    &[("log", Int), ("digest", Bytes)],
    "update snapshots set seq = -1, touched_at = 0 from given g \
     where snapshots.log = g.log and snapshots.digest = g.digest and snapshots.seq >= 0",
);

static DROP_ALL_SNAPSHOTS: Step = Step::new(
    &[("log", Int)],
    "update snapshots set seq = -1, touched_at = 0 from given g \
     where snapshots.log = g.log and snapshots.seq >= 0",
);

/// Commits `batch` within the transaction that `lease` has begun.
pub(super) async fn run<D: Dialect>(
    lease: &mut Lease<D>,
    batch: &[LogCommit],
) -> Result<Vec<CommitResult>, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let mut heads = Table::new(&LOCK_HEADS);
    for part in batch {
        check(part)?;
        heads.push([Value::Int(part.key.0)]);
    }
    let mut found = HashMap::with_capacity(batch.len());
    // One row for all of them: on SQLite each row would wake its reader.
    for row in lease.each(heads).await? {
        for head in row.maybe_text(0)?.map(lists).into_iter().flatten() {
            let [key, seq, version] = head?;
            found.insert(LogKey(key), (seq.cast_unsigned(), version.cast_unsigned()));
        }
    }
    let mut matched = Vec::with_capacity(batch.len());
    let results = batch
        .iter()
        .map(|part| {
            // Taken out, so that a log that appears twice is stale the second time.
            if found.remove(&part.key) == Some((part.expected_seq, part.expected_version)) {
                matched.push(part);
                CommitResult::Committed
            } else {
                CommitResult::Stale
            }
        })
        .collect();
    write(lease, &matched).await?;
    Ok(results)
}

/// Writes parts whose heads have been locked and compared.
pub(super) async fn write<D: Dialect>(
    lease: &mut Lease<D>,
    parts: &[&LogCommit],
) -> Result<(), StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    for step in steps(parts)? {
        lease.all(step).await?;
    }
    Ok(())
}

/// What no log can hold, whatever it holds now.
fn check(part: &LogCommit) -> Result<(), StoreError> {
    let mut next = part.expected_seq;
    for entry in &part.entries {
        next += 1;
        if entry.seq != next {
            return Err(StoreError::Refused);
        }
    }
    if part.floor.is_some_and(|floor| floor.seq > next) { Err(StoreError::Refused) } else { Ok(()) }
}

/// The rows of all parts, in the order in which they are to be written. What stands together does not
/// depend on each other.
fn steps<'a>(parts: &[&'a LogCommit]) -> Result<[Vec<Table<'a>>; 5], StoreError> {
    let mut heads = Table::new(&UPDATE_HEADS);
    let mut entries = Table::new(&INSERT_ENTRIES);
    let mut bodies = Table::new(&INSERT_BODIES);
    let mut senders = Table::new(&UPSERT_SENDERS);
    let mut gone = Table::new(&DELETE_MEMBERS);
    let mut revoked = Table::new(&INSERT_REVOKED);
    let mut joined = Table::new(&UPSERT_MEMBERS);
    let mut acks = Table::new(&UPDATE_ACKS);
    let mut freed = Table::new(&DELETE_BODIES);
    let mut floors = Table::new(&DELETE_ENTRIES);
    let mut ended = Table::new(&DELETE_LOGS);
    let mut ended_entries = Table::new(&DELETE_ALL_ENTRIES);
    let mut ended_bodies = Table::new(&DELETE_BODIES);
    let mut ended_snapshots = Table::new(&DROP_ALL_SNAPSHOTS);
    let mut vaults = Table::new(&UPSERT_VAULTS);
    let mut made = Table::new(&UPDATE_SNAPSHOTS);
    let mut dropped = Table::new(&DROP_SNAPSHOTS);
    for part in parts {
        let log = || Value::Int(part.key.0);
        if part.ended {
            // The log first: whoever is about to reserve a place in it holds its row.
            ended.push([log()]);
            ended_entries.push([log()]);
            ended_snapshots.push([log()]);
            ended_bodies.push([log(), Value::Int(0), Value::Int(i64::MAX)]);
            continue;
        }
        push_head(&mut heads, part)?;
        for entry in &part.entries {
            push_entry(&mut entries, &mut bodies, part.key, entry)?;
        }
        for sender in &part.senders {
            senders.push([
                log(),
                Value::Int(sender.slot.into()),
                Value::bytes(&sender.device.0),
                Value::number(sender.last_count)?,
                Value::bytes(&sender.last_digest.0),
            ]);
        }
        push_members(&mut gone, &mut revoked, &mut joined, part)?;
        for (device, acked) in &part.acks {
            let ranges = Value::Bytes(Cow::Owned(acked.stored_ranges()));
            acks.push([log(), Value::bytes(&device.0), Value::number(acked.floor())?, ranges]);
        }
        for (first, last) in &part.freed {
            freed.push([log(), Value::number(*first)?, Value::number(*last)?]);
        }
        if let Some(change) = &part.vault {
            push_vault(&mut vaults, &mut made, &mut dropped, part.key, change)?;
        }
        if let Some(floor) = part.floor {
            floors.push([log(), Value::number(floor.seq)?]);
            freed.push([log(), Value::Int(0), Value::number(floor.seq)?]);
        }
    }
    Ok([
        vec![heads, entries, bodies, senders],
        vec![gone, revoked, joined, vaults],
        vec![acks, freed, floors, made, dropped],
        vec![ended],
        vec![ended_entries, ended_bodies, ended_snapshots],
    ])
}

fn push_head<'a>(heads: &mut Table<'a>, part: &'a LogCommit) -> Result<(), StoreError> {
    let last = part.entries.last();
    if last.is_none() && part.floor.is_none() && part.guard_seq.is_none() && part.join_key.is_none()
    {
        return Ok(());
    }
    let number = |value: Option<u64>| value.map_or(Ok(Value::Null), Value::number);
    heads.push([
        Value::Int(part.key.0),
        number(last.map(|entry| entry.seq))?,
        Value::maybe(last.map(|entry| &entry.chain.0[..])),
        number(last.map(|entry| entry.at))?,
        number(part.floor.map(|floor| floor.seq))?,
        Value::maybe(part.floor.as_ref().map(|floor| &floor.chain.0[..])),
        number(part.guard_seq)?,
        Value::Int(part.join_key.is_some().into()),
        Value::maybe(part.join_key.as_ref().and_then(Option::as_ref).map(|key| &key.0[..])),
    ]);
    Ok(())
}

fn push_entry<'a>(
    entries: &mut Table<'a>,
    bodies: &mut Table<'a>,
    key: LogKey,
    entry: &'a NewEntry,
) -> Result<(), StoreError> {
    entries.push([
        Value::Int(key.0),
        Value::number(entry.seq)?,
        Value::number(entry.at)?,
        Value::Int(entry.sender_slot.into()),
        Value::number(entry.count)?,
        Value::bytes(&entry.header.0),
        Value::maybe(entry.signature.as_ref().map(|signature| &signature.0[..])),
        joined_keys(&entry.recipients),
        Value::bytes(&entry.chain.0),
        Value::maybe(entry.control.then_some(entry.body.as_ref())),
    ]);
    if !entry.control {
        bodies.push([
            Value::Int(key.0),
            Value::number(entry.seq)?,
            Value::bytes(entry.body.as_ref()),
            entry.totals_kind.as_deref().map_or(Value::Null, Value::Text),
        ]);
    }
    Ok(())
}

fn push_vault<'a>(
    vaults: &mut Table<'a>,
    made: &mut Table<'a>,
    dropped: &mut Table<'a>,
    key: LogKey,
    change: &'a VaultChange,
) -> Result<(), StoreError> {
    let log = || Value::Int(key.0);
    let VaultCounts { entries, bytes } = change.counts;
    vaults.push([log(), Value::number(entries)?, Value::number(bytes)?]);
    for snapshot in &change.snapshots {
        made.push([
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
        dropped.push([log(), Value::bytes(&digest.0)]);
    }
    Ok(())
}

/// The keys one after another; null for none.
fn joined_keys(keys: &[DeviceKey]) -> Value<'_> {
    match keys {
        [] => Value::Null,
        [one] => Value::bytes(&one.0),
        many => Value::Bytes(Cow::Owned(many.iter().flat_map(|key| key.0).collect())),
    }
}

/// For each device only its last change of membership counts; a revocation always does.
fn push_members<'a>(
    gone: &mut Table<'a>,
    revoked: &mut Table<'a>,
    joined: &mut Table<'a>,
    part: &'a LogCommit,
) -> Result<(), StoreError> {
    let (mut last, mut barred) = (BTreeMap::new(), BTreeMap::new());
    for change in &part.members {
        match change {
            MemberChange::Joined { device, seq, at } => {
                last.insert(device, Some((*seq, *at)));
            }
            MemberChange::Left { device } => {
                last.insert(device, None);
            }
            MemberChange::Revoked { device, seq } => {
                last.insert(device, None);
                barred.insert(device, *seq);
            }
        }
    }
    let log = || Value::Int(part.key.0);
    for (device, seq) in barred {
        revoked.push([log(), Value::bytes(&device.0), Value::number(seq)?]);
    }
    for (device, change) in last {
        let device = Value::bytes(&device.0);
        if let Some((seq, at)) = change {
            let (seq, at) = (Value::number(seq)?, Value::number(at)?);
            joined.push([log(), device, seq, at, Value::bytes(&[])]);
        } else {
            gone.push([log(), device]);
        }
    }
    Ok(())
}
