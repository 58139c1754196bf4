//! The ledger of a group, as far as the engine has to do with it: messages are applied in the
//! transaction that takes their entry, and whoever has no history is given it.

use std::time::Duration;

use sealwire_protocol::{DeviceKey, Kind};

use super::Result;
use super::desk::Call;
use super::log::Log;
use crate::event::Event;
use crate::ledger::{Change, Ledger, Said, SnapshotOf, new_id};
use crate::store::StoreError;
use crate::store::ledger;
use crate::store::outbox::{self, Draft};
use crate::totals::payload::{Party, Payload};

/// How often one member is given the history: it may be asked for over and over.
const HISTORY_PAUSE: Duration = Duration::from_secs(60);

impl Log {
    /// Applies an opened message. `approvals` is for groups where approvals decide who belongs to
    /// them.
    pub(super) fn take_ledger(
        &mut self,
        call: &mut Call<'_>,
        sender: DeviceKey,
        at: u64,
        approvals: bool,
        message: &[u8],
    ) -> Result<()> {
        let said = Said { log: self.log, sender, at, approvals, message };
        let changes = ledger::take(call.db, self.id, said)?;
        if changes.is_empty() {
            return Ok(());
        }
        if changes.contains(&Change::HistoryAsked(Party::from(sender))) {
            self.give_history(call, sender)?;
        }
        call.tell(self.id, &Event::Ledger { log: self.log, sender, changes })
    }

    /// Sends the ledger, as this device has it, to one member.
    pub(super) fn give_history(&mut self, call: &Call<'_>, to: DeviceKey) -> Result<()> {
        let lately = self.told.get(&to).is_some_and(|at| *at + HISTORY_PAUSE > call.now.at);
        if lately || to == call.device.key() || !self.membership.has(to) {
            return Ok(());
        }
        if ledger::is_empty(call.db, self.id)? {
            return Ok(());
        }
        self.told.insert(to, call.now.at);
        let history = ledger::load(call.db, self.id)?;
        for part in self.history_parts(call, &history)? {
            // One item that is too long for any message is the only thing that cannot be told.
            let Ok(message) = part.encode() else { continue };
            let draft =
                Draft::Ledger { kind: Kind::Bulk.to_u8(), message: message.to_vec(), to: vec![to] };
            outbox::insert(call.db, self.id, &draft)?;
        }
        Ok(())
    }

    fn history_parts(&self, call: &Call<'_>, history: &Ledger) -> Result<Vec<Payload>> {
        let members: Vec<SnapshotOf> = self
            .membership
            .members()
            .map(|(device, since)| SnapshotOf { device, joined_at: since.at })
            .collect();
        let everybody: Vec<DeviceKey> = members.iter().map(|member| member.device).collect();
        let id = new_id().map_err(|_| StoreError::Io)?;
        let at = i64::try_from(call.now.ms).unwrap_or(i64::MAX);
        let parts = history.snapshot(self.log, &id, &members, &everybody, at);
        Ok(parts.into_iter().map(Payload::GroupSnapshot).collect())
    }
}
