//! What is known of groups, and what has come.

use std::time::Duration;

use rusqlite::Connection as Db;
use sealwire_protocol::LogId;
use sealwire_protocol::error::ErrorCode;

use super::{Device, LogInfo, Member, Phase};
use crate::engine::GROUP_KEY;
use crate::error::{Error, StoreError};
use crate::event::{Event, Received};
use crate::seal::KeyName;
use crate::store::logs::LogRow;
use crate::store::{inbox, keys, logs, outbox};

impl Device {
    /// Waits until this device is a member of a group and holds its key, so that it can read and
    /// write there.
    ///
    /// # Errors
    /// [`Error::Refused`] if the relay does not let it in, [`Error::InviterUnknown`], [`Error::Timeout`].
    pub async fn wait_ready(&self, log: LogId, deadline: Duration) -> Result<(), Error> {
        let ready = move |db: &Db| {
            let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
            match row.phase {
                Phase::Joining => Ok(None),
                Phase::Member if logs::is_stranger(db, row.id)? => Err(Error::InviterUnknown),
                Phase::Member => Ok(holds_key(db, &row)?.then_some(())),
                Phase::Left => Err(Error::NotAMember),
                Phase::Revoked => Err(Error::Revoked),
                Phase::Refused => Err(Error::Refused(
                    outbox::newest_refusal(db, row.id)?.unwrap_or(ErrorCode::Unknown),
                )),
            }
        };
        self.shared.wait_for(deadline, ready).await
    }

    /// Waits until a group was read up to an entry.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`], [`Error::Timeout`].
    pub async fn wait_read(&self, log: LogId, seq: u64, deadline: Duration) -> Result<(), Error> {
        let read = move |db: &Db| {
            let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
            Ok((row.track.position().seq >= seq).then_some(()))
        };
        self.shared.wait_for(deadline, read).await
    }

    /// Waits until a connection has nothing more to do for a group: this device holds key and history,
    /// no member is known to lack the key, and all that waits was sent. Giving takes turns, which take
    /// seconds: whoever ends a connection as soon as a group was read to its end may never give
    /// anything, and two that are never connected at the same time would wait for each other for ever.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`], [`Error::Timeout`].
    pub async fn wait_settled(&self, log: LogId, deadline: Duration) -> Result<(), Error> {
        let settled = move |db: &Db| {
            let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
            if row.blocked || !row.phase.is_open() || logs::is_stranger(db, row.id)? {
                return Ok(Some(()));
            }
            let replaces = !log.is_totals() && logs::replaces(db, row.id)?.is_some();
            let owes = !logs::asking(db, row.id)?.owed.is_empty();
            let waits = replaces || owes || outbox::any_unsettled(db, row.id, |_| true)?;
            let info = info(db, row)?;
            let whole = info.holds_key && info.holds_history && info.lacking == 0;
            Ok((whole && !waits).then_some(()))
        };
        self.shared.wait_for(deadline, settled).await
    }

    /// The members of a group, as far as it was read.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`].
    pub async fn members(&self, log: LogId) -> Result<Vec<Member>, Error> {
        self.shared
            .read(move |db| {
                let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
                let members = row.membership.members();
                Ok::<_, Error>(
                    members
                        .map(|(device, since)| Member {
                            device,
                            joined_seq: since.seq,
                            joined_at: since.at,
                        })
                        .collect(),
                )
            })
            .await
    }

    /// The logs that this device is or was a member of.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn logs(&self) -> Result<Vec<LogInfo>, Error> {
        self.shared
            .read(|db| {
                logs::list(db)?.into_iter().map(|row| info(db, row)).collect::<Result<_, Error>>()
            })
            .await
    }

    /// What is known of a log.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`].
    pub async fn log(&self, log: LogId) -> Result<LogInfo, Error> {
        self.shared.read(move |db| info(db, logs::find(db, log)?.ok_or(Error::NoSuchLog)?)).await
    }

    /// Entries that the app has not taken, of one group or of all, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn inbox(&self, log: Option<LogId>, limit: usize) -> Result<Vec<Received>, Error> {
        self.shared
            .read(move |db| {
                let told = inbox::untaken(db, log, limit)?;
                Ok::<_, Error>(
                    told.into_iter()
                        .filter_map(|told| {
                            if let Event::Entry(received) = told.event {
                                Some(received)
                            } else {
                                None
                            }
                        })
                        .collect(),
                )
            })
            .await
    }

    /// The app has taken an entry: it keeps it itself, or needs it no more.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn take(&self, received: &Received) -> Result<(), Error> {
        let (log, seq) = (received.log, received.seq);
        self.shared.write(move |db| inbox::take(db, log, seq)).await
    }
}

fn holds_key(db: &Db, row: &LogRow) -> Result<bool, StoreError> {
    if row.log.is_totals() {
        return keys::has(db, row.id, GROUP_KEY);
    }
    let Some(scope) = row.membership.scope() else { return Ok(false) };
    keys::has(db, row.id, KeyName { scope, epoch: row.holders.epoch() })
}

fn info(db: &Db, row: LogRow) -> Result<LogInfo, Error> {
    Ok(LogInfo {
        log: row.log,
        phase: row.phase,
        head: row.track.head(),
        members: row.membership.members().len(),
        epoch: row.holders.epoch(),
        holds_key: holds_key(db, &row)?,
        holds_history: !logs::wants_history(db, row.id)?,
        lacking: row.membership.members().filter(|(device, _)| row.holders.lacks(*device)).count(),
        unsent: outbox::count_unsent(db, row.id)?,
        cloned: row.blocked,
        relay: row.relay,
    })
}
