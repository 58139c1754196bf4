//! What a device sends to a `totals` group: messages, sealed when they get their number, and the wish
//! to join or leave, which has none.

use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{JoinTotals, LeaveTotals};
use sealwire_protocol::{DeviceKey, Kind};

use super::super::Result;
use super::super::desk::{Asked, Call};
use super::super::log::{Log, Subscription};
use super::super::sending::Next;
use crate::numbering::DraftId;
use crate::store::StoreError;
use crate::store::logs::Phase;
use crate::store::outbox::{self, Draft, Waiting};
use crate::totals::seal::{PairKey, SealError};

impl Log {
    /// Gives the next draft its number, or asks the relay for what has none, if its time has come.
    pub(in crate::engine) fn number_totals(
        &mut self,
        call: &mut Call<'_>,
        waiting: Waiting,
    ) -> Result<Next> {
        let Waiting { id, draft, .. } = waiting;
        match draft {
            Draft::Join => {
                if self.phase != Phase::Joining {
                    outbox::drop_waiting(call.db, id)?;
                    return Ok(Next::Again);
                }
                if !self.membership_asked && call.has_room() {
                    self.membership_asked = true;
                    call.ask(Asked::Join(self.log, id), JoinTotals { log: self.log });
                }
                Ok(Next::Waits)
            }
            Draft::Leave => {
                let ready = self.numbering.unsettled() == 0 && !self.membership_asked;
                if ready && call.has_room() {
                    self.membership_asked = true;
                    self.leaving = true;
                    call.ask(Asked::Leave(self.log), LeaveTotals { log: self.log });
                }
                Ok(Next::Waits)
            }
            Draft::Totals { name, payload, to, alone } => {
                if self.phase != Phase::Member || self.subscription != Subscription::Drained {
                    return Ok(Next::Waits);
                }
                self.number_message(call, id, &name, &payload, to, alone)
            }
            // What native groups are made of.
            Draft::Found
            | Draft::Revoke { .. }
            | Draft::Rotate { .. }
            | Draft::Deliver { .. }
            | Draft::Ask { .. }
            | Draft::Ledger { .. }
            | Draft::Content { .. } => {
                self.refuse(call, id, ErrorCode::Unsupported)?;
                Ok(Next::Again)
            }
        }
    }

    fn is_leaving(&self, call: &Call<'_>) -> Result<bool> {
        outbox::any_unsettled(call.db, self.id, |draft| *draft == Draft::Leave)
    }

    fn number_message(
        &mut self,
        call: &mut Call<'_>,
        id: DraftId,
        name: &str,
        payload: &[u8],
        to: Vec<DeviceKey>,
        alone: bool,
    ) -> Result<Next> {
        let wanted = !to.is_empty();
        // As the relay does for phones: who is gone is not named.
        let mut to: Vec<DeviceKey> =
            to.into_iter().filter(|device| self.membership.has(*device)).collect();
        to.sort_unstable();
        to.dedup();
        if wanted && to.is_empty() {
            self.refuse(call, id, ErrorCode::BadAudience)?;
            return Ok(Next::Again);
        }
        let sealed = match (alone, to.as_slice()) {
            (true, [peer]) => {
                PairKey::between(call.device, *peer).and_then(|key| key.seal(payload))
            }
            (true, _) => Err(SealError::Peer),
            (false, _) => match self.group_key(call)? {
                Some(key) => key.seal(payload),
                // It is sent when somebody has let this device in, unless it goes before that.
                None if self.is_leaving(call)? => {
                    self.refuse(call, id, ErrorCode::NoSuchLog)?;
                    return Ok(Next::Again);
                }
                None => return Ok(Next::Waits),
            },
        };
        let body = match sealed {
            Ok(body) => body,
            Err(SealError::NoRandomness(_)) => return Err(StoreError::Io),
            Err(_) => {
                self.refuse(call, id, ErrorCode::TooLarge)?;
                return Ok(Next::Again);
            }
        };
        let outline = self.outline(Kind::Totals, to);
        let count = outline.count;
        let Ok(signed) = outline.finish_totals(call.device.key(), &body, name) else {
            self.refuse(call, id, ErrorCode::TooLarge)?;
            return Ok(Next::Again);
        };
        outbox::number(call.db, id, count, &signed, false, None)?;
        self.numbering.push(id, signed.digest, false);
        Ok(Next::Numbered)
    }
}
