//! The device's outbox: what is still to be sent, what was numbered, and the bytes that were sent.
//!
//! Content stays until the relay has appended the entry. The signed bytes stay for
//! thirty days after that, so that a relay that was restored from a backup can be given them
//! again; those of control entries stay for ever, for membership is derived from them.

mod draft;
mod settled;

use rusqlite::{Connection, OptionalExtension};
use sealwire_protocol::bounded::BoundedText;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{EntryIn, Recipients};
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::ids::Signature;
use sealwire_protocol::{Body, DeviceKey, Digest, Kind, LogId};

pub(crate) use draft::{Draft, Own, Waiting, join_keys, split_keys};
pub use draft::{Sending, Unsent};
pub(crate) use settled::*;

use super::{StoreError, decode, encode, from_sql, to_sql};
use crate::entry::Signed;
use crate::numbering::DraftId;
use crate::seal::EpochKey;
use crate::store::logs::Phase;
use crate::totals::payload::Payload;

const WAITING: i64 = 0;
const NUMBERED: i64 = 1;
const APPENDED: i64 = 2;
const REFUSED: i64 = 3;

/// Keeps a draft.
pub(crate) fn insert(db: &Connection, log: i64, draft: &Draft) -> Result<DraftId, StoreError> {
    let content = draft.is_payload();
    db.prepare_cached("insert into outbox (log, urgent, content, draft) values (?1, ?2, ?3, ?4)")?
        .execute((log, draft.urgency(), content, encode(draft)?))?;
    Ok(db.last_insert_rowid())
}

/// Keeps a message of a ledger, in the form in which the group has it: sealed natively, or as the
/// Totals app does it.
pub(crate) fn insert_ledger(
    db: &Connection,
    log: i64,
    name: LogId,
    payload: &Payload,
    kind: Kind,
    to: Vec<DeviceKey>,
) -> Result<DraftId, StoreError> {
    let message = payload.encode().map_err(|_| StoreError::Damaged)?.to_vec();
    let draft = if name.is_totals() {
        let name = payload.kind().to_owned();
        Draft::Totals { name, payload: message, to, alone: false }
    } else {
        Draft::Ledger { kind: kind.to_u8(), message, to }
    };
    insert(db, log, &draft)
}

/// The draft of a log that is to be numbered next.
pub(crate) fn next_waiting(db: &Connection, log: i64) -> Result<Option<Waiting>, StoreError> {
    let row = db
        .prepare_cached(
            "select id, draft, after_seq from outbox where log = ?1 and state = 0
             order by urgent desc, id limit 1",
        )?
        .query_row([log], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?))
        })
        .optional()?;
    let Some((id, draft, after_seq)) = row else { return Ok(None) };
    Ok(Some(Waiting { id, draft: decode(&draft)?, after_seq: from_sql(after_seq)? }))
}

/// A draft that satisfies `is`, and waits or is numbered.
pub(crate) fn find_unsettled(
    db: &Connection,
    log: i64,
    is: impl Fn(&Draft) -> bool,
) -> Result<Option<DraftId>, StoreError> {
    let mut statement = db.prepare_cached(
        "select id, draft from outbox where log = ?1 and state in (0, 1) and draft is not null",
    )?;
    let mut rows = statement.query([log])?;
    while let Some(row) = rows.next()? {
        if is(&decode(&row.get::<_, Vec<u8>>(1)?)?) {
            return Ok(Some(row.get(0)?));
        }
    }
    Ok(None)
}

/// Whether there is one.
pub(crate) fn any_unsettled(
    db: &Connection,
    log: i64,
    is: impl Fn(&Draft) -> bool,
) -> Result<bool, StoreError> {
    Ok(find_unsettled(db, log, is)?.is_some())
}

/// Gives a draft its number and bytes.
pub(crate) fn number(
    db: &Connection,
    id: DraftId,
    count: u64,
    signed: &Signed,
    barrier: bool,
    secret: Option<&EpochKey>,
) -> Result<(), StoreError> {
    let signature = signed.entry.signature.as_ref().map(|signature| signature.0.to_vec());
    db.prepare_cached(
        "update outbox set state = 1, count = ?2, digest = ?3, header = ?4, signature = ?5,
             body = ?6, recipients = ?7, barrier = ?8, secret = ?9, totals_kind = ?10 where id = ?1",
    )?
    .execute((
        id,
        to_sql(count)?,
        &signed.digest.0[..],
        &signed.entry.header.0[..],
        signature,
        signed.entry.body.as_ref(),
        join_keys(&signed.entry.recipients),
        barrier,
        secret.map(|key| key.bytes().to_vec()),
        signed.entry.totals_kind.as_ref().map(|kind| kind.to_string()),
    ))?;
    Ok(())
}

/// Those that are numbered and not settled, in order, with what must not be numbered behind.
pub(crate) fn numbered(
    db: &Connection,
    log: i64,
) -> Result<Vec<(DraftId, Digest, bool)>, StoreError> {
    let mut statement = db.prepare_cached(
        "select id, digest, barrier from outbox where log = ?1 and state = 1 order by count",
    )?;
    let mut rows = statement.query([log])?;
    let mut numbered = Vec::new();
    while let Some(row) = rows.next()? {
        let digest = Digest::from_slice(&row.get::<_, Vec<u8>>(1)?).ok_or(StoreError::Damaged)?;
        numbered.push((row.get(0)?, digest, row.get(2)?));
    }
    Ok(numbered)
}

/// The bytes of a numbered draft, as they are sent.
pub(crate) fn bytes(db: &Connection, id: DraftId) -> Result<EntryIn, StoreError> {
    let (header, signature, body, recipients, kind) = db
        .prepare_cached(
            "select header, signature, body, recipients, totals_kind from outbox where id = ?1",
        )?
        .query_row([id], |row| {
            Ok((
                row.get::<_, Vec<u8>>(0)?,
                row.get::<_, Option<Vec<u8>>>(1)?,
                row.get::<_, Vec<u8>>(2)?,
                row.get::<_, Vec<u8>>(3)?,
                row.get::<_, Option<String>>(4)?,
            ))
        })?;
    Ok(EntryIn {
        header: HeaderBytes::from_slice(&header).map_err(|_| StoreError::Damaged)?,
        body: Body(body.into()),
        signature: signature
            .map(|signature| Signature::from_slice(&signature).ok_or(StoreError::Damaged))
            .transpose()?,
        recipients: Recipients::new(split_keys(&recipients)?).ok_or(StoreError::Damaged)?,
        totals_kind: kind
            .map(|kind| BoundedText::new(kind).ok_or(StoreError::Damaged))
            .transpose()?,
    })
}

/// Takes numbers away again. Says no if one of them has no draft any more, because it was appended
/// once: then nothing has changed.
pub(crate) fn unnumber(
    db: &Connection,
    ids: &[DraftId],
    after_seq: u64,
) -> Result<bool, StoreError> {
    for id in ids {
        let has_draft: bool = db
            .prepare_cached("select draft is not null from outbox where id = ?1")?
            .query_row([id], |row| row.get(0))?;
        if !has_draft {
            return Ok(false);
        }
    }
    for id in ids {
        db.prepare_cached(
            "update outbox set state = 0, count = null, digest = null, header = null,
                 signature = null, body = null, recipients = null, totals_kind = null, barrier = 0,
                 secret = null,
                 after_seq = max(after_seq, ?2)
             where id = ?1",
        )?
        .execute((id, to_sql(after_seq)?))?;
    }
    Ok(true)
}

/// The log is read anew: nothing waits for a seq of the old history.
pub(crate) fn forget_order(db: &Connection, log: i64) -> Result<(), StoreError> {
    db.prepare_cached("update outbox set after_seq = 0 where log = ?1 and state = 0")?
        .execute([log])?;
    Ok(())
}

/// The relay, or this device itself, has refused a draft for good.
pub(crate) fn refuse(db: &Connection, id: DraftId, code: ErrorCode) -> Result<(), StoreError> {
    db.prepare_cached(
        "update outbox set state = 3, refusal = ?2, count = null, digest = null, header = null,
             signature = null, body = null, secret = null where id = ?1",
    )?
    .execute((id, code.name()))?;
    Ok(())
}

/// A draft is not wanted any more, and was not numbered.
pub(crate) fn drop_waiting(db: &Connection, id: DraftId) -> Result<(), StoreError> {
    db.prepare_cached("delete from outbox where id = ?1 and state = 0")?.execute([id])?;
    Ok(())
}

/// A draft was appended: its content goes, its bytes stay.
pub(crate) fn appended(db: &Connection, id: DraftId, seq: u64, now: u64) -> Result<(), StoreError> {
    db.prepare_cached(
        "update outbox set state = 2, draft = null, secret = null, seq = ?2, appended_at = ?3
         where id = ?1",
    )?
    .execute((id, to_sql(seq)?, to_sql(now)?))?;
    Ok(())
}

/// The code of the newest refusal in a log.
pub(crate) fn newest_refusal(db: &Connection, log: i64) -> Result<Option<ErrorCode>, StoreError> {
    let name: Option<String> = db
        .prepare_cached(
            "select refusal from outbox where log = ?1 and state = 3 order by id desc limit 1",
        )?
        .query_row([log], |row| row.get(0))
        .optional()?;
    Ok(name.map(|name| ErrorCode::from_name(&name)))
}

/// What the log of a draft is to this device, and whether it is sent nothing any more.
pub(crate) fn log_of(db: &Connection, id: DraftId) -> Result<Option<(Phase, bool)>, StoreError> {
    db.prepare_cached(
        "select phase, blocked from logs join outbox on outbox.log = logs.id where outbox.id = ?1",
    )?
    .query_row([id], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?)))
    .optional()?
    .map(|(phase, blocked)| Ok((Phase::from_sql(phase)?, blocked)))
    .transpose()
}

/// For each recipient, the newest count of an own content entry that names it: those that were
/// appended, and those that are numbered.
pub(crate) fn newest_addressed(
    db: &Connection,
    log: i64,
    recipients: &[DeviceKey],
) -> Result<Vec<u64>, StoreError> {
    let mut counts = Vec::with_capacity(recipients.len());
    for recipient in recipients {
        let count: Option<i64> = db
            .prepare_cached("select count from addressed where log = ?1 and recipient = ?2")?
            .query_row((log, &recipient.0[..]), |row| row.get(0))
            .optional()?;
        counts.push(from_sql(count.unwrap_or(0))?);
    }
    let mut statement = db.prepare_cached(
        "select count, header, recipients from outbox
         where log = ?1 and state = 1 and length(recipients) > 0 order by count",
    )?;
    let mut rows = statement.query([log])?;
    while let Some(row) = rows.next()? {
        let count = from_sql(row.get(0)?)?;
        if !names_content(&row.get::<_, Vec<u8>>(1)?)? {
            continue;
        }
        let named = split_keys(&row.get::<_, Vec<u8>>(2)?)?;
        for (recipient, newest) in recipients.iter().zip(&mut counts) {
            if named.contains(recipient) {
                *newest = count;
            }
        }
    }
    Ok(counts)
}

/// An own content entry that names these was appended.
pub(crate) fn note_addressed(
    db: &Connection,
    log: i64,
    recipients: &[DeviceKey],
    count: u64,
) -> Result<(), StoreError> {
    for recipient in recipients {
        db.prepare_cached(
            "insert into addressed (log, recipient, count) values (?1, ?2, ?3)
             on conflict (log, recipient) do update set count = max(count, excluded.count)",
        )?
        .execute((log, &recipient.0[..], to_sql(count)?))?;
    }
    Ok(())
}

fn names_content(header: &[u8]) -> Result<bool, StoreError> {
    let header = HeaderBytes::from_slice(header)
        .and_then(|header| header.decode())
        .map_err(|_| StoreError::Damaged)?;
    Ok(matches!(header.kind, Kind::Ring | Kind::Quiet | Kind::Bulk))
}
