//! What the relay's answers mean for what was sent.

use std::time::Duration;

use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::{Control, Digest, Failure, Kind};

use super::Result;
use super::desk::Call;
use super::log::Log;
use crate::event::Event;
use crate::numbering::{DraftId, Mark, Verdict};
use crate::seal::KeyName;
use crate::store::logs::Phase;
use crate::store::outbox::{self, Own};
use crate::store::{StoreError, keys, logs};

impl Log {
    /// An own entry stands at `seq`.
    pub(super) fn settle(
        &mut self,
        call: &mut Call<'_>,
        count: u64,
        seq: u64,
        own: &Own,
    ) -> Result<()> {
        let header = own.header.decode().map_err(|_| StoreError::Damaged)?;
        match header.kind {
            Kind::Ring | Kind::Quiet | Kind::Bulk => {
                outbox::note_addressed(call.db, self.id, &own.recipients, count)?;
            }
            Kind::Key => {
                if let (Some(secret), Ok(body)) = (&own.secret, KeyBody::decode(&own.body)) {
                    let name = KeyName { scope: body.scope, epoch: body.epoch };
                    keys::insert(call.db, self.id, name, secret, Some(seq))?;
                    self.read_first = self.read_first.max(seq);
                }
            }
            Kind::Control => {
                self.read_first = self.read_first.max(seq);
                self.on_own_control(call, seq, &own.body)?;
            }
            Kind::Totals => {}
        }
        outbox::appended(call.db, own.id, seq, call.now.ms)?;
        self.numbering.on_appended(count);
        logs::save_appended(call.db, self.id, self.numbering.appended())
    }

    /// The relay has refused the entry under `count`.
    pub(super) fn on_refused(
        &mut self,
        call: &mut Call<'_>,
        count: u64,
        failure: &Failure,
    ) -> Result<()> {
        let code = failure.code;
        if code == ErrorCode::NoSuchLog && self.has_left(call, count)? {
            return Ok(());
        }
        let verdict = self.numbering.on_refused(count, failure);
        if verdict == Verdict::Nothing {
            return Ok(());
        }
        call.desk.forget_appends(self.log, count);
        match verdict {
            Verdict::Nothing => Ok(()),
            Verdict::Again(after) => {
                if after > Duration::ZERO {
                    self.hold_until = Some(call.now.at + after);
                }
                Ok(())
            }
            Verdict::Refused(ids) => self.on_refused_for_good(call, &ids, code),
            Verdict::CatchUp(ids, head) => {
                let seq = head.map_or(0, |head| head.seq);
                self.unnumber(call, &ids, seq)
            }
            Verdict::Restore(from) => self.restore(call, from),
            Verdict::Conflict => match (failure.count, failure.digest) {
                (Some(count), Some(digest)) if self.log.is_totals() => {
                    self.adopt(call, Mark { count, digest })
                }
                (Some(newest), Some(digest)) if self.has_numbered(count, newest, digest) => {
                    self.was_let_go(call, newest)
                }
                _ => self.block(call),
            },
            Verdict::Ended(ids) => {
                self.unnumber(call, &ids, 0)?;
                if code == ErrorCode::Revoked {
                    return self.removed(call, true, failure.seq.unwrap_or(0));
                }
                if self.phase == Phase::Joining {
                    return self.on_refused_for_good(call, &ids[..1], code);
                }
                self.end(call, code)
            }
        }
    }

    /// Whether the newest entry of this device that the relay has is one that is numbered here, at or behind
    /// the refused one.
    fn has_numbered(&self, refused: u64, newest: u64, digest: Digest) -> bool {
        let found = self.numbering.find(newest);
        newest >= refused && found.is_some_and(|(_, known)| known == digest)
    }

    /// The relay does not know an entry again that it has let go of since, as its time is over. Its newest one
    /// of this device is here, so all up to that are in the log.
    fn was_let_go(&mut self, call: &mut Call<'_>, newest: u64) -> Result<()> {
        for (id, count) in self.numbering.up_to(newest) {
            let own = outbox::own(call.db, id)?;
            let header = own.header.decode().map_err(|_| StoreError::Damaged)?;
            if header.kind == Kind::Control {
                // It never lets go of these, and says where they stand.
                self.numbering.send_again_from(count);
                return Ok(());
            }
            // Where it stood the relay does not say any more.
            self.settle(call, count, 0, &own)?;
        }
        self.numbering.send_again_from(newest + 1);
        Ok(())
    }

    /// An own control entry stands: what it makes of this device is so from now on.
    fn on_own_control(&mut self, call: &mut Call<'_>, seq: u64, body: &[u8]) -> Result<()> {
        let control = Control::decode(body);
        if let Ok(Control::Join { .. } | Control::Found { .. }) = control {
            self.joined_seq = seq;
            return logs::set_joined(call.db, self.id, seq);
        }
        if control == Ok(Control::Leave) && seq > self.joined_seq {
            return self.removed(call, false, seq);
        }
        Ok(())
    }

    /// Whether the entry under `count` is this device's leaving, and has been appended: to somebody
    /// who has left, the relay says of a resend that there is no such log. Nothing else is under way
    /// then, for a leave waits until all before it is settled.
    fn has_left(&mut self, call: &mut Call<'_>, count: u64) -> Result<bool> {
        let Some((id, _)) = self.numbering.find(count) else { return Ok(false) };
        let own = outbox::own(call.db, id)?;
        if Control::decode(&own.body) != Ok(Control::Leave) {
            return Ok(false);
        }
        // Where it stands the relay does not say any more.
        self.settle(call, count, 0, &own)?;
        self.removed(call, false, 0)?;
        Ok(true)
    }

    fn on_refused_for_good(
        &mut self,
        call: &mut Call<'_>,
        ids: &[DraftId],
        code: ErrorCode,
    ) -> Result<()> {
        let Some((first, behind)) = ids.split_first() else { return Ok(()) };
        self.unnumber(call, behind, 0)?;
        if self.phase == Phase::Joining && code == ErrorCode::AlreadyMember {
            // Another process, or an earlier life of this device, has joined.
            outbox::refuse(call.db, *first, code)?;
            return self.enter(call);
        }
        self.refuse(call, *first, code)?;
        if self.phase == Phase::Joining {
            self.phase = Phase::Refused;
            logs::set_phase(call.db, self.id, self.phase)?;
        }
        Ok(())
    }

    pub(super) fn refuse(&mut self, call: &Call<'_>, id: DraftId, code: ErrorCode) -> Result<()> {
        outbox::refuse(call.db, id, code)?;
        call.tell(self.id, &Event::Refused { log: self.log, id, code })
    }

    pub(super) fn unnumber(
        &mut self,
        call: &mut Call<'_>,
        ids: &[DraftId],
        after_seq: u64,
    ) -> Result<()> {
        if outbox::unnumber(call.db, ids, after_seq)? {
            return Ok(());
        }
        // One of them was appended once, and others have seen it under its number: what comes after
        // it cannot be given that number. A person has to look at this.
        self.block(call)
    }

    /// The relay has lost entries that it had appended: it is given the same bytes again.
    fn restore(&mut self, call: &mut Call<'_>, from: u64) -> Result<()> {
        let to = self.numbering.appended().count;
        let Some(kept) = outbox::restore(call.db, self.id, from, to)? else {
            return self.block(call);
        };
        tracing::info!(log = ?self.log, from, to, "sending again what the relay has lost");
        let before = Mark { count: from - 1, digest: kept.before };
        self.numbering.restore(before, kept.entries);
        logs::save_appended(call.db, self.id, before)
    }
}
