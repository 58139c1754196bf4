//! What a device that came out of a recovery vault does in each group: it takes the place of the one
//! that is lost, and asks for what was said before.

use sealwire_protocol::limits::RECIPIENTS_MAX;
use sealwire_protocol::{DeviceKey, Digest, Kind};

use super::Result;
use super::desk::Call;
use super::log::{Log, Subscription};
use crate::identity::JoinSeed;
use crate::store::outbox::{self, Draft};
use crate::store::{StoreError, keys, logs};
use crate::totals::payload::{Payload, SnapshotRequest};

impl Log {
    /// Does what is left to be done after a restore, once this device can read and write.
    pub(super) fn settle_restored(&mut self, call: &mut Call<'_>) -> Result<()> {
        let asks = self.wants_history && self.log.is_totals();
        let left = self.replaces.is_some() || asks;
        let ready = self.phase.is_open() && self.subscription == Subscription::Drained;
        if !left || !ready || !self.can_seal(call)? {
            return Ok(());
        }
        if asks {
            self.ask_for_history(call)?;
        }
        // From a totals group only the lost device itself can be taken.
        if !self.log.is_totals()
            && let Some(old) = self.replaces
        {
            self.remove_old(call, old)?;
        }
        Ok(())
    }

    /// A device that takes the place of the only other member is given the key by nobody: it has the
    /// one that the recovery vault had.
    pub(super) fn use_restored_key(&mut self, call: &Call<'_>) -> Result<()> {
        let (Some(old), Some(scope)) = (self.replaces, self.membership.scope()) else {
            return Ok(());
        };
        let me = call.device.key();
        let alone = self.membership.members().all(|(device, _)| device == me || device == old);
        if alone && let Some(epoch) = keys::newest(call.db, self.id, scope)? {
            self.holders.delivery(epoch);
            self.membership.given_current_key(me);
            self.members_changed = true;
        }
        Ok(())
    }

    fn can_seal(&self, call: &Call<'_>) -> Result<bool> {
        if self.log.is_totals() {
            return keys::has(call.db, self.id, super::GROUP_KEY);
        }
        self.holds_current(call)
    }

    /// Asks all members of a `totals` group, as the app does.
    fn ask_for_history(&mut self, call: &Call<'_>) -> Result<()> {
        let (me, old) = (call.device.key(), self.replaces);
        let mut peers: Vec<DeviceKey> = self
            .membership
            .members()
            .map(|(device, _)| device)
            .filter(|device| *device != me && Some(*device) != old)
            .collect();
        peers.truncate(RECIPIENTS_MAX);
        if !peers.is_empty() {
            let at = i64::try_from(call.now.ms).unwrap_or(i64::MAX);
            let message = Payload::SnapshotRequest(SnapshotRequest::new(me, at));
            outbox::insert_ledger(call.db, self.id, self.log, &message, Kind::Ring, peers)?;
        }
        self.set_wants_history(call, false)
    }

    fn remove_old(&mut self, call: &Call<'_>, old: DeviceKey) -> Result<()> {
        // Even if it had left: it is not to come back, and its successor counts only then.
        if self.membership.revocation(old).is_none() {
            let seed = JoinSeed::generate().map_err(|_| StoreError::Io)?;
            let seed = Digest(*seed.bytes());
            outbox::insert(call.db, self.id, &Draft::Revoke { device: old, seed })?;
            outbox::insert(call.db, self.id, &Draft::Rotate { asked: true })?;
        }
        self.replaces = None;
        logs::set_replaces(call.db, self.id, None)
    }
}
