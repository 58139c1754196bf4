//! The device's outbox: what is still to be sent, what was numbered, and the bytes that were sent.
//!
//! Content stays until the relay has appended the entry. The signed bytes stay for
//! [`SIGNED_KEPT_MS`] after that, so that a relay that was restored from a backup can be given them
//! again; those of control entries stay for ever, for membership is derived from them.

use rusqlite::{Connection, OptionalExtension, Row};
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{EntryIn, Recipients};
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::ids::Signature;
use sealwire_protocol::{Body, DeviceKey, Digest, Kind};
use serde::{Deserialize, Serialize};

use super::{StoreError, decode, encode, from_sql, to_sql};
use crate::entry::Signed;
use crate::numbering::DraftId;
use crate::seal::EpochKey;

/// How long the signed bytes of own entries are kept after they were appended, in milliseconds.
pub(crate) const SIGNED_KEPT_MS: u64 = 30 * 24 * 60 * 60 * 1000;

const WAITING: i64 = 0;
const NUMBERED: i64 = 1;
const APPENDED: i64 = 2;
const REFUSED: i64 = 3;

/// Something to be sent, before it has a number.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Draft {
    /// The first entry of a log; it is numbered when it is made.
    Found,
    /// To become a member, by the join seed of the log.
    Join,
    /// To be a member no more.
    Leave,
    /// To remove a member, with the seed of the join key that is good from then on.
    Revoke { device: DeviceKey, seed: Digest },
    /// A new content key; whether or not anybody was removed, if it is `asked` for.
    Rotate { asked: bool },
    /// The key of an epoch, to some; of the current one for 0, and then to those only that still
    /// lack it.
    Deliver { to: Vec<DeviceKey>, epoch: u32 },
    /// A request for the key of an epoch, or of the current one for 0.
    Ask { to: Vec<DeviceKey>, epoch: u32 },
    /// What the app wants to send; a receipt if there is no payload.
    Content {
        kind: u8,
        #[serde(with = "serde_bytes")]
        payload: Option<Vec<u8>>,
        to: Vec<DeviceKey>,
    },
}

impl Draft {
    /// What goes before what: joining before all, then what others need to read, then what must not
    /// wait behind content, then the rest in the order in which it came.
    fn urgency(&self) -> i64 {
        match self {
            Self::Join => 3,
            Self::Deliver { .. } | Self::Ask { .. } => 2,
            Self::Revoke { .. } | Self::Rotate { .. } => 1,
            Self::Found | Self::Leave | Self::Content { .. } => 0,
        }
    }
}

/// A draft that waits.
pub(crate) struct Waiting {
    pub(crate) id: DraftId,
    pub(crate) draft: Draft,
    /// Not to be numbered before the log was read up to here.
    pub(crate) after_seq: u64,
}

/// What has become of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// It is still to be sent, or was sent and is not answered yet.
    Waiting,
    /// It stands in the log.
    Appended {
        /// Where.
        seq: u64,
    },
    /// The relay has refused it for good.
    Refused(ErrorCode),
    /// There is none, or it was appended so long ago that it is forgotten.
    Unknown,
}

/// An own entry as it is kept.
pub(crate) struct Own {
    pub(crate) id: DraftId,
    pub(crate) count: u64,
    pub(crate) header: HeaderBytes,
    pub(crate) body: Vec<u8>,
    pub(crate) recipients: Vec<DeviceKey>,
    pub(crate) secret: Option<EpochKey>,
    pub(crate) appended: bool,
}

/// Keeps a draft.
pub(crate) fn insert(db: &Connection, log: i64, draft: &Draft) -> Result<DraftId, StoreError> {
    db.prepare_cached("insert into outbox (log, urgent, draft) values (?1, ?2, ?3)")?.execute((
        log,
        draft.urgency(),
        encode(draft)?,
    ))?;
    Ok(db.last_insert_rowid())
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

/// Whether a draft that satisfies `is` waits or is numbered.
pub(crate) fn any_unsettled(
    db: &Connection,
    log: i64,
    is: impl Fn(&Draft) -> bool,
) -> Result<bool, StoreError> {
    let mut statement =
        db.prepare_cached("select draft from outbox where log = ?1 and state in (0, 1)")?;
    let mut rows = statement.query([log])?;
    while let Some(row) = rows.next()? {
        if let Some(draft) = row.get::<_, Option<Vec<u8>>>(0)?
            && is(&decode(&draft)?)
        {
            return Ok(true);
        }
    }
    Ok(false)
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
             body = ?6, recipients = ?7, barrier = ?8, secret = ?9 where id = ?1",
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
    let (header, signature, body, recipients) = db
        .prepare_cached("select header, signature, body, recipients from outbox where id = ?1")?
        .query_row([id], |row| {
            Ok((
                row.get::<_, Vec<u8>>(0)?,
                row.get::<_, Vec<u8>>(1)?,
                row.get::<_, Vec<u8>>(2)?,
                row.get::<_, Vec<u8>>(3)?,
            ))
        })?;
    Ok(EntryIn {
        header: HeaderBytes::from_slice(&header).map_err(|_| StoreError::Damaged)?,
        body: Body(body.into()),
        signature: Some(Signature::from_slice(&signature).ok_or(StoreError::Damaged)?),
        recipients: Recipients::new(split_keys(&recipients)?).ok_or(StoreError::Damaged)?,
        totals_kind: None,
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
                 signature = null, body = null, recipients = null, barrier = 0, secret = null,
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

/// Own entries that were appended once.
pub(crate) struct Kept {
    /// The digest of the one before them; zeros if there is none.
    pub(crate) before: Digest,
    /// Their drafts and digests, in order.
    pub(crate) entries: Vec<(DraftId, Digest)>,
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

/// Whether the log of a draft is sent nothing any more.
pub(crate) fn is_blocked(db: &Connection, id: DraftId) -> Result<bool, StoreError> {
    Ok(db
        .prepare_cached(
            "select blocked from logs join outbox on outbox.log = logs.id where outbox.id = ?1",
        )?
        .query_row([id], |row| row.get(0))
        .optional()?
        .unwrap_or(false))
}

/// A payload that is not in the log: it waits, or was refused.
#[derive(Clone)]
pub struct Unsent {
    /// Its name.
    pub id: DraftId,
    /// What was to be sent.
    pub payload: Vec<u8>,
    /// To whom; empty for all.
    pub recipients: Vec<DeviceKey>,
    /// Why it was refused; none if it still waits.
    pub refused: Option<ErrorCode>,
}

/// Payloads that are not in the log, oldest first.
pub(crate) fn unsent(db: &Connection, log: i64) -> Result<Vec<Unsent>, StoreError> {
    let mut statement = db.prepare_cached(
        "select id, draft, refusal from outbox where log = ?1 and state <> 2 and draft is not null
         order by id",
    )?;
    let mut rows = statement.query([log])?;
    let mut unsent = Vec::new();
    while let Some(row) = rows.next()? {
        let draft: Draft = decode(&row.get::<_, Vec<u8>>(1)?)?;
        if let Draft::Content { payload: Some(payload), to, .. } = draft {
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

/// Drops a draft that waits without a number, or was refused. Says whether there was one.
pub(crate) fn discard(db: &Connection, id: DraftId) -> Result<bool, StoreError> {
    let changed =
        db.prepare_cached("delete from outbox where id = ?1 and state in (0, 3)")?.execute([id])?;
    Ok(changed == 1)
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

/// Keys one behind the other.
pub(crate) fn join_keys(keys: &[DeviceKey]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.0).collect()
}

/// The keys again.
pub(crate) fn split_keys(bytes: &[u8]) -> Result<Vec<DeviceKey>, StoreError> {
    if !bytes.len().is_multiple_of(DeviceKey::LEN) {
        return Err(StoreError::Damaged);
    }
    Ok(bytes.chunks_exact(DeviceKey::LEN).filter_map(DeviceKey::from_slice).collect())
}

fn names_content(header: &[u8]) -> Result<bool, StoreError> {
    let header = HeaderBytes::from_slice(header)
        .and_then(|header| header.decode())
        .map_err(|_| StoreError::Damaged)?;
    Ok(matches!(header.kind, Kind::Ring | Kind::Quiet | Kind::Bulk))
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
