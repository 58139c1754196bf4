//! The outbox, and what changes a group.

use std::time::Duration;

use rusqlite::Connection as Db;
use sealwire_protocol::limits::{NAME_BYTES_MAX, RECIPIENTS_MAX};
use sealwire_protocol::{DeviceKey, Digest, LogId};

use super::ledger::take_own;
use super::totals::say_goodbye;
use super::{Device, Outgoing, Phase, Sending, Unsent, member_row, open_row};
use crate::content::PAYLOAD_BYTES_MAX;
use crate::error::Error;
use crate::identity::JoinSeed;
use crate::numbering::DraftId;
use crate::store::logs::LogRow;
use crate::store::outbox::Draft;
use crate::store::{logs, outbox};

/// What the Totals app calls a message that it has no name for.
const UNNAMED: &str = "group";

/// Most payloads that one group's outbox holds: months of a person's writing, and at most 2.4 GB.
const UNSENT_MAX: u64 = 10_000;

impl Device {
    /// Puts a payload into the outbox: from then on it is on the disk, and is sent when it can be.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Recipients`], [`Error::NotAMember`], [`Error::OutboxFull`].
    pub async fn send(&self, log: LogId, outgoing: Outgoing) -> Result<DraftId, Error> {
        let me = self.key();
        let Outgoing { payload, mut recipients, kind, name } = outgoing;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::TooLong);
        }
        recipients.sort_unstable();
        recipients.dedup();
        if recipients.len() > RECIPIENTS_MAX || recipients.contains(&self.key()) {
            return Err(Error::Recipients);
        }
        let draft = if log.is_totals() {
            let name = name.unwrap_or_else(|| UNNAMED.to_owned());
            if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
                return Err(Error::TooLong);
            }
            Draft::Totals { name, payload, to: recipients, alone: false }
        } else {
            Draft::Content { kind: kind.to_u8(), payload: Some(payload), to: recipients }
        };
        self.shared
            .write(move |db| {
                let row = member_row(db, log)?;
                check_room(db, &row)?;
                if let Draft::Totals { payload, .. } = &draft {
                    take_own(db, &row, me, payload)?;
                }
                Ok::<_, Error>(outbox::insert(db, row.id, &draft)?)
            })
            .await
    }

    /// What has become of an entry of this device.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn sending(&self, id: DraftId) -> Result<Sending, Error> {
        self.shared.read(move |db| outbox::sending(db, id)).await
    }

    /// Waits until the relay has appended an entry of this device, and gives its seq: it is on the
    /// relay's disk then. If the relay's answer was lost, the seq is 0 of a leave, for it tells those who
    /// have left nothing more, and of an entry that it has let go of since.
    ///
    /// # Errors
    /// [`Error::Refused`] if the relay refuses it for good, [`Error::Timeout`] if it has not
    /// answered in time; the entry is still sent later. [`Error::Cloned`], [`Error::Revoked`] or
    /// [`Error::NotAMember`] if nothing of this device is sent to the group any more.
    pub async fn wait_appended(&self, id: DraftId, deadline: Duration) -> Result<u64, Error> {
        let appended = move |db: &Db| match outbox::sending(db, id)? {
            Sending::Waiting => match outbox::log_of(db, id)? {
                Some((_, true)) => Err(Error::Cloned),
                Some((Phase::Revoked, _)) => Err(Error::Revoked),
                Some((Phase::Left | Phase::Refused, _)) => Err(Error::NotAMember),
                Some((Phase::Joining | Phase::Member, _)) | None => Ok(None),
            },
            Sending::Appended { seq } => Ok(Some(seq)),
            Sending::Refused(code) => Err(Error::Refused(code)),
            Sending::Unknown => Err(Error::Unknown),
        };
        self.shared.wait_for(deadline, appended).await
    }

    /// Leaves a group, after all that is still to be sent to it.
    ///
    /// # Errors
    /// [`Error::NotAMember`].
    pub async fn leave(&self, log: LogId) -> Result<DraftId, Error> {
        let me = self.key();
        self.shared
            .write(move |db| {
                let row = open_row(db, log)?;
                // Once is enough: a second one would undo a later joining.
                if let Some(id) =
                    outbox::find_unsettled(db, row.id, |draft| *draft == Draft::Leave)?
                {
                    return Ok(id);
                }
                if log.is_totals() {
                    say_goodbye(db, &row, me)?;
                }
                Ok::<_, Error>(outbox::insert(db, row.id, &Draft::Leave)?)
            })
            .await
    }

    /// Removes a member for good, makes another join key, and another content key.
    ///
    /// # Errors
    /// [`Error::NotAMember`], [`Error::Recipients`] if the other one is no member, or is this
    /// device; [`Error::Format`] in a `totals` group.
    pub async fn revoke(&self, log: LogId, device: DeviceKey) -> Result<DraftId, Error> {
        if device == self.key() {
            return Err(Error::Recipients);
        }
        if log.is_totals() {
            return Err(Error::Format("nobody can be removed from a Totals group"));
        }
        self.shared
            .write(move |db| {
                let row = member_row(db, log)?;
                if !row.membership.has(device) {
                    return Err(Error::Recipients);
                }
                let seed = Digest(*JoinSeed::generate()?.bytes());
                let id = outbox::insert(db, row.id, &Draft::Revoke { device, seed })?;
                outbox::insert(db, row.id, &Draft::Rotate { asked: true })?;
                Ok(id)
            })
            .await
    }

    /// Makes another content key. This happens by itself when it must: after a removal.
    ///
    /// # Errors
    /// [`Error::NotAMember`], [`Error::NoKey`]; [`Error::Format`] in a `totals` group.
    pub async fn rotate(&self, log: LogId) -> Result<DraftId, Error> {
        if log.is_totals() {
            return Err(Error::Format("the key of a Totals group is never changed"));
        }
        self.put(log, |row| {
            if row.holders.epoch() == 0 {
                Err(Error::NoKey)
            } else {
                Ok(Draft::Rotate { asked: true })
            }
        })
        .await
    }

    /// Payloads that are not in the log: they wait, or were refused. The oldest come first, at most
    /// `limit`.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`].
    pub async fn unsent(&self, log: LogId, limit: usize) -> Result<Vec<Unsent>, Error> {
        self.shared
            .read(move |db| {
                let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
                Ok::<_, Error>(outbox::unsent(db, row.id, limit)?)
            })
            .await
    }

    /// Drops an entry that was refused, or that waits and was not sent yet. Says whether it did.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn discard(&self, id: DraftId) -> Result<bool, Error> {
        self.shared.write(move |db| outbox::discard(db, id)).await
    }

    /// Puts a draft into the outbox of a log that this device is a member of, or is joining.
    async fn put(
        &self,
        log: LogId,
        draft: impl FnOnce(&LogRow) -> Result<Draft, Error> + Send + 'static,
    ) -> Result<DraftId, Error> {
        self.shared
            .write(move |db| {
                let row = member_row(db, log)?;
                let draft = draft(&row)?;
                Ok::<_, Error>(outbox::insert(db, row.id, &draft)?)
            })
            .await
    }
}

/// Whether a group's outbox takes another payload.
pub(super) fn check_room(db: &Db, row: &LogRow) -> Result<(), Error> {
    if outbox::count_unsent(db, row.id)? >= UNSENT_MAX {
        return Err(Error::OutboxFull);
    }
    Ok(())
}
