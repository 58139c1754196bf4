//! The ledger of a group, as far as the engine has to do with it: messages are applied in the
//! transaction that takes their entry, and whoever has no history is given it.

use std::time::Duration;

use sealwire_protocol::{DeviceKey, Kind, LogId};

use super::Result;
use super::desk::{Call, Now};
use super::log::Log;
use crate::event::Event;
use crate::ledger::{Change, Ledger, Person, Said, SnapshotOf, new_id};
use crate::membership::Membership;
use crate::store::{StoreError, ledger, outbox};
use crate::totals::payload::{Party, Payload};

/// How often one member is given the history: it may be asked for over and over.
const HISTORY_PAUSE: Duration = Duration::from_secs(60);

impl Log {
    /// Applies an opened message.
    pub(super) fn take_ledger(
        &mut self,
        call: &mut Call<'_>,
        sender: DeviceKey,
        at: u64,
        message: &[u8],
    ) -> Result<()> {
        let approvals = self.log.is_totals();
        let said = Said { log: self.log, sender, at, approvals, message };
        let changes = ledger::take(call.db, self.id, said)?;
        self.note_history(call, sender, message)?;
        if changes.is_empty() {
            return Ok(());
        }
        if changes.iter().any(|change| matches!(change, Change::Person(_))) {
            ledger::trim_successions(call.db, self.id, &self.membership)?;
        }
        if changes.contains(&Change::HistoryAsked(Party::from(sender))) {
            self.give_history(call, sender)?;
        }
        call.tell(self.id, &Event::Ledger { log: self.log, sender, changes })
    }

    /// A device was revoked: if it has a successor, that one's balances are others from now on.
    pub(super) fn hand_over_ledger(&self, call: &Call<'_>, lost: DeviceKey) -> Result<()> {
        let successors = ledger::successors_of(call.db, self.id, lost)?;
        let changes: Vec<Change> = successors.into_iter().map(Change::Person).collect();
        if changes.is_empty() {
            return Ok(());
        }
        call.tell(self.id, &Event::Ledger { log: self.log, sender: lost, changes })
    }

    /// Sends the ledger, as this device has it, to one member: even if it is empty, so that a newcomer
    /// need not ask others. While this device waits for the history itself, what it has is only a part
    /// of it and says so, and the member is given the rest later. In a `totals` group that must be one
    /// who was let in, and there must be something to tell.
    pub(super) fn give_history(&mut self, call: &Call<'_>, to: DeviceKey) -> Result<()> {
        if to == call.device.key() || !self.membership.has(to) {
            return Ok(());
        }
        if !self.has_whole_history(call.now) {
            self.owe_history(call, to)?;
            if !self.wants_history {
                return Ok(());
            }
        }
        let lately = self.told.get(&to).is_some_and(|at| *at + HISTORY_PAUSE > call.now.at);
        let may_be_empty = !self.log.is_totals() && !self.wants_history;
        if lately || !may_be_empty && ledger::is_empty(call.db, self.id)? {
            return Ok(());
        }
        let kept = ledger::load(call.db, self.id)?;
        let approved = kept.person(&to.into()).is_some_and(Person::is_approved);
        if self.log.is_totals() && !approved {
            return Ok(());
        }
        self.tell_history(call, &kept, &[to])
    }

    /// Sends a ledger to members.
    pub(super) fn tell_history(
        &mut self,
        call: &Call<'_>,
        kept: &Ledger,
        to: &[DeviceKey],
    ) -> Result<()> {
        self.told.extend(to.iter().map(|device| (*device, call.now.at)));
        let partial = self.wants_history && !self.log.is_totals();
        for mut part in history(kept, self.log, &self.membership, call.device.key(), call.now)? {
            if let Payload::GroupSnapshot(snapshot) = &mut part {
                snapshot.partial = partial.then_some(true);
            }
            if part.encode().is_ok() {
                let to = to.to_vec();
                outbox::insert_ledger(call.db, self.id, self.log, &part, Kind::Bulk, to)?;
            }
        }
        Ok(())
    }
}

/// The whole ledger as messages for one who lacks it; the first says who is in the group.
pub(crate) fn history(
    kept: &Ledger,
    log: LogId,
    membership: &Membership,
    me: DeviceKey,
    now: Now,
) -> Result<Vec<Payload>> {
    let members: Vec<SnapshotOf> = membership
        .members()
        .map(|(device, since)| SnapshotOf { device, joined_at: since.at })
        .collect();
    let approved: Vec<DeviceKey> = members
        .iter()
        .map(|member| member.device)
        .filter(|device| {
            let known = || kept.person(&(*device).into()).is_some_and(Person::is_approved);
            *device == me || !log.is_totals() || known()
        })
        .collect();
    let id = new_id().map_err(|_| StoreError::Io)?;
    let at = i64::try_from(now.ms).unwrap_or(i64::MAX);
    let parts = kept.snapshot(log, &id, &members, &approved, at).into_iter();
    let successions = kept.successions_given(membership).into_iter();
    let successions = successions.cloned().map(Payload::Succession);
    let all = parts.map(Payload::GroupSnapshot).chain(successions);
    // One item that is too long for any message is all that cannot be told.
    Ok(all.filter(|part| part.encode().is_ok()).collect())
}
