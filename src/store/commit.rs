//! One transaction for parts of many logs.
//!
//! The heads are locked in the order of their keys and compared; what belongs to logs whose head
//! was as expected is then written by a handful of statements over many rows ([`super::changes`]),
//! whatever the number of logs. A stale log loses its own part and nobody else's.
//!
//! Nothing here knows what an entry means. Holds always: no row of a log is written before its head
//! has been locked and compared in the same transaction.

use std::collections::HashMap;

use sealwire_actors::ports::{CommitResult, LogCommit, LogKey, StoreError};
use sqlx::Executor;

use super::changes::changes;
use super::dialect::Kind::Int;
use super::dialect::{Columns, Dialect, Step, Table, Value};
use super::lanes::Lease;
use super::pages::lists;

static LOCK_HEADS: Step = Step::new(
    &[("key", Int)],
    "select string_agg(h.key || ' ' || h.seq || ' ' || h.version, ',') from ( \
        select l.key, l.seq, l.version from given g cross join logs l where l.key = g.key \
        order by l.key {for no key update of l}) h",
);

/// For the test that looks at their plans.
#[cfg(test)]
pub(super) const STEPS: &[&Step] = &[&LOCK_HEADS];

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
