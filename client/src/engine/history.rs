//! The ledger's history, for a device that has become a member: it knows nothing of what was said
//! before.
//!
//! Whoever gives a newcomer the key gives it the history as well. If that does not happen, because a
//! rotation has brought the key or whoever gave it had no history itself, the newcomer asks: one
//! member, and another one only if nothing has come for a while, a few at most, on however many
//! connections. A question stays in the log, so whoever is away answers when it is back.
//!
//! To have asked is not to know: only a part of the history itself ends the waiting. Until then a
//! device says of what it gives to others that it is not all, and keeps their questions; when its own
//! history has come, they are given it. So two that wait ask each other at most once.
//!
//! In a `totals` group the app's rules hold, and a restored device asks all at once
//! ([`super::restored`]).

use std::time::Duration;

use sealwire_protocol::digest::sha256;
use sealwire_protocol::limits::RECIPIENTS_MAX;
use sealwire_protocol::{DeviceKey, Kind, LogId};

use super::Result;
use super::desk::{Call, Now, jitter};
use super::log::{Log, Subscription};
use crate::store::logs::{self, Asking};
use crate::store::{ledger, outbox};
use crate::totals::payload::{Payload, SnapshotRequest};

/// How long a newcomer that holds the key waits for the history to come by itself: on the connection
/// on which it has joined. On a later one it has read all that was sent to it when it asks.
const ASK_FIRST: Duration = Duration::from_secs(3);

/// How long the first one that was asked has to answer; it doubles with each further one.
const ASK_PAUSE: Duration = Duration::from_secs(30);

/// Most members that are asked: each may answer with all of it.
const ASK_PEERS_MAX: usize = 4;

/// How long after a part of the history the next one may still come: no part says that it is the
/// last. Whoever is given the history in between would get only what has come so far.
const PARTS_PAUSE: Duration = Duration::from_secs(3);

/// Most members whose questions are kept while this device waits for the history itself: as many as
/// one entry can name.
const OWED_MAX: usize = RECIPIENTS_MAX;

impl Log {
    /// This device has become a member of a native group.
    pub(super) fn begin_history(&mut self, call: &Call<'_>) -> Result<()> {
        if self.log.is_totals() {
            return Ok(());
        }
        // Whoever comes back rotates at once, and a rotation brings no history.
        self.history_wait = if self.replaces.is_some() { Duration::ZERO } else { ASK_FIRST };
        self.history_at = None;
        self.asking = Asking::default();
        logs::set_asking(call.db, self.id, &self.asking)?;
        self.set_wants_history(call, true)
    }

    /// Asks for the history, or gives it to those who have asked, when the time has come.
    pub(super) fn see_to_history(&mut self, call: &Call<'_>) -> Result<()> {
        let reads = self.phase.is_open() && self.subscription == Subscription::Drained;
        if self.log.is_totals() || !reads {
            self.history_at = None;
            return Ok(());
        }
        if self.wants_history { self.ask_when_due(call) } else { self.give_when_due(call) }
    }

    fn ask_when_due(&mut self, call: &Call<'_>) -> Result<()> {
        let me = call.device.key();
        let peers = self.peers_by_turn(me);
        if peers.is_empty() || self.membership.since(me).is_some_and(|since| since.seq == 1) {
            // There was nothing before, or nobody is left who knows it.
            return self.set_wants_history(call, false);
        }
        let asked = &self.asking.asked;
        let next = peers.into_iter().find(|peer| !asked.contains(peer));
        let Some(peer) = next.filter(|_| asked.len() < ASK_PEERS_MAX) else {
            // All that can be done is done: the questions wait in the log.
            self.history_at = None;
            return Ok(());
        };
        if self.history_at.is_none() && self.holds_current(call)? {
            let wait = if asked.is_empty() {
                self.history_wait + jitter(self.history_wait / 4)
            } else {
                // The clock may have been set back meanwhile.
                let left = Duration::from_millis(self.asking.next_ms.saturating_sub(call.now.ms));
                left.min(pause_after(asked.len()) * 2)
            };
            self.history_at = Some(call.now.at + wait);
        }
        if self.history_at.is_some_and(|at| at <= call.now.at) {
            self.ask_for_ledger(call, me, peer)?;
        }
        Ok(())
    }

    fn ask_for_ledger(&mut self, call: &Call<'_>, me: DeviceKey, peer: DeviceKey) -> Result<()> {
        let at = i64::try_from(call.now.ms).unwrap_or(i64::MAX);
        let question = Payload::SnapshotRequest(SnapshotRequest::new(me, at));
        outbox::insert_ledger(call.db, self.id, self.log, &question, Kind::Ring, vec![peer])?;
        self.asking.asked.push(peer);
        let pause = pause_after(self.asking.asked.len());
        let pause = pause + jitter(pause / 4);
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self.asking.next_ms = call.now.ms.saturating_add(pause_ms);
        self.history_at = Some(call.now.at + pause);
        logs::set_asking(call.db, self.id, &self.asking)
    }

    /// Gives the history, once it has come, to all who have asked for it meanwhile.
    fn give_when_due(&mut self, call: &Call<'_>) -> Result<()> {
        if self.asking.owed.is_empty() {
            self.history_at = None;
            return Ok(());
        }
        if *self.history_at.get_or_insert(call.now.at + PARTS_PAUSE) > call.now.at {
            return Ok(());
        }
        self.history_at = None;
        let mut to = std::mem::take(&mut self.asking.owed);
        logs::set_asking(call.db, self.id, &self.asking)?;
        to.retain(|device| self.membership.has(*device));
        if to.is_empty() {
            return Ok(());
        }
        let kept = ledger::load(call.db, self.id)?;
        self.tell_history(call, &kept, &to)
    }

    /// A message was opened: if it is a part of the history, the rest is on its way.
    pub(super) fn note_history(
        &mut self,
        call: &Call<'_>,
        sender: DeviceKey,
        message: &[u8],
    ) -> Result<()> {
        let comes = self.wants_history || self.history_part_at.is_some();
        if !comes || self.log.is_totals() || sender == call.device.key() {
            return Ok(());
        }
        let Ok(Payload::GroupSnapshot(part)) = Payload::decode(message) else { return Ok(()) };
        let ours = LogId::from_uuid_text(&part.group_id) == Some(self.log);
        if !ours || part.partial == Some(true) {
            return Ok(());
        }
        self.history_part_at = Some(call.now.at);
        // Whoever gives it needs it from nobody.
        self.asking.owed.retain(|device| *device != sender);
        self.asking.asked.clear();
        logs::set_asking(call.db, self.id, &self.asking)?;
        self.set_wants_history(call, false)
    }

    /// A member has asked for what this device waits for itself.
    pub(super) fn owe_history(&mut self, call: &Call<'_>, to: DeviceKey) -> Result<()> {
        let owed = &mut self.asking.owed;
        if owed.contains(&to) || owed.len() >= OWED_MAX {
            return Ok(());
        }
        owed.push(to);
        logs::set_asking(call.db, self.id, &self.asking)
    }

    /// Whether this device has a history that it could give: not while it waits for it itself, and
    /// not while the parts of it come.
    pub(super) fn has_whole_history(&self, now: Now) -> bool {
        let comes = self.history_part_at.is_some_and(|at| at + PARTS_PAUSE > now.at);
        self.log.is_totals() || !self.wants_history && !comes
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

/// How long the newest one of this many that were asked has to answer.
fn pause_after(asked: usize) -> Duration {
    let doublings = asked.saturating_sub(1).min(ASK_PEERS_MAX);
    ASK_PAUSE * 2u32.pow(u32::try_from(doublings).unwrap_or(0))
}

#[cfg(test)]
mod tests;
