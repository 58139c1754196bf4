//! Sending: what is unsent gets keys, numbers and bytes, and goes until the relay has it.
//!
//! Holds always:
//! - an entry is in the database, with its number and bytes, before a byte of it is sent;
//! - what the relay has not answered is sent again as it was, in the same cut, or found to be there;
//! - what it refuses for good waits again, and nothing behind it is lost.

use std::time::Duration;

use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{Append, AppendBatch};
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::limits::BATCH_BYTES_MAX;
use sealwire_protocol::{ClientFrame, Digest, Failure, RelayFrame};
use tokio::time::sleep;

use super::boxes;
use super::clock::now_ms;
use super::error::SyncError;
use super::outbox::{self, Cut};
use super::report::{Phase, Progress};
use super::turn::{Turn, ended, private_scope};
use super::writer::{Writer, set_meta};
use crate::error::StoreError;
use crate::numbering::{Mark, hold, is_passing};
use crate::seal;
use crate::vault::{Vault, VaultError};
use crate::wire::{self, WireError};

/// How often in a row the relay may ask for patience before the turn is given up.
const TRIES_MAX: u32 = 8;

/// Longest that a turn waits because the relay asks for it; the next turn goes on.
const HOLD_MAX: Duration = Duration::from_secs(10);

impl Turn {
    /// Sends everything that is unsent. Says whether it could: it may lack the key to do so.
    pub(crate) async fn push(&mut self) -> Result<bool, SyncError> {
        let total = self.drain().await?;
        let mut tries = 0;
        loop {
            if let Some(cut) = self.shared.read(outbox::unanswered).await? {
                let (rows, besides) = (cut.rows, cut.besides);
                if self.send(cut).await? {
                    tries = 0;
                    self.report.sent_rows += rows;
                    let progress = Progress::of(Phase::Sending, self.report.sent_rows);
                    self.shared.progress(progress.until(total));
                    if besides {
                        // Of an earlier turn: whom it has removed must not be able to read what comes.
                        self.catch_up().await?;
                    }
                } else {
                    tries += 1;
                    if tries > TRIES_MAX {
                        return Err(WireError::Timeout(wire::Step::Answer).into());
                    }
                }
                continue;
            }
            let waiting = self.shared.read(|db| outbox::waiting(db, BATCH_BYTES_MAX)).await?;
            if waiting.is_empty() || !self.ready(&waiting).await? {
                let now = now_ms();
                self.write(move |writer, _| outbox::prune(writer.db, now)).await?;
                return Ok(waiting.is_empty());
            }
            self.number(waiting).await?;
        }
    }

    /// Makes changesets of what the app has written. Gives how many rows are unsent.
    pub(super) async fn drain(&self) -> Result<u64, SyncError> {
        let unsent = self.shared.write(|writer| {
            writer.drain()?;
            outbox::unsent(writer.db)
        });
        Ok(unsent.await?.rows)
    }

    /// Sees to it that the keys are there under which these are to be sealed. Says whether they are.
    async fn ready(&mut self, waiting: &[outbox::Waiting]) -> Result<bool, SyncError> {
        let group = self.vault.scope();
        if !self.vault.holds_key(group) {
            self.report.waits_for_key = true;
            return Ok(false);
        }
        if self.vault.scope_wants_rotation(group) {
            self.rotate(group).await?;
        }
        if waiting.iter().all(|waiting| waiting.part.private.is_none()) {
            return Ok(true);
        }
        self.ready_private().await
    }

    /// Sees to it that this person's own key is there. Says whether it is.
    pub(super) async fn ready_private(&mut self) -> Result<bool, SyncError> {
        let (scope, new) = match self.private {
            Some(private) => private,
            None => {
                // It may have been named since this turn began: in an offer.
                let log = self.vault.log();
                let private =
                    self.write(move |writer, _| private_scope(writer.db, log, writer.me)).await?;
                *self.private.insert(private)
            }
        };
        let held = self.vault.holds_key(scope);
        // Of whoever does not hold it nobody believes a rotation, unless it is to make the first one.
        let wants = if held { self.vault.scope_wants_rotation(scope) } else { new };
        if wants {
            self.rotate(scope).await?;
        }
        let held = self.vault.holds_key(scope);
        self.report.waits_for_key |= !held;
        Ok(held)
    }

    pub(super) async fn rotate(&mut self, scope: Scope) -> Result<(), SyncError> {
        self.vault.rotate_scope(&mut self.wire, scope).await.map_err(ended)?;
        self.settle().await
    }

    /// Seals and signs these, and keeps the bytes.
    async fn number(&mut self, waiting: Vec<outbox::Waiting>) -> Result<(), SyncError> {
        let (group, private) = (self.vault.scope(), self.private.map(|(scope, _)| scope));
        self.write(move |writer, vault| {
            let mut after = vault.own();
            let cut = after.count + 1;
            for outbox::Waiting { id, part } in waiting {
                let mut contents = Vec::new();
                if let Some(bytes) = &part.group {
                    contents.push((group, bytes.as_slice()));
                }
                if let (Some(bytes), Some(scope)) = (&part.private, private) {
                    contents.push((scope, bytes.as_slice()));
                }
                let signed = vault.seal_boxes(after, &contents)?;
                after = Mark { count: after.count + 1, digest: signed.digest };
                outbox::number(writer.db, Some(id), after, cut, &signed)?;
            }
            Ok(())
        })
        .await
    }

    /// Sends a cut. Says whether it is in the vault.
    async fn send(&mut self, cut: Cut) -> Result<bool, SyncError> {
        let Cut { mut entries, first, last, rows: _, besides } = cut;
        let frame: ClientFrame = if entries.len() == 1 {
            Append { entry: entries.remove(0) }.into()
        } else {
            let entries = Bounded::new(entries).ok_or(VaultError::TooLong)?;
            AppendBatch { entries }.into()
        };
        match self.wire.request(&frame).await {
            Ok(RelayFrame::Appended(appended)) if appended.log == self.vault.log() => {
                self.vault.set_own(last);
                self.report.sent += last.count + 1 - first;
                let at = Some((first, appended.seq));
                self.write(move |writer, vault| {
                    let me = writer.names.device(writer.db, writer.me)?;
                    outbox::appended(writer.db, last.count, at, me, writer.now)?;
                    writer.keep_vault(vault)
                })
                .await?;
                Ok(true)
            }
            Ok(_) => Err(VaultError::Answer.into()),
            Err(WireError::Refused(failure)) => {
                self.refused(first, besides, &failure).await.map(|()| false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Does what the relay's refusal of the entry with this number asks for. `besides` says that it is no
    /// changeset.
    async fn refused(
        &mut self,
        count: u64,
        besides: bool,
        failure: &Failure,
    ) -> Result<(), SyncError> {
        let code = failure.code;
        let expected = failure.expected.unwrap_or(count);
        if is_passing(code) {
            sleep(hold(failure).min(HOLD_MAX)).await;
            return Ok(());
        }
        if code == ErrorCode::OutOfOrder && (1..=self.vault.own().count).contains(&expected) {
            // The relay was restored from a backup: it is given back what it has lost.
            let before = expected - 1;
            let found = self.shared.read(move |db| outbox::find(db, before)).await?;
            let digest = found.map_or(Digest::ZERO, |(digest, _)| digest);
            if self.send_again(Mark { count: before, digest }).await? {
                return Ok(());
            }
        }
        if code == ErrorCode::Conflict && self.was_let_go(count, failure).await? {
            return Ok(());
        }
        if code == ErrorCode::Conflict || code == ErrorCode::OutOfOrder {
            self.shared.write(|writer| set_meta(writer.db, "cloned", true)).await?;
            return Err(SyncError::Cloned);
        }
        if code != ErrorCode::Revoked && code != ErrorCode::NoSuchLog {
            self.write(move |writer, vault| {
                writer.recover_parts(vault, count)?;
                outbox::free_from(writer.db, count)
            })
            .await?;
            if besides {
                // It was to be sent in an earlier turn, and its time is over; should it still be wanted,
                // it is made anew.
                return Ok(());
            }
        }
        Err(ended(WireError::Refused(Box::new(*failure)).into()))
    }

    /// The relay does not know an entry again that it has let go of since, as a snapshot holds it. If this
    /// device's newest entry there is one of these, all up to it are in the vault. Says whether it is.
    async fn was_let_go(&mut self, refused: u64, failure: &Failure) -> Result<bool, SyncError> {
        let (Some(count), Some(digest)) = (failure.count, failure.digest) else { return Ok(false) };
        let found = self.shared.read(move |db| outbox::find(db, count)).await?;
        if count < refused || found.is_none_or(|(known, _)| known != digest) {
            return Ok(false);
        }
        self.vault.set_own(Mark { count, digest });
        self.settle().await?;
        Ok(true)
    }

    /// The relay has nothing of this device behind `read`: what is here is to be sent again. Says whether
    /// all of it is.
    pub(super) async fn send_again(&mut self, read: Mark) -> Result<bool, SyncError> {
        self.report.history_changed = true;
        let before = self.vault.own();
        // In one transaction: what counts as appended must not be settled again by itself.
        self.vault.set_back_own(read);
        let whole = self
            .write(move |writer, vault| {
                let whole = outbox::send_again(writer.db, read.count + 1)?;
                if whole {
                    set_meta(writer.db, "vault", vault.save())?;
                }
                Ok(whole)
            })
            .await?;
        if !whole {
            self.vault.set_back_own(before);
        }
        Ok(whole)
    }
}

impl Writer<'_> {
    /// Changesets that were appended once are kept sealed alone. Those that are to get another number are
    /// opened, to be sealed anew.
    fn recover_parts(&self, vault: &Vault, from: u64) -> Result<(), SyncError> {
        let mut statement = self.db.prepare_cached(
            "select id, header, body from sealwire_outbox where state = 1 and count >= ?1 and reading is not null
             and group_part is null and private_part is null",
        )?;
        let rows: Vec<(i64, Vec<u8>, Vec<u8>)> = statement
            .query_map([from.cast_signed()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (id, header, body) in rows {
            let header = HeaderBytes::from_slice(&header).map_err(|_| StoreError::Damaged)?;
            let (mut group, mut private) = (None, None);
            for sealed in boxes::split(&body).unwrap_or_default() {
                let Ok(name) = seal::key_name(&sealed) else { continue };
                let opened = vault.open_box(self.me, header.aad(), &sealed);
                let part = opened.map_err(|_| StoreError::Damaged)?.to_vec();
                if name.scope == vault.scope() {
                    group = Some(part);
                } else {
                    private = Some(part);
                }
            }
            self.db
                .prepare_cached(
                    "update sealwire_outbox set group_part = ?2, private_part = ?3 where id = ?1",
                )?
                .execute((id, group, private))?;
        }
        Ok(())
    }
}
