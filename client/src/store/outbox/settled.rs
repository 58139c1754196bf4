//! What was sent: entries that were appended, and payloads that were not.

use rusqlite::{Connection, OptionalExtension, Row};
use sealwire_protocol::Digest;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::header::HeaderBytes;

use super::draft::{Draft, Kept, Own, Sending, Unsent, split_keys};
use super::{APPENDED, NUMBERED, REFUSED, WAITING};
use crate::numbering::DraftId;
use crate::seal::EpochKey;
use crate::store::{StoreError, decode, from_sql, to_sql};

/// How long the signed bytes of own entries are kept after they were appended, in milliseconds.
const SIGNED_KEPT_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// The own entry with this digest.
pub(crate) fn find_own(
    db: &Connection,
    log: i64,
    digest: Digest,
) -> Result<Option<Own>, StoreError> {
    db.prepare_cached(
        "select id, count, header, body, recipients, secret, state from outbox
         where log = ?1 and digest = ?2",
    )?
    .query_row((log, &digest.0[..]), |row| Ok(read_own(row)))
    .optional()?
    .transpose()
}

/// The own entry under this draft.
pub(crate) fn own(db: &Connection, id: DraftId) -> Result<Own, StoreError> {
    db.prepare_cached(
        "select id, count, header, body, recipients, secret, state from outbox where id = ?1",
    )?
    .query_row([id], |row| Ok(read_own(row)))?
}

/// Puts appended entries from count `from` to `to` back among the numbered, to be sent again as they
/// are; none if not all bytes are kept.
pub(crate) fn restore(
    db: &Connection,
    log: i64,
    from: u64,
    to: u64,
) -> Result<Option<Kept>, StoreError> {
    let digest_at = |count: u64| -> Result<Option<(DraftId, Digest)>, StoreError> {
        let row = db
            .prepare_cached(
                "select id, digest from outbox where log = ?1 and count = ?2 and state = 2",
            )?
            .query_row((log, to_sql(count)?), |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?))
            })
            .optional()?;
        row.map(|(id, digest)| {
            Digest::from_slice(&digest).map(|digest| (id, digest)).ok_or(StoreError::Damaged)
        })
        .transpose()
    };
    let before = match from.checked_sub(1) {
        None => return Ok(None),
        Some(0) => Digest::ZERO,
        Some(count) => match digest_at(count)? {
            Some((_, digest)) => digest,
            None => return Ok(None),
        },
    };
    let mut kept = Vec::new();
    for count in from..=to {
        let Some(found) = digest_at(count)? else { return Ok(None) };
        kept.push(found);
    }
    for (id, _) in &kept {
        db.prepare_cached("update outbox set state = 1 where id = ?1")?.execute([id])?;
    }
    Ok(Some(Kept { before, entries: kept }))
}

/// What has become of a draft.
pub(crate) fn sending(db: &Connection, id: DraftId) -> Result<Sending, StoreError> {
    let row = db
        .prepare_cached("select state, seq, refusal from outbox where id = ?1")?
        .query_row([id], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, Option<i64>>(1)?,
                row.get::<_, Option<String>>(2)?,
            ))
        })
        .optional()?;
    match row {
        None => Ok(Sending::Unknown),
        // An entry that is sent again after a relay's restore was appended all the same.
        Some((WAITING | NUMBERED, None, _)) => Ok(Sending::Waiting),
        Some((APPENDED | NUMBERED | WAITING, Some(seq), _)) => {
            Ok(Sending::Appended { seq: from_sql(seq)? })
        }
        Some((REFUSED, _, Some(name))) => Ok(Sending::Refused(ErrorCode::from_name(&name))),
        Some(_) => Err(StoreError::Damaged),
    }
}

/// Payloads that are not in the log, oldest first, at most `limit`.
pub(crate) fn unsent(db: &Connection, log: i64, limit: usize) -> Result<Vec<Unsent>, StoreError> {
    let mut statement = db.prepare_cached(
        "select id, draft, refusal from outbox
         where log = ?1 and content = 1 and draft is not null order by id limit ?2",
    )?;
    let mut rows = statement.query((log, i64::try_from(limit).unwrap_or(i64::MAX)))?;
    let mut unsent = Vec::new();
    while let Some(row) = rows.next()? {
        let draft: Draft = decode(&row.get::<_, Vec<u8>>(1)?)?;
        if let Draft::Content { payload: Some(payload), to, .. }
        | Draft::Ledger { message: payload, to, .. }
        | Draft::Totals { payload, to, .. } = draft
        {
            unsent.push(Unsent {
                id: row.get(0)?,
                payload,
                recipients: to,
                refused: row.get::<_, Option<String>>(2)?.map(|name| ErrorCode::from_name(&name)),
            });
        }
    }
    Ok(unsent)
}

/// How many payloads are not in the log.
pub(crate) fn count_unsent(db: &Connection, log: i64) -> Result<u64, StoreError> {
    from_sql(
        db.prepare_cached(
            "select count(*) from outbox where log = ?1 and content = 1 and draft is not null",
        )?
        .query_row([log], |row| row.get(0))?,
    )
}

/// Drops a draft that waits without a number, or was refused. Says whether there was one.
pub(crate) fn discard(db: &Connection, id: DraftId) -> Result<bool, StoreError> {
    let changed =
        db.prepare_cached("delete from outbox where id = ?1 and state in (0, 3)")?.execute([id])?;
    Ok(changed == 1)
}

/// Forgets bytes that were kept for long enough; those of control entries stay.
pub(crate) fn prune(db: &Connection, now: u64) -> Result<(), StoreError> {
    let before = to_sql(now.saturating_sub(SIGNED_KEPT_MS))?;
    // The byte at offset 89 of a header is the kind; 1 is control.
    db.execute(
        "update logs set pruned_seq = max(pruned_seq, coalesce((
             select max(seq) from outbox where outbox.log = logs.id and state = 2
                 and appended_at < ?1 and substr(header, 90, 1) <> x'01'), 0))",
        [before],
    )?;
    db.execute(
        "delete from outbox where state = 2 and appended_at < ?1
             and substr(header, 90, 1) <> x'01'",
        [before],
    )?;
    Ok(())
}

fn read_own(row: &Row<'_>) -> Result<Own, StoreError> {
    let secret: Option<Vec<u8>> = row.get(5)?;
    Ok(Own {
        id: row.get(0)?,
        count: from_sql(row.get(1)?)?,
        header: HeaderBytes::from_slice(&row.get::<_, Vec<u8>>(2)?)
            .map_err(|_| StoreError::Damaged)?,
        body: row.get(3)?,
        recipients: split_keys(&row.get::<_, Vec<u8>>(4)?)?,
        secret: secret
            .map(|secret| secret.try_into().map(EpochKey::from_bytes))
            .transpose()
            .map_err(|_| StoreError::Damaged)?,
        appended: row.get::<_, i64>(6)? == APPENDED,
    })
}
