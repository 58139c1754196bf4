//! Giving content keys to members who lack them: newcomers, those whom a rotation has left out, and
//! those who ask.

use std::time::Duration;

use sealwire_protocol::DeviceKey;
use sealwire_protocol::limits::RECIPIENTS_MAX;

use super::Result;
use super::desk::{Call, jitter};
use super::log::{Log, Subscription};
use crate::holders;
use crate::seal::KeyName;
use crate::store::keys;
use crate::store::outbox::{self, Draft};

/// How long each member before this one in the order has to give a newcomer the key.
const TURN: Duration = Duration::from_millis(1500);

/// Most turns that are waited for: behind these, all that are left try, spread by chance.
const TURNS_MAX: usize = 8;

/// How often one member is given a key that it asks for.
const ANSWER_PAUSE: Duration = Duration::from_secs(10);

/// How long after its question a member of a group of so many has to wait, at most, for what another one
/// who is connected can give: every turn, a slow network, and some more.
#[must_use]
pub fn patience(members: usize) -> Duration {
    let turns = u32::try_from(members.min(TURNS_MAX) + 2).unwrap_or(1);
    Duration::from_secs(8) + TURN * turns
}

impl Log {
    /// A member may lack the current key: this device's turn to give it comes.
    pub(super) fn expect_to_deliver(&mut self, call: &Call<'_>, device: DeviceKey) -> Result<()> {
        let due = self.subscription == Subscription::Drained
            && self.holders.lacks(device)
            && device != call.device.key()
            && !self.deliveries.contains_key(&device)
            && self.holds_current(call)?;
        if due {
            let at = call.now.at + self.turn_of(call, device);
            self.deliveries.insert(device, at);
        }
        Ok(())
    }

    /// The log was read to its end: what is to be done about keys is clear now.
    pub(super) fn on_caught_up(&mut self, call: &mut Call<'_>) -> Result<()> {
        if self.log.is_totals() {
            return self.ask_to_be_let_in(call);
        }
        let lacking: Vec<DeviceKey> = self
            .membership
            .members()
            .map(|(device, _)| device)
            .filter(|device| self.holders.lacks(*device))
            .collect();
        for device in lacking {
            self.expect_to_deliver(call, device)?;
        }
        if self.wants_key(call)?.is_some() {
            self.expect_key(call);
        }
        Ok(())
    }

    pub(super) fn deliver_due(&mut self, call: &mut Call<'_>) -> Result<()> {
        let due: Vec<DeviceKey> = self
            .deliveries
            .iter()
            .filter(|(_, at)| **at <= call.now.at)
            .map(|(device, _)| *device)
            .take(RECIPIENTS_MAX)
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        for device in &due {
            self.deliveries.remove(device);
        }
        let to: Vec<DeviceKey> =
            due.into_iter().filter(|device| self.holders.lacks(*device)).collect();
        if !to.is_empty() {
            outbox::insert(call.db, self.id, &Draft::Deliver { to: to.clone(), epoch: 0 })?;
        }
        for device in to {
            if self.is_newcomer(call, device)? {
                self.give_history(call, device)?;
            }
        }
        Ok(())
    }

    /// A member asks for the key of an epoch. It is given none that was in force only before it
    /// became a member.
    pub(super) fn on_question(
        &mut self,
        call: &mut Call<'_>,
        from: DeviceKey,
        epoch: u32,
    ) -> Result<()> {
        let recently = self.answered.get(&from).is_some_and(|at| *at + ANSWER_PAUSE > call.now.at);
        let (Some(scope), Some(since)) = (self.membership.scope(), self.membership.since(from))
        else {
            return Ok(());
        };
        let epoch = if epoch == 0 { self.holders.epoch() } else { epoch };
        let first = keys::epoch_before(call.db, self.id, scope, since.seq)?;
        let may_have = epoch == self.holders.epoch() || first.is_some_and(|first| epoch >= first);
        let live = self.subscription == Subscription::Drained;
        if recently || !may_have || !live || !keys::has(call.db, self.id, KeyName { scope, epoch })?
        {
            return Ok(());
        }
        self.answered.insert(from, call.now.at);
        outbox::insert(call.db, self.id, &Draft::Deliver { to: vec![from], epoch })?;
        Ok(())
    }

    /// Whether a member has joined since the current key was made: it has seen nothing yet.
    fn is_newcomer(&self, call: &Call<'_>, device: DeviceKey) -> Result<bool> {
        let (Some(scope), Some(since)) = (self.membership.scope(), self.membership.since(device))
        else {
            return Ok(false);
        };
        let current = KeyName { scope, epoch: self.holders.epoch() };
        if keys::came_by_rotation(call.db, self.id, current)? {
            let before = keys::epoch_before(call.db, self.id, scope, since.seq)?;
            return Ok(before == Some(current.epoch));
        }
        // This device was given the key itself, and knows no more than that it was there before: so it
        // was for all who have joined later.
        let own = self.membership.since(call.device.key());
        Ok(own.is_some_and(|own| own.seq < since.seq))
    }

    /// Whether this device holds the current key.
    pub(super) fn holds_current(&self, call: &Call<'_>) -> Result<bool> {
        let Some(scope) = self.membership.scope() else { return Ok(false) };
        keys::has(call.db, self.id, KeyName { scope, epoch: self.holders.epoch() })
    }

    /// How long this device lets others try before it gives `newcomer` the key. Whoever has made
    /// invites goes first: its person is probably waiting.
    fn turn_of(&self, call: &Call<'_>, newcomer: DeviceKey) -> Duration {
        if self.invited {
            return Duration::ZERO;
        }
        let members = self.membership.members().map(|(device, _)| device);
        let rank = holders::rank(call.device.key(), newcomer, members).min(TURNS_MAX);
        TURN * u32::try_from(rank + 1).unwrap_or(1) + jitter(TURN)
    }
}

#[cfg(test)]
pub(super) mod tests;
