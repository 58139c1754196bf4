//! The ledger's history, for a device that has become a member: it knows nothing of what was said
//! before.
//!
//! Whoever gives a newcomer the key gives it the history as well. If that does not happen, because a
//! rotation has brought the key or whoever gave it had no history itself, the newcomer asks: one
//! member, and another one only if nothing has come for a while, a few at most. A question stays in
//! the log, so whoever is away answers when it is back. In a `totals` group the app's rules hold, and
//! a restored device asks all at once ([`super::restored`]).

use std::time::Duration;

use sealwire_protocol::digest::sha256;
use sealwire_protocol::{DeviceKey, Kind};

use super::Result;
use super::desk::{Call, jitter};
use super::log::{Log, Subscription};
use crate::store::{logs, outbox};
use crate::totals::payload::{Payload, SnapshotRequest};

/// How long a newcomer that holds the key waits for the history to come by itself: on the connection
/// on which it has joined. On a later one it has read all that was sent to it when it asks.
const ASK_FIRST: Duration = Duration::from_secs(3);

/// How long the first one that was asked has to answer; it doubles with each further one.
const ASK_PAUSE: Duration = Duration::from_secs(30);

/// Most members that are asked: each may answer with all of it.
const ASK_PEERS_MAX: usize = 4;

impl Log {
    /// This device has become a member of a native group.
    pub(super) fn begin_history(&mut self, call: &Call<'_>) -> Result<()> {
        if self.log.is_totals() {
            return Ok(());
        }
        self.history_asked = 0;
        // Whoever comes back rotates at once, and a rotation brings no history.
        self.history_wait = if self.replaces.is_some() { Duration::ZERO } else { ASK_FIRST };
        self.set_wants_history(call, true)
    }

    /// Asks for the history, when its time has come.
    pub(super) fn see_to_history(&mut self, call: &Call<'_>) -> Result<()> {
        let wants = self.wants_history && !self.log.is_totals() && self.phase.is_open();
        if !wants || self.subscription != Subscription::Drained {
            self.history_at = None;
            return Ok(());
        }
        let me = call.device.key();
        let peers = self.peers_by_turn(me);
        if peers.is_empty() || self.membership.since(me).is_some_and(|since| since.seq == 1) {
            // There was nothing before, or nobody is left who knows it.
            return self.set_wants_history(call, false);
        }
        if self.history_at.is_none() && self.holds_current(call)? {
            let wait = self.history_wait;
            self.history_at = Some(call.now.at + wait + jitter(wait / 4));
        }
        if self.history_at.is_some_and(|at| at <= call.now.at) {
            self.ask_next(call, me, &peers)?;
        }
        Ok(())
    }

    fn ask_next(&mut self, call: &Call<'_>, me: DeviceKey, peers: &[DeviceKey]) -> Result<()> {
        let pause = ASK_PAUSE * 2u32.pow(u32::try_from(self.history_asked).unwrap_or(0).min(8));
        if let Some(peer) = peers.get(self.history_asked) {
            let at = i64::try_from(call.now.ms).unwrap_or(i64::MAX);
            let question = Payload::SnapshotRequest(SnapshotRequest::new(me, at));
            outbox::insert_ledger(call.db, self.id, self.log, &question, Kind::Ring, vec![*peer])?;
        }
        self.history_asked += 1;
        self.history_at = Some(call.now.at + pause + jitter(pause / 4));
        if self.history_asked >= peers.len().min(ASK_PEERS_MAX) {
            // All that can be done is done: the questions wait in the log.
            return self.set_wants_history(call, false);
        }
        Ok(())
    }

    /// A message was opened: if it is a part of the history, the rest is on its way.
    pub(super) fn note_history(&mut self, call: &Call<'_>, message: &[u8]) -> Result<()> {
        let wants = self.wants_history && !self.log.is_totals();
        if wants && matches!(Payload::decode(message), Ok(Payload::GroupSnapshot(_))) {
            return self.set_wants_history(call, false);
        }
        Ok(())
    }

    /// Whether this device has a history that it could give: not while it waits for it itself.
    pub(super) fn knows_history(&self) -> bool {
        self.log.is_totals() || !self.wants_history
    }

    pub(super) fn set_wants_history(&mut self, call: &Call<'_>, wants: bool) -> Result<()> {
        self.wants_history = wants;
        if !wants {
            self.history_at = None;
        }
        logs::set_wants_history(call.db, self.id, wants)
    }

    /// The other members: whoever gave the key is awake and comes first, the others in an order that
    /// is another one for each newcomer.
    fn peers_by_turn(&self, me: DeviceKey) -> Vec<DeviceKey> {
        let members = self.membership.members().map(|(device, _)| device);
        let mut peers: Vec<DeviceKey> =
            members.filter(|device| *device != me && Some(*device) != self.replaces).collect();
        peers.sort_by_cached_key(|device| {
            (Some(*device) != self.key_from, sha256(&[me.0, device.0].concat()))
        });
        peers
    }
}
