//! What a part of a commit changes, as rows for statements.
//!
//! Every kind of change has one statement over a list, so that a batch costs the same few statements
//! for one log as for hundreds. Which changes happen at all is decided in [`super::commit`]; in which
//! order, here.

use std::borrow::Cow;
use std::collections::BTreeMap;

use sealwire_actors::ports::{LogCommit, LogKey, MemberChange, NewEntry, StoreError};
use sealwire_protocol::DeviceKey;

use super::dialect::Kind::{Bytes, Int, Text};
use super::dialect::{Step, Table, Value};
use super::vaults::{UPSERT_VAULTS, VaultTables};

/// An upsert, because SQLite's `update … from` cannot be told to begin with the list. PostgreSQL is told
/// by `offset 0`, which keeps it from rearranging, and by the rows' places, which leave nothing to plan:
/// nobody else changes these rows while their head is locked.
static UPDATE_HEADS: Step = Step::twofold(
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
    "insert into logs (key, id, log_type, seq, chain, version, floor_seq, floor_chain, join_key, \
        guard_seq, created_at, last_entry_at) \
     select l.key, l.id, l.log_type, coalesce(g.seq, l.seq), coalesce(g.chain, l.chain), l.version, \
        coalesce(g.floor_seq, l.floor_seq), coalesce(g.floor_chain, l.floor_chain), \
        case when g.set_join_key = 1 then g.join_key else l.join_key end, \
        coalesce(g.guard_seq, l.guard_seq), l.created_at, \
        coalesce(g.last_entry_at, l.last_entry_at) \
     from given g cross join logs l where l.key = g.key \
     on conflict (key) do update set \
        seq = excluded.seq, chain = excluded.chain, last_entry_at = excluded.last_entry_at, \
        floor_seq = excluded.floor_seq, floor_chain = excluded.floor_chain, \
        guard_seq = excluded.guard_seq, join_key = excluded.join_key",
    "update logs set \
        seq = coalesce(g.seq, logs.seq), \
        chain = coalesce(g.chain, logs.chain), \
        last_entry_at = coalesce(g.last_entry_at, logs.last_entry_at), \
        floor_seq = coalesce(g.floor_seq, logs.floor_seq), \
        floor_chain = coalesce(g.floor_chain, logs.floor_chain), \
        guard_seq = coalesce(g.guard_seq, logs.guard_seq), \
        join_key = case when g.set_join_key = 1 then g.join_key else logs.join_key end \
     from given g cross join lateral ( \
        select l.ctid as place from logs l where l.key = g.key offset 0) l \
     where logs.ctid = l.place",
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

/// Upserts, as with [`UPDATE_HEADS`]. PostgreSQL's is one as well, and not by the row's place: somebody
/// who asks to join again may touch the row at any time.
static UPDATE_ACKS: Step = Step::twofold(
    &[("log", Int), ("device", Bytes), ("ack_floor", Int), ("ack_ranges", Bytes)],
    "insert into members (log, device, state, joined_seq, joined_at, reserved_at, ack_floor, \
        ack_ranges) \
     select m.log, m.device, m.state, m.joined_seq, m.joined_at, m.reserved_at, g.ack_floor, \
        g.ack_ranges \
     from given g cross join members m \
     where m.log = g.log and m.device = g.device and m.state = 2 \
     on conflict (log, device) do update set \
        ack_floor = excluded.ack_floor, ack_ranges = excluded.ack_ranges",
    "insert into members (log, device, state, joined_seq, joined_at, reserved_at, ack_floor, \
        ack_ranges) \
     select m.log, m.device, m.state, m.joined_seq, m.joined_at, m.reserved_at, g.ack_floor, \
        g.ack_ranges \
     from given g cross join lateral ( \
        select * from members m \
        where m.log = g.log and m.device = g.device and m.state = 2 offset 0) m \
     on conflict (log, device) do update set \
        ack_floor = excluded.ack_floor, ack_ranges = excluded.ack_ranges",
);

/// PostgreSQL cannot know how few rows a range of seqs is, and would rather read the whole table than
/// look for each.
static DELETE_BODIES: Step = Step::twofold(
    &[("log", Int), ("first", Int), ("last", Int)],
    "delete from bodies where (log, seq) in ( \
        select b.log, b.seq from given g cross join bodies b \
        where b.log = g.log and b.seq between g.first and g.last)",
    "delete from bodies where ctid = any(array( \
        select b.place from given g cross join lateral ( \
            select b.ctid as place from bodies b \
            where b.log = g.log and b.seq between g.first and g.last offset 0) b))",
);

/// As with [`DELETE_BODIES`].
static DELETE_ENTRIES: Step = Step::twofold(
    &[("log", Int), ("last", Int)],
    "delete from entries where control_body is null and (log, seq) in ( \
        select e.log, e.seq from given g cross join entries e \
        where e.log = g.log and e.seq <= g.last)",
    "delete from entries where ctid = any(array( \
        select e.place from given g cross join lateral ( \
            select e.ctid as place from entries e \
            where e.log = g.log and e.seq <= g.last and e.control_body is null offset 0) e))",
);

static DELETE_LOGS: Step =
    Step::new(&[("key", Int)], "delete from logs where key in (select key from given)");

static DELETE_ALL_ENTRIES: Step =
    Step::new(&[("log", Int)], "delete from entries where log in (select log from given)");

/// The changes of everyday traffic, in the order in which they are to be written: what
/// [`super::at_once`] does in one call.
pub(super) static EVERYDAY: [&Step; 7] = [
    &UPDATE_HEADS,
    &INSERT_ENTRIES,
    &INSERT_BODIES,
    &UPSERT_SENDERS,
    &UPSERT_VAULTS,
    &UPDATE_ACKS,
    &DELETE_BODIES,
];

/// For the test that looks at their plans.
#[cfg(test)]
pub(super) const STEPS: &[&Step] = &[
    &UPDATE_HEADS,
    &INSERT_ENTRIES,
    &INSERT_BODIES,
    &UPSERT_SENDERS,
    &DELETE_MEMBERS,
    &INSERT_REVOKED,
    &UPSERT_MEMBERS,
    &UPDATE_ACKS,
    &DELETE_BODIES,
    &DELETE_ENTRIES,
    &DELETE_LOGS,
    &DELETE_ALL_ENTRIES,
];

/// The rows of all parts, in the order in which they are to be written. What stands together does not
/// depend on each other.
pub(super) fn changes<'a>(parts: &[&'a LogCommit]) -> Result<[Vec<Table<'a>>; 5], StoreError> {
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
    let mut vaults = VaultTables::new();
    for part in parts {
        let log = || Value::Int(part.key.0);
        if part.ended {
            // The log first: whoever is about to reserve a place in it holds its row.
            ended.push([log()]);
            ended_entries.push([log()]);
            vaults.push_ended(part.key);
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
            vaults.push(part.key, change)?;
        }
        if let Some(floor) = part.floor {
            floors.push([log(), Value::number(floor.seq)?]);
            freed.push([log(), Value::Int(0), Value::number(floor.seq)?]);
        }
    }
    Ok([
        vec![heads, entries, bodies, senders],
        vec![gone, revoked, joined, vaults.counts],
        vec![acks, freed, floors, vaults.made, vaults.dropped],
        vec![ended],
        vec![ended_entries, ended_bodies, vaults.ended],
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
