//! One transaction for parts of many logs.
//!
//! The heads are locked in the order of their keys and compared; what belongs to logs whose head
//! was as expected is then written by a handful of statements over many rows ([`super::changes`]),
//! whatever the number of logs. A stale log loses its own part and nobody else's. What most commits
//! change PostgreSQL does in one call, if no log is stale ([`super::at_once`]).
//!
//! Nothing here knows what an entry means. Holds always: no row of a log is written before its head
//! has been locked and compared in the same transaction; and nobody becomes a member of a group
//! without a place in it, which was reserved and is locked ([`super::writes`]).

use std::collections::{BTreeSet, HashMap};

use sealwire_actors::ports::{CommitResult, LogCommit, LogKey, MemberChange, StoreError};
use sealwire_protocol::{DeviceKey, LogType};
use sqlx::Executor;

use super::changes::changes;
use super::dialect::Kind::{Bytes, Int};
use super::dialect::{Bound, Columns, Dialect, Step, Table, Value};
use super::lanes::{Lease, Verdict};
use super::pages::lists;

static LOCK_HEADS: Step = Step::new(
    &[("key", Int)],
    "select string_agg(h.key || ' ' || h.seq || ' ' || h.version || ' ' || h.log_type, ',') from ( \
        select l.key, l.seq, l.version, l.log_type from given g cross join logs l \
        where l.key = g.key order by l.key {for no key update of l}) h",
);

/// Places in groups, reserved or taken up. The lock keeps a reservation from being swept meanwhile.
static LOCK_PLACES: Step = Step::new(
    &[("log", Int), ("device", Bytes)],
    "select m.log, m.device from given g cross join members m \
     where m.log = g.log and m.device = g.device order by m.log, m.device {for update of m}",
);

/// For the test that looks at their plans.
#[cfg(test)]
pub(super) const STEPS: &[&Step] = &[&LOCK_HEADS, &LOCK_PLACES];

/// Commits `batch` as one transaction.
pub(super) async fn run<D: Dialect>(
    mut lease: Lease<D>,
    batch: &[LogCommit],
) -> Result<Vec<CommitResult>, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    for part in batch {
        check(part)?;
    }
    let call = D::bind_at_once(batch)?;
    let (alone, within) = if batch.iter().all(may_come_late) { (call, None) } else { (None, call) };
    if let Some(call) = alone
        && called(&mut lease, call).await?
    {
        return Ok(vec![CommitResult::Committed; batch.len()]);
    }
    lease.begin(D::BEGIN).await?;
    let outcome = run_within(&mut lease, batch, within).await;
    lease.end(outcome.map(Verdict::Keep)).await
}

/// Whether a part does no harm if it is committed after this relay has given up waiting for it: one that
/// only appends. If anything was appended meanwhile, its head is not as expected and nothing of it is
/// written; if nothing was, it is what the author's resend will find. Whatever else a part sets (acks, what
/// a vault holds) would overwrite what was set since, so it needs a transaction that ends with the
/// connection unless this relay itself says `commit`.
fn may_come_late(part: &LogCommit) -> bool {
    let LogCommit {
        key: _,
        expected_seq: _,
        expected_version: _,
        entries,
        // Where the entries' authors stand: moved by entries alone.
        senders: _,
        members,
        guard_seq,
        join_key,
        acks,
        freed,
        floor,
        vault,
        ended,
    } = part;
    let frees = !acks.is_empty() || !freed.is_empty() || floor.is_some() || *ended;
    let governs = !members.is_empty() || guard_seq.is_some() || join_key.is_some();
    !entries.is_empty() && !frees && !governs && vault.is_none()
}

/// Whether a call of [`Dialect::bind_at_once`] has written its batch.
async fn called<D: Dialect>(lease: &mut Lease<D>, call: Bound<D>) -> Result<bool, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    Ok(lease.fetch(call).await?.first().map_or(Ok(0), |row| row.int(0))? == 1)
}

/// Commits `batch` within the transaction that `lease` has begun.
async fn run_within<D: Dialect>(
    lease: &mut Lease<D>,
    batch: &[LogCommit],
    call: Option<Bound<D>>,
) -> Result<Vec<CommitResult>, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    if let Some(call) = call
        && called(lease, call).await?
    {
        return Ok(vec![CommitResult::Committed; batch.len()]);
    }
    let mut heads = Table::new(&LOCK_HEADS);
    for part in batch {
        heads.push([Value::Int(part.key.0)]);
    }
    let mut found = HashMap::with_capacity(batch.len());
    // One row for all of them: on SQLite each row would wake its reader.
    for row in lease.each(heads).await? {
        for head in row.maybe_text(0)?.map(lists).into_iter().flatten() {
            let [key, seq, version, log_type] = head?;
            let head = (seq.cast_unsigned(), version.cast_unsigned());
            found.insert(LogKey(key), (head, log_type));
        }
    }
    let mut newcomers = BTreeSet::new();
    let mut results = Vec::with_capacity(batch.len());
    for part in batch {
        // Taken out, so that a log that appears twice is stale the second time.
        let head = found.remove(&part.key);
        let matches = |(head, _)| head == (part.expected_seq, part.expected_version);
        results.push(if head.is_some_and(matches) {
            CommitResult::Committed
        } else {
            CommitResult::Stale
        });
        if head.is_some_and(|(_, log_type)| log_type == i64::from(LogType::Group.to_u8())) {
            newcomers.extend(joining(part).map(|device| (part.key, device)));
        }
    }
    if !newcomers.is_empty() {
        let admitted = lock_places(lease, &newcomers).await?;
        for (part, result) in batch.iter().zip(&mut results) {
            let place = |device| (part.key, device);
            let waits = |place: &_| newcomers.contains(place) && !admitted.contains(place);
            if joining(part).map(place).any(|place| waits(&place)) {
                *result = CommitResult::Stale;
            }
        }
    }
    let committed = |(_, result): &(_, &CommitResult)| **result == CommitResult::Committed;
    let matched: Vec<&LogCommit> =
        batch.iter().zip(&results).filter(committed).map(|(part, _)| part).collect();
    write(lease, &matched).await?;
    Ok(results)
}

/// Whom a part lets join.
fn joining(part: &LogCommit) -> impl Iterator<Item = DeviceKey> {
    part.members.iter().filter_map(|change| match change {
        MemberChange::Joined { device, .. } => Some(*device),
        MemberChange::Left { .. } | MemberChange::Revoked { .. } => None,
    })
}

/// Locks the places of these devices in these groups, and gives those that there are.
async fn lock_places<D: Dialect>(
    lease: &mut Lease<D>,
    wanted: &BTreeSet<(LogKey, DeviceKey)>,
) -> Result<BTreeSet<(LogKey, DeviceKey)>, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let mut places = Table::new(&LOCK_PLACES);
    for (log, device) in wanted {
        places.push([Value::Int(log.0), Value::bytes(&device.0)]);
    }
    let rows = lease.each(places).await?;
    rows.iter().map(|row| Ok((LogKey(row.int(0)?), row.device(1)?))).collect()
}

/// Writes parts whose heads have been locked and compared.
pub(super) async fn write<D: Dialect>(
    lease: &mut Lease<D>,
    parts: &[&LogCommit],
) -> Result<(), StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    lease.all(changes(parts)?.into()).await.map(|_| ())
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

#[cfg(test)]
mod tests {
    use sealwire_actors::ports::{MemberChange, NewEntry, Position, VaultChange};
    use sealwire_protocol::header::{HEADER_BYTES, HeaderBytes};
    use sealwire_protocol::{AckSet, Body, DeviceKey, Digest};

    use super::*;

    fn entry(seq: u64) -> NewEntry {
        NewEntry {
            seq,
            at: 0,
            header: HeaderBytes([0; HEADER_BYTES]),
            body: Body::copy_from(b"sealed"),
            control: false,
            signature: None,
            recipients: Vec::new(),
            totals_kind: None,
            chain: Digest::ZERO,
            sender_slot: 1,
            count: seq,
        }
    }

    #[test]
    fn only_what_appends_and_sets_nothing_else_may_come_late() {
        let mut appends = LogCommit::new(LogKey(1), 7, 0);
        assert!(!may_come_late(&appends));
        appends.entries.push(entry(8));
        assert!(may_come_late(&appends));
        let changes: [fn(&mut LogCommit); 8] = [
            |part| part.members.push(MemberChange::Left { device: DeviceKey([1; 32]) }),
            |part| part.floor = Some(Position { seq: 7, chain: Digest::ZERO }),
            |part| part.ended = true,
            |part| part.acks.push((DeviceKey([1; 32]), AckSet::up_to(7))),
            |part| part.freed.push((1, 7)),
            |part| part.vault = Some(VaultChange::default()),
            |part| part.guard_seq = Some(8),
            |part| part.join_key = Some(None),
        ];
        for change in changes {
            let mut part = appends.clone();
            change(&mut part);
            assert!(!may_come_late(&part));
        }
    }
}
