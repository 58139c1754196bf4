//! Becoming a member of a `totals` group, and being one no more: what the relay answers, and what the
//! other members are asked.

use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::{DeviceKey, Failure};

use super::super::Result;
use super::super::desk::Call;
use super::super::log::Log;
use crate::numbering::{self, DraftId, Mark};
use crate::store::logs::{self, Phase};
use crate::store::outbox::{self, Draft};
use crate::store::{self, requests};
use crate::totals::payload::{JoinRequest, MemberMeta, Payload};

impl Log {
    /// The relay has made this device a member.
    pub(in crate::engine) fn on_totals_joined(
        &mut self,
        call: &mut Call<'_>,
        id: DraftId,
        seq: u64,
    ) -> Result<()> {
        self.membership_asked = false;
        outbox::appended(call.db, id, seq, call.now.ms)?;
        self.joined_seq = seq;
        logs::set_joined(call.db, self.id, seq)?;
        requests::forget_asked(call.db, self.id)?;
        if self.group_key(call)?.is_some() {
            // A recovery vault has brought it: who seals under it needs no approval.
            self.introduce(call)?;
        }
        self.enter(call)
    }

    /// The relay has not made this device a member.
    pub(in crate::engine) fn on_totals_not_joined(
        &mut self,
        call: &mut Call<'_>,
        id: DraftId,
        failure: &Failure,
    ) -> Result<()> {
        self.membership_asked = false;
        if numbering::is_passing(failure.code) {
            self.hold_until = Some(call.now.at + numbering::hold(failure));
            return Ok(());
        }
        self.refuse(call, id, failure.code)?;
        self.phase = Phase::Refused;
        logs::set_phase(call.db, self.id, self.phase)
    }

    /// This device is a member no more.
    pub(in crate::engine) fn on_totals_left(&mut self, call: &mut Call<'_>) -> Result<()> {
        self.membership_asked = false;
        self.settle_leave(call, 0)?;
        self.removed(call, false, 0)
    }

    /// The relay has not taken the leave.
    pub(in crate::engine) fn on_totals_not_left(
        &mut self,
        call: &mut Call<'_>,
        failure: &Failure,
    ) -> Result<()> {
        if failure.code == ErrorCode::NoSuchLog {
            return self.on_totals_left(call);
        }
        self.membership_asked = false;
        self.hold_until = Some(call.now.at + numbering::hold(failure));
        Ok(())
    }

    /// Asks every member once for the group's key, if this device lacks it.
    pub(in crate::engine) fn ask_to_be_let_in(&mut self, call: &mut Call<'_>) -> Result<()> {
        if self.group_key(call)?.is_some() {
            // A person may have accepted another key since.
            return self.retry_totals(call);
        }
        if self.phase != Phase::Member {
            return Ok(());
        }
        let me = call.device.key();
        let (name, name_at) = store::name(call.db)?;
        let members: Vec<DeviceKey> = self.membership.members().map(|(device, _)| device).collect();
        for member in members {
            if member == me || !requests::ask(call.db, self.id, member)? {
                continue;
            }
            let mut request = JoinRequest::new(me, name.clone(), to_i64(call.now.ms));
            if name_at > 0 {
                request.member_meta_updated_at = to_i64(name_at);
            }
            let alone = true;
            self.say(call, &Payload::JoinRequest(request), vec![member], alone)?;
        }
        Ok(())
    }

    /// Tells the members who this is, once it was let in.
    pub(in crate::engine) fn introduce(&mut self, call: &mut Call<'_>) -> Result<()> {
        let (name, name_at) = store::name(call.db)?;
        let meta = MemberMeta {
            display_name: name,
            payment_address: None,
            member_meta_updated_at: to_i64(if name_at > 0 { name_at } else { call.now.ms }),
            timestamp: to_i64(call.now.ms),
            activity: None,
        };
        self.say(call, &Payload::MemberMeta(meta), Vec::new(), false)
    }

    /// Puts a message of this program's own into the outbox, and takes it into the ledger.
    fn say(
        &mut self,
        call: &mut Call<'_>,
        message: &Payload,
        to: Vec<DeviceKey>,
        alone: bool,
    ) -> Result<()> {
        let Ok(payload) = message.encode() else { return Ok(()) };
        self.take_ledger(call, call.device.key(), call.now.ms, &payload)?;
        let name = message.kind().to_owned();
        let draft = Draft::Totals { name, payload: payload.to_vec(), to, alone };
        outbox::insert(call.db, self.id, &draft).map(|_| ())
    }

    /// The relay has entries of this key that this device does not know: a phone of the same person,
    /// or an earlier life of this device, has written them. Nothing is signed here, so nothing
    /// contradicts itself; what waits goes behind them.
    pub(in crate::engine) fn adopt(&mut self, call: &mut Call<'_>, newest: Mark) -> Result<()> {
        let ids = self.numbering.adopt(newest);
        logs::save_appended(call.db, self.id, newest)?;
        self.unnumber(call, &ids, 0)
    }
}

/// A time as the app's messages have it.
fn to_i64(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
