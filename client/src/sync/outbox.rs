//! What this device has still to send, and what it has sent.
//!
//! An entry has its number and its bytes in here before a byte of it is sent, and the same bytes are
//! sent until the relay has answered: so a lost answer costs nothing. The bytes stay for thirty days
//! after that, so that a relay that was restored from a backup can be given them again.

use rusqlite::{Connection, OptionalExtension, Row};
use sealwire_protocol::Body;
use sealwire_protocol::frame::{EntryIn, Recipients};
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::ids::{Digest, Signature};
use sealwire_protocol::limits::BATCH_ENTRIES_MAX;

use super::error::SyncError;
use super::pack::Part;
use crate::entry::Signed;
use crate::error::StoreError;
use crate::numbering::Mark;
use crate::store::outbox::{join_keys, split_keys};

/// How long the bytes of appended changesets stay, in milliseconds: 30 days.
const KEPT_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// A changeset that has no number yet.
pub(crate) struct Waiting {
    pub(crate) id: i64,
    pub(crate) part: Part,
}

/// Entries that are sent together: in the same cut until they are answered.
pub(crate) struct Cut {
    pub(crate) entries: Vec<EntryIn>,
    /// The number of the first.
    pub(crate) first: u64,
    /// Number and digest of the last.
    pub(crate) last: Mark,
    pub(crate) rows: u64,
    /// Whether it is no changeset, but a control or key entry.
    pub(crate) besides: bool,
}

/// How much is not appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unsent {
    pub(crate) entries: u64,
    pub(crate) rows: u64,
}

/// The oldest changesets without a number, up to so many bytes.
pub(crate) fn waiting(db: &Connection, bytes_max: usize) -> Result<Vec<Waiting>, SyncError> {
    let mut statement = db.prepare_cached(
        "select id, group_part, private_part, rows, reading from sealwire_outbox where state = 0
         order by id limit ?1",
    )?;
    let limit = i64::try_from(BATCH_ENTRIES_MAX).unwrap_or(i64::MAX);
    let mut rows = statement.query([limit])?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let part = Part {
            group: row.get(1)?,
            private: row.get(2)?,
            rows: usize::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
            reading: row.get::<_, i64>(4)?.cast_unsigned(),
        };
        bytes += part.sealed_bytes();
        if !found.is_empty() && bytes > bytes_max {
            break;
        }
        found.push(Waiting { id: row.get(0)?, part });
    }
    Ok(found)
}

/// Gives a changeset (or with no id a control or key entry) its number and bytes, in a cut that is
/// named by the number of its first entry.
pub(crate) fn number(
    db: &Connection,
    id: Option<i64>,
    mark: Mark,
    cut: u64,
    signed: &Signed,
) -> Result<(), SyncError> {
    let id = match id {
        Some(id) => id,
        None => {
            // A conditional entry that came too late is made anew under the same number. A changeset
            // that a relay has lost is not: it stays, and nothing else gets its number.
            db.prepare_cached(
                "delete from sealwire_outbox where count = ?1 and state = 1 and reading is null",
            )?
            .execute([sql(mark.count)?])?;
            db.execute("insert into sealwire_outbox (state) values (1)", [])?;
            db.last_insert_rowid()
        }
    };
    let signature = signed.entry.signature.as_ref().map(|signature| signature.0.to_vec());
    db.prepare_cached(
        "update sealwire_outbox set state = 1, count = ?2, cut = ?3, digest = ?4, header = ?5,
             signature = ?6, body = ?7, recipients = ?8 where id = ?1",
    )?
    .execute((
        id,
        sql(mark.count)?,
        sql(cut)?,
        &mark.digest.0[..],
        &signed.entry.header.0[..],
        signature,
        signed.entry.body.as_ref(),
        join_keys(&signed.entry.recipients),
    ))?;
    Ok(())
}

/// The oldest entries that have numbers and are not answered.
pub(crate) fn unanswered(db: &Connection) -> Result<Option<Cut>, SyncError> {
    let mut statement = db.prepare_cached(
        "select header, body, signature, recipients, count, digest, rows, reading is null
         from sealwire_outbox
         where state = 1 and cut = (select cut from sealwire_outbox where state = 1
                                    order by count limit 1)
         order by count",
    )?;
    let mut rows = statement.query([])?;
    let mut cut: Option<Cut> = None;
    while let Some(row) = rows.next()? {
        let count = u64::try_from(row.get::<_, i64>(4)?).map_err(|_| StoreError::Damaged)?;
        let digest = Digest::from_slice(&row.get::<_, Vec<u8>>(5)?).ok_or(StoreError::Damaged)?;
        let last = Mark { count, digest };
        let new = Cut { entries: Vec::new(), first: count, last, rows: 0, besides: true };
        let cut = cut.get_or_insert(new);
        cut.last = last;
        cut.besides &= row.get::<_, bool>(7)?;
        cut.rows += u64::try_from(row.get::<_, i64>(6)?).unwrap_or(0);
        cut.entries.push(entry(row)?);
    }
    Ok(cut)
}

fn entry(row: &Row<'_>) -> Result<EntryIn, SyncError> {
    let header: Vec<u8> = row.get(0)?;
    let body: Vec<u8> = row.get(1)?;
    let signature: Vec<u8> = row.get(2)?;
    let recipients = split_keys(&row.get::<_, Vec<u8>>(3)?)?;
    Ok(EntryIn {
        header: HeaderBytes::from_slice(&header).map_err(|_| StoreError::Damaged)?,
        body: Body(body.into()),
        signature: Some(Signature::from_slice(&signature).ok_or(StoreError::Damaged)?),
        recipients: Recipients::new(recipients).ok_or(StoreError::Damaged)?,
        totals_kind: None,
    })
}

/// Entries up to a number are in the vault. If `at` says which seq some number has, the others follow
/// from it, and what they hold is noted in the history.
pub(crate) fn appended(
    db: &Connection,
    up_to: u64,
    at: Option<(u64, u64)>,
    me: i64,
    now: u64,
) -> Result<(), SyncError> {
    if let Some((count, seq)) = at {
        db.prepare_cached(
            "insert or replace into sealwire_history (seq, author, reading)
             select ?3 + count - ?2, ?4, reading from sealwire_outbox
             where state = 1 and count between ?2 and ?1 and reading is not null",
        )?
        .execute((sql(up_to)?, sql(count)?, sql(seq)?, me))?;
    }
    db.prepare_cached(
        "update sealwire_outbox set state = 2, group_part = null, private_part = null,
             appended_at = ?2, seq = ?3 + count where state = 1 and count <= ?1",
    )?
    .execute((
        sql(up_to)?,
        sql(now)?,
        at.map(|(count, seq)| seq.cast_signed() - count.cast_signed()),
    ))?;
    Ok(())
}

/// The digest of the entry with this number, and whether it is known to be in the vault.
pub(crate) fn find(db: &Connection, count: u64) -> Result<Option<(Digest, bool)>, SyncError> {
    let found: Option<(Vec<u8>, i64)> = db
        .prepare_cached("select digest, state from sealwire_outbox where count = ?1")?
        .query_row([sql(count)?], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    found
        .map(|(digest, state)| {
            let digest = Digest::from_slice(&digest).ok_or(StoreError::Damaged)?;
            Ok((digest, state == 2))
        })
        .transpose()
}

/// Takes the numbers from this one on away again. Changesets wait; what else there was is given up.
pub(crate) fn free_from(db: &Connection, count: u64) -> Result<(), SyncError> {
    db.prepare_cached(
        "delete from sealwire_outbox where state = 1 and count >= ?1
         and group_part is null and private_part is null",
    )?
    .execute([sql(count)?])?;
    db.prepare_cached(
        "update sealwire_outbox set state = 0, count = null, cut = null, digest = null,
             header = null, signature = null, body = null, recipients = null
         where state = 1 and count >= ?1",
    )?
    .execute([sql(count)?])?;
    Ok(())
}

/// The relay has lost entries from this number on: their bytes are to be sent again, one by one. Says
/// whether they are all here.
pub(crate) fn send_again(db: &Connection, from: u64) -> Result<bool, SyncError> {
    let (first, found, newest): (Option<i64>, i64, Option<i64>) = db.query_row(
        "select min(count), count(*), max(count) from sealwire_outbox where count >= ?1",
        [sql(from)?],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    let whole = first == Some(sql(from)?)
        && newest.is_some_and(|newest| newest - first.unwrap_or(0) + 1 == found);
    if whole {
        db.prepare_cached("update sealwire_outbox set state = 1, cut = count where count >= ?1")?
            .execute([sql(from)?])?;
    }
    Ok(whole)
}

/// How much is not appended.
pub(crate) fn unsent(db: &Connection) -> Result<Unsent, SyncError> {
    let sql = "select count(*), coalesce(sum(rows), 0) from sealwire_outbox where state < 2";
    let (entries, rows): (i64, i64) =
        db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let unsigned = |count: i64| u64::try_from(count).unwrap_or(0);
    Ok(Unsent { entries: unsigned(entries), rows: unsigned(rows) })
}

/// Forgets bytes of changesets that were kept for long enough.
pub(crate) fn prune(db: &Connection, now: u64) -> Result<(), SyncError> {
    db.prepare_cached(
        "delete from sealwire_outbox where state = 2 and reading is not null and appended_at < ?1",
    )?
    .execute([sql(now.saturating_sub(KEPT_MS))?])?;
    Ok(())
}

fn sql(value: u64) -> Result<i64, SyncError> {
    Ok(i64::try_from(value).map_err(|_| StoreError::Damaged)?)
}

#[cfg(test)]
mod tests {
    use sealwire_protocol::{Head, Kind, LogId};

    use super::*;
    use crate::entry::Outline;
    use crate::identity::Identity;

    fn signed(count: u64) -> Signed {
        let outline = Outline {
            log: LogId([1; 16]),
            count,
            prev: Digest::ZERO,
            kind: Kind::Ring,
            recipients: Vec::new(),
            seen: Head::NONE,
        };
        outline.sign(&Identity::from_seed(&[1; 32]), b"sealed").expect("short")
    }

    #[test]
    fn a_changeset_that_a_relay_has_lost_gives_its_number_to_nothing_else() {
        let db = Connection::open_in_memory().expect("a database");
        db.execute_batch(include_str!("tables.sql")).expect("tables");
        // The rest of a long row, which was counted with its beginning.
        db.execute(
            "insert into sealwire_outbox (group_part, rows, reading) values (x'01', 0, 5)",
            [],
        )
        .expect("a changeset");
        let numbered = |id, count| {
            let signed = signed(count);
            let transaction = db.unchecked_transaction().expect("a transaction");
            number(&db, id, Mark { count, digest: signed.digest }, count, &signed)?;
            transaction.commit().map_err(SyncError::from)
        };
        numbered(Some(1), 1).expect("its number");
        appended(&db, 1, Some((1, 7)), 1, 1000).expect("it was appended");
        assert!(send_again(&db, 1).expect("lost"), "and the relay has it no more");
        // A control entry of what the vault knew before.
        assert!(numbered(None, 1).is_err());
        let cut = unanswered(&db).expect("read").expect("it is still to be sent");
        assert_eq!((cut.entries.len(), cut.besides), (1, false));
        // What is no changeset is made anew.
        numbered(None, 2).expect("its number");
        numbered(None, 2).expect("the same");
        appended(&db, 2, None, 1, 1000).expect("both were");
        prune(&db, 1001 + KEPT_MS).expect("forgotten");
        assert!(find(&db, 1).expect("read").is_none() && find(&db, 2).expect("read").is_some());
    }
}
